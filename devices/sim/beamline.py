"""The simulated beamline: stage, PiLC, Xspress3, Eiger on one sample, in one process, on loopback."""

from __future__ import annotations

import argparse
import json as jsonlib
import os
import signal
import socket
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Final

from ...workers.errors import HaltereError, SettingsError
from ...workers.processes.death import on_parents_death

MOTORS: Final = {"x": "p06/motor/sim.01", "y": "p06/motor/sim.02"}
GENERATOR: Final = "p06/pilctriggergenerator/sim.01"
SLAVE: Final = "p06/pilcscanslave/sim.01"
XSPRESS3: Final = "p06/xspress3/sim.01"
SERVER: Final = ("haltere", "sim")

TANGO_PATIENCE: Final = 20.0
"""s until the Tango server must have answered."""


@dataclass(frozen=True)
class Options:
    """What to simulate, where. A port of 0 is any free one; ``data_dir`` is made if it isn't there."""

    model: str = "500k"
    seed: int = 1
    data_dir: Path = Path("haltere-sim")
    frames: Path | None = None
    flip: str | None = None
    poni: Path | None = None
    api: str = "1.8.0"
    rest_port: int = 0
    stream_port: int = 0
    tango_port: int = 0
    until_eof: bool = False
    json: bool = False
    eiger: bool = True
    """Without it the others start in half a second; their own tests want that."""


def serve(options: Options) -> None:
    """Serve the beamline until SIGTERM, SIGINT or, if asked, the end of standard input.

    Call it from the main thread, once per process: a Tango server can't be started twice in one.

    Raises
    ------
    SettingsError
        A port is taken, the data folder can't be written, or the frames can't be used.
    DetectorError
        A server didn't come up.
    """
    # Imported here: the command line shows its help without waiting for HDF5 and Tango.
    from .xspress3_file import hdf5_is_broken

    ending = threading.Event()
    _end_on_signals(ending)
    if options.until_eof:
        on_parents_death(signal.SIGCONT)  # one that is stopped wouldn't see that its input ended
        threading.Thread(target=_watch_input, args=(ending,), name="stdin", daemon=True).start()
    began = time.perf_counter()
    data = _writable(options.data_dir)
    for name in ("rest", "stream"):
        _free_port(getattr(options, f"{name}_port"), name)  # said now, not after the frames' preparation
    tango_port = _free_port(options.tango_port, "tango")
    with ExitStack() as stack:
        endpoints = _start(options, data, tango_port, stack)
        _end_on_signals(ending)  # the Tango server has set its own meanwhile
        if ending.is_set():
            return
        _say(f"simulated beamline ready after {time.perf_counter() - began:.1f} s")
        _announce(endpoints, as_json=options.json)
        ending.wait()
    if hdf5_is_broken():
        _say("a file couldn't be written and stays as it is: ending without HDF5's clean-up, which may crash on it")
        os._exit(0)


