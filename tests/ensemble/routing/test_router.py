"""A router keeps its budget, survives the disk to the bit, and is what its formula says."""

from __future__ import annotations

import json
from hashlib import sha256
from math import log
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from stack_files import CLASSES, competition, write_sets

from data.errors import UserError
from data.files import sha256_text
from ensemble import Router, fit_router, read_router
from ensemble.routing.rule import ROUTER

COST = {"member1": 0.1, "member2": 1.0}


def world(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A cheap model that knows half of what a dear one does, more on some rows than on others."""
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(n, 3)) * rng.choice([0.3, 2.5], size=(n, 1))
    truth = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    y = np.minimum((rng.random((n, 1)) > truth.cumsum(axis=1)).sum(axis=1), 2)
    blurred = np.exp(0.5 * z + 0.5 * rng.normal(size=(n, 3)))
    return np.stack([blurred / blurred.sum(axis=1, keepdims=True), truth], axis=1), y


@pytest.fixture(scope="module")
def router() -> Router:
    P, y = world(3000, 0)
    return fit_router(P, y, cost=COST, budget=400, n_rows=1000)


@pytest.mark.parametrize("budget", [0.15, 0.4, 0.9])
def test_the_threshold_meets_the_budget_on_fresh_rows(budget: float) -> None:
    P, y = world(3000, 0)
    router = fit_router(P, y, cost=COST, budget=budget)
    fresh, _ = world(20_000, 1)
    decided = router.decide(fresh[:, 0])
    share = (budget - 0.1) / 1.0
    error = np.sqrt(share * (1 - share) * (1 / 3000 + 1 / 20_000))
    assert decided.spent / 20_000 == pytest.approx(budget, abs=4 * error)
    assert router.content["measured"]["at_budget"]["cost"] == pytest.approx(budget, abs=4 * error)


def test_what_is_foretold_of_the_loss_comes_true(router: Router) -> None:
    fresh, y = world(20_000, 2)
    decided = router.decide(fresh[:, 0])
    probs = router.answer(decided, [fresh[decided.send, 1]])
    loss = -np.log(probs[np.arange(len(y)), y])
    at = router.content["measured"]["at_budget"]
    assert loss.mean() == pytest.approx(at["routed"], abs=4 * loss.std() / np.sqrt(3000))
    assert at["oracle"] < at["routed"] < at["lot"] < at["cheap"]
    assert at["gain"]["ci95"][0] > 0
    assert 0 < at["captured"] < 1
    assert router.verdict.startswith("routing helps beyond noise")


@pytest.mark.parametrize("budget", [50.0, 80.123, 200.0, 600.0])
def test_a_batch_never_costs_more_than_its_budget(router: Router, budget: float) -> None:
    fresh, _ = world(500, 3)
    decided = router.decide(fresh[:, 0], budget=budget)
    assert decided.spent <= budget * (1 + 1e-9)
    promising = decided.expected_gain > 0
    assert not (decided.send & ~promising).any()
    if not (decided.send == promising).all():
        assert decided.spent > budget - 1
        gain = decided.expected_gain
        assert gain[decided.send].min(initial=np.inf) >= gain[~decided.send].max()


def test_rows_of_unlike_cost_are_weighed_by_it() -> None:
    P, y = world(1000, 4)
    tokens = np.random.default_rng(0).uniform(1, 20, size=1000)
    router = fit_router(P, y, cost={"member1": 0.1, "member2": tokens}, budget=3.0)
    assert router.content["cost"]["member2"] is None
    fresh, _ = world(400, 5)
    own = np.random.default_rng(1).uniform(1, 20, size=400)
    decided = router.decide(fresh[:, 0], cost={"member2": own}, budget=1000)
    assert decided.spent == pytest.approx(40 + own[decided.send].sum())
    assert decided.spent <= 1000
    rate = decided.expected_gain / own
    assert rate[decided.send].min() >= rate[~decided.send].max()
    with pytest.raises(UserError, match="no cost of member2"):
        router.decide(fresh[:, 0])


def test_costs_by_position_are_those_of_the_rows_as_they_were_given() -> None:
    """Rows are sorted by id on the way."""
    P, y = world(400, 16)
    tokens, how = (
        np.random.default_rng(0).uniform(1, 20, size=400),
        {"budget": 3.0, "folds": np.arange(400) % 5},
    )
    wanted = fit_router(P, y, cost={"member1": 0.1, "member2": tokens}, **how)
    ids = [f"r{i:03d}" for i in range(400)][::-1]
    frames = [pd.DataFrame(P[:, m], columns=["0", "1", "2"], index=ids) for m in (0, 1)]
    for own in (tokens, pd.Series(tokens, index=ids)[sorted(ids)]):
        given = fit_router(frames, y, cost={"member1": 0.1, "member2": own}, **how)
        assert given.rule.price.price == pytest.approx(wanted.rule.price.price)
        at, other = (r.content["measured"]["at_budget"] for r in (given, wanted))
        assert at["cost"] == pytest.approx(other["cost"])


def test_a_router_reads_back_to_the_bit(router: Router, tmp_path: Path) -> None:
    router.save(tmp_path / "router")
    again = read_router(tmp_path / "router")
    fresh, _ = world(2000, 6)
    for name in ("probs", "expected_gain", "send"):
        one, other = (getattr(r.decide(fresh[:, 0]), name) for r in (router, again))
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(*(r.predict_proba(fresh[:, 0], [fresh[r.decide(fresh[:, 0]).send, 1]])
                                    for r in (router, again)))  # fmt: skip
    again.save(tmp_path / "router")
    again.save(tmp_path / "other")
    assert (tmp_path / "router" / ROUTER).read_bytes() == (tmp_path / "other" / ROUTER).read_bytes()
    assert "<title>Router report</title>" in (tmp_path / "router" / "router.html").read_text()


def by_formula(rule: dict, row_id: str, probs: list[float]) -> tuple[list[float], float, bool]:
    """What ``formula`` in ``router.json`` says, without NumPy."""
    powers = [max(p, 1e-7) ** (1 / rule["temperatures"][rule["cheap"]]) for p in probs]
    q = [power / sum(powers) for power in powers]
    a, b = sorted(q, reverse=True)[:2]
    entropy = -sum(p * log(p) for p in q if p > 0)
    x = [entropy, entropy**2, a, b, a - b, *q, *(p * p for p in q), *(log(max(p, 0.001)) for p in q)]
    scaled = [(value - m) / s for value, m, s in zip(x, rule["mean"], rule["scale"], strict=True)]
    gain = rule["coefficients"][0]
    gain += sum(c * z for c, z in zip(rule["coefficients"][1:], scaled, strict=True))
    rate = gain / sum(rule["cost"][name] for name in rule["dear"])
    lot = int(sha256(row_id.encode()).hexdigest()[:8], 16) / 16**8
    at = rate >= rule["price"] - rule["tie"] and lot < rule["at_price"]
    return q, gain, rate > rule["price"] + rule["tie"] or at


@pytest.mark.parametrize("levels", [0, 1])
def test_the_formula_in_the_file_decides_alike(tmp_path: Path, levels: int) -> None:
    """Of a cheap model that says few different things, too, whose rows are at the price by the dozen."""
    P, y = world(1500, 7)
    if levels:
        P[:, 0] = np.round(P[:, 0], 1) + 0.01
        P[:, 0] /= P[:, 0].sum(axis=1, keepdims=True)
    ids = [f"row {i}" for i in range(1500)]
    cheap = pd.DataFrame(P[:, 0], columns=list(CLASSES), index=ids)
    dear = pd.DataFrame(P[:, 1], columns=list(CLASSES), index=ids)
    cost = {"cheap": 0.02, "dear": 1.5}
    router = fit_router({"cheap": cheap, "dear": dear}, pd.Series(y, index=ids), cost=cost, budget=0.5)
    router.save(tmp_path / "router")
    rule = json.loads((tmp_path / "router" / ROUTER).read_text())
    decided = router.decide(cheap)
    found = [by_formula(rule, i, p) for i, p in zip(decided.row_ids, decided.own.tolist(), strict=True)]
    np.testing.assert_allclose([q for q, _, _ in found], decided.probs, rtol=1e-9)
    np.testing.assert_allclose([gain for _, gain, _ in found], decided.expected_gain, atol=1e-9)
    np.testing.assert_array_equal([send for _, _, send in found], decided.send)
    assert 0.2 < decided.send.mean() < 0.45
    blend = rule["blend"]["cheap"] * decided.probs
    sharp = np.maximum(P[:, 1], 1e-7) ** (1 / rule["temperatures"]["dear"])
    blend += rule["blend"]["dear"] * sharp / sharp.sum(axis=1, keepdims=True)
    wanted = np.where(decided.send[:, None], blend, decided.probs)
    np.testing.assert_allclose(router.answer(decided, {"dear": dear}), wanted, rtol=1e-9)


@pytest.mark.parametrize("dear", ["a copy", "noise"])
def test_a_dear_model_that_adds_nothing_is_not_recommended(dear: str) -> None:
    P, y = world(1500, 8)
    rng = np.random.default_rng(0)
    P[:, 1] = P[:, 0] if dear == "a copy" else rng.dirichlet([1, 1, 1], size=1500)
    router = fit_router(P, y, cost=COST, budget=0.5)
    assert "send none" in router.verdict


def test_a_gain_that_nothing_foretells_is_drawn_by_lot() -> None:
    """The cheap model says the same of every row; the dear one knows."""
    P, y = world(2000, 9)
    P[:, 0] = [0.3, 0.3, 0.4]
    router = fit_router(P, y, cost=COST, budget=0.5)
    assert "send rows by lot" in router.verdict
    decided = router.decide(P[:, 0])
    assert decided.send.mean() == pytest.approx(0.4, abs=0.05)


def test_a_budget_for_all_rows_is_said_to_be_one(router: Router) -> None:
    P, y = world(1500, 10)
    assert "enough for all rows" in fit_router(P, y, cost=COST, budget=5).verdict


def test_weights_and_groups_are_heeded() -> None:
    P, y = world(900, 11)
    weight = np.random.default_rng(0).uniform(0.5, 2, size=900)
    weighted = fit_router(P, y, cost=COST, budget=0.5, sample_weight=weight, groups=np.arange(900) // 3)
    assert weighted.content["rows"] | {"notes": None} == weighted.content["rows"] | {
        "n": 900, "groups": 300, "weighted": True, "notes": None,
    }  # fmt: skip
    plain = fit_router(P, y, cost=COST, budget=0.5)
    assert weighted.rule.price.price != plain.rule.price.price


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cost": {"member1": 0.1}}, "no cost of member2"),
        ({"cost": {**COST, "other": 1}}, "other is no model"),
        ({"cost": {**COST, "member2": 0}}, "a number above 0"),
        ({"cost": {**COST, "member2": -1.0}}, "a number above 0"),
        ({"cost": {**COST, "member2": float("nan")}}, "a number above 0"),
        ({"cost": {**COST, "member1": -0.1}}, "a number above 0"),
        ({"cost": {**COST, "member2": np.full(300, np.nan)}}, "row 000 has the cost nan"),
        ({"cost": {**COST, "member2": [1.0, 2.0]}}, "has 2 rows where there are 300"),
        ({"budget": 0.1}, "leaves nothing for member2, as member1 alone costs 0.1"),
        ({"budget": 0}, "above 0"),
        ({"budget": float("nan")}, "above 0"),
        ({"budget": float("inf")}, "above 0"),
        ({"n_rows": 0}, "1 row or more"),
    ],
)
def test_what_cannot_be_a_router_is_refused(change: dict, message: str) -> None:
    P, y = world(300, 12)
    with pytest.raises(UserError, match=message):
        fit_router(P, y, **{"cost": COST, "budget": 0.5, **change})


def test_a_cheap_model_that_is_there_already_may_cost_nothing() -> None:
    P, y = world(300, 13)
    assert fit_router(P, y, cost={**COST, "member1": 0}, budget=0.5).content["cost"]["member1"] == 0


def test_one_model_and_a_model_that_saw_the_labels_are_refused() -> None:
    P, y = world(900, 14)
    with pytest.raises(UserError, match="a cheap model and a dear one"):
        fit_router(P[:, :1], y, cost={"member1": 1}, budget=2)
    P[:, 1] = 0.01
    P[np.arange(900), 1, y] = 0.98
    with pytest.raises(UserError, match="member2 looks in-sample"):
        fit_router(P, y, cost=COST, budget=0.5)
    assert fit_router(P, y, cost=COST, budget=0.5, trust=["member2"]).members_ == ("member1", "member2")


def test_what_is_sent_must_be_there(router: Router) -> None:
    fresh, _ = world(60, 15)
    frames = [
        pd.DataFrame(fresh[:, m], columns=list("012"), index=[f"r{i}" for i in range(60)]) for m in (0, 1)
    ]
    decided = router.decide(frames[0])
    sent = decided.sent
    assert 0 < len(sent) < 60
    whole, part = router.answer(decided, [frames[1]]), router.answer(decided, [frames[1].loc[sent[::-1]]])
    np.testing.assert_array_equal(whole, part)
    np.testing.assert_array_equal(whole[~decided.send], decided.probs[~decided.send])
    with pytest.raises(UserError, match=rf"lacks 1 of the {len(sent)} rows that are sent, e.g. {sent[-1]};"):
        router.answer(decided, [frames[1].loc[sent[:-1]]])
    with pytest.raises(UserError, match="no predictions of member2"):
        router.answer(decided)
    with pytest.raises(UserError, match="wrong is no dear model"):
        router.answer(decided, {"wrong": frames[1]})
    with pytest.raises(UserError, match=r"predicts 1 rows that member1 does not, e.g. xr0"):
        router.answer(decided, [pd.concat([frames[1], frames[1].rename(index="x{}".format)[:1]])])
    with pytest.raises(UserError, match="alone costs 6 for 60 rows"):
        router.decide(frames[0], budget=5)
    with pytest.raises(UserError, match="leave it out"):
        router.decide(frames[0], cost={"member2": 3})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("price"), "has no price"),
        (lambda c: c.update(format=9), "format 9"),
        (lambda c: c.update(price=0.0), "was changed"),
        (lambda c: rehash(c, mean=c["mean"][:-1]), "no rule that can be rebuilt"),
        (lambda c: rehash(c, scale=[0.0] * len(c["scale"])), "no rule that can be rebuilt"),
        (lambda c: rehash(c, coefficients=[None] * len(c["coefficients"])), "no rule that can be rebuilt"),
        (lambda c: rehash(c, temperatures={}), "no rule that can be rebuilt"),
        (lambda c: rehash(c, classes=["a"]), "no rule that can be rebuilt"),
        (lambda c: rehash(c, dear=[]), "no rule that can be rebuilt"),
        (lambda c: rehash(c, dear=7), "no rule that can be rebuilt"),
        (lambda c: rehash(c, cost={"member1": "x", "member2": 1}), "no rule that can be rebuilt"),
        (lambda c: rehash(c, maps=[]), "no rule that can be rebuilt"),
        (lambda c: rehash(c, maps={"member1": {"kind": "verdict"}}), "no rule that can be rebuilt"),
        (lambda c: rehash(c, price=-1.0), "no rule that can be rebuilt"),
        (lambda c: rehash(c, blend={"member1": 0.2, "member2": 0.2}), "no rule that can be rebuilt"),
    ],
)
def test_a_damaged_router_is_refused(router: Router, tmp_path: Path, change, message: str) -> None:
    router.save(tmp_path / "router")
    file = tmp_path / "router" / ROUTER
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))
    with pytest.raises(UserError, match=message):
        read_router(tmp_path / "router")
    file.write_text(file.read_text()[:-40])
    with pytest.raises(UserError, match="not valid JSON"):
        read_router(tmp_path / "router")


def rehash(content: dict, **changes: object) -> None:
    """Change a record and its hash with it, as nobody does by accident."""
    content.pop("content_hash")
    content.update(changes)
    content["content_hash"] = sha256_text(json.dumps(content, sort_keys=True))


def test_paths_frames_and_arrays_make_the_same_router(tmp_path: Path) -> None:
    paths, labels = write_sets(tmp_path, 300)
    by_path = fit_router(paths, labels, cost={"m1": 0.1, "m2": 1}, budget=0.5)
    P, y = competition(300)
    by_array = fit_router(
        {"m1": P[:, 0], "m2": P[:, 1]}, y, cost={"m1": 0.1, "m2": 1}, budget=0.5, classes=CLASSES
    )
    assert by_path.rule.to_dict() == by_array.rule.to_dict()
    assert by_path.classes_ == CLASSES
