"""SIMPLON stream v1: what a DECTRIS detector sends over its PUSH socket, and back.

===============  =============================================================  ==================================
message          parts                                                          says
===============  =============================================================  ==================================
dheader-1.0      header, configuration (not with ``none``), with ``all`` also   a series begins
                 (header, blob) of flat field, pixel mask, count-rate table;
                 an appendix
dimage-1.0       header, description, blob, times; an appendix                  a frame
dseries_end-1.0  header                                                         the series has ended
===============  =============================================================  ==================================

Source: DECTRIS SIMPLON API 1.8, "stream interface"; captured series of an EIGER2. Some senders (DCU simulators among
them) give each part of the header as a message of its own, leave out the 12 bytes that HDF5's bitshuffle filter puts
before a blob, or spell ``dflatfield-1.0`` as ``flatfield-1.0``: all are read. What is written here is what a DCU sends.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Annotated, Any, Final, Literal, TypeVar

import msgspec
import numpy as np
from msgspec import Meta, Struct
from numpy.typing import NDArray

from ..errors import WireError

Blob = bytes | memoryview
Encoding = Literal["bslz4", "lz4", "none"]
Detail = Literal["none", "basic", "all"]

DTYPES: Final = {
    name: np.dtype(name).newbyteorder("<").str
    for name in ("uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64", "float32", "float64")
}
"""The stream's type names, and numpy's: ``{"uint16": "<u2", …}``."""

_NAMES: Final = {dtype: name for name, dtype in DTYPES.items()}
_ITEMSIZE: Final = {dtype: np.dtype(dtype).itemsize for dtype in _NAMES}
_ENCODINGS: Final[dict[str, tuple[Encoding, int | None]]] = {
    "bs8-lz4<": ("bslz4", 1),
    "bs16-lz4<": ("bslz4", 2),
    "bs32-lz4<": ("bslz4", 4),
    "bs64-lz4<": ("bslz4", 8),
    "lz4<": ("lz4", None),
    "<": ("none", None),
    "": ("none", None),
}

MAX_PARTS: Final = 16
"""Most parts of a message; a header with all tables and an appendix has 9."""

MAX_JSON: Final = 1 << 20
"""Most bytes in a part that is JSON, which takes many times as much when it is read; a real configuration has 10 kB."""

BLOCK_BYTES: Final = 8192
"""bitshuffle's own block size, which DECTRIS uses; declared for a blob that came without its header."""

_HDF5_HEADER: Final = struct.Struct(">QI")
"""Uncompressed size and block size, in bytes: what HDF5's bitshuffle filter expects first in a chunk."""


