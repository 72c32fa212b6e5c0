"""What must be found whatever else is on the path: the command ``distillstack``, and the packages' faces.

``data``, ``ensemble`` and ``distill`` are names that other projects use, too. This module stands beside them
under a name of its own, and notices where another package of such a name would be imported instead.
"""

from __future__ import annotations

import ast
import re
import runpy
import sys
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

HOME = Path(__file__).resolve().parent
PACKAGES = ("data", "ensemble", "distill")
COMMANDS = {
    "prepare": "data.prepare",
    "doctor": "distill.doctor.__main__",
    "race": "distill.race.__main__",
    "teacher-oof": "distill.teacher_oof",
    "student": "distill.student",
    "predict": "distill.predict",
    "average": "distill.average",
    "export": "distill.export",
    "stack": "ensemble.stack",
    "stack-predict": "ensemble.predict",
    "route": "ensemble.route",
}
"""What ``distillstack NAME`` runs, in the order of the work."""


def face(package: str, file: str) -> tuple[list[str], Callable[[str], Any], Callable[[], list[str]]]:
    """Return a package's ``__all__``, ``__getattr__`` and ``__dir__``: names imported when first asked for.

    The names stand once, as imports in the ``__init__.pyi`` beside the package's ``__init__.py``, where type
    checkers and editors read them.

    Parameters
    ----------
    package, file : str
        Its ``__name__`` and ``__file__``.

    Raises
    ------
    ImportError
        A package of another project would be imported in place of one of ours.
    """
    if wrong := others():
        if sys.argv[:1] == ["-m"]:  # a command's package, before the command
            print(f"error: {wrong}", file=sys.stderr)
            raise SystemExit(2)
        raise ImportError(wrong)
    stub = ast.parse(Path(file).with_suffix(".pyi").read_text(encoding="utf-8"))
    places = {
        alias.name: str(node.module)
        for node in stub.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }

    def attribute(name: str) -> Any:
        if name not in places:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        try:
            found = getattr(import_module(places[name]), name)
        except ModuleNotFoundError as error:
            from data.console.failures import explained  # which names the extra that brings it

            raise ModuleNotFoundError(explained(error) or str(error), name=error.name) from error
        setattr(sys.modules[package], name, found)
        return found

    return sorted(places), attribute, lambda: sorted({*vars(sys.modules[package]), *places})


def others() -> str:
    """Say which package of another project stands in front of ours on the path; empty where none does."""
    for name in PACKAGES:
        loaded = sys.modules.get(name)
        spec = find_spec(name) if loaded is None else loaded.__spec__
        origin = spec.origin if spec is not None else None
        if origin is None or Path(origin).resolve().parent != HOME / name:
            return (
                f"import {name} finds {origin or 'no package'}, which is not distillstack's "
                f"({HOME / name}): another {name} stands in front on the path; work in another directory, "
                "take its directory off PYTHONPATH, or install distillstack in an environment of its own"
            )
    return ""


def main() -> None:
    """Run ``distillstack COMMAND ...`` as ``python -m`` would, or list the commands."""
    name = sys.argv[1].replace("_", "-") if len(sys.argv) > 1 else "--help"
    if name in {"--help", "-h"}:
        print(overview())
        return
    if wrong := others():
        print(f"error: {wrong}", file=sys.stderr)
        raise SystemExit(2)
    if name == "--version":
        from importlib.metadata import version

        print(f"distillstack {version('distillstack')}, in {HOME}")
        return
    if name not in COMMANDS:
        from difflib import get_close_matches

        meant = get_close_matches(name, COMMANDS, 1)
        hint = f"; is it {meant[0]}?" if meant else f"; there are {', '.join(COMMANDS)}"
        print(f"error: distillstack {sys.argv[1]}: is no command{hint}", file=sys.stderr)
        raise SystemExit(2)
    sys.argv[:2] = [f"distillstack {name}"]
    for command, module in COMMANDS.items():
        import_module("data.console.command").CALLED[module.removesuffix(".__main__")] = (
            f"distillstack {command}"
        )
    runpy.run_module(COMMANDS[name], run_name="__main__", alter_sys=True)


def overview() -> str:
    """The commands with what each does, as its module's docstring begins."""
    lines = [f"  {name:13}  {purpose(module)}" for name, module in COMMANDS.items()]
    return "\n".join(
        [
            "usage: distillstack COMMAND ...    (distillstack COMMAND --help shows its options)",
            "",
            *lines,
            "",
            "python -m MODULE runs the same: "
            + ", ".join(m.removesuffix(".__main__") for m in COMMANDS.values()),
        ]
    )


def purpose(module: str) -> str:
    """The first sentence of a command's docstring, which is read without importing it."""
    file = HOME.joinpath(*module.split(".")).with_suffix(".py")
    text = (ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or "").split("\n\n")[0]
    text = re.sub(r"^``python -m [\w.]+``: |: ``python -m .*$", "", " ".join(text.split()))
    return text[:1].upper() + text[1:].rstrip(".")


if __name__ == "__main__":
    main()
