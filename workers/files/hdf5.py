"""A detector's HDF5 file as it is: growing or not, a frame per chunk or not; nothing in it is trusted."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import numpy as np

from ..errors import FileError, FileLate
from ..reducers.base import Array, Chunk
from ..wire.messages import InputSpec
from .bounds import check_storage, most_stored
from .opening import cut, open_hdf5
from .references import OpenFile, resolve

if TYPE_CHECKING:
    import h5py

CHUNK_CACHE = 4 << 20
"""Bytes of decompressed chunks that HDF5 keeps per dataset, so that the next batch finds the rest of a chunk."""

MAX_READ = 1 << 31
"""Most bytes that one slice may have."""

_BITSHUFFLE, _LZ4_FILTER, _BITSHUFFLE_LZ4 = 32008, 32004, 2


@dataclass(slots=True)
class DetectorFile:
    """An open file, and what was found in it: datasets, or where a link leads."""

    opened: OpenFile
    hdf5: h5py.File
    seen: os.stat_result
    found: dict[str, FrameDataset | tuple[str, str]] = field(default_factory=dict)

    @classmethod
    def open(cls, uri: str, roots: Sequence[Path]) -> DetectorFile:
        """Open the file that ``uri`` names, if it lies below ``roots``; never locked.

        Raises
        ------
        FileError
            It may not be read.
        FileLate
            It isn't there (yet), or not whole.
        """
        opened = resolve(uri, roots)
        try:
            return cls(opened, open_hdf5(opened.via, CHUNK_CACHE), os.fstat(opened.fd))
        except (OSError, RuntimeError, ValueError) as error:
            why = cut(opened.fd) or _first_line(error)
            opened.close()
            raise FileLate(f"{opened.path} can't be opened (yet): {why}") from None

    def find(self, name: str) -> FrameDataset | tuple[str, str]:
        """Return the dataset of that name, or the URI and the name that an external link on the way gives."""
        if name not in self.found:
            try:
                found = _walk(self.hdf5, name)
            except (KeyError, OSError, RuntimeError, ValueError) as error:
                if isinstance(error, FileError):
                    raise type(error)(f"{self.opened.path}:{name} {error}") from None
                why = cut(self.opened.fd) or _first_line(error)
                raise FileLate(f"{self.opened.path}:{name} can't be opened (yet): {why}") from None
            if isinstance(found, tuple):
                target = self.opened.path.parent / found[0]
                self.found[name] = f"file://{quote(str(target), errors='surrogateescape')}", found[1]
            else:
                self.found[name] = FrameDataset(self, found, _encoding(found, self.hdf5))
        return self.found[name]

    def grown(self) -> bool:
        """Tell whether the file was written to since it was opened: then it is worth opening anew."""
        now = os.fstat(self.opened.fd)
        return (now.st_size, now.st_mtime_ns) != (self.seen.st_size, self.seen.st_mtime_ns)

    def replaced(self) -> bool:
        """Tell whether another file has this one's name by now."""
        try:
            now = os.stat(self.opened.path, follow_symlinks=False)
        except OSError:
            return True
        return (now.st_dev, now.st_ino) != (self.seen.st_dev, self.seen.st_ino)

    def close(self) -> None:
        """Close it, and what was found in it."""
        self.found.clear()
        self.hdf5.close()
        self.opened.close()


@dataclass(slots=True)
class FrameDataset:
    """An open dataset of frames along its first axis."""

    file: DetectorFile
    data: h5py.Dataset
    encoding: str
    """How one frame's chunk is compressed, ``""`` if frames and chunks aren't the same."""
    index: dict[int, tuple[int, int]] = field(default_factory=dict)
    """First row of each chunk that was written → (byte offset, size); of several beside each other, the last one's."""

    @property
    def name(self) -> str:
        """File and path, for messages."""
        return f"{self.file.opened.path}:{self.data.name}"

    @property
    def length(self) -> int:
        """Frames that it has, as far as is known."""
        return int(self.data.shape[0])

    def check(self, spec: InputSpec) -> None:
        """Compare shape and type of a frame with what was announced.

        Raises
        ------
        FileError
            They differ.
        """
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
        """Look at a file in SWMR mode anew."""
        if self.file.hdf5.swmr_mode:
            self.data.refresh()

    def chunks(self, rows: Sequence[int]) -> list[Chunk]:
        """Return these rows as they lie in the file; :meth:`has` must have said yes."""
        shape, dtype = tuple(self.data.shape[1:]), self.data.dtype
        most = most_stored(math.prod(shape) * dtype.itemsize)
        found = []
        for row in rows:
            offset, size = self.index[row]
            if size > most or offset >= 1 << 62:
                raise FileError(f"{self.name}: the chunk of row {row} claims {size} bytes at {offset}")
            data = os.pread(self.file.opened.fd, size, offset)
            if len(data) != size:
                raise FileError(f"{self.name}: the file ends within the chunk of row {row}")
            found.append(Chunk(data, self.encoding, shape, dtype))
        return found

    def slice(self, rows: Sequence[int]) -> Array:
        """Return these rows through HDF5, read at once."""
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
            why = cut(self.file.opened.fd) or _first_line(error)
            raise FileError(f"{self.name}: its chunk index can't be read: {why}") from None
        self.index = index


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
            raise FileLate("isn't there (yet)")
        group = group[parts.pop(0)]
    if parts or not isinstance(group, h5py.Dataset) or not group.ndim:
        raise FileError("is not an array of frames")
    if group.is_virtual or group.external:
        raise FileError("has its data in other files: name those")
    check_storage(group)
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
