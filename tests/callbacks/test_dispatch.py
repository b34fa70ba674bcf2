"""The dispatcher under a RunEngine: it is told everything, holds nobody up, and never raises."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import bluesky.plan_stubs as bps
import bluesky.preprocessors as bpp
import pytest
import zmq
from bluesky import RunEngine

from haltere.callbacks.catalog import Catalog, raw_writer
from haltere.callbacks.dispatch import Dispatcher
from haltere.callbacks.dispatch_core import DispatchCore
from haltere.workers.ledger.rows import Control, Outcome
from haltere.workers.recipes import Recipe
from haltere.workers.sink.core import SinkCore
from haltere.workers.wire.messages import Ack, Expect, RunClose, RunOpen, StreamOpen, Welcome, decode, encode

POSITIONS = Recipe("positions", "columns", "pilc")


class Sink:
    """The sink's core between a real socket and no disk: what it commits is kept in a list."""

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint
        self.committed: list[Control] = []
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def end(self) -> None:
        """End it, as if killed."""
        self._ending.set()
        self._thread.join()

    def _serve(self) -> None:
        core = SinkCore(1)
        with zmq.Context() as context, context.socket(zmq.ROUTER) as socket:
            socket.linger = 0
            socket.bind(self.endpoint)
            now = 0.0
            while not self._ending.is_set():
                answers = []
                now += 1.0
                if socket.poll(5):
                    peer, data = socket.recv_multipart()
                    answers = core.receive(peer, decode(data), None, now)
                group = core.take(now, all_=True)
                if group is not None:
                    self.committed += [message for message, _ in group.control]
                    answers += core.committed(Outcome([True] * len(group.control), []), now)
                for peer, message in answers:
                    socket.send_multipart([peer, encode(message)])


@pytest.fixture
def sink(tmp_path: Any) -> Iterator[Sink]:
    made = Sink(f"ipc://{tmp_path}/sink")
    yield made
    made.end()


@pytest.fixture
def dispatcher(sink: Sink) -> Iterator[Dispatcher]:
    made = Dispatcher(sink.endpoint, recipes=[POSITIONS])
    yield made
    made.close()


def kinds(messages: list[Control]) -> list[type]:
    return [type(each) for each in messages]


def test_the_sink_is_told_of_a_run_as_it_goes(sink: Sink, dispatcher: Dispatcher, measured: Any) -> None:
    scan = measured()
    for name, doc in scan.documents():
        dispatcher(name, doc)
    assert dispatcher.wait_acknowledged(scan.uid, 10)
    assert kinds(sink.committed)[:2] == [RunOpen, StreamOpen]
    assert kinds(sink.committed)[-1] is RunClose
    promised = [(each.first, each.stop) for each in sink.committed if isinstance(each, Expect)]
    assert (promised[0][0], promised[-1][1]) == (0, 24)


def test_a_sink_that_comes_late_is_told_everything(tmp_path: Any, measured: Any) -> None:
    endpoint = f"ipc://{tmp_path}/late"
    dispatcher = Dispatcher(endpoint, recipes=[POSITIONS])
    scan = measured()
    for name, doc in scan.documents():
        dispatcher(name, doc)
    assert not dispatcher.wait_acknowledged(scan.uid, 0.05)
    sink = Sink(endpoint)
    assert dispatcher.wait_acknowledged(scan.uid, 10)
    assert kinds(sink.committed) == [RunOpen, StreamOpen, Expect, RunClose]
    dispatcher.close()
    sink.end()


def test_a_run_engine_is_never_raised_into_and_the_next_run_is_told(
    sink: Sink, dispatcher: Dispatcher, measured: Any, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("start", "descriptor", "stream_resource", "stream_datum", "stream_datum", "stop"):
        dispatcher(name, {})
    scan = measured()
    for name, doc in scan.documents():
        dispatcher(name, doc)
    assert dispatcher.wait_acknowledged(scan.uid, 10)
    assert "passes over a start document" in caplog.text
    assert dispatcher.passed_over == 5, "all but the descriptor, which belongs to no run known here"


def test_a_run_without_detectors_opens_and_closes(sink: Sink, dispatcher: Dispatcher) -> None:
    engine: Any = RunEngine({}, context_managers=[])
    engine.subscribe(dispatcher)
    (uid,) = engine(bpp.run_decorator(md={"purpose": "nothing"})(bps.null)())
    assert dispatcher.wait_acknowledged(uid, 10)
    assert kinds(sink.committed) == [RunOpen, RunClose]


def test_recorded_documents_promise_what_live_ones_did(shared_catalog: Catalog, measured: Any) -> None:
    scan = measured()
    writer = raw_writer(shared_catalog)
    live, recorded = (DispatchCore(1, [POSITIONS]) for _ in range(2))
    for name, doc in scan.documents():
        live.document(name, doc)
        writer(name, doc)
    assert writer.close(30)
    for name, doc in shared_catalog.raw[scan.uid].documents():
        recorded.document(name, dict(doc))
    told = []
    for core in (live, recorded):
        core.impatient(1000.0)
        core.heard(Welcome(1, 1, 1, 1), 1000.0)
        messages = [decode(data) for data in core.outgoing(1000.0)]
        core.heard(Ack(1, 100), 1000.0)
        told.append([each for each in messages if isinstance(each, StreamOpen | Expect)])
    assert told[0] == told[1]
    assert isinstance(told[0][1], Expect)
