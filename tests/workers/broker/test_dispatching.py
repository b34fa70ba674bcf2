"""What goes to the workers, and when."""

from __future__ import annotations

import pytest

from haltere.workers.wire.messages import (
    Connect,
    Credit,
    Dropped,
    FileSpan,
    InputSpec,
    RecipeSpec,
    RunOpen,
    StreamOpen,
    Work,
)

from .bench import BATCH, IMAGE, LANE, Bench


def test_nothing_goes_before_the_sink_has_said_what_is_done(bench: Bench) -> None:
    bench.open(synced=False)
    bench.worker()
    bench.frames(0, 1, 2, 3, 4, 5, 6, 7)
    bench.wait(1, alive=(b"w",))
    assert bench.work() == []
    bench.done([(0, 4)], full=True)
    bench.wait(0.1)
    assert [work.first for work in bench.work()] == [4]


def test_news_of_what_is_done_is_not_yet_all_that_is_done(bench: Bench) -> None:
    bench.open(synced=False)
    bench.worker()
    bench.frames(*range(8))
    bench.done([(4, 8)])
    bench.wait(0.1)
    assert bench.work() == []


def test_a_batch_that_is_in_the_ring_goes_without_a_document(bench: Bench) -> None:
    bench.open()
    bench.worker()
    bench.frames(0, 1, 2)
    assert bench.work() == []
    bench.frames(3)
    (work,) = bench.work()
    assert (work.first, work.n, work.files, work.absent) == (0, 4, [], [])
    assert [block.frame for span in work.ring for block in span.blocks] == [0, 1, 2, 3]


def test_a_batch_that_is_added_up_waits_until_its_frames_are_promised(bench: Bench) -> None:
    bench.open(sums=True)
    bench.worker()
    bench.frames(*range(8))
    bench.expect(0, 6)
    bench.wait(0.1)
    assert [(work.first, work.n) for work in bench.work()] == [(0, 4)]
    bench.close(6)
    bench.wait(0.1)
    assert [(work.first, work.n) for work in bench.work()] == [(4, 2)]  # cut, before anything of it was added


def test_a_stream_without_a_live_lane_goes_as_its_files_are_announced(bench: Bench) -> None:
    bench.open(live=False)
    bench.worker()
    bench.expect(0, 6)
    bench.wait(0.1)
    (work,) = bench.work()
    assert work.files == [FileSpan("image", "file:///d/a.h5", "data", 0, 4, 0)]
    assert work.ring == []


def test_the_short_last_batch_waits_for_the_total(bench: Bench) -> None:
    bench.open(live=False)
    bench.worker()
    bench.expect(0, 6)
    bench.wait(1, alive=(b"w",))
    bench.take(Work)
    bench.close(6)
    bench.wait(0.1, alive=(b"w",))
    assert [(work.first, work.n) for work in bench.work()] == [(4, 2)]


def test_a_dropped_frame_comes_from_the_file_and_the_others_from_the_ring(bench: Bench) -> None:
    bench.open()
    bench.worker()
    bench.frames(0, 1, 3)
    bench.hear(b"ingest", Dropped(LANE.endpoint, 12, [(2, 3)], "ring-full"))
    bench.expect(0, 4)
    bench.wait(0.1)
    (work,) = bench.work()
    assert [block.frame for span in work.ring for block in span.blocks] == [0, 1, 3]
    assert [(span.first, span.n, span.offset) for span in work.files] == [(2, 1, 2)]


def test_a_frame_is_waited_for_until_later_ones_have_come_for_half_a_second(bench: Bench) -> None:
    bench.open()
    bench.worker()
    bench.expect(0, 4)
    bench.frames(0, 1, 3)
    bench.wait(0.4, alive=(b"w",))
    assert bench.work() == []
    bench.wait(0.2, alive=(b"w",))
    assert [work.first for work in bench.work()] == [0]


def test_a_live_lane_that_died_is_given_up_when_what_was_promised_does_not_come(bench: Bench) -> None:
    bench.open()
    bench.worker()
    bench.expect(0, 4)
    bench.wait(4.5, alive=(b"w",))
    assert bench.work() == []
    bench.wait(1, alive=(b"w",))
    assert [work.first for work in bench.work()] == [0]


