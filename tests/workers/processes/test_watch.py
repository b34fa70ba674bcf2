"""A child under supervision, without a child."""

from __future__ import annotations

import signal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from haltere.workers.processes.watch import (
    FIRST_PAUSE,
    LAST_RESORT,
    LONGEST_PAUSE,
    PATIENCE,
    STARTING,
    STORM,
    STORM_SECONDS,
    Life,
    Watch,
)

READY = {"role": "sink", "ready": True}
BEAT = {"beat": {"kept": 3}}


def alive(now: float = 0.0) -> Watch:
    """Return a watch whose child is ready, and beats."""
    watch = Watch()
    watch.started(now)
    assert watch.hear(READY, now)
    assert not watch.hear(BEAT, now)
    return watch


def state_of(watch: Watch) -> Life:
    return watch.state


def given_up() -> tuple[Watch, float]:
    watch, now = alive(), 0.0
    for _ in range(STORM):
        now += 0.1
        pause = watch.died(1, "the disk is full", now)
        assert pause is not None
        now += pause
        if not watch.gave_up:
            watch.started(now)
            watch.hear(READY, now)
    assert pause == LAST_RESORT
    return watch, now


def test_one_that_dies_is_started_again_sooner_the_longer_it_lived() -> None:
    watch, now, pauses = alive(), 0.0, []
    for lived in (0.1, 0.1, 0.1, 60.0, 0.1):
        now += lived
        pause = watch.died(-signal.SIGKILL, "", now)
        assert state_of(watch) is Life.DOWN
        assert pause is not None
        pauses.append(pause)
        watch.started(now)
    assert pauses == [2 * FIRST_PAUSE, 4 * FIRST_PAUSE, 8 * FIRST_PAUSE, FIRST_PAUSE, 2 * FIRST_PAUSE]
    assert (watch.restarts, watch.last_exit) == (5, -signal.SIGKILL)


def test_one_that_was_never_ready_is_not_tried_again() -> None:
    watch = Watch()
    watch.started(0.0)
    assert watch.died(2, "port 9999 is taken", 1.0) is None
    assert watch.over
    assert watch.gave_up


def test_one_that_dies_in_a_storm_is_given_up_and_tried_each_minute_and_trusted_after_another() -> None:
    watch, now = given_up()
    assert state_of(watch) is Life.GIVEN_UP
    assert not watch.over
    watch.started(now)
    assert watch.died(1, "the disk is full", now + 1) == LAST_RESORT
    watch.started(now)
    watch.hear(READY, now)
    assert not watch.tick(now + STORM_SECONDS)
    assert watch.gave_up
    assert not watch.tick(now + STORM_SECONDS + 1)
    assert state_of(watch) is Life.RUNNING


@pytest.mark.parametrize("last", [Life.STARTING, Life.RUNNING, Life.SILENT])
def test_it_is_a_storm_wherever_the_last_death_comes(last: Life) -> None:
    watch, now = alive(), 0.0
    for _ in range(STORM - 1):
        assert watch.died(1, "", now) != LAST_RESORT
        watch.started(now)
    if last is not Life.STARTING:
        watch.hear(READY, now)
        watch.hear(BEAT, now)
    if last is Life.SILENT:
        now += PATIENCE / 2
        watch.tick(now)
    assert state_of(watch) is last
    assert watch.died(1, "", now) == LAST_RESORT
    assert watch.gave_up


def test_one_that_stops_beating_is_silent_and_then_killed() -> None:
    watch = alive()
    assert not watch.tick(PATIENCE / 3)
    assert state_of(watch) is Life.RUNNING
    assert not watch.tick(PATIENCE / 2)
    assert state_of(watch) is Life.SILENT
    watch.hear(BEAT, PATIENCE / 2)
    assert state_of(watch) is Life.RUNNING
    assert watch.tick(2 * PATIENCE)
    watch.killed(2 * PATIENCE)
    assert not watch.tick(2 * PATIENCE)
    assert watch.died(-signal.SIGKILL, "", 2 * PATIENCE) is not None
    assert (watch.hung, watch.restarts) == (1, 1)


def test_one_that_never_beat_may_be_silent() -> None:
    watch = Watch()
    watch.started(0.0)
    watch.hear(READY, 0.0)
    assert not watch.tick(1e6)
    assert state_of(watch) is Life.RUNNING


