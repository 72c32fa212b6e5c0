"""Where things stand in the report's charts."""

from __future__ import annotations

import numpy as np
import pytest

from ensemble.report.charts import Axes, Whisker, Whiskers, differences, map_cells, shade
from ensemble.scoring.bootstrap import Interval
from ensemble.scoring.explore import ternary_map


def test_axes_reach_from_edge_to_edge() -> None:
    axes = Axes(10, 20, 100, 50, low=1.0, high=2.0)
    assert (axes.x(0), axes.x(1), axes.right) == (10, 110, 110)
    assert (axes.y(1.0), axes.y(2.0), axes.bottom) == (70, 20, 70)
    assert axes.line([0, 0.5], [2, 1.5]) == "10.0,20.0 60.0,45.0"
    assert axes.ticks(3) == [(0.0, 1.0), (0.5, 1.5), (1.0, 2.0)]


def test_values_that_are_all_the_same_stand_halfway() -> None:
    assert Axes(0, 0, 10, 10, low=0.7, high=0.7).y(0.7) == 5
    same = Whiskers([Whisker("a", 0.7, Interval(0.7, 0.7))])
    assert same.place(0.7) == pytest.approx(50)


def test_every_whisker_stands_inside_the_strip() -> None:
    chart = Whiskers([Whisker("a", 1.0, Interval(0.5, 1.5)), Whisker("b", 3.0, Interval(2.0, 4.0))], zero=0.0)
    places = [chart.place(value) for value in (0.0, 0.5, 1.0, 3.0, 4.0)]
    assert places == sorted(places)
    assert 0 < places[0] < places[-1] < 100


@pytest.mark.parametrize(("better", "kinds"), [(1, ["good", "bad", ""]), (-1, ["bad", "good", ""])])
def test_a_line_is_marked_where_its_interval_leaves_zero_out(better: int, kinds: list[str]) -> None:
    lines = [
        Whisker("above", 0.2, Interval(0.1, 0.3)),
        Whisker("below", -0.2, Interval(-0.3, -0.1)),
        Whisker("either", 0.1, Interval(-0.1, 0.3)),
    ]
    assert [row.kind for row in differences(lines, better).rows] == kinds


def test_the_darkest_cell_of_the_map_is_the_best() -> None:
    rng = np.random.default_rng(0)
    P = rng.dirichlet(np.ones(3), size=(60, 3))
    found = ternary_map(P, np.eye(3)[rng.integers(0, 3, 60)], steps=6)
    drawn = map_cells(found)
    shades = [level for level, _, _ in drawn["cells"]]
    assert (min(shades), max(shades)) == (0, 9)
    assert shades[int(found["loss"].argmin())] == 0
    assert drawn["low"] == found["loss"].min()


def test_shades_of_a_table() -> None:
    assert [shade(strength) for strength in (1.0, 0.55, 0.0, -0.2, float(np.float64(0.95)))] == [
        0,
        4,
        9,
        9,
        0,
    ]
