"""The sample: what stands at each position, from a seed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
Pattern = Callable[[Array, Array], Array]

ELEMENTS: Final = ("Ca", "Ti", "Mn", "Fe", "Ni", "Cu", "Zn")
EXTENT: Final = 100.0
"""The sample's width in µm; its centre is at (0, 0). Beyond, the patterns go on."""


class Sample:
    """Two crystalline phases and seven elements, each with a pattern of its own.

    Every value is a pure function of the position and the seed, so whatever asks – the diffraction detector, the
    fluorescence detector, a test – sees the same sample.

    Parameters
    ----------
    seed : int
        Moves and turns the patterns.

    Examples
    --------
    >>> sample = Sample(seed=0)
    >>> sample.elements(0.0, 0.0)["Fe"] == Sample(seed=0).elements(0.0, 0.0)["Fe"]
    np.True_
    >>> sample.phases([0.0, 1.0], 0.0)[0].shape
    (2,)
    """

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed
        rng = np.random.default_rng([seed & 0xFFFF_FFFF, 0x5A17])
        grains = _blobs(rng, count=9, width=0.11)
        veins = _waves(rng, periods=3.0, sharpness=3.0)
        self._phases: tuple[Pattern, Pattern] = (grains, veins)
        ring, tilt = _ring(rng, radius=0.3, width=0.07), _gradient(rng)
        self._elements: dict[str, Pattern] = {
            "Ca": _sum((0.75, tilt), (0.25, _waves(rng, periods=5.0, sharpness=1.0))),
            "Ti": _checks(rng, periods=4.0),
            "Mn": ring,
            "Fe": _sum((0.7, grains), (0.3, _gradient(rng))),
            "Ni": _spokes(rng, count=7),
            "Cu": _sum((0.8, veins), (0.2, tilt)),
            "Zn": _blobs(rng, count=4, width=0.2),
        }

    def phases(self, x: ArrayLike, y: ArrayLike) -> tuple[Array, Array]:
        """Return the shares (w1, w2) of the two phases at positions in µm, each in [0, 1] with w1 + w2 ≤ 1.

        Both have the shape that ``x`` and ``y`` broadcast to.
        """
        u, v = _scaled(x, y)
        first, second = (pattern(u, v) for pattern in self._phases)
        scale = 1.0 / np.maximum(first + second, 1.0)
        return first * scale, second * scale

    def elements(self, x: ArrayLike, y: ArrayLike) -> dict[str, Array]:
        """Return the relative areal density of each element at positions in µm, in [0.02, 1]."""
        u, v = _scaled(x, y)
        return {name: 0.02 + 0.98 * np.clip(pattern(u, v), 0.0, 1.0) for name, pattern in self._elements.items()}


def _scaled(x: ArrayLike, y: ArrayLike) -> tuple[Array, Array]:
    u, v = np.broadcast_arrays(np.asarray(x, float), np.asarray(y, float))
    return u / EXTENT, v / EXTENT


def _turned(rng: np.random.Generator) -> Callable[[Array, Array], Array]:
    """Return a coordinate along a random direction."""
    angle = rng.uniform(0.0, 2.0 * np.pi)
    a, b = np.cos(angle), np.sin(angle)
    return lambda u, v: a * u + b * v


def _sum(*terms: tuple[float, Pattern]) -> Pattern:
    def pattern(u: Array, v: Array) -> Array:
        total = np.zeros_like(u)
        for weight, term in terms:
            total = total + weight * term(u, v)
        return total

    return pattern


def _gradient(rng: np.random.Generator) -> Pattern:
    along = _turned(rng)
    return lambda u, v: 1.0 / (1.0 + np.exp(-4.0 * along(u, v)))


def _waves(rng: np.random.Generator, periods: float, sharpness: float) -> Pattern:
    along, across, phase = _turned(rng), _turned(rng), rng.uniform(0.0, 2.0 * np.pi)

    def pattern(u: Array, v: Array) -> Array:
        wave = 0.5 + 0.5 * np.sin(2.0 * np.pi * periods * along(u, v) + phase + 1.5 * np.sin(6.0 * across(u, v)))
        return np.asarray(wave**sharpness)

    return pattern


def _blobs(rng: np.random.Generator, count: int, width: float) -> Pattern:
    centres = rng.uniform(-0.5, 0.5, (count, 2))
    widths = width * rng.uniform(0.6, 1.4, count)
    heights = rng.uniform(0.5, 1.0, count)

    def pattern(u: Array, v: Array) -> Array:
        distance = (u[..., None] - centres[:, 0]) ** 2 + (v[..., None] - centres[:, 1]) ** 2
        return np.asarray((heights * np.exp(-distance / (2.0 * widths**2))).sum(axis=-1))

    return pattern


def _ring(rng: np.random.Generator, radius: float, width: float) -> Pattern:
    cu, cv = rng.uniform(-0.1, 0.1, 2)
    return lambda u, v: np.exp(-((np.hypot(u - cu, v - cv) - radius) ** 2) / (2.0 * width**2))


def _checks(rng: np.random.Generator, periods: float) -> Pattern:
    first, second = rng.uniform(0.0, 2.0 * np.pi, 2)
    k = 2.0 * np.pi * periods
    return lambda u, v: 0.5 + 0.5 * np.tanh(4.0 * np.sin(k * u + first) * np.sin(k * v + second))


def _spokes(rng: np.random.Generator, count: int) -> Pattern:
    cu, cv = rng.uniform(-0.2, 0.2, 2)

    def pattern(u: Array, v: Array) -> Array:
        angle, distance = np.arctan2(v - cv, u - cu), np.hypot(u - cu, v - cv)
        return np.asarray((0.5 + 0.5 * np.cos(count * angle)) * distance / (0.05 + distance))

    return pattern
