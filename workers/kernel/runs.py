"""Runs: the pixels that a reduction wants, as stretches within one row and one tile."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import ReductionError


class Rectangle(NamedTuple):
    """Rows and columns of a frame, half-open as in Python: ``Rectangle((10, 60), (100, 150))``."""

    rows: tuple[int, int]
    columns: tuple[int, int]

    @property
    def shape(self) -> tuple[int, int]:
        """How many rows and columns it has."""
        return self.rows[1] - self.rows[0], self.columns[1] - self.columns[0]

    @property
    def slices(self) -> tuple[slice, slice]:
        """Its pixels, to index a frame with."""
        return slice(*self.rows), slice(*self.columns)

    def check(self, shape: tuple[int, int] | None = None) -> None:
        """See that it has pixels, and that they are the frame's.

        Raises
        ------
        ReductionError
            It is empty, or reaches beyond the frame.
        """
        for name, (first, stop), length in zip(("rows", "columns"), self, shape or (1 << 30, 1 << 30), strict=True):
            if not 0 <= first < stop <= length:
                there = "" if shape is None else f" of a frame of {shape[0]} × {shape[1]}"
                raise ReductionError(f"{name} [{first}, {stop}){there}: expected 0 ≤ first < stop ≤ {length}")


class Runs(NamedTuple):
    """Runs in pixel order: int64 each.

    ``tile`` : the tile; ``start`` : first pixel, counted from the tile's; ``length`` : pixels; ``row``, ``column`` : of
    the first pixel; ``region`` : whose they are.
    """

    tile: NDArray[np.int64]
    start: NDArray[np.int64]
    length: NDArray[np.int64]
    row: NDArray[np.int64]
    column: NDArray[np.int64]
    region: NDArray[np.int64]


def of_rectangles(
    rectangles: tuple[Rectangle, ...], columns: int, tile: int, mask: NDArray[np.bool_] | None = None
) -> Runs:
    """Return the runs of rectangles, which may overlap, in frames of that many columns; without the masked pixels."""
    found = []
    for region, rectangle in enumerate(rectangles):
        (top, _), (left, _) = rectangle
        if mask is None:
            first = np.arange(*rectangle.rows, dtype=np.int64) * columns + left
            stop = first + rectangle.shape[1]
        else:
            first, stop = _stretches((~mask[rectangle.slices]).view(np.uint8))
            row, column = np.divmod(first, rectangle.shape[1])
            stop = stop - first
            first = (top + row) * columns + left + column
            stop = first + stop
        found.append((first, stop, np.full(len(first), region)))
    first, stop, region_of = (np.concatenate(each) for each in zip(*found, strict=True))
    return _cut(first, stop, region_of, columns, tile)


def of_labels(labels: NDArray[Any], tile: int) -> Runs:
    """Return the runs of equal labels; label 1 is region 0, and so on; label 0 is nobody's."""
    first, stop = _stretches(labels)
    return _cut(first, stop, labels.ravel()[first].astype(np.int64) - 1, labels.shape[1], tile)


def _stretches(labels: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return where stretches of a row with equal labels, 0 left out, begin and end."""
    flat = np.ascontiguousarray(labels).ravel()
    begins = np.ones(len(flat), bool)
    np.not_equal(flat[1:], flat[:-1], out=begins[1:])
    begins[:: labels.shape[1]] = True
    first = np.flatnonzero(begins)
    stop = np.append(first[1:], len(flat))
    wanted = flat[first] != 0
    return first[wanted], stop[wanted]


def _cut(first: NDArray[np.int64], stop: NDArray[np.int64], region: NDArray[np.int64], columns: int, tile: int) -> Runs:
    """Return stretches of rows, cut where a tile ends."""
    begin = first // tile
    pieces = (stop - 1) // tile - begin + 1
    of = np.repeat(np.arange(len(first)), pieces)
    number = np.arange(len(of)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    tiles = begin[of] + number
    low = np.maximum(first[of], tiles * tile)
    high = np.minimum(stop[of], (tiles + 1) * tile)
    order = np.argsort(low, kind="stable")
    low, high, tiles, of = low[order], high[order], tiles[order], of[order]
    return Runs(tiles, low - tiles * tile, high - low, low // columns, low % columns, region[of])
