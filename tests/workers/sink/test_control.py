"""What dispatchers tell of runs: acknowledged together after the commit, told to the broker once."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from haltere.workers.ledger.reader import LedgerReader
from haltere.workers.ledger.rows import RunRow
from haltere.workers.reducers.base import Output
from haltere.workers.sink.books import Phase
from haltere.workers.sink.core import BEAT_MS, LEASE_MS, SinkCore
from haltere.workers.wire.messages import Ack, FileSpan, Hello, RunOpen, Spilled, Welcome

from ..flying import BINS, EIGER, FRAMES, RUN, Stub, control, run_close, run_open
from .bench import BROKER, DISPATCHER, WORKER, Bench, wrong


def test_control_messages_are_acknowledged_together_after_the_commit(bench: Bench) -> None:
    assert bench.tell(DISPATCHER, Hello(1, "dispatcher", "session", 7)) == [
        (DISPATCHER, Welcome(1, 1, LEASE_MS, BEAT_MS))
    ]
    for message in control():
        assert bench.tell(DISPATCHER, message) == []
    assert bench.commit() == [(DISPATCHER, Ack(7, len(control())))]


def test_a_gap_in_the_serials_is_waited_for(bench: Bench) -> None:
    bench.tell(DISPATCHER, Hello(1, "dispatcher", "session", 7))
    first, second, third, *_ = control()
    bench.tell(DISPATCHER, first)
    bench.tell(DISPATCHER, third)
    assert bench.commit() == [(DISPATCHER, Ack(7, 1))]
    assert bench.core.counters.gaps == 1
    bench.tell(DISPATCHER, second)
    bench.tell(DISPATCHER, third)
    assert bench.commit() == [(DISPATCHER, Ack(7, 3))]


def test_a_sink_that_starts_anew_knows_which_serials_it_has(bench: Bench) -> None:
    bench.open()
    again = Bench(bench.path)
    assert again.tell(DISPATCHER, control()[3]) == [(DISPATCHER, Welcome(1, 1, 0, 0))]
    assert again.tell(DISPATCHER, Hello(1, "dispatcher", "session", 7))[-1] == (DISPATCHER, Ack(7, 3))
    assert again.tell(DISPATCHER, control()[4]) == []
    assert again.commit() == []
    again.tell(DISPATCHER, control()[3])
    assert again.commit() == [(DISPATCHER, Ack(7, 4))]


def test_a_stream_that_is_opened_again_keeps_what_was_promised(bench: Bench) -> None:
    bench.open(5)
    promised = bench.core.runs[RUN].total("eiger")
    bench.tell(DISPATCHER, msgspec.structs.replace(EIGER, serial=6, total=FRAMES))
    bench.commit()
    assert bench.core.runs[RUN].total("eiger") == promised > 0


def test_the_first_word_of_how_many_frames_there_are_stands(bench: Bench) -> None:
    bench.open()
    bench.tell(DISPATCHER, run_close(4, frames=6))
    bench.tell(DISPATCHER, run_close(5, frames=60))
    bench.commit()
    run = bench.core.runs[RUN]
    assert run.phase is Phase.CLOSED
    assert run.totals == {"eiger": 6, "pilc": 6}
    row = LedgerReader(bench.path).run(RUN)
    assert row is not None
    assert row.totals == run.totals
    assert Bench(bench.path).core.runs[RUN].totals == run.totals


def test_a_sum_that_is_no_integer_is_refused_when_the_stream_is_opened(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    floating = {"sum": Output("acc", (BINS,), "<f8")}
    core = SinkCore(1, build=lambda spec: Stub(floating))
    core.restore(RunRow(RUN, "p", {}, 1.0, None, None, None, None, None, None, 0), [run_open(1), EIGER], {})
    assert core.runs[RUN].streams["eiger"].outputs == {"xrd": {}}
    assert "recipe xrd: output sum adds up over frames as <f8" in caplog.text


def test_the_broker_hears_control_messages_only_when_they_are_on_disk_and_once(bench: Bench) -> None:
    bench.tell(BROKER, Hello(1, "broker", "broker", 5))
    bench.tell(DISPATCHER, Hello(1, "dispatcher", "session", 7))
    bench.tell(DISPATCHER, run_open(1))
    assert (BROKER, run_open(1)) in bench.commit()
    bench.tell(b"other", Hello(1, "dispatcher", "another", 8))
    bench.tell(b"other", run_open(1))
    assert bench.commit() == [(b"other", Ack(8, 1))]


def test_a_document_that_is_no_json_is_passed_over(bench: Bench) -> None:
    bench.tell(DISPATCHER, Hello(1, "dispatcher", "session", 7))
    bench.tell(DISPATCHER, RunOpen(1, RUN, "p", b"{ not json"))
    assert bench.commit() == [(DISPATCHER, Ack(7, 1))]
    assert bench.core.counters.bad == 1


def test_control_messages_beyond_the_bound_wait_with_their_dispatcher(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("haltere.workers.sink.core.MAX_CONTROLS", 2)
    bench.tell(BROKER, Hello(1, "broker", "broker", 1))
    bench.open()
    assert list(bench.core.runs[RUN].streams) == ["eiger"]
    assert bench.tell(DISPATCHER, control()[1]) == [(DISPATCHER, Ack(7, 2))], "it has that one"
    spilled = Spilled(0, RUN, "eiger", [FileSpan("eiger_image", "file:///spill/a.h5", "/d", 4, 4, 0)])
    assert bench.tell(DISPATCHER, control()[2]) == []
    assert bench.tell(DISPATCHER, control()[3]) == []
    assert bench.tell(BROKER, spilled) == []
    assert bench.tell(DISPATCHER, control()[4]) == []
    assert bench.core.counters.refused == 3
    assert bench.commit()[-1] == (DISPATCHER, Ack(7, 4))
    assert bench.tell(BROKER, spilled) == []
    assert bench.commit() == [(BROKER, spilled)], "it says it again"


def test_the_ledger_knows_who_told_of_a_run(bench: Bench) -> None:
    bench.open()
    assert bench.ledger.tellers() == {RUN: (7, "session")}


def test_what_can_come_a_thousand_times_is_told_now_and_then_and_else_each_time(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    bench.open()
    for _ in range(50):
        bench.tell(WORKER, *wrong(run="nobody's"))
    assert 0 < len(caplog.records) < 10
    assert "unknown here" in bench.core.counters.last_bad
    caplog.clear()
    for _ in range(3):
        bench.core._complain("once")
    assert [record.message for record in caplog.records] == ["once"] * 3
