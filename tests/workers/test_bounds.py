"""What strangers may make the cores keep: not more than so much, whatever they say."""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Callable

import pytest

from haltere.workers.broker.core import MAX_PEERS, SINK, BrokerCore
from haltere.workers.broker.rings import MAX_FREE
from haltere.workers.broker.waiting import MAX_BLOCKS
from haltere.workers.sink.core import SinkCore
from haltere.workers.wire.messages import (
    MAX_CONTROL,
    AnyMessage,
    Beat,
    Block,
    Credit,
    Done,
    Dropped,
    Frames,
    Free,
    Hello,
    Nack,
    Result,
    Status,
    decode,
    encode,
)
from haltere.workers.worker.core import WorkerCore

from . import flying

FAR = 2**39


def opened() -> BrokerCore:
    broker = BrokerCore(1)
    for message in (flying.run_open(), flying.EIGER, Done(flying.RUN, "eiger", "cfg-a", [], True, 2)):
        broker.receive(SINK, message, 0.0)
    return broker


def test_a_done_of_half_a_trillion_frames_costs_as_much_as_one_of_four() -> None:
    broker, sink, worker = opened(), SinkCore(1, build=flying.build), WorkerCore("w", 1, 0.0)
    done = Done(flying.RUN, "eiger", "cfg-a", [(0, FAR), (FAR + 8, 2 * FAR - 1)], True, 2)
    began = time.process_time()
    tracemalloc.start()
    broker.receive(SINK, done, 1.0)
    broker.tick(1.0)
    sink.receive(b"x", done, None, 1.0)
    worker.from_sink(done, 1.0)
    broker.receive(b"i", Dropped("tcp://x", 1, [(0, FAR)], "boredom"), 1.0)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()
    assert time.process_time() - began < 5


def crowd(number: int) -> tuple[bytes, AnyMessage]:
    return b"peer%d" % number, Hello(1, "worker", f"worker-{number}", number)


def series(number: int) -> tuple[bytes, AnyMessage]:
    return b"ingest", Frames("tcp://x", number, "haltere-1-1", (3, 4), "<u2", [Block(0, 64 * number, 24, "none")])


def drops(number: int) -> tuple[bytes, AnyMessage]:
    return b"ingest", Dropped("tcp://x", number, [(2 * k, 2 * k + 1) for k in range(50)], "boredom")


def reasons(number: int) -> tuple[bytes, AnyMessage]:
    return b"ingest", Dropped("tcp://x", 1, [(number, number + 1)], f"reason-{number}")


def nacks(number: int) -> tuple[bytes, AnyMessage]:
    return b"worker", Nack(flying.RUN, "eiger", 4 * number, 4, number, -1, "no", False)


def beats(number: int) -> tuple[bytes, AnyMessage]:
    return b"worker%d" % number, Beat(number, number, 0, 0, 0, list(range(100)))


def credits_(number: int) -> tuple[bytes, AnyMessage]:
    return b"worker%d" % number, Credit(number, FAR)


@pytest.mark.parametrize("say", [crowd, series, drops, reasons, nacks, beats, credits_])
def test_a_broker_that_is_told_much_keeps_little(say: Callable[[int], tuple[bytes, AnyMessage]]) -> None:
    broker = opened()
    broker.receive(b"ingest", Hello(1, "ingest", "ingest", 1), 0.0)
    tracemalloc.start()
    for number in range(1, 8000):
        peer, message = say(number)
        for send in broker.receive(peer, message, 0.5):
            assert len(encode(send.message)) <= MAX_CONTROL
    assert tracemalloc.get_traced_memory()[0] < 8 << 20
    tracemalloc.stop()
    assert len(broker.peers) <= MAX_PEERS
    (reply,) = broker.receive(b"asks", Status(1), 1.0)
    assert decode(encode(reply.message)) == reply.message
    assert broker.snapshot()["unclaimed"] <= MAX_BLOCKS


def test_peers_beyond_the_most_are_refused_until_others_fall_silent() -> None:
    broker = opened()
    for number in range(MAX_PEERS + 5):
        broker.receive(*crowd(number), 0.0)
    assert broker.counts["refused a peer: too many"] == 5
    broker.tick(100.0)
    assert broker.receive(b"late", Hello(1, "worker", "late", 1), 100.0)


def test_blocks_go_back_in_messages_that_fit_however_large_their_numbers() -> None:
    free = Free("haltere-1234567890-123456", [2**40 - 1] * MAX_FREE, [2**62 - 1] * MAX_FREE)
    assert len(encode(free)) <= MAX_CONTROL


@pytest.mark.parametrize("role", ["dispatcher", "recorder", "worker", "viewer"])
def test_a_sink_that_is_greeted_by_many_keeps_the_last(role: str) -> None:
    sink = SinkCore(1, build=flying.build)
    tracemalloc.start()
    for number in range(1, 8000):
        sink.receive(b"peer%d" % number, Hello(1, role, f"peer-{number}", number), None, 0.0)
    assert tracemalloc.get_traced_memory()[0] < 4 << 20
    tracemalloc.stop()
    assert sum(sink.status(1.0)["peers"].values()) <= 1024


def test_results_for_runs_that_nobody_opened_are_counted_and_leave_nothing(caplog: pytest.LogCaptureFixture) -> None:
    sink = SinkCore(1, build=flying.build)
    tracemalloc.start()
    for number in range(1, 3000):
        sink.receive(b"x", Result(f"run-{number}", "eiger", "cfg", 0, 1, 1, "w", b"\0", [], []), bytes(100), 0.0)
    caplog.clear()
    assert tracemalloc.get_traced_memory()[0] < 4 << 20
    tracemalloc.stop()
    assert sink.status(1.0)["unknown"] == 2999


def test_a_flood_of_bad_results_fills_no_log(caplog: pytest.LogCaptureFixture) -> None:
    sink = SinkCore(1, build=flying.build)
    for number in range(1, 1000):
        sink.receive(b"x", Result(f"run-{number}", "eiger", "cfg", 0, 1, 1, "w", b"\0", [], []), b"", 0.0)
    assert 0 < len(caplog.records) < 30
