"""What the dispatcher makes of documents, and that the sink gets all of it, in order, whatever happens."""

from __future__ import annotations

import json
import logging
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from haltere.callbacks.dispatch_core import DispatchCore
from haltere.callbacks.dispatch_window import WINDOW
from haltere.callbacks.reduction import Reduction
from haltere.workers import recipes as recipe_rules
from haltere.workers.files.references import STREAMED
from haltere.workers.ledger.rows import Control
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
    Welcome,
    decode,
    encode,
)

PONI = {"dist": 0.1, "poni1": 0.0004, "poni2": 0.0004, "pixel1": 1e-4, "pixel2": 1e-4}
XRD = Recipe("xrd", "azimuthal", "eiger", {"poni": PONI, "bins": 16})
POSITIONS = Recipe("positions", "columns", "pilc")
WELCOME = Welcome(1, 7, 5000, 500)


def greeted(core: DispatchCore, now: float = 0.0) -> DispatchCore:
    core.impatient(now + 1000.0)
    core.heard(WELCOME, now + 1000.0)
    return core


def told(core: DispatchCore, now: float = 1000.0) -> list[Control]:
    """Return what goes to the sink, which acknowledges at once, until there is no more."""
    found: list[Control] = []
    while messages := [decode(data) for data in core.outgoing(now)]:
        found += messages  # type: ignore[arg-type]
        core.heard(Ack(core.session, found[-1].serial), now)
    return found


def dispatched(documents: Any, *recipes: Recipe) -> list[Control]:
    core = greeted(DispatchCore(1, recipes or (XRD, POSITIONS)))
    for name, doc in documents:
        core.document(name, doc)
    return told(core)


def of(kind: type, messages: list[Control]) -> list[Any]:
    return [each for each in messages if isinstance(each, kind)]


def spans(messages: list[Control], stream: str, key: str) -> dict[int, tuple[str, int]]:
    """Return for each frame the file's name and the row in it."""
    found = {}
    for message in of(Expect, messages):
        for span in message.files if message.stream == stream else ():
            if span.key == key:
                assert message.first <= span.first
                assert span.first + span.n <= message.stop
                for frame in range(span.n):
                    found[span.first + frame] = (span.uri.rsplit("_", 1)[1], span.offset + frame)
    return found


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


# --- the sink comes and goes -----------------------------------------------------------------------------------------


def test_nothing_is_said_before_the_sink_has_welcomed(measured: Any) -> None:
    core = DispatchCore(1, [POSITIONS])
    for name, doc in measured().documents():
        core.document(name, doc)
    assert core.impatient(1000.0)
    assert core.outgoing(1000.0) == []
    core.heard(WELCOME, 1000.1)
    assert isinstance(decode(core.outgoing(1000.1)[0]), RunOpen)


def test_what_is_not_acknowledged_is_said_again_in_order_with_its_serial(measured: Any) -> None:
    core = greeted(DispatchCore(1, [POSITIONS]))
    for name, doc in measured().documents():
        core.document(name, doc)
    first = core.outgoing(1000.0)
    assert core.outgoing(1000.5) == []
    core.heard(Ack(1, 2), 1000.5)
    assert not core.impatient(1001.4)
    assert core.impatient(1001.6)
    core.heard(WELCOME, 1001.7)
    assert core.outgoing(1001.7) == first[2:]


def test_a_sink_that_started_anew_is_greeted_once_and_told_again(measured: Any) -> None:
    core = greeted(DispatchCore(1, [POSITIONS]))
    for name, doc in measured().documents():
        core.document(name, doc)
    first = core.outgoing(1000.0)
    unknown = Welcome(1, 8, 0, 0)
    assert [core.heard(unknown, 1000.1) for _ in first] == [True, *[False] * (len(first) - 1)]
    assert core.outgoing(1000.1) == []
    core.heard(WELCOME, 1000.2)
    assert core.outgoing(1000.2) == first


