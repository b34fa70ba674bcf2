"""The pool's own care: arguments, folders, and what a killed owner left behind."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from haltere.workers.errors import PoolError, SettingsError
from haltere.workers.pool import SOCKETS, Pool, check_shared_memory, sweep_sockets


def test_sockets_of_a_dead_owner_are_swept_and_a_living_ones_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with subprocess.Popen([sys.executable, "-c", ""]) as dead:
        dead.wait()
    left, kept = tmp_path / f"{SOCKETS}{dead.pid}-abc", tmp_path / f"{SOCKETS}{os.getpid()}-abc"
    for folder in (left, kept):
        folder.mkdir()
        (folder / "broker").touch()
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
