"""A session's callbacks get each document once, in order, though the recorder comes and goes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from time import monotonic
from types import SimpleNamespace
from typing import Any

import pytest
import zmq

from haltere.callbacks import following
from haltere.callbacks.following import Follower
from haltere.callbacks.recording import answer
from haltere.workers.errors import PoolError
from haltere.workers.wire.documents import Fetch, decode, encode, pack


class Served:
    """A recorder's sockets, around runs that the test makes grow."""

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint
        self.runs: dict[str, Any] = {}
        self.newest = -1
        self.faults: dict[str, str] = {}
        self.let_go: dict[str, int] = {}
        self.fetches = 0
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def open(self, number: int) -> Any:
        """Make a run that has only started."""
        raw, processed = f"raw-{number}", f"processed-{number}"
        run = SimpleNamespace(
            row=SimpleNamespace(run=raw, processed=processed), number=number, documents=[], complete=False
        )
        run.documents.append(pack("start", {"uid": processed, "raw_uid": raw}))
        self.runs[processed] = run
        self.newest = number
        return run

    def find(self, uid: str) -> Any:
        """Return a run by either uid."""
        return next((each for each in self.runs.values() if uid in (each.row.run, each.row.processed)), None)

    def end(self) -> None:
        """End, as a recorder that is killed: questions stay unanswered."""
        self._ending.set()
        self._thread.join()

    def _serve(self) -> None:
        with zmq.Context() as context, context.socket(zmq.ROUTER) as socket:
            socket.linger = 0
            socket.bind(self.endpoint)
            waiting: list[tuple[bytes, Fetch, float]] = []
            while not self._ending.is_set():
                if socket.poll(5):
                    peer, data = socket.recv_multipart()
                    fetch = decode(data)
                    assert isinstance(fetch, Fetch)
                    self.fetches += 1
                    wait = fetch.wait_ms / 1000 if fetch.after >= 0 else 0
                    waiting.append((peer, fetch, monotonic() + wait))
                for question in list(waiting):
                    found = answer(self, question[1])  # type: ignore[arg-type]
                    if found.parts or monotonic() > question[2]:
                        socket.send_multipart([question[0], encode(found)])
                        waiting.remove(question)


def pages(run: Any, first: int, n: int) -> None:
    run.documents += [pack("event_page", {"number": number}) for number in range(first, first + n)]


def stop(run: Any) -> None:
    run.documents.append(pack("stop", {"exit_status": "success", "run_start": run.row.processed}))
    run.complete = True


class Heard:
    """A callback that remembers."""

    def __init__(self) -> None:
        self.documents: list[tuple[str, dict[str, Any]]] = []
        self._more = threading.Condition()

    def __call__(self, name: str, doc: dict[str, Any]) -> None:
        """Remember it."""
        with self._more:
            self.documents.append((name, doc))
            self._more.notify_all()

    def wait_for(self, n: int) -> None:
        """Wait until it has heard n documents."""
        with self._more:
            assert self._more.wait_for(lambda: len(self.documents) >= n, 20), self.documents

    @property
    def numbers(self) -> list[int]:
        """What the event pages said."""
        return [doc["number"] for name, doc in self.documents if name == "event_page"]


@pytest.fixture
def serve(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], Served]]:
    monkeypatch.setattr(following, "WAIT", 0.3)
    monkeypatch.setattr(following, "PATIENCE", 0.3)
    all_: list[Served] = []

    def start() -> Served:
        all_.append(Served(f"ipc://{tmp_path}/r"))
        return all_[-1]

    yield start
    for each in all_:
        each.end()


@pytest.fixture
def follower(serve: Callable[[], Served]) -> Iterator[tuple[Served, Follower]]:
    served = serve()
    made = Follower(served.endpoint)
    yield served, made
    made.close()


def test_documents_come_in_order_each_once_as_they_are_made(follower: tuple[Served, Follower]) -> None:
    served, made = follower
    heard = Heard()
    made.subscribe(heard)
    run = served.open(1)
    for first in range(0, 1200, 300):
        pages(run, first, 300)
        heard.wait_for(1 + first + 300)
    stop(run)
    assert made.wait("raw-1", 20)["exit_status"] == "success"
    assert heard.numbers == list(range(1200))
    assert (heard.documents[0][0], heard.documents[-1][0]) == ("start", "stop")


