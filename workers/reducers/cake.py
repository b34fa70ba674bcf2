"""Caking: a picture of azimuth and radius per frame, as pyFAI defines it, to see texture and strain."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar

from msgspec import Meta

from ..assets import AssetStore
from ..errors import ReductionError
from . import integration
from .base import Array, Output
from .integration import UNITS, Integration

MOST_BINS = 4_000_000
"""Of a picture: 16 MB."""


class Parameters(integration.Parameters, frozen=True, kw_only=True):
    """What a recipe of this reducer may say besides :class:`.integration.Parameters`.

    ``azimuthal_bins`` : bins of the azimuth. With ``method`` ``"full"`` the first pixel that isn't masked doesn't
    count: pyFAI has no certain coefficients for it. Bins with less than nothing of a pixel, by rounding, are 0.
    """

    azimuthal_bins: Annotated[int, Meta(ge=1, le=3600)] = 360


def recipe_params(
    poni: Path | str | Mapping[str, Any],
    *,
    mask: Path | str | Array | None = None,
    assets: AssetStore | None = None,
    **others: Any,
) -> dict[str, Any]:
    """Return a recipe's parameters with the poni's numbers written out: see :func:`.integration.recipe_params`."""
    return integration.recipe_params(Cake, poni, mask=mask, assets=assets, **others)


class Cake(Integration):
    """Frames to pictures of azimuth and radius.

    Outputs: ``intensity`` per frame, (azimuthal_bins, bins) float32, as of :class:`.azimuthal.Azimuthal`; ``sigma``
    likewise, on request; ``total`` per frame; once the axes ``azimuth``, degrees, and the radial one, float64.
    """

    name: ClassVar[str] = "cake"
    kind: ClassVar[type[integration.Parameters]] = Parameters
    dimensions: ClassVar[int] = 2

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        if self.params.bins * self.params.azimuthal_bins > MOST_BINS:
            asked = f"{self.params.azimuthal_bins} × {self.params.bins}"
            raise ReductionError(f"cake: {asked} bins are more than {MOST_BINS:,}: ask for fewer")

    @property
    def bins(self) -> tuple[int, ...]:
        """Return the shape of a frame's result."""
        return (self.params.azimuthal_bins, self.params.bins)

    def axes(self) -> dict[str, Output]:
        """Return the axes, the azimuth first."""
        axis, units = UNITS[self.params.unit]
        return {
            "azimuth": Output("const", self.bins[:1], "<f8", "deg", "azimuth"),
            axis: Output("const", self.bins[1:], "<f8", units, axis.replace("_", " ")),
        }

    def integrate(self, integrator: Any, image: Array, **options: Any) -> tuple[Any, list[Array]]:
        """Let pyFAI integrate."""
        result = integrator.integrate2d_ng(
            image, npt_rad=self.params.bins, npt_azim=self.params.azimuthal_bins, **options
        )
        return result, [result.azimuthal, result.radial]
