"""When the trigger generator fires, from its settings and the axes' motion; no clock, no thread."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

from ...workers.errors import DetectorError
from .motion import Axis


class Mode(IntEnum):
    """TriggerMode: what the first trigger waits for, and what the others do."""

    POSITION = 1
    TIME = 2
    POSITION_THEN_TIME = 3
    TIME_THEN_POSITION = 4


@dataclass(frozen=True)
class TriggerSettings:
    """What was set before Arm; positions in µm of the stage, times in s."""

    mode: Mode
    count: int
    axis: int
    position_start: float
    position_step: float
    time_start: float
    time_step: float
    pulse: float

    def check(self, max_rate: float, speed: float) -> None:
        """Refuse what the card can't do, with the triggering axis' ``speed`` set in µm/s.

        Raises
        ------
        DetectorError
            No triggers, no step, a rate above ``max_rate`` Hz, or a pulse longer than the interval.
        """
        if self.count < 1:
            raise DetectorError(f"NbTriggers is {self.count}; set 1 or more")
        if self.count == 1:
            return
        if self.mode in (Mode.POSITION, Mode.TIME_THEN_POSITION):
            if self.position_step == 0.0:
                raise DetectorError("PositionTriggerStepSize is 0; set a step")
            rate = speed / abs(self.position_step)
            cure = "raise PositionTriggerStepSize or lower the motor's Velocity"
        else:
            if self.time_step <= 0.0:
                raise DetectorError(f"TimeTriggerStepSize is {self.time_step:g} s; set an interval above 0")
            if self.pulse > self.time_step:
                raise DetectorError(
                    f"TriggerPulseLength {self.pulse:g} s is longer than TimeTriggerStepSize {self.time_step:g} s"
                )
            rate, cure = 1.0 / self.time_step, "raise TimeTriggerStepSize"
        if rate > max_rate * (1.0 + 1e-9):
            raise DetectorError(f"trigger rate {rate:.0f} Hz is above {max_rate:.0f} Hz: {cure}")


@dataclass(frozen=True)
class Trigger:
    """One trigger: when it fell on the clock, s since the first one on the ideal trajectory, where each axis was."""

    number: int
    at: float
    since: float
    positions: tuple[float, ...]


class TriggerSequence:
    """The triggers of one Arm.

    Whoever changes an axis' motion calls :meth:`advance` first, so that what the old motion still owed is counted.

    Parameters
    ----------
    settings : TriggerSettings
    axes : sequence of Axis
        In the order of the encoders; ``settings.axis`` indexes it.
    armed : float
        When it was armed; nothing fires before.
    """

    def __init__(self, settings: TriggerSettings, axes: Sequence[Axis], armed: float) -> None:
        self.settings = settings
        self.axes = axes
        self.armed = armed
        self.fired = 0
        self._last = armed
        self._origin = (0.0, 0.0)  # the first trigger: when its move began, and when in the move it fell
        self._start = settings.position_start

    @property
    def complete(self) -> bool:
        """Whether the last trigger has fallen."""
        return self.fired >= self.settings.count

    def _timed(self, number: int) -> bool:
        mode = self.settings.mode
        if mode is Mode.POSITION_THEN_TIME:
            return number > 0
        if mode is Mode.TIME_THEN_POSITION:
            return number == 0
        return mode is Mode.TIME

    def _place(self, number: int) -> float:
        return self._start + number * self.settings.position_step

    def next_time(self) -> float | None:
        """Return when the next trigger falls; None if the present motion never brings it."""
        if self.complete:
            return None
        settings, number = self.settings, self.fired
        if self._timed(number):
            if settings.mode is Mode.POSITION_THEN_TIME:
                began, local = self._origin
                return began + local + number * settings.time_step
            return self.armed + settings.time_start + number * settings.time_step
        axis = self.axes[settings.axis]
        if settings.position_step and math.copysign(1.0, settings.position_step) != axis.trajectory.direction:
            return None  # the comparator looks in the direction of the step
        return axis.crossing(self._place(number), after=self._last)

    def advance(self, now: float) -> list[Trigger]:
        """Return the triggers that have fallen by ``now``, each once."""
        found: list[Trigger] = []
        while (at := self.next_time()) is not None and at <= now:
            found.append(self._fire(at))
        return found

    def _fire(self, at: float) -> Trigger:
        settings, number = self.settings, self.fired
        trajectory, began = self.axes[settings.axis].flight
        positions = [axis.position(at) for axis in self.axes]
        if self._timed(number):
            since = number * settings.time_step
            if settings.mode is Mode.POSITION_THEN_TIME and began == self._origin[0]:
                positions[settings.axis] = trajectory.position(self._origin[1] + since)
            if number == 0:
                self._start = positions[settings.axis]
                self._origin = at, 0.0
        else:
            # Differences within the trajectory, not of clock times: the same to the bit on every flight.
            local = trajectory.crossing(self._place(number)) or 0.0
            if number == 0:
                self._origin = began, local
            since = (began - self._origin[0]) + (local - self._origin[1])
            positions[settings.axis] = self._place(number)
        self.fired += 1
        self._last = at
        return Trigger(number, at, since, tuple(positions))
