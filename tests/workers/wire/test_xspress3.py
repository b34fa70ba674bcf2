"""The captured Xspress3 Mini stream, to messages and back to the byte."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cbor2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from haltere.workers.errors import WireError
from haltere.workers.wire import array_list
from haltere.workers.wire.xspress3 import (
    MAX_HEADER,
    SCALERS,
    Decoder,
    Image,
    ImagePart,
    Scaler,
    SeriesEnd,
    SeriesHeader,
    encode,
)

SPECTRA = np.arange(2 * 16, dtype="<u4").reshape(2, 16)
SCALER_TYPES = ("<f8", "<u4", "<u4", "<u4", "<u4", "<u4", "<i4", "<f8")
IMAGE = Image(
    1,
    7,
    (2, 16),
    "<u4",
    "none",
    SPECTRA.tobytes(),
    1.0,
    tuple(
        Scaler(name, dtype, np.array([k, k + 1], dtype).tobytes())
        for k, (name, dtype) in enumerate(zip(SCALERS, SCALER_TYPES, strict=True))
    ),
)
HEADER = SeriesHeader(1, "/data/scan_1.h5")


@pytest.fixture(scope="module")
def captured(measured: Callable[[str], Path]) -> list[list[bytes]]:
    """Return the captured messages, each a list of parts."""
    content = io.BytesIO(measured("streams/xspress3mini-dump20.cbors").read_bytes())
    messages = []
    while content.tell() < len(content.getbuffer()):
        messages.append(cbor2.load(content))
    return messages


def test_the_captured_stream_is_read_whole_and_written_back_to_the_byte(captured: list[list[bytes]]) -> None:
    decoder = Decoder()
    messages = [message for parts in captured if not isinstance(message := decoder.decode(parts), ImagePart)]
    images = [message for message in messages if isinstance(message, Image)]
    assert messages[0].series == 1
    assert isinstance(messages[0], SeriesHeader)
    assert messages[0].filename.endswith("scan_000145_x3mini.hdf5")
    assert messages[-1] == SeriesEnd(1)
    # The capture holds the eleven frames of a series twice.
    assert [image.frame for image in images] == 2 * list(range(11))
    assert images[:11] == images[11:]
    assert {(image.series, image.shape, image.dtype, image.encoding) for image in images} == {
        (1, (2, 4096), "<u4", "none")
    }
    assert [part for message in messages for part in encode(message)] == captured


def test_the_scalers_are_named_so_that_the_dead_time_factor_follows_from_the_others(
    captured: list[list[bytes]],
) -> None:
    decoder = Decoder()
    for parts in captured:
        image = decoder.decode(parts)
        if isinstance(image, Image):
            ticks, events = image.scaler("totalticks").astype(float), image.scaler("allevent").astype(float)
            dead = events * (image.scaler("event_width") + 1) + image.scaler("resetticks")
            np.testing.assert_allclose(image.scaler("factor"), ticks / (ticks - dead), rtol=1e-14)
            assert np.all(image.scaler("allgood") <= image.scaler("allevent"))


@pytest.mark.parametrize("together", [False, True])
def test_a_frame_may_come_in_one_message_or_in_three(together: bool) -> None:
    parts = [message[0] for message in encode(IMAGE)]
    messages = [parts] if together else [[part] for part in parts]
    decoder = Decoder()
    decoder.decode(encode(HEADER)[0])
    said = [decoder.decode(message) for message in messages]
    assert said == ([IMAGE] if together else [ImagePart(1, 0), ImagePart(1, 1), IMAGE])
    np.testing.assert_array_equal(IMAGE.spectra(), SPECTRA)


def test_a_frame_whose_rest_never_came_is_named_and_the_next_one_is_read() -> None:
    header, spectra, scalers = (message[0] for message in encode(IMAGE))
    for sent, says in (([header], "its spectra never came"), ([header, spectra], "its scalers never came")):
        decoder = Decoder()
        decoder.decode(encode(HEADER)[0])
        for part in sent:
            decoder.decode([part])
        with pytest.raises(WireError, match=f"series 1, frame 7: {says}"):
            decoder.decode([header])
        decoder.decode([spectra])
        assert decoder.decode([scalers]) == IMAGE


@pytest.mark.parametrize(
    ("parts", "says"),
    [
        ([], "without parts"),
        ([b"hello"], "no Xspress3 header"),
        ([b'{"htype":"dimage-1.0"}'], "no Xspress3 header"),
        ([b'{"htype":"image","shape":[2,16],"type":"uint32"}'], "frame -1"),
        ([b'{"htype":"image","frame":1,"shape":[2,16],"type":"float64"}'], "'float64' spectra"),
        ([b'{"htype":"image","frame":1,"shape":[2,16],"type":"uint32","compression":"bslz4"}'], "compression 'bslz4'"),
        ([b'{"htype":"image","frame":1,"shape":[2,99999999],"type":"uint32"}'], "no Xspress3 header"),
        ([encode(IMAGE)[0][0], b"short", encode(IMAGE)[2][0]], "5 bytes of spectra"),
        ([encode(IMAGE)[0][0], IMAGE.blob, b"short"], "frame 7, scalers"),
        ([encode(IMAGE)[0][0], IMAGE.blob], "2 parts, expected 3"),
        ([encode(IMAGE)[0][0], IMAGE.blob, array_list.encode([np.zeros(2)])], "1 scalers, expected 8"),
    ],
)
def test_what_is_no_message_is_refused_in_one_line(parts: list[Any], says: str) -> None:
    with pytest.raises(WireError, match=says) as caught:
        Decoder().decode(parts)
    assert "\n" not in str(caught.value)


class Evil:
    """What unpickling would run."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (exec, ("raise SystemExit('the pickle ran')",))


