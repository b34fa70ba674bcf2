"""Every message of every wire: each field has a bound and refuses what is beyond, and nothing but WireError comes out.

The tests are made from the messages' own types, so a field that is added without a bound fails here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, get_args

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import inspect

from haltere.workers.errors import WireError
from haltere.workers.wire import documents, messages
from haltere.workers.worker import pipe

CAP = 2**62
"""No number on any wire reaches it."""


class Wire(NamedTuple):
    """A union of messages, and what reads and writes it."""

    kinds: tuple[type, ...]
    decode: Callable[[bytes], Any]
    encode: Callable[[Any], bytes]


def _unframed(data: bytes) -> Any:
    unframer = pipe.Unframer()
    found = list(unframer.feed(len(data).to_bytes(4, "little") + bytes(4) + data))
    if len(found) != 1:
        raise WireError("not whole")
    return found[0][0]


WIRES = {
    "pool": Wire(get_args(messages.AnyMessage), messages.decode, messages.encode),
    "documents": Wire((documents.Fetch, documents.Documents), documents.decode, documents.encode),
    "pipe": Wire((pipe.Ready, pipe.At, pipe.Reduced, pipe.Failed), _unframed, msgspec.msgpack.encode),
}
UNBOUNDED = {("Document", "body")}
"""Bounded by the answer that it stands in."""


def nested(kind: inspect.Type) -> Iterator[inspect.StructType]:
    """Yield the structs that a type consists of."""
    match kind:
        case inspect.StructType():
            yield kind
            for each in kind.fields:
                yield from nested(each.type)
        case inspect.UnionType():
            for one in kind.types:
                yield from nested(one)
        case inspect.ListType() | inspect.VarTupleType():
            yield from nested(kind.item_type)
        case inspect.TupleType():
            for one in kind.item_types:
                yield from nested(one)


FIELDS = {
    (struct.cls, field.name): field.type
    for wire in WIRES.values()
    for kind in wire.kinds
    for struct in nested(inspect.type_info(kind))
    for field in struct.fields
}


def unbounded(kind: inspect.Type) -> str:
    """Say what of a type has no bound; nothing if all has."""
    match kind:
        case inspect.IntType():
            low = kind.ge if kind.ge is not None else kind.gt
            high = kind.lt if kind.lt is not None else kind.le
            return "" if low is not None and low >= -CAP and high is not None and high <= CAP else "int"
        case inspect.FloatType():
            return "" if kind.ge is not None and kind.le is not None else "float"
        case inspect.StrType():
            closed = kind.pattern is not None and kind.pattern.startswith("^") and kind.pattern.endswith(r"\Z")
            endless = re.search(r"[+*]", re.sub(r"\[.*?\]", "", kind.pattern or ""))
            return "" if kind.max_length or (closed and not endless) else "str"
        case inspect.BytesType():
            return "" if kind.max_length else "bytes"
        case inspect.ListType() | inspect.VarTupleType():
            return ("" if kind.max_length else "list ") + unbounded(kind.item_type)
        case inspect.TupleType():
            return "".join(map(unbounded, kind.item_types))
        case inspect.UnionType():
            return "".join(map(unbounded, kind.types))
        case inspect.BoolType() | inspect.NoneType() | inspect.LiteralType() | inspect.StructType():
            return ""
    return type(kind).__name__


@pytest.mark.parametrize(("cls", "name"), FIELDS, ids=lambda each: getattr(each, "__name__", each))
def test_every_field_has_a_bound(cls: type, name: str) -> None:
    if (cls.__name__, name) not in UNBOUNDED:
        assert not unbounded(FIELDS[cls, name])


def values(kind: inspect.Type) -> st.SearchStrategy[Any]:
    """Return a strategy for values of a type, lists short."""
    match kind:
        case inspect.IntType():
            low = kind.ge if kind.ge is not None else (kind.gt or 0) + 1
            high = kind.le if kind.le is not None else (kind.lt or CAP) - 1
            return st.integers(int(low), int(high)) | st.sampled_from([int(low), int(high)])
        case inspect.FloatType():
            return st.floats(kind.ge, kind.le)
        case inspect.StrType(pattern=None):
            return st.text(max_size=min(kind.max_length or 10, 10))
        case inspect.StrType():
            return st.from_regex(str(kind.pattern), alphabet=st.characters(codec="ascii"))
        case inspect.BytesType():
            return st.binary(min_size=kind.min_length or 0, max_size=(kind.min_length or 0) + 10)
        case inspect.ListType() | inspect.VarTupleType():
            some = st.lists(values(kind.item_type), min_size=kind.min_length or 0, max_size=(kind.min_length or 0) + 2)
            return some if isinstance(kind, inspect.ListType) else some.map(tuple)
        case inspect.TupleType():
            return st.tuples(*map(values, kind.item_types))
        case inspect.UnionType():
            return st.one_of(*map(values, kind.types))
        case inspect.LiteralType():
            return st.sampled_from(kind.values)
        case inspect.BoolType():
            return st.booleans()
        case inspect.NoneType():
            return st.none()
        case inspect.StructType():
            return st.builds(kind.cls, *(values(field.type) for field in kind.fields))
    raise AssertionError(kind)


ANY = [pytest.param(wire, kind, id=f"{name}-{kind.__name__}") for name, wire in WIRES.items() for kind in wire.kinds]


def beyond(kind: inspect.Type, good: Any) -> Iterator[Any]:
    """Yield values just beyond a type's bounds, and some of another type; ``good`` is one within."""
    match kind:
        case inspect.IntType():
            yield from (int(kind.ge) - 1 if kind.ge is not None else int(kind.gt or 0), -(2**63))
            yield from (int(kind.le) + 1 if kind.le is not None else int(kind.lt or CAP), 2**64 - 1, "1", 1.5)
        case inspect.FloatType():
            yield from ((kind.ge or 0) - 0.5, (kind.le or 0) + 0.5, float("inf"), float("-inf"), "1")
        case inspect.StrType(pattern=None):
            yield from ("x" * ((kind.max_length or 0) + 1), 7)
        case inspect.StrType():
            yield from ("", 65 * "a", "a\n", "\n", "a b", "../a", "é", 7)
        case inspect.BytesType():
            yield from (bytes((kind.max_length or 0) + 1), 7)
        case inspect.ListType() | inspect.VarTupleType():
            yield from ([*good, *[0] * ((kind.max_length or 0) + 1 - len(good))], {}, 7)
        case inspect.TupleType():
            yield from ([], [*good, *good], 7)


