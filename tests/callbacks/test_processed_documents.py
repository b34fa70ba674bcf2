"""A processed run's documents: valid, in the order of frames, each once, whatever the order of commits."""

from __future__ import annotations

import itertools
import random
from typing import Any

import numpy as np
import pytest
from event_model import DocumentNames, schema_validators
from hypothesis import given
from hypothesis import strategies as st

from haltere.callbacks.processed_documents import CHUNK_BYTES, Named, ProcessedDocuments
from haltere.callbacks.processed_keys import MOST_INTERVALS, frames
from haltere.workers import recipes as recipe_rules
from haltere.workers.errors import ReductionError
from haltere.workers.ledger.rows import BatchRow, ConstRow
from haltere.workers.payload import Piece, pack
from haltere.workers.recipes import Recipe, cfg_hash
from haltere.workers.reducers.base import Output
from haltere.workers.wire.messages import BACKFILLED, LIVE, LOST, QUARANTINED, InputSpec, StreamOpen

PONI = {"dist": 0.1, "poni1": 0.0004, "poni2": 0.0004, "pixel1": 1e-4, "pixel2": 1e-4}
XRD = Recipe("xrd", "azimuthal", "eiger", {"poni": PONI, "bins": 4})
POSITIONS = Recipe("positions", "columns", "pilc")
EIGER = StreamOpen(
    2, "raw", "eiger", cfg_hash([XRD.spec()]), 4, [InputSpec("eiger_image", (8, 8), "<u2")], [XRD.spec()]
)
PILC = StreamOpen(
    3,
    "raw",
    "pilc",
    cfg_hash([POSITIONS.spec()]),
    5,
    [InputSpec(key, (), "<f8") for key in ("pilc_x", "pilc_y", "pilc_time")],
    [POSITIONS.spec()],
)
START = {
    "uid": "raw",
    "time": 1.0,
    "scan_id": 17,
    "plan_name": "fly_grid",
    "shape": [2, 6],
    "hints": {"dimensions": [[["pilc_y"], "primary"], [["pilc_x"], "primary"]], "gridding": "rectilinear"},
    "recipes": [
        {"name": "xrd", "reducer": "azimuthal", "source": "eiger", "params": XRD.params},
        {"name": "positions", "reducer": "columns", "source": "pilc", "params": {}},
    ],
}
TOTAL = 12
NEXUS = "/data/scan 00017.nxs"


def row(stream: StreamOpen, first: int, *, seq: int = 0, status: bytes | None = None) -> BatchRow:
    """Return a batch whose every value says its frame."""
    stop = min(first + stream.batch, TOTAL)
    frames = np.arange(first, stop, dtype="f8")
    if stream is PILC:
        pieces = [Piece("positions", "nav", key, frames + add) for key, add in (("pilc_x", 100), ("pilc_y", 200))]
        pieces.append(Piece("positions", "nav", "pilc_time", frames / 10))
    else:
        patterns = np.zeros((len(frames), 4), "f4")
        pieces = [Piece("xrd", "nav", "intensity", patterns), Piece("xrd", "nav", "total", frames)]
    specs, payload = pack(pieces)
    states = status or bytes([LIVE]) * len(frames)
    reasons = [(first + i, "because") for i, each in enumerate(states) if each >= QUARANTINED]
    return BatchRow(
        "raw", stream.stream, stream.cfg, first, len(frames), states, reasons, 1, "w", specs, bytes(payload),
        1000.0 + seq, seq,
    )  # fmt: skip


def radial() -> list[ConstRow]:
    (spec,), payload = pack([Piece("xrd", "const", "two_theta", np.array([1.0, 2.0, 3.0, 4.0]))])
    return [ConstRow("raw", "eiger", EIGER.cfg, spec, bytes(payload))]


def account(expected: int = TOTAL) -> dict[str, Any]:
    one = {"expected": expected, "live": expected, "backfilled": 0, "quarantined": 0, "lost": 0}
    full = {**one, "intervals": {"live": [[0, expected]], "backfilled": [], "quarantined": [], "lost": []}}
    return {"eiger": {**full, "reasons": {}}, "pilc": {**full, "reasons": {}}}