def test_another_sessions_acknowledgement_says_nothing(measured: Any) -> None:
    scan = measured()
    core = greeted(DispatchCore(2, [POSITIONS]))
    for name, doc in scan.documents():
        core.document(name, doc)
    core.outgoing(1000.0)
    core.heard(Ack(1, 1000), 1000.0)
    assert not core.is_acknowledged(scan.uid)
    core.heard(Ack(2, 1000), 1000.0)
    assert core.is_acknowledged(scan.uid)


def test_a_sink_that_is_away_costs_no_memory_per_datum(measured: Any) -> None:
    core = greeted(DispatchCore(1, [POSITIONS]))
    for name, doc in measured(frames=2000, per_file=2000).documents(step=1):
        core.document(name, doc)
    messages = told(core)
    assert len(of(Expect, messages)) == 1


@given(st.lists(st.tuples(st.sampled_from(["", "messages lost", "sink dies"]), st.integers(0, 3)), max_size=60))
def test_a_sink_that_dies_at_any_time_hears_everything_once_and_in_order(faults: list[tuple[str, int]]) -> None:
    """The sink: takes serials without a gap, forgets what it hasn't committed when it dies."""
    core = greeted(DispatchCore(1, [POSITIONS]))
    datum = {"uid": "", "stream_resource": "r", "descriptor": "d"}
    key = {"source": "", "dtype": "number", "dtype_numpy": "<f8", "shape": [], "external": "STREAM:"}
    documents: list[tuple[str, dict[str, Any]]] = [
        ("start", {"uid": "run", "time": 0}),
        (
            "descriptor",
            {"uid": "d", "run_start": "run", "data_keys": {"pilc_x": key}, "object_keys": {"pilc": ["pilc_x"]}},
        ),
        (
            "stream_resource",
            {
                "uid": "r",
                "run_start": "run",
                "data_key": "pilc_x",
                "uri": "file://localhost/x.h5",
                "mimetype": "application/x-hdf5",
                "parameters": {"dataset": "/x"},
            },
        ),
        *(
            (
                "stream_datum",
                {**datum, "indices": {"start": n, "stop": n + 1}, "seq_nums": {"start": n + 1, "stop": n + 2}},
            )
            for n in range(30)
        ),
        ("stop", {"uid": "s", "run_start": "run", "time": 1, "exit_status": "success"}),
    ]
    taken: list[bytes] = []
    committed = 0
    now = 1000.0
    for fault, n in [*faults, *[("", 3)] * 60]:
        now += 0.3
        for name, doc in documents[:n]:
            core.document(name, doc)
        documents = documents[n:]
        greet = core.impatient(now)
        data = core.outgoing(now)
        for each in [] if fault == "messages lost" else data:
            serial: int = decode(each).serial  # type: ignore[union-attr]
            if serial == len(taken) + 1:
                taken.append(each)
        if fault == "sink dies":
            taken = taken[:committed]
            greet |= core.heard(Welcome(1, int(now), 0, 0), now)
        else:
            committed = len(taken)
            core.heard(Ack(1, committed), now)
        if greet:
            core.heard(Welcome(1, int(now), 5000, 500), now)
        if core.idle and not documents:
            break
    assert core.is_acknowledged("run")
    messages = [decode(each) for each in taken]
    assert [type(each) for each in messages[:2]] == [RunOpen, StreamOpen]
    assert isinstance(messages[-1], RunClose)
    promised = [(each.first, each.stop) for each in messages if isinstance(each, Expect)]
    assert promised[0][0] == 0
    assert promised[-1][1] == 30
    assert all(a[1] == b[0] for a, b in pairwise(promised))


def test_it_is_idle_while_there_is_nothing_to_tell_and_silence_is_no_reason_to_greet_anew_then(measured: Any) -> None:
    core = greeted(DispatchCore(1, [POSITIONS]))
    *documents, (_, stop) = measured().documents()
    assert core.idle is True
    core.document(*documents[0])
    assert core.idle is False
    told(core)
    assert core.idle is True
    for name, doc in documents[1:]:
        core.document(name, doc)
    assert core.idle is False
    told(core)
    assert core.idle is True, "what is to come of the run isn't known"
    assert core.outgoing(5000.0) == []
    core.document("stop", stop)
    assert core.idle is False
    (closed,) = core.outgoing(5000.5)
    assert not core.impatient(5001.4)
    assert core.impatient(5001.6)
    core.heard(Ack(1, decode(closed).serial), 5001.7)
    assert core.idle is True


