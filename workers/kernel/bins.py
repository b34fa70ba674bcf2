"""The reduction to bins, as a part of the kernel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from ..errors import ReductionError, ShapeMismatch
from . import binning
from .parts import LOT, Array, Layout
from .quotients import TILE_MEMORY, take
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
            np.zeros(TILE_MEMORY // 8),
            longs(n),
            longs(n),
            longs(n),
            longs(LOT),
            longs(binning.LEFT_OUT + 1),
            memory(LOT * SLAB),
            memory(LOT * SLAB),
            memory(LOT * SLAB),
            memory(SLAB),
            memory(self.table.bins),
        )

    def reset(
        self, plan: binning.BinsPlan, state: binning.BinsState, frames: int, at: int, out: dict[str, Array]
    ) -> None:
        """Set to 0 what isn't: nothing of the sums, unless a walk failed."""
        width = self.table.bins * LOT
        if state.weighted.size and state.dirty.any():
            state.weighted[:] = 0
        elif state.sums.size:
            for each in np.flatnonzero(state.dirty[: binning.LEFT_OUT]):
                state.sums[each * width : (each + 1) * width] = 0
        if state.dirty[binning.LEFT_OUT]:
            for pixels_left_out in (state.less_norm, state.less_weight, state.less_square, state.left_out):
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
        take(
            frames,
            plan,
            state,
            out["intensity"][at : at + frames],
            out["total"][at : at + frames],
            out["sigma"][at : at + frames] if self.variance else np.empty((0, 0), np.float32),
            *(out[name][at : at + frames] if name in out else none for name in _SUMS),
        )


_SUMS: Final = ("signal", "normalization", "count", "variance")
