"""Ingest as a process, between a detector that pushes and a broker that is a plain socket here."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
import zmq

from haltere.workers.ring import FOLDER, RingView
from haltere.workers.wire import simplon
from haltere.workers.wire.messages import (
    Claim,
    Connect,
    Dropped,
    Frames,
    Free,
    Gauge,
    Hello,
    Message,
    Welcome,
    decode,
    encode,
)

SHAPE = (16, 20)
AnyM = TypeVar("AnyM", bound=Message)


def image(frame: int, series: int = 12, shape: tuple[int, int] = SHAPE) -> simplon.Image:
    pixels = np.random.default_rng(frame).integers(0, 60000, shape, dtype="<u2")
    return simplon.Image(series, frame, shape, "<u2", "none", pixels.tobytes(), 0, 1, 1)


@dataclass
class Bench:
    """An ingest's surroundings."""

    broker: zmq.Socket[bytes]
    detector: zmq.Socket[bytes]
    endpoint: str
    process: subprocess.Popen[str]
    ready: dict[str, Any]
    log: Path
    peer: bytes = b""
    heard: list[Message] = field(default_factory=list)

    def hear(self, kind: type[AnyM], until: Callable[[list[AnyM]], bool] = bool, seconds: int = 10) -> list[AnyM]:
        """Return the messages of a kind, as soon as they satisfy ``until``."""
        poller = zmq.Poller()
        poller.register(self.broker, zmq.POLLIN)
        while True:
            found = [message for message in self.heard if isinstance(message, kind)]
            if until(found):
                return found
            assert poller.poll(seconds * 1000), f"no more messages; heard {self.heard}"
            self.peer, data = self.broker.recv_multipart()
            self.heard.append(decode(data))

    def say(self, message: Message) -> None:
        """Say it to the ingest."""
        self.broker.send_multipart([self.peer, encode(message)])

    def connect(self, protocol: str = "simplon-1") -> None:
        """Let the ingest pull from the detector."""
        self.hear(Hello)
        self.say(Welcome(1, 77, 5000, 50))
        self.say(Connect(self.endpoint, protocol))

    def push(self, *frames: int) -> None:
        """Send these frames as a detector does."""
        for frame in frames:
            self.detector.send_multipart(simplon.encode(image(frame)))

    def frames(self, until: int) -> dict[int, bytes]:
        """Return the frames that were announced, with their bytes in the ring, when there are so many."""

        def blocks(messages: list[Frames]) -> dict[int, Any]:
            return {block.frame: (message, block) for message in messages for block in message.blocks}

        found = blocks(self.hear(Frames, lambda messages: len(blocks(messages)) >= until))
        view = RingView.attach(self.ready["ring"])
        got = {frame: bytes(view.view(block.offset, block.size)) for frame, (_, block) in found.items()}
        view.close()
        return got


