"""Real broker and worker processes, a sink that the test plays, and reducers that die."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import psutil
import pytest
import zmq

from haltere.workers.intervals import IntervalSet
from haltere.workers.payload import unpack
from haltere.workers.processes.asking import ask
from haltere.workers.ring import Ring
from haltere.workers.wire.messages import (
    BACKFILLED,
    LIVE,
    LOST,
    QUARANTINED,
    Block,
    Connect,
    Done,
    Expect,
    FileSpan,
    Frames,
    Free,
    Hello,
    InputSpec,
    LiveLane,
    Message,
    Nack,
    RecipeSpec,
    Result,
    RunClose,
    RunOpen,
    StreamOpen,
    StreamTotal,
    Welcome,
    decode,
    encode,
)

N, BATCH = 50, 8
DEADLY, HANGING, FAILING = 666.0, 667.0, 668.0  # as in perilous.py
DEADLINE = 30.0


class Bench:
    """The processes, and the sink's end of what they say."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.sink = self.context.socket(zmq.ROUTER)
        self.sink.router_handover = True
        self.sink.linger = 0
        self.sink.bind(f"ipc://{folder}/sink")
        self.control: list[Message] = []
        self.rows: dict[int, Result] = {}
        self.values: dict[int, float] = {}
        self.duplicates = 0
        self.deaf = False
        self.refusing: set[int] = set()
        """Batches whose arrays aren't taken."""
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.start("broker", bind=self.broker, sink=f"ipc://{folder}/sink", liveness=1.5)

    @property
    def broker(self) -> str:
        """Where the broker listens."""
        return f"ipc://{self.folder}/broker"

    def start(self, name: str, /, **settings: Any) -> dict[str, Any]:
        """Start a process and return what it says when it is ready."""
        module = "haltere.workers.broker.process" if name == "broker" else "haltere.workers.worker.process"
        with (self.folder / f"{name}.log").open("a") as log:
            child = subprocess.Popen(
                [sys.executable, "-m", module, json.dumps(settings)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
            )
        self.end(name)
        self.processes[name] = child
        assert child.stdout is not None
        said: dict[str, Any] = json.loads(child.stdout.readline())
        return said

    def worker(self, name: str = "w1", **settings: Any) -> dict[str, Any]:
        """Start a worker with the perilous reducer."""
        perilous = [sys.executable, str(Path(__file__).parents[1] / "perilous.py")]
        return self.start(
            name,
            name=name,
            broker=self.broker,
            sink=f"ipc://{self.folder}/sink",
            assets=str(self.folder),
            roots=[str(self.folder)],
            reducing=perilous,
            **settings,
        )

    def run(self, values: dict[int, float], *, live: LiveLane | None = None, promised: int = N) -> None:
        """Open and close a run of N frames whose file has ``promised`` of them, these with other values."""
        flux = np.arange(promised, dtype="<f8")
        for frame, value in values.items():
            flux[frame] = value
        with h5py.File(self.folder / "a.h5", "w") as file:
            file["flux"] = flux
        spans = [FileSpan("flux", (self.folder / "a.h5").as_uri(), "flux", 0, N, 0)]
        recipes = [RecipeSpec("r", "perilous", b"{}")]
        self.control = [
            RunOpen(1, "run", "processed", b"{}"),
            StreamOpen(2, "run", "flux", "cfg", BATCH, [InputSpec("flux", (), "<f8")], recipes, live),
            Expect(3, "run", "flux", 0, N, spans),
            RunClose(4, "run", [StreamTotal("flux", N)], "success", b"{}"),
        ]
        self.tell(b"broker", *self.control, self.everything())

    def everything(self) -> Done:
        """Say all that is done."""
        done = IntervalSet((first, first + row.n) for first, row in self.rows.items())
        return Done("run", "flux", "cfg", done.ranges(), True, len(self.control), True)

    def tell(self, peer: bytes, *messages: Message) -> None:
        """Send to a peer, if it is there."""
        for message in messages:
            self.sink.send_multipart([peer, encode(message)])

    def turn(self) -> None:
        """Play the sink for a moment."""
        if not self.sink.poll(50):
            return
        peer, data, *payload = self.sink.recv_multipart()
        message = decode(data)
        if self.deaf:
            return
        if isinstance(message, Hello):
            self.tell(peer, Welcome(1, 1, 5000, 500))
            if message.role == "broker" and self.control:
                self.tell(peer, *self.control, self.everything())
        elif isinstance(message, Result) and message.first in self.refusing and message.arrays:
            self.tell(peer, Nack("run", "flux", message.first, message.n, message.token, -1, "refused", False))
        elif isinstance(message, Result):
            if message.first in self.rows:
                self.duplicates += 1
            else:
                self.rows[message.first] = message
                for piece in unpack(message.arrays, payload[0], message.n):
                    self.values |= dict(enumerate(piece.array.tolist(), message.first))
            done = Done("run", "flux", "cfg", [(message.first, message.first + message.n)])
            self.tell(peer, done)
            self.tell(b"broker", done)

    def until(self, true: Callable[[], bool]) -> None:
        """Play the sink until something is so."""
        deadline = time.monotonic() + DEADLINE
        while not true():
            assert time.monotonic() < deadline, self.logs()
            self.turn()

    def finish(self) -> None:
        """Play the sink until the run is complete."""
        self.until(lambda: sum(row.n for row in self.rows.values()) == N)

    def statuses(self) -> dict[int, list[int]]:
        """Return the frames by their status."""
        found: dict[int, list[int]] = {}
        for first, row in sorted(self.rows.items()):
            for at, status in enumerate(row.status):
                found.setdefault(status, []).append(first + at)
        return found

    def reasons(self) -> dict[int, str]:
        """Return why frames are not there."""
        return {frame: reason for row in self.rows.values() for frame, reason in row.reasons}

    def logs(self) -> str:
        """Return what the processes wrote."""
        return "\n".join(path.name + "\n" + path.read_text()[-2000:] for path in self.folder.glob("*.log"))

    def close(self) -> None:
        """End everything."""
        for name in list(self.processes):
            self.end(name)
        self.context.destroy(linger=0)

    def end(self, name: str) -> None:
        """Kill a process, if it is there."""
        process = self.processes.pop(name, None)
        if process is not None:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()


@pytest.fixture
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    bench = Bench(tmp_path_factory.mktemp("w"))
    try:
        yield bench
    finally:
        bench.close()


def others(*frames: int) -> list[int]:
    return [frame for frame in range(N) if frame not in frames]


def test_two_workers_reduce_a_run_from_its_file(bench: Bench) -> None:
    assert bench.worker("w1")["ready"]
    bench.worker("w2")
    bench.run({})
    bench.finish()
    assert bench.statuses() == {LIVE: others()}
    assert bench.values == {frame: 2.0 * frame for frame in range(N)}


def test_a_frame_that_kills_its_worker_is_quarantined_by_name_and_costs_no_other(bench: Bench) -> None:
    bench.worker()
    bench.run({20: DEADLY, 33: FAILING})
    bench.finish()
    assert bench.statuses() == {LIVE: others(20, 33), QUARANTINED: [20, 33]}
    assert bench.reasons() == {20: "worker died, killed by SIGSEGV", 33: "recipe r: a flux that can't be"}
    assert np.isnan(bench.values[20])


def test_recipes_that_kill_whoever_sets_them_up_quarantine_the_frames_and_not_one_batch_at_a_time(
    bench: Bench,
) -> None:
    (bench.folder / "deadly").touch()
    bench.worker()
    bench.run({})
    bench.finish()
    assert bench.statuses() == {QUARANTINED: others()}
    reason = "worker died, killed by SIGSEGV, while the recipes were set up"
    assert bench.reasons() == dict.fromkeys(others(), reason)
    status = ask(bench.broker, 5)
    assert status is not None
    assert status["counts"]["NACK"] <= 6


def test_a_frame_that_hangs_its_reducer_is_quarantined_and_the_beats_never_stop(bench: Bench) -> None:
    bench.worker(stall=1.0)
    bench.run({9: HANGING})
    bench.finish()
    assert bench.statuses() == {LIVE: others(9), QUARANTINED: [9]}
    assert bench.reasons() == {9: "no progress in 1 s"}
    status = ask(bench.broker, 5)
    assert status is not None
    assert status["counts"] == {"NACK": 3}


def test_a_worker_that_is_killed_costs_nothing(bench: Bench) -> None:
    bench.worker("w1")
    bench.worker("w2")
    bench.run({})
    bench.until(lambda: len(bench.rows) >= 1)
    child = psutil.Process(bench.processes["w1"].pid).children()[0]
    bench.processes["w1"].kill()
    bench.finish()
    assert bench.statuses() == {LIVE: others()}
    assert child.wait(5) in (None, -signal.SIGKILL), "the reducer outlived its worker"


def test_a_broker_that_is_killed_relearns_everything_from_the_sink(bench: Bench) -> None:
    bench.worker("w1")
    bench.run({})
    bench.until(lambda: len(bench.rows) >= 1)
    bench.end("broker")
    bench.start("broker", bind=bench.broker, sink=f"ipc://{bench.folder}/sink", liveness=1.5)
    bench.finish()
    assert bench.statuses() == {LIVE: others()}


def test_results_that_the_sink_did_not_take_are_sent_again(bench: Bench) -> None:
    bench.worker("w1")
    bench.deaf = True
    bench.run({})
    deadline = time.monotonic() + 1.5
    bench.until(lambda: time.monotonic() > deadline)
    bench.deaf = False
    bench.finish()
    assert bench.statuses() == {LIVE: others()}


def test_a_result_that_the_sink_never_takes_ends_as_quarantined_with_its_reason(bench: Bench) -> None:
    bench.worker("w1")
    bench.refusing = {16, 48}
    bench.run({})
    bench.finish()
    refused = [*range(16, 24), 48, 49]
    assert bench.statuses() == {LIVE: others(*refused), QUARANTINED: refused}
    assert bench.reasons() == dict.fromkeys(refused, "refused")


def test_frames_in_the_ring_are_reduced_live_and_their_blocks_come_back(bench: Bench) -> None:
    bench.worker("w1")
    with Ring.create(1 << 16) as ring, bench.context.socket(zmq.DEALER) as ingest:
        ingest.linger = 0
        ingest.connect(bench.broker)
        ingest.send(encode(Hello(1, "ingest", "ingest", 1)))
        came = [frame for frame in range(N) if frame != 13]
        blocks = []
        for frame in came:
            ring.write(128 * frame, np.float64(1000 + frame).tobytes(), frame)
            blocks.append(Block(frame, 128 * frame, 8, "none", frame))
        ingest.send(encode(Frames("tcp://eiger", 5, ring.name, (), "<f8", blocks)))
        bench.run({}, live=LiveLane("tcp://eiger", "simplon-1", 5, "flux"))
        heard: list[Any] = []

        def listen() -> bool:
            while ingest.poll(0):
                heard.append(decode(ingest.recv()))
            return sorted(n for each in heard if isinstance(each, Free) for n in each.lives) == came

        bench.finish()
        bench.until(listen)
        assert Connect("tcp://eiger", "simplon-1") in heard
    assert bench.statuses() == {LIVE: came, BACKFILLED: [13]}


def test_frames_that_came_damaged_are_reduced_from_their_file_and_those_that_it_lacks_are_quarantined(
    bench: Bench,
) -> None:
    bench.worker("w1")
    with Ring.create(1 << 16) as ring, bench.context.socket(zmq.DEALER) as ingest:
        ingest.linger = 0
        ingest.connect(bench.broker)
        ingest.send(encode(Hello(1, "ingest", "ingest", 1)))
        blocks = []
        for frame in range(N):
            ring.write(128 * frame, np.float64(frame).tobytes(), frame)
            blocks.append(Block(frame, 128 * frame, 3 if frame in (13, 20, 48) else 8, "none", frame))
        ingest.send(encode(Frames("tcp://eiger", 5, ring.name, (), "<f8", blocks)))
        bench.run({}, live=LiveLane("tcp://eiger", "simplon-1", 5, "flux"), promised=45)
        bench.finish()
    assert bench.statuses() == {LIVE: others(13, 20, 48), BACKFILLED: [13, 20], QUARANTINED: [48]}
    assert {frame: value for frame, value in bench.values.items() if frame != 48} == {
        frame: 2.0 * frame for frame in others(48)
    }
    ((frame, reason),) = bench.reasons().items()
    assert frame == 48
    assert "a.h5" in reason
    assert "what came live: none chunk decodes to 3 bytes" in reason


def test_frames_that_no_file_has_are_lost_with_the_evidence(bench: Bench) -> None:
    bench.worker("w1")
    bench.run({}, promised=45)
    bench.finish()
    assert bench.statuses() == {LIVE: list(range(45)), LOST: list(range(45, N))}
    assert "a.h5" in bench.reasons()[47]


@pytest.mark.parametrize("how", ["SIGTERM", "the end of its input"])
def test_broker_and_worker_end_quickly_on(bench: Bench, how: str) -> None:
    bench.worker("w1")
    for name, process in bench.processes.items():
        if how == "SIGTERM":
            process.terminate()
        else:
            assert process.stdin is not None
            process.stdin.close()
        assert process.wait(5) == 0, name


@pytest.mark.parametrize(
    ("module", "argument", "word"),
    [
        ("broker", '{"bind": "ipc:///x", "sink": "ipc:///y", "colour": 1}', "colour"),
        ("broker", '{"bind": "nowhere", "sink": "ipc:///y"}', "nowhere"),
        ("worker", "{}", "name"),
    ],
)
def test_wrong_settings_are_named_in_one_line(module: str, argument: str, word: str) -> None:
    command = [sys.executable, "-m", f"haltere.workers.{module}.process", argument]
    ended = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, env=dict(os.environ))
    assert ended.returncode == 2
    assert len(ended.stderr.splitlines()) == 1
    assert word in ended.stderr
