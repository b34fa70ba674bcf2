"""What goes wrong, as a user meets it: one line that names culprit, place and remedy, and nothing lost."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import psutil
import pytest
from event_model import compose_run

from haltere.callbacks.access import processed
from haltere.interactive import namespace
from haltere.plans.fly import FlyDetector, fly_grid
from haltere.session import Session, connect
from haltere.workers.errors import DetectorError, SettingsError
from haltere.workers.ledger.reader import LedgerReader
from haltere.workers.reducers import azimuthal
from haltere.workers.settings import BeamlineSettings, load
from haltere.workers.wire import simplon

from .conftest import ToldPool

PONI = """poni_version: 2
Detector: Detector
Detector_config: {{"pixel1": 7.5e-05, "pixel2": 7.5e-05, "max_shape": [{rows}, {columns}]}}
Distance: 0.2
Poni1: 0.04
Poni2: 0.04
Rot1: 0
Rot2: 0
Rot3: 0
Wavelength: 1e-10
"""


def haltere(*arguments: str | Path, timeout: float = 60) -> tuple[int, str]:
    """Run the command; return its exit code and what it wrote to standard error, which is one line."""
    command = [sys.executable, "-m", "haltere", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    assert done.stderr.count("\n") == 1, done.stderr
    assert done.stdout == ""
    return done.returncode, done.stderr.strip()


# --- before anything is started --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["rest", "stream", "tango"])
def test_a_port_that_is_taken_is_named(tmp_path: Path, name: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, line = haltere("sim", f"--{name}-port", str(port), "--data", tmp_path)
    assert code == 2
    assert line == f"haltere: {name} port {port} can't be used: Address already in use; take another one, or 0 for any"


@pytest.mark.parametrize(
    ("command", "says"),
    [
        (("demo", "--headless", "--keep"), "folder {} can't be written: Not a directory; name another with --keep"),
        (("sim", "--data"), "data folder {} can't be written: Not a directory; name another with --data"),
    ],
)
def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path, command: tuple[str, ...], says: str) -> None:
    (tmp_path / "file").write_text("in the way")
    folder = tmp_path / "file" / "below"
    code, line = haltere(*command, folder)
    assert (code, line) == (2, "haltere: " + says.format(folder))
    assert (tmp_path / "file").read_text() == "in the way"


def test_a_session_in_a_folder_that_cannot_be_written_names_it(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(SettingsError, match=r"folder .*/file/below can't be written: Not a directory; name another"):
        Session.start(load(directory=tmp_path / "file" / "below"))


def test_a_demo_that_would_replace_something_else_leaves_it_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("precious")
    code, line = haltere("demo", "--headless", "--keep", tmp_path)
    assert (code, line) == (
        2,
        f"haltere: {tmp_path} holds something else than a demo: name an empty folder with --keep",
    )
    assert (tmp_path / "thesis.txt").read_text() == "precious"


def test_a_poni_of_another_detector_is_refused_before_anything_is_touched(tmp_path: Path, measurements: Path) -> None:
    frame = measurements / "ceo2_pilatus1m" / "CeO2_Pilatus1M.tif"
    poni = tmp_path / "eiger.poni"
    poni.write_text(PONI.format(rows=514, columns=1030))
    keep = tmp_path / "earlier"
    code, line = haltere("demo", "--headless", "--keep", keep, "--frames", frame, "--poni", poni)
    assert code == 2
    assert line == (
        f"haltere: --poni {poni}: the poni describes Detector with 514 × 1030 pixels, {frame} has 1043 × 981: "
        "calibrate with a frame of this detector, or name its own poni"
    )
    assert not keep.exists()


def test_a_poni_that_is_none_is_named(tmp_path: Path, measurements: Path) -> None:
    poni = tmp_path / "notes.poni"
    poni.write_text("to be calibrated\n")
    frame = measurements / "ceo2_pilatus1m" / "CeO2_Pilatus1M.tif"
    code, line = haltere("demo", "--headless", "--keep", tmp_path / "x", "--frames", frame, "--poni", poni)
    assert (code, line) == (2, f"haltere: --poni {poni}: Object missing required field `dist`")


def test_recorded_files_and_a_poni_of_another_detector_are_refused_before_anything_is_started(tmp_path: Path) -> None:
    (tmp_path / "eiger.poni").write_text(PONI.format(rows=514, columns=1030))
    with h5py.File(tmp_path / "frames.h5", "w") as file:
        file["entry/data/data"] = np.ones((3, 10, 12), "u2")
    arguments = (tmp_path / "frames.h5", "--poni", tmp_path / "eiger.poni", "--keep", tmp_path / "reduced")
    code, line = haltere("reduce", *arguments)
    assert code == 2
    assert line.startswith("haltere: recipe xrd: the poni describes Detector with 514 × 1030 pixels, detector_image")
    assert not (tmp_path / "reduced" / "catalog").exists()


# --- a session -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    """Return a session as a person has it at a terminal, its stage made fast."""
    with Session.start(load(directory=tmp_path_factory.mktemp("session"), workers=1), log=True) as session:
        for axis in (session.stage.x, session.stage.y):
            axis.velocity.put(4000.0)
            axis.acceleration.put(100_000.0)
        yield session


@pytest.fixture
def fly(session: Session) -> Callable[..., str]:
    """Return what flies a small grid and returns the run's uid."""

    def run(
        rows: int = 2,
        columns: int = 8,
        *,
        spectra: bool = False,
        stop: float = 5.0,
        fast_stop: float = 10.0,
        md: dict[str, Any] | None = None,
    ) -> str:
        detectors: list[FlyDetector] = [session.eiger, session.pilc]
        if spectra:
            detectors.append(session.xspress3)
        y, x = session.stage.y, session.stage.x
        (uid,) = session.run(fly_grid(detectors, y, -5, stop, rows, x, -10, fast_stop, columns, dwell=0.01, md=md))
        return uid

    return run


