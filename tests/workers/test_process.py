"""A child process is watched, started again, and never outlives its parent."""

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from threading import Event
from time import monotonic

import psutil
import pytest

from haltere.workers.errors import PoolError
from haltere.workers.process import Process

OBEDIENT = """
import json, os, sys
print(json.dumps({"pid": os.getpid()}), flush=True)
sys.stdin.read()
"""


def eventually(true: Callable[[], bool], seconds: float = 20.0) -> None:
    end = monotonic() + seconds
    pause = Event()
    while not true():
        assert monotonic() < end, "it didn't come true in time"
        pause.wait(0.01)


def test_a_process_is_ready_when_it_says_so(tmp_path: Path) -> None:
    process = Process("child", [sys.executable, "-c", OBEDIENT], tmp_path / "log")
    process.start()
    assert process.ready()["pid"] == process.condition.pid
    process.close()
    assert process.condition.pid == -1


def test_a_killed_process_is_started_again(tmp_path: Path) -> None:
    process = Process("child", [sys.executable, "-c", OBEDIENT], tmp_path / "log")
    process.start()
    process.ready()
    dead = process.kill()
    eventually(lambda: process.condition.pid not in (-1, dead))
    assert process.condition.restarts == 1
    assert process.condition.last_exit == -signal.SIGKILL
    process.close()


def test_a_process_that_cannot_start_says_its_last_words(tmp_path: Path) -> None:
    process = Process("child", [sys.executable, "-c", "raise SystemExit('port 9999 is taken')"], tmp_path / "log")
    process.start()
    with pytest.raises(PoolError, match=r"child ended before it was ready \(exit code 1\): port 9999 is taken"):
        process.ready()
    process.close()


def test_a_process_that_dies_again_and_again_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("haltere.workers.process.LONGEST_PAUSE", 0.0)
    mortal = "print('{}', flush=True); raise SystemExit(3)"
    process = Process("child", [sys.executable, "-c", mortal], tmp_path / "log")
    process.start()
    eventually(lambda: process.condition.gave_up, 60)
    assert process.condition.last_exit == 3
    process.close()


def test_no_child_outlives_its_parent(tmp_path: Path) -> None:
    parent = textwrap.dedent(f"""
        import sys
        from pathlib import Path
        from haltere.workers.process import Process
        process = Process("child", [sys.executable, "-c", {OBEDIENT!r}], Path({str(tmp_path / "log")!r}))
        process.start()
        print(process.ready()["pid"], flush=True)
        sys.stdin.read()
    """)
    with subprocess.Popen(
        [sys.executable, "-c", parent], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as running:
        assert running.stdout is not None
        child = int(running.stdout.readline())
        os.kill(running.pid, signal.SIGKILL)
        running.wait()
        eventually(lambda: not psutil.pid_exists(child))
