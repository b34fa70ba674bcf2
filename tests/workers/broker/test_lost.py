"""When a frame is called lost, and what is waited for before that."""

from __future__ import annotations

import pytest

from haltere.workers.broker.core import SINK
from haltere.workers.wire.messages import (
    LOST,
    Dropped,
    Expect,
    FileSpan,
    Free,
    Gauge,
    Hello,
    Nack,
    RecipeSpec,
    RunOpen,
    SeriesGauge,
    Spilled,
    StreamOpen,
)

from .bench import BATCH, IMAGE, LANE, Bench, nothing_left


def test_a_frame_that_is_nowhere_is_lost_with_the_evidence(bench: Bench) -> None:
    bench.open()
    bench.worker()
    bench.frames(0, 1, 3)
    bench.expect(0, 2)
    bench.expect(3, 4)
    bench.close(4)
    bench.wait(1, alive=(b"w",))
    (work,) = bench.work()
    assert [(each.frame, each.status) for each in work.absent] == [(2, LOST)]
    assert work.absent[0].reason == "it didn't come live, and no file was announced that has image"


def test_a_dropped_frame_that_no_file_has_is_lost_and_says_why(bench: Bench) -> None:
    bench.open()
    bench.worker()
    bench.frames(0, 3)
    bench.hear(b"ingest", Dropped(LANE.endpoint, 12, [(1, 2)], "ring-full"))
    bench.hear(b"ingest", Dropped(LANE.endpoint, 12, [(1, 3)], "decimated"))
    bench.sink(Expect, "run", "eiger", 0, 4, [])
    bench.close(4)
    bench.wait(1, alive=(b"w",))
    (work,) = bench.work()
    nowhere = "and no file was announced that has image"
    assert [(each.frame, each.status, each.reason) for each in work.absent] == [
        (1, LOST, f"dropped: ring-full, {nowhere}"),
        (2, LOST, f"dropped: decimated, {nowhere}"),
    ]


def spilling(bench: Bench) -> None:
    bench.ingest()
    bench.sink(RunOpen, "run", "processed", b"{}")
    recipes = [RecipeSpec("xrd", "azimuthal", b"{}")]
    bench.sink(StreamOpen, "run", "eiger", "cfg", BATCH, [IMAGE], recipes, LANE, "spill")
    bench.done([], full=True)
    bench.worker()
    bench.hear(b"ingest", Dropped(LANE.endpoint, 12, [(0, 4)], "spilling"))
    bench.sink(Expect, "run", "eiger", 0, 4, [])
    bench.close(4)
    nothing_left(bench)


def test_only_an_ingest_that_begins_anew_leaves_doubt_of_what_it_has_spilled(bench: Bench) -> None:
    spilling(bench)
    lane = bench.core.runs.streams[0].lane
    bench.wait(1.1, alive=(b"w", b"ingest"))
    nothing_left(bench)
    bench.wait(0.1, alive=(b"w", b"ingest"))
    bench.worker(b"another")
    bench.ingest()
    assert not lane.may_be_spilled(99, bench.now)
    bench.hear(b"other", Hello(1, "ingest", "other", 1))
    assert lane.may_be_spilled(99, bench.now), "it may have been here before the broker was"
    nothing_left(bench)
    assert not lane.may_be_spilled(99, bench.now)
    bench.wait(0.1, alive=(b"ingest",))
    bench.hear(b"ingest", Hello(1, "ingest", "ingest", 2))
    assert lane.may_be_spilled(99, bench.now)


def test_an_ingest_that_is_lost_leaves_doubt_of_what_it_has_spilled(bench: Bench) -> None:
    spilling(bench)
    lane = bench.core.runs.streams[0].lane
    bench.wait(1.1, alive=(b"ingest",))
    nothing_left(bench)
    bench.wait(3, alive=(b"ingest",))
    assert bench.core.peers.get(b"w") is None
    assert not lane.may_be_spilled(99, bench.now), "a worker has spilled nothing"
    bench.wait(4)
    assert lane.may_be_spilled(99, bench.now)


def test_a_frame_on_its_way_to_a_file_is_waited_for_and_read_from_there(bench: Bench) -> None:
    spilling(bench)
    for _ in range(3):
        bench.wait(2, alive=(b"w", b"ingest"))
    assert bench.work() == []
    said = Spilled(0, "run", "eiger", [FileSpan("image", "file:///spill/a.h5", "data", 0, 4, 7)])
    bench.hear(b"ingest", said)
    assert bench.take(Spilled) == [(SINK, said)], "it isn't on disk yet"
    bench.hear(SINK, said)
    assert bench.take(Spilled) == [(b"ingest", said)]
    bench.wait(0.1, alive=(b"w",))
    (work,) = bench.work()
    assert (work.files, work.absent) == (said.files, [])
    bench.hear(b"ingest", said)
    assert bench.take(Spilled) == [(b"ingest", said)], "it is known: the sink needn't be asked again"
    assert bench.core.snapshot()["runs"]["run"]["streams"]["eiger"]["spilled"] == 4


