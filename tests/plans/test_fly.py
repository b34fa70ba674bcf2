"""Fly scans over the simulated beamline: documents, interruptions, failures."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import h5py
import hdf5plugin  # noqa: F401 - registers bitshuffle
import numpy as np
import pytest
from bluesky import RunEngine
from bluesky.suspenders import SuspendBoolHigh
from bluesky.utils import ProgressBarManager, RunEngineInterrupted
from ophyd import Signal

from haltere.callbacks.catalog import Catalog, raw_writer
from haltere.devices import Eiger, PiLC, Stage, Xspress3
from haltere.plans import fly_grid
from haltere.workers.errors import DetectorError, SettingsError

from ..devices.hutch import Hutch, eventually, simulated

ROWS, COLUMNS, DWELL = 4, 10, 0.005
POINTS = ROWS * COLUMNS


@dataclass
class Flight:
    """A RunEngine, its devices, and all documents it emitted."""

    eiger: Eiger
    xspress3: Xspress3
    pilc: PiLC
    stage: Stage
    documents: list[tuple[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.RE: Any = RunEngine({})
        self.RE.subscribe(lambda name, doc: self.documents.append((name, doc)))

    def plan(self, dwell: float = DWELL, **changes: Any) -> Any:
        """Return the plan of the small grid."""
        return fly_grid(
            [self.eiger, self.xspress3, self.pilc],
            self.stage.y, -5, 5, ROWS, self.stage.x, -10, 10, COLUMNS,
            dwell=dwell, **changes,
        )  # fmt: skip

    def named(self, name: str) -> list[Any]:
        """Return the documents of that name."""
        return [doc for each, doc in self.documents if each == name]

    @property
    def stop(self) -> Any:
        """The latest run's stop document."""
        return self.named("stop")[-1]

    def frames(self, key: str) -> list[tuple[int, int, str]]:
        """Return what was promised of a data key: first frame, stop, file."""
        resources = {doc["uid"]: doc for doc in self.named("stream_resource") if doc["data_key"] == key}
        found = []
        for doc in self.named("stream_datum"):
            if resource := resources.get(doc["stream_resource"]):
                indices = doc["indices"]
                assert doc["seq_nums"] == {"start": indices["start"] + 1, "stop": indices["stop"] + 1}
                found.append((indices["start"], indices["stop"], unquote(urlsplit(resource["uri"]).path)))
        return found

    def count(self) -> int:
        """Return how many frames were promised, the same of each data key, without hole or repetition."""
        totals = set()
        for key in self.named("descriptor")[-1]["data_keys"]:
            expected = 0
            for start, stop, _ in self.frames(key):
                assert start == expected, key
                expected = stop
            totals.add(expected)
        (total,) = totals
        return total

    def positions(self) -> np.ndarray[Any, Any]:
        """Return the promised positions: (frames, 2), x and y, µm."""
        path = self.frames("pilc_x")[0][2]
        with h5py.File(path, "r") as file:
            assert len(file["entry/data/x"]) >= self.count()
            return np.column_stack([file["entry/data/x"], file["entry/data/y"]])[: self.count()]

    def assert_idle(self) -> None:
        """Nothing is armed, nothing moves, and the stage has its velocity back."""
        assert self.eiger.state.get() == "idle"
        assert self.xspress3.state.get() == "ON"
        assert self.pilc.state.get() == "ON"
        eventually(lambda: not self.stage.x.moving, "the stage rests")
        assert self.stage.x.velocity.get() == 4000.0
        for key in ("eiger_image", "pilc_x", "xspress3_channel00"):
            for _, _, path in self.frames(key):
                with h5py.File(path, "r"):  # without SWMR this opens closed files only
                    pass

    def meanwhile(self, act: Callable[[], object], fired: int = 3) -> threading.Thread:
        """Act in the middle of the second line."""

        def wait_and_act() -> None:
            eventually(lambda: self.pilc.frames() >= COLUMNS + fired, "the second line is under way")
            act()

        thread = threading.Thread(target=wait_and_act)
        thread.start()
        return thread


def made(hutch: Hutch) -> Flight:
    """Return new devices and a new RunEngine."""
    return Flight(hutch.eiger(), hutch.xspress3(), hutch.pilc(), hutch.stage())


@pytest.fixture
def flight(hutch: Hutch, caplog: pytest.LogCaptureFixture) -> Iterator[Flight]:
    caplog.set_level(logging.CRITICAL, logger="bluesky")
    flight = made(hutch)
    yield flight
    if flight.RE.state != "idle":
        flight.RE.halt()


# --- a scan that nothing disturbs ------------------------------------------------------------------------------------


