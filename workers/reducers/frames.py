"""Reducers of frames that the kernel walks over: which data key they take, and numpy where the kernel doesn't read."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, Final

import numpy as np
from numpy.typing import NDArray

from ..assets import AssetStore
from ..decode import decode
from ..errors import ReductionError, ShapeMismatch
from ..wire.messages import InputSpec
from . import masks
from .base import Array, Batch, Chunk, Made, Output, Partial, Reducer, Setup, Walk

if TYPE_CHECKING:
    from ..kernel import Kernel
    from ..kernel.gathering import ImagePart

KERNEL_TYPES: Final = frozenset({"|u1", "<u2", "<u4"})
"""Types of frames that the kernel reduces; others go through numpy."""


def frames_of(inputs: tuple[InputSpec, ...], key: str | None, reducer: str) -> InputSpec:
    """Return the input with the frames.

    Raises
    ------
    ReductionError
        There is no 2-D input of that key; or none is named, and there is no 2-D input, or several.
    """
    found = [spec for spec in inputs if (spec.key == key if key else len(spec.shape) == 2)]
    if len(found) != 1 or len(found[0].shape) != 2:
        names = ", ".join(f"{spec.key} {spec.shape}" for spec in inputs)
        raise ReductionError(f"{reducer} needs one key of 2-D frames, say which with key=; there are {names}")
    return found[0]


def in_kernel(dtype: np.dtype[Any]) -> bool:
    """Say if frames of this type are the kernel's: nothing else decides that, so that one answer comes of a frame.

    >>> in_kernel(np.dtype("<u2")), in_kernel(np.dtype(">u2")), in_kernel(np.dtype("f4"))
    (True, False, False)
    """
    return dtype.str in KERNEL_TYPES


class ImageReducer(Reducer):
    """A reducer whose results the kernel's image parts make, or numpy for types that the kernel doesn't read."""

    name: ClassVar[str]
    """As recipes call it."""

    key: str | None

    def frames(self, inputs: tuple[InputSpec, ...]) -> InputSpec:
        """Return the input with the frames."""
        return frames_of(inputs, self.key, self.name)

    @abstractmethod
    def parts(self, shape: tuple[int, int], dtype: np.dtype[Any], assets: AssetStore) -> dict[str, ImagePart]:
        """Return what is to be made of each frame."""

    @abstractmethod
    def consts(self, shape: tuple[int, int]) -> dict[str, Array]:
        """Return the const outputs."""

    def setup(self, run: Setup) -> dict[str, Array]:
        """Make the parts; tables are made when the first frames come."""
        spec = self.frames(run.inputs)
        shape, dtype = (spec.shape[0], spec.shape[1]), np.dtype(spec.dtype)
        self._made_of = Walk(spec.key, shape, dtype, self.parts(shape, dtype, AssetStore(run.assets)))
        self._kernel: Kernel | None = None
        for part in self._made_of.parts.values():
            part.coverage(shape)  # refuses what isn't in such frames
        return self.consts(shape)

    def walk(self) -> Walk | None:
        """Return the parts, if the kernel reads such frames."""
        return self._made_of if in_kernel(self._made_of.dtype) else None

    def map(self, batch: Batch) -> Partial:
        """Reduce a batch by itself."""
        wanted = self._made_of
        data = batch.data[wanted.key]
        if not in_kernel(wanted.dtype):
            return self.finish(batch.index, self._by_numpy(data, batch.index))
        if self._kernel is None:
            from ..kernel import Kernel

            self._kernel = Kernel(wanted.shape, wanted.dtype, wanted.parts)
        return self.finish(batch.index, self._kernel.run(data, batch.index))

    def _by_numpy(self, data: Array | list[Chunk], index: NDArray[np.int64]) -> Made:
        """Return the same as the kernel would, frame by frame."""
        wanted = self._made_of
        rows: dict[str, list[dict[str, Array]]] = {name: [] for name in wanted.parts}
        for number, item in zip(index, data, strict=True):
            frame = decode(item) if isinstance(item, Chunk) else np.asarray(item)
            if frame.shape != wanted.shape or frame.dtype != wanted.dtype:
                raise ShapeMismatch(
                    f"frame {number}: {frame.shape} {frame.dtype}, the stream was announced with {wanted.shape} "
                    f"{wanted.dtype}"
                )
            native = frame.astype(frame.dtype.newbyteorder("="), copy=False)
            for name, part in wanted.parts.items():
                try:
                    rows[name].append(part.reference(native))
                except ReductionError as error:
                    raise ReductionError(f"frame {number}: {error}") from None
        made = {}
        for name, part in wanted.parts.items():
            stacked = {output: np.stack([row[output] for row in rows[name]]) for output in rows[name][0]}
            made[name] = {output: array.sum(axis=0) for output, array in stacked.items()} if part.adds else stacked
        return made


def mask_of(assets: AssetStore, ref: str | None, shape: tuple[int, int], reducer: str) -> NDArray[np.bool_] | None:
    """Return which pixels an asset masks, None without one.

    Raises
    ------
    ReductionError
        It isn't a mask for such frames, or it masks every pixel.
    """
    if ref is None:
        return None
    mask = np.not_equal(masks.load(assets, ref, shape, reducer), 0)
    if mask.all():
        raise ReductionError(f"{reducer}: every pixel is masked (is the mask inverted? not 0 means masked)")
    return mask


def pixel_axes(first: tuple[int, int], shape: tuple[int, int], factor: int = 1) -> dict[str, Array]:
    """Return where a picture's rows and columns are in the frame, the middle of each, in pixels.

    >>> pixel_axes((0, 10), (2, 2), 4)["column"]
    array([11.5, 15.5])
    """
    return {
        name: begin + factor * np.arange(length) + (factor - 1) / 2
        for name, begin, length in zip(("row", "column"), first, shape, strict=True)
    }


def axis_outputs(shape: tuple[int, int]) -> dict[str, Output]:
    """Return the outputs that :func:`pixel_axes` fills."""
    return {
        name: Output("const", (length,), "<f8", "pixels", f"{name} of the frame")
        for name, length in zip(("row", "column"), shape, strict=True)
    }
