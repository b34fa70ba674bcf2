"""What a reduction is to the kernel: the part that it gives to one walk over the frames.

A part says which pixels it wants, makes its tables once, has a state for the frames of a lot, and reads its results
from that. The loop itself is compiled; a part comes into it through the *slot* that it names: ``"bins"``
(:func:`.binning.add_bins`) ``"images"`` (:func:`.images.add_images`) or ``"whole"``. The compiled function
gets the part's plan and state, both named tuples of arrays. What a slot holds when nobody uses it has the same types,
so that there is one compilation.

::

    kernel = Kernel((2167, 2070), "<u4", {"xrd": Bins(…), "roi": Regions(…)})
        part.coverage(shape)               once: pixels
        part.plan(layout)                  once: tables, only read from then on
    kernel.run(chunks, index)
        part.outputs(layout, n)            once a call: the arrays that come back
        part.state(layout, plan)           seldom: kept from call to call, one per thread
        for each lot of up to 16 frames:
            part.reset(plan, state, frames, at, out)
            add_bins(…, plan, state)       compiled, for each tile
            part.take(plan, state, frames, at, out)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

LOT: Final = 16
"""Frames that are walked together."""

TILE_BYTES: Final = 8192
"""What a standard bitshuffle block holds."""

SLACK: Final = 256
"""Bytes between the frames' tiles, so that their pixels don't all fall into the same sets of the cache."""


@dataclass(frozen=True, slots=True)
class Layout:
    """How frames of a shape and a type lie in the kernel's memory.

    ``shape`` : of a frame; ``dtype`` : uint8, uint16 or uint32, little-endian.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def pixels(self) -> int:
        """Pixels of a frame."""
        return math.prod(self.shape)

    @property
    def itemsize(self) -> int:
        """Bytes of a pixel."""
        return int(self.dtype.itemsize)

    @property
    def tile(self) -> int:
        """Pixels of a tile, in C order; the last tile has what is left."""
        return TILE_BYTES // self.itemsize

    @property
    def tiles(self) -> int:
        """Tiles of a frame."""
        return -(-self.pixels // self.tile)

    @property
    def stride(self) -> int:
        """Bytes from one frame's tile to the next one's.

        Pixel i of byte j of frame f is ``px[(j * LOT + f) * stride + i]``.
        """
        return self.tile + SLACK


class Part(Protocol):
    """A reduction. Its result for a frame depends on the frame and the part alone, to the bit."""

    @property
    def slot(self) -> str:
        """Return where its function is called: ``"bins"``, ``"images"`` or ``"whole"``."""
        ...

    def coverage(self, shape: tuple[int, ...]) -> NDArray[np.bool_]:
        """Return the pixels it wants, of the frame's shape; others have any value in its tiles.

        Raises
        ------
        ReductionError
            Frames of this shape can't be reduced so.
        """
        ...

    def plan(self, layout: Layout) -> Any:
        """Return its tables, a named tuple of arrays; always of the same types, ``active`` (1,) int64 among them."""
        ...

    def state(self, layout: Layout, plan: Any) -> Any:
        """Return memory for :data:`LOT` frames, a named tuple of arrays; always of the same types."""
        ...

    def reset(self, plan: Any, state: Any, frames: int, at: int, out: dict[str, Array]) -> None:
        """Make the state ready for a lot.

        Parameters
        ----------
        frames, at, out
            As for :meth:`take`: what is written as it comes is written there.
        """
        ...

    def outputs(self, layout: Layout, frames: int) -> dict[str, Array]:
        """Return the arrays of a call's results, per frame: (frames, …); or in all, set to zero."""
        ...

    def take(self, plan: Any, state: Any, frames: int, at: int, out: dict[str, Array]) -> None:
        """Read the results of a lot.

        Parameters
        ----------
        frames
            Frames in the lot: lanes [0, frames) of the state are theirs, others hold anything.
        at
            Row of the lot's first frame.
        out
            As :meth:`outputs` gave it.
        """
        ...
