"""How a process of the pool learns that it should end: SIGTERM, SIGINT, or the end of its standard input."""

from __future__ import annotations

import json
import os
import signal
import sys
from types import FrameType
from typing import Any, Final

import zmq

from .beating import Beating
from .death import on_parents_death

_STDIN: Final = 0

ENDING: Final = 30
"""Seconds that a process may take to end; then the kernel ends it, whatever it hangs in."""


class Lifeline(Beating):
    """Two file descriptors for a poller. The parent holds the other end of standard input, so no child outlives it."""

    def __init__(self) -> None:
        super().__init__()
        self._wake, self._write = os.pipe()
        os.set_blocking(self._write, False)
        self._over = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._signalled)
        # One that is stopped wouldn't see that its input ended.
        on_parents_death(signal.SIGCONT)

    def _signalled(self, number: int, frame: FrameType | None) -> None:
        self._over = True
        os.write(self._write, b"x")

    def register(self, poller: zmq.Poller) -> None:
        """Let ``poller`` wake when the end comes."""
        poller.register(self._wake, zmq.POLLIN)
        poller.register(_STDIN, zmq.POLLIN)

    def over(self, events: dict[Any, int]) -> bool:
        """Return whether, after these poll ``events``, it is time to end; until then, say that the process lives."""
        if _STDIN in events and not os.read(_STDIN, 4096):
            self._over = True
        if self._over:
            signal.alarm(ENDING)
        else:
            self.beat()
        return self._over


def announce(**words: Any) -> None:
    """Print the one JSON line that says: ready.

    >>> announce(role="sink", ready=True)
    {"role": "sink", "ready": true}
    """
    sys.stdout.write(json.dumps(words) + "\n")
    sys.stdout.flush()