def counts(stop: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return expected, reduced, quarantined and lost frames per stream."""
    return {
        name: (each["expected"], each["live"] + each["backfilled"], each["quarantined"], each["lost"])
        for name, each in stop["frames"].items()
    }


def lines(text: str) -> list[str]:
    """Return the lines of ours among what was printed."""
    return [line for line in text.splitlines() if line.startswith("haltere: ")]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"stop": 1e6}, r"the slow axis would go"),
        ({"fast_stop": 999.9, "columns": 1000}, r"the fast axis would go"),
    ],
)
def test_a_target_beyond_the_limits_opens_no_run(
    session: Session, fly: Callable[..., str], change: dict[str, Any], says: str
) -> None:
    before = len(session.db)
    with pytest.raises(SettingsError, match=says) as refusal:
        fly(**change)
    assert "\n" not in str(refusal.value)
    assert re.search(r"\d", str(refusal.value)), "target and limits are numbers"
    assert len(session.db) == before
    assert not session.stage.x.moving


def test_two_scans_one_after_the_other_have_each_their_own_counts(session: Session, fly: Callable[..., str]) -> None:
    first = fly(2, 8)  # the second starts while the first is still being reduced
    second = fly(3, 10)
    stops = [session.wait(uid, 60) for uid in (first, second)]
    for stop, points in zip(stops, (16, 30), strict=True):
        assert counts(stop) == dict.fromkeys(("eiger", "pilc"), (points, points, 0, 0))
        assert stop["num_events"] == dict.fromkeys(("xrd", "positions"), points)
    assert stops[0]["nexus"] != stops[1]["nexus"]
    assert [session.db[uid].start["scan_id"] for uid in (second, first)] == [session.db[-1].start["scan_id"], 1]
    assert len(processed(session.db[first])["xrd"].read()["frame"]) == 16


def test_a_recipe_with_a_poni_of_another_detector_is_told_of_at_once_and_the_others_go_on(
    session: Session, fly: Callable[..., str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "pilatus.poni").write_text(PONI.format(rows=1043, columns=981))
    wrong = {
        "name": "xrd",
        "reducer": "azimuthal",
        "source": "eiger",
        "params": azimuthal.recipe_params(tmp_path / "pilatus.poni"),
    }
    uid = fly(spectra=True, md={"recipes": [wrong, *session.recipes[1:]]})
    stop = session.wait(uid, 60)
    assert lines(capsys.readouterr().err) == [
        f"haltere: run {uid} goes on without a recipe: recipe xrd: the poni describes Detector with 1043 × 981 "
        "pixels, eiger_image has 514 × 1030: calibrate with a frame of this detector, or name its own poni"
    ]
    assert counts(stop) == dict.fromkeys(("xspress3", "pilc"), (16, 16, 0, 0))
    assert session.db[uid]["primary"]["eiger_image"].shape == (16, 514, 1030), "its frames are recorded all the same"


def test_a_recipe_that_is_none_opens_no_run(session: Session, fly: Callable[..., str]) -> None:
    before = len(session.db)
    with pytest.raises(ValueError, match="recipe xrd: reducer 'azimutal' isn't installed; there are azimuthal"):
        fly(md={"recipes": [{"name": "xrd", "reducer": "azimutal", "source": "eiger"}]})
    assert len(session.db) == before


def test_frames_whose_file_is_missing_end_lost_with_the_path_and_the_run_completes(
    session: Session, told: ToldPool
) -> None:
    missing = session.directory / "raw" / "eiger" / "deleted_data_000001.h5"
    came = [*range(8), 12, 13]
    plain = {"dist": 0.2, "poni1": 3e-4, "poni2": 3e-4, "pixel1": 75e-6, "pixel2": 75e-6}
    recipe = {
        "name": "xrd",
        "reducer": "azimuthal",
        "source": "eiger",
        "params": azimuthal.recipe_params(plain, bins=4, method="no"),
    }
    image = {"source": "test", "dtype": "array", "dtype_numpy": "<u2", "shape": [8, 8], "external": "STREAM:"}
    with told.detector() as (detector, endpoint):
        lane = {"eiger_stream_endpoint": endpoint, "eiger_stream_protocol": "simplon-1", "eiger_series": 7}
        keys = {key: {"source": "test", "dtype": "string", "shape": []} for key in lane}
        run: Any = compose_run(metadata={"recipes": [recipe], "dwell": 0.025})
        stream = run.compose_descriptor(
            name="primary",
            data_keys={"eiger_image": {**image, "object_name": "eiger"}},
            object_keys={"eiger": ["eiger_image"]},
            configuration={"eiger": {"data": lane, "timestamps": dict.fromkeys(lane, 0.0), "data_keys": keys}},
        )
        file = run.compose_stream_resource(
            mimetype="application/x-hdf5",
            uri=f"file://localhost{missing}",
            data_key="eiger_image",
            parameters={"dataset": "/entry/data/data", "swmr": True, "chunk_shape": [1, 8, 8]},
        )
        datum = file.compose_stream_datum(
            indices={"start": 0, "stop": 16}, seq_nums={"start": 1, "stop": 17}, descriptor=stream.descriptor_doc
        )
        documents = [("start", run.start_doc), ("descriptor", stream.descriptor_doc)]
        documents += [("stream_resource", file.stream_resource_doc), ("stream_datum", datum)]
        for name, doc in documents:
            session.dispatcher(name, dict(doc))
        for frame in came:
            blob = np.full((8, 8), frame, "<u2").tobytes()
            parts = simplon.encode(simplon.Image(7, frame, (8, 8), "<u2", "none", blob, 0, 1, 1, len(blob)))
            detector.send_multipart(parts)
        session.dispatcher("stop", dict(run.compose_stop()))
        stop = session.follower.wait(run.start_doc["uid"], 60)
    account = stop["frames"]["eiger"]
    assert counts(stop) == {"eiger": (16, 10, 0, 6)}
    assert account["live"] == 10, "none of them can have come from the file"
    assert account["intervals"]["lost"] == [[8, 12], [14, 16]]
    assert account["reasons"] == dict.fromkeys(map(str, (8, 9, 10, 11, 14, 15)), f"{missing} doesn't exist (yet)")
    assert session.catalog.wait_processed(stop["run_start"], 30)
    patterns = session.catalog.processed[stop["run_start"]]["xrd"].read()
    assert patterns["status"].values.tolist() == [0 if frame in came else 3 for frame in range(16)]


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[None]:
    """Give a folder a disk of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("a small disk can't be mounted here: that needs root")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_data_folder_that_fills_up_fails_the_scan_by_its_name_and_what_it_holds_is_reduced(
    session: Session, fly: Callable[..., str]
) -> None:
    folder = session.directory / "raw" / "xspress3"
    says = f"xspress3: .* is in state FAULT: folder {folder} is full: "
    with small_disk(folder, "5m"):
        with pytest.raises(DetectorError, match=says) as failure:
            fly(4, 40, spectra=True)
        assert "\n" not in str(failure.value)
        run = session.db[-1]
        stop = session.wait(run.start["uid"], 60)
    assert run.metadata["stop"]["exit_status"] == stop["exit_status"] == "fail"
    assert run.metadata["stop"]["reason"] == str(failure.value)
    (spectra, reduced, *missing) = counts(stop)["xspress3"]
    assert 0 < spectra == reduced < 160
    assert missing == [0, 0]
    assert counts(session.wait(fly(), 60))["eiger"] == (16, 16, 0, 0), "and the next scan flies"


@pytest.mark.parametrize("off", ["xspress3", "pilc", "stage"])
def test_an_instrument_that_is_off_is_named_with_its_address(session: Session, off: str) -> None:
    there: dict[str, Any] = {
        "eiger": {"rest": session.eiger.prefix, "stream": "tcp://127.0.0.1:2", "data_dir": "."},
        "xspress3": {"tango": session.xspress3.prefix, "data_dir": "."},
        "pilc": {"trigger_generator": session.pilc.prefix},
        "stage": {"x": session.stage.x.prefix, "y": session.stage.y.prefix},
    }
    nowhere = "tango://127.0.0.1:1/p06/none/sim.01#dbase=no"
    there[off] |= dict.fromkeys({"xspress3": ["tango"], "pilc": ["trigger_generator"], "stage": ["y"]}[off], nowhere)
    with pytest.raises(DetectorError) as failure:
        connect(BeamlineSettings.model_validate(there), session.directory / "raw")
    name = "stage_y" if off == "stage" else off
    assert re.fullmatch(rf"{name}\S*: {re.escape(nowhere)}: no answer \(is the server running\?\)", str(failure.value))


def test_a_prompt_without_its_eiger_ends_in_one_line_and_leaves_nothing_running(
    session: Session, tmp_path: Path
) -> None:
    beamline = {
        "eiger": {"rest": "http://127.0.0.1:1", "stream": "tcp://127.0.0.1:2", "data_dir": "."},
        "xspress3": {"tango": session.xspress3.prefix, "data_dir": "."},
        "pilc": {"trigger_generator": session.pilc.prefix},
        "stage": {"x": session.stage.x.prefix, "y": session.stage.y.prefix},
    }
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    says = r"haltere: eiger_state: http://127\.0\.0\.1:1: no answer \(is the detector control unit on\?\)"
    with pytest.raises(SystemExit, match=f"^{says}$"):
        namespace(directory=tmp_path / "off", workers=1, beamline=beamline)
    assert {child.pid for child in psutil.Process().children(recursive=True)} == before


def test_ctrl_c_at_the_terminal_reaches_none_of_the_sessions_processes(session: Session) -> None:
    # Other tests' beamlines are children of this process too; the session's are told its folder, or are the pool's.
    pool = {condition["pid"] for condition in session.pool.status()["processes"].values()}
    children = [
        child
        for child in psutil.Process().children(recursive=True)
        if child.pid in pool or str(session.directory) in str(child.cmdline())
    ]
    assert len(children) >= 8, "simulator, catalog, ingest, broker, sink, recorder, worker and its reducer"
    ours = os.getpgid(0)
    assert [child.cmdline() for child in children if os.getpgid(child.pid) == ours] == []


# --- Ctrl-C ----------------------------------------------------------------------------------------------------------


def test_ctrl_c_in_the_demo_ends_it_in_one_line_with_closed_files_and_no_process_left(tmp_path: Path) -> None:
    keep = tmp_path / "demo"
    command = [sys.executable, "-m", "haltere", "demo", "--headless", "--json", "--workers", "1", "--keep", str(keep)]
    demo = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        deadline = time.monotonic() + 60
        while not (flown := list(keep.glob("raw/pilc/*"))):
            assert demo.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        children = psutil.Process(demo.pid).children(recursive=True)
        os.killpg(demo.pid, signal.SIGINT)  # as a terminal does
        _, said = demo.communicate(timeout=60)
    finally:
        demo.kill()
        demo.wait()
    assert (demo.returncode, said) == (130, "haltere: interrupted\n")
    assert len(children) >= 7
    _, alive = psutil.wait_procs(children, timeout=10)
    assert not alive
    files = [path for path in keep.rglob("*") if path.suffix in (".h5", ".nxs")]
    assert flown
    for path in files:
        with h5py.File(path, "r", locking=False):  # refused for one that a writer left open
            assert path.stat().st_size
    reader = LedgerReader(keep / "pool" / "ledger.db")
    (run,) = reader.runs()
    reader.close()
    assert run.exit_status == "abort"
