"""Where a stream's frames lie: the map against a plain list of who has said what."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from haltere.workers.broker.files import FileMap
from haltere.workers.wire.messages import Expect, FileSpan

FRAMES = 14
ranges = st.tuples(st.integers(0, FRAMES - 1), st.integers(1, 6))
spans = st.builds(
    lambda key, range_, name, offset: FileSpan(key, f"file:///{name}", "d", range_[0], range_[1], offset),
    *(st.sampled_from("abx"), ranges, st.sampled_from("12"), st.integers(0, 3)),
)
sayings = st.tuples(st.booleans(), ranges, st.lists(spans, max_size=3))


def expanded(found: list[FileSpan]) -> dict[int, tuple[str, int]]:
    """Return by frame its file and the row in it; no frame twice."""
    rows = [(span.first + k, (span.uri, span.offset + k)) for span in found for k in range(span.n)]
    assert len(dict(rows)) == len(rows)
    assert all(span.n > 0 for span in found)
    return dict(rows)


@settings(max_examples=60, deadline=None)
@given(st.lists(sayings, max_size=6))
def test_each_frame_lies_where_it_was_first_said_and_files_of_the_pool_serve_where_no_other_does(
    said: list[tuple[bool, tuple[int, int], list[FileSpan]]],
) -> None:
    files = FileMap("ab")
    announced: dict[str, dict[int, tuple[str, int]]] = {"a": {}, "b": {}}
    spilled: dict[str, dict[int, tuple[str, int]]] = {"a": {}, "b": {}}
    expected: set[int] = set()
    for spills, (first, n), some in said:
        inside = [span for span in some if spills or (first <= span.first and span.first + span.n <= first + n)]
        if spills:
            files.spill(inside)
        else:
            files.expect(Expect(1, "run", "s", first, first + n, inside))
            expected |= set(range(first, first + n))
        known = spilled if spills else announced
        for span in inside:
            for k in range(span.n if span.key in known else 0):
                known[span.key].setdefault(span.first + k, (span.uri, span.offset + k))
    has = {key: spilled[key] | announced[key] for key in "ab"}
    every = range(FRAMES + 6)
    assert {frame for frame in every if frame in files.expected} == expected
    assert {frame for frame in every if frame in files.covered} == {
        frame for frame in expected if all(frame in has[key] for key in "ab")
    }
    for frame in every:
        assert files.lacking(frame) == [key for key in "ab" if frame not in has[key]]
        assert files.lacking(frame, ["b"]) == [key for key in "b" if frame not in has[key]]
        for key in "abx":
            one = FileSpan(key, "file:///1", "d", frame, 2, 0)
            assert files.has_spilled(one) is all(each in spilled.get(key, {}) for each in (frame, frame + 1))
    for key in "ab":
        assert expanded(files.spans(key, 0, FRAMES + 6)) == has[key]
        assert expanded(files.spans(key, 3, 9)) == {f: where for f, where in has[key].items() if 3 <= f < 9}


def test_spans_that_go_on_where_the_one_before_ends_are_one() -> None:
    files = FileMap(["a"])

    def tell(uri: str, dataset: str, first: int, offset: int) -> None:
        files.expect(Expect(1, "run", "s", first, first + 2, [FileSpan("a", uri, dataset, first, 2, offset)]))

    for where in (("1", "d", 4, 4), ("1", "d", 6, 6), ("1", "d", 0, 0), ("1", "d", 2, 2)):
        tell(*where)
    assert len(files.spans("a", 0, 8)) == 2, "those before 4 came later"
    assert [span.n for span in files.spans("a", 0, 8)] == [4, 4]
    for where in (("2", "d", 8, 8), ("2", "e", 10, 10), ("2", "e", 12, 13), ("2", "e", 15, 16)):
        tell(*where)
    assert [(span.first, span.n) for span in files.spans("a", 8, 20)] == [(8, 2), (10, 2), (12, 2), (15, 2)]


def test_a_span_that_ends_where_a_range_begins_is_no_part_of_it() -> None:
    files = FileMap(["a"])
    files.expect(Expect(1, "run", "s", 0, 2, [FileSpan("a", "1", "d", 0, 2, 0)]))
    assert files.spans("a", 2, 4) == []
    assert files.spans("a", 1, 4) == [FileSpan("a", "1", "d", 1, 1, 1)]


def test_frames_in_a_file_of_the_pool_are_covered_as_far_as_they_were_promised() -> None:
    files = FileMap(["a"])
    files.expect(Expect(1, "run", "s", 0, 6, []))
    files.spill([FileSpan("a", "1", "d", 2, 6, 0)])
    assert files.covered.ranges() == [(2, 6)]
    files.expect(Expect(2, "run", "s", 6, 9, []))
    assert files.covered.ranges() == [(2, 8)]
