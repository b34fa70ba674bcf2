"""Fly scans: the stage moves on while the PiLC triggers the detectors as the encoder crosses each point."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any
from uuid import uuid4

import bluesky.plan_stubs as bps
import bluesky.preprocessors as bpp
import msgspec
from bluesky.utils import FailedStatus, MsgGenerator

from ..devices.assets import FlyInfo, LineInfo
from ..devices.eiger import Eiger
from ..devices.pilc import PiLC
from ..devices.stage import StageAxis
from ..devices.xspress3 import Xspress3
from ..workers import recipes
from ..workers.errors import DetectorError, SettingsError
from .trajectory import Grid, Line

STREAM = "primary"

PERIOD = 0.25
"""s between two collects."""

TICK = 0.01
"""s between two looks at a status."""

SPARE_LINES = 10
"""Lines that may be flown again. Detectors are armed once for the whole scan, for that many triggers more."""

STRAGGLERS = 2.0
"""s without a new frame after which the detectors are told to end, and frames still missing are missing."""

LATE = 2.0
"""s after the stage has arrived in which the card must have given its last trigger."""

FlyDetector = Eiger | Xspress3 | PiLC

logger = logging.getLogger("haltere.plans")


def fly_grid(
    detectors: Sequence[FlyDetector],
    slow_motor: StageAxis,
    start: float,
    stop: float,
    num: int,
    fast_motor: StageAxis,
    fast_start: float,
    fast_stop: float,
    fast_num: int,
    *,
    dwell: float,
    snake: bool = True,
    md: Mapping[str, Any] | None = None,
) -> MsgGenerator[str | None]:
    """Fly a grid: rows along the fast axis, one after the other along the slow one.

    The k-th point of a row is triggered as the fast encoder crosses ``fast_start + k * step``; the exposure begins
    there and lasts ``dwell`` less the detectors' dead time. All detectors write into the stream ``primary``.

    Each row is a checkpoint. A pause in the middle of a row stops the stage; the row is flown again after the resume,
    and the frames of both attempts stay in the run, with the positions that were measured.

    Parameters
    ----------
    detectors
        What takes data. Exactly one of them is the PiLC that gives the triggers.
    slow_motor
        Moves between rows.
    start, stop
        First and last row, µm.
    num
        Rows, 1 or more.
    fast_motor
        Flies along a row.
    fast_start, fast_stop
        First and last point of a row, µm.
    fast_num
        Points in a row, 2 or more.
    dwell
        Time per point, s.
    snake
        Fly every other row backwards.
    md
        Metadata: ``sample``, ``recipes``, …

    Returns
    -------
    str
        The run's uid.

    Raises
    ------
    SettingsError
        Before the run opens: an argument can't be. It says which and what would be.
    ReductionError
        Before the run opens: one of ``md["recipes"]`` can't be.
    DetectorError
        An instrument is off, refused, or missed triggers.
    """
    flyers, pilc = check_detectors(detectors)
    for role, motor in (("slow_motor", slow_motor), ("fast_motor", fast_motor)):
        if not isinstance(motor, StageAxis):
            raise SettingsError(f"{role}: {getattr(motor, 'name', motor)!s} isn't a motor of the stage")
    if slow_motor is fast_motor:
        raise SettingsError(f"slow_motor and fast_motor are both {fast_motor.name}: name two axes")
    for device in (*flyers, slow_motor, fast_motor):
        device.wait_for_connection()
    encoder = pilc.encoder_of(fast_motor)
    pilc.axis_of(slow_motor)
    acceleration = float(fast_motor.acceleration.get())
    grid = Grid(start, stop, num, fast_start, fast_stop, fast_num, dwell, acceleration, snake)
    grid.check(
        fast_limits=fast_motor.limits, slow_limits=slow_motor.limits, maximum_velocity=fast_motor.maximum_velocity
    )
    livetime, deadtime = split_dwell(flyers, dwell)

    prefix = f"fly-{uuid4().hex[:8]}"
    spare = SPARE_LINES * grid.columns
    info = FlyInfo(n=grid.points, livetime=livetime, deadtime=deadtime, spare=spare, prefix=prefix)
    lines = [
        LineInfo(
            n=line.n, livetime=livetime, deadtime=deadtime, prefix=prefix,
            start=line.start, step=line.step, encoder=encoder, lines=grid.rows,
        )
        for line in grid.lines
    ]  # fmt: skip
    md = dict(md or {})
    if "recipes" in md:
        md["recipes"] = [msgspec.to_builtins(recipe) for recipe in recipes.parse(md["recipes"])]
    scan = _GridScan(flyers, pilc, slow_motor, fast_motor, grid, info, lines)
    uid: str | None = yield from scan.plan({**start_document(scan), **md})
    return uid


def check_detectors(detectors: Sequence[Any]) -> tuple[list[FlyDetector], PiLC]:
    """Return the detectors and which of them triggers.

    Raises
    ------
    SettingsError
        One can't fly, stands twice, or there isn't exactly one PiLC.
    """
    if isinstance(detectors, str | Mapping) or not isinstance(detectors, Sequence):
        raise SettingsError(f"detectors: expected a list, got {getattr(detectors, 'name', detectors)!s} (try [ ])")
    found: list[FlyDetector] = []
    for detector in detectors:
        if not isinstance(detector, FlyDetector):
            raise SettingsError(f"{getattr(detector, 'name', detector)!s} can't fly; Eiger, Xspress3 and PiLC can")
        if any(detector.name == other.name for other in found):
            raise SettingsError(f"{detector.name} stands twice among the detectors")
        found.append(detector)
    pilcs = [detector for detector in found if isinstance(detector, PiLC)]
    if len(pilcs) != 1:
        raise SettingsError(f"{len(pilcs)} PiLCs among the detectors; exactly one gives the triggers")
    return found, pilcs[0]


def split_dwell(detectors: Sequence[FlyDetector], dwell: float) -> tuple[float, float]:
    """Return exposure and dead time of a point, s, such that all detectors can follow.

    Raises
    ------
    SettingsError
        One is slower.
    """
    for detector in detectors:
        if dwell < detector.minimum_dwell:
            raise SettingsError(
                f"dwell = {dwell:g} s is too short for {detector.name}, which needs {detector.minimum_dwell:g} s"
            )
    deadtime = max(detector.deadtime for detector in detectors)
    if deadtime >= dwell:
        slowest = max(detectors, key=lambda detector: detector.deadtime)
        raise SettingsError(f"dwell = {dwell:g} s is all dead time of {slowest.name}, {deadtime:g} s")
    return dwell - deadtime, deadtime


def start_document(scan: _GridScan) -> dict[str, Any]:
    """Return what the start document says of the grid."""
    grid, pilc = scan.grid, scan.pilc
    slow, fast = scan.slow, scan.fast
    axes = [f"{pilc.name}_{pilc.axis_of(motor)}" for motor in (slow, fast)]
    extents = [sorted((grid.slow_start, grid.slow_stop)), sorted((grid.fast_start, grid.fast_stop))]
    return {
        "plan_name": "fly_grid",
        "detectors": [detector.name for detector in scan.detectors],
        "motors": [slow.name, fast.name],
        "shape": [int(grid.rows), int(grid.columns)],
        "extents": [[float(place) for place in extent] for extent in extents],
        "snaking": [False, bool(grid.snake)],
        "num_points": int(grid.points),
        "dwell": float(grid.dwell),
        "hints": {"dimensions": [([axis], STREAM) for axis in axes], "gridding": "rectilinear"},
        "plan_args": {
            "slow_motor": slow.name, "start": float(grid.slow_start), "stop": float(grid.slow_stop),
            "num": int(grid.rows),
            "fast_motor": fast.name, "fast_start": float(grid.fast_start), "fast_stop": float(grid.fast_stop),
            "fast_num": int(grid.columns),
            "dwell": float(grid.dwell), "snake": bool(grid.snake),
        },
    }  # fmt: skip


class _GridScan:
    """One scan's plan, in steps.

    The RunEngine forgets a wait that a pause cuts short, and a status may fail too late to fail the plan. So every
    status is kept and asked here, and what a wait was for is looked at again after it. For the same reason nothing is
    replayed: the plan itself sees what an interruption spoiled, and does that again.
    """

    def __init__(
        self,
        detectors: list[FlyDetector],
        pilc: PiLC,
        slow: StageAxis,
        fast: StageAxis,
        grid: Grid,
        info: FlyInfo,
        lines: list[LineInfo],
    ) -> None:
        self.detectors = detectors
        self.pilc = pilc
        self.slow = slow
        self.fast = fast
        self.grid = grid
        self.info = info
        self.lines = lines
        self._others = [detector for detector in detectors if detector is not pilc]
        self._travel = float(fast.velocity.get())
        self._progress = f"progress-{uuid4().hex[:8]}"
        self._shown = False
        self._flown_again = 0
        self._collected = 0.0

    def plan(self, md: dict[str, Any]) -> MsgGenerator[Any]:
        """Stage, open the run, fly, close."""
        flight = bpp.contingency_wrapper(
            self._say_why(bpp.rewindable_wrapper(self._scan(), False)),
            except_plan=self._give_up,
            final_plan=self._restore,
        )
        return (yield from bpp.stage_wrapper(bpp.run_wrapper(flight, md=md), self.detectors))

    @staticmethod
    def _say_why(plan: MsgGenerator[Any]) -> MsgGenerator[Any]:
        """Let what made a status fail go into the stop document, instead of which status failed."""
        try:
            return (yield from plan)
        except FailedStatus as failure:
            raise (failure.__cause__ or failure) from None

    def _scan(self) -> MsgGenerator[Any]:
        statuses = []
        for detector in self._others:
            statuses.append((yield from bps.prepare(detector, self.info, wait=False)))
        yield from self._finish(*statuses)
        # The card's describe needs no scan; the others are armed now, so the descriptor has their series.
        yield from bps.declare_stream(*self.detectors, name=STREAM, collect=True)
        for detector in self._others:
            yield from self._finish((yield from bps.kickoff(detector, wait=False)))
        for line, info in zip(self.grid.lines, self.lines, strict=True):
            yield from self._line(line, info)
        yield from self._stragglers()
        for detector in self.detectors:
            statuses.append((yield from bps.complete(detector, wait=False)))
        yield from self._finish(*statuses)
        yield from self._collect()
        self._compare()

    # --- one line ----------------------------------------------------------------------------------------------------

    def _line(self, line: Line, info: LineInfo) -> MsgGenerator[Any]:
        """Fly a line, again if it was interrupted."""
        where = f"line {line.number + 1} of {self.grid.rows}"
        while True:
            yield from bps.checkpoint()
            for detector in self._others:
                detector.check_armed()
            yield from self._velocity(self._travel)
            yield from self._arrive((self.fast, line.begin), (self.slow, line.slow))
            yield from self._velocity(self.grid.velocity)
            # Armed before the stage moves: in this mode the card compares positions from then on.
            yield from self._finish((yield from bps.prepare(self.pilc, info, wait=False)))
            yield from self._finish((yield from bps.kickoff(self.pilc, wait=False)))
            yield from self._show_progress()
            if not self.pilc.interrupted:
                yield from self._along(line)
            fired = self.pilc.fired
            if fired >= line.n:
                return
            if not self.pilc.interrupted:
                raise DetectorError(
                    f"{self.pilc.name}: {fired} of {line.n} triggers in {where} "
                    f"(does encoder {info.encoder} read {self.fast.name}?)"
                )
            self._flown_again += fired > 0
            if self._flown_again > SPARE_LINES:
                raise DetectorError(f"{where}: interrupted, and no spare triggers are left (start the scan anew)")
            if fired:
                print(f"{where}: interrupted after {fired} of {line.n} points, flown again; both are kept.")

    def _along(self, line: Line) -> MsgGenerator[Any]:
        """Move along the line until its last trigger was given and the stage rests."""
        recorded = self.pilc.line
        assert recorded is not None  # kicked off, it has one
        move = yield from bps.abs_set(self.fast, line.end, wait=False)
        deadline = float("inf")
        while not (move.done and recorded.done):
            yield from self._idle()
            if move.done and deadline == float("inf"):
                deadline = time.monotonic() + LATE
            if time.monotonic() > deadline:
                yield from bps.abs_set(self.pilc.arm, 0, wait=False)
                deadline = float("inf")
        self._raise_if_failed(recorded)
        self._raise_if_failed(move)
        for detector in self._others:
            detector.check_armed()

    def _arrive(self, *targets: tuple[StageAxis, float]) -> MsgGenerator[Any]:
        """Move until all are there, however often a pause stops them on the way."""
        while waiting := [(motor, place) for motor, place in targets if abs(motor.position - place) > motor.tolerance]:
            moves = []
            for motor, place in waiting:
                moves.append((yield from bps.abs_set(motor, place, wait=False)))
            yield from self._finish(*moves)

    def _velocity(self, velocity: float) -> MsgGenerator[Any]:
        yield from self._finish((yield from bps.abs_set(self.fast.velocity, velocity, wait=False)))

    # --- waiting and collecting --------------------------------------------------------------------------------------

    def _finish(self, *statuses: Any) -> MsgGenerator[Any]:
        """Wait for all, and raise what one failed with."""
        while not all(status.done for status in statuses):
            yield from self._idle()
        for status in statuses:
            self._raise_if_failed(status)

    @staticmethod
    def _raise_if_failed(status: Any) -> None:
        # A status is done before it has looked at its outcome; a moment later it knows.
        error = status.exception(timeout=5.0)
        if error is not None:
            raise error

    def _idle(self) -> MsgGenerator[Any]:
        """Let a moment pass, and collect when it is time to."""
        yield from bps.sleep(TICK)
        if time.monotonic() - self._collected > PERIOD:
            yield from self._collect()

    def _collect(self) -> MsgGenerator[Any]:
        """Collect whatever all detectors have. One collect ends where a detector's data file does."""
        self._collected = time.monotonic()
        while self.pilc.assets is not None and (
            min(detector.get_index() for detector in self.detectors) > self.pilc.assets.emitted
        ):
            yield from bps.collect(*self.detectors, name=STREAM, return_payload=False)

    def _stragglers(self) -> MsgGenerator[Any]:
        """Wait for frames that were triggered and are still on their way."""
        wanted = self.pilc.frames()
        arrived, changed = -1, time.monotonic()
        counting = [detector for detector in self._others if detector.counts]
        while (now := min((detector.acquired() for detector in counting), default=wanted)) < wanted:
            if now > arrived:
                arrived, changed = now, time.monotonic()
            elif time.monotonic() - changed > STRAGGLERS:
                return  # some detectors show their frames only after the end
            yield from self._idle()

    def _compare(self) -> None:
        """Raise a DetectorError if a detector saw fewer or more triggers than the card gave."""
        wanted = self.pilc.frames()
        for detector in self._others:
            if detector.counts and (found := detector.frames()) != wanted:
                raise DetectorError(
                    f"{detector.name}: {found} frames for {wanted} triggers, so its frames can't be told to positions "
                    "(is the trigger cable in, or the dwell too short?)"
                )

    def _show_progress(self) -> MsgGenerator[Any]:
        """Give the RunEngine the whole scan's status, for its progress bar, and for failing at once if it fails."""
        if not self._shown:
            self._shown = True
            yield from bps.complete(self.pilc, group=self._progress, wait=False)
            yield from bps.wait(group=self._progress, timeout=TICK, error_on_timeout=False)

    # --- the end -----------------------------------------------------------------------------------------------------

    def _give_up(self, error: Exception) -> MsgGenerator[Any]:
        """Stop all that takes data, keep what there is; ``error`` goes on its way afterwards.

        The RunEngine stops the motors, and as a success: a move that failed now would hide what went wrong.
        """
        for device in (self.pilc, *self._others):
            try:
                yield from bps.stop(device)
            except (DetectorError, FailedStatus) as failure:
                self._warn("while stopping", failure, error)
        try:
            yield from self._collect()
        except (DetectorError, FailedStatus, OSError) as failure:
            self._warn("while collecting what there is", failure, error)

    @staticmethod
    def _warn(when: str, failure: Exception, known: Exception | None = None) -> None:
        """Say what else failed, unless it is what the plan fails with anyway."""
        cause = (failure.__cause__ if isinstance(failure, FailedStatus) else None) or failure
        if str(cause) != str(known):
            logger.warning("%s: %s", when, cause)

    def _restore(self) -> MsgGenerator[Any]:
        """Give the stage its velocity back, and take the progress bar away."""
        try:
            yield from self._velocity(self._travel)
        except (DetectorError, FailedStatus) as failure:
            self._warn("while restoring", failure)
        status = self.pilc.complete()
        if self._shown and status.done and status.success:
            # Registered again, because an interruption may have made the RunEngine forget it.
            yield from bps.complete(self.pilc, group=self._progress, wait=False)
            yield from bps.wait(group=self._progress, timeout=1.0, error_on_timeout=False)