def test_two_scans_one_after_the_other_document_every_frame_in_one_stream(flight: Flight) -> None:
    for _ in range(2):
        flight.documents.clear()
        flight.RE(flight.plan())
        assert flight.stop["exit_status"] == "success"
        assert flight.stop["num_events"] == {"primary": POINTS}
        assert flight.count() == POINTS
        flight.assert_idle()
        (descriptor,) = flight.named("descriptor")
        assert descriptor["name"] == "primary"
        assert set(descriptor["object_keys"]) == {"eiger", "xspress3", "pilc"}
        assert descriptor["configuration"]["eiger"]["data"]["eiger_series"] == flight.eiger.series.get()
        assert descriptor["configuration"]["eiger"]["data"]["eiger_trigger_mode"] == "exts"


def test_the_start_document_says_what_the_grid_is(flight: Flight) -> None:
    flight.RE(flight.plan(md={"sample": {"name": "slag"}}))
    (start,) = flight.named("start")
    assert start["plan_name"] == "fly_grid"
    assert start["shape"] == [ROWS, COLUMNS]
    assert start["extents"] == [[-5.0, 5.0], [-10.0, 10.0]]
    assert start["snaking"] == [False, True]
    assert start["hints"] == {
        "dimensions": [(["pilc_y"], "primary"), (["pilc_x"], "primary")],
        "gridding": "rectilinear",
    }
    assert start["detectors"] == ["eiger", "xspress3", "pilc"]
    assert start["motors"] == ["stage_y", "stage_x"]
    assert start["dwell"] == DWELL
    assert start["sample"] == {"name": "slag"}


@pytest.mark.parametrize("snake", [True, False])
def test_triggers_fall_where_they_were_planned_in_either_direction(flight: Flight, snake: bool) -> None:
    flight.RE(flight.plan(snake=snake))
    x, y = flight.positions().T.reshape(2, ROWS, COLUMNS)
    planned = np.linspace(-10, 10, COLUMNS)
    for row in range(ROWS):
        backwards = snake and row % 2 == 1
        np.testing.assert_allclose(x[row], planned[::-1] if backwards else planned, atol=0.02)
        np.testing.assert_allclose(y[row], np.linspace(-5, 5, ROWS)[row], atol=0.1)


def test_each_frame_lies_in_the_file_that_was_promised(flight: Flight) -> None:
    flight.RE(flight.plan())
    spans = flight.frames("eiger_image")
    assert len({path for _, _, path in spans}) == 3, "40 frames, 15 per file"
    for start, stop, path in spans:
        with h5py.File(path, "r") as file:
            assert len(file["/entry/data/data"]) >= (stop - 1) % 15 + 1
        assert start // 15 == (stop - 1) // 15


