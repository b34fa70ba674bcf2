"""The dispatcher's conversation with the sink: what is numbered, sent, sent again, and when it greets anew."""

from __future__ import annotations

from haltere.callbacks.dispatch_window import PATIENCE, WINDOW, Window
from haltere.workers.wire.messages import Ack, RunClose, Welcome, decode

WELCOME = Welcome(1, 7, 5000, 500)
UNKNOWN = Welcome(1, 8, 0, 0)


def window(messages: int) -> Window:
    """Return a window with some messages, which nobody has greeted."""
    made = Window(7)
    for number in range(messages):
        assert made.add(RunClose(0, f"run-{number}", [], "success", b"")) == number + 1
    return made


def serials(made: Window) -> list[int]:
    """Return the numbers of what goes now."""
    return [decode(each).serial for each in made.outgoing()]  # type: ignore[union-attr]


def test_messages_are_numbered_and_go_once_until_the_window_is_full() -> None:
    made = window(2)
    assert serials(made) == [1, 2]
    assert serials(made) == []
    made.add(RunClose(0, "run", [], "success", b""))
    assert serials(made) == [3]
    for number in range(3, WINDOW):
        assert made.room, number
        made.add(RunClose(0, "run", [], "success", b""))
    assert not made.room
    made.heard(Ack(7, 1), 0.0)
    assert made.room


def test_what_is_acknowledged_is_forgotten_and_an_older_answer_says_nothing() -> None:
    made = window(3)
    assert (made.session, made.acknowledged, made.empty) == (7, 0, False)
    assert serials(made) == [1, 2, 3]
    assert made.heard(Ack(6, 3), 0.0) is False
    assert (made.acknowledged, made.empty) == (0, False), "of another session"
    assert made.heard(Ack(7, 2), 0.0) is False
    assert made.heard(Ack(7, 1), 0.0) is False
    assert (made.acknowledged, made.empty) == (2, False)
    made.heard(Ack(7, 3), 0.0)
    assert (made.acknowledged, made.empty) == (3, True)
    assert serials(made) == []


def test_a_sink_that_is_greeted_anew_is_told_what_it_has_not_acknowledged_until_then() -> None:
    made = window(6)
    assert len(serials(made)) == 6
    assert made.impatient(10.0)
    assert made.heard(WELCOME, 10.0) is False
    assert made.welcome
    made.heard(Ack(7, 2), 10.0)  # of the first sending
    assert serials(made) == [3, 4, 5, 6]
    assert serials(made) == []


def test_a_welcome_that_was_not_asked_for_is_none() -> None:
    made = window(2)
    assert serials(made) == [1, 2]
    assert made.heard(WELCOME, 0.0) is False
    assert not made.welcome
    assert serials(made) == []
    assert made.impatient(10.0)
    made.heard(WELCOME, 10.0)
    made.heard(Ack(7, 2), 10.0)
    made.add(RunClose(0, "run", [], "success", b""))
    assert serials(made) == [3]
    assert made.heard(WELCOME, 10.1) is False, "said twice"
    assert serials(made) == []


def test_a_sink_that_knows_the_session_no_more_is_greeted_once_and_given_time_to_answer() -> None:
    made = window(1)
    assert made.impatient(10.0)
    assert made.heard(UNKNOWN, 10.5) is False, "it was greeted just now"
    made.heard(WELCOME, 11.0)
    assert made.heard(UNKNOWN, 20.0) is True
    assert not made.welcome
    assert made.heard(UNKNOWN, 20.5) is False
    assert not made.impatient(20.5 + PATIENCE - 0.01)
    assert made.impatient(20.5 + PATIENCE)
    assert made.heard(WELCOME, 30.0) is False
    assert made.welcome


def test_patience_begins_with_each_word_that_brings_something_new() -> None:
    made = window(3)
    assert not made.impatient(PATIENCE - 0.01)
    assert made.impatient(PATIENCE)
    assert not made.impatient(2 * PATIENCE - 0.01), "it was greeted just now"
    made.heard(WELCOME, 10.0)
    assert not made.impatient(10.0 + PATIENCE - 0.01)
    made.heard(Ack(7, 1), 10.5)
    made.heard(Ack(7, 1), 11.0)
    made.heard(Ack(7, 0), 11.0)
    made.rest(11.0)
    assert not made.impatient(10.5 + PATIENCE - 0.01)
    assert made.impatient(10.5 + PATIENCE)


def test_silence_is_no_reason_while_nothing_waits_for_an_answer() -> None:
    made = window(0)
    assert made.impatient(10.0)
    assert made.impatient(20.0), "nobody has welcomed it yet"
    made.heard(WELCOME, 20.0)
    assert not made.impatient(1000.0)
    made.rest(1000.0)
    made.add(RunClose(0, "run", [], "success", b""))
    assert not made.impatient(1000.0 + PATIENCE - 0.01)
    assert made.impatient(1000.0 + PATIENCE)
