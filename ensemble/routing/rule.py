"""The decision rule of a router, and its form as JSON: all that decides a row, for others to use.

``router.json`` says what each number is for (:data:`FORMULA`), so that a service can decide rows in ten lines
of any language; it holds the hash of its own content, as ``stack.json`` does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data.classes import Classes
from data.errors import UserError, brief, listing
from data.files import read_json, write_json
from ensemble.methods.blend import SimplexBlend
from ensemble.methods.temperature import LEAST_T, MOST_T
from ensemble.reading.maps import JudgeMap
from ensemble.records import HASH, hash_of
from ensemble.routing.cascade import LEAST, Cascade
from ensemble.routing.price import Price

ROUTER = "router.json"
KIND, FORMAT = "router", 1
FORMULA = (
    "q_k = p_k^(1/T) / sum_j p_j^(1/T): the cheap model's probabilities p, each at least 1e-7, at its "
    "temperature T; of a judge p is what maps makes of its word",
    "x = H, H^2, a, b, a - b, then q_k of every class, then every q_k^2, then every ln max(q_k, 0.001): H is "
    "the entropy -sum_k q_k ln q_k, a the greatest q_k, b the second greatest",
    "gain = coefficients[0] + sum_i coefficients[i + 1] * (x_i - mean[i]) / scale[i], in nats",
    "rate = gain / cost, where cost is what all dear models together cost for the row",
    "send where rate > price + tie, or where rate >= price - tie and lot < at_price",
    "lot = the first 8 hex digits of the SHA-256 of the row's id, as a number, over 16^8",
    "answer = q where the row is not sent, else the sum over models m of blend[m] * q of m, each at its own "
    "temperature",
)
_KEYS = (
    "classes", "cheap", "dear", "cost", "maps", "temperatures", "blend", "mean", "scale", "coefficients",
    "price", "at_price", "tie",
)  # fmt: skip


def feature_names(classes: Sequence[str]) -> list[str]:
    """What the features of :func:`ensemble.routing.cascade.features` are, in their order."""
    return [
        "entropy", "entropy^2", "greatest", "second", "greatest - second",
        *(f"q({name})" for name in classes),
        *(f"q({name})^2" for name in classes),
        *(f"ln max(q({name}), {LEAST:g})" for name in classes),
    ]  # fmt: skip


@dataclass(frozen=True)
class Rule:
    """A cascade with names, costs and a price.

    Attributes
    ----------
    classes : Classes
    names : tuple of str
        The models, the cheap one first.
    cost : dict of str to (float or None)
        Of each model for a row; None where each row has its own.
    cascade : Cascade
    price : Price
    maps : dict of str to JudgeMap
        What the words of models that are judges are worth, by their names.
    """

    classes: Classes
    names: tuple[str, ...]
    cost: dict[str, float | None]
    cascade: Cascade
    price: Price
    maps: dict[str, JudgeMap]

    def to_dict(self) -> dict[str, Any]:
        """The rule as JSON values."""
        weights = self.cascade.blend.weights_.tolist()
        return {
            "kind": KIND,
            "format": FORMAT,
            "formula": list(FORMULA),
            "classes": list(self.classes.names),
            "cheap": self.names[0],
            "dear": list(self.names[1:]),
            "cost": self.cost,
            "maps": {name: judge_map.to_dict() for name, judge_map in self.maps.items()},
            "temperatures": dict(zip(self.names, self.cascade.temperatures, strict=True)),
            "blend": dict(zip(self.names, weights, strict=True)),
            "features": feature_names(self.classes.names),
            "mean": self.cascade.mean.tolist(),
            "scale": self.cascade.scale.tolist(),
            "coefficients": self.cascade.coefficients.tolist(),
            "price": self.price.price,
            "at_price": self.price.at_price,
            "tie": self.price.tie,
        }

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Rule:
        """Rebuild a rule from what :meth:`to_dict` returned.

        Raises
        ------
        ValueError
            A number is missing, not finite or out of its range.
        """
        classes = Classes(tuple(content["classes"]))
        names = (content["cheap"], *content["dear"])
        if len(names) < 2 or len(set(names)) < len(names) or not all(type(name) is str for name in names):
            raise ValueError(f"models {names}")
        size = len(feature_names(classes.names))
        temperatures = _numbers(
            [content["temperatures"][name] for name in names], len(names), LEAST_T, MOST_T
        )
        blend = SimplexBlend()
        blend.weights_ = _numbers([content["blend"][name] for name in names], len(names), -1e-9, 1 + 1e-9)
        if abs(blend.weights_.sum() - 1) > 1e-6:
            raise ValueError("blend weights that do not sum to 1")
        blend.classes_ = np.arange(classes.n)
        cost = {name: None if content["cost"][name] is None else content["cost"][name] for name in names}
        _numbers([amount for amount in cost.values() if amount is not None], None, 0.0)
        cascade = Cascade(
            temperatures.tolist(),
            blend,
            _numbers(content["mean"], size),
            _numbers(content["scale"], size, 1e-12),
            _numbers(content["coefficients"], size + 1),
        )
        limits = [content[key] for key in ("price", "at_price", "tie")]
        price, share, tie = _numbers(limits, 3, 0.0).tolist()
        maps = {name: JudgeMap.from_dict(state) for name, state in content["maps"].items()}
        for judge_map in maps.values():
            if judge_map(np.full((1, 2), np.nan)).shape != (1, classes.n):
                raise ValueError("a judge's map of other classes")
        return cls(classes, names, cost, cascade, Price(price, share, tie), maps)


def _numbers(values: Any, size: int | None, low: float = -np.inf, high: float = np.inf) -> np.ndarray:
    if not isinstance(values, list) or any(type(value) not in (int, float) for value in values):
        raise ValueError("what should be a list of numbers")
    found = np.array(values, dtype=np.float64)
    if size is not None and len(found) != size:
        raise ValueError(f"{len(found)} numbers where there are {size}")
    if not np.isfinite(found).all() or (found < low).any() or (found > high).any():
        raise ValueError("a number out of its range")
    return found


def save_rule(out: Path, content: dict[str, Any]) -> None:
    """Write what a router says into a directory, with its hash."""
    write_json(out / ROUTER, {**content, HASH: hash_of(content)})


def load_rule(path: Path) -> tuple[dict[str, Any], Rule]:
    """Read a router's directory; returns what ``router.json`` says, and the rule.

    Raises
    ------
    UserError
        No router, or one that was damaged or changed.
    """
    file = path / ROUTER
    if not path.is_dir():
        raise UserError(f"{path}: no such router (a directory with {ROUTER}); make one with ensemble.route")
    content = read_json(file, "router")
    missing = [key for key in (*_KEYS, HASH) if not isinstance(content, dict) or key not in content]
    if missing:
        raise UserError(f"{file}: has no {listing(missing)}; is it a router?")
    if content.get("format") != FORMAT:
        raise UserError(
            f"{file}: has format {brief(content.get('format'))}, and this version reads {FORMAT}; make the "
            "router again"
        )
    if content.pop(HASH) != hash_of(content):
        raise UserError(f"{file}: was changed after it was written; make the router again")
    try:
        return content, Rule.from_dict(content)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, UserError) as error:
        raise UserError(
            f"{file}: holds no rule that can be rebuilt ({brief(error)}); make the router again"
        ) from error
