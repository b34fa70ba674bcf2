"""Tiles to bins."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .compiling import inner


class Plan(NamedTuple):
    """Tables; ``active`` : (1,) 1 if somebody wants bins."""

    active: NDArray[np.int64]


class State(NamedTuple):
    """Sums of a lot."""

    sums: NDArray[np.float64]


INACTIVE = Plan(np.zeros(1, np.int64)), State(np.zeros(0, np.float64))


@inner
def add_bins(
    px: Any,
    stride: int,
    itemsize: int,
    top: int,
    high: Any,
    frames: int,
    tile: int,
    first_pixel: int,
    pixels: int,
    plan: Any,
    state: Any,
) -> int:
    """Add a tile of all frames of a lot.

    Parameters
    ----------
    px
        uint8, pixel i of byte j of frame f at ``(j * 16 + f) * stride + i``; bytes below ``top`` are there.
    high
        (16,) int64, per frame: bytes from this one on are 0 in all covered pixels.
    tile, first_pixel, pixels
        Which tile it is, its first pixel in the frame and how many it has.

    Returns
    -------
    0, or what is wrong.
    """
    return 0
