"""The pool's own care: arguments, folders, and what a killed owner left behind."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from threading import Event
from time import monotonic

import psutil
import pytest

from haltere.workers.errors import PoolError, SettingsError
from haltere.workers.pool.folders import OWNER, SOCKETS, check_shared_memory, sweep_sockets
from haltere.workers.pool.local import Pool
from haltere.workers.pool.whereabouts import Whereabouts


def test_sockets_of_a_dead_owner_are_swept_and_a_living_ones_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    mine = Whereabouts.mine()
    left, kept = tmp_path / f"{SOCKETS}left", tmp_path / f"{SOCKETS}kept"
    for folder, owner in ((left, replace(mine, started=mine.started + 1)), (kept, mine)):
        folder.mkdir()
        (folder / "broker").touch()
        (folder / OWNER).write_text(str(owner))
    sweep_sockets()
    assert not left.exists()
    assert kept.exists()


def test_a_pool_without_workers_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="workers=0: a pool needs at least 1"):
        Pool.local(0, directory=tmp_path)


def test_a_ring_that_shared_memory_cannot_hold_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"/dev/shm has \d+ MiB free, the ring wants 1048576: lower ring_bytes"):
        check_shared_memory(1 << 40)


def test_a_pool_tells_how_its_processes_do_and_mends_one_that_is_killed(tmp_path: Path) -> None:
    with Pool.local(1, directory=tmp_path / "pool") as pool:
        status = pool.status()
        assert set(status["processes"]) == {"sink", "broker", "ingest", "worker-1"}
        assert status["sink"] is not None
        assert status["broker"] is not None
        with pytest.raises(PoolError, match="the pool has no process 'worker-7'"):
            pool.kill("worker-7")
        dead = pool.kill("sink")
        # The next answer comes from the sink that was started in its place: it binds the same socket.
        assert pool.status(timeout=20)["sink"] is not None
        assert pool.status()["processes"]["sink"]["pid"] not in (-1, dead)


PROGRAM = """
import json, sys
from pathlib import Path
from haltere.workers.pool.local import Pool
with Pool.local(1, directory=Path({directory!r})) as pool:
    print(json.dumps({{name: each["pid"] for name, each in pool.status()["processes"].items()}}), flush=True)
    sys.stdin.read()
"""


@contextmanager
def owner(directory: Path) -> Iterator[tuple[subprocess.Popen[bytes], dict[str, int]]]:
    """Start a pool in a process of its own; give that, and the pool's processes."""
    program = PROGRAM.format(directory=str(directory))
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
    ) as running:
        assert running.stdout is not None
        try:
            yield running, json.loads(running.stdout.readline())
        finally:
            running.kill()


def reducer_of(worker: int) -> psutil.Process:
    """Return a worker's reducer, as soon as it is there."""
    deadline, pause = monotonic() + 20, Event()
    while not (children := psutil.Process(worker).children()):
        assert monotonic() < deadline
        pause.wait(0.02)
    return children[0]


def test_nothing_outlives_a_pools_owner_not_even_what_is_stopped_nor_a_workers_reducer(tmp_path: Path) -> None:
    with owner(tmp_path / "pool") as (running, pids):
        reducer = reducer_of(pids["worker-1"])
        family = psutil.Process(running.pid).children(recursive=True)
        assert {*pids.values(), reducer.pid} == {each.pid for each in family}
        for name in ("worker-1", "sink"):
            os.kill(pids[name], signal.SIGSTOP)
        running.kill()
        _, alive = psutil.wait_procs(family, timeout=20)
        assert not alive


def test_a_reducer_does_not_outlive_its_worker(tmp_path: Path) -> None:
    with Pool.local(1, directory=tmp_path / "pool") as pool:
        reducer = reducer_of(pool.status()["processes"]["worker-1"]["pid"])
        pool.kill("worker-1")
        _, alive = psutil.wait_procs([reducer], timeout=20)
        assert not alive
