"""A map from measured points: which pixel each one fell into, and the sums and counts per pixel.

Points are placed by where they were measured, never by their order: a snake's turns, jitter, overlap and points that
come late need no care. A pixel that nothing fell into is NaN, not zero.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..workers.wire.messages import BACKFILLED

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Axis:
    """``n`` pixels along one direction; ``low`` and ``high`` are the centres of the first and the last.

    >>> Axis("pilc_x", -1.0, 1.0, 5).pixel([-1.2, -1.0, 0.3, 1.3]).tolist()
    [0, 0, 3, -1]
    """

    name: str
    low: float
    high: float
    n: int

    @classmethod
    def planned(cls, name: str, extent: Sequence[float], n: int) -> Axis:
        """Return the axis of a plan's ``extent``, whichever way it runs."""
        low, high = sorted(float(end) for end in extent)
        return cls(name, low, high, max(int(n), 1))

    @property
    def pitch(self) -> float:
        """From one pixel's centre to the next; 1 where there is only one."""
        span = self.high - self.low
        return span / (self.n - 1) if self.n > 1 and span > 0 else 1.0

    @property
    def edges(self) -> tuple[float, float]:
        """The outer edges of the first and the last pixel."""
        return self.low - self.pitch / 2, self.high + self.pitch / 2

    def pixel(self, positions: ArrayLike) -> NDArray[np.int64]:
        """Return the pixel that each position is nearest to, −1 where that lies outside."""
        place = np.asarray(positions, float)
        if self.n == 1:
            return np.where(np.isfinite(place), 0, -1).astype(np.int64)
        nearest = np.floor((place - self.low) / self.pitch + 0.5)
        inside = (nearest >= 0) & (nearest < self.n)  # false for NaN, too
        return np.where(inside, nearest, -1).astype(np.int64)


@dataclass(frozen=True, slots=True)
class Grid:
    """Rows along ``slow``, columns along ``fast``."""

    slow: Axis
    fast: Axis

    @classmethod
    def planned(cls, start: Mapping[str, Any]) -> Grid | None:
        """Return the grid of a run's start document; None if it planned none of two dimensions."""
        shape, extents, names = start.get("shape"), start.get("extents"), position_names(start)
        if not (shape and extents and names and len(shape) == len(extents) == 2):
            return None
        slow, fast = (Axis.planned(*each) for each in zip(names, extents, shape, strict=True))
        return cls(slow, fast)

    @classmethod
    def covering(cls, names: tuple[str, str], y: Floats, x: Floats, shape: Sequence[int] | None = None) -> Grid:
        """Return a grid over what was measured, of ``shape`` or with about as many pixels as points."""
        there = np.isfinite(y) & np.isfinite(x)
        n = int(there.sum())
        spans = [(float(each[there].min()), float(each[there].max())) if n else (0.0, 0.0) for each in (y, x)]
        if shape is None or len(shape) != 2:
            height, width = (high - low for low, high in spans)
            rows = round((n * height / width) ** 0.5) if height and width else (n if height else 1)
            shape = (max(rows, 1), max(round(n / max(rows, 1)), 1))
        slow, fast = (Axis.planned(*each) for each in zip(names, spans, shape, strict=True))
        return cls(slow, fast)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows, columns."""
        return self.slow.n, self.fast.n

    @property
    def extent(self) -> tuple[float, float, float, float]:
        """Left, right, bottom, top edge, as ``imshow`` takes them."""
        return *self.fast.edges, *self.slow.edges


class Tally:
    """Sum and count per pixel of ``grid``; ``outside`` and ``masked`` count the points that no pixel shows.

    >>> tally = Tally(Grid(Axis("y", 0, 1, 2), Axis("x", 0, 2, 3)))
    >>> tally.add(y=[0, 0.1, 1], x=[0, 0.2, 2], value=[4, 6, 7], status=[0, 1, 3])
    >>> tally.mean().tolist()
    [[5.0, nan, nan], [nan, nan, nan]]
    """

    def __init__(self, grid: Grid):
        self.grid = grid
        self.sums = np.zeros(grid.shape)
        self.counts = np.zeros(grid.shape, np.int64)
        self.outside = 0
        self.masked = 0

    def add(self, y: ArrayLike, x: ArrayLike, value: ArrayLike, status: ArrayLike | None = None) -> None:
        """Add points: positions, values, and status as in the processed run (quarantined and lost are masked)."""
        slow, fast, values = (np.asarray(each, float) for each in (y, x, value))
        good = np.isfinite(values) & np.isfinite(slow) & np.isfinite(fast)
        if status is not None:
            good &= np.asarray(status) <= BACKFILLED
        row, column = self.grid.slow.pixel(slow[good]), self.grid.fast.pixel(fast[good])
        inside = (row >= 0) & (column >= 0)
        pixels = (row[inside], column[inside])
        np.add.at(self.sums, pixels, values[good][inside])
        np.add.at(self.counts, pixels, 1)
        self.masked += int(values.size - good.sum())
        self.outside += int(good.sum() - inside.sum())

    def copy(self) -> Tally:
        """Return one that stands still while this one grows."""
        other = Tally(self.grid)
        other.sums, other.counts = self.sums.copy(), self.counts.copy()
        other.outside, other.masked = self.outside, self.masked
        return other

    def mean(self) -> Floats:
        """Return (rows, columns) float64; NaN where nothing has been measured."""
        mean: Floats = np.full(self.grid.shape, np.nan)
        np.divide(self.sums, self.counts, out=mean, where=self.counts > 0)
        return mean


def position_names(start: Mapping[str, Any]) -> tuple[str, str] | None:
    """Return the data keys of the slow and the fast position, from the start document's dimension hints.

    >>> position_names({"hints": {"dimensions": [[["pilc_y"], "primary"], [["pilc_x"], "primary"]]}})
    ('pilc_y', 'pilc_x')
    """
    dimensions = start.get("hints", {}).get("dimensions", [])
    names = [fields[0] for fields, _stream in dimensions if fields]
    return (names[0], names[1]) if len(names) == 2 else None
