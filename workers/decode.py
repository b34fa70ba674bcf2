"""Chunk → frame: decompress what a detector sent or stored, trusting none of it."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from typing import Any

import dectris.compression
import lz4.block
import numpy as np
from numpy.typing import NDArray

from .errors import ChunkError
from .reducers.base import Chunk

MAX_FRAME = 1 << 30
"""Most bytes in a decoded frame; an Eiger2 16M at 32 bit has 70 MB."""

MOST_LZ4 = 255
"""LZ4 never makes a byte of more bytes: what is declared beyond that can't be in the chunk, and is no reason to have
memory for it."""

MAX_BLOCK = 1 << 26
"""Most bytes in a block of a chunk; bitshuffle's default is 8 KiB, LZ4-HDF5 writers use up to a whole frame."""

_HEADER = struct.Struct(">QI")  # of an HDF5 filter chunk: bytes when decoded, bytes per block


def decode(chunk: Chunk) -> NDArray[Any]:
    """Return the frame.

    The declared sizes are compared with shape × dtype before anything is decompressed, so that no header can ask for
    memory. LZ4 has no checksum: about one corrupted chunk in twenty decodes to a wrong frame of the right size. One
    with the offset 0, which LZ4 forbids, is among them here; :mod:`.kernel` refuses it.

    Parameters
    ----------
    chunk : Chunk
        ``bslz4``: with the 12-byte header that HDF5 and SIMPLON use; ``lz4``: a bare LZ4 block (SIMPLON stream v1) or
        with that header (HDF5, stream v2); ``none``: plain bytes in C order.

    Returns
    -------
    array of ``chunk.shape`` and ``chunk.dtype``
        Read-only; it may share memory with ``chunk.data``.

    Raises
    ------
    ChunkError
        The bytes don't decode to the declared frame, or the encoding is unknown.
    """
    size = math.prod(chunk.shape) * chunk.dtype.itemsize
    if chunk.dtype.hasobject or not 0 < size <= MAX_FRAME:
        raise ChunkError(f"a frame of {chunk.shape} {chunk.dtype} can't be: it must have 1 to {MAX_FRAME} bytes")
    try:
        decoder = _DECODERS[chunk.encoding]
    except KeyError:
        raise ChunkError(f"encoding {chunk.encoding!r} is unknown; there are {', '.join(sorted(_DECODERS))}") from None
    data: bytes | memoryview[int] = decoder(memoryview(chunk.data).cast("B"), size, chunk.dtype.itemsize)
    if len(data) != size:
        raise ChunkError(f"{chunk.encoding} chunk decodes to {len(data)} bytes, not the {size} {_declared(chunk)} need")
    frame: NDArray[Any] = np.frombuffer(data, chunk.dtype)
    return frame.reshape(chunk.shape)


def _plain(data: memoryview, size: int, itemsize: int) -> memoryview:
    del size, itemsize
    return data.toreadonly()


def _bslz4(data: memoryview, size: int, itemsize: int) -> bytes:
    block = check_header(data, size, "bslz4")
    if block % (8 * itemsize):
        raise ChunkError(f"bslz4 chunk: blocks of {block} bytes don't hold whole groups of 8 elements of {itemsize}")
    return _decompress(data, "bslz4", itemsize)


def _lz4(data: memoryview, size: int, itemsize: int) -> bytes:
    # A bare LZ4 block can't begin with the header of a frame below 2**56 bytes: its first token would be 0 (no
    # literals) followed by the offset 0, which LZ4 forbids.
    if len(data) >= _HEADER.size and not any(data[:3]):
        check_header(data, size, "lz4")
        return _decompress(data, "lz4", itemsize)
    _check_ratio(data, size, "lz4")
    try:
        plain: bytes = lz4.block.decompress(data, uncompressed_size=size)
    except (lz4.block.LZ4BlockError, MemoryError) as error:
        raise ChunkError(f"lz4 block of {len(data)} bytes is damaged or cut: {error}") from None
    return plain


_DECODERS: dict[str, Callable[[memoryview, int, int], bytes | memoryview]] = {
    "bslz4": _bslz4,
    "lz4": _lz4,
    "none": _plain,
}


def check_header(data: memoryview, size: int, encoding: str) -> int:
    """Return the block size of a chunk whose header is as it must be."""
    if len(data) < _HEADER.size:
        raise ChunkError(f"{encoding} chunk of {len(data)} bytes is shorter than its 12-byte header")
    declared, block = _HEADER.unpack_from(data)
    if declared != size:
        raise ChunkError(f"{encoding} chunk declares {declared} bytes, its frame's shape and type need {size}")
    if not 0 < block <= MAX_BLOCK:
        raise ChunkError(f"{encoding} chunk declares blocks of {block} bytes; 1 to {MAX_BLOCK} can be")
    _check_ratio(data, size, encoding)
    return int(block)


def _check_ratio(data: memoryview, size: int, encoding: str) -> None:
    if size > MOST_LZ4 * len(data):
        raise ChunkError(f"{encoding} chunk of {len(data)} bytes is damaged or cut: {size} bytes can't be in it")


def _decompress(data: memoryview, algorithm: str, itemsize: int) -> bytes:
    # 60,000 corrupted chunks: no crash, no memory beyond the declared size.
    try:
        plain: bytes = dectris.compression.decompress(data, algorithm, elem_size=itemsize)
    except (RuntimeError, ValueError, MemoryError) as error:
        raise ChunkError(f"{algorithm} chunk of {len(data)} bytes is damaged or cut: {error}") from None
    return plain


def _declared(chunk: Chunk) -> str:
    return f"{'×'.join(map(str, chunk.shape))} {chunk.dtype}"