def test_what_an_ingest_had_in_hand_is_lost_when_its_successor_has_looked_for_it(bench: Bench) -> None:
    spilling(bench)
    bench.hear(b"other", Hello(1, "ingest", "ingest", 2))
    bench.hear(b"other", Gauge(2, [SeriesGauge(LANE.endpoint, 12, 1.0, spills_known=False)]))
    for _ in range(3):
        bench.wait(1, alive=(b"w", b"other"))
    assert bench.work() == []
    bench.hear(b"other", Gauge(2, [SeriesGauge(LANE.endpoint, 12, 1.0)]))
    bench.wait(0.1, alive=(b"w",))
    (work,) = bench.work()
    assert {each.reason for each in work.absent} == {
        "dropped: it was being spilled when its ingest ended, and no file was announced that has image"
    }


@pytest.mark.parametrize("late", [True, False], ids=["said late", "said again"])
def test_what_could_not_be_spilled_is_lost_in_whatever_order_that_is_said(bench: Bench, late: bool) -> None:
    spilling(bench)
    bench.hear(b"ingest", Dropped(LANE.endpoint, 12, [(0, 4)], "spill-full"))
    if late:
        bench.hear(b"ingest", Dropped(LANE.endpoint, 12, [(0, 4)], "spilling"))
    bench.wait(1.1, alive=(b"w", b"ingest"))
    assert bench.work() == []
    nothing_left(bench)
    bench.wait(0.1, alive=(b"w", b"ingest"))
    (work,) = bench.work()
    assert {each.reason for each in work.absent} == {"dropped: spill-full, and no file was announced that has image"}


def test_an_ingest_that_says_no_more_of_frames_on_their_way_has_them_no_more(bench: Bench) -> None:
    spilling(bench)
    for _ in range(20):  # that it gave them up was lost on the way
        bench.wait(2, alive=(b"w", b"ingest"))
    (work,) = bench.work()
    assert [each.frame for each in work.absent] == [0, 1, 2, 3]


def test_nothing_is_called_lost_while_a_document_may_be_missing(bench: Bench) -> None:
    bench.open(live=False)
    bench.worker()
    bench.serial += 1  # an EXPECT that is on disk and never came
    bench.close(4)
    bench.wait(3, alive=(b"w",))
    assert bench.work() == []
    assert [message.role for peer, message in bench.take(Hello) if peer == SINK], "it didn't ask"


def test_a_file_that_is_late_is_tried_again_until_it_is_there(bench: Bench) -> None:
    bench.open(live=False)
    bench.worker()
    bench.expect(0, 4)
    bench.wait(0.1, alive=(b"w",))
    for _ in range(20):
        (work,) = bench.work()
        bench.nack(work, reason="not there yet", retryable=True)
        bench.wait(0.6, alive=(b"w",))
    (work,) = bench.work()
    assert work.absent == []


def test_a_frame_that_no_file_gives_is_lost_after_three_more_tries_when_the_run_is_closed(bench: Bench) -> None:
    bench.open(live=False)
    bench.worker()
    bench.expect(0, 4)
    bench.close(4)
    bench.wait(0.1, alive=(b"w",))
    for _ in range(4):
        (work,) = bench.work()
        assert work.absent == []
        key = work.run, work.stream, work.first, work.n, work.token
        bench.hear(b"w", Nack(*key, -1, "a.h5 has 2 frames", True, [2, 3]))
        bench.wait(2.1, alive=(b"w",))
    (work,) = bench.work()
    assert [(each.frame, each.status, each.reason) for each in work.absent] == [
        (2, LOST, "a.h5 has 2 frames"),
        (3, LOST, "a.h5 has 2 frames"),
    ]


def test_frames_of_a_ring_that_is_gone_come_from_the_file(bench: Bench) -> None:
    bench.open()
    bench.worker()
    bench.frames(0, 1, 2, 3)
    (work,) = bench.work()
    bench.expect(0, 8)
    bench.frames(4)
    key = work.run, work.stream, work.first, work.n, work.token
    bench.hear(b"w", Nack(*key, -1, "ring-1 is gone", True, [0, 1, 2, 3]))
    bench.wait(1, alive=(b"w",))
    (again,) = [each for each in bench.work() if each.first == 0]
    assert (again.ring, [(span.first, span.n) for span in again.files]) == ([], [(0, 4)])
    assert bench.take(Free) == [], "a worker thought dead may still read them"
    bench.done([(0, 4)])
    assert [message.lives for _, message in bench.take(Free)] == [[0, 1, 2, 3]]