@pytest.mark.parametrize(
    "content",
    [
        pickle.dumps(Evil(), 4),
        pickle.dumps([Evil()], 4),
        pickle.dumps([np.array([Evil()])], 4),
        pickle.dumps([np.array(["text"])], 4),
        pickle.dumps(["text"], 4),
        pickle.dumps({"a": 1}, 4),
        pickle.dumps([np.zeros(3)], 2),
        pickle.dumps([np.zeros((3, 3), order="F")], 4),
        b"\x80\x04\x95" + 8 * b"\0" + b"]\x94(\x8c\x02os\x8c\x06system\x93\x8c\x04true\x85R.",
        b"(" * 70_000,
    ],
)
def test_a_pickle_that_is_no_list_of_numbers_is_refused_and_never_run(content: bytes) -> None:
    with pytest.raises(WireError):
        array_list.decode(content)


@given(st.binary(max_size=60), st.integers(0, 515))
def test_garbage_among_scalers_is_refused_or_read_but_never_more(garbage: bytes, keep: int) -> None:
    whole = bytes(encode(IMAGE)[2][0])
    try:
        arrays = array_list.decode(whole[:keep] + garbage)
    except WireError:
        return
    assert all(isinstance(array, np.ndarray) for array in arrays)


@given(
    st.lists(
        st.sampled_from(["<f8", "<f4", "<u4", "<i4", "<u2", "<i8"]).flatmap(
            lambda dtype: st.lists(st.integers(0, 60_000), max_size=8).map(lambda each: np.array(each, dtype))
        ),
        min_size=2,
        max_size=8,
    )
)
def test_lists_come_back_from_our_own_form_and_from_numpys(arrays: list[Any]) -> None:
    for content in (array_list.encode(arrays), pickle.dumps(arrays, 4)):
        for back, array in zip(array_list.decode(content), arrays, strict=True):
            np.testing.assert_array_equal(back, array)
            assert back.dtype == array.dtype


def test_a_scaler_that_a_frame_does_not_have_is_named() -> None:
    with pytest.raises(WireError, match="series 1, frame 7: no scaler 'nonsense'"):
        IMAGE.scaler("nonsense")


def test_garbage_in_the_place_of_spectra_names_the_frame_and_itself() -> None:
    decoder = Decoder()
    decoder.decode(encode(HEADER)[0])
    decoder.decode([encode(IMAGE)[0][0]])
    with pytest.raises(WireError, match=r"frame 7: its spectra never came; instead .*no Xspress3 header"):
        decoder.decode([b"garbage"])
    assert decoder.decode([encode(IMAGE)[0][0]]) is not None


@pytest.mark.parametrize("size", [50, 70, 3000])
def test_long_arrays_are_read_whichever_form_of_bytes_they_have(size: int) -> None:
    arrays = [np.arange(size, dtype="<u4"), np.arange(size, dtype="<u4")[::-1].copy()]
    read = array_list.decode(pickle.dumps(arrays, 4))
    assert all(np.array_equal(a, b) for a, b in zip(arrays, read, strict=True))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"\x80\x04K\x01.", "a pickled int, expected a list"),
        (b"\x80\x04](K\x01e.", "other things than arrays"),
        (b"\x80\x04](numpy", "opcode b'n'"),
        (b"\x80\x05].", "another protocol"),
        (b"\x80\x04", "was cut"),
    ],
)
def test_a_pickle_of_something_else_says_what(content: bytes, says: str) -> None:
    with pytest.raises(WireError, match=says):
        array_list.decode(content)


def test_an_array_whose_bytes_are_not_its_shapes_is_refused() -> None:
    whole = pickle.dumps([np.zeros(3, "u1")], 4)
    with pytest.raises(WireError, match=r"a pickled array of \(4,\) uint8 with 3 bytes"):
        array_list.decode(whole.replace(b"K\x03", b"K\x04"))


