"""The sink with its sockets and files, in this process and as one that is killed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic
from typing import Any

import h5py
import numpy as np
import pytest
import zmq

from haltere.workers.errors import SettingsError
from haltere.workers.ledger.reader import LedgerReader
from haltere.workers.ledger.rows import RunRow
from haltere.workers.sink.process import Sink, SinkSettings
from haltere.workers.wire.messages import AnyMessage, Done, Hello, Message, RunOpen, decode, encode

from ..flying import (
    BATCH,
    COLUMNS,
    EIGER,
    FRAMES,
    PILC,
    ROWS,
    RUN,
    build,
    control,
    result,
    results,
    run_close,
    run_open,
)


class Peer:
    """Whoever talks to the sink."""

    def __init__(self, context: zmq.Context[Any], endpoint: str, role: str, session: int = 7) -> None:
        self.socket = context.socket(zmq.DEALER)
        self.socket.linger = 0
        self.socket.connect(endpoint)
        self.heard: list[AnyMessage] = []
        self.tell(Hello(1, role, role, session))

    def tell(self, message: Message, payload: bytes | None = None) -> None:
        """Say it."""
        self.socket.send_multipart([encode(message)] if payload is None else [encode(message), payload])

    def hear(self) -> list[AnyMessage]:
        """Return everything that was heard so far."""
        while self.socket.poll(0):
            self.heard.append(decode(self.socket.recv()))
        return self.heard


class Bench:
    """A sink in this process, turned by hand."""

    def __init__(self, folder: Path, nexus: Path | None = None) -> None:
        self.folder = folder
        self.nexus = nexus or folder / "nexus"
        self.nexus.mkdir(exist_ok=True)
        self.context: zmq.Context[Any] = zmq.Context()
        self.peers: list[Peer] = []
        self.sink = self._start()

    def _start(self) -> Sink:
        settings = SinkSettings(
            bind=f"ipc://{self.folder}/sink", ledger=str(self.folder / "ledger.db"), nexus=str(self.nexus)
        )
        sink = Sink(settings, build=build)
        sink.start()
        return sink

    def peer(self, role: str, session: int = 7) -> Peer:
        """Return somebody new who talks to the sink."""
        self.peers.append(Peer(self.context, self.sink.endpoint, role, session))
        return self.peers[-1]

    def until(self, condition: Callable[[], object], seconds: float = 15.0) -> None:
        """Let the sink work until something is so."""
        deadline = monotonic() + seconds
        while not condition():
            assert monotonic() < deadline, self.sink.core.status(monotonic())
            self.sink.turn(self.sink.poll())

    def restart(self) -> None:
        """End the sink without a last word, and start another."""
        self.sink.close()
        self.sink = self._start()

    def row(self, uid: str = RUN) -> RunRow:
        """Return the run as the ledger has it."""
        reader = LedgerReader(self.folder / "ledger.db")
        row = reader.run(uid)
        reader.close()
        assert row is not None
        return row

    def close(self) -> None:
        """Close everything."""
        for peer in self.peers:
            peer.socket.close(0)
        self.context.term()
        self.sink.close()

    @property
    def file(self) -> Path:
        """The run's NeXus file."""
        return self.nexus / "scan_00017.nxs"


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.close()


def send_all(bench: Bench, worker: Peer) -> None:
    dispatcher = bench.peer("dispatcher")
    for message in control():
        dispatcher.tell(message)
    bench.until(lambda: RUN in bench.sink.core.runs and bench.sink.core.runs[RUN].totals is not None)
    for message, payload in results():
        worker.tell(message, payload)


def test_a_whole_run_ends_in_the_ledger_and_in_a_closed_nexus_file(bench: Bench) -> None:
    worker, recorder = bench.peer("worker"), bench.peer("recorder")
    send_all(bench, worker)
    bench.until(lambda: bench.row().completed is not None)
    bench.until(lambda: any(isinstance(message, Done) and message.full for message in recorder.hear()))
    told = [message for message in worker.hear() if isinstance(message, Done)]
    for stream in ("eiger", "pilc"):
        assert sum(b - a for message in told if message.stream == stream for a, b in message.ranges) == FRAMES
    with h5py.File(bench.file) as file:  # opens without swmr: it is closed
        assert file["entry/xrd/counts"][:].tolist() == [7 * k for k in range(FRAMES)]
        assert file["entry/exit_status"][()] == b"success"
    assert bench.row().nexus == str(bench.file)
    assert bench.row().nexus_error is None


