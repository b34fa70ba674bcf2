"""The sample stage: Tango motors as ophyd positioners, and two of them as one device."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from typing import Any

from ophyd import Component, Device, Signal
from ophyd.positioner import PositionerBase
from ophyd.status import MoveStatus
from ophyd.utils import LimitError

from ..workers.errors import DetectorError
from .tango import Tango, TangoDevice

POLL = 0.01
"""s between two looks at a moving motor. Not every motor server pushes events, and a look takes 0.4 ms."""

START_PATIENCE = 2.0
"""s in which a motor must begin to move, or be where it should go."""


class _Move:
    """A move under way: its status, and once it was told to stop, whether that counts as a success."""

    def __init__(self, status: MoveStatus) -> None:
        self.status = status
        self.stopped: bool | None = None


class StageAxis(TangoDevice, PositionerBase):  # type: ignore[misc]  # ophyd carries no types
    """A motor of a DESY Tango class, in µm."""

    readback = Tango("Position", kind="hinted")  # µm
    velocity = Tango("Velocity", kind="config")  # µm/s
    acceleration = Tango("Acceleration", kind="config")  # µm/s²
    limit_min = Tango("UnitLimitMin", kind="omitted")  # µm
    limit_max = Tango("UnitLimitMax", kind="omitted")  # µm
    state = Tango("State", kind="omitted")
    user_offset = Component(Signal, value=0.0, kind="omitted")  # bluesky's %wa asks for one

    def __init__(self, prefix: str, *, name: str, tolerance: float = 0.05, **kwargs: Any) -> None:
        """Tolerance: how near to its target a motor at rest has arrived, µm."""
        self.tolerance = tolerance
        self._move_lock = threading.Lock()
        self._move: _Move | None = None
        super().__init__(prefix, name=name, **kwargs)
        self.readback.name = self.name

    @property
    def egu(self) -> str:
        """The unit of positions."""
        return "µm"

    @property
    def precision(self) -> int:
        """Digits worth showing: nanometres."""
        return 3

    @property
    def position(self) -> float:
        """Where it is, µm."""
        return float(self.readback.get())

    @property
    def limits(self) -> tuple[float, float]:
        """Lowest and highest position, µm."""
        return float(self.limit_min.get()), float(self.limit_max.get())

    @property
    def maximum_velocity(self) -> float:
        """The highest velocity the server accepts, µm/s; infinite if it states none."""
        try:
            return float(self.velocity.configuration.max_value)
        except ValueError:
            return float("inf")

    @property
    def moving(self) -> bool:
        """Whether it moves now."""
        return bool(self.state.get() == "MOVING")

    def check_value(self, value: Any, **kwargs: Any) -> None:
        """Raise a LimitError if the motor can't go there."""
        low, high = self.limits
        if not low <= value <= high:
            raise LimitError(f"{self.name}: {value:g} µm is beyond its limits {low:g} … {high:g} µm")

    def set(self, new_position: float, *, timeout: float | None = None, **kwargs: Any) -> MoveStatus:
        """Move to ``new_position`` µm; done when it rests there.

        Raises
        ------
        LimitError
            The target is beyond the limits.
        """
        return self.move(new_position, wait=False, timeout=timeout)

    def move(
        self, position: float, wait: bool = False, moved_cb: Any = None, timeout: float | None = None
    ) -> MoveStatus:
        """Move, as PositionerBase demands it."""
        self.check_value(position)
        status = MoveStatus(self, float(position), timeout=timeout, settle_time=self._settle_time)
        if moved_cb is not None:
            status.add_callback(lambda done: moved_cb(done, obj=self))
        self._move = _Move(status)
        threading.Thread(target=self._drive, args=(self._move,), name=f"move {self.name}", daemon=True).start()
        if wait:
            status.wait(timeout)
        return status

    def stop(self, *, success: bool = False) -> None:
        """Brake; the status of the move ends when the motor rests."""
        if self._move is not None:
            self._move.stopped = success
        if self.moving:
            self.command("StopMove")

    def _drive(self, move: _Move) -> None:
        status = move.status
        try:
            with self._move_lock:
                self._go(move)
        except Exception as error:
            if not status.done:
                status.set_exception(error)
        else:
            if not status.done:
                status.set_finished()

    def _go(self, move: _Move) -> None:
        """Start the move and follow it to its end."""
        tick = threading.Event()
        status, target = move.status, move.status.target
        while self.moving:
            tick.wait(POLL)  # it brakes from an earlier move
        if move.stopped is None:
            self._run_subs(sub_type=self.SUB_START, timestamp=time.time())
            self.connection.write(self.name, "Position", target)
        started = False
        deadline = time.monotonic() + START_PATIENCE
        while not status.done:
            state = self.state.get()
            place = self.position
            self._set_position(place)
            if state == "MOVING":
                started = True
            elif state != "ON":
                raise DetectorError(f"{self.name}: {self.prefix} is in state {state} at {place:g} µm (see its status)")
            elif abs(place - target) <= self.tolerance:
                break
            elif move.stopped is not None:
                if not move.stopped:
                    raise DetectorError(f"{self.name}: stopped at {place:g} µm on the way to {target:g} µm")
                break
            elif started or time.monotonic() > deadline:
                raise DetectorError(
                    f"{self.name}: rests at {place:g} µm, not at {target:g} µm (a limit switch, or its closed loop?)"
                )
            tick.wait(POLL)
        self._run_subs(sub_type=self.SUB_DONE, timestamp=time.time())


class _Axis(Component):  # type: ignore[misc]  # ophyd carries no types
    """A StageAxis whose address stands in its Stage's prefix, under the component's name."""

    def __init__(self) -> None:
        super().__init__(StageAxis, "", kind="hinted", labels={"motors"})

    def maybe_add_prefix(self, instance: Any, kw: str, suffix: str) -> Any:
        """Return the axis' address where a suffix is asked for."""
        return instance.prefix[self.attr] if kw == "suffix" else suffix


class Stage(Device):  # type: ignore[misc]  # ophyd carries no types
    """The sample stage.

    Parameters
    ----------
    prefix
        Axis name → Tango address: ``{"x": "tango://…", "y": "tango://…"}``.
    """

    x = _Axis()
    y = _Axis()

    def __init__(self, prefix: Mapping[str, str], *, name: str, **kwargs: Any) -> None:
        super().__init__(dict(prefix), name=name, **kwargs)

    def wait_for_connection(self, all_signals: bool = False, timeout: Any = None) -> None:
        """Raise a DetectorError if a motor doesn't answer."""
        for axis in (self.x, self.y):
            axis.wait_for_connection()
