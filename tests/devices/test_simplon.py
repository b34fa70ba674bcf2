"""SIMPLON keys as signals, against the simulated Eiger."""

from __future__ import annotations

import pytest
from ophyd.utils import ReadOnlyError

from haltere.devices.simplon import Simplon, SimplonDevice
from haltere.workers.errors import DetectorError

from .hutch import Hutch


class Detector(SimplonDevice):
    """A detector with a key too many."""

    count_time = Simplon("detector/config/count_time", kind="config")
    frame_time = Simplon("detector/config/frame_time", kind="config")
    mode = Simplon("detector/config/trigger_mode", kind="config")
    bits = Simplon("detector/config/bit_depth_image", kind="config")
    missing = Simplon("detector/config/colour", kind="omitted")


@pytest.fixture
def detector(hutch: Hutch) -> Detector:
    return Detector(hutch.endpoints["eiger"]["rest"], name="detector", api="1.8.0")


def test_a_key_declared_in_one_line_tells_value_type_and_unit(detector: Detector) -> None:
    detector.count_time.put(0.02)
    assert detector.count_time.get() == 0.02
    key = detector.count_time.describe()["detector_count_time"]
    assert (key["dtype"], key["units"], key["shape"]) == ("number", "s", [])
    assert key["source"].endswith("/detector/api/1.8.0/config/count_time")
    assert detector.mode.describe()["detector_mode"]["dtype"] == "string"


def test_what_the_detector_changed_along_is_read_again(detector: Detector) -> None:
    detector.count_time.put(0.01)
    detector.frame_time.put(0.02)
    told: list[float] = []
    detector.frame_time.subscribe(lambda value, **_: told.append(value), run=False)
    detector.count_time.put(0.5)
    assert len(told) == 1
    assert told[0] >= 0.5


def test_a_refused_value_fails_the_status_in_one_line(detector: Detector) -> None:
    error = detector.count_time.set(-1.0).exception(timeout=5.0)
    assert isinstance(error, DetectorError)
    assert str(error).startswith("detector_count_time: http://127.0.0.1:")
    assert "detector/config/count_time = -1.0 refused with 400" in str(error)
    assert "\n" not in str(error)


def test_a_read_only_key_refuses_to_be_written(detector: Detector) -> None:
    detector.bits.get()
    with pytest.raises(ReadOnlyError, match="detector_bits"):
        detector.bits.put(8)


def test_an_unknown_key_is_named_with_the_api_version(detector: Detector) -> None:
    with pytest.raises(DetectorError, match=r"no detector/config/colour \(does it speak API 1.8.0\?\)"):
        detector.missing.get()


def test_a_detector_that_is_off_is_named_with_its_address_and_a_remedy() -> None:
    off = Detector("http://127.0.0.1:1", name="off", api="1.6.0")
    with pytest.raises(DetectorError, match=r"^off_mode: http://127.0.0.1:1: no answer \(is the detector control"):
        off.mode.get()
    assert not off.mode.connected
