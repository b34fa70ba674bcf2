"""Which pixel counts how much in which bin: pyFAI's operator, in the order in which the kernel needs it.

A frame is cut into *slabs* of :data:`SLAB` pixels. What a slab gives to one bin is a *segment*: the pixels, and their
weights. A slab's segments are sorted by length, so that the CPU foresees every loop's end; those of one length are a
*class*. Masked pixels are in no segment and cost nothing. It makes no difference whether a pixel's bins are neighbours.

Weights are integers, and so every sum is exact: it depends neither on the order of the additions, nor on the frames
that travel together, nor on the CPU. A bin's weights are scaled by the largest of them, :data:`WEIGHT_BITS` bits are
kept: finer than pyFAI's float32.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import ReductionError
from .compiling import inner, outer

SLAB: Final = 2048
"""Pixels whose bytes, of 16 frames, fit into a first-level cache of 32 kB."""

WEIGHT_BITS: Final = 30
"""Of a weight; less if a bin has more than 65,536 pixels."""

DIGIT_BITS: Final = 15
"""A weight is two numbers of so many bits: byte times digit, summed in 32 bits."""

LONGEST: Final = 64
"""Entries of a segment, at most."""

ROOM: Final = 256
"""Entries whose products with a digit fit into 32 bits: 256 · 255 · (2**15 - 1) < 2**31."""

MOST_PIXELS: Final = 1 << 24
"""In a bin: 2**24 · 255 < 2**32."""

_NORM_BITS: Final = 31


class Program(NamedTuple):
    """A table as the kernel reads it.

    Per slab: ``classes``, ``entries``, ``segments``, ``flushes`` : (slabs + 1,) int64, where its own begin.
    Per class: ``lengths``, ``counts`` : int32; entries (pairs of them, if they have weights) of each of its segments,
    and how many segments it has. Per segment: ``bins`` : uint32. Per entry: ``slots`` : uint16, where the pixel's row
    is, in bytes (:func:`slot_of`). Per pair: ``weights`` : (4,) int16, the first digits of two weights, their second
    digits; then, of all pairs, those of the weights' squares; empty if all weights are 1. ``flushed`` : uint32, the
    bins whose sums are to be emptied after a slab, before they overflow.
    """

    classes: NDArray[np.int64]
    entries: NDArray[np.int64]
    segments: NDArray[np.int64]
    flushes: NDArray[np.int64]
    lengths: NDArray[np.int32]
    counts: NDArray[np.int32]
    bins: NDArray[np.uint32]
    slots: NDArray[np.uint16]
    weights: NDArray[np.int16]
    flushed: NDArray[np.uint32]


class Norms(NamedTuple):
    """What the sums are divided by, in integers: of a bin's pixels together, to take single ones away from.

    ``pixel`` : (pixels,) int32, a pixel's normalisation (solid angle, polarization …).
    ``norm``, ``weight``, ``square`` : (bins,) int64, sums over a bin of weight times normalisation, of the weights, and
    of their squares. ``scale`` : (bins,) float64, a bin's largest weight. ``shift`` : (1,) int64, bits that products
    with a norm lose. ``units`` : (2,) float64, what 1 of ``norm`` and of ``weight`` is where the scale is 1.
    """

    pixel: NDArray[np.int32]
    norm: NDArray[np.int64]
    weight: NDArray[np.int64]
    square: NDArray[np.int64]
    scale: NDArray[np.float64]
    shift: NDArray[np.int64]
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
        if not np.isfinite(self.coefficients).all() or (self.coefficients < -1e-5).any():
            raise ReductionError("bin table: a coefficient is negative or not finite")

    @property
    def bins(self) -> int:
        """Number of bins."""
        return self.starts.size - 1

    @cached_property
    def used(self) -> NDArray[np.bool_]:
        """Return which pixels count in any bin, in the frame's shape."""
        used = np.zeros(self.norm.size, bool)
        used[self.indices[self.coefficients > 0]] = True
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
        weighted = bool((values != 1).any())
        bits = min(WEIGHT_BITS, WEIGHT_BITS + 16 - max(most - 1, 0).bit_length())
        largest = np.zeros(self.bins)
        np.maximum.at(largest, bins, values)
        scale = np.where(largest > 0, largest, 1.0)
        unit = (1 << bits) - 1 if weighted else 1
        relative = values / scale[bins]
        weights = np.rint(relative * unit).astype(np.int64)
        squares = np.rint(relative * relative * unit).astype(np.int64)
        program = self._program(by_slab, pixels, bins, weights, squares, weighted)
        return program, self._norms(by_slab, pixels, bins, weights, squares, scale, unit, most)

    def _program(
        self,
        by_slab: NDArray[np.int64],
        pixels: NDArray[np.uint16],
        bins: NDArray[np.uint32],
        weights: NDArray[np.int64],
        squares: NDArray[np.int64],
        weighted: bool,
    ) -> Program:
        step = 2 if weighted else 1  # entries come in pairs, if they have weights
        keys = np.arange(LONGEST // step + 1)
        histogram = np.zeros((by_slab.size - 1, keys.size), np.int64)
        _measure(by_slab, bins, step, histogram)
        there = histogram > 0
        segments = np.concatenate(([0], np.cumsum(histogram)))
        entries = np.concatenate(([0], np.cumsum(histogram * keys * step)))
        program = Program(
            classes=np.concatenate(([0], np.cumsum(there.sum(axis=1)))),
            entries=entries[:: keys.size].copy(),
            segments=segments[:: keys.size].copy(),
            flushes=np.zeros(by_slab.size, np.int64),
            lengths=np.broadcast_to(keys.astype(np.int32), histogram.shape)[there],
            counts=histogram[there].astype(np.int32),
            bins=np.empty(segments[-1], np.uint32),
            slots=np.zeros(entries[-1], np.uint16),
            weights=np.zeros(4 * entries[-1] if weighted else 0, np.int16),
            flushed=np.empty(segments[-1] if weighted else 0, np.uint32),
        )
        _place(
            by_slab,
            pixels,
            bins,
            weights,
            squares,
            step,
            segments[:-1].reshape(histogram.shape).copy(),
            entries[:-1].reshape(histogram.shape).copy(),
            np.zeros(self.bins, np.int64),
            program.bins,
            program.slots,
            program.weights,
            program.flushes,
            program.flushed,
        )
        return program._replace(flushed=program.flushed[: program.flushes[-1]].copy())

    def _norms(
        self,
        by_slab: NDArray[np.int64],
        pixels: NDArray[np.uint16],
        bins: NDArray[np.uint32],
        weights: NDArray[np.int64],
        squares: NDArray[np.int64],
        scale: NDArray[np.float64],
        unit: int,
        most: int,
    ) -> Norms:
        used = self.used.ravel()
        largest = float(self.norm[used].max(initial=0.0)) or 1.0
        in_full = (1 << _NORM_BITS) - 1
        pixel = np.zeros(self.norm.size, np.int32)
        pixel[used] = np.rint(self.norm[used] / largest * in_full).astype(np.int32)
        shift = max(0, unit.bit_length() + _NORM_BITS + most.bit_length() - 62)
        norm, weight, square = (np.zeros(self.bins, np.int64) for _ in range(3))
        _add_up(by_slab, pixels, bins, weights, squares, pixel, shift, norm, weight, square)
        units = np.array([largest / in_full * 2.0**shift / unit, 1 / unit])
        return Norms(pixel, norm, weight, square, scale, np.array([shift], np.int64), units)


@inner
def slot_of(pixel: Any) -> Any:
    """Return in which row of 16 frames a slab's pixel is, as :func:`.lanes.interleave32` leaves it."""
    return (pixel & ~31) | (pixel & 15) << 1 | (pixel >> 4 & 1)


@inner
def pixel_of(slot: Any) -> Any:
    """Return which pixel of the slab a row is of."""
    return (slot & ~31) | (slot >> 1 & 15) | (slot & 1) << 4


@outer
def _count(coefficients: Any, indices: Any, starts: Any, used: Any, seen: Any, begins: Any) -> None:
    """Count the pairs of pixel and bin in each slab, to ``begins[slab + 1]``; ``seen`` : (pixels,) int64, all -1."""
    for b in range(starts.size - 1):
        for e in range(starts[b], starts[b + 1]):
            p = indices[e]
            if used[p] != 0 and coefficients[e] > 0 and seen[p] != b:
                seen[p] = b
                begins[p // SLAB + 1] += 1


@outer
def _distribute(
    coefficients: Any, indices: Any, starts: Any, used: Any, seen: Any, at: Any, pixels: Any, bins: Any, values: Any
) -> None:
    """Sort entries by slab, then bin; entries of the same pixel and bin become one."""
    for b in range(starts.size - 1):
        for e in range(starts[b], starts[b + 1]):
            p = indices[e]
            if used[p] == 0 or not coefficients[e] > 0:
                continue
            k = seen[p]
            if k < 0 or bins[k] != b:
                k = at[p // SLAB]
                at[p // SLAB] += 1
                seen[p] = k
                pixels[k] = p % SLAB
                bins[k] = b
            values[k] += coefficients[e]


@outer
def _add_up(
    by_slab: Any, pixels: Any, bins: Any, weights: Any, squares: Any, pixel_norm: Any, shift: int,
    norm: Any, weight: Any, square: Any,
) -> None:  # fmt: skip
    for s in range(by_slab.size - 1):
        for e in range(by_slab[s], by_slab[s + 1]):
            b = bins[e]
            norm[b] += (weights[e] * np.int64(pixel_norm[s * SLAB + pixels[e]])) >> shift
            weight[b] += weights[e]
            square[b] += squares[e]


@inner
def _length(bins: Any, e: int, end: int) -> int:
    """Return how many entries from this one on are a segment."""
    n = 1
    while n < LONGEST and e + n < end and bins[e + n] == bins[e]:
        n += 1
    return n


@outer
def _measure(by_slab: Any, bins: Any, step: int, lengths: Any) -> None:
    """Count segments, to ``lengths[slab, length in steps]``."""
    for s in range(by_slab.size - 1):
        e, end = by_slab[s], by_slab[s + 1]
        while e < end:
            n = _length(bins, e, end)
            lengths[s, (n + step - 1) // step] += 1
            e += n


@outer
def _place(
    by_slab: Any, pixels: Any, bins: Any, weights: Any, squares: Any, step: int, segment_at: Any, entry_at: Any,
    held: Any, segment_bins: Any, slots: Any, digits: Any, flushes: Any, flushed: Any,
) -> None:  # fmt: skip
    """Put entries where they belong; ``segment_at``, ``entry_at`` : by slab and length, where the next one goes.

    With weights, a bin is emptied after each of its longest segments, and else before it could have more than
    :data:`ROOM` entries.
    """
    low = (1 << DIGIT_BITS) - 1
    again = digits.size // 2
    n_flushed = np.int64(0)
    for s in range(by_slab.size - 1):
        e, end = by_slab[s], by_slab[s + 1]
        while e < end:
            b = bins[e]
            n = _length(bins, e, end)
            key = (n + step - 1) // step
            segment_bins[segment_at[s, key]] = b
            segment_at[s, key] += 1
            first = entry_at[s, key]
            entry_at[s, key] += key * step
            for i in range(n):
                slots[first + i] = 16 * slot_of(np.int64(pixels[e + i]))
            if step == 2:
                for i in range(n):
                    d = 4 * ((first + i) // 2) + (first + i) % 2
                    digits[d], digits[d + 2] = weights[e + i] >> DIGIT_BITS, weights[e + i] & low
                    d += again
                    digits[d], digits[d + 2] = squares[e + i] >> DIGIT_BITS, squares[e + i] & low
                held[b] += n
                if key * step == LONGEST:
                    held[b] = 0
                elif held[b] > ROOM - 2 * LONGEST:  # a slab has at most one shorter one, and it comes first
                    held[b] = 0
                    flushed[n_flushed] = b
                    n_flushed += 1
            e += n
        flushes[s + 1] = n_flushed