def composer(
    nexus: str | None = NEXUS, *, streams: tuple[StreamOpen, ...] = (EIGER, PILC), promised: int = TOTAL
) -> ProcessedDocuments:
    made = ProcessedDocuments("raw", "processed", START, 999.0, nexus)
    for stream in streams:
        made.open(stream)
        made.promise(stream.stream, promised)
    return made


def rows() -> list[BatchRow]:
    firsts = [(EIGER, first) for first in range(0, TOTAL, 4)] + [(PILC, first) for first in range(0, TOTAL, 5)]
    return [row(stream, first, seq=seq) for seq, (stream, first) in enumerate(firsts)]


def composed(batches: list[BatchRow], total: int = TOTAL) -> list[Named]:
    made = composer(promised=total)
    found = made.start()
    for each in batches:
        found += made.batch(each, radial() if each.stream == "eiger" else ())
    return found + made.complete(2000.0, "success", account(total))


def column(documents: list[Named], recipe: str, name: str) -> list[Any]:
    (uid,) = [doc["uid"] for kind, doc in documents if kind == "descriptor" and doc["name"] == recipe]
    pages = [doc for kind, doc in documents if kind == "event_page" and doc["descriptor"] == uid]
    return list(itertools.chain.from_iterable(page["data"][name] for page in pages))


def only(documents: list[Named], kind: str) -> dict[str, Any]:
    (found,) = [doc for name, doc in documents if name == kind]
    return found


def test_every_document_is_valid() -> None:
    for name, doc in composed(rows()):
        schema_validators[DocumentNames[name]].validate(doc)


def test_a_run_starts_by_saying_what_it_was_made_of_and_how() -> None:
    name, start = composed(rows())[0]
    assert name == "start"
    assert (start["uid"], start["raw_uid"], start["parent_uids"]) == ("processed", "raw", ["raw"])
    assert start["analysis_stage"] == "reduced"
    assert (start["scan_id"], start["shape"]) == (17, [2, 6])
    assert start["provenance"]["cfg"] == {"xrd": EIGER.cfg, "positions": PILC.cfg}
    assert start["hints"]["dimensions"] == [[["pilc_y"], "positions"], [["pilc_x"], "positions"]]


def test_documents_come_in_the_order_of_frames_with_the_positions_of_each() -> None:
    documents = composed(rows())
    assert column(documents, "xrd", "frame") == list(range(TOTAL))
    assert column(documents, "xrd", "pilc_x") == [100.0 + frame for frame in range(TOTAL)]
    assert column(documents, "xrd", "pilc_y") == [200.0 + frame for frame in range(TOTAL)]
    assert column(documents, "xrd", "total") == [float(frame) for frame in range(TOTAL)]
    assert column(documents, "positions", "pilc_time") == [frame / 10 for frame in range(TOTAL)]


def test_pages_are_the_batches() -> None:
    pages = [doc["seq_num"] for name, doc in composed(rows()) if name == "event_page" and "total" in doc["data"]]
    assert pages == [[1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11, 12]]


def test_arrays_are_read_from_the_nexus_file() -> None:
    documents = composed(rows())
    resource = only(documents, "stream_resource")
    assert resource["uri"] == "file://localhost/data/scan%2000017.nxs"
    assert resource["parameters"]["dataset"] == "/entry/xrd/intensity"
    datums = [doc for name, doc in documents if name == "stream_datum"]
    assert [doc["indices"] for doc in datums] == [{"start": n, "stop": n + 4} for n in (0, 4, 8)]
    assert {doc["stream_resource"] for doc in datums} == {resource["uid"]}


def test_a_pattern_s_axis_stands_in_the_descriptor() -> None:
    (descriptor,) = [doc for name, doc in composed(rows()) if name == "descriptor" and doc["name"] == "xrd"]
    assert descriptor["configuration"]["xrd"]["data"]["two_theta"] == [1.0, 2.0, 3.0, 4.0]
    assert descriptor["configuration"]["xrd"]["data"]["policy"] == "drop"
    assert descriptor["data_keys"]["intensity"]["dims"] == ["two_theta"]


def test_without_a_nexus_file_there_are_scalar_columns_only() -> None:
    made = composer(None)
    found = made.start()
    for each in rows():
        found += made.batch(each)
    assert {name for name, _ in found} == {"start", "descriptor", "event_page"}


