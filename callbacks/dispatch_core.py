"""From documents to the pool's control messages; no sockets, no threads, no clock.

What a document says, once acknowledged by the sink, is on its disk. Until then it is kept here and sent again, in
order, with the same serial. Ranges of frames are joined while they wait, so a sink that is away costs little memory.
"""

from __future__ import annotations

import json
import logging
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote, urlsplit

import msgspec
import numpy as np

from ..workers import recipes as recipe_rules
from ..workers.errors import ReductionError, WireError
from ..workers.intervals import IntervalSet
from ..workers.recipes import Recipe
from ..workers.wire.messages import (
    MAX_BATCH,
    MAX_CONTROL,
    Ack,
    Expect,
    FileSpan,
    InputSpec,
    LiveLane,
    RunClose,
    RunOpen,
    StreamOpen,
    StreamTotal,
    Welcome,
    decode,
    encode,
)

log = logging.getLogger(__name__)

Document = Mapping[str, Any]
Control = RunOpen | StreamOpen | Expect | RunClose

WINDOW: Final = 64
"""Most messages on their way without an acknowledgement."""

PATIENCE: Final = 1.0
"""Seconds without an acknowledgement after which the sink is greeted anew, and then told everything again."""

BATCH_SECONDS: Final = 0.1
"""A batch holds about this long a piece of the scan: a result is never older than that by batching alone."""

DEFAULT_BATCH: Final = 16
MAX_SPANS: Final = 256
MAX_START: Final = 48 * 1024
MAX_STOP: Final = 32 * 1024
MAX_RUNS: Final = 256
"""Most runs that may wait for the sink; those beyond are left out, and said so."""

HDF5: Final = ("application/x-hdf5", "application/x-hdf")


@dataclass(slots=True)
class _File:
    """A stream resource. ``base`` is the index that its first frame was given."""

    key: str
    uri: str
    dataset: str
    base: int | None = None


@dataclass(slots=True)
class _Key:
    """A data key: which frames were promised, and where they lie."""

    promised: IntervalSet = field(default_factory=IntervalSet)
    spans: list[FileSpan] = field(default_factory=list)
    """Of frames that no Expect has named yet."""
    rows: int = 0
    """Frames in all its files so far."""


@dataclass(slots=True)
class _Stream:
    """A detector in a run."""

    name: str
    keys: dict[str, _Key]
    next: int = 0
    """The first frame that no Expect has named yet."""

    def promised(self) -> int:
        """Return where the frames end that every key has promised without a gap from ``next`` on."""
        stop = None
        for key in self.keys.values():
            gaps = key.promised.gaps(self.next, 2**40)
            reach = gaps[0][0] if gaps else 2**40
            stop = reach if stop is None else min(stop, reach)
        return self.next if stop is None else max(stop, self.next)


@dataclass(slots=True)
class _Run:
    uid: str
    recipes: tuple[Recipe, ...]
    dwell: float | None
    queue: deque[Any] = field(default_factory=deque)
    """Messages without a serial, to be sent in this order; Expects are made when the window has room."""
    streams: dict[str, _Stream] = field(default_factory=dict)
    by_descriptor: dict[str, dict[str, _Stream]] = field(default_factory=dict)
    """descriptor: data key: its stream"""
    stop: Document | None = None
    closed_with: int | None = None
    """The serial of its RunClose."""


