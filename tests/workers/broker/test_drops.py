"""What was dropped: counted once, by its reason, and told to the sink."""

from __future__ import annotations

from haltere.workers.broker.core import SINK
from haltere.workers.broker.drops import AGAIN
from haltere.workers.wire.messages import Dropped, Drops, Welcome

from .bench import LANE, Bench


def test_what_was_dropped_is_counted_once_by_its_reason(bench: Bench) -> None:
    bench.open()
    for _ in range(2):
        bench.hear(b"ingest", Dropped(LANE.endpoint, 12, [(2, 3), (8, 10)], "ring-full"))
    bench.hear(b"ingest", Dropped(LANE.endpoint, 12, [(20, 21)], "chaos"))
    assert bench.core.runs.streams[0].lane.dropped == {"ring-full": 3, "chaos": 1}


def test_what_was_dropped_before_its_stream_was_known_is_counted_when_it_is(bench: Bench) -> None:
    bench.hear(b"ingest", Dropped(LANE.endpoint, 12, [(2, 3)], "ring-full"))
    bench.open()
    assert bench.core.runs.streams[0].lane.dropped == {"ring-full": 1}


def test_the_sink_is_told_of_drops_when_there_are_more_and_now_and_then(bench: Bench) -> None:
    bench.open()
    bench.ingest()
    bench.hear(b"ingest", Dropped(LANE.endpoint, 12, [(2, 3), (8, 10)], "ring-full"))
    bench.wait(1.0, alive=(b"ingest",))
    told = Drops("run", "eiger", 1000, [("ring-full", 3)])
    assert bench.take(Drops) == [(SINK, told)]
    bench.wait(5.0, alive=(b"ingest",))
    assert bench.take(Drops) == [(SINK, told)]  # should the word have been lost
    bench.hear(SINK, Welcome(1, 7, 5000, 500))
    bench.wait(0.05)
    assert bench.take(Drops) == [(SINK, told)]  # should the sink have been


def test_the_sink_is_told_of_drops_again_after_a_while(bench: Bench) -> None:
    bench.open()
    bench.hear(b"ingest", Dropped(LANE.endpoint, 12, [(2, 3)], "ring-full"))
    again = 100.0 + AGAIN
    told = [
        now
        for now in (100.0, again - 0.25, again, again + 0.25)
        if any(isinstance(message, Drops) for _, message in bench.core.tick(now))
    ]
    assert told == [100.0, again]


def test_drops_are_told_in_numbers_that_travel(bench: Bench) -> None:
    bench.open()
    bench.hear(b"ingest", Dropped(LANE.endpoint, 12, [(0, 2**40)], "ring-full"))
    bench.wait(0.05)
    assert bench.take(Drops) == [(SINK, Drops("run", "eiger", 1000, [("ring-full", 2**40 - 1)]))]


def test_a_drop_that_is_told_after_its_frame_was_done_is_not_counted(bench: Bench) -> None:
    bench.open()
    bench.done([(0, 8)])
    bench.hear(b"ingest", Dropped(LANE.endpoint, 12, [(2, 3), (7, 9)], "ring-full"))
    assert bench.core.runs.streams[0].lane.dropped == {"ring-full": 1}
