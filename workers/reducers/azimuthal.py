"""Azimuthal integration: a powder pattern per frame, as pyFAI defines it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from ..assets import AssetStore
from . import integration
from .base import Array, Output
from .integration import UNITS, Integration, Parameters


def recipe_params(
    poni: Path | str | Mapping[str, Any],
    *,
    mask: Path | str | Array | None = None,
    assets: AssetStore | None = None,
    **others: Any,
) -> dict[str, Any]:
    """Return a recipe's parameters with the poni's numbers written out: see :func:`.integration.recipe_params`.

    >>> recipe_params({"dist": 0.2, "poni1": 0, "poni2": 0, "pixel1": 1e-4, "pixel2": 1e-4}, bins=500)["bins"]
    500
    """
    return integration.recipe_params(Azimuthal, poni, mask=mask, assets=assets, **others)


class Azimuthal(Integration):
    """Frames to patterns.

    Outputs: ``intensity`` per frame, (bins,) float32, counts per pixel of the solid angle at the point of normal
    incidence, 0 in bins without a pixel (as pyFAI); ``sigma`` likewise, on request; ``total`` per frame, counts in the
    pixels that are in any bin; the radial axis, (bins,) float64, once, named after its unit
    (:data:`.integration.UNITS`).
    """

    name: ClassVar[str] = "azimuthal"
    kind: ClassVar[type[Parameters]] = Parameters
    dimensions: ClassVar[int] = 1

    @property
    def bins(self) -> tuple[int, ...]:
        """Return the shape of a frame's result."""
        return (self.params.bins,)

    def axes(self) -> dict[str, Output]:
        """Return the radial axis."""
        axis, units = UNITS[self.params.unit]
        return {axis: Output("const", self.bins, "<f8", units, axis.replace("_", " "))}

    def integrate(self, integrator: Any, image: Array, **options: Any) -> tuple[Any, list[Array]]:
        """Let pyFAI integrate."""
        result = integrator.integrate1d_ng(image, npt=self.params.bins, **options)
        return result, [result.radial]
