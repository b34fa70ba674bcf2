"""Which sums over a spectrum are made, and how areas are made of them: of as few sums as they take."""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .aligned import aligned
from .dots import MIXED, TILE
from .factoring import factored
from .places import LANES

BLOCK: Final = 512
"""Channels after which a sum goes over to float64, and whose part of the operator is a product of its own: with fewer
there would be fewer products, but more sums. Results depend on it."""

NEGLIGIBLE: Final = 2.0**-60
"""Values smaller than this, beside the largest, are 0: their products would be denormal, which is slow."""


class SumsPlan(NamedTuple):
    """What is summed over which templates.

    ``table`` : float32, tile after tile as :func:`.dots.dots` reads them. ``ends`` : (blocks + 1,) int64, each block's
    first tile, and one after the last. ``slots`` : (tiles,) int64, the first of the TILE sums that a tile is added to.
    ``mixing`` : (slots, areas) float64, what areas are of sums; slots after these are of variances. There are areas for
    whole vectors. ``variance_scale`` : float64, what variances are in units of.
    """

    table: NDArray[np.float32]
    ends: NDArray[np.int64]
    slots: NDArray[np.int64]
    mixing: NDArray[np.float64]
    variance_scale: NDArray[np.float64]


def planned(operator: NDArray[np.float64], chosen: NDArray[np.intp]) -> SumsPlan:
    """Return the plan for areas, and for the variances of those chosen.

    Parameters
    ----------
    operator
        (templates, channels) float64, of whole groups of channels.
    """
    # Each template is brought to 1 by a power of two, which changes no digit: float32 has a short range.
    scale = np.ldexp(1.0, np.frexp(np.abs(operator).max(axis=1))[1])
    scaled = operator / scale[:, None]
    scaled[np.abs(scaled) < NEGLIGIBLE] = 0
    starts = range(0, scaled.shape[1], BLOCK)
    blocks = [factored(scaled[:, start : start + BLOCK]) for start in starts]
    slots = np.cumsum([0, *(-(-len(each.rows) // TILE) * TILE for each in blocks)])
    mixing = np.zeros((max(TILE, slots[-1]), -(-len(scaled) // MIXED) * MIXED))
    tiles: list[NDArray[np.float32]] = []
    ends, places = [0], []
    for start, slot, block in zip(starts, slots[:-1], blocks, strict=True):
        mixing[slot : slot + len(block.rows), : len(scaled)] = (block.weights * scale[:, None]).T
        rows = np.where(np.abs(block.rows) < NEGLIGIBLE, 0, block.rows)
        squares = scaled[chosen, start : start + BLOCK] ** 2
        for first, templates in ((slot, rows), (len(mixing), squares)):
            found = _tiles(templates) if templates.any() else []
            tiles += found
            places += [first + k * TILE for k in range(len(found))]
        ends.append(len(tiles))
    table = aligned(sum(tile.size for tile in tiles), np.float32)
    if tiles:
        np.concatenate([tile.ravel() for tile in tiles], out=table)
    return SumsPlan(table, np.array(ends), np.array(places, np.int64), mixing, scale[chosen] ** 2)


def _tiles(rows: NDArray[np.float64]) -> list[NDArray[np.float32]]:
    """Return templates tile by tile, each group by group, then template by template."""
    count = -(-len(rows) // TILE)
    filled = np.pad(rows, ((0, count * TILE - len(rows)), (0, 0))).astype(np.float32)
    return list(filled.reshape(count, TILE, -1, LANES).transpose(0, 2, 1, 3))
