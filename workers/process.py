"""A child process that is started, watched, and started again when it dies."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any, Final

from .errors import PoolError

log = logging.getLogger(__name__)

STORM: Final = 10
"""So many deaths within :data:`STORM_SECONDS` are a storm: the process is given up, and its last words are shown."""

STORM_SECONDS: Final = 60.0
FIRST_PAUSE: Final = 0.05
LONGEST_PAUSE: Final = 5.0


@dataclass(frozen=True, slots=True)
class Condition:
    """How a process does: ``pid`` is −1 while it is down; ``restarts`` counts the deaths that were mended."""

    name: str
    pid: int
    restarts: int
    last_exit: int | None
    gave_up: bool


class Process:
    """A child that prints one JSON line when it is ready, ends on SIGTERM, and ends when its standard input does.

    The last is what keeps it from outliving its parent, however that dies: the kernel closes the pipe.

    Parameters
    ----------
    name
        What it is called in the logs and in errors.
    command
        What to run.
    log_path
        Where its standard error goes (appended).
    environment
        Variables beside the parent's own.
    restart
        Whether to start it again when it dies.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        log_path: Path,
        *,
        environment: Mapping[str, str] | None = None,
        restart: bool = True,
    ) -> None:
        self.name = name
        self._command = list(command)
        self._log_path = log_path
        self._environment = {**os.environ, **(environment or {})}
        self._restart = restart
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._changed = threading.Condition(self._lock)
        self._ready: dict[str, Any] | None = None
        self._popen: subprocess.Popen[str] | None = None
        self._restarts = 0
        self._last_exit: int | None = None
        self._gave_up = False
        # The thread that starts the child waits for it too: a death signal bound to that thread never fires early.
        self._thread = threading.Thread(target=self._watch, name=f"watch {name}", daemon=True)

    def start(self) -> None:
        """Start it, without waiting; :meth:`ready` does that."""
        self._thread.start()

    def ready(self, timeout: float = 30.0) -> dict[str, Any]:
        """Return the JSON line that the process printed when it was ready.

        Raises
        ------
        PoolError
            It ended first, or said nothing for ``timeout`` seconds; with the last line of its log.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._ready is not None or self._gave_up, timeout)
            if self._ready is not None:
                return self._ready
            end = "" if self._last_exit is None else f" (exit code {self._last_exit})"
        why = f"ended before it was ready{end}" if self._gave_up else f"isn't ready after {timeout:.0f} s{end}"
        raise PoolError(f"{self.name} {why}: {self._last_words()}")

    @property
    def condition(self) -> Condition:
        """How it does now."""
        with self._lock:
            alive = self._popen is not None and self._popen.returncode is None
            pid = self._popen.pid if alive and self._popen is not None else -1
            return Condition(self.name, pid, self._restarts, self._last_exit, self._gave_up)

    def kill(self, signal_number: int = signal.SIGKILL) -> int:
        """Send a signal, as a fault would, and return the pid that got it (it is then started again).

        Raises
        ------
        PoolError
            It isn't running.
        """
        with self._lock:
            if self._popen is None or self._popen.returncode is not None:
                raise PoolError(f"{self.name} isn't running")
            self._popen.send_signal(signal_number)
            return self._popen.pid

    def close(self, timeout: float = 10.0) -> None:
        """End it: SIGTERM, and SIGKILL after ``timeout`` seconds. May be called again."""
        self._closing.set()
        with self._lock:
            child = self._popen
        if child is not None and child.returncode is None:
            child.terminate()
        if not self._thread.is_alive():
            return
        self._thread.join(timeout)
        if self._thread.is_alive() and child is not None:
            log.warning("%s didn't end within %.0f s of SIGTERM: killed", self.name, timeout)
            child.kill()
            self._thread.join()

    def _watch(self) -> None:
        deaths: deque[float] = deque(maxlen=STORM)
        pause = FIRST_PAUSE
        while not self._closing.is_set():
            started = monotonic()
            code = self._run_once()
            if self._closing.is_set():
                return
            deaths.append(monotonic())
            storm = len(deaths) == STORM and deaths[-1] - deaths[0] < STORM_SECONDS
            with self._changed:
                self._last_exit = code
                if not self._restart or storm or self._ready is None:
                    self._gave_up = True
                    self._changed.notify_all()
                    break
                self._restarts += 1
            log.warning("%s ended (%s): starting it again", self.name, describe_exit(code))
            pause = FIRST_PAUSE if deaths[-1] - started > LONGEST_PAUSE else min(2 * pause, LONGEST_PAUSE)
            self._closing.wait(pause)
        if self._restart and not self._closing.is_set():
            log.error("%s is given up: %s", self.name, self._last_words())

    def _run_once(self) -> int:
        with self._log_path.open("a") as errors:
            child = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=self._environment,
                # Ctrl-C reaches the terminal's whole group: it is the session's to pause a scan, not theirs to end.
                start_new_session=True,
            )
        with self._lock:
            self._popen = child
            if self._closing.is_set():
                child.terminate()
        assert child.stdout is not None
        for line in child.stdout:
            if line.startswith("{"):
                with self._changed:
                    self._ready = json.loads(line)
                    self._changed.notify_all()
        code = child.wait()
        child.stdout.close()
        if child.stdin is not None:
            child.stdin.close()
        return code

    def _last_words(self) -> str:
        try:
            lines = self._log_path.read_text(errors="replace").strip().splitlines()
        except OSError as error:
            return f"no log: {error}"
        return lines[-1] if lines else f"it left no word in {self._log_path}"


def describe_exit(code: int) -> str:
    """Say how a process ended.

    >>> describe_exit(-9), describe_exit(2)
    ('killed by SIGKILL', 'exit code 2')
    """
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
