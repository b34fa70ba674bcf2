"""Which pixel counts how much in which bin: pyFAI's operator, in the order in which the kernel needs it.

A frame is cut into *slabs* of :data:`SLAB` pixels. What a slab gives to one bin is a *segment*: the pixels, and their
weights. A slab's segments are sorted by length, so that the CPU foresees every loop's end; those of one length are a
*class*. Masked pixels are in no segment and cost nothing. It makes no difference whether a pixel's bins are neighbours.

Where all weights are 1, sums are integers. Else weights are pyFAI's own float32; a segment is summed in float32, in the
order of its entries, and added to float64: always the same additions in the same order, whatever frames travel together
and whatever CPU it is. Pixels without counts may be passed over, since adding 0 changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import ReductionError
from .compiling import entry, inner

SLAB: Final = 2048
"""Pixels whose bytes, of 16 frames, fit into a first-level cache of 32 kB."""

LONGEST: Final = 64
"""Entries of a segment, at most: what float32 loses in a sum grows with its length."""

AHEAD: Final = 16
"""Segments whose bins' sums are brought near meanwhile."""

MOST_PIXELS: Final = 1 << 24
"""In a bin: 2**24 · 255 < 2**32."""


class Program(NamedTuple):
    """A table as the kernel reads it.

    Per slab: ``classes``, ``entries``, ``segments`` : (slabs + 1,) int64, where its own begin. Per class: ``lengths``,
    ``counts`` : int32; entries of each of its segments, and how many segments it has. Per segment: ``bins`` : uint32.
    Per entry: ``slots`` : uint16, where the pixel's row is, in bytes (:func:`slot_of`); ``weights`` : float32, empty if
    all weights are 1.
    """

    classes: NDArray[np.int64]
    entries: NDArray[np.int64]
    segments: NDArray[np.int64]
    lengths: NDArray[np.int32]
    counts: NDArray[np.int32]
    bins: NDArray[np.uint32]
    slots: NDArray[np.uint16]
    weights: NDArray[np.float32]


class Norms(NamedTuple):
    """What the sums are divided by, in integers: of a bin's pixels together, to take single ones away from, exactly.

    ``pixel`` : (pixels,) float32, a pixel's normalisation (solid angle, polarization …), of the largest.
    ``norm``, ``weight``, ``square`` : (bins,) int64, sums over a bin of weight times normalisation, of the weights, and
    of their squares, each as :func:`shares` has it. ``scale``, ``inverse`` : (bins,) float64, a bin's largest weight,
    and 1 over it. ``units`` : (3,) float64, what 1 of ``norm`` and of ``weight`` is where the scale is 1; and 1 over
    the latter.
    """

    pixel: NDArray[np.float32]
    norm: NDArray[np.int64]
    weight: NDArray[np.int64]
    square: NDArray[np.int64]
    scale: NDArray[np.float64]
    inverse: NDArray[np.float64]
    units: NDArray[np.float64]


