"""Ctrl-C during a scan that nobody can be asked about: the plan is aborted, its files closed."""

from __future__ import annotations

import signal
import socket
import threading
from types import FrameType
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from bluesky import RunEngine

AGAIN: Final = 0.05
"""Seconds until an engine that hasn't begun yet is told again."""


class AbortOnInterrupt:
    """A context manager for a RunEngine (its ``context_managers``): the first Ctrl-C aborts the plan.

    bluesky's own pauses the plan for a prompt. Leaving raises ``KeyboardInterrupt`` if a Ctrl-C came, at whichever end
    of the plan. A second one is what it was before: it doesn't wait for anything.

    Python's handlers run in the main thread alone, which sleeps until the plan's end. The kernel may give the signal
    to any other thread, and that doesn't wake it: so the abort hangs on the signal's byte, which Python writes in
    whichever thread the signal comes (:func:`signal.set_wakeup_fd`).
    """

    def __init__(self, engine: RunEngine) -> None:
        self._engine = engine
        self._came = False
        self._over = threading.Event()

    def __enter__(self) -> None:
        self._reader, self._writer = socket.socketpair()
        self._writer.setblocking(False)
        self._watcher = threading.Thread(target=self._watch, name="interrupt", daemon=True)
        self._watcher.start()
        self._woken_before = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        self._before = signal.signal(signal.SIGINT, self._leave_the_next)

    def __exit__(self, *of_the_plan: object) -> None:
        signal.signal(signal.SIGINT, self._before)
        signal.set_wakeup_fd(self._woken_before)
        self._over.set()
        self._writer.close()
        self._watcher.join()
        self._reader.close()
        if self._came:
            raise KeyboardInterrupt

    def _leave_the_next(self, number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, self._before)

    def _watch(self) -> None:
        while byte := self._reader.recv(1):
            if byte[0] == signal.SIGINT and not self._came:
                self._came = True
                self._abort()

    def _abort(self) -> None:
        while not self._over.is_set():
            try:
                self._engine.abort("interrupted")
            except RuntimeError:  # a TransitionError: it is idle before the plan's first message and after its last
                self._over.wait(AGAIN)
            else:
                return
