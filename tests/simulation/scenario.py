"""What a seed stands for: which runs are measured, on what, and what goes wrong."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import inf
from random import Random
from typing import Final

from haltere.workers.broker.core import Times
from haltere.workers.wire.messages import Policy

from .model import Nature

PATIENT: Final = Times(
    beat=0.5, liveness=1.5, lease=3.0, late=0.5, quiet=1.0, sync=30.0, silent=2.5, unclaimed=5.0, keep=4.0
)
"""The broker's times, shorter than in the product where an hour of virtual time would only be waited through."""

HEALED: Final = 8.0
"""Seconds after which nothing goes wrong any more."""


@dataclass(frozen=True, slots=True)
class Network:
    """How often a message is lost, doubled, late; per message."""

    loss: float = 0.0
    twice: float = 0.0
    late: float = 0.0


@dataclass(frozen=True, slots=True)
class Frames:
    """One detector in one run.

    ``taken`` frames are exposed, ``promised`` of them named by documents. ``lag``: seconds from a frame's exposure
    until its file has it; ``lost``: frames that the file never gets; ``natures``: those that aren't plain.
    """

    name: str
    live: bool
    promised: int
    taken: int
    line: int
    per_file: int
    lag: float = 0.1
    datum_lag: float = 0.05
    flux: bool = False
    lost: frozenset[int] = frozenset()
    damaged: frozenset[int] = frozenset()
    """Frames that are streamed with bytes missing."""
    broken: frozenset[int] = frozenset()
    """Frames whose bytes are missing in the file."""
    natures: tuple[tuple[int, Nature], ...] = ()
    stored: bool = True
    """It writes its images to files."""


@dataclass(frozen=True, slots=True)
class Scan:
    """One run. ``dwell``: seconds per frame; ``named``: seconds until its descriptor tells of the detectors."""

    opened: float
    dwell: float
    detectors: tuple[Frames, ...]
    named: float = 0.0
    exit_status: str = "success"
    twice: bool = False
    """A second recipe reads the images too."""


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that goes wrong: what, when, for how long; ``whom`` picks one of several."""

    kind: str
    at: float
    seconds: float = 0.0
    whom: int = 0


@dataclass(frozen=True, slots=True)
class Scenario:
    """Everything that a run of the simulation depends on."""

    seed: int
    scans: tuple[Scan, ...]
    faults: tuple[Fault, ...] = ()
    network: Network = Network()
    times: Times = PATIENT
    workers: int = 3
    pace: float = 1.0
    """How long the workers take for a frame, in dwells of the first scan divided by the number of workers."""
    ring: int = 40
    """Frames that the ring has room for."""
    stray: float = 0.0
    """Of the frames that the detectors stream, how many don't come."""
    policy: Policy = "drop"
    """What becomes of frames that find no room in the ring."""
    spill_ring: int = 20
    """Frames that the memory between ingest and spiller has room for."""
    group: int = 64
    pulled: bool = True
    """The ingest pulls from the detectors before a run names them."""
    limits: tuple[tuple[str, int], ...] = ()
    """Bounds of queues and buffers that are set lower than in the product, so that they are met."""

    @property
    def limit(self) -> float:
        """Seconds after which it must have ended."""
        return 200.0


KINDS: Final = {
    "worker dies": 4,
    "workers die": 1,
    "reducer dies": 1,
    "broker dies": 3,
    "sink dies": 3,
    "sink dies in a commit": 1,
    "ingest dies": 2,
    "recorder dies": 2,
    "session dies": 1,
    "worker stops": 2,
    "broker stops": 1,
    "sink stops": 1,
    "ingest stops": 1,
    "recorder stops": 1,
    "session stops": 1,
    "worker is slow": 2,
    "worker leaves": 1,
    "disk is full": 2,
    "connection breaks": 5,
    "catalog is away": 1,
}
"""Faults, and how often each is drawn among them."""

SPILLING: Final = 0.15
"""How many of the seeds spill."""

SPILL_KINDS: Final = ("spiller dies", "spiller dies", "spiller's disk is full", "ingest dies")
"""Further faults of these."""

LIMITS: Final = {
    "haltere.workers.worker.core.MAX_KEPT": (2, 4),
    "haltere.workers.sink.core.MAX_BUFFER": (2000, 6000),
    "haltere.workers.sink.core.MAX_CONTROLS": (2, 6),
    "haltere.workers.broker.queue.FILES_QUEUED": (2, 4),
    "haltere.workers.broker.waiting.MAX_BLOCKS": (4, 20),
    "haltere.workers.broker.rings.MAX_FREE": (1, 3),
    "haltere.callbacks.dispatch_window.WINDOW": (1, 4),
    "haltere.callbacks.recording.ROWS": (1, 5),
    "haltere.callbacks.recording.FINISHED_KEPT": (1, 1),
}


