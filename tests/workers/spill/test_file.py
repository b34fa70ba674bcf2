"""Spilled frames are read back to the bit, by frame number, also from a file whose writer was killed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import hdf5plugin  # noqa: F401 - gives HDF5 its filters
import lz4.block
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from haltere.workers.decode import decode
from haltere.workers.errors import FileError
from haltere.workers.files.frames import FrameReader
from haltere.workers.reducers.base import Chunk
from haltere.workers.spill.file import SpillFile, found_in, left_behind, spans
from haltere.workers.spill.pipe import Kind
from haltere.workers.wire.messages import InputSpec

from ..chunks import bslz4

SHAPE = (16, 20)
SPEC = InputSpec("eiger_image", SHAPE, "<u2")


def kind(encoding: str) -> Kind:
    return Kind("run-1", "eiger", "eiger_image", SHAPE, "<u2", encoding)


def pixels(frame: int) -> np.ndarray:
    return np.random.default_rng(frame).integers(0, 60000, SHAPE, dtype="<u2")


def packed(frame: int, encoding: str) -> bytes:
    plain = pixels(frame).tobytes()
    if encoding == "bslz4":
        return bytes(bslz4(pixels(frame)).data)
    if encoding == "lz4":
        return bytes(lz4.block.compress(plain, store_size=False))
    return plain


@pytest.mark.parametrize("encoding", ["bslz4", "lz4", "none"])
def test_what_is_read_back_is_what_came(tmp_path: Path, encoding: str) -> None:
    file = SpillFile(tmp_path, kind(encoding))
    for frame in (4, 5, 9):
        file.add(frame, packed(frame, encoding))
    first = file.flush()
    file.add(10, memoryview(packed(10, encoding)))
    found = first + file.flush()
    assert [(span.first, span.n, span.offset) for span in found] == [(4, 2, 0), (9, 1, 2), (10, 1, 3)]
    with FrameReader([tmp_path]) as reader:
        for span in found:
            for frame in range(span.first, span.first + span.n):
                (chunk,) = reader.read(span, [frame], SPEC)
                assert isinstance(chunk, Chunk)
                np.testing.assert_array_equal(decode(chunk), pixels(frame))
    with pytest.raises(BlockingIOError):
        found_in(file.path, "run-1", "eiger")
    assert left_behind(tmp_path, "run-1") == [], "whoever writes it will say so"
    file.close()
    assert found_in(file.path, "run-1", "eiger") == spans("eiger_image", file.path, [4, 5, 9, 10])
    with pytest.raises(FileError, match="holds frames of run-1/eiger"):
        found_in(file.path, "run-2", "eiger")


def test_a_frame_that_is_no_frame_is_refused_and_the_next_is_taken(tmp_path: Path) -> None:
    file = SpillFile(tmp_path, kind("none"))
    with pytest.raises(ValueError, match="a frame of 3 bytes isn't"):
        file.add(0, b"abc")
    file.add(1, packed(1, "none"))
    assert [(span.first, span.offset) for span in file.flush()] == [(1, 0)]
    file.close()


def test_a_killed_writer_leaves_what_it_had_shown(tmp_path: Path) -> None:
    words = (
        "import os, sys; from pathlib import Path; from haltere.workers.spill.file import SpillFile;"
        "from haltere.workers.spill.pipe import Kind;"
        "f = SpillFile(Path(sys.argv[1]), Kind('run-1', 'eiger', 'eiger_image', (16, 20), '<u2', 'none'));"
        "[f.add(n, bytes([n]) * 640) for n in (1, 2)]; f.flush(); f.add(3, bytes(640)); os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", words, str(tmp_path)], capture_output=True, check=False)
    assert done.returncode == -9, done.stderr
    (path,) = tmp_path.glob("run-1.eiger.*.h5")
    (span,) = found_in(path, "run-1", "eiger")
    assert (span.first, span.n) == (1, 2)
    (tmp_path / "run-1.eiger.1-2.h5").write_bytes(b"none")
    assert left_behind(tmp_path, "run-1") == [span]
    assert left_behind(tmp_path, "run") == []
    with FrameReader([tmp_path]) as reader:
        (chunk,) = reader.read(span, [2], SPEC)
    assert isinstance(chunk, Chunk)
    assert set(np.unique(decode(chunk))) == {0x0202}


@given(st.lists(st.integers(-1, 40), unique_by=lambda frame: frame if frame >= 0 else object()))
def test_spans_name_each_row_that_has_a_frame_once(frames: list[int]) -> None:
    found = spans("k", Path("/d/a.h5"), frames, 7)
    named = {span.offset + at: span.first + at for span in found for at in range(span.n)}
    assert named == {row: frame for row, frame in enumerate(frames, 7) if frame >= 0}
