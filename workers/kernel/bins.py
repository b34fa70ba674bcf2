"""The reduction to bins, as a part of the kernel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ..errors import ReductionError, ShapeMismatch
from . import binning
from .compiling import inner, outer
from .parts import LOT, Array, Layout
from .tables import SLAB, BinTable


@dataclass(frozen=True, eq=False, kw_only=True)
class Bins:
    """Sums of counts over the bins of a table, and what comes of them.

    Per frame: ``intensity`` : (bins,) float32, weighted counts over weighted normalisation, 0 where a bin has no pixel;
    ``total`` : float64, counts in all pixels that are in any bin. With ``variance``: ``sigma`` : (bins,) float32, the
    standard error of the intensity, where a pixel's variance is its counts, at least 1 (pyFAI's Poisson model). With
    ``sums``: ``signal``, ``normalization``, ``count`` and (with ``variance``) ``variance`` : (bins,) float64.

    Left out of a frame, above the line and below it, are pixels with all bits set and those above ``cutoff``.
    """

    table: BinTable
    variance: bool = False
    cutoff: float | None = None
    sums: bool = False

    def __post_init__(self) -> None:
        if self.cutoff is not None and not self.cutoff > 0:
            raise ReductionError(f"bins: a cutoff of {self.cutoff} counts leaves no pixel, it must be above 0")

    @property
    def slot(self) -> str:
        """Return where its function is called."""
        return "bins"

    @property
    def _kinds(self) -> int:
        return 2 if self.variance else 1

    def coverage(self, shape: tuple[int, ...]) -> NDArray[np.bool_]:
        """Return the pixels that are in any bin.

        Raises
        ------
        ShapeMismatch
            The table is of another detector.
        """
        if tuple(shape) != tuple(self.table.shape):
            raise ShapeMismatch(f"the bin table is of frames of {self.table.shape}, these have {tuple(shape)}")
        return self.table.used

    def plan(self, layout: Layout) -> binning.BinsPlan:
        """Arrange the table."""
        program, norms = self.table.arranged
        least = (1 << 8 * layout.itemsize) - 1
        if self.cutoff is not None:
            least = int(min(least, np.floor(self.cutoff) + 1))
        weighted = program.weights.size > 0
        numbers = np.array([weighted, self.variance, self.table.bins, least, (least.bit_length() + 7) // 8], np.int64)
        used = np.zeros((-(-layout.pixels // SLAB) + 1) * SLAB, bool)
        used[: layout.pixels] = self.table.used.ravel()
        return binning.BinsPlan(np.ones(1, np.int64), numbers, np.packbits(used, bitorder="little"), program, norms)

    def state(self, layout: Layout, plan: binning.BinsPlan) -> binning.BinsState:
        """Return sums for 16 frames."""
        n = self.table.bins * LOT
        weighted = plan.program.weights.size > 0

        def longs(size: int) -> NDArray[np.int64]:
            return np.zeros(size, np.int64)

        def memory(size: int) -> NDArray[np.uint8]:
            return np.zeros(size, np.uint8)

        return binning.BinsState(
            np.zeros(0 if weighted else self._kinds * binning.PLANES * n, np.int32),  # touched where there are counts
            np.zeros(self._kinds * n if weighted else 0),
            longs(n),
            longs(n),
            longs(n),
            longs(LOT),
            longs(binning.LEFT_OUT + 1),
            memory(LOT * SLAB),
            memory(LOT * SLAB),
            memory(LOT * SLAB),
            memory(SLAB),
        )

    def reset(self, plan: binning.BinsPlan, state: binning.BinsState) -> None:
        """Set to 0 what isn't."""
        width = self.table.bins * LOT
        if state.weighted.size and state.dirty.any():
            state.weighted[:] = 0
        elif state.sums.size:
            for each in np.flatnonzero(state.dirty[: binning.LEFT_OUT]):
                state.sums[each * width : (each + 1) * width] = 0
        if state.dirty[binning.LEFT_OUT]:
            for pixels_left_out in (state.less_norm, state.less_weight, state.less_square):
                pixels_left_out[:] = 0
        state.dirty[:] = 0
        state.total[:] = 0

    def outputs(self, layout: Layout, frames: int) -> dict[str, Array]:
        """Return the arrays of a call's results."""
        bins = (frames, self.table.bins)
        named: dict[str, Array] = {"intensity": np.empty(bins, np.float32), "total": np.empty(frames)}
        if self.variance:
            named["sigma"] = np.empty(bins, np.float32)
        if self.sums:
            named |= {name: np.empty(bins) for name in ("signal", "normalization", "count")}
            if self.variance:
                named["variance"] = np.empty(bins)
        return named

    def take(
        self, plan: binning.BinsPlan, state: binning.BinsState, frames: int, at: int, out: dict[str, Array]
    ) -> None:
        """Divide."""
        none = np.empty((0, 0))
        _take(
            frames,
            plan,
            state,
            out["intensity"][at : at + frames],
            out["total"][at : at + frames],
            out["sigma"][at : at + frames] if self.variance else np.empty((0, 0), np.float32),
            *(out[name][at : at + frames] if name in out else none for name in _SUMS),
        )


_SUMS: Final = ("signal", "normalization", "count", "variance")


@outer
def _take(
    frames: int,
    plan: Any,
    state: Any,
    intensity: Any,
    total: Any,
    sigma: Any,
    signal: Any,
    normalization: Any,
    count: Any,
    variance: Any,
) -> None:
    n_bins = plan.numbers[binning.BINS]
    weighted = plan.numbers[binning.WEIGHTED] != 0
    norms = plan.norms
    some_left_out = state.dirty[binning.LEFT_OUT] != 0
    totals = np.zeros(LOT, np.int64)
    for b in range(n_bins):
        scale = norms.scale[b]
        for frame in range(frames):
            norm, weight, square = norms.norm[b], norms.weight[b], norms.square[b]
            if some_left_out:
                norm -= state.less_norm[b * LOT + frame]
                weight -= state.less_weight[b * LOT + frame]
                square -= state.less_square[b * LOT + frame]
            if weighted:
                value = state.weighted[b * LOT + frame]
            else:
                added = _added(state, 0, n_bins, b, frame)
                totals[frame] += added
                value = float(added)
            below = float(norm) * norms.units[0] * scale
            intensity[frame, b] = value / below if norm > 0 else 0.0
            spread = 0.0
            if sigma.size > 0:
                above = (
                    state.weighted[(n_bins + b) * LOT + frame]
                    if weighted
                    else float(_added(state, 1, n_bins, b, frame))
                )
                spread = above + float(square) * norms.units[1] * scale * scale
                sigma[frame, b] = np.sqrt(spread) / below if norm > 0 else 0.0
            if signal.size > 0:
                signal[frame, b] = value
                normalization[frame, b] = below
                count[frame, b] = float(weight) * norms.units[1] * scale
                if variance.size > 0:
                    variance[frame, b] = spread
    for frame in range(frames):
        total[frame] = float(state.total[frame] if weighted else totals[frame])


@inner
def _added(state: Any, kind: int, n_bins: int, b: int, frame: int) -> int:
    value: Any = np.int64(0)
    for plane in range(binning.PLANES):
        each = kind * binning.PLANES + plane
        if state.dirty[each] != 0:
            value += np.int64(np.uint32(state.sums[(each * n_bins + b) * LOT + frame])) << (8 * plane)
    return value  # type: ignore[no-any-return]
