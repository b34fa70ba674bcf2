"""The beamline that a session flies: a simulated one, started here, or a real one at its addresses."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from .recording import Recording
from .workers.processes.child import Process
from .workers.settings import BeamlineSettings, Settings


def simulated_beamline(settings: Settings, recording: Recording) -> Process:
    """Return the simulated beamline's process, not started."""
    directory = settings.directory.resolve()
    command = [sys.executable, "-m", "haltere", "sim", "--json", "--until-eof"]
    command += ["--seed", str(settings.seed), "--model", settings.model, "--data", str(directory / "raw")]
    if recording.frames is not None:
        command += ["--frames", str(recording.frames)]
    if recording.flip is not None:
        command += ["--flip", recording.flip]
    if recording.poni is not None:
        command += ["--poni", str(recording.poni)]
    return Process("simulated beamline", command, directory / "logs" / "sim.log", restart=False)


def simulated_addresses(line: dict[str, Any]) -> BeamlineSettings:
    """Return the addresses that ``haltere sim --json`` printed."""
    return BeamlineSettings.model_validate({key: value for key, value in line.items() if key != "pid"})


def data_folders(beamline: BeamlineSettings) -> list[Path]:
    """Return the folders that the instruments write to."""
    return [beamline.eiger.data_dir, beamline.xspress3.data_dir]


def connect(beamline: BeamlineSettings, data: Path) -> dict[str, Any]:
    """Return the devices at these addresses, each checked to answer.

    Raises
    ------
    DetectorError
        One doesn't: names it, where it should be, and what to look at.
    """
    from .devices.eiger import Eiger
    from .devices.pilc import PiLC
    from .devices.stage import Stage
    from .devices.xspress3 import Xspress3

    eiger = Eiger(
        beamline.eiger.rest,
        name="eiger",
        stream=beamline.eiger.stream,
        data_dir=beamline.eiger.data_dir,
        api=beamline.eiger.api,
        labels={"detectors"},
    )
    xspress3 = Xspress3(
        beamline.xspress3.tango, name="xspress3", data_dir=beamline.xspress3.data_dir, labels={"detectors"}
    )
    pilc = PiLC(
        beamline.pilc.trigger_generator,
        name="pilc",
        axes=beamline.pilc.axes,
        data_dir=data / "pilc",
        scan_slave=beamline.pilc.scan_slave,
        labels={"detectors"},
    )
    stage = Stage(beamline.stage, name="stage")
    for device in (eiger, xspress3, pilc, stage):
        device.wait_for_connection(timeout=10)
    return {"eiger": eiger, "xspress3": xspress3, "pilc": pilc, "stage": stage}
