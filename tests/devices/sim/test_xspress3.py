"""The Xspress3: its spectra, its scalers, its files, its Tango class."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h5py
import numpy as np
import pytest
import tango

from haltere.devices.sim import xspress3_acquisition
from haltere.devices.sim.fluorescence import BINS, CLOCK, EVENT_WIDTH, GAIN, SCALERS, SOLID_ANGLE, Spectrometer
from haltere.devices.sim.sample import Sample
from haltere.devices.sim.xspress3_acquisition import AcquisitionSettings, Xspress3Acquisition
from haltere.workers.errors import DetectorError, FileError

MOVING, ON, FAULT = tango.DevState.MOVING, tango.DevState.ON, tango.DevState.FAULT
CHANNEL = "entry/instrument/xspress3/channel{:02d}"
NUMBERS = "entry/instrument/detector/sequence_number"


@pytest.fixture(scope="module")
def spectrometer() -> Spectrometer:
    return Spectrometer(Sample(2), seed=2)


@pytest.fixture
def box(spectrometer: Spectrometer) -> Iterator[Xspress3Acquisition]:
    found = Xspress3Acquisition(spectrometer)
    yield found
    found.stop()


def gated(folder: Path, frames: int, **changes: Any) -> AcquisitionSettings:
    settings = AcquisitionSettings(frames=frames, exposure=0.1, gated=True, folder=str(folder), prefix="scan")
    return replace(settings, **changes)


def row(spectrometer: Spectrometer, x: float, y: float) -> Any:
    return spectrometer.rates(np.array([x]), np.array([y]))[0]


# --- spectra ----------------------------------------------------------------------------------------------------------


def test_a_reading_is_a_function_of_seed_number_and_place(spectrometer: Spectrometer) -> None:
    again = Spectrometer(Sample(2), seed=2)
    rates = row(spectrometer, 1.5, -2.0)
    first = spectrometer.read(7, 1.5, -2.0, rates, 0.005)
    assert np.array_equal(first.histograms, again.read(7, 1.5, -2.0, rates, 0.005).histograms)
    assert np.array_equal(first.scalers, again.read(7, 1.5, -2.0, rates, 0.005).scalers)
    for other in (spectrometer.read(8, 1.5, -2.0, rates, 0.005), spectrometer.read(7, 1.6, -2.0, rates, 0.005)):
        assert not np.array_equal(first.histograms, other.histograms)


def test_spectra_follow_their_expectation(spectrometer: Spectrometer) -> None:
    rates = row(spectrometer, 0.0, 0.0)
    mean = spectrometer.expectation(rates, 20.0)
    seen = spectrometer.read(0, 0.0, 0.0, rates, 20.0)
    measured = seen.histograms[0] * (mean.sum() / seen.histograms[0].sum())
    expected = mean.reshape(-1, 8).sum(axis=1)
    residual = (measured.reshape(-1, 8).sum(axis=1) - expected)[expected > 25] / np.sqrt(expected[expected > 25])
    assert np.abs(residual).max() < 6
    assert residual.std() == pytest.approx(1.0, abs=0.25)


def test_iron_peaks_at_its_energy_where_there_is_iron() -> None:
    sample = Sample(2)
    spectrometer = Spectrometer(sample)
    x, y = (grid.ravel() for grid in np.meshgrid(np.linspace(-50, 50, 21), np.linspace(-50, 50, 21)))
    iron = sample.elements(x, y)["Fe"]
    rich, poor = int(iron.argmax()), int(iron.argmin())
    window = slice(round(6.25 / GAIN), round(6.55 / GAIN))
    spectra = [spectrometer.read(0, x[k], y[k], row(spectrometer, x[k], y[k]), 1.0).histograms[0] for k in (rich, poor)]
    assert (window.start + spectra[0][window].argmax()) * GAIN == pytest.approx(6.40, abs=0.03)
    assert spectra[0][window].sum() > 3 * spectra[1][window].sum()


def test_the_rate_is_that_of_a_fluorescence_detector(spectrometer: Spectrometer) -> None:
    x, y = (grid.ravel() for grid in np.meshgrid(np.linspace(-50, 50, 21), np.linspace(-50, 50, 21)))
    assert 1e5 < spectrometer.rates(x, y).sum(axis=1).mean() < 2e5


def test_the_dead_time_scalers_restore_the_true_rate(spectrometer: Spectrometer) -> None:
    seconds, rates = 20.0, row(spectrometer, 3.0, 4.0)
    reading = spectrometer.read(0, 3.0, 4.0, rates, seconds)
    for channel in range(4):
        scaler = dict(zip(SCALERS, reading.scalers[channel].astype(float), strict=True))
        assert scaler["totalticks"] == scaler["time"] == seconds * CLOCK
        assert scaler["allevent"] == reading.histograms[channel].sum()
        assert scaler["allgood"] == scaler["allevent"] - scaler["pileup"]
        dead = scaler["allevent"] * (EVENT_WIDTH + 1) + scaler["resetticks"]
        factor = scaler["totalticks"] / (scaler["totalticks"] - dead)
        true = SOLID_ANGLE[channel] * rates.sum() * seconds
        assert scaler["allevent"] < true - 6 * np.sqrt(true)  # or there would be nothing to correct
        assert factor * scaler["allevent"] == pytest.approx(true, abs=5 * np.sqrt(true))


# --- acquisition and file ---------------------------------------------------------------------------------------------


def test_each_gate_gives_a_frame_in_the_file(
    box: Xspress3Acquisition, until: Callable[..., None], tmp_path: Path
) -> None:
    box.start(gated(tmp_path, 30))
    for number in range(30):
        assert box.gate((float(number), 0.0), 0.002)
    until(lambda: not box.running, "the acquisition ends")
    assert (box.frames, box.written, box.fault) == (30, 30, "")
    with h5py.File(tmp_path / "scan.nxs") as file:
        assert file[NUMBERS][:].tolist() == list(range(1, 31))
        for channel in range(4):
            group = file[CHANNEL.format(channel)]
            assert group["histogram"].shape == (30, BINS)
            assert group["histogram"].dtype == np.int32
            assert set(group["scaler"]) == set(SCALERS)
            assert all(group["scaler"][name].dtype == np.float32 for name in SCALERS)
            assert np.array_equal(group["histogram"][:].sum(axis=1), group["scaler/allevent"][:])


def test_bursts_and_single_gates_give_the_same_bits(
    box: Xspress3Acquisition, until: Callable[..., None], tmp_path: Path
) -> None:
    """Gates are read together or alone as time has it; that must not show."""
    places = [(k * 0.7, k * -0.3) for k in range(12)]
    for name, alone in (("burst", False), ("single", True)):
        box.start(gated(tmp_path, 12, prefix=name))
        for number, place in enumerate(places):
            box.gate(place, 0.001)
            if alone:
                until(lambda read=number + 1: box.frames == read, "the frame is read")
        until(lambda: not box.running, "the acquisition ends")
    with h5py.File(tmp_path / "burst.nxs") as burst, h5py.File(tmp_path / "single.nxs") as single:
        for channel in range(4):
            key = f"{CHANNEL.format(channel)}/histogram"
            assert np.array_equal(burst[key][:], single[key][:])


READER = """
import h5py, json, sys
with h5py.File(sys.argv[1], "r", swmr=True) as file:
    histogram = file["entry/instrument/xspress3/channel03/histogram"]
    numbers = file["entry/instrument/detector/sequence_number"]
    print("open", flush=True)
    for line in sys.stdin:
        numbers.refresh(); histogram.refresh()
        n = len(numbers)
        print(json.dumps([n, int(histogram[n - 1].sum()) if n else 0]), flush=True)
