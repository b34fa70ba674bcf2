"""The recorder: what it makes of a ledger, over its restarts; and the whole way from documents to documents."""

from __future__ import annotations

import json
import random
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
import pytest

from haltere.callbacks.catalog import Catalog
from haltere.callbacks.dispatch import Dispatcher
from haltere.callbacks.following import Follower
from haltere.callbacks.journal import Journal
from haltere.callbacks.recording import Recorder, answer
from haltere.workers.ledger.reader import LedgerReader
from haltere.workers.ledger.rows import BatchRow, Group
from haltere.workers.ledger.writer import Ledger
from haltere.workers.payload import Piece, pack
from haltere.workers.pool.local import Endpoints, Pool
from haltere.workers.recipes import Recipe, cfg_hash, processed_uid
from haltere.workers.wire.documents import Cursor, Fetch, unpack
from haltere.workers.wire.messages import (
    LIVE,
    Expect,
    FileSpan,
    InputSpec,
    RunClose,
    RunOpen,
    StreamOpen,
    StreamTotal,
)

POSITIONS = Recipe("positions", "columns", "pilc")
TOTAL = 10


class Books:
    """A ledger that the test writes as the sink would."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "ledger.db"
        self.ledger = Ledger(self.path)
        self.now = 1000.0

    def commit(self, **group: Any) -> None:
        """Commit a group, a second later."""
        self.now += 1
        self.ledger.commit(Group(**group), self.now)

    def open(self, run: str, recipe: Recipe = POSITIONS, promised: int = TOTAL) -> None:
        """Open a run, its stream, and promise frames."""
        start = {"uid": run, "scan_id": 1, "recipes": [{"name": recipe.name, "reducer": "columns", "source": "pilc"}]}
        opened = RunOpen(1, run, processed_uid(run, [recipe]), json.dumps(start).encode())
        self.commit(control=[(opened, None), (self.stream(run, recipe), None)])
        self.promise(run, 0, promised)

    def promise(self, run: str, first: int, stop: int) -> None:
        """Say that these frames exist."""
        span = FileSpan("pilc_x", "file:///x.h5", "/x", first, max(stop - first, 1), first)
        self.commit(control=[(Expect(3, run, "pilc", first, stop, [span]), None)])

    def stream(self, run: str, recipe: Recipe = POSITIONS) -> StreamOpen:
        """Return the run's stream."""
        specs = [recipe.spec()]
        return StreamOpen(2, run, "pilc", cfg_hash(specs), 4, [InputSpec("pilc_x", (), "<f8")], specs)

    def batch(self, run: str, first: int, recipe: Recipe = POSITIONS) -> None:
        """Commit a batch."""
        frames = np.arange(first, min(first + 4, TOTAL), dtype="f8")
        specs, payload = pack([Piece(recipe.name, "nav", "pilc_x", frames)])
        status = bytes([LIVE]) * len(frames)
        cfg = self.stream(run, recipe).cfg
        row = BatchRow(run, "pilc", cfg, first, len(frames), status, [], 1, "w", specs, bytes(payload))
        self.commit(batches=[row])

    def close(self, run: str, total: int = TOTAL) -> None:
        """Close the run and call it complete."""
        closed = RunClose(9, run, [StreamTotal("pilc", total)], "success", b"{}")
        self.commit(control=[(closed, None)])
        self.ledger.complete(run, self.now)


@pytest.fixture
def books(tmp_path: Path) -> Iterator[Books]:
    made = Books(tmp_path)
    yield made
    made.ledger.close()


def looked(books: Books) -> Recorder:
    recorder = Recorder(LedgerReader(books.path))
    recorder.look()
    return recorder


def told(recorder: Recorder, run: str) -> list[tuple[str, dict[str, Any]]]:
    recorded = recorder.find(run)
    return [] if recorded is None else [unpack(each) for each in recorded.documents]


def names(documents: Sequence[tuple[str, Any]]) -> list[str]:
    return [name for name, _ in documents]


