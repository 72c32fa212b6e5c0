"""The simplex solver against an oracle, the convex methods against finite differences, and their edges."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from data.softmax import softmax
from ensemble.methods.base import from_dict
from ensemble.methods.blend import BestSingle, EqualMean, GeometricMean, SimplexBlend
from ensemble.methods.pool import LogPool
from ensemble.solvers.designs import BlockDesign, SharedDesign
from ensemble.solvers.folds import group_folds
from ensemble.solvers.newton import SoftmaxProblem, minimise
from ensemble.solvers.numbers import PROB_FLOOR, cross_entropy
from ensemble.solvers.simplex import ConvergenceWarning, solve_simplex


def sample(n: int, members: int, k: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Members of unequal noise around a common truth, and labels drawn from that truth."""
    rng = np.random.default_rng(seed)
    z = 1.5 * rng.normal(size=(n, k))
    noise = rng.normal(size=(n, members, k)) * np.linspace(0.5, 2, members)[None, :, None]
    truth = softmax(z)
    labels = (rng.random((n, 1)) > truth.cumsum(axis=1)).sum(axis=1)
    return softmax(z[:, None] + noise), np.minimum(labels, k - 1)


def slsqp(likelihoods: np.ndarray, weights: np.ndarray) -> float:
    m = likelihoods.shape[1]
    result = minimize(
        lambda x: -(weights @ np.log(likelihoods @ x)),
        np.full(m, 1 / m),
        jac=lambda x: -((weights / (likelihoods @ x)) @ likelihoods),
        method="SLSQP",
        bounds=[(0, 1)] * m,
        constraints={"type": "eq", "fun": lambda x: x.sum() - 1, "jac": lambda x: np.ones(m)},
        options={"ftol": 1e-14, "maxiter": 500},
    )
    return float(result.fun)


@pytest.mark.parametrize(("members", "k"), [(2, 2), (5, 3), (12, 4)])
def test_simplex_matches_slsqp_with_a_certificate(members: int, k: int) -> None:
    P, y = sample(800, members, k, seed=members)
    likelihoods, weights = P[np.arange(800), :, y], np.full(800, 1 / 800)
    found = solve_simplex(likelihoods, weights)
    assert found.gap <= 1e-10
    assert found.weights.min() >= 0
    assert found.weights.sum() == pytest.approx(1, abs=1e-12)
    assert -(weights @ np.log(likelihoods @ found.weights)) <= slsqp(likelihoods, weights) + 1e-10