@pytest.mark.parametrize(("wire", "kind"), ANY)
@settings(max_examples=3, deadline=None)
@given(data=st.data())
def test_every_field_refuses_what_is_beyond_its_bound(wire: Wire, kind: type, data: st.DataObject) -> None:
    about = inspect.type_info(kind)
    assert isinstance(about, inspect.StructType)
    message = data.draw(values(about))
    for field in about.fields:
        if (kind.__name__, field.name) in UNBOUNDED:
            continue
        for bad in beyond(field.type, getattr(message, field.name)):
            wrong = wire.encode(msgspec.structs.replace(message, **{field.name: bad}))
            with pytest.raises(WireError):
                wire.decode(wrong)


@pytest.mark.parametrize(("wire", "kind"), ANY)
@settings(max_examples=8, deadline=None)
@given(data=st.data())
def test_what_is_written_is_read_and_what_is_cut_or_damaged_is_refused(
    wire: Wire, kind: type, data: st.DataObject
) -> None:
    message = data.draw(values(inspect.type_info(kind)))
    whole = wire.encode(message)
    assert wire.decode(whole) == message
    for stop in range(len(whole)):
        with pytest.raises(WireError):
            wire.decode(whole[:stop])
    with pytest.raises(WireError):
        wire.decode(whole + b"\x00")
    for _ in range(20):
        damaged = bytearray(whole)
        damaged[data.draw(st.integers(0, len(whole) - 1))] ^= 1 << data.draw(st.integers(0, 7))
        try:
            read = wire.decode(bytes(damaged))
        except WireError:
            continue
        assert isinstance(read, wire.kinds)


@pytest.mark.parametrize("wire", WIRES.values(), ids=WIRES)
@given(data=st.binary(max_size=100))
def test_garbage_is_refused(wire: Wire, data: bytes) -> None:
    try:
        read = wire.decode(data)
    except WireError:
        return
    assert isinstance(read, wire.kinds)


@given(data=st.binary(max_size=80))
def test_a_body_that_is_no_document_is_refused(data: bytes) -> None:
    try:
        _, doc = documents.unpack(documents.Document("start", data))
    except WireError:
        return
    assert isinstance(doc, dict)


@given(
    doc=st.dictionaries(
        st.text(max_size=5),
        st.recursive(
            st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.text(max_size=5) | st.floats(allow_nan=False),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
        ),
        max_size=4,
    )
)
def test_a_document_comes_back_from_its_body(doc: dict[str, Any]) -> None:
    packed = documents.pack("start", doc)
    assert documents.unpack(packed) == ("start", doc)
    for stop in range(len(packed.body)):
        with pytest.raises(WireError):
            documents.unpack(documents.Document("start", packed.body[:stop]))


@settings(deadline=None)
@given(pieces=st.lists(st.integers(1, 40), max_size=30), sizes=st.lists(st.integers(0, 200), min_size=1, max_size=4))
def test_records_come_whole_however_the_bytes_come(pieces: list[int], sizes: list[int]) -> None:
    sent = [(pipe.At(number, size), bytes(size)) for number, size in enumerate(sizes)]
    data = b"".join(part for record, beside in sent for part in pipe.frame(record, beside))
    unframer, got, at = pipe.Unframer(), [], 0
    for step in [*pieces, len(data)]:
        got += list(unframer.feed(data[at : at + step]))
        at += step
    assert got == sent


def test_a_record_that_announces_too_much_is_refused_at_once() -> None:
    for head in (b"\xff\xff\xff\x7f\0\0\0\0", b"\1\0\0\0\xff\xff\xff\xff"):
        with pytest.raises(WireError, match="what speaks there is no reducer"):
            list(pipe.Unframer().feed(head))


@pytest.mark.parametrize(
    ("decode", "most"), [(messages.decode, messages.MAX_CONTROL), (documents.decode, documents.MAX_ANSWER)]
)
def test_a_message_may_be_as_long_as_the_limit(decode: Callable[[bytes], Any], most: int) -> None:
    with pytest.raises(WireError, match=r"not a message|neither a FETCH"):
        decode(bytes(most))
    with pytest.raises(WireError, match=f"a message of {most + 1} bytes is over the limit of {most}"):
        decode(bytes(most + 1))