def test_frames_come_back_from_the_catalog_over_several_files(
    flight: Flight, hutch: Hutch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with Catalog.start(tmp_path_factory.mktemp("catalog"), readable=[hutch.data]) as catalog:
        writer = raw_writer(catalog)
        flight.RE.subscribe(writer)
        (uid,) = flight.RE(flight.plan())
        assert writer.close(30)
        writer.raise_errors()
        stream = catalog.raw[uid]["primary"]
        assert stream["eiger_image"].shape == (POINTS, 514, 1030)
        for frame in (0, 14, 15, POINTS - 1):
            path = next(path for start, stop, path in flight.frames("eiger_image") if start <= frame < stop)
            with h5py.File(path, "r") as file:
                np.testing.assert_array_equal(stream["eiger_image"][frame], file["/entry/data/data"][frame % 15])
        np.testing.assert_array_equal(stream["pilc_x"].read(), flight.positions()[:, 0])
        spectra = stream["xspress3_channel02"].read()
        np.testing.assert_array_equal(spectra.sum(axis=1), stream["xspress3_channel02_allevent"].read())


def test_the_progress_bar_counts_the_whole_scan_and_goes_away(flight: Flight, capsys: Any) -> None:
    manager = ProgressBarManager()
    flight.RE.waiting_hook = manager
    flight.RE(flight.plan())
    flight.RE(flight.plan())
    assert manager.pbar is None
    assert f"{POINTS}.0/{POINTS}.0" in capsys.readouterr().out.replace("\r", "\n")


# --- interruptions ---------------------------------------------------------------------------------------------------


def test_a_deferred_pause_waits_for_the_end_of_the_line_and_loses_nothing(flight: Flight) -> None:
    thread = flight.meanwhile(lambda: flight.RE.request_pause(defer=True))
    with pytest.raises(RunEngineInterrupted):
        flight.RE(flight.plan(dwell=0.03))
    thread.join()
    assert flight.RE.state == "paused"
    assert flight.pilc.frames() == 2 * COLUMNS
    flight.RE.resume()
    assert flight.stop["exit_status"] == "success"
    assert flight.count() == POINTS
    flight.assert_idle()


def test_an_immediate_pause_flies_the_line_again_keeps_both_and_says_so(flight: Flight, capsys: Any) -> None:
    thread = flight.meanwhile(flight.RE.request_pause)
    with pytest.raises(RunEngineInterrupted):
        flight.RE(flight.plan(dwell=0.03))
    thread.join()
    eventually(lambda: flight.pilc.line is not None and flight.pilc.line.done, "the line's last rows are drained")
    kept = flight.pilc.frames() - COLUMNS
    assert 3 <= kept < COLUMNS
    flight.RE.resume()
    assert flight.stop["exit_status"] == "success"
    assert flight.count() == flight.eiger.frames() == POINTS + kept
    said = capsys.readouterr().out
    assert f"line 2 of {ROWS}: interrupted after {kept} of {COLUMNS} points, flown again; both are kept." in said
    x = flight.positions()[:, 0]
    np.testing.assert_allclose(x[COLUMNS : COLUMNS + kept], x[COLUMNS + kept : COLUMNS + 2 * kept], atol=0.02)
    flight.assert_idle()


def test_a_suspender_flies_the_line_again_by_itself(flight: Flight) -> None:
    beam_off = Signal(name="beam_off", value=0)
    flight.RE.install_suspender(SuspendBoolHigh(beam_off))

    def trip() -> None:
        beam_off.put(1)
        eventually(lambda: flight.pilc.interrupted, "the line is interrupted")
        beam_off.put(0)

    thread = flight.meanwhile(trip)
    flight.RE(flight.plan(dwell=0.03))
    thread.join()
    assert flight.stop["exit_status"] == "success"
    assert flight.count() == flight.eiger.frames() > POINTS
    flight.assert_idle()


@pytest.mark.parametrize(("end", "status"), [("abort", "abort"), ("stop", "success")])
def test_abort_and_stop_leave_closed_files_and_an_honest_stop_document(flight: Flight, end: str, status: str) -> None:
    thread = flight.meanwhile(flight.RE.request_pause)
    with pytest.raises(RunEngineInterrupted):
        flight.RE(flight.plan(dwell=0.03))
    thread.join()
    getattr(flight.RE, end)()
    assert flight.stop["exit_status"] == status
    assert flight.stop["num_events"] == {"primary": flight.count()}
    assert COLUMNS + 3 <= flight.count() < 2 * COLUMNS
    assert flight.count() == flight.eiger.frames() == flight.pilc.frames() == flight.xspress3.frames()
    flight.assert_idle()


def test_ctrl_c_twice_pauses_at_once_and_the_scan_can_be_aborted(flight: Flight) -> None:
    def press_twice() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        eventually(lambda: flight.RE.deferred_pause_requested, "the first Ctrl-C is understood")
        threading.Event().wait(0.15)  # bluesky takes presses within 0.1 s for one
        os.kill(os.getpid(), signal.SIGINT)

    thread = flight.meanwhile(press_twice, fired=1)
    with pytest.raises(RunEngineInterrupted):
        flight.RE(flight.plan(dwell=0.08))
    thread.join()
    assert flight.RE.state == "paused"
    assert flight.pilc.frames() < 2 * COLUMNS, "it did not wait for the line's end"
    flight.RE.abort("enough")
    assert flight.stop["exit_status"] == "abort"
    flight.assert_idle()


# --- failures --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("break_it", "reason"),
    [
        (lambda flight: flight.xspress3.command("StopAcquisition"), "xspress3: .* is in state ON in the middle"),
        (lambda flight: flight.eiger.command("abort"), "eiger: .* is in state idle in the middle"),
        (lambda flight: flight.pilc.arm.put(0), f"pilc: . of {COLUMNS} triggers in line 2 of {ROWS}"),
        (lambda flight: flight.stage.x.command("StopMove"), "stage_x: rests at .* µm, not at"),
        (lambda flight: flight.pilc.complete().set_exception(DetectorError("pilc: tripped")), "pilc: tripped"),
    ],
    ids=["xspress3", "eiger", "pilc", "stage", "status"],
)
def test_an_instrument_that_fails_in_a_line_fails_the_run_with_its_reason(
    flight: Flight, break_it: Callable[[Flight], object], reason: str
) -> None:
    thread = flight.meanwhile(lambda: break_it(flight))
    with pytest.raises(DetectorError, match=reason) as failure:
        flight.RE(flight.plan(dwell=0.03))
    thread.join()
    assert "\n" not in str(failure.value)
    assert flight.stop["exit_status"] == "fail"
    assert flight.stop["reason"] == str(failure.value)
    assert flight.count() >= COLUMNS
    flight.assert_idle()


