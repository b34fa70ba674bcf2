"""The Xspress3 Mini's stream, as MAX IV's detector software sends it: bytes to messages, and back.

===========  ====================================================  =====================================================
message      parts                                                 says
===========  ====================================================  =====================================================
header       ``{"htype":"header","filename":…,"overwritable":…}``  a series begins, and where its file will be
image        ``{"htype":"image","frame":…,"shape":[2,4096],…}``,   a frame: spectra of all elements; scalers
             spectra, scalers
series_end   ``{"htype":"series_end"}``                            the series has ended
===========  ====================================================  =====================================================

Source: a stream captured at a nanoprobe. There each part is a ZMQ message of its own; parts of one message are read as
well. The scalers are a pickled list of arrays, read without pickle (:mod:`.array_list`). Their order was found from
their values: factor = totalticks / (totalticks − allevent·(event_width + 1) − resetticks) holds to the last digit;
what the first array means is not known, nor which of the two tick counts is which.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any, Final, Literal

import msgspec
import numpy as np
from msgspec import Meta, Struct
from numpy.typing import NDArray

from ..errors import WireError
from . import array_list

Blob = bytes | memoryview

SCALERS: Final = ("unknown", "allevent", "allgood", "time", "totalticks", "resetticks", "event_width", "factor")
_DTYPES: Final = {"uint16": "<u2", "uint32": "<u4", "int32": "<i4", "uint64": "<u8"}
_NAMES: Final = {dtype: name for name, dtype in _DTYPES.items()}
_Side = Annotated[int, Meta(ge=1, le=65536)]

MAX_HEADER: Final = 64 * 1024
"""Most bytes in a message's first part."""


class SeriesHeader(Struct, frozen=True):
    """``SeriesHeader(1, "/data/scan_000145_x3mini.hdf5", False)``: a series begins.

    The stream doesn't number its series: ``series`` counts headers since the connection was made.
    """

    series: int
    filename: str
    overwritable: bool = False


class Scaler(Struct, frozen=True):
    """One number per element: ``Scaler("allevent", "<u4", b"…")``; names as in :data:`SCALERS`."""

    name: str
    dtype: str
    blob: bytes

    def array(self) -> NDArray[Any]:
        """Return (elements,)."""
        return np.frombuffer(self.blob, self.dtype)


class Image(Struct, frozen=True):
    """A frame: ``Image(1, 7, (2, 4096), "<u4", "none", b"…", 1.0, scalers)``.

    ``shape`` is (elements, channels); ``blob`` holds the spectra in C order; ``exptime`` in s.
    """

    series: int
    frame: int
    shape: tuple[int, int]
    dtype: str
    encoding: Literal["none"]
    blob: Blob
    exptime: float
    scalers: tuple[Scaler, ...] = ()

    def spectra(self) -> NDArray[Any]:
        """Return (elements, channels), counts, read-only."""
        return np.frombuffer(self.blob, self.dtype).reshape(self.shape)

    def scaler(self, name: str) -> NDArray[Any]:
        """Return (elements,) of the scaler of that name.

        Raises
        ------
        WireError
            The frame has none of that name.
        """
        for scaler in self.scalers:
            if scaler.name == name:
                return scaler.array()
        raise WireError(f"series {self.series}, frame {self.frame}: no scaler {name!r}")


class ImagePart(Struct, frozen=True):
    """Part ``part`` (0: header, 1: spectra) of a frame whose scalers are still to come."""

    series: int
    part: int


class SeriesEnd(Struct, frozen=True):
    """``SeriesEnd(1)``: the series has ended."""

    series: int


AnyMessage = SeriesHeader | Image | ImagePart | SeriesEnd


class _First(Struct, frozen=True):
    htype: Literal["header", "image", "series_end"]
    filename: str = ""
    overwritable: bool = False
    exptime: float = 0.0
    frame: Annotated[int, Meta(lt=2**40)] = -1
    shape: tuple[_Side, _Side] = (1, 1)
    type: str = ""
    compression: str = "none"


_first: msgspec.json.Decoder[_First] = msgspec.json.Decoder(_First)
_encode = msgspec.json.Encoder().encode
_NotJson = (msgspec.DecodeError, msgspec.ValidationError, UnicodeDecodeError, RecursionError)