def stream_with_total(bench: Bench, total: int) -> None:
    recipes = [RecipeSpec("xrd", "azimuthal", b"{}")]
    bench.sink(StreamOpen, "run", "eiger", "cfg", BATCH, [IMAGE], recipes, LANE, "drop", total)


def test_a_run_that_has_ended_is_read_from_its_files_at_once_and_claims_no_series(bench: Bench) -> None:
    bench.worker()
    bench.sink(RunOpen, "run", "processed", b"{}")
    stream_with_total(bench, 8)
    bench.done([], full=True)
    bench.expect(0, 8)
    bench.wait(0.1, alive=(b"w",))
    assert [(work.first, work.ring) for work in bench.work()] == [(0, []), (4, [])]
    bench.ingest()
    assert bench.take(Connect) == []
    bench.frames(8)
    assert len(bench.core._waiting) == 1  # another run's, whose document is still on its way


def test_a_stream_that_is_told_again_with_its_total_waits_for_no_frame_any_more(bench: Bench) -> None:
    bench.worker()
    bench.open()
    bench.expect(0, 8)
    bench.frames(0, 1)
    bench.wait(0.1, alive=(b"w",))
    assert bench.work() == []
    stream_with_total(bench, 8)
    bench.frames(2, 3)
    bench.wait(0.1, alive=(b"w",))
    held = {work.first: [block.frame for span in work.ring for block in span.blocks] for work in bench.work()}
    assert held == {0: [0, 1], 4: []}  # what was in the ring stays of use; 2 and 3 may be of another run by now


def test_inputs_beside_the_streamed_one_come_from_files(bench: Bench) -> None:
    bench.open(inputs=(IMAGE, InputSpec("flux", (), "<f8")))
    bench.worker()
    bench.frames(0, 1, 2, 3)
    bench.wait(1, alive=(b"w",))
    assert bench.work() == []
    bench.expect(0, 4, "image", "flux")
    bench.wait(0.1)
    (work,) = bench.work()
    assert [span.key for span in work.files] == ["flux"]
    assert len(work.ring[0].blocks) == 4


def test_a_document_that_promises_a_billion_frames_queues_only_a_few_batches(bench: Bench) -> None:
    bench.open(live=False)
    bench.expect(0, 10**9)
    bench.wait(0.2)
    assert len(bench.core._queue) == 32
    assert len(bench.core.runs.streams[0].batches) == 32


def test_files_get_one_turn_in_four_while_frames_come_live(bench: Bench) -> None:
    bench.open()
    bench.expect(0, 400)
    bench.hear(b"ingest", Dropped(LANE.endpoint, 12, [(0, 200)], "chaos"))
    bench.frames(*range(200, 400))
    bench.wait(0.1)
    bench.worker(credit=8)
    first = [work.first for work in bench.work() if not work.ring]
    assert len(first) == 1, "nobody knows yet how long such a batch takes"
    bench.now += 0.05
    bench.done([(first[0], first[0] + 4)])
    bench.hear(b"w", Credit(1, 28))
    from_files = [not work.ring for work in bench.work()]
    assert [sum(from_files[at : at + 4]) for at in range(4, 20, 4)] == [1] * 4  # the first makes up for the wait


def test_where_the_file_is_the_only_lane_it_is_the_live_one_until_the_run_ends(bench: Bench) -> None:
    bench.open(live=False)
    bench.expect(0, 8)
    bench.wait(0.1)
    assert bench.core.snapshot()["queued"] == {"live": 2, "files": 0}
    bench.close(16)
    bench.expect(8, 16)
    bench.wait(0.1)
    assert bench.core.snapshot()["queued"] == {"live": 2, "files": 2}


def test_a_batch_that_was_done_while_it_waited_goes_to_nobody_and_costs_no_turn(bench: Bench) -> None:
    bench.open()
    bench.frames(0, 1, 2, 3)
    bench.done([(0, 4)])
    spent = dict(bench.core._queue._turns._spent)
    bench.worker()
    assert bench.work() == []
    assert len(bench.core._queue) == 0
    assert bench.core._queue._turns._spent[False] == pytest.approx(spent[False])
    bench.frames(4, 5, 6, 7)
    assert [work.first for work in bench.work()] == [4]
