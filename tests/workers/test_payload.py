"""Arrays to one buffer, and back."""

from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra import numpy as hnp

from haltere.workers.errors import ReductionError, WireError
from haltere.workers.payload import ALIGN, Piece, pack, unpack
from haltere.workers.wire.messages import ArraySpec

dtypes = st.sampled_from(["<f4", "<f8", ">f4", "<i8", ">u2", "|u1", "|b1", "<f2"])
arrays = dtypes.flatmap(lambda each: hnp.arrays(each, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=5)))


@given(st.lists(arrays, max_size=6))
def test_what_is_packed_comes_back_to_the_bit(given_arrays: list[Any]) -> None:
    specs, buffer = pack(Piece("xrd", "acc", f"a{i}", each) for i, each in enumerate(given_arrays))
    back = unpack(specs, bytes(buffer))
    for piece, array in zip(back, given_arrays, strict=True):
        assert piece.array.shape == array.shape
        assert piece.array.dtype == array.dtype.newbyteorder("<")
        assert piece.array.tobytes() == array.astype(array.dtype.newbyteorder("<")).tobytes()
        assert not piece.array.flags.writeable or piece.array.size == 0
    assert all(spec.offset % ALIGN == 0 for spec in specs)


@given(
    st.lists(
        st.builds(
            ArraySpec,
            st.just("r"),
            st.sampled_from(["nav", "acc", "const", "else"]),
            st.just("n"),
            st.lists(st.integers(0, 2**31 - 1), max_size=8).map(tuple),
            st.sampled_from(["<f4", "<f8", "|u1", "f3", "<u99"]),
            st.integers(0, 200),
        ),
        max_size=4,
    ),
    st.binary(max_size=128),
)
def test_specs_from_a_stranger_are_refused_or_stay_within_the_buffer(specs: list[ArraySpec], buffer: bytes) -> None:
    try:
        pieces = unpack(specs, buffer)
    except WireError:
        return
    assert sum(piece.array.nbytes for piece in pieces) <= len(buffer)


def test_an_empty_array_of_an_impossible_shape_is_refused() -> None:
    with pytest.raises(WireError, match="no array has shape"):
        unpack([ArraySpec("r", "acc", "a", (0, 1030, 2055, 2062, 264156942), "<f8", 0)], b"")


def test_overlapping_arrays_are_refused() -> None:
    specs = [ArraySpec("r", "acc", name, (2,), "<f8", 0) for name in "ab"]
    with pytest.raises(WireError, match="array r/b: 16 bytes at 0 don't fit"):
        unpack(specs, bytes(32))


def test_an_array_of_an_unknown_kind_is_refused() -> None:
    with pytest.raises(WireError, match="array r/a: kind 'sum' is none of acc, const, nav"):
        unpack([ArraySpec("r", "sum", "a", (2,), "<f8", 0)], bytes(16))


def test_a_nav_array_must_have_one_row_per_frame() -> None:
    specs, buffer = pack([Piece("r", "nav", "x", np.zeros((3, 2), "<f4"))])
    assert len(unpack(specs, buffer, frames=3)) == 1
    with pytest.raises(WireError, match="for a batch of 4 frames"):
        unpack(specs, buffer, frames=4)


def test_an_array_of_strings_does_not_travel() -> None:
    with pytest.raises(ReductionError, match="recipe xrf: const output lines has type <U2"):
        pack([Piece("xrf", "const", "lines", np.array(["Fe", "Ka"]))])


def test_a_payload_over_the_limit_is_refused_before_it_is_built() -> None:
    huge = np.broadcast_to(np.float64(0), (2**13, 2**13))
    with pytest.raises(ReductionError, match="over the limit"):
        pack([Piece("r", "acc", "a", huge), Piece("r", "acc", "b", huge)])


def test_arrays_lie_one_behind_the_other_with_no_more_between_than_alignment(monkeypatch: pytest.MonkeyPatch) -> None:
    pieces = [Piece("r", "acc", name, np.zeros(n, "|u1")) for name, n in (("a", 3), ("b", 8), ("c", 9))]
    specs, buffer = pack(pieces)
    assert [spec.offset for spec in specs] == [0, 8, 16]
    assert len(buffer) == 32
    monkeypatch.setattr("haltere.workers.payload.MAX_PAYLOAD", 32)
    assert len(unpack(*pack(pieces))) == 3
    with pytest.raises(WireError, match="over the limit of 32"):
        unpack(specs, bytes(33))
    monkeypatch.setattr("haltere.workers.payload.MAX_PAYLOAD", 31)
    with pytest.raises(ReductionError, match="a result of 32 bytes is over the limit of 31"):
        pack(pieces)
