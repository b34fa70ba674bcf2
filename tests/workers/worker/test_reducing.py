"""The reducer: frames from rings and files, to a result that accounts for each of them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from haltere.workers.errors import ReductionError
from haltere.workers.payload import unpack
from haltere.workers.reducers.base import Array, Batch, Output, Partial, Reducer, Setup
from haltere.workers.ring import Ring
from haltere.workers.wire.messages import (
    BACKFILLED,
    LIVE,
    LOST,
    MAX_CONTROL,
    QUARANTINED,
    Absent,
    Block,
    FileSpan,
    InputSpec,
    LiveLane,
    RecipeSpec,
    RingSpan,
    StreamOpen,
    Work,
    encode,
)
from haltere.workers.worker.pipe import BETWEEN, SETTING_UP, At, Failed, Reduced
from haltere.workers.worker.reducing import Reducing

N = 12
FLUX = InputSpec("flux", (), "<f8")
IMAGE = InputSpec("image", (2, 3), "<u2")
POISON = 7.0


class Sums(Reducer):
    """Doubles the flux and sums frames; fails on a flux of 7."""

    def outputs(self, inputs: tuple[InputSpec, ...]) -> dict[str, Output]:
        """Name every result."""
        return {
            "twice": Output("nav", (), "<f8"),
            "number": Output("nav", (), "<i4"),
            "total": Output("acc", (), "<i8"),
            "axis": Output("const", (2,), "<f8"),
        }

    def setup(self, run: Setup) -> dict[str, Array]:
        """Return the axis."""
        return {"axis": np.array([1.0, 2.0])}

    def map(self, batch: Batch) -> Partial:
        """Reduce a batch."""
        flux = batch.data["flux"]
        assert isinstance(flux, np.ndarray)
        if (flux == POISON).any():
            raise ReductionError("a flux of 7")
        nav: dict[str, Array] = {"twice": 2 * flux, "number": batch.index.astype("<i4")}
        return Partial(batch.index, nav, {"total": np.asarray(int(flux.sum()), "<i8")})


class Images(Sums):
    """Sums what came as chunks."""

    def map(self, batch: Batch) -> Partial:
        """Reduce a batch."""
        chunks = batch.data["image"]
        if isinstance(chunks, np.ndarray):
            images = chunks
        else:
            assert {chunk.encoding for chunk in chunks} == {"none"}
            images = np.stack([np.frombuffer(chunk.data, chunk.dtype).reshape(chunk.shape) for chunk in chunks])
        sums = images.reshape(len(images), -1).sum(axis=1)
        nav: dict[str, Array] = {"twice": sums.astype("<f8"), "number": batch.index.astype("<i4")}
        return Partial(batch.index, nav, {"total": np.asarray(sums.sum(), "<i8")})


class Broken(Sums):
    """Can't be set up."""

    def setup(self, run: Setup) -> dict[str, Array]:
        """Fail."""
        raise ReductionError("the poni is of another detector")


class Careless(Sums):
    """Gives something else than it announced."""

    def map(self, batch: Batch) -> Partial:
        """Return rows of another type."""
        partial = super().map(batch)
        return Partial(partial.index, {**partial.nav, "twice": partial.nav["twice"].astype("<f4")}, partial.acc)


class Askew(Sums):
    """Announces another axis than it gives."""

    def setup(self, run: Setup) -> dict[str, Array]:
        """Return an axis of three."""
        return {"axis": np.zeros(3)}


class Floating(Sums):
    """Adds up what isn't an integer."""

    def outputs(self, inputs: tuple[InputSpec, ...]) -> dict[str, Output]:
        """Announce a sum of another type."""
        return {**super().outputs(inputs), "total": Output("acc", (), "<f8")}