def test_no_more_than_a_window_is_on_its_way() -> None:
    core = greeted(DispatchCore(1, [POSITIONS]))
    logging.disable(logging.ERROR)
    for number in range(100):
        core.document("start", {"uid": f"run-{number}", "time": 0})
    logging.disable(logging.NOTSET)
    assert len(core.outgoing(1000.0)) == WINDOW
    assert core.outgoing(1000.1) == []


# --- what documents may be like --------------------------------------------------------------------------------------


def changed(documents: Any, kind: str, change: Any) -> list[tuple[str, Any]]:
    """Return the documents, with those of a kind as ``change`` gives them."""
    return [(name, change(dict(doc)) if name == kind else (doc)) for name, doc in documents]


def test_without_object_keys_a_key_says_its_device_or_is_one(measured: Any) -> None:
    scan = measured()
    plain = [(name, doc) for name, doc in scan.documents()]

    def strip(doc: dict[str, Any]) -> dict[str, Any]:
        return {each: value for each, value in doc.items() if each != "object_keys"}

    assert of(StreamOpen, dispatched(changed(plain, "descriptor", strip))) == of(StreamOpen, dispatched(plain))

    def nameless(doc: dict[str, Any]) -> dict[str, Any]:
        bare = {key: {**each, "object_name": ""} for key, each in doc["data_keys"].items()}
        return {**strip(doc), "data_keys": bare}

    (stream,) = of(StreamOpen, dispatched(changed(plain, "descriptor", nameless), Recipe("x", "columns", "pilc_x")))
    assert [each.key for each in stream.inputs] == ["pilc_x"]


def test_a_recipe_may_stand_alone_and_what_is_none_is_one_line(measured: Any, caplog: pytest.LogCaptureFixture) -> None:
    alone: Any = {"name": "positions", "reducer": "columns", "source": "pilc"}
    assert [each.stream for each in of(StreamOpen, dispatched(measured(recipes=alone).documents()))] == ["pilc"]
    assert caplog.records == []
    word: Any = "xrd"
    assert of(StreamOpen, dispatched(measured(recipes=word).documents())) == []
    assert len(caplog.records) == 1


def test_of_two_recipes_of_one_name_the_first_is_taken(measured: Any, caplog: pytest.LogCaptureFixture) -> None:
    own = [{"name": "positions", "reducer": "columns", "source": source} for source in ("pilc", "eiger", "pilc")]
    assert [each.stream for each in of(StreamOpen, dispatched(measured(recipes=own).documents()))] == ["pilc"]
    assert [record.message.count("stands twice") for record in caplog.records] == [1, 1]


@pytest.mark.parametrize("lacking", ["eiger_stream_endpoint", "eiger_stream_protocol", "eiger_series"])
def test_a_detector_that_does_not_say_all_of_its_live_lane_is_read_from_its_files(measured: Any, lacking: str) -> None:
    def change(doc: dict[str, Any]) -> dict[str, Any]:
        data = {key: value for key, value in doc["configuration"]["eiger"]["data"].items() if key != lacking}
        return {**doc, "configuration": {"eiger": {"data": data}}}

    eiger, _ = of(StreamOpen, dispatched(changed(measured().documents(), "descriptor", change)))
    assert eiger.live is None


