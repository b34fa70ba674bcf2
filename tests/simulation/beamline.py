"""The beamline: detectors that stream and write, and the raw run's documents as the RunEngine gives them."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING, Any
from uuid import UUID

import msgspec

from haltere.workers.files.references import STREAMED
from haltere.workers.ingest.core import Source
from haltere.workers.recipes import Recipe

from .model import DTYPE, SHAPE, Detector
from .scenario import Frames, Scan, written

if TYPE_CHECKING:
    from .world import World

RECIPES = (
    Recipe("xrd", "model", "eiger", {}),
    Recipe("map", "model", "lambda", {}),
    Recipe("positions", "columns", "pilc", {}),
)
AGAIN = Recipe("again", "model", "eiger", {})
"""A second recipe that reads what another does."""

HELD = 20
"""Frames that a detector keeps for an ingest that isn't there; the next are gone."""


class Run:
    """One raw run: exposes its frames and tells of them, each at its time."""

    def __init__(self, world: World, number: int, scan: Scan) -> None:
        self.world = world
        self.scan = scan
        self.random = Random(f"{world.scenario.seed} run {number}")
        self.uid = self._uuid()
        self.life = 0
        """Which life of the session measures it; 0 before it has begun."""
        self.over = 0.0
        """When its last document is given."""
        begin = scan.opened + 0.1
        self.detectors = {
            frames.name: self._detector(frames, 100 * (number + 1) + place, begin)
            for place, frames in enumerate(scan.detectors)
        }
        self._plan(begin)

    def _uuid(self) -> str:
        return str(UUID(int=self.random.getrandbits(128), version=4))

    def _detector(self, frames: Frames, series: int, begin: float) -> Detector:
        exposed = [begin + (frame + 1) * self.scan.dwell for frame in range(frames.taken)]
        return Detector(
            frames.name,
            series,
            frames.live,
            frames.promised,
            exposed,
            [written(frames, at, frame) for frame, at in enumerate(exposed)],
            frames.per_file,
            dict(frames.natures),
            frames.damaged,
            frames.broken,
            frames.flux,
            frames.stored,
        )

    @property
    def recipes(self) -> list[dict[str, Any]] | None:
        """What the start document asks for; None for what the session has by default."""
        if not self.scan.twice:
            return None
        names = {frames.name for frames in self.scan.detectors}
        wanted = [recipe for recipe in (*RECIPES, AGAIN) if recipe.source in names]
        policy = self.world.scenario.policy
        return [msgspec.to_builtins(msgspec.structs.replace(recipe, policy=policy)) for recipe in wanted]

    # --- documents ---------------------------------------------------------------------------------------------------

    def _plan(self, begin: float) -> None:
        at = self._say
        start = {
            "uid": self.uid,
            "time": self.world.wall_at(self.scan.opened),
            "scan_id": 1,
            "plan_name": "fly_grid",
            "dwell": self.scan.dwell,
            "hints": {"dimensions": [[["pilc_y"], "primary"], [["pilc_x"], "primary"]]},
        }
        if self.recipes is not None:
            start["recipes"] = self.recipes
        at(self.scan.opened, "start", start)
        descriptor = self._descriptor()
        told = self.scan.opened + self.scan.named
        at(told, "descriptor", descriptor)
        last = told
        for frames, detector in zip(self.scan.detectors, self.detectors.values(), strict=True):
            if detector.live:
                source = Source(detector.endpoint, detector.series, SHAPE, DTYPE)
                for frame, when in enumerate(detector.exposed):
                    self.world.time.at(when, self.world.stream, detector, source, frame)
            for key in [detector.image] * (detector.name != "pilc") + detector.scalars:
                last = max(last, self._tell_of(key, frames, detector, descriptor["uid"], told))
        last = max(last, begin + self.scan.dwell * max(frames.taken for frames in self.scan.detectors))
        stop = {"uid": self._uuid(), "run_start": self.uid, "time": self.world.wall_at(last), "reason": ""}
        self.over = last + 0.05
        at(self.over, "stop", {**stop, "exit_status": self.scan.exit_status, "num_events": {}})

    def _say(self, when: float, name: str, doc: dict[str, Any]) -> None:
        self.world.time.at(when, self._said, name, doc)

    def _said(self, name: str, doc: dict[str, Any]) -> None:
        """Give a document to the session that measures the run; with it the run ends."""
        session = self.world.session
        if name == "start" and session.alive:
            self.life = session.life
        if session.life == self.life:
            session.now_or_later(session.document, name, doc)

    def _descriptor(self) -> dict[str, Any]:
        image = {"source": "sim", "dtype": "array", "dtype_numpy": DTYPE, "shape": [1, *SHAPE], "external": "STREAM:"}
        number = {"source": "sim", "dtype": "number", "dtype_numpy": "<f8", "shape": [1], "external": "STREAM:"}
        keys: dict[str, Any] = {}
        objects: dict[str, list[str]] = {}
        configuration: dict[str, Any] = {}
        for name, detector in self.detectors.items():
            mine = {} if name == "pilc" else {detector.image: {**image, "object_name": name}}
            mine |= {key: {**number, "object_name": name} for key in detector.scalars}
            keys |= mine
            objects[name] = list(mine)
            lane = {f"{name}_stream_endpoint": detector.endpoint, f"{name}_stream_protocol": "simplon-1"}
            data = {**lane, f"{name}_series": detector.series} if detector.live else {}
            configuration[name] = {"data": data, "timestamps": dict.fromkeys(data, 0.0), "data_keys": {}}
        return {
            "uid": self._uuid(),
            "run_start": self.uid,
            "time": self.world.wall_at(self.scan.opened),
            "name": "primary",
            "data_keys": keys,
            "object_keys": objects,
            "configuration": configuration,
        }

    def _tell_of(self, key: str, frames: Frames, detector: Detector, descriptor: str, told: float) -> float:
        """Give a key's files, and a stream_datum for each line or file that ends; return when the last was given."""
        last = told
        resource = ""
        for first in range(0, frames.promised, frames.line):
            stop = min(first + frames.line, frames.promised)
            when = max(told, detector.exposed[stop - 1] + frames.datum_lag)
            while first < stop:
                number, row = divmod(first, detector.per_file)
                end = min(stop, (number + 1) * detector.per_file)
                if not row and key == detector.image and not frames.stored:
                    resource = self._uuid()
                    doc = {"uid": resource, "run_start": self.uid, "data_key": key, "mimetype": STREAMED}
                    self._say(when, "stream_resource", {**doc, "uri": detector.endpoint, "parameters": {}})
                elif not row:
                    uri = f"file://localhost/data/{self.uid}_{key}_{number}.h5"
                    self.world.files.add(uri, detector, first)
                    resource = self._uuid()
                    parameters = {"dataset": "/entry/data/data", "chunk_shape": [1, *SHAPE]}
                    doc = {"uid": resource, "run_start": self.uid, "data_key": key, "mimetype": "application/x-hdf5"}
                    self._say(when, "stream_resource", {**doc, "uri": uri, "parameters": parameters})
                datum = {
                    "uid": self._uuid(),
                    "stream_resource": resource,
                    "descriptor": descriptor,
                    "indices": {"start": row, "stop": row + end - first},
                    "seq_nums": {"start": first + 1, "stop": end + 1},
                }
                self._say(when, "stream_datum", datum)
                first = end
            last = max(last, when)
        return last