def test_a_run_is_told_as_it_is_reduced(books: Books) -> None:
    recorder = looked(books)
    books.open("run")
    assert recorder.look()
    assert names(told(recorder, "run")) == ["start"]
    books.batch("run", 4)
    assert not recorder.look()  # frames 0 to 3 come first
    books.batch("run", 0)
    assert recorder.look()
    assert names(told(recorder, "run")) == ["start", "descriptor", "event_page", "event_page"]
    books.batch("run", 8)
    books.close("run")
    recorder.look()
    assert names(told(recorder, "run"))[-2:] == ["event_page", "stop"]
    assert told(recorder, "run")[-1][1]["frames"]["pilc"]["live"] == TOTAL


def test_a_recorder_started_at_any_time_tells_the_same(books: Books) -> None:
    whole = looked(books)
    steps: list[Callable[[], None]] = [
        lambda: books.open("run", promised=4),
        lambda: books.batch("run", 8),
        lambda: books.open("other", promised=0),
        lambda: books.batch("run", 0),
        lambda: books.batch("other", 0),
        lambda: books.batch("run", 4),
        lambda: books.promise("other", 0, 4),
        lambda: books.promise("run", 4, 10),
        lambda: books.close("run"),
    ]
    for step in steps:
        step()
        whole.look()
        anew = looked(books)
        for run in ("run", "other"):
            assert json.dumps(told(anew, run)) == json.dumps(told(whole, run))
    assert names(told(whole, "run"))[-1] == "stop"


@pytest.mark.parametrize("seed", range(12))
def test_documents_of_several_streams_come_in_the_same_order_whenever_they_are_composed(
    books: Books, seed: int
) -> None:
    start = json.dumps({"uid": "run", "recipes": []}).encode()
    books.commit(control=[(RunOpen(1, "run", "processed", start), None)])
    steps: list[dict[str, Any]] = []
    for name in ("a", "b"):
        specs = [Recipe(name, "columns", name, {"columns": [name]}).spec()]
        stream = StreamOpen(2, "run", name, "cfg", 4, [InputSpec(name, (), "<f8")], specs)
        books.commit(control=[(stream, None)])
        for first in (0, 4, 8):
            arrays, payload = pack([Piece(name, "nav", name, np.zeros(4))])
            row = BatchRow("run", name, "cfg", first, 4, bytes(4), [], 1, "w", arrays, bytes(payload))
            steps += [{"batches": [row]}, {"control": [(Expect(3, "run", name, first, first + 4, []), None)]}]
    draw = random.Random(seed)
    draw.shuffle(steps)
    sometimes = looked(books)
    for step in steps:
        books.commit(**step)
        if draw.random() < 0.5:
            sometimes.look()
    sometimes.look()
    documents = told(sometimes, "run")
    assert names(documents).count("event_page") == 6
    assert documents == told(looked(books), "run")


def test_frames_that_came_and_were_never_promised_are_in_no_document(books: Books) -> None:
    recorder = looked(books)
    books.open("run", promised=3)
    for first in (0, 4):
        books.batch("run", first)
        recorder.look()
    assert names(told(recorder, "run")) == ["start"]
    books.close("run", total=3)
    recorder.look()
    documents = told(recorder, "run")
    assert column(documents, "frame") == [0, 1, 2]
    assert documents[-1][1]["frames"]["pilc"]["live"] == 3


def test_a_run_that_came_and_went_between_two_looks_is_whole(books: Books) -> None:
    recorder = looked(books)
    books.open("run")
    for first in (0, 4, 8):
        books.batch("run", first)
    books.close("run")
    recorder.look()
    assert column(told(recorder, "run"), "frame") == list(range(TOTAL))


def test_what_was_done_under_former_recipes_is_told_when_its_stream_is_opened_anew(books: Books) -> None:
    other = Recipe("where", "columns", "elsewhere")
    books.open("run")
    books.batch("run", 0)
    recorder = looked(books)
    start = {"uid": "run", "recipes": []}
    opened = RunOpen(1, "run", processed_uid("run", [POSITIONS, other]), json.dumps(start).encode())
    books.commit(control=[(opened, None)])
    recorder.look()
    books.commit(control=[(books.stream("run"), None)])
    books.promise("run", 0, TOTAL)
    recorder.look()
    assert column(told(recorder, "run"), "frame") == [0, 1, 2, 3]
    assert told(looked(books), "run") == told(recorder, "run")