def _start(options: Options, data: Path, tango_port: int, stack: ExitStack) -> dict[str, Any]:
    """Start everything, leave the ends to ``stack``, return the endpoints once all have answered."""
    from .fluorescence import Spectrometer
    from .motion import Axis
    from .pilc import PiLCScanSlave, PiLCTriggerGenerator
    from .pilc_card import TriggerCard
    from .sample import Sample
    from .stage import SimulatedStage, StageMotor
    from .xspress3 import Xspress3
    from .xspress3_acquisition import Xspress3Acquisition

    sample = Sample(options.seed)
    stage = SimulatedStage({name: Axis() for name in MOTORS})
    endpoints: dict[str, Any] = {"eiger": None}
    edges: Callable[[tuple[float, float]], object] = bool
    if options.eiger:
        endpoints["eiger"], edges = _start_eiger(options, data, sample, stage, stack)

    box = Xspress3Acquisition(Spectrometer(sample, options.seed), stage.position)
    stack.callback(box.stop)
    card = TriggerCard(stage, tuple(MOTORS), options.seed)
    stack.callback(card.close)

    def wired(number: int, since: float, x: float, y: float) -> None:
        """Carry a trigger along the cables: an edge to the Eiger, the pulse as a gate to the Xspress3."""
        edges((x, y))
        box.gate((x, y), card.settings.pulse if card.settings else 0.0)

    card.listeners.append(wired)

    for name, device in MOTORS.items():
        StageMotor.bound[device] = stage, name, options.seed
    PiLCTriggerGenerator.bound[GENERATOR] = card
    PiLCTriggerGenerator.folders[GENERATOR] = str(data / "pilctriggergenerator")
    PiLCScanSlave.bound[SLAVE] = card
    Xspress3.bound[XSPRESS3] = box
    Xspress3.folders[XSPRESS3] = str(data / "xspress3")
    server = TangoServer(
        tango_port,
        {
            StageMotor: list(MOTORS.values()),
            PiLCTriggerGenerator: [GENERATOR],
            PiLCScanSlave: [SLAVE],
            Xspress3: [XSPRESS3],
        },
    )
    stack.callback(server.stop)
    server.start()
    stack.callback(box.stop)  # files are closed before the servers go
    stack.callback(card.close)
    endpoints |= {
        "pilc": {"trigger_generator": server.trl(GENERATOR), "scan_slave": server.trl(SLAVE)},
        "xspress3": {"tango": server.trl(XSPRESS3), "epics": None, "data_dir": str(data / "xspress3")},
        "stage": {name: server.trl(device) for name, device in MOTORS.items()},
        "pid": os.getpid(),
    }
    return endpoints


def _start_eiger(
    options: Options, data: Path, sample: Any, stage: Any, stack: ExitStack
) -> tuple[dict[str, str], Callable[[tuple[float, float]], object]]:
    """Return the Eiger's endpoints and its trigger input."""
    from .frames import FrameLibrary
    from .simplon import SimulatedEiger

    began = time.perf_counter()
    if options.frames is None:
        library = FrameLibrary.synthetic(options.model, phases=sample.phases, seed=options.seed)
    else:
        library = FrameLibrary.from_file(options.frames, flip=options.flip, phases=sample.phases, seed=options.seed)
    if options.poni is not None:
        try:
            library.poni = options.poni.read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError(f"poni {options.poni} can't be read: {error}") from None
    _say(f"frames of the Eiger prepared in {time.perf_counter() - began:.1f} s")
    eiger = SimulatedEiger(
        library,
        data / "eiger",
        position=stage.position,
        api=options.api,
        rest_port=options.rest_port,
        stream_port=options.stream_port,
    )
    stack.callback(eiger.stop)
    endpoints = eiger.start()
    try:
        with urllib.request.urlopen(f"{endpoints['rest']}/detector/api/version/", timeout=5):
            pass
        host, _, port = endpoints["stream"].removeprefix("tcp://").rpartition(":")
        socket.create_connection((host, int(port)), timeout=5).close()
    except OSError as error:
        raise SettingsError(f"the simulated Eiger at {endpoints['rest']} doesn't answer: {error}") from None
    return endpoints, eiger.external_trigger


