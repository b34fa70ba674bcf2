"""A list of small numpy arrays as another program's pickle: read and written here without pickle.

Some streams carry their scalers so (MAX IV's Xspress3 among them). Unpickling runs whatever the sender names. This
reads the few opcodes that such a list consists of; a name means nothing here but "array" or "dtype", nothing is
imported or called, and anything else is refused.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ..errors import WireError

MAX_BYTES: Final = 64 * 1024
"""Most bytes in a list; the captured one of eight scalers for two elements has 515."""

MAX_STEPS: Final = 1024
"""Most opcodes in a list; the captured one has 258. They nest, so that what each costs grows with their number."""

_MARK: Final = object()
_RECONSTRUCT: Final = {("numpy.core.multiarray", "_reconstruct"), ("numpy._core.multiarray", "_reconstruct")}
_ARRAY: Final = ("numpy", "ndarray")
_DTYPE: Final = ("numpy", "dtype")
_TYPES: Final = {f"{kind}{size}" for kind in "iu" for size in (1, 2, 4, 8)} | {"f4", "f8"}


class _Name(tuple[str, str]):
    """What STACK_GLOBAL names: (module, name). It stays a name."""


class _Built:
    """An array or a dtype: made empty by REDUCE, filled by BUILD."""

    def __init__(self, kind: str, code: str = "") -> None:
        self.kind, self.code = kind, code
        self.array: NDArray[Any] | None = None


def decode(data: Any) -> list[NDArray[Any]]:
    """Return the arrays, read-only.

    Raises
    ------
    WireError
        It isn't a list of arrays of numbers as numpy pickles it with protocol 4.
    """
    data = bytes(data[: MAX_BYTES + 1])
    if len(data) > MAX_BYTES:
        raise WireError(f"a list of arrays of over {MAX_BYTES} bytes: left out")
    try:
        return _Reader(data).read()
    except (IndexError, struct.error, TypeError, ValueError, AttributeError, KeyError) as error:
        if isinstance(error, WireError):
            raise
        raise WireError(f"not a pickled list of arrays: {error}") from None


class _Reader:
    """A stack and a memo, as the pickle format has them."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0
        self.stack: list[Any] = []
        self.memo: list[Any] = []

    def take(self, n: int) -> bytes:
        if self.at + n > len(self.data):
            raise WireError("a pickled list of arrays that was cut")
        self.at += n
        return self.data[self.at - n : self.at]

    def read(self) -> list[NDArray[Any]]:
        for _ in range(MAX_STEPS):
            if (code := self.take(1)) == b".":
                break
            self.step(code)
        else:
            raise WireError(f"a pickle of over {MAX_STEPS} steps: left out")
        (result,) = self.stack
        if not isinstance(result, list):
            raise WireError(f"a pickled {type(result).__name__}, expected a list of arrays")
        arrays = [item.array for item in result if isinstance(item, _Built) and item.array is not None]
        if len(arrays) != len(result):
            raise WireError("a pickled list of other things than arrays")
        return arrays

    def step(self, code: bytes) -> None:
        stack = self.stack
        match code:
            case b"\x80":  # PROTO
                if self.take(1) != b"\x04":
                    raise WireError("a pickle of another protocol than 4")
            case b"\x95":  # FRAME
                self.take(8)
            case b"]":
                stack.append([])
            case b"\x94":  # MEMOIZE
                self.memo.append(stack[-1])
            case b"h":  # BINGET
                stack.append(self.memo[self.take(1)[0]])
            case b"(":
                stack.append(_MARK)
            case b"N":
                stack.append(None)
            case b"\x89":  # NEWFALSE
                stack.append(False)
            case b"\x88":  # NEWTRUE
                stack.append(True)
            case b"K":  # BININT1
                stack.append(self.take(1)[0])
            case b"M":  # BININT2
                stack.append(struct.unpack("<H", self.take(2))[0])
            case b"J":  # BININT
                stack.append(struct.unpack("<i", self.take(4))[0])
            case b"\x8c":  # SHORT_BINUNICODE
                stack.append(self.take(self.take(1)[0]).decode("ascii"))
            case b"C":  # SHORT_BINBYTES
                stack.append(self.take(self.take(1)[0]))
            case b"B":  # BINBYTES
                stack.append(self.take(struct.unpack("<I", self.take(4))[0]))
            case b"\x85" | b"\x86" | b"\x87":  # TUPLE1, 2, 3
                n = code[0] - 0x84
                items = tuple(stack[-n:])
                del stack[-n:]
                stack.append(items)
            case b"t":  # TUPLE, from the mark
                stack.append(tuple(self.since_mark()))
            case b"e":  # APPENDS
                items = tuple(self.since_mark())
                stack[-1].extend(items)
            case b"\x93":  # STACK_GLOBAL
                name, module = stack.pop(), stack.pop()
                stack.append(_Name((_text(module), _text(name))))
            case b"R":  # REDUCE
                arguments, name = stack.pop(), stack.pop()
                stack.append(_reduce(name, arguments))
            case b"b":  # BUILD
                state = stack.pop()
                _build(stack[-1], state)
            case _:
                raise WireError(f"a pickle with opcode {code!r}, which no list of arrays has")

    def since_mark(self) -> list[Any]:
        place = max(index for index, item in enumerate(self.stack) if item is _MARK)
        items = self.stack[place + 1 :]
        del self.stack[place:]
        return items


