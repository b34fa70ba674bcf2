"""A scan that was flown and reduced, as documents: what the catalog, plots and formatters are shown."""

from __future__ import annotations

import os
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


@dataclass
class Measured:
    """A small scan as its devices recorded it: real HDF5 files, and the raw run's documents.

    ``eiger`` writes two files, its indices counting within each; ``pilc`` one.
    """

    folder: Path
    frames: int = 24
    per_file: int = 16
    recipes: list[dict[str, Any]] | None = None
    md: dict[str, Any] = field(default_factory=dict)
    uid: str = field(default_factory=lambda: str(uuid.uuid4()))

    def __post_init__(self) -> None:
        self.images = np.arange(self.frames * 64, dtype="u2").reshape(self.frames, 8, 8)
        self.x = np.linspace(-3, 3, self.frames)
        self.y = np.linspace(5, 7, self.frames)
        for number, first in enumerate(range(0, self.frames, self.per_file)):
            with h5py.File(self.folder / f"{self.uid}_{number}.h5", "w") as file:
                file["/entry/data/data"] = self.images[first : first + self.per_file]
        with h5py.File(self.folder / f"{self.uid}_pilc.h5", "w") as file:
            file["/x"], file["/y"] = self.x, self.y

    def documents(self, step: int = 6, exit_status: str = "success") -> Iterator[tuple[str, dict[str, Any]]]:
        """Give the documents; each stream_datum promises at most ``step`` frames."""
        recipes = {} if self.recipes is None else {"recipes": self.recipes}
        plan: dict[str, Any] = {"plan_name": "fly_grid", "scan_id": 17, "dwell": 0.0125, "shape": [4, 6]}
        hints = {"dimensions": [[["pilc_y"], "primary"], [["pilc_x"], "primary"]]}
        bundle: Any = compose_run(uid=self.uid, metadata={**plan, "hints": hints, **recipes, **self.md})
        yield "start", dict(bundle.start_doc)
        image = {"source": "sim", "dtype": "array", "dtype_numpy": "<u2", "shape": [8, 8], "external": "STREAM:"}
        scalar = {"source": "sim", "dtype": "number", "dtype_numpy": "<f8", "shape": [], "external": "STREAM:"}
        lane = {"eiger_stream_endpoint": "tcp://127.0.0.1:9", "eiger_stream_protocol": "simplon-1", "eiger_series": 12}
        stream = bundle.compose_descriptor(
            name="primary",
            data_keys={  # with their device's name, as the RunEngine adds it
                "eiger_image": {**image, "object_name": "eiger"},
                "pilc_x": {**scalar, "object_name": "pilc"},
                "pilc_y": {**scalar, "object_name": "pilc"},
            },
            object_keys={"eiger": ["eiger_image"], "pilc": ["pilc_x", "pilc_y"]},
            configuration={
                "eiger": {
                    "data": lane,
                    "timestamps": dict.fromkeys(lane, STARTED),
                    "data_keys": {key: {"source": "sim", "dtype": "string", "shape": []} for key in lane},
                }
            },
        )
        yield "descriptor", dict(stream.descriptor_doc)

        def resource(key: str, name: str, dataset: str) -> Any:
            return bundle.compose_stream_resource(
                mimetype="application/x-hdf5",
                uri=f"file://localhost{self.folder / name}",
                data_key=key,
                parameters={"dataset": dataset, "swmr": False, "chunk_shape": [1]},
            )

        pilc = {key: resource(key, f"{self.uid}_pilc.h5", f"/{key[-1]}") for key in ("pilc_x", "pilc_y")}
        for each in pilc.values():
            yield "stream_resource", dict(each.stream_resource_doc)
        file, at = None, 0
        while at < self.frames:
            number, inside = divmod(at, self.per_file)
            if inside == 0:
                file = resource("eiger_image", f"{self.uid}_{number}.h5", "/entry/data/data")
                yield "stream_resource", dict(file.stream_resource_doc)
            n = min(step, self.per_file - inside, self.frames - at)
            seq_nums = {"start": at + 1, "stop": at + n + 1}
            assert file is not None
            for each, index in ((file, inside), *((one, at) for one in pilc.values())):
                datum = each.compose_stream_datum(
                    indices={"start": index, "stop": index + n}, seq_nums=seq_nums, descriptor=stream.descriptor_doc
                )
                yield "stream_datum", dict(datum)
            at += n
        yield "stop", dict(bundle.compose_stop(exit_status=exit_status))


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder that the shared catalog may read."""
    return tmp_path_factory.mktemp("files")


@pytest.fixture(scope="session")
def shared_catalog(files: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Return one embedded catalog for all tests: a start takes 4 s."""
    from haltere.callbacks.catalog import Catalog

    with Catalog.start(tmp_path_factory.mktemp("shared catalog"), readable=[files]) as catalog:
        yield catalog


@pytest.fixture(scope="session")
def measured(files: Path) -> Any:
    """Return :class:`Measured`, writing into the folder that the shared catalog may read."""

    def make(**values: Any) -> Measured:
        return Measured(files, **values)

    return make


@pytest.fixture(scope="session")
def lambda_files() -> list[Path]:
    """Return the five files of one Lambda module, from PETRA III."""
    root = Path(os.environ.get("HALTERE_DATA", Path(__file__).parents[3] / "shared" / "data")) / "lambda2m_petra"
    found = sorted(root.glob("*.nxs"))
    if not found:
        pytest.skip(f"no {root}; set HALTERE_DATA to the folder of real measurements")
    return found
