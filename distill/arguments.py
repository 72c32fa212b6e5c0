"""What every command of ``distill`` takes: a recipe, prepared data or the embedded demo, and a place."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from data.console.remote_code import add_remote_code_argument, allow_remote_code
from data.errors import UserError, brief, listing, printable
from data.ids import align
from data.storage import address_of, fetch, local_path, shown
from ensemble.scoring.ranking import METRICS, row_metrics
from ensemble.solvers.numbers import cross_entropy

if TYPE_CHECKING:
    import numpy as np

    from data.folds import Folds
    from data.schema import Rows
    from data.softlabels import SoftLabels
    from distill.config import DataConfig
    from distill.runs.saved import Access

DEMO = Path("runs/demo")
EXTRAS = ("tensorboard", "wandb")
"""Trackers that ``pip install 'distillstack[NAME]'`` brings."""
OVERRIDE = re.compile(r"[A-Za-z_][\w.-]*=")


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that training commands share."""
    parser.add_argument("--recipe", default="demo", help="a recipe's name or YAML file (default: demo)")
    parser.add_argument(
        "--data", type=local_path, help="prepared rows and folds; without it, the simulated arena"
    )
    parser.add_argument(
        "--report-to", default="none", help="a tracker that transformers.Trainer knows, such as tensorboard"
    )
    parser.add_argument(
        "--help-recipe", action=_HelpRecipe, nargs=0, help="list the recipe's keys: meaning, default, range"
    )
    add_remote_code_argument(parser)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="overrides of the recipe, dotted")


class _HelpRecipe(argparse.Action):
    """Prints what the recipe may hold, and ends."""

    def __call__(self, *args: Any, **_: Any) -> NoReturn:
        from distill.recipe_keys import recipe_keys

        print(recipe_keys())
        raise SystemExit(0)


