"""Makes the first corpus: what real encoders write, a few small files for each target.

Run ``python -m tests.fuzz.make_corpus`` in the project's folder. Files that it didn't make (findings) are left alone.
"""

from __future__ import annotations

import io
import json
import pickle
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin
import lz4.block
import msgspec
import numpy as np

from haltere.workers import basis, payload
from haltere.workers.wire import array_list, documents, messages, simplon, xspress3
from haltere.workers.wire.messages import (
    Absent,
    Ack,
    Beat,
    Block,
    Bye,
    Claim,
    Connect,
    Credit,
    Done,
    Dropped,
    Drops,
    FileSpan,
    Frames,
    Free,
    Hello,
    InputSpec,
    LiveLane,
    Message,
    Nack,
    RecipeSpec,
    RingSpan,
    Status,
    StatusReply,
    StreamOpen,
    Welcome,
    Work,
)
from haltere.workers.worker import pipe

from ..workers import flying
from ..workers.chunks import bslz4
from .targets import FILTERS, KERNEL_SHAPES, MARK, SHAPE

CORPUS = Path(__file__).parent / "corpus"
LANE = LiveLane("tcp://127.0.0.1:9999", "simplon-1", 12, "eiger_image")
LIVE_STREAM = StreamOpen(
    *(2, flying.RUN, "eiger", "cfg-a", 4, [InputSpec("eiger_image", (4, 6), "<u2")]),
    [RecipeSpec("xrd", "stub", b"{}")],
    LANE,
)
SPAN = FileSpan("eiger_image", "file:///data/a.h5", "/entry/data/data", 0, 4, 0)
BLOCKS = [Block(frame, 128 * frame, 48, "none") for frame in range(4)]


def conversation() -> list[Message]:
    """Return one message of each kind at least."""
    return [
        Hello(1, "worker", "worker-1", 7),
        Welcome(1, 5, 5000, 500),
        *flying.control(8),
        LIVE_STREAM,
        Ack(7, 3),
        Connect("tcp://127.0.0.1:9999", "simplon-1"),
        Claim(LANE.endpoint, 12, flying.RUN, "eiger", "eiger_image", 4, "drop", 5),
        Frames(LANE.endpoint, 12, "haltere-1-1", (4, 6), "<u2", BLOCKS),
        Dropped(LANE.endpoint, 12, [(4, 6), (7, 9)], "ring-full"),
        Drops(flying.RUN, "eiger", 7, [("decimated", 20), ("ring-full", 4)]),
        Free("haltere-1-1", [0, 128], [0, 1]),
        Credit(7, 2),
        Work(
            *(flying.RUN, "eiger", "cfg-a", 0, 4, 6),
            [RingSpan("haltere-1-1", BLOCKS[:2])],
            [SPAN],
            [Absent(3, 3, "no file has it")],
        ),
        Beat(7, 6, 1, 4, 1000, [6]),
        Nack(flying.RUN, "eiger", 0, 4, 6, 2, "too dark", False, [2]),
        Bye(7),
        flying.results(8)[0][0],
        Done(flying.RUN, "eiger", "cfg-a", [(0, 4), (2**38, 2**39)], True, 5),
        Status(3),
        StatusReply(3, b'{"role":"broker"}'),
    ]


def streamed() -> list[simplon.AnyMessage]:
    """Return an Eiger's messages."""
    pixels = np.arange(12, dtype="<u2").reshape(3, 4)
    table = simplon.Table("flatfield", (1, 2), "<f4", bytes(8))
    head = simplon.SeriesHeader(12, "all", {"nimages": 3}, (table,), b"{}")
    bare = lz4.block.compress(pixels.tobytes(), store_size=False)
    return [
        head,
        simplon.SeriesHeader(12, "none"),
        simplon.Image(12, 0, (3, 4), "<u2", "none", pixels.tobytes(), 0, 1, 1, 24, "5a"),
        simplon.Image(12, 1, (3, 4), "<u2", "lz4", bare, 0, 1, 1, len(bare), "5b", b"note"),
        simplon.Image(12, 2, (3, 4), "<u2", "bslz4", struct.pack(">QI", 24, 8192) + pixels.tobytes(), 0, 1, 1),
        simplon.HeaderPart({"nimages": 3}),
        simplon.SeriesEnd(12),
    ]


