"""A pool without documents: what a dispatcher would tell it, tests tell it themselves."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import msgspec
import pytest
import zmq

from haltere.workers.assets import AssetStore
from haltere.workers.ledger.reader import LedgerReader
from haltere.workers.pool.local import Pool
from haltere.workers.wire.messages import (
    VERSION,
    Ack,
    Expect,
    Hello,
    Message,
    RunClose,
    RunOpen,
    StreamOpen,
    StreamTotal,
    decode,
    encode,
)

DEADLINE = 60.0


@dataclass
class ToldPool:
    """A pool with one worker, and a dispatcher's end of its sink."""

    pool: Pool
    context: zmq.Context[zmq.Socket[bytes]] = field(default_factory=zmq.Context)

    def __post_init__(self) -> None:
        self.assets = AssetStore(self.pool.assets)
        self._sink = self.context.socket(zmq.DEALER)
        self._sink.linger = 0
        self._sink.rcvtimeo = int(1000 * DEADLINE)
        self._sink.connect(self.pool.endpoints.sink)
        self._session = time.time_ns() // 1000
        self._sink.send(encode(Hello(VERSION, "dispatcher", "test", self._session)))
        self._sink.recv()
        self.serial = 0

    @contextmanager
    def detector(self) -> Iterator[tuple[zmq.Socket[bytes], str]]:
        """Give a detector's end of a live lane, and its endpoint."""
        with self.context.socket(zmq.PUSH) as socket:
            socket.linger = 0
            socket.sndtimeo = int(1000 * DEADLINE)  # it waits for the ingest to connect
            yield socket, f"tcp://127.0.0.1:{socket.bind_to_random_port('tcp://127.0.0.1')}"

    def open(self, stream: StreamOpen, frames: int) -> None:
        """Tell of a run with one stream, without any file."""
        start = json.dumps({"uid": stream.run, "time": 1_700_000_000.0}).encode()
        self._tell(
            RunOpen(0, stream.run, f"{stream.run}-processed", start),
            stream,
            Expect(0, stream.run, stream.stream, 0, frames, []),
        )

    def close_run(self, stream: StreamOpen, frames: int) -> dict[str, Any]:
        """Tell that the run has ended; wait until it is complete and return what became of its frames."""
        stop = json.dumps({"time": 1_700_000_060.0}).encode()
        self._tell(RunClose(0, stream.run, [StreamTotal(stream.stream, frames)], "success", stop))
        reader = LedgerReader(self.pool.ledger)
        deadline = time.monotonic() + DEADLINE
        while (row := reader.run(stream.run)) is None or row.completed is None:
            assert time.monotonic() < deadline, self.pool.status()
            time.sleep(0.02)
        account = reader.accounting(stream.run)[stream.stream]
        reader.close()
        return account

    def rows(self, stream: StreamOpen) -> list[Any]:
        """Return the stream's batches as the ledger has them."""
        reader = LedgerReader(self.pool.ledger)
        found = list(reader.batches(stream.run, stream.stream, stream.cfg))
        reader.close()
        return found

    def restarts(self) -> dict[str, int]:
        """Return how often each process was started again."""
        return {name: each["restarts"] for name, each in self.pool.status()["processes"].items()}

    def _tell(self, *messages: Message) -> None:
        self._sink.send(encode(Hello(VERSION, "dispatcher", "test", self._session)))  # it may be another sink by now
        for message in messages:
            self.serial += 1
            self._sink.send(encode(msgspec.structs.replace(message, serial=self.serial)))
        while not (isinstance(answer := decode(self._sink.recv()), Ack) and answer.serial == self.serial):
            pass


@pytest.fixture(scope="session")
def told(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ToldPool]:
    with Pool.local(1, directory=tmp_path_factory.mktemp("told")) as pool:
        told = ToldPool(pool)
        yield told
        told.context.destroy(linger=0)