def test_a_run_long_gone_from_memory_is_composed_again_when_asked_for(books: Books) -> None:
    books.open("run")
    for first in (0, 4, 8):
        books.batch("run", first)
    books.close("run")
    recorder = looked(books)
    before = told(recorder, "run")
    recorder.runs.clear()
    assert told(recorder, processed_uid("run", [POSITIONS])) == before


def test_a_run_reduced_anew_by_other_recipes_is_another_run(books: Books) -> None:
    other = Recipe("where", "columns", "pilc", {"columns": ["pilc_x"]})
    books.open("run")
    books.batch("run", 0)
    recorder = looked(books)
    books.open("run", other)
    books.batch("run", 0, other)
    recorder.look()
    assert list(recorder.runs) == [processed_uid("run", [other])]
    assert told(recorder, "run")[1][1]["name"] == "where"


def test_a_run_that_cannot_be_composed_keeps_no_other_from_it(books: Books, caplog: pytest.LogCaptureFixture) -> None:
    misfit = Recipe("positions", "columns", "pilc", {"columns": ["pilc_z"]})
    books.open("good")
    books.open("bad", misfit)
    recorder = looked(books)
    books.batch("bad", 0, misfit)
    books.batch("good", 0)
    recorder.look()
    assert "event_page" in names(told(recorder, "good"))
    found = answer(recorder, Fetch(1, -1, [Cursor("bad", 0)], 10, 0))
    assert "pilc_z is no scalar here" in found.parts[0].fault
    assert "run bad has no processed documents" in caplog.text


def test_a_session_gets_what_comes_after_its_cursor_and_the_runs_that_are_new_to_it(books: Books) -> None:
    books.open("old")
    recorder = looked(books)
    newest = answer(recorder, Fetch(1, -1, [], 10, 0)).newest
    books.open("new")
    books.batch("new", 0)
    recorder.look()
    (part,) = answer(recorder, Fetch(2, newest, [], 10, 0)).parts
    assert (part.run, part.first, names([unpack(each) for each in part.documents])) == (
        "new",
        0,
        ["start", "descriptor", "event_page"],
    )
    (part,) = answer(recorder, Fetch(3, part.number, [Cursor(part.processed, 1)], 1, 0)).parts
    assert (part.first, names([unpack(each) for each in part.documents])) == (1, ["descriptor"])
    assert answer(recorder, Fetch(4, part.number, [Cursor(part.processed, 3)], 10, 0)).parts == []


def test_finished_runs_leave_memory_once_the_catalog_has_them(books: Books) -> None:
    recorder = looked(books)
    for number in range(20):
        books.open(f"run-{number}")
        books.close(f"run-{number}")
        recorder.look()
    assert len(recorder.runs) == 20
    recorder.forget_finished([])
    assert len(recorder.runs) == 20
    recorder.forget_finished(list(recorder.runs))
    assert len(recorder.runs) == 16
    told = answer(recorder, Fetch(1, 0, [], 500, 0)).parts  # by a session that was held up since before the first
    assert [part.run for part in told] == [f"run-{number}" for number in range(20)]
    assert all(part.complete and names([unpack(each) for each in part.documents])[-1] == "stop" for part in told)


def test_the_journal_outlives_its_process(tmp_path: Path) -> None:
    first = Journal(tmp_path / "recorder.db")
    first.add("run")
    first.close()
    second = Journal(tmp_path / "recorder.db")
    assert second.written == {"run"}
    second.close()


# --- the whole way ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pool(shared_catalog: Catalog, files: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    def recorder(endpoints: Endpoints, ledger: Path) -> list[str]:
        settings = {
            "bind": endpoints.recorder,
            "sink": endpoints.sink,
            "ledger": str(ledger),
            "catalog": shared_catalog.uri,
            "api_key_file": str(shared_catalog.api_key_file),
        }
        return [sys.executable, "-m", "haltere.callbacks.recorder", json.dumps(settings)]

    folder = tmp_path_factory.mktemp("pool")
    with Pool.local(1, directory=folder, nexus=files / "nexus", roots=[files], recorder=recorder) as made:
        yield made


