"""Frames from detectors' HDF5 files, by number: still compressed where the file has a chunk for each."""

from __future__ import annotations

import math
import os
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import numpy as np

from .decode import MAX_FRAME
from .errors import FileError, FileLate
from .reducers.base import Array, Chunk
from .references import OpenFile, resolve
from .wire.messages import FileSpan, InputSpec

if TYPE_CHECKING:
    import h5py

KEEP_OPEN = 16
"""Files kept open; each costs two descriptors and its chunk index (about 200 bytes a frame)."""

MAX_LINKS = 4
"""External links followed in a row: a master file leads to a data file in one."""

MAX_READ = 1 << 31
"""Most bytes that one slice may have."""

_BITSHUFFLE, _LZ4_FILTER, _BITSHUFFLE_LZ4 = 32008, 32004, 2


class FrameReader:
    """Reads frames of files below ``roots``. Of use in one thread.

    A frame per chunk (the Eiger) comes by ``pread`` as the :class:`Chunk` that the live lane would have brought, 23 µs
    against 79 µs through HDF5. Anything else (spectra, columns) comes as an array, in one slice.

    Files that still grow are read through SWMR and looked at anew when a frame is not in them yet. No file is ever
    locked, so that a reader never keeps a writer from opening its file again.
    """

    def __init__(self, roots: Iterable[Path | str], keep: int = KEEP_OPEN) -> None:
        self.roots = tuple(Path(root) for root in roots)
        self._keep = keep
        self._open: OrderedDict[tuple[str, str], _Dataset] = OrderedDict()

    def read(self, span: FileSpan, frames: Sequence[int], spec: InputSpec) -> Array | list[Chunk]:
        """Return these frames, in this order.

        Parameters
        ----------
        span
            Where frames ``[first, first + n)`` are.
        frames
            Frame numbers within the span.
        spec
            Shape and type of one frame; the file must have just these.

        Returns
        -------
        (len(frames), …) array of ``spec.dtype``, or as many Chunks

        Raises
        ------
        FileLate
            The file, the dataset or a frame isn't there yet.
        FileError
            The file may not be read, is damaged, or holds something else than ``spec`` says.
        """
        for frame in frames:
            if not span.first <= frame < span.first + span.n:
                raise FileError(f"frame {frame} isn't in {span.uri} [{span.first}, {span.first + span.n})")
        rows = [span.offset + frame - span.first for frame in frames]
        dataset = self._dataset(span.uri, span.dataset)
        dataset.check(spec)
        if not dataset.has(rows):
            dataset.refresh()
        if not dataset.has(rows) and dataset.grown():
            # HDF5 looks at a file anew only when nothing in this process has it open any more.
            for key in [key for key, other in self._open.items() if other.opened.path == dataset.opened.path]:
                self._forget(key)
            dataset = self._dataset(span.uri, span.dataset)
            dataset.check(spec)
        if not dataset.has(rows):
            missing = next(frame for frame, row in zip(frames, rows, strict=True) if not dataset.has([row]))
            raise FileLate(f"{dataset.name} has {dataset.length} frames and not frame {missing} (yet)")
        return dataset.chunks(rows) if dataset.encoding else dataset.slice(rows)

    def close(self) -> None:
        """Close every file."""
        for key in list(self._open):
            self._forget(key)

    def __enter__(self) -> FrameReader:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _dataset(self, uri: str, name: str) -> _Dataset:
        key = (uri, name)
        if key in self._open and self._open[key].replaced():
            self._forget(key)
        if key not in self._open:
            while len(self._open) >= self._keep:
                self._open.popitem(last=False)[1].close()
            self._open[key] = _locate(uri, name, self.roots)
        self._open.move_to_end(key)
        return self._open[key]

    def _forget(self, key: tuple[str, str]) -> None:
        self._open.pop(key).close()


