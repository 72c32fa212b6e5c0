"""Is the score believable? ``python -m benchmarks.believability [--competitions 240] [--svg FILE]``.

Simulates competitions of known truth. In each, members predict the rows, the stack scores its methods by
the nested estimate and chooses one, and the chosen stack then predicts fresh rows. Printed: how far the
nested score (the choice included) and the least in-sample score lie from the loss on fresh rows, on
average over competitions, and how often the printed 95 % interval holds that loss.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from benchmarks.ensemble import as_problem
from data.softmax import softmax
from ensemble.methods.base import Blender, Training
from ensemble.methods.blend import BestSingle, EqualMean, GeometricMean, SimplexBlend
from ensemble.methods.calibrate import Calibrated, CalibratedPool
from ensemble.methods.logit import MultinomialLogit
from ensemble.methods.mlp import MLPStacker
from ensemble.methods.pool import LogPool
from ensemble.scoring.bootstrap import bootstrap
from ensemble.scoring.choice import choice_included, mixed, mixture
from ensemble.scoring.crossfit import cross_fit
from ensemble.solvers.numbers import log_loss
from ensemble.solvers.threads import one_blas_thread

FRESH = 20_000
FOLDS = 10
"""More folds than usual: what remains of the bias is that of fits to fewer rows."""


def fit(P: np.ndarray, y: np.ndarray, groups: np.ndarray) -> dict[str, Blender]:
    """Methods of few parameters: a competition of 500 rows in well under a second."""
    pool = LogPool(n_folds=3).fit(P, y, groups=groups)
    methods: dict[str, Blender] = {
        "best single": BestSingle().fit(P, y),
        "mean": EqualMean().fit(P, y),
        "geometric mean": GeometricMean().fit(P, y),
        "simplex": SimplexBlend().fit(P, y),
        "log-pool": pool,
        "calibrated pool": CalibratedPool(n_folds=3).fit(P, y, groups=groups),
        "logit": MultinomialLogit(n_folds=3).fit(P, y, groups=groups),
        "mlp": MLPStacker(n_folds=3, max_epochs=20).fit(P, y, groups=groups),
    }
    data = Training.of(P, y)
    return methods | {f"{name}+temperature": Calibrated(m).fit_after(data) for name, m in methods.items()}


def competition(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Members of unequal strength and calibration that share some of their errors; n rows and fresh ones."""
    k, members, total = int(rng.integers(2, 5)), int(rng.integers(3, 9)), n + FRESH
    z = rng.uniform(0.8, 1.8) * rng.normal(size=(total, k))
    labels = (rng.random((total, 1)) > softmax(z).cumsum(axis=1)).sum(axis=1).clip(0, k - 1)
    shared = rng.uniform(0, 0.8) * rng.normal(size=(total, 1, k))
    own = rng.uniform(0.3, 1.2, size=(1, members, 1)) * rng.normal(size=(total, members, k))
    return softmax((z[:, None] + shared + own) * rng.uniform(0.6, 1.6, size=(1, members, 1))), labels


def judge(seed: int, n: int = 500) -> tuple[float, float, float, bool]:
    """One competition: fresh loss, nested score, least in-sample score, and whether the interval held."""
    rng = np.random.default_rng(seed)
    P, labels = competition(rng, n)
    y, problem = np.eye(P.shape[2])[labels], as_problem(P[:n], labels[:n], seed, FOLDS)
    nested = cross_fit(problem, fit=fit, workers=1).probs
    included = log_loss(choice_included(nested, y[:n], problem.fold), y[:n])
    interval = bootstrap(problem.groups, 1000, seed).interval(included)
    fitted = fit(P[:n], y[:n], problem.groups)
    inside = min(float(log_loss(m.predict_proba(P[:n]), y[:n]).mean()) for m in fitted.values())
    shares = mixture(nested, y[:n])
    found = mixed({name: fitted[name].predict_proba(P[n:]) for name in shares}, shares)
    fresh = float(log_loss(found, y[n:]).mean())
    return fresh, float(included.mean()), inside, interval.low <= fresh <= interval.high


def picture(nested: np.ndarray, inside: np.ndarray) -> str:
    """Two histograms of score less fresh loss, one above the other, with a line at zero."""
    edges = np.linspace(-0.12, 0.12, 41)
    parts = []
    for top, values, colour, title in (
        (30, nested, "#1a6fb5", "nested score, the choice included"),
        (190, inside, "#c2571a", "least in-sample score"),
    ):
        counts = np.histogram(np.clip(values, edges[0], edges[-1]), edges)[0]
        half = 1.96 * values.std(ddof=1) / np.sqrt(len(values))
        note = (
            f"{title}: mean {values.mean():+.4f} [{values.mean() - half:+.4f}, {values.mean() + half:+.4f}]"
        )
        parts.append(f'<text x="20" y="{top - 8}" fill="{colour}">{note}</text>')
        for i, count in enumerate(counts):
            height = 110 * count / max(counts.max(), 1)
            parts.append(
                f'<rect x="{20 + 15 * i}" y="{top + 110 - height:.1f}" width="13" height="{height:.1f}" '
                f'fill="{colour}"/>'
            )
        centre = 20 + 600 * (values.mean() - edges[0]) / (edges[-1] - edges[0])
        parts.append(f'<line x1="320" x2="320" y1="{top}" y2="{top + 112}" stroke="#1d2430"/>')
        parts.append(f'<circle cx="{centre:.1f}" cy="{top + 116}" r="4" fill="{colour}"/>')
    ticks = "".join(
        f'<text x="{20 + 600 * (t + 0.12) / 0.24:.0f}" y="334" text-anchor="middle">{t:+.2f}</text>'
        for t in (-0.12, -0.06, 0, 0.06, 0.12)
    )
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 640 360" font-family="sans-serif" '
        f'font-size="12" role="img" aria-label="Score less fresh loss"><rect width="640" height="360" '
        f'fill="#fff"/>{"".join(parts)}{ticks}<text x="320" y="352" text-anchor="middle">score less the '
        "chosen stack's log-loss on fresh rows (dot: mean)</text></svg>\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--competitions", type=int, default=240)
    parser.add_argument("--svg", type=Path, metavar="FILE", help="where the picture goes")
    args = parser.parse_args()
    with one_blas_thread():
        found = np.array([judge(seed) for seed in range(args.competitions)])
    fresh, nested, inside, held = found.T
    print(f"\n### Believability, {len(found)} simulated competitions of 500 rows\n")
    print("| score | mean of score less fresh loss | 95 % |\n|---|---|---|")
    for name, score in (("nested, the choice included", nested), ("least in-sample", inside)):
        gap = score - fresh
        half = 1.96 * gap.std(ddof=1) / np.sqrt(len(gap))
        print(f"| {name} | {gap.mean():+.4f} | [{gap.mean() - half:+.4f}, {gap.mean() + half:+.4f}] |")
    print(f"\nThe 95 % interval held the fresh loss in {held.mean():.1%} of the competitions.")
    if args.svg:
        args.svg.write_text(picture(nested - fresh, inside - fresh), encoding="utf-8")


if __name__ == "__main__":
    main()