def test_a_result_is_readable_while_the_scan_flies(bench: Bench) -> None:
    worker, dispatcher = bench.peer("worker"), bench.peer("dispatcher")
    for message in control()[:3]:
        dispatcher.tell(message)
    bench.until(lambda: len(getattr(bench.sink.core.runs.get(RUN), "streams", ())) == 2)
    worker.tell(*result(EIGER, 4))

    def written() -> bool:
        if not bench.file.exists():
            return False
        try:
            with h5py.File(bench.file, "r", swmr=True) as file:
                return bool(file["entry/xrd/status"][4] == 0)
        except OSError:  # it is being made at this moment
            return False

    bench.until(written)
    with h5py.File(bench.file, "r", swmr=True) as file:
        assert file["entry/xrd/counts"][4] == 28
        assert file["entry/xrd/status"][0] == 255


def test_a_sink_that_starts_anew_rebuilds_the_file_of_an_open_run(bench: Bench) -> None:
    worker, dispatcher = bench.peer("worker"), bench.peer("dispatcher")
    for message in control()[:3]:
        dispatcher.tell(message)
    bench.until(lambda: len(getattr(bench.sink.core.runs.get(RUN), "streams", ())) == 2)
    for first in (0, 4):
        worker.tell(*result(EIGER, first))
    bench.until(lambda: any(isinstance(message, Done) for message in worker.hear()))
    bench.restart()
    assert bench.sink.core.runs[RUN].streams["eiger"].books.done.covers(0, BATCH)
    worker.heard.clear()
    again = bench.peer("dispatcher")
    for message in control()[3:]:
        again.tell(message)
    for message, payload in results():
        worker.tell(message, payload)
    bench.until(lambda: bench.row().completed is not None)
    with h5py.File(bench.file) as file:
        assert file["entry/xrd/sum"][1] == sum(range(FRAMES))  # each batch was added once
        assert file["entry/xrd/q"][-1] == 2.0


def test_a_detector_that_was_ahead_when_the_run_ended_leaves_nothing_of_it_in_the_file(bench: Bench) -> None:
    worker, dispatcher = bench.peer("worker"), bench.peer("dispatcher")
    for message in control()[:4]:
        dispatcher.tell(message)
    bench.until(lambda: len(getattr(bench.sink.core.runs.get(RUN), "streams", ())) == 2)
    for stream in (EIGER, PILC):
        for first in (0, 4, 8, 12):
            worker.tell(*result(stream, first))
    bench.until(lambda: sum(isinstance(message, Done) for message in worker.hear()) >= 2)
    dispatcher.tell(run_close(5, frames=8))
    bench.until(lambda: bench.row().completed is not None)
    with h5py.File(bench.file) as file:
        assert file["entry/xrd/counts"][:].tolist() == [7 * k for k in range(8)]
        assert np.isfinite(file["entry/xrd/maps/counts"][:]).sum() == 8
        assert file["entry/xrd/sum"][1] == sum(range(8))


def test_two_runs_of_the_same_number_get_files_of_their_own(bench: Bench) -> None:
    dispatcher = bench.peer("dispatcher")
    dispatcher.tell(run_open())
    dispatcher.tell(RunOpen(2, "99999999-zzzz", "88888888-yyyy", run_open().start))
    bench.until(lambda: len(bench.sink.core.runs) == 2)
    assert bench.row("99999999-zzzz").nexus == str(bench.nexus / "scan_00017-88888888.nxs")
    assert bench.row().opened_at < bench.row("99999999-zzzz").opened_at


def test_a_folder_that_is_gone_holds_up_no_commit_and_the_file_is_made_when_it_is_back(bench: Bench) -> None:
    shutil.rmtree(bench.nexus)
    worker = bench.peer("worker")
    send_all(bench, worker)
    bench.until(lambda: RUN in bench.sink.core.nexus_errors)
    assert LedgerReader(bench.folder / "ledger.db").accounting(RUN)["eiger"]["live"] == FRAMES - BATCH
    bench.nexus.mkdir()
    bench.until(lambda: bench.row().completed is not None)
    assert bench.row().nexus_error is None
    assert bench.file.exists()


