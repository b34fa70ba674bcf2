"""Pictures made of frames: pieces as they are, smaller frames, sums of frames."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ..errors import ReductionError
from . import operations as op
from .gathering import ImagePart, Operation, Tally
from .left_out import counted, left_out, limit_of
from .parts import Array, Layout
from .runs import Rectangle, of_labels, of_rectangles
from .shelf import Shelf

MAX_FACTOR: Final = 64
"""Most pixels along each axis of a cell: 64 values below 2²⁴ add up to less than 2³²."""


@dataclass(frozen=True, eq=False)
class Crop(ImagePart):
    """A piece of each frame as it is: ``frames`` (n, rows, columns) of the frames' type. Other tiles aren't decoded."""

    rectangle: Rectangle

    def __post_init__(self) -> None:
        self.rectangle.check()

    def coverage(self, shape: tuple[int, ...]) -> NDArray[np.bool_]:
        """Return the rectangle.

        Raises
        ------
        ReductionError
            It isn't in such frames.
        """
        self.rectangle.check(_rows_and_columns(shape))
        covered = np.zeros(shape, bool)
        covered[self.rectangle.slices] = True
        return covered

    def operation(self, layout: Layout) -> Operation:
        """Return the rectangle's runs, each with its place in the piece."""
        runs = of_rectangles((self.rectangle,), layout.shape[-1], layout.tile)
        (top, _), (left, _) = self.rectangle
        targets = (runs.row - top) * self.rectangle.shape[1] + runs.column - left
        return Operation(op.CROP, runs, targets, self.rectangle.shape)

    def outputs(self, layout: Layout, frames: int) -> dict[str, Array]:
        """Return room for the pieces."""
        return {"frames": np.empty((frames, *self.rectangle.shape), layout.dtype)}

    def reference(self, frame: Array) -> dict[str, Array]:
        """Return the piece of a decoded frame of any type."""
        self.rectangle.check(_rows_and_columns(frame.shape))
        return {"frames": frame[self.rectangle.slices]}


