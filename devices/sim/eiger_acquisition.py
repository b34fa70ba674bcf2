"""The DCU's heart: its states, its triggers, and the thread that turns triggers into frames.

=============  ==================================  ==========================================
from           on                                  to
=============  ==================================  ==========================================
na, any        initialize                          idle
idle           arm                                 ready
ready          trigger, an edge on the input       acquire
acquire        the trigger's images are out        ready, or idle after ntrigger triggers
ready          disarm, cancel, abort               idle
acquire        disarm (after triggers taken),      idle
               cancel, abort (after this frame)
=============  ==================================  ==========================================

An electrical trigger's first image goes out at once, so that no trigger is ever too early for this detector: what it
sends depends on the triggers, not on how busy the computer is. Further images follow at ``frame_time``.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from time import perf_counter
from typing import Any, Final

import numpy as np

from ...workers.wire import simplon
from .eiger_config import Configuration, Refused
from .eiger_stream import StreamSource
from .filewriter import FileWriter, SeriesFiles
from .frames import FrameLibrary

Position = tuple[float, float]

PENDING: Final = 1_000_000
"""Most electrical triggers that wait for their frames; edges beyond are ignored and counted."""

SLACK: Final = 0.0005
"""s; images may leave so much early, because waiting shorter than this costs more than it gains."""

DISARM_SECONDS: Final = 60.0
"""Longest that disarm waits for the frames of triggers taken."""


@dataclass(frozen=True, slots=True)
class Series:
    """What was armed."""

    number: int
    nimages: int
    ntrigger: int
    electrical: bool
    count_time: float
    frame_time: float
    image_appendix: bytes
    streamed: bool
    stored: bool
    begun: float


class Acquisition:
    """Arms, takes triggers, sends frames. All methods may be called from any thread.

    Raises
    ------
    Refused
        From commands that the state, the trigger mode or the configuration forbids.
    """

    def __init__(
        self,
        library: FrameLibrary,
        configuration: Configuration,
        stream: StreamSource,
        writer: FileWriter,
        position: Callable[[], Position],
    ) -> None:
        self._library, self._configuration = library, configuration
        self._stream, self._writer, self._position = stream, writer, position
        self._change = threading.Condition()
        self._pending: deque[Position] = deque()
        self._accepted = 0
        self._completed = 0
        self._ending = ""  # "", "taken" (after the triggers taken) or "now"
        self._series: Series | None = None
        self._thread: threading.Thread | None = None
        self.number = 0
        """The last series' number; it counts on through ``initialize``."""
        self.state = "na"
        self.reason = ""
        self.ignored = 0
        """Electrical triggers that met a detector not armed for them, or complete."""

    # --- commands --------------------------------------------------------------------------------------------------

    def initialize(self) -> None:
        """Go to idle from wherever it is."""
        self._end("now")
        with self._change:
            self.state, self.reason = "idle", ""
        self._writer.clear()

    def arm(self) -> int:
        """Begin a series; return its number."""
        with self._change:
            if self.state != "idle":
                todo = "initialize first" if self.state in ("na", "error") else "disarm first"
                raise Refused(HTTPStatus.BAD_REQUEST, f"arm: the detector is {self.state}, not idle; {todo}")
            self.state = "configure"
        try:
            series = self._begin()
        except BaseException:
            self.state = "idle"
            raise
        with self._change:
            self._pending.clear()
            self._accepted, self._completed, self._ending, self._series = 0, 0, "", series
            self.state = "ready"
            self._thread = threading.Thread(
                target=self._run, args=(series,), name=f"eiger-series-{series.number}", daemon=True
            )
            self._thread.start()
        return series.number

    def trigger(self) -> None:
        """Take a software trigger's images; return when they are out or the series has ended."""
        with self._change:
            series = self._series
            if series is None or self.state not in ("ready", "acquire"):
                raise Refused(HTTPStatus.BAD_REQUEST, f"trigger: the detector is {self.state}, not ready; arm first")
            if series.electrical:
                raise Refused(HTTPStatus.BAD_REQUEST, "trigger: trigger_mode is exts or exte, triggers are electrical")
            if self._accepted >= series.ntrigger:
                raise Refused(HTTPStatus.BAD_REQUEST, f"trigger: all {series.ntrigger} triggers were given")
        position = self._position()
        with self._change:
            if self._series is not series:
                return
            self._accepted += 1
            mine = self._accepted
            self._pending.append(position)
            self._change.notify_all()
            self._change.wait_for(lambda: self._completed >= mine or self._series is not series)

    def external_trigger(self, position: Position, frames: int) -> bool:
        """Take ``frames`` edges at ``position``; return whether all were taken."""
        with self._change:
            series = self._series
            room = 0
            if series is not None and series.electrical and not self._ending:
                room = min(series.ntrigger - self._accepted, PENDING - len(self._pending))
            taken = min(frames, room)
            self._accepted += taken
            self.ignored += frames - taken
            if taken:
                self._pending.extend([position] * taken)
                self._change.notify_all()
            return taken == frames

    def disarm(self) -> int:
        """End the series when the triggers taken so far have their frames."""
        return self._end("taken")

    def cancel(self) -> int:
        """End the series after the frame under way."""
        return self._end("now")

    abort = cancel

    def _end(self, how: str) -> int:
        with self._change:
            thread = self._thread
            if self._series is not None:
                self._ending = how if self._ending != "now" else "now"
                self._change.notify_all()
        if thread is not None:
            thread.join(DISARM_SECONDS)
            if thread.is_alive():
                with self._change:
                    self._ending = "now"
                    self._change.notify_all()
        return self.number

    # --- the series ------------------------------------------------------------------------------------------------

    def _begin(self) -> Series:
        value = self._configuration.value
        detector = self._configuration.modules["detector"]
        self.number += 1
        detector["data_collection_date"].value = time.strftime("%Y-%m-%dT%H:%M:%S.000000")
        config = self._configuration.detector_values()
        series = Series(
            number=self.number,
            nimages=config["nimages"],
            ntrigger=config["ntrigger"],
            electrical=config["trigger_mode"] in ("exts", "exte"),
            count_time=config["count_time"],
            frame_time=config["frame_time"],
            image_appendix=value("stream", "image_appendix").encode(),
            streamed=value("stream", "mode") == "enabled",
            stored=value("filewriter", "mode") == "enabled",
            begun=perf_counter(),
        )
        if series.stored:
            self._writer.open(
                SeriesFiles(
                    series=series.number,
                    pattern=value("filewriter", "name_pattern"),
                    per_file=value("filewriter", "nimages_per_file"),
                    image_nr_start=value("filewriter", "image_nr_start"),
                    shape=self._library.shape,
                    dtype=self._library.dtype,
                    config=config,
                    pixel_mask=self._library.mask,
                    flatfield=detector["flatfield"].value,
                )
            )
        if series.streamed:
            self._stream.send(self._header(series.number, config))
        return series

    def _header(self, number: int, config: dict[str, Any]) -> simplon.SeriesHeader:
        detail = self._configuration.value("stream", "header_detail")
        appendix = self._configuration.value("stream", "header_appendix").encode()
        tables: tuple[simplon.Table, ...] = ()
        if detail == "all":
            detector = self._configuration.modules["detector"]
            arrays = [
                ("flatfield", detector["flatfield"].value),
                ("pixel_mask", self._library.mask),
                ("countrate_table", detector["countrate_correction_table"].value),
            ]
            tables = tuple(_table(name, array) for name, array in arrays)
        return simplon.SeriesHeader(number, detail, config if detail != "none" else None, tables, appendix or None)

    def _run(self, series: Series) -> None:
        """Turn triggers into frames until the series ends."""
        frame = 0
        try:
            for done in range(1, series.ntrigger + 1):
                with self._change:
                    self._change.wait_for(lambda: self._pending or self._ending)
                    if self._ending == "now" or not self._pending:
                        break
                    position = self._pending.popleft()
                    self.state = "acquire"
                if not self._expose(series, frame, position):
                    break
                frame += series.nimages
                with self._change:
                    self._completed = done
                    if not self._pending:
                        if done < series.ntrigger:
                            self.state = "ready"
                        self._change.notify_all()
        except Exception as error:
            # A detector whose software fails goes to the error state; its REST server says why.
            self.reason = f"series {series.number}, frame {frame}: {type(error).__name__}: {error}"
            raise
        finally:
            if series.streamed:
                self._stream.send(simplon.SeriesEnd(series.number))
            if series.stored:
                self._writer.finish()
            with self._change:
                self.state = "error" if self.reason else "idle"
                self.ignored += len(self._pending)
                self._pending.clear()
                self._series = None
                self._change.notify_all()

    def _expose(self, series: Series, first: int, position: Position) -> bool:
        """Send one trigger's images; return False if the series was ended meanwhile."""
        begun = perf_counter()
        real = round(series.count_time * 1e9)
        for image in range(series.nimages):
            due = begun + (image if series.electrical else image + 1) * series.frame_time
            if due - perf_counter() > SLACK:
                with self._change:
                    self._change.wait_for(lambda: self._ending == "now", due - perf_counter())
            if self._ending == "now":
                return False
            start = round((begun - series.begun + image * series.frame_time) * 1e9)
            index = self._library.index(first + image, position)
            if series.streamed:
                self._stream.image(
                    series.number, first + image, index, (start, start + real, real), series.image_appendix
                )
            if series.stored:
                self._writer.write(self._library.blobs[index])
        return True


def _table(name: str, array: np.ndarray[Any, Any]) -> simplon.Table:
    return simplon.Table(name, array.shape, array.dtype.newbyteorder("<").str, array.tobytes())
