"""DECTRIS Eiger through SIMPLON: armed once for a whole scan, its FileWriter's files as stream assets."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
from ophyd import Component, Signal
from ophyd.status import DeviceStatus

from ..workers.errors import DetectorError, SettingsError
from .assets import FlyInfo, StreamAssets, StreamedAssets
from .progress import background, finished
from .simplon import Simplon, SimplonDevice
from .writes_files import WritesFiles

PIXEL_TYPES = {8: "|u1", 16: "<u2", 32: "<u4"}
DATASET = "/entry/data/data"
STEP_TRIGGERS = 100_000
"""Software triggers a step scan is armed for; arming for more costs nothing."""


class Eiger(WritesFiles, SimplonDevice):
    """An Eiger, simulated or real.

    Parameters
    ----------
    prefix
        URL of its detector control unit, ``"http://host"``.
    stream
        Where its ZMQ stream is: ``"tcp://host:9999"``. This class leaves it to others to pull frames from it.
    data_dir
        Where the FileWriter's files are seen from here. With ``stored`` put to False there are none: its frames are
        streamed only, and the recipes' policy says what becomes of those that nobody could take at once.
    api
        SIMPLON version in the REST paths: 1.6.0 for P06's Eiger X, 1.8.0 from release 2022.1 on.
    """

    # detector: exposure
    count_time = Simplon("detector/config/count_time", kind="config")  # s
    frame_time = Simplon("detector/config/frame_time", kind="config")  # s
    nimages = Simplon("detector/config/nimages", kind="config")  # per trigger
    ntrigger = Simplon("detector/config/ntrigger", kind="config")
    trigger_mode = Simplon("detector/config/trigger_mode", kind="config")  # ints, inte, exts, exte
    photon_energy = Simplon("detector/config/photon_energy", kind="config")  # eV
    threshold_energy = Simplon("detector/config/threshold_energy", kind="config")  # eV
    compression = Simplon("detector/config/compression", kind="config")  # lz4, bslz4, none

    # detector: what it is
    description = Simplon("detector/config/description", kind="config")
    detector_number = Simplon("detector/config/detector_number", kind="config")
    bit_depth_image = Simplon("detector/config/bit_depth_image", kind="config")
    readout_time = Simplon("detector/config/detector_readout_time", kind="config")  # s
    columns = Simplon("detector/config/x_pixels_in_detector", kind="config")
    rows = Simplon("detector/config/y_pixels_in_detector", kind="config")
    x_pixel_size = Simplon("detector/config/x_pixel_size", kind="config")  # m
    y_pixel_size = Simplon("detector/config/y_pixel_size", kind="config")  # m

    # detector: now
    state = Simplon("detector/status/state", kind="omitted")  # na, idle, ready, acquire, error, …

    # stream
    stream_mode = Simplon("stream/config/mode", kind="omitted")
    header_detail = Simplon("stream/config/header_detail", kind="omitted")  # none, basic, all
    stream_dropped = Simplon("stream/status/dropped", kind="omitted")

    # file writer
    writer_mode = Simplon("filewriter/config/mode", kind="omitted")
    nimages_per_file = Simplon("filewriter/config/nimages_per_file", kind="config")
    name_pattern = Simplon("filewriter/config/name_pattern", kind="omitted")
    writer_state = Simplon("filewriter/status/state", kind="omitted")
    writer_error = Simplon("filewriter/status/error", kind="omitted")

    # how it streams live, for whoever reads the documents
    stream_endpoint = Component(Signal, value="", kind="config")
    stream_protocol = Component(Signal, value="simplon-1", kind="config")
    series = Component(Signal, value=0, kind="config")

    stored = Component(Signal, value=True, kind="config")  # whether its FileWriter keeps the frames

    total = Component(Signal, value=0, kind="hinted")  # counts in the last frame of a step scan

    def __init__(
        self, prefix: str, *, name: str, stream: str, data_dir: str | Path, api: str = "1.8.0", **kwargs: Any
    ) -> None:
        super().__init__(prefix, name=name, api=api, **kwargs)
        self.stream_endpoint.put(stream)
        self.data_dir = Path(data_dir)
        self.assets: StreamAssets | None = None
        self._info: FlyInfo | None = None
        self._armed = False
        self._triggered = 0
        self._lock = threading.RLock()

    # --- before the scan ---------------------------------------------------------------------------------------------

    def wait_for_connection(self, all_signals: bool = False, timeout: Any = None) -> None:
        """Raise a DetectorError if the detector doesn't answer."""
        self.state.get()

    @property
    def minimum_dwell(self) -> float:
        """Shortest time from one trigger to the next, s."""
        return float(self.frame_time.minimum or 0.0)

    @property
    def deadtime(self) -> float:
        """Time after each exposure in which it can't see, s."""
        return float(self.readout_time.get())

    def stage(self) -> list[object]:
        """Make sure that it answers and is initialized; nothing is armed yet."""
        state = self.state.get()
        if state == "na":
            self.command("initialize", timeout=300.0)
        elif state == "error":
            raise DetectorError(f"{self.name}: {self.prefix} is in state error (initialize it and look at its status)")
        self._forget()
        staged: list[object] = super().stage()
        return staged

    def prepare(self, value: FlyInfo) -> DeviceStatus:
        """Set exposure, triggers and files, and arm for the whole scan."""
        return background(self, lambda: self._prepare(value), "prepare")

    def _prepare(self, info: FlyInfo) -> None:
        external = info.trigger == "external"
        with self._lock:
            self._disarm()
            self.trigger_mode.put("exts" if external else "ints")
            self.nimages.put(info.exposures_per_event)
            self.ntrigger.put(info.n + info.spare)
            self.count_time.put(info.livetime)
            self.frame_time.put(info.livetime + max(info.deadtime, self.deadtime))
            self.stream_mode.put("enabled")
            self.header_detail.put("basic")
            stored = bool(self.stored.get())
            self.writer_mode.put("enabled" if stored else "disabled")
            self.name_pattern.put(f"{info.prefix}_{self.name}")
            per_file = int(self.nimages_per_file.get())
            if stored and per_file < 1:
                raise SettingsError(f"{self.name}: nimages_per_file is 0; set 1 or more, so that its files end")
            self.series.put(int(self.command("arm", timeout=60.0)["sequence id"]))
            self._armed = True
            if stored and not self.data_dir.is_dir():
                self._disarm()
                raise SettingsError(f"{self.name}: data_dir {self.data_dir} isn't a folder (is its disk mounted?)")
            self._check_writer()
            self._info = info
            self._triggered = 0
            if not stored:
                where = str(self.stream_endpoint.get()), str(self.stream_protocol.get()), int(self.series.get())
                most = info.exposures_per_event * (info.n + info.spare)
                planned = info.exposures_per_event * info.n
                self.assets = StreamedAssets(f"{self.name}_image", *where, planned=planned, most=most)
                return
            pattern = f"{info.prefix}_{self.name}"
            self.assets = StreamAssets(
                {f"{self.name}_image": DATASET},
                lambda number: self.data_dir / f"{pattern}_data_{number + 1:06d}.h5",
                per_file=per_file,
            )

    # --- during the scan ---------------------------------------------------------------------------------------------

    def kickoff(self) -> DeviceStatus:
        """Begin: with external triggers it is armed already; with internal ones all are given, one after the other."""
        info = self._info
        if info is None or not self._armed:
            raise DetectorError(f"{self.name}: kickoff before prepare (it isn't armed)")
        if info.trigger == "internal":
            self._triggered = info.n
            self._internal = background(self, lambda: self._give_triggers(info), "triggers")
        return finished(self)

    def _give_triggers(self, info: FlyInfo) -> None:
        for _ in range(info.n):
            if not self._armed:
                return
            self.command("trigger", timeout=info.exposures_per_event * (info.livetime + info.deadtime) + 60.0)

    def check_armed(self) -> None:
        """Raise a DetectorError if it doesn't wait for triggers any more."""
        state = self.state.get()
        if state not in ("ready", "acquire"):
            raise DetectorError(
                f"{self.name}: {self.prefix} is in state {state} in the middle of a scan, "
                f"{self.frames()} frames in its files (was it disarmed by others?)"
            )
        self._check_writer()

    def _check_writer(self) -> None:
        if self.stored.get() and self.writer_state.get() == "error":
            reason = "; ".join(self.writer_error.get()) or "its status says no more"
            raise DetectorError(f"{self.name}: {self.prefix}: the file writer failed: {reason}")

    def complete(self) -> DeviceStatus:
        """End the series; done when its last frames are in closed files."""
        return background(self, self._complete, "complete")

    def _complete(self) -> None:
        if self._info is not None and self._info.trigger == "internal":
            self._internal.wait(timeout=None)
        with self._lock:
            self._disarm()
        self._check_writer()

    def trigger(self) -> DeviceStatus:
        """Take one frame by a software trigger, for a step scan; done when it can be read from its file."""
        return background(self, self._take, "trigger")

    def _take(self) -> None:
        if not self.stored.get():
            raise SettingsError(f"{self.name}: a step scan reads its frames from files; put {self.name}.stored to True")
        if not self._armed:
            exposure = float(self.count_time.get())
            self._prepare(
                FlyInfo(n=STEP_TRIGGERS, trigger="internal", livetime=exposure, prefix=f"step-{uuid4().hex[:8]}")
            )
        assert self.assets is not None
        livetime = float(self.count_time.get())
        self.command("trigger", timeout=livetime + 60.0)
        self._triggered += 1
        self._await_frames(self._triggered, patience=10.0 + livetime)
        frame = self.assets.last(f"{self.name}_image")
        # Gaps and dead pixels have all bits set; they aren't counts.
        self.total.put(int(frame[frame != np.iinfo(frame.dtype).max].sum(dtype=np.int64)))

    # --- documents ---------------------------------------------------------------------------------------------------

    def describe_collect(self) -> dict[str, dict[str, Any]]:
        """Return the data key of the frames, ``<name>_image``: (rows, columns), counts."""
        dtype = PIXEL_TYPES[int(self.bit_depth_image.get())]
        return {
            f"{self.name}_image": {
                "source": f"SIMPLON:{self.prefix}",
                "dtype": "array",
                "dtype_numpy": dtype,
                "shape": [int(self.rows.get()), int(self.columns.get())],
                "external": "STREAM:",
                "units": "counts",
            }
        }

    def describe(self) -> dict[str, dict[str, Any]]:
        """Return the data keys of a step scan: the total, and the frame in its file."""
        return {**super().describe(), **self.describe_collect()}

    # --- after the scan ----------------------------------------------------------------------------------------------

    def stop(self, *, success: bool = False) -> None:
        """Disarm; its files are closed then. Harmless when idle."""
        with self._lock:
            self._disarm()

    def unstage(self) -> list[object]:
        """Disarm, should a plan have left it armed."""
        with self._lock:
            self._disarm()
        unstaged: list[object] = super().unstage()
        return unstaged

    def _forget(self) -> None:
        self.assets = None
        self._info = None
        self._triggered = 0

    def _disarm(self) -> None:
        """End the series if there is one, and wait until the file writer has closed its files."""
        if not self._armed and self.state.get() in ("idle", "na"):
            return
        self._armed = False
        self.command("disarm", timeout=60.0)
        deadline = time.monotonic() + 30.0
        changed = threading.Event()
        while (state := self.state.get()) != "idle" or (writer := self.writer_state.get()) == "acquire":
            if time.monotonic() > deadline:
                raise DetectorError(f"{self.name}: still {state} 30 s after disarm, file writer {writer}")
            changed.wait(0.01)  # SIMPLON has no events
