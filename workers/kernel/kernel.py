"""A kernel: the reductions of a stream's frames, several in one decode."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import ReductionError
from ..reducers.base import Chunk
from . import binning, gathering, whole
from .chunks import Opened, opened, refused
from .compiling import Packed
from .gathering import ImagePart, Images
from .parts import LOT, Layout, Part
from .walk import REFUSED, Frames, Scratch, Tables, make_scratch, make_tables, walk

Array = NDArray[Any]

DTYPES: Final = ("<u1", "<u2", "<u4")
"""What the kernel reads; other types take the reference path."""

_IMAGES: Final = "/images"
"""All image parts, as one."""

MOST_DECODED: Final = 1 << 26
"""Most bytes of decoded frames in memory, beside one frame: what isn't bslz4 in blocks of 8 KiB is decoded whole."""


class Kernel:
    """Chunks to results.

    Parameters
    ----------
    shape
        Of a frame.
    dtype
        Of its pixels: uint8, or uint16 or uint32 little-endian.
    parts
        The reductions, by name. All image parts share a walk; of the others, two that need the same slot take two.

    Raises
    ------
    ReductionError
        The type isn't one of these, there is no pixel, or a part can't reduce such frames.

    Notes
    -----
    Several threads may use one kernel: the interpreter's lock is let go while a lot is walked.
    """

    def __init__(self, shape: Sequence[int], dtype: str | np.dtype[Any], parts: Mapping[str, Part | ImagePart]) -> None:
        self.layout = Layout(tuple(int(n) for n in shape), np.dtype(dtype))
        if not reads(self.layout.dtype):
            raise ReductionError(
                f"the kernel reads uint8, uint16 and uint32, little-endian; not {self.layout.dtype.str}"
            )
        if not self.layout.shape or min(self.layout.shape) < 1:
            raise ReductionError(f"frames of {self.layout.shape} have no pixels")
        self.parts = dict(parts)
        self._images = Images({name: part for name, part in self.parts.items() if isinstance(part, ImagePart)})
        self._walked: dict[str, Part] = {
            name: part for name, part in self.parts.items() if not isinstance(part, ImagePart)
        }
        if self._images.parts:
            self._walked[_IMAGES] = self._images
        self._passes = [_Pass(self.layout, group) for group in _groups(self._walked) or [{}]]

    def run(
        self, chunks: Sequence[Chunk | Array] | Array, index: ArrayLike | None = None
    ) -> dict[str, dict[str, Array]]:
        """Reduce frames.

        Parameters
        ----------
        chunks
            Any number of chunks, or of frames that are decoded already.
        index
            (n,) the frames' numbers, to name them in errors; by default from 0.

        Returns
        -------
        {part: {output: (n, …) or in all}}

        Raises
        ------
        ChunkError
            A chunk doesn't decode to its frame. It names the frame.
        ShapeMismatch
            A frame has another shape or type.
        """
        n = len(chunks)
        numbers = np.arange(n) if index is None else np.asarray(index)
        out = {name: part.outputs(self.layout, n) for name, part in self._walked.items()}
        lot: list[Opened] = []
        for k in range(n):
            lot.append(opened(chunks[k], self.layout, int(numbers[k])))
            if len(lot) == LOT or k == n - 1 or sum(each.decoded for each in lot) > MOST_DECODED:
                for walked in self._passes:
                    walked.run(lot, k + 1 - len(lot), out)
                lot = []
        return self._images.apart(out.pop(_IMAGES, {})) | out


def reads(dtype: np.dtype[Any]) -> bool:
    """Return whether the kernel reads pixels of this type."""
    return dtype in [np.dtype(each) for each in DTYPES]


def check(chunk: Chunk) -> None:
    """Decode a chunk, if the kernel reads its type.

    Raises
    ------
    ChunkError
        It doesn't decode to its frame.
    """
    if reads(chunk.dtype):
        Kernel(chunk.shape, chunk.dtype, {"frame": whole.Whole()}).run([chunk])


def _groups(parts: Mapping[str, Part]) -> list[dict[str, Part]]:
    """Return parts that can share a walk: no two of them need the same slot."""
    groups, left = [], dict(parts)
    while left:
        group: dict[str, Part] = {}
        for name, part in left.items():
            if part.slot not in {other.slot for other in group.values()}:
                group[name] = part
        groups.append(group)
        left = {name: part for name, part in left.items() if name not in group}
    return groups


@dataclass(slots=True)
class _Memory:
    """What one thread's walk writes to, and how the walk is told of it all."""

    scratch: Scratch
    states: dict[str, Any]
    arguments: list[Packed]


class _Pass:
    """One walk's reductions."""

    def __init__(self, layout: Layout, parts: dict[str, Part]) -> None:
        self._layout, self._parts = layout, parts
        coverage = np.zeros(layout.shape, bool)
        for part in parts.values():
            coverage |= part.coverage(layout.shape)
        self._tables: Tables = make_tables(layout, coverage)
        self._plans = {name: part.plan(layout) for name, part in parts.items()}
        self._idle: list[_Memory] = []

    def run(self, lot: list[Opened], first: int, out: dict[str, dict[str, Array]]) -> None:
        """Walk over a lot, and put its results to the others, from row ``first`` on."""
        layout = self._layout
        lanes = Frames(np.zeros(LOT, np.int64), np.zeros(LOT, np.int64), np.zeros(LOT, np.int64))
        for lane, each in enumerate(lot):
            lanes.address[lane] = each.content.ctypes.data
            lanes.size[lane] = each.content.size
            lanes.kind[lane] = each.kind
        mine = self._idle.pop() if self._idle else self._memory()
        try:
            for name, part in self._parts.items():
                part.reset(self._plans[name], mine.states[name], len(lot), first, out[name])
            status = walk(len(lot), layout.pixels, layout.itemsize, lanes, *mine.arguments)
            if status == REFUSED:
                raise ReductionError(f"frames {lot[0].index} to {lot[-1].index}: a sum would pass its type's range")
            if status != 0:
                lane, block = (int(place) for place in mine.scratch.wrong)
                raise refused(status, block, lot[lane])
            for name, part in self._parts.items():
                part.take(self._plans[name], mine.states[name], len(lot), first, out[name])
        finally:
            self._idle.append(mine)

    def _memory(self) -> _Memory:
        states = {name: part.state(self._layout, self._plans[name]) for name, part in self._parts.items()}
        scratch = make_scratch(self._layout)
        given = (self._tables, scratch, *self._in_slots(states))
        return _Memory(scratch, states, [Packed(each) for each in given])

    def _in_slots(self, states: dict[str, Any]) -> tuple[Any, ...]:
        """Return what the walk takes for each consumer: plan and state, idle ones where nobody is."""
        bins: tuple[Any, Any] = binning.INACTIVE
        frames: tuple[Any, Any] = whole.INACTIVE
        pictures: tuple[Any, Any] = gathering.INACTIVE
        for name, part in self._parts.items():
            if part.slot == "bins":
                bins = self._plans[name], states[name]
            elif part.slot == "whole":
                frames = self._plans[name], states[name]
            else:
                pictures = self._plans[name], states[name]
        return (*bins, *pictures, *frames)
