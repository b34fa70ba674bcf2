"""The sink's books: nobody is answered before the commit, and everything that was promised is answered in the end."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from haltere.workers.ledger.reader import LedgerReader
from haltere.workers.ledger.rows import Outcome, RunRow
from haltere.workers.ledger.writer import Ledger
from haltere.workers.reducers.base import Output
from haltere.workers.sink.books import MAX_RANGES, Phase
from haltere.workers.sink.core import BEAT_MS, FULL_SECONDS, LEASE_MS, SinkCore
from haltere.workers.sink.group import GROUP_SECONDS
from haltere.workers.wire.messages import (
    LIVE,
    LOST,
    QUARANTINED,
    Ack,
    Done,
    Drops,
    Expect,
    FileSpan,
    Hello,
    Message,
    Nack,
    Result,
    RunClose,
    RunOpen,
    Spilled,
    Status,
    StatusReply,
    StreamOpen,
    Welcome,
)

from ..flying import BATCH, BINS, EIGER, FRAMES, PILC, RUN, Stub, build, control, result, results, run_close, run_open

DISPATCHER, BROKER, WORKER, RECORDER = b"dispatcher", b"broker", b"worker-1", b"recorder"


class Bench:
    """A core with a ledger that commits when it is told to."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.now = 100.0
        self.ledger = Ledger(path)
        self.core = SinkCore(1, sessions=self.ledger.sessions(), build=build)
        reader = LedgerReader(path)
        for row in reversed(reader.runs()):
            self.core.restore(row, reader.control(row.run), reader.done(row.run))
        reader.close()
        self.finished: list[str] = []

    def tell(self, peer: bytes, message: Any, payload: bytes | None = None) -> list[tuple[bytes, Message]]:
        """Say it to the core."""
        return self.core.receive(peer, message, payload, self.now)

    def commit(self) -> list[tuple[bytes, Message]]:
        """Commit what is due after a while."""
        self.now += 2 * GROUP_SECONDS
        group = self.core.take(self.now)
        if group is None:
            return []
        answers = self.core.committed(self.ledger.commit(group, self.now), self.now)
        self.finished += self.core.take_finished()
        return answers

    def open(self, until: int = 3) -> None:
        """Greet, and open a run with its streams."""
        self.tell(DISPATCHER, Hello(1, "dispatcher", "session", 7))
        for message in control()[:until]:
            self.tell(DISPATCHER, message)
        self.commit()

    def accounting(self) -> dict[str, Any]:
        """Return what the ledger says of the run."""
        reader = LedgerReader(self.path)
        try:
            return reader.accounting(RUN)
        finally:
            reader.close()


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path / "ledger.db")


def test_control_messages_are_acknowledged_together_after_the_commit(bench: Bench) -> None:
    assert bench.tell(DISPATCHER, Hello(1, "dispatcher", "session", 7)) == [
        (DISPATCHER, Welcome(1, 1, LEASE_MS, BEAT_MS))
    ]
    for message in control():
        assert bench.tell(DISPATCHER, message) == []
    assert bench.commit() == [(DISPATCHER, Ack(7, len(control())))]


def test_drops_are_committed_with_what_is_committed_anyhow_and_only_the_brokers(bench: Bench) -> None:
    bench.open()
    bench.tell(BROKER, Hello(1, "broker", "broker", 3))
    assert bench.tell(BROKER, Drops(RUN, "eiger", 3, [("ring-full", 2)])) == []
    assert bench.tell(DISPATCHER, Drops(RUN, "eiger", 3, [("ring-full", 99)])) == []
    bench.tell(BROKER, Drops(RUN, "nobody", 3, [("ring-full", 99)]))
    bench.tell(BROKER, Drops("other", "eiger", 3, [("ring-full", 99)]))
    assert bench.commit() == []
    bench.tell(BROKER, Drops(RUN, "eiger", 3, [("decimated", 8), ("ring-full", 2)]))
    bench.tell(DISPATCHER, control()[3])
    bench.commit()
    assert bench.accounting()["eiger"]["drops"] == {"decimated": 8, "ring-full": 2}
    assert bench.core.counters.unknown == 1
    assert bench.tell(b"stranger", Drops(RUN, "eiger", 3, [])) == [(b"stranger", Welcome(1, 1, 0, 0))]


