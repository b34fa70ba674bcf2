"""The PiLC, driven against the simulated card and stage."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from bluesky.utils import NoReplayAllowed

from haltere.devices import FlyInfo, LineInfo, PiLC, Stage
from haltere.devices.pilc import PositionFile
from haltere.workers.errors import SettingsError

from .hutch import Hutch, eventually

LINE: dict[str, Any] = {"n": 6, "livetime": 0.001, "start": 0.0, "step": 1.0, "encoder": 1}


@pytest.fixture
def stage(hutch: Hutch) -> Stage:
    stage = hutch.stage()
    stage.x.set(-5.0).wait(timeout=10.0)
    return stage


@pytest.fixture
def pilc(hutch: Hutch) -> Iterator[PiLC]:
    pilc = hutch.pilc()
    pilc.stage()
    yield pilc
    pilc.unstage()


def fly(pilc: PiLC, stage: Stage, info: LineInfo, to: float) -> None:
    pilc.prepare(info).wait(timeout=10.0)
    pilc.kickoff().wait(timeout=10.0)
    stage.x.velocity.put(500.0)
    stage.x.set(to).wait(timeout=10.0)
    assert pilc.line is not None
    pilc.line.wait(timeout=10.0)


def test_lines_in_both_directions_end_in_one_file_with_the_positions_that_were_measured(
    pilc: PiLC, stage: Stage
) -> None:
    fly(pilc, stage, LineInfo(**LINE, lines=2, prefix="both"), 10.0)
    scan = pilc.complete()
    assert not scan.done
    fly(pilc, stage, LineInfo(**{**LINE, "start": 5.0, "step": -1.0}, lines=2, prefix="both"), -5.0)
    scan.wait(timeout=5.0)
    assert pilc.complete() is scan
    with h5py.File(pilc.data_dir / "both_pilc.h5", "r") as file:
        np.testing.assert_allclose(file["entry/data/x"][:], [0, 1, 2, 3, 4, 5, 5, 4, 3, 2, 1, 0], atol=0.02)
        assert file["entry/data/x"].attrs["units"] == "um"
        np.testing.assert_allclose(file["entry/data/time"][:6], np.arange(6) / 500.0, atol=1e-3)
    documents = list(pilc.collect_asset_docs())
    keys = [doc["data_key"] for name, doc in documents if name == "stream_resource"]
    assert keys == ["pilc_x", "pilc_y", "pilc_time"] == list(pilc.describe_collect())
    assert {doc["indices"]["stop"] for name, doc in documents if name == "stream_datum"} == {12}


def test_the_scans_status_counts_its_points_for_a_progress_bar(pilc: PiLC, stage: Stage) -> None:
    pilc.prepare(LineInfo(**LINE, lines=1, prefix="progress")).wait(timeout=10.0)
    seen: list[dict[str, Any]] = []
    pilc.complete().watch(lambda **state: seen.append(state))
    assert (seen[0]["name"], seen[0]["current"], seen[0]["target"], seen[0]["unit"]) == ("pilc", 0, 6, "points")
    assert seen[0]["fraction"] == 1.0
    fly(pilc, stage, LineInfo(**LINE, lines=1, prefix="progress"), 10.0)
    pilc.complete().wait(timeout=5.0)
    eventually(lambda: seen[-1]["current"] == 6, "all points are told")
    assert seen[-1]["fraction"] == 0.0
    assert seen[-1]["time_remaining"] == 0.0
    assert seen[-1]["time_elapsed"] > 0.0


def test_a_pause_disarms_the_line_and_keeps_what_it_recorded(pilc: PiLC, stage: Stage) -> None:
    pilc.pause()  # no scan yet: a replay is fine
    pilc.prepare(LineInfo(**{**LINE, "n": 1000}, prefix="paused")).wait(timeout=10.0)
    pilc.kickoff().wait(timeout=10.0)
    stage.x.velocity.put(100.0)
    move = stage.x.set(20.0)
    eventually(lambda: pilc.fired >= 3, "three triggers")
    with pytest.raises(NoReplayAllowed):
        pilc.pause()
    assert pilc.line is not None
    pilc.line.wait(timeout=5.0)
    assert pilc.interrupted
    assert pilc.state.get() == "ON"
    assert 3 <= pilc.fired == pilc.frames() < 30
    assert not pilc.complete().done
    move.wait(timeout=5.0)
    pilc.stop()
    assert pilc.complete().done
    pilc.stop()


def test_an_axis_is_found_by_the_motors_name(pilc: PiLC, stage: Stage) -> None:
    assert pilc.encoder_of(stage.x) == 1
    assert pilc.axis_of(stage.y) == "y"
    stage.x.name = "sample_z"
    with pytest.raises(SettingsError, match=r"pilc: no encoder reads sample_z \(its axes are x, y"):
        pilc.encoder_of(stage.x)


def test_what_cannot_be_is_refused_in_one_line(hutch: Hutch, pilc: PiLC) -> None:
    with pytest.raises(SettingsError, match="pilc: axis x on encoder 6; a PiLC has encoders 1 to 5"):
        hutch.pilc(axes={"x": 6})
    with pytest.raises(SettingsError, match="pilc: prepare takes a LineInfo, not FlyInfo"):
        pilc.prepare(FlyInfo(n=1, livetime=0.1, prefix="no"))  # type: ignore[arg-type]


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(SettingsError, match=r"taken/p.h5: can't be written"):
        PositionFile(tmp_path / "taken" / "p.h5", {"x": "um"})


def test_the_file_can_be_read_while_it_grows(tmp_path: Path) -> None:
    file = PositionFile(tmp_path / "p.h5", {"x": "um", "time": "s"})
    file.append({"x": np.array([1.0, 2.0]), "time": np.array([0.0, 0.1])})
    # Another process opens it, as Tiled and the workers do.
    code = (
        "import h5py, sys; print(h5py.File(sys.argv[1], 'r', libver='latest', swmr=True)['entry/data/x'][:].tolist())"
    )
    seen = subprocess.run([sys.executable, "-c", code, str(file.path)], capture_output=True, text=True, check=True)
    assert seen.stdout.strip() == "[1.0, 2.0]"
    file.close()
    file.close()
