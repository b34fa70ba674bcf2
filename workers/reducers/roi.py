"""Regions of interest: the counts in parts of each frame."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from msgspec import Meta, Struct
from numpy.typing import NDArray

from ..assets import AssetStore
from ..errors import ReductionError
from ..wire.messages import InputSpec
from . import masks, params
from .base import Array, Made, Output, Partial
from .frames import ImageReducer, mask_of

if TYPE_CHECKING:
    from ..kernel.gathering import ImagePart

Pixels = tuple[Annotated[int, Meta(ge=0)], Annotated[int, Meta(ge=1)]]
"""First and last plus one, as Python counts."""


class Region(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A rectangle: ``{"rows": [10, 60], "columns": [100, 150]}`` is of 50 × 50 pixels."""

    rows: Pixels
    columns: Pixels


class Parameters(Struct, frozen=True, kw_only=True):
    """What a recipe of this reducer may say.

    ``regions`` : rectangles by name; they may overlap. ``labels`` : instead of them, a reference to an asset, an
    ``.npy`` array of integers of the frames' shape, 0 for no region; ``names`` : of the labels 1, 2, …. ``mask`` : with
    ``regions``, reference to an asset, an ``.npy`` array in which not 0 means masked. ``cutoff`` : counts above which a
    pixel is saturated and left out. ``centres`` : also give each region's centre of mass. ``maxima`` : also give the
    greatest count in it. ``excluded`` : also give how many of its pixels were left out. ``key`` : the frames, if the
    detector has several.
    """

    regions: Annotated[dict[str, Region], Meta(max_length=1024)] | None = None
    labels: Annotated[str, Meta(pattern=r"^sha256:[0-9a-f]{64}\Z")] | None = None
    names: Annotated[list[str], Meta(max_length=1024)] | None = None
    mask: Annotated[str, Meta(pattern=r"^sha256:[0-9a-f]{64}\Z")] | None = None
    cutoff: Annotated[float, Meta(gt=0)] | None = None
    centres: bool = False
    maxima: bool = False
    excluded: bool = False
    key: str | None = None


def recipe_params(
    labels: Path | str | Array, names: Sequence[str], *, assets: AssetStore | None = None, **others: Any
) -> dict[str, Any]:
    """Return the parameters of a recipe with labelled pixels, which are put into the store.

    Parameters
    ----------
    labels
        A file (any that fabio reads, or ``.npy``), an array or a reference; 0 is no region.
    names
        Of the labels 1, 2, ….
    assets
        Where the pool keeps assets; needed with labels that are no reference.
    others
        Further :class:`Parameters`.
    """
    given = {"labels": masks.put(labels, assets, "roi", labels=True), "names": list(names), **others}
    Roi(**given)
    return given


class Roi(ImageReducer):
    """Frames to the counts in regions.

    Outputs per frame and region, float64: its counts, named after it, exact below 2⁵³; ``_x`` and ``_y``, the centre of
    mass in pixels of the frame, NaN where nothing was counted; ``_max``, counts; ``_excluded``, pixels.

    Left out are pixels with all bits set (gaps, dead ones), negative ones of signed types, and those above ``cutoff``.
    Blocks of a compressed frame in which no region is are never decompressed.
    """

    name = "roi"

    def __init__(self, **given: Any) -> None:
        self.params = params.read(Parameters, "roi", given)
        self.key = self.params.key
        if (self.params.regions is None) == (self.params.labels is None):
            raise ReductionError("roi: give either regions= or labels=")
        if (self.params.labels is None) != (self.params.names is None):
            raise ReductionError("roi: labels= and names= belong together")
        if self.params.labels is not None and self.params.mask is not None:
            raise ReductionError("roi: labels= say which pixels count; mask= goes with regions=")
        self._names = list(self.params.regions or self.params.names or ())
        if not self._names:
            raise ReductionError("roi: there is no region")
        if len(set(self._names)) != len(self._names):
            raise ReductionError(f"roi: names {self._names} must each be there once")
        for region in self._names:
            if not re.fullmatch(r"[A-Za-z0-9]\w{0,47}", region):
                raise ReductionError(f"roi: region {region!r} is no name: letters, digits and _, at most 48")
        wanted = [name for region in self._names for name in self._outputs(region)]
        if twice := sorted({name for name in wanted if wanted.count(name) > 1}):
            raise ReductionError(f"roi: {', '.join(twice)} would be there twice: call a region otherwise")
        for region, pixels in (self.params.regions or {}).items():
            for side in ("rows", "columns"):
                first, stop = getattr(pixels, side)
                if stop <= first:
                    raise ReductionError(f"roi: region {region} has no {side}: [{first}, {stop}) is empty")

    def _outputs(self, region: str) -> Mapping[str, tuple[str, Output]]:
        """Return a region's outputs: which number of the kernel's each is, and what it means."""
        label = region.replace("_", " ")

        def of(units: str, what: str) -> Output:
            return Output("nav", (), "<f8", units, f"{label}, {what}")

        found = {region: ("sum", of("counts", "counts"))}
        if self.params.centres:
            found[f"{region}_x"] = "x", of("pixels", "column of the centre of mass")
            found[f"{region}_y"] = "y", of("pixels", "row of the centre of mass")
        if self.params.maxima:
            found[f"{region}_max"] = "maximum", of("counts", "greatest count")
        if self.params.excluded:
            found[f"{region}_excluded"] = "excluded", of("pixels", "pixels left out")
        return found

    def outputs(self, inputs: tuple[InputSpec, ...]) -> dict[str, Output]:
        """Name the results.

        Raises
        ------
        ReductionError
            There is no 2-D input, or several; or a region isn't in its frames.
        """
        spec = self.frames(inputs)
        for region, pixels in (self.params.regions or {}).items():
            for side, length in zip(("rows", "columns"), spec.shape, strict=True):
                first, stop = getattr(pixels, side)
                if stop > length:
                    raise ReductionError(f"roi: region {region}: {side} [{first}, {stop}), the frames have {length}")
        return {name: output for region in self._names for name, (_, output) in self._outputs(region).items()}

    def consts(self, shape: tuple[int, int]) -> dict[str, Array]:
        """Return none."""
        return {}

    def parts(self, shape: tuple[int, int], dtype: np.dtype[Any], assets: AssetStore) -> dict[str, ImagePart]:
        """Return the regions."""
        from ..kernel import Rectangle, Regions

        others: dict[str, Any] = {
            "cutoff": self.params.cutoff, "peaks": self.params.maxima, "centres": self.params.centres
        }  # fmt: skip
        if self.params.regions is not None:
            rectangles = tuple(Rectangle(each.rows, each.columns) for each in self.params.regions.values())
            mask = mask_of(assets, self.params.mask, shape, "roi")
            return {"regions": Regions(rectangles, mask=mask, **others)}
        labels = masks.load(assets, str(self.params.labels), shape, "roi")
        if labels.min() < 0 or labels.max() != len(self._names):
            raise ReductionError(
                f"roi: the labels go from {labels.min()} to {labels.max()}, and there are {len(self._names)} names"
            )
        return {"regions": Regions(labels=labels, **others)}

    def finish(self, index: NDArray[np.int64], made: Made) -> Partial:
        """Give each region's numbers their names."""
        nav: dict[str, Array] = {}
        for number, region in enumerate(self._names):
            for name, (which, _) in self._outputs(region).items():
                nav[name] = made["regions"][which][:, number].astype(np.float64)
        return Partial(index, nav)
