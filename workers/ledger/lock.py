"""A ledger has one sink. Two pools on one folder would each think the other's work undone."""

from __future__ import annotations

import fcntl
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from ..errors import SettingsError

PATIENCE: Final = 20.0
"""s that a sink which ends may take to commit what it has."""


@contextmanager
def only_writer(ledger: Path, patience: float = PATIENCE) -> Iterator[None]:
    """Be the only one who writes to a ledger; the kernel lets go of it when this process dies.

    Raises
    ------
    SettingsError
        Another process writes to it, or its folder can't be written.
    """
    path = ledger.with_name(f"{ledger.name}.lock")
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise SettingsError(f"ledger {ledger}: {path.name}: {error.strerror} (can its folder be written?)") from None
    try:
        _wait_for(descriptor, ledger, patience)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)


def writer_of(ledger: Path) -> int | None:
    """Return the pid of the sink that writes to a ledger now; None if nobody does."""
    try:
        descriptor = os.open(ledger.with_name(f"{ledger.name}.lock"), os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _pid(descriptor)
    finally:
        os.close(descriptor)
    return None


def _wait_for(descriptor: int, ledger: Path, patience: float) -> None:
    deadline = time.monotonic() + patience
    pause = threading.Event()
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise SettingsError(
                    f"ledger {ledger} is written by another pool's sink (pid {_pid(descriptor)}): "
                    "use that pool, or end it first"
                ) from None
        pause.wait(0.05)  # whoever lets go of a lock tells nobody


def _pid(descriptor: int) -> int:
    text = os.pread(descriptor, 32, 0).strip()
    return int(text) if text.isdigit() else -1