"""


def test_another_process_reads_the_file_while_it_grows(
    box: Xspress3Acquisition, until: Callable[..., None], tmp_path: Path
) -> None:
    box.start(gated(tmp_path, 40))
    with subprocess.Popen(
        [sys.executable, "-c", READER, str(tmp_path / "scan.nxs")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as reader:
        assert reader.stdin is not None
        assert reader.stdout is not None
        assert reader.stdout.readline() == "open\n"
        for half in (1, 2):
            assert box.running
            for number in range(19):
                box.gate((float(number), 0.0), 0.001)
            until(lambda half=half: box.written == 19 * half, "the frames are flushed", 2.0)
            reader.stdin.write("look\n")
            reader.stdin.flush()
            count, total = json.loads(reader.stdout.readline())
            assert count == 19 * half
            assert box.latest is not None
            assert total == box.latest.histograms[3].sum()
        reader.stdin.close()


def test_frames_per_file_splits_and_a_mask_leaves_channels_out(
    box: Xspress3Acquisition, until: Callable[..., None], tmp_path: Path
) -> None:
    box.start(gated(tmp_path, 10, per_file=4, masked=0b0101, bins=2048))
    for _ in range(10):
        box.gate((0.0, 0.0), 0.001)
    until(lambda: not box.running, "the acquisition ends")
    lengths = []
    for number in range(3):
        with h5py.File(tmp_path / f"scan_{number:05d}.nxs") as file:
            assert set(file["entry/instrument/xspress3"]) == {"channel01", "channel03"}
            lengths.append(file[CHANNEL.format(1)]["histogram"].shape)
            first = int(file[NUMBERS][0])
            assert first == 4 * number + 1
    assert lengths == [(4, 2048), (4, 2048), (2, 2048)]


def test_stopped_early_it_keeps_what_it_read(
    box: Xspress3Acquisition, until: Callable[..., None], tmp_path: Path
) -> None:
    box.start(gated(tmp_path, 100))
    for _ in range(5):
        box.gate((0.0, 0.0), 0.001)
    until(lambda: box.frames == 5, "five frames")
    box.stop()
    assert not box.running
    with h5py.File(tmp_path / "scan.nxs") as file:
        assert len(file[NUMBERS]) == 5


def test_frames_timed_internally_are_taken_where_the_stage_is(
    spectrometer: Spectrometer, until: Callable[..., None], tmp_path: Path
) -> None:
    box = Xspress3Acquisition(spectrometer, position=lambda: (12.0, 8.0))
    box.start(gated(tmp_path, 3, gated=False, exposure=0.01))
    until(lambda: not box.running, "the acquisition ends")
    expected = spectrometer.read(2, 12.0, 8.0, row(spectrometer, 12.0, 8.0), 0.01)
    assert box.latest is not None
    assert np.array_equal(box.latest.histograms, expected.histograms)


def test_gates_that_nobody_awaits_are_counted(box: Xspress3Acquisition, tmp_path: Path) -> None:
    assert not box.gate((0.0, 0.0), 0.001)
    box.start(gated(tmp_path, 1))
    assert box.gate((0.0, 0.0), 0.001)
    assert not box.gate((0.0, 0.0), 0.001)
    assert box.ignored_gates == 2


def test_gates_that_the_buffer_cannot_take_are_counted_and_a_fault(
    box: Xspress3Acquisition, until: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(xspress3_acquisition, "RING", 3)
    box.start(gated(tmp_path, 10))
    taken = [box.gate((0.0, 0.0), 0.3) for _ in range(5)]
    assert taken == [True, True, True, False, False]
    until(lambda: box.frames == 3, "the three are read")
    box.stop()
    assert box.fault == "buffer of 3 frames overflowed: 2 gates lost"


def test_a_file_that_exists_is_not_overwritten(box: Xspress3Acquisition, tmp_path: Path) -> None:
    (tmp_path / "scan.nxs").write_text("precious")
    with pytest.raises(FileError, match=r"scan\.nxs exists; set another FilePrefix"):
        box.start(gated(tmp_path, 1))
    assert "exists" in box.fault
    assert (tmp_path / "scan.nxs").read_text() == "precious"


def test_a_folder_that_cannot_be_made_is_a_fault_that_names_it(box: Xspress3Acquisition, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FileError, match=f"folder {tmp_path}/file/sub can't be written: Not a directory"):
        box.start(gated(tmp_path / "file" / "sub", 1))
    assert not box.running
    assert str(tmp_path / "file" / "sub") in box.fault


def test_a_full_disk_is_a_fault_and_keeps_what_was_written(
    box: Xspress3Acquisition, until: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    box.start(gated(tmp_path, 300))
    for _ in range(120):
        box.gate((0.0, 0.0), 0.001)
    until(lambda: box.written == 120, "the first frames are flushed")
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=1_000_000))
    for _ in range(10):
        box.gate((0.0, 0.0), 0.001)
    until(lambda: not box.running, "the acquisition ends")
    assert box.fault.startswith(f"folder {tmp_path} is full: 1.0 MB free, scan.nxs needs 4.")
    assert box.fault.endswith("frames from 120 on are lost")
    with h5py.File(tmp_path / "scan.nxs") as file:
        assert len(file[NUMBERS]) == 120


REFUSED = """
import os, resource, sys, threading
from haltere.devices.sim.fluorescence import Spectrometer
from haltere.devices.sim.sample import Sample
from haltere.devices.sim.xspress3_acquisition import AcquisitionSettings, Xspress3Acquisition
ended = threading.Event()
box = Xspress3Acquisition(Spectrometer(Sample(2)))
box.changed = lambda: None if box.running else ended.set()
def take(prefix, frames):
    ended.clear()
    box.start(AcquisitionSettings(frames, 0.1, True, sys.argv[1], prefix, compress=False))
    for _ in range(frames):
        box.gate((0.0, 0.0), 0.001)
    assert ended.wait(30)
    print(box.fault, flush=True)
soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, hard))
take("refused", 300)
resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
take("after", 1)
os._exit(0)
"""


def test_a_write_that_the_system_refuses_is_a_fault_and_not_a_crash(tmp_path: Path) -> None:
    """In a process of its own, which ends as the beamline does: HDF5's clean-up may crash on what it couldn't write."""
    ended = subprocess.run([sys.executable, "-c", REFUSED, str(tmp_path)], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0, ended.stderr
    refused, after = ended.stdout.splitlines()
    assert f"folder {tmp_path}: refused.nxs can't be written" in refused
    assert after == ""


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"frames": 0}, "NbFrames is 0"),
        ({"gated": False, "exposure": 0.0}, "ExposureTime is 0 s"),
        ({"bins": 5000}, "MCALength is 5000"),
        ({"prefix": ""}, "FilePrefix is empty"),
    ],
)
def test_settings_beyond_the_box_are_refused(
    box: Xspress3Acquisition, tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    with pytest.raises(DetectorError, match=said):
        box.start(replace(gated(tmp_path, 1), **change))


# --- the Tango class --------------------------------------------------------------------------------------------------


def test_a_client_takes_frames_through_tango(tango_beamline: Any, until: Callable[..., None], tmp_path: Path) -> None:
    detector = tango_beamline.proxy("xspress3", "tango")
    detector.TriggerMode, detector.NbFrames, detector.ExposureTime = 0, 4, 0.05
    detector.FileDir, detector.FilePrefix = str(tmp_path), "client"
    detector.StartAcquisition()
    assert detector.state() == MOVING
    with pytest.raises(tango.DevFailed, match="acquiring; StopAcquisition first"):
        detector.NbFrames = 5
    until(lambda: detector.state() == ON, "the frames are taken")
    assert (detector.LastFrame, detector.LastFrameWritten) == (4, 4)
    with h5py.File(tmp_path / "client.nxs") as file:
        for channel in range(4):
            latest = file[CHANNEL.format(channel)]["histogram"][3]
            assert np.array_equal(detector.read_attribute(f"DataCh{channel}").value, latest)


def test_the_generators_triggers_open_its_gate(tango_beamline: Any, until: Callable[..., None], tmp_path: Path) -> None:
    detector = tango_beamline.proxy("xspress3", "tango")
    generator = tango_beamline.proxy("pilc", "trigger_generator")
    detector.TriggerMode, detector.NbFrames = 1, 15
    detector.FileDir, detector.FilePrefix = str(tmp_path), "gated"
    generator.TriggerMode, generator.NbTriggers, generator.FileDir = 2, 15, ""
    generator.TimeTriggerStepSize, generator.TriggerPulseLength = 0.004, 0.003
    detector.StartAcquisition()
    generator.Arm = 1
    until(lambda: detector.state() == ON, "the frames are taken")
    until(lambda: generator.state() == ON, "the generator rests")
    with h5py.File(tmp_path / "gated.nxs") as file:
        assert file[CHANNEL.format(0)]["scaler/totalticks"][:].tolist() == [0.003 * CLOCK] * 15


def test_an_exposure_too_short_for_it_is_refused(tango_beamline: Any) -> None:
    detector = tango_beamline.proxy("xspress3", "tango")
    assert float(detector.get_attribute_config("ExposureTime").min_value) == 1e-5
    with pytest.raises(tango.DevFailed, match="minimum"):
        detector.ExposureTime = 1e-6


def test_stop_acquisition_ends_it_at_once(tango_beamline: Any, until: Callable[..., None], tmp_path: Path) -> None:
    detector = tango_beamline.proxy("xspress3", "tango")
    detector.TriggerMode, detector.NbFrames = 1, 1000
    detector.FileDir, detector.FilePrefix = str(tmp_path), "stopped"
    detector.StartAcquisition()
    detector.StopAcquisition()
    until(lambda: detector.state() == ON, "it ends", 2.0)


def test_the_state_is_fault_when_the_folder_cannot_be_written(tango_beamline: Any, tmp_path: Path) -> None:
    detector = tango_beamline.proxy("xspress3", "tango")
    (tmp_path / "file").touch()
    detector.FileDir = str(tmp_path / "file" / "sub")
    with pytest.raises(tango.DevFailed, match="can't be written: Not a directory"):
        detector.StartAcquisition()
    assert detector.state() == FAULT
    assert str(tmp_path / "file" / "sub") in detector.status()
    detector.FileDir = str(tmp_path)
    assert detector.state() == ON