@dataclass(frozen=True, eq=False)
class _Cells(ImagePart):
    """Cells of ``factor`` × ``factor`` pixels; those at the right and lower edges have the pixels that there are."""

    factor: int
    cutoff: float | None = None
    mask: NDArray[np.bool_] | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.factor <= MAX_FACTOR:
            raise ReductionError(f"cells of {self.factor} × {self.factor} pixels: 1 to {MAX_FACTOR} along each axis")
        if self.mask is not None and self.mask.all():
            raise ReductionError("every pixel is masked")

    def shape_of(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """Return how many rows and columns of cells a frame has."""
        rows, columns = _rows_and_columns(shape)
        return -(-rows // self.factor), -(-columns // self.factor)

    def coverage(self, shape: tuple[int, ...]) -> NDArray[np.bool_]:
        """Return the pixels that aren't masked."""
        shape = _rows_and_columns(shape)
        if self.mask is None:
            return np.ones(shape, bool)
        if self.mask.shape != shape:
            raise ReductionError(f"the mask has {self.mask.shape} pixels, the frames have {shape}")
        return ~self.mask

    @cached_property
    def _masked_rows(self) -> NDArray[np.int64]:
        """Return which rows of cells have no pixel that isn't masked."""
        if self.mask is None:
            return np.empty(0, np.int64)
        return np.flatnonzero(~self._added(~self.mask).any(axis=1))

    def _operation(self, kind: int, layout: Layout, wide: bool) -> Operation:
        covered = self.coverage(layout.shape)
        runs = of_labels(covered.view(np.uint8), layout.tile)
        cells = self._added(covered.astype(np.int64)).astype(np.uint16)
        limit = limit_of(layout.dtype, self.cutoff)
        return Operation(kind, runs, runs.region, cells.shape, limit, self.factor, wide, cells=cells)

    def _added(self, array: Array) -> Array:
        """Return sums over cells, pixel by pixel in the order of rows."""
        padded = np.pad(array, [(0, -length % self.factor) for length in array.shape])
        total = np.zeros(self.shape_of(array.shape), array.dtype)
        for row in range(self.factor):
            for column in range(self.factor):
                total += padded[row :: self.factor, column :: self.factor]
        return total

    def _counted(self, frame: Array) -> tuple[Array, Array]:
        """Return a decoded frame's sums, and how many pixels were left out, masked ones not among them."""
        covered = self.coverage(frame.shape)
        bad, _ = left_out(frame, self.cutoff)
        try:
            counts = counted(frame, bad | ~covered)
        except OverflowError:
            raise ReductionError(f"{frame.max()} counts in a pixel can't be added exactly") from None
        return self._added(counts), self._added((bad & covered).astype(np.int64))


class Shrink(_Cells):
    """Smaller frames.

    Output per frame: ``frames`` (n, rows, columns), each cell the sum of its pixels that count; with all bits set if
    none does, as a pixel without data has. uint32, or uint64 if such a sum might not fit; of other types of pixels than
    the kernel's int64, with −1 for no data, or float64, with NaN.
    """

    @cached_property
    def _shelf(self) -> Shelf:
        return Shelf()

    def type_of(self, dtype: np.dtype[Any]) -> np.dtype[Any]:
        """Return the cells' type."""
        if dtype.kind == "f":
            return np.dtype("<f8")
        if dtype.kind == "i" or dtype.itemsize > 4:
            return np.dtype("<i8")
        return np.dtype("<u8" if limit_of(dtype, self.cutoff) * self.factor**2 >= 2**32 - 1 else "<u4")

    def operation(self, layout: Layout) -> Operation:
        """Return the runs of unmasked pixels."""
        return self._operation(op.SHRINK, layout, self.type_of(layout.dtype).itemsize == 8)

    def outputs(self, layout: Layout, frames: int) -> dict[str, Array]:
        """Return room for the smaller frames; rows of cells of which all pixels are masked are no runs' to write."""
        smaller = self._shelf.array((frames, *self.shape_of(layout.shape)), self.type_of(layout.dtype))
        smaller[:, self._masked_rows] = np.iinfo(smaller.dtype).max
        return {"frames": smaller}

    def reference(self, frame: Array) -> dict[str, Array]:
        """Return the same of a decoded frame, by numpy; of any type of pixels."""
        total, missing = self._counted(frame)
        dtype = self.type_of(frame.dtype)
        void = np.nan if dtype.kind == "f" else -1 if dtype.kind == "i" else np.iinfo(dtype).max
        nothing = missing == self._added(self.coverage(frame.shape).astype(np.int64))
        return {"frames": np.where(nothing, dtype.type(void), total.astype(dtype))}


class Sum(_Cells, Tally):
    """Frames added up, in cells of ``factor`` × ``factor`` pixels.

    Outputs, of all frames together: ``sum`` (rows, columns) int64, counts; ``left_out`` likewise, how many
    pixels of how many frames didn't count: without data, or above ``cutoff``; masked ones aren't counted there.
    """

    adds = True

    def operation(self, layout: Layout) -> Operation:
        """Return the runs of unmasked pixels."""
        return self._operation(op.SUM, layout, wide=True)

    def outputs(self, layout: Layout, frames: int) -> dict[str, Array]:
        """Return sums of nothing."""
        shape = self.shape_of(layout.shape)
        return {"sum": np.zeros(shape, np.int64), "left_out": np.zeros(shape, np.int64)}

    def take(self, results: Array, missing: Array, at: int, out: dict[str, Array]) -> None:
        """Add a lot."""
        del at
        out["sum"] += results
        out["left_out"] += missing

    def reference(self, frame: Array) -> dict[str, Array]:
        """Return the same of one decoded frame, by numpy; of integers.

        Raises
        ------
        ReductionError
            The pixels aren't integers: their sum would depend on the order.
        """
        if frame.dtype.kind not in "iu":
            raise ReductionError(f"a sum of frames needs integers, not {frame.dtype}")
        total, missing = self._counted(frame)
        return {"sum": total, "left_out": missing}


def _rows_and_columns(shape: tuple[int, ...]) -> tuple[int, int]:
    if len(shape) != 2:
        raise ReductionError(f"frames of rows and columns are needed, not {shape}")
    return shape[0], shape[1]
