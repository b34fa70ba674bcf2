"""Chunks that are not what they say: the kernel takes what the reference decoder takes, and gives the same pixels."""

from __future__ import annotations

import dataclasses
import functools
import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import lz4.block
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from haltere.workers.decode import decode
from haltere.workers.errors import ChunkError
from haltere.workers.kernel import Kernel, Whole
from haltere.workers.kernel.compiling import CHECKED
from haltere.workers.reducers.base import Chunk

from ..chunks import bslz4

SHAPES = ((1, 5), (3, 8), (24, 100), (61, 67), (40, 205))
BLOCKS = (8192, 1024)


@functools.cache
def sound(shape: tuple[int, int], dtype: str, block: int, mean: float, gaps: bool, encoding: str) -> Chunk:
    """Return a chunk in which nothing is wrong."""
    frame = np.random.default_rng(5).poisson(mean, shape).astype(dtype)
    if gaps:
        frame[:, shape[1] // 3 :: 16] = np.iinfo(dtype).max
    if encoding == "bslz4":
        return bslz4(frame, block // frame.itemsize)
    bare = lz4.block.compress(frame.tobytes(), store_size=False)
    head = struct.pack(">QII", frame.nbytes, frame.nbytes, len(bare)) if encoding == "lz4-headed" else b""
    content = frame.tobytes() if encoding == "none" else head + bare
    return Chunk(content, encoding.partition("-")[0], shape, frame.dtype)


@functools.cache
def kernel(shape: tuple[int, ...], dtype: str) -> Kernel:
    """Return a kernel that gives whole frames."""
    return Kernel(shape, dtype, {"all": Whole()})


def decoded(chunk: Chunk) -> NDArray[np.unsignedinteger]:
    """Return the frame as the kernel decodes it."""
    frame: NDArray[np.unsignedinteger] = kernel(chunk.shape, chunk.dtype.str).run([chunk])["all"]["frames"][0]
    return frame


def offsets(block: bytes) -> Iterator[int]:
    """Yield the matches' offsets of an LZ4 block."""
    at = 0
    while at < len(block):
        token = block[at]
        at += 1

        def length(begun: int) -> int:
            nonlocal at
            more = 255 if begun == 15 else 0
            while more == 255 and at < len(block):
                more = block[at]
                begun, at = begun + more, at + 1
            return begun

        at += length(token >> 4)
        if at + 2 > len(block):
            return
        yield block[at] | block[at + 1] << 8
        at += 2
        length(token & 15)


def blocks(chunk: Chunk) -> Iterator[bytes]:
    """Yield the LZ4 blocks of a bslz4 chunk."""
    size, per_block = struct.unpack_from(">QI", chunk.data)
    left, at = size // (8 * chunk.dtype.itemsize) * 8 * chunk.dtype.itemsize, 12
    while left > 0:
        (length,) = struct.unpack_from(">I", chunk.data, at)
        yield bytes(chunk.data[at + 4 : at + 4 + length])
        left, at = left - per_block, at + 4 + length


def agree(chunk: Chunk) -> None:
    """See that kernel and reference say the same of a chunk."""
    try:
        frame = decode(chunk)
    except ChunkError:
        with pytest.raises(ChunkError, match="frame 0: "):
            decoded(chunk)
        return
    try:
        found = decoded(chunk)
    except ChunkError:
        # LZ4 forbids the offset 0; liblz4 takes it, and what it gives then was in its memory before.
        assert any(0 in offsets(block) for block in blocks(chunk))
        return
    np.testing.assert_array_equal(found, frame)


SOUND = st.builds(
    sound,
    st.sampled_from(SHAPES),
    st.sampled_from(["<u1", "<u2", "<u4"]),
    st.sampled_from(BLOCKS),
    st.sampled_from([0.0, 0.02, 2.0, 100.0]),
    st.booleans(),
    st.sampled_from(["bslz4", "bslz4", "bslz4", "bslz4", "lz4", "lz4-headed", "none"]),
)


@settings(max_examples=60, deadline=None)
@given(chunk=SOUND)
def test_a_sound_chunk_is_decoded_alike(chunk: Chunk) -> None:
    np.testing.assert_array_equal(decoded(chunk), decode(chunk))


@settings(max_examples=400, deadline=None)
@given(
    chunk=SOUND,
    flips=st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(1, 255)), max_size=6),
    cut=st.one_of(st.just(0), st.integers(0, 40)),
    more=st.binary(max_size=9),
)
@example(chunk=sound((40, 205), "<u2", 8192, 2.0, True, "bslz4"), flips=[], cut=0, more=b"more")
@example(chunk=sound((61, 67), "<u2", 8192, 2.0, True, "bslz4"), flips=[], cut=0, more=b"more")
def test_a_damaged_chunk_is_refused_or_decoded_alike(
    chunk: Chunk, flips: list[tuple[int, int]], cut: int, more: bytes
) -> None:
    data = bytearray(chunk.data)
    for place, flip in flips:
        data[place % len(data)] ^= flip
    agree(dataclasses.replace(chunk, data=bytes(data[: len(data) - cut]) + more))


