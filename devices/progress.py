"""Statuses of slow calls: one that counts points, and one for a call that runs in a thread of its own."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from ophyd.status import DeviceStatus


class Progress(DeviceStatus):  # type: ignore[misc]  # ophyd carries no types
    """A status that counts, for bluesky's progress bar.

    Parameters
    ----------
    device
        Whose work it is; its ``stop`` is called if the work fails.
    target
        How many points make it complete; shown, not enforced.
    """

    def __init__(self, device: Any, target: int, *, unit: str = "points") -> None:
        self._target = target
        self._unit = unit
        self._current = 0
        self._began = time.monotonic()
        super().__init__(device)

    def watch(self, func: Callable[..., None]) -> None:
        """Call ``func`` with ``name, current, initial, target, unit, fraction, time_elapsed, time_remaining`` (s).

        ``fraction`` is what remains, as in ophyd's MoveStatus.
        """
        self._watchers.append(func)
        func(**self._state())

    def advance(self, current: int) -> None:
        """Say that ``current`` points are there now."""
        self._current = current
        for watcher in tuple(self._watchers):
            watcher(**self._state())

    def _settled(self) -> None:
        for watcher in tuple(self._watchers):
            watcher(**self._state())

    def _state(self) -> dict[str, Any]:
        elapsed = time.monotonic() - self._began
        done = min(self._current / self._target, 1.0) if self._target else 1.0
        return {
            "name": self.device.name,
            "current": self._current,
            "initial": 0,
            "target": self._target,
            "unit": self._unit,
            "precision": 0,
            "fraction": 1.0 - done,
            "time_elapsed": elapsed,
            "time_remaining": elapsed * (1.0 - done) / done if done else None,
        }


def background(device: Any, call: Callable[[], object], what: str) -> DeviceStatus:
    """Run ``call`` in a thread; return the status that ends with it, failed if it raised."""
    status = DeviceStatus(device)

    def run() -> None:
        try:
            call()
        except Exception as error:
            if not status.done:
                status.set_exception(error)
        else:
            if not status.done:
                status.set_finished()

    threading.Thread(target=run, name=f"{device.name} {what}", daemon=True).start()
    return status


def finished(device: Any) -> DeviceStatus:
    """Return a status that is done."""
    status = DeviceStatus(device)
    status.set_finished()
    return status
