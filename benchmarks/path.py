"""The demo's path at full speed: what it costs to reduce a frame, beside the reduction itself.

One run, two measurements of the same frames from the same simulated Eiger (500k, its stream as fast as it goes):

- *bare*: one process pulls the stream and reduces each frame, as a script would. It keeps no account: what it misses is
  missing.
- *path*: ingest, broker, workers, sink and recorder, ledger and NeXus file, every frame accounted for.

``outside`` is the CPU time of all processes less what the reducers spent (reading, decoding and reducing), per frame.
``ledger`` is the sink's share of it without the NeXus file: taking results, checking them, committing them, answering.
The simulated detector, the catalog server and the session that flies are not part of the path and are left out.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from threading import Event
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final
from uuid import uuid4

import msgspec
import psutil

from ..beamline import connect, simulated_addresses, simulated_beamline
from ..defaults import diffraction
from ..recording import Recording
from ..session import Session
from ..workers.errors import PoolError
from ..workers.pool.local import ONE_THREAD
from ..workers.recipes import Recipe
from ..workers.settings import Settings, load

if TYPE_CHECKING:
    from bluesky.utils import MsgGenerator

    from ..devices.assets import FlyInfo
    from ..devices.eiger import Eiger

WARM_UP: Final = 200
"""Frames of a first run, so that imports, geometries and first pages aren't measured."""

RING: Final = 2 << 30
"""Bytes of shared memory: the detector is faster than two workers, and what is dropped takes the other path."""

DWELL: Final = 5e-3
"""s; what the run says of its points: it makes batches of 20, the smallest of a scan that is worth hurrying for."""

COUNTED: Final = ("ingest", "broker", "sink", "recorder", "worker")


def measure(frames: int, workers: int) -> dict[str, Any]:
    """Run both and return their figures.

    Parameters
    ----------
    frames
        How many the detector sends, each time.
    workers
        How many processes reduce in the path.
    """
    with tempfile.TemporaryDirectory(prefix="haltere-bench-") as folder:
        settings = load(directory=Path(folder), workers=workers, ring_bytes=RING)
        # First, and with a detector of its own: all who pull a stream share it.
        bare = measure_bare(settings, frames)
        with Session.start(settings) as session:
            return compared(measure_path(session, frames), bare, frames)


def measure_path(session: Session, frames: int) -> dict[str, Any]:
    """Let the pool reduce ``frames``; return its figures."""
    warm = fly(session, WARM_UP)
    await_beats(session, warm["frames"]["eiger"]["expected"])
    before, (frames_before, us_before), sink_before = cpu(session), reducers(session), sink(session)
    began = perf_counter()
    stop = fly(session, frames)
    wall = perf_counter() - began
    accounts = stop["frames"]["eiger"]
    # The workers tell what they have done with their next heartbeats.
    await_beats(session, frames_before + accounts["expected"])
    spent = {name: seconds - before[name] for name, seconds in cpu(session).items()}
    frames_after, us_after = reducers(session)
    reduced, reduce_s = frames_after - frames_before, (us_after - us_before) / 1e6
    committed = {name: each - sink_before[name] for name, each in sink(session).items()}
    spent["worker"] -= reduce_s
    return {
        "detector": "Eiger 500k, uint16, bslz4",
        "frames": frames,
        "workers": session.settings.workers,
        **{name: accounts[name] for name in ("expected", "live", "backfilled", "quarantined", "lost")},
        "path_frames_per_s": round(frames / wall, 1),
        "path_frames_per_batch": round(committed["frames"] / max(committed["results"], 1), 1),
        "path_reducer_cpu_ms_per_frame": per_frame(reduce_s, reduced),
        "path_ledger_cpu_ms_per_frame": per_frame(committed["ledger_us"] / 1e6, committed["frames"]),
        "path_outside_cpu_ms_per_frame": per_frame(sum(spent.values()), frames),
        **{f"path_{name}_cpu_ms_per_frame": per_frame(seconds, frames) for name, seconds in spent.items()},
    }


def compared(path: dict[str, Any], bare: dict[str, float], frames: int) -> dict[str, Any]:
    """Return the figures of both, and the ratio."""
    outside = per_frame(bare["outside_s"], bare["frames"])
    return {
        **path,
        "bare_frames": bare["frames"],
        "bare_missed": frames - bare["frames"],
        "bare_frames_per_s": round(bare["frames"] / bare["wall_s"], 1),
        "bare_reducer_cpu_ms_per_frame": per_frame(bare["reducer_s"], bare["frames"]),
        "bare_outside_cpu_ms_per_frame": outside,
        "outside_ratio_path_to_bare": round(path["path_outside_cpu_ms_per_frame"] / outside, 2),
        "load_average": [round(each, 2) for each in psutil.getloadavg()],
    }


def per_frame(seconds: float, frames: float) -> float:
    """Return milliseconds per frame."""
    return round(1e3 * seconds / max(frames, 1), 3)


def fly(session: Session, frames: int) -> dict[str, Any]:
    """Let the detector send ``frames`` by itself, and wait for the processed run's stop document."""
    (uid,) = session.run(burst(session, frames))
    return session.follower.wait(uid, timeout=600)


