r"""The evidence for penalties: what the rows say of each, all parameters integrated out.

For a penalised softmax regression of :math:`n` rows with ridge :math:`r` on the mean loss, the logarithm of
the marginal likelihood is, by Laplace's method,
:math:`-n f(\hat\theta) + \tfrac12 \sum_j \log r_j - \tfrac12 \log\det H(\hat\theta)`. No row is held out and
no fold is dealt, so that it owes nothing to a seed, and fits along many penalties can be averaged by it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from ensemble.solvers.newton import SoftmaxProblem, minimise

FIXED = 1e9
"""A penalty, in rows, under which a parameter does not move."""


@dataclass(frozen=True)
class Weighed:
    """Fits under several penalties.

    Attributes
    ----------
    thetas : ndarray of shape (penalties, p)
    evidence : ndarray of shape (penalties,)
        Log marginal likelihood of all rows, in nats.
    """

    thetas: np.ndarray
    evidence: np.ndarray


def averaged(evidence: np.ndarray) -> tuple[np.ndarray, float]:
    """What each fit counts for where all were as likely beforehand, summing to 1, and their log evidence."""
    most = float(evidence.max())
    likely = np.exp(evidence - most)
    return likely / likely.sum(), most + float(np.log(likely.mean()))


def weigh(problem: SoftmaxProblem, penalties: np.ndarray, rows: float | None = None) -> Weighed:
    """Fit under each of several penalties and say how likely it makes the rows.

    Parameters
    ----------
    problem : SoftmaxProblem
        Its ``ridge`` is not used.
    penalties : ndarray of shape (penalties, p)
        In units of rows; each fit starts where the last ended, so that neighbours should be alike.
    rows : float, optional
        What all rows together say, where those of the problem are sums of several.
    """
    if rows is None:  # rows that do not count alike say as much as so many that do (Kish)
        rows = 1 / float(problem.row_weights @ problem.row_weights)
    thetas, evidence, theta = [], [], problem.centre
    for penalty in penalties:
        ridge = penalty / rows
        part = replace(problem, ridge=ridge)
        theta = minimise(part, theta, tolerance=1e-9)
        value, probs = part.value(theta)
        curvature = np.linalg.slogdet(part.hessian(probs))[1]
        thetas.append(theta)
        evidence.append(-rows * value + 0.5 * float(np.log(ridge).sum()) - 0.5 * float(curvature))
    return Weighed(np.array(thetas), np.array(evidence))
