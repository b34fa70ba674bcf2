"""Spectra to areas: dead-time correction, sum of the elements, product with templates, in one pass over the counts.

A spectrum's areas are the same to the bit whatever it is reduced together with and wherever: :mod:`.dots` says how.
They are as good as float32 is: an area's error is about 1e-8 of what its channels add to it, without regard of sign,
which is some thousand times less than what counting leaves uncertain.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import ReductionError, ShapeMismatch
from .compiling import inner, outer
from .dots import LANES, TILE, add_weighted, dots, round_to_single, tally32, tally64, tally_to_single, to_single
from .intrinsics import memory

BLOCK: Final = 512
"""Channels after which a sum goes over to float64. Results depend on it."""

LOT: Final = 8
"""Spectra at a time: as float32 they fit into the second-level cache beside the templates, and a block of them with a
tile's templates into the first. Results don't depend on it."""

APART: Final = 256
"""Values between two rows: at multiples of 4096 bytes rows fight for the same cache lines."""

MANY: Final = 1 << 28
"""So many counts in a channel, LOT times, pass 32 bits."""

NEGLIGIBLE: Final = 2.0**-60
"""A template's values smaller than this, beside its largest, are 0: their products would be denormal, which is slow."""


class Projected(NamedTuple):
    """What :meth:`Projection.run` gives.

    ``areas`` : (n, templates) float64. ``variances`` : (n, …) float64, those that were wanted. ``total`` : (elements,
    channels) int64, the sum of all spectra. ``bits`` : (n, elements) int64, all bits set in a spectrum's counts: 0 if
    it is empty.
    """

    areas: NDArray[np.float64]
    variances: NDArray[np.float64]
    total: NDArray[np.int64]
    bits: NDArray[np.int64]


class _Memory(NamedTuple):
    """What one thread works in, kept from run to run: memory that is new to a process costs more than the work.

    ``singles`` : a lot's spectra, then their variances. ``flushed`` : a lot's sums, and a row for nobody.
    """

    singles: NDArray[np.float32]
    flushed: NDArray[np.float64]


