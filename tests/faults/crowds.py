"""Faults of too many: strangers on every socket, listeners that don't listen, frames faster than they are reduced."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import psutil
import zmq

from haltere.workers.wire import documents
from haltere.workers.wire.messages import MAX_CONTROL, VERSION, Hello, encode

from .hostile import HostileDetector, flood
from .report import Report
from .rig import PoolFault, Rig
from .scan import Scan
from .storage import nobody_died

SEED: Final = 11

ASKED: Final = 400
"""Times that each deaf listener asks for a whole run."""

GROWTH: Final = 20 << 20
"""Bytes that a process may grow by, whatever is done to its sockets."""

TIMES: Final = 5
"""How many times faster frames come than they can be reduced."""

WORKERS: Final = 2


# --- strangers -------------------------------------------------------------------------------------------------------


def besiege(rig: Rig) -> None:
    """Attack every socket that listens until the flight is over."""
    server = urlsplit(rig.site.server.catalog.uri)
    targets = {
        "broker": (rig.pool.endpoints.broker, MAX_CONTROL),
        "sink": (rig.pool.endpoints.sink, None),
        "recorder": (rig.pool.endpoints.recorder, MAX_CONTROL),
        "catalog": (f"tcp://{server.hostname}:{server.port}", MAX_CONTROL),
    }
    over = threading.Event()
    blows: dict[str, int] = {}

    def attack(name: str, endpoint: str, most: int | None) -> None:
        for seed in range(SEED, SEED + 1000):
            if over.is_set():
                return
            done = flood(endpoint, 0.5, seed, **({} if most is None else {"most": most}))
            blows[name] = blows.get(name, 0) + sum(done.values())

    threads = [threading.Thread(target=attack, args=(name, *target)) for name, target in targets.items()]
    rig.now()
    for each in threads:
        each.start()
    rig.hutch.wait()
    over.set()
    for each in threads:
        each.join()
    rig.note = f"{sum(blows.values())} blows"


@contextmanager
def enemy(folder: Path) -> Iterator[dict[str, Any]]:
    """Give the ingest a detector that isn't one."""
    with HostileDetector(SEED) as detector:
        yield {"detectors": [detector.endpoint]}


# --- listeners -------------------------------------------------------------------------------------------------------


def stall_listeners(rig: Rig) -> None:
    """Let four listeners ask, and never listen: two of the recorder's, one of the sink's, and a follower's process."""
    grown = {name: rss(rig, name) for name in ("recorder", "sink", "broker")}
    with ExitStack() as stack:
        context = stack.enter_context(zmq.Context())
        follower = stack.enter_context(following(rig.pool.endpoints.recorder))
        follower.send_signal(signal.SIGSTOP)
        rig.now()
        asking = documents.encode(documents.Fetch(1, -1, [documents.Cursor(rig.hutch.uid, 0)], 1000, 0))
        deaf = [context.socket(zmq.DEALER) for _ in range(3)]
        for socket in deaf:
            socket.linger = 0
            socket.rcvhwm = 1
            socket.connect(rig.pool.endpoints.recorder if socket is not deaf[0] else rig.pool.endpoints.sink)
        deaf[0].send(encode(Hello(VERSION, "recorder", "deaf", 1)))
        rig.hutch.wait()
        rig.follower.wait(rig.hutch.uid)
        for _ in range(ASKED):
            for socket in deaf[1:]:
                socket.send(asking)
        list(rig.follower.documents(rig.hutch.uid))  # whoever listens is answered, after those
        grown = {name: rss(rig, name) - before for name, before in grown.items()}
        follower.kill()
    rig.note = ", ".join(f"{name} grew by {size >> 20} MiB" for name, size in grown.items())


@contextmanager
def following(endpoint: str) -> Iterator[subprocess.Popen[str]]:
    """Give a process that follows the recorder, when it does."""
    program = (
        "import sys, threading; from haltere.callbacks.following import Follower; "
        f"follower = Follower({endpoint!r}); print(flush=True); threading.Event().wait()"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            yield process
        finally:
            process.kill()


def rss(rig: Rig, name: str) -> int:
    """Return a process's memory, bytes."""
    return int(psutil.Process(rig.pid(name)).memory_info().rss)


def bounded(rig: Rig, report: Report) -> list[str]:
    """Complain if a process grew too much, or died."""
    grown = [int(word) for word in report.note.split() if word.isdigit()]
    return [*([report.note] if max(grown) > GROWTH >> 20 else []), *nobody_died(rig, report)]


# --- load ------------------------------------------------------------------------------------------------------------


RATE: Final = 200.0
OVERLOAD: Final = Scan(rate=RATE, chaos={"delay": TIMES * WORKERS / RATE})
PARTS: Final = 4
"""Of the scan, to say how evenly the live frames lie. On a machine that has other things to do they can't."""


def dropped_evenly(rig: Rig, report: Report) -> list[str]:
    """Complain if the drops weren't counted, or left a large hole in the live maps."""
    live = [
        frame
        for first, stop in rig.heard[-1][1]["frames"]["eiger"]["intervals"]["live"]
        for frame in range(first, stop)
    ]
    n = rig.scan.frames
    longest = max(b - a for a, b in zip([-1, *live], [*live, n], strict=True)) - 1
    shares = [sum(frame * PARTS // n == part for frame in live) for part in range(PARTS)]
    report.note = f"{len(live)} of the Eiger's {n} live, by quarters {shares}, the longest hole {longest} frames"
    wrong = []
    if sum(report.dropped.values()) < n / 2:
        wrong.append(f"only {sum(report.dropped.values())} drops of {n} frames were counted")
    if longest > n / 2:
        wrong.append(f"a hole of {longest} frames in a live map")
    return wrong


FAULTS: Final = (
    PoolFault(
        name="strangers",
        does="Garbage, half-open connections, oversized and endless messages on every socket, while frames come.",
        expects="Refused and counted; no process dies, no frame is late enough to be dropped.",
        strike=besiege,
        at=0.1,
        around=enemy,
        check=nobody_died,
    ),
    PoolFault(
        name="deaf-listeners",
        does="Peers that ask the recorder and the sink for everything and never read, and a stopped follower.",
        expects="Nobody waits for them: the others hear all in time, and memory stays bounded.",
        strike=stall_listeners,
        at=0.1,
        catalog=False,  # importing Tiled's client alone takes 100 MiB, at about this time
        check=bounded,
    ),
    PoolFault(
        name="overload",
        does=f"Frames come {TIMES} times as fast as they are reduced.",
        expects="What finds no room is dropped and counted, evenly over the scan, and backfilled afterwards.",
        scan=OVERLOAD,
        pool={"ring_bytes": 128 << 10},  # 55 frames: small against the scan
        check=dropped_evenly,
    ),
)
