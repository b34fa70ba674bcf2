"""Results of one reduction go into the next, bit by bit, and only those that are good."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from haltere.workers.errors import PoolError
from haltere.workers.ledger.reader import LedgerReader
from haltere.workers.ledger.rows import BatchRow
from haltere.workers.sink.taking_over import take_over
from haltere.workers.wire.messages import LOST, QUARANTINED, Ack, RunOpen

from ..flying import EIGER, PILC, RUN, START, control, result
from .test_process import Bench, Peer

TARGET = "33333333-cccc"
FRAMES = 18
LAST = 2  # frames in the last batch


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    bench.close()


def opened(bench: Bench, batch: int = EIGER.batch) -> Peer:
    """Return the dispatcher, after a run whose frames 5 and 9 have no result, and the opening of another reduction."""
    dispatcher, worker = bench.peer("dispatcher"), bench.peer("worker")
    messages = control(FRAMES)
    for message in messages:
        dispatcher.tell(message)
    bench.until(lambda: [each for each in dispatcher.hear() if isinstance(each, Ack)])
    for stream in (EIGER, PILC):
        for first in range(0, FRAMES, 4):
            bad = {4: [0, QUARANTINED, 0, 0], 8: [0, LOST, 1, 1]}.get(first) if stream is EIGER else None
            worker.tell(*result(stream, first, min(4, FRAMES - first), status=bad, const=first == 0))
    bench.until(lambda: bench.row().completed)
    start = {**START, "supersedes": "22222222-bbbb"}
    serial = messages[-1].serial
    dispatcher.tell(RunOpen(serial + 1, TARGET, "44444444-dddd", json.dumps(start).encode()))
    for number, stream in enumerate((EIGER, PILC), serial + 2):
        dispatcher.tell(msgspec.structs.replace(stream, run=TARGET, serial=number, total=FRAMES, batch=batch))
    bench.until(lambda: [each for each in dispatcher.hear() if isinstance(each, Ack) and each.serial == serial + 3])
    return dispatcher


def taken(bench: Bench) -> int:
    """Take over, while the sink works; return how many frames were."""
    found: list[int] = []
    fault: list[PoolError] = []

    def run() -> None:
        try:
            found.append(take_over(bench.folder / "ledger.db", RUN, TARGET, bench.sink.endpoint, {"eiger": [4]}))
        except PoolError as error:
            fault.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    bench.until(lambda: not thread.is_alive())
    if fault:
        raise fault[0]
    return found[0]


def rows(bench: Bench, run: str, stream: str) -> dict[int, BatchRow]:
    reader = LedgerReader(bench.folder / "ledger.db")
    found = {row.first: row for row in reader.batches(run, stream, EIGER.cfg if stream == "eiger" else PILC.cfg)}
    reader.close()
    return found


def test_batches_are_taken_over_to_the_bit_but_for_those_that_are_to_be_done_again(bench: Bench) -> None:
    opened(bench)
    assert taken(bench) == (FRAMES - 4) + FRAMES
    for stream, wanted in (("eiger", [0, 8, 12, 16]), ("pilc", [0, 4, 8, 12, 16])):
        before, after = rows(bench, RUN, stream), rows(bench, TARGET, stream)
        assert sorted(after) == wanted
        for first, row in after.items():
            one, other = before[first], row
            assert (one.status, one.worker, one.token, one.n) == (other.status, other.worker, other.token, other.n)
            assert one.reasons == other.reasons
            assert (one.arrays, bytes(one.payload)) == (other.arrays, bytes(other.payload))
    reader = LedgerReader(bench.folder / "ledger.db")
    consts = [
        [(each.spec, bytes(each.payload)) for each in reader.consts(run, "eiger", EIGER.cfg)] for run in (RUN, TARGET)
    ]
    assert consts[0] == consts[1] != []
    reader.close()


def test_what_was_taken_over_is_not_taken_again(bench: Bench) -> None:
    opened(bench)
    assert taken(bench) > 0
    assert taken(bench) == 0
    assert bench.row(TARGET).duplicates == 0


def test_nothing_is_taken_over_into_other_batches(bench: Bench) -> None:
    opened(bench, batch=8)
    assert taken(bench) == 0
