"""Recorded files become a run like any other; what doesn't fit is said in one line before anything begins."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from event_model import DocumentNames, schema_validators

from haltere.callbacks.dispatch_core import DispatchCore
from haltere.callbacks.recorded import find_all, find_frames, recorded_run, reduce_files
from haltere.workers.errors import FileError, ReductionError, SettingsError
from haltere.workers.files.frames import FrameReader
from haltere.workers.recipes import Recipe
from haltere.workers.wire.messages import Expect, RunClose, StreamOpen, Welcome, decode

PONI = {"dist": 0.2, "poni1": 0.0, "poni2": 0.0, "pixel1": 1e-4, "pixel2": 1e-4}
XRD = Recipe("xrd", "azimuthal", "detector", {"poni": PONI, "bins": 10})


def recorded(
    path: Path, *, n: int = 3, shape: Any = (4, 6), dtype: str = "u2", dataset: str = "entry/data/data"
) -> Path:
    with h5py.File(path, "a") as file:
        file[dataset] = np.arange(n * int(np.prod(shape))).reshape(n, *shape).astype(dtype)
    return path


def messages(documents: Any) -> list[Any]:
    """Return what the dispatcher tells the sink of these documents."""
    core = DispatchCore(session=1)
    for name, doc in documents:
        core.document(name, doc)
    core.impatient(1e9)
    core.heard(Welcome(1, 1, 5000, 500), 1e9)
    return [decode(data) for data in core.outgoing(1e9)]


def test_documents_are_valid(tmp_path: Path) -> None:
    documents = list(recorded_run([recorded(tmp_path / "a.h5")], [XRD]))
    for name, doc in documents:
        schema_validators[DocumentNames[name]].validate(doc)
    assert [name for name, _ in documents] == ["start", "descriptor", "stream_resource", "stream_datum", "stop"]
    start = documents[0][1]
    assert start["plan_name"] == "recorded"
    assert start["recipes"][0]["reducer"] == "azimuthal"
    assert documents[-1][1]["num_events"] == {"primary": 3}


def test_the_pool_is_told_of_every_frame_in_every_file(tmp_path: Path) -> None:
    files = [recorded(tmp_path / f"{name} {n}.h5", n=n) for name, n in (("b", 2), ("a", 5))]
    told = messages(recorded_run(files, [XRD], name="detector"))
    (opened,) = [each for each in told if isinstance(each, StreamOpen)]
    assert (opened.stream, opened.live) == ("detector", None)
    spans = [span for each in told if isinstance(each, Expect) for span in each.files]
    assert [(span.first, span.n, span.offset) for span in spans] == [(0, 2, 0), (2, 5, 0)]
    (closed,) = [each for each in told if isinstance(each, RunClose)]
    assert closed.totals[0].n == 7
    with FrameReader([tmp_path]) as reader:
        got: Any = reader.read(spans[1], [2, 6], opened.inputs[0])
    np.testing.assert_array_equal(np.asarray(got), np.arange(5 * 24).reshape(5, 4, 6)[[0, 4]])


def test_lambda_files_from_petra_are_one_run(lambda_files: list[Path]) -> None:
    found = find_all(lambda_files)
    assert [(each.dataset, each.n, each.shape, each.dtype) for each in found] == 5 * [
        ("/entry/instrument/detector/data", 10, (516, 1554), "<i2")
    ]
    poni = lambda_files[0].with_name("L2.poni").read_text()
    recipe = Recipe("xrd", "azimuthal", "lambda", {"poni": poni, "bins": 500})
    told = messages(recorded_run(lambda_files, [recipe], name="lambda"))
    assert sum(each.stop - each.first for each in told if isinstance(each, Expect)) == 50


def test_frames_are_found_where_files_of_their_kind_have_them(tmp_path: Path) -> None:
    path = recorded(tmp_path / "a.h5", dataset="entry/instrument/detector/flatfield", n=1)
    recorded(path, dataset="entry/instrument/detector/data")
    assert find_frames(path).dataset == "/entry/instrument/detector/data"
    assert find_frames(path, "entry/instrument/detector/flatfield").n == 1


def test_the_only_frames_are_found_wherever_they_are(tmp_path: Path) -> None:
    assert find_frames(recorded(tmp_path / "a.h5", dataset="deep/in/there")).dataset == "/deep/in/there"


def test_of_several_candidates_one_must_be_named(tmp_path: Path) -> None:
    path = recorded(recorded(tmp_path / "a.h5", dataset="one"), dataset="two", n=7)
    with pytest.raises(FileError, match=r"it has /one 3×4×6, /two 7×4×6; name one with --dataset"):
        find_frames(path)
    assert find_frames(path, "/two").n == 7


def test_a_dataset_that_is_no_frames_is_answered_with_those_that_are(tmp_path: Path) -> None:
    path = recorded(tmp_path / "a.h5")
    for wrong in ("entry/nothing", "entry/data"):
        with pytest.raises(FileError, match=rf"/{wrong} is no dataset of frames .*it has /entry/data/data 3×4×6"):
            find_frames(path, wrong)


def test_a_file_without_frames_says_so(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["spectra"] = np.zeros((5, 4096))
    with pytest.raises(FileError, match="it has no dataset of frames"):
        find_frames(tmp_path / "a.h5")


def test_a_master_file_asks_for_its_data_files(tmp_path: Path) -> None:
    recorded(tmp_path / "x_data_000001.h5")
    with h5py.File(tmp_path / "x_master.h5", "w") as file:
        file["entry/data/data_000001"] = h5py.ExternalLink("x_data_000001.h5", "/entry/data/data")
    with pytest.raises(FileError, match=r"x_master\.h5 is a master file: name the data files"):
        find_frames(tmp_path / "x_master.h5")


def test_an_image_file_is_refused_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "a.tif").write_bytes(b"II*\0" + bytes(100))
    with pytest.raises(FileError, match=r"a\.tif is no HDF5 file; single images .* must first be put into one"):
        find_frames(tmp_path / "a.tif")


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    path = recorded(tmp_path / "a.h5", n=100)
    path.write_bytes(path.read_bytes()[:600])
    with pytest.raises(FileError, match=r"a\.h5 can't be read"):
        find_frames(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"none\.h5: there is no such file"):
        recorded_run([tmp_path / "none.h5"], [XRD])


@pytest.mark.parametrize(("other", "what"), [({"shape": (4, 7)}, "shape"), ({"dtype": "i4"}, "dtype")])
def test_files_that_differ_are_not_one_run(tmp_path: Path, other: dict[str, Any], what: str) -> None:
    files = [recorded(tmp_path / "a.h5"), recorded(tmp_path / "b.h5", **other)]
    with pytest.raises(FileError, match=rf"b\.h5: {what} .*but a\.h5 has .*; reduce them apart"):
        recorded_run(files, [XRD])


def test_no_file_and_a_file_twice_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="no file to reduce"):
        recorded_run([], [XRD])
    with pytest.raises(FileError, match="named twice"):
        recorded_run([recorded(tmp_path / "a.h5"), tmp_path / "." / "a.h5"], [XRD])


def test_a_recipe_of_another_detector_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ReductionError, match="recipe xrd is for 'detector', the files are of 'lambda'"):
        recorded_run([recorded(tmp_path / "a.h5")], [XRD], name="lambda")


class Catalog:
    """Takes documents; may be away."""

    def __init__(self, there: bool = True):
        self.taken: list[str] = []
        self.there = there

    def __call__(self, name: str, doc: Any) -> None:
        """Take a document."""
        self.taken.append(name)

    def flush(self, timeout: float | None = None) -> bool:
        """Say whether it is there."""
        return self.there


class Follower:
    """Says that every run is complete."""

    def wait(self, run: str, timeout: float = 60.0) -> dict[str, Any]:
        """Return its stop document."""
        return {"run_start": "processed of " + run}


def test_files_are_recorded_dispatched_and_waited_for(tmp_path: Path) -> None:
    catalog, told = Catalog(), Catalog()
    files = [recorded(tmp_path / "a.h5")]
    raw_uid, stop = reduce_files(files, [XRD], write=catalog, dispatch=told, follow=Follower(), timeout=1)
    assert stop["run_start"] == f"processed of {raw_uid}"
    assert catalog.taken == told.taken == ["start", "descriptor", "stream_resource", "stream_datum", "stop"]


def test_a_catalog_that_is_away_is_said(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="was reduced, but isn't in the catalog"):
        reduce_files(
            [recorded(tmp_path / "a.h5")],
            [XRD],
            write=Catalog(there=False),
            dispatch=Catalog(),
            follow=Follower(),
            timeout=1,
        )
