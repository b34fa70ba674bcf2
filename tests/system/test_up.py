"""A pool that stays: sessions attach to it and leave it, one per directory, and it ends in order."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from haltere.workers.pool_file import find
from haltere.workers.pool_view import AttachedPool

from ..faults.flight import Flight

pytestmark = pytest.mark.timeout(300)


@dataclass
class Up:
    """A running ``haltere up``."""

    directory: Path
    process: subprocess.Popen[str]
    said: dict[str, Any]

    @property
    def pool(self) -> AttachedPool:
        """Its pool, as others find it."""
        found = find(self.directory / "pool")
        assert found is not None
        return AttachedPool(found)

    def pids(self) -> dict[str, int]:
        """Return the pids of its processes."""
        return {name: each["pid"] for name, each in self.pool.status()["processes"].items()}


def command(directory: Path, *options: str) -> list[str]:
    return [sys.executable, "-m", "haltere", "up", "--workers", "1", "--directory", str(directory), *options]


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    directory = tmp_path_factory.mktemp("up") / "data"
    with subprocess.Popen(command(directory, "--json"), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield Up(directory, process, json.loads(process.stdout.readline()))
        finally:
            process.terminate()
            process.wait(60)


def test_it_says_where_everything_is(up: Up) -> None:
    assert up.said["pid"] == up.process.pid
    assert up.said["directory"] == str(up.directory)
    assert up.said["endpoints"]["sink"] == up.pool.endpoints.sink
    assert set(up.pids()) == {"sink", "broker", "ingest", "worker-1", "recorder", "catalog"}


def test_a_second_one_for_the_same_directory_ends_in_one_line(up: Up) -> None:
    done = subprocess.run(command(up.directory), capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith(f"haltere: {up.directory}/pool has a pool already (pid {up.process.pid} on ")
    assert done.stderr.count("\n") == 1


def test_a_session_uses_it_and_leaves_it_running(up: Up) -> None:
    before = up.pids()
    with Flight(up.directory, rows=3) as flight:
        assert flight.wait("ready")["processes"]["sink"] == before["sink"]
        stop = flight.wait("reduced")["stop"]
        assert flight.end() == 0
    assert stop["exit_status"] == "success"
    assert stop["frames"]["eiger"]["expected"] == 75
    assert up.pids() == before


def test_it_ends_in_order_and_takes_all_with_it(up: Up) -> None:
    """The last test: nothing runs after it."""
    family = psutil.Process(up.process.pid).children(recursive=True)
    assert len(family) >= 7, "sink, broker, ingest, worker, its reducer, recorder, catalog"
    up.process.send_signal(signal.SIGTERM)
    assert up.process.wait(60) == 0
    _, alive = psutil.wait_procs(family, timeout=20)
    assert not alive
    assert find(up.directory / "pool") is None
