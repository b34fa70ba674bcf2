"""A pool that stays: sessions attach to it and leave it, one per directory, and it ends in order."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from haltere.callbacks.following import Follower
from haltere.workers.ledger.reader import LedgerReader
from haltere.workers.pool.file import find
from haltere.workers.pool.local import Pool
from haltere.workers.pool.view import AttachedPool
from haltere.workers.sink.tellers import REASON

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


def test_its_status_is_there_for_programs_and_for_people(up: Up) -> None:
    asked = [sys.executable, "-m", "haltere", "status", "--directory", str(up.directory)]
    said = json.loads(subprocess.run([*asked, "--json"], capture_output=True, timeout=60, check=True).stdout)
    assert said["troubles"] == []
    assert said["pool"]["pid"] == up.process.pid
    assert {each["name"]: each["pid"] for each in said["processes"]} == up.pids()
    assert all(each["rss_bytes"] > 1 << 20 and each["uptime_s"] > 0 for each in said["processes"])
    (run,) = said["runs"]
    assert (run["scan_id"], run["state"], run["abandoned"]) == (1, "complete", False)
    counts = run["streams"]["eiger"]
    assert counts["expected"] == counts["live"] + counts["backfilled"] == 75
    assert counts["owed"] == counts["lost"] == counts["lag_s"] == 0
    assert said["queues"]["ring_bytes"] == 256 << 20
    page = subprocess.run(asked, capture_output=True, text=True, timeout=60, check=True).stdout
    for word in ("worker-1", "complete", "eiger", "256 MiB"):
        assert word in page


def test_nobody_to_ask_is_one_line(tmp_path: Path) -> None:
    asked = [sys.executable, "-m", "haltere", "status", "--directory", str(tmp_path)]
    done = subprocess.run(asked, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"haltere: no pool runs for {tmp_path}: start a session or `haltere up` there")


def test_a_session_that_is_killed_leaves_a_run_that_ends_and_says_why(up: Up) -> None:
    before = up.pids()
    with Flight(up.directory, rows=40, columns=50) as flight:
        run = flight.wait("start")["uid"]
        flight.wait("frames", n=100)
        flight.kill()
    row, account = completed(up.directory / "pool" / "ledger.db", run)
    assert (row.exit_status, row.stop["reason"]) == ("fail", REASON)
    assert account["eiger"]["expected"] > 0  # of the hundred what had left the session
    for stream in account.values():
        assert sum(stream[each] for each in ("live", "backfilled", "quarantined", "lost")) == stream["expected"]
        assert stream["quarantined"] == stream["lost"] == 0
    assert up.pids() == before
    assert f"run {run}: {REASON}" in (up.directory / "pool" / "logs" / "sink.log").read_text()
    follower = Follower(up.pool.endpoints.recorder)
    try:
        stop = follower.wait(run)
    finally:
        follower.close()
    assert (stop["exit_status"], stop["reason"]) == ("fail", REASON)


def test_the_next_pool_ends_the_run_of_a_session_that_took_its_own_pool_with_it(tmp_path: Path) -> None:
    directory = tmp_path / "data"
    with Flight(directory, rows=40, columns=50) as flight:
        run = flight.wait("start")["uid"]
        flight.wait("frames", n=100)
        flight.kill()
    with Pool.local(1, directory=directory / "pool", nexus=directory / "nexus", roots=[directory / "raw"]) as pool:
        row, account = completed(pool.ledger, run)
    assert (row.exit_status, row.stop["reason"]) == ("fail", REASON)
    for stream in account.values():
        assert sum(stream[each] for each in ("live", "backfilled", "quarantined", "lost")) == stream["expected"] > 0


def completed(ledger: Path, run: str) -> tuple[Any, dict[str, Any]]:
    """Wait until a run is complete; return its row, and its account."""
    reader = LedgerReader(ledger)
    deadline = time.monotonic() + 90
    try:
        while (row := reader.run(run)) is None or row.completed is None:
            assert time.monotonic() < deadline, row
            time.sleep(0.05)
        return row, reader.accounting(run)
    finally:
        reader.close()


def test_it_ends_in_order_and_takes_all_with_it(up: Up) -> None:
    """The last test: nothing runs after it."""
    family = psutil.Process(up.process.pid).children(recursive=True)
    assert len(family) >= 7, "sink, broker, ingest, worker, its reducer, recorder, catalog"
    up.process.send_signal(signal.SIGTERM)
    assert up.process.wait(60) == 0
    _, alive = psutil.wait_procs(family, timeout=20)
    assert not alive
    assert find(up.directory / "pool") is None
