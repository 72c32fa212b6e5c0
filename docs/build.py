"""The site: ``python -m docs.build`` writes ``dist/docs``. Nothing is fetched, and a warning is an error.

Pages are staged under ``build/site`` beside ``benchmarks``, so that their links are those of the repository.
Three are made here, from the code: every command's ``--help``, the recipe's keys from the fields of
:mod:`distill.config`, and the public names of the packages from their docstrings.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import distillstack
from docs.pictures import PICTURES

ROOT = Path(__file__).resolve().parents[1]
STAGE, OUT = ROOT / "build" / "site", ROOT / "dist" / "docs"
COMMANDS = tuple(distillstack.COMMANDS.values())
INTRODUCTION = """\
Each runs as `python -m NAME`. Without arguments `distill.teacher_oof`, then `distill.student`, then
`ensemble.stack` run the demo. Any value of a recipe can be overridden, `teachers.llama.train.epochs=2`;
`--help-recipe` lists the keys with their meaning and range. Every command shows a progress bar on a terminal
and a line a minute elsewhere; killed at any moment and started again, it continues. A mistake ends in one
message and exit status 2, with nothing half-written; a fault of ours in one line and 70 (`--debug` shows the
traceback). What follows is what each prints for `--help`."""
PACKAGES = {
    "data": "rows, sources and stores",
    "ensemble": "blends, calibration and honest scores",
    "distill": "teachers, students, prediction and the doctor",
}


def help_of(module: str) -> str:
    """What a command prints when it is asked for help."""
    shown = io.StringIO()
    os.environ["COLUMNS"] = "100"
    with contextlib.redirect_stdout(shown), contextlib.suppress(SystemExit):
        importlib.import_module(module).main(["--help"])
    return shown.getvalue()


def commands_page() -> str:
    """Every command, from its parser."""
    parts = ["# Every command", "", INTRODUCTION]
    for module in COMMANDS:
        name = module.removesuffix(".__main__")
        parts += ["", f"## {name}", "", "```text", help_of(module).rstrip(), "```"]
    return "\n".join([*parts, ""])


def recipe_page() -> str:
    """Every key of a recipe, from the fields of its dataclasses."""
    from distill.config import DataConfig, DistillConfig, ModelConfig
    from distill.recipe import RECIPES, recipe_names
    from distill.recipe_keys import MODELS, default_of, keys_of, range_of

    parts = [
        "# The recipe",
        "",
        "A recipe is a YAML file of these keys, nested at the dots; on the command line they keep them: "
        "`teachers.llama.train.epochs=2`. `teachers` holds models by names of your choice, `student` is one "
        "more. `--help-recipe` prints the same.",
    ]
    for prefix, kind in (("data", DataConfig), (MODELS, ModelConfig), ("student.distill", DistillConfig)):
        parts += ["", f"## {prefix}", "", "| key | meaning | default | range |", "|---|---|---|---|"]
        for key, field in keys_of(kind, "" if prefix == MODELS else prefix):
            cells = (f"`{key}`", field.metadata.get("help", ""), default_of(field), range_of(field.metadata))
            parts.append(
                "| " + " | ".join(cell.replace("|", "\\|").replace("*", "\\*") for cell in cells) + " |"
            )
    parts += ["", "## Recipes that come with it"]
    for name in recipe_names():
        text = (RECIPES / f"{name}.yaml").read_text(encoding="utf-8").rstrip()
        parts += ["", f"### {name}", "", "```yaml", text, "```"]
    return "\n".join([*parts, ""])


def api_page(package: str, about: str) -> str:
    """A package's public names, from their docstrings."""
    module: Any = importlib.import_module(package)
    title = f"{package}: {about}"
    parts = [title, "=" * len(title), "", ""]
    for name in sorted(getattr(module, "__all__", ())):
        found = getattr(module, name)
        home, _, _ = found.__module__.partition(".")
        if home != package:
            parts += [f"``{name}`` is that of ``{home}``.", ""]
        elif isinstance(found, type):
            parts += [
                f".. autoclass:: {found.__module__}.{name}",
                "   :members:",
                "   :inherited-members:",
                "",
            ]
        else:
            parts += [f".. autofunction:: {found.__module__}.{name}", ""]
    return "\n".join([*parts, ""])


def stage() -> None:
    """Lay pages and pictures out as Sphinx reads them."""
    shutil.rmtree(STAGE, ignore_errors=True)
    for name in ("docs", "benchmarks"):
        (STAGE / name).mkdir(parents=True)
        for pattern in ("*.md", "*.svg"):
            for path in (ROOT / name).glob(pattern):
                shutil.copy(path, STAGE / name)
    for name in ("CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"):
        shutil.copy(ROOT / name, STAGE)
    if not (ROOT / "docs" / "serve.md").exists():
        index = STAGE / "docs" / "index.md"
        index.write_text(index.read_text(encoding="utf-8").replace("\nserve\n", "\n"), encoding="utf-8")
    pages = {"commands.md": commands_page(), "recipe.md": recipe_page()}
    pages |= {f"api-{name}.rst": api_page(name, about) for name, about in PACKAGES.items()}
    for name, text in pages.items():
        (STAGE / "docs" / name).write_text(text, encoding="utf-8")
    for name, draw in PICTURES.items():
        (STAGE / "docs" / name).write_text(draw(), encoding="utf-8")


def main() -> int:
    """Build the site; the status is Sphinx's."""
    from sphinx.cmd.build import build_main

    stage()
    doctrees = ROOT / "build" / "doctrees"
    for left in (OUT, doctrees):
        shutil.rmtree(left, ignore_errors=True)
    config = str(Path(__file__).parent)
    places = ["-d", str(doctrees), "-c", config, str(STAGE), str(OUT)]
    status = build_main(["-q", "-W", "--keep-going", "-b", "html", *places])
    if not status:
        print(f"{OUT}/docs/index.html")
    return status


if __name__ == "__main__":
    sys.exit(main())
