"""What is measured: the same question to everybody who competes, and what its answer must be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from .detectors import Detector
from .timing import Competitor

Array = NDArray[Any]
Answer = dict[str, Array]
"""What a frame gives, by name: integers must be equal to numpy's, floats are compared with pyFAI's."""

BINS: Final = 1000
CAKE: Final = (1000, 360)
"""Radial × azimuthal bins."""

UNIT: Final = "q_nm^-1"
CROP: Final = 256
"""Rows and columns around the middle."""

REFLECTION: Final = 32
"""Rows and columns of a region."""

SHRINK: Final = 2
"""Pixels of each direction that become one."""

TITLES: Final = {
    "decode": "decode only",
    "no": "1000 bins, no splitting",
    "variance": "1000 bins, no splitting, Poisson variance",
    "bbox": "1000 bins, bbox",
    "full": "1000 bins, full splitting",
    "cake": "caking 1000 × 360, no splitting",
    "roi": "sums of 3 regions of 32²",
    "crop": "crop 256²",
    "moments": "total, centre of mass, maximum",
    "shrink": "downsampling 2 × 2",
    "all": "no splitting + regions + moments",
}

OURS: Final = "haltere"


@dataclass(frozen=True, slots=True)
class Row:
    """One competitor at one task. ``answer`` makes of what its call gave the values of that call's first frame."""

    task: str
    engine: str
    competitor: Competitor
    answer: Callable[[Any], Answer]


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle of pixels: first row and column, rows and columns."""

    row: int
    column: int
    rows: int
    columns: int

    @property
    def slices(self) -> tuple[slice, slice]:
        """Index of a frame."""
        return slice(self.row, self.row + self.rows), slice(self.column, self.column + self.columns)


def regions(detector: Detector) -> list[Box]:
    """Return three regions, each of a reflection's size, in different parts of the detector."""
    rows, columns = detector.shape
    size = min(REFLECTION, rows // 8, columns // 8)
    return [Box(rows * k // 4, columns * k // 4, size, size) for k in (1, 2, 3)]


def crop(detector: Detector) -> Box:
    """Return the middle of the detector, as ptychography takes it."""
    rows, columns = (min(each, CROP) for each in detector.shape)
    return Box((detector.shape[0] - rows) // 2, (detector.shape[1] - columns) // 2, rows, columns)


def region_sums(frame: Array, mask: Array, boxes: list[Box]) -> Array:
    """Return the counts in each, masked pixels left out: (n,) int64."""
    sums = [int(frame[box.slices][~mask[box.slices]].sum(dtype=np.int64)) for box in boxes]
    return np.array(sums, np.int64)


def moments(frame: Array, mask: Array) -> Answer:
    """Return counts in all, their centre (column ``x``, row ``y``), and the most of a pixel; masked ones left out."""
    counts = np.where(mask, 0, frame)
    by_row, by_column = counts.sum(axis=1, dtype=np.int64), counts.sum(axis=0, dtype=np.int64)
    total = by_row.sum()
    return {
        "total": total,
        "x": by_column @ np.arange(by_column.size) / total,
        "y": by_row @ np.arange(by_row.size) / total,
        "maximum": counts.max(),
    }


def shrunk(frame: Array, mask: Array) -> Array:
    """Return sums of 2 × 2 pixels, masked ones left out; an odd last row or column makes smaller cells."""
    counts = np.where(mask, 0, frame)
    rows, columns = (-(-each // SHRINK) for each in counts.shape)
    summed = np.zeros((rows, columns), np.int64)
    for i in range(SHRINK):
        for j in range(SHRINK):
            piece = counts[i::SHRINK, j::SHRINK]
            summed[: piece.shape[0], : piece.shape[1]] += piece
    return summed
