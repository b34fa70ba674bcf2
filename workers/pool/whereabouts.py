"""Which process is meant, in a word: host, pid, and when it started. So it can be seen whether it still is."""

from __future__ import annotations

import hashlib
import os
import re
import socket
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Final, Self

_WORD: Final = re.compile(r"([A-Za-z0-9.-]{1,40}):([0-9]{1,10}):([0-9]{1,20})")
_STARTED: Final = 19
"""Place of a process's start time in its ``stat``, counted from behind its name."""


class Life(Enum):
    """What can be said of a process."""

    LIVES = "lives"
    GONE = "gone"
    ELSEWHERE = "elsewhere"
    """On another host, or unknown: nothing can be seen of it from here."""


@dataclass(frozen=True, slots=True)
class Whereabouts:
    """A process. ``started`` : clock ticks since the host booted; a later process with the same pid has another."""

    host: str
    pid: int
    started: int

    @classmethod
    def mine(cls) -> Self:
        """Return this process's."""
        pid = os.getpid()
        return cls(this_host(), pid, started(pid) or 0)

    @classmethod
    def parse(cls, word: str) -> Self | None:
        """Return what :meth:`__str__` gave; None if it's no such word.

        >>> Whereabouts.parse("nano.1f2e3d4c:4031:99")
        Whereabouts(host='nano.1f2e3d4c', pid=4031, started=99)
        """
        found = _WORD.fullmatch(word)
        return None if found is None else cls(found[1], int(found[2]), int(found[3]))

    def __str__(self) -> str:
        return f"{self.host}:{self.pid}:{self.started}"

    @property
    def host_name(self) -> str:
        """What people call the host; :attr:`host` tells its boots and containers apart too."""
        return self.host.rpartition(".")[0]

    def life(self) -> Life:
        """Look whether it lives. One that is stopped (Ctrl-Z) does."""
        if self.host != this_host():
            return Life.ELSEWHERE
        return Life.LIVES if started(self.pid) == self.started else Life.GONE


def is_gone(word: str) -> bool | None:
    """Look whether the process of that word is gone; None if that can't be seen from here, or it's no such word."""
    found = Whereabouts.parse(word)
    life = Life.ELSEWHERE if found is None else found.life()
    return None if life is Life.ELSEWHERE else life is Life.GONE


@cache
def this_host() -> str:
    """Return a word for this host, since its last boot; containers count as hosts, because their pids are their own."""
    told = [socket.gethostname()]
    for path in ("/proc/sys/kernel/random/boot_id", "/proc/self/ns/pid"):
        with suppress(OSError):
            told.append(os.readlink(path) if path.endswith("pid") else Path(path).read_text())
    name = re.sub(r"[^A-Za-z0-9-]", "-", told[0])[:30]
    return f"{name}.{hashlib.sha256(' '.join(told).encode()).hexdigest()[:8]}"


def started(pid: int) -> int | None:
    """Return when a process started, in clock ticks since the host booted; None if it is gone or a zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    # The name stands in parentheses and may hold anything.
    state, *rest = stat.rpartition(")")[2].split()
    return None if state in "ZX" else int(rest[_STARTED - 1])