class DispatchCore:
    """Takes documents, the sink's answers and the time; gives messages to send.

    Parameters
    ----------
    session
        Names this conversation; grows with each new dispatcher.
    recipes
        What is reduced when a run's start document has no ``recipes`` of its own.
    roots
        The folders that the workers may read from, to warn of files that lie elsewhere; none: no warning.
    """

    def __init__(self, session: int, recipes: Iterable[Recipe] = (), roots: Iterable[Path] = ()) -> None:
        self.session = session
        self.recipes = tuple(recipes)
        self._roots = [root.resolve() for root in roots]
        self._runs: dict[str, _Run] = {}
        self._files: dict[str, tuple[_Run, _File]] = {}
        self._serial = 0
        self._unacknowledged: deque[tuple[int, bytes]] = deque()
        self._unsent = 0  # of the unacknowledged, how many at the end haven't been sent since the last greeting
        self._welcome = False
        self._greeted = False
        self._heard = 0.0
        self._acknowledged = 0
        self._closed: dict[str, int | None] = {}  # runs: the serial of their RunClose, None until it has one
        self._warned: set[tuple[str, str]] = set()

    # --- documents ---------------------------------------------------------------------------------------------------

    def document(self, name: str, doc: Document) -> None:
        """Take a document; those that say nothing of frames are passed over."""
        if name == "start":
            self._start(doc)
        elif name == "descriptor":
            self._descriptor(doc)
        elif name == "stream_resource":
            self._stream_resource(doc)
        elif name == "stream_datum":
            self._stream_datum(doc)
        elif name == "stop":
            self._stop(doc)

    def _start(self, doc: Document) -> None:
        uid = doc["uid"]
        given = doc.get("recipes")
        chosen = self.recipes if given is None else tuple(self._parsed(uid, given))
        if given is not None and not given:
            return  # it asks for nothing
        if len(self._runs) >= MAX_RUNS:
            log.error("run %s isn't reduced: %d runs wait for the sink already (is the pool running?)", uid, MAX_RUNS)
            return
        run = self._runs[uid] = _Run(uid, chosen, doc.get("dwell"))
        self._closed[uid] = None
        while len(self._closed) > 4 * MAX_RUNS:
            self._closed.pop(next(iter(self._closed)))
        plain = {**doc, "recipes": [msgspec.to_builtins(each) for each in chosen]}
        start = fit_json(plain, MAX_START, keep=("uid", "time", "scan_id", "recipes"))
        run.queue.append(RunOpen(0, uid, recipe_rules.processed_uid(uid, chosen), start))

    def _parsed(self, uid: str, given: Any) -> Iterator[Recipe]:
        """Give the recipes that are good; one line for each that isn't."""
        items = list(given) if isinstance(given, Sequence) and not isinstance(given, str) else [given]
        names: set[str] = set()
        for item in items:
            try:
                (recipe,) = recipe_rules.parse([item])
                if recipe.name in names:
                    raise ReductionError(f"recipe {recipe.name} stands twice; give each its own name")
            except ReductionError as error:
                log.error("run %s goes on without a recipe: %s", uid, error)
                continue
            names.add(recipe.name)
            yield recipe

    def _descriptor(self, doc: Document) -> None:
        run = self._runs.get(doc.get("run_start", ""))
        if run is None:
            return
        data_keys = doc["data_keys"]
        devices: dict[str, list[str]] = {name: list(keys) for name, keys in (doc.get("object_keys") or {}).items()}
        if not devices:
            for key, described in data_keys.items():
                devices.setdefault(described.get("object_name") or key, []).append(key)
        known = run.by_descriptor[doc["uid"]] = {}
        for device, keys in devices.items():
            wanted = [each for each in run.recipes if each.source == device]
            external = [key for key in keys if str(data_keys.get(key, {}).get("external", "")).startswith("STREAM:")]
            if not wanted or not external:
                continue
            stream = run.streams.get(device) or self._open(run, device, wanted, external, doc)
            if stream is not None:
                run.streams[device] = stream
                known.update(dict.fromkeys(stream.keys, stream))

    def _open(
        self, run: _Run, device: str, wanted: Sequence[Recipe], external: Sequence[str], doc: Document
    ) -> _Stream | None:
        """Let a detector's stream be opened, if any recipe fits it."""
        inputs = []
        for key in external:
            try:
                inputs.append(input_spec(key, doc["data_keys"][key]))
            except (TypeError, ValueError) as error:
                self._warn(run.uid, f"data key {key} can't be reduced: {error}")
        good = []
        for recipe in wanted if inputs else []:
            try:
                recipe_rules.outputs(recipe.spec(), inputs)
            except ReductionError as error:
                log.error("run %s goes on without a recipe: %s", run.uid, error)
                continue
            good.append(recipe.spec())
        if not good:
            return None
        live = self._live(run, device, inputs, (doc.get("configuration") or {}).get(device, {}).get("data", {}))
        cfg = recipe_rules.cfg_hash(good)
        message = StreamOpen(0, run.uid, device, cfg, batch_size(run.dwell), inputs, good, live)
        try:
            decode(encode(message))
        except WireError as error:
            log.error("run %s goes on without %s: what its stream is can't be told: %s", run.uid, device, error)
            return None
        run.queue.append(message)
        return _Stream(device, {each.key: _Key() for each in inputs})

    def _live(
        self, run: _Run, device: str, inputs: Sequence[InputSpec], settings: Mapping[str, Any]
    ) -> LiveLane | None:
        endpoint, protocol = (settings.get(f"{device}_stream_{word}") for word in ("endpoint", "protocol"))
        series = settings.get(f"{device}_series")
        if not endpoint or not protocol or series is None:
            return None
        frames = [each.key for each in inputs if len(each.shape) == 2]
        if len(frames) != 1:
            self._warn(run.uid, f"{device} streams, but has {len(frames)} 2-D data keys, not 1: read from its files")
            return None
        return LiveLane(str(endpoint), str(protocol), int(series), frames[0])

    def _stream_resource(self, doc: Document) -> None:
        parameters = doc.get("parameters") or {}
        dataset = parameters.get("dataset") or parameters.get("path")
        # Which run it is of stands in it or, of older documents, follows from the first stream_datum.
        run = self._runs.get(doc.get("run_start", ""))
        if run is None:
            key = doc["data_key"]
            named = [each for each in self._runs.values() if any(key in keys for keys in each.by_descriptor.values())]
            run = named[-1] if named and "run_start" not in doc else None
        if run is None:
            return
        key = doc["data_key"]
        if not any(key in stream.keys for stream in run.streams.values()):
            return
        if doc.get("mimetype") not in HDF5 or not dataset or parameters.get("template"):
            what = "a file name template" if parameters.get("template") else str(doc.get("mimetype"))
            self._warn(run.uid, f"{key}: its frames can't be read from files of {what}; only from one HDF5 dataset")
            return
        uri = str(doc["uri"])
        if self._roots and not _lies_in(uri, self._roots):
            self._warn(run.uid, f"{key}: {uri} lies outside of the folders that the workers may read")
        self._files[doc["uid"]] = (run, _File(key, uri, str(dataset)))

    def _stream_datum(self, doc: Document) -> None:
        run, file = self._files.get(doc["stream_resource"], (None, None))
        if run is None or file is None:
            return
        stream = run.by_descriptor.get(doc["descriptor"], {}).get(file.key)
        if stream is None:
            return
        key = stream.keys[file.key]
        index, n = doc["indices"]["start"], doc["indices"]["stop"] - doc["indices"]["start"]
        first = doc["seq_nums"]["start"] - 1
        if n <= 0 or first < 0 or doc["seq_nums"]["stop"] - 1 - first != n:
            self._warn(run.uid, f"{file.key}: stream_datum {doc['uid']} has indices and seq_nums that don't fit")
            return
        if file.base is None:
            # Indices count within the resource. Some devices count over all the files of a key: then a later file's
            # first index is what the files before it hold.
            file.base = index if key.rows and index == key.rows else 0
        key.rows += n
        if key.promised.gaps(first, first + n) != [(first, first + n)]:
            self._warn(run.uid, f"{file.key}: frames {first} to {first + n - 1} are promised twice; the first stands")
            return
        key.promised.add(first, first + n)
        offset = index - file.base
        last = key.spans[-1] if key.spans else None
        if (
            last is not None
            and (last.uri, last.dataset) == (file.uri, file.dataset)
            and last.first + last.n == first
            and last.offset + last.n == offset
        ):
            key.spans[-1] = msgspec.structs.replace(last, n=last.n + n)
        else:
            key.spans.append(FileSpan(file.key, file.uri, file.dataset, first, n, offset))

    def _stop(self, doc: Document) -> None:
        run = self._runs.get(doc["run_start"])
        if run is not None:
            run.stop = doc
            for uid in [uid for uid, (owner, _) in self._files.items() if owner is run]:
                del self._files[uid]

    def _warn(self, run: str, text: str) -> None:
        """Say something once per run."""
        if (run, text) not in self._warned:
            if len(self._warned) > 1000:
                self._warned.clear()
            self._warned.add((run, text))
            log.warning("run %s: %s", run, text)

    # --- the sink ----------------------------------------------------------------------------------------------------

    def heard(self, message: Welcome | Ack, now: float) -> bool:
        """Take the sink's answer. Return whether it must be greeted (anew)."""
        if isinstance(message, Ack):
            if message.session == self.session:
                if message.serial > self._acknowledged:  # an answer that brings nothing new is no reason to be patient
                    self._heard = now
                self._acknowledged = max(self._acknowledged, message.serial)
                while self._unacknowledged and self._unacknowledged[0][0] <= message.serial:
                    self._unacknowledged.popleft()
                self._unsent = min(self._unsent, len(self._unacknowledged))
                self._forget()
            return False
        if message.lease_ms == 0:
            # A sink that started anew says this to each message that it gets; one greeting is enough.
            self._welcome = False
            again, self._greeted = not self._greeted, True
            self._heard = now
            return again
        if not self._greeted:
            return False
        self._welcome, self._greeted = True, False
        self._heard = now
        self._unsent = len(self._unacknowledged)
        return False

    def impatient(self, now: float) -> bool:
        """Return whether the sink must be greeted anew, having been silent for too long about what it was told."""
        if self._welcome and not self._unacknowledged:
            return False
        if now - self._heard < PATIENCE:
            return False
        self._heard = now
        self._greeted = True
        return True

    def outgoing(self, now: float) -> list[bytes]:
        """Return what is to be sent now."""
        if not self._welcome:
            return []
        if not self._unacknowledged:
            self._heard = now
        self._fill_window()
        found = [data for _, data in self._unacknowledged][len(self._unacknowledged) - self._unsent :]
        self._unsent = 0
        return found

    @property
    def idle(self) -> bool:
        """Whether everything that the documents said has been acknowledged."""
        return not self._unacknowledged and not any(self._due(run) for run in self._runs.values())

    def is_acknowledged(self, run: str) -> bool:
        """Return whether the sink has all of a run, to its end, on disk; a run that asks for nothing has nothing."""
        if run not in self._closed:
            return run not in self._runs
        serial = self._closed[run]
        return serial is not None and serial <= self._acknowledged

    def _due(self, run: _Run) -> bool:
        return bool(run.queue) or run.stop is not None or any(s.promised() > s.next for s in run.streams.values())

    def _fill_window(self) -> None:
        for run in list(self._runs.values()):
            for message in self._messages(run):
                self._serial += 1
                numbered = msgspec.structs.replace(message, serial=self._serial)
                self._unacknowledged.append((self._serial, encode(numbered)))
                self._unsent += 1
                if isinstance(message, RunClose):
                    run.closed_with = self._closed[run.uid] = self._serial
                    del self._runs[run.uid]

    def _messages(self, run: _Run) -> Iterator[Control]:
        """Give the run's messages while the window has room."""
        while len(self._unacknowledged) < WINDOW:
            if run.queue:
                yield run.queue.popleft()
                continue
            for stream in run.streams.values():
                if stream.promised() > stream.next:
                    yield self._expect(run, stream)
                    break
            else:
                if run.stop is not None:
                    yield self._close(run, run.stop)
                return

    def _expect(self, run: _Run, stream: _Stream) -> Expect:
        """Take from the stream what one message can say."""
        first, stop = stream.next, stream.promised()
        while True:
            spans = [_cut(span, first, stop) for key in stream.keys.values() for span in key.spans]
            files = [span for span in spans if span is not None]
            message = Expect(0, run.uid, stream.name, first, stop, files)
            if (len(files) <= MAX_SPANS and len(encode(message)) < MAX_CONTROL - 64) or stop - first == 1:
                break
            stop = first + (stop - first) // 2
        stream.next = stop
        for key in stream.keys.values():
            rest = [_cut(span, stop, 2**40) for span in key.spans]
            key.spans = [span for span in rest if span is not None]
        return message

    def _close(self, run: _Run, stop: Document) -> RunClose:
        totals = []
        for stream in run.streams.values():
            totals.append(StreamTotal(stream.name, stream.next))
            ends = {
                name: max((end for _, end in key.promised.ranges()), default=0) for name, key in stream.keys.items()
            }
            longest = max(ends, key=lambda name: ends[name])
            if ends[longest] > stream.next:
                self._warn(
                    run.uid,
                    f"{stream.name}: {longest} has frames up to {ends[longest]}, but only {stream.next} are complete: "
                    "the rest is left out",
                )
        status = str(stop.get("exit_status", "fail"))
        return RunClose(0, run.uid, totals, status, fit_json(stop, MAX_STOP, keep=("uid", "time", "exit_status")))

    def _forget(self) -> None:
        if not self._unacknowledged and not self._runs:
            self._warned.clear()


