"""What all faults share: a folder, a catalog server, the test reducer installed, and what undisturbed runs gave."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cached_property
from pathlib import Path
from typing import Final, Self

import psutil

from haltere.callbacks.catalog import Catalog, free_port
from haltere.workers.pool.file import find
from haltere.workers.pool.view import AttachedPool
from haltere.workers.processes.child import Process

from .results import Arrays

PLUGIN: Final = Path(__file__).with_name("plugin")


class CatalogServer:
    """A Tiled server that stays down when it is killed, until it is started again.

    Parameters
    ----------
    directory
        Where its databases and key lie.
    readable
        The folder whose files it may read.
    """

    def __init__(self, directory: Path, readable: Path) -> None:
        directory.mkdir(parents=True)
        settings = {"directory": str(directory), "readable": [str(readable)], "port": free_port()}
        self._command = [sys.executable, "-m", "haltere.callbacks.tiled_server", json.dumps(settings)]
        self._log = directory / "server.log"
        self._process = self._started()
        self.catalog = Catalog.connect(self._process.ready(60)["uri"], directory / "api_key")

    def _started(self) -> Process:
        process = Process("catalog", self._command, self._log, restart=False)
        process.start()
        return process

    def ready(self) -> None:
        """Wait until it answers."""
        self._process.ready(60)

    def signal(self, number: int) -> None:
        """Send it a signal, as a fault would."""
        self._process.kill(number)

    @property
    def pid(self) -> int:
        """The server's, −1 while there is none."""
        return self._process.condition.pid

    def start(self) -> None:
        """Start it again after it was killed, and wait until it answers."""
        self._process.close()
        self._process = self._started()
        self.ready()

    def close(self) -> None:
        """End it."""
        self.catalog.close()
        self._process.close()


class Up:
    """``haltere up``, as a user starts it. Use as a context manager.

    Parameters
    ----------
    directory
        Everything's.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        command = [sys.executable, "-m", "haltere", "up", "--json", "--workers", "2", "--directory", str(directory)]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self.pid = self._process.pid
        self.said = json.loads(self._process.stdout.readline())
        found = find(directory / "pool")
        assert found is not None
        self.pool = AttachedPool(found)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *of_the_faults: object) -> None:
        self._process.terminate()
        self._process.wait(60)
        assert self._process.stdout is not None
        self._process.stdout.close()


class Site:
    """Use as a context manager.

    Parameters
    ----------
    root
        A new folder for everything, kept where a fault failed; by default one below the system's for temporary files.
    """

    def __init__(self, root: Path | None = None) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="haltere-chaos-")) if root is None else root
        self.references: dict[str, Arrays] = {}
        """By rig: what its undisturbed run gave."""
        self.failed = False
        """Whether anything is to be kept for a look at it."""
        self._stack = ExitStack()
        self._stack.enter_context(_installed(PLUGIN))

    @cached_property
    def server(self) -> CatalogServer:
        """The catalog server, started when it is first asked for."""
        server = CatalogServer(self.root / "catalog", self.root)
        self._stack.callback(server.close)
        return server

    @cached_property
    def up(self) -> Up:
        """A pool that stays while sessions come and go, started when it is first asked for."""
        return self._stack.enter_context(Up(self.root / "up"))

    @property
    def pids(self) -> set[int]:
        """The processes that faults leave running, or have started anew."""
        found: set[int] = set()
        if "server" in self.__dict__:
            found.add(self.server.pid)
        if "up" in self.__dict__:
            found |= {self.up.pid, *(child.pid for child in psutil.Process(self.up.pid).children(recursive=True))}
        return found

    def folder(self, name: str) -> Path:
        """Return a new folder for a fault."""
        return Path(tempfile.mkdtemp(prefix=f"{name}-", dir=self.root))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *of_the_faults: object) -> None:
        self._stack.close()
        if not self.failed:
            shutil.rmtree(self.root, ignore_errors=True)


@contextmanager
def _installed(folder: Path) -> Iterator[None]:
    """Let this process, and those it starts, find what is in a folder as if it were installed."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = f"{folder}{os.pathsep}{before}" if before else str(folder)
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before
