"""The ledger's read end: for everybody but the sink's writer, in any process."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import msgspec

from ..errors import FileError
from ..intervals import IntervalSet
from ..wire.messages import STATUS_NAMES, AnyMessage, ArraySpec, Expect, FileSpan, Spilled, StreamOpen, decode
from .rows import BatchRow, ConstRow, RunRow, account, mark, stream_total

_specs = msgspec.msgpack.Decoder(list[ArraySpec])
_spec = msgspec.msgpack.Decoder(ArraySpec)
_reasons = msgspec.msgpack.Decoder(list[tuple[int, str]])

_BATCH_COLUMNS: Final = "seq, run, stream, cfg, first, n, status, reasons, token, worker, committed_at, arrays, payload"
_RUN_COLUMNS: Final = (
    "run, processed, start, opened_at, closed, exit_status, stop, completed, nexus, nexus_error, duplicates"
)


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

    def reductions(self, raw: str) -> list[RunRow]:
        """Return everything that was made of a raw run, oldest first."""
        rows = self._runs("where run=? or instr(start, ?) order by opened_at, rowid", raw, raw.encode())
        return [row for row in rows if row.raw == raw]

    def frames_done(self, uid: str) -> int:
        """Return how many frames of a run the ledger has, of all its streams; cheap enough to be asked often."""
        return int(self._db.execute("select coalesce(sum(n), 0) from batches where run=?", (uid,)).fetchone()[0])

    def firsts(self, uid: str, stream: str, cfg: str) -> list[int]:
        """Return the first frames of the batches that are there, ascending."""
        rows = self._db.execute(
            "select first from batches where run=? and stream=? and cfg=? order by first", (uid, stream, cfg)
        )
        return [first for (first,) in rows]

    def spans(self, uid: str) -> list[FileSpan]:
        """Return where the frames of a run are: as documents told, and after these in files of the pool's own."""
        control = self.control(uid)
        told = [span for message in control if isinstance(message, Expect) for span in message.files]
        return told + [span for message in control if isinstance(message, Spilled) for span in message.files]

    def spilled(self, uid: str) -> dict[str, list[dict[str, Any]]]:
        """Return which files of the pool's own hold frames of a run, per stream, and how many each."""
        rows = self._db.execute("select bytes from control where run=? and kind='Spilled' order by id", (uid,))
        frames: dict[str, dict[tuple[str, str], IntervalSet]] = {}
        for (data,) in rows:
            message = decode(data)
            assert isinstance(message, Spilled)
            for span in message.files:
                files = frames.setdefault(message.stream, {})
                files.setdefault((span.uri, span.dataset), IntervalSet()).add(span.first, span.first + span.n)
        return {
            stream: [{"uri": uri, "dataset": name, "frames": len(held)} for (uri, name), held in files.items()]
            for stream, files in frames.items()
        }

    def drops(self, uid: str) -> dict[str, dict[str, int]]:
        """Return how many frames of each stream were seen to be dropped on their way, by cause.

        As far as is known: what was dropped where nobody looked, or just before the broker that had seen it died, isn't
        among them. Some may lie beyond the frames that were promised.
        """
        query = "select stream, cause, sum(frames) from drops where run=? group by stream, cause order by stream, cause"
        found: dict[str, dict[str, int]] = {}
        if not self._db.execute("select 1 from sqlite_master where type='table' and name='drops'").fetchone():
            return found  # a ledger of before, that no sink has opened since
        for stream, cause, frames in self._db.execute(query, (uid,)):
            found.setdefault(stream, {})[cause] = frames
        return found

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

    def promised(self, uid: str) -> dict[str, int]:
        """Return how many frames of each stream there are: as the run's close said, else as far as was promised."""
        run, expected = self.run(uid), self.expected(uid)
        totals = None if run is None else run.totals
        return {each.stream: stream_total(totals, each.stream, expected.get(each.stream)) for each in self.streams(uid)}

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

    def consts(self, uid: str, stream: str, cfg: str, until: int = 2**62) -> list[ConstRow]:
        """Return the const outputs that have come; with ``until`` those that were there with that ``seq``'s batch."""
        rows = self._db.execute(
            "select run, stream, cfg, spec, payload from consts where run=? and stream=? and cfg=? and after<? "
            "order by rowid",
            (uid, stream, cfg, until),
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
            run don't count. Also ``"drops"``, which needn't add up: see :meth:`drops`; and of a stream that was spilled
            ``"spilled"``: see :meth:`spilled`.
        """
        run = self.run(uid)
        if run is None:
            return {}
        done = self.done(run.run)
        expected = self.expected(run.run)
        spilled = self.spilled(run.run)
        drops = self.drops(run.run)
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
            report[stream.stream]["drops"] = drops.get(stream.stream, {})
            if stream.stream in spilled:
                report[stream.stream]["spilled"] = spilled[stream.stream]
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
