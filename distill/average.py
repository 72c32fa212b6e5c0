"""``python -m distill.average``: average the weights of several runs of one base, as of several seeds.

Leaves a run like any other, whose models are the means of the runs' changes: of each fold, scored out of
fold beside the mean of the runs' predictions, and of all rows where the runs have such a model. Predicting
with it takes one pass, with the runs themselves one each. ``distill.predict``, ``distill.export`` and
``ensemble.stack`` take it as they take any run.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from data.console.command import format_table, parser_of, run
from data.errors import UserError
from distill.arguments import (
    access_of,
    add_access_arguments,
    check_models,
    score_cells,
    score_line,
    score_names,
)

if TYPE_CHECKING:
    import numpy as np

    from data.folds import Folds
    from data.schema import Rows
    from data.softlabels import SoftLabels
    from distill.runs.saved import Access


def arguments(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = parser_of(
        "distill.average", __doc__, "distill.average --model runs/seed0 runs/seed1 runs/seed2 --out runs/mean"
    )
    parser.add_argument(
        "--model", nargs="+", type=Path, required=True, metavar="DIR", help="finished runs, two or more"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where their average goes")
    parser.add_argument("--data", type=Path, help="the runs' prepared data, if it has moved")
    add_access_arguments(parser)
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> None:
    """Run the command."""
    args = arguments(argv)
    from distill.processes import stand_alone

    stand_alone("distill.average")
    check_models(args.model)
    stores, mean, rows, folds = averaged(args.model, args.out, args.data, access_of(args))
    lines = [score_line(store.name, store, rows) for store in stores]
    lines.append(mean_of_predictions(stores, rows))
    lines.append(score_line("average of the weights", mean, rows))
    print(format_table(["run", *score_names(rows), "store"], lines))
    print(against_the_mean(stores, mean, rows, folds))


def average_runs(
    models: Sequence[str | Path], out: str | Path, *, data: str | Path | None = None
) -> SoftLabels:
    """Average the weights of several runs of one base, as the command does; return the average's soft labels.

    Parameters
    ----------
    models : sequence of path
        Finished runs, two or more, on the same rows and folds, of the same base.
    out : path
        The average's directory, a run like any other: :func:`distill.load_run` predicts with it.
    data : path, optional
        The runs' prepared data, if it has moved.

    Raises
    ------
    UserError
        The runs cannot be averaged; the message names two of them and the field in which they differ.
    """
    from distill.runs.saved import Access

    return averaged([Path(m) for m in models], Path(out), None if data is None else Path(data), Access())[1]


def averaged(
    models: Sequence[Path], out: Path, data: Path | None, access: Access
) -> tuple[list[SoftLabels], SoftLabels, Rows, Folds]:
    """Average the runs, or what is left of that; return their stores, the average's, rows and folds."""
    from data.dataset import load_prepared
    from data.softlabels import read_store
    from distill.processes import held
    from distill.runs.averaged import check_alike, fit_average, plan_average
    from distill.runs.saved import read_saved

    runs = [read_saved(path, access) for path in models]
    check_alike(runs)
    if out.resolve() in {saved.path.resolve() for saved in runs}:
        raise UserError(f"--out {out}: is one of the runs; the average needs a directory of its own")
    home = data or Path(os.path.normpath(runs[0].path / runs[0].manifest.get("data", ".")))
    rows, folds = load_prepared(home)
    with held(out):
        mean = fit_average(plan_average(runs, rows, folds, home, out), runs)
    return [read_store(saved.path) for saved in runs], mean, rows, folds


def mean_of_predictions(stores: Sequence[SoftLabels], rows: Rows) -> list[str]:
    """The table's line of the ensemble: the equal-weight mean of the runs' probabilities."""
    return ["mean of the predictions", *score_cells(*mean_of(stores, rows), rows), ""]


def mean_of(stores: Sequence[SoftLabels], rows: Rows) -> tuple[np.ndarray, np.ndarray]:
    """Mean probabilities of several stores and targets, both (n, K), of the labelled rows in their order."""
    import numpy as np

    from data.ids import places

    at = [places(rows.row_ids, store.row_ids) for store in stores]
    known = rows.labelled & (at[0] >= 0)  # rows pinned to training have no line
    probs = np.mean([store.probs[own[known]] for store, own in zip(stores, at, strict=True)], axis=0)
    return probs, rows.targets[known]


def against_the_mean(stores: Sequence[SoftLabels], mean: SoftLabels, rows: Rows, folds: Folds) -> str:
    """In one line, what the average of the weights costs against the mean of the predictions."""
    import numpy as np

    from ensemble.scoring.bootstrap import bootstrap
    from ensemble.solvers.numbers import cross_entropy

    difference = cross_entropy(*mean_of([mean], rows)) - cross_entropy(*mean_of(stores, rows))
    scored = rows.labelled & ~folds.pinned
    interval = bootstrap(np.array(folds.group_ids)[scored]).interval(difference)
    hint = (
        "; worse beyond noise: runs average well that start from one stage before (pretrain, with one seed)"
        if interval.low > 0
        else ""
    )
    return (
        f"average of the weights - mean of the predictions: {difference.mean():+.4f} (95 % over prompts "
        f"{interval.low:+.4f} to {interval.high:+.4f}), in one pass where that takes {len(stores)}{hint}"
    )


if __name__ == "__main__":
    run(main)
