"""The sink without its sockets and files: what is buffered for the ledger, who is owed an answer, what is complete.

What comes in waits in a buffer until a :class:`~.ledger_rows.Group` of it is committed; only then is anybody answered.
"""

from __future__ import annotations

import json
import logging
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from . import recipes
from .errors import ReductionError, WireError
from .intervals import IntervalSet
from .ledger_rows import BatchRow, ConstRow, Control, Group, Outcome, RunRow, account, mark, stream_total
from .payload import pack, unpack
from .reducers.base import Output
from .wire.messages import (
    QUARANTINED,
    STATUS_NAMES,
    Ack,
    AnyMessage,
    Done,
    Expect,
    Hello,
    Message,
    Nack,
    RecipeSpec,
    Result,
    RunClose,
    RunOpen,
    Status,
    StatusReply,
    StreamOpen,
    Welcome,
)

log = logging.getLogger(__name__)

GROUP_SECONDS: Final = 0.02
GROUP_ROWS: Final = 2000
GROUP_BYTES: Final = 32 << 20
MAX_BUFFER: Final = 256 << 20
"""Bytes that may wait while the disk is full. Beyond, results are refused: their workers keep and resend them."""

MAX_CONTROLS: Final = 20_000
"""The same for control messages: their dispatcher resends them."""

FIRST_PAUSE: Final = 0.2
LONGEST_PAUSE: Final = 5.0
FULL_SECONDS: Final = 2.0
"""The broker is told everything that is done so often: a DONE that was lost heals."""

LEASE_MS: Final = 5000
BEAT_MS: Final = 500
MAX_RANGES: Final = 2000
MAX_PEERS: Final = 1024
REMEMBERED: Final = 256
"""Completed runs whose late results are still answered."""

Send = tuple[bytes, Message]
"""A peer's routing id, and what it is told."""

Outputs = dict[str, dict[str, Output]]


@dataclass(slots=True)
class Books:
    """What became of the frames of one (run, stream, cfg)."""

    sets: tuple[IntervalSet, ...] = field(default_factory=lambda: tuple(IntervalSet() for _ in STATUS_NAMES))
    done: IntervalSet = field(default_factory=IntervalSet)
    buffered: set[int] = field(default_factory=set)

    def mark(self, first: int, status: bytes) -> None:
        """Note a batch that is on disk."""
        mark(self.sets, first, status)
        self.done.add(first, first + len(status))


@dataclass(slots=True)
class StreamState:
    """A stream that is open."""

    open: StreamOpen
    outputs: Outputs
    books: Books
    expected: IntervalSet = field(default_factory=IntervalSet)


@dataclass(slots=True)
class RunState:
    """A run as far as the ledger has it."""

    open: RunOpen
    control: list[Control] = field(default_factory=list)
    streams: dict[str, StreamState] = field(default_factory=dict)
    totals: dict[str, int] | None = None
    duplicates: int = 0
    finishing: bool = False
    completed: float | None = None
    nexus: str | None = None

    def total(self, stream: str) -> int:
        """Return how many frames the stream has, as far as is known."""
        state = self.streams.get(stream)
        return stream_total(self.totals, stream, state.expected if state is not None else None)

    @property
    def finished(self) -> bool:
        """Whether the run was closed and every promised frame is on disk."""
        return self.totals is not None and all(
            state.books.done.covers(0, self.total(name)) for name, state in self.streams.items()
        )


@dataclass(slots=True)
class Counters:
    """Everything that somebody may ask about."""

    results: int = 0
    frames: int = 0
    duplicates: int = 0
    bad: int = 0
    unknown: int = 0
    refused: int = 0
    gaps: int = 0
    commits: int = 0
    errors: int = 0
    ledger_us: int = 0
    """µs of CPU that taking results, writing them to the ledger and answering took; the shell keeps it."""
    last_bad: str = ""
    last_error: str = ""


