"""Regions of a frame: what is counted in each, where its centre is, what was left out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ..errors import ReductionError
from . import operations as op
from .gathering import Operation, Tally
from .left_out import counted, left_out, limit_of
from .parts import Array, Layout
from .runs import Rectangle, of_labels, of_rectangles

MAX_REGIONS: Final = 4096
_WEIGHTS: Final = (1, 1 << 8, 1 << 16, 1 << 24)
_EXACT: Final = 2.0**52


@dataclass(frozen=True, eq=False)
class Regions(Tally):
    """Sums over rectangles, which may overlap, or over the pixels of each label.

    Outputs per frame and region: ``sum`` int64, counts; ``excluded`` int64, pixels left out: without data, or above
    ``cutoff``; ``saturated`` int64, those above it. With ``peaks`` : ``maximum`` uint32, of the pixels that count. With
    ``centres`` : ``x`` and ``y`` float64, the centre of mass in pixels, NaN where nothing was counted.

    Everything is added in integers, per byte plane: 255 · pixels · columns / 2 is below 2⁶³ for any frame that has
    less than 2²⁸ pixels and less than 2²⁶ columns and rows. Centres are the quotients of the exact integers, rounded
    once.

    ``labels`` : integers of the frame's shape, region k is where the label is k + 1. ``mask`` : pixels that never count
    in rectangles.
    """

    rectangles: tuple[Rectangle, ...] = ()
    labels: NDArray[Any] | None = None
    mask: NDArray[np.bool_] | None = None
    cutoff: float | None = None
    peaks: bool = False
    centres: bool = False

    def __post_init__(self) -> None:
        if bool(self.rectangles) == (self.labels is not None):
            raise ReductionError("regions: give either rectangles or labels")
        for rectangle in self.rectangles:
            rectangle.check()
        if self.labels is not None and (
            self.labels.ndim != 2 or self.labels.dtype.kind not in "biu" or self.labels.min(initial=0) < 0
        ):
            raise ReductionError("regions: labels are a 2-D array of integers from 0 on")
        if not 1 <= self.count <= MAX_REGIONS:
            raise ReductionError(f"regions: there are {self.count}, 1 to {MAX_REGIONS} can be")

    @cached_property
    def count(self) -> int:
        """How many regions there are."""
        return len(self.rectangles) if self.labels is None else int(self.labels.max(initial=0))

    def _check(self, shape: tuple[int, ...]) -> tuple[int, int]:
        if len(shape) != 2 or max(shape) >= 1 << 26 or np.prod(shape) >= 1 << 28:
            raise ReductionError(f"regions need frames of rows and columns, of less than 2²⁸ pixels; not {shape}")
        if self.labels is not None and self.labels.shape != shape:
            raise ReductionError(f"regions: the labels have {self.labels.shape} pixels, the frames have {shape}")
        if self.mask is not None and self.mask.shape != shape:
            raise ReductionError(f"regions: the mask has {self.mask.shape} pixels, the frames have {shape}")
        for rectangle in self.rectangles:
            rectangle.check((shape[0], shape[1]))
        return shape[0], shape[1]

    def coverage(self, shape: tuple[int, ...]) -> NDArray[np.bool_]:
        """Return the pixels of all regions.

        Raises
        ------
        ReductionError
            A region isn't in such frames.
        """
        self._check(shape)
        if self.labels is not None:
            return np.asarray(self.labels != 0)
        covered = np.zeros(shape, bool)
        for rectangle in self.rectangles:
            covered[rectangle.slices] = True
        return covered if self.mask is None else covered & ~self.mask

    def operation(self, layout: Layout) -> Operation:
        """Return the runs, each with its region."""
        _, columns = self._check(layout.shape)
        if self.labels is not None:
            runs = of_labels(self.labels, layout.tile)
        else:
            runs = of_rectangles(self.rectangles, columns, layout.tile, self.mask)
        limit = limit_of(layout.dtype, self.cutoff)
        return Operation(op.REGIONS, runs, runs.region, (self.count,), limit, peaks=self.peaks)

    def outputs(self, layout: Layout, frames: int) -> dict[str, Array]:
        """Return room for the numbers."""
        types = {"sum": "<i8", "excluded": "<i8", "saturated": "<i8"}
        types |= {"maximum": "<u4"} if self.peaks else {}
        types |= {"x": "<f8", "y": "<f8"} if self.centres else {}
        return {name: np.zeros((frames, self.count), dtype) for name, dtype in types.items()}

    def take(self, results: Array, missing: Array, at: int, out: dict[str, Array]) -> None:
        """Put the byte planes together."""
        del missing
        rows = slice(at, at + len(results))
        total = results[..., 0:4] @ np.array(_WEIGHTS)
        out["sum"][rows] = total
        out["excluded"][rows] = results[..., op.EXCLUDED]
        out["saturated"][rows] = results[..., op.SATURATED]
        if self.peaks:
            out["maximum"][rows] = results[..., op.MOST]
        if self.centres:
            out["x"][rows] = _centres(results[..., 4:8], total)
            out["y"][rows] = _centres(results[..., 8:12], total)

    def reference(self, frame: Array) -> dict[str, Array]:
        """Return the same of one decoded frame, by numpy; of any type of pixels.

        Raises
        ------
        ReductionError
            The pixels of a 64-bit type can't be added exactly.
        """
        self._check(frame.shape)
        bad, void = left_out(frame, self.cutoff)
        try:
            counts = counted(frame, bad)
        except OverflowError:
            raise ReductionError(f"regions: {frame.max()} counts in a pixel can't be added exactly") from None
        rows = [_row(counts, bad, void, pixels) for pixels in self._pixels()]
        names = ["sum", "excluded", "saturated"] + ["maximum"] * self.peaks + ["x", "y"] * self.centres
        return {name: np.array([row[name] for row in rows]) for name in names}

    def _pixels(self) -> list[tuple[Any, NDArray[np.bool_] | None, tuple[int, int]]]:
        """Return for each region its rectangle, which pixels of that are its, and the first one's row and column."""
        if self.labels is None:
            used = None if self.mask is None else ~self.mask
            return [
                (each.slices, None if used is None else used[each.slices], (each.rows[0], each.columns[0]))
                for each in self.rectangles
            ]
        return [(np.s_[:, :], np.asarray(self.labels == number + 1), (0, 0)) for number in range(self.count)]