def burst(session: Session, frames: int) -> MsgGenerator[None]:
    """One run of one internally triggered series, as fast as the detector sends."""
    import bluesky.plan_stubs as bps
    import bluesky.preprocessors as bpp

    eiger = session.eiger
    recipes = [msgspec.to_builtins(each) for each in session.recipes if each.source == eiger.name]

    @bpp.stage_decorator([eiger])  # type: ignore[untyped-decorator]
    @bpp.run_decorator(md={"plan_name": "burst", "recipes": recipes, "dwell": DWELL})  # type: ignore[untyped-decorator]
    def inner() -> MsgGenerator[None]:
        yield from bps.abs_set(eiger.nimages_per_file, frames, wait=True)
        yield from bps.prepare(eiger, burst_info(eiger, frames), wait=True)
        yield from bps.declare_stream(eiger, name="primary", collect=True)
        yield from bps.kickoff(eiger, wait=True)
        complete = yield from bps.complete(eiger, wait=False)
        while not complete.done:
            yield from bps.sleep(0.1)
            yield from bps.collect(eiger, name="primary")
        complete.wait(timeout=60)
        while eiger.assets is not None and eiger.assets.emitted < eiger.frames():
            yield from bps.collect(eiger, name="primary")

    yield from inner()


def burst_info(eiger: Eiger, frames: int) -> FlyInfo:
    """Return what the detector is told: one software trigger, ``frames`` exposures as fast as it can."""
    from ..devices.assets import FlyInfo

    return FlyInfo(
        n=1,
        trigger="internal",
        exposures_per_event=frames,
        livetime=eiger.minimum_dwell - eiger.deadtime,
        deadtime=eiger.deadtime,
        prefix=f"burst-{uuid4().hex[:8]}",
    )


def measure_bare(settings: Settings, frames: int) -> dict[str, float]:
    """Let one process pull and reduce what a detector of its own sends; return what it says of itself."""
    (settings.directory / "logs").mkdir()
    simulator = simulated_beamline(settings, Recording())
    simulator.start()
    try:
        devices = connect(simulated_addresses(simulator.ready(60)), settings.directory / "raw")
        return pull_and_reduce(devices["eiger"], diffraction(settings, Recording()), frames)
    finally:
        simulator.close()


def pull_and_reduce(eiger: Eiger, recipe: Recipe, frames: int) -> dict[str, float]:
    """Run the bare process while the detector sends."""
    described = eiger.describe_collect()[f"{eiger.name}_image"]
    told = {
        "endpoint": eiger.stream_endpoint.get(),
        "params": recipe.params,
        "shape": described["shape"],
        "dtype": described["dtype_numpy"],
    }
    with subprocess.Popen(
        [sys.executable, "-m", "haltere.benchmarks.bare", json.dumps(told)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **ONE_THREAD},
    ) as process:
        assert process.stdout is not None
        try:
            process.stdout.readline()  # it is ready
            eiger.stage()
            eiger.nimages_per_file.put(frames)
            eiger.prepare(burst_info(eiger, frames)).wait(60)
            eiger.kickoff().wait(60)
            eiger.complete().wait(600)
            eiger.unstage()
            words = process.stdout.readline()
        finally:
            process.kill()
    if not words:
        raise PoolError(f"the bare process ended with exit code {process.returncode} before it said what it measured")
    said: dict[str, float] = json.loads(words)
    return said


def cpu(session: Session) -> dict[str, float]:
    """Return the CPU time of the pool's processes and their children so far, s; the workers' summed."""
    spent = dict.fromkeys(COUNTED, 0.0)
    for name, condition in session.pool.status()["processes"].items():
        if name.partition("-")[0] not in COUNTED:
            continue  # the catalog and whatever else runs beside the path
        process = psutil.Process(condition["pid"])
        for each in (process, *process.children(recursive=True)):
            times = each.cpu_times()
            spent[name.partition("-")[0]] += times.user + times.system
    return spent


def await_beats(session: Session, frames: int, timeout: float = 5.0) -> None:
    """Wait until the workers have said that they reduced ``frames`` in all."""
    deadline, pause = perf_counter() + timeout, Event()
    while reducers(session)[0] < frames and perf_counter() < deadline:
        pause.wait(0.1)


def sink(session: Session) -> dict[str, int]:
    """Return how many results and frames the sink has taken so far, and how many µs of CPU that took it."""
    said = session.pool.status()["sink"]
    if said is None:
        raise PoolError("the sink doesn't answer (see its log in the pool's folder)")
    return {name: said[name] for name in ("results", "frames", "ledger_us")}


def reducers(session: Session) -> tuple[int, int]:
    """Return how many frames the reducers have taken so far, and how many µs of CPU they spent on them."""
    broker = session.pool.status()["broker"]
    if broker is None:
        raise PoolError("the broker doesn't answer (see its log in the pool's folder)")
    workers = broker["workers"].values() if isinstance(broker["workers"], dict) else broker["workers"]
    return sum(each["frames"] for each in workers), sum(each["reduce_us"] for each in workers)
