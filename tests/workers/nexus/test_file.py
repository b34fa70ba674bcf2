"""The NeXus file: readable while it grows, and a plot at the end of every chain of defaults."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import h5py
import msgspec
import numpy as np
import pytest

from haltere.workers.intervals import IntervalSet
from haltere.workers.ledger.rows import BatchRow, ConstRow, RunRow, account, mark
from haltere.workers.nexus import layout
from haltere.workers.nexus.account import COUNTS
from haltere.workers.nexus.file import NexusFile
from haltere.workers.payload import Piece, pack
from haltere.workers.reducers.base import Output
from haltere.workers.wire.messages import LIVE, LOST, QUARANTINED, FileSpan, InputSpec, RecipeSpec, StreamOpen

from ..flying import BATCH, BINS, COLUMNS, EIGER, FRAMES, OUTPUTS, PILC, PROCESSED, ROWS, RUN, START, row


def run_row(start: dict[str, Any] = START, totals: dict[str, int] | None = None) -> RunRow:
    stop = {"time": 1_700_000_060.0}
    return RunRow(RUN, PROCESSED, start, 1.0, totals, "success", stop, None, None, None, 0)


def make(path: Path, start: dict[str, Any] = START) -> NexusFile:
    streams = [(EIGER, {"xrd": OUTPUTS["xrd"]}), (PILC, {"positions": OUTPUTS["positions"]})]
    return NexusFile(path, run_row(start), streams)


def fill(file: NexusFile, frames: int = FRAMES) -> None:
    for stream in (EIGER, PILC):
        for first in range(0, frames, BATCH):
            file.write(row(first, min(BATCH, frames - first), stream=stream))
    (spec,), payload = pack([Piece("xrd", "const", "q", np.linspace(1, 2, BINS))])
    file.write_const(ConstRow(RUN, "eiger", "cfg-a", spec, payload))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "scan_00017.nxs"


@pytest.fixture
def written(path: Path) -> Iterator[h5py.File]:
    file = make(path)
    fill(file)
    file.finish(run_row(totals={"eiger": FRAMES, "pilc": FRAMES}))
    with h5py.File(path) as opened:
        yield opened


def plot(group: h5py.Group) -> h5py.Group:
    """Return what a viewer shows: follow the defaults to an NXdata."""
    while group.attrs["NX_class"] != "NXdata":
        group = group[group.attrs["default"]]
    return group


def test_the_defaults_lead_from_the_root_to_a_map(written: h5py.File) -> None:
    shown = plot(written)
    assert shown.name == "/entry/xrd/maps"
    assert shown[shown.attrs["signal"]].shape == (ROWS, COLUMNS)


def nxdata(group: h5py.Group) -> list[h5py.Group]:
    found = []
    for child in group.values():
        if isinstance(child, h5py.Group):
            found += [child] if child.attrs.get("NX_class") == "NXdata" else nxdata(child)
    return found


def test_every_plot_has_a_signal_and_axes_that_fit_it(written: h5py.File) -> None:
    groups = nxdata(written["entry"])
    assert len(groups) == 5
    for data in groups:
        signal = data[data.attrs["signal"]]
        axes = list(data.attrs["axes"])
        scatter = signal.ndim == 1 and len(axes) == 2
        for number, axis in enumerate(axes):
            if axis != ".":
                assert data[axis].shape == (signal.shape[0 if scatter else number],), data.name
        for name in data.attrs.get("auxiliary_signals", []):
            assert data[name].shape == signal.shape


def test_a_snaked_line_lies_in_the_map_the_right_way_round(written: h5py.File) -> None:
    counts = written["entry/xrd/maps/counts"][:]
    assert counts[0].tolist() == [0, 7, 14, 21, 28]
    assert counts[1].tolist() == [63, 56, 49, 42, 35]
    maps = written["entry/positions/maps"]
    assert np.array_equal(maps["pilc_x"][:], np.tile(maps["x"][:], (ROWS, 1)))
    assert np.array_equal(maps["pilc_y"][:], np.tile(maps["y"][:][:, None], (1, COLUMNS)))


def test_results_axes_and_totals_are_where_the_layout_says(written: h5py.File) -> None:
    xrd = written["entry/xrd"]
    assert xrd["intensity"][3].tolist() == [300 + k for k in range(BINS)]
    assert np.array_equal(xrd["data/intensity_errors"][:], np.sqrt(xrd["intensity"][:]))
    assert xrd["data/q"].attrs["units"] == "1/nm"
    assert xrd["sum"][:].tolist() == [sum(range(FRAMES)) * k for k in range(BINS)]
    assert xrd["status"][:].tolist() == [0] * FRAMES
    assert xrd["cfg"].asstr()[()] == "cfg-a"
    assert np.array_equal(xrd["scatter/x"][:], written["entry/positions/pilc_x"][:])


def test_the_entry_says_what_the_documents_said(written: h5py.File) -> None:
    entry = written["entry"]
    assert entry["experiment_identifier"].asstr()[()] == RUN
    assert entry["sample/name"].asstr()[()] == "ceria"
    assert entry["sample/thickness"][()] == 12.0
    assert entry["start_time"].asstr()[()].startswith("2023-11-14T22:13:20")
    assert entry["end_time"].asstr()[()].startswith("2023-11-14T22:14:20")
    assert entry["exit_status"].asstr()[()] == "success"


def test_a_reader_sees_batches_as_they_are_flushed_and_nothing_where_none_is(path: Path) -> None:
    file = make(path)
    with h5py.File(path, "r", swmr=True) as reader:
        assert np.isnan(reader["entry/xrd/intensity"][:]).all()
        file.write(row(8))
        file.flush()
        for name in ("intensity", "status", "sum", "maps/counts"):
            reader["entry/xrd"][name].refresh()
        xrd = reader["entry/xrd"]
        assert xrd["intensity"][8, 1] == 801
        assert np.isnan(xrd["intensity"][7]).all()
        assert xrd["status"][:].tolist() == [255] * 8 + [0] * BATCH + [255] * 8
        assert xrd["counts"][0] == -1
        assert np.isnan(xrd["maps/counts"][0]).all()
        assert xrd["maps/counts"][1, 0] == 63
        assert xrd["sum"][1] == 8 + 9 + 10 + 11
    file.close()


def test_a_reader_sees_sum_spectra_grow(path: Path) -> None:
    stream = msgspec.structs.replace(EIGER, recipes=[RecipeSpec("xrf", "stub", b"{}")])
    file = NexusFile(path, run_row(), [(stream, {"xrf": XRF})])
    spectra = np.arange(128).reshape(2, 64)
    specs, payload = pack([Piece("xrf", "acc", "spectrum", spectra)])
    for times in (1, 2):
        file.write(BatchRow(RUN, "eiger", "cfg-a", BATCH * times, BATCH, bytes(BATCH), [], 1, "w", specs, payload))
        file.flush()
        with h5py.File(path, "r", swmr=True) as reader:
            counts = reader["entry/instrument/eiger_spectrum01/data"][:]
            assert counts.tolist() == [times * n for n in range(64, 128)]
    file.close()


def test_the_file_grows_beyond_the_plan_and_ends_as_long_as_the_run(path: Path) -> None:
    file = make(path)
    fill(file, FRAMES + 6)
    file.finish(run_row(totals={"eiger": FRAMES + 6, "pilc": FRAMES + 6}))
    with h5py.File(path) as opened:
        assert opened["entry/xrd/counts"][:].tolist() == [7 * k for k in range(FRAMES + 6)]


def test_an_aborted_run_ends_with_the_frames_that_it_had(path: Path) -> None:
    file = make(path)
    fill(file, 6)
    file.finish(run_row(totals={"eiger": 6, "pilc": 6}))
    with h5py.File(path) as opened:
        assert opened["entry/xrd/status"].shape == (6,)
        assert np.isnan(opened["entry/xrd/maps/counts"][:]).sum() == FRAMES - 6
        assert opened["entry/xrd/scatter/x"].shape == opened["entry/xrd/scatter/counts"].shape


def test_frames_beyond_the_end_of_the_run_are_nowhere_in_its_file(path: Path) -> None:
    file = make(path)
    fill(file, 16)
    for first in (8, 12):
        file.withdraw(row(first))
    file.finish(run_row(totals={"eiger": 7, "pilc": 7}))
    with h5py.File(path) as opened:
        for name in ("xrd/status", "xrd/intensity", "xrd/counts", "positions/pilc_x"):
            assert len(opened["entry"][name]) == 7
        maps = opened["entry/xrd/maps/counts"][:]
        assert np.isnan(maps).sum() == FRAMES - 7
        assert sorted(maps[np.isfinite(maps)]) == [7 * k for k in range(7)]
        assert opened["entry/xrd/sum"][1] == sum(range(8))  # a batch is added as a whole


def test_a_run_without_a_grid_has_its_arrays_to_show(path: Path) -> None:
    file = make(path, {"scan_id": 3, "num_points": 8})
    fill(file, 8)
    file.finish(run_row(totals={"eiger": 8, "pilc": 8}))
    with h5py.File(path) as opened:
        assert plot(opened).name == "/entry/xrd/data"


def test_a_lost_frame_is_marked(path: Path) -> None:
    file = make(path)
    file.write(row(0, status=[0, LOST, 0, 1]))
    file.close()
    with h5py.File(path) as opened:
        assert opened["entry/xrd/status"][:4].tolist() == [0, LOST, 0, 1]


def test_raw_data_is_reached_through_external_links(path: Path) -> None:
    file = make(path)
    for number, first in enumerate((0, 12), 1):
        raw = path.with_name(f"eiger_{number}.h5")
        with h5py.File(raw, "w") as made:
            made["entry/data/data"] = np.arange(first, first + 12)
        for offset in (0, 6):
            span = FileSpan("eiger_image", raw.as_uri(), "/entry/data/data", first + offset, 6, offset)
            file.add_spans("eiger", [span])
    file.finish(run_row())
    with h5py.File(path) as opened:
        table = opened["entry/raw_data/eiger"]
        assert [(each["first"], each["n"], each["offset"]) for each in table] == [(0, 12, 0), (12, 12, 0)]
        assert table[1]["uri"].decode() == raw.as_uri()
        assert list(opened["entry/raw_data/links/eiger"]) == ["eiger_image_000001", "eiger_image_000002"]
        assert opened["entry/raw_data/links/eiger/eiger_image_000002"][:].tolist() == list(range(12, 24))


def test_a_folder_that_can_not_be_written_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"unable to create|No such file"):
        make(tmp_path / "nowhere" / "scan.nxs")


@pytest.mark.parametrize(
    "start",
    [
        {},
        {"shape": "40 by 60"},
        {"shape": [0, 4]},
        {"shape": [1 << 20, 1 << 20]},
        {"shape": [2, 2, 2, 2]},
    ],
)
def test_a_start_document_without_a_usable_grid_has_none(start: dict[str, Any]) -> None:
    assert layout.grid(start) is None


def test_a_grid_of_odd_extents_still_has_axes() -> None:
    grid = layout.grid({"shape": [3], "extents": "?", "snaking": [True, False]})
    assert grid is not None
    assert (grid.names, grid.snaking, grid.axis(0).tolist()) == (("x",), (False,), [0.0, 1.0, 2.0])


def test_each_frame_of_a_snaked_volume_has_a_place_of_its_own() -> None:
    grid = layout.grid({"shape": [3, 4, 5], "snaking": [False, True, True]})
    assert grid is not None
    places = grid.place(0, 61)
    assert sorted(places[:60]) == list(range(60))
    assert places[60] == -1
    steps = np.abs(np.diff(np.array(np.unravel_index(places[:60], (3, 4, 5))), axis=1)).sum(axis=0)
    assert (steps == 1).all()  # a snake never jumps


XRF = {
    "Fe_Ka": Output("nav", (), "<f8", "counts"),
    "spectrum": Output("acc", (2, 64), "<i8", "counts", "sum of all spectra", (".", "energy")),
    "energy": Output("const", (64,), "<f8", "keV", "energy"),
}


@pytest.fixture
def fluorescence(path: Path) -> Path:
    """Return the file of a run of which spectra of two elements were added up."""
    stream = StreamOpen(
        2, RUN, "xspress3", "cfg-x", BATCH, [InputSpec("x", (64,), "<i4")], [RecipeSpec("xrf", "stub", b"{}")]
    )
    file = NexusFile(path, run_row(), [(EIGER, {"xrd": OUTPUTS["xrd"]}), (stream, {"xrf": XRF})])
    for first in range(0, FRAMES, BATCH):
        spectra = np.arange(128).reshape(2, 64) * (first + 1)
        areas = np.arange(first, first + BATCH, dtype="f8")
        specs, payload = pack([Piece("xrf", "nav", "Fe_Ka", areas), Piece("xrf", "acc", "spectrum", spectra)])
        file.write(BatchRow(RUN, "xspress3", "cfg-x", first, BATCH, bytes(BATCH), [], 1, "w", specs, payload))
    (spec,), payload = pack([Piece("xrf", "const", "energy", 0.25 + 0.01 * np.arange(64))])
    file.write_const(ConstRow(RUN, "xspress3", "cfg-x", spec, payload))
    file.finish(run_row(totals={"eiger": FRAMES, "xspress3": FRAMES}))
    return path


def test_silx_shows_a_map_in_micrometres_and_finds_every_plot_valid(fluorescence: Path) -> None:
    silx: Any = import_module("silx.io")
    nxdata: Any = import_module("silx.io.nxdata")

    with silx.open(str(fluorescence)) as opened:
        shown = nxdata.get_default(opened)
        assert shown is not None
        assert shown.group.name == "/entry/xrd/maps"
        assert shown.is_image
        assert [axis.attrs["units"] for axis in shown.axes] == ["um", "um"]
    plots: list[str] = []

    def visit(name: str, group: Any) -> None:
        if group.attrs.get("NX_class") == "NXdata":
            assert nxdata.NXdata(group).is_valid, name
            plots.append(name.removeprefix("entry/"))

    with h5py.File(fluorescence) as file:
        file.visititems(visit)
    assert plots == ["xrd/data", "xrd/maps", "xrd/total_sum", "xrf/maps", "xrf/total_spectrum"]


def test_pymca_opens_the_sum_spectrum_of_each_element_with_its_calibration(fluorescence: Path) -> None:
    pytest.importorskip("PyMca5")
    from PyMca5.PyMcaCore.NexusDataSource import NexusDataSource
    from PyMca5.PyMcaCore.NexusTools import getMcaList

    with h5py.File(fluorescence) as file:
        found = getMcaList(file, "/entry")
    assert found == [f"/entry/instrument/xspress3_spectrum{row:02d}/data" for row in (0, 1)]
    source = NexusDataSource(str(fluorescence))
    selection = {
        **{"sourcename": str(fluorescence), "entry": "/entry", "cntlist": [], "x": [], "y": []},
        **{"mca": [1], "mcalist": [each.removeprefix("/entry") for each in found], "mcaselectiontype": "avg"},
        "selectiontype": "MCA",
    }
    spectrum = source.getDataObject("1.1", selection)
    source.close()
    factor = sum(first + 1 for first in range(0, FRAMES, BATCH))
    assert spectrum.y[0].tolist() == [factor * n for n in range(64, 128)]
    np.testing.assert_allclose(spectrum.info["McaCalib"], [0.25, 0.01, 0.0])
    assert spectrum.x[0].tolist() == list(range(64))


def test_the_first_recipe_with_a_map_is_shown_first(path: Path) -> None:
    start = {**START, "recipes": [{"name": "xrf"}, {"name": "xrd"}]}
    streams = [EIGER, msgspec.structs.replace(EIGER, stream="xspress3", recipes=[RecipeSpec("xrf", "stub", b"{}")])]
    outputs = [{"xrd": OUTPUTS["xrd"]}, {"xrf": XRF}]
    NexusFile(path, run_row(start), list(zip(streams, outputs, strict=True))).close()
    with h5py.File(path) as opened:
        assert plot(opened).name == "/entry/xrf/maps"


def test_every_kind_of_output_has_a_place_and_a_name_of_its_own(path: Path) -> None:
    intensity = Output("nav", (BINS,), "<f4", "counts", "intensity", ("q",))
    outputs = {
        "q": Output("const", (BINS,), "<f8", "1/nm"),
        "intensity": intensity,
        "total": Output("nav", (), "<f8"),
        "sigma": Output("nav", (BINS,), "<f4"),
        "status": Output("nav", (), "<f8"),
        "spectrum": Output("acc", (2, BINS), "<i8", "counts", "sum", (".", "q")),
    }
    file = NexusFile(path, run_row(), [(EIGER, {"xrd": outputs})])
    file.close()
    with h5py.File(path) as opened:
        xrd = opened["entry/xrd"]
        assert {"q", "intensity", "total", "sigma", "status_", "spectrum"} <= set(xrd)
        assert set(xrd["data"]) == {"intensity", "intensity_errors", "q"}
        assert list(xrd["total_spectrum"].attrs["axes"]) == [".", "q"]


def test_the_file_holds_the_account_as_a_person_reads_it(path: Path) -> None:
    file = make(path)
    file.write(row(0))
    file.write(row(4, status=[LIVE, QUARANTINED, LOST, LIVE]))
    sets = tuple(IntervalSet() for _ in range(4))
    mark(sets, 0, bytes([0, 0, 0, 0, 0, 2, 3, 0]))
    reasons = {"5": "a chunk that doesn't decode", "6": "ä" * 400}
    drops = {"ring-full": 1, "decimated": 4}
    told = {"eiger": {**account(sets, 8, closed=True), "reasons": reasons, "drops": drops}}
    file.finish(run_row(totals={"eiger": 8, "pilc": 0}), told)
    with h5py.File(path) as opened:
        ledger = opened["entry/ledger/eiger"]
        assert [int(ledger[name][()]) for name in COUNTS] == [8, 6, 0, 1, 1]
        assert ledger["intervals"][:].tolist() == [
            (0, 5, b"live"),
            (5, 6, b"quarantined"),
            (6, 7, b"lost"),
            (7, 8, b"live"),
        ]
        assert ledger["reasons"][0].tolist() == (5, b"quarantined", b"a chunk that doesn't decode")
        assert ledger["reasons"][1]["reason"].decode() == "ä" * 250
        assert ledger["drops"][:].tolist() == [(b"decimated", 4), (b"ring-full", 1)]
        assert ledger["status"] == opened["entry/xrd/status"]
        assert ledger["status"][:].tolist() == [0, 0, 0, 0, 0, 2, 3, 0]
        assert json.loads(ledger["recipes"].asstr()[()])["xrd"]["reducer"] == "stub"
        assert all(ledger[name].attrs["long_name"] for name in (*COUNTS, "intervals", "reasons", "cfg", "recipes"))
        assert opened["entry/ledger/pilc/live"][()] == -1  # nothing was said of it
        xrd = opened["entry/xrd"]
        assert xrd["counts"][:].tolist() == [0, 7, 14, 21, 28, -1, -1, 49]
        assert np.isnan(xrd["intensity"][5:7]).all()