def draw(seed: int) -> Scenario:
    """Return what a seed stands for."""
    random = Random(f"scenario {seed}")
    dwell = random.choice((0.005, 0.00625, 0.0125))
    first = _scan(random, 0.2, dwell)
    scans = [first]
    if random.random() < 0.35:
        end = first.opened + first.dwell * max(each.taken for each in first.detectors)
        opened = end + random.choice((0.0, 0.3, 2.0)) if random.random() < 0.8 else first.opened + 0.1
        scans.append(_scan(random, opened, dwell, small=True))
    troubles = random.choice((0, 1, 2, 4, 4, 8, 12))
    last = min(HEALED - 1.0, 2.0 + 2 * scans[-1].opened + 1.5)
    faults = [
        Fault(
            random.choices(list(KINDS), list(KINDS.values()))[0],
            random.uniform(0.0, last),
            random.choice((0.05, 0.3, 1.0, random.uniform(0.1, 3.0))),
            random.randrange(64),
        )
        for _ in range(troubles)
    ]
    rates = random.choice(((0.0, 0.0, 0.0), (0.0, 0.0, 0.0), (0.01, 0.01, 0.02), (0.05, 0.05, 0.05), (0.0, 0.1, 0.1)))
    limits = tuple((name, random.randint(*some)) for name, some in LIMITS.items() if random.random() < 0.1)
    drawn = Scenario(
        seed,
        tuple(scans),
        tuple(sorted(faults, key=lambda each: each.at)),
        Network(*rates),
        workers=random.choice((1, 2, 3, 3, 4)),
        pace=random.choice((0.3, 0.6, 0.6, 0.9, 2.5, 5.0)),
        ring=random.choice((12, 40, 40, 100)),
        stray=random.choice((0.0, 0.0, 0.02, 0.1)),
        group=random.choice((4, 64)),
        policy=random.choice(("drop", "drop", "drop", "block")),
        pulled=random.random() < 0.7,
        limits=limits,
    )
    return _spilling(drawn) if Random(f"spilling {seed}").random() < SPILLING else drawn


def _spilling(scenario: Scenario) -> Scenario:
    """Return the scenario with detectors that keep no file, or with frames spilled though files have them."""
    random = Random(f"spilling, and how {scenario.seed}")

    def unkept(frames: Frames) -> Frames:
        stored = not frames.live or frames.flux or random.random() < 0.3
        # Of a frame that both have, the detector's file is read: should it lack the frame, the pool's isn't asked.
        lost = frozenset() if stored and frames.live else frames.lost
        return replace(frames, stored=stored, lost=lost, damaged=frozenset(), broken=frozenset())

    scans = tuple(replace(scan, detectors=tuple(map(unkept, scan.detectors))) for scan in scenario.scans)
    last = min(HEALED - 1.0, scans[-1].opened + 4.0)
    faults = [
        Fault(random.choice(SPILL_KINDS), random.uniform(0.0, last), random.choice((0.05, 0.3, 1.0)))
        for _ in range(random.choice((0, 1, 2, 4)) if scenario.faults else 0)
    ]
    together = sorted((*scenario.faults, *faults), key=lambda each: each.at)
    return replace(
        scenario,
        scans=scans,
        faults=tuple(together),
        policy="spill",
        spill_ring=random.choice((4, 20, 200)),
        stray=scenario.stray / 2,
    )


def _scan(random: Random, opened: float, dwell: float, *, small: bool = False) -> Scan:
    planned = random.choice((16, 30, 41)) if small else random.choice((40, 64, 77, 96))
    aborted = random.random() < 0.15
    promised = random.randrange(planned) if aborted else planned
    taken = promised + random.choice((0, 0, 3, 17)) if aborted or random.random() < 0.1 else promised
    line = random.choice((8, 20, 25))
    names = random.choice((("eiger",), ("eiger", "pilc"), ("eiger", "pilc"), ("eiger", "lambda"), ("pilc", "lambda")))
    live = random.random() < 0.85
    detectors = tuple(_frames(random, name, promised, taken, line, live=live and name != "pilc") for name in names)
    return Scan(
        opened,
        dwell,
        detectors,
        named=random.choice((0.0, 0.0, 0.05, 0.6)),
        exit_status=random.choice(("abort", "fail")) if aborted else "success",
        twice=random.random() < 0.2,
    )


def _frames(random: Random, name: str, promised: int, taken: int, line: int, *, live: bool) -> Frames:
    frames = range(taken)

    def some(most: int) -> list[int]:
        return random.sample(frames, min(random.randint(0, most), taken))

    lost = set(some(random.choice((0, 0, 3))))
    if random.random() < 0.1:
        lost |= set(range(random.randrange(taken + 1), taken))  # the file ends early
    natures: dict[int, Nature] = {}
    if name != "pilc":
        natures |= dict.fromkeys(some(random.choice((0, 2))), Nature.POISON)
        natures |= dict.fromkeys(some(random.choice((0, 0, 1, 2))), Nature.KILLER)
        natures |= dict.fromkeys(some(random.choice((0, 0, 0, 1))), Nature.HANGING)
    return Frames(
        name,
        live,
        promised,
        taken,
        line,
        per_file=random.choice((taken or 1, 32, 50)),
        lag=random.choice((0.02, 0.1, 0.1, 1.0, 2.5)),
        datum_lag=random.choice((0.02, 0.05, 0.5, 2.0)),
        damaged=frozenset(some(random.choice((0, 0, 0, 3)))),
        broken=frozenset(some(random.choice((0, 0, 0, 3)))) if name != "pilc" else frozenset(),
        flux=name != "pilc" and random.random() < 0.25,
        lost=frozenset(lost),
        natures=tuple(sorted(natures.items())),
    )


def quiet(scenario: Scenario) -> Scenario:
    """Return the same runs with nothing going wrong: what every other way of it is compared with."""
    return replace(scenario, faults=(), network=Network(), stray=0.0, limits=())


def written(frames: Frames, exposed: float, frame: int) -> float:
    """Return when a frame that was exposed then is in its file."""
    return inf if frame in frames.lost or not frames.stored else exposed + frames.lag