def input_spec(key: str, described: Mapping[str, Any]) -> InputSpec:
    """Return a data key's shape and type of one frame.

    Raises
    ------
    ValueError
        Its type isn't a number's, or its shape isn't fixed.

    >>> input_spec("det_image", {"shape": [1, 514, 1030], "dtype_numpy": "<u2"})
    InputSpec(key='det_image', shape=(514, 1030), dtype='<u2')
    """
    shape = list(described.get("shape") or ())
    if any(not isinstance(n, int | np.integer) for n in shape):
        raise ValueError(f"shape {shape} isn't fixed")
    if shape[:1] == [1]:
        shape = shape[1:]
    named = described.get("dtype_numpy")
    if not isinstance(named, str):
        raise ValueError(f"dtype_numpy {named!r} isn't one number's; the device must describe it")
    dtype = np.dtype(named)
    if dtype.kind not in "biuf":
        raise ValueError(f"type {dtype} isn't a number's")
    return InputSpec(key, tuple(int(n) for n in shape), dtype.str)


def batch_size(dwell: Any) -> int:
    """Return how many frames go together, for this dwell in seconds.

    >>> batch_size(0.005), batch_size(1.0), batch_size(1e-4), batch_size(None)
    (20, 1, 64, 16)
    """
    if not isinstance(dwell, int | float) or not dwell > 0:
        return DEFAULT_BATCH
    return int(min(max(round(BATCH_SECONDS / dwell), 1), MAX_BATCH))