def test_a_hole_holds_back_what_follows_it() -> None:
    made = composer(streams=(EIGER,))
    assert made.batch(row(EIGER, 4)) == []
    names = [name for name, _ in made.batch(row(EIGER, 0))]
    assert names.count("event_page") == 2


def test_a_frame_waits_for_its_position() -> None:
    made = composer()
    assert made.batch(row(EIGER, 0)) == []
    found = made.batch(row(PILC, 0))  # of frames 0 to 4
    assert column(found, "xrd", "pilc_x") == [100.0, 101.0, 102.0, 103.0]
    assert made.batch(row(EIGER, 4)) == []  # frames 4 to 7


def test_a_frame_without_a_position_gets_none_at_the_end() -> None:
    documents = composed([each for each in rows() if each.stream == "eiger" or each.first < 10])
    assert column(documents, "xrd", "frame") == list(range(TOTAL))
    np.testing.assert_array_equal(column(documents, "xrd", "pilc_x")[10:], [np.nan, np.nan])


def test_what_could_not_be_reduced_is_nan_with_a_status() -> None:
    bad = row(EIGER, 4, status=bytes([LIVE, BACKFILLED, QUARANTINED, LOST]))
    documents = composed([bad if each.key == bad.key else each for each in rows()])
    assert column(documents, "xrd", "status")[4:8] == [0, 1, 2, 3]
    np.testing.assert_array_equal(column(documents, "xrd", "total")[4:9], [4.0, 5.0, np.nan, np.nan, 8.0])


def test_a_batch_of_which_nothing_could_be_reduced_is_nan() -> None:
    full = row(EIGER, 4, status=bytes([LOST] * 4))
    empty = BatchRow(*full.key, 4, full.status, full.reasons, 1, "w", [], b"", 1004.0, 4)
    documents = composed([empty if each.key == empty.key else each for each in rows()])
    assert np.isnan(column(documents, "xrd", "total")[4:8]).all()


def test_a_batch_waits_until_its_last_frame_is_promised() -> None:
    made = composer(streams=(EIGER,), promised=5)
    names = [name for name, _ in made.batch(row(EIGER, 0)) + made.batch(row(EIGER, 4))]
    assert names.count("event_page") == 1
    assert made.promise("eiger", 7) == []
    found = made.promise("eiger", 8)
    assert [doc["data"]["frame"] for name, doc in found if name == "event_page"] == [[4, 5, 6, 7]]


@pytest.mark.parametrize("streams", [(EIGER,), (EIGER, PILC)])
@pytest.mark.parametrize("total", [0, 3, 8, 10])
def test_frames_that_were_never_promised_are_left_out(streams: tuple[StreamOpen, ...], total: int) -> None:
    made = composer(streams=streams, promised=total)
    documents = made.start()
    for each in rows():  # the detector was ahead when the run was closed
        documents += made.batch(each) if each.stream in {stream.stream for stream in streams} else []
    documents += made.close({stream.stream: total for stream in streams})
    frames = [frame for name, doc in documents if name == "event_page" for frame in doc["data"]["frame"]]
    assert sorted(frames) == sorted([*range(total)] * len(streams))
    datums = [doc["indices"] for name, doc in documents if name == "stream_datum"]
    assert max((each["stop"] for each in datums), default=0) == total
    ((_, stop),) = made.complete(2000.0, "abort", account(total))
    assert stop["frames"]["eiger"]["expected"] == total
    assert all(n == total for n in stop["num_events"].values())


def test_a_stream_whose_total_was_left_unsaid_ends_where_its_promises_do() -> None:
    made = composer(streams=(EIGER,), promised=6)
    documents = [each for batch in rows() if batch.stream == "eiger" for each in made.batch(batch)]
    documents += made.close({})
    assert column(documents, "xrd", "frame") == list(range(6))


def test_the_last_document_says_what_became_of_every_frame() -> None:
    name, stop = composed(rows())[-1]
    assert name == "stop"
    assert stop["exit_status"] == "success"
    assert stop["num_events"] == {"xrd": 12, "positions": 12}
    assert stop["frames"]["eiger"]["intervals"]["live"] == [[0, 12]]