@pytest.mark.parametrize("array", [np.zeros(300, "u1"), np.zeros(3, "c16"), np.zeros((1, 1, 1, 1), "u1")])
def test_what_is_no_scaler_is_not_written(array: Any) -> None:
    with pytest.raises(WireError, match="is not written as a scaler"):
        array_list.encode([array])


def test_a_header_may_be_as_long_as_the_limit() -> None:
    part = b'{"htype":"series_end"}' + b" " * (MAX_HEADER - 22)
    assert len(part) == MAX_HEADER
    assert Decoder().decode([part]) == SeriesEnd(0)
    with pytest.raises(WireError, match=f"which has at most {MAX_HEADER}"):
        Decoder().decode([part + b" "])


RECONSTRUCT = b"\x8c\x15numpy.core.multiarray\x8c\x0c_reconstruct\x93"
ARRAY = RECONSTRUCT + b"\x8c\x05numpy\x8c\x07ndarray\x93\x85R"
BYTE = b"\x8c\x05numpy\x8c\x05dtype\x93\x8c\x02u1\x85R"


def pickled(shape: bytes, *, fortran: bool = False, kind: bytes = BYTE, content: bytes = b"C\x01x") -> bytes:
    """Return a list of one array, of opcodes."""
    order = b"\x88" if fortran else b"\x89"
    return b"\x80\x04](" + ARRAY + b"(K\x01" + shape + kind + order + content + b"tbe."


@pytest.mark.parametrize(
    ("content", "shape"),
    [
        (pickled(b"K\x01\x85"), (1,)),
        (pickled(b"K\x01\x85", fortran=True), (1,)),
        (pickled(b"K\x01K\x01\x86"), (1, 1)),
        (pickled(b"(K\x01K\x01K\x01K\x01t"), (1, 1, 1, 1)),
        (pickled(b"J\x00\x00\x01\x00K\x00\x86", content=b"C\x00"), (65536, 0)),
    ],
)
def test_an_array_may_have_up_to_four_axes_in_c_order(content: bytes, shape: tuple[int, ...]) -> None:
    (array,) = array_list.decode(content)
    assert array.shape == shape
    assert array.tobytes() == (b"" if 0 in shape else b"x")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (pickled(b"K\x01K\x01\x86", fortran=True), "in another form than C order"),
        (pickled(b"(K\x01K\x01K\x01K\x01K\x01t"), "in another form than C order"),
        (pickled(b"K\x01\x85", content=b"\x8c\x01x"), "in another form than C order"),
        (pickled(b"K\x01\x85", kind=ARRAY), "in another form than C order"),
        (pickled(b"\x88\x85"), "whose shape isn't numbers"),
        (pickled(b"J\xff\xff\xff\xff\x85"), "whose shape isn't numbers"),
        (pickled(b"J\x01\x00\x01\x00K\x00\x86", content=b"C\x00"), "whose shape isn't numbers"),
        (b"\x80\x04" + RECONSTRUCT + b"\x8c\x02os\x8c\x06system\x93\x85R.", "calls numpy.core.multiarray._reconstruct"),
        (b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x05numpy\x8c\x07ndarray\x93\x85R.", "calls os.system"),
        (b"\x80\x04](]Nbe.", "fills something else than an array"),
        (b"\x80\x04](" + BYTE + b"(K\x03\x8c\x01>tbe.", "fills something else than an array"),
        (b"\x80\x04](Ne.", "other things than arrays"),
        (b"\x80\x04" + b"N" * 2000 + b".", "pickle of over 1024 steps"),
        (b"N" * (array_list.MAX_BYTES + 1), f"list of arrays of over {array_list.MAX_BYTES} bytes"),
        (b"N" * array_list.MAX_BYTES, "pickle of over 1024 steps"),
    ],
)
def test_what_no_list_of_arrays_has_is_named(content: bytes, says: str) -> None:
    with pytest.raises(WireError, match=f"^a .*{says}"):
        array_list.decode(content)


@pytest.mark.parametrize(
    ("array", "can_be"),
    [
        (np.zeros(255, "u1"), True),
        (np.zeros(256, "u1"), False),
        (np.zeros(32, "u8"), False),
        (np.zeros((255, 0), "u1"), True),
        (np.zeros((256, 0), "u1"), False),
        (np.zeros((1, 1, 1), "u1"), True),
    ],
)
def test_scalers_are_written_as_far_as_the_short_forms_go(array: Any, can_be: bool) -> None:
    if can_be:
        (back,) = array_list.decode(array_list.encode([array]))
        assert back.shape == array.shape
    else:
        with pytest.raises(WireError, match="is not written as a scaler"):
            array_list.encode([array])
