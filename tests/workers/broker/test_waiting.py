"""What came of series that nobody has claimed yet."""

from __future__ import annotations

import pytest

from haltere.workers.broker.waiting import Waiting
from haltere.workers.wire.messages import Block, Dropped, Frames


def frames(*numbers: int, series: int = 1) -> Frames:
    return Frames("e", series, "r", (1,), "<u2", [Block(number, 0, 1, "none", number) for number in numbers])


def held(waiting: Waiting, now: float) -> list[int]:
    return [each.block.frame for each in waiting.expired(now)]


def test_what_is_said_again_is_kept_once_and_what_waited_is_given_once() -> None:
    waiting = Waiting(30.0)
    assert waiting.put(frames(0, 1), 0.0) == []
    assert waiting.put(frames(1, 2), 1.0) == []
    assert waiting.put(frames(1, 2), 1.0) == []
    assert len(waiting) == 3
    drop = Dropped("e", 1, [(7, 8)], "full")
    assert waiting.put(drop, 2.0) == []
    assert waiting.put(frames(9, series=2), 3.0) == []
    assert waiting.claim("e", 1) == [frames(0, 1), frames(2), drop]
    assert (waiting.claim("e", 1), len(waiting)) == ([], 1)
    assert waiting.put(frames(0), 4.0) == []
    assert len(waiting) == 2, "it isn't known any more"


def test_what_nobody_claims_is_let_go_after_a_while_from_its_first_word_on() -> None:
    waiting = Waiting(30.0)
    waiting.put(frames(0), 0.0)
    waiting.put(Dropped("e", 1, [(7, 8)], "full"), 5.0)
    waiting.put(frames(1), 10.0)
    waiting.put(frames(2, series=2), 11.0)
    waiting.put(Dropped("e", 3, [(7, 8)], "full"), 12.0)
    assert held(waiting, 30.0) == []
    assert held(waiting, 30.1) == [0, 1]
    assert held(waiting, 41.1) == [2]
    assert held(waiting, 99.0) == []
    assert (len(waiting), waiting.claim("e", 3)) == (0, [])


def test_too_many_blocks_are_given_back_and_too_many_drops_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("haltere.workers.broker.waiting.MAX_BLOCKS", 3)
    monkeypatch.setattr("haltere.workers.broker.waiting.MAX_DROPPED", 2)
    waiting = Waiting(30.0)
    assert waiting.put(frames(0, 1, 2), 0.0) == []
    assert [each.block.frame for each in waiting.put(frames(2, 3, 4), 0.0)] == [3, 4]
    for series in range(1, 5):
        waiting.put(Dropped("e", series, [(7, 8)], "full"), 0.0)
    assert [len(waiting.claim("e", series)) for series in range(1, 5)] == [2, 1, 0, 0]


def test_a_series_that_was_claimed_and_comes_again_has_its_own_time() -> None:
    waiting = Waiting(30.0)
    waiting.put(frames(0), 0.0)
    waiting.claim("e", 1)
    waiting.put(frames(5), 25.0)
    assert held(waiting, 31.0) == []
    assert held(waiting, 55.1) == [5]
