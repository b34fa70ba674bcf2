"""Tables that say what may become of something."""

from __future__ import annotations

from enum import StrEnum

import pytest

from haltere.workers.states import IllegalMove, Move, StateTable


class Door(StrEnum):
    """Where a door stands."""

    SHUT, OPEN, GONE = "shut", "open", "gone"


class Hand(StrEnum):
    """What happens to it."""

    PUSH, PULL, BREAK = "push", "pull", "break"


STATES = {Door.SHUT: "Nobody gets in.", Door.OPEN: "Anybody does.", Door.GONE: "It is no door any more."}
MOVES: list[tuple[list[Door], Hand, Door, str]] = [
    ([Door.SHUT], Hand.PUSH, Door.OPEN, "Somebody comes."),
    ([Door.OPEN], Hand.PULL, Door.SHUT, "It is cold."),
    ([Door.SHUT, Door.OPEN], Hand.BREAK, Door.GONE, "Somebody is angry."),
]


def test_a_table_says_where_to_go_and_counts_it() -> None:
    table = StateTable("door", STATES, MOVES)
    state = table.first
    for event in (Hand.PUSH, Hand.PULL, Hand.PUSH, Hand.BREAK):
        assert table.allows(state, event)
        state = table.move(state, event)
    assert state is Door.GONE
    assert table.taken == {(Door.SHUT, Hand.PUSH): 2, (Door.OPEN, Hand.PULL): 1, (Door.OPEN, Hand.BREAK): 1}
    assert table.last == [Door.GONE]
    assert Move(Door.OPEN, Hand.BREAK, Door.GONE, "Somebody is angry.") in table.moves


def test_a_move_that_is_not_in_the_table_is_refused_and_counted() -> None:
    table = StateTable("door", STATES, MOVES)
    assert not table.allows(Door.OPEN, Hand.PUSH)
    with pytest.raises(IllegalMove, match="door: open, and then push"):
        table.move(Door.OPEN, Hand.PUSH)
    assert (table.illegal, table.taken) == (1, {})


@pytest.mark.parametrize(
    ("states", "moves", "says"),
    [
        (STATES, [*MOVES, ([Door.SHUT], Hand.PUSH, Door.GONE, "")], "stands twice"),
        (STATES, MOVES[:2], "gone can't be reached"),
        ({Door.SHUT: "", Door.OPEN: ""}, MOVES, "gone can't be reached, or isn't described"),
        ({Door.SHUT: "", Door.GONE: ""}, [([Door.GONE], Hand.PUSH, Door.GONE, "")], "gone can't be reached"),
    ],
)
def test_a_table_that_contradicts_itself_is_none(
    states: dict[Door, str], moves: list[tuple[list[Door], Hand, Door, str]], says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        StateTable("door", states, moves)
