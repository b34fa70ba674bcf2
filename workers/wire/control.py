"""What exists, as the documents say it: from the dispatcher to the sink, and on from there."""

from typing import Annotated

from msgspec import Meta, Struct

from .fields import BatchSize, DType, Index, Message, Name, Path, Policy, Serial, Shape, Uid


class RunOpen(Message, frozen=True, tag="RUN_OPEN"):
    """A run has begun. ``start`` is its start document as JSON (large values left out beyond 48 kB)."""

    serial: Serial
    run: Uid
    processed: Uid
    start: Annotated[bytes, Meta(max_length=48 * 1024)]


class RecipeSpec(Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """A reducer by its entry-point name, with its parameters as JSON; ``name`` is the processed run's stream."""

    name: Name
    reducer: Name
    params: Annotated[bytes, Meta(max_length=16 * 1024)]


class InputSpec(Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """One data key of the detector: ``InputSpec("eiger_image", (514, 1030), "<u2")``, shape and type of one frame."""

    key: Name
    shape: Shape
    dtype: DType


class LiveLane(Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """Where frames come live: ``LiveLane("tcp://127.0.0.1:9999", "simplon-1", 12, "eiger_image")``.

    ``protocol`` names the codec, ``series`` the detector's own number for this acquisition, ``key`` the data key
    that a streamed frame is.
    """

    endpoint: Annotated[str, Meta(max_length=256)]
    protocol: Name
    series: Serial
    key: Name


class StreamOpen(Message, frozen=True, tag="STREAM_OPEN"):
    """A detector's frames are wanted, by these recipes. Without a live lane its file is the only lane.

    ``cfg`` is the hash of the recipes (:func:`haltere.workers.recipes.cfg_hash`); ``batch`` fixes the boundaries.
    ``policy`` says what becomes of frames that find no room; no bit of the results depends on it.
    ``total`` says that the run has ended with so many frames: none comes live any more, all are in the files.
    ``sums`` : a recipe adds over frames, so no batch goes before all its frames are promised. One that went with frames
    beyond a run's early end would have these in its sums.
    """

    serial: Serial
    run: Uid
    stream: Name
    cfg: Name
    batch: BatchSize
    inputs: Annotated[list[InputSpec], Meta(min_length=1, max_length=256)]
    recipes: Annotated[list[RecipeSpec], Meta(min_length=1, max_length=32)]
    live: LiveLane | None = None
    policy: Policy = "drop"
    total: Index | None = None
    sums: bool = False


class FileSpan(Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """Frames ``[first, first + n)`` of one data key lie in ``dataset`` of the file at ``uri`` from ``offset`` on."""

    key: Name
    uri: Path
    dataset: Path
    first: Index
    n: Annotated[int, Meta(ge=1, lt=2**40)]
    offset: Index


class Expect(Message, frozen=True, tag="EXPECT"):
    """Frames ``[first, stop)`` were promised by ``stream_datum``; ``files`` says where each data key has them."""

    serial: Serial
    run: Uid
    stream: Name
    first: Index
    stop: Index
    files: Annotated[list[FileSpan], Meta(max_length=256)]


class StreamTotal(Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """In all, ``n`` frames of ``stream`` were promised."""

    stream: Name
    n: Index


class RunClose(Message, frozen=True, tag="RUN_CLOSE"):
    """The run has ended. ``stop`` is its stop document as JSON."""

    serial: Serial
    run: Uid
    totals: Annotated[list[StreamTotal], Meta(max_length=64)]
    exit_status: Name
    stop: Annotated[bytes, Meta(max_length=32 * 1024)]


class Ack(Message, frozen=True, tag="ACK"):
    """Control messages of dispatcher ``session`` up to ``serial`` are on disk."""

    session: Serial
    serial: Serial
