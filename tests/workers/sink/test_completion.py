"""When a run is complete, and what is remembered of it then."""

from __future__ import annotations

import msgspec
import pytest

from haltere.workers.sink.books import Phase
from haltere.workers.wire.messages import Done, FileSpan, Hello, RunClose, Spilled

from ..flying import EIGER, FRAMES, PILC, RUN, control, result, results, run_close, run_open
from .bench import BROKER, DISPATCHER, RECORDER, WORKER, Bench, other_run


def test_a_run_is_complete_when_it_is_closed_and_every_promised_frame_is_done(bench: Bench) -> None:
    bench.open(until=len(control()))
    *others, last = results()
    for message, payload in others:
        bench.tell(WORKER, message, payload)
    bench.commit()
    assert bench.finished == []
    bench.tell(WORKER, *last)
    bench.commit()
    assert bench.finished == [RUN]


def test_a_run_that_is_reduced_by_other_recipes_meanwhile_is_not_the_one_whose_file_was_closed(bench: Bench) -> None:
    bench.open()
    bench.tell(DISPATCHER, run_close(4, frames=0))
    bench.commit()
    assert bench.core.finishing(RUN)
    other = msgspec.structs.replace(run_open(5), processed="another")
    bench.tell(DISPATCHER, other)
    bench.commit()
    assert not bench.core.finishing(RUN)
    assert bench.core.runs[RUN].phase is Phase.OPEN


def test_a_run_without_a_frame_is_complete_when_it_is_closed(bench: Bench) -> None:
    bench.open()
    bench.tell(DISPATCHER, run_close(4, frames=0))
    bench.commit()
    assert bench.finished == [RUN]


def test_completed_runs_are_not_replayed_and_their_late_results_still_answered(bench: Bench) -> None:
    bench.open(until=len(control()))
    for message, payload in results():
        bench.tell(WORKER, message, payload)
    bench.commit()
    bench.ledger.complete(RUN, 1.0)
    bench.core.completed(RUN, 1.0)
    for core in (bench, Bench(bench.path)):
        assert (core.core.runs[RUN].phase, core.core.runs[RUN].completed) == (Phase.COMPLETED, 1.0)
        assert len(core.tell(BROKER, Hello(1, "broker", "broker", 6))) == 1
        assert core.tell(WORKER, *result(PILC, 4)) == [(WORKER, Done(RUN, "pilc", "cfg-b", [(4, 8)]))]


def test_a_reduction_from_files_is_not_closed_by_the_sink_though_who_began_it_is_gone(bench: Bench) -> None:
    bench.open(1)
    bench.tell(DISPATCHER, msgspec.structs.replace(EIGER, total=FRAMES))
    bench.commit()
    bench.core.close_abandoned(bench.now, 1000.0)
    bench.core.close_abandoned(bench.now + 10_000.0, 11_000.0)
    assert bench.core.counters.abandoned == 0


def test_only_the_newest_of_the_completed_runs_are_remembered(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("haltere.workers.sink.core.REMEMBERED", 2)
    bench.open(until=len(control()))
    for message, payload in results():
        bench.tell(WORKER, message, payload)
    bench.commit()
    bench.core.completed(RUN, 1.0)
    serial = len(control())
    for number in range(4):
        bench.tell(DISPATCHER, other_run(number, serial := serial + 1))
        bench.tell(DISPATCHER, RunClose(serial := serial + 1, f"run-{number}", [], "success", b"{}"))
        bench.commit()
        if number < 3:
            bench.core.completed(f"run-{number}", 1.0)
    assert list(bench.core.runs) == ["run-1", "run-2", "run-3"], "the two newest, and the one that is not complete"
    assert bench.tell(WORKER, *result(EIGER, 0)) == []
    assert bench.core.counters.unknown == 1


def test_a_run_that_was_forgotten_completes_by_other_recipes_though_the_ledger_has_its_batches(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("haltere.workers.sink.core.REMEMBERED", 1)
    bench.open(until=len(control()))
    for message, payload in results():
        bench.tell(WORKER, message, payload)
    bench.commit()
    bench.ledger.complete(RUN, 1.0)
    bench.core.completed(RUN, 1.0)
    serial = len(control())
    for number in range(3):
        bench.tell(DISPATCHER, other_run(number, serial := serial + 1))
        bench.tell(DISPATCHER, RunClose(serial := serial + 1, f"run-{number}", [], "success", b"{}"))
        bench.commit()
        bench.core.completed(f"run-{number}", 1.0)
    assert RUN not in bench.core.runs
    for message in (msgspec.structs.replace(run_open(), processed="another"), *control()[1:]):
        bench.tell(DISPATCHER, msgspec.structs.replace(message, serial=(serial := serial + 1)))
    bench.commit()
    bench.finished.clear()
    for message, payload in results():
        bench.tell(WORKER, message, payload)
    assert {type(said) for _, said in bench.commit()} == {Done}
    assert bench.finished == [RUN]
    assert bench.core.runs[RUN].duplicates == len(results())


def test_what_was_spilled_of_a_complete_run_is_answered_at_once(bench: Bench) -> None:
    bench.open(until=len(control()))
    for message, payload in results():
        bench.tell(WORKER, message, payload)
    bench.commit()
    bench.core.completed(RUN, 1.0)
    bench.tell(BROKER, Hello(1, "broker", "broker", 1))
    spilled = Spilled(0, RUN, "eiger", [FileSpan("eiger_image", "file:///spill/a.h5", "/d", 4, 4, 0)])
    assert bench.tell(BROKER, spilled) == [(BROKER, spilled)]
    assert bench.commit() == []


def test_a_run_that_is_complete_is_forgotten_by_who_told_of_it_and_says_when_it_ended(bench: Bench) -> None:
    bench.open(until=len(control()))
    report = bench.core.runs[RUN].report(bench.now + 5.0)
    assert report["since"] == 1_700_000_060.0
    assert report["streams"]["eiger"]["lag_s"] > 0
    for message, payload in results():
        bench.tell(WORKER, message, payload)
    bench.commit()
    assert bench.core._tellers.name(RUN) == "session"
    bench.tell(RECORDER, Hello(1, "recorder", "recorder", 1))
    told = [
        (RECORDER, Done(RUN, stream.stream, stream.cfg, [(0, FRAMES)], True, len(control()), True))
        for stream in (EIGER, PILC)
    ]
    assert bench.core.completed(RUN, 1.0) == told
    assert bench.core._tellers.name(RUN) == ""
    assert bench.core.runs[RUN].phase is Phase.COMPLETED
