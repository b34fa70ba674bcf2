"""Tiles to whole frames: decoding alone, to compare with other decoders."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .compiling import inner
from .intrinsics import read8, write8
from .parts import LOT, Array, Layout


# Numba knows a named tuple by its class's bare name, and types anew at each call one that looks like another.
class WholePlan(NamedTuple):
    """``active`` : (1,) 1 if somebody wants frames."""

    active: NDArray[np.int64]


class WholeState(NamedTuple):
    """``pixels`` : the frames' bytes, one frame after the other."""

    pixels: NDArray[np.uint8]


INACTIVE = WholePlan(np.zeros(1, np.int64)), WholeState(np.zeros(0, np.uint8))


@dataclass(frozen=True, slots=True)
class Whole:
    """Decoded frames: ``frames`` (n, …) of the frames' shape and type; 0 where a pixel isn't covered.

    ``cover`` : the pixels that are wanted, by default all.
    """

    cover: NDArray[np.bool_] | None = None

    @property
    def slot(self) -> str:
        """Return its own slot."""
        return "whole"

    def coverage(self, shape: tuple[int, ...]) -> NDArray[np.bool_]:
        """Return the cover."""
        return np.ones(shape, bool) if self.cover is None else self.cover

    def plan(self, layout: Layout) -> WholePlan:
        """Return that it is active."""
        return WholePlan(np.ones(1, np.int64))

    def state(self, layout: Layout, plan: WholePlan) -> WholeState:
        """Return memory for a lot."""
        return WholeState(np.zeros(LOT * layout.pixels * layout.itemsize, np.uint8))

    def reset(self, plan: WholePlan, state: WholeState, frames: int, at: int, out: dict[str, Array]) -> None:
        """Leave what is there: every covered pixel is written, others aren't read."""

    def outputs(self, layout: Layout, frames: int) -> dict[str, Array]:
        """Return room for the frames."""
        return {"frames": np.zeros((frames, *layout.shape), layout.dtype)}

    def take(self, plan: WholePlan, state: WholeState, frames: int, at: int, out: dict[str, Array]) -> None:
        """Copy a lot."""
        shape, dtype = out["frames"].shape[1:], out["frames"].dtype
        taken = state.pixels.view(dtype).reshape(LOT, *shape)[:frames]
        out["frames"][at : at + frames] = taken if self.cover is None else np.where(self.cover, taken, 0)


@inner
def add_whole(
    px: Any,
    stride: int,
    itemsize: int,
    high: int,
    frame: int,
    first_pixel: int,
    pixels: int,
    frame_bytes: int,
    state: Any,
) -> None:
    """Put a tile of one frame of a lot to its frame."""
    to = frame * frame_bytes + first_pixel * itemsize
    for j in range(itemsize):
        row = (j * LOT + frame) * stride
        for i in range(pixels):
            write8(state.pixels, to + i * itemsize + j, read8(px, row + i) if j < high else 0)
