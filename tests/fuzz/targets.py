"""What is fuzzed: each target takes any bytes, and lets out nothing.

A target reads its bytes by the code under test, swallows the one error that this declares, and looks at what was read
otherwise. Anything else that comes out is a bug.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, Final

import h5py
import hdf5plugin
import msgspec
import numpy as np

from haltere.workers import basis, payload, recipes
from haltere.workers.broker.core import SINK, BrokerCore
from haltere.workers.decode import decode as decode_chunk
from haltere.workers.errors import ChunkError, FileError, ReductionError, WireError
from haltere.workers.files.frames import FrameReader
from haltere.workers.files.references import resolve
from haltere.workers.ingest.core import IngestCore, Source
from haltere.workers.reducers.base import Chunk
from haltere.workers.sink.core import SinkCore
from haltere.workers.wire import array_list, documents, messages, simplon, xspress3
from haltere.workers.wire.messages import ArraySpec, Claim, Connect, FileSpan, Free, InputSpec
from haltere.workers.worker import pipe
from haltere.workers.worker.core import WorkerCore

from ..workers import flying

Target = Callable[[bytes], None]

SHAPE: Final = (12, 17)
DTYPES: Final = ("<u2", "<u4", "|u1", "<i4", "<f4", "<u8")
MARK: Final = b"\xff\xfe\xfd"
"""Between the parts, or the messages, of a target that takes several."""


# --- what comes over a wire ------------------------------------------------------------------------------------------


def control(data: bytes) -> None:
    """Read a message of the pool; what is read is written and read again."""
    with suppress(WireError):
        message = messages.decode(data)
        assert messages.decode(messages.encode(message)) == message


def followed(data: bytes) -> None:
    """Read a message between recorder and session, and the documents in it."""
    with suppress(WireError):
        message = documents.decode(data)
        assert documents.decode(documents.encode(message)) == message
        for part in message.parts if isinstance(message, documents.Documents) else ():
            for document in part.documents:
                with suppress(WireError):
                    name, doc = documents.unpack(document)
                    assert isinstance(name, str)
                    assert isinstance(doc, dict)


def eiger_stream(data: bytes) -> None:
    """Read a stream of SIMPLON messages; each image must be fit to be announced."""
    decoder = simplon.Decoder()
    for parts in _messages(data):
        for read in (simplon.decode, decoder.decode):
            with suppress(WireError):
                message = read(parts)
                if isinstance(message, simplon.Image):
                    _announce(message)
                if isinstance(message, simplon.HeaderPart) and message.table is not None:
                    message.table.array()


def xspress3_stream(data: bytes) -> None:
    """Read a stream of Xspress3 messages."""
    decoder = xspress3.Decoder()
    for parts in _messages(data):
        with suppress(WireError):
            message = decoder.decode(parts)
            if isinstance(message, xspress3.Image):
                _announce(message)
                assert message.spectra().shape == message.shape
                for name in xspress3.SCALERS:
                    assert message.scaler(name).shape == message.shape[:1]


def _announce(image: simplon.Image | xspress3.Image) -> None:
    core = IngestCore("haltere-1-1", 1 << 20)
    core.place(Source("tcp://x", image.series, tuple(image.shape), image.dtype), image.frame, 100, image.encoding, 0.0)
    for message in core.take(everything=True):
        messages.decode(messages.encode(message))


def _messages(data: bytes) -> Iterator[list[bytes]]:
    for message in data.split(MARK + MARK)[:20]:
        yield message.split(MARK)


def scalers(data: bytes) -> None:
    """Read a list of arrays without unpickling it."""
    with suppress(WireError):
        arrays = array_list.decode(data)
        assert all(isinstance(array, np.ndarray) and array.nbytes <= len(data) for array in arrays)


def result_arrays(data: bytes) -> None:
    """Read a result's arrays: a list of specs, then the buffer."""
    head, _, buffer = data.partition(MARK)
    with suppress(WireError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        specs = _specs.decode(head)
        for frames in (None, 4):
            pieces = payload.unpack(specs, buffer, frames)
            assert sum(piece.array.nbytes for piece in pieces) <= len(buffer)
            assert not any(piece.array.flags.writeable and piece.array.size for piece in pieces)


_specs = msgspec.msgpack.Decoder(list[ArraySpec])


def reducers_pipe(data: bytes) -> None:
    """Read what a reducer says to its worker, in pieces of any length."""
    unframer = pipe.Unframer()
    with suppress(WireError):
        at = 0
        while at < len(data):
            step = 1 + data[at] % 64
            for record, beside in unframer.feed(data[at : at + step]):
                assert b"".join(pipe.frame(record, beside))
            at += step


# --- chunks and files ------------------------------------------------------------------------------------------------


def chunk(data: bytes) -> None:
    """Decode a chunk; the first two bytes say as what."""
    if len(data) < 2:
        return
    encoding = ("bslz4", "lz4", "none", "jpeg")[data[0] % 4]
    shape = ((12, 17), (64, 64), (300, 7), (1 << 14, 1 << 14), (0, 3), (1 << 30, 1 << 30))[data[0] // 4 % 6]
    dtype = np.dtype(DTYPES[data[1] % len(DTYPES)])
    with suppress(ChunkError):
        frame = decode_chunk(Chunk(data[2:], encoding, shape, dtype))
        assert frame.shape == shape
        assert frame.dtype == dtype


KERNEL_SHAPES: Final = ((1, 5), (12, 17), (61, 67), (40, 205))


def kernel_chunk(data: bytes) -> None:
    """Decode a chunk in the kernel; the first two bytes say as what. Whatever it takes the reference decoder takes."""
    from haltere.workers.kernel import Kernel, Whole, warm_up

    if len(data) < 2:
        warm_up()
        return
    encoding = ("bslz4", "lz4", "none")[data[0] % 3]
    shape = KERNEL_SHAPES[data[0] // 3 % len(KERNEL_SHAPES)]
    dtype = np.dtype(("|u1", "<u2", "<u4")[data[1] % 3])
    one = Chunk(data[2:], encoding, shape, dtype)
    with suppress(ChunkError):
        frame = Kernel(shape, dtype, {"frame": Whole()}).run([one])["frame"]["frames"][0]
        assert np.array_equal(frame, decode_chunk(one))


FILTERS: Final[tuple[dict[str, Any], ...]] = (
    dict(hdf5plugin.Bitshuffle()),
    dict(hdf5plugin.LZ4()),
    {},
    {"compression": "gzip"},
    {"compression": "gzip", "shuffle": True},
    {"compression": "lzf"},
)
"""Left out is what goes through others' C code that a damaged chunk crashes (found here: HDF5's Fletcher32, and the
bitshuffle filter for chunks of several frames or with zstd), and HDF5's own structures: a flipped bit in them may keep
it busy for ever. A reducer is a process of its own, with a limit to its silence, because of these."""


@cache
def folder() -> Path:
    """Return a folder for this process's files."""
    made = tempfile.TemporaryDirectory(prefix="haltere-fuzz-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None)
    _folders.append(made)
    return Path(made.name)


_folders: list[tempfile.TemporaryDirectory[str]] = []


def stored_chunk(data: bytes) -> None:
    """Read a frame from an HDF5 file whose chunk holds these bytes; the first three say how it is stored."""
    if len(data) < 4:
        return
    path = folder() / "chunk.h5"
    dtype = DTYPES[data[1] % len(DTYPES)]
    rows = 1 + (data[0] % len(FILTERS) > 0 and data[2] % 2)
    with h5py.File(path, "w") as file:
        filters = FILTERS[data[0] % len(FILTERS)]
        made = file.create_dataset("data", (2, *SHAPE), dtype, chunks=(rows, *SHAPE), **filters)
        made.id.write_direct_chunk((0, 0, 0), data[3:], data[2] // 2 % 4)
    _read(path, "data", InputSpec("image", SHAPE, dtype))


def _read(path: Path, name: str, spec: InputSpec) -> None:
    with FrameReader([path.parent]) as reader, suppress(FileError, ChunkError):
        read = reader.read(FileSpan(spec.key, f"file://{path}", name, 0, 2, 0), [0], spec)
        for each in read:
            frame = decode_chunk(each) if isinstance(each, Chunk) else each
            assert np.shape(frame) == spec.shape


def reference(data: bytes) -> None:
    """Open a file by a reference: one below the root, or none."""
    root = folder() / "root"
    if not root.is_dir():
        root.mkdir()
        (root / "a.h5").write_bytes(b"frames")
        (root / "inner.h5").symlink_to("a.h5")
        (root / "outer.h5").symlink_to("/etc/hostname")
        (root / "up").symlink_to("..")
        (root.parent / "secret.h5").write_bytes(b"secret")
    text = data.decode("utf-8", "replace").replace("ROOT", str(root))
    with suppress(FileError), resolve(text, [root]) as opened:
        assert opened.path == root / "a.h5"


def xrf_basis(data: bytes) -> None:
    """Read a basis."""
    with suppress(ReductionError):
        found = basis.load(data)
        assert math.isfinite(found.templates.sum())


def recipe_list(data: bytes) -> None:
    """Read recipes as a start document has them."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return
    with suppress(ReductionError):
        for recipe in recipes.parse(value):
            assert recipes.cfg_hash([recipe.spec()])


# --- cores -----------------------------------------------------------------------------------------------------------


def cores(data: bytes) -> None:
    """Say messages to broker, sink, worker and ingest, in any order: none of them may raise."""
    broker = BrokerCore(1)
    sink = SinkCore(1, build=flying.build)
    worker = WorkerCore("worker-1", 1, 0.0)
    ingest = IngestCore("haltere-1-1", 1 << 16)
    now = 0.0
    for place, part in enumerate(data.split(MARK)[:64]):
        if len(part) < 2:
            now += 1.0
            broker.tick(now)
            worker.tick(now)
            sink.tick(now)
            ingest.take(everything=True)
            continue
        beside, message = part[:1], None
        with suppress(WireError):
            message = messages.decode(part[1:])
        if message is None:
            continue
        now += 0.01
        peer = b"peer" + bytes([beside[0] % 4])
        to = beside[0] // 4 % 4
        if to == 0:
            for send in (*broker.receive(SINK if beside[0] & 64 else peer, message, now), *broker.pump(now)):
                assert len(messages.encode(send.message)) <= messages.MAX_CONTROL
        elif to == 1:
            arrays = bytes(place) if isinstance(message, messages.Result) else None
            for _, answer in sink.receive(peer, message, arrays, now):
                assert len(messages.encode(answer)) <= messages.MAX_CONTROL
        elif to == 2:
            (worker.from_sink if beside[0] & 64 else worker.from_broker)(message, now)
            while worker.take() is not None:
                pass
        elif isinstance(message, Free):
            ingest.free(message.ring, message.offsets, message.lives, now)
        elif isinstance(message, Claim):
            ingest.claim(message)
        elif isinstance(message, Connect):
            ingest.place(Source(message.endpoint, 1, (3, 4), "<u2"), place, 24, "none", now)
    assert broker.snapshot()
    assert sink.status(1.0)


TARGETS: Final[dict[str, Target]] = {
    each.__name__: each
    for each in (
        control,
        followed,
        eiger_stream,
        xspress3_stream,
        scalers,
        result_arrays,
        reducers_pipe,
        chunk,
        kernel_chunk,
        stored_chunk,
        reference,
        xrf_basis,
        recipe_list,
        cores,
    )
}
