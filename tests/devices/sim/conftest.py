"""A simulated beamline without the Eiger, which starts in half a second, for the tests of its Tango servers."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import tango


@dataclass
class Beamline:
    """A running simulation and proxies of its Tango devices."""

    process: subprocess.Popen[str]
    endpoints: dict[str, Any]

    def proxy(self, *where: str) -> Any:
        """Return the proxy of an endpoint: ``proxy("stage", "x")``."""
        found: Any = self.endpoints
        for key in where:
            found = found[key]
        return tango.DeviceProxy(found)


def start(folder: Path, *arguments: str) -> Beamline:
    command = [sys.executable, "-m", "haltere.devices.sim.beamline", "--json", "--until-eof"]
    process = subprocess.Popen(
        [*command, "--data-dir", str(folder), *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, f"the simulation ended with code {process.wait(10)}"
    return Beamline(process, json.loads(line))


def end(beamline: Beamline) -> int:
    process = beamline.process
    process.terminate()
    code = process.wait(15)
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()
    return code


@pytest.fixture
def start_beamline() -> Iterator[Callable[..., Beamline]]:
    """Start simulations of one's own; they are ended after the test."""
    started: list[Beamline] = []

    def starter(folder: Path, *arguments: str) -> Beamline:
        started.append(start(folder, *arguments))
        return started[-1]

    yield starter
    for beamline in started:
        end(beamline)


@pytest.fixture(scope="session")
def tango_beamline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Beamline]:
    """One simulation without the Eiger, shared by the session's tests."""
    beamline = start(tmp_path_factory.mktemp("beamline"), "--no-eiger", "--seed", "5")
    yield beamline
    assert end(beamline) == 0


@pytest.fixture(scope="session")
def until() -> Callable[..., None]:
    """Wait for a condition of another process, with a deadline."""

    def wait(condition: Callable[[], Any], what: str, patience: float = 10.0) -> None:
        tick, deadline = threading.Event(), time.monotonic() + patience
        while not condition():
            assert time.monotonic() < deadline, f"waited {patience} s in vain: {what}"
            tick.wait(0.003)

    return wait