class SinkCore:
    """Takes messages, returns messages and groups to commit.

    Parameters
    ----------
    epoch
        Grows each time the sink starts anew.
    sessions
        The last serial on disk of each dispatcher's session (:meth:`Ledger.sessions`). Serials count from 1.
    name_nexus
        Gives a new run the path of its NeXus file.
    build
        Gives a recipe's reducer; its ``outputs`` say what a result must hold.
    """

    def __init__(
        self,
        epoch: int,
        *,
        sessions: dict[int, int] | None = None,
        name_nexus: Callable[[RunOpen], str | None] = lambda _: None,
        build: Callable[[RecipeSpec], Any] = recipes.build,
    ) -> None:
        self.counters = Counters()
        self.runs: OrderedDict[str, RunState] = OrderedDict()
        self._epoch = epoch
        self._name_nexus = name_nexus
        self._build = build
        self._books: dict[str, dict[tuple[str, str], Books]] = defaultdict(dict)
        self._peers: OrderedDict[bytes, Hello] = OrderedDict()
        self._broker: bytes | None = None
        self._committed_serials = dict(sessions or {})
        self._serials = dict(self._committed_serials)
        self._buffer = Group()
        self._bytes = 0
        self._askers: list[bytes] = []
        self._since = 0.0
        self._flight: tuple[Group, list[bytes], int] | None = None
        self._pause = 0.0
        self._retry_at = 0.0
        self._next_full = 0.0
        self._finished: list[str] = []
        self.nexus_errors: dict[str, str] = {}
        """Why a run's NeXus file can't be written at present; the shell keeps it."""

    # --- what was before ---------------------------------------------------------------------------------------------

    def restore(
        self, row: RunRow, control: Iterable[AnyMessage], done: dict[tuple[str, str], tuple[IntervalSet, ...]]
    ) -> None:
        """Take over a run from the ledger."""
        for key, sets in done.items():
            books = self._books[row.run][key] = Books(sets)
            for each in sets:
                books.done.update(each.ranges())
        for message in control:
            if isinstance(message, RunOpen | StreamOpen | Expect | RunClose):
                self._apply(message, row.nexus)
        state = self.runs.get(row.run)
        if state is not None:
            state.duplicates = row.duplicates
            state.completed = row.completed
            self._check_finished(state)

    # --- messages ----------------------------------------------------------------------------------------------------

    def receive(self, peer: bytes, message: AnyMessage, payload: Any, now: float) -> list[Send]:
        """Take a message; ``payload`` (bytes-like or None) came beside it. Return what can be answered at once."""
        if isinstance(message, Result):
            return self._result(peer, message, b"" if payload is None else payload, now)
        if isinstance(message, RunOpen | StreamOpen | Expect | RunClose):
            return self._control(peer, message, now)
        if isinstance(message, Hello):
            return self._hello(peer, message)
        if isinstance(message, Status):
            return [(peer, StatusReply(message.serial, json.dumps(self.status()).encode()))]
        return []

    def _hello(self, peer: bytes, message: Hello) -> list[Send]:
        self._peers[peer] = message
        self._peers.move_to_end(peer)
        while len(self._peers) > MAX_PEERS:
            self._peers.popitem(last=False)
        answer: list[Send] = [(peer, Welcome(1, self._epoch, LEASE_MS, BEAT_MS))]
        if message.role == "broker":
            self._broker = peer
            for run in self._open_runs():
                answer += [(peer, each) for each in run.control]
                answer += self._full(peer, run)
        elif message.role == "dispatcher" and message.session in self._committed_serials:
            answer.append((peer, Ack(message.session, self._committed_serials[message.session])))
        return answer

    def _control(self, peer: bytes, message: Control, now: float) -> list[Send]:
        hello = self._peers.get(peer)
        if hello is None:
            return [(peer, Welcome(1, self._epoch, 0, 0))]
        session, serial = hello.session, message.serial
        last = self._serials.get(session)
        if last is not None and serial <= last:
            committed = self._committed_serials.get(session)
            return [] if committed is None else [(peer, Ack(session, committed))]
        if serial > (1 if last is None else last + 1):
            # Those between were lost with a sink that died: the dispatcher resends what isn't acknowledged, in order.
            self.counters.gaps += 1
            self._complain(f"{hello.name}: control message {serial} came, {(last or 0) + 1} is awaited: left out")
            return []
        if len(self._buffer.control) >= MAX_CONTROLS:
            self.counters.refused += 1
            return []
        self._begin(now)
        self._serials[session] = self._buffer.sessions[session] = serial
        if _readable(message):
            path = self._name_nexus(message) if isinstance(message, RunOpen) else None
            self._buffer.control.append((message, path))
        else:
            self.counters.bad += 1
            self._complain(f"{hello.name}: {type(message).__name__} {message.run}: its document is no JSON object")
        return []

    def _result(self, peer: bytes, message: Result, payload: Any, now: float) -> list[Send]:
        self.counters.results += 1
        run = self.runs.get(message.run)
        stream = run.streams.get(message.stream) if run is not None else None
        known = self._books.get(message.run, {}).get((message.stream, message.cfg))
        answer = Done(message.run, message.stream, message.cfg, [(message.first, message.first + message.n)])
        if known is not None and known.done.covers(message.first, message.first + message.n):
            self._duplicate(message.run)
            self._begin(now)
            return [(peer, answer)]
        if run is None or stream is None or stream.open.cfg != message.cfg:
            self.counters.unknown += 1
            self._complain(f"{message.worker}: a result for {message.run}/{message.stream} {message.cfg}: unknown here")
            return []
        if run.totals is not None and message.first >= run.total(message.stream):
            return [(peer, answer)]
        if message.first in stream.books.buffered:
            self._duplicate(message.run)
            return []  # its twin's commit will be answered, and this worker resends until it is told
        if self._bytes > MAX_BUFFER:
            self.counters.refused += 1
            return []
        try:
            row, consts = self._check(message, payload, run, stream)
        except WireError as error:
            self.counters.bad += 1
            self._complain(f"{message.worker}: result {message.run}/{message.stream} [{message.first}]: {error}")
            # Sent again it would be refused again: the broker has it reduced anew, and in the end quarantined.
            reason = f"the sink refused the result: {error}"[:500]
            refusal = Nack(message.run, message.stream, message.first, message.n, message.token, -1, reason, False)
            return [(peer, refusal)]
        self._begin(now)
        stream.books.buffered.add(message.first)
        self._buffer.batches.append(row)
        self._buffer.consts += consts
        self._bytes += len(row.payload)
        self._askers.append(peer)
        return []

    def _duplicate(self, run: str) -> None:
        self.counters.duplicates += 1
        self._buffer.duplicates[run] = self._buffer.duplicates.get(run, 0) + 1
        if run in self.runs:
            self.runs[run].duplicates += 1

    def _check(
        self, message: Result, payload: Any, run: RunState, stream: StreamState
    ) -> tuple[BatchRow, list[ConstRow]]:
        batch, first, n = stream.open.batch, message.first, message.n
        rest = run.total(message.stream) - first if run.totals is not None else batch
        if first % batch or (n != batch and n != rest):
            raise WireError(f"{n} frames from {first} on aren't a batch of {batch}")
        if len(message.status) != n or any(status >= len(STATUS_NAMES) for status in message.status):
            raise WireError(f"status of {len(message.status)} frames, or of no known kind, for {n}")
        if any(not first <= frame < first + n for frame, _ in message.reasons):
            raise WireError("a reason names a frame outside of the batch")
        pieces = unpack(message.arrays, payload, n)
        seen = set()
        for piece in pieces:
            where = f"{piece.recipe}/{piece.name}"
            output = stream.outputs.get(piece.recipe, {}).get(piece.name)
            if output is None or output.kind != piece.kind or where in seen:
                raise WireError(f"array {where} ({piece.kind}) is no output of the recipe, or came twice")
            seen.add(where)
            shape = (n, *output.shape) if output.kind == "nav" else tuple(output.shape)
            if piece.array.shape != shape or piece.array.dtype != np.dtype(output.dtype):
                raise WireError(
                    f"array {where}: {piece.array.dtype} {piece.array.shape}, expected {output.dtype} {shape}"
                )
        if any(status < QUARANTINED for status in message.status):
            for recipe, outputs in stream.outputs.items():
                for name, output in outputs.items():
                    if output.kind != "const" and f"{recipe}/{name}" not in seen:
                        raise WireError(f"array {recipe}/{name} is missing")
        consts = []
        specs: Sequence[Any] = message.arrays
        if any(piece.kind == "const" for piece in pieces):
            for piece in pieces:
                if piece.kind == "const":
                    (spec,), packed = pack([piece])
                    consts.append(ConstRow(message.run, message.stream, message.cfg, spec, packed))
            specs, payload = pack(piece for piece in pieces if piece.kind != "const")
        row = BatchRow(
            message.run,
            message.stream,
            message.cfg,
            first,
            n,
            message.status,
            list(message.reasons),
            message.token,
            message.worker,
            list(specs),
            payload,
        )
        return row, consts

    def _complain(self, text: str) -> None:
        self.counters.last_bad = text[:500]
        log.warning("%s", text)

    # --- commits -----------------------------------------------------------------------------------------------------

    def _begin(self, now: float) -> None:
        if not self._since:
            self._since = now

    def wait(self, now: float) -> float:
        """Return how many seconds may pass before something is due."""
        waits = [max(self._next_full - now, 0.0)]
        if self._flight is not None:
            waits.append(self._retry_at - now)
        elif self._buffer:
            waits.append(self._since + GROUP_SECONDS - now)
        return max(min(waits), 0.0)

    def take(self, now: float, *, all_: bool = False) -> Group | None:
        """Return what is to be committed now, if anything is; with ``all_`` whatever there is."""
        if self._flight is not None:
            return self._flight[0] if all_ or now >= self._retry_at else None
        group = self._buffer
        full = len(group.batches) >= GROUP_ROWS or self._bytes >= GROUP_BYTES
        if not group or not (all_ or full or now - self._since >= GROUP_SECONDS):
            return None
        self._flight = (group, self._askers, self._bytes)
        self._buffer, self._askers, self._since = Group(), [], 0.0
        return group

    def committed(self, outcome: Outcome, now: float) -> list[Send]:
        """Take note that the group that :meth:`take` gave is on disk. Return the answers that this sets free."""
        assert self._flight is not None
        (group, askers, size), self._flight = self._flight, None
        self._bytes -= size
        self._pause = 0.0
        self.counters.commits += 1
        answer: list[Send] = []
        for (message, nexus), fresh in zip(group.control, outcome.fresh, strict=True):
            if fresh:
                self._apply(message, nexus)
                if self._broker is not None:
                    answer.append((self._broker, message))
                    if isinstance(message, StreamOpen):
                        # It gives out no work of a stream before it has heard what of it is done.
                        answer += self._full_of(self._broker, message)
        by_session = {hello.session: peer for peer, hello in self._peers.items() if hello.role == "dispatcher"}
        for session, serial in group.sessions.items():
            self._committed_serials[session] = serial
            if session in by_session:
                answer.append((by_session[session], Ack(session, serial)))
        answer += self._mark(group.batches, askers, outcome.new)
        for uid in {row.run for row in group.batches} | {message.run for message, _ in group.control}:
            if uid in self.runs:
                self._check_finished(self.runs[uid])
        return answer

    def _mark(self, rows: Sequence[BatchRow], askers: Sequence[bytes], new: Sequence[bool]) -> list[Send]:
        owed: dict[tuple[bytes, str, str, str], IntervalSet] = defaultdict(IntervalSet)
        listeners = self._listeners()
        for row, asker, fresh in zip(rows, askers, new, strict=True):
            books = self._books[row.run].setdefault((row.stream, row.cfg), Books())
            books.buffered.discard(row.first)
            if fresh:
                books.mark(row.first, row.status)
                self.counters.frames += row.n
            else:
                self.counters.duplicates += 1
                if row.run in self.runs:
                    self.runs[row.run].duplicates += 1
            for peer in (asker, *listeners):
                owed[peer, row.run, row.stream, row.cfg].add(row.first, row.first + row.n)
        return [
            (peer, done) for (peer, *key), frames in owed.items() for done in _dones((key[0], key[1], key[2]), frames)
        ]

    def failed(self, error: Exception, now: float) -> None:
        """Take note that the commit failed: nobody is answered, and it is tried again after a growing pause."""
        self._pause = min(max(2 * self._pause, FIRST_PAUSE), LONGEST_PAUSE)
        self._retry_at = now + self._pause
        self.counters.errors += 1
        self.counters.last_error = str(error)[:500]
        log.error("ledger: %s; trying again in %.1f s, %d bytes wait", error, self._pause, self._bytes)

    def _apply(self, message: Control, nexus: str | None) -> None:
        """Take over a control message that is on disk."""
        run = self.runs.get(message.run)
        if isinstance(message, RunOpen) and (run is None or run.open.processed != message.processed):
            run = self.runs[message.run] = RunState(message, nexus=nexus)
            self.runs.move_to_end(message.run)
            self._forget()
        if run is None:
            self._complain(f"{type(message).__name__} for run {message.run}, which isn't open: left out")
            return
        run.control.append(message)
        if isinstance(message, StreamOpen):
            books = self._books[message.run].setdefault((message.stream, message.cfg), Books())
            run.streams[message.stream] = StreamState(message, self._outputs(message), books)
        elif isinstance(message, Expect) and message.stream in run.streams:
            run.streams[message.stream].expected.add(message.first, message.stop)
        elif isinstance(message, RunClose):
            run.totals = {total.stream: total.n for total in message.totals}

    def _outputs(self, message: StreamOpen) -> Outputs:
        found: Outputs = {}
        for spec in message.recipes:
            try:
                found[spec.name] = recipes.outputs(spec, message.inputs, self._build)
            except ReductionError as error:
                # Its workers refuse it too: they quarantine the frames, with this reason.
                self._complain(f"run {message.run}: {error}")
                found[spec.name] = {}
        return found

    # --- completion --------------------------------------------------------------------------------------------------

    def _check_finished(self, run: RunState) -> None:
        if run.completed is None and not run.finishing and run.finished:
            run.finishing = True
            self._finished.append(run.open.run)

    def take_finished(self) -> list[str]:
        """Return the runs of which every frame is on disk since the last call: their files may be closed."""
        finished, self._finished = self._finished, []
        return finished

    def completed(self, uid: str, now: float) -> list[Send]:
        """Take note that the ledger has the run as completed. ``now`` : s since 1970."""
        run = self.runs.get(uid)
        if run is None:
            return []
        run.completed = now
        return [send for peer in self._listeners() for send in self._full(peer, run)]

    def _forget(self) -> None:
        """Forget the oldest completed runs: their books, and their late results' answers."""
        old = [uid for uid, run in self.runs.items() if run.completed is not None][:-REMEMBERED]
        for uid in old:
            del self.runs[uid]
            self._books.pop(uid, None)

    # --- listeners ---------------------------------------------------------------------------------------------------

    def _open_runs(self) -> Iterator[RunState]:
        return (run for run in self.runs.values() if run.completed is None)

    def _listeners(self) -> list[bytes]:
        recorders = [peer for peer, hello in self._peers.items() if hello.role == "recorder"]
        return recorders if self._broker is None else [self._broker, *recorders]

    def _full(self, peer: bytes, run: RunState) -> Iterator[Send]:
        for state in run.streams.values():
            yield from self._full_of(peer, state.open)

    def _full_of(self, peer: bytes, stream: StreamOpen) -> Iterator[Send]:
        books = self._books[stream.run].setdefault((stream.stream, stream.cfg), Books())
        run = self.runs.get(stream.run)
        controls = 0 if run is None else len(run.control)
        for done in _dones((stream.run, stream.stream, stream.cfg), books.done, full=True, controls=controls):
            yield peer, done

    def tick(self, now: float) -> list[Send]:
        """Return what is said from time to time: to the broker, all that is done in open runs."""
        if now < self._next_full:
            return []
        self._next_full = now + FULL_SECONDS
        if self._broker is None:
            return []
        return [send for run in self._open_runs() for send in self._full(self._broker, run)]

    def lost(self, peer: bytes) -> list[Send]:
        """Take note that ``peer`` can't be reached. A broker that comes back must say Hello, and hears everything."""
        self._peers.pop(peer, None)
        if peer == self._broker:
            self._broker = None
        return []

    def unsure(self, peer: bytes) -> list[Send]:
        """Return what to tell a peer that beats but hasn't said Hello to this sink."""
        return [] if peer in self._peers else [(peer, Welcome(1, self._epoch, 0, 0))]

    def status(self) -> dict[str, Any]:
        """Return how things stand, for JSON."""
        recent = list(self.runs.values())[-8:]
        return {
            "role": "sink",
            "epoch": self._epoch,
            "peers": dict(Counter(hello.role for hello in self._peers.values())),
            "buffered_bytes": self._bytes,
            "buffered_rows": len(self._buffer.batches) + (len(self._flight[0].batches) if self._flight else 0),
            "stalled": self._pause > 0,
            **{name: getattr(self.counters, name) for name in self.counters.__slots__},
            "runs": [
                {
                    "run": run.open.run,
                    "processed": run.open.processed,
                    "closed": run.totals is not None,
                    "completed": run.completed,
                    "nexus": run.nexus,
                    "nexus_error": self.nexus_errors.get(run.open.run),
                    "duplicates": run.duplicates,
                    "streams": {
                        name: {
                            key: value
                            for key, value in account(
                                state.books.sets, run.total(name), closed=run.totals is not None
                            ).items()
                            if key != "intervals"
                        }
                        for name, state in run.streams.items()
                    },
                }
                for run in recent
            ],
        }


def _readable(message: Control) -> bool:
    if isinstance(message, StreamOpen | Expect):
        return True
    try:
        return isinstance(json.loads(message.start if isinstance(message, RunOpen) else message.stop), dict)
    except ValueError:
        return False


def _dones(key: tuple[str, str, str], frames: IntervalSet, *, full: bool = False, controls: int = 0) -> Iterator[Done]:
    ranges = frames.ranges()
    for start in range(0, max(len(ranges), 1), MAX_RANGES):
        part = ranges[start : start + MAX_RANGES]
        whole = full and start + MAX_RANGES >= len(ranges)
        yield Done(*key, part, whole, controls if whole else 0)
