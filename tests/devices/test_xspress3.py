"""The Xspress3, driven against the simulated one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import bluesky.plans as bp
import pytest
from bluesky import RunEngine

from haltere.devices import FlyInfo, Xspress3
from haltere.workers.errors import DetectorError

from .hutch import Hutch


@pytest.fixture
def xspress3(hutch: Hutch) -> Iterator[Xspress3]:
    xspress3 = hutch.xspress3()
    yield xspress3
    xspress3.unstage()


def test_a_step_scan_puts_spectra_into_the_documents_and_their_total_into_the_event(
    xspress3: Xspress3, hutch: Hutch
) -> None:
    engine = RunEngine({})
    documents: list[tuple[str, Any]] = []
    xspress3.exposure_time.put(0.005)
    stage = hutch.stage()
    engine(bp.scan([xspress3], stage.x, -5, 5, 3), lambda name, doc: documents.append((name, doc)))
    named = {name: [doc for each, doc in documents if each == name] for name, _ in documents}
    keys = named["descriptor"][0]["data_keys"]
    assert keys["xspress3_channel03"]["shape"] == [4096]
    assert keys["xspress3_channel03"]["dtype_numpy"] == "<i4"
    assert keys["xspress3_channel00_resetticks"]["shape"] == []
    assert len(named["event"]) == 3
    assert all(event["data"]["xspress3_total"] > 0 for event in named["event"])
    assert [event["data"]["stage_x"] for event in named["event"]] == pytest.approx([-5, 0, 5])
    resources = {doc["uid"]: doc["data_key"] for doc in named["stream_resource"]}
    first = [doc for doc in named["stream_datum"] if resources[doc["stream_resource"]] == "xspress3_channel00"]
    assert [doc["seq_nums"] for doc in first] == [{"start": k, "stop": k + 1} for k in (1, 2, 3)]


def test_stop_ends_the_acquisition_and_is_harmless_when_idle(xspress3: Xspress3) -> None:
    xspress3.stage()
    xspress3.prepare(FlyInfo(n=5, livetime=0.002, deadtime=0.001, prefix="stopped")).wait(timeout=10.0)
    xspress3.check_armed()
    assert xspress3.trigger_mode.get() == 1
    xspress3.stop()
    assert xspress3.state.get() == "ON"
    xspress3.stop()
    with pytest.raises(DetectorError, match=r"xspress3: tango://.* is in state ON in the middle of a scan"):
        xspress3.check_armed()


def test_a_flight_on_internal_triggers_ends_with_its_file_closed(xspress3: Xspress3) -> None:
    xspress3.stage()
    info = FlyInfo(n=6, trigger="internal", livetime=0.002, prefix="internal")
    xspress3.prepare(info).wait(timeout=10.0)
    xspress3.kickoff().wait(timeout=10.0)
    xspress3.complete().wait(timeout=10.0)
    assert xspress3.frames() == 6
    assert xspress3.state.get() == "ON"


def test_a_device_that_is_off_is_named_when_it_is_staged() -> None:
    off = Xspress3("tango://127.0.0.1:1/p06/xspress3/1#dbase=no", name="xspress3", data_dir=".")
    with pytest.raises(DetectorError, match=r"xspress3: tango://127.0.0.1:1.*: no answer"):
        off.stage()
