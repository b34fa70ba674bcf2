"""A run whose session is gone is closed by the sink: with what was promised, once, and not before."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from haltere.workers.ledger.reader import LedgerReader
from haltere.workers.ledger.writer import Ledger
from haltere.workers.sink.core import SinkCore
from haltere.workers.sink.group import GROUP_SECONDS
from haltere.workers.sink.tellers import ELSEWHERE, LOOK, REASON, SILENT, Tellers
from haltere.workers.wire.messages import Ack, Beat, Bye, Hello, RunClose, RunOpen

from ..flying import RUN, build, control, results

SESSION, NAME = 7, "nano1.12345678:4031:99"
PEER, BROKER = b"session", b"broker"
PROMISED = 10


class Bench:
    """A sink's core, its ledger, and what it sees of the session's process: None is nothing."""

    def __init__(self, path: Path, *, now: float = 1000.0, gone: bool | None = False) -> None:
        self.path = path
        self.now = now
        self.gone = gone
        self.ledger = Ledger(path)
        tellers = Tellers(self.ledger.tellers(), lambda name: self.gone if name in (NAME, "") else False)
        self.core = SinkCore(int(now), sessions=self.ledger.sessions(), tellers=tellers, build=build)
        reader = LedgerReader(path)
        for row in reader.open_runs():
            self.core.restore(row, reader.control(row.run), reader.done(row.run))
        reader.close()

    def tell(self, message: Any, payload: bytes | None = None, peer: bytes = PEER) -> list[Any]:
        """Say it to the core."""
        if isinstance(message, Beat):
            return self.core.unsure(peer, self.now)
        return self.core.receive(peer, message, payload, self.now)

    def open(self) -> None:
        """Open a run that promises 10 frames of each stream."""
        self.tell(Hello(1, "dispatcher", NAME, SESSION))
        for message in control()[:5]:
            self.tell(message)
        self.later()

    def later(self, seconds: float = 0.1) -> list[Any]:
        """Let time pass, with a turn each second."""
        said = []
        until = self.now + seconds
        while self.now < until:
            self.now = min(self.now + 1.0, until)
            self.core.close_abandoned(self.now, 1_700_000_000.0 + self.now)
            self.now += 2 * GROUP_SECONDS
            group = self.core.take(self.now)
            if group is not None:
                said += self.core.committed(self.ledger.commit(group, self.now), self.now)
        return said

    @property
    def closed(self) -> bool:
        """Whether the run is."""
        return self.core.runs[RUN].totals is not None


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    bench = Bench(tmp_path / "ledger.db")
    bench.open()
    return bench


def test_a_session_that_lives_may_be_silent_for_as_long_as_it_likes(bench: Bench) -> None:
    bench.later(2 * ELSEWHERE)
    assert not bench.closed


def test_a_session_that_is_gone_has_its_run_closed_with_what_was_promised(bench: Bench) -> None:
    bench.tell(Hello(1, "broker", "broker", 1), peer=BROKER)
    bench.gone = True
    bench.later(SILENT - 1)
    assert not bench.closed
    said = bench.later(3)
    assert bench.core.runs[RUN].totals == {"eiger": PROMISED, "pilc": PROMISED}
    assert bench.core.counters.abandoned == 1
    (close,) = (message for peer, message in said if peer == BROKER and isinstance(message, RunClose))
    reader = LedgerReader(bench.path)
    row = reader.run(RUN)
    reader.close()
    assert row is not None
    assert row.stop == json.loads(close.stop)
    assert row.stop is not None
    assert (row.exit_status, row.stop["exit_status"], row.stop["reason"]) == ("fail", "fail", REASON)
    assert bench.later(10 * SILENT) == [], "it is closed once"


def test_a_run_is_closed_once_though_the_disk_takes_its_time(bench: Bench) -> None:
    bench.tell(Bye(SESSION))
    for _ in range(2):
        bench.core.close_abandoned(bench.now, 1000.0)
        bench.now += 2 * LOOK
    assert bench.core.counters.abandoned == 1
    group = bench.core.take(bench.now)
    assert group is not None
    assert len(group.control) == 1


def test_a_close_goes_to_the_disk_with_what_else_comes_in_a_while(bench: Bench) -> None:
    bench.tell(Bye(SESSION))
    bench.core.close_abandoned(bench.now, 1000.0)
    assert bench.core.take(bench.now) is None
    assert bench.core.take(bench.now + 2 * GROUP_SECONDS) is not None


def test_beats_say_that_a_session_lives_whatever_can_be_seen_of_it(bench: Bench) -> None:
    bench.gone = True
    for _ in range(20):
        bench.tell(Beat(SESSION))
        bench.later(SILENT / 2)
    assert not bench.closed


def test_a_session_elsewhere_has_longer(bench: Bench) -> None:
    bench.gone = None
    bench.later(ELSEWHERE - SILENT)
    assert not bench.closed
    bench.later(2 * SILENT)
    assert bench.closed


def test_a_session_that_takes_its_leave_is_not_waited_for(bench: Bench) -> None:
    bench.tell(Bye(SESSION + 1))
    bench.later()
    assert not bench.closed, "it was another's leave"
    bench.tell(Bye(SESSION))
    bench.later(1)
    assert bench.closed


def test_a_close_that_is_not_on_disk_yet_stands_before_the_leave(bench: Bench) -> None:
    for message in control()[5:]:
        bench.tell(message)
    bench.tell(Bye(SESSION))
    bench.later(3)
    assert not bench.core.runs[RUN].abandoned
    assert bench.core.counters.abandoned == 0
    assert bench.core.runs[RUN].totals == {"eiger": 20, "pilc": 20}


def test_the_next_sink_closes_what_it_finds(bench: Bench) -> None:
    """As after a session whose own pool ended with it."""
    again = Bench(bench.path, now=50.0, gone=True)
    assert not again.closed
    again.later(SILENT + 2)
    assert again.core.runs[RUN].abandoned
    third = Bench(bench.path, now=50.0, gone=True)
    assert third.core.runs[RUN].abandoned, "it is read in the ledger that nobody else closed it"


def test_another_session_that_tells_of_the_run_takes_it_over(bench: Bench) -> None:
    bench.gone = True
    bench.tell(Hello(1, "dispatcher", "nano1.12345678:4032:100", SESSION + 1), peer=b"other")
    bench.tell(control()[0], peer=b"other")
    bench.later(3 * SILENT)
    assert not bench.closed


def test_who_comes_back_too_late_is_answered_counted_and_told_once(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    bench.gone = True
    bench.later(SILENT + 2)
    caplog.clear()
    rest, known = control()[5:], list(bench.core.runs[RUN].control)
    for message in rest:
        assert bench.tell(message) == []
    assert (PEER, Ack(SESSION, len(control()))) in bench.later()
    assert bench.core.runs[RUN].totals == {"eiger": PROMISED, "pilc": PROMISED}
    assert bench.core.counters.late == len(rest)
    assert bench.core.runs[RUN].control == known
    assert sum("goes on to tell of it" in record.message for record in caplog.records) == 1


def test_it_completes_when_its_frames_are_done_and_is_forgotten(bench: Bench) -> None:
    bench.gone = True
    bench.later(SILENT + 2)
    for message, payload in results():
        if message.first < PROMISED:
            bench.tell(message, payload, peer=b"worker")
    bench.later()
    assert bench.core.take_finished() == [RUN]
    bench.core.completed(RUN, 1.0)
    assert bench.later(3) == []


def test_a_session_that_greets_or_tells_lives_whatever_can_be_seen_of_it(bench: Bench) -> None:
    bench.gone = True
    for _ in range(4):
        bench.tell(Hello(1, "dispatcher", NAME, SESSION))
        bench.later(SILENT - 2)
    for message in control()[5:-1]:
        bench.tell(message)
        bench.later(SILENT - 2)
    assert not bench.closed


def test_only_a_session_takes_its_own_leave(bench: Bench) -> None:
    bench.tell(Hello(1, "recorder", "recorder", SESSION), peer=b"recorder")
    for peer in (b"nobody", b"recorder"):
        bench.tell(Bye(SESSION), peer=peer)
        bench.later(2)
    assert not bench.closed


def test_a_run_that_was_closed_can_be_told_anew_by_other_recipes(bench: Bench) -> None:
    bench.gone = True
    bench.later(SILENT + 2)
    bench.gone = False
    bench.tell(RunOpen(6, RUN, "by others", b"{}"))
    bench.later()
    assert (bench.core.runs[RUN].open.processed, bench.closed) == ("by others", False)
    assert bench.core.counters.late == 0


@pytest.mark.parametrize(("gone", "patience"), [(True, SILENT), (None, ELSEWHERE)])
def test_a_session_is_held_to_be_gone_when_it_was_silent_for_longer_than_that(
    gone: bool | None, patience: float
) -> None:
    tellers = Tellers(gone=lambda _: gone)
    tellers.opens(RUN, SESSION, NAME)
    tellers.hears(SESSION, 100.0)
    assert list(tellers.abandoned([RUN], 100.0 + patience)) == []
    assert list(tellers.abandoned([RUN], 101.0 + patience)) == [RUN]


def test_sessions_are_looked_at_now_and_then_and_at_once_when_one_leaves() -> None:
    looked: list[str] = []

    def gone(name: str) -> bool:
        looked.append(name)
        return False

    tellers = Tellers({RUN: (SESSION, NAME), "other": (SESSION, NAME)}, gone)
    tellers.hears(SESSION, 100.0)
    for now in (200.0, 200.0 + LOOK / 2, 200.0 + LOOK):
        assert list(tellers.abandoned([RUN, "other"], now)) == []
    assert looked == [NAME, NAME], "once for both runs, and not again within a second"
    tellers.leaves(SESSION)
    assert list(tellers.abandoned([RUN], 200.0 + LOOK)) == [RUN]
    tellers.hears(SESSION, 300.0)
    assert list(tellers.abandoned([RUN], 300.0)) == [], "it is back"


def test_a_run_that_is_told_anew_is_looked_at_though_it_was_closed_before() -> None:
    tellers = Tellers({RUN: (SESSION, NAME)})
    tellers.leaves(SESSION)
    tellers.closes(RUN)
    assert list(tellers.abandoned([RUN], 100.0)) == []
    tellers.opens(RUN, SESSION, NAME)
    assert list(tellers.abandoned([RUN], 100.0 + LOOK)) == [RUN]


def test_what_is_known_of_a_session_is_forgotten_with_its_last_run() -> None:
    tellers = Tellers()
    tellers.forget("unknown")
    for run in (RUN, "other"):
        tellers.opens(run, SESSION, NAME)
        tellers.closes(run)
    tellers.hears(SESSION, 100.0)
    tellers.leaves(SESSION)
    tellers.forget(RUN)
    assert (tellers.name(RUN), tellers.name("other")) == ("", NAME)
    assert (set(tellers._heard), tellers._left) == ({SESSION}, {SESSION})
    tellers.forget("other")
    assert not any((tellers._runs, tellers._names, tellers._heard, tellers._left, tellers._closing))
