"""What the kernel makes of chunks: the frames that went into them."""

from __future__ import annotations

import struct
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import lz4.block
import numpy as np
import pytest
from numpy.typing import NDArray

from haltere.workers.errors import ChunkError, ReductionError, ShapeMismatch
from haltere.workers.kernel import Kernel, Whole
from haltere.workers.kernel import kernel as kernel_module
from haltere.workers.reducers.base import Chunk

from ..chunks import bslz4

RNG = np.random.default_rng(3)


def counts(shape: tuple[int, ...], dtype: str, mean: float = 2.0) -> NDArray[np.unsignedinteger]:
    """Return a frame as an Eiger gives it: Poisson noise, some gaps with every bit set."""
    frame = RNG.poisson(mean, shape).astype(dtype)
    frame.reshape(-1)[::97] = np.iinfo(dtype).max
    return frame


@pytest.mark.parametrize("dtype", ["<u1", "<u2", "<u4"])
@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (8, 1), (61, 67), (128, 64), (129, 127), (100, 163)])
@pytest.mark.parametrize("block", [8192, 4096, 512])
def test_a_chunk_gives_its_frame(dtype: str, shape: tuple[int, int], block: int) -> None:
    frames = [counts(shape, dtype, mean) for mean in (0.01, 1, 300)]
    decoded = Kernel(shape, dtype, {"all": Whole()}).run([bslz4(frame, block // frame.itemsize) for frame in frames])[
        "all"
    ]["frames"]
    np.testing.assert_array_equal(decoded, frames)


@pytest.mark.parametrize("dtype", ["<u1", "<u2", "<u4"])
def test_other_encodings_and_arrays_give_the_same_frames(dtype: str) -> None:
    frame = counts((61, 167), dtype)
    bare = lz4.block.compress(frame.tobytes(), store_size=False)
    headed = struct.pack(">QII", frame.nbytes, frame.nbytes, len(bare)) + bare
    chunks: list[Chunk | NDArray[np.unsignedinteger]] = [
        bslz4(frame),
        Chunk(bare, "lz4", frame.shape, frame.dtype),
        Chunk(headed, "lz4", frame.shape, frame.dtype),
        Chunk(frame.tobytes(), "none", frame.shape, frame.dtype),
        frame,
    ]
    decoded = Kernel(frame.shape, dtype, {"all": Whole()}).run(chunks)["all"]["frames"]
    np.testing.assert_array_equal(decoded, [frame] * len(chunks))


def test_more_frames_than_a_lot_come_back_in_order() -> None:
    frames = [counts((33, 70), "<u2", mean) for mean in range(37)]
    decoded = Kernel((33, 70), "<u2", {"all": Whole()}).run([bslz4(frame) for frame in frames])
    np.testing.assert_array_equal(decoded["all"]["frames"], frames)


def test_what_nobody_covers_does_not_disturb_what_somebody_does() -> None:
    frame = counts((200, 200), "<u4")
    cover = frame < np.iinfo("<u4").max
    cover[50:120] = False
    decoded = Kernel(frame.shape, "<u4", {"some": Whole(cover)}).run([bslz4(frame)])["some"]["frames"]
    np.testing.assert_array_equal(decoded[0], np.where(cover, frame, 0))


def test_a_damaged_chunk_is_named() -> None:
    frame = counts((101, 101), "<u2")
    whole = bslz4(frame)
    kernel = Kernel(frame.shape, "<u2", {"all": Whole()})
    for data in (whole.data[:-30], bytes(whole.data) + b"more", whole.data[:9]):
        with pytest.raises(ChunkError, match="frame 42: "):
            kernel.run([whole, Chunk(data, "bslz4", frame.shape, frame.dtype), whole], index=[41, 42, 43])


def test_what_the_kernel_does_not_read_is_refused() -> None:
    with pytest.raises(ReductionError, match="reads uint8, uint16 and uint32"):
        Kernel((4, 4), "<i4", {})
    with pytest.raises(ShapeMismatch, match="frame 7: "):
        Kernel((4, 4), "<u2", {}).run([np.zeros((4, 5), "<u2")], index=[7])


def test_frames_that_are_decoded_whole_are_not_all_in_memory_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    frames = [counts((40, 50), "<u2", mean) for mean in range(9)]
    monkeypatch.setattr(kernel_module, "MOST_DECODED", 2 * frames[0].nbytes)
    kernel = Kernel((40, 50), "<u2", {"all": Whole()})
    taken: list[int] = []
    take = Whole.take

    def noting(self: Whole, plan: Any, state: Any, frames: int, at: int, out: dict[str, Any]) -> None:
        taken.append(frames)
        take(self, plan, state, frames, at, out)

    monkeypatch.setattr(Whole, "take", noting)
    decoded = kernel.run([bslz4(frame, 128) for frame in frames])["all"]["frames"]
    np.testing.assert_array_equal(decoded, frames)
    assert taken == [3, 3, 3]


def test_threads_share_a_kernel() -> None:
    frames = [counts((101, 103), "<u4", mean) for mean in range(24)]
    chunks = [bslz4(frame) for frame in frames]
    kernel = Kernel((101, 103), "<u4", {"all": Whole()})
    with ThreadPoolExecutor(4) as pool:
        for k, out in enumerate(pool.map(lambda k: kernel.run(chunks[k:]), [k % 24 for k in range(96)])):
            np.testing.assert_array_equal(out["all"]["frames"], frames[k % 24 :])
