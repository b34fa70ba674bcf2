"""What the sink has told of runs, and when the broker has to ask it for everything."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from haltere.workers.broker.batch import Key
from haltere.workers.broker.runs import MAX_RUNS, Runs, planned_row
from haltere.workers.wire.messages import (
    Block,
    Done,
    Expect,
    FileSpan,
    InputSpec,
    RecipeSpec,
    RunClose,
    RunOpen,
    Spilled,
    StreamOpen,
    StreamTotal,
    Welcome,
)

KEY = Key("run", "eiger", "cfg")
SPAN = FileSpan("image", "file:///d", "x", 0, 4, 0)
OPENED = StreamOpen(2, "run", "eiger", "cfg", 4, [InputSpec("image", (1,), "<u2")], [RecipeSpec("r", "x", b"{}")], None)
EXPECT = Expect(3, "run", "eiger", 0, 4, [SPAN])
CLOSE = RunClose(4, "run", [StreamTotal("eiger", 4)], "success", b"{}")
SPILLED = Spilled(0, "run", "eiger", [SPAN])
WELCOME = Welcome(1, 1, 5000, 500)


@pytest.fixture
def runs() -> Runs:
    """Return runs of which everything was heard."""
    made = Runs(late=0.5, quiet=5.0, keep=30.0)
    assert made.lacking, "at first"
    made.open(RunOpen(1, "run", "processed", b'{"shape": [3, 7]}'))
    assert made.open_stream(OPENED, 0.0) is not None
    made.lacking = False
    return made


def test_a_run_that_is_not_spoken_of_twice_is_to_be_forgotten(runs: Runs) -> None:
    assert [runs.welcome(WELCOME) for _ in range(3)] == [[], [], ["run"]]


@pytest.mark.parametrize(
    "say",
    [
        lambda runs: runs.open(RunOpen(1, "run", "processed", b"{}")),
        lambda runs: runs.open_stream(OPENED, 0.0),
        lambda runs: runs.expect(EXPECT, 0.0),
        lambda runs: runs.spilled(SPILLED, 0.0),
        lambda runs: runs.close(CLOSE, 0.0),
        lambda runs: runs.done(Done("run", "eiger", "cfg", [], True, 2)),
    ],
)
def test_whatever_is_said_of_a_run_says_that_it_is_open(runs: Runs, say: Any) -> None:
    runs.welcome(WELCOME)
    runs.welcome(WELCOME)
    say(runs)
    assert [runs.welcome(WELCOME) for _ in range(3)] == [[], [], ["run"]]


def test_news_of_what_is_done_does_not_say_that_a_run_is_open(runs: Runs) -> None:
    runs.welcome(WELCOME)
    runs.welcome(WELCOME)
    runs.done(Done("run", "eiger", "cfg", [(0, 1)]))
    assert runs.welcome(WELCOME) == ["run"]


def test_a_sink_that_does_not_know_the_broker_has_not_told_everything(runs: Runs) -> None:
    assert runs.welcome(Welcome(1, 1, 0, 0)) == []
    assert runs.lacking


def test_a_stream_that_is_new_is_asked_of_and_one_that_is_known_is_not(runs: Runs) -> None:
    assert runs.open_stream(OPENED, 0.0) is None
    assert not runs.lacking
    other = StreamOpen(2, "run", "pilc", "cfg", 4, OPENED.inputs, OPENED.recipes, None)
    stream = runs.open_stream(other, 0.0)
    assert stream is runs.stream(Key("run", "pilc", "cfg"))
    assert stream is not None
    assert stream.row == 7
    assert runs.lacking


@pytest.mark.parametrize(
    "say",
    [
        lambda runs: runs.expect(Expect(3, "other", "eiger", 0, 4, []), 0.0),
        lambda runs: runs.expect(Expect(3, "run", "other", 0, 4, []), 0.0),
        lambda runs: runs.spilled(Spilled(0, "other", "eiger", []), 0.0),
        lambda runs: runs.close(RunClose(4, "other", [], "success", b"{}"), 0.0),
        lambda runs: runs.done(Done("other", "eiger", "cfg", [], True, 2)),
        lambda runs: runs.done(Done("run", "eiger", "other", [], True, 2)),
        lambda runs: runs.done(Done("run", "eiger", "cfg", [], True, 3)),
        lambda runs: runs.close(CLOSE, 0.0),
    ],
)
def test_what_shows_that_something_was_lost_is_followed_by_a_question(runs: Runs, say: Any) -> None:
    say(runs)
    assert runs.lacking


@pytest.mark.parametrize(
    "say",
    [
        lambda runs: runs.expect(EXPECT, 0.0),
        lambda runs: (runs.expect(EXPECT, 0.0), runs.close(CLOSE, 0.0)),
        lambda runs: runs.done(Done("run", "eiger", "cfg", [], True, 2)),
        lambda runs: runs.done(Done("other", "eiger", "cfg", [(0, 1)])),
        lambda runs: runs.spilled(SPILLED, 0.0),
    ],
)
def test_what_is_whole_asks_for_nothing(runs: Runs, say: Any) -> None:
    say(runs)
    assert not runs.lacking
    runs.lacking = True
    say(runs)
    assert runs.lacking, "what was lost before isn't there yet"


def test_every_promise_was_heard_when_the_sink_says_so_after_the_close_and_as_many_came(runs: Runs) -> None:
    stream = runs.stream(KEY)
    assert stream is not None
    runs.expect(EXPECT, 0.0)
    runs.done(Done("run", "eiger", "cfg", [], True, 3, True))
    assert not stream.confirmed, "it isn't closed here"
    runs.close(CLOSE, 0.0)
    for controls, closed, confirmed in ((5, True, False), (4, False, False), (4, True, True), (5, True, True)):
        runs.done(Done("run", "eiger", "cfg", [], True, controls, closed))
        assert stream.confirmed is confirmed


def test_done_names_the_batches_that_are_done_by_it(runs: Runs) -> None:
    stream = runs.stream(KEY)
    assert stream is not None
    for frame in (1, 5, 9):
        stream.arrive("ring", Block(frame, 0, 1, "none", frame), 0.0)
    assert runs.done(Done("run", "eiger", "cfg", [(0, 8)])) == (stream, {0, 1})
    assert runs.done(Done("run", "eiger", "nobody", [(0, 8)])) is None


def test_a_run_is_told_once_with_its_totals(runs: Runs) -> None:
    assert [each.key for each in runs.close(CLOSE, 0.0)] == [KEY]
    assert runs.close(CLOSE, 0.0) == []
    ((_, run),) = runs
    assert (run.totals, run.complete) == ({"eiger": 4}, False)
    runs.done(Done("run", "eiger", "cfg", [(0, 4)], True, 3, True))
    assert run.complete


def test_a_complete_run_is_kept_for_a_while_unless_it_goes_on(runs: Runs) -> None:
    assert runs.stale(1e9) == []
    runs.close(CLOSE, 0.0)
    runs.done(Done("run", "eiger", "cfg", [(0, 4)], True, 3, True))
    assert runs.stale(100.0) == runs.stale(130.0) == []
    assert runs.stale(130.1) == ["run"]
    runs.open_stream(StreamOpen(2, "run", "pilc", "cfg", 4, OPENED.inputs, OPENED.recipes, None), 131.0)
    pilc = runs.stream(Key("run", "pilc", "cfg"))
    assert pilc is not None
    assert pilc.total == 0, "of which the close said nothing"
    assert runs.stale(131.0) == []
    runs.done(Done("run", "pilc", "cfg", [], True, 4, True))
    assert runs.stale(140.0) == [], "it is complete anew"
    assert runs.stale(170.1) == ["run"]


def test_a_run_that_is_not_complete_keeps_nobody_else(runs: Runs) -> None:
    runs.open(RunOpen(1, "later", "processed", b"{}"))
    runs.close(RunClose(2, "later", [], "success", b"{}"), 0.0)
    assert runs.stale(100.0) == []
    assert runs.stale(130.1) == ["later"]


def test_a_run_that_went_on_between_two_looks_is_complete_anew(runs: Runs) -> None:
    runs.close(CLOSE, 0.0)
    runs.done(Done("run", "eiger", "cfg", [(0, 4)], True, 3, True))
    assert runs.stale(100.0) == []
    runs.open_stream(StreamOpen(2, "run", "pilc", "cfg", 4, OPENED.inputs, OPENED.recipes, None), 101.0)
    runs.done(Done("run", "pilc", "cfg", [], True, 4, True))
    assert runs.stale(131.0) == runs.stale(161.0) == []
    assert runs.stale(161.1) == ["run"]


def test_another_reduction_takes_the_place_of_a_run_and_an_idle_one_makes_room(runs: Runs) -> None:
    assert runs.opening(RunOpen(1, "run", "processed", b"{}")) is None
    assert runs.opening(RunOpen(1, "run", "other", b"{}")) == "run"
    stream = runs.stream(KEY)
    assert stream is not None
    stream.arrive("ring", Block(1, 0, 1, "none", 1), 0.0)
    for number in range(MAX_RUNS - 1):
        assert runs.opening(RunOpen(1, f"run-{number}", "p", b"{}")) is None
        runs.open(RunOpen(1, f"run-{number}", "p", b"{}"))
    assert runs.opening(RunOpen(1, "one more", "p", b"{}")) == "run-0"
    for number in range(MAX_RUNS - 1):
        runs.forget(f"run-{number}")
    assert [held.block.frame for forgotten in runs.forget("run") for held in forgotten.freed] == [1]
    assert (len(runs), runs.streams) == (0, [])


def test_what_an_ingest_says_is_known_when_all_of_it_is(runs: Runs) -> None:
    assert not runs.has_spilled(SPILLED)
    runs.spilled(SPILLED, 0.0)
    assert runs.has_spilled(SPILLED)
    assert not runs.has_spilled(Spilled(0, "run", "eiger", [SPAN, FileSpan("image", "file:///d", "x", 4, 1, 0)]))
    assert not runs.has_spilled(Spilled(0, "run", "pilc", [SPAN]))
    stream = runs.stream(KEY)
    assert stream is not None
    assert stream.lane.spilled == 4


@pytest.mark.parametrize(("total", "first", "lacking"), [(0, 4, False), (4, 0, False), (4, 1, True), (5, 0, True)])
def test_at_the_close_what_no_promise_covers_is_asked_for(runs: Runs, total: int, first: int, lacking: bool) -> None:
    runs.expect(
        Expect(3, "run", "eiger", first, 4, [FileSpan("image", "file:///d", "x", first, max(4 - first, 1), 0)]), 0.0
    )
    runs.close(RunClose(4, "run", [StreamTotal("eiger", total)], "success", b"{}"), 0.0)
    assert runs.lacking is lacking


@pytest.mark.parametrize("plan", [b'{"shape": "wide"}', b"no json", b"\xff"])
def test_a_plan_that_cannot_be_read_has_no_rows(plan: bytes) -> None:
    assert planned_row(plan) == 0


@pytest.mark.parametrize(
    ("shape", "row"),
    [
        ([], 0), ([9], 0), ([3, 0], 0), ([3, -2], 0), ([3, 2**40], 0),
        ([3, 1], 1), ([0, 5], 5), ([2, 0, 5], 5), ([3, 2**40 - 1], 2**40 - 1),
    ],
)  # fmt: skip
def test_the_row_of_a_plan_is_its_last_axis_if_it_has_more_than_one(shape: list[int], row: int) -> None:
    assert planned_row(msgspec.json.encode({"shape": shape})) == row
