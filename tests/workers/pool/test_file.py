"""A pool is found by its directory, and a directory has one pool."""

import os
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from haltere.workers.errors import PoolError, SettingsError
from haltere.workers.pool.file import FILE, Endpoints, Place, PoolFile, find
from haltere.workers.pool.whereabouts import Whereabouts
from haltere.workers.processes.locks import Lock, is_held

ENDPOINTS = Endpoints("ipc:///tmp/p", "ipc:///tmp/b", "ipc:///tmp/s", "ipc:///tmp/r")


def file(directory: Path, owner: Whereabouts) -> PoolFile:
    return PoolFile(
        owner=str(owner),
        since=1_700_000_000.0,
        stays=True,
        directory=str(directory),
        nexus=str(directory / "nexus"),
        endpoints=ENDPOINTS,
    )


def test_a_lock_is_held_by_one_and_comes_back_from_the_dead(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    program = (
        "import sys; from pathlib import Path; from haltere.workers.processes.locks import Lock\n"
        f"print(Lock(Path({str(path)!r})).take(), flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "True\n"
        assert is_held(path)
        mine = Lock(path)
        assert not mine.take()
        holder.kill()
        assert mine.take(wait=20)
    mine.release()
    assert not is_held(path)


def test_a_pool_is_found_while_it_runs_by_its_owner_alone(tmp_path: Path) -> None:
    assert find(tmp_path) is None
    place = Place(tmp_path)
    place.take()
    mine = file(tmp_path, Whereabouts.mine())
    place.publish(mine)
    assert find(tmp_path) == mine
    assert stat.S_IMODE((tmp_path / FILE).stat().st_mode) == 0o600
    place.leave()
    assert find(tmp_path) is None


def test_a_second_pool_is_told_whose_directory_it_is(tmp_path: Path) -> None:
    place = Place(tmp_path)
    place.take()
    place.publish(file(tmp_path, Whereabouts.mine()))
    with pytest.raises(SettingsError, match=rf"has a pool already \(pid {os.getpid()} on .*, since Nov 1. ..:..\)"):
        Place(tmp_path).take()
    place.leave()
    again = Place(tmp_path)
    again.take()
    again.leave()


def test_what_a_killed_pool_left_is_no_pool(tmp_path: Path) -> None:
    mine = Whereabouts.mine()
    place = Place(tmp_path)
    place.take()
    place.publish(file(tmp_path, replace(mine, started=mine.started + 1)))
    # Its lock is held by another by now, who isn't ready yet.
    assert find(tmp_path) is None
    place.publish(file(tmp_path, mine))
    place._lock.release()
    assert (tmp_path / FILE).exists()
    assert find(tmp_path) is None


def test_a_pool_on_another_host_is_told_from_none(tmp_path: Path) -> None:
    place = Place(tmp_path)
    place.take()
    place.publish(file(tmp_path, replace(Whereabouts.mine(), host="nano2.12345678")))
    with pytest.raises(PoolError, match=r"has a pool elsewhere \(pid .* on nano2, since .*\): ask there, or remove"):
        find(tmp_path)
    place.leave()


def test_a_file_that_is_none_is_named(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text("{}")
    with pytest.raises(PoolError, match=r"pool.json can't be read: .*remove it if no pool runs there"):
        find(tmp_path)
