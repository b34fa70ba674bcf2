"""Whether an answer is right: integers equal numpy's, floats come near to pyFAI's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np

from .frames import Sample
from .pyfai import Integrators
from .tasks import Answer, Array, crop, moments, region_sums, regions, shrunk

NEGLIGIBLE: Final = 1e-6
"""Part of the largest value below which deviations are related to it: a bin of nothing deviates by nothing."""


class References:
    """The right answers for a sample's frames, each made when it is asked for."""

    def __init__(self, sample: Sample, integrators: Integrators) -> None:
        self.sample, self.integrators = sample, integrators
        self.mask = sample.detector.mask()

    def answer(self, task: str, k: int = 0) -> Answer:
        """Return it for frame ``k``."""
        return self._makers[task](self, self.sample.frames[k])

    def _decoded(self, frame: Array) -> Answer:
        return {"frame": frame, "counted": np.where(self.mask, 0, frame)}

    def _integrated(self, split: str, frame: Array, *, variance: bool = False) -> Answer:
        result = self.integrators.run(1, split, "csr", frame, variance=variance)
        given = {"intensity": result.intensity, "signal": result.sum_signal, "normalization": result.sum_normalization}
        if variance:
            given |= {"sem": result.sem, "variance": result.sum_variance}
        if split == "no":
            given["sums"] = self._sums(1, frame)
        return given

    def _cake(self, frame: Array) -> Answer:
        result = self.integrators.run(2, "no", "csr", frame)
        return {"intensity": result.intensity, "signal": result.sum_signal, "sums": self._sums(2, frame)}

    def _sums(self, dimensions: int, frame: Array) -> Array:
        """Return the counts in each bin, (bins,) int64: which pixel is in which is pyFAI's choice."""
        matrix = self.integrators.matrix(dimensions, "no")
        ones = np.ones(matrix.nnz, np.int64)
        counted = type(matrix)((ones, matrix.indices, matrix.indptr), shape=matrix.shape)
        sums: Array = counted @ np.where(self.mask, 0, frame).ravel().astype(np.int64)
        return sums

    def _regions(self, frame: Array) -> Answer:
        return {"regions": region_sums(frame, self.mask, regions(self.sample.detector))}

    def _all(self, frame: Array) -> Answer:
        return self._integrated("no", frame) | self._regions(frame) | moments(frame, self.mask)

    _makers: Final[dict[str, Callable[[References, Array], Answer]]] = {
        "decode": _decoded,
        "no": lambda self, frame: self._integrated("no", frame),
        "variance": lambda self, frame: self._integrated("no", frame, variance=True),
        "bbox": lambda self, frame: self._integrated("bbox", frame),
        "full": lambda self, frame: self._integrated("full", frame),
        "cake": _cake,
        "roi": _regions,
        "crop": lambda self, frame: {"crop": frame[crop(self.sample.detector).slices]},
        "moments": lambda self, frame: moments(frame, self.mask),
        "shrink": lambda self, frame: {"shrunk": shrunk(frame, self.mask)},
        "all": _all,
    }


def compare(answer: Answer, right: Answer) -> dict[str, Any]:
    """Return per name ``equal`` (both are integers) or the largest ``deviation``, relative.

    >>> compare({"n": np.array([1, 2]), "x": np.array([1.0, 4.0])}, {"n": np.array([1, 2]), "x": np.array([1.0, 5.0])})
    {'n': {'equal': True}, 'x': {'deviation': 0.2}}
    """
    found: dict[str, Any] = {}
    for name, value in answer.items():
        mine, other = np.asarray(value), np.asarray(right[name])
        if mine.shape != other.shape:
            found[name] = {"equal": False}
        elif mine.dtype.kind in "iu" and other.dtype.kind in "iu":
            found[name] = {"equal": bool(np.array_equal(mine, other))}
        else:
            found[name] = {"deviation": deviation(mine, other)}
    return found


def deviation(mine: Array, other: Array) -> float:
    """Return the largest relative deviation; NaN if one has a value where the other has none."""
    a, b = mine.astype(np.float64), other.astype(np.float64)
    if not np.array_equal(np.isnan(a), np.isnan(b)):
        return float("nan")
    size = np.abs(np.nan_to_num(b))
    floor = NEGLIGIBLE * size.max(initial=0.0)
    scale = np.maximum(size, floor if floor > 0 else 1.0)
    return float(np.max(np.abs(np.nan_to_num(a) - np.nan_to_num(b)) / scale, initial=0.0))


def words(agreement: dict[str, Any]) -> str:
    """Return it for a table.

    >>> words({"sums": {"equal": True}, "intensity": {"deviation": 4.2e-8}})
    'sums equal, intensity 4e-08'
    """
    return ", ".join(
        f"{name} {each['deviation']:.0e}" if "deviation" in each else f"{name} {'equal' if each['equal'] else 'DIFFER'}"
        for name, each in agreement.items()
    )
