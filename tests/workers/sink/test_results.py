"""Results: refused with the reason, or on disk once and answered after that."""

from __future__ import annotations

import msgspec
import pytest

from haltere.workers.ledger.reader import LedgerReader
from haltere.workers.ledger.rows import Outcome
from haltere.workers.sink.group import GROUP_SECONDS
from haltere.workers.wire.messages import LOST, QUARANTINED, Done, FileSpan, Hello, Nack, Result, Spilled

from ..flying import BATCH, EIGER, FRAMES, PILC, RUN, control, result, run_close
from .bench import BROKER, DISPATCHER, RECORDER, WORKER, Bench, wrong


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


def test_a_result_for_an_unknown_run_is_counted_and_not_answered(bench: Bench) -> None:
    assert bench.tell(WORKER, *result(EIGER, 0)) == []
    assert bench.commit() == []
    assert bench.core.counters.unknown == 1


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
