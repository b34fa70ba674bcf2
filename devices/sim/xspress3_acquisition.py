"""The Xspress3's acquisition: gates or time in, frames out to its file."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from ...workers.errors import DetectorError, FileError
from .fluorescence import BINS, Reading, Spectrometer
from .xspress3_file import Xspress3File

RING: Final = 16_384
"""Frames that the box buffers; gates beyond are lost, counted, and a fault."""

READ_PERIOD: Final = 0.02
"""s between two read-outs of the box; what has come by then is read together."""

FLUSH_PERIOD: Final = 0.2
"""s that a frame waits at most before readers of the file see it."""

Position = tuple[float, float]


@dataclass(frozen=True)
class AcquisitionSettings:
    """What was set before StartAcquisition."""

    frames: int
    exposure: float
    gated: bool
    folder: str
    prefix: str
    per_file: int = 0
    bins: int = BINS
    masked: int = 0
    save: bool = True
    compress: bool = True

    def check(self) -> None:
        """Raise DetectorError for what the box can't do."""
        if self.frames < 1:
            raise DetectorError(f"NbFrames is {self.frames}; set 1 or more")
        if not self.gated and self.exposure <= 0.0:
            raise DetectorError(f"ExposureTime is {self.exposure:g} s; set a time above 0")
        if not 0 < self.bins <= BINS:
            raise DetectorError(f"MCALength is {self.bins}; set 1 to {BINS}, or 0 for all")
        if self.save and not (self.folder and self.prefix):
            raise DetectorError("FileDir or FilePrefix is empty; set both, or SaveData to false")

    def path(self, number: int) -> Path:
        """Return where file ``number`` goes."""
        name = f"{self.prefix}_{number:05d}.nxs" if self.per_file > 0 else f"{self.prefix}.nxs"
        return Path(self.folder) / name


