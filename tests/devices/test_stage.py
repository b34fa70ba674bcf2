"""Motors as positioners."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from ophyd.utils import LimitError

from haltere.devices import Stage
from haltere.workers.errors import DetectorError

from .hutch import Hutch, eventually


@pytest.fixture
def stage(hutch: Hutch) -> Iterator[Stage]:
    stage = hutch.stage()
    yield stage
    for axis in (stage.x, stage.y):
        axis.set(0.0).wait(timeout=10.0)


def test_a_motor_goes_where_it_is_told_and_says_when_it_is_there(stage: Stage) -> None:
    stage.x.set(12.5).wait(timeout=5.0)
    assert stage.x.position == pytest.approx(12.5, abs=stage.x.tolerance)
    assert stage.x.read()["stage_x"]["value"] == pytest.approx(12.5)
    assert stage.x.describe()["stage_x"]["units"] == "um"
    assert not stage.x.moving


def test_a_target_beyond_the_limits_is_refused_before_anything_moves(stage: Stage) -> None:
    _, high = stage.x.limits
    with pytest.raises(LimitError, match=f"stage_x: {high + 1:g} µm is beyond its limits"):
        stage.x.set(high + 1)
    assert not stage.x.moving


def test_progress_is_told_while_it_moves(stage: Stage) -> None:
    stage.x.velocity.put(100.0)
    seen: list[float] = []
    status = stage.x.set(10.0)
    status.watch(lambda current, **_: seen.append(current))
    status.wait(timeout=5.0)
    assert any(0.5 < place < 9.5 for place in seen)


def test_stop_ends_the_move_as_it_is_told_to(stage: Stage) -> None:
    stage.x.velocity.put(50.0)
    for success in (True, False):
        status = stage.x.set(400.0)
        eventually(lambda: bool(stage.x.moving), "the motor moves")
        stage.x.stop(success=success)
        error = status.exception(timeout=5.0)
        if success:
            assert error is None
        else:
            assert isinstance(error, DetectorError)
            assert "stage_x: stopped at" in str(error)
        assert not stage.x.moving


def test_a_move_waits_until_the_brake_of_the_last_one_is_over(stage: Stage) -> None:
    stage.x.velocity.put(100.0)
    stage.x.acceleration.put(300.0)
    stage.x.set(300.0)
    eventually(lambda: stage.x.position > 30.0, "the motor is at speed")
    stage.x.stop(success=True)
    stage.x.set(20.0).wait(timeout=10.0)
    assert stage.x.position == pytest.approx(20.0, abs=stage.x.tolerance)


def test_it_has_what_the_where_magic_asks_for(stage: Stage) -> None:
    low, high = stage.y.low_limit, stage.y.high_limit
    assert low < 0 < high
    assert stage.y.user_offset.get() == 0.0
    assert stage.y.egu == "µm"
    assert stage.y.precision == 3
    assert stage.component_names == ("x", "y")
