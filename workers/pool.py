"""A pool on this machine: ingest, broker, sink and workers, each its own process, watched and restarted."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import psutil

from .asking import ask
from .errors import PoolError, SettingsError
from .process import Process

ONE_THREAD: Final = dict.fromkeys(
    ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"), "1"
)
"""Processes scale by their number; threads of a numerical library beneath each would only fight for the cores."""


@dataclass(frozen=True, slots=True)
class Endpoints:
    """Where the pool's processes listen: Unix sockets in a folder that only their owner may enter."""

    broker: str
    sink: str
    recorder: str


@dataclass(frozen=True, slots=True)
class Chaos:
    """Faults on purpose: of every ``drop_every`` groups of ``drop_group`` frames the ingest drops one."""

    drop_every: int = 10
    drop_group: int = 20


SOCKETS: Final = "haltere-pool-"
"""What the folders of Unix sockets are called, with their owner's pid behind."""

RecorderCommand = Callable[[Endpoints, Path], Sequence[str]]
"""Given the endpoints and the ledger's path, what to run as the recorder."""


class Pool:
    """The processes that reduce frames. Use as a context manager, or call :meth:`close`.

    >>> with Pool.local(workers=2) as pool:  # doctest: +SKIP
    ...     pool.status()["broker"]["workers"]
    """

    def __init__(self, directory: Path, endpoints: Endpoints, sockets: Path, processes: Sequence[Process]) -> None:
        self.directory = directory
        self.endpoints = endpoints
        self._sockets = sockets
        self._processes = {process.name: process for process in processes}

    @classmethod
    def local(
        cls,
        workers: int = 2,
        *,
        directory: Path,
        roots: Sequence[Path] = (),
        nexus: Path | None = None,
        recorder: RecorderCommand | None = None,
        streams: Sequence[tuple[str, str]] = (),
        live: bool = True,
        ring_bytes: int = 256 << 20,
        stall: float = 60.0,
        chaos: Chaos | None = None,
    ) -> Self:
        """Start a pool on this machine and return it when every process is ready.

        Parameters
        ----------
        workers
            How many reduce.
        directory
            Where the ledger, the logs and the assets lie; made if it isn't there.
        roots
            The folders that detectors' files may be read from; nothing else is ever opened.
        nexus
            Where the NeXus files go; by default ``directory/nexus``.
        recorder
            What to run as the recorder. It writes to the catalog, so its command comes from outside.
        streams
            Endpoints and protocols of detectors that the ingest pulls from at once; others are named by the runs.
        live
            Whether there is an ingest. Without one nothing is pulled from any detector: runs come from files alone.
        ring_bytes
            How many bytes of frames may wait in shared memory before new ones are dropped and counted.
        stall
            s that a reducer may take for a batch, or for a frame on its own, before it is held to hang, and killed.
        chaos
            Faults on purpose, for tests and demonstrations.

        Raises
        ------
        SettingsError
            ``workers`` is below 1, or a folder can't be written.
        PoolError
            A process can't start.
        """
        if workers < 1:
            raise SettingsError(f"workers={workers}: a pool needs at least 1")
        directory = directory.resolve()
        nexus = (nexus or directory / "nexus").resolve()
        for folder in (directory, directory / "logs", directory / "assets", nexus):
            make_folder(folder)
        if live:
            check_shared_memory(ring_bytes)
        # A Unix socket's path has 107 characters at most, so the sockets don't lie in `directory`.
        sweep_sockets()
        sockets = Path(tempfile.mkdtemp(prefix=f"{SOCKETS}{os.getpid()}-"))
        endpoints = Endpoints(*(f"ipc://{sockets}/{role}" for role in ("broker", "sink", "recorder")))
        ledger = directory / "ledger.db"

        def process(name: str, command: Sequence[str]) -> Process:
            return Process(name, command, directory / "logs" / f"{name}.log", environment=ONE_THREAD)

        def role(name: str, module: str, settings: dict[str, Any]) -> Process:
            return process(name, [sys.executable, "-m", f"haltere.workers.{module}", json.dumps(settings)])

        processes = [
            role(
                "sink",
                "sink",
                {
                    "bind": endpoints.sink,
                    "ledger": str(ledger),
                    "nexus": str(nexus),
                    "assets": str(directory / "assets"),
                },
            ),
            role("broker", "broker", {"bind": endpoints.broker, "sink": endpoints.sink}),
        ]
        if live:
            settings = {"name": "ingest", "broker": endpoints.broker, "ring_bytes": ring_bytes}
            settings |= {"streams": list(streams), **({} if chaos is None else asdict(chaos))}
            processes.append(role("ingest", "ingest", settings))
        for number in range(1, workers + 1):
            name = f"worker-{number}"
            settings = {
                "name": name,
                "broker": endpoints.broker,
                "sink": endpoints.sink,
                "assets": str(directory / "assets"),
                "roots": [str(root.resolve()) for root in roots],
                "stall": stall,
            }
            processes.append(role(name, "worker", settings))
        if recorder is not None:
            processes.append(process("recorder", recorder(endpoints, ledger)))
        pool = cls(directory, endpoints, sockets, processes)
        try:
            for each in processes:
                each.start()
            for each in processes:
                each.ready()
        except BaseException:
            pool.close()
            raise
        return pool

    @property
    def assets(self) -> Path:
        """The folder of the content-addressed store that recipes refer to."""
        return self.directory / "assets"

    @property
    def ledger(self) -> Path:
        """The ledger's file."""
        return self.directory / "ledger.db"

    def status(self, timeout: float = 5.0) -> dict[str, Any]:
        """Ask every process how it does.

        Returns
        -------
        dict
            ``processes``: pid and restarts of each; ``broker``, ``sink``: their own words, or ``None`` while down.
        """
        return {
            "processes": {name: asdict(process.condition) for name, process in self._processes.items()},
            "broker": ask(self.endpoints.broker, timeout),
            "sink": ask(self.endpoints.sink, timeout),
        }

    def kill(self, name: str, signal_number: int = signal.SIGKILL) -> int:
        """Kill a process of the pool, as a fault would; it is started again. Return the pid that died.

        Raises
        ------
        PoolError
            There is no such process, or it isn't running.
        """
        if name not in self._processes:
            raise PoolError(f"the pool has no process {name!r}; it has {', '.join(self._processes)}")
        return self._processes[name].kill(signal_number)

    def close(self) -> None:
        """End every process, in an order that lets each finish what it has."""
        # Workers and ingest first, the sink last: what is reduced is still committed.
        for name in sorted(self._processes, key=lambda each: each in ("broker", "recorder", "sink")):
            if name != "sink":
                self._processes[name].close()
        self._processes["sink"].close()
        shutil.rmtree(self._sockets, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def sweep_sockets() -> None:
    """Remove the folders of sockets whose owners were killed before they could."""
    for folder in Path(tempfile.gettempdir()).glob(f"{SOCKETS}*-*"):
        pid = folder.name.removeprefix(SOCKETS).partition("-")[0]
        if pid.isdigit() and not psutil.pid_exists(int(pid)) and folder.stat().st_uid == os.getuid():
            shutil.rmtree(folder, ignore_errors=True)


def make_folder(path: Path) -> None:
    """Make a folder and see that it can be written.

    Raises
    ------
    SettingsError
        It can't: names it and the reason.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / f".haltere-{os.getpid()}"
        probe.write_bytes(b"x")
        probe.unlink()
    except OSError as error:
        raise SettingsError(f"folder {path} can't be written: {error.strerror}; name another, or mend it") from None


def check_shared_memory(ring_bytes: int) -> None:
    """See that the ring fits into shared memory: a page that can't be had later would kill the ingest by SIGBUS.

    Raises
    ------
    SettingsError
        It doesn't fit.
    """
    with suppress(FileNotFoundError):
        free = shutil.disk_usage("/dev/shm").free
        if free < ring_bytes:
            raise SettingsError(
                f"/dev/shm has {free >> 20} MiB free, the ring wants {ring_bytes >> 20}: lower ring_bytes"
            )
