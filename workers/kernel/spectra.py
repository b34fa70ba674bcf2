"""Spectra to areas: dead-time correction, sum of the elements, product with templates, in one pass over the counts.

A spectrum's areas are the same to the bit whatever it is reduced together with and wherever: :mod:`.dots` says how.
They are as good as float32 is: an area's error is about 1e-8 of what all counts, had they been in the channel that adds
most to it, would add, which is some thousand times less than what counting leaves uncertain.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import ReductionError, ShapeMismatch
from .aligned import address, aligned
from .compiling import Packed, entry, inner
from .dots import MIXED, TILE, dots, mix
from .intrinsics import memory
from .places import LANES, ROWS
from .plan import BLOCK, planned
from .tallies import add_large, clear, tally, tally_single, tally_weighted

LOT: Final = 12
"""Spectra at a time: a block of them fits as float32 into the first-level cache beside a tile's templates. Results
don't depend on it."""

MANY: Final = 1 << 28
"""So many counts in a channel, LOT times, pass 32 bits."""

NOTHING: Final = np.zeros(BLOCK, np.uint32)
"""Counts of nobody, to fill a lot; and where they are."""

NOWHERE: Final = address(NOTHING)


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


class _SpectraSpace(NamedTuple):
    """What one thread works in for so many elements, kept from run to run: new memory costs more than the work.

    ``singles`` : a block of a lot's spectra, then of their variances. ``sums`` : a lot's, and a row for nobody.
    ``subtotal`` : a lot's, of all elements. ``filled`` : which of a lot have counts in a block, then nobody.
    """

    singles: NDArray[np.float32]
    sums: NDArray[np.float64]
    subtotal: NDArray[np.uint32]
    filled: NDArray[np.int64]