class Decoder:
    """Reads one socket's messages, in the order in which they come.

    >>> decoder = Decoder()
    >>> decoder.decode(encode(SeriesHeader(1, "/data/scan_1.h5"))[0])
    SeriesHeader(series=1, filename='/data/scan_1.h5', overwritable=False)
    >>> decoder.decode([b'{"htype":"series_end"}'])
    SeriesEnd(series=1)
    """

    def __init__(self) -> None:
        self._series = 0
        self._parts: list[Any] = []  # of a frame that is not complete, in copies of their own
        self._image: _First | None = None

    def decode(self, parts: Sequence[Any]) -> AnyMessage:
        """Return what these ``parts`` (bytes-likes) of one ZMQ message are, or complete.

        Raises
        ------
        WireError
            They are no message of this stream, or the frame before them was never completed. The next message is
            read as if the bad one hadn't come.
        """
        if not parts:
            raise WireError("a message without parts: not an Xspress3 stream")
        if self._image is None:
            return self._begin(parts)
        spectra = len(self._parts) == 0
        if spectra and len(parts) == 1 and len(parts[0]) == _size(self._image):
            self._parts.append(bytes(parts[0]))
            return ImagePart(self._series, 1)
        if not spectra and len(parts) == 1 and bytes(parts[0][:1]) == b"\x80":
            return self._complete(self._parts[0], parts[0])
        lost = f"series {self._series}, frame {self._image.frame}: its {'spectra' if spectra else 'scalers'} never came"
        self._image, self._parts = None, []
        try:
            self._begin(parts)
        except WireError as error:
            raise WireError(f"{lost}; instead {error}") from None
        raise WireError(lost)

    def _begin(self, parts: Sequence[Any]) -> AnyMessage:
        if len(parts[0]) > MAX_HEADER:
            raise WireError(f"a message of {len(parts[0])} bytes is no Xspress3 header, which has at most {MAX_HEADER}")
        try:
            first = _first.decode(parts[0])
        except _NotJson as error:
            raise WireError(f"a message of {len(parts[0])} bytes is no Xspress3 header: {error}") from None
        if first.htype == "header":
            self._series += 1
            return SeriesHeader(self._series, first.filename, first.overwritable)
        if first.htype == "series_end":
            return SeriesEnd(self._series)
        place = f"series {self._series}, frame {first.frame}"
        if first.frame < 0 or first.type not in _DTYPES or first.compression != "none":
            raise WireError(f"{place}: {first.type!r} spectra, compression {first.compression!r}, can't be read")
        if len(parts) not in (1, 3):
            raise WireError(f"{place}: {len(parts)} parts, expected 3 (header, spectra, scalers) or one at a time")
        self._image, self._parts = first, []
        return ImagePart(self._series, 0) if len(parts) == 1 else self._complete(parts[1], parts[2])

    def _complete(self, spectra: Any, scalers: Any) -> Image:
        first, self._image, self._parts = self._image, None, []
        assert first is not None
        place = f"series {self._series}, frame {first.frame}"
        if len(spectra) != _size(first):
            raise WireError(f"{place}: {len(spectra)} bytes of spectra, {first.shape} {first.type} need {_size(first)}")
        try:
            arrays = array_list.decode(scalers)
        except WireError as error:
            raise WireError(f"{place}, scalers: {error}") from None
        if len(arrays) != len(SCALERS) or any(array.shape != (first.shape[0],) for array in arrays):
            raise WireError(f"{place}: {len(arrays)} scalers, expected {len(SCALERS)} of {first.shape[0]} elements")
        named = tuple(
            Scaler(name, array.dtype.str, array.tobytes()) for name, array in zip(SCALERS, arrays, strict=True)
        )
        dtype = _DTYPES[first.type]
        return Image(self._series, first.frame, first.shape, dtype, "none", spectra, first.exptime, named)


def _size(first: _First) -> int:
    return math.prod(first.shape) * np.dtype(_DTYPES[first.type]).itemsize


def encode(message: SeriesHeader | Image | SeriesEnd) -> list[list[Blob]]:
    """Return the messages, each a list of parts, that the detector sends for it: an image takes three."""
    if isinstance(message, SeriesHeader):
        return [[_encode({"htype": "header", "filename": message.filename, "overwritable": message.overwritable})]]
    if isinstance(message, SeriesEnd):
        return [[_encode({"htype": "series_end"})]]
    header = {
        "htype": "image",
        "exptime": message.exptime,
        "frame": message.frame,
        "shape": message.shape,
        "type": _NAMES[message.dtype],
        "compression": "none",
    }
    scalers = array_list.encode([scaler.array() for scaler in message.scalers])
    return [[_encode(header)], [message.blob], [scalers]]
