"""State machines as tables: from a state, by an event, to a state, and a sentence that says when.

A core moves by its table alone: a move that isn't in it is a defect, and raises before anything has changed. The
documentation draws these same tables.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import Generic, NamedTuple, TypeVar

S = TypeVar("S", bound=StrEnum)
E = TypeVar("E", bound=StrEnum)


class IllegalMove(AssertionError):
    """A core was about to do what its table doesn't know. The process ends; what takes its place relearns its state."""


class Move(NamedTuple, Generic[S, E]):
    """A row of a table."""

    before: S
    event: E
    after: S
    when: str


class _Row(Generic[S]):
    """Where a move leads, and how often it was made."""

    __slots__ = ("after", "taken")

    def __init__(self, after: S) -> None:
        self.after = after
        self.taken = 0


class StateTable(Generic[S, E]):
    """What may become of something.

    Parameters
    ----------
    name
        What it is that moves.
    states
        Every state, the first one first, with what it means.
    moves
        ``(states before, event, state after, when)``; several states before share a row.

    Raises
    ------
    ValueError
        The table contradicts itself: a move stands twice, or a state can't be reached.

    >>> class Door(StrEnum):
    ...     SHUT, OPEN = "shut", "open"
    >>> class Hand(StrEnum):
    ...     PUSH, PULL = "push", "pull"
    >>> door = StateTable("door", {Door.SHUT: "It is shut.", Door.OPEN: "It is open."}, [
    ...     ([Door.SHUT], Hand.PUSH, Door.OPEN, "Somebody comes in."),
    ...     ([Door.OPEN], Hand.PULL, Door.SHUT, "It is cold outside."),
    ... ])
    >>> door.move(door.first, Hand.PUSH)
    <Door.OPEN: 'open'>
    >>> door.move(Door.SHUT, Hand.PULL)
    Traceback (most recent call last):
    haltere.workers.states.IllegalMove: door: shut, and then pull: the table has no such move
    """

    def __init__(self, name: str, states: Mapping[S, str], moves: Iterable[tuple[Iterable[S], E, S, str]]) -> None:
        self.name = name
        self.states = dict(states)
        self.first = next(iter(self.states))
        self.moves = [Move(before, event, after, when) for some, event, after, when in moves for before in some]
        self.illegal = 0
        """Moves that were about to be made in this process and aren't in the table."""
        self._rows: dict[tuple[S, E], _Row[S]] = {(each.before, each.event): _Row(each.after) for each in self.moves}
        if len(self._rows) < len(self.moves):
            raise ValueError(f"{name}: a move stands twice")
        lost = self.states.keys() - {self.first} - {move.after for move in self.moves if move.after != move.before}
        strange = {state for move in self.moves for state in (move.before, move.after)} - self.states.keys()
        if lost or strange:
            raise ValueError(f"{name}: {', '.join(sorted(lost | strange))} can't be reached, or isn't described")

    def move(self, state: S, event: E) -> S:
        """Return the state after.

        Raises
        ------
        IllegalMove
            There is no such move.
        """
        row = self._rows.get((state, event))
        if row is None:
            self.illegal += 1
            raise IllegalMove(f"{self.name}: {state}, and then {event}: the table has no such move")
        row.taken += 1
        return row.after

    def allows(self, state: S, event: E) -> bool:
        """Say whether there is such a move."""
        return (state, event) in self._rows

    @property
    def last(self) -> list[S]:
        """The states that nothing leads out of."""
        left = {move.before for move in self.moves if move.after != move.before}
        return [state for state in self.states if state not in left]

    @property
    def taken(self) -> Counter[tuple[S, E]]:
        """How often each move was made in this process, those not made left out."""
        return Counter({key: row.taken for key, row in self._rows.items() if row.taken})
