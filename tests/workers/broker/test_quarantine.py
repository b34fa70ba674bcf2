"""Frames that can't be reduced: damaged, or the death of whoever tries."""

from __future__ import annotations

from haltere.workers.wire.messages import (
    MAX_CONTROL,
    MAX_WORK,
    QUARANTINED,
    Damaged,
    Expect,
    FileSpan,
    InputSpec,
    Nack,
    Work,
    decode,
    encode,
)

from .bench import Bench


def damaged(bench: Bench, work: Work, *frames: int) -> None:
    """Refuse a batch: these frames' bytes in the ring don't decode."""
    key = work.run, work.stream, work.first, work.n, work.token
    found = [Damaged(frame, "chunk of 9 bytes") for frame in frames]
    bench.hear(b"w", Nack(*key, -1, "came damaged", True, list(frames), found))


def test_a_frame_that_came_damaged_is_read_from_its_file(bench: Bench) -> None:
    bench.open()
    bench.worker()
    bench.frames(0, 1, 2, 3)
    (work,) = bench.work()
    bench.expect(0, 8)
    bench.frames(4)
    damaged(bench, work, 2)
    bench.wait(1, alive=(b"w",))
    (again,) = [each for each in bench.work() if each.first == 0]
    assert [block.frame for block in again.ring[0].blocks] == [0, 1, 3]
    assert [(span.first, span.n) for span in again.files] == [(2, 1)]
    assert again.damaged == [Damaged(2, "chunk of 9 bytes")]
    assert again.absent == []
    assert bench.core.counts["frames that came damaged"] == 1


def test_a_frame_that_came_damaged_and_that_no_file_has_is_quarantined_and_not_lost(bench: Bench) -> None:
    bench.open()
    bench.worker()
    bench.frames(0, 1, 2, 3)
    (work,) = bench.work()
    damaged(bench, work, 2)
    bench.expect(0, 2)
    bench.expect(3, 4)
    bench.close(4)
    bench.wait(1, alive=(b"w",))
    (work,) = bench.work()
    (absent,) = work.absent
    assert (absent.frame, absent.status) == (2, QUARANTINED)
    assert absent.reason == ("it came live, and no file was announced that has image; what came live: chunk of 9 bytes")


def test_a_frame_that_came_damaged_and_that_its_file_never_gives_is_quarantined_and_not_lost(bench: Bench) -> None:
    bench.open()
    bench.worker()
    bench.frames(0, 1, 2, 3)
    (work,) = bench.work()
    damaged(bench, work, 2)
    bench.expect(0, 4)
    bench.close(4)
    for _ in range(4):
        bench.wait(2.1, alive=(b"w",))
        (work,) = bench.work()
        assert work.absent == []
        key = work.run, work.stream, work.first, work.n, work.token
        bench.hear(b"w", Nack(*key, -1, "a.h5 has 2 frames", True, [2]))
    (work,) = bench.work()
    assert [(each.frame, each.status, each.reason) for each in work.absent] == [
        (2, QUARANTINED, "a.h5 has 2 frames; what came live: chunk of 9 bytes")
    ]


def test_a_frame_is_quarantined_when_it_alone_has_killed_two_workers(bench: Bench) -> None:
    bench.open()
    bench.worker()
    bench.frames(0, 1, 2, 3)
    (work,) = bench.work()
    assert not work.isolate
    bench.nack(work, reason="worker died, killed by SIGSEGV")
    (work,) = bench.work()
    assert work.isolate
    bench.nack(work, frame=2, reason="worker died, killed by SIGSEGV")
    (work,) = bench.work()
    assert work.absent == []
    bench.nack(work, frame=2, reason="worker died, killed by SIGSEGV")
    (work,) = bench.work()
    assert [(each.frame, each.status) for each in work.absent] == [(2, QUARANTINED)]
    assert [block.frame for block in work.ring[0].blocks] == [0, 1, 3]


def test_workers_that_die_of_something_else_quarantine_nobody(bench: Bench) -> None:
    bench.open()
    bench.frames(0, 1, 2, 3)
    for life in range(20):
        bench.worker(session=life + 1)
        (work,) = bench.work()
        bench.wait(0.5, alive=(b"w",), busy=work.token)
        bench.wait(4)
    bench.worker(session=99)
    (work,) = bench.work()
    assert work.absent == []
    assert work.isolate


def test_a_batch_that_kills_every_worker_before_a_frame_is_named_ends_in_quarantine(bench: Bench) -> None:
    bench.open()
    bench.worker()
    bench.frames(0, 1, 2, 3)
    for _ in range(6):
        (work,) = bench.work()
        assert work.absent == []
        bench.nack(work, reason="worker died, exit code 3")
    (work,) = bench.work()
    assert [each.status for each in work.absent] == [QUARANTINED] * 4


def test_a_batch_whose_files_no_message_can_name_is_quarantined_and_said_so(bench: Bench) -> None:
    keys = [f"k{number}" for number in range(200)]
    bench.open(live=False, inputs=tuple(InputSpec(key, (), "<f8") for key in keys))
    bench.worker()
    folder = "file:///" + "long/" * 60
    for frame in range(8):
        for some in (keys[:100], keys[100:]):  # the second batch lies in one file, the first one in many
            where = [FileSpan(key, f"{folder}{max(4 - frame, 0)}.h5", key, frame, 1, frame) for key in some]
            bench.sink(Expect, "run", "eiger", frame, frame + 1, where)
    bench.close(8)
    bench.wait(0.5, alive=(b"w",))
    first, second = sorted(bench.work(), key=lambda work: work.first)
    assert len(encode(first)) <= MAX_CONTROL
    assert [each.status for each in first.absent] == [QUARANTINED] * 4
    assert "frames 0 to 3 lie in 800 pieces of files, more than a message can name" in first.absent[0].reason
    assert second.absent == []
    assert MAX_CONTROL < len(encode(second)) <= MAX_WORK
    assert decode(encode(second), MAX_WORK) == second


def setup_died(bench: Bench, work: Work, peer: bytes = b"w") -> None:
    key = work.run, work.stream, work.first, work.n, work.token
    bench.hear(peer, Nack(*key, -1, "died while it was set up", False, setup=True))


def test_recipes_that_no_worker_can_set_up_are_not_tried_for_a_while(bench: Bench) -> None:
    bench.open()
    bench.worker()
    bench.frames(0, 1, 2, 3)
    for _ in range(5):
        (work,) = bench.work()
        assert work.absent == []
        assert not work.isolate, "no frame is suspected"
        setup_died(bench, work)
    (work,) = bench.work()
    assert [(each.status, each.reason) for each in work.absent] == [(QUARANTINED, "died while it was set up")] * 4
    assert (work.ring, work.files) == ([], [])
    bench.done([(0, 8)])
    bench.wait(61, alive=(b"w",))
    bench.frames(8, 9, 10, 11)
    (work,) = bench.work()
    assert work.absent == [], "the recipes may be mended"
    setup_died(bench, work)
    (work,) = bench.work()
    assert len(work.absent) == 4, "one more death is enough"


def test_recipes_that_one_worker_cannot_set_up_and_others_can_cost_no_frame(bench: Bench) -> None:
    bench.open()
    bench.worker(b"ill", credit=100)
    bench.worker(b"slow", credit=0)
    bench.frames(0, 1, 2, 3)
    for _ in range(20):
        (work,) = bench.work()
        assert work.absent == []
        setup_died(bench, work, b"ill")