@dataclass(frozen=True, eq=False)
class Moments(Tally):
    """The frame as a whole: counts, centre of mass, maximum.

    Outputs per frame: ``total`` int64, counts; ``x``, ``y`` float64, pixels; ``maximum`` uint32, counts; ``excluded``
    and ``saturated`` int64, pixels; as in :class:`Regions`. ``mask`` : pixels that never count.
    """

    mask: NDArray[np.bool_] | None = None
    cutoff: float | None = None

    def _regions(self, shape: tuple[int, ...]) -> Regions:
        if self.mask is not None and self.mask.all():
            raise ReductionError("moments: every pixel is masked")
        whole = (Rectangle((0, shape[0]), (0, shape[-1])),)
        return Regions(whole, mask=self.mask, cutoff=self.cutoff, peaks=True, centres=True)

    def coverage(self, shape: tuple[int, ...]) -> NDArray[np.bool_]:
        """Return the pixels that aren't masked."""
        return self._regions(shape).coverage(shape)

    def operation(self, layout: Layout) -> Operation:
        """Return the runs of unmasked pixels."""
        return self._regions(layout.shape).operation(layout)

    def outputs(self, layout: Layout, frames: int) -> dict[str, Array]:
        """Return room for the numbers."""
        return _alone(self._regions(layout.shape).outputs(layout, frames))

    def take(self, results: Array, missing: Array, at: int, out: dict[str, Array]) -> None:
        """Put the byte planes together."""
        columns = {("sum" if name == "total" else name): array[:, None] for name, array in out.items()}
        Regions((Rectangle((0, 1), (0, 1)),), peaks=True, centres=True).take(results, missing, at, columns)

    def reference(self, frame: Array) -> dict[str, Array]:
        """Return the same of one decoded frame, by numpy."""
        made = _alone({name: array[None] for name, array in self._regions(frame.shape).reference(frame).items()})
        return {name: array[0] for name, array in made.items()}


def _alone(arrays: Mapping[str, Array]) -> dict[str, Array]:
    """Return the only region's numbers."""
    return {("total" if name == "sum" else name): array[:, 0] for name, array in arrays.items()}


def _centres(moments: Array, total: Array) -> Array:
    """Return Σ_j 256ʲ·moments[…, j] / total, rounded once; NaN where the total is 0."""
    about = moments @ np.array(_WEIGHTS, np.float64)
    if max(about.max(initial=0), total.max(initial=0)) < _EXACT:
        exact = (moments @ np.array(_WEIGHTS)).astype(np.float64)
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(total > 0, exact / total, np.nan)
    wide = [sum(int(row[j]) * _WEIGHTS[j] for j in range(4)) for row in moments.reshape(-1, 4)]
    quotients = [value / int(of) if of else np.nan for value, of in zip(wide, total.ravel(), strict=True)]
    return np.array(quotients).reshape(total.shape)


def _row(
    counts: Array, bad: NDArray[np.bool_], void: NDArray[np.bool_], pixels: tuple[Any, Any, tuple[int, int]]
) -> dict[str, Any]:
    where, of, (row, column) = pixels
    counts, bad, void = counts[where], bad[where], void[where]
    if of is not None:
        counts, bad, void = np.where(of, counts, 0), bad & of, void & of
    across, down = _added(counts, 0), _added(counts, 1)
    total = _added(across, 0)[()]
    whole = counts.dtype.kind == "i"
    result = {
        "sum": total,
        "excluded": np.count_nonzero(bad),
        "saturated": np.count_nonzero(bad & ~void),
        "maximum": counts.max(initial=0),
    }
    for name, line, first in (("x", across, column), ("y", down, row)):
        if whole:
            moment: Any = sum(int(value) * place for place, value in enumerate(line, first))
            result[name] = moment / int(total) if total else np.nan
        else:
            moment = _added(line * np.arange(first, first + len(line)), 0)[()]
            result[name] = moment / total if total else np.nan
    return result


def _added(array: Array, axis: int) -> Array:
    """Return sums in the order of the elements, so that no processor gives other last bits."""
    if array.dtype.kind == "i":
        return np.asarray(array.sum(axis=axis))
    return np.asarray(np.cumsum(array, axis=axis).take(-1, axis=axis))
