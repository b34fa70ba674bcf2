"""A child process that is started, watched, and started again when it dies or hangs."""

from __future__ import annotations

import json
import logging
import os
import select
import signal
import subprocess
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any, Final

import psutil

from ..errors import PoolError
from .death import describe_exit
from .watch import PATIENCE, Life, Watch

log = logging.getLogger(__name__)

TICK: Final = 1.0
"""Seconds between two looks at a silent child."""

SLEPT: Final = 4.0
"""Seconds between two looks beyond which it was this process that stood still (Ctrl-Z, a machine under load)."""

MAX_LINE: Final = 1 << 16
MAX_LOG: Final = 16 << 20
"""Bytes of a log beyond which it is put aside, under ``.1``, when its process starts."""

TAIL: Final = 4096
NOT_HUNG: Final = (psutil.STATUS_DISK_SLEEP, psutil.STATUS_TRACING_STOP)
"""States in which silence is no fault of the process: it waits for a disk, which no restart mends; it is debugged."""


@dataclass(frozen=True, slots=True)
class Condition:
    """How a process does.

    Attributes
    ----------
    pid
        −1 while it is down.
    state
        As in the table :data:`~.watch.PROCESS`: ``running``, for example.
    uptime
        s; 0 while it is down.
    restarts, hung
        Deaths that were mended; those of them by our own hand, because it didn't answer.
    last_exit, last_words
        Of its last death: exit code (negative: a signal) and the log's last line.
    said
        What its last beat said.
    """

    name: str
    pid: int
    state: str
    uptime: float
    restarts: int
    hung: int
    last_exit: int | None
    last_words: str
    gave_up: bool
    said: Mapping[str, Any] = field(default_factory=dict)


class Process:
    """A child that prints one JSON line when it is ready, ends on SIGTERM, and ends when its standard input does.

    The last is what keeps it from outliving its parent, however that dies: the kernel closes the pipe. If it beats
    (:class:`~.beating.Beating`), it is killed when it stops doing so, and started again.

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
    patience
        Seconds between two beats after which it is held to hang.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        log_path: Path,
        *,
        environment: Mapping[str, str] | None = None,
        restart: bool = True,
        patience: float = PATIENCE,
    ) -> None:
        self.name = name
        self._command = list(command)
        self._log_path = log_path
        self._environment = {**os.environ, **(environment or {})}
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._changed = threading.Condition(self._lock)
        self._watched = Watch(restart=restart, patience=patience)
        self._popen: subprocess.Popen[bytes] | None = None
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
        watched = self._watched
        with self._changed:
            self._changed.wait_for(lambda: watched.ready is not None or watched.over, timeout)
            if watched.ready is not None:
                return watched.ready
            end = "" if watched.last_exit is None else f" (exit code {watched.last_exit})"
        why = f"ended before it was ready{end}" if watched.over else f"isn't ready after {timeout:.0f} s{end}"
        raise PoolError(f"{self.name} {why}: {self._read_last_words()}")

    @property
    def condition(self) -> Condition:
        """How it does now."""
        watched = self._watched
        with self._lock:
            alive = self._popen is not None and self._popen.returncode is None
            return Condition(
                name=self.name,
                pid=self._popen.pid if alive and self._popen is not None else -1,
                state=watched.state,
                uptime=round(monotonic() - watched.born, 1) if alive else 0.0,
                restarts=watched.restarts,
                hung=watched.hung,
                last_exit=watched.last_exit,
                last_words=watched.last_words,
                gave_up=watched.gave_up,
                said=dict(watched.said) if alive else {},
            )

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
        with self._changed:
            self._closing.set()
            self._watched.close()
            self._changed.notify_all()
            child = self._popen
        if child is not None and child.returncode is None:
            child.terminate()
            child.send_signal(signal.SIGCONT)  # one that is stopped would find out later
        if not self._thread.is_alive():
            return
        self._thread.join(timeout)
        if self._thread.is_alive() and child is not None:
            log.warning("%s didn't end within %.0f s of SIGTERM: killed", self.name, timeout)
            child.kill()
            self._thread.join()

    # --- the thread --------------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        while not self._closing.is_set():
            code = self._run_once()
            words = self._read_last_words()
            with self._changed:
                known = self._watched.gave_up
                pause = self._watched.died(code, words, monotonic())
                self._changed.notify_all()
            if pause is None:
                return
            if not self._watched.gave_up:
                log.warning("%s ended (%s): starting it again", self.name, describe_exit(code))
            elif not known:
                log.error("%s is given up, and tried again each %.0f s: %s", self.name, pause, words)
            self._closing.wait(pause)

    def _run_once(self) -> int:
        self._put_log_aside()
        with self._log_path.open("a") as errors:
            child = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                bufsize=0,
                env=self._environment,
                # Ctrl-C reaches the terminal's whole group: it is the session's to pause a scan, not theirs to end.
                start_new_session=True,
            )
        with self._lock:
            self._popen = child
            if self._closing.is_set():
                child.terminate()
            else:
                self._watched.started(monotonic())
        assert child.stdout is not None
        self._listen(child, child.stdout.fileno())
        code = child.wait()
        child.stdout.close()
        if child.stdin is not None:
            child.stdin.close()
        return code

    def _listen(self, child: subprocess.Popen[bytes], descriptor: int) -> None:
        """Take what the child says until it says no more, having died or closed its output."""
        rest = b""
        looked = monotonic()
        poller = select.poll()
        poller.register(descriptor, select.POLLIN)
        while True:
            said = poller.poll(1000 * TICK)
            now = monotonic()
            if now - looked > SLEPT:
                with self._lock:
                    self._watched.slept(now)
            looked = now
            if said:
                data = os.read(descriptor, MAX_LINE)
                if not data:
                    return
                *lines, rest = (rest + data).split(b"\n")
                for line in lines:
                    self._hear(line, now)
                rest = rest[:MAX_LINE]
            elif child.poll() is not None:
                return  # somebody else holds its output open
            self._look(child, now)

    def _hear(self, line: bytes, now: float) -> None:
        if not line.startswith(b"{"):
            return
        with suppress(ValueError):  # somebody's words that only look like ours
            words = json.loads(line)
            with self._changed:
                if self._watched.hear(words, now):
                    self._changed.notify_all()

    def _look(self, child: subprocess.Popen[bytes], now: float) -> None:
        """Kill the child if it hangs."""
        with self._lock:
            before = self._watched.state
            hangs = self._watched.tick(now)
            if before is Life.TRIED and self._watched.state is Life.RUNNING:
                log.warning("%s was given up, and works again", self.name)
        if not hangs:
            return
        with suppress(psutil.NoSuchProcess):
            if psutil.Process(child.pid).status() in NOT_HUNG:
                return
        with self._lock:
            silent = now - self._watched.heard
            self._watched.killed(now)
        log.error("%s (pid %d) hasn't answered for %.0f s: killed", self.name, child.pid, silent)
        child.kill()

    def _put_log_aside(self) -> None:
        with suppress(OSError):  # it isn't there yet, or can't be moved: it grows on
            if self._log_path.stat().st_size > MAX_LOG:
                self._log_path.replace(self._log_path.with_name(self._log_path.name + ".1"))

    def _read_last_words(self) -> str:
        try:
            with self._log_path.open("rb") as file:
                file.seek(max(file.seek(0, os.SEEK_END) - TAIL, 0))
                lines = file.read().decode(errors="replace").strip().splitlines()
        except OSError as error:
            return f"no log: {error}"
        return lines[-1][:500] if lines else f"it left no word in {self._log_path}"
