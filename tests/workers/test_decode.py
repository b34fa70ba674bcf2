"""Chunks to frames: what detectors write, and what they should not."""

from __future__ import annotations

import dataclasses
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import cbor2
import lz4.block
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from haltere.workers.decode import decode
from haltere.workers.errors import ChunkError
from haltere.workers.reducers.base import Chunk

from .chunks import bslz4

RNG = np.random.default_rng(1)
FRAME = RNG.poisson(3, (101, 103)).astype("<u2")
CHUNK = bslz4(FRAME)


@pytest.mark.parametrize("dtype", ["<u1", "<u2", "<u4", "<i4"])
@pytest.mark.parametrize("shape", [(64, 64), (101, 103), (3, 3), (514, 1030)])
def test_a_chunk_written_by_hdf5_comes_back_with_its_last_partial_block_and_raw_tail(
    dtype: str, shape: tuple[int, int]
) -> None:
    frame = RNG.poisson(3, shape).astype(dtype)
    decoded = decode(bslz4(frame))
    assert decoded.dtype == frame.dtype
    np.testing.assert_array_equal(decoded, frame)


def test_lz4_comes_back_bare_and_with_a_header() -> None:
    bare = lz4.block.compress(FRAME.tobytes(), store_size=False)
    headed = struct.pack(">QII", FRAME.nbytes, FRAME.nbytes, len(bare)) + bare
    for data in (bare, headed):
        np.testing.assert_array_equal(decode(Chunk(data, "lz4", FRAME.shape, FRAME.dtype)), FRAME)


def test_plain_bytes_are_taken_as_they_are() -> None:
    np.testing.assert_array_equal(decode(Chunk(FRAME.data, "none", FRAME.shape, FRAME.dtype)), FRAME)


def test_the_captured_eiger_blobs_that_were_cut_are_refused(measured: Callable[[str], Path]) -> None:
    with measured("streams/eiger-small.cbors").open("rb") as file:
        messages = []
        while True:
            try:
                messages.append(cbor2.load(file))
            except cbor2.CBORDecodeEOF:
                break
    blobs = [parts[2] for parts in messages if b"dimage-1.0" in parts[0][:100]]
    assert len(blobs) == 3
    for blob in blobs:
        assert len(blob) == 20_000
        with pytest.raises(ChunkError, match="damaged or cut"):
            decode(Chunk(blob, "bslz4", (3262, 3108), np.dtype("<u4")))


@pytest.mark.parametrize(
    ("header", "says"),
    [
        (struct.pack(">QI", 2**62, 8192), "declares 4611686018427387904 bytes"),
        (struct.pack(">QI", FRAME.nbytes - 2, 8192), "need 20806"),
        (struct.pack(">QI", FRAME.nbytes, 0), "blocks of 0 bytes"),
        (struct.pack(">QI", FRAME.nbytes, 2**32 - 16), "blocks of 4294967280 bytes"),
        (struct.pack(">QI", FRAME.nbytes, 8200), "whole groups of 8"),
    ],
)
def test_a_header_that_lies_is_refused_before_anything_is_decompressed(header: bytes, says: str) -> None:
    with pytest.raises(ChunkError, match=says):
        decode(dataclasses.replace(CHUNK, data=header + bytes(CHUNK.data[12:])))


@pytest.mark.parametrize(
    ("chunk", "says"),
    [
        (dataclasses.replace(CHUNK, data=b"short"), "shorter than its 12-byte header"),
        (dataclasses.replace(CHUNK, data=bytes(CHUNK.data[:-9])), "damaged or cut"),
        (dataclasses.replace(CHUNK, data=bytes(CHUNK.data) + b"more"), "damaged or cut"),
        (dataclasses.replace(CHUNK, encoding="jpeg"), "encoding 'jpeg' is unknown; there are bslz4, lz4, none"),
        (dataclasses.replace(CHUNK, shape=(2**20, 2**20)), "can't be"),
        (dataclasses.replace(CHUNK, shape=(0, 5)), "can't be"),
        (dataclasses.replace(CHUNK, encoding="none"), "101×103 uint16 need"),
        (dataclasses.replace(CHUNK, encoding="lz4", data=b"\xff" * 100), "lz4 block of 100 bytes is damaged"),
    ],
)
def test_what_cannot_be_decoded_says_why(chunk: Chunk, says: str) -> None:
    with pytest.raises(ChunkError, match=says):
        decode(chunk)


@settings(max_examples=300, deadline=None)
@given(
    garbage=st.binary(max_size=300), keep=st.integers(0, len(CHUNK.data)), encoding=st.sampled_from(["bslz4", "lz4"])
)
def test_garbage_gives_a_frame_of_the_declared_size_or_an_error(garbage: bytes, keep: int, encoding: str) -> None:
    data = bytes(CHUNK.data[:keep]) + garbage
    try:
        frame = decode(Chunk(data, encoding, FRAME.shape, FRAME.dtype))
    except ChunkError:
        return
    assert frame.shape == FRAME.shape


@pytest.mark.parametrize("encoding", ["bslz4", "lz4", "lz4-headed"])
def test_a_frame_that_cannot_be_in_its_chunk_is_refused_before_there_is_memory_for_it(encoding: str) -> None:
    shape = (1 << 14, 1 << 13)  # 256 MiB of uint16
    header = struct.pack(">QI", 1 << 28, 8192)
    data = b"\x1f" + bytes(200) if encoding == "lz4" else header + bytes(200)
    tracemalloc.start()
    try:
        with pytest.raises(ChunkError, match="268435456 bytes can't be in it"):
            decode(Chunk(data, encoding.partition("-")[0], shape, np.dtype("<u2")))
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("value", [0, 7])
def test_the_emptiest_frame_is_not_taken_for_a_bomb(value: int) -> None:
    frame = np.full((2048, 2048), value, "<u4")
    np.testing.assert_array_equal(decode(bslz4(frame)), frame)
    bare = lz4.block.compress(frame.tobytes(), store_size=False)
    np.testing.assert_array_equal(decode(Chunk(bare, "lz4", frame.shape, frame.dtype)), frame)