def start(broker: str, log: Path, **settings: Any) -> subprocess.Popen[str]:
    words = json.dumps({"broker": broker, "name": "ingest", "ring_bytes": 1 << 20} | settings)
    with log.open("w") as errors:
        return subprocess.Popen(
            [sys.executable, "-m", "haltere.workers.ingest.process", words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )


@pytest.fixture
def make_bench(tmp_path: Path) -> Iterator[Callable[..., Bench]]:
    context = zmq.Context()
    children: list[subprocess.Popen[str]] = []
    sockets: list[zmq.Socket[bytes]] = []

    def make(**settings: Any) -> Bench:
        broker: zmq.Socket[bytes] = context.socket(zmq.ROUTER)
        broker.bind(f"ipc://{tmp_path}/broker")
        detector: zmq.Socket[bytes] = context.socket(zmq.PUSH)
        detector.sndtimeo = 5000
        port = detector.bind_to_random_port("tcp://127.0.0.1")
        sockets.extend((broker, detector))
        process = start(f"ipc://{tmp_path}/broker", tmp_path / "log", **settings)
        children.append(process)
        assert process.stdout is not None
        ready = json.loads(process.stdout.readline())
        return Bench(broker, detector, f"tcp://127.0.0.1:{port}", process, ready, tmp_path / "log")

    yield make
    for child in children:
        if child.poll() is None:
            child.kill()
        for pipe in (child.stdin, child.stdout):
            if pipe is not None:
                pipe.close()
        child.wait()
    for socket in sockets:
        socket.close(0)
    context.term()


def test_frames_of_a_detector_lie_in_the_ring_as_they_were_sent(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench()
    bench.connect()
    bench.detector.send_multipart(simplon.encode(simplon.SeriesHeader(12, "none")))
    bench.push(*range(20))
    bench.detector.send_multipart(simplon.encode(simplon.SeriesEnd(12)))
    got = bench.frames(20)
    assert got == {frame: bytes(image(frame).blob) for frame in range(20)}
    (message, *_) = bench.hear(Frames)
    assert (message.endpoint, message.series, message.shape, message.dtype) == (bench.endpoint, 12, SHAPE, "<u2")
    assert message.blocks[0].encoding == "none"


def test_a_garbled_message_is_named_and_the_next_frame_is_taken(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench()
    bench.connect()
    good = simplon.encode(image(1))
    bench.detector.send_multipart([b"\xff\x00 no json"])
    bench.detector.send_multipart([simplon.encode(image(0))[0], b"{}", b"", b""])
    bench.detector.send_multipart(good)
    assert set(bench.frames(1)) == {1}
    (dropped,) = bench.hear(Dropped)
    assert (dropped.series, dropped.ranges, dropped.reason) == (12, [(0, 1)], "malformed")
    assert "malformed so far" in bench.log.read_text()


def test_a_full_ring_drops_and_says_so_while_the_detector_is_still_drained(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench(ring_bytes=1 << 16)
    bench.connect()
    bench.push(*range(300))
    room = (1 << 16) // 768  # 640 bytes of pixels, 64 of padding, rounded up to whole cache lines

    def dropped() -> int:
        return sum(b - a for message in bench.heard if isinstance(message, Dropped) for a, b in message.ranges)

    bench.hear(Dropped, lambda _: dropped() >= 300 - (1 << 16) // 704)
    kept = bench.frames(1)
    assert len(kept) + dropped() == 300
    assert len(kept) >= room
    first = next(message for message in bench.heard if isinstance(message, Frames)).blocks[0]
    bench.say(Free(bench.ready["ring"], [first.offset], [first.life]))
    bench.push(1000)
    assert 1000 in bench.frames(len(kept) + 1)


def test_of_a_claimed_series_whole_batches_are_left_out(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench(ring_bytes=1 << 16)
    bench.connect()
    bench.say(Claim(bench.endpoint, 12, "run", "eiger", "eiger_image", 10, "drop", 50))
    bench.hear(Gauge, lambda gauges: any(gauge.series for gauge in gauges))
    bench.push(*range(300))

    def dropped() -> dict[str, int]:
        heard = [message for message in bench.heard if isinstance(message, Dropped)]
        return {message.reason: sum(b - a for each in heard for a, b in each.ranges) for message in heard}

    kept = bench.frames(1)
    bench.hear(Dropped, lambda _: len(bench.frames(1)) + sum(dropped().values()) == 300)
    kept = bench.frames(1)
    assert len(kept) % 10 == 0
    assert "decimated" in dropped()


def test_a_detector_that_can_wait_has_to_and_others_go_on(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench(ring_bytes=1 << 20, rcvhwm=2)
    bench.connect()
    bench.say(Claim(bench.endpoint, 12, "run", "eiger", "eiger_image", 10, "block"))
    bench.hear(Gauge, lambda gauges: any(gauge.series for gauge in gauges))
    # Of a quarter of a megabyte: three fill the ring. Linux lets a connection hold up to 36 MiB.
    shape, total = (256, 512), 240
    sent = threading.Thread(
        target=lambda: [
            bench.detector.send_multipart(simplon.encode(image(frame, shape=shape))) for frame in range(total)
        ]
    )
    bench.detector.sndhwm = 2
    bench.detector.sndtimeo = 60_000
    sent.start()
    bench.hear(Gauge, lambda gauges: any(each.blocked_ms > 100 for gauge in gauges for each in gauge.series))
    assert sent.is_alive()
    waiting = {block.frame: block for message in bench.hear(Frames) for block in message.blocks}
    with zmq.Context() as context, context.socket(zmq.PUSH) as other:
        port = other.bind_to_random_port("tcp://127.0.0.1")
        bench.say(Connect(f"tcp://127.0.0.1:{port}", "simplon-1"))
        other.send_multipart(simplon.encode(image(7, 99, shape)))
        other.send_multipart(simplon.encode(image(8, 99, shape)))
        named = bench.hear(Dropped, lambda messages: any(message.series == 99 for message in messages))
        other.close(0)
    got: list[int] = []
    while len(got) < total:
        blocks = list(waiting.values()) or [block for each in bench.hear(Frames) for block in each.blocks]
        waiting.clear()
        bench.heard.clear()
        got += [block.frame for block in blocks]
        bench.say(Free(bench.ready["ring"], [block.offset for block in blocks], [block.life for block in blocks]))
    sent.join()
    assert got == list(range(total))
    assert not [message for message in named if message.series == 12]


def test_a_broker_that_starts_anew_hears_of_every_block_again(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench()
    bench.connect()
    bench.push(0, 1, 2)
    bench.frames(3)
    bench.heard.clear()
    bench.say(Welcome(1, 0, 0, 0))
    bench.hear(Hello)
    bench.say(Welcome(1, 78, 5000, 50))
    assert set(bench.frames(3)) == {0, 1, 2}


def test_a_broker_that_does_not_answer_is_greeted_again(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench()
    hellos = bench.hear(Hello, lambda found: len(found) >= 2)
    assert len({message.session for message in hellos}) == 1, "it has nothing to begin anew"
    bench.say(Welcome(1, 77, 5000, 50))
    bench.heard.clear()
    bench.hear(Gauge, lambda found: len(found) >= 3)
    assert len([each for each in bench.heard if isinstance(each, Hello)]) <= 1, "one may have been on its way"


def test_chaos_drops_whole_groups_by_frame_number(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench(drop_every=2, drop_group=5)
    bench.connect()
    bench.push(*range(20))
    assert set(bench.frames(10)) == {0, 1, 2, 3, 4, 10, 11, 12, 13, 14}
    dropped = bench.hear(Dropped, lambda found: sum(b - a for m in found for a, b in m.ranges) == 10)
    assert {message.reason for message in dropped} == {"chaos"}


def test_an_unknown_protocol_is_refused_in_the_log_only(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench()
    bench.connect("nothing-9")
    bench.connect()
    bench.push(5)
    assert set(bench.frames(1)) == {5}
    assert "protocol 'nothing-9' is unknown" in bench.log.read_text()


@pytest.mark.parametrize("how", ["SIGTERM", "end of standard input"])
def test_it_ends_and_leaves_no_shared_memory(make_bench: Callable[..., Bench], how: str) -> None:
    bench = make_bench()
    assert (FOLDER / bench.ready["ring"]).exists()
    if how == "SIGTERM":
        os.kill(bench.process.pid, signal.SIGTERM)
    else:
        assert bench.process.stdin is not None
        bench.process.stdin.close()
    assert bench.process.wait(10) == 0
    assert not (FOLDER / bench.ready["ring"]).exists()


def test_wrong_settings_are_refused_in_one_line(tmp_path: Path) -> None:
    process = start("ipc:///nowhere", tmp_path / "log", drop_evry=3)
    assert process.wait(10) == 2
    for pipe in (process.stdin, process.stdout):
        assert pipe is not None
        pipe.close()
    assert (tmp_path / "log").read_text().count("\n") == 1
    assert "drop_evry" in (tmp_path / "log").read_text()
