"""What is spilled is on its way, in a file, or named as dropped; and said until the ledger has it."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from haltere.workers.spill.core import ABANDON, MAX_SPANS, PATIENCE, RESEND, SpillBook
from haltere.workers.spill.pipe import Put, Refused, Search, Searched, Written
from haltere.workers.wire.messages import Claim, FileSpan, Spilled, decode, encode

CLAIM = Claim("tcp://eiger", 12, "run", "eiger", "eiger_image", 20, "spill")


def span(first: int, n: int = 1) -> FileSpan:
    return FileSpan("eiger_image", "file:///spill/a.h5", "/entry/data/data", first, n, first)


def put(book: SpillBook, frame: int, size: int = 400, now: float = 0.0) -> Put | None:
    return book.put(CLAIM, (2, 3), "<u2", "none", frame, size, now)


def test_a_stream_is_searched_for_once_and_by_each_new_spiller_until_it_was() -> None:
    book = SpillBook(4096)
    assert book.claim(CLAIM) == Search("run", "eiger")
    assert book.claim(CLAIM) is None
    order = put(book, 3)
    assert book.again() == [Search("run", "eiger"), order]
    assert book.account(CLAIM) == (0, 0, False)
    book.searched(Searched("run", "eiger"))
    assert book.again() == [order]


def test_nothing_is_left_when_nothing_is_being_written_that_was_not_given_up() -> None:
    book = SpillBook(4096)
    book.claim(CLAIM)
    book.searched(Searched("run", "eiger"))
    other = Claim(CLAIM.endpoint, 7, "run", "another", "image", 4, "spill")
    book.claim(other)
    assert book.account(CLAIM) == (0, 0, True)
    put(book, 3)
    assert book.account(CLAIM) == (0, 0, False)
    book.searched(Searched("run", "another"))
    assert book.account(other) == (0, 0, True), "another stream's frames"
    assert len(book.overdue(PATIENCE + 0.1)) == 1
    assert book.account(CLAIM) == (0, 0, True)


def test_what_is_written_is_said_until_it_is_confirmed() -> None:
    book = SpillBook(4096)
    book.claim(CLAIM)
    orders = [put(book, frame) for frame in (3, 4)]
    offsets = [order.offset for order in orders if order is not None]
    assert [each[1:] for each in book.pending()] == [(3, 4), (4, 5)]
    (message,) = book.written(Written("run", "eiger", [span(3, 2)], offsets), 1.0)
    assert decode(encode(message)) == message
    assert [each[1:] for each in book.pending()] == [(3, 5)]
    assert book.due(1.0 + RESEND / 2) == []
    assert book.due(1.0 + RESEND) == [message]
    assert book.due(1.1 + RESEND, everything=True) == [message]
    book.confirmed(message)
    assert book.due(100.0) == []
    assert book.pending() == []
    assert book.arena.used == 0
    assert book.account(CLAIM)[:2] == (2, 800)


def test_all_of_before_is_found_when_the_ledger_has_it() -> None:
    book = SpillBook(4096)
    book.claim(CLAIM)
    (message,) = book.written(Written("run", "eiger", [span(3, 2)], []), 1.0)
    book.searched(Searched("run", "eiger"))
    assert book.account(CLAIM) == (2, 0, False)
    book.confirmed(message)
    assert book.account(CLAIM) == (2, 0, True)


def test_what_nobody_confirms_is_let_go_and_counted() -> None:
    book = SpillBook(4096)
    book.claim(CLAIM)
    book.written(Written("run", "eiger", [span(3)], []), 0.0)
    assert book.due(ABANDON + 1) == []
    assert book.summary()["abandoned"] == 1


def test_what_waits_too_long_for_the_disk_is_given_up_once_and_its_memory_kept_until_it_is_read() -> None:
    book = SpillBook(4096)
    book.claim(CLAIM)
    order = put(book, 3)
    late = put(book, 4, now=100.0)
    assert order is not None
    assert late is not None
    assert book.overdue(PATIENCE) == []
    assert book.overdue(PATIENCE + 1) == [(CLAIM, 3)]
    assert book.overdue(PATIENCE + 1) == []
    assert [each[1] for each in book.pending()] == [4]
    assert book.arena.used > 0
    assert book.refused(Refused([order.offset, late.offset], "spill-failed")) == [(CLAIM, 4)]
    assert book.arena.used == 0


def test_many_spans_go_in_messages_that_travel() -> None:
    book = SpillBook(4096)
    book.claim(CLAIM)
    long = [FileSpan("k", "file:///" + "x" * 3000, "/d", 2 * at, 1, at) for at in range(40)]
    for files in (long, [span(2 * at) for at in range(250)]):
        messages = book.written(Written("run", "eiger", files, []), 0.0)
        assert [each for message in messages for each in message.files] == files
        assert all(len(message.files) <= MAX_SPANS and decode(encode(message)) for message in messages)


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_every_frame_is_pending_confirmed_or_dropped_and_its_memory_given_back_once(data: st.DataObject) -> None:
    book = SpillBook(4096)
    book.claim(CLAIM)
    queued: dict[int, int] = {}
    told: list[Spilled] = []
    ends: dict[int, str] = {}
    for frame in range(data.draw(st.integers(1, 40))):
        order = put(book, frame, data.draw(st.integers(1, 900)))
        if order is None:
            ends[frame] = "slow"
        else:
            assert order.offset not in queued
            queued[order.offset] = frame
        what = data.draw(st.sampled_from(["write", "refuse", "confirm", "nothing"]))
        if queued and what in ("write", "refuse"):
            some = data.draw(st.lists(st.sampled_from(sorted(queued)), unique=True, min_size=1))
            frames = [queued.pop(offset) for offset in some]
            if what == "write":
                told += book.written(Written("run", "eiger", [span(each) for each in frames], some), 0.0)
            else:
                assert [number for _, number in book.refused(Refused(some, "spill-full"))] == frames
                ends.update(dict.fromkeys(frames, "refused"))
                assert book.refused(Refused(some, "spill-full")) == []
        elif told and what == "confirm":
            message = told.pop()
            book.confirmed(message)
            ends.update({each.first: "confirmed" for each in message.files})
        pending = {number for _, first, stop in book.pending() for number in range(first, stop)}
        assert pending | ends.keys() == set(range(frame + 1))
        assert not pending & ends.keys()


def test_what_was_written_of_a_stream_that_is_not_known_any_more_is_told_to_nobody() -> None:
    assert SpillBook(4096).written(Written("gone", "eiger", [span(3)], [0]), 1.0) == []


def test_what_is_in_a_file_is_not_given_up_any_more_and_counts_once() -> None:
    book = SpillBook(4096)
    book.claim(CLAIM)
    order = put(book, 3)
    assert order is not None
    for _ in range(2):
        assert book.written(Written("run", "eiger", [span(3)], [order.offset]), 1.0) == [
            Spilled(0, "run", "eiger", [span(3)])
        ]
    assert book.overdue(PATIENCE + 1) == []
    assert book.account(CLAIM) == (2, 400, False)
    assert book.arena.used == 0


def test_what_is_not_confirmed_is_said_again_each_second_and_let_go_after_the_last() -> None:
    book = SpillBook(4096)
    book.claim(CLAIM)
    (message,) = book.written(Written("run", "eiger", [span(3)], []), 100.0)
    for now, said in ((100.5, 0), (101.0, 1), (101.5, 0), (102.0, 1), (100.0 + ABANDON, 1), (100.5 + ABANDON, 0)):
        assert book.due(now) == [message] * said
    assert book.due(101.0 + ABANDON, everything=True) == []
    assert book.pending() == []
    assert book.summary()["abandoned"] == 1


def test_of_a_stream_that_does_not_spill_nothing_is_known() -> None:
    book = SpillBook(4096)
    assert book.account(CLAIM) == (0, 0, False)
    book.searched(Searched("run", "eiger"))
    book.confirmed(Spilled(0, "run", "eiger", [span(3)]))
    assert book.refused(Refused([0], "spill-full")) == []
    assert set(book.summary().values()) == {0}


def test_the_summary_adds_streams_up() -> None:
    book = SpillBook(4096)
    for stream in ("eiger", "merlin"):
        claim = Claim("tcp://eiger", 12, "run", stream, "image", 20, "spill")
        book.claim(claim)
        orders = [book.put(claim, (2, 3), "<u2", "none", frame, 400, 0.0) for frame in (3, 4)]
        assert orders[0] is not None
        book.written(Written("run", stream, [span(3)], [orders[0].offset]), 1.0)
    assert book.summary() == {"spilled": 2, "spilled_bytes": 800, "spilling": 2, "unconfirmed": 2, "abandoned": 0}


def test_messages_are_filled_with_spans_up_to_both_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    def sizes(files: list[FileSpan]) -> list[int]:
        book = SpillBook(4096)
        book.claim(CLAIM)
        return [len(message.files) for message in book.written(Written("run", "eiger", files, []), 0.0)]

    assert sizes([span(at) for at in range(2 * MAX_SPANS + 1)]) == [MAX_SPANS, MAX_SPANS, 1]
    one = len(span(0).uri) + len(span(0).dataset) + 60
    monkeypatch.setattr("haltere.workers.spill.core.MAX_BYTES", 2 * one)
    assert sizes([span(at) for at in range(5)]) == [2, 2, 1]
    monkeypatch.setattr("haltere.workers.spill.core.MAX_BYTES", 2 * one - 1)
    assert sizes([span(at) for at in range(2)]) == [1, 1]
    monkeypatch.setattr("haltere.workers.spill.core.MAX_BYTES", 1)
    assert sizes([span(at) for at in range(2)]) == [1, 1]
    assert sizes([]) == []