class Table(Struct, frozen=True):
    """An array of the header: ``Table("flatfield", (514, 1030), "<f4", b"…")``, as it came, not checked."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    blob: Blob

    def array(self) -> NDArray[Any]:
        """Return it, read-only.

        Raises
        ------
        WireError
            The blob is shorter or longer than its shape says.
        """
        try:
            return np.frombuffer(self.blob, self.dtype).reshape(self.shape)
        except ValueError:
            raise WireError(
                f"{self.name}: {len(self.blob)} bytes are not {self.shape} of {self.dtype}: cut on its way?"
            ) from None


class SeriesHeader(Struct, frozen=True):
    """``SeriesHeader(12, "basic", {"count_time": 0.005, …})``: a series begins.

    ``config`` is None with ``header_detail`` none, or when it follows as a message of its own
    (:class:`HeaderPart`). ``appendix`` is the text that the user gave.
    """

    series: int
    detail: Detail
    config: dict[str, Any] | None = None
    tables: tuple[Table, ...] = ()
    appendix: bytes | None = None


class HeaderPart(Struct, frozen=True):
    """Part of a header that came as a message of its own; it belongs to the last :class:`SeriesHeader`."""

    config: dict[str, Any] | None = None
    table: Table | None = None


class Image(Struct, frozen=True):
    """A frame: ``Image(12, 4031, (514, 1030), "<u2", "bslz4", b"…", start_ns, stop_ns, real_ns)``.

    ``shape`` is (rows, columns). ``blob`` is as it came, except that a bslz4 blob always has its 12-byte header, so
    that it is a chunk of an HDF5 file as it stands. Whether it decodes is for the reducer to say. ``size`` is the
    length that was announced, in bytes: another than the blob's if it was cut on its way. Times in ns from arming.
    """

    series: int
    frame: int
    shape: tuple[int, int]
    dtype: str
    encoding: Encoding
    blob: Blob
    start_ns: int
    stop_ns: int
    real_ns: int
    size: int = -1
    hash: str = ""
    appendix: bytes | None = None


class SeriesEnd(Struct, frozen=True):
    """``SeriesEnd(12)``: the series has ended, complete or not."""

    series: int


AnyMessage = SeriesHeader | HeaderPart | Image | SeriesEnd


class _First(Struct, frozen=True):
    """Any message's first part; ``shape`` and ``type`` stand in a table's."""

    htype: str = ""
    series: Annotated[int, Meta(lt=2**62)] = -1
    frame: Annotated[int, Meta(lt=2**40)] = -1
    hash: str = ""
    header_detail: str = "none"
    shape: tuple[int, ...] = ()
    type: str = ""


class _Description(Struct, frozen=True):
    htype: Literal["dimage_d-1.0"]
    shape: tuple[int, int]
    type: str
    encoding: str
    size: int = -1


class _Times(Struct, frozen=True):
    htype: Literal["dconfig-1.0"]
    start_time: int = 0
    stop_time: int = 0
    real_time: int = 0


_TABLES: Final = {
    "flatfield-1.0": "flatfield",
    "dflatfield-1.0": "flatfield",
    "dpixelmask-1.0": "pixel_mask",
    "dcountrate_table-1.0": "countrate_table",
}

_first: msgspec.json.Decoder[_First] = msgspec.json.Decoder(_First)
_description: msgspec.json.Decoder[_Description] = msgspec.json.Decoder(_Description)
_times: msgspec.json.Decoder[_Times] = msgspec.json.Decoder(_Times)
_config: msgspec.json.Decoder[dict[str, Any]] = msgspec.json.Decoder(dict[str, Any])
_encode = msgspec.json.Encoder().encode

_NotJson = (msgspec.DecodeError, msgspec.ValidationError, UnicodeDecodeError, RecursionError)

_T = TypeVar("_T")


def _read(decoder: msgspec.json.Decoder[_T], part: Any) -> _T:
    if len(part) > MAX_JSON:
        raise msgspec.DecodeError(f"{len(part)} bytes, at most {MAX_JSON} are read")
    return decoder.decode(part)


def decode(parts: Sequence[Any]) -> AnyMessage:
    """Return the message that these ``parts`` (bytes-likes) are. An image costs about 5 µs.

    Raises
    ------
    WireError
        They are none. It names the series and frame as far as they could be read.

    >>> decode(encode(SeriesEnd(12)))
    SeriesEnd(series=12)
    """
    if not parts:
        raise WireError("a message without parts: not SIMPLON stream v1")
    if len(parts) > MAX_PARTS:
        raise WireError(f"a message of {len(parts)} parts, at most {MAX_PARTS} are read: not SIMPLON stream v1")
    try:
        first = _read(_first, parts[0])
    except _NotJson as error:
        raise WireError(
            f"part 1 of {len(parts)} is no stream v1 header: {error} (is stream/config/format legacy?)"
        ) from None
    if first.htype == "dimage-1.0":
        return _image(first, parts)
    if first.htype == "dseries_end-1.0":
        _check(first.series >= 0, "series end", "it names no series")
        return SeriesEnd(first.series)
    if first.htype == "dheader-1.0":
        return _header(first, parts)
    if first.htype in _TABLES:
        _check(len(parts) == 2, first.htype, f"{len(parts)} parts, expected 2 (description, blob)")
        return HeaderPart(table=_table(first, parts[1], first.htype))
    if not first.htype and len(parts) == 1:
        return HeaderPart(config=_mapping(parts[0], "header"))
    raise WireError(f"htype {first.htype!r} with {len(parts)} parts is no message of stream v1: left out")


def _image(first: _First, parts: Sequence[Any]) -> Image:
    if first.series < 0 or first.frame < 0:
        raise WireError(f"image: series {first.series}, frame {first.frame}: neither may be missing or below 0")
    if len(parts) not in (4, 5):
        raise WireError(f"{_place(first)}: {len(parts)} parts, expected 4 or, with image_appendix, 5")
    try:
        description = _read(_description, parts[1])
    except _NotJson as error:
        raise WireError(f"{_place(first)}: part 2, the description: {error}") from None
    try:
        times = _read(_times, parts[3])
    except _NotJson as error:
        raise WireError(f"{_place(first)}: part 4, the times: {error}") from None
    dtype = DTYPES.get(description.type)
    if dtype is None:
        raise WireError(f"{_place(first)}: unknown pixel type {description.type!r}; known: {', '.join(DTYPES)}")
    encoding, width = _ENCODINGS.get(description.encoding, ("none", -1))
    itemsize = _ITEMSIZE[dtype]
    if width is not None and width != itemsize:
        raise WireError(
            f"{_place(first)}: encoding {description.encoding!r} doesn't go with {description.type}; "
            "set detector/config/compression to bslz4, lz4 or none"
        )
    columns, rows = description.shape
    if not (0 < columns < 2**31 and 0 < rows < 2**31 and rows * columns * itemsize < 2**63):
        raise WireError(f"{_place(first)}: shape {columns} x {rows} has no pixels or too many")
    blob = parts[2]
    if encoding == "bslz4":
        nbytes = rows * columns * itemsize
        if bytes(blob[:8]) != nbytes.to_bytes(8, "big"):
            blob = _HDF5_HEADER.pack(nbytes, BLOCK_BYTES) + bytes(blob)
    return Image(
        first.series,
        first.frame,
        (rows, columns),
        dtype,
        encoding,
        blob,
        times.start_time,
        times.stop_time,
        times.real_time,
        description.size,
        first.hash,
        bytes(parts[4]) if len(parts) == 5 else None,
    )


def _header(first: _First, parts: Sequence[Any]) -> SeriesHeader:
    place = f"series {first.series}, header"
    _check(first.series >= 0, "header", "it names no series")
    if first.header_detail not in ("none", "basic", "all"):
        raise WireError(f"{place}: header_detail {first.header_detail!r}, expected none, basic or all")
    detail: Detail = first.header_detail  # type: ignore[assignment]  # checked above
    rest = list(parts[1:])
    config = _mapping(rest.pop(0), f"{place}, part 2, the configuration") if rest and detail != "none" else None
    tables = []
    while len(rest) >= 2 and detail == "all":
        try:
            head = _read(_first, rest[0])
        except _NotJson as error:
            raise WireError(f"{place}, part {len(parts) - len(rest) + 1}: {error}") from None
        tables.append(_table(head, rest[1], place))
        del rest[:2]
    _check(len(rest) <= 1, place, f"{len(rest)} parts beyond what header_detail {detail!r} has (and an appendix)")
    return SeriesHeader(first.series, detail, config, tuple(tables), bytes(rest[0]) if rest else None)


def _table(head: _First, blob: Any, place: str) -> Table:
    name, dtype = _TABLES.get(head.htype), DTYPES.get(head.type)
    if name is None or dtype is None:
        raise WireError(f"{place}: a table {head.htype!r} of {head.type!r} is unknown; known: {', '.join(_TABLES)}")
    _check(all(0 < length < 2**31 for length in head.shape), place, f"{name}: shape {head.shape} has no elements")
    return Table(name, tuple(reversed(head.shape)), dtype, blob)


def _mapping(part: Any, place: str) -> dict[str, Any]:
    try:
        return _read(_config, part)
    except _NotJson as error:
        raise WireError(f"{place}: {error}") from None


def _check(ok: bool, place: str, complaint: str) -> None:
    if not ok:
        raise WireError(f"{place}: {complaint}")


def _place(first: _First) -> str:
    return f"series {first.series}, frame {first.frame}"


class Decoder:
    """:func:`decode` for one socket: it also takes the lone blobs of a sender that gives each part as a message.

    >>> decoder = Decoder()
    >>> decoder.decode([b'{"htype":"flatfield-1.0","shape":[2,1],"type":"uint8"}'])
    HeaderPart(config=None, table=None)
    >>> decoder.decode([b"ab"]).table
    Table(name='flatfield', shape=(1, 2), dtype='|u1', blob=b'ab')
    """

    def __init__(self) -> None:
        self._awaited: Any = None  # the description of a table whose blob is the next message

    def decode(self, parts: Sequence[Any]) -> AnyMessage:
        """Return the message that these ``parts`` are.

        Raises
        ------
        WireError
            They are none; the next message is read as if these hadn't come.
        """
        awaited, self._awaited = self._awaited, None
        if len(parts) == 1:
            if awaited is not None:
                return decode([awaited, parts[0]])
            if _is_table(parts[0]):
                self._awaited = bytes(parts[0])
                return HeaderPart()
        return decode(parts)


def _is_table(part: Any) -> bool:
    try:
        return _read(_first, part).htype in _TABLES
    except _NotJson:
        return False


def encode(message: AnyMessage) -> list[Blob]:
    """Return the parts that a DCU sends for it, a :class:`HeaderPart` as the simulators do that split a header."""
    if isinstance(message, Image):
        described = describe(message.shape, message.dtype, message.encoding, len(message.blob))
        parts: list[Blob] = [
            _encode({"htype": "dimage-1.0", "series": message.series, "frame": message.frame, "hash": message.hash}),
            described,
            message.blob,
            _encode(
                {
                    "htype": "dconfig-1.0",
                    "start_time": message.start_ns,
                    "stop_time": message.stop_ns,
                    "real_time": message.real_ns,
                }
            ),
        ]
        return parts if message.appendix is None else [*parts, message.appendix]
    if isinstance(message, SeriesHeader):
        head = {"htype": "dheader-1.0", "series": message.series, "header_detail": message.detail}
        parts = [_encode(head)]
        if message.config is not None:
            parts.append(_encode(message.config))
        for table in message.tables:
            parts += _table_parts(table)
        return parts if message.appendix is None else [*parts, message.appendix]
    if isinstance(message, SeriesEnd):
        return [_encode({"htype": "dseries_end-1.0", "series": message.series})]
    if message.table is not None:
        return _table_parts(message.table)
    return [_encode(message.config or {})]


def describe(shape: tuple[int, int], dtype: str, encoding: Encoding, size: int) -> bytes:
    """Return an image's second part, which is the same for all frames of a shape, type and blob length.

    >>> describe((514, 1030), "<u2", "bslz4", 4096)
    b'{"htype":"dimage_d-1.0","shape":[1030,514],"type":"uint16","encoding":"bs16-lz4<","size":4096}'
    """
    wire = {"bslz4": f"bs{8 * _ITEMSIZE[dtype]}-lz4<", "lz4": "lz4<", "none": "<"}[encoding]
    rows, columns = shape
    return _encode(
        {
            "htype": "dimage_d-1.0",
            "shape": [columns, rows],
            "type": _NAMES[dtype],
            "encoding": wire,
            "size": size,
        }
    )


def _table_parts(table: Table) -> list[Blob]:
    htype = {"flatfield": "dflatfield-1.0", "pixel_mask": "dpixelmask-1.0", "countrate_table": "dcountrate_table-1.0"}
    described = {"htype": htype[table.name], "shape": list(reversed(table.shape)), "type": _NAMES[table.dtype]}
    return [_encode(described), table.blob]
