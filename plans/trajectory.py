"""The way of a grid scan: lines, run-ups, trigger positions; numbers only, no device.

A line is flown at constant velocity. Its k-th trigger falls at ``start + k * step``, where the exposure begins; the
last exposure ends one step after the last trigger. Before the first trigger the stage needs a run-up to get to speed,
after the last exposure a run-out to come to rest.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from ..workers.errors import SettingsError

SETTLING = 0.02
"""s at full speed before the first trigger and after the last exposure: the closed loop settles in it."""

PLAN_NAMES = {
    "slow_start": "start",
    "slow_stop": "stop",
    "fast_start": "fast_start",
    "fast_stop": "fast_stop",
    "dwell": "dwell",
    "acceleration": "acceleration",
}
"""What the plan calls a field of the grid; errors name it so."""


@dataclass(frozen=True, slots=True)
class Line:
    """One line: ``n`` triggers from ``start`` on, one each ``step`` (negative: downwards), at ``slow``; µm.

    The stage starts from rest at ``begin`` and rests again at ``end``.
    """

    number: int
    slow: float
    start: float
    step: float
    n: int
    begin: float
    end: float


@dataclass(frozen=True)
class Grid:
    """A grid of ``rows`` × ``columns`` points, flown along its rows.

    Positions in µm, ``velocity`` in µm/s, ``acceleration`` in µm/s², ``dwell`` in s.

    Examples
    --------
    >>> grid = Grid(0, 10, 2, 0, 9, 10, dwell=0.1, acceleration=1000)
    >>> grid.velocity
    10.0
    >>> [(line.start, line.step) for line in grid.lines]
    [(0.0, 1.0), (9.0, -1.0)]
    """

    slow_start: float
    slow_stop: float
    rows: int
    fast_start: float
    fast_stop: float
    columns: int
    dwell: float
    acceleration: float
    snake: bool = True

    def __post_init__(self) -> None:
        for field, name in PLAN_NAMES.items():
            value = getattr(self, field)
            if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
                raise SettingsError(f"{name} = {value!r} isn't a number")
            if not math.isfinite(value):
                raise SettingsError(f"{name} = {value} isn't finite")
        for field, name, least in (("rows", "num", 1), ("columns", "fast_num", 2)):
            value = getattr(self, field)
            if isinstance(value, bool) or not isinstance(value, int | np.integer):
                raise SettingsError(f"{name} = {value!r} isn't a whole number")
            if value < least:
                raise SettingsError(f"{name} = {value}: a grid has {least} {field} or more")
        if self.fast_start == self.fast_stop:
            raise SettingsError(f"the fast axis goes from {self.fast_start} to itself: give it a way")
        if self.dwell <= 0:
            raise SettingsError(f"dwell = {self.dwell} s isn't above 0")
        if self.acceleration <= 0:
            raise SettingsError(f"acceleration = {self.acceleration} µm/s² isn't above 0")

    @property
    def step(self) -> float:
        """From one point of a row to the next, µm, with its sign in even rows."""
        return (self.fast_stop - self.fast_start) / (self.columns - 1)

    @property
    def velocity(self) -> float:
        """How fast a row is flown, µm/s."""
        return abs(self.step) / self.dwell

    @property
    def run_up(self) -> float:
        """Way from rest to the first trigger, µm: the acceleration's, and some at full speed."""
        return self.velocity**2 / (2 * self.acceleration) + SETTLING * self.velocity

    @property
    def points(self) -> int:
        """Points in all."""
        return self.rows * self.columns

    @cached_property
    def lines(self) -> tuple[Line, ...]:
        """The rows in the order they are flown, odd ones backwards if it is a snake."""
        made = []
        for number, slow in enumerate(np.linspace(self.slow_start, self.slow_stop, self.rows)):
            backwards = self.snake and number % 2 == 1
            start, step = (self.fast_stop, -self.step) if backwards else (self.fast_start, self.step)
            way = math.copysign(self.run_up, step)
            end = start + self.columns * step + way
            made.append(Line(number, float(slow), float(start), float(step), self.columns, start - way, end))
        return tuple(made)

    @property
    def fast_range(self) -> tuple[float, float]:
        """Lowest and highest position of the fast axis, run-ups and run-outs included, µm."""
        ends = [place for line in self.lines for place in (line.begin, line.end)]
        return min(ends), max(ends)

    def positions(self) -> NDArray[np.float64]:
        """Return where each planned point is, in the order they are flown: (points, 2), slow and fast, µm."""
        steps = np.arange(self.columns)
        rows = [
            np.column_stack([np.full(self.columns, line.slow), line.start + steps * line.step]) for line in self.lines
        ]
        return np.concatenate(rows)

    def duration(self, travel: float) -> float:
        """Return about how long it takes, s, when the stage travels at ``travel`` µm/s between rows."""
        ramp = self.velocity / self.acceleration
        row = self.columns * self.dwell + 2 * (ramp + SETTLING)
        slow_step = abs(self.slow_stop - self.slow_start) / max(self.rows - 1, 1)
        back = 0.0 if self.snake else abs(self.lines[0].end - self.lines[0].begin)
        between = max(slow_step, back) / travel + travel / self.acceleration
        return self.rows * (row + between)

    def check(
        self, *, fast_limits: tuple[float, float], slow_limits: tuple[float, float], maximum_velocity: float
    ) -> None:
        """Raise a SettingsError of one line if the stage can't fly this grid.

        Limits in µm, the fast axis' including its run-ups; ``maximum_velocity`` in µm/s.
        """
        if self.velocity > maximum_velocity:
            raise SettingsError(
                f"{abs(self.step):g} µm in {self.dwell:g} s are {self.velocity:g} µm/s, the stage flies "
                f"{maximum_velocity:g} at most (dwell of {abs(self.step) / maximum_velocity:.3g} s or more)"
            )
        low, high = self.fast_range
        if low < fast_limits[0] or high > fast_limits[1]:
            raise SettingsError(
                f"the fast axis would go {low:g} … {high:g} µm with run-ups of {self.run_up:.3g} µm, its limits are "
                f"{fast_limits[0]:g} … {fast_limits[1]:g} µm (smaller grid, or longer dwell for a shorter run-up)"
            )
        low, high = sorted((self.slow_start, self.slow_stop))
        if low < slow_limits[0] or high > slow_limits[1]:
            raise SettingsError(
                f"the slow axis would go {low:g} … {high:g} µm, its limits are "
                f"{slow_limits[0]:g} … {slow_limits[1]:g} µm"
            )