def test_a_detector_whose_stream_cannot_be_told_is_left_out(measured: Any, caplog: pytest.LogCaptureFixture) -> None:
    def change(doc: dict[str, Any]) -> dict[str, Any]:
        data = {**doc["configuration"]["eiger"]["data"], "eiger_stream_endpoint": "tcp://" + "x" * 300}
        return {**doc, "configuration": {"eiger": {"data": data}}}

    messages = dispatched(changed(measured().documents(), "descriptor", change))
    assert [each.stream for each in of(StreamOpen, messages)] == ["pilc"]
    assert len(of(RunClose, messages)) == 1
    assert "goes on without eiger: what its stream is can't be told" in caplog.text


def test_nothing_is_said_of_a_detector_that_no_recipe_wants(measured: Any, caplog: pytest.LogCaptureFixture) -> None:
    def change(doc: dict[str, Any]) -> dict[str, Any]:
        worded = {**doc["data_keys"]["pilc_x"], "dtype_numpy": "<U8"}
        return {**doc, "data_keys": {**doc["data_keys"], "pilc_x": worded}}

    documents = changed(measured().documents(), "descriptor", change)
    assert [each.stream for each in of(StreamOpen, dispatched(documents, XRD))] == ["eiger"]
    assert caplog.records == []
    (stream,) = of(StreamOpen, dispatched(documents, POSITIONS))
    assert [each.key for each in stream.inputs] == ["pilc_y"]
    assert "data key pilc_x can't be reduced: type <U8 isn't a number's" in caplog.text


def old_resource(doc: dict[str, Any]) -> dict[str, Any]:
    """As documents were before they named their run."""
    return {key: value for key, value in doc.items() if key != "run_start"}


def test_an_older_resource_is_of_the_newest_run_that_has_its_key(measured: Any) -> None:
    core = greeted(DispatchCore(1, [POSITIONS]))
    first, second = measured(), measured()
    plain = [list(each.documents()) for each in (first, second)]
    for documents in plain:
        for name, doc in documents[:2]:
            core.document(name, doc)
    for name, doc in changed(plain[1], "stream_resource", old_resource)[2:]:
        core.document(name, doc)
    expects = of(Expect, told(core))
    assert {each.run for each in expects} == {second.uid}
    assert max(each.stop for each in expects) == 24


def test_a_resource_of_a_run_that_is_not_known_is_passed_over(measured: Any) -> None:
    scan = measured()
    documents = changed(scan.documents(), "stream_resource", lambda doc: {**doc, "run_start": "another"})
    assert of(Expect, dispatched(documents)) == []