KINDS: dict[str, type[Reducer]] = {
    "sums": Sums,
    "images": Images,
    "broken": Broken,
    "careless": Careless,
    "askew": Askew,
    "floating": Floating,
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["flux"] = np.arange(N, dtype="<f8")
        file["image"] = np.arange(N * 6, dtype="<u2").reshape(N, 2, 3)
    return tmp_path


class Bench:
    """A reducer, and its answers unpacked."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.at: list[At] = []
        self.reducing = Reducing(folder, [folder], self.at.append, lambda spec: KINDS[spec.reducer]())

    def open(self, *kinds: str, inputs: tuple[InputSpec, ...] = (FLUX,), live: str | None = None) -> None:
        """Open a stream; ``live`` is the key that is streamed."""
        lane = None if live is None else LiveLane("tcp://eiger", "simplon-1", 1, live)
        recipes = [RecipeSpec(kind, kind, b"{}") for kind in kinds]
        self.reducing.open(StreamOpen(1, "run", "eiger", "cfg", 4, list(inputs), recipes, lane))

    def spans(self, first: int, n: int, *keys: str, name: str = "a.h5") -> list[FileSpan]:
        """Say where frames are."""
        return [FileSpan(key, (self.folder / name).as_uri(), key, first, n, first) for key in keys or ("flux",)]

    def reduce(self, work: Work) -> tuple[Any, dict[str, Any]]:
        """Reduce, and return the result with its arrays by ``recipe/name``."""
        answer = self.reducing.reduce(work)
        assert not isinstance(answer, Failed), answer
        reduced, payload = answer
        assert isinstance(reduced, Reduced)
        pieces = unpack(reduced.result.arrays, payload, reduced.result.n)
        return reduced.result, {f"{piece.recipe}/{piece.name}": piece.array for piece in pieces}


@pytest.fixture
def bench(folder: Path) -> Bench:
    return Bench(folder)


def work(first: int, files: list[FileSpan], **others: Any) -> Work:
    fields: dict[str, Any] = {"token": 1, "ring": [], "absent": [], "n": 4, **others}
    return Work("run", "eiger", "cfg", first, fields.pop("n"), fields.pop("token"), files=files, **fields)


def test_frames_of_a_stream_with_files_alone_are_live(bench: Bench) -> None:
    bench.open("sums")
    result, arrays = bench.reduce(work(0, bench.spans(0, 4)))
    assert result.status == bytes([LIVE] * 4)
    assert arrays["sums/twice"].tolist() == [0, 2, 4, 6]
    assert arrays["sums/total"] == 6


def test_frames_from_the_file_of_a_streaming_detector_are_backfilled(bench: Bench) -> None:
    bench.open("sums", live="flux")
    result, _ = bench.reduce(work(0, bench.spans(0, 4)))
    assert result.status == bytes([BACKFILLED] * 4)


def test_frames_from_the_ring_and_from_the_file_stand_in_one_result(bench: Bench) -> None:
    bench.open("images", inputs=(IMAGE,), live="image")
    images = np.arange(N * 6, dtype="<u2").reshape(N, 2, 3)
    with Ring.create(1 << 16) as ring:
        blocks = []
        for frame in (4, 6, 7):
            ring.write(128 * frame, images[frame].tobytes(), frame)
            blocks.append(Block(frame, 128 * frame, 12, "none", frame))
        result, arrays = bench.reduce(work(4, bench.spans(5, 1, "image"), ring=[RingSpan(ring.name, blocks)]))
        bench.reducing._reading.close()
    assert result.status == bytes([LIVE, BACKFILLED, LIVE, LIVE])
    assert arrays["images/twice"].tolist() == images[4:8].reshape(4, -1).sum(axis=1).tolist()
    assert arrays["images/total"] == images[4:8].sum()


def test_a_batch_that_lies_in_two_files_is_read_from_both(bench: Bench) -> None:
    with h5py.File(bench.folder / "b.h5", "w") as file:
        file["flux"] = np.arange(100, 100 + N, dtype="<f8")
    bench.open("sums")
    _, arrays = bench.reduce(work(0, bench.spans(0, 3) + bench.spans(3, 1, name="b.h5")))
    assert arrays["sums/twice"].tolist() == [0, 2, 4, 206]


def test_a_frame_that_cannot_be_reduced_is_quarantined_with_its_reason_and_costs_no_other(bench: Bench) -> None:
    bench.open("sums")
    result, arrays = bench.reduce(work(4, bench.spans(4, 4)))
    assert result.status == bytes([LIVE, LIVE, LIVE, QUARANTINED])
    assert result.reasons == [(7, "recipe sums: a flux of 7")]
    np.testing.assert_array_equal(arrays["sums/twice"], [8, 10, 12, np.nan])
    assert arrays["sums/number"].tolist() == [4, 5, 6, 0]
    assert arrays["sums/total"] == 4 + 5 + 6


def test_a_frame_alone_gives_the_same_bits_as_in_a_batch(bench: Bench) -> None:
    bench.open("sums")
    _, together = bench.reduce(work(4, bench.spans(4, 4)))
    _, alone = bench.reduce(work(4, bench.spans(4, 4), isolate=True))
    assert [each.frame for each in bench.at] == [SETTING_UP, BETWEEN, 4, 5, 6, 7, BETWEEN]
    assert all(alone[name].tobytes() == array.tobytes() for name, array in together.items() if name in alone)


def test_absent_frames_are_not_touched_and_keep_their_reason(bench: Bench) -> None:
    bench.open("sums")
    absent = [Absent(5, LOST, "no file has it"), Absent(7, QUARANTINED, "it killed two workers")]
    result, arrays = bench.reduce(work(4, bench.spans(4, 1) + bench.spans(6, 1), absent=absent))
    assert result.status == bytes([LIVE, LOST, LIVE, QUARANTINED])
    assert result.reasons == [(5, "no file has it"), (7, "it killed two workers")]
    np.testing.assert_array_equal(arrays["sums/twice"], [8, np.nan, 12, np.nan])


def test_a_batch_of_absent_frames_needs_no_operator(bench: Bench) -> None:
    bench.open("broken")
    absent = [Absent(frame, LOST, "gone") for frame in range(4)]
    result, arrays = bench.reduce(work(0, [], absent=absent))
    assert result.reasons == [(frame, "gone") for frame in range(4)]
    assert arrays == {}


def test_what_is_the_same_for_the_whole_run_goes_with_the_first_result_only(bench: Bench) -> None:
    bench.open("sums")
    _, first = bench.reduce(work(0, bench.spans(0, 4)))
    _, second = bench.reduce(work(8, bench.spans(8, 4)))
    assert first["sums/axis"].tolist() == [1, 2]
    assert "sums/axis" not in second


def test_a_recipe_that_cannot_be_set_up_quarantines_and_leaves_the_others_alone(bench: Bench) -> None:
    bench.open("sums", "broken")
    result, arrays = bench.reduce(work(0, bench.spans(0, 4)))
    assert result.status == bytes([QUARANTINED] * 4)
    assert dict(result.reasons)[0] == "recipe broken: the poni is of another detector"
    assert arrays["sums/twice"].tolist() == [0, 2, 4, 6]


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("careless", "twice came as (1,) float32, announced was (1,) float64"),
        ("askew", "axis came as (3,) float64, announced was (2,) <f8"),
        ("floating", "output total adds up over frames as <f8"),
    ],
)
def test_a_reducer_that_breaks_its_word_is_found_out(bench: Bench, kind: str, reason: str) -> None:
    bench.open(kind)
    result, _ = bench.reduce(work(0, bench.spans(0, 4)))
    assert result.status == bytes([QUARANTINED] * 4)
    assert reason in dict(result.reasons)[0]


def test_a_file_that_is_short_is_refused_with_the_frames_it_lacks(bench: Bench) -> None:
    bench.open("sums")
    failed = bench.reducing.reduce(work(8, bench.spans(8, 8), n=8))
    assert isinstance(failed, Failed)
    assert failed.nack.retryable
    assert failed.nack.missing == [12, 13, 14, 15]
    assert "a.h5" in failed.nack.reason


def test_a_ring_that_is_gone_is_refused_with_the_frames_it_held(bench: Bench) -> None:
    bench.open("images", inputs=(IMAGE,), live="image")
    ring = [RingSpan("haltere-1-999999", [Block(1, 0, 12, "none"), Block(2, 64, 12, "none")])]
    files = bench.spans(0, 1, "image") + bench.spans(3, 1, "image")
    failed = bench.reducing.reduce(work(0, files, ring=ring))
    assert isinstance(failed, Failed)
    assert failed.nack.missing == [1, 2]


def test_a_file_outside_of_the_roots_is_not_opened(bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = tmp_path_factory.mktemp("other") / "a.h5"
    other.write_bytes((bench.folder / "a.h5").read_bytes())
    bench.open("sums")
    failed = bench.reducing.reduce(work(0, [FileSpan("flux", other.as_uri(), "flux", 0, 4, 0)]))
    assert isinstance(failed, Failed)
    assert "outside the data roots" in failed.nack.reason


def test_a_result_with_many_long_reasons_still_fits_into_a_message(bench: Bench) -> None:
    bench.open("sums")
    absent = [Absent(frame, LOST, "é" * 500) for frame in range(64)]
    result, _ = bench.reduce(work(0, [], n=64, absent=absent))
    assert len(result.reasons) == 64
    assert len(encode(result)) <= MAX_CONTROL


def test_a_reducer_that_asks_for_the_machines_memory_gets_an_error() -> None:
    code = "from haltere.workers.worker.reducing import limit_memory; limit_memory(1 << 28); bytearray(1 << 30)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert done.stderr.strip().endswith("MemoryError")


@pytest.mark.parametrize(
    ("limit", "most", "says"),
    [
        ("haltere.workers.worker.reducing.MAX_CONTROL", 250, "arrays are more than a result can name"),
        ("haltere.workers.payload.MAX_PAYLOAD", 20, "bytes is over the limit of 20: make the batch smaller"),
    ],
)
def test_a_result_that_no_message_holds_is_refused_and_not_sent_for_ever(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, limit: str, most: int, says: str
) -> None:
    bench.open("sums", "sums")
    monkeypatch.setattr(limit, most)
    answer = bench.reducing.reduce(work(0, bench.spans(0, 4, "flux")))
    assert isinstance(answer, Failed)
    assert says in answer.nack.reason
    assert not answer.nack.retryable
    assert answer.nack.frame == -1
