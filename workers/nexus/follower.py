"""What keeps the runs' NeXus files up with the ledger, in a thread of its own.

It reads what was committed, in the order of the commits, so a file that failed, or whose sink died, is written anew
from the ledger; and a slow or full disk behind the files never holds up a commit.
"""

from __future__ import annotations

import logging
import shutil
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, Final, NamedTuple

from .. import recipes
from ..errors import FileError, ReductionError
from ..ledger.reader import LedgerReader
from ..ledger.rows import BatchRow, RunRow, stream_total
from ..wire.messages import Expect, RecipeSpec, Spilled, StreamOpen
from .file import NexusFile, Outputs

log = logging.getLogger(__name__)

FLUSH_SECONDS: Final = 0.1
"""Readers see results so much later at most; each flush costs about a millisecond."""

READ: Final = 64
FIRST_PAUSE: Final = 0.5
LONGEST_PAUSE: Final = 30.0
RESERVE: Final = 32 << 20
"""Bytes that stay free on the disk. HDF5 doesn't survive a write that finds no room: a file of which one failed kills
the process when it is closed. So nothing is written that might."""

NO_ROOM_PAUSE: Final = 1.0
NO_ROOM_TRIES: Final = 60
"""So often room is looked for once a run is complete, before its file is given up."""

LAST_TRIES: Final = 3
"""So often a completed run's file is tried again before it is given up; the results stay in the ledger."""

_FAULTS: Final = (OSError, RuntimeError, ValueError, KeyError, TypeError, sqlite3.Error)
"""What h5py and SQLite raise when a disk is full, a folder gone, or a file cut."""


class NoRoom(OSError):
    """The disk of a NeXus file is full, or nearly. What was written so far is whole."""


class Report(NamedTuple):
    """A run's file is closed (``error`` None) or given up; or, not ``final``, failed and will be tried again."""

    run: str
    error: str | None
    final: bool


@dataclass(slots=True)
class _Following:
    row: RunRow
    files: list[NexusFile] = field(default_factory=list)
    seq: int = 0
    spans: int = 0
    consts: set[tuple[str, str, str, str]] = field(default_factory=set)
    touched: bool = True
    finishing: bool = False
    failures: int = 0
    no_room: int = 0
    """Times in a row that its disk had none."""
    retry_at: float = 0.0


