"""What the simulated detectors measure, where it lies, and what must come of it.

A frame's content is 16 bytes that name it, its series and its nature, with a checksum; the model reducer's answer
follows from them alone. So a block that was given back or reused while it was read shows in the answer.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import IntEnum
from math import inf
from typing import TYPE_CHECKING, Any, Final
from unittest.mock import patch
from zlib import crc32

import numpy as np

from haltere.workers import recipes
from haltere.workers.errors import FileError, FileLate, ReductionError
from haltere.workers.reducers.base import Array, Batch, Chunk, Output, Partial, Reducer, Setup
from haltere.workers.reducers.columns import Columns
from haltere.workers.ring import PADDING
from haltere.workers.wire.messages import FileSpan, InputSpec

if TYPE_CHECKING:
    from .spiller import SpillFile

_CONTENT: Final = struct.Struct("<4I")
SIZE: Final = _CONTENT.size
SHAPE: Final = (2, 2)
DTYPE: Final = "<u4"
GIVEN_BACK: Final = b"\xaa"
"""What a block of the ring holds once it was given back."""


class Nature(IntEnum):
    """What a frame does to who reduces it."""

    PLAIN = 0
    POISON = 1
    KILLER = 2
    HANGING = 3


class Killed(BaseException):
    """The reducer dies, as by a signal: nobody catches that."""


class Hung(BaseException):
    """The reducer doesn't come back."""


def content(series: int, frame: int, nature: Nature) -> bytes:
    """Return a frame's bytes."""
    words = frame, series % 2**32, int(nature)
    return _CONTENT.pack(*words, crc32(struct.pack("<3I", *words)))


def value(series: int, frame: int) -> int:
    """Return what the model reducer makes of a frame."""
    return (frame * 7919 + series * 104_729) % 1_000_003


def pattern(series: int, frame: int) -> Array:
    """Return the (3,) float32 that it makes as well."""
    return np.array([frame / 8, value(series, frame) / 16, 1.0 / (1 + frame)], np.float32)


def column(key: str, series: int, frame: int) -> float:
    """Return a scalar data key's value."""
    return (crc32(key.encode()) % 1000) + series % 1000 / 1000 + frame * 0.5


class Model(Reducer):
    """One number, one pattern and one sum per image, and a scalar that is read beside it if there is one."""

    def outputs(self, inputs: tuple[InputSpec, ...]) -> dict[str, Output]:
        """Name the results."""
        found = {
            "value": Output("nav", (), "<i8"),
            "pattern": Output("nav", (3,), "<f4", axes=("axis",)),
            "total": Output("acc", (2,), "<i8"),
            "axis": Output("const", (3,), "<f8"),
        }
        return found | {spec.key: Output("nav", (), "<f8") for spec in inputs if spec.shape == ()}

    def setup(self, run: Setup) -> dict[str, Array]:
        """Note which keys are which."""
        (self._image,) = [spec.key for spec in run.inputs if spec.shape == SHAPE]
        self._scalars = [spec.key for spec in run.inputs if spec.shape == ()]
        return {"axis": np.array([1.0, 2.0, 3.0])}

    def map(self, batch: Batch) -> Partial:
        """Reduce, or not, as the frames' nature is."""
        named = []
        for chunk in batch.data[self._image]:
            assert isinstance(chunk, Chunk)
            if len(chunk.data) != SIZE:
                raise ReductionError(f"{len(chunk.data)} bytes in place of {SIZE}")
            frame, series, nature, checksum = _CONTENT.unpack(chunk.data)
            if checksum != crc32(bytes(chunk.data[:12])):
                raise ReductionError("the checksum is wrong")
            if nature == Nature.KILLER:
                raise Killed
            if nature == Nature.HANGING:
                raise Hung
            if nature == Nature.POISON:
                raise ReductionError("poison")
            named.append((series, frame))
        values = [value(*each) for each in named]
        nav: dict[str, Array] = {
            "value": np.array(values, np.int64),
            "pattern": np.array([pattern(*each) for each in named], np.float32).reshape(-1, 3),
        }
        for key in self._scalars:
            data = batch.data[key]
            assert isinstance(data, np.ndarray)
            nav[key] = data.astype(np.float64)
        return Partial(batch.index, nav, {"total": np.array([sum(values), len(values)], np.int64)})


@contextmanager
def installed() -> Iterator[None]:
    """Let recipes name the model reducer, as if a package had brought it."""
    known: dict[str, type[Reducer]] = {"model": Model, "columns": Columns}
    with patch.object(recipes, "reducer_class", known.__getitem__):
        yield


@dataclass(slots=True)
class Detector:
    """A detector in one run: how many frames it takes, what they are, and when they can be read.

    ``promised`` of the frames are named by documents; it may take more. ``exposed``, ``written``: seconds, per frame;
    a frame that never gets into the file is written at infinity. Bytes of the ``damaged`` are missing in the stream, of
    the ``broken`` in the file.
    """

    name: str
    series: int
    live: bool
    promised: int
    exposed: list[float]
    written: list[float]
    per_file: int
    natures: dict[int, Nature] = field(default_factory=dict)
    damaged: frozenset[int] = frozenset()
    broken: frozenset[int] = frozenset()
    flux: bool = False
    """A scalar of each frame stands in the file beside the images."""
    stored: bool = True
    """Its images are in files of its own."""
    spilled: set[int] = field(default_factory=set)
    """Frames that are in files of the pool's."""
    lands: set[int] = field(default_factory=set)
    """Frames that were in a ring at some time."""

    @property
    def endpoint(self) -> str:
        """Where it streams."""
        return f"tcp://{self.name}:9999"

    def nature(self, frame: int) -> Nature:
        """Return what a frame does."""
        return self.natures.get(frame, Nature.PLAIN)

    def blob(self, frame: int, lacking: frozenset[int]) -> bytes:
        """Return a frame's bytes; of those ``lacking`` some are missing."""
        whole = content(self.series, frame, self.nature(frame))
        return whole[:9] if frame in lacking else whole

    @property
    def image(self) -> str:
        """The data key of its images; a detector of scalars has none."""
        return f"{self.name}_image"

    @property
    def scalars(self) -> list[str]:
        """The data keys that are numbers."""
        if self.name == "pilc":
            return ["pilc_x", "pilc_y"]
        return [f"{self.name}_flux"] if self.flux else []


