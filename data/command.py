"""What every ``python -m`` command shares: its exit statuses and its printed tables."""

from __future__ import annotations

import io
import os
import sys
import threading
from collections.abc import Callable, Sequence
from typing import NoReturn

from data.errors import UserError, brief, is_disk_full, printable


def run(main: Callable[[Sequence[str]], int | None]) -> NoReturn:
    """Run a command's ``main`` and exit: 0 or its own status, 2 on a user's mistake, 130 on Ctrl-C."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # for prompts that the output's encoding cannot say
    try:
        status = main(sys.argv[1:]) or 0
        sys.stdout.flush()
    except UserError as mistake:
        if not getattr(mistake, "told", False):  # by another process of the same command
            # A library's message may hold line breaks.
            print(f"error: {printable(' '.join(str(mistake).split()))}", file=sys.stderr)
        status = 2
    except BrokenPipeError:  # whoever read the output has gone, as `head` does: there is nobody to tell
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 141
    except Exception as error:
        if not is_disk_full(error):
            raise
        told = f"error: the disk is full ({brief(error)}); make room, and the same command continues"
        print(told, file=sys.stderr)
        status = 2
    except KeyboardInterrupt:
        print("interrupted; the same command continues from what is finished", file=sys.stderr)
        status = 130
        if any(
            not thread.daemon for thread in threading.enumerate() if thread is not threading.main_thread()
        ):
            sys.stderr.flush()
            os._exit(status)  # what they compute is lost anyway, and the interpreter would wait for it
    sys.stdout.flush()
    raise SystemExit(status)


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
