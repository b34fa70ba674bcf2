"""The simulated beamline as a whole, in a process of its own."""

import hashlib
import json
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import tango

MOVING, ON = tango.DevState.MOVING, tango.DevState.ON
COMMAND = [sys.executable, "-m", "haltere.devices.sim.beamline"]


def put(endpoints: dict[str, Any], key: str, value: Any = None) -> Any:
    module, kind, name = key.split("/")
    url = f"{endpoints['eiger']['rest']}/{module}/api/{endpoints['eiger']['api']}/{kind}/{name}"
    body = b"" if value is None else json.dumps({"value": value}).encode()
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"}, method="PUT")
    with urllib.request.urlopen(request, timeout=10) as answer:
        text = answer.read()
    return json.loads(text) if text else None


class Scan:
    """Two lines there and back, as a client flies them."""

    columns = 12
    rows = 2
    dwell = 0.004

    def __init__(self, beamline: Any, until: Callable[..., None], folder: Path) -> None:
        self.endpoints = beamline.endpoints
        self.until = until
        self.folder = folder
        self.generator = beamline.proxy("pilc", "trigger_generator")
        self.detector = beamline.proxy("xspress3", "tango")
        self.x, self.y = beamline.proxy("stage", "x"), beamline.proxy("stage", "y")
        self.positions: list[Any] = []

    def rest(self, motor: Any, target: float) -> None:
        """Move and wait."""
        motor.Position = target
        self.until(lambda: motor.state() == ON, "the motor arrives")

    def arm(self) -> None:
        """Make the detectors wait for triggers."""
        frames = self.rows * self.columns
        if self.endpoints["eiger"]:
            put(self.endpoints, "detector/command/initialize")
            for key, value in (
                ("detector/config/trigger_mode", "exts"),
                ("detector/config/nimages", 1),
                ("detector/config/ntrigger", frames),
                ("detector/config/count_time", 0.003),
                ("filewriter/config/mode", "enabled"),
                ("filewriter/config/name_pattern", "scan"),
            ):
                put(self.endpoints, key, value)
            put(self.endpoints, "detector/command/arm")
        self.detector.TriggerMode, self.detector.NbFrames = 1, frames
        self.detector.FileDir, self.detector.FilePrefix = str(self.folder), "spectra"
        self.detector.StartAcquisition()

    def fly(self) -> None:
        """Fly both lines and wait for the files."""
        self.arm()
        generator = self.generator
        generator.TriggerMode, generator.NbTriggers = 1, self.columns
        generator.TriggerPulseLength = 0.003
        generator.FileDir, generator.FilePrefix = str(self.folder), "line"
        for row in range(self.rows):
            sign = 1 if row % 2 == 0 else -1
            first, last = (0.0, self.columns - 1.0)[::sign]
            self.x.Velocity = 1000.0
            self.rest(self.x, first - sign * 3.0)
            self.rest(self.y, row * 1.0)
            self.x.Velocity = 1.0 / self.dwell
            generator.PositionTriggerStart, generator.PositionTriggerStepSize = first, sign * 1.0
            generator.Arm = 1
            self.x.Position = last + sign * 3.0
            self.until(lambda: generator.state() == ON, "the line ends")
            self.until(lambda: self.x.state() == ON, "the stage rests")
            self.positions.append((generator.Position1Data, generator.Position2Data, generator.TimeData))
        self.until(lambda: self.detector.state() == ON, "the spectra are written")
        if self.endpoints["eiger"]:
            put(self.endpoints, "detector/command/disarm")

    def digest(self) -> str:
        """Stand for all positions, times and spectra."""
        found = hashlib.sha256(np.array(self.positions).tobytes())
        with h5py.File(self.folder / "spectra.nxs") as file:
            for channel in range(4):
                group = file[f"entry/instrument/xspress3/channel{channel:02d}"]
                for array in (group["histogram"], *group["scaler"].values()):
                    found.update(array[:].tobytes())
        return found.hexdigest()