@pytest.mark.parametrize(
    "changes",
    [
        {"mimetype": "image/tiff"},
        {"parameters": {"swmr": False}},
        {"parameters": {"dataset": "/x", "template": "{:05d}.h5"}},
    ],
)
def test_frames_in_files_that_cannot_be_read_are_not_promised(
    measured: Any, changes: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    documents = changed(measured().documents(), "stream_resource", lambda doc: {**doc, **changes})
    assert of(Expect, dispatched(documents, POSITIONS)) == []
    assert [record.message.count("only from one HDF5 dataset") for record in caplog.records] == [1, 1]


@pytest.mark.parametrize(
    ("indices", "seq_nums"),
    [((0, 0), (1, 1)), ((6, 0), (7, 1)), ((0, 6), (0, 6)), ((0, 6), (1, 8)), ((0, 6), (1, 6))],
)
def test_promises_that_make_no_sense_are_not_made(
    measured: Any, indices: tuple[int, int], seq_nums: tuple[int, int], caplog: pytest.LogCaptureFixture
) -> None:
    ranges = {
        "indices": {"start": indices[0], "stop": indices[1]},
        "seq_nums": {"start": seq_nums[0], "stop": seq_nums[1]},
    }
    documents = changed(measured(frames=6).documents(), "stream_datum", lambda doc: {**doc, **ranges})
    messages = dispatched(documents, XRD)
    assert of(Expect, messages) == []
    assert len(of(RunClose, messages)) == 1
    assert "has indices and seq_nums that don't fit" in caplog.text


def test_of_frames_that_are_promised_twice_the_first_stand(measured: Any, caplog: pytest.LogCaptureFixture) -> None:
    plain = list(measured().documents())
    datums = [each for each in plain if each[0] == "stream_datum"]
    again = [(name, {**doc, "indices": {"start": 90, "stop": 96}}) for name, doc in datums[:3]]
    messages = dispatched([*plain[:-1], *again, plain[-1]])
    assert messages[1:] == dispatched(plain)[1:]
    assert "are promised twice; the first stands" in caplog.text


def test_datums_of_what_is_not_known_are_passed_over(measured: Any) -> None:
    plain = list(measured().documents())
    for key in ("stream_resource", "descriptor"):
        documents = changed(plain, "stream_datum", lambda doc, key=key: {**doc, key: "another"})
        assert of(Expect, dispatched(documents)) == []


# --- bounds ----------------------------------------------------------------------------------------------------------


def test_runs_beyond_the_bound_are_left_out_and_said_so(
    measured: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("haltere.callbacks.dispatch_core.MAX_RUNS", 2)
    core = greeted(DispatchCore(1, [POSITIONS]))
    scans = [measured() for _ in range(3)]
    for scan in scans:
        for name, doc in scan.documents():
            core.document(name, doc)
    assert [each.run for each in of(RunOpen, told(core))] == [scan.uid for scan in scans[:2]]
    assert f"run {scans[2].uid} isn't reduced" in caplog.text


def test_what_is_remembered_of_runs_that_are_over_is_bounded(measured: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("haltere.callbacks.dispatch_core.MAX_RUNS", 2)
    core = greeted(DispatchCore(1, [POSITIONS]))
    plain = list(measured(frames=2).documents())
    for number in range(12):
        uid = f"run-{number}"
        core.document("start", {**plain[0][1], "uid": uid})
        assert not core.is_acknowledged(uid)
        core.document("stop", {**plain[-1][1], "run_start": uid})
        assert not core.is_acknowledged(uid)
        told(core)
        assert core.is_acknowledged(uid)
    assert list(core._closed) == [f"run-{number}" for number in range(4, 12)]
    core.document("start", {**plain[0][1], "uid": "run-11"})
    assert not core.is_acknowledged("run-11"), "it is told anew"


def test_a_run_that_ends_takes_its_files_with_it_and_no_others(measured: Any) -> None:
    core = greeted(DispatchCore(1, [POSITIONS]))
    one, other = (list(measured().documents()) for _ in range(2))
    for name, doc in [*one[:-1], *other[:5], one[-1]]:
        core.document(name, doc)
    assert {run.uid for run, _ in core._files.values()} == {other[0][1]["uid"]}
    for name, doc in other[5:]:
        core.document(name, doc)
    assert core._files == {}
    assert max(each.stop for each in of(Expect, told(core)) if each.run == other[0][1]["uid"]) == 24


def test_a_warning_is_told_once_and_the_memory_of_that_is_bounded(
    measured: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("haltere.callbacks.dispatch_core.MAX_WARNED", 3)
    core = greeted(DispatchCore(1))
    for _ in range(2):
        for word in "abc":
            core._warn("run", word)
    assert [record.message for record in caplog.records] == ["run run: a", "run run: b", "run run: c"]
    core._warn("run", "d")
    core._warn("run", "c")
    assert len(caplog.records) == 5
    core.heard(Ack(1, 0), 2000.0)
    assert core._warned == set(), "no run is left"
    scan = measured()
    core = greeted(DispatchCore(1, [POSITIONS]))
    core.document(*next(scan.documents()))
    core._warn("run", "e")
    told(core)
    assert core._warned == {("run", "e")}, "everything was told, but the run goes on"


def test_what_the_sink_is_still_to_be_told_can_be_asked_for(measured: Any) -> None:
    scan = measured()
    core = greeted(DispatchCore(1, [XRD, POSITIONS]))
    assert core.streams(scan.uid) == []
    for name, doc in scan.documents():
        core.document(name, doc)
    assert [each.stream for each in core.streams(scan.uid)] == ["eiger", "pilc"]
    told(core)
    assert core.streams(scan.uid) == []


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
