"""Ingest's books: every frame that came is announced or named as dropped, and no block is given out twice."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from haltere.workers.ingest.core import (
    CHAOS,
    DECIMATED,
    MALFORMED,
    MAX_TOLD,
    RING_FULL,
    TOO_LARGE,
    Fate,
    IngestCore,
    Source,
)
from haltere.workers.ingest.decimation import FLOOR
from haltere.workers.ingest.series import BLOCK_AT, MAX_CLAIMS, MAX_GAUGED, RECENT, Claims, Series
from haltere.workers.intervals import IntervalSet
from haltere.workers.wire.messages import Block, Claim, Dropped, Frames, Policy, SeriesGauge, decode, encode

EIGER = Source("tcp://127.0.0.1:9999", 12, (514, 1030), "<u2")
RING = "haltere-1-0"


class Ingest:
    """A core whose clock stands still unless it is set."""

    def __init__(self, size: int, **keywords: int) -> None:
        self.core = IngestCore(RING, size, **keywords)
        self.now = 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.core, name)

    def place(self, source: Source, frame: int, size: int, encoding: str) -> int | None:
        """Return the frame's offset, None if it is dropped."""
        place = self.core.place(source, frame, size, encoding, self.now)
        assert place is not Fate.WAIT
        return None if isinstance(place, Fate) else place.offset

    def free(self, ring: str, offsets: list[int], lives: list[int]) -> None:
        """Give blocks back."""
        self.core.free(ring, offsets, lives, self.now)


def core(size: int = 1 << 20, **keywords: int) -> Ingest:
    return Ingest(size, **keywords)


def test_a_ring_that_is_too_small_is_named_with_what_would_do() -> None:
    ingest = core(1 << 20)
    ingest.claim(Claim(EIGER.endpoint, 12, "run-1", "eiger", "eiger_image", 8, "drop"))
    for frame in range(8):
        ingest.place(EIGER, frame, 1000, "bslz4")
    assert ingest.misfits(0.0) == []
    for frame in range(8, 64):
        offset = ingest.place(EIGER, frame, 100_000, "bslz4")
        if offset is not None:
            ingest.free(RING, [offset], [ingest._held[offset][1].life])
    (line,) = ingest.misfits(0.0)
    assert line.startswith("eiger of run run-1: two batches of 8 frames (1.5")
    assert "leaves out pieces of batches: raise ring_bytes to 2" in line
    ingest.place(EIGER, 64, 2 << 20, "bslz4")
    assert ingest.misfits(0.0) == [
        "eiger of run run-1: a frame of 2097152 bytes doesn't fit into the 1 MiB of shared memory, "
        "and never comes live: raise ring_bytes to 16777216 or more"
    ]
    assert ingest.misfits(60.0) == [], "of what is over nothing is said"


def announced(messages: list[Frames | Dropped]) -> list[int]:
    return [block.frame for message in messages if isinstance(message, Frames) for block in message.blocks]


def dropped(messages: list[Frames | Dropped]) -> dict[str, list[tuple[int, int]]]:
    return {message.reason: list(message.ranges) for message in messages if isinstance(message, Dropped)}


def test_a_full_group_is_announced_at_once_and_the_rest_when_asked_for() -> None:
    ingest = core(group=4)
    for frame in range(6):
        ingest.place(EIGER, frame, 100, "bslz4")
    assert announced(ingest.take(everything=False)) == [0, 1, 2, 3]
    assert announced(ingest.take(everything=True)) == [4, 5]
    assert not ingest.pending


def test_frames_of_different_series_never_share_a_message() -> None:
    ingest = core()
    ingest.place(EIGER, 0, 100, "bslz4")
    ingest.place(EIGER._replace(series=13), 0, 100, "bslz4")
    first, second = ingest.take(everything=True)
    assert {first.series, second.series} == {12, 13}


