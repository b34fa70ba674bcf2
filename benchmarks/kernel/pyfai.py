"""PyFAI, set up to be as fast as it can: the mask in the detector, checks off, an integrator for each method."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import sparse

from .detectors import POLARIZATION, Detector
from .tasks import BINS, CAKE, UNIT, Array


class Integrators:
    """One detector's, each made when it is first used: a second or two for an Eiger 4M."""

    def __init__(self, detector: Detector) -> None:
        self.detector = detector
        self._made: dict[tuple[int, str, str], Any] = {}

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
        integrator, shape = self.detector.integrator(), self.detector.shape
        norm = np.asarray(integrator.solidAngleArray(shape), np.float64) * integrator.polarization(shape, POLARIZATION)
        product: Array = norm.ravel()
        return product

    def matrix(self, dimensions: int, split: str) -> sparse.csr_matrix:
        """Return weights of pixels in bins, (bins, pixels) float32, pyFAI's own."""
        engine = self.engine(dimensions, split, "csr")
        bins = len(engine.indptr) - 1
        return sparse.csr_matrix(
            (np.asarray(engine.data), np.asarray(engine.indices), np.asarray(engine.indptr)),
            shape=(bins, self.detector.pixels),
        )
