"""The ledger: what was promised and what is done, on disk. Nothing is acknowledged before it is here.

SQLite in WAL mode with ``synchronous=FULL``: a commit is on stable storage when it returns. A batch's key
``(run, stream, cfg, first)`` is its identity, so a redelivery is a duplicate, ignored and counted.

:class:`Ledger` is the sink's, the only writer; :class:`LedgerReader` is for everybody else, in any process.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import msgspec

from .errors import FileError, SettingsError
from .intervals import IntervalSet
from .wire.messages import (
    STATUS_NAMES,
    AnyMessage,
    ArraySpec,
    Expect,
    RunClose,
    RunOpen,
    StreamOpen,
    decode,
    encode,
)

Buffer = bytes | bytearray | memoryview
Control = RunOpen | StreamOpen | Expect | RunClose

_SCHEMA: Final = """
create table if not exists runs(
    run text primary key, processed text not null, start blob not null, opened_at real not null,
    closed text, exit_status text, stop blob, completed real,
    nexus text, nexus_error text, duplicates integer not null default 0);
create table if not exists control(
    id integer primary key, run text not null, digest blob not null, kind text not null, bytes blob not null,
    after integer not null default 0, unique(run, digest));
create table if not exists batches(
    seq integer primary key, run text not null, stream text not null, cfg text not null, first integer not null,
    n integer not null, status blob not null, reasons blob not null, token integer not null, worker text not null,
    committed_at real not null, arrays blob not null, payload blob not null,
    unique(run, stream, cfg, first));
create table if not exists consts(
    run text not null, stream text not null, cfg text not null, recipe text not null, name text not null,
    spec blob not null, payload blob not null,
    primary key(run, stream, cfg, recipe, name));
create table if not exists sessions(session integer primary key, serial integer not null);
"""

_specs = msgspec.msgpack.Decoder(list[ArraySpec])
_spec = msgspec.msgpack.Decoder(ArraySpec)
_reasons = msgspec.msgpack.Decoder(list[tuple[int, str]])
_pack = msgspec.msgpack.Encoder().encode

_BATCH_COLUMNS: Final = "seq, run, stream, cfg, first, n, status, reasons, token, worker, committed_at, arrays, payload"
_RUN_COLUMNS: Final = (
    "run, processed, start, opened_at, closed, exit_status, stop, completed, nexus, nexus_error, duplicates"
)


@dataclass(frozen=True, slots=True)
class BatchRow:
    """One batch as it stands in the ledger. ``seq`` grows with every commit; ``payload`` holds what ``arrays`` says.

    ``status`` : n bytes, one of LIVE, BACKFILLED, QUARANTINED, LOST per frame.
    ``reasons`` : (frame, why) of the frames that are neither live nor backfilled.
    ``arrays`` : nav and acc only; const outputs are kept once, see :meth:`LedgerReader.consts`.
    """

    run: str
    stream: str
    cfg: str
    first: int
    n: int
    status: bytes
    reasons: list[tuple[int, str]]
    token: int
    worker: str
    arrays: list[ArraySpec]
    payload: Buffer
    committed_at: float = 0.0
    seq: int = 0

    @property
    def key(self) -> tuple[str, str, str, int]:
        """The batch's identity."""
        return self.run, self.stream, self.cfg, self.first


@dataclass(frozen=True, slots=True)
class ConstRow:
    """One const output: the same for the whole run. ``spec.offset`` is 0."""

    run: str
    stream: str
    cfg: str
    spec: ArraySpec
    payload: Buffer


@dataclass(frozen=True, slots=True)
class RunRow:
    """One run. ``totals`` is None until it was closed, ``completed`` (s since 1970) until every frame is done."""

    run: str
    processed: str
    start: dict[str, Any]
    opened_at: float
    totals: dict[str, int] | None
    exit_status: str | None
    stop: dict[str, Any] | None
    completed: float | None
    nexus: str | None
    nexus_error: str | None
    duplicates: int


