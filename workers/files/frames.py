"""Frames from detectors' HDF5 files, by number: still compressed where the file has a chunk for each."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType

from ..errors import FileError, FileLate
from ..reducers.base import Array, Chunk
from ..wire.messages import FileSpan, InputSpec
from .hdf5 import DetectorFile, FrameDataset

KEEP_OPEN = 16
"""Files kept open; each costs two descriptors and its chunk indices (about 200 bytes a frame)."""

MAX_LINKS = 4
"""External links followed in a row: a master file leads to a data file in one."""


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
        self._open: OrderedDict[str, DetectorFile] = OrderedDict()

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
        if not dataset.has(rows) and dataset.file.grown():
            self._forget(dataset.file.opened.path)
            dataset = self._dataset(span.uri, span.dataset)
            dataset.check(spec)
        if not dataset.has(rows):
            missing = next(frame for frame, row in zip(frames, rows, strict=True) if not dataset.has([row]))
            raise FileLate(f"{dataset.name} has {dataset.length} frames and not frame {missing} (yet)")
        return dataset.chunks(rows) if dataset.encoding else dataset.slice(rows)

    def length(self, uri: str, dataset: str) -> int:
        """Return how many frames a file has.

        Raises
        ------
        FileLate
            The file or the dataset isn't there (yet).
        FileError
            The file may not be read, or is damaged.
        """
        return self._dataset(uri, dataset).length

    def missing(self, span: FileSpan, spec: InputSpec) -> list[int]:
        """Return the frames of a span that the file doesn't have; what they hold isn't read.

        Raises
        ------
        FileLate
            The file or the dataset isn't there (yet).
        FileError
            The file may not be read, is damaged, or holds something else than ``spec`` says.
        """
        dataset = self._dataset(span.uri, span.dataset)
        dataset.check(spec)
        frames = range(span.first, span.first + span.n)
        if dataset.has(range(span.offset, span.offset + span.n)):
            return []
        return [frame for frame in frames if not dataset.has([span.offset + frame - span.first])]

    def close(self) -> None:
        """Close every file."""
        while self._open:
            self._open.popitem()[1].close()

    def __enter__(self) -> FrameReader:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _dataset(self, uri: str, name: str) -> FrameDataset:
        """Return the dataset; an external link on the way leads to a file that must be below the roots as well."""
        for _ in range(MAX_LINKS + 1):
            try:
                found = self._file(uri).find(name)
            except FileLate:
                if uri not in self._open or not self._open[uri].grown():
                    raise
                self._forget(self._open[uri].opened.path)
                found = self._file(uri).find(name)
            if isinstance(found, FrameDataset):
                return found
            uri, name = found
        raise FileError(f"{uri}: {name} is reached through more than {MAX_LINKS} external links")

    def _forget(self, path: Path) -> None:
        # HDF5 looks at a file anew only when nothing in this process has it open any more.
        for uri in [uri for uri, other in self._open.items() if other.opened.path == path]:
            self._open.pop(uri).close()

    def _file(self, uri: str) -> DetectorFile:
        if uri in self._open and self._open[uri].replaced():
            self._open.pop(uri).close()
        if uri not in self._open:
            file = DetectorFile.open(uri, self.roots)
            while len(self._open) >= self._keep:
                self._open.popitem(last=False)[1].close()
            self._open[uri] = file
        self._open.move_to_end(uri)
        return self._open[uri]
