"""Tiles to what is looked at as an image: regions, moments, pieces and smaller pictures of a frame."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .compiling import inner


class NoPlan(NamedTuple):
    """Of a slot that nobody uses."""

    active: NDArray[np.int64]


class NoState(NamedTuple):
    """Of a slot that nobody uses."""

    sums: NDArray[np.int64]


class Plan(NamedTuple):
    """A plan for each slot; ``active`` : (1,) 1 if one of them is."""

    active: NDArray[np.int64]
    regions: Any


class State(NamedTuple):
    """A state for each slot."""

    regions: Any


INACTIVE = Plan(np.zeros(1, np.int64), NoPlan(np.zeros(1, np.int64))), State(NoState(np.zeros(0, np.int64)))


@inner
def add_images(
    px: Any,
    stride: int,
    itemsize: int,
    high: int,
    frame: int,
    tile: int,
    first_pixel: int,
    pixels: int,
    plan: Any,
    state: Any,
) -> None:
    """Add a tile of one frame of a lot.

    Parameters
    ----------
    px
        uint8, pixel i of byte j at ``(j * 16 + frame) * stride + i``; bytes below ``high`` are there, the others are 0
        in all covered pixels.
    frame
        Its place in the lot.
    tile, first_pixel, pixels
        Which tile it is, its first pixel in the frame and how many it has.
    """
    return
