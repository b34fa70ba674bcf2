"""What is collected for one commit, and what is on its way to the disk."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from haltere.workers.ledger.rows import BatchRow, ConstRow
from haltere.workers.payload import Piece, pack
from haltere.workers.sink.group import FIRST_PAUSE, GROUP_SECONDS, LONGEST_PAUSE, Grouping

from ..flying import RUN, row

NOW = 100.0


def sized(first: int, size: int) -> BatchRow:
    return replace(row(first), payload=bytes(size))


def const() -> ConstRow:
    (spec,), payload = pack([Piece("xrd", "const", "q", np.arange(3.0))])
    return ConstRow(RUN, "eiger", "cfg-a", spec, bytes(payload))


def test_nothing_is_due_while_nothing_waits() -> None:
    grouping = Grouping()
    assert (grouping.wait(NOW), grouping.take(NOW), grouping.take(NOW, all_=True)) == (None, None, None)
    assert (grouping.size, grouping.rows, grouping.stalled) == (0, 0, False)


def test_a_group_is_taken_a_while_after_its_first_and_then_the_next_is_collected() -> None:
    grouping = Grouping()
    grouping.add(sized(0, 10), [const()], b"a", NOW)
    grouping.add(sized(4, 5), [], b"b", NOW + GROUP_SECONDS / 2)
    assert grouping.wait(NOW) == pytest.approx(GROUP_SECONDS)
    assert grouping.take(NOW + 0.9 * GROUP_SECONDS) is None
    group = grouping.take(NOW + 1.01 * GROUP_SECONDS)
    assert group is not None
    assert ([each.first for each in group.batches], len(group.consts)) == ([0, 4], 1)
    grouping.add(sized(8, 100), [], b"c", NOW + 1.0)
    assert (grouping.size, grouping.rows) == (115, 3)
    assert grouping.take(NOW + 2.0) is group, "the same is tried until it is on disk"
    done = grouping.committed()
    assert (done.group, done.askers, done.size) == (group, [b"a", b"b"], 15)
    assert (grouping.size, grouping.rows) == (100, 1)
    assert grouping.wait(NOW + 1.0) == pytest.approx(GROUP_SECONDS), "it has its own time"
    assert grouping.take(NOW + 1.0) is None
    assert grouping.take(NOW + 1.0, all_=True) is not None


@pytest.mark.parametrize(("rows", "size"), [(3, 1 << 40), (1 << 40, 30)])
def test_a_group_that_is_full_is_taken_at_once(rows: int, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("haltere.workers.sink.group.GROUP_ROWS", rows)
    monkeypatch.setattr("haltere.workers.sink.group.GROUP_BYTES", size)
    grouping = Grouping()
    for number in range(3):
        assert grouping.take(NOW) is None
        grouping.add(sized(4 * number, 10), [], b"a", NOW)
    assert grouping.take(NOW) is not None


def test_what_failed_is_tried_again_after_a_pause_that_grows_to_a_bound_and_begins_anew_after_a_success() -> None:
    grouping = Grouping()
    for _ in range(2):
        grouping.add(row(0), [], b"a", NOW)
        group = grouping.take(NOW, all_=True)
        pauses = []
        for _ in range(6):
            grouping.failed(OSError("full"), NOW)
            assert grouping.stalled
            pauses.append(grouping.wait(NOW))
            assert pauses[-1] is not None
            assert grouping.take(NOW + 0.99 * pauses[-1]) is None
            assert grouping.take(NOW, all_=True) is group
            assert grouping.take(NOW + 1.01 * pauses[-1]) is group
        assert pauses[:2] == pytest.approx([FIRST_PAUSE, 2 * FIRST_PAUSE])
        assert pauses[-2:] == pytest.approx([LONGEST_PAUSE, LONGEST_PAUSE])
        grouping.committed()
        assert not grouping.stalled


def test_a_runs_drops_are_left_out_and_no_others() -> None:
    grouping = Grouping()
    grouping.group.drops = {(RUN, "eiger"): (1, []), ("other", "eiger"): (1, [])}
    grouping.withdraw_drops(RUN)
    assert list(grouping.group.drops) == [("other", "eiger")]


def test_a_group_is_due_when_it_is_said_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("haltere.workers.sink.group.GROUP_SECONDS", 0.25)
    grouping = Grouping()
    grouping.add(row(0), [], b"a", NOW)
    assert grouping.wait(NOW) == 0.25
    group = grouping.take(NOW + 0.25)
    assert group is not None
    grouping.failed(OSError("full"), 0.0)
    assert grouping.take(grouping.wait(0.0) or 0.0) is group
