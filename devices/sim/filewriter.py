"""The DCU's FileWriter: a master file and data files in DECTRIS' legacy layout, readable while they grow.

Frames are stored as the very chunks that are streamed, so file and stream are the same to the bit. Data files are in
SWMR mode from the start; the master, which only links and describes, appears when the series is complete.
"""

from __future__ import annotations

import os
import re
import shutil
import threading
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any, Final

import h5py
import hdf5plugin
import numpy as np
from numpy.typing import NDArray

from ...workers.errors import SettingsError
from .. import growing

BACKLOG: Final = 1_000_000
"""Most frames that wait to be written; they are references to prepared frames, so this is 60 MB at most."""

FLUSH_SECONDS: Final = 0.02
"""How long a frame may be on disk before readers of a growing file see it."""

RESERVE: Final = 16 * 2**20
"""Bytes that must be free on the disk for a series to begin."""

DATASET: Final = "/entry/data/data"
_LIBVER: Final = ("v110", "v110")  # SWMR needs 1.10's file format; nothing newer, for older readers

_UNITS: Final = {
    "beam_center_x": "pixel",
    "beam_center_y": "pixel",
    "count_time": "s",
    "frame_time": "s",
    "detector_readout_time": "s",
    "detector_distance": "m",
    "x_pixel_size": "m",
    "y_pixel_size": "m",
    "sensor_thickness": "m",
    "threshold_energy": "eV",
}
_DETECTOR: Final = (
    *_UNITS,
    "bit_depth_image",
    "bit_depth_readout",
    "countrate_correction_applied",
    "description",
    "detector_number",
    "flatfield_correction_applied",
    "pixel_mask_applied",
    "sensor_material",
    "virtual_pixel_correction_applied",
)
_SPECIFIC: Final = {
    "auto_summation": "",
    "compression": "",
    "countrate_correction_count_cutoff": "",
    "data_collection_date": "",
    "eiger_fw_version": "",
    "element": "",
    "frame_count_time": "s",
    "nimages": "",
    "ntrigger": "",
    "number_of_excluded_pixels": "",
    "photon_energy": "eV",
    "roi_mode": "",
    "software_version": "",
    "trigger_mode": "",
    "x_pixels_in_detector": "",
    "y_pixels_in_detector": "",
}


@dataclass(frozen=True, slots=True)
class SeriesFiles:
    """What is to be written for one series; ``config`` is the detector's at arming, by SIMPLON's keys."""

    series: int
    pattern: str
    per_file: int
    image_nr_start: int
    shape: tuple[int, int]
    dtype: str
    config: Mapping[str, Any]
    pixel_mask: NDArray[np.uint32]
    flatfield: NDArray[np.float32]

    @property
    def stem(self) -> str:
        """The file names' common beginning, ``$id`` replaced."""
        return self.pattern.replace("$id", str(self.series))

    @property
    def master(self) -> str:
        """The master file's name."""
        return f"{self.stem}_master.h5"

    def data_file(self, number: int) -> str:
        """Return the name of data file ``number``, from 0: ``series_12_data_000001.h5``."""
        return f"{self.stem}_data_{number + 1:06d}.h5"


class GrowingFile:
    """One HDF5 file that takes chunks and shows them to SWMR readers."""

    def __init__(self, path: Path, plan: SeriesFiles, first: int, *, describe: bool = False) -> None:
        """Create it; never over an existing one. ``first``: number of its first frame in the series."""
        self.path = path
        self._first = plan.image_nr_start + first
        self.file = growing.create(path, _LIBVER)
        try:
            data = _group(_group(self.file, "entry", "NXentry"), "data", "NXdata")
            self.frames = data.create_dataset(
                "data",
                shape=(0, *plan.shape),
                maxshape=(None, *plan.shape),
                dtype=plan.dtype,
                chunks=(1, *plan.shape),
                **hdf5plugin.Bitshuffle(nelems=0, cname="lz4"),
            )
            self.frames.attrs["image_nr_low"] = np.int32(self._first)
            self.frames.attrs["image_nr_high"] = np.int32(self._first - 1)
            if describe:
                _describe(self.file, plan)
            growing.reveal(self.file, path)
        except BaseException:
            self.file.close()
            raise
        self.count = 0

    def append(self, blob: bytes) -> None:
        """Add a frame; readers see it after :meth:`flush`."""
        self.frames.resize(self.count + 1, axis=0)
        try:
            self.frames.id.write_direct_chunk((self.count, 0, 0), blob)
        except (OSError, RuntimeError, ValueError):
            # Without its chunk the frame would read as zeros.
            self.frames.resize(self.count, axis=0)
            raise
        self.count += 1

    def flush(self) -> None:
        """Show readers what there is."""
        # In SWMR mode attributes can't be made, but an existing one may change its value.
        self.frames.attrs.modify("image_nr_high", np.int32(self._first + self.count - 1))
        self.frames.flush()

    def close(self) -> None:
        """Flush and close."""
        try:
            self.flush()
        finally:
            self.file.close()