def test_a_beamline_that_dies_fails_the_run_and_hangs_nothing(tmp_path: Path) -> None:
    with simulated(tmp_path) as hutch:
        flight = made(hutch)
        thread = flight.meanwhile(lambda: os.kill(hutch.endpoints["pid"], signal.SIGKILL))
        with pytest.raises(DetectorError, match="no answer"):
            flight.RE(flight.plan(dwell=0.03))
        thread.join()
        assert flight.stop["exit_status"] == "fail"
        assert "no answer" in flight.stop["reason"]
        assert flight.RE.state == "idle"


# --- arguments -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"dwell": 1e-5}, "too short for eiger|µm/s, the stage flies"),
        ({"dwell": 2.5e-4}, "µm/s, the stage flies 5000 at most"),
        ({"num": 0}, "num = 0"),
        ({"fast_num": 1}, "fast_num = 1"),
        ({"stop": 1e6}, "the slow axis would go"),
        ({"fast_stop": 999.9, "fast_num": 1000}, "the fast axis would go .* with run-ups"),
        ({"fast_motor": Signal(name="knob")}, "fast_motor: knob isn't a motor"),
        ({"slow_motor": "y"}, "slow_motor: y isn't a motor"),
        ({"detectors": lambda f: [f.eiger, f.xspress3]}, "0 PiLCs among the detectors; exactly one"),
        ({"detectors": lambda f: [f.eiger, f.eiger, f.pilc]}, "eiger stands twice"),
        ({"detectors": lambda f: [Signal(name="diode"), f.pilc]}, "diode can't fly"),
        ({"detectors": lambda f: f.eiger}, "expected a list, got eiger"),
        ({"slow_motor": lambda f: f.stage.x}, "slow_motor and fast_motor are both stage_x"),
    ],
)
def test_what_cannot_be_flown_is_refused_in_one_line_before_a_run_opens(
    flight: Flight, change: dict[str, Any], reason: str
) -> None:
    arguments: dict[str, Any] = {
        "detectors": [flight.eiger, flight.xspress3, flight.pilc],
        "slow_motor": flight.stage.y, "start": -5, "stop": 5, "num": ROWS,
        "fast_motor": flight.stage.x, "fast_start": -10, "fast_stop": 10, "fast_num": COLUMNS, "dwell": DWELL,
    }  # fmt: skip
    for name, value in change.items():
        arguments[name] = value(flight) if callable(value) and not isinstance(value, Signal) else value
    with pytest.raises(SettingsError, match=reason) as refusal:
        flight.RE(fly_grid(**arguments))
    assert "\n" not in str(refusal.value)
    assert flight.documents == []
    assert not flight.stage.x.moving


def test_a_detector_that_is_off_is_named_before_a_run_opens(flight: Flight) -> None:
    off = Eiger("http://127.0.0.1:1", name="eiger", stream="tcp://127.0.0.1:2", data_dir=".")
    with pytest.raises(DetectorError, match=r"eiger_state: http://127.0.0.1:1: no answer"):
        flight.RE(fly_grid([off, flight.pilc], flight.stage.y, 0, 1, 2, flight.stage.x, 0, 1, 5, dwell=0.01))
    assert flight.documents == []


# --- a detector that keeps no file -----------------------------------------------------------------------------------


def test_a_detector_without_files_promises_a_frame_for_each_trigger(flight: Flight) -> None:
    flight.eiger.stored.put(False)
    flight.RE(flight.plan())
    assert flight.stop["exit_status"] == "success"
    assert flight.stop["num_events"] == {"primary": POINTS}
    assert flight.count() == POINTS
    (resource,) = [doc for doc in flight.named("stream_resource") if doc["data_key"] == "eiger_image"]
    assert resource["mimetype"] == "application/x-haltere-stream"
    assert resource["uri"] == flight.eiger.stream_endpoint.get()
    assert resource["parameters"]["series"] == flight.eiger.series.get()
    (descriptor,) = flight.named("descriptor")
    assert descriptor["configuration"]["eiger"]["data"]["eiger_stored"] is False


def test_a_step_scan_needs_the_files(flight: Flight) -> None:
    flight.eiger.stored.put(False)
    with pytest.raises(SettingsError, match=r"put eiger\.stored to True"):
        flight.eiger.trigger().wait(10)