def test_a_run_of_which_nothing_was_reduced_starts_and_stops() -> None:
    made = ProcessedDocuments("raw", "processed", {**START, "recipes": []}, 999.0, NEXUS)
    assert [name for name, _ in made.start() + made.complete(1.0, "abort", {}, "stopped by hand")] == ["start", "stop"]


def test_a_batch_that_comes_again_or_is_another_recipes_changes_nothing() -> None:
    made = composer(streams=(EIGER,))
    made.batch(row(EIGER, 0))
    assert made.batch(row(EIGER, 0)) == []
    other = row(EIGER, 4)
    foreign = BatchRow("raw", "eiger", "0" * 16, 4, 4, other.status, [], 1, "w", other.arrays, other.payload)
    assert made.batch(foreign) == []


def test_an_output_may_not_take_a_column_s_name() -> None:
    recipe = Recipe("positions", "columns", "pilc")
    stream = StreamOpen(2, "raw", "pilc", "c", 4, [InputSpec("frame", (), "<f8")], [recipe.spec()])
    with pytest.raises(ReductionError, match="frame can't be the name of an output"):
        composer(streams=(stream,))


@given(st.integers(0, 2**32))
def test_any_order_of_commits_gives_every_frame_once_and_the_same_order_the_same_documents(seed: int) -> None:
    batches = rows()
    random.Random(seed).shuffle(batches)
    documents = composed(batches)
    assert documents == composed(batches)
    for recipe in ("xrd", "positions"):
        assert column(documents, recipe, "frame") == list(range(TOTAL))
    assert column(documents, "xrd", "pilc_x") == [100.0 + frame for frame in range(TOTAL)]
    uids = [doc["uid"] for name, doc in documents if name != "event_page"]
    uids += itertools.chain.from_iterable(doc["uid"] for name, doc in documents if name == "event_page")
    assert len(set(uids)) == len(uids)


def test_what_waits_is_counted_in_frames() -> None:
    made = composer()
    made.start()
    assert made.waiting == 0
    made.batch(row(EIGER, 4))
    made.batch(row(EIGER, 8))
    assert made.waiting == 8
    made.batch(row(PILC, 5))
    assert made.waiting == 13
    made.batch(row(EIGER, 0))
    made.batch(row(PILC, 0))
    made.batch(row(PILC, 10))
    assert made.waiting == 0


def test_hints_without_a_recipe_of_positions_are_passed_on_as_they_are() -> None:
    known: Any = START["recipes"]
    for start in ({**START, "recipes": known[:1]}, {**START, "recipes": None}):
        ((_, doc),) = ProcessedDocuments("raw", "processed", start, 999.0, NEXUS).start()
        assert doc["hints"] == START["hints"]
    start = {**START, "recipes": [*known, "nonsense", ["name"], {"reducer": "columns"}, {"name": "alone"}]}
    ((_, doc),) = ProcessedDocuments("raw", "processed", start, 999.0, NEXUS).start()
    assert doc["provenance"]["recipes"] == [*known, {"name": "alone"}]
    assert doc["provenance"]["cfg"] == {"xrd": EIGER.cfg, "positions": PILC.cfg, "alone": ""}


@pytest.mark.parametrize(("hints", "kept"), [(None, {}), ("nonsense", {}), ({"gridding": "rectilinear"}, None)])
def test_hints_that_name_no_dimensions_are_passed_on_as_they_are(hints: Any, kept: Any) -> None:
    made = ProcessedDocuments("raw", "processed", {**START, "hints": hints}, 999.0, NEXUS)
    ((_, start),) = made.start()
    assert start.get("hints", {}) == (hints if kept is None else kept)


def test_a_recipe_of_before_that_is_none_any_more_makes_no_run_fail() -> None:
    known: Any = START["recipes"]
    start = {**START, "recipes": [*known, {"name": "old", "reducer": "gone", "source": "eiger"}]}
    made = ProcessedDocuments("raw", "processed", start, 999.0, NEXUS)
    assert [kind for kind, _ in made.start()] == ["start"]


