"""The ledger: what was promised and what is done, on disk. Nothing is acknowledged before it is here.

SQLite in WAL mode with ``synchronous=FULL``: a commit is on stable storage when it returns. A batch's key
``(run, stream, cfg, first)`` is its identity, so a redelivery is a duplicate, ignored and counted.

:class:`Ledger` is the sink's, the only writer; :class:`~.reader.LedgerReader` is for everybody else, in any
process.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from pathlib import Path
from typing import Final

import msgspec

from ..errors import SettingsError
from ..wire.messages import RunClose, RunOpen, encode
from .rows import BatchRow, ConstRow, Control, Group, Outcome

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
    spec blob not null, payload blob not null, after integer not null default 0,
    primary key(run, stream, cfg, recipe, name));
create table if not exists drops(
    run text not null, stream text not null, epoch integer not null, cause text not null, frames integer not null,
    primary key(run, stream, epoch, cause));
create table if not exists sessions(session integer primary key, serial integer not null);
create table if not exists tellers(run text primary key, session integer not null, name text not null);
"""

_pack = msgspec.msgpack.Encoder().encode


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
            # Payloads are hundreds of kB: pages of 16 kB, copied to the database 64 MiB at a time, cost a third to a
            # half less.
            self._db.execute("pragma page_size=16384")
            self._db.execute("pragma journal_mode=wal")
            self._db.execute("pragma wal_autocheckpoint=4096")
            self._db.execute("pragma synchronous=full")
            self._db.execute("pragma journal_size_limit=67108864")
            self._db.executescript(_SCHEMA)
            for table in ("control", "consts"):
                if "after" not in {row[1] for row in self._db.execute(f"pragma table_info({table})")}:
                    self._db.execute(f"alter table {table} add column after integer not null default 0")
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
        outcome: Outcome | None = None
        try:
            if db.in_transaction:  # that of a commit that failed, and couldn't be taken back then
                db.execute("rollback")
            db.execute("begin immediate")
            fresh = [self._add_control(message, nexus, now) for message, nexus in group.control]
            for const in group.consts:  # before the batches, so that each of them is known to come after
                self._add_const(const)
            new = [self._add_batch(row, now) for row in group.batches]
            for session, serial in group.sessions.items():
                db.execute(
                    "insert into sessions values(?,?) on conflict(session) do update set serial=excluded.serial",
                    (session, serial),
                )
            for run, (session, name) in group.tellers.items():
                db.execute("insert or replace into tellers values(?,?,?)", (run, session, name))
            for run, count in group.duplicates.items():
                db.execute("update runs set duplicates=duplicates+? where run=? and completed is null", (count, run))
            self._add_drops(group)
            outcome = Outcome(fresh, new)
            db.execute("commit")
        except sqlite3.Error:
            if db.in_transaction:
                db.execute("rollback")
                raise
            # The error may have come when all was on disk. Tried again it would look as if somebody else had done it.
            if outcome is None or not self._holds(group):
                raise
        return outcome

    def _add_control(self, message: Control, nexus: str | None, now: float) -> bool:
        db = self._db
        digest = _digest(message)
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
                "update runs set closed=?, exit_status=?, stop=? where run=? and closed is null",
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
        # Of a complete run none is counted any more: its documents say how many there were.
        self._db.execute("update runs set duplicates=duplicates+1 where run=? and completed is null", (row.run,))
        return False

    def _add_drops(self, group: Group) -> None:
        rows = [(run, st, epoch, *each) for (run, st), (epoch, causes) in group.drops.items() for each in causes]
        for row in rows:
            # What an epoch's broker says only grows: said late it changes nothing.
            self._db.execute(
                "insert into drops select ?,?,?,?,? where exists(select 1 from runs where run=? and completed is null) "
                "on conflict(run,stream,epoch,cause) do update set frames=max(frames, excluded.frames)",
                (*row, row[0]),
            )

    def _holds(self, group: Group) -> bool:
        """Return whether all of a group is in the ledger."""
        one = self._db.execute
        return (
            all(
                one("select 1 from control where run=? and digest=?", (message.run, _digest(message))).fetchone()
                for message, _ in group.control
            )
            and all(
                one("select 1 from batches where run=? and stream=? and cfg=? and first=?", row.key).fetchone()
                for row in group.batches
            )
            and all(
                one("select 1 from sessions where session=? and serial>=?", pair).fetchone()
                for pair in group.sessions.items()
            )
        )

    def _add_const(self, const: ConstRow) -> None:
        self._db.execute(
            "insert or ignore into consts(run,stream,cfg,recipe,name,spec,payload,after) "
            "values(?,?,?,?,?,?,?,(select coalesce(max(seq), 0) from batches))",
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

    def complete(self, run: str, now: float, nexus_error: str | None = None) -> None:
        """Note that every frame of the run is done and its NeXus file closed, or given up for that reason."""
        self._db.execute(
            "update runs set completed=?, nexus_error=? where run=? and completed is null", (now, nexus_error, run)
        )

    def has_path(self, path: str) -> bool:
        """Return whether a run's NeXus file has this path already."""
        return self._db.execute("select 1 from runs where nexus=?", (path,)).fetchone() is not None

    def sessions(self) -> dict[int, int]:
        """Return the last serial of each dispatcher's session that is on disk."""
        return dict(self._db.execute("select session, serial from sessions").fetchall())

    def tellers(self) -> dict[str, tuple[int, str]]:
        """Return, of each run that isn't complete, the session that told of it, and its name."""
        rows = self._db.execute(
            "select run, session, name from tellers where run in (select run from runs where completed is null)"
        )
        return {run: (session, name) for run, session, name in rows}

    def close(self) -> None:
        """Close it. May be called again."""
        self._db.close()


def _digest(message: Control) -> bytes:
    # The serial is the conversation's, not the content's: a dispatcher that starts anew counts from 1 again.
    return hashlib.sha256(encode(msgspec.structs.replace(message, serial=0))).digest()
