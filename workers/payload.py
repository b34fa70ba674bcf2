"""A result's arrays as one buffer: what a RESULT carries beside its message."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import prod
from typing import Any, Final, NamedTuple

import numpy as np

from .errors import ReductionError, WireError
from .reducers.base import Array
from .wire.messages import ArraySpec

ALIGN: Final = 8
MAX_PAYLOAD: Final = 256 * 1024 * 1024
"""Most bytes beside one RESULT: a batch of 64 full Eiger 4M frames is far above, and isn't a reduction."""

KINDS: Final = frozenset({"nav", "acc", "const"})


class Piece(NamedTuple):
    """One named array of a result: ``Piece("xrd", "nav", "intensity", array)``."""

    recipe: str
    kind: str
    name: str
    array: Array


def pack(pieces: Iterable[Piece]) -> tuple[list[ArraySpec], bytearray]:
    """Return where each array lies, and the buffer they lie in: C order, little-endian, 8-aligned.

    Raises
    ------
    ReductionError
        An array is of no numeric type, or all together are over :data:`MAX_PAYLOAD`.
    """
    specs: list[ArraySpec] = []
    arrays: list[Array] = []
    end = 0
    for piece in pieces:
        if piece.array.dtype.kind not in "biuf":
            raise ReductionError(
                f"recipe {piece.recipe}: {piece.kind} output {piece.name} has type {piece.array.dtype}; "
                "only bool, integer and float arrays travel"
            )
        dtype = piece.array.dtype.newbyteorder("<")
        specs.append(ArraySpec(piece.recipe, piece.kind, piece.name, piece.array.shape, dtype.str, end))
        arrays.append(piece.array)
        end += -(-piece.array.nbytes // ALIGN) * ALIGN
    if end > MAX_PAYLOAD:
        raise ReductionError(f"a result of {end} bytes is over the limit of {MAX_PAYLOAD}: make the batch smaller")
    buffer = bytearray(end)
    for spec, array in zip(specs, arrays, strict=True):
        buffer[spec.offset : spec.offset + array.nbytes] = array.astype(spec.dtype, copy=False).tobytes()
    return specs, buffer


def unpack(specs: Sequence[ArraySpec], buffer: Any, frames: int | None = None) -> list[Piece]:
    """Return the arrays as read-only views of ``buffer``; nothing is copied.

    Parameters
    ----------
    frames : how many frames the batch has; then the first axis of each ``nav`` array must be that long.

    Raises
    ------
    WireError
        A spec lies outside the buffer, overlaps the one before, isn't aligned, or is of no known kind.
    """
    view = memoryview(buffer).toreadonly().cast("B")
    if len(view) > MAX_PAYLOAD:
        raise WireError(f"a payload of {len(view)} bytes is over the limit of {MAX_PAYLOAD}")
    end = 0
    pieces = []
    for spec in specs:
        where = f"array {spec.recipe}/{spec.name}"
        if spec.kind not in KINDS:
            raise WireError(f"{where}: kind {spec.kind!r} is none of {', '.join(sorted(KINDS))}")
        try:
            dtype = np.dtype(spec.dtype)
        except TypeError:
            raise WireError(f"{where}: no such type: {spec.dtype!r}") from None
        if spec.kind == "nav" and frames is not None and spec.shape[:1] != (frames,):
            raise WireError(f"{where}: shape {spec.shape} for a batch of {frames} frames")
        size = prod(spec.shape) * dtype.itemsize  # Python integers: no overflow
        if spec.offset % ALIGN or spec.offset < end or spec.offset + size > len(view):
            raise WireError(f"{where}: {size} bytes at {spec.offset} don't fit a payload of {len(view)}")
        end = spec.offset + size
        array = np.frombuffer(view, dtype, count=prod(spec.shape), offset=spec.offset) if size else np.empty(0, dtype)
        try:
            array = array.reshape(spec.shape)
        except ValueError:  # no bytes, but a shape that numpy can't count: (0, 2**31, 2**31, 2**31)
            raise WireError(f"{where}: no array has shape {spec.shape}") from None
        pieces.append(Piece(spec.recipe, spec.kind, spec.name, array))
    return pieces