def test_an_account_beyond_what_a_document_holds_says_how_much_it_leaves_out() -> None:
    few = {"intervals": {"live": [[0, 1]] * MOST_INTERVALS}, "reasons": dict.fromkeys(range(MOST_INTERVALS), "why")}
    assert frames(few) == few
    many = {
        "intervals": {"live": [[0, 1]] * (MOST_INTERVALS + 2), "lost": [[1, 2]]},
        "reasons": dict.fromkeys(range(MOST_INTERVALS + 3), "why"),
    }
    said = frames(many)
    assert (said["intervals_left_out"], said["reasons_left_out"]) == ({"live": 2}, 3)
    assert [len(said["intervals"][name]) for name in ("live", "lost")] == [MOST_INTERVALS, 1]
    assert len(said["reasons"]) == MOST_INTERVALS


def const(name: str, values: Any, recipe: str = "xrd") -> ConstRow:
    (spec,), payload = pack([Piece(recipe, "const", name, np.asarray(values))])
    return ConstRow("raw", "eiger", EIGER.cfg, spec, bytes(payload))


def described(
    monkeypatch: pytest.MonkeyPatch, outputs: dict[str, Output], columns: dict[str, Output], consts: list[ConstRow]
) -> list[Named]:
    """Return the documents of four frames of a recipe ``xrd`` with these outputs, to which ``columns`` are joined."""
    monkeypatch.setattr(recipe_rules, "outputs", lambda spec, inputs: outputs if spec.name == "xrd" else columns)
    made = composer()
    status = bytes([LOST] * 4)
    positions = row(PILC, 0)
    empty = BatchRow("raw", "eiger", EIGER.cfg, 4, 4, status, [], 1, "w", [], b"", 1007.0, 7)
    first = BatchRow("raw", "eiger", EIGER.cfg, 0, 4, status, [], 1, "w", [], b"", 1004.0, 4)
    found = made.batch(first, consts)
    found += made.batch(positions)
    found += made.batch(row(PILC, 5))
    return found + made.batch(empty)


def test_a_descriptor_says_all_of_its_columns_arrays_and_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    outputs = {
        "total": Output("nav", (), "<f4", "counts"),
        "pilc_y": Output("nav", (), "<u2"),
        "pattern": Output("nav", (4,), "<f4", "", "", ("q",)),
        "q": Output("const", (4,), "<f8", "1/nm"),
    }
    columns = {name: Output("nav", (), "<f8", "um") for name in ("pilc_x", "pilc_y", "pilc_time")}
    consts = [
        const("q", [1.0, 2.0, 3.0, 4.0]),
        const("more", [5.0, 6.0]),
        const("table", [[1.0]]),
        const("policy", [1.0]),
        const("other", [1.0], "another"),
    ]
    documents = described(monkeypatch, outputs, columns, consts)
    (descriptor,) = [doc for name, doc in documents if name == "descriptor" and doc["name"] == "xrd"]
    schema_validators[DocumentNames["descriptor"]].validate(descriptor)
    column = {"source": "recipe:xrd", "shape": [], "object_name": "xrd"}
    whole = {**column, "dtype": "integer", "dtype_numpy": "<i8"}
    floating = {**column, "dtype": "number", "dtype_numpy": "<f8"}
    assert descriptor["data_keys"] == {
        "frame": {**whole, "long_name": "frame number"},
        "status": {**whole, "long_name": "0 live, 1 backfilled, 2 quarantined, 3 lost"},
        "pilc_x": {**floating, "source": "stream:pilc", "units": "um"},
        "total": {**floating, "units": "counts"},
        "pilc_y": whole,
        "pattern": {
            **column,
            "dtype": "array",
            "dtype_numpy": "<f4",
            "shape": [4],
            "external": "STREAM:",
            "dims": ["q"],
        },
    }
    assert (descriptor["run_start"], descriptor["time"]) == ("processed", 1004.0)
    assert descriptor["object_keys"] == {"xrd": list(descriptor["data_keys"])}
    assert descriptor["hints"] == {"xrd": {"fields": ["total", "pilc_y"]}}
    settings = descriptor["configuration"]["xrd"]
    assert settings["data"] == {
        "reducer": "azimuthal",
        "source": "eiger",
        "cfg": cfg_hash([XRD.spec()]),
        "policy": "drop",
        "q": [1.0, 2.0, 3.0, 4.0],
        "more": [5.0, 6.0],
    }
    assert settings["timestamps"] == dict.fromkeys(settings["data"], 1004.0)
    word = {"source": "recipe:xrd", "dtype": "string", "shape": []}
    axis = {"source": "recipe:xrd", "dtype": "array", "dtype_numpy": "<f8"}
    assert settings["data_keys"] == {
        **dict.fromkeys(("reducer", "source", "cfg", "policy"), word),
        "q": {**axis, "shape": [4], "units": "1/nm"},
        "more": {**axis, "shape": [2]},
    }
    pages = [doc for name, doc in documents if name == "event_page" and doc["descriptor"] == descriptor["uid"]]
    assert [page["seq_num"] for page in pages] == [[1, 2, 3, 4], [5, 6, 7, 8]]
    assert [page["time"] for page in pages] == [[1004.0] * 4, [1007.0] * 4]
    for page in pages:
        schema_validators[DocumentNames["event_page"]].validate(page)
        assert list(page["data"]) == ["frame", "status", "pilc_x", "total", "pilc_y"]
        assert page["timestamps"] == dict.fromkeys(page["data"], page["time"])
        assert page["data"]["pilc_y"] == [0] * 4, "its own"
        assert page["data"]["pilc_x"] == [100.0 + frame for frame in page["data"]["frame"]]


