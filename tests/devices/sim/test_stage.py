"""The stage's Tango motors, as a client sees them."""

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import tango

MOVING, ON = tango.DevState.MOVING, tango.DevState.ON


@pytest.fixture
def motor(tango_beamline: Any, until: Callable[..., None]) -> Iterator[Any]:
    proxy = tango_beamline.proxy("stage", "x")
    proxy.Velocity, proxy.Acceleration = 1000.0, 10_000.0
    yield proxy
    proxy.StopMove()
    until(lambda: proxy.state() == ON, "the motor rests")


def test_writing_the_position_moves_there(motor: Any, until: Callable[..., None]) -> None:
    target = motor.Position + 20.0
    motor.Position = target
    assert motor.state() == MOVING
    until(lambda: motor.state() == ON, "the motor arrives")
    assert motor.Position == target
    assert motor.EncoderPosition == pytest.approx(target, abs=0.01)
    assert motor.EncoderPosition != target


def test_a_stopped_motor_rests_on_its_way(motor: Any, until: Callable[..., None]) -> None:
    start = motor.Position
    motor.Velocity = 50.0
    motor.Position = start + 200.0
    until(lambda: motor.Position > start + 1.0, "the motor is on its way")
    motor.StopMove()
    until(lambda: motor.state() == ON, "the motor rests")
    assert start + 1.0 < motor.Position < start + 100.0


def test_a_target_beyond_the_limits_is_refused_in_one_line(motor: Any) -> None:
    with pytest.raises(tango.DevFailed) as failure:
        motor.Position = motor.UnitLimitMax + 1.0
    line = failure.value.args[0].desc
    assert line == "p06/motor/sim.01/Position: target 1001 um is above UnitLimitMax 1000 um"
    assert motor.state() == ON


def test_limits_can_be_narrowed(motor: Any) -> None:
    motor.UnitLimitMin = -500.0
    try:
        with pytest.raises(tango.DevFailed, match="below UnitLimitMin -500 um"):
            motor.Position = -500.5
    finally:
        motor.UnitLimitMin = -1000.0


def test_a_velocity_above_the_maximum_is_refused(motor: Any) -> None:
    highest = float(motor.get_attribute_config("Velocity").max_value)
    with pytest.raises(tango.DevFailed, match="maximum"):
        motor.Velocity = highest + 1.0
    with pytest.raises(tango.DevFailed, match="isn't above 0"):
        motor.Velocity = 0.0


def test_clients_hear_of_a_move_by_events(motor: Any) -> None:
    states: list[Any] = []
    arrived = threading.Event()

    def heard(event: Any) -> None:
        if event.err:
            return
        states.append(event.attr_value.value)
        if states[-2:] == [MOVING, ON]:
            arrived.set()

    subscription = motor.subscribe_event("State", tango.EventType.CHANGE_EVENT, heard)
    try:
        # ZeroMQ connects in the background: of what is sent before it has, a new subscriber hears nothing.
        for step in (-10.0, 10.0) * 5:
            motor.Position += step
            if arrived.wait(3):
                break
        assert arrived.is_set()
    finally:
        motor.unsubscribe_event(subscription)
