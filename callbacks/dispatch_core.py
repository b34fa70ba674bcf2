"""From documents to the pool's control messages; no sockets, no threads, no clock.

What a document says, once acknowledged by the sink, is on its disk. Until then it is kept here and sent again, in
order, with the same serial. Ranges of frames are joined while they wait, so a sink that is away costs little memory.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote, urlsplit

import msgspec

from ..workers import recipes as recipe_rules
from ..workers.errors import ReductionError, WireError
from ..workers.files.references import STREAMED
from ..workers.ledger.rows import Control
from ..workers.recipes import Recipe
from ..workers.wire.messages import (
    Ack,
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
from .dispatch_streams import UNNUMBERED, File, Key, Stream, batch_size, input_spec
from .dispatch_window import Window
from .plain_json import fit_json
from .reduction import Reduction

log = logging.getLogger(__name__)

Document = Mapping[str, Any]

MAX_START: Final = 48 * 1024
MAX_STOP: Final = 32 * 1024
MAX_RUNS: Final = 256
"""Most runs that may wait for the sink; those beyond are left out, and said so."""
MAX_WARNED: Final = 1000
"""Warnings that are remembered, so that each is told once."""

HDF5: Final = ("application/x-hdf5", "application/x-hdf")


@dataclass(slots=True)
class _Run:
    uid: str
    name: str
    """What the messages call it."""
    recipes: tuple[Recipe, ...]
    dwell: float | None
    queue: deque[Any] = field(default_factory=deque)
    """Messages without a serial, to be sent in this order; Expects are made when the window has room."""
    streams: dict[str, Stream] = field(default_factory=dict)
    by_descriptor: dict[str, dict[str, Stream]] = field(default_factory=dict)
    """descriptor: data key: its stream"""
    stop: Document | None = None


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
    reduction
        Of a run that has ended: only its documents are taken, and reduced as this says.
    """

    def __init__(
        self,
        session: int,
        recipes: Iterable[Recipe] = (),
        roots: Iterable[Path] = (),
        reduction: Reduction | None = None,
    ) -> None:
        self.session = session
        self.recipes = tuple(recipes)
        self._roots = tuple(roots)
        self._reduction = reduction
        self._runs: dict[str, _Run] = {}
        self._files: dict[str, tuple[_Run, File]] = {}
        self._window = Window(session)
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
        uid, again = doc["uid"], self._reduction
        if again is not None and again.raw != uid:
            return
        given = doc.get("recipes") if again is None else again.recipes
        chosen = self.recipes if given is None else tuple(self._parsed(uid, given))
        if given is not None and not given:
            return  # it asks for nothing
        if len(self._runs) >= MAX_RUNS:
            log.error("run %s isn't reduced: %d runs wait for the sink already (is the pool running?)", uid, MAX_RUNS)
            return
        run = self._runs[uid] = _Run(uid, uid if again is None else again.name, chosen, doc.get("dwell"))
        self._closed[uid] = None
        while len(self._closed) > 4 * MAX_RUNS:
            self._closed.pop(next(iter(self._closed)))
        marks = {} if again is None else again.marks()
        plain = {**doc, **marks, "recipes": [msgspec.to_builtins(each) for each in chosen]}
        start = fit_json(plain, MAX_START, keep=("uid", "time", "scan_id", "recipes", *marks))
        processed = recipe_rules.processed_uid(uid, chosen) if again is None else again.processed
        run.queue.append(RunOpen(UNNUMBERED, run.name, processed, start))

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
    ) -> Stream | None:
        """Let a detector's stream be opened, if any recipe fits it."""
        inputs = []
        for key in external:
            try:
                inputs.append(input_spec(key, doc["data_keys"][key]))
            except (TypeError, ValueError) as error:
                self._warn(run.uid, f"data key {key} can't be reduced: {error}")
        fitting: list[Recipe] = []
        sums = False
        for recipe in wanted if inputs else []:
            try:
                outputs = recipe_rules.outputs(recipe.spec(), inputs)
                recipe_rules.check_policy(recipe, fitting)
            except ReductionError as error:
                log.error("run %s goes on without a recipe: %s", run.uid, error)
                continue
            fitting.append(recipe)
            sums |= any(output.kind == "acc" for output in outputs.values())
        if not fitting:
            return None
        good, policy = [recipe.spec() for recipe in fitting], fitting[0].policy
        live = self._live(run, device, inputs, (doc.get("configuration") or {}).get(device, {}).get("data", {}))
        cfg = recipe_rules.cfg_hash(good)
        batch, total = batch_size(run.dwell, inputs), None
        if self._reduction is not None:
            batch, total = self._reduction.batches.get(device, batch), self._reduction.totals.get(device)
        message = StreamOpen(UNNUMBERED, run.name, device, cfg, batch, inputs, good, live, policy, total, sums)
        try:
            decode(encode(message))
        except WireError as error:
            log.error("run %s goes on without %s: what its stream is can't be told: %s", run.uid, device, error)
            return None
        run.queue.append(message)
        return Stream(device, {each.key: Key() for each in inputs}, policy)

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
        if doc.get("mimetype") == STREAMED:
            self._files[doc["uid"]] = (run, File(key, "", ""))
            dropping = any(key in stream.keys and stream.policy == "drop" for stream in run.streams.values())
            if dropping and self._reduction is None:
                self._warn(
                    run.uid, f"{key} is kept in no file: what finds no room is lost; give its recipes policy spill"
                )
            return
        if doc.get("mimetype") not in HDF5 or not dataset or parameters.get("template"):
            kind = f"{doc.get('mimetype')}, dataset {dataset}, template {parameters.get('template')}"
            self._warn(run.uid, f"{key}: its frames can't be read from files of {kind}; only from one HDF5 dataset")
            return
        uri = str(doc["uri"])
        if self._roots and not _lies_in(uri, self._roots):
            self._warn(run.uid, f"{key}: {uri} lies outside of the folders that the workers may read")
        # What is told of a run that has ended counts from the dataset's first row; a device may do otherwise.
        base = None if self._reduction is None else 0
        self._files[doc["uid"]] = (run, File(key, uri, str(dataset), base))

    def _stream_datum(self, doc: Document) -> None:
        known = self._files.get(doc["stream_resource"])
        if known is None:
            return
        run, file = known
        stream = run.by_descriptor.get(doc["descriptor"], {}).get(file.key)
        if stream is None:
            return
        key = stream.keys[file.key]
        index, n = doc["indices"]["start"], doc["indices"]["stop"] - doc["indices"]["start"]
        first = doc["seq_nums"]["start"] - 1
        if n <= 0 or first < 0 or doc["seq_nums"]["stop"] - 1 - first != n:
            self._warn(run.uid, f"{file.key}: stream_datum {doc['uid']} has indices and seq_nums that don't fit")
            return
        if not key.promise(file, first, n, index):
            self._warn(run.uid, f"{file.key}: frames {first} to {first + n - 1} are promised twice; the first stands")

    def _stop(self, doc: Document) -> None:
        run = self._runs.get(doc["run_start"])
        if run is not None:
            run.stop = doc
            for uid in [uid for uid, (owner, _) in self._files.items() if owner is run]:
                del self._files[uid]

    def _warn(self, run: str, text: str) -> None:
        """Say something once per run."""
        if (run, text) not in self._warned:
            if len(self._warned) >= MAX_WARNED:
                self._warned.clear()
            self._warned.add((run, text))
            log.warning("run %s: %s", run, text)

    def streams(self, run: str) -> list[StreamOpen]:
        """Return what the sink is still to be told of a run's detectors."""
        known = self._runs.get(run)
        return [] if known is None else [each for each in known.queue if isinstance(each, StreamOpen)]

    # --- the sink ----------------------------------------------------------------------------------------------------

    def heard(self, message: Welcome | Ack, now: float) -> bool:
        """Take the sink's answer. Return whether it must be greeted (anew)."""
        greet = self._window.heard(message, now)
        self._forget()
        return greet

    def impatient(self, now: float) -> bool:
        """Return whether the sink must be greeted anew, having been silent for too long about what it was told."""
        return self._window.impatient(now)

    def outgoing(self, now: float) -> list[bytes]:
        """Return what is to be sent now."""
        if not self._window.welcome:
            return []
        self._window.rest(now)
        self._fill_window()
        return self._window.outgoing()

    @property
    def idle(self) -> bool:
        """Whether everything that the documents said has been acknowledged."""
        return self._window.empty and not any(self._due(run) for run in self._runs.values())

    def is_acknowledged(self, run: str) -> bool:
        """Return whether the sink has all of a run, to its end, on disk; a run that asks for nothing has nothing."""
        if run not in self._closed:
            return run not in self._runs
        serial = self._closed[run]
        return serial is not None and serial <= self._window.acknowledged

    def _due(self, run: _Run) -> bool:
        return bool(run.queue) or run.stop is not None or any(s.promised() > s.next for s in run.streams.values())

    def _fill_window(self) -> None:
        for run in list(self._runs.values()):
            for message in self._messages(run):
                serial = self._window.add(message)
                if isinstance(message, RunClose):
                    self._closed[run.uid] = serial
                    del self._runs[run.uid]

    def _messages(self, run: _Run) -> Iterator[Control]:
        """Give the run's messages while the window has room."""
        while self._window.room:
            if run.queue:
                yield run.queue.popleft()
                continue
            for stream in run.streams.values():
                if stream.promised() > stream.next:
                    try:
                        yield stream.expect(run.name)
                    except WireError as error:
                        log.error(
                            "run %s goes on without %s from frame %d on: %s", run.uid, stream.name, stream.next, error
                        )
                    break
            else:
                if run.stop is not None:
                    yield self._close(run, run.stop)
                return

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
        return RunClose(
            UNNUMBERED, run.name, totals, status, fit_json(stop, MAX_STOP, keep=("uid", "time", "exit_status"))
        )

    def _forget(self) -> None:
        if self._window.empty and not self._runs:
            self._warned.clear()


def _lies_in(uri: str, roots: Sequence[Path]) -> bool:
    path = Path(unquote(urlsplit(uri).path))
    return any(path.is_relative_to(root) for root in roots)
