"""What documents say of a detector's frames, as messages: every frame once, and where each of its keys has it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from haltere.callbacks import dispatch_streams
from haltere.callbacks.dispatch_streams import BATCH_BYTES, File, Key, Stream, batch_size, cut, input_spec
from haltere.workers.errors import WireError
from haltere.workers.wire.messages import MAX_BATCH, Expect, FileSpan, InputSpec, encode


def promised(*spans: tuple[str, int, int, int], dataset: str = "/x") -> Stream:
    """Return a stream with one key, of which (file, first frame, frames, first row) were promised."""
    stream = Stream("eiger", {"image": Key()})
    files: dict[str, File] = {}
    for name, first, n, index in spans:
        file = files.setdefault(name, File("image", name, dataset, 0))
        assert stream.keys["image"].promise(file, first, n, index)
    return stream


def files(message: Expect) -> list[tuple[str, int, int, int]]:
    """Return (file, first frame, frames, first row) of a message."""
    return [(each.uri, each.first, each.n, each.offset) for each in message.files]


# --- where frames lie ------------------------------------------------------------------------------------------------


@given(
    st.lists(st.lists(st.integers(1, 4), min_size=1, max_size=4), min_size=1, max_size=4),
    st.booleans(),
    st.integers(1, 5),
)
def test_every_frame_lies_in_the_row_that_its_file_has_whatever_indices_count(
    chunks: list[list[int]], over_all: bool, most: int
) -> None:
    stream, expected = Stream("eiger", {"image": Key()}), {}
    key, first = stream.keys["image"], 0
    found: dict[int, tuple[str, int]] = {}

    def take(message: Expect) -> None:
        assert (message.run, message.stream, message.serial) == ("run", "eiger", 0)
        assert message.first == len(found)
        for span in message.files:
            assert (span.key, span.dataset) == ("image", "/x")
            found.update({span.first + each: (span.uri, span.offset + each) for each in range(span.n)})
        assert sorted(found) == list(range(message.stop))

    for number, ns in enumerate(chunks):
        file, row = File("image", f"{number}.h5", "/x"), 0
        for n in ns:
            assert key.promise(file, first, n, first if over_all else row)
            expected.update({first + each: (f"{number}.h5", row + each) for each in range(n)})
            first, row = first + n, row + n
            assert len(key.spans) <= number + 1, "what follows in the same file is one span"
        if number % most == 0:
            take(stream.expect("run"))
            assert key.spans == []
    if stream.promised() > stream.next:
        take(stream.expect("run"))
    assert found == expected


def test_a_later_file_may_begin_anywhere() -> None:
    key = Key()
    first, second = File("image", "a.h5", "/x"), File("image", "b.h5", "/x")
    key.promise(first, 0, 4, 0)
    key.promise(second, 4, 4, 2)
    key.promise(second, 8, 4, 6)
    assert [(each.uri, each.first, each.n, each.offset) for each in key.spans] == [("a.h5", 0, 4, 0), ("b.h5", 4, 8, 2)]


def test_only_what_follows_in_rows_and_frames_of_the_same_dataset_is_one_span() -> None:
    whole = [("a", 0, 2, 0), ("a", 2, 2, 2)]
    assert files(promised(*whole).expect("run")) == [("a", 0, 4, 0)]
    for parts in (
        [("a", 0, 2, 0), ("a", 2, 2, 5)],
        [("a", 0, 2, 0), ("b", 2, 2, 2)],
        [("a", 0, 2, 7), ("a", 2, 2, 2), ("a", 4, 1, 4)],
    ):
        merged = parts if len(parts) == 2 else [parts[0], ("a", 2, 3, 2)]
        assert files(promised(*parts).expect("run")) == merged
    late = promised(("a", 0, 2, 0), ("a", 3, 2, 2))
    assert files(late.expect("run")) == [("a", 0, 2, 0)]
    key = Key()
    for dataset, first in (("/x", 0), ("/y", 2)):
        assert key.promise(File("image", "a", dataset, 0), first, 2, first)
    assert [each.dataset for each in key.spans] == ["/x", "/y"]


def test_frames_in_no_file_are_promised_and_those_that_were_already_are_not() -> None:
    key = Key()
    assert key.promise(File("image", "", ""), 0, 4, 0)
    assert key.spans == []
    for first, n in ((0, 4), (2, 1), (3, 2), (0, 6)):
        assert not key.promise(File("image", "a", "/x"), first, n, first)
    assert (key.spans, key.promised.ranges()) == ([], [(0, 4)])
    assert key.promise(File("image", "a", "/x", 0), 4, 2, 4)
    assert key.promised.ranges() == [(0, 6)]


# --- what one message says -------------------------------------------------------------------------------------------


def test_frames_are_named_as_far_as_every_key_has_them_without_a_gap() -> None:
    stream = Stream("pilc", {"x": Key(), "y": Key()})
    assert stream.promised() == 0
    x, y = (File(name, name, "/d", 0) for name in "xy")
    stream.keys["x"].promise(x, 0, 6, 0)
    assert stream.promised() == 0
    stream.keys["y"].promise(y, 2, 2, 2)
    assert stream.promised() == 0
    stream.keys["y"].promise(y, 0, 2, 0)
    assert stream.promised() == 4
    assert files(stream.expect("run")) == [("x", 0, 4, 0), ("y", 2, 2, 2), ("y", 0, 2, 0)]
    assert (stream.next, stream.promised()) == (4, 4)
    stream.keys["y"].promise(y, 4, 9, 4)
    message = stream.expect("run")
    assert (message.first, message.stop) == (4, 6)
    assert files(message) == [("x", 4, 2, 4), ("y", 4, 2, 4)]
    assert [(each.first, each.n) for each in stream.keys["y"].spans] == [(6, 7)]
    assert Stream("none", {}, next=3).promised() == 3


def test_what_is_too_much_for_one_message_is_halved(monkeypatch: pytest.MonkeyPatch) -> None:
    apart = [(f"{number}.h5", number, 1, 0) for number in range(11)]
    monkeypatch.setattr(dispatch_streams, "MAX_SPANS", 11)
    assert promised(*apart).expect("run").stop == 11
    monkeypatch.setattr(dispatch_streams, "MAX_SPANS", 10)
    stream = promised(*apart)
    assert [stream.expect("run").stop for _ in range(2)] == [5, 11]
    monkeypatch.setattr(dispatch_streams, "MAX_SPANS", 1)
    stream = promised(*apart[:2])
    assert [stream.expect("run").stop for _ in range(2)] == [1, 2]


def test_a_message_may_have_as_many_bytes_as_it_may_and_not_one_more(monkeypatch: pytest.MonkeyPatch) -> None:
    apart = [(f"{number}.h5", number, 1, 0) for number in range(4)]
    whole = promised(*apart).expect("run")
    monkeypatch.setattr(dispatch_streams, "MAX_EXPECT", len(encode(whole)))
    assert promised(*apart).expect("run") == whole
    monkeypatch.setattr(dispatch_streams, "MAX_EXPECT", len(encode(whole)) - 1)
    assert promised(*apart).expect("run").stop == 2


@pytest.mark.parametrize(("uri", "said"), [("x" * 70_000, "lies in 1 files"), ("x" * 5_000, "not a message")])
def test_a_stream_of_which_nothing_can_be_said_is_refused_for_good(uri: str, said: str) -> None:
    stream = promised(("a.h5", 0, 2, 0), (uri, 2, 2, 0))
    stream.next = 2
    with pytest.raises(WireError, match=said):
        stream.expect("run")
    assert (stream.refused, stream.next, stream.promised()) == (True, 2, 2)


@given(st.integers(0, 20), st.integers(1, 20), st.integers(0, 9), st.integers(0, 40), st.integers(0, 40))
def test_a_cut_span_has_each_frame_where_the_whole_one_had_it(
    first: int, n: int, offset: int, low: int, high: int
) -> None:
    whole = FileSpan("image", "a", "/x", first, n, offset)
    part = cut(whole, low, high)
    rows = {first + each: offset + each for each in range(n) if low <= first + each < high}
    if part is None:
        assert rows == {}
        return
    assert (part.key, part.uri, part.dataset) == ("image", "a", "/x")
    assert {part.first + each: part.offset + each for each in range(part.n)} == rows
    assert rows


# --- shapes, types, batches ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("described", "expected"),
    [
        ({"shape": [1, 514, 1030], "dtype_numpy": "<u2"}, ((514, 1030), "<u2")),
        ({"shape": [514, 1030], "dtype_numpy": ">u4"}, ((514, 1030), ">u4")),
        ({"shape": [1, 1], "dtype_numpy": "<f8"}, ((1,), "<f8")),
        ({"shape": [1], "dtype_numpy": "|b1"}, ((), "|b1")),
        ({"shape": None, "dtype_numpy": "<i8"}, ((), "<i8")),
        ({"dtype_numpy": "<f4"}, ((), "<f4")),
    ],
)
def test_a_frame_has_the_shape_and_type_that_its_key_says(described: dict[str, Any], expected: Any) -> None:
    assert input_spec("image", described) == InputSpec("image", *expected)


@pytest.mark.parametrize("described", [{"shape": [None, 3], "dtype_numpy": "<u2"}, {"shape": []}, {"dtype_numpy": []}])
def test_a_key_without_a_fixed_shape_or_type_of_number_is_none(described: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="isn't"):
        input_spec("key", described)
    for words in ("<U8", "|O", "<c16", "<M8[s]"):
        with pytest.raises(ValueError, match="isn't a number's"):
            input_spec("key", {"shape": [], "dtype_numpy": words})


@pytest.mark.parametrize(
    ("dwell", "size", "expected"),
    [
        (0.005, 1, 20),
        (0.0125, 1, 8),
        (1, 1, 1),
        (1e-9, 1, MAX_BATCH),
        (None, 1, 16),
        ("0.1", 1, 16),
        (0, 1, 16),
        (-1.0, 1, 16),
        (0.005, BATCH_BYTES // 7, 7),
        (0.005, BATCH_BYTES // 7 + 1, 6),
        (1.0, BATCH_BYTES // 7, 1),
        (None, BATCH_BYTES // 7, 7),
        (None, BATCH_BYTES // 17, 16),
        (1e-9, 2 * BATCH_BYTES, 1),
        (None, 2 * BATCH_BYTES, 1),
    ],
)
def test_a_batch_is_a_tenth_of_a_second_or_as_many_frames_as_there_is_room_for(
    dwell: Any, size: int, expected: int
) -> None:
    assert batch_size(dwell, [InputSpec("image", (size,), "|u1")]) == expected


def test_room_is_counted_in_bytes_of_all_inputs() -> None:
    inputs = [InputSpec("image", (1024, 1024), "<u4"), InputSpec("mask", (1024, 1024), "<u2")]
    assert batch_size(1e-9, inputs) == BATCH_BYTES // (6 << 20)
    assert batch_size(0.01, [InputSpec("x", (), "<f8")]) == batch_size(0.01) == 10
    assert batch_size(1e-9) == MAX_BATCH