class Projection:
    """Spectra times a matrix.

    Parameters
    ----------
    operator
        (templates, channels) float64, finite: area k is the sum over channels of operator[k]·counts.
    variances
        The templates of whose areas the variance is wanted, the sum over channels of operator[k]²·counts; None for
        all. A variance is as much work as an area.

    Notes
    -----
    Several threads may use one projection: the interpreter's lock is let go while spectra are reduced.
    """

    def __init__(self, operator: NDArray[np.float64], variances: Sequence[int] | None = None) -> None:
        if operator.ndim != 2 or not operator.size or not np.isfinite(operator).all():
            raise ReductionError(f"an operator of {operator.shape} must be (templates, channels), finite")
        self.templates, self.channels = operator.shape
        chosen = np.arange(self.templates) if variances is None else np.array(variances, np.intp)
        # Each template is brought to 1 by a power of two, which changes no digit: float32 has a short range.
        _, exponents = np.frexp(np.abs(operator).max(axis=1))
        self._scale = np.ldexp(1.0, exponents)
        scaled = operator / self._scale[:, None]
        scaled[np.abs(scaled) < NEGLIGIBLE] = 0
        self._variance_scale = self._scale[chosen]
        self._padded = -(-self.channels // LANES) * LANES
        self._table = np.concatenate([_tiled(each, self._padded) for each in (scaled, scaled[chosen] ** 2)])
        self._idle: list[_Memory] = []
        starts = np.arange(0, self._padded, BLOCK)
        self._used = np.logical_or.reduceat((_padded(scaled, self.templates, self._padded) != 0).any(axis=0), starts)

    def run(self, elements: Sequence[NDArray[Any]], factors: NDArray[np.float64]) -> Projected:
        """Reduce n spectra, each counted by one or several elements.

        Parameters
        ----------
        elements
            For each element (n, channels) of uint32 or int32; negative counts show in the sign bit of ``bits``.
        factors
            (n, elements), finite: what an element's counts are multiplied with before the elements are added.

        Raises
        ------
        ShapeMismatch
            Shapes or types are others.
        """
        n = len(factors)
        for each in elements:
            if each.shape != (n, self.channels) or each.dtype not in (np.uint32, np.int32):
                raise ShapeMismatch(
                    f"spectra of {each.shape} {each.dtype}, expected ({n}, {self.channels}) of 32-bit integers"
                )
        if not elements or factors.shape != (n, len(elements)):
            raise ShapeMismatch(f"factors of {factors.shape} for {n} spectra of {len(elements)} elements")
        rows = [self._rows(each) for each in elements]
        # A single element's factor is applied to its areas, exactly.
        alone = len(rows) == 1
        weights = np.ones((n, 1)) if alone else np.array(factors, np.float64, order="C")
        areas, variances = np.empty((n, self.templates)), np.empty((n, len(self._variance_scale)))
        total = np.zeros((len(rows), self._padded), np.int64)
        bits = np.zeros((n, len(rows)), np.int64)
        if n:
            addresses = np.array([each.__array_interface__["data"][0] for each in rows], np.int64)
            strides = np.array([each.strides[0] for each in rows], np.int64)
            scale = factors[:, 0] if alone else np.ones(n)
            mine = self._idle.pop() if self._idle else self._memory()
            _project(
                addresses,
                strides,
                weights,
                self._table,
                self._used,
                mine.singles,
                mine.flushed,
                np.array(scale, np.float64),
                self._scale,
                self._variance_scale,
                areas,
                variances,
                total.reshape(-1),
                bits,
            )
            self._idle.append(mine)
        return Projected(areas, variances, total[:, : self.channels], bits)

    def _memory(self) -> _Memory:
        sums = len(self._table) // self._padded * LANES
        return _Memory(np.empty(2 * LOT * (self._padded + APART), np.float32), np.empty((LOT + 1) * sums))

    def _rows(self, spectra: NDArray[Any]) -> NDArray[Any]:
        """Return the spectra so that each is a row of whole groups in one piece."""
        if self._padded != self.channels:
            return np.pad(spectra, ((0, 0), (0, self._padded - self.channels)))
        straight = spectra.strides[1] == 4 and spectra.strides[0] >= 0 and spectra.strides[0] % 4 == 0
        return spectra if straight else np.ascontiguousarray(spectra)


def _padded(rows: NDArray[np.float64], templates: int, channels: int) -> NDArray[np.float64]:
    return np.pad(rows, ((0, templates - rows.shape[0]), (0, channels - rows.shape[1])))


def _tiled(rows: NDArray[np.float64], channels: int) -> NDArray[np.float32]:
    """Return templates as :func:`.dots.dots` reads them: tile by tile, group by group, template by template."""
    tiles = -(-len(rows) // TILE)
    cut = _padded(rows, tiles * TILE, channels).reshape(tiles, TILE, channels // LANES, LANES)
    return np.ascontiguousarray(cut.transpose(0, 2, 1, 3), np.float32).ravel()


@outer
def _project(
    addresses: Any,
    strides: Any,
    weights: Any,
    table: Any,
    used: Any,
    singles: Any,
    flushed: Any,
    frame_scale: Any,
    area_scale: Any,
    variance_scale: Any,
    areas: Any,
    variances: Any,
    totals: Any,
    bits: Any,
) -> None:
    n, elements = weights.shape
    channels, blocks = len(totals) // elements, len(used)
    tiles = len(table) // (channels * TILE)
    first_variance = (areas.shape[1] + TILE - 1) // TILE
    stride, width = channels + APART, tiles * TILE * LANES
    mixed = np.empty(2 * BLOCK)
    subtotal = np.empty(elements * channels, np.uint32)
    filled = np.empty((blocks, LOT + 1), np.int64)
    fills = np.empty(blocks, np.int64)
    for first in range(0, n, LOT):
        rows = min(LOT, n - first)
        _clear(subtotal, len(subtotal))
        _clear(fills, blocks)
        large = np.int64(0)
        for row in range(rows):
            for block in range(blocks):
                start = block * BLOCK
                groups = min(BLOCK, channels - start) // LANES
                to = row * stride + start
                found = np.int64(0)
                for element in range(elements):
                    counts, place = _counts(addresses, strides, n, channels, element, first + row, start)
                    if elements == 1:
                        seen = tally_to_single(counts, place, groups, subtotal, start, singles, to)
                        if seen >> 31:
                            to_single(counts, place, groups, singles, to)
                    else:
                        seen = tally32(counts, place, groups, subtotal, element * channels + start)
                    bits[first + row, element] |= seen
                    found |= seen
                large |= found
                if found == 0 or not used[block]:
                    continue  # nothing but zeros would be added
                filled[block, fills[block]] = row
                fills[block] += 1
                if elements == 1:
                    continue
                _clear(mixed, 2 * BLOCK)
                for element in range(elements):
                    counts, place = _counts(addresses, strides, n, channels, element, first + row, start)
                    add_weighted(counts, place, groups, weights[first + row, element], mixed, 0, mixed, BLOCK)
                round_to_single(mixed, 0, groups, singles, to)
                round_to_single(mixed, BLOCK, groups, singles, LOT * stride + to)
        for element in range(elements):
            if large < MANY:
                tally64(subtotal, element * channels, channels // LANES, totals, element * channels)
                continue
            for row in range(rows):  # the subtotal may have passed 32 bits
                counts, place = _counts(addresses, strides, n, channels, element, first + row, 0)
                tally64(counts, place, channels // LANES, totals, element * channels)
        _clear(flushed, rows * width)
        for block in range(blocks):
            start, count = block * BLOCK, fills[block]
            groups = min(BLOCK, channels - start) // LANES
            filled[block, count] = LOT
            for tile in range(tiles):
                squares = elements > 1 and tile >= first_variance
                for k in range(0, count, 2):
                    one, two = filled[block, k], filled[block, k + 1]
                    place = (LOT * stride if squares else 0) + start
                    other = one if two == LOT else two
                    dots(
                        singles,
                        place + one * stride,
                        place + other * stride,
                        table,
                        (tile * channels + start) * TILE,
                        groups,
                        flushed,
                        one * width + tile * TILE * LANES,
                        two * width + tile * TILE * LANES,
                    )
        for row in range(rows):
            factor = frame_scale[first + row]
            for k in range(areas.shape[1]):
                scale = area_scale[k] * factor
                areas[first + row, k] = _lanes(flushed, row * width + k * LANES) * scale
            for k in range(variances.shape[1]):
                scale = variance_scale[k] * factor
                at = row * width + (first_variance * TILE + k) * LANES
                variances[first + row, k] = _lanes(flushed, at) * (scale * scale)


@inner
def _clear(values: Any, count: int) -> None:
    """Set the first to 0; written as a slice it would take long to compile."""
    for k in range(count):
        values[k] = 0


@inner
def _lanes(sums: Any, at: int) -> float:
    """Return the sum of the lanes that begin there, in the order in which halves are added to halves."""
    even = (sums[at] + sums[at + 4]) + (sums[at + 2] + sums[at + 6])
    odd = (sums[at + 1] + sums[at + 5]) + (sums[at + 3] + sums[at + 7])
    return even + odd  # type: ignore[no-any-return]


@inner
def _counts(
    addresses: Any, strides: Any, n: int, channels: int, element: int, frame: int, start: int
) -> tuple[Any, int]:
    """Return an element's counts as bytes, and at which of them, in units of 4, a frame's channel ``start`` is."""
    stride = strides[element]
    return memory(addresses[element], (n - 1) * stride + 4 * channels), frame * stride // 4 + start
