"""PyFAI, set up to be as fast as it can: the mask in the detector, checks off, an integrator for each method."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import sparse

from ...workers.kernel import BinTable
from .detectors import POLARIZATION, Detector
from .tasks import BINS, CAKE, UNIT, Array


class Integrators:
    """One detector's, each made when it is first used: a second or two for an Eiger 4M."""

    def __init__(self, detector: Detector) -> None:
        self.detector = detector
        self._made: dict[tuple[int, str, str], Any] = {}
        self._matrices: dict[tuple[int, str], sparse.csr_matrix] = {}
        self._normalization: Array | None = None
        self._tables: dict[tuple[int, str], BinTable] = {}

    def run(self, dimensions: int, split: str, algorithm: str, frame: Array, *, variance: bool = False) -> Any:
        """Integrate a frame: azimuthally (1) or as azimuth × radius (2); return pyFAI's result."""
        key = (dimensions, split, algorithm)
        if key not in self._made:
            self._made[key] = self.detector.integrator()
        options: dict[str, Any] = {
            "unit": UNIT,
            "polarization_factor": POLARIZATION,
            "method": (split, algorithm, "cython"),
            "safe": False,
            "error_model": "poisson" if variance else None,
        }
        if dimensions == 1:
            return self._made[key].integrate1d_ng(frame, BINS, **options)
        return self._made[key].integrate2d_ng(frame, *CAKE, **options)

    def engine(self, dimensions: int, split: str, algorithm: str) -> Any:
        """Return pyFAI's own sparse matrix: ``data``, ``indices``, ``indptr``."""
        self.run(dimensions, split, algorithm, np.zeros(self.detector.shape, np.uint32))
        engines = self._made[dimensions, split, algorithm].engines
        return next(value.engine for method, value in engines.items() if method.algo_lower == algorithm)

    def normalization(self) -> Array:
        """Return by what pyFAI divides each pixel's counts, (pixels,) float64: solid angle × polarization."""
        if self._normalization is None:
            integrator, shape = self.detector.integrator(), self.detector.shape
            angle = np.asarray(integrator.solidAngleArray(shape), np.float64)
            self._normalization = (angle * integrator.polarization(shape, POLARIZATION)).ravel()
        return self._normalization

    def matrix(self, dimensions: int, split: str) -> sparse.csr_matrix:
        """Return weights of pixels in bins, (bins, pixels) float32, pyFAI's own."""
        if (dimensions, split) not in self._matrices:
            engine = self.engine(dimensions, split, "csr")
            arrays = (np.asarray(engine.data), np.asarray(engine.indices), np.asarray(engine.indptr))
            shape = (len(engine.indptr) - 1, self.detector.pixels)
            self._matrices[dimensions, split] = sparse.csr_matrix(arrays, shape=shape)
        return self._matrices[dimensions, split]

    def table(self, dimensions: int, split: str) -> BinTable:
        """Return the same for the kernel, with what is divided by."""
        if (dimensions, split) not in self._tables:
            matrix = self.matrix(dimensions, split)
            self._tables[dimensions, split] = BinTable(
                shape=self.detector.shape,
                coefficients=matrix.data,
                indices=matrix.indices,
                starts=matrix.indptr.astype(np.int64),
                norm=self.normalization(),
            )
        return self._tables[dimensions, split]
