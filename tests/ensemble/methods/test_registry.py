"""The table of stacking methods, and saved methods of kinds that nobody knows."""

from __future__ import annotations

import pytest
from tasks import task

from ensemble.methods.base import Training, from_dict
from ensemble.methods.blend import EqualMean
from ensemble.methods.catalogue import METHODS
from ensemble.methods.registry import Fitting, register, registered


def test_methods_stand_simplest_first_with_those_calibrated_beside_them() -> None:
    names = list(registered())
    assert names[:2] == ["best single", "mean"]
    assert [name for name in METHODS if "+" not in name] == [name for name in names if "+" not in name]
    assert [name for name in METHODS if name.endswith("+calibration")] == [
        f"{name}+calibration" for name, method in registered().items() if method.calibrated
    ]


def test_a_method_is_fitted_once_however_many_build_on_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ensemble.methods.registry._METHODS", {})
    made = []

    def mean(fitting: Fitting) -> EqualMean:
        made.append(fitting.seed)
        return EqualMean().fit_on(fitting.data)

    register("one", 1, mean)
    for rank in (3, 2):
        register(f"again {rank}", rank, lambda fitting: fitting.get("one", EqualMean))
    fitting = Fitting(Training.of(*task(30)), seed=7)
    assert list(registered()) == ["one", "again 2", "again 3"]
    assert fitting["again 2"] is fitting["again 3"] is fitting["one"]
    assert made == [7]


@pytest.mark.parametrize(("name", "rank"), [("mean", 1000), ("another", 20)])
def test_a_name_or_rank_is_given_once(name: str, rank: int) -> None:
    with pytest.raises(ValueError, match="has this name or rank"):
        register(name, rank, lambda fitting: EqualMean())


def test_an_unknown_kind_is_refused_with_those_known() -> None:
    with pytest.raises(ValueError, match=r"'Oracle' is no kind of method; known are .*EqualMean"):
        from_dict({"kind": "Oracle", "params": {}, "fitted": {}})
