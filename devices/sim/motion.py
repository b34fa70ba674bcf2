"""One axis in motion: positions, crossings and arrivals as functions of time, without a clock."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ...workers.errors import DetectorError


@dataclass(frozen=True)
class Segment:
    """A stretch of constant acceleration, from ``begin`` s after the trajectory's start on."""

    begin: float
    position: float
    velocity: float
    acceleration: float


@dataclass(frozen=True)
class Trajectory:
    """A way from ``start`` to ``target`` in one direction; its times count from its own start.

    Nothing in it depends on when it is flown. So whatever is derived from it – the position at which the n-th trigger
    fell, the time between two triggers – is the same to the bit each time the same move is made.

    Examples
    --------
    >>> move = Trajectory.trapezoid(0.0, 10.0, velocity=5.0, acceleration=50.0)
    >>> move.duration
    2.1
    >>> round(move.position(move.crossing(2.5)), 9)
    2.5
    """

    start: float
    target: float
    duration: float
    segments: tuple[Segment, ...]

    @classmethod
    def trapezoid(cls, start: float, target: float, velocity: float, acceleration: float) -> Trajectory:
        """Return the way that starts and ends at rest; a short one never reaches ``velocity`` and is a triangle."""
        distance = abs(target - start)
        sign = math.copysign(1.0, target - start)
        if distance == 0.0:
            return cls(start, target, 0.0, ())
        ramp = velocity / acceleration
        if velocity * ramp >= distance:
            ramp = math.sqrt(distance / acceleration)
            peak, cruise = acceleration * ramp, 0.0
        else:
            peak, cruise = velocity, distance / velocity - ramp
        covered = 0.5 * peak * ramp
        return cls(
            start,
            target,
            2.0 * ramp + cruise,
            (
                Segment(0.0, start, 0.0, sign * acceleration),
                Segment(ramp, start + sign * covered, sign * peak, 0.0),
                Segment(ramp + cruise, target - sign * covered, sign * peak, -sign * acceleration),
            ),
        )

    @classmethod
    def braking(cls, start: float, velocity: float, acceleration: float) -> Trajectory:
        """Return the way to the nearest halt from ``velocity`` at ``start``."""
        if velocity == 0.0:
            return cls(start, start, 0.0, ())
        ramp = abs(velocity) / acceleration
        segment = Segment(0.0, start, velocity, math.copysign(acceleration, -velocity))
        return cls(start, start + 0.5 * velocity * ramp, ramp, (segment,))

    @property
    def direction(self) -> int:
        """+1 up, −1 down, 0 for no way at all."""
        return (self.target > self.start) - (self.target < self.start)

    def _segment(self, time: float) -> Segment:
        found = self.segments[0]
        for segment in self.segments[1:]:
            if time >= segment.begin:
                found = segment
        return found

    def position(self, time: float) -> float:
        """Return the position ``time`` s after the start; at rest before and after."""
        if time <= 0.0 or not self.segments:
            return self.start if time <= 0.0 else self.target
        if time >= self.duration:
            return self.target
        segment = self._segment(time)
        since = time - segment.begin
        place = segment.position + since * (segment.velocity + 0.5 * segment.acceleration * since)
        low, high = min(self.start, self.target), max(self.start, self.target)
        return min(max(place, low), high)  # rounding must not carry it past its ends

    def velocity(self, time: float) -> float:
        """Return the signed velocity ``time`` s after the start."""
        if time < 0.0 or time >= self.duration:
            return 0.0
        segment = self._segment(time)
        return segment.velocity + segment.acceleration * (time - segment.begin)

    def crossing(self, position: float) -> float | None:
        """Return when the axis is first at ``position``, in s after the start; None if the way doesn't lead there."""
        if not min(self.start, self.target) <= position <= max(self.start, self.target):
            return None
        if position == self.start:
            return 0.0
        sign = self.direction
        last = self.segments[0]
        for segment in self.segments[1:]:
            if sign * (position - segment.position) >= 0.0:
                last = segment
        distance = sign * (position - last.position)
        speed, gain = abs(last.velocity), sign * last.acceleration
        # The smaller root of speed·t + gain·t²/2 = distance, in the form that loses no digits when gain is small.
        root = math.sqrt(max(speed * speed + 2.0 * gain * distance, 0.0))
        since = 2.0 * distance / (speed + root) if speed + root > 0.0 else 0.0
        return min(last.begin + since, self.duration)


class Axis:
    """A motor: limits, velocity, acceleration and where it is at any time, in µm and s.

    Times are those of whatever clock the caller has.

    Examples
    --------
    >>> axis = Axis(velocity=10.0, acceleration=100.0, limits=(-50.0, 50.0))
    >>> _ = axis.move(5.0, at=100.0)
    >>> axis.arrival
    100.6
    >>> axis.position(100.6)
    5.0
    """

    def __init__(
        self,
        *,
        position: float = 0.0,
        velocity: float = 1000.0,
        acceleration: float = 10_000.0,
        limits: tuple[float, float] = (-1000.0, 1000.0),
    ) -> None:
        self.cruise = velocity
        self.acceleration = acceleration
        self.limits = limits
        self._flight = Trajectory(position, position, 0.0, ()), -math.inf

    @property
    def flight(self) -> tuple[Trajectory, float]:
        """The present way and when it began, read together: another thread may replace both at once."""
        return self._flight

    @property
    def trajectory(self) -> Trajectory:
        """The present way; of no length before the first move."""
        return self._flight[0]

    @property
    def began(self) -> float:
        """When the present way began; −inf before the first move."""
        return self._flight[1]

    @property
    def target(self) -> float:
        """Where the axis goes, or where it rests."""
        return self.trajectory.target

    @property
    def arrival(self) -> float:
        """When the axis is at rest again; −inf if it never moved."""
        trajectory, began = self._flight
        return began + trajectory.duration

    def position(self, time: float) -> float:
        """Return where the axis is."""
        trajectory, began = self._flight
        return trajectory.position(time - began)

    def velocity(self, time: float) -> float:
        """Return its signed velocity."""
        trajectory, began = self._flight
        return trajectory.velocity(time - began)

    def moving(self, time: float) -> bool:
        """Say whether it is on its way."""
        return time < self.arrival

    def crossing(self, position: float, after: float = -math.inf) -> float | None:
        """Return when the present move has the axis at ``position``, if that is not before ``after``."""
        trajectory, began = self._flight
        local = trajectory.crossing(position)
        if local is None or began + local < after:
            return None
        return began + local

    def move(self, target: float, at: float) -> Trajectory:
        """Start a move.

        Raises
        ------
        DetectorError
            The target is beyond a limit or no number, or the axis is moving.
        """
        low, high = self.limits
        if not math.isfinite(target):
            raise DetectorError(f"target {target} is not a position")
        if not low <= target <= high:
            which, limit = ("below UnitLimitMin", low) if target < low else ("above UnitLimitMax", high)
            raise DetectorError(f"target {target:g} um is {which} {limit:g} um")
        if self.moving(at):
            raise DetectorError(f"moving to {self.target:g} um; StopMove or wait before a move to {target:g} um")
        trajectory = Trajectory.trapezoid(self.target, target, self.cruise, self.acceleration)
        self._flight = trajectory, at
        return trajectory

    def stop(self, at: float) -> Trajectory:
        """Brake; the axis rests after its deceleration, still within its way."""
        if self.moving(at):
            way = self.trajectory
            braking = Trajectory.braking(self.position(at), self.velocity(at), self.acceleration)
            if (braking.target - way.target) * way.direction > 0.0:
                return way  # it is already braking towards its target
            self._flight = braking, at
        return self.trajectory
