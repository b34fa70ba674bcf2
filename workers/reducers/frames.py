"""Frames of one data key: which one a recipe means, and how they go into the kernel."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ..errors import ReductionError, ShapeMismatch
from ..wire.messages import InputSpec
from .base import Array, Chunk

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


def chunks_of(
    data: Array | list[Chunk], index: NDArray[np.int64], shape: tuple[int, ...], dtype: np.dtype[Any]
) -> list[Chunk]:
    """Return frames as chunks, those of an array as bytes that share its memory.

    Raises
    ------
    ShapeMismatch
        A frame isn't of the announced shape and type.
    """
    if isinstance(data, np.ndarray):
        data = [Chunk(_bytes(frame), "none", frame.shape, frame.dtype) for frame in data]
    for number, chunk in zip(index, data, strict=True):
        if tuple(chunk.shape) != shape or chunk.dtype != dtype:
            raise ShapeMismatch(
                f"frame {number}: {chunk.shape} {chunk.dtype}, the stream was announced with {shape} {dtype}"
            )
    return data


def _bytes(frame: Array) -> memoryview[int]:
    return np.ascontiguousarray(frame).reshape(-1).view(np.uint8).data
