"""SIMPLON stream v1: a captured series, the imitations' dialects, and garbage."""

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from haltere.workers.errors import WireError
from haltere.workers.wire import simplon
from haltere.workers.wire.simplon import Decoder, HeaderPart, Image, SeriesEnd, SeriesHeader, Table, decode, encode

DATA = Path(os.environ.get("HALTERE_DATA", Path(__file__).parents[4] / "shared" / "data"))

FRAMED = (2 * 3 * 2).to_bytes(8, "big") + (8192).to_bytes(4, "big") + b"compressed"
IMAGE = Image(12, 4031, (2, 3), "<u2", "bslz4", FRAMED, 10, 20, 9, len(FRAMED), "59bb")


@pytest.fixture
def captured() -> list[list[bytes]]:
    cbor2 = pytest.importorskip("cbor2", reason="reads the captured series")
    path = DATA / "streams" / "eiger-small.cbors"
    if not path.exists():
        pytest.skip(f"{path} isn't there; set HALTERE_DATA to the folder of recorded data")
    messages = []
    with path.open("rb") as file:
        while file.peek(1):
            messages.append(cbor2.load(file))
    return messages


def test_a_captured_series_is_read(captured: list[list[bytes]]) -> None:
    header, *images, end = map(decode, captured)
    assert isinstance(header, SeriesHeader)
    assert header.config is not None
    assert (header.series, header.detail, header.config["nimages"]) == (6, "all", 3)
    assert [table.name for table in header.tables] == ["flatfield", "pixel_mask", "countrate_table"]
    assert header.tables[2].array().shape == (1001, 2)
    assert header.appendix is not None
    assert header.appendix.startswith(b'{"collect_dict"')
    assert end == SeriesEnd(6)
    for number, image in enumerate(images):
        assert isinstance(image, Image)
        assert (image.series, image.frame, image.shape, image.dtype) == (6, number, (3262, 3108), "<u4")
        assert (image.encoding, image.real_ns, image.appendix) == ("bslz4", 9_999_900, b"{}")
        assert image.stop_ns - image.start_ns == image.real_ns
        assert bytes(image.blob) == captured[1 + number][2], "a blob with its header is passed on as it is"
        assert image.size > len(image.blob), "these blobs were cut, and the message says how long they were"


def test_a_cut_table_says_so(captured: list[list[bytes]]) -> None:
    header = decode(captured[0])
    assert isinstance(header, SeriesHeader)
    with pytest.raises(WireError, match="flatfield: 20000 bytes are not"):
        header.tables[0].array()


def test_a_captured_series_sent_part_by_part_is_read(captured: list[list[bytes]]) -> None:
    decoder = Decoder()
    first, config, *rest = (decoder.decode([part]) for part in captured[0][:-1])
    assert isinstance(first, SeriesHeader)
    assert first.config is None
    assert isinstance(config, HeaderPart)
    assert config.config is not None
    assert config.config["ntrigger"] == 1
    tables = [part.table.name for part in rest if isinstance(part, HeaderPart) and part.table]
    assert tables == ["flatfield", "pixel_mask", "countrate_table"]
    assert isinstance(decoder.decode(captured[1]), Image), "and images go on as usual"


def test_a_blob_without_its_hdf5_header_gets_one() -> None:
    parts = encode(IMAGE)
    parts[2] = FRAMED[12:]
    image = decode(parts)
    assert isinstance(image, Image)
    assert image.blob == FRAMED


@pytest.mark.parametrize("spelt", [b"flatfield-1.0", b"dflatfield-1.0"])
def test_both_spellings_of_the_flat_field_are_read(spelt: bytes) -> None:
    table = Table("flatfield", (1, 2), "|u1", b"ab")
    parts = [bytes(part).replace(b"dflatfield-1.0", spelt) for part in encode(SeriesHeader(1, "all", {}, (table,)))]
    assert decode(parts) == SeriesHeader(1, "all", {}, (table,))


