"""What the catalog keeps of a raw run is enough to tell the pool of it once more."""

from __future__ import annotations

from typing import Any

import pytest

from haltere.callbacks.dispatch_core import DispatchCore
from haltere.callbacks.reduction import Reduction
from haltere.callbacks.replayed import read_run, spread
from haltere.callbacks.rewriting import Rewriting
from haltere.workers.errors import FileError, SettingsError
from haltere.workers.files.frames import FrameReader
from haltere.workers.recipes import Recipe
from haltere.workers.wire.messages import Expect, FileSpan, RunClose, RunOpen, StreamOpen, Welcome, decode

PONI = {"dist": 0.1, "poni1": 0.0004, "poni2": 0.0004, "pixel1": 1e-4, "pixel2": 1e-4}
RECIPES = (Recipe("xrd", "azimuthal", "eiger", {"poni": PONI, "bins": 16}), Recipe("positions", "columns", "pilc"))


def told(documents: Any, reduction: Reduction | None = None) -> list[Any]:
    """Return what the pool is told of these documents."""
    core = DispatchCore(1, RECIPES, reduction=reduction)
    for name, doc in documents:
        core.document(name, doc)
    core.impatient(1e9)
    core.heard(Welcome(1, 7, 5000, 500), 1e9)
    return [decode(data) for data in core.outgoing(1e9)]


def spans(messages: list[Any]) -> set[tuple[str, str, int, int, int]]:
    """Return where each frame is that the messages promise."""
    files = [span for each in messages if isinstance(each, Expect) for span in each.files]
    return {(s.key, s.uri, s.first + k, 1, s.offset + k) for s in files for k in range(s.n)}


@pytest.fixture(scope="module")
def recorded(measured: Any, shared_catalog: Any) -> tuple[Any, list[Any], Any]:
    """Return a run of two files, its documents, and the catalog's client of it."""
    run = measured()
    documents = list(run.documents())
    write = Rewriting(lambda: shared_catalog.raw, batch_size=20)
    for name, doc in documents:
        write(name, dict(doc))
    return run, documents, shared_catalog.raw[run.uid]


def test_the_pool_is_told_the_same_as_when_the_run_was_measured(recorded: Any) -> None:
    run, documents, client = recorded
    with FrameReader([run.folder]) as reader:
        again = read_run(client, length=reader.length)
    assert again.promised() == {"eiger": 24, "pilc": 24}
    before, after = told(documents), told([*again.head(), *again.tail()])
    assert spans(after) == spans(before)
    opened = [[each for each in messages if isinstance(each, StreamOpen)] for messages in (before, after)]
    assert sorted(opened[0], key=str) == sorted(opened[1], key=str)
    assert after[-1].totals == before[-1].totals
    assert isinstance(after[-1], RunClose)


def test_a_later_reduction_has_a_name_of_its_own_and_waits_for_no_live_frame(recorded: Any) -> None:
    run, _, client = recorded
    with FrameReader([run.folder]) as reader:
        again = read_run(client, length=reader.length)
    reduction = Reduction(run.uid, "job", "new", RECIPES, again.promised(), {"pilc": 6}, "old", "owed")
    messages = told([*again.head(), *again.tail()], reduction)
    assert {each.run for each in messages} == {"job"}
    (opened,) = [each for each in messages if isinstance(each, RunOpen)]
    assert opened.processed == "new"
    assert b'"supersedes":"old"' in opened.start
    streams = {each.stream: each for each in messages if isinstance(each, StreamOpen)}
    assert {name: (each.total, each.batch) for name, each in streams.items()} == {"eiger": (24, 8), "pilc": (24, 6)}
    assert streams["eiger"].live is not None  # its frames count as backfilled


def test_what_the_ledger_knows_goes_before_what_the_catalog_does(recorded: Any) -> None:
    _, documents, client = recorded
    known = [span for each in told(documents) if isinstance(each, Expect) for span in each.files]
    more = FileSpan("eiger_image", "file://localhost/data/more.h5", "/entry/data/data", 24, 6, 0)
    assert read_run(client, known=[*known, more]).promised() == {"eiger": 30, "pilc": 24}


def test_a_run_that_never_ended_is_ended_for_the_pool(shared_catalog: Any, measured: Any) -> None:
    run = measured(per_file=24)
    write = Rewriting(lambda: shared_catalog.raw, batch_size=1)
    for name, doc in run.documents():
        if name != "stop":
            write(name, dict(doc))
    again = read_run(shared_catalog.raw[run.uid])
    assert again.stop is None
    name, stop = list(again.tail())[-1]
    assert (name, stop["exit_status"], stop["reason"]) == ("stop", "fail", "the session ended before the run did")


def test_a_processed_run_is_refused_with_the_raw_one_s_name(shared_catalog: Any, flown: Any) -> None:
    write = Rewriting(lambda: shared_catalog.processed, batch_size=20)
    uid = ""
    for name, doc in flown.processed():
        uid = uid or doc["uid"]
        write(name, dict(doc))
    with pytest.raises(SettingsError, match=f"of raw run {flown.raw_uid}: name that one"):
        read_run(shared_catalog.processed[uid])


@pytest.mark.parametrize(
    ("lengths", "total", "expected"),
    [
        ([10, 10, 4], 24, [10, 10, 4]),
        ([10, 10, 9], 24, [10, 10, 4]),  # the detector was ahead of the scan
        ([6, 9, 9], 24, [6, 9, 9]),
        ([10, None, 4], 24, [10, 10, 4]),
        ([None, 10, None], 24, [10, 10, 4]),
        ([10, 3, 4], 24, [10, 10, 4]),  # the second was cut
        ([10, 10, 1], 24, [10, 10, 4]),  # the last was
        ([7, 7, None], 40, [7, 7, 26]),
    ],
)
def test_frames_are_where_the_files_lengths_say(lengths: list[int | None], total: int, expected: list[int]) -> None:
    uris = [f"file:///{number}.h5" for number in range(len(lengths))]
    found = spread("k", uris, "/d", total, lambda uri, _: lengths[uris.index(uri)])
    assert [span.n for span in found] == expected
    assert [span.first for span in found] == [sum(expected[:at]) for at in range(len(expected))]


def test_files_whose_lengths_cannot_be_told_are_named() -> None:
    with pytest.raises(FileError, match=r"k: 24 frames lie in 3 files, of which a\.h5, b\.h5, c\.h5 can't be read"):
        spread("k", ["file:///a.h5", "file:///b.h5", "file:///c.h5"], "/d", 24, None)