@dataclass(slots=True)
class Group:
    """What is committed at once. ``sessions`` : the last serial of each dispatcher's session in it."""

    control: list[tuple[Control, str | None]] = field(default_factory=list)
    """Each with the path of the run's NeXus file, which only a RunOpen has."""
    batches: list[BatchRow] = field(default_factory=list)
    consts: list[ConstRow] = field(default_factory=list)
    sessions: dict[int, int] = field(default_factory=dict)
    duplicates: dict[str, int] = field(default_factory=dict)
    """Per run: results that were seen to be duplicates before they came here."""

    def __bool__(self) -> bool:
        return bool(self.control or self.batches or self.sessions or self.duplicates)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a commit did: ``fresh[i]`` says whether ``group.control[i]`` was new, ``new[i]`` the same of batches."""

    fresh: list[bool]
    new: list[bool]


class Ledger:
    """The writer's end."""

    def __init__(self, path: Path) -> None:
        """Open or make it.

        Raises
        ------
        SettingsError
            The folder can't be written, or the file is no ledger.
        """
        self.path = path
        try:
            self._db = sqlite3.connect(path, isolation_level=None)
            self._db.execute("pragma journal_mode=wal")
            self._db.execute("pragma synchronous=full")
            self._db.execute("pragma journal_size_limit=67108864")
            self._db.executescript(_SCHEMA)
            if "after" not in {row[1] for row in self._db.execute("pragma table_info(control)")}:
                self._db.execute("alter table control add column after integer not null default 0")
        except sqlite3.Error as error:
            raise SettingsError(f"ledger {path}: {error} (can its folder be written? is it a ledger?)") from None

    def commit(self, group: Group, now: float) -> Outcome:
        """Put a group on stable storage, all of it or nothing. ``now`` : s since 1970.

        Raises
        ------
        sqlite3.Error
            The disk is full, say. Nothing was committed; it may be tried again.
        """
        db = self._db
        db.execute("begin immediate")
        try:
            fresh = [self._add_control(message, nexus, now) for message, nexus in group.control]
            new = [self._add_batch(row, now) for row in group.batches]
            for const in group.consts:
                db.execute(
                    "insert or ignore into consts values(?,?,?,?,?,?,?)",
                    (
                        const.run,
                        const.stream,
                        const.cfg,
                        const.spec.recipe,
                        const.spec.name,
                        _pack(const.spec),
                        const.payload,
                    ),
                )
            for session, serial in group.sessions.items():
                db.execute(
                    "insert into sessions values(?,?) on conflict(session) do update set serial=excluded.serial",
                    (session, serial),
                )
            for run, count in group.duplicates.items():
                db.execute("update runs set duplicates=duplicates+? where run=?", (count, run))
            db.execute("commit")
        except sqlite3.Error:
            if db.in_transaction:
                db.execute("rollback")
            raise
        return Outcome(fresh, new)

    def _add_control(self, message: Control, nexus: str | None, now: float) -> bool:
        db = self._db
        # The serial is the conversation's, not the content's: a dispatcher that starts anew counts from 1 again.
        digest = hashlib.sha256(encode(msgspec.structs.replace(message, serial=0))).digest()
        if isinstance(message, RunOpen):
            known = db.execute("select processed from runs where run=?", (message.run,)).fetchone()
            if known is not None and known[0] != message.processed:
                # The same raw run under other recipes: a new processed run. What is done under the same cfg stays.
                db.execute("delete from control where run=?", (message.run,))
                db.execute("delete from runs where run=?", (message.run,))
        row = (message.run, digest, type(message).__name__, encode(message))
        added = db.execute(
            "insert or ignore into control(run,digest,kind,bytes,after) "
            "values(?,?,?,?,(select coalesce(max(seq), 0) from batches))",
            row,
        )
        if not added.rowcount:
            return False
        if isinstance(message, RunOpen):
            # Later runs have later times, whatever the clock does: readers tell new runs from old ones by it.
            (latest,) = db.execute("select max(opened_at) from runs").fetchone()
            db.execute(
                "insert or ignore into runs(run,processed,start,opened_at,nexus) values(?,?,?,?,?)",
                (message.run, message.processed, message.start, max(now, (latest or 0.0) + 2e-6), nexus),
            )
        elif isinstance(message, RunClose):
            totals = json.dumps({total.stream: total.n for total in message.totals})
            db.execute(
                "update runs set closed=?, exit_status=?, stop=? where run=?",
                (totals, message.exit_status, message.stop, message.run),
            )
        return True

    def _add_batch(self, row: BatchRow, now: float) -> bool:
        done = self._db.execute(
            "insert or ignore into batches(run,stream,cfg,first,n,status,reasons,token,worker,committed_at,arrays,"
            "payload) values(?,?,?,?,?,?,?,?,?,?,?,?)",
            (
                *row.key,
                row.n,
                row.status,
                _pack(row.reasons),
                row.token,
                row.worker,
                now,
                _pack(row.arrays),
                row.payload,
            ),
        )
        if done.rowcount:
            return True
        self._db.execute("update runs set duplicates=duplicates+1 where run=?", (row.run,))
        return False

    def complete(self, run: str, now: float, nexus_error: str | None = None) -> None:
        """Note that every frame of the run is done and its NeXus file closed, or given up for that reason."""
        self._db.execute("update runs set completed=?, nexus_error=? where run=?", (now, nexus_error, run))

    def has_path(self, path: str) -> bool:
        """Return whether a run's NeXus file has this path already."""
        return self._db.execute("select 1 from runs where nexus=?", (path,)).fetchone() is not None

    def sessions(self) -> dict[int, int]:
        """Return the last serial of each dispatcher's session that is on disk."""
        return dict(self._db.execute("select session, serial from sessions").fetchall())

    def close(self) -> None:
        """Close it. May be called again."""
        self._db.close()