def test_a_frame_that_does_not_fit_is_named_as_dropped_and_counted() -> None:
    ingest = core(1024)
    offsets = [ingest.place(EIGER, frame, 400, "none") for frame in range(4)]
    assert offsets.count(None) == 2
    messages = ingest.take(everything=True)
    assert announced(messages) == [0, 1]
    assert dropped(messages) == {RING_FULL: [(2, 4)]}
    assert ingest.dropped == {RING_FULL: 2}


def test_a_freed_block_is_used_again() -> None:
    ingest = core(1024)
    first = ingest.place(EIGER, 0, 800, "none")
    assert first is not None
    assert ingest.place(EIGER, 1, 800, "none") is None
    ingest.free(RING, [first], [1])
    assert ingest.place(EIGER, 2, 800, "none") == first


def test_a_free_of_a_blocks_former_life_is_void() -> None:
    ingest = core(1024)
    offset = ingest.place(EIGER, 0, 800, "none")
    assert offset is not None
    ingest.free(RING, [offset], [1])
    assert ingest.place(EIGER._replace(series=13), 0, 800, "none") == offset
    ingest.free(RING, [offset], [1])
    ingest.free("haltere-1-9", [offset], [2])
    ingest.free(RING, [offset + 64], [2])
    ingest.free(RING, [offset], [2, 3])
    assert ingest.stray_frees == 4
    assert ingest.place(EIGER, 2, 800, "none") is None


def claim(policy: Policy, batch: int = 4) -> Claim:
    return Claim(EIGER.endpoint, EIGER.series, "run", "eiger", "eiger_image", batch, policy)


