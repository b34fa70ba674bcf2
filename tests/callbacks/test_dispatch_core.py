"""What the dispatcher makes of documents, and that the sink gets all of it, in order, whatever happens."""

from __future__ import annotations

import json
from typing import Any

import pytest

from haltere.callbacks.dispatch_core import DispatchCore
from haltere.callbacks.reduction import Reduction
from haltere.workers import recipes as recipe_rules
from haltere.workers.files.references import STREAMED
from haltere.workers.recipes import Recipe, cfg_hash, processed_uid
from haltere.workers.reducers.base import Output
from haltere.workers.wire.messages import (
    MAX_CONTROL,
    Ack,
    Expect,
    FileSpan,
    InputSpec,
    LiveLane,
    RunClose,
    RunOpen,
    StreamOpen,
    decode,
    encode,
)

from .dispatching import POSITIONS, XRD, dispatched, greeted, of, spans, told


def test_a_run_opens_with_its_start_document_and_the_recipes_in_use(measured: Any) -> None:
    scan = measured()
    first = dispatched(scan.documents())[0]
    assert isinstance(first, RunOpen)
    assert first.run == scan.uid
    assert first.processed == processed_uid(scan.uid, [XRD, POSITIONS])
    start = json.loads(first.start)
    assert start["scan_id"] == 17
    assert [each["name"] for each in start["recipes"]] == ["xrd", "positions"]


def test_a_stream_says_where_its_frames_come_live_and_what_is_wanted_of_them(measured: Any) -> None:
    eiger, pilc = of(StreamOpen, dispatched(measured().documents()))
    assert eiger.stream == "eiger"
    assert eiger.inputs == [InputSpec("eiger_image", (8, 8), "<u2")]
    assert eiger.recipes == [XRD.spec()]
    assert eiger.cfg == cfg_hash([XRD.spec()])
    assert eiger.live == LiveLane("tcp://127.0.0.1:9", "simplon-1", 12, "eiger_image")
    assert eiger.batch == 8  # 0.1 s of 12.5 ms
    assert pilc.inputs == [InputSpec("pilc_x", (), "<f8"), InputSpec("pilc_y", (), "<f8")]
    assert pilc.live is None
    assert not eiger.sums


