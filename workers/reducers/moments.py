"""Moments of each frame: transmission (STXM), differential phase contrast (DPC), and what says if a frame is sound."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import numpy as np
from msgspec import Meta, Struct
from numpy.typing import NDArray

from ..assets import AssetStore
from ..wire.messages import InputSpec
from . import masks, params
from .base import Array, Made, Output, Partial
from .frames import ImageReducer, mask_of

if TYPE_CHECKING:
    from ..kernel.gathering import ImagePart

_OUTPUTS: Final = {
    "total": ("total", "counts", "counts in all pixels used"),
    "centre_x": ("x", "pixels", "column of the centre of mass"),
    "centre_y": ("y", "pixels", "row of the centre of mass"),
    "maximum": ("maximum", "counts", "greatest count"),
    "saturated": ("saturated", "pixels", "pixels above the cutoff"),
    "excluded": ("excluded", "pixels", "pixels left out: without data, or above the cutoff"),
}


class Parameters(Struct, frozen=True, kw_only=True):
    """What a recipe of this reducer may say.

    ``mask`` : reference to an asset, an ``.npy`` array in which not 0 means masked. ``cutoff`` : counts above which a
    pixel is saturated and left out. ``key`` : the frames, if the detector has several.
    """

    mask: Annotated[str, Meta(pattern=r"^sha256:[0-9a-f]{64}\Z")] | None = None
    cutoff: Annotated[float, Meta(gt=0)] | None = None
    key: str | None = None


def recipe_params(
    mask: Path | str | Array | None = None, *, assets: AssetStore | None = None, **others: Any
) -> dict[str, Any]:
    """Return a recipe's parameters, with the mask put into the store.

    ``mask`` : a mask file (any that fabio reads, or ``.npy``), an array or a reference; not 0 means masked.
    """
    given = dict(others) if mask is None else {"mask": masks.put(mask, assets, "moments"), **others}
    Moments(**given)
    return given


class Moments(ImageReducer):
    """Frames to their moments.

    Outputs per frame, float64: ``total``, counts; ``centre_x`` and ``centre_y``, the centre of mass in pixels, from
    exact integers, NaN where nothing was counted; ``maximum``, counts; ``saturated``, pixels above ``cutoff``;
    ``excluded``, these and those without data: all bits set, or negative.
    """

    name = "moments"

    def __init__(self, **given: Any) -> None:
        self.params = params.read(Parameters, "moments", given)
        self.key = self.params.key

    def outputs(self, inputs: tuple[InputSpec, ...]) -> dict[str, Output]:
        """Name the results.

        Raises
        ------
        ReductionError
            There is no 2-D input, or several.
        """
        self.frames(inputs)
        return {name: Output("nav", (), "<f8", units, label) for name, (_, units, label) in _OUTPUTS.items()}

    def consts(self, shape: tuple[int, int]) -> dict[str, Array]:
        """Return none."""
        return {}

    def parts(self, shape: tuple[int, int], dtype: np.dtype[Any], assets: AssetStore) -> dict[str, ImagePart]:
        """Return the frame as one region."""
        from .. import kernel

        return {"frame": kernel.Moments(mask_of(assets, self.params.mask, shape, "moments"), self.params.cutoff)}

    def finish(self, index: NDArray[np.int64], made: Made) -> Partial:
        """Give the numbers their names."""
        return Partial(index, {name: made["frame"][which].astype(np.float64) for name, (which, *_) in _OUTPUTS.items()})
