"""Frames as the detectors give them: rings of CeO2 on a background, counted, compressed; the same ones at each run."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from .detectors import POLARIZATION, Detector

BLOCK: Final = 8192
"""Bytes; bitshuffle's own choice, and the Eiger's."""


@dataclass(frozen=True, slots=True)
class Sample:
    """``frames`` of one detector, type and count level, and their ``chunks`` with the 12-byte header."""

    detector: Detector
    dtype: np.dtype[Any]
    level: float
    frames: list[NDArray[Any]]
    chunks: list[bytes]

    @property
    def chunk_bytes(self) -> int:
        """Mean size of a chunk."""
        return round(sum(map(len, self.chunks)) / len(self.chunks))

    @property
    def compression(self) -> float:
        """How many times larger a frame is than its chunk."""
        return self.frames[0].nbytes / self.chunk_bytes


def expectation(detector: Detector) -> NDArray[np.float64]:
    """Return what a pixel expects to count, 1 in the mean over the detector.

    Rings of CeO2 over air scattering and an amorphous halo, with polarization and solid angle.
    """
    from pyFAI.calibrant import get_calibrant

    integrator = detector.integrator()
    calibrant = get_calibrant("CeO2")
    calibrant.wavelength = integrator.wavelength
    rings = np.asarray(calibrant.fake_calibration_image(integrator, shape=detector.shape), np.float64)
    q = integrator.array_from_unit(detector.shape, unit="q_nm^-1")
    background = 3 * np.exp(-q / 20) + 0.3 + 0.8 * np.exp(-(((q - 18) / 6) ** 2))
    expected = 0.45 * rings / rings.mean() + 0.55 * background / background.mean()
    expected *= integrator.polarization(detector.shape, POLARIZATION) * integrator.solidAngleArray(detector.shape)
    scaled: NDArray[np.float64] = expected / expected.mean()
    return scaled


def count(detector: Detector, expected: NDArray[np.float64], level: float, frames: int) -> list[NDArray[np.uint32]]:
    """Return ``frames`` of counts, ``level`` in the mean, without gaps and hot pixels: the same at each call."""
    rng = np.random.default_rng([int(1000 * level), *detector.shape])
    return [rng.poisson(expected * level).astype(np.uint32) for _ in range(frames)]


def sample(detector: Detector, counts: list[NDArray[np.uint32]], level: float, dtype: str) -> Sample:
    """Return these counts as the detector gives them in that type.

    Gaps have all bits set, hot pixels one less.
    """
    kind = np.dtype(dtype)
    gap, mask = detector.gap(), detector.mask()
    most = np.iinfo(kind).max
    frames = []
    for each in counts:
        frame = np.minimum(each, most - 2).astype(kind)
        frame[mask] = most - 1
        frame[gap] = most
        frames.append(frame)
    return Sample(detector, kind, level, frames, [chunk(each) for each in frames])


def chunk(frame: NDArray[Any]) -> bytes:
    """Return a frame as HDF5's bitshuffle filter and the Eiger's stream give it."""
    import bitshuffle

    blocks = bitshuffle.compress_lz4(np.ascontiguousarray(frame).ravel(), BLOCK // frame.dtype.itemsize)
    return struct.pack(">QI", frame.nbytes, BLOCK) + bytes(blocks)
