"""Every point falls into the pixel it was measured in, whatever the order it comes in."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from haltere.callbacks.gridding import Axis, Grid, Tally, position_names

axes = st.builds(Axis.planned, st.just("pilc_x"), st.tuples(*2 * [st.integers(-20, 20)]), st.integers(1, 8))
positions = st.floats(-50, 50) | st.just(float("nan"))
points = st.lists(st.tuples(positions, positions, st.integers(-1000, 1000), st.integers(0, 3)), max_size=60)


def nearest(axis: Axis, position: float) -> int | None:
    """Find the pixel the slow way: compare the distances to all centres."""
    if np.isnan(position):
        return None
    if axis.n == 1:
        return 0
    centres = axis.low + axis.pitch * np.arange(axis.n)
    distance = np.abs(centres - position)
    return int(distance.argmin()) if distance.min() < axis.pitch / 2 else None


def near_an_edge(axis: Axis, position: float) -> bool:
    """Say whether rounding alone decides between two pixels."""
    place = (position - axis.low) / axis.pitch + 0.5
    return bool(np.isfinite(place) and abs(place - round(place)) < 1e-9)


def gridded(grid: Grid, rows: Any) -> Tally:
    tally = Tally(grid)
    if rows:
        tally.add(*zip(*rows, strict=True))
    return tally


@given(axes, st.lists(positions, max_size=20))
def test_a_position_falls_into_the_nearest_pixel_or_none(axis: Axis, places: list[float]) -> None:
    for place, pixel in zip(places, axis.pixel(places), strict=True):
        if not near_an_edge(axis, place):
            assert pixel == (-1 if nearest(axis, place) is None else nearest(axis, place))


@given(axes, axes, points)
def test_every_point_is_shown_masked_or_outside(slow: Axis, fast: Axis, rows: Any) -> None:
    tally = gridded(Grid(slow, fast), rows)
    assert tally.counts.sum() + tally.outside + tally.masked == len(rows)
    assert np.array_equal(np.isnan(tally.mean()), tally.counts == 0)


@given(axes, axes, points, st.randoms())
def test_order_and_splitting_change_nothing(slow: Axis, fast: Axis, rows: Any, random: Any) -> None:
    grid = Grid(slow, fast)
    whole = gridded(grid, rows)
    shuffled = random.sample(rows, len(rows))
    split = Tally(grid)
    for part in (shuffled[: len(rows) // 3], shuffled[len(rows) // 3 :]):
        if part:
            split.add(*zip(*part, strict=True))
    np.testing.assert_array_equal(split.sums, whole.sums)
    np.testing.assert_array_equal(split.counts, whole.counts)
    assert (split.outside, split.masked) == (whole.outside, whole.masked)


@given(axes, axes, points)
def test_a_pixel_is_the_mean_of_its_points(slow: Axis, fast: Axis, rows: Any) -> None:
    rows = [row for row in rows if not (near_an_edge(slow, row[0]) or near_an_edge(fast, row[1]))]
    tally = gridded(Grid(slow, fast), rows)
    into: dict[tuple[Any, Any], list[float]] = {}
    for y, x, value, status in rows:
        if status <= 1:
            into.setdefault((nearest(slow, y), nearest(fast, x)), []).append(value)
    for row, column in np.ndindex(tally.grid.shape):
        values = into.get((row, column), [])
        np.testing.assert_allclose(tally.mean()[row, column], np.mean(values) if values else np.nan)


def test_a_snake_with_jitter_gives_the_plan_back(flown: Any) -> None:
    grid = Grid.planned(flown.plan)
    assert grid is not None
    tally = Tally(grid)
    tally.add(flown.y, flown.x, flown.fe, flown.statuses)
    np.testing.assert_array_equal(tally.mean(), flown.expected)
    assert tally.masked == 2


def test_a_late_point_fills_its_pixel() -> None:
    tally = Tally(Grid(Axis("y", 0, 1, 2), Axis("x", 0, 1, 2)))
    tally.add([0, 0, 1], [0, 1, 1], [1, 2, 4])
    assert np.isnan(tally.mean()[1, 0])
    tally.add([1], [0], [3])
    assert tally.mean().tolist() == [[1, 2], [3, 4]]


def test_extents_may_run_either_way() -> None:
    up, down = (Axis.planned("x", extent, 5) for extent in ([-1, 1], [1, -1]))
    assert up == down


@pytest.mark.parametrize("missing", ["shape", "extents", "hints"])
def test_a_run_that_planned_no_grid_has_none(flown: Any, missing: str) -> None:
    assert Grid.planned({key: value for key, value in flown.plan.items() if key != missing}) is None


def test_a_line_or_a_volume_has_no_map_positions() -> None:
    assert position_names({"hints": {"dimensions": [[["x"], "primary"]]}}) is None
    assert position_names({}) is None


def test_without_a_plan_the_grid_covers_what_was_measured() -> None:
    y, x = (each.ravel() for each in np.meshgrid(np.linspace(0, 5, 11), np.linspace(0, 10, 21), indexing="ij"))
    grid = Grid.covering(("y", "x"), y, x)
    tally = Tally(grid)
    tally.add(y, x, x)
    assert tally.outside == 0
    assert grid.shape == pytest.approx((11, 21), abs=1)
    assert Grid.covering(("y", "x"), y, x, [11, 21]).shape == (11, 21)


def test_nothing_measured_still_has_a_grid() -> None:
    nowhere = np.full(3, np.nan)
    assert Grid.covering(("y", "x"), nowhere, nowhere).shape == (1, 1)
