"""How much an HDF5 dataset may ask for, looked at before any of it is read."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from ..decode import MAX_FRAME
from ..errors import FileError

if TYPE_CHECKING:
    import h5py

FILTERS: Final = {
    1: "gzip",
    2: "shuffle",
    3: "fletcher32",
    4: "szip",
    5: "nbit",
    6: "scaleoffset",
    32000: "lzf",
    32001: "blosc",
    32004: "lz4",
    32008: "bitshuffle",
    32015: "zstd",
    32026: "blosc2",
}
"""Those that detectors and their programs use. HDF5 would look for any other's code in its plugin folders."""

MAX_CHUNKS: Final = 1 << 24
"""Most chunks in a dataset: a file may claim any number, and its index is read whole."""


def check_storage(data: h5py.Dataset) -> None:
    """See that a dataset's chunks can be read with bounded memory.

    Raises
    ------
    FileError
        A chunk is too large, there are too many, or they went through a filter that isn't known, or through one twice:
        that is how a small file becomes a large one. It names no file: the caller does.
    """
    if data.chunks is None:
        return
    size = math.prod(data.chunks) * data.dtype.itemsize
    if size > MAX_FRAME:
        raise FileError(f"has chunks of {size} bytes; at most {MAX_FRAME} are read at once")
    count = math.prod(-(-length // chunk) for length, chunk in zip(data.shape, data.chunks, strict=True))
    if count > MAX_CHUNKS:
        raise FileError(f"claims to have {count} chunks; at most {MAX_CHUNKS} can be")
    creation = data.id.get_create_plist()
    codes = [creation.get_filter(number)[0] for number in range(creation.get_nfilters())]
    if unknown := [code for code in codes if code not in FILTERS]:
        raise FileError(f"went through filter {unknown[0]}, which isn't read; there are {', '.join(FILTERS.values())}")
    if len(set(codes)) < len(codes):
        raise FileError("went through the same filter twice: not a detector's file")


def most_stored(frame_bytes: int) -> int:
    """Return the most bytes that a chunk of so many can have in a file: no filter makes it twice as long.

    >>> most_stored(1000)
    6096
    """
    return 2 * frame_bytes + 4096