@pytest.fixture
def session(pool: Pool) -> Iterator[tuple[Dispatcher, Follower, list[tuple[str, dict[str, Any]]]]]:
    dispatcher = Dispatcher(pool.endpoints.sink, recipes=[POSITIONS])
    follower = Follower(pool.endpoints.recorder)
    heard: list[tuple[str, dict[str, Any]]] = []
    follower.subscribe(lambda name, doc: heard.append((name, doc)))
    yield dispatcher, follower, heard
    dispatcher.close()
    follower.close()


def in_catalog(catalog: Catalog, uid: str) -> Any:
    """Return the processed run when the catalog has it, complete."""
    until, pause = monotonic() + 30, threading.Event()
    while monotonic() < until:
        try:
            run = catalog.processed[uid]
        except KeyError:
            run = None
        if run is not None and run.metadata.get("stop"):
            return run
        pause.wait(0.2)  # every question costs the server, which has the run to write
    raise AssertionError(f"run {uid} isn't in the catalog")


def column(documents: list[tuple[str, dict[str, Any]]], name: str) -> list[Any]:
    return [value for kind, doc in documents if kind == "event_page" for value in doc["data"][name]]


def test_a_measured_run_is_reduced_followed_and_recorded(session: Any, measured: Any, shared_catalog: Catalog) -> None:
    dispatcher, follower, heard = session
    scan = measured(frames=100, per_file=100)
    for name, doc in scan.documents():
        dispatcher(name, doc)
    assert dispatcher.wait_acknowledged(scan.uid, 20)
    stop = follower.wait(scan.uid, 30)
    assert stop["frames"]["pilc"]["expected"] == 100
    assert column(heard, "frame") == list(range(100))
    assert column(heard, "pilc_x") == scan.x.tolist()
    run = in_catalog(shared_catalog, processed_uid(scan.uid, [POSITIONS]))
    assert run.start["raw_uid"] == scan.uid
    np.testing.assert_array_equal(run["positions"]["pilc_y"].read(), scan.y)
    np.testing.assert_array_equal(run["positions"]["frame"].read(), np.arange(100))


def test_a_recorder_that_is_killed_repeats_nothing_and_forgets_nothing(
    pool: Pool, session: Any, measured: Any, shared_catalog: Catalog
) -> None:
    dispatcher, follower, heard = session
    scan = measured(frames=200, per_file=200)
    documents = list(scan.documents(step=20))
    for name, doc in documents[:20]:
        dispatcher(name, doc)
    until = monotonic() + 30
    while not column(heard, "frame"):
        assert monotonic() < until
    pool.kill("recorder", signal.SIGKILL)
    for name, doc in documents[20:]:
        dispatcher(name, doc)
    assert follower.wait(scan.uid, 60)["exit_status"] == "success"
    assert column(heard, "frame") == list(range(200))
    assert names(heard).count("start") == names(heard).count("stop") == 1
    run = in_catalog(shared_catalog, processed_uid(scan.uid, [POSITIONS]))
    np.testing.assert_array_equal(run["positions"]["pilc_x"].read(), scan.x)


def test_a_sink_that_is_killed_is_told_again(pool: Pool, session: Any, measured: Any) -> None:
    dispatcher, follower, heard = session
    scan = measured(frames=60, per_file=60)
    documents = list(scan.documents(step=10))
    for name, doc in documents[:6]:
        dispatcher(name, doc)
    pool.kill("sink", signal.SIGKILL)
    for name, doc in documents[6:]:
        dispatcher(name, doc)
    assert dispatcher.wait_acknowledged(scan.uid, 30)
    assert follower.wait(scan.uid, 60)["frames"]["pilc"]["expected"] == 60
    assert column(heard, "frame") == list(range(60))


def test_a_dispatcher_without_a_sink_holds_nobody_up(measured: Any, tmp_path: Path) -> None:
    dispatcher = Dispatcher(f"ipc://{tmp_path}/nobody", recipes=[POSITIONS])
    scan = measured()
    for name, doc in scan.documents():
        dispatcher(name, doc)
    assert not dispatcher.wait_acknowledged(scan.uid, 0.05)
    dispatcher.close(timeout=0.05)
