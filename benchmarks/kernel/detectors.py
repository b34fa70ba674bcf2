"""The detectors that are measured, and where they stand."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from pyFAI.integrator.azimuthal import AzimuthalIntegrator

WAVELENGTH: Final = 0.4133e-10
"""m; 30 keV."""

DISTANCE: Final = 0.2
"""m."""

TILT: Final = (0.01, -0.006, 0.0)
"""rad; rings are no circles on the detector, as on any real one."""

POLARIZATION: Final = 0.95

BAD: Final = 1.2e-4
"""Part of the pixels that are hot and masked."""


@dataclass(frozen=True, slots=True)
class Detector:
    """``shape`` (rows, columns); ``pixel`` size in m; ``beam`` (row, column); ``pyfai``: its name there, which knows
    its gaps; ``gaps``: else (rows or columns, first, end) of those.
    """  # noqa: D205

    name: str
    title: str
    shape: tuple[int, int]
    pixel: float
    beam: tuple[float, float]
    pyfai: str | None = None
    gaps: tuple[tuple[int, int, int], ...] = ()

    @property
    def pixels(self) -> int:
        """How many there are."""
        return self.shape[0] * self.shape[1]

    def gap(self) -> NDArray[np.bool_]:
        """Return where it has no pixels."""
        found = np.zeros(self.shape, bool)
        if self.pyfai is not None:
            from pyFAI.detectors import detector_factory

            known = detector_factory(self.pyfai).mask
            return found if known is None else np.asarray(known).astype(bool)
        for axis, first, end in self.gaps:
            found[(slice(None),) * axis + (slice(first, end),)] = True
        return found

    def mask(self) -> NDArray[np.bool_]:
        """Return what is left out: gaps and :data:`BAD` of the pixels, always the same ones."""
        return self.gap() | (np.random.default_rng(7).random(self.shape) < BAD)

    def poni(self) -> dict[str, Any]:
        """Return the geometry as numbers, for haltere's recipes and for pyFAI."""
        rot1, rot2, rot3 = TILT
        return {
            "dist": DISTANCE,
            "poni1": self.beam[0] * self.pixel,
            "poni2": self.beam[1] * self.pixel,
            "rot1": rot1,
            "rot2": rot2,
            "rot3": rot3,
            "wavelength": WAVELENGTH,
            "pixel1": self.pixel,
            "pixel2": self.pixel,
            "shape": self.shape,
        }

    def integrator(self) -> AzimuthalIntegrator:
        """Return an integrator of pyFAI's that leaves out :meth:`mask`.

        The mask is the detector's own, so that pyFAI needn't compute its checksum at each call.
        """
        from ...workers.reducers import geometry

        made = geometry.integrator(geometry.parse(self.poni()), self.shape)
        made.detector.mask = self.mask().astype(np.int8)
        return made


DETECTORS: Final = {
    each.name: each
    for each in (
        Detector("eiger4m", "Eiger 4M", (2167, 2070), 75e-6, (1100.3, 1040.7), "Eiger4M"),
        Detector("eiger500k", "Eiger 500k", (514, 1030), 75e-6, (260.2, -40.3), "Eiger500k"),
        Detector(
            "lambda750k", "Lambda 750k", (516, 1556), 55e-6, (250.2, 700.3), gaps=((1, 516, 520), (1, 1036, 1040))
        ),
    )
}