class NexusFollower(threading.Thread):
    """Follows a ledger. Everything but :meth:`touch`, :meth:`finish`, :meth:`reports` and :meth:`close` is its own.

    Parameters
    ----------
    ledger
        The ledger's path.
    notify
        Called, in this thread, after each report.
    build
        Gives a recipe's reducer; its ``outputs`` say what a file must have room for.
    """

    def __init__(
        self,
        ledger: Path,
        notify: Callable[[], None] = lambda: None,
        *,
        build: Callable[[RecipeSpec], Any] = recipes.build,
    ) -> None:
        super().__init__(name="nexus", daemon=True)
        self._path = ledger
        self._notify = notify
        self._build = build
        self._wake = threading.Condition()
        self._touched: set[str] = set()
        self._finishing: set[str] = set()
        self._closing = False
        self._reports: SimpleQueue[Report] = SimpleQueue()
        self._runs: dict[str, _Following] = {}
        self._ended: set[str] = set()
        """Processed runs whose files are closed: what still comes for them belongs to no frame that was promised."""

    def touch(self, runs: Sequence[str]) -> None:
        """Say that something of these runs was committed."""
        if runs:
            with self._wake:
                self._touched.update(runs)
                self._wake.notify()

    def finish(self, run: str) -> None:
        """Say that everything of a run is in the ledger: write the rest and close its file."""
        with self._wake:
            self._finishing.add(run)
            self._wake.notify()

    def reports(self) -> list[Report]:
        """Return what has happened since the last call."""
        found = []
        while True:
            try:
                found.append(self._reports.get_nowait())
            except Empty:
                return found

    def close(self, timeout: float = 10.0) -> None:
        """Write what is committed, leave unfinished files readable, and end."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        if self.is_alive():
            self.join(timeout)

    def run(self) -> None:
        """Follow until closed."""
        reader: LedgerReader | None = None
        next_flush = 0.0
        while True:
            with self._wake:
                self._wake.wait_for(self._news, self._timeout())
                closing = self._closing
                touched, self._touched = self._touched, set()
                finishing, self._finishing = self._finishing, set()
                if not finishing and not closing:
                    # Together with its next commits: what was written 20 ms ago need not be flushed alone.
                    self._wake.wait_for(lambda: self._closing or self._finishing, next_flush - time.monotonic())
                    finishing |= self._finishing
                    self._finishing = set()
            try:
                reader = reader or LedgerReader(self._path)
                self._adopt(reader, touched, finishing)
            except (FileError, sqlite3.Error) as error:
                log.error("NeXus files: %s", error)
                with self._wake:
                    self._touched |= touched
                    self._finishing |= finishing
                    self._wake.wait_for(lambda: self._closing, FIRST_PAUSE)
                if not closing:
                    continue
            if reader is not None:
                now = time.monotonic()
                for uid, state in list(self._runs.items()):
                    if (state.touched or state.finishing) and (now >= state.retry_at or closing):
                        self._advance(reader, uid, state)
            next_flush = time.monotonic() + FLUSH_SECONDS
            if closing:
                break
        for state in self._runs.values():
            for file in state.files:
                file.discard()
        if reader is not None:
            reader.close()

    def _news(self) -> bool:
        return bool(self._closing or self._touched or self._finishing)

    def _timeout(self) -> float | None:
        waiting = [state.retry_at for state in self._runs.values() if state.touched or state.finishing]
        return max(min(waiting) - time.monotonic(), 0.0) if waiting else None

    def _adopt(self, reader: LedgerReader, touched: set[str], finishing: set[str]) -> None:
        for uid in touched | finishing:
            row = reader.run(uid)
            if row is None or row.processed in self._ended:
                continue
            if row.nexus is None:
                if uid in finishing:
                    self._report(Report(uid, None, True))
                continue
            known = self._runs.get(uid)
            if known is not None and known.row.processed != row.processed:
                for file in known.files:
                    file.discard()
                known = None
            if known is None:
                known = self._runs[uid] = _Following(row)
            known.row = row
            known.touched = True
            known.finishing |= uid in finishing

    def _advance(self, reader: LedgerReader, uid: str, state: _Following) -> None:
        try:
            state.row = reader.run(uid) or state.row
            self._write(reader, state)
            if state.finishing:
                self._finish(reader, state)
                self._end(uid, state)
                self._report(Report(uid, None, True))
            elif state.files:
                state.failures = state.no_room = 0
            state.touched = False
        except NoRoom as error:
            self._wait_for_room(uid, state, error)
        except _FAULTS as error:
            self._failed(uid, state, error)

    def _finish(self, reader: LedgerReader, state: _Following) -> None:
        """Close the run's files, without what a detector was ahead of the scan when that ended."""
        uid = state.row.run
        expected = reader.expected(uid)
        totals = {}
        for stream in reader.streams(uid):
            total = totals[stream.stream] = stream_total(state.row.totals, stream.stream, expected.get(stream.stream))
            files = [file for file in state.files if file.has(stream.stream, stream.cfg)]
            first = max(total - stream.batch + 1, 0)
            while rows := reader.batches(uid, stream.stream, stream.cfg, first):
                for row in rows:
                    if row.first >= total:
                        for file in files:
                            file.withdraw(row)
                first = rows[-1].first + 1
        closed = replace(state.row, totals=totals)
        account = reader.accounting(uid) if state.files else {}
        for file in state.files:
            file.finish(closed, account)

    def _wait_for_room(self, uid: str, state: _Following, error: NoRoom) -> None:
        """Leave the files as they are, and look again later: what they lack is in the ledger."""
        if state.finishing and state.no_room >= NO_ROOM_TRIES:
            state.failures = LAST_TRIES
            self._failed(uid, state, error)
            return
        if not state.no_room:
            log.error("NeXus file %s; waiting for room", error)
        state.no_room += 1
        state.retry_at = time.monotonic() + NO_ROOM_PAUSE
        self._report(Report(uid, str(error)[:500], False))

    def _failed(self, uid: str, state: _Following, error: Exception) -> None:
        state.failures += 1
        for file in state.files:
            file.abandon()
        pause = min(FIRST_PAUSE * 2 ** (state.failures - 1), LONGEST_PAUSE)
        text = f"{state.row.nexus}: {type(error).__name__}: {error}"
        given_up = state.finishing and state.failures >= LAST_TRIES
        log.error("NeXus file %s; %s", text, "given up" if given_up else f"writing it anew in {pause:.1f} s")
        if given_up:
            self._end(uid, state)
        else:
            fresh = _Following(state.row, finishing=state.finishing, failures=state.failures)
            fresh.retry_at = time.monotonic() + pause
            self._runs[uid] = fresh
        self._report(Report(uid, text[:500], given_up))

    def _end(self, uid: str, state: _Following) -> None:
        del self._runs[uid]
        self._ended.add(state.row.processed)

    def _write(self, reader: LedgerReader, state: _Following) -> None:
        uid = state.row.run
        while rows := reader.since(uid, state.seq, READ):
            self._check_room(state)
            for row in rows:
                file = self._file_for(reader, state, row)
                if file is not None:
                    file.write(row)
                state.seq = row.seq
        if not state.files and state.finishing:
            self._create(reader, state, reader.streams(uid), "")
        if not state.files:
            return
        self._check_room(state)
        self._write_consts(reader, state)
        spans = [
            (message.stream, message.files)
            for message in (reader.control(uid) if state.finishing or state.row.totals is not None else [])
            if isinstance(message, Expect | Spilled)
        ]
        for stream, found in spans[state.spans :]:
            for file in state.files:
                file.add_spans(stream, found)
        state.spans = max(state.spans, len(spans))
        for file in state.files:
            file.flush()

    @staticmethod
    def _check_room(state: _Following) -> None:
        assert state.row.nexus is not None
        free = shutil.disk_usage(Path(state.row.nexus).parent).free
        if free < RESERVE:
            raise NoRoom(f"{state.row.nexus}: its disk has {free >> 20} MiB free, and {RESERVE >> 20} are kept so")

    def _write_consts(self, reader: LedgerReader, state: _Following) -> None:
        for stream in reader.streams(state.row.run):
            for const in reader.consts(state.row.run, stream.stream, stream.cfg):
                key = (const.stream, const.cfg, const.spec.recipe, const.spec.name)
                if key in state.consts:
                    continue
                for file in state.files:
                    if file.has(const.stream, const.cfg):
                        file.write_const(const)
                        state.consts.add(key)

    def _file_for(self, reader: LedgerReader, state: _Following, row: BatchRow) -> NexusFile | None:
        for file in state.files:
            if file.has(row.stream, row.cfg):
                return file
        streams = reader.streams(state.row.run)
        if not any((stream.stream, stream.cfg) == (row.stream, row.cfg) for stream in streams):
            return None  # of recipes that the run was opened with before, and isn't any more
        if not state.files:
            return self._create(reader, state, streams, "")
        # SWMR lets nothing be added to a file: a stream that was opened late gets one of its own.
        late = [stream for stream in streams if not any(file.has(stream.stream, stream.cfg) for file in state.files)]
        log.warning("run %s: stream %s was opened late: it gets a file of its own", state.row.run, row.stream)
        return self._create(reader, state, late, f"-{row.stream}")

    def _create(self, reader: LedgerReader, state: _Following, streams: list[StreamOpen], suffix: str) -> NexusFile:
        assert state.row.nexus is not None
        path = Path(state.row.nexus)
        file = NexusFile(
            path.with_name(f"{path.stem}{suffix}{path.suffix}"),
            state.row,
            [(stream, self._outputs(stream)) for stream in streams],
        )
        state.files.append(file)
        return file

    def _outputs(self, stream: StreamOpen) -> Outputs:
        found = {}
        for spec in stream.recipes:
            try:
                found[spec.name] = recipes.outputs(spec, stream.inputs, self._build)
            except ReductionError as error:
                log.error("run %s: %s", stream.run, error)
                found[spec.name] = {}
        return found

    def _report(self, report: Report) -> None:
        self._reports.put(report)
        self._notify()