def _text(item: Any) -> str:
    # Tuples of tuples of the same tuple … are small here, but endless to print, compare or hash.
    if not isinstance(item, str):
        raise WireError(f"a pickle that has a {type(item).__name__} for a name: left out")
    return item


def _reduce(name: Any, arguments: Any) -> _Built:
    if not isinstance(name, _Name):
        raise WireError(f"a pickle that calls a {type(name).__name__}: left out")
    if name in _RECONSTRUCT and isinstance(arguments[0], _Name) and arguments[0] == _ARRAY:
        return _Built("array")
    if name == _DTYPE and isinstance(arguments[0], str) and arguments[0] in _TYPES:
        return _Built("dtype", arguments[0])
    raise WireError(f"a pickle that calls {'.'.join(name)}: left out")


def _build(built: Any, state: Any) -> None:
    if isinstance(built, _Built) and built.kind == "dtype" and isinstance(state[1], str) and state[1] in ("<", "|"):
        return
    if isinstance(built, _Built) and built.kind == "array":
        _, shape, dtype, fortran, content = state
        if not all(
            type(length) is int and 0 <= length <= MAX_BYTES for length in shape
        ):  # bytes · 65535 is an array too
            raise WireError("a pickled array whose shape isn't numbers")
        # numpy 2 says Fortran order of 1-D arrays, where it makes no difference.
        if dtype.kind != "dtype" or (fortran and len(shape) > 1) or not isinstance(content, bytes) or len(shape) > 4:
            raise WireError("a pickled array in another form than C order")
        kind = np.dtype(dtype.code).newbyteorder("<")
        if math.prod(shape) * kind.itemsize != len(content):
            raise WireError(f"a pickled array of {shape} {kind} with {len(content)} bytes")
        built.array = np.frombuffer(content, kind).reshape(shape)
        return
    raise WireError("a pickle that fills something else than an array")


def encode(arrays: Sequence[NDArray[Any]]) -> bytes:
    """Return the list as numpy 1 pickles it with protocol 4: what the sender would send, for tests and simulators.

    Raises
    ------
    WireError
        An array isn't of plain numbers, or is too large for the short forms that are written.
    """
    writer = _Writer()
    for array in arrays:
        writer.array(array)
    body = b"]\x94(" + bytes(writer.out) + b"e."
    return b"\x80\x04\x95" + struct.pack("<Q", len(body)) + body


class _Writer:
    """Writes a thing once, and then where it stands in the memo."""

    def __init__(self) -> None:
        self.out = bytearray()
        self.memo: dict[Any, int] = {}
        self.n = 1  # the list itself is 0

    def known(self, key: Any) -> bool:
        if key in self.memo:
            self.out += b"h" + bytes([self.memo[key]])
            return True
        return False

    def memoize(self, key: Any = None) -> None:
        self.out += b"\x94"
        self.memo[self.n if key is None else key] = self.n
        self.n += 1

    def text(self, value: str) -> None:
        if not self.known(value):
            self.out += b"\x8c" + bytes([len(value)]) + value.encode()
            self.memoize(value)

    def name(self, module: str, name: str) -> None:
        if not self.known((module, name)):
            self.text(module)
            self.text(name)
            self.out += b"\x93"
            self.memoize((module, name))

    def array(self, array: NDArray[Any]) -> None:
        code, content = array.dtype.str[1:], array.astype(array.dtype.newbyteorder("<")).tobytes()
        if code not in _TYPES or len(content) > 255 or array.ndim > 3 or not all(n < 256 for n in array.shape):
            raise WireError(f"an array of {array.shape} {array.dtype} is not written as a scaler")
        self.name("numpy.core.multiarray", "_reconstruct")
        self.name(*_ARRAY)
        self.integers(0)
        if not self.known(b"b"):
            self.out += b"C\x01b"
            self.memoize(b"b")
        self.out += b"\x87"
        self.memoize()
        self.out += b"R"
        self.memoize()
        self.out += b"(K\x01"
        self.integers(*array.shape)
        self.dtype(code)
        self.out += b"\x89C" + bytes([len(content)]) + content
        self.memoize()
        self.out += b"t"
        self.memoize()
        self.out += b"b"

    def integers(self, *values: int) -> None:
        self.out += b"".join(b"K" + bytes([value]) for value in values) + bytes([0x84 + len(values)])
        self.memoize()

    def dtype(self, code: str) -> None:
        if self.known(("dtype", code)):
            return
        self.name(*_DTYPE)
        self.text(code)
        self.out += b"K\x00K\x01\x87"
        self.memoize()
        self.out += b"R"
        self.memoize(("dtype", code))
        self.out += b"(K\x03"
        self.text("<")
        self.out += b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00t"
        self.memoize()
        self.out += b"b"
