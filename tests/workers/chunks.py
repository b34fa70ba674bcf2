"""Chunks as HDF5 and detectors write them."""

from __future__ import annotations

import io
from typing import Any

import h5py
import hdf5plugin
import numpy as np
from numpy.typing import NDArray

from haltere.workers.reducers.base import Chunk


def bslz4(frame: NDArray[Any], elements: int = 0) -> Chunk:
    """Return the frame as the bitshuffle filter stores it, with blocks of so many elements; 0 is 8 KiB."""
    with h5py.File(io.BytesIO(), "w") as file:
        filters = hdf5plugin.Bitshuffle(nelems=elements)
        data = file.create_dataset("data", (1, *frame.shape), frame.dtype, chunks=(1, *frame.shape), **filters)
        data[0] = frame
        _, content = data.id.read_direct_chunk((0,) * (frame.ndim + 1))
    return Chunk(content, "bslz4", frame.shape, np.dtype(frame.dtype))
