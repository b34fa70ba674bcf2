"""Previews: each frame smaller, and the sum of all frames."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import numpy as np
from msgspec import Meta, Struct
from numpy.typing import NDArray

from ..assets import AssetStore
from ..errors import ReductionError
from ..wire.messages import InputSpec
from . import masks, params
from .base import Array, Made, Output, Partial
from .frames import ImageReducer, axis_outputs, mask_of, pixel_axes

if TYPE_CHECKING:
    from ..kernel.gathering import ImagePart

MOST_CELLS: Final = 1 << 20
"""Cells of a sum: it travels with every batch, 16 bytes each."""


class Parameters(Struct, frozen=True, kw_only=True):
    """What a recipe of this reducer may say.

    ``factor`` : pixels of a cell along each axis; cells at the lower and right edges have the pixels that are left.
    ``frames`` : give each frame. ``sum`` : give the sum of all frames. ``mask`` : reference to an asset, an ``.npy``
    array in which not 0 means masked. ``cutoff`` : counts above which a pixel is saturated and left out. ``key`` : the
    frames, if the detector has several.
    """

    factor: Annotated[int, Meta(ge=1, le=64)] = 8
    frames: bool = True
    sum: bool = True
    mask: Annotated[str, Meta(pattern=r"^sha256:[0-9a-f]{64}\Z")] | None = None
    cutoff: Annotated[float, Meta(gt=0)] | None = None
    key: str | None = None


def recipe_params(
    mask: Path | str | Array | None = None, *, assets: AssetStore | None = None, **others: Any
) -> dict[str, Any]:
    """Return a recipe's parameters, with the mask put into the store.

    ``mask`` : a mask file (any that fabio reads, or ``.npy``), an array or a reference; not 0 means masked.
    """
    given = dict(others) if mask is None else {"mask": masks.put(mask, assets, "preview"), **others}
    Preview(**given)
    return given


class Preview(ImageReducer):
    """Frames to smaller frames.

    Outputs: ``image`` per frame, (rows, columns), counts in each cell's pixels that count, with all bits set (in
    float64 NaN, in int64 −1) where none does; uint32, or uint64 where a sum might not fit. In all, int64: ``sum``,
    (rows, columns), counts; ``left_out``, how many pixels of how many frames didn't count, masked ones not among them.
    The axes ``row`` and ``column`` once: the middle of each cell, in pixels of the frame.
    """

    name = "preview"

    def __init__(self, **given: Any) -> None:
        self.params = params.read(Parameters, "preview", given)
        self.key = self.params.key
        if not (self.params.frames or self.params.sum):
            raise ReductionError("preview: neither frames nor sum is wanted")

    def _shape(self, shape: tuple[int, ...]) -> tuple[int, int]:
        return -(-shape[0] // self.params.factor), -(-shape[1] // self.params.factor)

    def outputs(self, inputs: tuple[InputSpec, ...]) -> dict[str, Output]:
        """Name the results.

        Raises
        ------
        ReductionError
            There is no 2-D input, or several; its frames can't be added up: they are no integers, or too large.
        """
        spec = self.frames(inputs)
        shape, dtype = self._shape(spec.shape), np.dtype(spec.dtype)
        named: dict[str, Output] = {}
        if self.params.frames:
            cells = self._type(dtype)
            named["image"] = Output("nav", shape, cells, "counts", "frame, made smaller", ("row", "column"))
        if self.params.sum:
            if dtype.kind not in "iu":
                raise ReductionError(f"preview: a sum of frames needs integers, not {dtype}; take sum=false")
            if shape[0] * shape[1] > MOST_CELLS:
                raise ReductionError(
                    f"preview: a sum of {shape[0]} × {shape[1]} cells travels with every batch, {MOST_CELLS} cells at "
                    "most; take a greater factor, or sum=false"
                )
            axes = ("row", "column")
            named["sum"] = Output("acc", shape, "<i8", "counts", "sum of all frames", axes)
            named["left_out"] = Output("acc", shape, "<i8", "pixels", "pixels left out of the sum", axes)
        return {**named, **axis_outputs(shape)}

    def _type(self, dtype: np.dtype[Any]) -> str:
        """Return the type of the smaller frames, as :meth:`haltere.workers.kernel.Shrink.type_of` does."""
        if dtype.kind == "f":
            return "<f8"
        if dtype.kind == "i" or dtype.itemsize > 4:
            return "<i8"
        most = (
            np.iinfo(dtype).max - 1 if self.params.cutoff is None else min(np.iinfo(dtype).max - 1, self.params.cutoff)
        )
        return "<u8" if int(most) * self.params.factor**2 >= 2**32 - 1 else "<u4"

    def consts(self, shape: tuple[int, int]) -> dict[str, Array]:
        """Return the axes."""
        return pixel_axes((0, 0), self._shape(shape), self.params.factor)

    def parts(self, shape: tuple[int, int], dtype: np.dtype[Any], assets: AssetStore) -> dict[str, ImagePart]:
        """Return smaller frames, their sum, or both."""
        from ..kernel import Shrink, Sum

        mask = mask_of(assets, self.params.mask, shape, "preview")
        found: dict[str, ImagePart] = {}
        if self.params.frames:
            found["image"] = Shrink(self.params.factor, self.params.cutoff, mask)
        if self.params.sum:
            found["sum"] = Sum(self.params.factor, self.params.cutoff, mask)
        return found

    def finish(self, index: NDArray[np.int64], made: Made) -> Partial:
        """Return the pictures."""
        nav = {"image": made["image"]["frames"]} if self.params.frames else {}
        return Partial(index, nav, dict(made["sum"]) if self.params.sum else {})
