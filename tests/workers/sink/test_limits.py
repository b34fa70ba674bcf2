"""A full disk, bounds, and what the sink says of itself."""

from __future__ import annotations

import msgspec
import pytest

from haltere.workers.sink.group import GROUP_SECONDS
from haltere.workers.wire.messages import Ack, Done, Hello, Status, StatusReply, Welcome

from ..flying import BATCH, EIGER, RUN, control, result
from .bench import BROKER, DISPATCHER, RECORDER, WORKER, Bench, other_run


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


def test_the_status_fits_its_message(bench: Bench) -> None:
    bench.open()
    ((_, reply),) = bench.tell(b"asker", Status(3))
    assert isinstance(reply, StatusReply)
    body = msgspec.json.decode(reply.body)
    assert body["runs"][0]["streams"]["eiger"]["expected"] == 0
    assert (body["runs"][0]["scan_id"], body["runs"][0]["since"]) == (17, 1_700_000_000.0)
    assert len(reply.body) < 60 * 1024


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


def test_what_a_sink_does_not_understand_is_passed_over(bench: Bench) -> None:
    assert bench.tell(WORKER, Ack(7, 3)) == []


def test_the_buffer_takes_what_just_fits(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.open()
    bench.tell(WORKER, *result(EIGER, 0, const=False))
    monkeypatch.setattr("haltere.workers.sink.core.MAX_BUFFER", bench.core._waiting.size)
    for first in (4, 8):
        assert bench.tell(WORKER, *result(EIGER, first, const=False)) == []
    assert bench.core.counters.refused == 1
    assert [done.ranges for _, done in bench.commit() if isinstance(done, Done)] == [[(0, 8)]]


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