def test_a_recorder_that_dies_is_asked_again_when_it_is_back(
    follower: tuple[Served, Follower], serve: Callable[[], Served]
) -> None:
    served, made = follower
    heard = Heard()
    made.subscribe(heard)
    run = served.open(1)
    pages(run, 0, 10)
    heard.wait_for(11)
    served.end()
    again = serve()
    run = again.open(1)  # the same documents: they are a function of the ledger
    pages(run, 0, 25)
    stop(run)
    assert made.wait("processed-1", 20)
    assert heard.numbers == list(range(25))
    assert [name for name, _ in heard.documents].count("start") == 1


def test_runs_that_overlap_are_both_followed(follower: tuple[Served, Follower]) -> None:
    served, made = follower
    heard = Heard()
    made.subscribe(heard, "stop")
    first, second = served.open(1), served.open(2)
    stop(second)
    assert made.wait("raw-2", 20)
    pages(first, 0, 3)
    stop(first)
    assert made.wait("raw-1", 20)
    assert [doc["run_start"] for _, doc in heard.documents] == ["processed-2", "processed-1"]


def test_runs_from_before_are_not_given_to_callbacks_but_can_be_waited_for(serve: Callable[[], Served]) -> None:
    served = serve()
    run = served.open(1)
    pages(run, 0, 3)
    stop(run)
    made = Follower(served.endpoint)
    heard = Heard()
    made.subscribe(heard)
    assert made.wait("raw-1", 20)["run_start"] == "processed-1"
    assert heard.documents == []
    assert [name for name, _ in made.documents("raw-1", 5)] == ["start", *["event_page"] * 3, "stop"]
    made.close()


def test_a_callback_subscribed_within_a_run_waits_for_the_next(follower: tuple[Served, Follower]) -> None:
    served, made = follower
    early, late = Heard(), Heard()
    made.subscribe(early)
    run = served.open(1)
    early.wait_for(1)
    made.subscribe(late)
    pages(run, 0, 2)
    stop(run)
    assert made.wait("raw-1", 20)
    assert late.documents == []
    stop(served.open(2))
    assert made.wait("raw-2", 20)
    assert [name for name, _ in late.documents] == ["start", "stop"]


def test_a_callback_that_fails_is_logged_and_stops_nobody(
    follower: tuple[Served, Follower], caplog: pytest.LogCaptureFixture
) -> None:
    served, made = follower

    def bad(name: str, doc: dict[str, Any]) -> None:
        raise ValueError("a bad plot")

    heard = Heard()
    made.subscribe(bad)
    token = made.subscribe(heard)
    stop(served.open(1))
    assert made.wait("raw-1", 20)
    assert [name for name, _ in heard.documents] == ["start", "stop"]
    assert made.errors == 2
    assert "a bad plot" in caplog.text
    made.unsubscribe(token)
    stop(served.open(2))
    made.wait("raw-2", 20)
    assert len(heard.documents) == 2


def test_a_run_that_is_not_reduced_in_time_is_said_in_one_line(follower: tuple[Served, Follower]) -> None:
    served, made = follower
    heard = Heard()
    made.subscribe(heard)
    pages(served.open(1), 0, 5)
    heard.wait_for(6)
    with pytest.raises(PoolError, match=r"run raw-1 isn't reduced after 0 s: 6 documents so far"):
        made.wait("raw-1", 0.2)


def test_a_run_that_cannot_be_composed_is_said_in_one_line(follower: tuple[Served, Follower]) -> None:
    served, made = follower
    heard = Heard()
    made.subscribe(heard)
    served.open(1)
    heard.wait_for(1)
    served.faults["processed-1"] = "reducer 'gone' isn't installed"
    del served.runs["processed-1"]
    with pytest.raises(PoolError, match="reducer 'gone' isn't installed"):
        made.wait("raw-1", 20)


def test_a_run_that_nobody_knows_is_said_in_one_line(follower: tuple[Served, Follower]) -> None:
    with pytest.raises(PoolError, match="isn't reduced after 0 s: the recorder doesn't know it"):
        follower[1].wait("raw-9", 0.2)


def test_a_recorder_that_is_not_there_is_said_in_one_line(tmp_path: Any) -> None:
    with pytest.raises(PoolError, match="didn't answer within 0 s; is the pool running"):
        Follower(f"ipc://{tmp_path}/nobody", timeout=0.1)