def test_memoryviews_are_read_without_a_copy() -> None:
    parts = [memoryview(part) for part in encode(IMAGE)]
    image = decode(parts)
    assert isinstance(image, Image)
    assert image.blob is parts[2]


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ([], "without parts"),
        ([b"\x80\x04"], "part 1 of 1 is no stream v1 header"),
        ([b'{"htype":"dimage-2.0"}', b""], "dimage-2.0"),
        (encode(IMAGE)[:3], "series 12, frame 4031: 3 parts, expected 4"),
        ([encode(IMAGE)[0], b"{}", b"", b"{}"], "series 12, frame 4031: part 2, the description"),
        ([*encode(IMAGE)[:3], b"[]"], "series 12, frame 4031: part 4, the times"),
        ([b'{"htype":"dimage-2.0"}'], "'dimage-2.0' with 1 parts is no message"),
        ([b"{}", b""], "'' with 2 parts is no message"),
        ([b'{"htype":"dimage-1.0","series":1}', b"", b"", b""], "series 1, frame -1: neither may be missing"),
        ([b'{"htype":"dimage-1.0","frame":1}', b"", b"", b""], "series -1, frame 1: neither may be missing"),
        ([*encode(IMAGE), b"", b""], "6 parts, expected 4 or"),
        (encode(IMAGE) * 4, "16 parts, expected 4 or"),
        ([*encode(IMAGE) * 4, b""], "a message of 17 parts, at most 16"),
        ([b'{"htype":"dseries_end-1.0"}'], "names no series"),
        ([b'{"htype":"dheader-1.0"}'], "header: it names no series"),
        ([b'{"htype":"dheader-1.0","series":1}', b"", b""], "series 1, header: 2 parts beyond what"),
        ([b'{"htype":"dheader-1.0","series":1,"header_detail":"basic"}', b"{}", b"", b""], "2 parts beyond what"),
        ([b'{"htype":"flatfield-1.0","shape":[2,1],"type":"uint8"}', b"ab", b""], "3 parts, expected 2"),
        ([b'{"htype":"dheader-1.0","series":1,"header_detail":"some"}'], "header_detail 'some'"),
        ([b'{"htype":"dheader-1.0","series":1,"header_detail":"basic"}', b"?"], "part 2, the configuration"),
    ],
)
def test_what_is_no_message_is_named_with_its_place(parts: list[Any], said: str) -> None:
    with pytest.raises(WireError, match=said):
        decode(parts)


@pytest.mark.parametrize(
    ("was", "now", "said"),
    [
        (b"uint16", b"uint24", "unknown pixel type"),
        (b"bs16-lz4<", b"bs32-lz4<", "doesn't go with uint16"),
        (b"bs16-lz4<", b"zip", "doesn't go with uint16"),
        (b"[3,2]", b"[0,2]", "shape 0 x 2"),
        (b"[3,2]", b"[3,2,1]", "the description"),
    ],
)
def test_a_description_that_cannot_be_is_refused(was: bytes, now: bytes, said: str) -> None:
    parts = encode(IMAGE)
    parts[1] = bytes(parts[1]).replace(was, now)
    with pytest.raises(WireError, match=f"series 12, frame 4031.*{said}"):
        decode(parts)


numbers = st.integers(0, 2**40 - 1)
images = st.builds(
    lambda series, frame, rows, columns, dtype, encoding, payload, times, digest, appendix: _image(
        series, frame, (rows, columns), dtype, encoding, payload, times, digest, appendix
    ),
    *(numbers, numbers, st.integers(1, 5000), st.integers(1, 5000)),
    *(st.sampled_from(["|u1", "<u2", "<u4"]), st.sampled_from(["bslz4", "lz4", "none"]), st.binary(max_size=40)),
    *(st.tuples(numbers, numbers, numbers), st.text("0123456789abcdef", max_size=32), st.none() | st.binary()),
)
configs = st.dictionaries(st.text(max_size=8), st.none() | st.booleans() | st.integers(0, 2**53) | st.text(max_size=8))
tables = st.builds(
    Table,
    st.sampled_from(["flatfield", "pixel_mask", "countrate_table"]),
    st.tuples(st.integers(1, 99), st.integers(1, 99)),
    st.sampled_from(["<f4", "<u4"]),
    st.binary(max_size=40),
)
appendices = st.none() | st.binary(max_size=20)
headers = (
    st.builds(SeriesHeader, numbers, st.just("none"), st.none(), st.just(()), appendices)
    | st.builds(SeriesHeader, numbers, st.just("basic"), configs, st.just(()), appendices)
    | st.builds(SeriesHeader, numbers, st.just("all"), configs, st.lists(tables, max_size=3).map(tuple), appendices)
)
messages = images | headers | st.builds(SeriesEnd, numbers)


def _image(series: int, frame: int, shape: Any, dtype: str, encoding: Any, payload: bytes, *rest: Any) -> Image:
    (start, stop, real), digest, appendix = rest
    if encoding == "bslz4":
        nbytes = shape[0] * shape[1] * int(dtype[2])
        payload = nbytes.to_bytes(8, "big") + (8192).to_bytes(4, "big") + payload
    return Image(series, frame, shape, dtype, encoding, payload, start, stop, real, len(payload), digest, appendix)


@given(messages)
def test_what_is_written_is_read_again(message: simplon.AnyMessage) -> None:
    assert decode(encode(message)) == message


def _survives(parts: list[Any]) -> None:
    for read in (decode, Decoder().decode):
        try:
            message = read(parts)
        except WireError:
            continue
        assert isinstance(message, SeriesHeader | HeaderPart | Image | SeriesEnd)


@given(messages, st.data())
def test_a_truncated_message_raises_nothing_but_a_wire_error(message: simplon.AnyMessage, data: st.DataObject) -> None:
    parts = encode(message)
    at = data.draw(st.integers(0, len(parts) - 1))
    cut = data.draw(st.integers(0, len(parts[at])))
    _survives(parts[:at])
    _survives([*parts[:at], parts[at][:cut], *parts[at + 1 :]])