def test_of_a_series_that_a_run_has_claimed_whole_batches_are_dropped() -> None:
    ingest = core(20 * 1024)
    ingest.claim(claim("drop"))
    for frame in range(100):
        ingest.now = frame * 0.01
        ingest.place(EIGER, frame, 960, "none")
    messages = ingest.take(everything=True)
    kept = announced(messages)
    assert 12 <= len(kept) <= 20
    assert kept == [
        frame for number in sorted({frame // 4 for frame in kept}) for frame in range(4 * number, 4 * number + 4)
    ]
    assert set(dropped(messages)) <= {DECIMATED, RING_FULL}


def test_a_batch_that_lost_a_frame_is_not_worth_more_room() -> None:
    ingest = core(6 * 1024)
    ingest.claim(claim("drop"))
    fates = [ingest.place(EIGER, frame, size, "none") for frame, size in enumerate([960, 960, 5000, 10])]
    assert [fate is not None for fate in fates] == [True, True, False, False]
    assert dropped(ingest.take(everything=True)) == {RING_FULL: [(2, 4)]}


def test_a_detector_that_can_wait_is_made_to_and_loses_nothing() -> None:
    ingest = core(20 * 1024).core
    ingest.claim(claim("block"))
    offsets = []
    for frame in range(20):
        block = ingest.place(EIGER, frame, 960, "none", 0.0)
        assert isinstance(block, Block)
        offsets.append(block.offset)
    assert not ingest.fetches(EIGER.endpoint, 1.0)
    assert ingest.fetches("tcp://another", 1.0)
    assert ingest.place(EIGER, 20, 960, "none", 1.0) is Fate.WAIT
    freed = ingest.free(RING, offsets[:2], [1, 2], 2.0)
    assert [block.frame for block in freed] == [0, 1]
    assert not ingest.fetches(EIGER.endpoint, 2.0), "it would have to wait again at once"
    ingest.free(RING, offsets[2:4], [3, 4], 3.0)
    assert ingest.fetches(EIGER.endpoint, 3.0)
    assert isinstance(ingest.place(EIGER, 20, 960, "none", 3.0), Block)
    (gauge,) = ingest.gauge(7, 3.0).series
    assert gauge.blocked_ms == 2000
    assert (ingest.frames, ingest.dropped) == (21, {})


def test_a_frame_that_no_ring_of_this_size_can_hold_waits_for_none() -> None:
    ingest = core(2048)
    ingest.claim(claim("block"))
    assert ingest.place(EIGER, 0, 4000, "none") is None
    assert dropped(ingest.take(everything=True)) == {TOO_LARGE: [(0, 1)]}


def test_a_claim_said_again_changes_nothing_and_old_ones_are_forgotten() -> None:
    ingest = core().core
    ingest.claim(claim("block"))
    for frame in range(5):
        ingest.place(EIGER, frame, 64, "none", 0.0)
    first = ingest.claims.get(EIGER.endpoint, EIGER.series)
    ingest.claim(claim("block"))
    assert ingest.claims.get(EIGER.endpoint, EIGER.series) is first
    for series in range(100, 400):
        ingest.claim(replace(claim("drop"), series=series))
    assert len(list(ingest.claims)) == MAX_CLAIMS
    assert len(ingest.gauge(7, 0.0).series) == MAX_GAUGED


def test_chaos_drops_the_same_groups_on_every_run() -> None:
    ingest = core(drop_every=10, drop_group=20)
    kept = [frame for frame in range(400) if ingest.place(EIGER, frame, 64, "none") is not None]
    assert kept == [frame for frame in range(400) if not (180 <= frame < 200 or 380 <= frame < 400)]
    assert dropped(ingest.take(everything=True)) == {CHAOS: [(180, 200), (380, 400)]}


def test_a_garbled_message_is_counted_and_its_frame_named_if_it_is_known() -> None:
    ingest = core()
    ingest.garble(EIGER.endpoint, -1, -1)
    ingest.garble(EIGER.endpoint, 12, 7)
    assert ingest.malformed == 2
    assert dropped(ingest.take(everything=True)) == {MALFORMED: [(7, 8)]}


def test_a_new_broker_is_told_of_every_block_that_is_held() -> None:
    ingest = core(group=4)
    offsets = [ingest.place(EIGER, frame, 100, "bslz4") for frame in range(10)]
    ingest.take(everything=True)
    ingest.place(EIGER, 10, 100, "bslz4")
    ingest.free(RING, [offset for offset in offsets[:3] if offset is not None], [1, 2, 3])
    assert announced(list(ingest.held())) == [3, 4, 5, 6, 7, 8, 9, 10]
    assert announced(ingest.take(everything=True)) == []


def test_what_could_not_be_sent_goes_with_the_next() -> None:
    ingest = core(200)
    ingest.place(EIGER, 0, 64, "none")
    ingest.place(EIGER, 1, 64, "none")
    ingest.untake(ingest.take(everything=True))
    again = ingest.take(everything=True)
    assert announced(again) == [0]
    assert dropped(again) == {RING_FULL: [(1, 2)]}


def test_a_block_that_nobody_gave_back_is_announced_again_when_it_is_old() -> None:
    ingest = core()
    for frame in range(3):
        ingest.place(EIGER, frame, 100, "none")
    ingest.take(everything=True)
    assert ingest.remind() == []
    offset = ingest.place(EIGER, 3, 100, "none")
    ingest.free(RING, [0], [1])
    assert announced(list(ingest.remind())) == [1, 2]
    assert announced(list(ingest.remind())) == [1, 2, 3]
    assert offset is not None


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_block_is_reused_only_when_the_frame_that_it_holds_was_freed(data: st.DataObject) -> None:
    ingest = core(2048, group=2)
    lives: dict[int, int] = {}
    """Which life is at each offset."""
    placed = 0
    told: list[tuple[int, int]] = []
    under_way: list[tuple[int, int]] = []

    def hear(messages: list[Frames | Dropped]) -> None:
        for message in messages:
            if isinstance(message, Frames):
                told.extend((block.offset, block.life) for block in message.blocks)

    for _ in range(data.draw(st.integers(1, 60))):
        what = data.draw(st.sampled_from(["place", "place", "take", "again", "remind", "free", "arrive", "arrive"]))
        if what == "place":
            series = data.draw(st.sampled_from([12, 13]))
            offset = ingest.place(EIGER._replace(series=series), data.draw(st.integers(0, 3)), 400, "none")
            if offset is not None:
                assert offset not in lives
                placed += 1
                lives[offset] = placed
        elif what == "take":
            hear(ingest.take(everything=True))
        elif what == "again":
            hear(list(ingest.held()))
        elif what == "remind":
            hear(list(ingest.remind()))
        elif what == "free" and told:
            under_way.append(data.draw(st.sampled_from(told)))
        elif what == "arrive" and under_way:
            offset, life = under_way.pop(data.draw(st.integers(0, len(under_way) - 1)))
            ingest.free(RING, [offset], [life])
            if lives.get(offset) == life:
                del lives[offset]
        assert ingest.arena.held.keys() == lives.keys()


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_every_frame_is_announced_or_dropped_and_blocks_never_overlap(data: st.DataObject) -> None:
    ingest = core(4096, group=3, drop_every=4, drop_group=2)
    held: dict[int, tuple[int, int, int]] = {}  # frame: offset, size, life
    told: list[int] = []
    gone = IntervalSet()
    lives = 0
    frames = data.draw(st.integers(1, 60))
    for frame in range(frames):
        size = data.draw(st.integers(1, 900))
        offset = ingest.place(EIGER, frame, size, "none")
        if offset is not None:
            assert all(offset + size <= a or offset >= a + n for a, n, _ in held.values())
            lives += 1
            held[frame] = offset, size, lives
        take, release, everything = (data.draw(st.booleans()) for _ in range(3))
        if take:
            for message in ingest.take(everything=everything):
                told += announced([message])
                gone.update(message.ranges if isinstance(message, Dropped) else [])
        if held and release:
            freed = data.draw(st.sampled_from(sorted(held)))
            offset, _, life = held.pop(freed)
            ingest.free(RING, [offset], [life])
    for message in ingest.take(everything=True):
        assert decode(encode(message)) == message
        told += announced([message])
        gone.update(message.ranges if isinstance(message, Dropped) else [])
    assert sorted([*told, *(frame for a, b in gone.ranges() for frame in range(a, b))]) == list(range(frames))


def test_the_newest_series_of_a_detector_is_forgotten_only_with_its_claim() -> None:
    claims = Claims()
    claims.take(claim("drop"))
    other = replace(claim("drop"), endpoint="tcp://other")
    for series in range(MAX_CLAIMS + 1):
        claims.take(replace(other, series=series))
    assert claims.newest(EIGER.endpoint) is None
    newest = claims.newest("tcp://other")
    assert newest is not None
    assert newest.claim.series == MAX_CLAIMS


def test_the_summary_says_how_full_the_ring_is_and_what_came() -> None:
    ingest = core(4096)
    ingest.place(EIGER, 0, 100, "none")
    ingest.place(EIGER, 1, 10_000, "none")
    ingest.core.garble("tcp://eiger", -1, -1)
    summary = ingest.core.summary()
    assert (summary["ring_bytes"], summary["ring_used"]) == (4096, 192)
    assert (summary["frames"], summary["bytes"], summary["malformed"]) == (2, 10_100, 1)
    assert sum(summary["dropped"].values()) == 1


def test_what_finds_no_room_is_spilled_where_that_is_wanted_and_named_nowhere() -> None:
    ingest = core(1024).core
    ingest.claim(claim("spill"))
    assert isinstance(ingest.place(EIGER, 0, 960, "none", 0.0), Block)
    assert ingest.place(EIGER, 1, 960, "none", 0.0) is Fate.SPILL
    assert (ingest.frames, ingest.bytes, ingest.dropped) == (2, 1920, {})
    assert announced(ingest.take(everything=True)) == [0]
    assert not ingest.pending


@pytest.mark.parametrize("policy", ["block", "drop", None])
def test_a_frame_may_fill_the_ring_and_be_no_larger(policy: Policy | None) -> None:
    ingest = core(1024).core
    if policy is not None:
        ingest.claim(claim(policy))
    assert ingest.place(EIGER, 0, 961, "none", 0.0) is Fate.DROPPED
    assert ingest.dropped == {TOO_LARGE: 1}
    assert isinstance(ingest.place(EIGER, 1, 960, "none", 0.0), Block)


def test_what_came_and_what_was_freed_say_what_the_workers_manage() -> None:
    ingest = core()
    ingest.place(EIGER, 0, 100, "none")
    ingest.place(EIGER, 1, 100, "none")
    assert ingest.load.ratio == FLOOR
    assert ingest.core.free(RING, [0], [1, 2], 0.0) == []
    ingest.free(RING, [0], [1])
    assert ingest.load.ratio == 0.5


def test_batches_that_are_coming_in_have_their_room_already() -> None:
    ingest = core()
    for series in (12, 13):
        ingest.claim(replace(claim("drop"), series=series))
        ingest.place(EIGER._replace(series=series), 0, 960, "none")
    assert ingest.core._taken(0.0) == 2 * (1024 + 3 * 960)


def test_a_detector_waits_above_its_fill_not_at_it_and_its_time_is_counted_from_the_first_frame_on() -> None:
    ingest = core(20 * 1024).core
    ingest.claim(claim("block"))
    assert ingest.arena.size * BLOCK_AT == 19 * 1024
    for frame in range(19):
        ingest.place(EIGER, frame, 960, "none", 0.0)
    assert ingest.fetches(EIGER.endpoint, 1.0) is True
    ingest.place(EIGER, 19, 960, "none", 1.0)
    assert ingest.place(EIGER, 20, 960, "none", 2.0) is Fate.WAIT
    assert ingest.fetches(EIGER.endpoint, 2.5) is False
    (gauge,) = ingest.gauge(7, 3.0).series
    assert gauge == SeriesGauge(EIGER.endpoint, EIGER.series, 1.0, 1000, 0, 0, False)
    ingest.free(RING, [1024 * at for at in range(20)], range(1, 21), 4.0)
    assert ingest.fetches(EIGER.endpoint, 4.0) is True
    (gauge,) = ingest.gauge(7, 9.0, lambda _: (3, 2880, True)).series
    assert gauge == SeriesGauge(EIGER.endpoint, EIGER.series, 1.0, 2000, 3, 2880, True)


def test_a_detector_that_cannot_wait_is_fetched_from_however_full_the_ring_is() -> None:
    ingest = core(1024).core
    ingest.claim(claim("drop"))
    ingest.place(EIGER, 0, 960, "none", 0.0)
    assert ingest.fetches(EIGER.endpoint, 0.0) is True
    assert ingest.claims.newest(EIGER.endpoint).blocked_since is None  # type: ignore[union-attr]


@pytest.mark.parametrize(("series", "frame", "known"), [(0, 0, True), (0, -1, False), (-1, 0, False)])
def test_a_garbled_message_may_be_the_first_frame_of_the_first_series(series: int, frame: int, known: bool) -> None:
    ingest = core()
    ingest.garble(EIGER.endpoint, series, frame)
    assert dropped(ingest.take(everything=True)) == ({MALFORMED: [(0, 1)]} if known else {})


def test_of_blocks_that_are_given_back_a_strange_one_costs_no_other() -> None:
    ingest = core()
    for frame in range(3):
        ingest.place(EIGER, frame, 64, "none")
    ingest.free(RING, [0, 99, 128, 256], [1, 2, 7, 3])
    assert ingest.stray_frees == 2
    assert list(ingest.arena.held) == [128]


def test_it_is_pending_for_a_frame_for_a_full_group_and_for_a_drop() -> None:
    ingest = core(1024, group=2)
    assert ingest.pending is False
    ingest.place(EIGER, 0, 64, "none")
    assert ingest.pending is True
    ingest.place(EIGER, 1, 64, "none")
    assert ingest.pending is True
    ingest.take(everything=False)
    assert ingest.pending is False
    ingest.core.name(EIGER.endpoint, 12, 7, 9, RING_FULL)
    assert ingest.pending is True
    assert dropped(ingest.take(everything=True)) == {RING_FULL: [(7, 9)]}
    assert ingest.pending is False


def test_many_ranges_of_dropped_frames_go_in_messages_that_travel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("haltere.workers.ingest.core.MAX_RANGES", 2)
    ingest = core()
    for frame in range(0, 10, 2):
        ingest.core.drop(EIGER.endpoint, 12, frame, CHAOS)
    messages = ingest.take(everything=True)
    assert [message.ranges for message in messages] == [[(0, 1), (2, 3)], [(4, 5), (6, 7)], [(8, 9)]]


def test_a_group_holds_what_it_may_and_a_new_broker_hears_in_groups_too() -> None:
    ingest = core(group=2)
    for frame in range(5):
        ingest.place(EIGER, frame, 64, "none")
    for messages in (ingest.core.held(), ingest.core.held()):
        assert [[block.frame for block in message.blocks] for message in messages] == [[0, 1], [2, 3], [4]]
    assert ingest.take(everything=True) == []


def test_without_being_told_otherwise_64_frames_are_announced_at_once_and_of_20_groups_none_is_left_out() -> None:
    ingest = core()
    for frame in range(400):
        assert ingest.place(EIGER, frame, 64, "none") is not None
    assert [len(message.blocks) for message in ingest.take(everything=False)] == [64] * 6
    assert len(core(drop_every=2)._drops) == 0
    twenty = core(drop_every=2)
    assert [frame for frame in range(40) if twenty.place(EIGER, frame, 64, "none") is None] == [*range(20, 40)]


def test_of_series_that_do_not_fit_the_newest_are_told_as_long_as_they_come() -> None:
    ingest = core(1024)
    for series in range(MAX_TOLD + 2):
        ingest.claim(replace(claim("drop"), series=series, run=f"run-{series}"))
        for size in (2000, 3000, 2000):
            ingest.now = 5.0
            ingest.place(EIGER._replace(series=series), 0, size, "none")
    lines = ingest.misfits(5.0 + RECENT)
    assert [line.partition(":")[0] for line in lines] == [f"eiger of run run-{n}" for n in range(2, MAX_TOLD + 2)]
    assert all("a frame of 3000 bytes" in line and "raise ring_bytes to 24000 or" in line for line in lines)
    assert ingest.misfits(5.1 + RECENT) == []


def test_a_ring_that_parts_batches_is_named_as_long_as_frames_come() -> None:
    ingest = core(1 << 20)
    ingest.claim(claim("drop"))
    ingest.place(EIGER, 0, 1 << 18, "none")
    line = (
        "eiger of run run: two batches of 4 frames (2 MiB) don't fit into the 1 MiB of shared memory: "
        "an overload leaves out pieces of batches: raise ring_bytes to 3145728 or more"
    )
    assert ingest.misfits(RECENT) == [line]
    assert ingest.misfits(RECENT + 0.1) == []


def test_the_part_that_goes_live_is_told() -> None:
    series = Series(claim("drop"))
    series.decimator.kept = 0.25
    assert series.gauge(0.0, (0, 0, True)).kept == 0.25


def test_a_claim_that_says_something_else_begins_anew() -> None:
    claims = Claims()
    first = claims.take(claim("drop"))
    assert claims.take(claim("drop")) is first
    other = claims.take(claim("block"))
    assert other is not first
    assert list(claims) == [other]
    assert claims.newest(EIGER.endpoint) is other