@dataclass(slots=True)
class _Dataset:
    """An open dataset of frames along its first axis."""

    opened: OpenFile
    file: h5py.File
    data: h5py.Dataset
    encoding: str
    """How one frame's chunk is compressed, ``""`` if frames and chunks aren't the same."""
    seen: os.stat_result
    index: dict[int, tuple[int, int]] = field(default_factory=dict)
    """First row of each chunk that was written → (byte offset, size); of several beside each other, the last one's."""

    @property
    def name(self) -> str:
        return f"{self.opened.path}:{self.data.name}"

    @property
    def length(self) -> int:
        return int(self.data.shape[0])

    def check(self, spec: InputSpec) -> None:
        shape, dtype = tuple(self.data.shape[1:]), self.data.dtype
        if shape != spec.shape or dtype != np.dtype(spec.dtype):
            raise FileError(
                f"{self.name} has frames of {shape} {dtype.str}, {spec.key} was announced with {spec.shape} "
                f"{spec.dtype}: the document or the file is of another acquisition"
            )

    def has(self, rows: Sequence[int]) -> bool:
        """Tell whether all rows were written. A row within the shape but without a chunk would read as zeros."""
        if any(row >= self.length for row in rows):
            return False
        if self.data.chunks is None:
            return True
        height = self.data.chunks[0]
        starts = {row // height * height for row in rows}
        if not starts <= self.index.keys():
            self._read_index()
        return starts <= self.index.keys()

    def refresh(self) -> None:
        if self.file.swmr_mode:
            self.data.refresh()

    def grown(self) -> bool:
        """Tell whether a file that isn't in SWMR mode was written to since it was opened."""
        now = os.fstat(self.opened.fd)
        return not self.file.swmr_mode and (now.st_size, now.st_mtime_ns) != (self.seen.st_size, self.seen.st_mtime_ns)

    def replaced(self) -> bool:
        """Tell whether another file has this one's name by now."""
        try:
            now = os.stat(self.opened.path, follow_symlinks=False)
        except OSError:
            return True
        return (now.st_dev, now.st_ino) != (self.seen.st_dev, self.seen.st_ino)

    def chunks(self, rows: Sequence[int]) -> list[Chunk]:
        shape, dtype = tuple(self.data.shape[1:]), self.data.dtype
        found = []
        for row in rows:
            offset, size = self.index[row]
            if size > 2 * MAX_FRAME:
                raise FileError(f"{self.name}: the chunk of row {row} claims {size} bytes")
            data = os.pread(self.opened.fd, size, offset)
            if len(data) != size:
                raise FileError(f"{self.name}: the file ends within the chunk of row {row}")
            found.append(Chunk(data, self.encoding, shape, dtype))
        return found

    def slice(self, rows: Sequence[int]) -> Array:
        if not rows:
            return np.empty((0, *self.data.shape[1:]), self.data.dtype)
        low, high = min(rows), max(rows) + 1
        if (high - low) * math.prod(self.data.shape[1:]) * self.data.dtype.itemsize > MAX_READ:
            raise FileError(f"{self.name}: rows {low} to {high} are over {MAX_READ} bytes: read fewer at once")
        try:
            block: Array = self.data[low:high]
        except (OSError, RuntimeError) as error:
            raise FileError(f"{self.name}: rows {low} to {high} can't be read: {_first_line(error)}") from None
        return block if list(rows) == list(range(low, high)) else block[np.asarray(rows) - low]

    def close(self) -> None:
        self.file.close()
        self.opened.close()

    def _read_index(self) -> None:
        # chunk_iter: 7.5 ms for 2000 frames; a loop over get_chunk_info 555 ms.
        index: dict[int, tuple[int, int]] = {}

        def note(chunk: Any) -> None:
            if self.encoding and chunk.filter_mask:
                raise FileError(f"{self.name}: the chunk of row {chunk.chunk_offset[0]} skips its filter")
            index[int(chunk.chunk_offset[0])] = (int(chunk.byte_offset), int(chunk.size))

        try:
            self.data.id.chunk_iter(note)
        except (OSError, RuntimeError) as error:
            raise FileError(f"{self.name}: its chunk index can't be read: {_first_line(error)}") from None
        self.index = index


def _locate(uri: str, name: str, roots: Sequence[Path], links: int = MAX_LINKS) -> _Dataset:
    """Open the dataset; an external link on the way leads to a file that must be below the roots as well."""
    with ExitStack() as stack:
        opened = stack.enter_context(resolve(uri, roots))
        try:
            file = stack.enter_context(_open_hdf5(opened))
            found = _walk(file, name)
        except (KeyError, OSError, RuntimeError, ValueError) as error:
            if isinstance(error, FileError):
                raise
            raise FileLate(f"{opened.path}:{name} can't be opened (yet): {_first_line(error)}") from None
        if not isinstance(found, tuple):
            dataset = _Dataset(opened, file, found, _encoding(found, file), os.fstat(opened.fd))
            stack.pop_all()
            return dataset
    if not links:
        raise FileError(f"{opened.path}:{name} leads through more than {MAX_LINKS} external links")
    target, rest = found
    return _locate(f"file://{quote(str(opened.path.parent / target))}", rest, roots, links - 1)


def _open_hdf5(opened: OpenFile) -> h5py.File:
    import h5py
    import hdf5plugin  # noqa: F401 - gives HDF5 the filters that detectors use

    # SWMR reads a file that grows; files in the old format can't be opened so, and need not be. Where this process
    # has the file open already, both must say the same about locking.
    for options in ({"swmr": True, "libver": "latest", "locking": False}, {"locking": False}):
        try:
            return h5py.File(opened.via, "r", **options)
        except (OSError, ValueError):
            continue
    return h5py.File(opened.via, "r")


def _walk(file: h5py.File, name: str) -> h5py.Dataset | tuple[str, str]:
    """Return the dataset, or the file name and path that an external link on the way gives."""
    import h5py

    group: Any = file
    parts = [part for part in name.split("/") if part]
    for _ in range(64):  # soft links may go in a circle
        if not parts:
            break
        link = group.get(parts[0], getlink=True) if isinstance(group, h5py.Group) else None
        if isinstance(link, h5py.ExternalLink):
            return link.filename, "/".join([link.path, *parts[1:]])
        if isinstance(link, h5py.SoftLink):
            group = file if link.path.startswith("/") else group
            parts[:1] = [part for part in link.path.split("/") if part]
            continue
        if link is None:
            raise FileLate(f"{file.filename}: no dataset {name} (yet)")
        group = group[parts.pop(0)]
    if parts or not isinstance(group, h5py.Dataset) or not group.ndim:
        raise FileError(f"{name} is not an array of frames")
    if group.is_virtual or group.external:
        raise FileError(f"{name} has its data in other files: name those")
    return group


def _encoding(data: h5py.Dataset, file: h5py.File) -> str:
    """Name the compression of a frame's own chunk, ``""`` if it must be read through HDF5."""
    if data.chunks != (1, *data.shape[1:]) or data.ndim < 2 or file.userblock_size:
        return ""
    creation = data.id.get_create_plist()
    filters = [creation.get_filter(number) for number in range(creation.get_nfilters())]
    match filters:
        case []:
            return "none"
        case [(code, _, values, _)] if code == _BITSHUFFLE and values[4:5] == (_BITSHUFFLE_LZ4,):
            return "bslz4"
        case [(code, _, _, _)] if code == _LZ4_FILTER:
            return "lz4"
    return ""


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
