"""The sample stage: axes that share a clock, and the Tango motor class in front of each."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from tango import AttrWriteType, DevState, EnsureOmniThread
from tango.server import Device, attribute, command

from ...workers.errors import DetectorError
from .encoder import noise
from .motion import Axis
from .tango_class import refuse

EVENT_PERIOD = 0.05
"""s between two Position events of a moving motor."""

MAX_VELOCITY = 5000.0
"""µm/s; the Velocity attribute's max_value."""


class SimulatedStage:
    """The axes and the one lock that orders what moves them and what their encoders trigger.

    Parameters
    ----------
    axes : mapping of str to Axis
        ``x`` and ``y`` at least: where the sample is.
    clock : callable, optional
        Returns s.
    """

    def __init__(self, axes: Mapping[str, Axis], clock: Callable[[], float] = time.monotonic) -> None:
        self.axes = dict(axes)
        self.clock = clock
        self.changed = threading.Condition()
        """Notified after each change of motion; holding it keeps the axes as they are."""
        self.before_change: list[Callable[[float], None]] = []
        """Called with the time, lock held, before a motion is replaced: settle what the old one owes."""

    def move(self, name: str, target: float) -> None:
        """Start a move; raises DetectorError beyond the limits or while moving."""
        self._change(lambda now: self.axes[name].move(target, now))

    def stop(self, name: str) -> None:
        """Brake an axis; nothing happens at rest."""
        self._change(lambda now: self.axes[name].stop(now))

    def _change(self, action: Callable[[float], object]) -> None:
        with self.changed:
            now = self.clock()
            for settle in self.before_change:
                settle(now)
            action(now)
            self.changed.notify_all()

    def position(self) -> tuple[float, float]:
        """Return where the sample is now, (x, y) in µm. Takes no lock."""
        now = self.clock()
        return self.axes["x"].position(now), self.axes["y"].position(now)


class StageMotor(Device):  # type: ignore[misc]
    """A motor as DESY's Tango classes show one: write Position, wait until State is ON."""

    bound: ClassVar[dict[str, tuple[SimulatedStage, str, int]]] = {}
    """Device name → the stage, the axis' name and the seed of its encoder's noise."""

    Position = attribute(
        dtype=float,
        unit="um",
        access=AttrWriteType.READ_WRITE,
        fget="read_position",
        fset="write_position",
        doc="where the axis is; writing it starts a move",
    )
    EncoderPosition = attribute(dtype=float, unit="um", fget="read_encoder", doc="the same, as the encoder reads it")
    Velocity = attribute(
        dtype=float,
        unit="um/s",
        access=AttrWriteType.READ_WRITE,
        fget="read_velocity",
        fset="write_velocity",
        max_value=str(MAX_VELOCITY),
    )
    Acceleration = attribute(
        dtype=float,
        unit="um/s^2",
        access=AttrWriteType.READ_WRITE,
        fget="read_acceleration",
        fset="write_acceleration",
    )
    UnitLimitMin = attribute(
        dtype=float, unit="um", access=AttrWriteType.READ_WRITE, fget="read_limit_min", fset="write_limit_min"
    )
    UnitLimitMax = attribute(
        dtype=float, unit="um", access=AttrWriteType.READ_WRITE, fget="read_limit_max", fset="write_limit_max"
    )

    def init_device(self) -> None:
        """Find the axis and start the thread that pushes its events."""
        super().init_device()
        self.stage, self.axis_name, self.seed = self.bound[self.get_name().lower()]
        self.axis = self.stage.axes[self.axis_name]
        self.set_state(DevState.ON)
        for name in ("State", "Position"):
            self.set_change_event(name, True, False)
        self.closing = threading.Event()
        self.events = threading.Thread(target=self._push_events, name=f"events {self.get_name()}", daemon=True)
        self.events.start()

    def delete_device(self) -> None:
        """End the events."""
        self.closing.set()
        with self.stage.changed:
            self.stage.changed.notify_all()
        super().delete_device()

    # --- attributes --------------------------------------------------------------------------------------------------

    def dev_state(self) -> Any:
        """Return MOVING from the write of Position until the axis rests."""
        return DevState.MOVING if self.axis.moving(self.stage.clock()) else DevState.ON

    def dev_status(self) -> str:
        """Say where it goes or rests."""
        moving = self.axis.moving(self.stage.clock())
        return f"moving to {self.axis.target:g} um" if moving else f"at {self.axis.target:g} um"

    def read_position(self) -> float:
        """Return µm."""
        return self.axis.position(self.stage.clock())

    def write_position(self, target: float) -> None:
        """Start a move to ``target`` µm."""
        try:
            self.stage.move(self.axis_name, target)
        except DetectorError as error:
            refuse(self, "Position", error)

    def read_encoder(self) -> float:
        """Return µm, with the encoder's noise."""
        place = self.read_position()
        return place + noise(self.seed, ord(self.axis_name[0]), place, 0.0)

    def read_velocity(self) -> float:
        """Return µm/s."""
        return self.axis.cruise

    def write_velocity(self, value: float) -> None:
        """Set the velocity of moves to come, µm/s."""
        if not value > 0.0:
            refuse(self, "Velocity", f"{value:g} um/s isn't above 0")
        self.axis.cruise = value

    def read_acceleration(self) -> float:
        """Return µm/s²."""
        return self.axis.acceleration

    def write_acceleration(self, value: float) -> None:
        """Set the acceleration of moves to come, µm/s²."""
        if not value > 0.0:
            refuse(self, "Acceleration", f"{value:g} um/s^2 isn't above 0")
        self.axis.acceleration = value

    def read_limit_min(self) -> float:
        """Return µm."""
        return self.axis.limits[0]

    def write_limit_min(self, value: float) -> None:
        """Set the lower limit, µm."""
        self.axis.limits = (value, self.axis.limits[1])

    def read_limit_max(self) -> float:
        """Return µm."""
        return self.axis.limits[1]

    def write_limit_max(self, value: float) -> None:
        """Set the upper limit, µm."""
        self.axis.limits = (self.axis.limits[0], value)

    # --- commands ----------------------------------------------------------------------------------------------------

    @command  # type: ignore[untyped-decorator]
    def StopMove(self) -> None:  # noqa: N802 - the name on the wire
        """Brake."""
        self.stage.stop(self.axis_name)

    # --- events ------------------------------------------------------------------------------------------------------

    def _push_events(self) -> None:
        seen = self.axis.flight
        moving = False
        with EnsureOmniThread():
            while not self.closing.is_set():
                with self.stage.changed:
                    now = self.stage.clock()
                    if self.axis.flight is seen and not self.closing.is_set():
                        left = self.axis.arrival - now
                        self.stage.changed.wait(max(min(left, EVENT_PERIOD), 0.0) if moving else None)
                        now = self.stage.clock()
                    begun = self.axis.flight is not seen
                    seen = self.axis.flight
                    arrived = not self.axis.moving(now)
                # Pushed without the lock: a client's read holds the device and may wait for the lock.
                if begun and not moving:
                    moving = True
                    self._push_state(DevState.MOVING)
                if moving:
                    self.push_change_event("Position", self.axis.position(now))
                    if arrived:
                        moving = False
                        self._push_state(DevState.ON)

    def _push_state(self, state: Any) -> None:
        self.set_state(state)  # the event carries the stored state
        self.push_change_event("State")