class Files:
    """The detectors' files, as :mod:`haltere.workers.worker.reading` asks: rows come with time, some never."""

    def __init__(self) -> None:
        self.now = 0.0
        self._files: dict[str, tuple[Detector, int]] = {}
        self._spills: dict[str, SpillFile] = {}

    def spill(self, file: SpillFile) -> None:
        """Let there be a file of the pool's own."""
        self._spills[f"file://localhost{file.path}"] = file

    def add(self, uri: str, detector: Detector, first: int) -> None:
        """Let there be a file of a detector's frames from ``first`` on."""
        self._files[uri] = detector, first

    def read(self, span: FileSpan, frames: Sequence[int], spec: InputSpec) -> Array | list[Chunk]:
        """Return these frames as they lie in the file, whatever was meant to be there."""
        spilled = self._spills.get(span.uri)
        if spilled is not None:
            rows = [span.offset + frame - span.first for frame in frames]
            if max(rows) >= len(spilled.rows):
                raise FileLate(f"{span.uri} has no row {max(rows)} (yet)")
            return [Chunk(spilled.data[row], "none", SHAPE, np.dtype(DTYPE)) for row in rows]
        if span.uri not in self._files:
            raise FileError(f"{span.uri} is no file")
        detector, base = self._files[span.uri]
        rows = [base + span.offset + frame - span.first for frame in frames]
        for row in rows:
            if not base <= row < base + detector.per_file:
                raise FileError(f"{span.uri} has no row {row - base}")
            if row >= len(detector.written) or self.now < detector.written[row]:
                raise FileLate(f"{span.uri} has no row {row - base} (yet)")
        if spec.shape == ():
            return np.array([column(spec.key, detector.series, row) for row in rows])
        dtype = np.dtype(DTYPE)
        return [Chunk(detector.blob(row, detector.broken), "none", SHAPE, dtype) for row in rows]


class Memory:
    """A ring's bytes, both as who writes and as who reads them sees it. Whoever has it mapped keeps it when it is gone.

    What is given back is spoiled at once, as if the next frame came right then.
    """

    def __init__(self, name: str, size: int, counts: Counter[str]) -> None:
        self.name = name
        self.gone = False
        self._bytes = bytearray(GIVEN_BACK * size)
        self._lives: dict[int, int] = {}
        self._counts = counts

    def write(self, offset: int, data: bytes, life: int) -> None:
        """Let a frame land."""
        self._bytes[offset : offset + len(data)] = data
        self._lives[offset] = life

    def clear(self, offset: int) -> None:
        """Take back what was given back."""
        del self._lives[offset]
        self._bytes[offset : offset + SIZE] = GIVEN_BACK * SIZE

    def view(self, offset: int, size: int) -> bytes:
        """Return what is there now."""
        if offset < 0 or offset + size + PADDING > len(self._bytes):
            raise FileError(f"ring {self.name}: bytes [{offset}, {offset + size}) aren't in it")
        return bytes(self._bytes[offset : offset + size])

    def lives(self, offset: int, size: int, life: int) -> bool:
        """Say whether the block is what it was."""
        if self._lives.get(offset) == life:
            return True
        self._counts["reads of blocks that were given back"] += 1
        return False

    def close(self) -> None:
        """Let go of it."""


class Mapped:
    """What the readers take for :class:`haltere.workers.ring.RingView`."""

    def __init__(self, rings: dict[str, Memory]) -> None:
        self._rings = rings

    def attach(self, name: str) -> Memory:
        """Map a ring."""
        memory = self._rings.get(name)
        if memory is None or memory.gone:
            raise FileError(f"ring {name}: No such file or directory (has its ingest died?)")
        return memory


def never(frames: int) -> list[float]:
    """Return that no frame is ever written."""
    return [inf] * frames


def expected_rows(detector: Detector, frames: range, status: bytes) -> dict[str, Any]:
    """Return the arrays, by their names, that a batch with these statuses must hold to the bit."""
    good = [place for place, each in enumerate(status) if each < 2]
    found: dict[str, Any] = {}
    if detector.name == "pilc":
        for key in detector.scalars:
            rows = np.full(len(frames), np.nan)
            for place in good:
                rows[place] = column(key, detector.series, frames[place])
            found[key] = rows
        return found
    found["value"] = np.zeros(len(frames), np.int64)
    found["pattern"] = np.full((len(frames), 3), np.nan, np.float32)
    for key in detector.scalars:
        found[key] = np.full(len(frames), np.nan)
    for place in good:
        found["value"][place] = value(detector.series, frames[place])
        found["pattern"][place] = pattern(detector.series, frames[place])
        for key in detector.scalars:
            found[key][place] = column(key, detector.series, frames[place])
    found["total"] = np.array([found["value"].sum(), len(good)], np.int64)
    return found
