"""Whose turn it is: batches as they are committed, and what they wait for."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

from haltere.callbacks.processed_cursor import Cursor, CursorEvent, Place, Stream, Turn
from haltere.workers import recipes
from haltere.workers.ledger.rows import BatchRow, ConstRow
from haltere.workers.payload import Piece, pack
from haltere.workers.reducers.base import Output
from haltere.workers.wire.messages import LIVE, LOST, QUARANTINED, InputSpec, RecipeSpec, StreamOpen

Given = Callable[..., RecipeSpec]


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> Given:
    """Return what makes a recipe with these outputs: a stream is asked for nothing else."""
    known: dict[str, dict[str, Output]] = {}
    monkeypatch.setattr(recipes, "outputs", lambda spec, inputs: known[spec.name])

    def recipe(name: str, outputs: Mapping[str, Output], reducer: str = "any") -> RecipeSpec:
        known[name] = dict(outputs)
        return RecipeSpec(name, reducer, json.dumps({}).encode())

    return recipe


def columns(given: Given, name: str, *keys: str, dtype: str = "<f8") -> RecipeSpec:
    return given(name, dict.fromkeys(keys, Output("nav", (), dtype)), "columns")


def opened(name: str, *specs: RecipeSpec, cfg: str = "c") -> StreamOpen:
    return StreamOpen(0, "raw", name, cfg, 4, [InputSpec("key", (), "<f8")], list(specs))


def row(stream: str, first: int, n: int, cfg: str = "c", status: bytes | None = None, **arrays: Any) -> BatchRow:
    """Return a batch; ``arrays`` are named like ``recipe__output``."""
    pieces = []
    for key, values in arrays.items():
        recipe, name = key.split("__")
        pieces.append(Piece(recipe, "nav", name, np.asarray(values)))
    specs, payload = pack(pieces)
    states = bytes([LIVE] * n) if status is None else status
    return BatchRow("raw", stream, cfg, first, n, states, [], 1, "w", specs, bytes(payload), 1000.0 + first)


def const(recipe: str, name: str, values: Any) -> ConstRow:
    (spec,), payload = pack([Piece(recipe, "const", name, np.asarray(values))])
    return ConstRow("raw", "d", "c", spec, bytes(payload))


def ranges(turns: Any) -> list[tuple[str, int, int]]:
    return [(each.stream.open.stream, each.page.first, each.page.stop) for each in turns]


def test_columns_are_numbers_of_64_bits_and_what_is_not_there_is_none(given: Given) -> None:
    outputs = {
        "counts": Output("nav", (), "<u2"),
        "total": Output("nav", (), "<f4"),
        "piece": Output("nav", (2,), "<f4"),
        "sum": Output("acc", (), "<i8"),
    }
    cursor = Cursor()
    cursor.open(opened("d", given("r", outputs)))
    assert (cursor.streams["d"].scalars, cursor.streams["d"].arrays) == ({"r": ["counts", "total"]}, {"r": ["piece"]})
    list(cursor.promise("d", 8))
    status = bytes([LIVE, QUARANTINED, LOST, LIVE])
    values: dict[str, Any] = {"r__counts": np.array([7, 8, 9, 2], "u2"), "r__total": np.array([0.5, 1, 2, 3], "f4")}
    ((page,), (empty,)) = (
        [turn.page for turn in cursor.batch(each, ())]
        for each in (row("d", 0, 4, status=status, **values), row("d", 4, 4, status=bytes([LOST] * 4)))
    )
    assert (page.first, page.stop, page.time, page.status) == (0, 4, 1000.0, [0, 2, 3, 0])
    assert page.columns["r", "counts"] == [7, 8, 9, 2]
    assert all(type(each) is int for each in page.columns["r", "counts"])
    np.testing.assert_array_equal(page.columns["r", "total"], [0.5, np.nan, np.nan, 3])
    assert empty.columns["r", "counts"] == [0] * 4
    np.testing.assert_array_equal(empty.columns["r", "total"], [np.nan] * 4)
    assert cursor.counts() == {"r": 8}


def test_a_page_is_cut_where_its_run_ends(given: Given) -> None:
    cursor = Cursor()
    cursor.open(opened("d", columns(given, "r", "x")))
    assert list(cursor.batch(row("d", 0, 4, r__x=[0.0, 1, 2, 3]), ())) == []
    assert list(cursor.batch(row("d", 4, 4, r__x=[4.0, 5, 6, 7]), ())) == []
    assert cursor.waiting == 8
    ((turn,), rest) = list(cursor.close({"d": 3})), list(cursor.close({"d": 3}))
    assert (turn.page.stop, turn.page.status, turn.page.columns["r", "x"]) == (3, [0] * 3, [0, 1, 2])
    assert rest == []


def test_what_lies_beyond_the_end_of_a_run_waits_for_nothing(given: Given) -> None:
    cursor = Cursor()
    cursor.open(opened("d", columns(given, "r", "x")))
    for first in (0, 4, 8):
        list(cursor.batch(row("d", first, 4, r__x=np.arange(4.0)), ()))
    assert ranges(cursor.close({"d": 4})) == [("d", 0, 4)]
    assert (cursor.waiting, cursor.streams["d"].place) == (0, Place.ENDED)
    assert list(cursor.batch(row("d", 12, 4, r__x=np.arange(4.0)), ())) == []
    assert cursor.waiting == 0
    assert list(cursor.complete({"d": 4})) == []
    assert cursor.counts() == {"r": 4}


def test_what_nobody_has_promised_waits_be_it_one_frame(given: Given) -> None:
    cursor = Cursor()
    cursor.open(opened("d", columns(given, "r", "x")))
    assert list(cursor.batch(row("d", 0, 1, r__x=[0.0]), ())) == []
    assert list(cursor.promise("d", 0)) == []
    assert ranges(cursor.promise("d", 1)) == [("d", 0, 1)]


def test_of_a_run_that_ended_the_promises_say_what_its_totals_do_not_and_never_shrink(given: Given) -> None:
    cursor = Cursor()
    cursor.open(opened("d", columns(given, "r", "x")))
    assert list(cursor.promise("d", 3)) == []
    assert list(cursor.promise("d", 2)) == []
    assert list(cursor.batch(row("d", 0, 4, r__x=np.arange(4.0)), ())) == []
    assert cursor.streams["d"].place is Place.AHEAD
    assert list(cursor.promise("d", 3)) == []
    assert ranges(cursor.close({"another": 9})) == [("d", 0, 3)]
    cursor.open(opened("e", columns(given, "s", "x")))
    assert list(cursor.batch(row("e", 0, 4, s__x=np.arange(4.0)), ())) == []
    assert cursor.streams["e"].place is Place.ENDED, "nothing of it was promised"
    assert cursor.counts() == {"r": 3}


def joining(given: Given, *wanted: str) -> Cursor:
    """Return a cursor of a detector, and of positions that two recipes give."""
    cursor = Cursor(wanted)
    cursor.open(opened("d", given("r", {"total": Output("nav", (), "<f8")})))
    cursor.open(opened("p", columns(given, "where", "x", "y"), columns(given, "again", "x", "n", dtype="<i4")))
    for stream in "dp":
        assert list(cursor.promise(stream, 12)) == []
    return cursor


def where(first: int, n: int = 4) -> BatchRow:
    frames = np.arange(first, first + n, dtype="f8")
    arrays: dict[str, Any] = {"where__x": frames + 100, "where__y": frames + 200}
    return row("p", first, n, **arrays, again__x=-frames.astype("i4"), again__n=frames.astype("i4"))


@pytest.mark.parametrize(("wanted", "chosen"), [((), ["x", "y", "n"]), (("y", "z"), ["y"]), (("z",), [])])
def test_positions_are_what_is_wanted_of_the_first_recipe_that_gives_each(
    given: Given, wanted: tuple[str, ...], chosen: list[str]
) -> None:
    cursor = joining(given, *wanted)
    assert cursor.streams["p"].columns["x"].dtype == "<f8"
    turns: list[Turn] = list(cursor.batch(row("d", 0, 6, r__total=np.zeros(6)), ()))
    assert bool(turns) is not bool(chosen), "it waits for what it joins"
    for first in (0, 4):
        turns += cursor.batch(where(first), ())
    (turn,) = [each for each in turns if each.stream.open.stream == "d"]
    assert [each.open.stream for each in turn.joined] == (["p"] if chosen else [])
    assert cursor.streams["p"].chosen == chosen
    assert all(each.joined == [] for each in turns if each.stream.open.stream == "p")
    positions = cursor.streams["p"]
    assert [positions.positions("x", 3, 7), positions.positions("y", 3, 7)] == [
        [103, 104, 105, 106],
        [203, 204, 205, 206],
    ]
    assert positions.positions("n", 6, 8) == [6, 7]
    np.testing.assert_array_equal(positions.positions("x", 6, 10), [106, 107, np.nan, np.nan])
    assert np.isnan(positions.positions("total", 0, 2)).all()


def test_a_page_waits_for_promises_then_for_positions_and_frees_what_waits_for_it(given: Given) -> None:
    cursor = joining(given)
    list(cursor.promise("p", 20))
    d, p = cursor.streams["d"], cursor.streams["p"]
    totals: dict[str, Any] = {"r__total": np.zeros(7)}
    assert list(cursor.batch(row("d", 7, 7, **totals), ())) == []
    assert (d.place, d.reaches(0), d.reaches(1)) == (Place.HOLE, True, False)
    assert list(cursor.batch(row("d", 0, 7, **totals), ())) == []
    assert d.place is Place.APART
    assert list(cursor.batch(row("d", 0, 7, **totals), ())) == []
    assert ranges(cursor.batch(where(0), ())) == [("p", 0, 4)]
    assert ranges(cursor.batch(where(4), ())) == [("p", 4, 8), ("d", 0, 7)]
    assert (d.place, d.next, cursor.waiting) == (Place.AHEAD, 7, 7)
    assert ranges(cursor.batch(where(8), ())) == [("p", 8, 12)]
    assert ranges(cursor.promise("d", 13)) == []
    assert ranges(cursor.promise("d", 14)) == []
    assert d.place is Place.APART
    assert list(cursor.batch(row("d", 0, 7, **totals), ())) == []
    assert cursor.waiting == 7, "that page had its turn"
    assert ranges(cursor.complete({"d": 14, "p": 20})) == [("d", 7, 14)]
    assert (d.place, p.place, cursor.waiting) == (Place.ENDED, Place.ENDED, 0)
    assert p.reaches(1000)
    assert list(cursor.complete({"d": 14, "p": 20})) == []
    assert cursor.counts() == {"r": 14, "where": 12, "again": 12}


def test_the_same_stream_again_changes_nothing_and_with_another_configuration_begins_anew(given: Given) -> None:
    cursor, spec = Cursor(), columns(given, "r", "x")
    cursor.open(opened("d", spec))
    first = cursor.streams["d"]
    cursor.open(opened("d", spec))
    assert cursor.streams["d"] is first
    list(cursor.promise("d", 8))
    assert list(cursor.batch(row("d", 0, 4, cfg="other", r__x=np.zeros(4)), ())) == []
    assert list(cursor.batch(row("e", 0, 4, r__x=np.zeros(4)), ())) == []
    assert cursor.waiting == 0
    cursor.open(opened("d", spec, cfg="other"))
    assert cursor.streams["d"] is not first
    assert len(list(cursor.batch(row("d", 0, 4, cfg="other", r__x=np.zeros(4)), ()))) == 1


def test_const_outputs_are_wanted_until_some_came_with_a_batch_and_then_stand(given: Given) -> None:
    outputs = {"total": Output("nav", (), "<f8"), "q": Output("const", (2,), "<f8")}
    cursor = Cursor()
    cursor.open(opened("d", given("r", outputs)))
    cursor.open(opened("p", columns(given, "where", "x")))
    assert cursor.lacks_consts(row("d", 0, 1)) is True
    for other in (row("p", 0, 1), row("d", 0, 1, cfg="other"), row("e", 0, 1)):
        assert cursor.lacks_consts(other) is False
    list(cursor.batch(row("d", 4, 4, r__total=np.zeros(4)), ()))
    assert cursor.lacks_consts(row("d", 0, 1)) is True
    list(cursor.batch(row("d", 0, 4, r__total=np.zeros(4)), [const("r", "q", [1.5, 2.5])]))
    list(cursor.batch(row("d", 8, 4, r__total=np.zeros(4)), [const("r", "q", [9.0, 9.0])]))
    assert cursor.streams["d"].consts == {("r", "q"): [1.5, 2.5]}
    assert cursor.lacks_consts(row("d", 0, 1)) is False


def test_a_stream_that_ended_may_be_ended_again(given: Given) -> None:
    stream = Stream(opened("d", columns(given, "r", "x")))
    seen = []
    for event in (CursorEvent.CAME, CursorEvent.UNPLACED, CursorEvent.UNPLACED, CursorEvent.TURN):
        stream.move(event)
        seen.append(stream.place)
    assert seen == [Place.THERE, Place.APART, Place.APART, Place.HOLE]
    for _ in range(2):
        stream.end()
        assert stream.place is Place.ENDED