class TangoServer:
    """The process' Tango server, without a database, in a thread.

    Parameters
    ----------
    port : int
    devices : dict
        Device class → names of its devices.
    """

    def __init__(self, port: int, devices: dict[Any, list[str]]) -> None:
        self.port = port
        self.devices = devices
        self._ready = threading.Event()
        self._stopping = False
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="tango", daemon=True)

    def trl(self, device: str) -> str:
        """Return a device's address."""
        return f"tango://127.0.0.1:{self.port}/{device}#dbase=no"

    def start(self) -> None:
        """Start it; returns when each device has answered.

        Raises
        ------
        SettingsError
            It didn't come up.
        """
        import tango

        self._thread.start()
        self._ready.wait(TANGO_PATIENCE)
        if self._failure is not None or not self._ready.is_set():
            raise SettingsError(f"the Tango server on port {self.port} didn't start: {self._reason()}")
        for names in self.devices.values():
            for name in names:
                try:
                    tango.DeviceProxy(self.trl(name)).state()
                except tango.DevFailed as error:
                    raise SettingsError(f"{self.trl(name)} doesn't answer: {error.args[0].desc}") from None

    def _reason(self) -> str:
        import tango

        if isinstance(self._failure, tango.DevFailed):
            return str(self._failure.args[0].desc).strip()
        return str(self._failure or "no answer").splitlines()[0]

    def _run(self) -> None:
        from tango.server import run

        names = [f"{kind.__name__}::{name}" for kind, each in self.devices.items() for name in each]
        arguments = [*SERVER, "-nodb", "-dlist", ",".join(names)]
        arguments += ["-ORBendPoint", f"giop:tcp:127.0.0.1:{self.port}"]
        try:
            run(tuple(self.devices), args=arguments, post_init_callback=self._ready.set, msg_stream=None, raises=True)
        except BaseException as error:  # Tango says what went wrong by SystemExit as well
            if not self._stopping:  # the end itself comes as an unknown exception out of omniORB
                self._failure = error
        self._ready.set()

    def stop(self) -> None:
        """Shut it down; idempotent."""
        import tango

        self._stopping = True
        if not self._thread.is_alive():
            return
        try:
            tango.DeviceProxy(self.trl(f"dserver/{'/'.join(SERVER)}")).command_inout("Kill")
        except tango.DevFailed as error:
            _say(f"the Tango server on port {self.port} didn't take its end: {error.args[0].desc}")
        self._thread.join(5.0)


def _writable(folder: Path) -> Path:
    folder = folder.absolute()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".writable-{os.getpid()}"
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise SettingsError(
            f"data folder {folder} can't be written: {error.strerror or error}; name another with --data"
        ) from None
    return folder


def _free_port(port: int, name: str) -> int:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise SettingsError(
                f"{name} port {port} can't be used: {error.strerror}; take another one, or 0 for any"
            ) from None
        return int(probe.getsockname()[1])


def _end_on_signals(ending: threading.Event) -> None:
    def end(number: int, frame: FrameType | None) -> None:
        ending.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)


def _watch_input(ending: threading.Event) -> None:
    while os.read(0, 4096):  # unbuffered: Python can't end while a thread holds the buffer's lock
        pass
    ending.set()


def _announce(endpoints: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print(jsonlib.dumps(endpoints), flush=True)
        return
    for instrument, found in endpoints.items():
        if isinstance(found, dict):
            for what, where in found.items():
                print(f"{instrument:10} {what:18} {where}")
    print(f"process {endpoints['pid']}; Ctrl-C ends it", flush=True)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Serve as the command line says; return 0, or 2 when something can't be used."""
    parser = argparse.ArgumentParser(prog="haltere.devices.sim.beamline", description=__doc__)
    parser.add_argument("--model", default="500k", help="500k or 4M")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--data-dir", type=Path, default=Path("haltere-sim"), metavar="DIR")
    parser.add_argument("--frames", type=Path, metavar="FILE", help="a recorded frame for the Eiger to replay")
    parser.add_argument("--flip", choices=("ud", "lr"))
    parser.add_argument("--poni", type=Path, metavar="FILE", help="the recorded frame's geometry")
    parser.add_argument("--api", default="1.8.0", help="SIMPLON version")
    for name in ("rest", "stream", "tango"):
        parser.add_argument(f"--{name}-port", type=int, default=0, metavar="N")
    parser.add_argument("--until-eof", action="store_true", help="end when standard input does, too")
    parser.add_argument("--json", action="store_true", help="print the endpoints as one line of JSON")
    parser.add_argument("--no-eiger", dest="eiger", action="store_false")
    try:
        serve(Options(**vars(parser.parse_args(argv))))
    except HaltereError as error:
        _say(str(error))
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
