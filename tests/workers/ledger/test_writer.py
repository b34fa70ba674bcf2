"""The ledger: what was committed stays, each batch once, whoever is killed."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import threading
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from haltere.workers.errors import FileError, SettingsError
from haltere.workers.intervals import IntervalSet
from haltere.workers.ledger.lock import only_writer, writer_of
from haltere.workers.ledger.reader import LedgerReader
from haltere.workers.ledger.rows import ConstRow, Group, Outcome, account, mark, stream_total
from haltere.workers.ledger.writer import Ledger
from haltere.workers.payload import Piece, pack, unpack
from haltere.workers.wire.messages import LOST, QUARANTINED, RunOpen, StreamOpen

from ..flying import BATCH, EIGER, FRAMES, PROCESSED, RUN, control, row, run_close, run_open


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db"


@pytest.fixture
def ledger(path: Path) -> Ledger:
    made = Ledger(path)
    made.commit(Group(control=[(message, "/x/scan_00017.nxs") for message in control()]), 1000.0)
    return made


def test_a_batch_comes_back_as_it_went_in(ledger: Ledger, path: Path) -> None:
    ledger.commit(Group(batches=[row(0)]), 1001.0)
    (back,) = LedgerReader(path).batches(RUN, "eiger", "cfg-a")
    assert (back.first, back.n, back.status, back.committed_at) == (0, BATCH, bytes(BATCH), 1001.0)
    pieces = {piece.name: piece.array for piece in unpack(back.arrays, back.payload, back.n)}
    expected = {piece.name: piece.array for piece in unpack(row(0).arrays, row(0).payload, BATCH)}
    assert pieces.keys() == expected.keys()
    assert all(np.array_equal(pieces[name], expected[name]) for name in pieces)


def test_a_batch_that_comes_twice_counts_once_and_is_counted(ledger: Ledger, path: Path) -> None:
    assert ledger.commit(Group(batches=[row(0)]), 1.0).new == [True]
    assert ledger.commit(Group(batches=[row(0), row(4)]), 2.0).new == [False, True]
    reader = LedgerReader(path)
    assert [batch.first for batch in reader.batches(RUN, "eiger", "cfg-a")] == [0, 4]
    run = reader.run(RUN)
    assert run is not None
    assert run.duplicates == 1


def test_a_control_message_is_known_by_its_content_not_by_its_serial(ledger: Ledger) -> None:
    again = [(RunOpen(99, RUN, PROCESSED, run_open().start), None)]
    assert ledger.commit(Group(control=[*again]), 2.0).fresh == [False]


def test_batches_come_in_the_order_of_their_frames_and_of_their_commits(ledger: Ledger, path: Path) -> None:
    for first in (8, 0, 4, 16):
        ledger.commit(Group(batches=[row(first)]), 1.0)
    reader = LedgerReader(path)
    assert [batch.first for batch in reader.batches(RUN, "eiger", "cfg-a", 4)] == [4, 8, 16]
    assert [batch.first for batch in reader.batches(RUN, "eiger", "cfg-a", limit=2)] == [0, 4]
    assert [batch.first for batch in reader.batches(RUN, "eiger", "cfg-a", gapless=True)] == [0, 4, 8]
    assert [batch.first for batch in reader.batches(RUN, "eiger", "cfg-a", 12, gapless=True)] == []
    assert [batch.first for batch in reader.since(RUN, 0)] == [8, 0, 4, 16]
    last = reader.since(RUN, 0)[1].seq
    assert [batch.first for batch in reader.since(RUN, last)] == [4, 16]


def test_every_frame_is_accounted_for_by_kind_with_its_reason(ledger: Ledger, path: Path) -> None:
    ledger.commit(Group(batches=[row(0), row(4, status=[0, QUARANTINED, 1, LOST])]), 1.0)
    account = LedgerReader(path).accounting(RUN)["eiger"]
    assert account["expected"] == FRAMES
    assert account["intervals"] == {
        "live": [[0, 5]],
        "backfilled": [[6, 7]],
        "quarantined": [[5, 6]],
        "lost": [[7, 8]],
    }
    assert [account[kind] for kind in ("live", "backfilled", "quarantined", "lost")] == [5, 1, 1, 1]
    assert account["reasons"] == {"5": "bad chunk", "7": "bad chunk"}


def test_drops_are_counted_once_however_often_and_by_however_many_brokers_they_are_told(
    ledger: Ledger, path: Path
) -> None:
    for epoch, causes in (
        (5, [("ring-full", 3)]),
        (5, [("ring-full", 4), ("decimated", 20)]),
        (5, [("ring-full", 3)]),  # late
        (9, [("ring-full", 1)]),
    ):
        ledger.commit(Group(drops={(RUN, "eiger"): (epoch, causes)}), 1.0)
    reader = LedgerReader(path)
    assert reader.accounting(RUN)["eiger"]["drops"] == {"decimated": 20, "ring-full": 5}
    assert reader.accounting(RUN)["pilc"]["drops"] == {}
    ledger.complete(RUN, 2.0)
    ledger.commit(Group(drops={(RUN, "eiger"): (9, [("ring-full", 7)])}), 3.0)
    assert reader.drops(RUN) == {"eiger": {"decimated": 20, "ring-full": 5}}


def test_frames_beyond_the_total_of_a_closed_run_do_not_count(path: Path) -> None:
    ledger = Ledger(path)
    ledger.commit(Group(control=[(run_open(), None), (EIGER, None), (run_close(3, 6), None)]), 1.0)
    ledger.commit(Group(batches=[row(0), row(4)]), 1.0)
    account = LedgerReader(path).accounting(RUN)["eiger"]
    assert (account["expected"], account["live"], account["intervals"]["live"]) == (6, 6, [[0, 6]])


class Steps:
    """Counts SQLite's steps, and interrupts it at one of them."""

    def __init__(self, last: int = 0) -> None:
        self.last = last
        self.count = 0

    def __call__(self) -> bool:
        """Return whether to interrupt."""
        self.count += 1
        return self.count == self.last


