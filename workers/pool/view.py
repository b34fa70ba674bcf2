"""What a pool is to those who use it, whoever owns it."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

from ..errors import PoolError
from ..processes.asking import ask
from ..wire.messages import Connect
from .file import Endpoints, PoolFile


class PoolView:
    """What a pool is to a session, whoever owns it."""

    def __init__(self, file: PoolFile) -> None:
        self.file = file
        """Where it is to be found."""

    @property
    def directory(self) -> Path:
        """Where the ledger, the logs and the assets lie."""
        return Path(self.file.directory)

    @property
    def endpoints(self) -> Endpoints:
        """Where its processes listen."""
        return self.file.endpoints

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
            ``pool``: whose it is; ``processes``: pid, restarts and more of each; ``broker``, ``sink``: their own words,
            or ``None`` while down. :func:`~.status.report` makes of it what people ask for.
        """
        pool = self.own_status(timeout) or {}
        return {
            "pool": {key: value for key, value in pool.items() if key != "processes"},
            "processes": pool.get("processes", {}),
            "broker": ask(self.endpoints.broker, timeout),
            "sink": ask(self.endpoints.sink, timeout),
        }

    def pull(self, endpoint: str, protocol: str, timeout: float = 5.0) -> bool:
        """Have the ingest pull from a detector before any run names it: a scan's first frames then come live.

        Return whether the broker has taken it. If not, the first run that names the detector does the same.
        """
        return ask(self.endpoints.broker, timeout, Connect(endpoint, protocol)) is not None

    def own_status(self, timeout: float = 5.0) -> dict[str, Any] | None:
        """Ask the pool's owner alone: whose it is, and its processes. None if it doesn't answer."""
        return ask(self.endpoints.pool, timeout)


class AttachedPool(PoolView):
    """A pool that runs already, in a process that isn't this one. Ending it is its owner's affair."""

    def kill(self, name: str, signal_number: int = signal.SIGKILL) -> int:
        """Kill a process of the pool, as a fault would; it is started again. Return the pid that died.

        Raises
        ------
        PoolError
            There is no such process, or it isn't running.
        """
        processes = self.status()["processes"]
        if name not in processes:
            raise PoolError(f"the pool has no process {name!r}; it has {', '.join(processes)}")
        pid = int(processes[name]["pid"])
        if pid < 0:
            raise PoolError(f"{name} isn't running")
        os.kill(pid, signal_number)
        return pid
