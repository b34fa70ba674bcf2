"""What ingest and spiller tell each other, and what neither of them says."""

from __future__ import annotations

import msgspec
import pytest

from haltere.workers.errors import WireError
from haltere.workers.spill.pipe import (
    Answer,
    Kind,
    Order,
    Put,
    Refused,
    Search,
    Searched,
    Written,
    decode_answer,
    decode_order,
    encode,
)
from haltere.workers.wire.messages import FileSpan

KIND = Kind("9f", "eiger", "image", (4, 6), "<u2", "bslz4")
ORDERS: list[Order] = [Put(KIND, 3, 64, 12), Search("9f", "eiger")]
ANSWERS: list[Answer] = [
    Written("9f", "eiger", [FileSpan("image", "file:///a.h5", "/d", 0, 4, 0)], [0, 64]),
    Refused([64], "spill-full"),
    Searched("9f", "eiger"),
]


def test_what_one_says_the_other_hears_and_neither_takes_its_own_words() -> None:
    assert [decode_order(encode(each)) for each in ORDERS] == ORDERS
    assert [decode_answer(encode(each)) for each in ANSWERS] == ANSWERS
    for answer in ANSWERS:
        with pytest.raises(WireError, match="no ingest sends"):
            decode_order(encode(answer))
    for order in ORDERS:
        with pytest.raises(WireError, match="no spiller sends"):
            decode_answer(encode(order))


@pytest.mark.parametrize("data", [b"", b"\xff", msgspec.msgpack.encode(["SEARCH", 1])])
def test_garbage_is_refused(data: bytes) -> None:
    with pytest.raises(WireError):
        decode_order(data)
    with pytest.raises(WireError):
        decode_answer(data)


def test_files_of_a_stream_begin_with_its_run_and_its_name() -> None:
    assert KIND.stem == "9f.eiger."
