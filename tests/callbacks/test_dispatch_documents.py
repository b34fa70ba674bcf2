"""What documents may be like."""

from __future__ import annotations

from typing import Any

import pytest

from haltere.callbacks.dispatch_core import DispatchCore
from haltere.workers.recipes import Recipe
from haltere.workers.wire.messages import Expect, RunClose, StreamOpen

from .dispatching import POSITIONS, XRD, dispatched, greeted, of, told


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
