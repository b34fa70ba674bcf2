"""What the broker and the recorder hear of what is done, and what the broker says of drops."""

from __future__ import annotations

import msgspec
import pytest

from haltere.workers.sink.books import MAX_RANGES
from haltere.workers.sink.core import FULL_SECONDS
from haltere.workers.sink.group import GROUP_SECONDS
from haltere.workers.wire.messages import (
    Ack,
    Done,
    Drops,
    Expect,
    FileSpan,
    Hello,
    Message,
    RunClose,
    RunOpen,
    Spilled,
    StreamOpen,
    Welcome,
)

from ..flying import BATCH, EIGER, FRAMES, PILC, RUN, control, result, results, run_open
from .bench import BROKER, DISPATCHER, WORKER, Bench


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


def test_very_many_ranges_are_told_in_several_messages_the_last_of_which_is_full(bench: Bench) -> None:
    bench.open()
    done = bench.core.runs[RUN].streams["eiger"].books.done
    for first in range(0, 3 * MAX_RANGES, 2):
        done.add(first, first + 1)
    heard = [message for _, message in bench.tell(BROKER, Hello(1, "broker", "broker", 5))]
    told = [message for message in heard if isinstance(message, Done) and message.stream == "eiger"]
    assert [message.full for message in told] == [False, True]
    assert sum(len(message.ranges) for message in told) == 3 * MAX_RANGES // 2


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