def test_a_stream_says_whether_anything_is_added_up(measured: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    sums = {"spectrum": Output("acc", (4,), "<i8")}
    monkeypatch.setattr(recipe_rules, "outputs", lambda spec, inputs: sums if spec.reducer == "columns" else {})
    eiger, pilc = of(StreamOpen, dispatched(measured().documents()))
    assert (eiger.sums, pilc.sums) == (False, True)


def test_every_frame_is_promised_once_and_lies_where_its_file_has_it(measured: Any) -> None:
    messages = dispatched(measured().documents(step=5))
    expected = {frame: (f"{frame // 16}.h5", frame % 16) for frame in range(24)}
    assert spans(messages, "eiger", "eiger_image") == expected
    assert spans(messages, "pilc", "pilc_y") == {frame: ("pilc.h5", frame) for frame in range(24)}
    ranges = [(each.first, each.stop) for each in of(Expect, messages) if each.stream == "eiger"]
    assert ranges[0][0] == 0
    assert [stop for _, stop in ranges[:-1]] == [first for first, _ in ranges[1:]]


def test_indices_that_count_over_all_files_of_a_key_give_the_same_rows(measured: Any) -> None:
    documents = []
    for name, doc in measured().documents():
        if name == "stream_datum":
            shift = doc["seq_nums"]["start"] - 1 - doc["indices"]["start"]
            doc = {**doc, "indices": {end: value + shift for end, value in doc["indices"].items()}}
        documents.append((name, doc))
    found = spans(dispatched(documents), "eiger", "eiger_image")
    assert found == {frame: (f"{frame // 16}.h5", frame % 16) for frame in range(24)}


def test_frames_are_promised_when_every_key_of_the_detector_has_them(measured: Any) -> None:
    core = greeted(DispatchCore(1, [POSITIONS]))
    stream_datums = 0
    for name, doc in measured(frames=6).documents():
        if name == "stream_datum":
            stream_datums += 1
        core.document(name, doc)
        if stream_datums == 2 and name == "stream_datum":
            assert of(Expect, told(core)) == []  # of pilc, only x so far
    assert [(each.first, each.stop) for each in of(Expect, told(core))] == [(0, 6)]


def test_the_last_message_says_how_many_frames_there_were_and_how_it_ended(measured: Any) -> None:
    last = dispatched(measured().documents(exit_status="abort"))[-1]
    assert isinstance(last, RunClose)
    assert {total.stream: total.n for total in last.totals} == {"eiger": 24, "pilc": 24}
    assert last.exit_status == "abort"
    assert json.loads(last.stop)["exit_status"] == "abort"


def test_a_runs_own_recipes_go_before_the_defaults(measured: Any) -> None:
    own = [{"name": "where", "reducer": "columns", "source": "pilc", "params": {"columns": ["pilc_x"]}}]
    (stream,) = of(StreamOpen, dispatched(measured(recipes=own).documents()))
    assert [spec.name for spec in stream.recipes] == ["where"]


def test_a_run_that_wants_nothing_is_left_alone(measured: Any) -> None:
    scan = measured(recipes=[])
    core = greeted(DispatchCore(1, [XRD]))
    for name, doc in scan.documents():
        core.document(name, doc)
    assert told(core) == []
    assert core.is_acknowledged(scan.uid)


def test_a_bad_recipe_is_one_line_and_the_others_go_on(measured: Any, caplog: pytest.LogCaptureFixture) -> None:
    good = {"name": "positions", "reducer": "columns", "source": "pilc"}
    bad = {"name": "xrd", "reducer": "azimutal", "source": "eiger"}
    streams = of(StreamOpen, dispatched(measured(recipes=[bad, good]).documents()))
    assert [each.stream for each in streams] == ["pilc"]
    (record,) = caplog.records
    assert "goes on without a recipe" in record.message
    assert "'azimutal' isn't installed" in record.message
    assert "\n" not in record.message


def test_the_policy_of_its_recipes_is_the_streams_and_one_of_another_is_left_out(
    measured: Any, caplog: pytest.LogCaptureFixture
) -> None:
    own = [
        {"name": name, "reducer": "columns", "source": "pilc", "policy": policy}
        for name, policy in (("where", "spill"), ("when", "block"), ("again", "spill"))
    ]
    (stream,) = of(StreamOpen, dispatched(measured(recipes=own).documents()))
    assert stream.policy == "spill"
    assert [spec.name for spec in stream.recipes] == ["where", "again"]
    assert "goes on without a recipe: recipe when has policy 'block', and where on the same" in caplog.text


def test_frames_that_no_file_keeps_are_promised_and_said_to_be_at_risk(
    measured: Any, caplog: pytest.LogCaptureFixture
) -> None:
    documents = [
        (name, {**doc, "mimetype": STREAMED, "uri": "tcp://eiger:9999", "parameters": {"series": 12}})
        if name == "stream_resource" and doc["data_key"] == "eiger_image"
        else (name, doc)
        for name, doc in measured().documents()
    ]
    expects = [each for each in of(Expect, dispatched(documents, XRD)) if each.stream == "eiger"]
    assert expects
    assert all(each.files == [] for each in expects)
    assert "eiger_image is kept in no file: what finds no room is lost; give its recipes policy spill" in caplog.text


@pytest.mark.parametrize(("policy", "again"), [("spill", False), ("drop", True), ("spill", True)])
def test_frames_in_no_file_are_at_no_risk_if_they_are_spilled_or_the_run_is_over(
    measured: Any, caplog: pytest.LogCaptureFixture, policy: Any, again: bool
) -> None:
    scan = measured()
    kept = Recipe("xrd", "azimuthal", "eiger", XRD.params, policy=policy)
    reduction = Reduction(scan.uid, "again", "again", (kept, POSITIONS), {}) if again else None
    core = greeted(DispatchCore(1, [kept, POSITIONS], reduction=reduction))
    for name, doc in scan.documents():
        if name == "stream_resource" and doc["data_key"] == "eiger_image":
            doc = {**doc, "mimetype": STREAMED, "uri": "tcp://eiger:9999", "parameters": {"series": 12}}
        core.document(name, doc)
    assert max(each.stop for each in of(Expect, told(core)) if each.stream == "eiger") == 24
    assert caplog.records == []


def test_a_recipe_that_does_not_fit_its_input_is_one_line(measured: Any, caplog: pytest.LogCaptureFixture) -> None:
    misfit = Recipe("xrd", "azimuthal", "pilc", XRD.params)
    assert [each.stream for each in of(StreamOpen, dispatched(measured().documents(), misfit, POSITIONS))] == ["pilc"]
    assert len(caplog.records) == 1
    assert "goes on without a recipe: " in caplog.text


def test_a_run_without_the_recipes_sources_still_opens_and_closes(measured: Any) -> None:
    kinds = [type(each) for each in dispatched(measured().documents(), Recipe("xrf", "columns", "xspress3"))]
    assert kinds == [RunOpen, RunClose]


def test_files_outside_of_the_roots_are_warned_of(
    measured: Any, tmp_path: Any, caplog: pytest.LogCaptureFixture
) -> None:
    core = greeted(DispatchCore(1, [POSITIONS], roots=[tmp_path]))
    for name, doc in measured().documents():
        core.document(name, doc)
    assert "lies outside of the folders that the workers may read" in caplog.text
    caplog.clear()
    scan = measured()
    core = greeted(DispatchCore(1, [POSITIONS], roots=[tmp_path, scan.folder]))
    for name, doc in scan.documents():
        core.document(name, doc)
    assert caplog.records == []


def test_a_start_document_beyond_the_limit_is_sent_without_its_largest_values(measured: Any) -> None:
    opened = dispatched(measured(md={"notes": "x" * 100_000}).documents())[0]
    assert isinstance(opened, RunOpen)
    assert "notes" not in json.loads(opened.start)
    assert json.loads(opened.start)["shape"] == [4, 6]


def test_a_detector_whose_files_no_message_can_name_is_left_out_and_said_so_once(
    measured: Any, caplog: pytest.LogCaptureFixture
) -> None:
    core = greeted(DispatchCore(1, [POSITIONS]))
    core.document("start", {"uid": "run", "time": 0})
    key = {"source": "", "dtype": "number", "dtype_numpy": "<f8", "shape": [], "external": "STREAM:"}
    keys = [f"pilc_{number}" for number in range(200)]
    described = {"uid": "d", "run_start": "run", "data_keys": dict.fromkeys(keys, key), "object_keys": {"pilc": keys}}
    core.document("descriptor", described)
    for name in keys:
        uri = f"file://localhost/{'long/' * 80}{name}.h5"
        resource = {"uid": name, "run_start": "run", "data_key": name, "uri": uri, "parameters": {"dataset": "/x"}}
        core.document("stream_resource", {**resource, "mimetype": "application/x-hdf5"})
        datum = {"uid": "", "stream_resource": name, "descriptor": "d", "indices": {"start": 0, "stop": 9}}
        core.document("stream_datum", {**datum, "seq_nums": {"start": 1, "stop": 10}})
    core.document("stop", {"uid": "s", "run_start": "run", "exit_status": "success"})
    for name, doc in measured().documents():  # another run is none the worse
        core.document(name, doc)
    messages = told(core)
    assert all(len(encode(each)) <= MAX_CONTROL for each in messages)
    (closed,) = [each for each in of(RunClose, messages) if each.run == "run"]
    assert [(total.stream, total.n) for total in closed.totals] == [("pilc", 0)]
    assert len([record for record in caplog.records if record.levelname == "ERROR"]) == 1
    assert "run run goes on without pilc from frame 0 on: frame 0 lies in 200 files or datasets" in caplog.text
    assert [total.n for each in of(RunClose, messages) if each.run != "run" for total in each.totals] == [24]
    assert core.idle


def test_promises_that_are_too_long_for_one_message_are_split() -> None:
    folder = "file://localhost/" + "long/" * 400
    core = greeted(DispatchCore(1, [POSITIONS]))
    core.document("start", {"uid": "run", "time": 0})
    key = {"source": "", "dtype": "number", "dtype_numpy": "<f8", "shape": [], "external": "STREAM:"}
    core.document(
        "descriptor",
        {"uid": "d", "run_start": "run", "data_keys": {"pilc_x": key}, "object_keys": {"pilc": ["pilc_x"]}},
    )
    for number in range(400):  # a file per frame
        uri = f"{folder}{number}.h5"
        resource = {"uid": f"r{number}", "run_start": "run", "data_key": "pilc_x", "uri": uri}
        core.document(
            "stream_resource", {**resource, "mimetype": "application/x-hdf5", "parameters": {"dataset": "/x"}}
        )
        datum = {"uid": "", "stream_resource": f"r{number}", "descriptor": "d", "indices": {"start": 0, "stop": 1}}
        core.document("stream_datum", {**datum, "seq_nums": {"start": number + 1, "stop": number + 2}})
    sizes = []
    found: list[FileSpan] = []
    while data := core.outgoing(1000.0):
        sizes += [len(each) for each in data]
        messages = [decode(each) for each in data]
        found += [span for each in messages if isinstance(each, Expect) for span in each.files]
        core.heard(Ack(1, messages[-1].serial), 1000.0)  # type: ignore[union-attr]
    assert max(sizes) <= MAX_CONTROL
    assert [span.first for span in found] == list(range(400))


def test_promises_in_many_messages_come_one_after_the_other_and_before_the_end(
    measured: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("haltere.callbacks.dispatch_streams.MAX_SPANS", 2)
    monkeypatch.setattr("haltere.callbacks.dispatch_window.WINDOW", 1)
    core = greeted(DispatchCore(1, [XRD, POSITIONS]))
    for name, doc in measured(per_file=4).documents():
        core.document(name, doc)
    found: list[Any] = []
    while data := core.outgoing(1000.0):
        (message,) = map(decode, data)
        found.append(message)
        core.heard(Ack(1, found[-1].serial), 1000.0)
    assert [type(each) for each in found[:3]] == [RunOpen, StreamOpen, StreamOpen]
    assert [total.n for total in found[-1].totals] == [24, 24]
    assert spans(found, "eiger", "eiger_image") == {frame: (f"{frame // 4}.h5", frame % 4) for frame in range(24)}


def test_a_reduction_takes_the_documents_of_its_run_alone_and_says_what_it_is(measured: Any) -> None:
    scan, other = measured(), measured()
    reduction = Reduction(scan.uid, "again", "again", (POSITIONS,), {"pilc": 24}, {"pilc": 5}, "before", "all")
    core = greeted(DispatchCore(1, [XRD], reduction=reduction))
    for each in (other, scan):
        for name, doc in each.documents():
            core.document(name, doc)
    messages = told(core)
    assert {each.run for each in messages} == {"again"}
    (opened,), (stream,) = of(RunOpen, messages), of(StreamOpen, messages)
    assert opened.processed == "again"
    assert (json.loads(opened.start)["uid"], json.loads(opened.start)["supersedes"]) == (scan.uid, "before")
    assert (stream.stream, stream.batch, stream.total) == ("pilc", 5, 24)
    assert spans(messages, "pilc", "pilc_x") == {frame: ("pilc.h5", frame) for frame in range(24)}
