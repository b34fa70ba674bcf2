"""The demo's path at full speed: what it costs to reduce a frame, beside the reduction itself.

One run, two measurements of the same frames from the same simulated Eiger (500k, its stream as fast as it goes):

- *bare*: one process pulls the stream and reduces each frame, as a script would. It keeps no account: what it misses is
  missing.
- *path*: ingest, broker, workers, sink and recorder, ledger and NeXus file, every frame accounted for.

``outside`` is the CPU time of all processes less what the reducers spent (reading, decoding and reducing), per frame.
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

from ..session import Session
from ..workers.errors import PoolError
from ..workers.pool import ONE_THREAD
from ..workers.settings import load

if TYPE_CHECKING:
    from bluesky.utils import MsgGenerator

    from ..devices.assets import FlyInfo

WARM_UP: Final = 200
"""Frames of a first run, so that imports, geometries and first pages aren't measured."""

RING: Final = 2 << 30
"""Bytes of shared memory: the detector is faster than two workers, and what is dropped takes the other path."""

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
    with (
        tempfile.TemporaryDirectory(prefix="haltere-bench-") as folder,
        Session.start(load(directory=Path(folder), workers=workers, ring_bytes=RING)) as session,
    ):
        session.eiger.nimages_per_file.put(frames)
        # First: once the ingest has connected, the detector's stream is shared among all who pull it.
        bare = measure_bare(session, burst_info(session, frames))
        warm = fly(session, WARM_UP)
        await_beats(session, warm["frames"]["eiger"]["expected"])
        before, reduced_before = cpu(session), reducers(session)
        began = perf_counter()
        stop = fly(session, frames)
        wall = perf_counter() - began
        # The workers tell what they have done with their next heartbeats.
        await_beats(session, reduced_before[0] + stop["frames"]["eiger"]["expected"])
        spent = {name: seconds - before[name] for name, seconds in cpu(session).items()}
        reduced_frames, reduced_us = (
            after - first for after, first in zip(reducers(session), reduced_before, strict=True)
        )
        accounts = stop["frames"]["eiger"]
    reduce_s = reduced_us / 1e6
    outside = 1e3 * (sum(spent.values()) - reduce_s) / frames
    return {
        "detector": "Eiger 500k, uint16, bslz4",
        "frames": frames,
        "workers": workers,
        **{name: accounts[name] for name in ("expected", "live", "backfilled", "quarantined", "lost")},
        "reduced_frames": reduced_frames,
        "path_frames_per_s": round(frames / wall, 1),
        "path_outside_cpu_ms_per_frame": round(outside, 3),
        "path_reducer_cpu_ms_per_frame": round(1e3 * reduce_s / max(reduced_frames, 1), 3),
        **{
            f"path_{name}_cpu_ms_per_frame": round(1e3 * (seconds - (reduce_s if name == "worker" else 0)) / frames, 3)
            for name, seconds in spent.items()
        },
        "bare_frames": bare["frames"],
        "bare_frames_per_s": round(bare["frames"] / bare["wall_s"], 1),
        "bare_outside_cpu_ms_per_frame": round(bare["outside_ms"], 3),
        "bare_reducer_cpu_ms_per_frame": round(bare["reducer_ms"], 3),
        "bare_missed": frames - bare["frames"],
        "outside_ratio_path_to_bare": round(outside / bare["outside_ms"], 2),
        "load_average": [round(each, 2) for each in psutil.getloadavg()],
    }


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
    @bpp.run_decorator(md={"plan_name": "burst", "recipes": recipes, "dwell": 1e-3})  # type: ignore[untyped-decorator]
    def inner() -> MsgGenerator[None]:
        yield from bps.prepare(eiger, burst_info(session, frames), wait=True)
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


def burst_info(session: Session, frames: int) -> FlyInfo:
    """Return what the detector is told: one software trigger, ``frames`` exposures as fast as it can."""
    from ..devices.assets import FlyInfo

    eiger = session.eiger
    return FlyInfo(
        n=1,
        trigger="internal",
        exposures_per_event=frames,
        livetime=eiger.minimum_dwell - eiger.deadtime,
        deadtime=eiger.deadtime,
        prefix=f"burst-{uuid4().hex[:8]}",
    )


def measure_bare(session: Session, info: FlyInfo) -> dict[str, float]:
    """Let one process pull and reduce what the detector sends; return what it says of itself."""
    eiger = session.eiger
    (recipe,) = (each for each in session.recipes if each.source == eiger.name)
    described = eiger.describe_collect()[f"{eiger.name}_image"]
    settings = {
        "endpoint": eiger.stream_endpoint.get(),
        "params": recipe.params,
        "shape": described["shape"],
        "dtype": described["dtype_numpy"],
        "assets": str(session.pool.assets),
    }
    with subprocess.Popen(
        [sys.executable, "-m", "haltere.benchmarks.bare", json.dumps(settings)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **ONE_THREAD},
    ) as process:
        assert process.stdout is not None
        try:
            process.stdout.readline()  # it is ready
            eiger.stage()
            eiger.prepare(info).wait(60)
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


def reducers(session: Session) -> tuple[int, int]:
    """Return how many frames the reducers have taken so far, and how many µs of CPU they spent on them."""
    broker = session.pool.status()["broker"]
    if broker is None:
        raise PoolError("the broker doesn't answer (see its log in the pool's folder)")
    workers = broker["workers"].values() if isinstance(broker["workers"], dict) else broker["workers"]
    return sum(each["frames"] for each in workers), sum(each["reduce_us"] for each in workers)