class FileWriter:
    """Writes one series after another in a thread of its own; its troubles are a status, never an exception.

    States: ``ready``, ``acquire`` (a series is being written), ``error`` (with a reason, until the next series or
    :meth:`clear`). Frames that can't be stored are counted in :attr:`lost`.

    Parameters
    ----------
    folder
        Where files go; made if it isn't there.

    Raises
    ------
    SettingsError
        The folder is a file. (One that can't be made or written is an error status when a series begins.)
    """

    def __init__(self, folder: Path | str, *, reserve: int = RESERVE, backlog: int = BACKLOG) -> None:
        self.folder = Path(folder).absolute()
        if self.folder.exists() and not self.folder.is_dir():
            raise SettingsError(f"{self.folder}: the FileWriter needs a folder, this is a file")
        self.state = "ready"
        self.reason = ""
        self.lost = 0
        """Frames of the current or last series that aren't in its files."""
        self.waited = 0
        """Times that the acquisition had to wait because the backlog was full."""
        self._reserve, self._backlog = reserve, backlog
        self._work: deque[SeriesFiles | bytes | None] = deque()  # a series begins, a frame, it ends
        self._change = threading.Condition()
        self._busy = False
        self._closing = False
        self._plan: SeriesFiles | None = None
        self._file: GrowingFile | None = None
        self._written: list[int] = []  # frames in each file of the series
        self._thread = threading.Thread(target=self._run, name="eiger-filewriter", daemon=True)
        self._thread.start()

    # --- the acquisition's side ------------------------------------------------------------------------------------

    def open(self, plan: SeriesFiles) -> None:
        """Begin a series; on return its first file is there, or the state is ``error``."""
        with self._change:
            self._put(plan)
            self._change.wait_for(lambda: self._idle() or self._closing)

    def write(self, blob: bytes) -> None:
        """Store a frame, soon. Waits (and counts that) only if a million frames are waiting already."""
        with self._change:
            if len(self._work) >= self._backlog:
                self.waited += 1
                self._change.wait_for(lambda: len(self._work) < self._backlog or self._closing)
            self._put(blob)

    def finish(self) -> None:
        """End the series: what waits is written, then the master file appears and the state is ``ready`` again."""
        with self._change:
            self._put(None)

    def clear(self) -> None:
        """Forget an error."""
        with self._change:
            if self.state == "error":
                self.state, self.reason = "ready", ""

    def close(self) -> None:
        """Write what waits, close the files and end the thread; idempotent."""
        with self._change:
            self._closing = True
            self._change.notify_all()
        self._thread.join()

    def wait(self, timeout: float) -> bool:
        """Wait until nothing is left to write; return whether that is so."""
        with self._change:
            return self._change.wait_for(self._idle, timeout)

    @property
    def backlog(self) -> int:
        """Frames that wait to be written."""
        return len(self._work)

    def files(self) -> list[str]:
        """Return the names of the HDF5 files in the folder."""
        return sorted(path.name for path in self.folder.glob("*.h5")) if self.folder.is_dir() else []

    def _put(self, item: SeriesFiles | bytes | None) -> None:
        self._work.append(item)
        if not self._busy:
            self._change.notify_all()

    def _idle(self) -> bool:
        return not self._work and not self._busy

    # --- the thread ------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        flushed = monotonic()
        while True:
            with self._change:
                self._busy = False
                self._change.notify_all()
                self._change.wait_for(lambda: self._work or self._closing)
                if not self._work:
                    break
                self._busy = True
            while self._work:
                self._do(self._work.popleft())
                if self._file is not None and (not self._work or monotonic() - flushed > FLUSH_SECONDS):
                    self._try(self._file.flush)
                    flushed = monotonic()
                    with self._change:
                        self._change.notify_all()  # there is room in the backlog
        if self._plan is not None:
            self._do(None)

    def _do(self, item: SeriesFiles | bytes | None) -> None:
        if isinstance(item, SeriesFiles):
            self._plan, self._written, self.lost = item, [], 0
            self.state, self.reason = "acquire", ""
            self._try(self._begin)
        elif item is None:
            self._end()
        elif self.state != "acquire" or not self._try(self._append, item):
            self.lost += 1

    def _try(self, action: Any, *args: Any) -> bool:
        """Do it, or go to ``error`` with the reason: a full disk mustn't end the detector."""
        try:
            action(*args)
            return True
        except (OSError, RuntimeError, ValueError) as error:  # h5py raises all three when a write fails
            path = self._file.path if self._file is not None else self.folder
            self.state, self.reason = "error", _reason(error, path)
            self._drop_file()
            return False

    def _begin(self) -> None:
        assert self._plan is not None
        self.folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.folder).free
        if free < self._reserve:
            raise OSError(f"{self.folder}: the disk is full, {free} bytes free; remove files or choose another folder")
        master = self.folder / self._plan.master
        if master.exists():
            raise FileExistsError(f"{master} is there already; choose another name_pattern, or one with $id")
        self._next_file()

    def _next_file(self) -> None:
        assert self._plan is not None
        self._close_file()
        in_master = self._plan.per_file == 0
        name = self._plan.master if in_master else self._plan.data_file(len(self._written))
        self._file = GrowingFile(self.folder / name, self._plan, sum(self._written), describe=in_master)
        self._written.append(0)

    def _append(self, blob: bytes) -> None:
        assert self._plan is not None
        assert self._file is not None
        if self._plan.per_file and self._file.count >= self._plan.per_file:
            self._next_file()
        self._file.append(blob)
        self._written[-1] += 1

    def _end(self) -> None:
        plan = self._plan
        if plan is None:
            return
        if self._try(self._close_file) and self.state == "acquire" and plan.per_file:
            self._try(self._write_master)
        self._plan = None
        if self.state == "acquire":
            self.state = "ready"

    def _write_master(self) -> None:
        """Write it under another name, then rename: whoever sees it sees it whole."""
        plan = self._plan
        assert plan is not None
        path = self.folder / plan.master
        unfinished = path.with_name(f".{path.name}")
        with h5py.File(unfinished, "w", libver=_LIBVER) as file:
            data = _group(_group(file, "entry", "NXentry"), "data", "NXdata")
            for number in range(len(self._written)):
                data[f"data_{number + 1:06d}"] = h5py.ExternalLink(plan.data_file(number), DATASET)
            _describe(file, plan)
        os.replace(unfinished, path)

    def _close_file(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            file.close()

    def _drop_file(self) -> None:
        """Close the file after a failed write; that fails too on a full disk, and then says the same again."""
        with suppress(OSError, RuntimeError, ValueError):
            self._close_file()


def _reason(error: Exception, path: Path) -> str:
    """Return one line that names the place; of HDF5's long ones only what the system said."""
    text = " ".join(str(error).split())
    if said := re.search(r"error message = '([^']*)'", text):
        text = f"{said[1]}; frames from here on are lost to the file, make room before the next series"
    return text if str(path) in text else f"{path}: {text}"


def _group(parent: Any, name: str, nx_class: str) -> Any:
    group = parent.create_group(name)
    group.attrs["NX_class"] = nx_class
    return group


def _put(group: Any, key: str, value: Any, units: str = "") -> None:
    if isinstance(value, int) and not isinstance(value, bool):
        value = np.uint32(value)
    group[key] = value
    if units:
        group[key].attrs["units"] = units


def _describe(file: Any, plan: SeriesFiles) -> None:
    """Write what the master file says about the instrument."""
    config = plan.config
    entry = file["entry"]
    entry["definition"] = "NXmx"
    instrument = _group(entry, "instrument", "NXinstrument")
    beam = _group(instrument, "beam", "NXbeam")
    _put(beam, "incident_wavelength", config["wavelength"], "angstrom")
    detector = _group(instrument, "detector", "NXdetector")
    for key in _DETECTOR:
        _put(detector, key, config[key], _UNITS.get(key, ""))
    specific = _group(detector, "detectorSpecific", "NXcollection")
    for key, units in _SPECIFIC.items():
        _put(specific, key, config[key], units)
    filters = hdf5plugin.Bitshuffle(nelems=0, cname="lz4")
    specific.create_dataset("pixel_mask", data=plan.pixel_mask, chunks=plan.shape, **filters)
    specific.create_dataset("flatfield", data=plan.flatfield, chunks=plan.shape, **filters)
