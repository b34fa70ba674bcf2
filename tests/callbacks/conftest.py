"""A scan that was flown and reduced, as documents: what the catalog, plots and formatters are shown."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from event_model import compose_run
from numpy.typing import NDArray

ROWS, COLUMNS, BINS, PAGE = 12, 20, 32, 16
STARTED = 1732271334.0


@dataclass
class Flown:
    """A snake over ``rows`` × ``columns``, ±5 µm by ±10 µm, with jitter; Fe_Ka is ``10·row + column`` of the plan."""

    rows: int = ROWS
    columns: int = COLUMNS
    md: dict[str, Any] = field(default_factory=dict)
    status: dict[int, int] = field(default_factory=dict)
    raw_uid: str = field(default_factory=lambda: str(uuid.uuid4()))

    def __post_init__(self) -> None:
        row, column = np.divmod(np.arange(self.rows * self.columns), self.columns)
        column = np.where(row % 2, self.columns - 1 - column, column)
        jitter = np.random.default_rng(17).uniform(-0.2, 0.2, (2, row.size))
        self.y = -5 + (row + jitter[0]) * 10 / (self.rows - 1)
        self.x = -10 + (column + jitter[1]) * 20 / (self.columns - 1)
        self.fe = 10.0 * row + column
        self.statuses = np.zeros(row.size, int)
        for frame, status in self.status.items():
            self.statuses[frame] = status
        self.fe[self.statuses > 1] = np.nan
        self.plan = {
            "plan_name": "fly_grid",
            "scan_id": 17,
            "shape": [self.rows, self.columns],
            "extents": [[-5, 5], [-10, 10]],
            "snaking": [False, True],
            "dwell": 0.005,
            "hints": {"dimensions": [[["pilc_y"], "primary"], [["pilc_x"], "primary"]], "gridding": "rectilinear"},
            **self.md,
        }

    @property
    def expected(self) -> NDArray[np.float64]:
        """The map that must come out, (rows, columns)."""
        image = self.fe.reshape(self.rows, self.columns).copy()
        image[1::2] = image[1::2, ::-1]
        return image

    def raw(self) -> list[tuple[str, dict[str, Any]]]:
        """Documents of the raw run; that it has no stream is enough here."""
        run = compose_run(uid=self.raw_uid, metadata=self.plan)
        return [("start", dict(run.start_doc)), ("stop", dict(run.compose_stop()))]

    def processed(self, nexus: Path | None = None) -> Iterator[tuple[str, dict[str, Any]]]:
        """Documents of the processed run: recipe xrf as pages, and xrd's patterns in ``nexus``."""
        run: Any = compose_run(metadata={**self.plan, "raw_uid": self.raw_uid, "parent_uids": [self.raw_uid]})
        yield "start", dict(run.start_doc)
        n = self.rows * self.columns
        number: dict[str, Any] = {"source": "haltere", "dtype": "number", "dtype_numpy": "<f8", "shape": []}
        shared: dict[str, Any] = {
            "frame": {"source": "haltere", "dtype": "integer", "dtype_numpy": "<i8", "shape": []},
            "status": {"source": "haltere", "dtype": "integer", "dtype_numpy": "<i8", "shape": []},
            "pilc_y": {**number, "units": "um"},
            "pilc_x": {**number, "units": "um"},
        }
        streams = {"xrf": {**shared, "Fe_Ka": {**number, "units": "counts"}, "Ca_Ka": {**number, "units": "counts"}}}
        bundles = {}
        configuration: dict[str, Any] = {}
        if nexus is not None:
            with h5py.File(nexus, "w") as file:
                patterns = np.arange(n * BINS, dtype="f4").reshape(n, BINS)
                file.create_dataset("/entry/xrd/intensity", data=patterns, chunks=(PAGE, BINS))
            pattern: dict[str, Any] = {
                "source": "haltere",
                "dtype": "array",
                "dtype_numpy": "<f4",
                "shape": [BINS],
                "dims": ["radial"],
            }
            streams["xrd"] = {**shared, "intensity": {**pattern, "external": "STREAM:"}}
            axis = {"source": "haltere", "dtype": "array", "shape": [BINS], "units": "deg"}
            radial = np.linspace(5, 20, BINS).tolist()
            configuration = {
                "xrd": {"data": {"radial": radial}, "timestamps": {"radial": STARTED}, "data_keys": {"radial": axis}}
            }
        for name, keys in streams.items():
            bundles[name] = run.compose_descriptor(
                name=name,
                data_keys=keys,
                configuration=configuration if name == "xrd" else {},
                object_keys={name: list(keys)},
            )
            yield "descriptor", dict(bundles[name].descriptor_doc)
        if nexus is not None:
            resource = run.compose_stream_resource(
                mimetype="application/x-hdf5",
                uri=f"file://localhost{nexus}",
                data_key="intensity",
                parameters={"dataset": "/entry/xrd/intensity", "chunk_shape": [PAGE, BINS], "swmr": True},
            )
            yield "stream_resource", dict(resource.stream_resource_doc)
        for first in range(0, n, PAGE):
            frames = np.arange(first, min(first + PAGE, n))
            for name, bundle in bundles.items():
                columns = {
                    "frame": frames,
                    "status": self.statuses[frames],
                    "pilc_y": self.y[frames],
                    "pilc_x": self.x[frames],
                }
                if name == "xrf":
                    columns |= {"Fe_Ka": self.fe[frames], "Ca_Ka": 2 * self.fe[frames]}
                elif nexus is not None:
                    span = {"start": first, "stop": first + len(frames)}
                    datum = resource.compose_stream_datum(
                        indices=span,
                        seq_nums={"start": first + 1, "stop": span["stop"] + 1},
                        descriptor=bundle.descriptor_doc,
                    )
                    yield "stream_datum", dict(datum)
                times = [STARTED] * len(frames)
                page = bundle.compose_event_page(
                    data={key: values.tolist() for key, values in columns.items()},
                    timestamps=dict.fromkeys(columns, times),
                    seq_num=(frames + 1).tolist(),
                    time=times,
                    validate=False,
                )
                yield "event_page", dict(page)
        counts = np.bincount(self.statuses, minlength=4).tolist()
        frames_of = dict(zip(("live", "backfilled", "quarantined", "lost"), counts, strict=True), expected=n)
        yield "stop", {**run.compose_stop(), "frames": {"eiger": frames_of, "xspress3": frames_of}}


@pytest.fixture(scope="session")
def flown() -> Flown:
    """Return the scan, with three backfilled frames and two that gave nothing."""
    return Flown(status={3: 1, 4: 1, 5: 1, 50: 2, 51: 3})
