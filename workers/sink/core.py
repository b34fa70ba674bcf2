"""The sink without its sockets and files: what is buffered for the ledger, who is owed an answer, what is complete.

What comes in waits in a buffer until a :class:`~..ledger.rows.Group` of it is committed; only then is anybody answered.
"""

from __future__ import annotations

import logging
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final

from .. import recipes
from ..errors import ReductionError, WireError
from ..intervals import IntervalSet
from ..ledger.rows import BatchRow, Control, Group, Outcome, RunRow
from ..processes.flood import Flood
from ..processes.status_reply import status_reply
from ..wire.messages import (
    Ack,
    AnyMessage,
    Bye,
    Done,
    Drops,
    Expect,
    Hello,
    Message,
    Nack,
    RecipeSpec,
    Result,
    RunClose,
    RunOpen,
    Spilled,
    Status,
    StreamOpen,
    Welcome,
)
from .books import Books, Counters, Outputs, Phase, RunEvent, RunState, StreamState, dones
from .check import check, readable
from .group import MAX_BUFFER, MAX_CONTROLS, Grouping
from .tellers import REASON, Tellers, by_sink, close

log = logging.getLogger(__name__)

FULL_SECONDS: Final = 2.0
"""The broker is told everything that is done so often: a DONE that was lost heals."""

LEASE_MS: Final = 5000
BEAT_MS: Final = 500
MAX_PEERS: Final = 1024
MAX_REASON: Final = 500
"""Letters of why something is refused or failed."""
REMEMBERED: Final = 256
"""Completed runs whose late results are still answered."""

Send = tuple[bytes, Message]
"""A peer's routing id, and what it is told."""


