"""pyFAI's operator of an integration, taken from its own engine, and its product with a frame."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .base import Array


@dataclass(frozen=True, slots=True, eq=False)
class Operator:
    """A sparse matrix from pixels to bins, as CSR, and the pixels' normalisation.

    ``shape`` : of a frame. ``coefficients``, ``indices`` : (entries,), how much of a pixel is in a bin, and which
    pixel. ``starts`` : (bins + 1,), where a bin's entries begin; 2-D bins in the order of the result, azimuth first.
    ``norm`` : (pixels,), solid angle and polarization; 0 of masked pixels.
    """

    shape: tuple[int, int]
    coefficients: NDArray[np.float32]
    indices: NDArray[np.int32]
    starts: NDArray[np.int64]
    norm: NDArray[np.float64]

    @classmethod
    def of(
        cls,
        integrator: Any,
        dimensions: int,
        mask: NDArray[np.bool_],
        polarization: float | None,
        solid_angle: bool,
    ) -> Operator:
        """Return what pyFAI's integrator has made for its last integration by CSR."""
        engines = integrator.engines.items()
        engine = next(
            value.engine for method, value in engines if method.algo_lower == "csr" and method.dim == dimensions
        )
        starts = np.asarray(engine.indptr, np.int64)
        coefficients = np.asarray(engine.data, np.float32)[: starts[-1]]
        indices = np.asarray(engine.indices, np.int32)[: starts[-1]]
        if dimensions == 2:
            coefficients, indices, starts = _azimuth_first(coefficients, indices, starts, engine.bins)
        norm = np.ones(mask.size)
        if solid_angle:
            norm *= np.asarray(integrator.solidAngleArray(mask.shape), np.float64).ravel()
        if polarization is not None:
            norm *= np.asarray(integrator.polarization(mask.shape, polarization), np.float64).ravel()
        norm[mask.ravel() | ~np.isfinite(norm)] = 0
        return cls((mask.shape[0], mask.shape[1]), coefficients, indices, starts, norm)

    @property
    def bins(self) -> int:
        """Number of bins."""
        return self.starts.size - 1

    @property
    def used(self) -> NDArray[np.bool_]:
        """Return which pixels count in any bin, (pixels,)."""
        used = np.zeros(self.norm.size, bool)
        used[self.indices[self.coefficients != 0]] = True
        return used & (self.norm > 0)


def _azimuth_first(
    coefficients: NDArray[np.float32], indices: NDArray[np.int32], starts: NDArray[np.int64], bins: tuple[int, int]
) -> tuple[NDArray[np.float32], NDArray[np.int32], NDArray[np.int64]]:
    """Sort pyFAI's 2-D bins, which it numbers along the azimuth, as its results are: along the radius."""
    order = np.arange(bins[0] * bins[1]).reshape(bins).T.ravel()
    sizes = np.diff(starts)[order]
    sorted_starts = np.concatenate(([0], np.cumsum(sizes)))
    entries = np.repeat(starts[:-1][order] - sorted_starts[:-1], sizes) + np.arange(sorted_starts[-1])
    return coefficients[entries], indices[entries], sorted_starts


class SparseProduct:
    """An operator's product with frames of any type, in float64: 9–17 ms for an Eiger 4M frame against pyFAI's 80."""

    def __init__(self, operator: Operator, sigma: bool) -> None:
        from scipy import sparse

        self._used = operator.used.astype(np.float64)
        csr = sparse.csr_matrix(
            (operator.coefficients.astype(np.float64), operator.indices, operator.starts),
            shape=(operator.bins, operator.norm.size),
        )
        csr.sum_duplicates()
        # By columns: the frame is read once in its order, the bins stay in the first-level cache.
        self._matrix = csr.tocsc()
        self._squared = self._matrix.power(2) if sigma else None
        self._norm = operator.norm * self._used
        self._denominator: NDArray[np.float64] = self._matrix @ self._norm
        self._known = (np.empty(0, np.int64), self._denominator)

    def apply(self, frame: Array, left_out: NDArray[np.int64]) -> dict[str, Any]:
        """Return the results of a frame, (pixels,), without the pixels left out."""
        counts = frame.astype(np.float64)
        counts[left_out] = 0
        counts *= self._used  # a pixel without solid angle is masked
        denominator = self._denominator_without(left_out)
        filled = denominator > 0

        def per_bin(total: NDArray[np.float64]) -> NDArray[np.float64]:
            empty = np.zeros_like(total)
            return np.divide(total, denominator, out=empty, where=filled)

        result: dict[str, Any] = {"intensity": per_bin(self._matrix @ counts), "total": counts.sum()}
        if self._squared is not None:
            variance = np.maximum(counts, 1.0)  # pyFAI's Poisson model: a pixel without a count has variance 1
            variance[left_out] = 0
            result["sigma"] = per_bin(np.sqrt(self._squared @ (variance * self._used)))
        return result

    def _denominator_without(self, left_out: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the normalisation with these pixels left out.

        A function of the set alone. The last one is remembered, since gaps and dead pixels stay from frame to frame.
        """
        left_out = left_out[self._used[left_out] > 0]
        if not left_out.size:
            return self._denominator
        if not np.array_equal(left_out, self._known[0]):
            norm = self._norm.copy()
            norm[left_out] = 0
            self._known = (left_out, np.asarray(self._matrix @ norm, np.float64))
        denominator: NDArray[np.float64] = self._known[1]
        return denominator


def excluded(frame: Array, cutoff: float | None) -> NDArray[np.int64]:
    """Return the pixels of this frame that don't count: no data, negative, not finite, above the cutoff."""
    if frame.dtype.kind == "f":
        bad = ~np.isfinite(frame)
        return np.flatnonzero(bad if cutoff is None else bad | (frame > cutoff))
    # One comparison does: seen as unsigned, a negative number is above every positive one.
    unsigned = np.dtype(f"u{frame.dtype.itemsize}")
    limit = np.iinfo(frame.dtype).max - (frame.dtype.kind == "u")
    if cutoff is not None:
        limit = min(limit, int(min(cutoff, float(limit))))
    return np.flatnonzero(frame.view(unsigned) > unsigned.type(limit))
