"""What is compiled, and how Python calls it.

Nothing here loads Numba: machine code that is kept (:mod:`.kept`) runs without it, and only what isn't there yet is
compiled (:mod:`.making`).
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Callable, Sequence
from functools import cache, cached_property, update_wrapper
from threading import Lock
from typing import Any, Final, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from . import kept

Function = TypeVar("Function", bound=Callable[..., Any])

CHECKED: Final = os.environ.get("HALTERE_KERNEL_CHECKED") == "1"
"""Each access to memory is compared with its array's ends: for tests, about ten times slower."""

FAILED: Final = -(1 << 63)
"""What machine code returns instead of its result when an access was outside."""


class _Compiled:
    """A function for compiled code only. What Numba knows it by is made when it asks."""

    def __init__(self, function: Callable[..., Any]) -> None:
        update_wrapper(self, function)
        self.function = function

    def __call__(self, *arguments: Any) -> Any:
        raise TypeError(f"{self.function.__name__} is for compiled code")


class _Inner(_Compiled):
    def __init__(self, function: Callable[..., Any], *, merged: bool = False) -> None:
        super().__init__(function)
        self._merged = merged

    @cached_property
    def _numba_type_(self) -> Any:
        from .making import type_of_function

        return type_of_function(self.function, merged=self._merged)


class _Instruction(_Compiled):
    @cached_property
    def _numba_type_(self) -> Any:
        from .making import type_of_instruction

        return type_of_instruction(self.function)


def inner(function: Function) -> Function:
    """Compile what is called by compiled code only: it ends in its callers' machine code."""
    return cast(Function, _Inner(function))


def merged(function: Function) -> Function:
    """Compile what is called in one place, for each frame of each tile, as a piece of its caller.

    A named tuple is passed array by array, a hundred words in all: to decode, that was a twentieth of the time.
    """
    return cast(Function, _Inner(function, merged=True))


def intrinsic(function: Callable[..., Any]) -> Callable[..., Any]:
    """Take a function that describes instructions, as Numba's ``intrinsic`` does; it is called without the first."""
    return _Instruction(function)


def entry(function: Function) -> Function:
    """Compile what Python calls, and keep the machine code.

    It takes integers, floats, C-contiguous arrays, and tuples of these; it returns None or an integer. It makes no
    arrays, and neither does what it calls. The interpreter's lock is let go while it runs.

    Raises
    ------
    IndexError
        It reached out of an array; only :data:`CHECKED` code sees that.
    """
    return cast(Function, _Entry(function))


class Packed:
    """An argument as machine code takes it: worth having for what many calls take.

    ``values`` : int64 : numbers, and addresses and lengths of arrays. ``layout`` : what they mean.
    """

    __slots__ = ("given", "layout", "values")

    def __init__(self, given: Any) -> None:
        self.given = given  # keeps its arrays alive
        self.values: list[int] = []
        layout: list[str] = []
        _pack(given, self.values, layout)
        self.layout = "".join(layout)


def _pack(given: Any, values: list[int], layout: list[str]) -> None:
    if isinstance(given, np.ndarray):
        if not given.flags.c_contiguous:
            raise ValueError(f"an array of {given.shape}, strides {given.strides}: compiled code takes contiguous ones")
        values.append(_address(given))
        values.extend(given.shape)
        layout.append(_name(given.dtype, given.ndim))
    elif isinstance(given, tuple):
        layout.append("(")
        for each in given:
            _pack(each, values, layout)
        layout.append(")")
    elif isinstance(given, float):
        values += struct.unpack("q", struct.pack("d", given))
        layout.append("f")
    else:
        values.append(int(given))
        layout.append("i")


def _address(array: Any) -> int:
    try:  # this takes a third of the time that the other way takes
        return ctypes.addressof(ctypes.c_char.from_buffer(array))
    except (TypeError, ValueError):  # it is read-only, or empty
        return int(array.__array_interface__["data"][0])


@cache
def _name(dtype: np.dtype[Any], axes: int) -> str:
    return f"{dtype.str}{axes}"


class _Entry:
    def __init__(self, function: Callable[..., Any]) -> None:
        update_wrapper(self, function)
        self.function = function
        self.layouts: dict[str, Callable[[int], int]] = {}
        self._lock = Lock()

    def __call__(self, *arguments: Any) -> int:
        packed = [each if isinstance(each, Packed) else Packed(each) for each in arguments]
        layout = "".join(each.layout for each in packed)
        code = self.layouts.get(layout) or self._ready(layout, packed)
        values: NDArray[np.int64] = np.array([value for each in packed for value in each.values], np.int64)
        result = code(values.__array_interface__["data"][0])
        if result == FAILED:
            raise IndexError(f"{self.function.__name__}: the kernel reached out of an array")
        return result

    def _ready(self, layout: str, packed: Sequence[Packed]) -> Callable[[int], int]:
        with self._lock:
            if layout not in self.layouts:
                name = f"{self.function.__module__.rpartition('.')[2]}.{self.function.__name__}"
                address = kept.address(name, layout, lambda: self._compile(packed))
                self.layouts[layout] = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_void_p)(address)
            return self.layouts[layout]

    def _compile(self, packed: Sequence[Packed]) -> bytes:
        from .making import machine_code

        made: bytes = machine_code(self.function, [each.given for each in packed])
        return made