@pytest.fixture
def outsider() -> Iterator[int]:
    """Have a port that somebody else holds."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        yield int(taken.getsockname()[1])


def test_a_scan_gives_a_frame_a_spectrum_and_a_position_per_trigger(
    start_beamline: Callable[..., Any], until: Callable[..., None], tmp_path: Path
) -> None:
    beamline = start_beamline(tmp_path / "data")
    endpoints = beamline.endpoints
    assert set(endpoints) == {"eiger", "pilc", "xspress3", "stage", "pid"}
    assert set(endpoints["eiger"]) == {"rest", "stream", "api", "data_dir"}
    assert endpoints["pid"] == beamline.process.pid
    assert Path(endpoints["xspress3"]["data_dir"]) == tmp_path / "data" / "xspress3"

    scan = Scan(beamline, until, tmp_path)
    scan.fly()
    frames = scan.rows * scan.columns
    assert np.array([line[0] for line in scan.positions]) == pytest.approx(
        np.array([np.arange(12.0), np.arange(12.0)[::-1]]), abs=0.01
    )
    assert [line[1].mean() for line in scan.positions] == pytest.approx([0.0, 1.0], abs=0.01)
    with h5py.File(tmp_path / "spectra.nxs") as file:
        assert file["entry/instrument/detector/sequence_number"][:].tolist() == list(range(1, frames + 1))

    data_file = Path(endpoints["eiger"]["data_dir"]) / "scan_data_000001.h5"
    until(data_file.exists, "the Eiger's file is there")
    with h5py.File(data_file) as file:
        assert file["entry/data/data"].shape[0] == frames


def test_the_same_seed_gives_the_same_bits_and_another_does_not(
    start_beamline: Callable[..., Any], until: Callable[..., None], tmp_path: Path
) -> None:
    digests = []
    for number, seed in enumerate(("11", "11", "12")):
        folder = tmp_path / str(number)
        scan = Scan(start_beamline(folder, "--no-eiger", "--seed", seed), until, folder)
        scan.fly()
        digests.append(scan.digest())
    assert digests[0] == digests[1]
    assert digests[0] != digests[2]


def test_sigterm_closes_the_files_and_ends_with_0(
    start_beamline: Callable[..., Any], until: Callable[..., None], tmp_path: Path
) -> None:
    beamline = start_beamline(tmp_path, "--no-eiger")
    scan = Scan(beamline, until, tmp_path)
    scan.arm()
    scan.generator.TriggerMode, scan.generator.NbTriggers, scan.generator.FileDir = 2, 5, ""
    scan.generator.TimeTriggerStepSize, scan.generator.TriggerPulseLength = 0.002, 0.001
    scan.generator.Arm = 1
    until(lambda: scan.detector.LastFrame == 5, "five frames are read")
    beamline.process.terminate()
    assert beamline.process.wait(10) == 0
    with h5py.File(tmp_path / "spectra.nxs") as file:
        assert len(file["entry/instrument/detector/sequence_number"]) == 5


def test_it_ends_with_its_parent(tmp_path: Path) -> None:
    ended = subprocess.run(
        [*COMMAND, "--json", "--until-eof", "--no-eiger", "--data-dir", tmp_path], input=b"", timeout=30, check=False
    )
    assert ended.returncode == 0


@pytest.mark.parametrize("name", ["tango", "rest", "stream"])
def test_a_port_that_is_taken_is_said_in_one_line(name: str, outsider: int, tmp_path: Path) -> None:
    ended = subprocess.run(
        [*COMMAND, "--data-dir", tmp_path, f"--{name}-port", str(outsider)],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert ended.returncode == 2
    assert ended.stdout == ""
    assert ended.stderr.splitlines() == [
        f"{name} port {outsider} can't be used: Address already in use; take another one, or 0 for any"
    ]


def test_a_data_folder_that_cannot_be_written_is_said_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    ended = subprocess.run(
        [*COMMAND, "--data-dir", tmp_path / "file" / "sub"], capture_output=True, text=True, timeout=30, check=False
    )
    assert ended.returncode == 2
    assert ended.stderr.splitlines() == [
        f"data folder {tmp_path}/file/sub can't be written: Not a directory; name another with --data"
    ]
