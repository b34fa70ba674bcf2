"""Pieces of frames, for ptychography: the pixels around the direct beam as they were measured."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from msgspec import Meta, Struct
from numpy.typing import NDArray

from ..assets import AssetStore
from ..errors import ReductionError
from ..wire.messages import InputSpec
from . import params
from .base import Array, Made, Output, Partial
from .frames import ImageReducer, axis_outputs, pixel_axes

if TYPE_CHECKING:
    from ..kernel.gathering import ImagePart

Pixels = tuple[Annotated[int, Meta(ge=0)], Annotated[int, Meta(ge=1)]]


class Parameters(Struct, frozen=True, kw_only=True):
    """What a recipe of this reducer may say.

    ``rows``, ``columns`` : first and last plus one, as Python counts. ``key`` : the frames, if the detector has
    several.
    """

    rows: Pixels
    columns: Pixels
    key: str | None = None


class Crop(ImageReducer):
    """Frames to pieces of them.

    Outputs: ``image`` per frame, (rows, columns) of the frames' type, counts, pixels without data as they came; the
    axes ``row`` and ``column`` once, in pixels of the frame. Blocks of a compressed frame that have none of these
    pixels are never decompressed.
    """

    name = "crop"

    def __init__(self, **given: Any) -> None:
        self.params = params.read(Parameters, "crop", given)
        self.key = self.params.key
        for side in ("rows", "columns"):
            first, stop = getattr(self.params, side)
            if stop <= first:
                raise ReductionError(f"crop: {side} [{first}, {stop}) are empty")
        self._shape = self.params.rows[1] - self.params.rows[0], self.params.columns[1] - self.params.columns[0]

    def outputs(self, inputs: tuple[InputSpec, ...]) -> dict[str, Output]:
        """Name the results.

        Raises
        ------
        ReductionError
            There is no 2-D input, or several; or the piece isn't in its frames.
        """
        spec = self.frames(inputs)
        for side, length in zip(("rows", "columns"), spec.shape, strict=True):
            first, stop = getattr(self.params, side)
            if stop > length:
                raise ReductionError(f"crop: {side} [{first}, {stop}), the frames have {length}")
        dtype = np.dtype(spec.dtype).newbyteorder("<").str
        image = Output("nav", self._shape, dtype, "counts", "piece of the frame", ("row", "column"))
        return {"image": image, **axis_outputs(self._shape)}

    def consts(self, shape: tuple[int, int]) -> dict[str, Array]:
        """Return the axes."""
        return pixel_axes((self.params.rows[0], self.params.columns[0]), self._shape)

    def parts(self, shape: tuple[int, int], dtype: np.dtype[Any], assets: AssetStore) -> dict[str, ImagePart]:
        """Return the piece."""
        from .. import kernel

        return {"piece": kernel.Crop(kernel.Rectangle(self.params.rows, self.params.columns))}

    def finish(self, index: NDArray[np.int64], made: Made) -> Partial:
        """Return the pieces."""
        return Partial(index, {"image": made["piece"]["frames"]})
