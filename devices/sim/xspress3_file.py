"""The Xspress3's NeXus files: read by others (SWMR) while they grow."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, Final

import h5py
import numpy as np
from numpy.typing import NDArray

from ...workers.errors import FileError
from .. import growing
from .card_file import reason
from .fluorescence import SCALERS, Reading

BLOCK: Final = 16
"""Frames per chunk."""

BUFFER: Final = 100
"""Frames kept at most before they are written and flushed."""

SPARE: Final = 4_000_000
"""Bytes that must stay free on the disk: the file's own tables, written when it is closed."""

_broken: list[Any] = []
"""Files whose writing failed, never closed: HDF5 1.14 may crash when it closes a file that it couldn't write."""


def hdf5_is_broken() -> bool:
    """Say whether a file is left open for good; the process should then end without HDF5's own clean-up."""
    return bool(_broken)


class Xspress3File:
    """One file: created whole, then grown in blocks.

    Layout: ``/entry/instrument/xspress3/channelNN/histogram`` int32 (frame, bins) and ``scaler/<name>`` float32
    (frame,); ``/entry/instrument/detector/sequence_number`` int32 (frame,), 1-based.

    Parameters
    ----------
    path : Path
        Must not exist: nothing is overwritten.
    channels : list of int
        Those to write.
    bins : int
        MCALength.
    compress : bool
        Shuffle and LZF, which every h5py reads without a plugin: about 40 times smaller at 5 ms.

    Raises
    ------
    FileError
        The folder can't be made or written, the file exists, or the disk is full; also from append and close.
    """

    def __init__(self, path: Path, channels: list[int], bins: int, *, compress: bool) -> None:
        self.path = path
        self.written = 0
        self._channels = channels
        self._bins = bins
        self._waiting: list[tuple[int, Reading]] = []
        self._closed = False
        self._histograms: list[Any] = []
        self._scalers: list[list[Any]] = []
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._check_space()
            self._file = growing.create(path)
        except FileExistsError:
            raise FileError(f"file {path} exists; set another FilePrefix or FileDir") from None
        except FileError:
            raise
        except OSError as error:
            raise FileError(f"folder {path.parent} can't be written: {reason(error)}") from None
        filters: dict[str, Any] = {"compression": "lzf", "shuffle": True} if compress else {}
        try:
            entry = self._file.create_group("entry")
            entry.attrs["NX_class"] = "NXentry"
            instrument = entry.create_group("instrument")
            instrument.attrs["NX_class"] = "NXinstrument"
            detector = instrument.create_group("xspress3")
            detector.attrs["NX_class"] = "NXcollection"
            self._numbers = instrument.create_dataset(
                "detector/sequence_number", (0,), "i4", maxshape=(None,), chunks=(1024,)
            )
            for channel in channels:
                group = detector.create_group(f"channel{channel:02d}")
                group.attrs["NX_class"] = "NXdetector"
                self._histograms.append(
                    group.create_dataset(
                        "histogram", (0, bins), "i4", maxshape=(None, bins), chunks=(BLOCK, bins), **filters
                    )
                )
                self._scalers.append(
                    [
                        group.create_dataset(f"scaler/{name}", (0,), "f4", maxshape=(None,), chunks=(1024,))
                        for name in SCALERS
                    ]
                )
            growing.reveal(self._file, path)
        except (OSError, RuntimeError) as error:
            raise self._failed(error) from None

    def append(self, number: int, reading: Reading) -> None:
        """Take the frame that trigger ``number`` (from 1) gave; a full buffer is written."""
        self._waiting.append((number, reading))
        if len(self._waiting) >= BUFFER:
            self.flush()

    @property
    def waiting(self) -> int:
        """Frames not written yet."""
        return len(self._waiting)

    def flush(self) -> None:
        """Write what waits and let readers see it."""
        if not self._waiting or self._closed:
            return
        first, stop = self.written, self.written + len(self._waiting)
        self._check_space()
        try:
            # Histograms first: whoever finds a sequence number finds the rest of its frame.
            for index, channel in enumerate(self._channels):
                histograms = np.stack([reading.histograms[channel, : self._bins] for _, reading in self._waiting])
                self._grow(self._histograms[index], first, stop, histograms)
                scalers = np.stack([reading.scalers[channel] for _, reading in self._waiting])
                for column, dataset in enumerate(self._scalers[index]):
                    self._grow(dataset, first, stop, scalers[:, column])
            self._file.flush()
            self._grow(self._numbers, first, stop, np.array([number for number, _ in self._waiting], np.int32))
            self._numbers.flush()
        except (OSError, RuntimeError) as error:
            raise self._failed(error) from None
        self.written = stop
        self._waiting.clear()

    @staticmethod
    def _grow(dataset: h5py.Dataset, first: int, stop: int, rows: NDArray[Any]) -> None:
        dataset.resize(stop, axis=0)
        dataset[first:stop] = rows

    def _check_space(self) -> None:
        """Raise before HDF5 meets a full disk; what was written so far can then still be closed and read."""
        needed = len(self._waiting) * len(self._channels) * 4 * (self._bins + len(SCALERS)) + SPARE
        free = shutil.disk_usage(self.path.parent).free
        if free < needed:
            lost = f"; {len(self._waiting)} frames from {self.written} on are lost" if self._waiting else ""
            raise FileError(
                f"folder {self.path.parent} is full: {free / 1e6:.1f} MB free, {self.path.name} needs "
                f"{needed / 1e6:.1f} MB{lost}"
            )

    def close(self) -> None:
        """Write what waits and close."""
        if self._closed:
            return
        try:
            self.flush()
        finally:
            if not self._closed:
                self._closed = True
                try:
                    self._file.close()
                except (OSError, RuntimeError) as error:
                    raise self._failed(error) from None

    def _failed(self, error: Exception) -> FileError:
        self._closed = True
        _broken.append((self._file, self._histograms, self._scalers))
        return FileError(f"folder {self.path.parent}: {self.path.name} can't be written: {reason(error)}")
