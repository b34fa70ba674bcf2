"""A lock on a file, for as long as its holder lives: the kernel takes it back from the dead."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from time import monotonic, sleep
from typing import Final

POLL: Final = 0.05
"""Seconds between two trials."""


class Lock:
    """Held from :meth:`take` on until :meth:`release`, or the end of the process. Children don't inherit it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor = -1

    def take(self, wait: float = 0.0) -> bool:
        """Take it, waiting at most ``wait`` seconds for who has it; return whether it is ours.

        Raises
        ------
        OSError
            The file can't be made.
        """
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        until = monotonic() + wait
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if monotonic() >= until:
                    os.close(descriptor)
                    return False
                sleep(POLL)  # the kernel could wake us, but then nothing would end the wait
                continue
            self._descriptor = descriptor
            return True

    @property
    def held(self) -> bool:
        """Whether it is ours."""
        return self._descriptor >= 0

    def release(self) -> None:
        """Let it go. May be called again."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def is_held(path: Path) -> bool:
    """Return whether a living process holds the lock at ``path``."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False
