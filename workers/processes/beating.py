"""How a child says that it lives: lines on its standard output, which its parent reads, one JSON object each."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable, Mapping
from time import monotonic
from typing import Any, Final

_STDOUT: Final = 1

BEAT: Final = 1.0
"""Seconds between two beats, at least."""

MAX_BEAT: Final = 4096
"""Bytes of a beat: a pipe takes so many at once or none (``PIPE_BUF``)."""


class Beating:
    """Says ``{"beat": {…}}`` once a second; call :meth:`beat` from the loop whose life it shows.

    Attributes
    ----------
    says
        Gives what stands in a beat: a few numbers. ``children`` are the pids of processes of its own.
    """

    def __init__(self) -> None:
        self.says: Callable[[], Mapping[str, Any]] = dict
        # Whoever reads may be stopped (Ctrl-Z in a session): that mustn't stop this process.
        self._heard = stat.S_ISFIFO(os.fstat(_STDOUT).st_mode)
        if self._heard:
            os.set_blocking(_STDOUT, False)
        self._beat_at = 0.0

    def beat(self) -> None:
        """Say that the process lives, if that is due."""
        now = monotonic()
        if not self._heard or now < self._beat_at:
            return
        self._beat_at = now + BEAT
        try:
            os.write(_STDOUT, beat_line(self.says()))
        except BlockingIOError:
            return  # nobody reads at present: so nobody misses it
        except BrokenPipeError:
            self._heard = False


def beat_line(words: Mapping[str, Any]) -> bytes:
    r"""Return a beat's line; words that don't fit are left out.

    >>> beat_line({"kept": 3})
    b'{"beat": {"kept": 3}}\n'
    """
    line = json.dumps({"beat": dict(words)}).encode() + b"\n"
    return line if len(line) <= MAX_BEAT else b'{"beat": {}}\n'