@settings(max_examples=40, deadline=None)
@example(1, 4, 30)
@given(st.integers(0, 10_000), st.integers(1, 8), st.integers(3, 60))
def test_the_certificate_bounds_any_other_weights(seed: int, members: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    likelihoods = rng.random((n, members)) ** 4 + 1e-9
    weights = rng.random(n) + 0.01
    weights /= weights.sum()
    found = solve_simplex(likelihoods, weights)
    loss = -(weights @ np.log(likelihoods @ found.weights))
    for other in rng.dirichlet(np.full(members, 0.5), size=20):
        assert loss - found.gap <= -(weights @ np.log(likelihoods @ other + 1e-300)) + 1e-12
    assert found.gap <= 1e-8
    assert found.iterations < 50  # a step that gains less than rounding is a step all the same


def test_identical_members_and_impossible_rows_break_nothing() -> None:
    P, y = sample(300, 2, 3)
    twins = np.stack([P[:, 0], P[:, 0], P[:, 1]], axis=1)
    twins[0, :, :] = np.eye(3)[(y[0] + 1) % 3]  # every member rules out what happened
    blend = SimplexBlend().fit(twins, y)
    assert np.isfinite(blend.weights_).all()
    assert blend.gap_ <= 1e-8
    alone = SimplexBlend().fit(np.delete(twins, 1, axis=1), y)
    np.testing.assert_allclose(blend.predict_proba(twins), alone.predict_proba(twins[:, 1:]), atol=1e-5)


def test_shrinkage_draws_to_equal_weights() -> None:
    P, y = sample(400, 4, 3)
    spread = [
        np.abs(SimplexBlend(shrinkage=s).fit(P, y).weights_ - 0.25).max() for s in (0.0, 0.1, 1.0, 100.0)
    ]
    assert spread == sorted(spread, reverse=True)
    assert spread[-1] < 0.01


def shrunk_task(kind: str, seed: int) -> np.ndarray:
    """Likelihoods (n, members) of members that are independent, nearly copies, or more than the rows."""
    rng = np.random.default_rng(seed)
    n, members = {"random": (400, 8), "copies": (400, 5), "tiny": (5, 6)}[kind]
    own = 1.5 * rng.normal(size=(n, members))
    if kind == "copies":
        own = own[:, :1] + 1e-3 * own
    return 1 / (1 + np.exp(own))


@pytest.mark.parametrize("kind", ["random", "copies", "tiny"])
@pytest.mark.parametrize("shrinkage", [1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1.0])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.filterwarnings("error")
def test_a_shrunk_blend_is_solved_and_certified_however_small_its_prior(
    kind: str, shrinkage: float, seed: int
) -> None:
    L = shrunk_task(kind, seed)
    n, members = L.shape
    P = np.stack([L, 1 - L], axis=2)
    blend = SimplexBlend(shrinkage).fit(P, np.zeros(n, dtype=int))

    def penalised(x: np.ndarray) -> float:
        return float(-np.log(L @ x).mean() - shrinkage / members * np.log(x).sum())

    # SciPy on the logarithms of the weights, where the prior is no wall.
    def free(z: np.ndarray) -> tuple[float, np.ndarray]:
        x = softmax(z)
        slope = -(1 / (L @ x)) @ L / n - shrinkage / members / x
        return penalised(x), x * (slope - x @ slope)

    options = {"ftol": 1e-15, "gtol": 1e-12, "maxiter": 5000, "maxfun": 20_000}
    bounds = [(-40, 0)] * members
    theirs = minimize(
        free, np.full(members, -1.0), jac=True, method="L-BFGS-B", bounds=bounds, options=options
    )
    ours = penalised(blend.weights_)
    assert blend.gap_ <= 1e-10
    assert ours <= theirs.fun + 1e-9
    assert theirs.fun >= ours - blend.gap_ - 1e-9


def test_a_solver_that_ends_early_says_how_far_it_is() -> None:
    P, y = sample(400, 4, 3)
    likelihoods, weights = P[np.arange(400), :, y], np.full(400, 1 / 400)
    with pytest.warns(ConvergenceWarning, match=r"may cost \d\.\de-\d+ nats more than the best") as told:
        found = solve_simplex(likelihoods, weights, max_iterations=1)
    assert f"{found.gap:.1e}" in str(told[0].message)


def test_soft_targets_equal_repeated_rows() -> None:
    P, y = sample(120, 3, 3)
    other = (y + 1) % 3
    soft = 0.75 * np.eye(3)[y] + 0.25 * np.eye(3)[other]
    repeated, labels = np.concatenate([P] * 4), np.concatenate([y, y, y, other])
    np.testing.assert_allclose(
        SimplexBlend().fit(P, soft).weights_, SimplexBlend().fit(repeated, labels).weights_, atol=1e-6
    )
    np.testing.assert_allclose(
        LogPool(strength=1e-9, floor=1e-7).fit(P, soft).weights_,
        LogPool(strength=1e-9, floor=1e-7).fit(repeated, labels).weights_,
        atol=1e-6,
    )


@pytest.mark.parametrize("k", [2, 3, 4])
def test_gradient_and_hessian_match_finite_differences(k: int) -> None:
    rng = np.random.default_rng(k)
    n = 30
    targets = rng.dirichlet(np.ones(k), size=n)
    weights = rng.dirichlet(np.ones(n))
    for design in (SharedDesign(rng.normal(size=(n, k, 5))), BlockDesign(rng.normal(size=(n, 4)), k)):
        p = design.size
        problem = SoftmaxProblem(design, targets, weights, rng.random(p), rng.normal(size=p))
        theta = rng.normal(size=p)
        _, probs = problem.value(theta)
        gradient, hessian = problem.gradient(theta, probs), problem.hessian(probs)
        for j in range(p):
            step = 1e-5 * np.eye(p)[j]
            up, down = problem.value(theta + step), problem.value(theta - step)
            assert gradient[j] == pytest.approx((up[0] - down[0]) / 2e-5, abs=1e-8)
            change = problem.gradient(theta + step, up[1]) - problem.gradient(theta - step, down[1])
            np.testing.assert_allclose(hessian[j], change / 2e-5, atol=1e-7)
        best = minimise(problem)
        assert np.abs(problem.gradient(best, problem.value(best)[1])).max() < 1e-6


def test_log_pool_beats_the_geometric_mean_it_is_drawn_to() -> None:
    P, y = sample(1500, 4, 3)
    targets = np.eye(3)[y]

    def loss(probs: np.ndarray) -> float:
        return float(cross_entropy(probs, targets).mean())

    pool = LogPool(strength=1e-6).fit(P, y)
    assert loss(pool.predict_proba(P)) < loss(GeometricMean().fit(P, y).predict_proba(P))
    bound = LogPool(strength=1e9, floor=PROB_FLOOR).fit(P, y)
    np.testing.assert_allclose(bound.predict_proba(P), GeometricMean().fit(P, y).predict_proba(P), atol=1e-5)
    assert pool.oof_.shape == (1500, 3)


@pytest.mark.parametrize("k", [2, 3, 4])
def test_every_blend_predicts_distributions_and_survives_json(k: int) -> None:
    P, y = sample(200, 3, k)
    for method in (BestSingle(), EqualMean(), GeometricMean(), SimplexBlend(), LogPool()):
        probs = method.fit(P, y).predict_proba(P)
        assert probs.shape == (200, k)
        np.testing.assert_allclose(probs.sum(axis=1), 1, atol=1e-12)
        again = from_dict(json.loads(json.dumps(method.to_dict())))
        np.testing.assert_array_equal(again.predict_proba(P), probs)


def test_best_single_picks_the_least_noisy_member() -> None:
    P, y = sample(2000, 3, 3)
    np.testing.assert_array_equal(BestSingle().fit(P, y).weights_, [1, 0, 0])


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000), st.integers(4, 80), st.integers(2, 6), st.integers(1, 30))
def test_inner_folds_never_part_a_group(seed: int, n: int, folds: int, n_groups: int) -> None:
    rng = np.random.default_rng(seed)
    groups = rng.integers(n_groups, size=n)
    fold = group_folds(np.eye(3)[rng.integers(3, size=n)], groups, folds, seed)
    assert all(len(np.unique(fold[groups == g])) == 1 for g in np.unique(groups))
    used = np.unique(fold)
    assert len(used) == min(folds, len(np.unique(groups)))


def test_a_member_that_says_zero_is_floored_where_that_helps() -> None:
    P, y = sample(1500, 3, 3)
    hard = np.where(P < 0.08, 0, P)  # "seldom" said as "never"
    hard /= hard.sum(axis=2, keepdims=True)
    targets = np.eye(3)[y]
    chosen = LogPool().fit(hard, y)
    lowest = LogPool(floor=PROB_FLOOR).fit(hard, y)
    assert chosen.floor_ > PROB_FLOOR
    assert cross_entropy(chosen.oof_, targets).mean() <= cross_entropy(lowest.oof_, targets).mean()
    soft = np.clip(P, 0.05, None)
    assert LogPool().fit(soft / soft.sum(axis=2, keepdims=True), y).floor_ == PROB_FLOOR
