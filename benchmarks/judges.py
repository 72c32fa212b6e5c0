"""A panel of judges of known truth: ``python -m benchmarks.judges [--panels 4]``.

Three judges err independently of one another: one gives a verdict and favours the first side, one is asked in
both orders, one scores either side; the first is silent on a fifth of the rows. What each row's classes have
for chances, given all that was said, is then known. Printed, by labelled rows: how far the pool of their maps
is from these chances on fresh rows, and how often its interval holds them.
"""

from __future__ import annotations

import argparse
import csv
import tempfile
from pathlib import Path

import numpy as np

from data.classes import PREFERENCE
from data.ids import places
from data.softmax import softmax
from ensemble.methods.pool import LogPool
from ensemble.reading.fresh import read_fresh
from ensemble.reading.load import load_problem
from ensemble.reading.maps import fit_map
from ensemble.scoring.draws import drawn_pools, interval, maps_of
from ensemble.solvers.threads import one_blas_thread

WORDS = ("A", "B", "tie")
SHARES = np.array([0.4, 0.4, 0.2])
CONFUSION = np.array([[0.7, 0.15, 0.15], [0.25, 0.6, 0.15], [0.4, 0.3, 0.3]])
"""What a judge says of rows that A, B or neither wins; it favours the first side."""
TURNED = np.array(PREFERENCE.swap)
CENTRES = np.array([1.0, -1.0, 0.0])
"""What the scores of the first side are above those of the second, by who wins, with noise of 1."""
ROWS, FRESH = (300, 900, 3000), 2000


class Panel:
    """The judges' files of some rows, their labels and the true chances.

    Attributes
    ----------
    ids : list of str
    labels : ndarray of shape (n,)
    files : list of str
    truth : str
        The label file.
    chances : ndarray of shape (n, 3)
    """

    def __init__(self, folder: Path, n: int, seed: int) -> None:
        folder.mkdir(parents=True)
        rng = np.random.default_rng(seed)
        self.ids, self.labels = [f"r{i}" for i in range(n)], rng.choice(3, size=n, p=SHARES)

        def say(labels: np.ndarray) -> np.ndarray:
            return (rng.random((n, 1)) > CONFUSION[labels].cumsum(axis=1)).sum(axis=1).clip(0, 2)

        once, first, second = say(self.labels), say(self.labels), say(TURNED[self.labels])
        score = CENTRES[self.labels] + rng.normal(size=n)
        silent = rng.random(n) < 0.2
        words = [[WORDS[k] for k in said] for said in (once, first, second)]
        heard = [(i, word) for i, word, no in zip(self.ids, words[0], silent, strict=True) if not no]
        sides = [(i, 5 + s, 5) for i, s in zip(self.ids, score.tolist(), strict=True)]
        names = [PREFERENCE.names[k] for k in self.labels]
        tables = {
            "once": (("verdict",), heard),
            "both": (("verdict", "verdict_swapped"), zip(self.ids, *words[1:], strict=True)),
            "sides": (("score_a", "score_b"), sides),
            "labels": (("label",), zip(self.ids, names, strict=True)),
        }
        for name, (header, lines) in tables.items():
            with open(folder / f"{name}.csv", "w", newline="", encoding="utf-8") as handle:
                csv.writer(handle).writerows([("id", *header), *lines])
        *self.files, self.truth = (str(folder / f"{name}.csv") for name in tables)
        likely = CONFUSION[:, first].T * CONFUSION[TURNED][:, second].T
        likely *= np.where(silent[:, None], 1.0, CONFUSION[:, once].T)
        self.chances = softmax(np.log(SHARES * likely) - 0.5 * (score[:, None] - CENTRES) ** 2)


def judge(folder: Path, n: int, seed: int) -> list[float]:
    """Divergence from the true chances, how many of all and of those from .05 to .95 are held, and width."""
    known, fresh = Panel(folder / "known", n, 2 * seed), Panel(folder / "fresh", FRESH, 2 * seed + 1)
    problem = load_problem(known.files, Path(known.truth))
    pool = LogPool().fit(problem.P, problem.y, groups=problem.groups)
    later = read_fresh(fresh.files, problem.names, problem.classes, folder, False)
    at = places(fresh.ids, later.row_ids)
    maps = {name: fit_map(said, problem.y, None) for name, said in problem.judges.items()}
    probs = pool.predict_proba(later.seen(maps)[at])
    draws, drawn_from = drawn_pools(problem, pool, seed)
    assert drawn_from is not None
    known_from = drawn_from.predict_proba(later.seen(maps)[at])
    low, high = interval(probs, known_from, draws, [later.seen(maps_of(draw))[at] for draw in draws])
    held, chances = (low <= fresh.chances) & (fresh.chances <= high), fresh.chances
    apart = (chances * np.log(chances / probs)).sum(axis=1).mean()
    inner = (chances > 0.05) & (chances < 0.95)
    return [float(apart), float(held.mean()), float(held[inner].mean()), float((high - low).mean())]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--panels", type=int, default=4)
    parser.add_argument("--first", type=int, default=0, help="number of the first panel")
    args = parser.parse_args()
    numbers = range(args.first, args.first + args.panels)
    print("| labelled rows | panels | divergence, nats | held | of those from .05 to .95 | width |")
    print("|---|---|---|---|---|---|", flush=True)
    with one_blas_thread(), tempfile.TemporaryDirectory() as scratch:
        for n in ROWS:
            found = [judge(Path(scratch) / f"{n}-{seed}", n, seed) for seed in numbers]
            apart, held, inner, width = np.mean(found, axis=0)
            print(
                f"| {n:,} | {args.panels} | {apart:.4f} | {held:.0%} | {inner:.0%} | {width:.3f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