def fit_json(doc: Mapping[str, Any], limit: int, keep: Sequence[str] = ()) -> bytes:
    """Return the document as JSON of at most ``limit`` bytes: the largest values are left out, those to keep last.

    >>> fit_json({"uid": "a", "big": "x" * 100}, 50)
    b'{"uid":"a"}'
    """
    parts = {str(key): json.dumps(_plain(value)) for key, value in doc.items()}
    size = 2 + sum(len(key) + len(part) + 8 for key, part in parts.items())
    for key in sorted(parts, key=lambda each: (each in keep, -len(parts[each]))):
        if size <= limit:
            break
        size -= len(key) + len(parts.pop(key)) + 8
        log.warning("the document's %r is too large to be sent along: left out", key)
    return json.dumps({key: json.loads(part) for key, part in parts.items()}, separators=(",", ":")).encode()


def _plain(value: Any) -> Any:
    """Return what JSON can say of a value; of numbers that aren't finite, nothing."""
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(each) for each in value]
    if isinstance(value, float):
        return value if np.isfinite(value) else None
    if value is None or isinstance(value, str | int | bool):
        return value
    return str(value)


def _cut(span: FileSpan, first: int, stop: int) -> FileSpan | None:
    """Return the part of a span within ``[first, stop)``."""
    low, high = max(span.first, first), min(span.first + span.n, stop)
    if low >= high:
        return None
    return FileSpan(span.key, span.uri, span.dataset, low, high - low, span.offset + low - span.first)


def _lies_in(uri: str, roots: Sequence[Path]) -> bool:
    path = Path(unquote(urlsplit(uri).path))
    return any(path.is_relative_to(root) for root in roots)