class SinkCore:
    """Takes messages, returns messages and groups to commit.

    Parameters
    ----------
    epoch
        Grows each time the sink starts anew.
    sessions
        The last serial on disk of each dispatcher's session (:meth:`Ledger.sessions`). Serials count from 1.
    tellers
        Who told of the runs that are open.
    build
        Gives a recipe's reducer; its ``outputs`` say what a result must hold.
    """

    def __init__(
        self,
        epoch: int,
        *,
        sessions: dict[int, int] | None = None,
        tellers: Tellers | None = None,
        build: Callable[[RecipeSpec], Any] = recipes.build,
    ) -> None:
        self.counters = Counters()
        self._floods: defaultdict[str, Flood] = defaultdict(Flood)
        self.runs: OrderedDict[str, RunState] = OrderedDict()
        self._epoch = epoch
        self._build = build
        self._books: dict[str, dict[tuple[str, str], Books]] = defaultdict(dict)
        self._peers: OrderedDict[bytes, Hello] = OrderedDict()
        self._broker: bytes | None = None
        self._committed_serials = dict(sessions or {})
        self._serials = dict(self._committed_serials)
        self._tellers = tellers or Tellers()
        self._waiting = Grouping()
        self._next_full = float("-inf")
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
            if isinstance(message, Control):
                self._apply(message, row.nexus)
        state = self.runs.get(row.run)
        if state is not None:
            state.duplicates = row.duplicates
            if row.completed is not None:
                state.completed = row.completed
                state.move(RunEvent.RESTORED)
            self._check_finished(state)

    # --- messages ----------------------------------------------------------------------------------------------------

    def receive(self, peer: bytes, message: AnyMessage, payload: Any, now: float) -> list[Send]:
        """Take a message; ``payload`` (bytes-like or None) came beside it. Return what can be answered at once."""
        if isinstance(message, Result):
            return self._result(peer, message, b"" if payload is None else payload, now)
        if isinstance(message, Spilled) and not message.serial:
            return self._spilled(peer, message, now)
        if isinstance(message, Control):
            return self._control(peer, message, now)
        if isinstance(message, Hello):
            return self._hello(peer, message, now)
        if isinstance(message, Drops):
            return self._drops(peer, message, now)
        if isinstance(message, Bye):
            self._bye(peer, message)
        if isinstance(message, Status):
            return [(peer, status_reply(message.serial, self.status(now)))]
        return []

    def _hello(self, peer: bytes, message: Hello, now: float) -> list[Send]:
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
        elif message.role == "dispatcher":
            self._tellers.hears(message.session, now)
            if message.session in self._committed_serials:
                answer.append((peer, Ack(message.session, self._committed_serials[message.session])))
        return answer

    def _bye(self, peer: bytes, message: Bye) -> None:
        hello = self._peers.get(peer)
        if hello is not None and hello.role == "dispatcher" and hello.session == message.session:
            self._tellers.leaves(message.session)

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
            self._complain(
                f"{hello.name}: control message {serial} came, {(last or 0) + 1} is awaited: left out", "gap"
            )
            return []
        if len(self._waiting.group.control) >= MAX_CONTROLS:
            self.counters.refused += 1
            return []
        self._waiting.begin(now)
        self._tellers.hears(session, now)
        self._serials[session] = self._waiting.group.sessions[session] = serial
        if self._comes_late(message, hello):
            return []
        if readable(message):
            self._waiting.group.control.append((message, None))
            if isinstance(message, RunOpen):
                self._waiting.group.tellers[message.run] = session, hello.name
                self._tellers.opens(message.run, session, hello.name)
            elif isinstance(message, RunClose):
                self._tellers.closes(message.run)
        else:
            self.counters.bad += 1
            self._complain(
                f"{hello.name}: {type(message).__name__} {message.run}: its document is no JSON object", "document"
            )
        return []

    def _comes_late(self, message: Control, hello: Hello) -> bool:
        """Say whether the message is of a run that was closed for want of a session: acknowledged, and left at that."""
        run = self.runs.get(message.run)
        if run is None or not run.abandoned:
            return False
        if isinstance(message, RunOpen):
            return False  # told anew from its documents, it may have other recipes; with the same nothing changes
        self.counters.late += 1
        if not run.late:
            run.late = True
            self._complain(
                f"run {message.run}: {hello.name} goes on to tell of it, but it was closed as its session seemed gone: "
                "left out; `haltere backfill` reduces what the catalog has of it"
            )
        return True

    def _spilled(self, peer: bytes, message: Spilled, now: float) -> list[Send]:
        """Take word of frames in the pool's own files, from the broker; it hears it back when it is on disk."""
        run = self.runs.get(message.run)
        if peer != self._broker or run is None:
            self.counters.unknown += 1
            return self.unsure(peer, now)
        if run.completed is not None:
            return [(peer, message)]  # every frame has its end: nobody needs the file any more
        if len(self._waiting.group.control) >= MAX_CONTROLS:
            self.counters.refused += 1
            return []
        self._waiting.begin(now)
        self._waiting.group.control.append((message, None))
        return []

    def _drops(self, peer: bytes, message: Drops, now: float) -> list[Send]:
        """Take word of what was dropped: it goes to the disk with what does so anyhow, while the account is open."""
        run = self.runs.get(message.run)
        if peer != self._broker:
            self.counters.unknown += 1
            return self.unsure(peer, now)
        if run is not None and message.stream in run.streams and run.phase in (Phase.OPEN, Phase.CLOSED):
            self._waiting.group.drops[message.run, message.stream] = message.epoch, message.causes
        return []

    def _result(self, peer: bytes, message: Result, payload: Any, now: float) -> list[Send]:
        self.counters.results += 1
        run = self.runs.get(message.run)
        stream = run.streams.get(message.stream) if run is not None else None
        known = self._books.get(message.run, {}).get((message.stream, message.cfg))
        answer = Done(message.run, message.stream, message.cfg, [(message.first, message.first + message.n)])
        if known is not None and known.done.covers(message.first, message.first + message.n):
            self._duplicate(message.run)
            self._waiting.begin(now)
            return [(peer, answer)]
        if run is None or stream is None or stream.open.cfg != message.cfg:
            self.counters.unknown += 1
            self._complain(
                f"{message.worker}: a result for {message.run}/{message.stream} {message.cfg}: unknown here", "unknown"
            )
            return []
        if run.totals is not None and message.first >= run.total(message.stream):
            return [(peer, answer)]
        if message.first in stream.books.buffered:
            self._duplicate(message.run)
            return []  # its twin's commit will be answered, and this worker resends until it is told
        if self._waiting.size > MAX_BUFFER:
            self.counters.refused += 1
            return []
        try:
            row, consts = check(message, payload, run, stream)
        except WireError as error:
            self.counters.bad += 1
            self._complain(
                f"{message.worker}: result {message.run}/{message.stream} [{message.first}]: {error}", "result"
            )
            # Sent again it would be refused again: the broker has it reduced anew, and in the end quarantined.
            reason = f"the sink refused the result: {error}"[:MAX_REASON]
            refusal = Nack(message.run, message.stream, message.first, message.n, message.token, -1, reason, False)
            return [(peer, refusal)]
        stream.books.buffered.add(message.first)
        self._waiting.add(row, consts, peer, now)
        return []

    def _duplicate(self, run: str) -> None:
        self.counters.duplicates += 1
        self._waiting.group.duplicates[run] = self._waiting.group.duplicates.get(run, 0) + 1
        if run in self.runs:
            self.runs[run].duplicates += 1

    def _complain(self, text: str, often: str = "") -> None:
        """Say what is wrong; ``often`` names what can come a thousand times a second, and is told now and then."""
        self.counters.last_bad = text[:MAX_REASON]
        if not often or self._floods[often].tell():
            log.warning("%s", text)

    # --- commits -----------------------------------------------------------------------------------------------------

    def wait(self, now: float) -> float:
        """Return how many seconds may pass before something is due."""
        commit = self._waiting.wait(now)
        full = self._next_full - now
        return max(full if commit is None else min(full, commit), 0.0)

    def take(self, now: float, *, all_: bool = False) -> Group | None:
        """Return what is to be committed now, if anything is; with ``all_`` whatever there is."""
        return self._waiting.take(now, all_=all_)

    def committed(self, outcome: Outcome, now: float) -> list[Send]:
        """Take note that the group that :meth:`take` gave is on disk. Return the answers that this sets free."""
        done = self._waiting.committed()
        group = done.group
        self.counters.commits += 1
        answer: list[Send] = []
        for (message, nexus), fresh in zip(group.control, outcome.fresh, strict=True):
            if fresh:
                self._apply(message, nexus, now)
                if self._broker is not None:
                    answer.append((self._broker, message))
                    if isinstance(message, StreamOpen):
                        # It gives out no work of a stream before it has heard what of it is done.
                        answer += self._full_of(self._broker, message)
            elif isinstance(message, Spilled) and self._broker is not None:
                answer.append((self._broker, message))  # said again, because the answer was lost
        by_session = {hello.session: peer for peer, hello in self._peers.items() if hello.role == "dispatcher"}
        for session, serial in group.sessions.items():
            self._committed_serials[session] = serial
            if session in by_session:
                answer.append((by_session[session], Ack(session, serial)))
        answer += self._mark(group.batches, done.askers, outcome.new, now)
        for uid in {row.run for row in group.batches} | {message.run for message, _ in group.control}:
            if uid in self.runs:
                self._check_finished(self.runs[uid])
        return answer

    def _mark(self, rows: Sequence[BatchRow], askers: Sequence[bytes], new: Sequence[bool], now: float) -> list[Send]:
        owed: dict[tuple[bytes, str, str, str], IntervalSet] = defaultdict(IntervalSet)
        listeners = self._listeners()
        for row, asker, fresh in zip(rows, askers, new, strict=True):
            books = self._books[row.run].setdefault((row.stream, row.cfg), Books())
            books.buffered.discard(row.first)
            if fresh:
                books.mark(row.first, row.status)
                books.rate(row.status, now)
                self.counters.frames += row.n
            else:
                # Of a run that was forgotten here, and is told anew by other recipes, the ledger has what is as before.
                if not books.done.covers(row.first, row.first + row.n):
                    books.mark(row.first, row.status)
                self.counters.duplicates += 1
                if row.run in self.runs:
                    self.runs[row.run].duplicates += 1
            for peer in (asker, *listeners):
                owed[peer, row.run, row.stream, row.cfg].add(row.first, row.first + row.n)
        return [
            (peer, done) for (peer, *key), frames in owed.items() for done in dones((key[0], key[1], key[2]), frames)
        ]

    def failed(self, error: Exception, now: float) -> None:
        """Take note that the commit failed: nobody is answered, and it is tried again after a growing pause."""
        self._waiting.failed(error, now)
        self.counters.errors += 1
        self.counters.last_error = str(error)[:MAX_REASON]

    def _apply(self, message: Control, nexus: str | None, now: float | None = None) -> None:
        """Take over a control message that is on disk; ``now`` unless it has been there for long."""
        run = self.runs.get(message.run)
        if isinstance(message, RunOpen) and (run is None or run.open.processed != message.processed):
            run = self.runs[message.run] = RunState(message, nexus=nexus)
            run.read_start()
            self.runs.move_to_end(message.run)
            self._forget()
        if run is None:
            self._complain(f"{type(message).__name__} for run {message.run}, which isn't open: left out")
            return
        run.control.append(message)
        if isinstance(message, StreamOpen):
            books = self._books[message.run].setdefault((message.stream, message.cfg), Books())
            known = run.streams.get(message.stream)
            expected = IntervalSet() if known is None else known.expected
            run.streams[message.stream] = StreamState(message, self._outputs(message), books, expected)
        elif isinstance(message, Expect) and message.stream in run.streams:
            run.streams[message.stream].expected.add(message.first, message.stop)
            if now is not None:
                run.streams[message.stream].books.lag.promise(message.stop, now)
        elif isinstance(message, RunClose):
            run.abandoned |= run.totals is None and by_sink(message)
            run.read_stop(message.stop)
            run.close({total.stream: total.n for total in message.totals})

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
        if run.check():
            self._finished.append(run.open.run)
            # Its NeXus file and its documents are written from one account: nothing is added to that any more.
            self._waiting.withdraw_drops(run.open.run)

    def take_finished(self) -> list[str]:
        """Return the runs of which every frame is on disk since the last call: their files may be closed."""
        finished, self._finished = self._finished, []
        return finished

    def finishing(self, uid: str) -> bool:
        """Say whether the run waits for its NeXus file only. One that is reduced by other recipes meanwhile doesn't."""
        return uid in self.runs and self.runs[uid].phase is Phase.FINISHED

    def completed(self, uid: str, now: float) -> list[Send]:
        """Take note that the ledger has the run, which was :meth:`finishing`, as completed. ``now`` : s since 1970."""
        run = self.runs[uid]
        run.move(RunEvent.WRITTEN)
        run.completed = now
        self._tellers.forget(uid)
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
        if run is not None:
            yield from ((peer, done) for done in dones((stream.run, stream.stream, stream.cfg), books.done, run))

    def tick(self, now: float) -> list[Send]:
        """Return what is said from time to time: to the broker, all that is done in open runs."""
        if now < self._next_full:
            return []
        self._next_full = now + FULL_SECONDS
        if self._broker is None:
            return []
        return [send for run in self._open_runs() for send in self._full(self._broker, run)]

    def close_abandoned(self, now: float, wall: float) -> None:
        """Close the runs whose sessions ended without saying so. ``wall`` : s since 1970.

        One that is reduced from its files stays open: its frames are known, and whoever began it begins it again.
        """
        waiting = [uid for uid, run in self.runs.items() if run.phase is Phase.OPEN and not run.is_from_files]
        for uid in self._tellers.abandoned(waiting, now):
            run = self.runs[uid]
            totals = {stream: run.total(stream) for stream in run.streams}
            self._waiting.begin(now)
            self._waiting.group.control.append((close(run.open, totals, wall), None))
            self._tellers.closes(uid)
            self.counters.abandoned += 1
            log.warning("run %s: %s (%s); closed with %s", uid, REASON, self._tellers.name(uid) or "unknown", totals)

    def lost(self, peer: bytes) -> list[Send]:
        """Take note that ``peer`` can't be reached. A broker that comes back must say Hello, and hears everything."""
        self._peers.pop(peer, None)
        if peer == self._broker:
            self._broker = None
        return []

    def unsure(self, peer: bytes, now: float) -> list[Send]:
        """Take a beat. Return what to tell a peer that hasn't said Hello to this sink."""
        hello = self._peers.get(peer)
        if hello is not None and hello.role == "dispatcher":
            self._tellers.hears(hello.session, now)
        return [] if peer in self._peers else [(peer, Welcome(1, self._epoch, 0, 0))]

    def status(self, now: float) -> dict[str, Any]:
        """Return how things stand, for JSON."""
        recent = list(self.runs.values())[-8:]
        return {
            "role": "sink",
            "epoch": self._epoch,
            "peers": dict(Counter(hello.role for hello in self._peers.values())),
            "buffered_bytes": self._waiting.size,
            "buffered_rows": self._waiting.rows,
            "stalled": self._waiting.stalled,
            **{name: getattr(self.counters, name) for name in self.counters.__slots__},
            "runs": [{**run.report(now), "nexus_error": self.nexus_errors.get(run.open.run)} for run in recent],
        }
