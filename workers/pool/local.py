"""A pool on this machine: ingest, broker, sink and workers, each its own process, watched and restarted."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from ..errors import PoolError, SettingsError
from ..processes.child import Process
from ..processes.load import Load
from ..processes.watch import PATIENCE
from .answering import Answering
from .file import CatalogAddress, Endpoints, Place, PoolFile
from .folders import check_shared_memory, make_folder, make_sockets, remember_roots, sweep_sockets
from .view import PoolView
from .whereabouts import Whereabouts

ONE_THREAD: Final = dict.fromkeys(
    ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"), "1"
)
"""Processes scale by their number; threads of a numerical library beneath each would only fight for the cores."""


@dataclass(frozen=True, slots=True)
class Chaos:
    """Faults on purpose: of every ``drop_every`` groups of ``drop_group`` frames the ingest drops one."""

    drop_every: int = 10
    drop_group: int = 20


RECORDER_PATIENCE: Final = 60.0
"""Seconds without a beat from the recorder until it is held to hang: it composes whole runs when it starts."""

RecorderCommand = Callable[[Endpoints, Path], Sequence[str]]
"""Given the endpoints and the ledger's path, what to run as the recorder."""


class Pool(PoolView):
    """The processes that reduce frames. Use as a context manager, or call :meth:`close`.

    >>> with Pool.local(workers=2) as pool:  # doctest: +SKIP
    ...     pool.status()["broker"]["workers"]
    """

    def __init__(
        self, file: PoolFile, place: Place, sockets: Path, processes: Sequence[Process], beside: Sequence[Process]
    ) -> None:
        super().__init__(file)
        self._place = place
        self._sockets = sockets
        self._processes = {process.name: process for process in processes}
        self._beside = {process.name: process for process in beside}
        self._load = Load()
        self._looking = threading.Lock()
        self._answering: Answering | None = None

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
        spill_bytes: int | None = None,
        stall: float = 60.0,
        backfill: float = 0.25,
        chaos: Chaos | None = None,
        stays: bool = False,
        catalog: CatalogAddress | None = None,
        beside: Sequence[Process] = (),
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
        spill_bytes
            How many bytes of one run's detector may be spilled to ``directory/spill``, where a recipe asks for it.
        stall
            s that a reducer may take for a batch, or for a frame on its own, before it is held to hang, and killed.
        backfill
            The part of the workers' time that a backfill has while live frames wait.
        chaos
            Faults on purpose, for tests and demonstrations.
        stays
            It outlives sessions, which may attach to it.
        catalog
            Where the recorder writes to, for sessions that attach.
        beside
            Processes that were started elsewhere and whose condition is told with the pool's own.

        Raises
        ------
        SettingsError
            ``workers`` is below 1, or a folder can't be written.
        PoolError
            A process can't start, or the directory has a pool already.
        """
        if workers < 1:
            raise SettingsError(f"workers={workers}: a pool needs at least 1")
        directory = directory.resolve()
        nexus = (nexus or directory / "nexus").resolve()
        spill = directory / "spill"
        for folder in (directory, directory / "logs", directory / "assets", spill, nexus):
            make_folder(folder)
        if live:
            check_shared_memory(ring_bytes)
        place = Place(directory)
        place.take()
        allowed = [root.resolve() for root in (*roots, spill)]
        try:
            remember_roots(directory, allowed)
            sweep_sockets()
            sockets = make_sockets(directory)
        except BaseException:
            place.leave()
            raise
        endpoints = Endpoints(*(f"ipc://{sockets}/{role}" for role in ("pool", "broker", "sink", "recorder")))
        ledger = directory / "ledger.db"

        def process(name: str, command: Sequence[str], patience: float = PATIENCE) -> Process:
            log = directory / "logs" / f"{name}.log"
            return Process(name, command, log, environment=ONE_THREAD, patience=patience)

        def role(name: str, module: str, settings: dict[str, Any]) -> Process:
            return process(name, [sys.executable, "-m", f"haltere.workers.{module}.process", json.dumps(settings)])

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
            role("broker", "broker", {"bind": endpoints.broker, "sink": endpoints.sink, "backfill": backfill}),
        ]
        if live:
            settings = {"name": "ingest", "broker": endpoints.broker, "ring_bytes": ring_bytes, "spill": str(spill)}
            settings |= {} if spill_bytes is None else {"spill_bytes": spill_bytes}
            settings |= {"streams": list(streams), **({} if chaos is None else asdict(chaos))}
            processes.append(role("ingest", "ingest", settings))
        for number in range(1, workers + 1):
            name = f"worker-{number}"
            settings = {
                "name": name,
                "broker": endpoints.broker,
                "sink": endpoints.sink,
                "assets": str(directory / "assets"),
                "roots": [str(root) for root in allowed],
                "stall": stall,
            }
            processes.append(role(name, "worker", settings))
        if recorder is not None:
            processes.append(process("recorder", recorder(endpoints, ledger), RECORDER_PATIENCE))
        file = PoolFile(
            owner=str(Whereabouts.mine()),
            since=time.time(),
            stays=stays,
            directory=str(directory),
            nexus=str(nexus),
            roots=[str(root) for root in allowed],
            endpoints=endpoints,
            catalog=catalog,
        )
        pool = cls(file, place, sockets, processes, beside)
        try:
            for each in processes:
                each.start()
            for each in processes:
                each.ready()
            pool._publish()
        except BaseException:
            pool.close()
            raise
        return pool

    def _publish(self) -> None:
        """Let others find it, and answer for it."""
        self._answering = Answering(self.endpoints.pool, self._tell)
        self._place.publish(self.file)

    def own_status(self, timeout: float = 5.0) -> dict[str, Any]:
        """Say whose it is, and how its processes do."""
        return self._tell()

    def _tell(self) -> dict[str, Any]:
        conditions = [process.condition for process in (*self._processes.values(), *self._beside.values())]
        family = {each.name: [each.pid, *children(each.said)] if each.pid >= 0 else [] for each in conditions}
        with self._looking:
            used = self._load.look(family)
        return {
            "pid": os.getpid(),
            "since": self.file.since,
            "stays": self.file.stays,
            "directory": self.file.directory,
            "processes": {each.name: {**asdict(each), **used[each.name]._asdict()} for each in conditions},
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
        self._place.hide()
        if self._answering is not None:
            self._answering.close()
        # Workers and ingest first, the sink last: what is reduced is still committed.
        for name in sorted(self._processes, key=lambda each: each in ("broker", "recorder", "sink")):
            if name != "sink":
                self._processes[name].close()
        self._processes["sink"].close()
        shutil.rmtree(self._sockets, ignore_errors=True)
        self._place.leave()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def children(said: Mapping[str, Any]) -> list[int]:
    """Return the pids of a process's own children, as its beats tell them."""
    found = said.get("children")
    return [pid for pid in found if isinstance(pid, int)] if isinstance(found, list) else []


__all__ = ["Chaos", "Endpoints", "Pool", "RecorderCommand"]