def add_launch_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of commands whose work is made of units."""
    parser.add_argument(
        "--launcher",
        choices=("local", "ray"),
        default="local",
        help="ray: run the folds on a Ray cluster, RAY_ADDRESS or this machine (default: one after another)",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="print the units with time, memory and GPU hours, and end"
    )


def add_access_arguments(parser: argparse.ArgumentParser, accept: bool = True) -> None:
    """Add what commands take that load saved models: see :class:`distill.runs.saved.Access`.

    ``accept`` is whether the command can use what is not as it was recorded.
    """
    parser.add_argument(
        "--backbone",
        metavar="DIR",
        help="where the runs' backbone is, if it has moved since they were trained; it must be the same one, "
        "or a directory under which each run's own is found",
    )
    if accept:
        parser.add_argument(
            "--accept-changed",
            action="store_true",
            help="use files that are not as they were recorded, with a warning each, not refusing them",
        )
    add_remote_code_argument(parser)


def check_models(paths: Sequence[Path]) -> None:
    """Refuse models that are not there, before anything is imported or said of where predictions go."""
    for path in paths:
        if address_of(path) is None and not path.is_dir():
            raise UserError(f"--model {path}: no such directory; give that of a finished run or of an export")


def access_of(args: argparse.Namespace) -> Access:
    """Return what the command line says of saved models, and allow their code to run where it says so."""
    from distill.runs.saved import Access

    allow_remote_code(args.trust_remote_code)
    backbone = args.backbone
    if backbone is not None:
        from distill.runs.backbones import checkpoints

        if not Path(backbone).is_dir() or not checkpoints(Path(backbone)):
            raise UserError(
                f"--backbone {backbone}: holds no config.json, nor does anything below; give the "
                "directory of a checkpoint, or one of checkpoints"
            )
    return Access(backbone and str(Path(backbone).resolve()), getattr(args, "accept_changed", False))


def parse(parser: argparse.ArgumentParser, argv: Sequence[str]) -> argparse.Namespace:
    """Parse arguments; overrides may stand anywhere, also behind an option that takes several values.

    What follows an option that takes one value is that value, whatever it looks like:
    ``--budget seconds=60``.
    """
    single = {name for action in parser._actions if action.nargs is None for name in action.option_strings}
    overrides: list[str] = []
    others: list[str] = []
    before = ""
    for word in argv:
        (overrides if OVERRIDE.match(word) and before not in single else others).append(word)
        before = word
    args = parser.parse_args(others)
    args.overrides = [*overrides, *args.overrides]
    return args


def unread(args: argparse.Namespace, parts: Sequence[str]) -> list[str]:
    """One line for each typed override that this command does not read, as of another model.

    Parameters
    ----------
    parts : sequence of str
        Dotted beginnings of what it reads beside ``data``, such as ``teachers.llama``.
    """
    reads = [*parts, *(["data"] if args.data is None else [])]
    return [
        f"note: {printable(key)} is not read here, only {listing(reads, 9)}"
        for key in (override.partition("=")[0] for override in args.overrides)
        if not any(key == part or key.startswith(f"{part}.") for part in reads)
    ]


def open_data(path: Path | None, demo: DataConfig) -> tuple[Rows, Folds, Path]:
    """Return rows, folds, and the directory they are in; the simulated arena where ``path`` is None.

    Raises
    ------
    UserError
        The data are missing, damaged, or not prepared.
    """
    from data.dataset import load_prepared, prepare

    if path is None:
        from data.arena import ArenaConfig, simulate_arena
        from distill.processes import on_first

        arena = ArenaConfig(n_rows=demo.rows, seed=demo.seed)
        on_first(lambda: prepare(simulate_arena(arena), DEMO, demo.folds, demo.seed))
        path = DEMO
    elif path.is_file() and path.suffix.lower() not in {".parquet", ".pq"}:
        raise UserError(
            f"{path}: is not prepared; run python -m data.prepare --source {path} --out DIR first"
        )
    fetch(path.parent if path.suffix else path, parts=())
    if address_of(path) and not path.exists():
        raise UserError(
            f"{shown(path)}: holds no prepared data; run python -m data.prepare and copy it there"
        )
    rows, folds = load_prepared(path)
    return rows, folds, path if path.is_dir() else path.parent


def check_tracker(name: str) -> None:
    """Refuse a tracker that is not installed before anything is trained."""
    from transformers.integrations import get_available_reporting_integrations
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

    available = get_available_reporting_integrations()
    if name in {"none", "all", *available}:
        return
    if name not in INTEGRATION_TO_CALLBACK:
        known = listing(sorted(INTEGRATION_TO_CALLBACK), 99)
        raise UserError(f"--report-to {brief(name)}: no such tracker; it is one of {known}")
    package = f"'distillstack[{name}]'" if name in EXTRAS else name.replace("_", "-")
    raise UserError(
        f"--report-to {name}: that tracker is not installed; pip install {package} "
        f"(installed: {listing(available) or 'none'})"
    )


def score_names(rows: Rows) -> list[str]:
    """What a store is scored by; of candidates also how high the right one stands."""
    return ["rows", "log-loss", *(METRICS if rows.classes.candidates else METRICS[:1])]


def score_line(name: str, store: SoftLabels, rows: Rows) -> list[str]:
    """One table line: a store's out-of-fold scores on the labelled rows; see :func:`score_names`."""
    at = align(store.row_ids, rows.row_ids, "the rows")  # rows pinned to training have no line
    known = rows.labelled[at]
    return [name, *score_cells(store.probs[known], rows.targets[at[known]], rows), shown(store.path)]


def score_cells(probs: np.ndarray, targets: np.ndarray, rows: Rows) -> list[str]:
    """Scores of probabilities (n, K) of some labelled rows, under :func:`score_names`."""
    loss = cross_entropy(probs, targets).mean()
    ranked = [f"{mean:.3f}" for mean in row_metrics(probs, targets).mean(axis=0)]
    return [str(len(probs)), f"{loss:.4f}", *ranked[: len(score_names(rows)) - 2]]
