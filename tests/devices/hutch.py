"""A simulated beamline in a process of its own, and devices that talk to it."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from haltere.devices import Eiger, PiLC, Stage, Xspress3


@dataclass(frozen=True)
class Hutch:
    """Where everything answers; devices are made anew for each test."""

    endpoints: dict[str, Any]
    data: Path

    def eiger(self, **changes: Any) -> Eiger:
        """Return the Eiger, ``per_file`` frames in each of its files."""
        at = self.endpoints["eiger"]
        made = Eiger(at["rest"], name="eiger", stream=at["stream"], data_dir=at["data_dir"], api=at["api"])
        made.nimages_per_file.put(changes.get("per_file", 15))
        return made

    def xspress3(self) -> Xspress3:
        """Return the Xspress3."""
        at = self.endpoints["xspress3"]
        return Xspress3(at["tango"], name="xspress3", data_dir=at["data_dir"])

    def pilc(self, **changes: Any) -> PiLC:
        """Return the PiLC, with these settings instead of the usual ones."""
        at = self.endpoints["pilc"]
        settings: dict[str, Any] = {"axes": {"x": 1, "y": 2}, "data_dir": self.data / "pilc"}
        settings |= {"scan_slave": at["scan_slave"], **changes}
        return PiLC(at["trigger_generator"], name="pilc", **settings)

    def stage(self) -> Stage:
        """Return the stage, made fast: tests shouldn't wait for it."""
        stage = Stage(self.endpoints["stage"], name="stage")
        for axis in (stage.x, stage.y):
            axis.velocity.put(4000.0)
            axis.acceleration.put(100_000.0)
        return stage


@contextmanager
def simulated(data: Path) -> Iterator[Hutch]:
    """Start a beamline; it ends with this process at the latest."""
    log = data / "sim.log"
    command = [sys.executable, "-m", "haltere.devices.sim.beamline", "--json", "--until-eof", "--data-dir", str(data)]
    with log.open("w") as errors:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True)
    with process:
        assert process.stdout is not None
        assert process.stdin is not None
        line = process.stdout.readline()
        assert line, log.read_text()
        try:
            yield Hutch(json.loads(line), data)
        finally:
            process.stdin.close()
            process.wait(timeout=20)


def eventually(condition: Callable[[], bool], what: str, patience: float = 10.0) -> None:
    """Return as soon as the condition holds; fail, saying what was awaited, if it doesn't."""
    deadline = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < deadline, f"not after {patience:g} s: {what}"
        time.sleep(0.002)
