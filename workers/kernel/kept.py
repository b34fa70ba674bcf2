"""Machine code, kept in files and loaded by LLVM alone.

Numba is not asked, which would take most of a second to load and to find what it had compiled. There is a folder for
each state of the kernel's sources, of Numba and of the CPU: what is found in it can't be another's. Its files are
objects as a linker takes them, with a digest in front, so that a torn one isn't run.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import cache
from importlib.metadata import version
from pathlib import Path
from time import time
from typing import Any, Final

import llvmlite
import llvmlite.binding

SYMBOL: Final = "haltere_entry"
"""What the function in each file is called."""

UNUSED: Final = 30 * 86400.0
"""Seconds after which a folder that nobody used is removed."""

MODERN: Final = ("x86-64-v", "haswell", "broadwell", "skylake", "cascadelake", "icelake", "sapphirerapids", "znver")
"""Beginnings of names, as ``NUMBA_CPU_NAME`` may give them, of CPUs that have SSSE3."""

_engines: Final[list[Any]] = []
"""They own the code: it stays while the process lives."""


def address(name: str, layout: str, make: Callable[[], bytes]) -> int:
    """Return where the machine code of a function for arguments of this layout is, compiled if it isn't kept yet."""
    where = folder()
    if where is None:
        return _loaded(make())
    file = where / f"{name}-{hashlib.sha256(layout.encode()).hexdigest()[:12]}.o"
    known = _read(file)
    if known is None:
        known = make()
        _write(file, known)
        _forget_others(where)
    return _loaded(known)


def _read(file: Path) -> bytes | None:
    try:
        content = file.read_bytes()
    except OSError:
        return None
    digest, code = content[:32], content[32:]
    return code if hashlib.sha256(code).digest() == digest else None


def _write(file: Path, code: bytes) -> None:
    mine = file.with_name(f"{file.name}.{os.getpid()}")
    with suppress(OSError):  # a full disk: the next process compiles again
        mine.write_bytes(hashlib.sha256(code).digest() + code)
        mine.replace(file)


def _forget_others(where: Path) -> None:
    """Remove the folders of other states that nobody has used for long."""
    for other in where.parent.glob("kernel-*"):
        with suppress(OSError):
            if other != where and time() - other.stat().st_mtime > UNUSED:
                shutil.rmtree(other)


def _loaded(code: bytes) -> int:
    """Link code into this process; return where :data:`SYMBOL` is."""
    binding = llvmlite.binding
    if not _engines:
        binding.initialize_native_target()
        binding.initialize_native_asmprinter()
    machine = binding.Target.from_default_triple().create_target_machine()
    engine = binding.create_mcjit_compiler(binding.parse_assembly(""), machine)
    engine.add_object_file(binding.ObjectFileRef.from_data(code))
    engine.finalize_object()
    _engines.append(engine)
    return int(engine.get_function_address(SYMBOL))


@cache
def folder() -> Path | None:
    """Return the folder of machine code, None if no folder can be written: then each process compiles for itself.

    It lies below ``NUMBA_CACHE_DIR`` or else ``XDG_CACHE_HOME`` (by default ``~/.cache``).
    """
    named = os.environ.get("NUMBA_CACHE_DIR") or os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    try:
        made = Path(named).expanduser() / "haltere" / f"kernel-{_state()}"
        made.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = made.stat()
    except (OSError, RuntimeError):  # RuntimeError: nobody's home
        return None
    # What lies there is run: it must be ours, and nobody else's to write.
    if found.st_uid != os.getuid() or found.st_mode & 0o022 or not os.access(made, os.W_OK):
        return None
    with suppress(OSError):
        os.utime(made)  # it is in use
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
    yield from (sys.version_info[:2], version("numba"), llvmlite.__version__)
    yield from (os.environ.get(name) for name in ("HALTERE_KERNEL_CHECKED", "NUMBA_OPT"))
    yield os.environ.get("NUMBA_CPU_NAME") or llvmlite.binding.get_host_cpu_name()
    features = os.environ.get("NUMBA_CPU_FEATURES")
    yield features if features is not None else llvmlite.binding.get_host_cpu_features().flatten()


def has(feature: str) -> bool:
    """Return whether the CPU that is compiled for has this feature, as LLVM calls it; False if that isn't known."""
    named = os.environ.get("NUMBA_CPU_NAME")
    if named not in (None, "", "host"):
        return str(named).startswith(MODERN)
    return bool(llvmlite.binding.get_host_cpu_features().get(feature))
