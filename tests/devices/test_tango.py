"""Tango attributes as signals, against the simulated beamline's servers."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from ophyd.utils import ReadOnlyError

from haltere.devices.tango import Connection, Tango, TangoDevice, TangoSignal
from haltere.workers.errors import DetectorError

from .hutch import Hutch, eventually


class Motor(TangoDevice):
    """A motor with an attribute too many."""

    place = Tango("Position", kind="hinted")
    velocity = Tango("Velocity", kind="config")
    encoder = Tango("EncoderPosition", kind="omitted")
    missing = Tango("Colour", kind="omitted")


@pytest.fixture
def motor(hutch: Hutch) -> Motor:
    return Motor(hutch.endpoints["stage"]["x"], name="motor")


def test_an_attribute_declared_in_one_line_tells_value_type_and_unit(motor: Motor) -> None:
    motor.velocity.put(1234.0)
    assert motor.velocity.get() == 1234.0
    key = motor.velocity.describe()["motor_velocity"]
    assert key["units"] == "um/s"
    assert key["dtype"] == "number"
    assert key["dtype_numpy"] == "<f8"
    assert key["source"].endswith("/p06/motor/sim.01#dbase=no/Velocity")
    assert list(motor.read_configuration()) == ["motor_velocity"]


def test_a_signal_follows_change_events_where_the_server_pushes_them(motor: Motor) -> None:
    moved = threading.Event()
    start = motor.place.get()
    motor.place.subscribe(lambda value, **_: moved.set() if abs(value - start) > 0.5 else None, run=False)
    try:
        motor.place.put(start + 1.0)
        assert moved.wait(5.0)
        assert motor.place.timestamp > 1e9
    finally:
        motor.place.destroy()
    eventually(lambda: abs(motor.place.get() - start - 1.0) < 1e-3, "the motor arrives")


def test_a_signal_asks_where_the_server_pushes_no_events(motor: Motor) -> None:
    seen: list[float] = []
    changed = threading.Event()

    def note(value: float, **_: Any) -> None:
        seen.append(value)
        if value == 321.0:
            changed.set()

    motor.velocity.subscribe(note, run=False)
    other = Motor(motor.prefix, name="other")
    other.velocity.put(321.0)
    assert changed.wait(5.0), seen
    motor.velocity.clear_sub(note)
    assert motor.velocity._poller is None


def test_set_gives_a_status_that_fails_with_the_servers_reason(motor: Motor) -> None:
    status = motor.velocity.set(1e9)
    error = status.exception(timeout=5.0)
    assert isinstance(error, DetectorError)
    assert "motor_velocity: tango://" in str(error)
    assert "Velocity = 1000000000.0" in str(error)
    assert "\n" not in str(error)
    assert motor.velocity.set(100.0).wait(timeout=5.0) is None


def test_a_read_only_attribute_refuses_to_be_written(motor: Motor) -> None:
    with pytest.raises(ReadOnlyError, match="motor_encoder: EncoderPosition is read-only"):
        motor.encoder.put(1.0)


def test_an_unknown_attribute_is_named(motor: Motor) -> None:
    with pytest.raises(DetectorError, match=r"motor_missing: tango://.*: no attribute Colour"):
        motor.missing.get()


def test_a_device_that_is_off_is_named_with_its_address_and_a_remedy() -> None:
    off = Motor("tango://127.0.0.1:1/p06/motor/1#dbase=no", name="off")
    with pytest.raises(DetectorError, match=r"^off: tango://127.0.0.1:1/.*: no answer \(is the server running\?\)$"):
        off.wait_for_connection()
    assert not off.velocity.connected


def test_a_signal_stands_alone_with_a_connection_of_its_own(hutch: Hutch) -> None:
    state = TangoSignal("State", name="state", connection=Connection(hutch.endpoints["stage"]["y"]))
    assert state.get() == "ON"
    assert state.describe()["state"]["dtype"] == "string"
