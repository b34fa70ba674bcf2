"""The Eiger, driven against the simulated one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote, urlsplit

import bluesky.plans as bp
import h5py
import hdf5plugin  # noqa: F401 - registers bitshuffle
import numpy as np
import pytest
from bluesky import RunEngine

from haltere.devices import Eiger, FlyInfo
from haltere.workers.errors import DetectorError, SettingsError

from .hutch import Hutch, eventually


def info(prefix: str) -> FlyInfo:
    return FlyInfo(n=4, trigger="internal", livetime=0.002, deadtime=0.001, prefix=prefix)


@pytest.fixture
def eiger(hutch: Hutch) -> Iterator[Eiger]:
    eiger = hutch.eiger(per_file=3)
    yield eiger
    eiger.unstage()


def test_count_puts_each_frame_into_the_documents_and_its_total_into_the_event(eiger: Eiger) -> None:
    engine = RunEngine({})
    documents: list[tuple[str, Any]] = []
    eiger.count_time.put(0.004)
    engine(bp.count([eiger], 4), lambda name, doc: documents.append((name, doc)))
    named = {name: [doc for each, doc in documents if each == name] for name, _ in documents}
    (descriptor,) = named["descriptor"]
    assert descriptor["data_keys"]["eiger_image"]["shape"] == [514, 1030]
    assert descriptor["data_keys"]["eiger_image"]["external"] == "STREAM:"
    assert descriptor["hints"]["eiger"]["fields"] == ["eiger_total"]
    assert len(named["stream_resource"]) == 2, "four frames, three per file"
    assert [doc["indices"] for doc in named["stream_datum"]] == [{"start": k, "stop": k + 1} for k in range(4)]
    resources = {doc["uid"]: doc for doc in named["stream_resource"]}
    for number, (datum, event) in enumerate(zip(named["stream_datum"], named["event"], strict=True)):
        path = unquote(urlsplit(resources[datum["stream_resource"]]["uri"]).path)
        with h5py.File(path, "r") as file:
            frame = file["/entry/data/data"][number % 3]
        assert event["data"]["eiger_total"] == int(frame[frame != np.iinfo(frame.dtype).max].sum(dtype="i8"))
        assert event["data"]["eiger_total"] > 0
    assert eiger.state.get() == "idle"


def test_the_descriptor_says_how_it_streams(eiger: Eiger, hutch: Hutch) -> None:
    eiger.prepare(info("first")).wait(timeout=20.0)
    configuration = {name: reading["value"] for name, reading in eiger.read_configuration().items()}
    assert configuration["eiger_stream_endpoint"] == hutch.endpoints["eiger"]["stream"]
    assert configuration["eiger_stream_protocol"] == "simplon-1"
    first = configuration["eiger_series"]
    eiger.prepare(info("second")).wait(timeout=20.0)
    assert eiger.series.get() > first
    assert set(configuration) == set(eiger.describe_configuration())


def test_a_flight_on_internal_triggers_ends_with_all_frames_in_closed_files(eiger: Eiger) -> None:
    eiger.stage()
    eiger.prepare(info("internal")).wait(timeout=20.0)
    eiger.kickoff().wait(timeout=20.0)
    eiger.complete().wait(timeout=20.0)
    assert eiger.frames() == 4
    assert eiger.get_index() == 3, "a collect ends where the file does"
    list(eiger.collect_asset_docs(eiger.get_index()))
    assert eiger.get_index() == 4


def test_stop_disarms_and_is_harmless_when_idle(eiger: Eiger) -> None:
    eiger.stage()
    eiger.prepare(FlyInfo(n=5, livetime=0.002, deadtime=0.001, prefix="stopped")).wait(timeout=20.0)
    eiger.check_armed()
    eiger.stop()
    assert eiger.state.get() == "idle"
    eiger.stop()
    with pytest.raises(DetectorError, match=r"eiger: http://.* is in state idle in the middle of a scan"):
        eiger.check_armed()


def test_kickoff_before_prepare_is_refused(eiger: Eiger) -> None:
    with pytest.raises(DetectorError, match="eiger: kickoff before prepare"):
        eiger.kickoff()


def test_a_data_folder_that_is_not_there_is_named_and_the_detector_left_idle(eiger: Eiger, hutch: Hutch) -> None:
    at = hutch.endpoints["eiger"]
    elsewhere = Eiger(at["rest"], name="eiger", stream=at["stream"], data_dir=hutch.data / "nowhere")
    error = elsewhere.prepare(info("nowhere")).exception(timeout=20.0)
    assert isinstance(error, SettingsError)
    assert "nowhere isn't a folder" in str(error)
    assert eiger.state.get() == "idle"


def test_a_file_writer_that_fails_is_heard(eiger: Eiger) -> None:
    eiger.stage()
    eiger.prepare(info("twice")).wait(timeout=20.0)
    eiger.kickoff().wait(timeout=20.0)
    eiger.complete().wait(timeout=20.0)
    error = eiger.prepare(info("twice")).exception(timeout=20.0)  # it would overwrite the first one's files
    assert str(error).startswith("eiger: http://127.0.0.1:")
    assert "the file writer failed: " in str(error)
    eventually(lambda: eiger.state.get() == "idle", "the detector is disarmed")


def test_a_detector_that_is_off_is_named_when_it_is_staged() -> None:
    off = Eiger("http://127.0.0.1:1", name="eiger", stream="tcp://127.0.0.1:2", data_dir=".")
    with pytest.raises(DetectorError, match=r"http://127.0.0.1:1: no answer"):
        off.stage()