def test_a_commit_that_fails_is_on_disk_whole_or_not_at_all_and_it_is_known_which(path: Path) -> None:
    group = Group(control=[(run_open(), None), (EIGER, None)], batches=[row(0), row(4)], sessions={7: 2})
    whole, twice = Outcome([True, True], [True, True]), Outcome([False, False], [False, False])

    def attempt(number: int, steps: Steps) -> bool:
        ledger = Ledger(path.with_name(f"{number}.db"))
        ledger._db.set_progress_handler(steps, 1)
        try:
            done = ledger.commit(group, 1.0) == whole
        except sqlite3.Error:
            done = False
        ledger._db.set_progress_handler(None, 0)
        assert ledger.commit(group, 2.0) == (twice if done else whole)
        ledger.close()
        return done

    steps = Steps()
    assert attempt(0, steps)
    tried = [*range(1, steps.count - 8, steps.count // 16), *range(steps.count - 8, steps.count + 1)]
    assert {attempt(number, Steps(number)) for number in tried} == {True, False}  # the last come when all is on disk


def test_const_outputs_are_kept_once(ledger: Ledger, path: Path) -> None:
    for value in (1.0, 2.0):
        (spec,), payload = pack([Piece("xrd", "const", "q", np.full(3, value))])
        ledger.commit(Group(batches=[row(0)], consts=[ConstRow(RUN, "eiger", "cfg-a", spec, payload)]), 1.0)
    (const,) = LedgerReader(path).consts(RUN, "eiger", "cfg-a")
    assert unpack([const.spec], const.payload)[0].array.tolist() == [1.0, 1.0, 1.0]


def test_a_const_output_belongs_to_the_batch_that_it_came_with_and_to_later_ones(ledger: Ledger, path: Path) -> None:
    (spec,), payload = pack([Piece("xrd", "const", "q", np.arange(3.0))])
    ledger.commit(Group(batches=[row(8)]), 1.0)
    const = ConstRow(RUN, "eiger", "cfg-a", spec, payload)
    ledger.commit(Group(batches=[row(0), row(4)], consts=[const]), 2.0)
    reader = LedgerReader(path)
    batches = reader.batches(RUN, "eiger", "cfg-a")
    known = {each.first: len(reader.consts(RUN, "eiger", "cfg-a", until=each.seq)) for each in batches}
    assert known == {0: 1, 4: 1, 8: 0}


def test_other_recipes_for_the_same_raw_run_make_a_new_processed_run_and_keep_what_is_done(
    ledger: Ledger, path: Path
) -> None:
    ledger.commit(Group(batches=[row(0)]), 1.0)
    ledger.complete(RUN, 2.0)
    fresh = ledger.commit(Group(control=[(run_open(1, "33333333-cccc"), "/x/other.nxs"), (EIGER, None)]), 3.0)
    assert fresh.fresh == [True, True]
    reader = LedgerReader(path)
    (run,) = reader.open_runs()
    assert (run.processed, run.totals, run.nexus) == ("33333333-cccc", None, "/x/other.nxs")
    assert reader.accounting(RUN)["eiger"]["live"] == BATCH


def test_a_run_is_found_by_either_uid_and_is_open_until_completed(ledger: Ledger, path: Path) -> None:
    reader = LedgerReader(path)
    assert reader.run(PROCESSED) == reader.run(RUN)
    assert [run.run for run in reader.open_runs()] == [RUN]
    assert [type(message).__name__ for message in reader.control(RUN)][:3] == ["RunOpen", "StreamOpen", "StreamOpen"]
    assert all(isinstance(stream, StreamOpen) for stream in reader.streams(RUN))
    ledger.complete(RUN, 5.0)
    assert reader.open_runs() == []
    assert [run.completed for run in reader.runs()] == [5.0]


def test_what_was_acknowledged_survives_kill_nine(path: Path) -> None:
    program = f"""
import os, signal, sys
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
from pathlib import Path
from flying import control, row
from haltere.workers.ledger.writer import Ledger
from haltere.workers.ledger.rows import Group
ledger = Ledger(Path({str(path)!r}))
ledger.commit(Group(control=[(message, None) for message in control()], sessions={{7: 8}}), 1.0)
for first in range(0, 16, 4):
    ledger.commit(Group(batches=[row(first)]), 1.0)
    print(first, flush=True)
ledger._db.execute("begin immediate")
ledger._add_batch(row(16), 1.0)
os.kill(os.getpid(), signal.SIGKILL)
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert ended.returncode == -9, ended.stderr
    acknowledged = [int(line) for line in ended.stdout.split()]
    reader = LedgerReader(path)
    assert [batch.first for batch in reader.batches(RUN, "eiger", "cfg-a")] == acknowledged == [0, 4, 8, 12]
    again = Ledger(path)
    assert again.sessions() == {7: 8}
    assert again.commit(Group(batches=[row(12), row(16)]), 2.0).new == [False, True]


def test_a_commit_that_fails_leaves_nothing_and_can_be_tried_again(ledger: Ledger, path: Path) -> None:
    pages = ledger._db.execute("pragma page_count").fetchone()[0]
    ledger._db.execute(f"pragma max_page_count={pages + 8}")  # what a full disk is to SQLite
    many = Group(batches=[row(first) for first in range(0, 4000, 4)])
    with pytest.raises(sqlite3.OperationalError, match="full"):
        ledger.commit(many, 1.0)
    assert LedgerReader(path).batches(RUN, "eiger", "cfg-a") == []
    ledger._db.execute("pragma max_page_count=1000000")
    assert all(ledger.commit(many, 1.0).new)


def test_a_reader_without_a_ledger_says_so(path: Path) -> None:
    with pytest.raises(FileError, match="has the sink started"):
        LedgerReader(path)


def test_a_file_that_is_no_ledger_is_refused(path: Path) -> None:
    path.write_bytes(b"not a database, " * 100)
    with pytest.raises(SettingsError, match="is it a ledger"):
        Ledger(path)


def test_a_ledger_has_one_writer_and_names_it_to_another(tmp_path: Path) -> None:
    ledger = tmp_path / "ledger.db"
    assert writer_of(ledger) is None
    with only_writer(ledger):
        assert writer_of(ledger) == os.getpid()
        with pytest.raises(SettingsError, match=rf"another pool's sink \(pid {os.getpid()}\): use that pool"):  # noqa: SIM117
            with only_writer(ledger, patience=0):
                pass
    assert writer_of(ledger) is None
    with only_writer(ledger, patience=0):
        pass


def test_a_writer_that_is_ending_is_waited_for(tmp_path: Path) -> None:
    ledger = tmp_path / "ledger.db"
    with ExitStack() as stack:
        stack.enter_context(only_writer(ledger))
        threading.Timer(0.2, stack.close).start()
        with only_writer(ledger):
            assert writer_of(ledger) == os.getpid()


def test_a_ledger_of_before_its_columns_were_is_carried_on(path: Path) -> None:
    made = Ledger(path)
    made.close()
    db = sqlite3.connect(path)
    for table in ("control", "consts"):
        db.execute(f"alter table {table} drop column after")
    db.commit()
    db.close()
    again = Ledger(path)
    assert again.commit(Group(control=[(run_open(), None)], batches=[row(0)]), 1.0) == Outcome([True], [True])


def test_a_transaction_that_could_not_be_taken_back_is_so_by_the_next_commit(ledger: Ledger, path: Path) -> None:
    ledger._db.execute("begin immediate")
    ledger._db.execute("delete from control")
    assert ledger.commit(Group(batches=[row(0)]), 1.0).new == [True]
    reader = LedgerReader(path)
    assert len(list(reader.control(RUN))) == len(control())


def test_a_path_is_known_once_a_run_has_it(ledger: Ledger) -> None:
    assert ledger.has_path("/x/scan_00017.nxs") is True
    assert ledger.has_path("/x/scan_00018.nxs") is False


def test_it_is_on_stable_storage_when_a_commit_returns_in_pages_that_are_quick_to_copy(
    ledger: Ledger, path: Path
) -> None:
    assert ledger.path == path
    expected = {
        "page_size": 16384,
        "journal_mode": "wal",
        "wal_autocheckpoint": 4096,
        "synchronous": 2,  # full
        "journal_size_limit": 64 << 20,
    }
    assert {name: ledger._db.execute(f"pragma {name}").fetchone()[0] for name in expected} == expected


def test_a_commit_that_fails_over_what_is_there_already_says_so_and_counts_nothing(ledger: Ledger, path: Path) -> None:
    group = Group(batches=[row(0)])
    ledger.commit(group, 1.0)
    reader, number, done = LedgerReader(path), 0, None
    while done is None:
        number += 1
        ledger._db.set_progress_handler(Steps(number), 1)
        try:
            done = ledger.commit(group, 2.0)
        except sqlite3.Error:
            assert not ledger._db.in_transaction, "or readers would wait, and what is written next be lost"
        else:
            assert done == Outcome([], [False])
        ledger._db.set_progress_handler(None, 0)
        run = reader.run(RUN)
        assert run is not None
        assert run.duplicates == (done is not None)
    assert number > 10


def test_duplicates_that_were_seen_before_are_counted_until_the_run_is_complete(ledger: Ledger, path: Path) -> None:
    ledger.commit(Group(duplicates={RUN: 3}), 1.0)
    ledger.commit(Group(duplicates={RUN: 2}), 1.0)
    ledger.complete(RUN, 2.0)
    ledger.commit(Group(duplicates={RUN: 1}, batches=[row(0)]), 3.0)
    ledger.commit(Group(batches=[row(0)]), 4.0)
    run = LedgerReader(path).run(RUN)
    assert run is not None
    assert run.duplicates == 5


def test_who_tells_of_a_run_is_known_until_it_is_complete(ledger: Ledger) -> None:
    ledger.commit(Group(control=[(run_open(), None)], tellers={RUN: (7, "a"), "another": (8, "b")}), 1.0)
    assert ledger.tellers() == {RUN: (7, "a")}
    ledger.commit(Group(sessions={9: 4}, tellers={RUN: (9, "c")}), 1.0)
    ledger.commit(Group(sessions={9: 5}), 1.0)
    assert ledger.tellers() == {RUN: (9, "c")}
    assert ledger.sessions() == {9: 5}
    ledger.complete(RUN, 2.0, "the disk is full")
    assert ledger.tellers() == {}


def test_a_run_is_complete_once(ledger: Ledger, path: Path) -> None:
    ledger.complete(RUN, 2.0, "the disk is full")
    ledger.complete(RUN, 3.0)
    run = LedgerReader(path).run(RUN)
    assert run is not None
    assert (run.completed, run.nexus_error) == (2.0, "the disk is full")


def test_later_runs_have_later_times_whatever_the_clock_does(path: Path) -> None:
    ledger = Ledger(path)
    for number, now in enumerate((0.5, 0.25, 2000.0)):
        other = RunOpen(1, f"run-{number}", f"processed-{number}", b"{}")
        ledger.commit(Group(control=[(other, None)]), now)
    opened = sorted(run.opened_at for run in LedgerReader(path).runs())
    assert opened == pytest.approx([0.5, 0.500002, 2000.0], abs=1e-7)


def test_a_run_that_is_no_first_reduction_knows_the_raw_one(ledger: Ledger, path: Path) -> None:
    ledger.commit(Group(control=[(RunOpen(1, "r-1", "p-1", b'{"uid": "raw"}'), None)]), 1.0)
    ledger.commit(Group(control=[(RunOpen(1, "r-2", "p-2", b"{}"), None)]), 1.0)
    assert {run.run: run.raw for run in LedgerReader(path).runs()} == {RUN: RUN, "r-1": "raw", "r-2": "r-2"}


def test_a_group_is_held_if_all_of_it_is(ledger: Ledger) -> None:
    assert ledger._holds(Group(control=[(EIGER, None)]))
    for group in (
        Group(control=[(RunOpen(1, "r-1", "p-1", b"{}"), None)]),
        Group(batches=[row(0)]),
        Group(sessions={7: 1}),
    ):
        assert not ledger._holds(group)
        ledger.commit(group, 1.0)
        assert ledger._holds(group)
    assert not ledger._holds(Group(batches=[row(0), row(4)]))
    assert not ledger._holds(Group(sessions={7: 2}))


def test_a_closed_ledger_takes_nothing_more(ledger: Ledger) -> None:
    ledger.close()
    ledger.close()
    with pytest.raises(sqlite3.ProgrammingError):
        ledger.sessions()


def test_each_run_that_opens_gets_a_path_if_it_has_none() -> None:
    group = Group(control=[(run_open(), None), (run_open(), "/x/a.nxs"), (EIGER, None)])
    group.name_files(lambda message: f"/new/{message.run}.nxs")
    assert [path for _, path in group.control] == [f"/new/{RUN}.nxs", "/x/a.nxs", None]


def test_drops_alone_are_no_reason_to_commit_and_anything_else_is() -> None:
    assert not Group()
    assert not Group(drops={(RUN, "eiger"): (1, [("ring-full", 1)])}, tellers={RUN: (7, "a")})
    for group in (
        Group(control=[(EIGER, None)]),
        Group(batches=[row(0)]),
        Group(sessions={7: 1}),
        Group(duplicates={RUN: 1}),
    ):
        assert group


def test_each_frame_of_a_batch_is_marked_by_its_status() -> None:
    sets = tuple(IntervalSet() for _ in range(4))
    mark(sets, 10, bytes([0, 0, QUARANTINED, LOST, LOST, 0]))
    mark(sets, 99, b"")
    mark(sets, 20, bytes([1]))
    assert sets[0].ranges() == [(10, 12), (15, 16)]
    assert sets[1].ranges() == [(20, 21)]
    assert sets[QUARANTINED].ranges() == [(12, 13)]
    assert sets[LOST].ranges() == [(13, 15)]
    open_, closed = account(sets, 15, closed=False), account(sets, 15, closed=True)
    assert open_["intervals"]["live"] == [[10, 12], [15, 16]]
    assert (open_["live"], open_["backfilled"], open_["expected"]) == (3, 1, 15)
    assert closed["intervals"] == {"live": [[10, 12]], "backfilled": [], "quarantined": [[12, 13]], "lost": [[13, 15]]}
    assert (closed["live"], closed["lost"]) == (2, 2)
    assert account(sets, 14, closed=True)["intervals"]["lost"] == [[13, 14]]


def test_a_stream_has_as_many_frames_as_its_close_says_or_as_far_as_was_promised() -> None:
    promised = IntervalSet()
    assert stream_total(None, "eiger", None) == 0
    assert stream_total(None, "eiger", promised) == 0
    promised.add(0, 4)
    promised.add(8, 9)
    assert stream_total(None, "eiger", promised) == 9
    assert stream_total({"pilc": 3}, "eiger", promised) == 9
    assert stream_total({"eiger": 3}, "eiger", promised) == 3
