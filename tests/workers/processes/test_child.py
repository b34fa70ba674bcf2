"""A child process is watched, started again, and never outlives its parent."""

import fcntl
import os
import signal
import subprocess
import sys
import termios
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from time import monotonic
from typing import IO

import psutil
import pytest

from haltere.workers.errors import PoolError
from haltere.workers.processes.child import Process

OBEDIENT = """
import json, os, sys
print(json.dumps({"pid": os.getpid()}), flush=True)
sys.stdin.read()
"""


BEATING = """
import os, select
from haltere.workers.processes.lifeline import Lifeline, announce
import zmq
lifeline = Lifeline()
lifeline.says = lambda: {"kept": 3}
poller = zmq.Poller()
lifeline.register(poller)
announce(pid=os.getpid())
while not lifeline.over(dict(poller.poll(100))):
    pass
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
    monkeypatch.setattr("haltere.workers.processes.watch.LONGEST_PAUSE", 0.0)
    mortal = "print('{}', flush=True); raise SystemExit(3)"
    process = Process("child", [sys.executable, "-c", mortal], tmp_path / "log")
    process.start()
    eventually(lambda: process.condition.gave_up, 60)
    assert process.condition.last_exit == 3
    process.close()


def test_one_that_is_given_up_is_tried_now_and_then_and_may_work_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, seconds in {"LONGEST_PAUSE": 0.0, "LAST_RESORT": 0.1, "STORM_SECONDS": 3.0, "STORM": 3}.items():
        monkeypatch.setattr(f"haltere.workers.processes.watch.{name}", seconds)
    ill = tmp_path / "ill"
    ill.touch()
    program = (
        "import json, os, sys\n"
        "print('{}', flush=True)\n"
        f"if os.path.exists({str(ill)!r}): raise SystemExit('the disk is full')\n"
        "sys.stdin.read()"
    )
    process = Process("child", [sys.executable, "-c", program], tmp_path / "log")
    process.start()
    eventually(lambda: process.condition.gave_up)
    assert process.condition.state == "given up"
    assert process.condition.last_words == "the disk is full"
    ill.unlink()
    eventually(lambda: process.condition.state == "running")
    assert not process.condition.gave_up
    process.close()


# --- hanging ---------------------------------------------------------------------------------------------------------


def test_a_process_that_hangs_is_killed_and_started_again(tmp_path: Path) -> None:
    process = Process("child", [sys.executable, "-c", BEATING], tmp_path / "log", patience=2.0)
    process.start()
    process.ready()
    eventually(lambda: process.condition.said == {"kept": 3})
    assert process.condition.state == "running"
    hanging = process.kill(signal.SIGSTOP)
    eventually(lambda: process.condition.state == "silent")
    eventually(lambda: process.condition.pid not in (-1, hanging))
    assert not psutil.pid_exists(hanging)
    condition = process.condition
    assert (condition.hung, condition.restarts, condition.last_exit) == (1, 1, -signal.SIGKILL)
    process.close()


def test_a_parent_that_was_stopped_kills_nobody_for_what_it_did_not_hear(tmp_path: Path) -> None:
    with parent_of(BEATING, tmp_path, patience=3.0) as (parent, child):
        parent.send_signal(signal.SIGSTOP)
        # Longer than its patience: what the child says meanwhile waits in the pipe, or finds it full.
        assert not Event().wait(5)
        parent.send_signal(signal.SIGCONT)
        assert parent.stdin is not None
        parent.stdin.write("how does it do?\n")
        parent.stdin.flush()
        assert parent.stdout is not None
        assert parent.stdout.readline() == f"{child} 0\n"


def test_nobody_listening_does_not_stop_a_process_that_beats() -> None:
    program = "import haltere.workers.processes.beating as beating; beating.BEAT = 0.0" + BEATING.replace(
        "poll(100)", "poll(1)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        assert child.stdout.readline().startswith(b'{"pid"')
        size = fcntl.fcntl(child.stdout, fcntl.F_SETPIPE_SZ, 4096)
        full = child.stdout
        eventually(lambda: waiting_in(full) > size - 100)
        child.stdin.close()  # it sees that all the same
        assert child.wait(20) == 0


def waiting_in(pipe: IO[bytes]) -> int:
    """Return how many bytes wait to be read."""
    return int.from_bytes(fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)), sys.byteorder)


# --- no child outlives its parent ------------------------------------------------------------------------------------


@contextmanager
def parent_of(child: str, folder: Path, patience: float = 15.0) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Start a parent of one child; give it and the child's pid. A line to it gets the child's pid and `hung`."""
    program = textwrap.dedent(f"""
        import sys
        from pathlib import Path
        from haltere.workers.processes.child import Process
        command = [sys.executable, "-c", {child!r}]
        process = Process("child", command, Path({str(folder / "log")!r}), patience={patience})
        process.start()
        print(process.ready()["pid"], flush=True)
        for line in sys.stdin:
            print(process.condition.pid, process.condition.hung, flush=True)
    """)
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as running:
        assert running.stdout is not None
        try:
            yield running, int(running.stdout.readline())
        finally:
            running.kill()


def test_no_child_outlives_its_parent(tmp_path: Path) -> None:
    with parent_of(OBEDIENT, tmp_path) as (parent, child):
        parent.kill()
        parent.wait()
        eventually(lambda: not psutil.pid_exists(child))


def test_not_even_one_that_is_stopped_outlives_its_parent(tmp_path: Path) -> None:
    with parent_of(BEATING, tmp_path) as (parent, child):
        os.kill(child, signal.SIGSTOP)
        eventually(lambda: psutil.Process(child).status() == psutil.STATUS_STOPPED)
        parent.kill()
        parent.wait()
        eventually(lambda: not psutil.pid_exists(child))