def test_a_run_is_complete_without_its_file_if_that_can_never_be_written(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("haltere.workers.nexus.follower.FIRST_PAUSE", 0.02)
    shutil.rmtree(bench.nexus)
    send_all(bench, bench.peer("worker"))
    bench.until(lambda: bench.row().completed is not None)
    assert "scan_00017.nxs" in (bench.row().nexus_error or "")


def test_a_full_disk_under_the_nexus_file_holds_up_no_commit_and_leaves_the_file_whole(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("haltere.workers.nexus.follower.NO_ROOM_PAUSE", 0.05)
    worker, dispatcher = bench.peer("worker"), bench.peer("dispatcher")
    for message in control()[:3]:
        dispatcher.tell(message)
    bench.until(lambda: len(getattr(bench.sink.core.runs.get(RUN), "streams", ())) == 2)
    worker.tell(*result(EIGER, 0))
    bench.until(bench.file.exists)
    before = bench.file.stat().st_ino
    monkeypatch.setattr("haltere.workers.nexus.follower.RESERVE", 1 << 60)
    for message in control()[3:]:
        dispatcher.tell(message)
    for message, payload in results()[1:]:
        worker.tell(message, payload)
    bench.until(lambda: "MiB free" in (bench.sink.core.nexus_errors.get(RUN) or ""))
    bench.until(lambda: bench.sink.core.counters.frames == 2 * FRAMES)
    assert bench.row().completed is None
    monkeypatch.setattr("haltere.workers.nexus.follower.RESERVE", 0)
    bench.until(lambda: bench.row().completed is not None)
    assert bench.row().nexus_error is None
    assert bench.file.stat().st_ino == before, "it was whole, so it wasn't written anew"
    with h5py.File(bench.file) as file:
        assert file["entry/xrd/counts"][:].tolist() == [7 * k for k in range(FRAMES)]


def test_a_full_disk_under_the_ledger_holds_the_answers_back_until_there_is_room(bench: Bench) -> None:
    worker, dispatcher = bench.peer("worker"), bench.peer("dispatcher")
    for message in control()[:3]:
        dispatcher.tell(message)
    bench.until(lambda: len(getattr(bench.sink.core.runs.get(RUN), "streams", ())) == 2)
    pages = bench.sink.ledger._db.execute("pragma page_count").fetchone()[0]
    bench.sink.ledger._db.execute(f"pragma max_page_count={pages}")
    for first in range(0, 800, BATCH):
        worker.tell(*result(EIGER, first))
    bench.until(lambda: bench.sink.core.counters.errors >= 2)
    assert "full" in bench.sink.core.counters.last_error
    assert not any(isinstance(message, Done) for message in worker.hear())
    bench.sink.ledger._db.execute("pragma max_page_count=1000000")
    told = Done(RUN, "eiger", "cfg-a", [(0, 800)])
    bench.until(lambda: told in worker.hear())


def test_garbage_is_counted_and_harms_nobody(bench: Bench) -> None:
    stranger = bench.peer("stranger")
    for parts in ([b"\xff\xff"], [b""], [b"a", b"b", b"c", b"d"], [os.urandom(70_000)]):
        stranger.socket.send_multipart(parts)
    bench.until(lambda: bench.sink.core.counters.bad == 4)
    send_all(bench, bench.peer("worker"))
    bench.until(lambda: bench.row().completed is not None)


def test_an_endpoint_that_is_taken_is_named(bench: Bench, tmp_path: Path) -> None:
    socket = bench.context.socket(zmq.ROUTER)
    port = socket.bind_to_random_port("tcp://127.0.0.1")
    settings = SinkSettings(bind=f"tcp://127.0.0.1:{port}", ledger=str(tmp_path / "other.db"), nexus=str(tmp_path))
    with pytest.raises(SettingsError, match=f"127.0.0.1:{port} can't be bound"):
        Sink(settings)
    socket.close(0)


PROGRAM = """
import sys
sys.path.insert(0, {tests!r})
import flying
from haltere.workers.processes.lifeline import Lifeline, announce
from haltere.workers.sink.process import Sink, SinkSettings
lifeline = Lifeline()
sink = Sink(SinkSettings(bind={bind!r}, ledger={ledger!r}, nexus={nexus!r}), build=flying.build)
announce(role="sink", ready=True, endpoint=sink.endpoint)
sink.run(lifeline)
sink.close()
"""


def start(folder: Path) -> subprocess.Popen[str]:
    words = {
        "tests": str(Path(__file__).parents[1]),
        "bind": f"ipc://{folder}/sink",
        "ledger": str(folder / "ledger.db"),
        "nexus": str(folder),
    }
    with (folder / "log").open("a") as errors:
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM.format(**words)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
    assert process.stdout is not None
    assert json.loads(process.stdout.readline())["ready"]
    return process


def end(process: subprocess.Popen[str], how: int) -> int:
    process.send_signal(how)
    code = process.wait(15)
    for pipe in (process.stdin, process.stdout):
        assert pipe is not None
        pipe.close()
    return code


def test_a_sink_killed_at_any_moment_loses_nothing_that_it_acknowledged(tmp_path: Path) -> None:
    context: zmq.Context[Any] = zmq.Context()
    process = start(tmp_path)
    dispatcher = Peer(context, f"ipc://{tmp_path}/sink", "dispatcher")
    worker = Peer(context, f"ipc://{tmp_path}/sink", "worker")
    for message in control():
        dispatcher.tell(message)
    wait(lambda: any(type(message).__name__ == "Ack" and message.serial == 8 for message in dispatcher.hear()))  # type: ignore[union-attr]
    acknowledged: set[tuple[str, int]] = set()
    pending = results()
    for kill_after in (1, 3):
        for message, payload in pending:
            worker.tell(message, payload)

        def learn() -> int:
            for message in worker.hear():
                if isinstance(message, Done):
                    for first, stop in message.ranges:
                        acknowledged.update((message.stream, frame) for frame in range(first, stop, BATCH))
            return len(acknowledged)

        wait(lambda after=kill_after: learn() >= after)  # type: ignore[misc]
        assert end(process, signal.SIGKILL) == -signal.SIGKILL
        learn()
        reader = LedgerReader(tmp_path / "ledger.db")
        for stream, first in acknowledged:
            cfg = {"eiger": EIGER, "pilc": PILC}[stream].cfg
            assert reader.batches(RUN, stream, cfg, first, 1)[0].first == first
        reader.close()
        process = start(tmp_path)
    for message, payload in pending:
        worker.tell(message, payload)

    def completed() -> bool:
        reader = LedgerReader(tmp_path / "ledger.db")
        row = reader.run(RUN)
        reader.close()
        return row is not None and row.completed is not None

    wait(completed)
    assert end(process, signal.SIGTERM) == 0
    with h5py.File(tmp_path / "scan_00017.nxs") as file:
        assert file["entry/xrd/maps/counts"].shape == (ROWS, COLUMNS)
        assert file["entry/xrd/counts"][:].tolist() == [7 * k for k in range(FRAMES)]
    for peer in (dispatcher, worker):
        peer.socket.close(0)
    context.term()


def test_what_is_buffered_is_committed_before_it_ends(tmp_path: Path) -> None:
    context: zmq.Context[Any] = zmq.Context()
    process = start(tmp_path)
    dispatcher = Peer(context, f"ipc://{tmp_path}/sink", "dispatcher")
    dispatcher.tell(control()[0])
    wait(lambda: len(dispatcher.hear()) >= 2)
    dispatcher.tell(control()[1])
    wait(lambda: len(dispatcher.hear()) >= 3)
    assert process.stdin is not None
    process.stdin.close()
    assert process.wait(15) == 0
    assert process.stdout is not None
    process.stdout.close()
    reader = LedgerReader(tmp_path / "ledger.db")
    assert [stream.stream for stream in reader.streams(RUN)] == ["eiger"]
    reader.close()
    dispatcher.socket.close(0)
    context.term()


def wait(condition: Callable[[], object], seconds: float = 15.0) -> None:
    """Return as soon as something is so."""
    deadline = monotonic() + seconds
    poller = zmq.Poller()
    while not condition():
        assert monotonic() < deadline
        poller.poll(5)
