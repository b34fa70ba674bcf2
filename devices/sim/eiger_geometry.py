"""The Eiger models that the simulator knows, and where it imagines them to stand."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Final

from ...workers.errors import SettingsError

HC: Final = 12.398419843320026e-7
"""Planck's constant times the speed of light, eV m."""

MODULE: Final = (514, 1030)
"""Rows and columns of pixels of one module."""

GAP: Final = (37, 10)
"""Rows and columns between two modules."""


@dataclass(frozen=True, slots=True)
class Model:
    """An Eiger X. ``shape`` (rows, columns); lengths in m; ``min_frame_time`` in s; ``pyfai`` is its name in pyFAI."""

    name: str
    description: str
    shape: tuple[int, int]
    min_frame_time: float
    pyfai: str
    pixel_size: float = 75e-6
    distance: float = 0.1
    beam: tuple[float, float] = (0.5, 0.5)
    """Where the beam would hit, as a part of (rows, columns)."""
    photon_energy: float = 18000.0


MODELS: Final = {
    # At 9 kHz the 500k counts 8 bits; 750 Hz is the 4M's rate at 12 bits.
    "500k": Model("500k", "Dectris Eiger X 500K", (514, 1030), 1 / 9000, "Eiger500k", beam=(0.5, 0.06)),
    "4M": Model("4M", "Dectris Eiger X 4M", (2167, 2070), 1 / 750, "Eiger4M", distance=0.2),
}


def model(name: str) -> Model:
    """Return the model of that name.

    Raises
    ------
    SettingsError
        There is none.
    """
    if name not in MODELS:
        raise SettingsError(f"Eiger model {name!r} isn't simulated; there are {', '.join(MODELS)}")
    return MODELS[name]


def wavelength(photon_energy: float) -> float:
    """Return it in m, for an energy in eV.

    >>> round(wavelength(18000.0) * 1e10, 4)
    0.6888
    """
    return HC / photon_energy


def default_poni(name: str = "500k") -> str:
    """Return the text of a .poni file that fits the synthetic frames of that model.

    The detector stands at right angles to the beam, so that a ring's place is easily checked by hand.

    >>> print(default_poni("500k").splitlines()[1])
    Detector: Eiger500k
    """
    known = model(name)
    rows, columns = known.shape
    return "\n".join(
        [
            "poni_version: 2.1",
            f"Detector: {known.pyfai}",
            f"Detector_config: {json.dumps({'orientation': 3})}",
            f"Distance: {known.distance!r}",
            f"Poni1: {rows * known.beam[0] * known.pixel_size!r}",
            f"Poni2: {columns * known.beam[1] * known.pixel_size!r}",
            "Rot1: 0.0",
            "Rot2: 0.0",
            "Rot3: 0.0",
            f"Wavelength: {wavelength(known.photon_energy)!r}",
            "",
        ]
    )