class LedgerReader:
    """A reader's end: its own read-only connection, in any process, while the sink writes. Use it in one thread."""

    def __init__(self, path: Path) -> None:
        """Open it.

        Raises
        ------
        FileError
            There is none yet (has the sink started?), or it can't be read.
        """
        self.path = path
        try:
            self._db = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, isolation_level=None)
            self._db.execute("select 1 from sessions limit 1").fetchone()
        except sqlite3.Error as error:
            raise FileError(f"ledger {path} can't be read: {error} (has the sink started?)") from None

    def open_runs(self) -> list[RunRow]:
        """Return the runs that aren't completed, oldest first."""
        return self._runs("where completed is null order by opened_at, rowid")

    def runs(self, limit: int = 100) -> list[RunRow]:
        """Return the last runs, newest first."""
        return self._runs("order by opened_at desc, rowid desc limit ?", limit)

    def run(self, uid: str) -> RunRow | None:
        """Return a run by its raw uid, or by that of its processed run."""
        return next(iter(self._runs("where run=? or processed=? order by run=? desc", uid, uid, uid)), None)

    def _runs(self, condition: str, *values: Any) -> list[RunRow]:
        rows = self._db.execute(f"select {_RUN_COLUMNS} from runs {condition}", values).fetchall()
        return [
            RunRow(
                run,
                processed,
                json.loads(start),
                opened_at,
                json.loads(closed) if closed is not None else None,
                exit_status,
                json.loads(stop) if stop is not None else None,
                *rest,
            )
            for run, processed, start, opened_at, closed, exit_status, stop, *rest in rows
        ]

    def control(self, uid: str) -> list[AnyMessage]:
        """Return a run's control messages in the order in which they came."""
        rows = self._db.execute("select bytes from control where run=? order by id", (uid,))
        return [decode(data) for (data,) in rows]

    def control_since(self, uid: str, number: int) -> list[tuple[int, int, AnyMessage]]:
        """Return a run's control messages after the ``number``-th of the ledger, in the order in which they came.

        Returns
        -------
        list of (number, after, message)
            ``after`` is the ``seq`` of the last batch that was in the ledger before the message.
        """
        rows = self._db.execute("select id, after, bytes from control where run=? and id>? order by id", (uid, number))
        return [(number, after, decode(data)) for number, after, data in rows]

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """Let everything that is read be of one moment. Keep it short: the sink's log grows meanwhile."""
        self._db.execute("begin")
        try:
            yield
        finally:
            self._db.execute("commit")

    def streams(self, uid: str) -> list[StreamOpen]:
        """Return a run's streams; of several cfgs for one stream the last."""
        rows = self._db.execute("select bytes from control where run=? and kind='StreamOpen' order by id", (uid,))
        found: dict[str, StreamOpen] = {}
        for (data,) in rows:
            message = decode(data)
            assert isinstance(message, StreamOpen)
            found[message.stream] = message
        return list(found.values())

    def expected(self, uid: str) -> dict[str, IntervalSet]:
        """Return the frames of each stream that were promised by documents so far."""
        rows = self._db.execute("select bytes from control where run=? and kind='Expect' order by id", (uid,))
        found: dict[str, IntervalSet] = {}
        for (data,) in rows:
            message = decode(data)
            assert isinstance(message, Expect)
            found.setdefault(message.stream, IntervalSet()).add(message.first, message.stop)
        return found

    def batches(
        self,
        uid: str,
        stream: str,
        cfg: str,
        from_first: int = 0,
        limit: int = 64,
        *,
        gapless: bool = False,
        until: int = 2**62,
    ) -> list[BatchRow]:
        """Return at most ``limit`` batches in the order of their frames, from ``from_first`` on.

        With ``gapless`` only those that follow one another without a hole, the first of them at ``from_first``; with
        ``until`` only those whose ``seq`` isn't above it.
        """
        rows = self._db.execute(
            f"select {_BATCH_COLUMNS} from batches where run=? and stream=? and cfg=? and first>=? and seq<=? "
            "order by first limit ?",
            (uid, stream, cfg, from_first, until, limit),
        )
        found: list[BatchRow] = []
        for values in rows:
            row = _batch_row(values)
            if gapless and row.first != from_first:
                break
            from_first = row.first + row.n
            found.append(row)
        return found

    def since(self, uid: str, seq: int, limit: int = 64) -> list[BatchRow]:
        """Return at most ``limit`` batches of a run in the order of their commits, after ``seq``."""
        # "+run" keeps SQLite on the row number's own order, instead of sorting the whole run by it.
        rows = self._db.execute(
            f"select {_BATCH_COLUMNS} from batches where seq>? and +run=? order by seq limit ?", (seq, uid, limit)
        )
        return [_batch_row(values) for values in rows]

    def after(self, seq: int, limit: int = 64) -> list[BatchRow]:
        """Return at most ``limit`` batches of all runs in the order of their commits, after ``seq``."""
        rows = self._db.execute(f"select {_BATCH_COLUMNS} from batches where seq>? order by seq limit ?", (seq, limit))
        return [_batch_row(values) for values in rows]

    def last_seq(self) -> int:
        """Return the last batch's ``seq``, 0 if there is none."""
        return int(self._db.execute("select coalesce(max(seq), 0) from batches").fetchone()[0])

    def consts(self, uid: str, stream: str, cfg: str) -> list[ConstRow]:
        """Return the const outputs that have come."""
        rows = self._db.execute(
            "select run, stream, cfg, spec, payload from consts where run=? and stream=? and cfg=?",
            (uid, stream, cfg),
        )
        return [ConstRow(run, st, hashed, _spec.decode(spec), payload) for run, st, hashed, spec, payload in rows]

    def done(self, uid: str) -> dict[tuple[str, str], tuple[IntervalSet, ...]]:
        """Return per (stream, cfg) the frames that are done, one set for each status."""
        rows = self._db.execute("select stream, cfg, first, status from batches where run=? order by first", (uid,))
        found: dict[tuple[str, str], tuple[IntervalSet, ...]] = {}
        for stream, cfg, first, status in rows:
            sets = found.setdefault((stream, cfg), tuple(IntervalSet() for _ in STATUS_NAMES))
            mark(sets, first, status)
        return found

    def accounting(self, uid: str) -> dict[str, dict[str, Any]]:
        """Return what became of every promised frame, per stream.

        Returns
        -------
        dict
            ``{"eiger": {"expected": 2400, "live": 2390, "backfilled": 10, "quarantined": 0, "lost": 0,
            "intervals": {"live": [[0, 60], …], …}, "reasons": {"4031": "…"}}}``. Frames beyond the total of a closed
            run don't count.
        """
        run = self.run(uid)
        if run is None:
            return {}
        done = self.done(run.run)
        expected = self.expected(run.run)
        report: dict[str, dict[str, Any]] = {}
        for stream in self.streams(run.run):
            sets = done.get((stream.stream, stream.cfg), tuple(IntervalSet() for _ in STATUS_NAMES))
            total = stream_total(run.totals, stream.stream, expected.get(stream.stream))
            report[stream.stream] = account(sets, total, closed=run.totals is not None)
            reasons: dict[str, str] = {}
            for (data,) in self._db.execute(
                "select reasons from batches where run=? and stream=? and cfg=? and length(reasons)>1 order by first",
                (run.run, stream.stream, stream.cfg),
            ):
                reasons.update((str(frame), why) for frame, why in _reasons.decode(data) if frame < total)
            report[stream.stream]["reasons"] = reasons
        return report

    def close(self) -> None:
        """Close it. May be called again."""
        self._db.close()


