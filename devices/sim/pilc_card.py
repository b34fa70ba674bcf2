"""The trigger generator's card: it watches the encoders, fires, and captures what they read."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ...workers.errors import DetectorError, FileError
from .card_file import CardFiles
from .encoder import noise
from .stage import SimulatedStage
from .triggers import Trigger, TriggerSequence, TriggerSettings

MAX_RATE: Final = 10_000.0
"""Triggers/s that the card can give."""

ENCODERS: Final = 5

MAX_TRIGGERS: Final = 4_000_000
"""Most triggers of one Arm: what the Tango arrays can show."""

SHORTEST_WAIT: Final = 0.0005
"""s. Waking for each of 10,000 triggers a second would cost a core; those of half a millisecond go in one burst."""

COUNT_RATE: Final = 1e6
"""Counts/s of the ion chamber on the card's counter."""

TriggerListener = Callable[[int, float, float, float], None]
"""``listener(trigger_number, time, x, y)``: number from 0 within the Arm, s since its first, encoder x and y in µm."""


@dataclass(frozen=True)
class Capture:
    """What is written after an Arm: where, and with which other columns."""

    folder: str
    prefix: str
    per_file: int
    masked: int
    extra: Mapping[str, Any]


class TriggerCard:
    """One trigger generator with encoders on a stage.

    Triggers fall where the axes' ideal motion has them, and are fired in real time by one thread, which waits for the
    next one or for a change of motion. Late ones go in a burst; none is lost.

    Parameters
    ----------
    stage : SimulatedStage
    encoders : tuple of str
        The axis behind encoder 1, 2, …; the rest read 0.
    seed : int
        Of the encoders' noise.
    """

    def __init__(self, stage: SimulatedStage, encoders: tuple[str, ...] = ("x", "y"), seed: int = 0) -> None:
        self.stage = stage
        self.encoders = encoders
        self.seed = seed
        self.listeners: list[TriggerListener] = []
        self.changed: Callable[[], None] = lambda: None
        """Called from the card's thread, without any lock, when state or counter have changed."""
        self.ended: Callable[[], None] = lambda: None
        """Called from the card's thread when an Arm has ended, before the state says so."""
        self.files = CardFiles()
        self.fault = ""
        self.settings: TriggerSettings | None = None
        self.fired = 0
        self._axes = [stage.axes[name] for name in encoders]
        self._names = (encoders.index("x"), encoders.index("y"))
        self._positions: NDArray[np.float64] = np.empty((0, ENCODERS))
        self._times: NDArray[np.float64] = np.empty(0)
        self._counts: NDArray[np.float64] = np.empty(0)
        self._sequence: TriggerSequence | None = None
        self._capture: Capture | None = None
        self._disarmed = False
        self._closing = False
        stage.before_change.append(self._settle)
        self._thread = threading.Thread(target=self._run, name="pilc", daemon=True)
        self._thread.start()

    # --- what clients see --------------------------------------------------------------------------------------------

    @property
    def armed(self) -> bool:
        """Whether it still waits for triggers or writes its file."""
        return self._sequence is not None

    @property
    def remaining(self) -> int:
        """Triggers of the latest Arm that have not fallen."""
        return self.settings.count - self.fired if self.settings else 0

    def captured(self) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """Return positions (n, 5) in µm, times (n,) in s since the first, and counts (n,), of the latest Arm."""
        n = self.fired  # rows below it are never written again
        return self._positions[:n], self._times[:n], self._counts[:n]

    def arm(self, settings: TriggerSettings, capture: Capture | None) -> None:
        """Wait for triggers from now on.

        Raises
        ------
        DetectorError
            It is armed, or the settings are beyond the card.
        FileError
            The capture's folder can't be written; the card is then at fault.
        """
        settings.check(MAX_RATE, self._axes[settings.axis].cruise)
        if settings.count > MAX_TRIGGERS:
            raise DetectorError(f"NbTriggers {settings.count} is above {MAX_TRIGGERS}")
        if capture:
            try:
                self.files.check(capture.folder)
            except FileError as error:
                self.fault = str(error)
                self.changed()
                raise
        with self.stage.changed:
            if self._sequence is not None:
                raise DetectorError("armed already; set Arm to 0 first")
            self.fault = ""
            self._positions = np.zeros((settings.count, ENCODERS))
            self._times = np.zeros(settings.count)
            self._counts = np.zeros(settings.count)
            self.settings, self.fired, self._capture, self._disarmed = settings, 0, capture, False
            self._sequence = TriggerSequence(settings, self._axes, self.stage.clock())
            self.stage.changed.notify_all()

    def disarm(self) -> None:
        """End the Arm now; what was captured is written."""
        with self.stage.changed:
            self._disarmed = True
            self.stage.changed.notify_all()

    def close(self) -> None:
        """End the Arm, write its file and stop the thread; idempotent."""
        with self.stage.changed:
            self._closing = self._disarmed = True
            self.stage.changed.notify_all()
        self._thread.join(10.0)

    # --- the thread --------------------------------------------------------------------------------------------------

    def _settle(self, now: float) -> None:
        """Fire what has fallen by ``now``; the stage's lock is held."""
        if self._sequence is not None and not self._disarmed:
            for trigger in self._sequence.advance(now):
                self._fire(trigger)

    def _fire(self, trigger: Trigger) -> None:
        x, y = (trigger.positions[index] for index in self._names)
        row = self._positions[trigger.number]
        for index, place in enumerate(trigger.positions):
            row[index] = place + noise(self.seed, index + 1, x, y)
        self._times[trigger.number] = trigger.since
        pulse = self.settings.pulse if self.settings else 0.0
        self._counts[trigger.number] = round(COUNT_RATE * pulse * (1.0 + noise(self.seed, ENCODERS + 1, x, y)))
        self.fired = trigger.number + 1
        measured = float(row[self._names[0]]), float(row[self._names[1]])
        for listener in self.listeners:
            listener(trigger.number, trigger.since, *measured)

    def _run(self) -> None:
        reported = 0.0
        while True:
            with self.stage.changed:
                self._settle(self.stage.clock())
                sequence = self._sequence
                ended = sequence is not None and (sequence.complete or self._disarmed)
                if not ended:
                    if self._closing:
                        return
                    due = sequence.next_time() if sequence is not None else None
                    self.stage.changed.wait(None if due is None else max(due - self.stage.clock(), SHORTEST_WAIT))
            if ended:
                self._finish()
                self.changed()
            elif sequence is not None and self.stage.clock() - reported > 0.1:
                reported = self.stage.clock()
                self.changed()

    def _finish(self) -> None:
        capture, settings = self._capture, self.settings
        if capture is not None and settings is not None:
            try:
                self._write(capture, settings)
            except FileError as error:
                self.fault = str(error)
        self.ended()
        with self.stage.changed:
            self._sequence = None

    def _write(self, capture: Capture, settings: TriggerSettings) -> None:
        positions, times, counts = self.captured()
        columns: dict[str, Any] = {f"encoder_{index + 1}": positions[:, index] for index in range(ENCODERS)}
        columns["counter"] = counts
        kept = {name: values for bit, (name, values) in enumerate(columns.items()) if not capture.masked >> bit & 1}
        kept |= {"time": times, "trigger": np.arange(1, self.fired + 1, dtype=np.int64)} | dict(capture.extra)
        self.files.write(capture.folder, capture.prefix, self.fired, capture.per_file, kept)
