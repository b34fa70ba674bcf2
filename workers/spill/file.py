"""A file of frames that found no room in memory: the chunks as they came, and the number of the frame in each row.

::

    /entry                      NXentry; attributes run, stream, key
        data/data               (rows, …) a chunk per frame, as the detector compressed it
        data/frame              (rows,) i8: which frame it is, −1 where its row was never finished

It is in SWMR mode from the start, so the workers read it while it grows, and who died over it leaves it readable.
"""

from __future__ import annotations

import fcntl
import itertools
import logging
import os
import struct
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import numpy as np

from ..errors import FileError
from ..wire.messages import FileSpan
from .pipe import Kind

log = logging.getLogger(__name__)

DATASET: Final = "/entry/data/data"
_numbers = itertools.count()


class SpillFile:
    """One such file, to write. Nobody else writes it: it is locked, so that who looks for files knows.

    Raises
    ------
    OSError, ValueError
        It can't be made; also from every method.
    """

    def __init__(self, folder: Path, kind: Kind) -> None:
        import h5py

        folder.mkdir(parents=True, exist_ok=True)
        self.kind = kind
        self.path = folder / f"{kind.stem}{time.time_ns()}-{next(_numbers)}.h5"
        self.bytes = 0
        self._rows: list[int] = []
        self._shown = 0
        hidden = self.path.with_name(f".{self.path.name}")
        self._file = h5py.File(hidden, "w", libver=("v110", "v110"), locking=False)
        self._lock = os.open(hidden, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            entry = self._file.create_group("entry")
            entry.attrs.update({"NX_class": "NXentry", "run": kind.run, "stream": kind.stream, "key": kind.key})
            data = entry.create_group("data")
            shape = kind.shape
            self._data = data.create_dataset(
                "data",
                shape=(0, *shape),
                maxshape=(None, *shape),
                chunks=(1, *shape),
                dtype=kind.dtype,
                **_filters(kind.encoding),
            )
            self._frames = data.create_dataset("frame", (0,), "i8", maxshape=(None,), chunks=(1024,), fillvalue=-1)
            self._file.swmr_mode = True
            os.rename(hidden, self.path)
            _sync_folder(folder)
        except BaseException:
            self.close()
            raise

    def add(self, frame: int, data: bytes | memoryview) -> None:
        """Add a frame's bytes; readers see it after :meth:`flush`."""
        chunk = _chunk(self.kind, data)
        row = len(self._rows)
        self._data.resize(row + 1, axis=0)
        self._data.id.write_direct_chunk((row, *(0 for _ in self.kind.shape)), chunk)
        self._rows.append(frame)
        self.bytes += len(chunk)

    def flush(self) -> list[FileSpan]:
        """Let readers see what was added, once it is on stable storage; return where it is."""
        first, stop = self._shown, len(self._rows)
        if first == stop:
            return []
        self._data.flush()
        self._frames.resize(stop, axis=0)
        self._frames[first:stop] = self._rows[first:stop]
        self._frames.flush()
        os.fsync(self._lock)  # the ledger will say that it is here, and the memory is reused
        self._shown = stop
        return spans(self.kind.key, self.path, self._rows[first:stop], first)

    def close(self) -> None:
        """Close it. May be called again."""
        if self._lock >= 0:
            try:
                self._file.close()
            finally:
                os.close(self._lock)
                self._lock = -1


def _sync_folder(folder: Path) -> None:
    """Let a file's name outlive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def spans(key: str, path: Path, frames: Sequence[int], first: int = 0) -> list[FileSpan]:
    """Return where these frames lie, which stand in rows from ``first`` on; a row without a number holds none.

    >>> [(span.first, span.n, span.offset) for span in spans("k", Path("/a.h5"), [4, 5, -1, 9, 10, 3])]
    [(4, 2, 0), (9, 2, 3), (3, 1, 5)]
    """
    found: list[FileSpan] = []
    uri = f"file://localhost{quote(str(path))}"
    for row, frame in enumerate(frames, first):
        last = found[-1] if found else None
        if frame < 0:
            continue
        if last is not None and last.first + last.n == frame and last.offset + last.n == row:
            found[-1] = FileSpan(key, uri, DATASET, last.first, last.n + 1, last.offset)
        else:
            found.append(FileSpan(key, uri, DATASET, frame, 1, row))
    return found


def found_in(path: Path, run: str, stream: str) -> list[FileSpan]:
    """Return the frames that a file of before has.

    Raises
    ------
    FileError
        It can't be read, or is another stream's.
    BlockingIOError
        Somebody still writes it.
    """
    import h5py

    lock = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        try:
            with h5py.File(path, "r", swmr=True, libver="latest", locking=False) as file:
                about = file["entry"].attrs
                if (about["run"], about["stream"]) != (run, stream):
                    raise FileError(f"{path} holds frames of {about['run']}/{about['stream']}")
                frames = file["entry/data/frame"][: file[DATASET].shape[0]].tolist()
                return spans(str(about["key"]), path, frames)
        except (KeyError, OSError, RuntimeError, ValueError) as error:
            if isinstance(error, FileError):
                raise
            raise FileError(f"{path} can't be read: {str(error).splitlines()[0]}") from None
    finally:
        os.close(lock)


def left_behind(folder: Path, run: str) -> list[FileSpan]:
    """Return the frames of a run that lie in files of a folder, but for files that somebody still writes.

    Whoever spilled them may have been killed before it could say so. What can't be read is left out, and said.
    """
    found: list[FileSpan] = []
    for path in sorted(folder.glob(f"{run}.*.h5")):
        stream = path.name.removeprefix(f"{run}.").rsplit(".", 2)[0]
        try:
            found += found_in(path, run, stream)
        except BlockingIOError:
            continue
        except (FileError, OSError) as error:
            log.warning("%s", error)
    return found


def _filters(encoding: str) -> dict[str, Any]:
    import hdf5plugin

    if encoding == "bslz4":
        return dict(hdf5plugin.Bitshuffle(nelems=0, cname="lz4"))
    if encoding == "lz4":
        return dict(hdf5plugin.LZ4())
    if encoding == "none":
        return {}
    raise ValueError(f"frames compressed as {encoding!r} can't be put into a file")


def _chunk(kind: Kind, data: bytes | memoryview) -> bytes:
    """Return a frame's bytes as HDF5 has them."""
    size = int(np.prod(kind.shape)) * np.dtype(kind.dtype).itemsize
    chunk = bytes(data)
    if kind.encoding == "none" and len(chunk) != size:
        raise ValueError(f"a frame of {len(chunk)} bytes isn't {kind.shape} of {kind.dtype}")
    if kind.encoding == "lz4" and any(chunk[:3]):
        # The bare block of SIMPLON stream v1: HDF5 wants to be told its size, and that it is the only one.
        return struct.pack(">QII", size, size, len(chunk)) + chunk
    return chunk
