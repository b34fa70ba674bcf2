"""An axis' motion, as a function of time."""

import math
from itertools import pairwise

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from haltere.devices.sim.motion import Axis, Trajectory
from haltere.workers.errors import DetectorError

places = st.floats(-1000, 1000)
velocities = st.floats(0.1, 5000)
accelerations = st.floats(1, 1e5)
shares = st.floats(0, 1)


@given(places, places, velocities, accelerations)
def test_a_move_is_monotone_and_stays_between_its_ends(
    start: float, target: float, velocity: float, acceleration: float
) -> None:
    move = Trajectory.trapezoid(start, target, velocity, acceleration)
    path = [move.position(move.duration * step / 50) for step in range(-2, 53)]
    assert path[0] == start
    assert path[-1] == target
    low, high = min(start, target), max(start, target)
    assert all(low <= place <= high for place in path)
    assert all((after - before) * move.direction >= -1e-9 for before, after in pairwise(path))


@given(places, places, velocities, accelerations, shares)
def test_no_move_is_faster_than_its_velocity(
    start: float, target: float, velocity: float, acceleration: float, share: float
) -> None:
    move = Trajectory.trapezoid(start, target, velocity, acceleration)
    assert abs(move.velocity(share * move.duration)) <= velocity * (1 + 1e-9)
    assert move.velocity(move.duration) == 0


@given(places, places, velocities, accelerations, shares)
def test_a_crossing_is_the_inverse_of_the_position(
    start: float, target: float, velocity: float, acceleration: float, share: float
) -> None:
    assume(abs(target - start) > 1e-3)
    move = Trajectory.trapezoid(start, target, velocity, acceleration)
    place = start + share * (target - start)
    assume(min(start, target) <= place <= max(start, target))
    crossing = move.crossing(place)
    assert crossing is not None
    assert 0 <= crossing <= move.duration
    assert move.position(crossing) == pytest.approx(place, abs=1e-6)


@given(places, places, velocities, accelerations)
def test_crossings_come_in_the_order_of_their_positions(
    start: float, target: float, velocity: float, acceleration: float
) -> None:
    assume(abs(target - start) > 1e-3)
    move = Trajectory.trapezoid(start, target, velocity, acceleration)
    times = [move.crossing(start + step / 20 * (target - start)) for step in range(20)]
    known = [each for each in times if each is not None]
    assert len(known) == 20
    assert all(after >= before for before, after in pairwise(known))


def test_a_place_beside_the_way_is_never_crossed() -> None:
    move = Trajectory.trapezoid(0, 10, 5, 50)
    assert move.crossing(-0.1) is None
    assert move.crossing(10.1) is None


@given(places, velocities, accelerations, shares)
def test_a_stopped_axis_rests_ahead_within_its_way(
    target: float, velocity: float, acceleration: float, share: float
) -> None:
    axis = Axis(velocity=velocity, acceleration=acceleration, limits=(-1000, 1000))
    axis.move(target, at=0.0)
    now = share * axis.arrival
    before = axis.position(now)
    axis.stop(now)
    assert axis.position(now) == pytest.approx(before, abs=1e-6)
    assert min(before, target) - 1e-6 <= axis.target <= max(before, target) + 1e-6
    assert not axis.moving(axis.arrival)
    assert axis.arrival <= now + velocity / acceleration + 1e-9


@pytest.mark.parametrize("target", [100.1, -100.1, math.nan, math.inf])
def test_a_target_beyond_the_limits_is_refused_and_nothing_moves(target: float) -> None:
    axis = Axis(limits=(-100, 100))
    with pytest.raises(DetectorError, match=r"^target .*(UnitLimit|not a position)"):
        axis.move(target, at=0.0)
    assert axis.position(1e9) == 0


def test_a_moving_axis_takes_no_other_target() -> None:
    axis = Axis()
    axis.move(10, at=0.0)
    with pytest.raises(DetectorError, match="moving to 10 um; StopMove or wait"):
        axis.move(20, at=axis.arrival / 2)
    axis.move(20, at=axis.arrival)
    assert axis.target == 20


def test_a_crossing_before_the_time_of_interest_is_not_given() -> None:
    axis = Axis(velocity=10, acceleration=1e4)
    axis.move(10, at=100.0)
    first = axis.crossing(5.0)
    assert first is not None
    assert axis.crossing(5.0, after=first) == first
    assert axis.crossing(5.0, after=first + 1e-6) is None