class Projection:
    """Spectra times a matrix.

    Parameters
    ----------
    operator
        (templates, channels) float64, finite: area k is the sum over channels of operator[k]·counts.
    variances
        The templates of whose areas the variance is wanted, the sum over channels of operator[k]²·counts; None for
        all. A variance is more work than an area, which shares sums with others.

    Notes
    -----
    Several threads may use one projection: the interpreter's lock is let go while spectra are reduced.
    """

    def __init__(self, operator: NDArray[np.float64], variances: Sequence[int] | None = None) -> None:
        if operator.ndim != 2 or not operator.size or not np.isfinite(operator).all():
            raise ReductionError(f"an operator of {operator.shape} must be (templates, channels), finite")
        self.templates, self.channels = operator.shape
        chosen = np.arange(self.templates) if variances is None else np.array(variances, np.intp)
        self._padded = -(-self.channels // LANES) * LANES
        padded = np.pad(operator, ((0, 0), (0, self._padded - self.channels)))
        self._plan = planned(padded, chosen)
        self._variances = len(chosen)
        self._packed = Packed(self._plan)
        self._idle: dict[int, list[Packed]] = {}

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
        # Of whole vectors, and of whole lots.
        areas, variances = np.empty((n, self._plan.mixing.shape[1])), np.empty((n, self._variances))
        total = np.zeros((len(rows), self._padded), np.int64)
        bits = np.zeros((-(-n // LOT) * LOT, len(rows)), np.int64)
        if n:
            idle = self._idle.setdefault(len(rows), [])
            mine = idle.pop() if idle else self._space(len(rows))
            lying = np.array([*((address(each), each.strides[0]) for each in rows), (NOWHERE, 0)], np.int64)
            given = np.array(factors, np.float64, order="C")
            _project(lying, given, self._packed, mine, areas.reshape(-1), variances, total.reshape(-1), bits)
            idle.append(mine)
        return Projected(areas[:, : self.templates], variances, total[:, : self.channels], bits[:n])

    def _space(self, elements: int) -> Packed:
        width = len(self._plan.mixing) + -(-self._variances // TILE) * TILE
        return Packed(
            _SpectraSpace(
                aligned(2 * LOT * BLOCK, np.float32),
                aligned((LOT + 1) * width, np.float64),
                aligned(elements * self._padded, np.uint32),
                np.empty(LOT + ROWS, np.int64),
            )
        )

    def _rows(self, spectra: NDArray[Any]) -> NDArray[Any]:
        """Return the spectra so that each is a row of whole groups in one piece."""
        if self._padded != self.channels:
            return np.pad(spectra, ((0, 0), (0, self._padded - self.channels)))
        straight = spectra.strides[1] == 4 and spectra.strides[0] >= 0 and spectra.strides[0] % 4 == 0
        return spectra if straight else np.ascontiguousarray(spectra)


@entry
def _project(
    lying: Any, factors: Any, plan: Any, space: Any, areas: Any, variances: Any, totals: Any, bits: Any
) -> None:
    """Reduce spectra; ``lying`` : (elements + 1, 2), where each element's are, bytes between two; nobody's last."""
    table, ends, slots, mixing, variance_scale = plan
    singles, sums, subtotal, filled = space
    n, elements = factors.shape
    channels, blocks = len(totals) // elements, len(ends) - 1
    mixed, wide = mixing.shape
    width, squares = len(sums) // (LOT + 1), LOT * BLOCK
    for first in range(0, n, LOT):
        rows = min(LOT, n - first)
        clear(subtotal, 0, len(subtotal))
        clear(sums, 0, rows * width)
        large, place = np.int64(0), np.int64(0)
        for block in range(blocks):
            start = block * BLOCK
            groups = min(BLOCK, channels - start) // LANES
            count = np.int64(0)
            for row in range(0, rows, ROWS):
                frame = first + row
                found, second, third = np.int64(0), np.int64(0), np.int64(0)
                if elements > 1:
                    clear(singles, row * BLOCK, ROWS * BLOCK)
                    clear(singles, squares + row * BLOCK, ROWS * BLOCK)
                for element in range(elements):
                    counts, one = _counts(lying, n, channels, element, frame, start)
                    others, two = _counts(lying, n, channels, element, frame + 1, start)
                    last, three = _counts(lying, n, channels, element, frame + 2, start)
                    to = element * channels + start
                    if elements == 1:
                        seen = tally_single(
                            counts,
                            one,
                            others,
                            two,
                            last,
                            three,
                            groups,
                            subtotal,
                            to,
                            singles,
                            row * BLOCK,
                            BLOCK,
                        )
                    else:
                        seen = tally_weighted(
                            counts,
                            one,
                            others,
                            two,
                            last,
                            three,
                            groups,
                            subtotal,
                            to,
                            singles,
                            row * BLOCK,
                            BLOCK,
                            squares,
                            factors[frame, element],
                            factors[min(frame + 1, n - 1), element],
                            factors[min(frame + 2, n - 1), element],
                        )
                    bits[frame, element] |= seen[0]
                    bits[frame + 1, element] |= seen[1]
                    bits[frame + 2, element] |= seen[2]
                    found |= seen[0]
                    second |= seen[1]
                    third |= seen[2]
                large |= found | second | third
                if (found | second | third) >> 31:  # they were taken as negative
                    for again in range(row, min(row + ROWS, rows)):
                        clear(singles, again * BLOCK, BLOCK)
                        clear(singles, squares + again * BLOCK, BLOCK)
                        for element in range(elements):
                            counts, one = _counts(lying, n, channels, element, first + again, start)
                            weight = 1.0 if elements == 1 else factors[first + again, element]
                            add_large(counts, one, groups, weight, singles, again * BLOCK, squares)
                # Of an empty block nothing but zeros would be added.
                filled[count] = row
                count += found != 0
                filled[count] = row + 1
                count += second != 0
                filled[count] = row + 2
                count += third != 0
            filled[count], filled[count + 1] = LOT, LOT
            for tile in range(ends[block], ends[block + 1]):
                slot = slots[tile]
                begin = squares if slot >= mixed and elements > 1 else 0
                for k in range(0, count, ROWS):
                    a, b, c = filled[k], filled[k + 1], filled[k + 2]
                    dots(
                        singles,
                        begin + a * BLOCK,
                        begin + (b if b < LOT else a) * BLOCK,
                        begin + (c if c < LOT else a) * BLOCK,
                        table,
                        place,
                        groups,
                        sums,
                        a * width + slot,
                        b * width + slot,
                        c * width + slot,
                    )
                place += groups * LANES * TILE
        for element in range(elements):
            to = element * channels
            if large < MANY:
                tally(subtotal, to, channels // LANES, totals, to)
                continue
            for row in range(rows):  # the subtotal may have passed 32 bits
                counts, one = _counts(lying, n, channels, element, first + row, 0)
                tally(counts, one, channels // LANES, totals, to)
        for row in range(rows):
            frame = first + row
            factor = factors[frame, 0] if elements == 1 else 1.0  # a single element's is applied to its areas
            for k in range(0, wide, MIXED):
                mix(sums, row * width, mixed, mixing, k, wide, factor, areas, frame * wide + k)
            for k in range(variances.shape[1]):
                variances[frame, k] = sums[row * width + mixed + k] * (variance_scale[k] * (factor * factor))


@inner
def _counts(lying: Any, n: int, channels: int, element: int, frame: int, start: int) -> tuple[Any, int]:
    """Return an element's counts as bytes, and at which of them, in units of 4, a frame's channel ``start`` is.

    Of frames there aren't, counts are 0.
    """
    if frame >= n:
        return memory(lying[len(lying) - 1, 0], 4 * BLOCK), 0
    stride = lying[element, 1]
    return memory(lying[element, 0], (n - 1) * stride + 4 * channels), frame * stride // 4 + start
