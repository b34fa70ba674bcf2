"""Ways to apply an operator to frames."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..decode import decode
from ..errors import ShapeMismatch
from .base import Array, Chunk
from .operator import Operator, SparseProduct, excluded


class Engine(Protocol):
    """Applies an operator to frames."""

    def reduce(self, data: Array | list[Chunk], index: NDArray[np.int64]) -> dict[str, Array]:
        """Return ``intensity`` and, if asked for, ``sigma``, (n, bins) float32, and ``total``, (n,) float64."""
        ...


class InKernel:
    """Frames reduced while they are compressed.

    ``part`` is what the kernel is to do, alone or in one walk with other reducers.
    """

    def __init__(self, operator: Operator, dtype: np.dtype[Any], sigma: bool, cutoff: float | None) -> None:
        # LLVM is only loaded where frames are reduced, not where recipes are checked.
        from ..kernel import Bins, BinTable, Kernel, warm_up

        warm_up()
        table = BinTable(
            shape=operator.shape,
            coefficients=operator.coefficients,
            indices=operator.indices,
            starts=operator.starts,
            norm=operator.norm,
        )
        self.part = Bins(table=table, variance=sigma, cutoff=cutoff)
        self._kernel = Kernel(operator.shape, dtype, {"bins": self.part})

    def reduce(self, data: Array | list[Chunk], index: NDArray[np.int64]) -> dict[str, Array]:
        """Reduce frames, 16 at a time."""
        return self._kernel.run(data, index)["bins"]


class _FrameByFrame:
    """Frames decoded one after the other; one is in memory at a time."""

    def __init__(self, operator: Operator, dtype: np.dtype[Any], sigma: bool, cutoff: float | None) -> None:
        self._operator, self._dtype, self._sigma, self._cutoff = operator, dtype, sigma, cutoff

    def reduce(self, data: Array | list[Chunk], index: NDArray[np.int64]) -> dict[str, Array]:
        """Reduce frames."""
        n = len(index)
        names = ("intensity", "sigma") if self._sigma else ("intensity",)
        nav: dict[str, Array] = {name: np.empty((n, self._operator.bins), np.float32) for name in names}
        nav["total"] = np.empty(n)
        for k, frame in enumerate(self._frames(data, index)):
            for name, value in self._one(frame).items():
                nav[name][k] = value
        return nav

    @abstractmethod
    def _one(self, frame: Array) -> dict[str, Any]:
        """Return the results of a frame, (pixels,)."""

    def _frames(self, data: Array | list[Chunk], index: NDArray[np.int64]) -> Iterator[Array]:
        for item, number in zip(data, index, strict=True):
            frame = decode(item) if isinstance(item, Chunk) else np.asarray(item)
            if frame.shape != self._operator.shape or frame.dtype != self._dtype:
                raise ShapeMismatch(
                    f"frame {number}: {frame.shape} {frame.dtype}, the stream was announced with "
                    f"{self._operator.shape} {self._dtype}"
                )
            yield frame.astype(frame.dtype.newbyteorder("="), copy=False).ravel()


class Sparse(_FrameByFrame):
    """The operator as a sparse product in float64."""

    def __init__(self, operator: Operator, dtype: np.dtype[Any], sigma: bool, cutoff: float | None) -> None:
        super().__init__(operator, dtype, sigma, cutoff)
        self._product = SparseProduct(operator, sigma)

    def _one(self, frame: Array) -> dict[str, Any]:
        return self._product.apply(frame, excluded(frame, self._cutoff))


class Reference(_FrameByFrame):
    """pyFAI as it comes."""

    def __init__(
        self,
        operator: Operator,
        dtype: np.dtype[Any],
        sigma: bool,
        cutoff: float | None,
        integrate: Callable[..., tuple[Any, list[Array]]],
    ) -> None:
        super().__init__(operator, dtype, sigma, cutoff)
        self._integrate = integrate

    def _one(self, frame: Array) -> dict[str, Any]:
        counts = frame.astype(np.float64)
        counts[excluded(frame, self._cutoff)] = np.nan  # pyFAI leaves these out
        counts[self._operator.norm == 0] = np.nan
        model = "poisson" if self._sigma else None
        image = counts.astype(np.float32).reshape(self._operator.shape)
        result, _ = self._integrate(image, error_model=model)
        named = {"intensity": result.intensity.ravel(), "total": np.nansum(counts[self._operator.used])}
        return named | ({"sigma": result.sigma.ravel()} if self._sigma else {})