class Xspress3Acquisition:
    """The box: one thread per acquisition, which waits for gates, for time, or for the next flush.

    Parameters
    ----------
    spectrometer : Spectrometer
    position : callable
        Says where the sample is, (x, y) in µm, when frames are timed internally.
    clock : callable, optional
        Returns s.
    """

    def __init__(
        self,
        spectrometer: Spectrometer,
        position: Callable[[], Position] = lambda: (0.0, 0.0),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.spectrometer = spectrometer
        self.position = position
        self.clock = clock
        self.changed: Callable[[], None] = lambda: None
        """Called from the acquisition's thread, without any lock, when the state or the frame number has changed."""
        self.fault = ""
        self.frames = 0
        """Frames read of the latest acquisition."""
        self.written = 0
        """Those that readers of the file see."""
        self.lost_gates = 0
        """Gates that a full buffer couldn't take, of the latest acquisition."""
        self.ignored_gates = 0
        """Gates that came while none was awaited, ever."""
        self.latest: Reading | None = None
        self._settings: AcquisitionSettings | None = None
        self._wake = threading.Condition()
        self._gates: deque[tuple[float, Position, float]] = deque()
        self._gates_taken = 0
        self._stopping = False
        self._thread: threading.Thread | None = None

    @property
    def running(self) -> bool:
        """Whether frames are awaited or being written."""
        return self._settings is not None

    @property
    def load(self) -> float:
        """How full the buffer is, %."""
        return 100.0 * len(self._gates) / RING

    def start(self, settings: AcquisitionSettings) -> None:
        """Start an acquisition; when it returns gates are awaited and the file is there.

        Raises
        ------
        DetectorError
            One is running, or the settings are beyond the box.
        FileError
            The file can't be made; the box is then at fault.
        """
        settings.check()
        with self._wake:
            if self._settings is not None:
                raise DetectorError("acquiring already; StopAcquisition first")
            file = None
            if settings.save:
                try:
                    file = self.open_file(settings, 0)
                except FileError as error:
                    self.fault = str(error)
                    raise
            self.fault, self.frames, self.written, self.lost_gates = "", 0, 0, 0
            self._gates.clear()
            self._gates_taken = 0
            self._stopping = False
            self._settings = settings
            self._thread = threading.Thread(target=self._run, args=(settings, file), name="xspress3", daemon=True)
            self._thread.start()

    def open_file(self, settings: AcquisitionSettings, number: int) -> Xspress3File:
        """Return file ``number`` of an acquisition, new; raises FileError."""
        channels = [each for each in range(self.spectrometer.channels) if not settings.masked >> each & 1]
        return Xspress3File(settings.path(number), channels, settings.bins, compress=settings.compress)

    def gate(self, position: Position, seconds: float) -> bool:
        """Open the gate input for ``seconds`` while the sample is at ``position``; never blocks.

        Returns whether a frame will come of it.
        """
        with self._wake:
            settings = self._settings
            if settings is None or not settings.gated or self._gates_taken >= settings.frames or seconds <= 0.0:
                self.ignored_gates += 1
                return False
            if len(self._gates) >= RING:
                self.lost_gates += 1
                return False
            self._gates.append((self.clock() + seconds, position, seconds))
            self._gates_taken += 1
            self._wake.notify()
            return True

    def end(self) -> None:
        """Ask the acquisition to end; what was read is written, and then it isn't running any more."""
        with self._wake:
            self._stopping = True
            self._wake.notify()

    def stop(self, timeout: float = 10.0) -> None:
        """End the acquisition and wait until its file is closed. Idempotent.

        Not for a Tango command: that holds its device, and the thread's last event waits for the device.
        """
        self.end()
        if self._thread is not None:
            self._thread.join(timeout)

    # --- the thread --------------------------------------------------------------------------------------------------

    def _run(self, settings: AcquisitionSettings, file: Xspress3File | None) -> None:
        self.changed()
        writer = _Writer(self, settings, file)
        try:
            self._acquire(settings, writer)
            if self.lost_gates:
                self.fault = f"buffer of {RING} frames overflowed: {self.lost_gates} gates lost"
        except FileError as error:
            self.fault = str(error)
        try:
            writer.close()
        except FileError as error:
            self.fault = self.fault or str(error)
        with self._wake:
            self._settings = None
        self.changed()

    def _acquire(self, settings: AcquisitionSettings, writer: _Writer) -> None:
        began = self.clock()
        while self.frames < settings.frames:
            exposures = self._await(settings, began, writer.deadline)
            if exposures is None:
                return
            if exposures:
                x, y = (np.array([position[axis] for position, _ in exposures]) for axis in (0, 1))
                rates = self.spectrometer.rates(x, y)
                for (position, seconds), row in zip(exposures, rates, strict=True):
                    reading = self.spectrometer.read(self.frames, *position, row, seconds)
                    writer.take(self.frames + 1, reading)
                    self.latest = reading
                    self.frames += 1
            if writer.flush_if_due():
                self.changed()

    def _await(
        self, settings: AcquisitionSettings, began: float, flush: float | None
    ) -> list[tuple[Position, float]] | None:
        """Return the exposures that have ended, none if a flush is due first; None when stopped."""
        with self._wake:
            while not self._stopping:
                now = self.clock()
                if settings.gated:
                    awaited = settings.frames - self.frames - len(self._gates)
                    if self._gates and (ready := self._ready(now, complete=awaited == 0)):
                        return ready
                    # The last gates are read as soon as they close, the others every READ_PERIOD together.
                    due = self._gates[-1][0] if awaited == 0 else None
                    if self._gates and awaited:
                        due = self._gates[0][0] + READ_PERIOD
                else:
                    period = settings.exposure
                    ended = min(int((now - began) / period), settings.frames)
                    if ended > self.frames:
                        return [(self.position(), period)] * (ended - self.frames)
                    due = max(began + (self.frames + 1) * period, now)
                if flush is not None and now >= flush:
                    return []
                times = [each - now for each in (due, flush) if each is not None]
                self._wake.wait(max(min(times), 0.0002) if times else None)
            # Stopped: exposures that have ended are still read, one that is open is given up.
            return self._closed(self.clock()) or None

    def _ready(self, now: float, *, complete: bool) -> list[tuple[Position, float]]:
        due = self._gates[-1][0] if complete else self._gates[0][0] + READ_PERIOD
        return self._closed(now) if now >= due else []

    def _closed(self, now: float) -> list[tuple[Position, float]]:
        ready = []
        while self._gates and self._gates[0][0] <= now:
            _, position, seconds = self._gates.popleft()
            ready.append((position, seconds))
        return ready


class _Writer:
    """The files of one acquisition, one after the other."""

    def __init__(self, box: Xspress3Acquisition, settings: AcquisitionSettings, file: Xspress3File | None) -> None:
        self._box = box
        self._settings = settings
        self._file = file
        self._files = 1
        self._earlier = 0  # frames in files that are closed
        self._flushed = box.clock()

    @property
    def deadline(self) -> float | None:
        """When the next flush is due; None if nothing waits."""
        return self._flushed + FLUSH_PERIOD if self._file is not None and self._file.waiting else None

    def take(self, number: int, reading: Reading) -> None:
        """Write frame ``number``, counted from 1."""
        if not self._settings.save:
            return
        if self._file is None:
            self._file = self._box.open_file(self._settings, self._files)
            self._files += 1
        self._file.append(number, reading)
        self._box.written = self._earlier + self._file.written
        if self._settings.per_file > 0 and number % self._settings.per_file == 0:
            self.close()

    def flush_if_due(self) -> bool:
        """Flush what has waited for FLUSH_PERIOD."""
        if self._file is None or self.deadline is None or self._box.clock() < self.deadline:
            return False
        self._file.flush()
        self._box.written = self._earlier + self._file.written
        self._flushed = self._box.clock()
        return True

    def close(self) -> None:
        """Close the present file."""
        file, self._file = self._file, None
        if file is not None:
            try:
                file.close()
            finally:
                self._earlier += file.written
                self._box.written = self._earlier
