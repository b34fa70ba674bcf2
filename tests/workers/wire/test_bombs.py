"""Small messages that ask for much: time, memory, or a number that fits nowhere. Each is refused at once."""

from __future__ import annotations

import struct
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest

from haltere.workers.errors import WireError
from haltere.workers.wire import array_list, documents, messages, simplon, xspress3

MOST = 4 << 20
"""Bytes that refusing may take; each of these would take gigabytes, or minutes."""

IMAGE = b'{"htype":"dimage-1.0","series":1,"frame":1}'
TIMES = b'{"htype":"dconfig-1.0"}'


def description(**words: Any) -> bytes:
    said = {"shape": "[3,2]", "type": '"uint64"', "encoding": '"bs64-lz4<"', **words}
    return b'{"htype":"dimage_d-1.0",%s}' % ",".join(f'"{key}":{value}' for key, value in said.items()).encode()


ARRAY = b"\x8c\x15numpy.core.multiarray\x8c\x0c_reconstruct\x93\x8c\x05numpy\x8c\x07ndarray\x93\x85R"
BYTE = b"\x8c\x05numpy\x8c\x05dtype\x93\x8c\x02u1\x85R"
TWINS = b"\x80\x04K\x01\x94" + b"".join(b"h%ch%c\x86\x94" % (k, k) for k in range(60))
"""A pair of twice the same pair of twice the same pair …: 60 tuples, 2**60 numbers to compare, hash or print."""


@pytest.mark.parametrize(
    ("decode", "data"),
    [
        (array_list.decode, TWINS + b"K\x00\x85R."),
        (array_list.decode, TWINS + b"\x8c\x05numpy\x93K\x00\x85R."),
        (array_list.decode, TWINS + b"\x8c\x05numpy\x8c\x05dtype\x93h\x3c\x85R."),
        (array_list.decode, TWINS + b"\x8c\x15numpy.core.multiarray\x8c\x0c_reconstruct\x93h\x3c\x85R."),
        (array_list.decode, TWINS + BYTE + b"(K\x03" + b"h\x3ct" + b"b."),
        (array_list.decode, b"\x80\x04" + 30_000 * b"(" + 30_000 * b"t" + b"."),
        (
            array_list.decode,
            b"\x80\x04" + ARRAY + b"(K\x01C\xff" + 255 * b"x" + 2 * b"M\xff\xff" + b"\x87" + BYTE + b"\x89C\x01xtb.",
        ),
        (
            array_list.decode,
            b"\x80\x04" + ARRAY + b"(K\x01" + 2 * b"J\xff\xff\xff\xff" + b"\x86" + BYTE + b"\x89C\x01xtb.",
        ),
        (simplon.decode, [IMAGE, description(shape="[2147483647,2147483647]"), b"", TIMES]),
        (simplon.decode, [IMAGE, description(shape=f"[{'9' * 5000},1]"), b"", TIMES]),
        (simplon.decode, [IMAGE, description(), b"", b'{"htype":"dconfig-1.0","start_time":%s}' % (b"9" * 5000)]),
        (simplon.decode, [b'{"htype":"dheader-1.0","series":1}'] * 1000),
        (simplon.decode, [b'{"series":1,"htype":"%s"}' % (b"x" * (simplon.MAX_JSON + 1))]),
        (simplon.decode, [b'{"htype":"dheader-1.0","series":1,"header_detail":"all"}', b'{"a":[' + b"1," * 600_000]),
        (simplon.decode, [b"[" * 100_000]),
        (simplon.decode, [b'{"a":' * 100_000]),
        (xspress3.Decoder().decode, [b'{"htype":"header","filename":"%s"}' % (b"x" * (xspress3.MAX_HEADER + 1))]),
        (xspress3.Decoder().decode, [b'{"htype":"image","frame":1,"shape":[65536,65536],"type":"uint64"}', b"", b""]),
        (messages.decode, b"\x97\xa4DONE\xa1r\xa1s\xa1c\xdd\x7f\xff\xff\xff"),
        (messages.decode, b"\x91" * 60_000),
        (messages.decode, b"\xdd\x7f\xff\xff\xff"),
        (messages.decode, b"\x92\xa6STATUS\xc6\x7f\xff\xff\xff"),
        (messages.decode, bytes(messages.MAX_CONTROL + 1)),
        (documents.decode, bytes(documents.MAX_ANSWER + 1)),
        (documents.decode, b"\x96\xa5FETCH\x01\x01\xdd\x7f\xff\xff\xff"),
        (documents.unpack, documents.Document("start", b"\x81\xa1a\xdd\x7f\xff\xff\xff")),
        (documents.unpack, documents.Document("start", b"\x81\xa1a" + b"\x91" * 100_000)),
        (documents.unpack, documents.Document("start", b"\xdf\x7f\xff\xff\xff")),
    ],
)
def test_a_small_message_that_asks_for_much_is_refused_without_it(decode: Callable[[Any], Any], data: Any) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(WireError) as caught:
            decode(data)
        assert tracemalloc.get_traced_memory()[1] < MOST
    finally:
        tracemalloc.stop()
    assert len(str(caught.value)) < 2000


def test_an_image_that_begins_huge_takes_no_memory_for_its_size() -> None:
    """What a description promises is kept as numbers; the ring has room for what came."""
    tracemalloc.start()
    image = simplon.decode([IMAGE, description(shape="[1000000,1000000]"), b"short", TIMES])
    assert tracemalloc.get_traced_memory()[1] < MOST
    tracemalloc.stop()
    assert isinstance(image, simplon.Image)
    assert struct.unpack(">Q", image.blob[:8]) == (8 * 10**12,)


def test_names_have_no_line_break_at_their_end() -> None:
    for bad in (messages.Hello(1, "worker\n", "w", 1), messages.RunClose(1, "run\n", [], "success", b"")):
        with pytest.raises(WireError, match="matching regex"):
            messages.decode(messages.encode(bad))
    with pytest.raises(WireError, match="matching regex"):
        messages.decode(messages.encode(messages.Frames("e", 1, "r", (1,), "<u2\n", [messages.Block(0, 0, 1, "none")])))