def test_drops_that_are_told_when_the_account_is_closed_change_it_no_more(bench: Bench) -> None:
    bench.open(len(control()))
    bench.tell(BROKER, Hello(1, "broker", "broker", 3))
    bench.tell(BROKER, Drops(RUN, "eiger", 3, [("ring-full", 2)]))
    for stream in (EIGER, PILC):
        for first in range(0, FRAMES, BATCH):
            bench.tell(WORKER, *result(stream, first))
    bench.commit()
    assert bench.finished == [RUN]
    bench.tell(BROKER, Drops(RUN, "eiger", 3, [("ring-full", 5)]))
    bench.tell(WORKER, *result(EIGER, 0))  # a duplicate, which is counted on the disk
    assert bench.commit() == []
    assert bench.accounting()["eiger"]["drops"] == {"ring-full": 2}


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


def test_a_result_is_answered_only_after_its_commit_to_worker_broker_and_recorder(bench: Bench) -> None:
    bench.open()
    bench.tell(BROKER, Hello(1, "broker", "broker", 1))
    bench.tell(RECORDER, Hello(1, "recorder", "recorder", 1))
    assert bench.tell(WORKER, *result(EIGER, 0)) == []
    done = Done(RUN, "eiger", "cfg-a", [(0, BATCH)])
    assert bench.commit() == [(peer, done) for peer in (WORKER, BROKER, RECORDER)]


def test_a_duplicate_is_answered_and_counted(bench: Bench) -> None:
    bench.open()
    bench.tell(WORKER, *result(EIGER, 0))
    bench.tell(b"worker-2", *result(EIGER, 0, worker="worker-2"))
    assert [peer for peer, _ in bench.commit()] == [WORKER]
    assert bench.tell(b"worker-2", *result(EIGER, 0)) == [(b"worker-2", Done(RUN, "eiger", "cfg-a", [(0, BATCH)]))]
    bench.commit()
    reader = LedgerReader(bench.path)
    run = reader.run(RUN)
    assert run is not None
    assert run.duplicates == bench.core.counters.duplicates == bench.core.runs[RUN].duplicates == 2
    assert Bench(bench.path).core.runs[RUN].duplicates == 2


def test_where_spilled_frames_lie_is_said_back_from_the_disk_and_to_every_broker_to_come(bench: Bench) -> None:
    bench.open()
    said = Spilled(0, RUN, "eiger", [FileSpan("eiger_image", "file:///spill/a.h5", "/d", 4, 4, 0)])
    bench.tell(WORKER, Hello(1, "worker", "worker", 1))
    assert bench.tell(WORKER, said) == []
    assert bench.commit() == [], "only the broker speaks for ingests"
    bench.tell(BROKER, Hello(1, "broker", "broker", 1))
    assert bench.tell(BROKER, msgspec.structs.replace(said, run="nobody's")) == []
    assert bench.core.counters.unknown == 2
    assert bench.tell(BROKER, said) == []
    assert bench.commit() == [(BROKER, said)]
    bench.tell(BROKER, said)
    assert bench.commit() == [(BROKER, said)], "the first answer may have been lost"
    again = Bench(bench.path)
    assert [message for _, message in again.tell(BROKER, Hello(1, "broker", "broker", 2))].count(said) == 1
    assert bench.accounting()["eiger"]["spilled"] == [{"uri": "file:///spill/a.h5", "dataset": "/d", "frames": 4}]


def wrong(**changes: Any) -> tuple[Result, bytes]:
    message, payload = result(EIGER, 0)
    return msgspec.structs.replace(message, **changes), payload


