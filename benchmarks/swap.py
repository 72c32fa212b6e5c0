"""Should a stack be fitted on both orders of every pair? ``python -m benchmarks.swap DIR [--deals 6]``.

DIR holds prediction sets of a pair's classes and their labels. The pools and the logit are fitted fold by
fold as they are, and once more on the rows and their exchanged copies, predicting the mean of both orders.
Printed, over several deals of the folds: the loss of each and that of their mean, less the plain one's.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from benchmarks.ensemble import problem_of
from ensemble.methods.base import Blender
from ensemble.methods.calibrate import CalibratedPool
from ensemble.methods.logit import MultinomialLogit
from ensemble.methods.pool import LogPool
from ensemble.reading.problem import Problem, dealt_again
from ensemble.scoring.bootstrap import bootstrap
from ensemble.solvers.numbers import log_loss
from ensemble.solvers.threads import one_blas_thread

KINDS = {
    "log-pool": lambda: LogPool(),
    "calibrated pool": lambda: CalibratedPool(),
    "logit": lambda: MultinomialLogit(),
}


def nested(problem: Problem, name: str) -> tuple[np.ndarray, np.ndarray]:
    """A method's predictions (n, K) of rows it did not see: fitted as they are, and on both orders."""
    order = list(problem.classes.swap or ())
    plain, both = np.empty_like(problem.y), np.empty_like(problem.y)
    for number in np.unique(problem.fold):
        rest, held = problem.fold != number, problem.fold == number
        P, y, groups, fresh = problem.P[rest], problem.y[rest], problem.groups[rest], problem.P[held]
        plain[held] = KINDS[name]().fit(P, y, groups=groups).predict_proba(fresh)
        doubled: Blender = KINDS[name]().fit(
            np.concatenate([P, P[:, :, order]]),
            np.concatenate([y, y[:, order]]),
            np.full(2 * len(P), 0.5),
            groups=np.concatenate([groups, groups]),
        )
        turned = doubled.predict_proba(fresh[:, :, order])[:, order]
        both[held] = (doubled.predict_proba(fresh) + turned) / 2
    return plain, both


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("folder", type=Path, metavar="DIR")
    parser.add_argument("--deals", type=int, default=6)
    args = parser.parse_args()
    problem = problem_of(args.folder)
    if problem.classes.swap is None:
        parser.error("the classes of these sets are not those of a pair")
    draws = bootstrap(problem.groups)
    print("| method | deals | as they are | on both orders | mean of the two | deals in which it is lower |")
    print("|---|---|---|---|---|---|", flush=True)
    with one_blas_thread():
        for name in KINDS:
            losses = []
            for repeat in range(args.deals):
                plain, both = nested(dealt_again(problem, 0, repeat), name)
                losses.append([log_loss(p, problem.y) for p in (plain, both, (plain + both) / 2)])
            mean = np.mean(losses, axis=0)
            cells = [f"{mean[0].mean():.4f}"]
            for other in mean[1:]:
                low, high = draws.interval(other - mean[0]).as_list()
                cells.append(f"{(other - mean[0]).mean():+.4f} [{low:+.4f}, {high:+.4f}]")
            lower = sum(float(deal[2].mean()) < float(deal[0].mean()) for deal in losses)
            print(f"| {name} | {args.deals} | {' | '.join(cells)} | {lower} |", flush=True)


if __name__ == "__main__":
    main()
