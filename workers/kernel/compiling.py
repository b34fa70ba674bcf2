"""How the kernel is compiled, and where what was compiled is kept.

Numba notices a change of the file in which a function stands, not of the functions which that one calls; and its index
names machine code by a number which two processes on different CPUs may take at once. So the kernel has a folder of its
own for each state of its sources, of Numba and of the CPU: what is found in it can't be another's.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any, Final, TypeVar, cast

import llvmlite
import llvmlite.binding
import numba
from numba import types
from numba.core import caching, config

Function = TypeVar("Function", bound=Callable[..., Any])

CHECKED: Final = os.environ.get("HALTERE_KERNEL_CHECKED") == "1"
"""Each access to memory is compared with its array's ends: for tests, about ten times slower."""

OPTIONS: Final = {"nogil": True, "error_model": "numpy", "boundscheck": CHECKED}


MODERN: Final = ("x86-64-v", "haswell", "broadwell", "skylake", "cascadelake", "icelake", "sapphirerapids", "znver")
"""Beginnings of names, as ``NUMBA_CPU_NAME`` may give them, of CPUs that have SSSE3."""


def inner(function: Function, **options: Any) -> Function:
    """Compile what is called by compiled code only: it ends in its callers' machine code, and isn't kept by itself.

    Numba would compile it anew where a caller's variable begins as a literal number (``tile = 0``), though that becomes
    an int64 once the loop is known: half of all the work was for that.
    """
    dispatcher = numba.njit(**OPTIONS, **options)(function)
    template = dispatcher.get_call_template
    dispatcher.get_call_template = lambda args, kws: template(tuple(map(types.unliteral, args)), kws)
    return cast(Function, dispatcher)


def merged(function: Function) -> Function:
    """Compile what is called in one place, for each frame of each tile, as a piece of its caller.

    A named tuple is passed array by array, a hundred words in all: to decode, that was a twentieth of the time.
    """
    return inner(function, forceinline=True)


def outer(function: Function) -> Function:
    """Compile what Python calls, and keep the machine code."""
    return _kept(function, OPTIONS)


def lean(function: Function) -> Function:
    """Compile what Python calls and what makes no arrays, nor does what it calls.

    References to arrays aren't counted then: at each call of a small function that took a tenth of the walk's time.
    """
    return _kept(function, {**OPTIONS, "_nrt": False})


def _kept(function: Function, options: dict[str, Any]) -> Function:
    dispatcher = numba.njit(**options)(function)
    if folder() is not None:
        dispatcher._cache = _Kept(function)
    return cast(Function, dispatcher)


@cache
def folder() -> Path | None:
    """Return the folder of machine code, None if no folder can be written: then each process compiles for itself.

    It lies below ``NUMBA_CACHE_DIR`` or else ``XDG_CACHE_HOME`` (by default ``~/.cache``).
    """
    named = config.CACHE_DIR or os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    try:
        made = Path(named).expanduser() / "haltere" / f"kernel-{_state()}"
        made.mkdir(mode=0o700, parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # RuntimeError: nobody's home
        return None
    # It is unpickled what lies there: it must be ours, and nobody else's to write.
    found = made.stat()
    if found.st_uid != os.getuid() or found.st_mode & 0o022 or not os.access(made, os.W_OK):
        return None
    return made


def _state() -> str:
    """Return a digest of all that machine code depends on."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    for each in _machine():
        digest.update(f"\0{each}".encode())
    return digest.hexdigest()[:16]


def _machine() -> Iterable[object]:
    yield from (sys.version_info[:2], numba.__version__, llvmlite.__version__, CHECKED, config.OPT)
    yield config.CPU_NAME or llvmlite.binding.get_host_cpu_name()
    yield config.CPU_FEATURES if config.CPU_FEATURES is not None else llvmlite.binding.get_host_cpu_features().flatten()


def has(feature: str) -> bool:
    """Return whether the CPU that is compiled for has this feature, as LLVM calls it; False if that isn't known."""
    if config.CPU_NAME not in (None, "host"):
        return str(config.CPU_NAME).startswith(MODERN)
    return bool(llvmlite.binding.get_host_cpu_features().get(feature))


class _Locator(caching._CacheLocator):  # type: ignore[misc]  # Numba has no types
    def __init__(self, line: int) -> None:
        self._line = line

    @classmethod
    def from_function(cls, function: Callable[..., Any], path: str) -> _Locator:
        del path
        return cls(function.__code__.co_firstlineno)

    def get_cache_path(self) -> str:
        return str(folder())

    def get_source_stamp(self) -> str:
        return ""  # the folder's name is one

    def get_disambiguator(self) -> str:
        return str(self._line)


class _Implementation(caching.CompileResultCacheImpl):  # type: ignore[misc]
    _locator_classes: Final = [_Locator]


class _Kept(caching.Cache):  # type: ignore[misc]
    _impl_class: Final = _Implementation
