"""What every ``python -m`` command shares: its parser, its exit statuses and its printed tables."""

from __future__ import annotations

import argparse
import io
import os
import re
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, NoReturn

from data.console.failures import DEBUG, FAULT, explained, recorded
from data.console.lacking import lacks
from data.errors import UserError, printable

if _why := lacks():  # before anything else is imported, which would end in a traceback
    print(f"error: {_why}", file=sys.stderr)
    raise SystemExit(2)

_ROLE = re.compile(r":[a-z]+:`~?([^`]*)`")
_OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]+")
_READER = "data.prepare"
_known: set[str] = set()
"""Options of the command that runs."""
CALLED: dict[str, str] = {}
"""What the user typed for a command instead of ``python -m MODULE``, by its module."""
_TYPED = re.compile(r"python -m ([\w.]*\w)")
_ITSELF = re.compile(r"^``python -m [\w.]+``: ")


def typed(module: str) -> str:
    """How the user runs a command."""
    return CALLED.get(module, f"python -m {module}")


def parser_of(command: str, doc: str | None, example: str) -> CommandParser:
    """Return the parser of a command, with what all commands take; it calls it as it was called.

    Parameters
    ----------
    command : str
        Such as ``ensemble.stack``.
    doc : str or None
        What it does: its module's docstring, whose markup is taken off.
    example : str
        A command line, or several, without ``python -m``.
    """
    split = (line.partition(" ") for line in example.splitlines())
    lines = "\n".join(f"  {typed(module)} {options}" for module, _, options in split)
    parser = CommandParser(
        prog=typed(command),
        description=_TYPED.sub(lambda found: typed(found[1]), plain(doc or "")),
        epilog=f"example:\n{lines}",
        formatter_class=_Paragraphs,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and end")
    parser.add_argument(
        "--debug", action="store_true", help=f"show the traceback of an error, as {DEBUG}=1 does"
    )
    return parser


def plain(doc: str) -> str:
    """Return a docstring as a terminal should show it: no markup, and not the command's own name first."""
    text = _ROLE.sub(r"\1", _ITSELF.sub("", doc.strip()))
    text = re.sub(r"``([^`]*)``", r"\1", text)
    return text[:1].upper() + text[1:]


class CommandParser(argparse.ArgumentParser):
    """A parser whose complaints are one line, with the option that was perhaps meant."""

    @property
    def options(self) -> set[str]:
        """All options that the command knows."""
        return {name for action in self._actions for name in action.option_strings}

    def parse_known_args(self, *args: Any, **kwargs: Any) -> Any:
        """Parse, and remember the options for messages that name another command's."""
        _known.update(self.options)
        return super().parse_known_args(*args, **kwargs)

    def error(self, message: str) -> NoReturn:
        """Raise :class:`data.errors.UserError`.

        Raises
        ------
        UserError
            Always.
        """
        if "unrecognized arguments" in message:
            from difflib import get_close_matches

            known = sorted(self.options)
            for word in message.split():
                name = word.partition("=")[0]
                close = [option for option in known if name.startswith("--") and option.startswith(name)]
                if close := close or (name.startswith("--") and get_close_matches(name, known, 1)) or []:
                    message += f"; is it {' or '.join(close)}? Options are written out"
                    break
        raise UserError(f"{message}; {self.prog} --help shows what there is")


class _Paragraphs(argparse.HelpFormatter):
    """Fills paragraph by paragraph, and leaves lines that are set off as they are."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        fill = super()._fill_text
        parts = []
        for paragraph in text.split("\n\n"):
            set_off = any(line.startswith("  ") for line in paragraph.splitlines())
            parts.append(paragraph if set_off else fill(paragraph, width, indent))
        return "\n\n".join(parts)


class _Version(argparse.Action):
    """Prints the version of the installed package; looked up only when it is asked for."""

    def __call__(self, *args: Any, **_: Any) -> NoReturn:
        from importlib.metadata import PackageNotFoundError, version

        try:
            print(f"distillstack {version('distillstack')}")
        except PackageNotFoundError:  # run from the sources
            print("distillstack, from its sources")
        raise SystemExit(0)


def run(main: Callable[[Sequence[str]], int | None]) -> NoReturn:
    """Run a command's ``main`` and exit.

    The status is 0 or the command's own, 2 on a user's mistake or what the system refuses, 70 on a fault of
    this package, 130 on Ctrl-C, 141 where whoever read the output has gone. A traceback is shown with
    ``--debug`` or ``DISTILLSTACK_DEBUG=1``.
    """
    _mend_streams()
    debug = "--debug" in sys.argv[1:] or _debugs()
    try:
        status = main(sys.argv[1:]) or 0
        sys.stdout.flush()
    except BrokenPipeError:  # as `head` does: there is nobody to tell
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 141
    except KeyboardInterrupt:
        print("interrupted; the same command continues from what is finished", file=sys.stderr)
        status = 130
        if any(
            not thread.daemon for thread in threading.enumerate() if thread is not threading.main_thread()
        ):
            sys.stderr.flush()
            os._exit(status)  # what they compute is lost anyway, and the interpreter would wait for it
    except Exception as error:
        status = _tell(error, debug)
    try:
        sys.stdout.flush()
    except OSError:  # told already, and the interpreter would try once more
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    raise SystemExit(status)


def guard() -> None:
    """Have a script that does not :func:`run` end on a user's mistake as commands do, its imports included.

    Anything else keeps its traceback.
    """

    def told(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if isinstance(error, Exception) and (isinstance(error, UserError) or explained(error)):
            raise SystemExit(_tell(error, _debugs()))
        sys.__excepthook__(kind, error, trace)

    sys.excepthook = told


def _debugs() -> bool:
    return os.environ.get(DEBUG, "") not in {"", "0"}


def _mend_streams() -> None:
    """See that printing never fails: characters that an encoding lacks, and outputs closed from the start."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # for prompts that the encoding cannot say


def _tell(error: Exception, debug: bool) -> int:
    """Print what is to be said of an error; return the exit status."""
    mistake = isinstance(error, UserError)
    # A library's message may hold line breaks.
    what = " ".join(str(error).split()) + _of_the_reader(error) if mistake else explained(error)
    status = 2 if what or mistake else FAULT
    if debug:
        traceback.print_exception(error)
    if not getattr(error, "told", False):  # by another process of the same command
        print(f"error: {printable(what or recorded(error))}", file=sys.stderr)
    return status


def _of_the_reader(error: Exception) -> str:
    """Whose options a message of ``data`` recommends, where the command that shows it has no such ones."""
    frames = list(traceback.walk_tb(error.__traceback__))
    raised = frames[-1][0].f_globals.get("__name__", "") if frames else ""
    if not _known or not raised.startswith("data.") or raised == __name__ or _READER in str(error):
        return ""
    others = list(dict.fromkeys(name for name in _OPTION.findall(str(error)) if name not in _known))
    if not others:
        return ""
    return f" ({' and '.join(others)}: of python -m {_READER}; prepare the rows with it first)"


def format_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lay out text cells in aligned columns; the first column to the left, the others to the right."""
    lines = [list(header), *[list(row) for row in rows]]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]

    def render(line: Sequence[str]) -> str:
        cells = [line[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)]
        return "  ".join(cells).rstrip()

    rule = "  ".join("-" * width for width in widths)
    return "\n".join([render(lines[0]), rule, *[render(line) for line in lines[1:]]])