def lz4_blocks() -> st.SearchStrategy[bytes]:
    """Return blocks as an encoder could write them that knows no rule: any lengths, any offsets."""
    literals = st.binary(max_size=40)
    match = st.tuples(st.integers(0, 300), st.integers(4, 600))
    return st.tuples(st.lists(st.tuples(literals, match), max_size=30), literals).map(_written)


def _written(parts: tuple[list[tuple[bytes, tuple[int, int]]], bytes]) -> bytes:
    def rest(length: int) -> bytes:
        return b"" if length < 15 else b"\xff" * ((length - 15) // 255) + bytes([(length - 15) % 255])

    out = bytearray()
    for literals, (offset, match) in parts[0]:
        out.append(min(len(literals), 15) << 4 | min(match - 4, 15))
        out += rest(len(literals)) + literals + struct.pack("<H", offset) + rest(match - 4)
    out.append(min(len(parts[1]), 15) << 4)
    return bytes(out + rest(len(parts[1])) + parts[1])


def length(block: bytes) -> int:
    """Return the bytes that a block makes."""
    made, at = 0, 0
    while True:
        token, at = block[at], at + 1

        def extent(begun: int) -> int:
            nonlocal at
            more = 255 if begun == 15 else 0
            while more == 255:
                more = block[at]
                begun, at = begun + more, at + 1
            return begun

        literals = extent(token >> 4)
        made, at = made + literals, at + literals
        if at == len(block):
            return made
        at += 2
        made += 4 + extent(token & 15)


@settings(max_examples=400, deadline=None)
@given(block=lz4_blocks(), itemsize=st.sampled_from([1, 2, 4]), lie=st.sampled_from([0, 0, 0, 8, -8]))
def test_what_no_encoder_writes_is_refused_or_decoded_alike(block: bytes, itemsize: int, lie: int) -> None:
    pixels = (max(length(block) // itemsize, 1) + 7 + lie) // 8 * 8
    if not 0 < pixels * itemsize <= 8192:
        return
    data = struct.pack(">QII", pixels * itemsize, 8192, len(block)) + block
    agree(Chunk(data, "bslz4", (1, pixels), np.dtype(f"<u{itemsize}")))


@pytest.mark.skipif(CHECKED, reason="this is the checked run")
@pytest.mark.timeout(400)
def test_the_same_holds_when_every_access_to_memory_is_checked() -> None:
    here = Path(__file__)
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-n0",
            "-p",
            "no:cacheprovider",
            str(here),
            str(here.with_name("test_decoding.py")),
        ],
        env=os.environ | {"HALTERE_KERNEL_CHECKED": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:]
    assert "passed" in done.stdout