def test_arrays_are_read_in_chunks_of_a_few_megabytes_and_told_by_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = {"small": ((3, 5), "<f8"), "byte": ((1,), "|u1"), "none": ((0,), "<f8"), "huge": ((CHUNK_BYTES, 2), "<u2")}
    outputs = {name: Output("nav", shape, dtype) for name, (shape, dtype) in shapes.items()}
    documents = described(monkeypatch, outputs, {"pilc_x": Output("nav", (), "<f8")}, [])
    resources = {doc["data_key"]: doc for name, doc in documents if name == "stream_resource"}
    assert {name: doc["parameters"] for name, doc in resources.items()} == {
        name: {"dataset": f"/entry/xrd/{name}", "swmr": True, "chunk_shape": [n]}
        for name, n in (("small", CHUNK_BYTES // 120), ("byte", CHUNK_BYTES), ("none", 1), ("huge", 1))
    }
    datums = [doc for name, doc in documents if name == "stream_datum"]
    (descriptor,) = [doc["uid"] for name, doc in documents if name == "descriptor" and doc["name"] == "xrd"]
    assert {doc["descriptor"] for doc in datums} == {descriptor}
    assert len({doc["uid"] for doc in datums}) == 8
    for doc in resources.values():
        own = [each for each in datums if each["stream_resource"] == doc["uid"]]
        assert [(each["indices"], each["seq_nums"]) for each in own] == [
            ({"start": first, "stop": first + 4}, {"start": first + 1, "stop": first + 5}) for first in (0, 4)
        ]


def test_the_last_document_says_how_a_run_ended_and_where_its_arrays_are() -> None:
    made = composer(streams=(EIGER,), promised=0)
    made.batch(row(EIGER, 0))  # of frames that nobody promised
    ((name, stop),) = made.complete(2000.0, "abort", {"eiger": {}}, "stopped by hand", 3)
    assert name == "stop"
    assert stop.pop("uid") != composed([])[-1][1]["run_start"]
    assert stop == {
        "run_start": "processed",
        "time": 2000.0,
        "exit_status": "abort",
        "num_events": {},
        "frames": {"eiger": {"intervals": {}, "reasons": {}}},
        "duplicates": 3,
        "reason": "stopped by hand",
        "nexus": NEXUS,
    }
    ((_, plain),) = composer(None).complete(2000.0, "strange", {})
    assert (plain["exit_status"], plain["duplicates"]) == ("fail", 0)
    assert not {"reason", "nexus"} & set(plain)


def test_const_outputs_are_asked_for_until_they_came() -> None:
    made = composer()
    assert made.lacks_consts(row(EIGER, 0)) is True
    assert made.lacks_consts(row(PILC, 0)) is False
    made.batch(row(EIGER, 0), radial())
    assert made.lacks_consts(row(EIGER, 4)) is False
