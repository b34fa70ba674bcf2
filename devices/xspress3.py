"""Xspress3 through DESY's Tango class: armed once for a whole scan, gated, its NeXus file as stream assets."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any
from uuid import uuid4

from ophyd import Component, Signal
from ophyd.status import DeviceStatus

from ..workers.errors import DetectorError, SettingsError
from .assets import FlyInfo, StreamAssets
from .progress import background, finished
from .tango import Tango, TangoDevice
from .writes_files import WritesFiles

SCALERS = ("allevent", "resetticks", "totalticks")
"""What the dead time is made of: events, ticks (80 MHz) in reset, ticks in all."""

INTERNAL, GATE = 0, 1


class Xspress3(WritesFiles, TangoDevice):
    """An Xspress3 of several channels, simulated or real.

    Parameters
    ----------
    prefix
        Address of its Tango device.
    data_dir
        Where its files are seen from here.
    server_dir
        The same folder as the Tango server sees it; by default ``data_dir``.
    channels, bins
        What it has.
    frames_per_file
        0: one file per scan, readable while it grows. Where the host writes files that others can't read before they
        are closed, a number here lets frames come in such portions.
    """

    # acquisition
    exposure_time = Tango("ExposureTime", kind="config")  # s
    nb_frames = Tango("NbFrames", kind="config")
    trigger_mode = Tango("TriggerMode", kind="config")  # 0 internal, 1 external gate
    state = Tango("State", kind="omitted")  # ON, MOVING, FAULT
    last_frame = Tango("LastFrame", kind="omitted")

    # file
    file_dir = Tango("FileDir", kind="omitted")
    file_prefix = Tango("FilePrefix", kind="omitted")
    frames_per_file = Tango("FramesPerFile", kind="config")
    mask_data_to_write = Tango("MaskDataToWrite", kind="config")  # a set bit: channel not written

    total = Component(Signal, value=0, kind="hinted")  # counts of all channels in the last frame of a step scan

    deadtime = 1e-5
    """s; the gate must be seen to fall between two frames."""

    def __init__(
        self,
        prefix: str,
        *,
        name: str,
        data_dir: str | Path,
        server_dir: str | None = None,
        channels: int = 4,
        bins: int = 4096,
        frames_per_file: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(prefix, name=name, **kwargs)
        self.data_dir = Path(data_dir)
        self._server_dir = str(data_dir) if server_dir is None else server_dir
        self.channels = channels
        self.bins = bins
        self._per_file = frames_per_file
        self._lock = threading.RLock()
        self._forget()

    def _forget(self) -> None:
        self.assets: StreamAssets | None = None
        self._info: FlyInfo | None = None
        self._step_prefix = ""
        self._armed = False
        self._triggered = 0

    # --- before the scan ---------------------------------------------------------------------------------------------

    @property
    def minimum_dwell(self) -> float:
        """Shortest exposure and pause, s."""
        return (self.exposure_time.minimum or 0.0) + self.deadtime

    def stage(self) -> list[object]:
        """Make sure that it answers and is idle."""
        self.wait_for_connection()
        self._forget()
        self._end()
        staged: list[object] = super().stage()
        return staged

    def prepare(self, value: FlyInfo) -> DeviceStatus:
        """Set exposure, gates and file, and arm for the whole scan."""
        return background(self, lambda: self._prepare(value), "prepare")

    def _prepare(self, info: FlyInfo) -> None:
        with self._lock:
            if info.exposures_per_event != 1:
                raise SettingsError(f"{self.name}: {info.exposures_per_event} exposures per event; it takes 1")
            self._end()
            external = info.trigger == "external"
            prefix = f"{info.prefix}_{self.name}"
            self._configure(info.livetime, prefix, GATE if external else INTERNAL, info.n + info.spare, self._per_file)
            self.assets = self._stream(lambda number: self._path(prefix, number), self._per_file)
            self._info = info
            if external:
                self._start()

    def _configure(self, exposure: float, prefix: str, mode: int, frames: int, per_file: int) -> None:
        self.exposure_time.put(exposure)
        self.trigger_mode.put(mode)
        self.nb_frames.put(frames)
        self.file_dir.put(self._server_dir)
        self.file_prefix.put(prefix)
        self.frames_per_file.put(per_file)
        self.mask_data_to_write.put(0)

    def _start(self) -> None:
        self.command("StartAcquisition")
        self._armed = True
        if not self.data_dir.is_dir():  # the server has made it by now, if it is where it writes
            self._end()
            raise SettingsError(f"{self.name}: data_dir {self.data_dir} isn't a folder (is its disk mounted?)")

    def _path(self, prefix: str, number: int) -> Path:
        """Return where the number-th file is; some versions number a lone file, some don't."""
        numbered = self.data_dir / f"{prefix}_{number:05d}.nxs"
        lone = self.data_dir / f"{prefix}.nxs"
        return lone if number == 0 and lone.exists() else numbered

    def _datasets(self) -> dict[str, str]:
        found = {}
        for channel in range(self.channels):
            key, group = f"{self.name}_channel{channel:02d}", f"/entry/instrument/xspress3/channel{channel:02d}"
            found[key] = f"{group}/histogram"
            for scaler in SCALERS:
                found[f"{key}_{scaler}"] = f"{group}/scaler/{scaler}"
        return found

    def _stream(self, file: Any, per_file: int) -> StreamAssets:
        return StreamAssets(self._datasets(), file, per_file=per_file)

    # --- during the scan ---------------------------------------------------------------------------------------------

    def kickoff(self) -> DeviceStatus:
        """Begin: gated it runs already; with internal triggers it starts now."""
        if self._info is None:
            raise DetectorError(f"{self.name}: kickoff before prepare (it isn't armed)")
        if self._info.trigger == "internal":
            return background(self, self._start, "kickoff")
        return finished(self)

    def check_armed(self) -> None:
        """Raise a DetectorError if it doesn't wait for gates any more."""
        state = self.state.get()
        if state == "FAULT":
            raise self.fault(state)
        if state != "MOVING":
            raise DetectorError(
                f"{self.name}: {self.prefix} is in state {state} in the middle of a scan, "
                f"{self.frames()} frames in its files (was it stopped by others?)"
            )

    def complete(self) -> DeviceStatus:
        """End the acquisition; done when its file is closed."""
        return background(self, self._complete, "complete")

    def _complete(self) -> None:
        if self._info is not None and self._info.trigger == "internal":
            self._await_state("ON", self._info.n * (self._info.livetime + self._info.deadtime) + 10.0)
        with self._lock:
            self._end()

    def trigger(self) -> DeviceStatus:
        """Take one frame of ``exposure_time`` s into a file of its own, for a step scan."""
        return background(self, self._take, "trigger")

    def _take(self) -> None:
        exposure = float(self.exposure_time.get())
        if not self._step_prefix:
            stem = f"step-{uuid4().hex[:8]}_{self.name}"
            self.assets = self._stream(lambda number: self._path(f"{stem}-{number:05d}", 0), 1)
            self._step_prefix = stem
        assert self.assets is not None
        self._configure(exposure, f"{self._step_prefix}-{self._triggered:05d}", INTERNAL, 1, 0)
        self._start()
        self._await_state("ON", exposure + 10.0)
        self._armed = False
        self._triggered += 1
        self._await_frames(self._triggered, patience=10.0)
        spectra = [self.assets.last(f"{self.name}_channel{channel:02d}") for channel in range(self.channels)]
        self.total.put(int(sum(int(spectrum.sum(dtype="i8")) for spectrum in spectra)))

    def _await_state(self, wanted: str, patience: float) -> None:
        deadline = time.monotonic() + patience
        changed = threading.Event()
        while (state := self.state.get()) != wanted:
            if state == "FAULT":
                raise self.fault(state)
            if time.monotonic() > deadline:
                raise DetectorError(f"{self.name}: {self.prefix} still in state {state} after {patience:g} s")
            changed.wait(0.005)

    # --- documents ---------------------------------------------------------------------------------------------------

    def describe_collect(self) -> dict[str, dict[str, Any]]:
        """Return the data keys: per channel a spectrum (bins,), counts, and the scalers of its dead time."""
        keys = {}
        for key, dataset in self._datasets().items():
            spectrum = dataset.endswith("histogram")
            keys[key] = {
                "source": f"TANGO:{self.prefix}{dataset}",
                "dtype": "array" if spectrum else "number",
                "dtype_numpy": "<i4" if spectrum else "<f4",
                "shape": [self.bins] if spectrum else [],
                "external": "STREAM:",
                "units": "ticks" if dataset.endswith("ticks") else "counts",
            }
        return keys

    def describe(self) -> dict[str, dict[str, Any]]:
        """Return the data keys of a step scan: the total, and what lies in the files."""
        return {**super().describe(), **self.describe_collect()}

    def acquired(self) -> int:
        """Return how many frames were read out, in the file or still on their way to it."""
        return max(int(self.last_frame.get()), self.frames())

    # --- after the scan ----------------------------------------------------------------------------------------------

    def stop(self, *, success: bool = False) -> None:
        """End the acquisition; its file is closed then. Harmless when idle."""
        with self._lock:
            self._end()

    def unstage(self) -> list[object]:
        """End the acquisition, should a plan have left it running."""
        with self._lock:
            self._end()
        unstaged: list[object] = super().unstage()
        return unstaged

    def _end(self) -> None:
        if self._armed or self.state.get() == "MOVING":
            self._armed = False
            self.command("StopAcquisition")
            self._await_state("ON", 30.0)