def test_who_stood_still_blames_nobody() -> None:
    watch = alive()
    watch.slept(1000.0)
    assert not watch.tick(1000.0 + PATIENCE / 3)
    assert state_of(watch) is Life.RUNNING


def test_one_that_was_started_again_has_to_be_ready_in_time() -> None:
    watch = alive()
    watch.died(1, "", 10.0)
    watch.started(10.0)
    assert not watch.tick(10.0 + STARTING)
    assert watch.tick(10.1 + STARTING)


@pytest.mark.parametrize("state", list(Life))
def test_it_may_be_told_to_end_at_any_time(state: Life) -> None:
    watch, now = given_up() if state in (Life.GIVEN_UP, Life.TRIED) else (alive(), 0.0)
    if state is Life.TRIED:
        watch.started(now)
    elif state is Life.SILENT:
        watch.tick(now + PATIENCE / 2)
    elif state in (Life.DOWN, Life.STARTING):
        watch.died(1, "", now)
        if state is Life.STARTING:
            watch.started(now)
    elif state is Life.ENDED:
        watch.close()
    assert state_of(watch) is state
    watch.close()
    assert state_of(watch) is Life.ENDED
    assert watch.died(0, "", now) is None


def test_one_that_is_not_to_be_started_again_has_ended_when_it_dies() -> None:
    watch = Watch(restart=False)
    watch.started(0.0)
    watch.hear(READY, 0.0)
    assert watch.died(0, "", 1.0) is None
    assert state_of(watch) is Life.ENDED


@given(st.lists(st.tuples(st.sampled_from(("ready", "beat", "tick", "slept", "die")), st.floats(0.0, 100.0))))
def test_whatever_a_child_does_no_pause_is_too_long_and_the_table_knows_it(steps: list[tuple[str, float]]) -> None:
    watch, now = Watch(), 0.0
    watch.started(now)
    for step, seconds in steps:
        now += seconds
        if step in ("ready", "beat"):
            watch.hear(READY if step == "ready" else BEAT, now)
        elif step == "slept":
            watch.slept(now)
        elif step == "tick" and not watch.tick(now):
            continue
        else:
            pause = watch.died(1, "", now)
            if pause is None:
                assert watch.over
                return
            assert pause <= (LAST_RESORT if watch.gave_up else LONGEST_PAUSE)
            now += pause
            watch.started(now)


def test_of_one_that_was_never_started_nothing_is_said() -> None:
    watch = Watch()
    assert (watch.born, watch.heard, watch.last_words, watch.last_exit) == (0.0, 0.0, "", None)
    assert not watch.tick(1e6)
    assert state_of(watch) is Life.DOWN
    assert not watch.over


def test_what_it_said_last_is_known_until_it_is_started_again() -> None:
    watch = alive()
    assert watch.said == {"kept": 3}
    watch.hear({"beat": 7}, 3.0)
    assert (watch.said, watch.heard) == ({}, 3.0)
    watch.hear(BEAT, 4.0)
    watch.died(1, "", 5.0)
    assert watch.said == {"kept": 3}
    watch.started(5.0)
    assert (watch.said, watch.born, watch.heard, watch.ready) == ({}, 5.0, 5.0, READY)


def test_patience_ends_after_its_last_moment() -> None:
    watch = alive(1000.0)
    assert not watch.tick(1000.0 + PATIENCE)
    assert watch.tick(1000.5 + PATIENCE)


def test_one_that_is_trusted_again_was_restarted_once() -> None:
    watch, now = given_up()
    before = watch.restarts
    watch.started(now)
    watch.hear(READY, now)
    watch.tick(now + STORM_SECONDS + 1)
    assert watch.restarts == before + 1


@pytest.mark.parametrize(("seconds", "storm"), [(STORM_SECONDS - 0.5, True), (STORM_SECONDS, False)])
def test_a_storm_is_ten_deaths_within_a_minute(seconds: float, storm: bool) -> None:
    watch = alive(1000.0)
    for number in range(STORM):
        now = 1000.0 + seconds * (number > 0)
        pause = watch.died(1, "", now)
        assert (pause == LAST_RESORT) is (storm and number == STORM - 1)
        if not watch.gave_up:
            watch.started(now)


def test_one_that_lived_for_long_enough_is_started_again_soon() -> None:
    for lived, pause in ((LONGEST_PAUSE, 2 * FIRST_PAUSE), (LONGEST_PAUSE + 0.5, FIRST_PAUSE)):
        assert alive(1000.0).died(1, "", 1000.0 + lived) == pause