def misshapen() -> tuple[Result, bytes]:
    message, payload = result(EIGER, 0)
    first = message.arrays[0]
    other = msgspec.structs.replace(first, shape=(BATCH, first.shape[1] // 2))
    return msgspec.structs.replace(message, arrays=[other, *message.arrays[1:]]), payload


def without(kind: str) -> tuple[Result, bytes]:
    message, payload = result(EIGER, 0)
    return msgspec.structs.replace(message, arrays=[spec for spec in message.arrays if spec.kind != kind]), payload


@pytest.mark.parametrize(
    ("bad", "complaint"),
    [
        (wrong(first=1), "aren't a batch"),
        (wrong(n=3, status=bytes(3)), "aren't a batch"),
        (wrong(status=bytes(2)), "status of 2"),
        (wrong(status=bytes([4, 0, 0, 0])), "no known kind"),
        (wrong(reasons=[(4, "beyond")]), "outside of the batch"),
        (misshapen(), "expected <f4"),
        (without("nav"), "is missing"),
        (without("acc"), "is missing"),
        ((result(EIGER, 0)[0], b"short"), "don't fit a payload"),
        (wrong(arrays=result(PILC, 0)[0].arrays), "no output of the recipe"),
    ],
    ids=["boundary", "length", "status", "kind", "reason", "shape", "no nav", "no acc", "cut", "other recipe"],
)
def test_a_result_that_is_not_what_was_asked_for_is_refused_with_the_reason(
    bench: Bench, bad: tuple[Result, bytes], complaint: str
) -> None:
    bench.open()
    ((peer, refusal),) = bench.tell(WORKER, *bad)
    assert peer == WORKER
    assert isinstance(refusal, Nack)
    assert (refusal.token, refusal.first, refusal.retryable) == (bad[0].token, bad[0].first, False)
    assert complaint in refusal.reason
    assert bench.commit() == []
    assert bench.core.counters.bad == 1
    assert complaint in bench.core.counters.last_bad
    bench.tell(WORKER, *result(EIGER, 0))
    assert bench.commit() != []


def test_a_batch_of_which_nothing_could_be_reduced_needs_no_arrays(bench: Bench) -> None:
    bench.open()
    message, _ = result(EIGER, 0, status=[QUARANTINED, QUARANTINED, LOST, LOST])
    bench.tell(WORKER, msgspec.structs.replace(message, arrays=[]), b"")
    bench.commit()
    eiger = bench.accounting()["eiger"]
    assert (eiger["quarantined"], eiger["lost"], len(eiger["reasons"])) == (2, 2, 0)


def test_the_short_last_batch_of_a_run_that_has_ended_may_come_before_its_close(bench: Bench) -> None:
    bench.open(1)
    bench.tell(DISPATCHER, msgspec.structs.replace(EIGER, total=FRAMES - 2))
    bench.commit()
    (refusal,) = bench.tell(WORKER, *result(EIGER, 4, 2))
    assert isinstance(refusal[1], Nack)
    bench.tell(WORKER, *result(EIGER, FRAMES - BATCH, 2))
    assert (WORKER, Done(RUN, "eiger", "cfg-a", [(FRAMES - BATCH, FRAMES - 2)])) in bench.commit()


def test_a_stream_that_is_opened_again_keeps_what_was_promised(bench: Bench) -> None:
    bench.open(5)
    promised = bench.core.runs[RUN].total("eiger")
    bench.tell(DISPATCHER, msgspec.structs.replace(EIGER, serial=6, total=FRAMES))
    bench.commit()
    assert bench.core.runs[RUN].total("eiger") == promised > 0


def test_a_result_for_an_unknown_run_is_counted_and_not_answered(bench: Bench) -> None:
    assert bench.tell(WORKER, *result(EIGER, 0)) == []
    assert bench.commit() == []
    assert bench.core.counters.unknown == 1


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


def test_frames_beyond_the_total_are_answered_and_not_kept(bench: Bench) -> None:
    bench.open()
    bench.tell(DISPATCHER, run_close(4, frames=6))
    bench.commit()
    assert bench.tell(WORKER, *result(EIGER, 8)) == [(WORKER, Done(RUN, "eiger", "cfg-a", [(8, 12)]))]
    for stream in (EIGER, PILC):
        bench.tell(WORKER, *result(stream, 0))
    bench.tell(WORKER, *result(EIGER, 4))  # was begun as a whole batch before the run was closed
    bench.tell(WORKER, *result(PILC, 4, 2))
    bench.commit()
    assert bench.finished == [RUN]
    assert {name: stream["live"] for name, stream in bench.accounting().items()} == {"eiger": 6, "pilc": 6}


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


def test_a_broker_that_says_hello_hears_all_open_runs_then_all_that_is_done(bench: Bench) -> None:
    bench.open(until=len(control()))
    for first in (0, 8):
        bench.tell(WORKER, *result(EIGER, first))
    bench.commit()
    heard = [message for _, message in bench.tell(BROKER, Hello(1, "broker", "broker", 5))]
    assert isinstance(heard[0], Welcome)
    kinds = [type(message) for message in heard[1:]]
    assert kinds == [RunOpen, StreamOpen, StreamOpen, Expect, Expect, Expect, Expect, RunClose, Done, Done]
    assert heard[-2:] == [
        Done(RUN, "eiger", "cfg-a", [(0, 4), (8, 12)], full=True, controls=len(control()), closed=True),
        Done(RUN, "pilc", "cfg-b", [], full=True, controls=len(control()), closed=True),
    ]
    again = Bench(bench.path)
    assert [message for _, message in again.tell(BROKER, Hello(1, "broker", "broker", 5))][1:] == heard[1:]


def test_a_broker_knows_from_the_number_of_control_messages_whether_it_has_heard_all(bench: Bench) -> None:
    bench.tell(BROKER, Hello(1, "broker", "broker", 5))
    bench.tell(DISPATCHER, Hello(1, "dispatcher", "session", 7))
    heard: list[Message] = []
    for message in control():
        bench.tell(DISPATCHER, message)
        heard += [said for peer, said in bench.commit() if peer == BROKER]
    counted = 0
    for said in heard:
        counted += isinstance(said, RunOpen | StreamOpen | Expect | RunClose)
        if isinstance(said, Done) and said.full:
            assert said.controls == counted
    bench.now += 10
    assert {said.controls for _, said in bench.core.tick(bench.now) if isinstance(said, Done)} == {len(control())}


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


def test_while_the_disk_is_full_nobody_is_answered_and_nothing_is_lost(bench: Bench) -> None:
    bench.open()
    assert not bench.core.status(bench.now)["stalled"]
    bench.tell(WORKER, *result(EIGER, 0))
    bench.now += 2 * GROUP_SECONDS
    assert bench.core.take(bench.now) is not None
    assert bench.core.wait(bench.now) == 0.0, "it is on its way, and may fail at any time"
    pauses = []
    for _ in range(4):
        assert bench.core.take(bench.now) is not None
        bench.core.failed(OSError("disk full"), bench.now)
        assert bench.core.take(bench.now) is None
        bench.core.tick(bench.now)
        pauses.append(bench.core.wait(bench.now))
        bench.now += 10
    assert pauses == pytest.approx([0.2, 0.4, 0.8, 1.0])
    assert bench.core.status(bench.now)["stalled"]
    assert (bench.core.counters.errors, bench.core.counters.last_error) == (4, "disk full")
    bench.tell(WORKER, *result(EIGER, 4))
    assert (WORKER, Done(RUN, "eiger", "cfg-a", [(0, BATCH)])) in bench.commit()
    assert (WORKER, Done(RUN, "eiger", "cfg-a", [(4, 8)])) in bench.commit()
    assert not bench.core.status(bench.now)["stalled"]


def test_what_waits_for_a_full_disk_is_bounded(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("haltere.workers.sink.core.MAX_BUFFER", 100)
    bench.open()
    for first in (0, 4, 8):
        bench.tell(WORKER, *result(EIGER, first))
    assert bench.core.counters.refused == 2
    bench.commit()
    bench.tell(WORKER, *result(EIGER, 4))
    assert bench.commit() != []


def test_a_document_that_is_no_json_is_passed_over(bench: Bench) -> None:
    bench.tell(DISPATCHER, Hello(1, "dispatcher", "session", 7))
    bench.tell(DISPATCHER, RunOpen(1, RUN, "p", b"{ not json"))
    assert bench.commit() == [(DISPATCHER, Ack(7, 1))]
    assert bench.core.counters.bad == 1


def test_the_status_fits_its_message(bench: Bench) -> None:
    bench.open()
    ((_, reply),) = bench.tell(b"asker", Status(3))
    assert isinstance(reply, StatusReply)
    body = msgspec.json.decode(reply.body)
    assert body["runs"][0]["streams"]["eiger"]["expected"] == 0
    assert (body["runs"][0]["scan_id"], body["runs"][0]["since"]) == (17, 1_700_000_000.0)
    assert len(reply.body) < 60 * 1024


def test_very_many_ranges_are_told_in_several_messages_the_last_of_which_is_full(bench: Bench) -> None:
    bench.open()
    done = bench.core.runs[RUN].streams["eiger"].books.done
    for first in range(0, 3 * MAX_RANGES, 2):
        done.add(first, first + 1)
    heard = [message for _, message in bench.tell(BROKER, Hello(1, "broker", "broker", 5))]
    told = [message for message in heard if isinstance(message, Done) and message.stream == "eiger"]
    assert [message.full for message in told] == [False, True]
    assert sum(len(message.ranges) for message in told) == 3 * MAX_RANGES // 2


_numbers = itertools.count()


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_whatever_is_lost_doubled_reordered_or_killed_every_frame_is_on_disk_once(
    tmp_path: Path, data: st.DataObject
) -> None:
    path = tmp_path / f"{next(_numbers)}.db"
    bench = Bench(path)
    promised = control()
    acknowledged = 0
    pending = {(message.stream, message.first): (message, payload) for message, payload in results()}

    def hear(answers: list[tuple[bytes, Message]]) -> None:
        nonlocal acknowledged
        for peer, message in answers:
            if data.draw(st.sampled_from(["heard", "heard", "lost"])) == "lost":
                continue
            if isinstance(message, Ack):
                acknowledged = max(acknowledged, message.serial)
            elif isinstance(message, Welcome) and message.lease_ms == 0 and peer == DISPATCHER:
                hear(bench.tell(DISPATCHER, Hello(1, "dispatcher", "session", 7)))
            elif isinstance(message, Done) and peer == WORKER:
                on_disk = bench.accounting()[message.stream]["intervals"].values()
                for first, stop in message.ranges:
                    assert sum(min(b, stop) - max(a, first) for s in on_disk for a, b in s if a < stop and b > first)
                    for batch in range(first, stop, BATCH):
                        pending.pop((message.stream, batch), None)

    for _ in range(40):
        what = data.draw(st.sampled_from(["control", "results", "commit", "kill", "fail"]))
        if what == "control":
            for message in promised[acknowledged:]:
                hear(bench.tell(DISPATCHER, message))
        elif what == "results" and pending:
            for key in data.draw(st.lists(st.sampled_from(sorted(pending)), max_size=6)):
                if key in pending:
                    hear(bench.tell(WORKER, *pending[key]))
        elif what == "commit":
            hear(bench.commit())
        elif what == "kill":
            bench.ledger.close()
            bench = Bench(path)
        elif bench.core.take(bench.now + 1) is not None:
            bench.core.failed(OSError("disk full"), bench.now)
            bench.now += 10
    for _ in range(200):
        if not pending and acknowledged == len(promised):
            break
        for message in promised[acknowledged:]:
            hear(bench.tell(DISPATCHER, message))
        hear(bench.commit())
        for message, payload in list(pending.values()):
            hear(bench.tell(WORKER, message, payload))
        hear(bench.commit())
    assert not pending
    accounting = bench.accounting()
    assert {name: (each["live"], each["backfilled"]) for name, each in accounting.items()} == {
        "eiger": (FRAMES - BATCH, BATCH),
        "pilc": (FRAMES - BATCH, BATCH),
    }
    reader = LedgerReader(path)
    stored = [batch.first for batch in reader.batches(RUN, "eiger", "cfg-a")]
    assert stored == list(range(0, FRAMES, BATCH))
    assert all(status == LIVE for status in reader.batches(RUN, "eiger", "cfg-a", limit=1)[0].status)
    reader.close()
    bench.ledger.close()
    assert RUN in Bench(path).core.take_finished()


def test_a_reduction_from_files_is_not_closed_by_the_sink_though_who_began_it_is_gone(bench: Bench) -> None:
    bench.open(1)
    bench.tell(DISPATCHER, msgspec.structs.replace(EIGER, total=FRAMES))
    bench.commit()
    bench.core.close_abandoned(bench.now, 1000.0)
    bench.core.close_abandoned(bench.now + 10_000.0, 11_000.0)
    assert bench.core.counters.abandoned == 0


def other_run(number: int, serial: int) -> RunOpen:
    return RunOpen(serial, f"run-{number}", f"processed-{number}", b"{}")


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


def test_peers_beyond_the_bound_push_out_the_one_that_said_hello_first(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("haltere.workers.sink.core.MAX_PEERS", 2)
    bench.tell(RECORDER, Hello(1, "recorder", "recorder", 1))
    bench.open()
    bench.tell(RECORDER, Hello(1, "recorder", "recorder", 2))
    bench.tell(b"third", Hello(1, "recorder", "third", 1))
    assert bench.tell(DISPATCHER, control()[3]) == [(DISPATCHER, Welcome(1, 1, 0, 0))]
    bench.tell(WORKER, *result(EIGER, 0))
    assert [peer for peer, _ in bench.commit()] == [WORKER, RECORDER, b"third"]


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


def test_what_a_sink_does_not_understand_is_passed_over(bench: Bench) -> None:
    assert bench.tell(WORKER, Ack(7, 3)) == []


def test_a_batch_that_the_ledger_turns_out_to_have_is_a_duplicate(bench: Bench) -> None:
    bench.open()
    bench.tell(WORKER, *result(EIGER, 0))
    bench.now += 2 * GROUP_SECONDS
    assert bench.core.take(bench.now) is not None
    done = Done(RUN, "eiger", "cfg-a", [(0, BATCH)])
    assert bench.core.committed(Outcome([], [False]), bench.now) == [(WORKER, done)]
    assert bench.core.counters.duplicates == bench.core.runs[RUN].duplicates == 1
    assert bench.core.counters.frames == 0


def test_what_comes_is_committed_together_after_a_while(bench: Bench) -> None:
    bench.tell(BROKER, Hello(1, "broker", "broker", 1))
    bench.open()
    spilled = Spilled(0, RUN, "eiger", [FileSpan("eiger_image", "file:///spill/a.h5", "/d", 4, 4, 0)])
    for peer, message, payload in (
        (DISPATCHER, control()[3], None),
        (WORKER, *result(EIGER, 0)),
        (BROKER, spilled, None),
        (WORKER, *result(EIGER, 0)),  # which it has by then
    ):
        bench.tell(peer, message, payload)
        assert bench.core.take(bench.now + 0.9 * GROUP_SECONDS) is None
        bench.tell(b"another", *result(PILC, 0))
        bench.now += 1.1 * GROUP_SECONDS
        group = bench.core.take(bench.now)
        assert group is not None
        bench.core.committed(bench.ledger.commit(group, bench.now), bench.now)


def test_the_ledger_knows_who_told_of_a_run(bench: Bench) -> None:
    bench.open()
    assert bench.ledger.tellers() == {RUN: (7, "session")}


def test_what_comes_is_counted(bench: Bench) -> None:
    bench.open()
    for first in (0, 4, 4):
        bench.tell(WORKER, *result(EIGER, first))
    bench.commit()
    counters = bench.core.counters
    assert bench.core.runs[RUN].streams["eiger"].books.live.per_second(bench.now) > 0
    assert (counters.results, counters.frames, counters.commits, counters.duplicates) == (3, 2 * BATCH, 2, 1)
    assert bench.core.runs[RUN].streams["eiger"].books.buffered == set()


def test_a_refusal_names_the_whole_batch_and_its_token(bench: Bench) -> None:
    bench.open()
    ((_, refusal),) = bench.tell(WORKER, *wrong(status=bytes(1)))
    reason = "the sink refused the result: status of 1 frames, or of no known kind, for 4"
    assert refusal == Nack(RUN, "eiger", 0, BATCH, 1, -1, reason, False)


def test_a_result_from_the_total_on_is_answered_and_not_kept(bench: Bench) -> None:
    bench.open()
    for message in control(8)[3:]:
        bench.tell(DISPATCHER, message)
    bench.commit()
    assert bench.tell(WORKER, *result(EIGER, 8)) == [(WORKER, Done(RUN, "eiger", "cfg-a", [(8, 12)]))]
    assert bench.commit() == []


def test_the_buffer_takes_what_just_fits(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.open()
    bench.tell(WORKER, *result(EIGER, 0, const=False))
    monkeypatch.setattr("haltere.workers.sink.core.MAX_BUFFER", bench.core._waiting.size)
    for first in (4, 8):
        assert bench.tell(WORKER, *result(EIGER, first, const=False)) == []
    assert bench.core.counters.refused == 1
    assert [done.ranges for _, done in bench.commit() if isinstance(done, Done)] == [[(0, 8)]]


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


def test_a_stream_is_told_to_the_broker_with_all_that_is_done_of_it(bench: Bench) -> None:
    bench.tell(BROKER, Hello(1, "broker", "broker", 1))
    bench.tell(DISPATCHER, Hello(1, "dispatcher", "session", 7))
    for message in control()[:2]:
        bench.tell(DISPATCHER, message)
    assert bench.commit() == [
        (BROKER, run_open()),
        (BROKER, EIGER),
        (BROKER, Done(RUN, "eiger", "cfg-a", [], True, 2)),
        (DISPATCHER, Ack(7, 2)),
    ]
    assert bench.tell(DISPATCHER, control()[0]) == [(DISPATCHER, Ack(7, 2))]


def test_all_that_is_done_is_told_again_every_two_seconds_and_nothing_is_due_before(bench: Bench) -> None:
    bench.open()
    assert bench.core.tick(bench.now) == [], "nobody listens"
    bench.tell(BROKER, Hello(1, "broker", "broker", 1))
    assert bench.core.wait(bench.now) == FULL_SECONDS
    assert bench.core.tick(bench.now + 0.99 * FULL_SECONDS) == []
    told = bench.core.tick(bench.now + FULL_SECONDS)
    assert [(peer, done.stream) for peer, done in told if isinstance(done, Done)] == [
        (BROKER, "eiger"),
        (BROKER, "pilc"),
    ]
    assert len(bench.core.tick(bench.now + 2 * FULL_SECONDS)) == 2
    bench.tell(DISPATCHER, control()[3])
    assert bench.core.wait(bench.now) == pytest.approx(GROUP_SECONDS)
    assert bench.core.wait(bench.now + 100.0) == 0.0


def test_drops_that_are_told_while_the_last_frames_are_on_their_way_to_the_disk_are_left_out(bench: Bench) -> None:
    bench.open(len(control()))
    bench.tell(BROKER, Hello(1, "broker", "broker", 3))
    for message, payload in results():
        bench.tell(WORKER, message, payload)
    bench.now += 2 * GROUP_SECONDS
    group = bench.core.take(bench.now)
    assert group is not None
    bench.tell(BROKER, Drops(RUN, "eiger", 3, [("ring-full", 5)]))
    bench.core.committed(bench.ledger.commit(group, bench.now), bench.now)
    assert bench.core.take_finished() == [RUN]
    bench.tell(WORKER, *result(EIGER, 0))
    bench.commit()
    assert bench.accounting()["eiger"]["drops"] == {}


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


def test_who_cannot_be_reached_hears_no_more_until_it_says_hello(bench: Bench) -> None:
    for peer, role in ((BROKER, "broker"), (RECORDER, "recorder")):
        bench.tell(peer, Hello(1, role, role, 1))
    bench.open()
    assert bench.core.unsure(RECORDER, bench.now) == []
    assert bench.core.lost(RECORDER) == []
    assert bench.core.unsure(RECORDER, bench.now) == [(RECORDER, Welcome(1, 1, 0, 0))]
    bench.tell(WORKER, *result(EIGER, 0))
    assert [peer for peer, _ in bench.commit()] == [WORKER, BROKER]
    assert bench.core.lost(BROKER) == []
    bench.tell(WORKER, *result(EIGER, 4))
    assert [peer for peer, _ in bench.commit()] == [WORKER]


def test_the_status_names_the_newest_runs(bench: Bench) -> None:
    bench.tell(DISPATCHER, Hello(1, "dispatcher", "session", 7))
    for number in range(12):
        bench.tell(DISPATCHER, other_run(number, number + 1))
    bench.commit()
    bench.tell(DISPATCHER, msgspec.structs.replace(other_run(5, 13), processed="by other recipes"))
    bench.commit()
    newest = [f"run-{number}" for number in (4, 6, 7, 8, 9, 10, 11, 5)]
    assert [run["run"] for run in bench.core.status(bench.now)["runs"]] == newest


def test_const_outputs_go_to_the_disk_apart_from_their_batch(bench: Bench) -> None:
    bench.open()
    bench.tell(WORKER, *result(EIGER, 0))
    bench.tell(WORKER, *result(EIGER, 4, const=False))
    bench.now += 2 * GROUP_SECONDS
    group = bench.core.take(bench.now)
    assert group is not None
    assert [const.spec.name for const in group.consts] == ["q"]
    names = ["intensity", "intensity_sigma", "counts", "sum"]
    assert [[spec.name for spec in row.arrays] for row in group.batches] == [names, names]
    assert [row.payload for row in group.batches][1] == result(EIGER, 4, const=False)[1]
