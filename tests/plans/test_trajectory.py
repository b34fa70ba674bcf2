"""The geometry of grids, for any grid."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from haltere.plans.trajectory import SETTLING, Grid
from haltere.workers.errors import SettingsError

place = st.floats(-1e4, 1e4)
grids = st.tuples(
    place, place, st.integers(1, 12), place, st.floats(0.01, 1e4), st.booleans(), st.integers(2, 40),
    st.floats(1e-4, 10.0), st.floats(1.0, 1e6), st.booleans(),
).map(
    lambda v: Grid(v[0], v[1], v[2], v[3], v[3] + (v[4] if v[5] else -v[4]), v[6], v[7], v[8], v[9])
)  # fmt: skip


@given(grids)
def test_each_planned_point_is_triggered_once_and_in_its_line(grid: Grid) -> None:
    positions = grid.positions()
    assert positions.shape == (grid.points, 2)
    assert len(grid.lines) == grid.rows
    for line in grid.lines:
        rows = positions[line.number * grid.columns : (line.number + 1) * grid.columns]
        np.testing.assert_array_equal(rows[:, 0], line.slow)
        np.testing.assert_allclose(rows[:, 1], line.start + np.arange(line.n) * line.step)
        ends = sorted((rows[0, 1], rows[-1, 1]))
        assert ends == pytest.approx(sorted((grid.fast_start, grid.fast_stop)), rel=1e-9, abs=1e-6)


@given(grids)
def test_a_line_starts_early_enough_to_be_at_speed_and_ends_after_the_last_exposure(grid: Grid) -> None:
    needed = grid.velocity**2 / (2 * grid.acceleration) + SETTLING * grid.velocity
    for line in grid.lines:
        direction = math.copysign(1.0, line.step)
        last_exposure = line.start + line.n * line.step
        slack = 1e-9 * (abs(line.begin) + abs(line.end) + needed + 1.0)
        assert (line.start - line.begin) * direction >= needed - slack
        assert (line.end - last_exposure) * direction >= needed - slack


@given(grids)
def test_a_snake_turns_every_other_line_and_a_raster_none(grid: Grid) -> None:
    for line in grid.lines:
        backwards = grid.snake and line.number % 2 == 1
        assert math.copysign(1.0, line.step) == math.copysign(1.0, grid.step) * (-1 if backwards else 1)
        assert line.start == (grid.fast_stop if backwards else grid.fast_start)


@given(grids)
def test_the_checks_let_pass_exactly_what_fits(grid: Grid) -> None:
    low, high = grid.fast_range
    slow = sorted((grid.slow_start, grid.slow_stop))
    fits: dict[str, Any] = {
        "fast_limits": (low, high), "slow_limits": (slow[0], slow[1]), "maximum_velocity": grid.velocity
    }  # fmt: skip
    grid.check(**fits)
    tight = 1.0 + abs(high) * 1e-6
    for change, word in (
        ({"fast_limits": (low + tight, high)}, "fast axis"),
        ({"fast_limits": (low, high - tight)}, "fast axis"),
        ({"slow_limits": (slow[0] + 1.0, slow[1])}, "slow axis"),
        ({"maximum_velocity": grid.velocity * 0.99}, "µm/s"),
    ):
        with pytest.raises(SettingsError, match=word) as refusal:
            grid.check(**{**fits, **change})
        assert "\n" not in str(refusal.value)


@given(grids)
def test_a_scan_takes_longer_than_its_exposures(grid: Grid) -> None:
    assert grid.duration(travel=1000.0) > grid.points * grid.dwell


GOOD = Grid(0, 1, 2, 0, 9, 10, dwell=0.1, acceleration=1000)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"rows": 0}, "num = 0: a grid has 1 rows or more"),
        ({"columns": 1}, "fast_num = 1: a grid has 2 columns or more"),
        ({"rows": 2.5}, "num = 2.5 isn't a whole number"),
        ({"columns": True}, "fast_num = True isn't a whole number"),
        ({"dwell": 0.0}, "dwell = 0.0 s isn't above 0"),
        ({"dwell": math.nan}, "dwell = nan isn't finite"),
        ({"fast_stop": 0}, "the fast axis goes from 0 to itself"),
        ({"slow_start": "left"}, "start = 'left' isn't a number"),
        ({"acceleration": -1.0}, "acceleration = -1.0 µm/s² isn't above 0"),
    ],
)
def test_an_impossible_grid_is_refused_in_one_line(change: dict[str, Any], line: str) -> None:
    with pytest.raises(SettingsError) as refusal:
        dataclasses.replace(GOOD, **change)
    assert line in str(refusal.value)


def test_numbers_may_come_from_numpy() -> None:
    numbers: dict[str, Any] = {"rows": np.int64(3), "slow_stop": np.float32(2.0)}
    grid = dataclasses.replace(GOOD, **numbers)
    assert [line.slow for line in grid.lines] == [0.0, 1.0, 2.0]