def spectra() -> list[list[bytes]]:
    """Return an Xspress3's messages."""
    types = ("<f8", "<u4", "<u4", "<u4", "<u4", "<u4", "<i4", "<f8")
    named = tuple(
        xspress3.Scaler(name, dtype, np.arange(2, dtype=dtype).tobytes())
        for name, dtype in zip(xspress3.SCALERS, types, strict=True)
    )
    image = xspress3.Image(1, 7, (2, 8), "<u4", "none", np.arange(16, dtype="<u4").tobytes(), 1.0, named)
    found = []
    for message in (xspress3.SeriesHeader(1, "/data/a.h5"), image, xspress3.SeriesEnd(1)):
        found += [[bytes(part) for part in parts] for parts in xspress3.encode(message)]
    return found


def stored(filters: dict[str, Any], dtype: str, rows: int) -> bytes:
    """Return a chunk as HDF5 stores it."""
    frames = np.random.default_rng(3).poisson(3, (2, *SHAPE)).astype(dtype)
    with h5py.File(io.BytesIO(), "w") as file:
        made = file.create_dataset("data", data=frames, chunks=(rows, *SHAPE), **filters)
        return bytes(made.id.read_direct_chunk((0, 0, 0))[1])


def made() -> Iterator[tuple[str, str, bytes]]:
    """Yield each file: target, name, content."""
    said = conversation()
    for message in {type(each): each for each in said}.values():
        yield "control", type(message).__name__.lower(), messages.encode(message)
    answers: list[documents.Fetch | documents.Documents] = [
        documents.Fetch(12, 1732271334000000, [documents.Cursor("6b9c", 30)], 200, 5000),
        documents.Documents(
            3, 5, [documents.Part(5, "6b9c", "7a", 0, [documents.pack("start", {"uid": "7a", "time": 1.5})], False)]
        ),
    ]
    for answer in answers:
        yield "followed", type(answer).__name__.lower(), documents.encode(answer)
    images = [MARK.join(bytes(part) for part in simplon.encode(message)) for message in streamed()]
    for place, image in enumerate(images):
        yield "eiger_stream", f"message{place}", image
    yield "eiger_stream", "series", (MARK + MARK).join(images)
    parts = [bytes(part) for part in simplon.encode(streamed()[0])]
    yield "eiger_stream", "part-by-part", (MARK + MARK).join(parts)
    mini = [MARK.join(each) for each in spectra()]
    yield "xspress3_stream", "one-by-one", (MARK + MARK).join(mini)
    yield "xspress3_stream", "together", (MARK + MARK).join([mini[0], MARK.join(mini[1:4]), mini[4]])
    arrays = [np.arange(2, dtype=dtype) for dtype in ("<f8", "<u4", "<i4")]
    yield "scalers", "ours", array_list.encode(arrays)
    yield "scalers", "numpys", pickle.dumps(arrays, 4)
    yield "scalers", "two-dimensional", pickle.dumps([np.ones((2, 3))], 4)
    for name, pieces in {
        "nav": [payload.Piece("xrd", "nav", "intensity", np.ones((4, 3), "<f4"))],
        "all": [
            payload.Piece("xrd", "nav", "intensity", np.ones((4, 3), "<f4")),
            payload.Piece("xrd", "acc", "sum", np.ones(3, "<i8")),
            payload.Piece("xrd", "const", "q", np.ones(3, "<f8")),
            payload.Piece("xrd", "acc", "none", np.ones((0, 5), "<u2")),
        ],
    }.items():
        specs, buffer = payload.pack(pieces)
        yield "result_arrays", name, msgspec.msgpack.encode(specs) + MARK + bytes(buffer)
    result, beside = flying.results(8)[0]
    work = next(each for each in said if isinstance(each, Work))
    nack = next(each for each in said if isinstance(each, Nack))
    records: list[tuple[pipe.Record, bytes]] = [
        *((pipe.Ready(), b""), (pipe.At(6, 3), b""), (pipe.Failed(nack), b"")),
        *((pipe.Reduced(result, 900), beside), (LIVE_STREAM, b""), (work, b"")),
    ]
    for record, more in records:
        yield "reducers_pipe", type(record).__name__.lower(), b"".join(pipe.frame(record, more))
    yield "reducers_pipe", "all", b"".join(part for each in records for part in pipe.frame(*each))
    for place, dtype in enumerate(("<u2", "<u4", "|u1")):
        yield "chunk", f"bslz4-{dtype[1:]}", bytes([0, place]) + stored(dict(hdf5plugin.Bitshuffle()), dtype, 1)
        yield "chunk", f"lz4-{dtype[1:]}", bytes([1, place]) + stored(dict(hdf5plugin.LZ4()), dtype, 1)
        yield "chunk", f"plain-{dtype[1:]}", bytes([2, place]) + stored({}, dtype, 1)
    rng = np.random.default_rng(8)
    for place, shape in enumerate(KERNEL_SHAPES):
        for kind, dtype in enumerate(("|u1", "<u2", "<u4")):
            for elements in (0, 64):
                frame = rng.poisson(0.05, shape).astype(dtype)
                frame[:, 2::16] = np.iinfo(dtype).max
                content = bytes(bslz4(frame, elements).data)
                yield "kernel_chunk", f"bslz4-{place}-{kind}-{elements}", bytes([3 * place, kind]) + content
    yield "chunk", "bare-lz4", bytes([1, 0]) + lz4.block.compress(bytes(2 * 12 * 17), store_size=False)
    for place, filters in enumerate(FILTERS):
        for rows in (1, 2):
            yield "stored_chunk", f"filter{place}-{rows}", bytes([place, 0, rows - 1]) + stored(filters, "<u2", rows)
    for place, text in enumerate(
        (
            *("file://ROOT/a.h5", "file://localhostROOT/inner.h5", "file://ROOT/outer.h5", "file://ROOT/../secret.h5"),
            *(
                "file://ROOT/%2e%2e/secret.h5",
                "file://ROOT/up/secret.h5",
                "file://ROOT/a.h5%00.h5",
                "file://[::1]/a.h5",
            ),
            *("http://ROOT/a.h5", "file:///proc/self/root/etc/hostname", "file:a.h5", "file://ROOT/./up/root/a.h5"),
        )
    ):
        yield "reference", f"text{place}", text.encode()
    small = basis.Basis(("A0", "Fe_Ka"), ("background", "line"), np.eye(2, 4), np.eye(2, 4), (0.0, 0.01), "a test")
    yield "xrf_basis", "small", small.to_bytes()
    for place, recipe in enumerate(
        (
            [{"name": "positions", "reducer": "columns", "source": "pilc"}],
            [{"name": "positions", "reducer": "columns", "source": "pilc", "params": {"keys": ["x"]}}],
            [{"name": "xrd", "reducer": "azimuthal", "source": "eiger", "params": {"bins": 10}}, {"name": "a"}],
            {"name": "positions"},
        )
    ):
        yield "recipe_list", f"recipe{place}", json.dumps(recipe).encode()
    yield "cores", "to-the-broker", _said(0, said, 64)
    yield "cores", "to-the-broker-by-peers", _said(0, said)
    yield "cores", "to-the-sink", _said(4, [Hello(1, "dispatcher", "d", 7), *said])
    yield "cores", "to-the-worker", _said(8, said)
    yield "cores", "to-the-worker-by-the-sink", _said(8, said, 64)
    yield "cores", "to-the-ingest", _said(12, said)
    hello, frames = Hello(1, "ingest", "ingest", 7), next(each for each in said if isinstance(each, Frames))
    full = Done(flying.RUN, "eiger", "cfg-a", [], True, 2)
    run = [
        _said(64, [flying.run_open(), LIVE_STREAM, full]),
        _said(0, [said[0], hello, frames]),
        _said(0, [Credit(7, 2)]),
    ]
    yield "cores", "a-batch", (MARK + b"." + MARK).join(run)


def _said(to: int, said: list[Any], *flags: int) -> bytes:
    return MARK.join(bytes([to + sum(flags)]) + messages.encode(message) for message in said)


def main() -> int:
    """Write the files anew."""
    sizes = []
    for target, name, content in made():
        path = CORPUS / target / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        sizes.append(len(content))
    print(f"{len(sizes)} files, {sum(sizes)} bytes below {CORPUS}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