@given(messages, st.data())
def test_a_damaged_message_raises_nothing_but_a_wire_error(message: simplon.AnyMessage, data: st.DataObject) -> None:
    parts: list[Any] = [bytearray(part) for part in encode(message)]
    for part in parts:
        if part and data.draw(st.booleans()):
            part[data.draw(st.integers(0, len(part) - 1))] = data.draw(st.integers(0, 255))
    _survives(parts)


@given(st.lists(st.binary(max_size=60) | st.sampled_from(encode(IMAGE)), max_size=6))
def test_garbage_raises_nothing_but_a_wire_error(parts: list[Any]) -> None:
    _survives(parts)


@pytest.mark.parametrize("part", [HeaderPart({"count_time": 1.0}), HeaderPart()])
def test_a_part_of_a_header_is_written_as_it_is_read(part: HeaderPart) -> None:
    assert Decoder().decode(encode(part)) == (part if part.config else HeaderPart({}))


def test_a_table_of_a_header_that_is_sent_in_parts_is_written_as_it_is_read() -> None:
    table = Table("flatfield", (1, 2), "<f4", b"abcdefgh")
    decoder = Decoder()
    said = [decoder.decode([part]) for part in encode(HeaderPart(None, table))]
    assert said == [HeaderPart(), HeaderPart(None, table)]


@pytest.mark.parametrize(
    ("part", "said"),
    [
        (b"?", "series 1, header, part 3: .*JSON"),
        (b'{"htype":"dholes-1.0","shape":[1,1],"type":"float32"}', "a table 'dholes-1.0' of 'float32' is unknown"),
        (b'{"htype":"dflatfield-1.0","shape":[1,1],"type":"float33"}', "a table 'dflatfield-1.0' of 'float33'"),
        (b'{"htype":"dflatfield-1.0","shape":[0,1],"type":"float32"}', "has no elements"),
    ],
)
def test_a_table_that_cannot_be_is_named_with_its_place(part: bytes, said: str) -> None:
    head = b'{"htype":"dheader-1.0","series":1,"header_detail":"all"}'
    with pytest.raises(WireError, match=said):
        decode([head, b"{}", part, b"blob"])


@pytest.mark.parametrize(
    ("columns", "rows", "kind", "can_be"),
    [
        (1, 1, "uint64", True),
        (2**31 - 1, 1, "uint16", True),
        (2**31, 1, "uint16", False),
        (-1, 1, "uint16", False),
        (1, 2**31 - 1, "uint16", True),
        (1, 2**31, "uint16", False),
        (1, 0, "uint16", False),
        (2**30, 2**29, "uint64", True),
        (2**30, 2**30, "uint64", False),
    ],
)
def test_an_image_has_pixels_and_no_more_than_can_be_counted(columns: int, rows: int, kind: str, can_be: bool) -> None:
    parts = encode(IMAGE)
    described = b'{"htype":"dimage_d-1.0","shape":[%d,%d],"type":"%s","encoding":"<"}'
    parts[1] = described % (columns, rows, kind.encode())
    if can_be:
        image = decode(parts)
        assert isinstance(image, Image)
        assert image.shape == (rows, columns)
    else:
        with pytest.raises(WireError, match=f"shape {columns} x {rows} has no pixels or too many"):
            decode(parts)


@pytest.mark.parametrize(("length", "can_be"), [(-1, False), (0, False), (1, True), (2**31 - 1, True), (2**31, False)])
def test_a_table_has_elements_and_no_more_than_can_be_counted(length: int, can_be: bool) -> None:
    parts = [b'{"htype":"dflatfield-1.0","shape":[1,%d],"type":"float32"}' % length, b"blob"]
    if can_be:
        part = decode(parts)
        assert isinstance(part, HeaderPart)
        assert part.table == Table("flatfield", (length, 1), "<f4", b"blob")
    else:
        with pytest.raises(WireError, match="has no elements"):
            decode(parts)


def test_a_part_that_is_json_may_be_as_long_as_the_limit() -> None:
    part = b'{"htype":"dseries_end-1.0","series":0' + b" " * (simplon.MAX_JSON - 38) + b"}"
    assert len(part) == simplon.MAX_JSON
    assert decode([part]) == SeriesEnd(0)
    with pytest.raises(WireError, match=f"{simplon.MAX_JSON + 1} bytes, at most"):
        decode([part + b" "])


def test_a_header_may_have_an_appendix_and_be_of_the_first_series() -> None:
    assert decode([b'{"htype":"dheader-1.0","series":0}', b"note"]) == SeriesHeader(0, "none", None, (), b"note")
    decoder = Decoder()
    table = b'{"htype":"dheader-1.0","series":0,"header_detail":"all"}'
    assert decoder.decode([table]) == SeriesHeader(0, "all")
    assert decoder.decode([table, b"{}", b"note"]) == SeriesHeader(0, "all", {}, (), b"note")


def test_a_lone_part_that_is_no_json_is_awaited_by_nothing() -> None:
    decoder = Decoder()
    with pytest.raises(WireError, match="part 1 of 1 is no stream v1 header"):
        decoder.decode([b"?"])
    assert decoder.decode(encode(SeriesEnd(1))) == SeriesEnd(1)
