"""How a process of the pool says that it lives, and learns that it should end.

It ends on SIGTERM, SIGINT, or the end of its standard input, whose other end its parent holds. It says that it lives in
lines on its standard output, which its parent reads: one JSON object each.
"""

from __future__ import annotations

import json
import os
import signal
import stat
import sys
from collections.abc import Callable, Mapping
from time import monotonic
from types import FrameType
from typing import Any, Final

import zmq

from .death import on_parents_death

_STDIN: Final = 0
_STDOUT: Final = 1

BEAT: Final = 1.0
"""Seconds between two beats, at least."""

MAX_BEAT: Final = 4096
"""Bytes of a beat: a pipe takes so many at once or none (``PIPE_BUF``)."""

ENDING: Final = 30
"""Seconds that a process may take to end; then the kernel ends it, whatever it hangs in."""


class Lifeline:
    """Two file descriptors for a poller. The parent holds the other end of standard input, so no child outlives it.

    Attributes
    ----------
    says
        Gives what a beat says beside that the process lives: a few numbers. ``children`` are pids.
    """

    def __init__(self) -> None:
        self.says: Callable[[], Mapping[str, Any]] = dict
        self._wake, self._write = os.pipe()
        os.set_blocking(self._write, False)
        self._over = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._signalled)
        # One that is stopped doesn't see that its input ended.
        on_parents_death(signal.SIGCONT)
        # Whoever reads may be stopped (Ctrl-Z in a session): that mustn't stop this process.
        self._beats = stat.S_ISFIFO(os.fstat(_STDOUT).st_mode)
        if self._beats:
            os.set_blocking(_STDOUT, False)
        self._beat_at = 0.0

    def _signalled(self, number: int, frame: FrameType | None) -> None:
        self._over = True
        os.write(self._write, b"x")

    def register(self, poller: zmq.Poller) -> None:
        """Let ``poller`` wake when the end comes."""
        poller.register(self._wake, zmq.POLLIN)
        poller.register(_STDIN, zmq.POLLIN)

    def over(self, events: dict[Any, int]) -> bool:
        """Return whether, after these poll ``events``, it is time to end. Until then, say that the process lives."""
        if _STDIN in events and not os.read(_STDIN, 4096):
            self._over = True
        if self._over:
            signal.alarm(ENDING)
        else:
            self.beat()
        return self._over

    def beat(self) -> None:
        """Say that the process lives, if that is due. Call it from long work too."""
        now = monotonic()
        if not self._beats or now < self._beat_at:
            return
        self._beat_at = now + BEAT
        line = beat_line(self.says())
        try:
            os.write(_STDOUT, line)
        except BlockingIOError:
            return  # nobody reads at present: so nobody misses it
        except BrokenPipeError:
            self._beats = False


def beat_line(words: Mapping[str, Any]) -> bytes:
    r"""Return a beat's line; words that don't fit are left out.

    >>> beat_line({"kept": 3})
    b'{"beat": {"kept": 3}}\n'
    """
    line = json.dumps({"beat": dict(words)}).encode() + b"\n"
    return line if len(line) <= MAX_BEAT else b'{"beat": {}}\n'


def announce(**words: Any) -> None:
    """Print the one JSON line that says: ready.

    >>> announce(role="sink", ready=True)
    {"role": "sink", "ready": true}
    """
    sys.stdout.write(json.dumps(words) + "\n")
    sys.stdout.flush()