def _batch_row(values: Sequence[Any]) -> BatchRow:
    seq, run, stream, cfg, first, n, status, reasons, token, worker, committed_at, arrays, payload = values
    return BatchRow(
        run,
        stream,
        cfg,
        first,
        n,
        status,
        _reasons.decode(reasons),
        token,
        worker,
        _specs.decode(arrays),
        payload,
        committed_at,
        seq,
    )


def mark(sets: tuple[IntervalSet, ...], first: int, status: bytes) -> None:
    """Add a batch's frames to the sets of their statuses."""
    start = 0
    for stop in range(1, len(status) + 1):
        if stop == len(status) or status[stop] != status[start]:
            sets[status[start]].add(first + start, first + stop)
            start = stop


def stream_total(totals: dict[str, int] | None, stream: str, expected: IntervalSet | None) -> int:
    """Return how many frames of a stream there are: as the run's close said, else as far as documents promised."""
    if totals is not None and stream in totals:
        return totals[stream]
    ranges = expected.ranges() if expected is not None else []
    return ranges[-1][1] if ranges else 0


def account(sets: tuple[IntervalSet, ...], total: int, *, closed: bool) -> dict[str, Any]:
    """Return counts and intervals of each status; of a closed run only below ``total``."""
    intervals = {
        name: [[a, min(b, total) if closed else b] for a, b in each.ranges() if not closed or a < total]
        for name, each in zip(STATUS_NAMES, sets, strict=True)
    }
    counts = {name: sum(b - a for a, b in ranges) for name, ranges in intervals.items()}
    return {"expected": total, **counts, "intervals": intervals}