@dataclass(frozen=True, eq=False, kw_only=True)
class BinTable:
    """A sparse matrix from pixels to bins, as CSR, and the pixels' normalisation.

    ``shape`` : of the frames. ``coefficients``, ``indices`` : (entries,), how much of a pixel is in the bin, and which
    pixel. ``starts`` : (bins + 1,), where a bin's entries begin. ``norm`` : (pixels,), by what a pixel's counts are
    divided; a pixel whose norm isn't positive and finite counts nowhere (as in pyFAI).
    """

    shape: tuple[int, ...]
    coefficients: NDArray[np.float32]
    indices: NDArray[np.int32]
    starts: NDArray[np.int64]
    norm: NDArray[np.float64]

    def __post_init__(self) -> None:
        pixels = int(np.prod(self.shape))
        if self.norm.shape != (pixels,) or self.coefficients.shape != self.indices.shape:
            raise ReductionError(f"bin table: {self.norm.size} norms, the frames have {pixels} pixels")
        if self.bins < 1 or self.starts[-1] != self.indices.size or (np.diff(self.starts) < 0).any():
            raise ReductionError("bin table: the bins' starts don't ascend to the number of entries")
        if self.indices.size and not 0 <= self.indices.min() <= self.indices.max() < pixels:
            raise ReductionError(f"bin table: there are entries of pixels outside of [0, {pixels})")
        if not np.isfinite(self.coefficients).all():  # a few are below 0, -1e-7: pyFAI's own rounding
            raise ReductionError("bin table: a coefficient is not finite")

    @property
    def bins(self) -> int:
        """Number of bins."""
        return self.starts.size - 1

    @cached_property
    def used(self) -> NDArray[np.bool_]:
        """Return which pixels count in any bin, in the frame's shape."""
        used = np.zeros(self.norm.size, bool)
        used[self.indices[self.coefficients != 0]] = True
        used &= np.isfinite(self.norm) & (self.norm > 0)
        return used.reshape(self.shape)

    @cached_property
    def arranged(self) -> tuple[Program, Norms]:
        """Return the entries as the kernel needs them, sorted once: a second for an Eiger 4M.

        Raises
        ------
        ReductionError
            A bin has more than :data:`MOST_PIXELS` pixels.
        """
        coefficients = np.ascontiguousarray(self.coefficients, np.float32)
        indices = np.ascontiguousarray(self.indices, np.int32)
        starts = np.ascontiguousarray(self.starts, np.int64)
        used = self.used.ravel().view(np.uint8)
        slabs = -(-used.size // SLAB)
        by_slab = np.zeros(slabs + 1, np.int64)
        _count(coefficients, indices, starts, used, np.full(used.size, -1), by_slab)
        by_slab = np.cumsum(by_slab)
        pixels, bins = np.empty(by_slab[-1], np.uint16), np.empty(by_slab[-1], np.uint32)
        values = np.zeros(by_slab[-1])
        seen = np.full(used.size, -1)
        _distribute(coefficients, indices, starts, used, seen, by_slab[:-1].copy(), pixels, bins, values)
        most = int(np.bincount(bins, minlength=1).max()) if bins.size else 0
        if most > MOST_PIXELS:
            raise ReductionError(f"a bin of {most} pixels: there can be {MOST_PIXELS} in one, ask for more bins")
        weights = values.astype(np.float32) if (values != 1).any() else np.empty(0, np.float32)
        program = self._program(by_slab, pixels, bins, weights)
        return program, self._norms(by_slab, pixels, bins, weights, most)

    def _program(
        self,
        by_slab: NDArray[np.int64],
        pixels: NDArray[np.uint16],
        bins: NDArray[np.uint32],
        weights: NDArray[np.float32],
    ) -> Program:
        keys = np.arange(LONGEST + 1)
        histogram = np.zeros((by_slab.size - 1, keys.size), np.int64)
        _measure(by_slab, bins, histogram)
        there = histogram > 0
        segments = np.concatenate(([0], np.cumsum(histogram)))
        entries = np.concatenate(([0], np.cumsum(histogram * keys)))
        program = Program(
            classes=np.concatenate(([0], np.cumsum(there.sum(axis=1)))),
            entries=entries[:: keys.size].copy(),
            segments=segments[:: keys.size].copy(),
            lengths=np.broadcast_to(keys.astype(np.int32), histogram.shape)[there],
            counts=histogram[there].astype(np.int32),
            bins=np.zeros(segments[-1] + AHEAD, np.uint32),
            slots=np.empty(entries[-1], np.uint16),
            weights=np.empty(weights.size, np.float32),
        )
        segment_at = segments[:-1].reshape(histogram.shape).copy()
        entry_at = entries[:-1].reshape(histogram.shape).copy()
        _place(by_slab, pixels, bins, weights, segment_at, entry_at, program.bins, program.slots, program.weights)
        return program

    def _norms(
        self,
        by_slab: NDArray[np.int64],
        pixels: NDArray[np.uint16],
        bins: NDArray[np.uint32],
        weights: NDArray[np.float32],
        most: int,
    ) -> Norms:
        used = self.used.ravel()
        largest = float(self.norm[used].max(initial=0.0)) or 1.0
        pixel = np.zeros(self.norm.size, np.float32)
        pixel[used] = self.norm[used] / largest
        scale = np.zeros(self.bins)
        np.maximum.at(scale, bins, abs(weights) if weights.size else np.float32(1))
        scale[scale == 0] = 1
        one = 2.0 ** (62 - max(most, 2).bit_length())
        norm, weight, square = (np.zeros(self.bins, np.int64) for _ in range(3))
        norms = Norms(
            pixel,
            norm,
            weight,
            square,
            scale,
            1 / scale,
            np.array([largest / one, 1 / one, one]),
        )
        _add_up(by_slab, pixels, bins, weights, norms)
        return norms


@inner
def slot_of(pixel: Any) -> Any:
    """Return in which row of 16 frames a slab's pixel is, as :func:`.lanes.interleave32` leaves it."""
    return (pixel & ~31) | (pixel & 15) << 1 | (pixel >> 4 & 1)


@inner
def pixel_of(slot: Any) -> Any:
    """Return which pixel of the slab a row is of."""
    return (slot & ~31) | (slot >> 1 & 15) | (slot & 1) << 4


@entry
def _count(coefficients: Any, indices: Any, starts: Any, used: Any, seen: Any, begins: Any) -> None:
    """Count the pairs of pixel and bin in each slab, to ``begins[slab + 1]``; ``seen`` : (pixels,) int64, all -1."""
    for b in range(starts.size - 1):
        for e in range(starts[b], starts[b + 1]):
            p = indices[e]
            if used[p] != 0 and coefficients[e] != 0 and seen[p] != b:
                seen[p] = b
                begins[p // SLAB + 1] += 1


@entry
def _distribute(
    coefficients: Any, indices: Any, starts: Any, used: Any, seen: Any, at: Any, pixels: Any, bins: Any, values: Any
) -> None:
    """Sort entries by slab, then bin; entries of the same pixel and bin become one."""
    for b in range(starts.size - 1):
        for e in range(starts[b], starts[b + 1]):
            p = indices[e]
            if used[p] == 0 or coefficients[e] == 0:
                continue
            k = seen[p]
            if k < 0 or bins[k] != b:
                k = at[p // SLAB]
                at[p // SLAB] += 1
                seen[p] = k
                pixels[k] = p % SLAB
                bins[k] = b
            values[k] += coefficients[e]


@inner
def shares(weight: Any, pixel: Any, b: Any, norms: Any) -> Any:
    """Return what an entry adds to its bin's ``norm``, ``weight`` and ``square``, integers."""
    of_largest = weight * norms.inverse[b]
    one = norms.units[2]
    return (
        np.int64(np.rint(of_largest * norms.pixel[pixel] * one)),
        np.int64(np.rint(of_largest * one)),
        np.int64(np.rint(of_largest * of_largest * one)),
    )


@entry
def _add_up(by_slab: Any, pixels: Any, bins: Any, weights: Any, norms: Any) -> None:
    for s in range(by_slab.size - 1):
        for e in range(by_slab[s], by_slab[s + 1]):
            b = bins[e]
            value = np.float64(weights[e]) if weights.size > 0 else 1.0
            norm, weight, square = shares(value, s * SLAB + np.int64(pixels[e]), b, norms)
            norms.norm[b] += norm
            norms.weight[b] += weight
            norms.square[b] += square


@inner
def _length(bins: Any, e: int, end: int) -> int:
    """Return how many entries from this one on are a segment."""
    n = 1
    while n < LONGEST and e + n < end and bins[e + n] == bins[e]:
        n += 1
    return n


@entry
def _measure(by_slab: Any, bins: Any, lengths: Any) -> None:
    """Count segments, to ``lengths[slab, length]``."""
    for s in range(by_slab.size - 1):
        e, end = by_slab[s], by_slab[s + 1]
        while e < end:
            n = _length(bins, e, end)
            lengths[s, n] += 1
            e += n


@entry
def _place(
    by_slab: Any, pixels: Any, bins: Any, weights: Any, segment_at: Any, entry_at: Any, segment_bins: Any, slots: Any,
    sorted_weights: Any,
) -> None:  # fmt: skip
    """Put entries where they belong; ``segment_at``, ``entry_at`` : by slab and length, where the next one goes."""
    for s in range(by_slab.size - 1):
        e, end = by_slab[s], by_slab[s + 1]
        while e < end:
            n = _length(bins, e, end)
            segment_bins[segment_at[s, n]] = bins[e]
            segment_at[s, n] += 1
            first = entry_at[s, n]
            entry_at[s, n] += n
            for i in range(n):
                slots[first + i] = 16 * slot_of(np.int64(pixels[e + i]))
                if weights.size > 0:
                    sorted_weights[first + i] = weights[e + i]
            e += n
