"""What a person reads from the catalog after a scan."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from bluesky_tiled_plugins import TiledWriter
from IPython.core.formatters import DisplayFormatter

from haltere.callbacks.access import columns, describe_run, nexus_file, processed, register_formatters
from haltere.callbacks.catalog import Catalog
from haltere.callbacks.plot import plot_map


def write(catalog: Any, documents: Any) -> None:
    writer = TiledWriter(catalog, batch_size=10_000, normalizer=None, max_array_size=0)
    for name, doc in documents:
        writer(name, doc)


@pytest.fixture(scope="module")
def nexus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("nexus") / "scan 00017.nxs"


@pytest.fixture(scope="module")
def catalog(flown: Any, nexus: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Catalog]:
    """Return the scan as it lies in a catalog, raw and processed."""
    with Catalog.start(tmp_path_factory.mktemp("catalog"), readable=[nexus.parent]) as catalog:
        write(catalog.raw, flown.raw())
        write(catalog.processed, flown.processed(nexus))
        yield catalog
        for client in (catalog.raw, catalog.processed):
            client.context.http_client.close()


@pytest.fixture
def run(flown: Any, catalog: Catalog) -> Any:
    return catalog.raw[flown.raw_uid]


def test_the_processed_run_is_found_from_the_raw_one(run: Any) -> None:
    reduced = processed(run)
    assert reduced.start["raw_uid"] == run.start["uid"]
    assert set(reduced) == {"xrd", "xrf"}


def test_a_processed_run_is_its_own(run: Any) -> None:
    again = processed(processed(run))
    assert again.start["raw_uid"] == run.start["uid"]
    assert "frame" in again["xrf"].read().dims


def test_element_areas_have_one_variable_each_along_frame(run: Any, flown: Any) -> None:
    xrf = processed(run)["xrf"].read()
    assert set(xrf.data_vars) == {"Fe_Ka", "Ca_Ka"}
    np.testing.assert_array_equal(xrf.frame, np.arange(flown.fe.size))
    np.testing.assert_array_equal(xrf.Fe_Ka, flown.fe)
    np.testing.assert_array_equal(xrf.pilc_x, flown.x)
    assert xrf.Fe_Ka.attrs["units"] == "counts"
    assert set(xrf.coords) == {"frame", "status", "time", "pilc_x", "pilc_y"}


def test_positions_are_data_where_they_are_what_the_recipe_gave(catalog: Catalog, flown: Any) -> None:
    scan = type(flown)(rows=2, columns=3, md={"scan_id": 21})
    write(catalog.raw, scan.raw())
    documents = list(scan.processed())
    for name, doc in documents:
        if name == "descriptor":
            for key in ("pilc_x", "pilc_y"):
                doc["data_keys"][key]["source"] = "recipe:positions"
            del doc["data_keys"]["Ca_Ka"], doc["data_keys"]["Fe_Ka"]
            doc["object_keys"]["xrf"] = list(doc["data_keys"])
        elif name == "event_page":
            for part in ("data", "timestamps"):
                del doc[part]["Ca_Ka"], doc[part]["Fe_Ka"]
    write(catalog.processed, documents)
    positions = processed(catalog.raw[21])["xrf"].read()
    assert set(positions.data_vars) == {"pilc_x", "pilc_y"}
    np.testing.assert_array_equal(positions.pilc_x, scan.x)
    assert set(positions.coords) == {"frame", "status", "time"}


def test_patterns_come_with_frame_positions_and_their_axis(run: Any, flown: Any) -> None:
    xrd = processed(run)["xrd"].read()
    assert xrd.intensity.dims == ("frame", "radial")
    np.testing.assert_array_equal(xrd.intensity.sel(frame=7), np.arange(7 * 32, 8 * 32))
    np.testing.assert_allclose(xrd.radial[[0, -1]], [5, 20])
    np.testing.assert_array_equal(xrd.pilc_y, flown.y)


def test_only_what_is_asked_for_is_read(run: Any) -> None:
    xrd = processed(run)["xrd"].read(["status"])
    assert set(xrd.variables) == {"frame", "status"}


def test_an_unknown_variable_is_named_with_those_there_are(run: Any) -> None:
    with pytest.raises(KeyError, match="stream xrf has no Zn_Ka; it has Ca_Ka, Fe_Ka"):
        processed(run)["xrf"].read(["Zn_Ka"])


def test_a_run_that_was_not_reduced_says_so_with_the_remedy(catalog: Catalog, flown: Any) -> None:
    write(catalog.raw, type(flown)(md={"scan_id": 18}).raw())
    run = catalog.raw[18]
    with pytest.raises(KeyError, match=r"scan 18 \(\w{8}\) has not been reduced yet; .*haltere status"):
        processed(run)
    assert "has not been reduced yet" in describe_run(run)


def test_the_catalogs_own_clients_stay_as_they_are(run: Any, catalog: Catalog) -> None:
    uid = processed(run).start["uid"]
    assert "time" in catalog.processed[uid]["xrf"].read().dims
    assert "time" in run.parent.parent["processed"][uid]["xrf"].read().dims


def test_a_catalog_that_is_not_there_is_named(run: Any) -> None:
    with pytest.raises(KeyError, match="no catalog 'elsewhere' beside that of scan 17"):
        processed(run, "elsewhere")


def test_of_two_reductions_the_latest_is_taken(catalog: Catalog, flown: Any) -> None:
    scan = type(flown)(rows=2, columns=3, md={"scan_id": 19})
    write(catalog.raw, scan.raw())
    for _ in range(2):
        documents = list(scan.processed())
        write(catalog.processed, documents)
    assert processed(catalog.raw[19]).start["uid"] == documents[0][1]["uid"]


def test_a_run_still_being_reduced_can_be_read(catalog: Catalog, flown: Any, nexus: Path) -> None:
    scan = type(flown)(rows=4, columns=8, md={"scan_id": 20})
    write(catalog.raw, scan.raw())
    documents = [each for each in scan.processed(nexus.with_name("growing.nxs")) if each[0] != "stop"]
    last = max(k for k, each in enumerate(documents) if each[0] == "event_page")
    writer = TiledWriter(catalog.processed, batch_size=16, normalizer=None, max_array_size=0)
    for name, doc in documents[:last]:  # a stream_datum has come, its page has not
        writer(name, doc)
    xrd = processed(catalog.raw[20])["xrd"].read()
    assert xrd.sizes["frame"] == xrd.status.size == 16
    assert "still being reduced" in describe_run(catalog.raw[20])


def test_scalar_results_and_the_file_are_known(run: Any, nexus: Path) -> None:
    assert columns(processed(run)) == {"Fe_Ka": "xrf", "Ca_Ka": "xrf"}
    assert nexus_file(processed(run)) == str(nexus)


def test_a_run_is_described_in_words(run: Any, nexus: Path) -> None:
    text = describe_run(run)
    assert text.splitlines()[0].startswith("scan 17")
    for words in (run.start["uid"], "fly_grid", "12 × 20, snake, 5 ms", "intensity (32)", "Fe_Ka", str(nexus)):
        assert words in text
    assert "240 = 235 live + 3 backfilled + 1 quarantined + 1 lost" in text


def test_describing_a_run_asks_the_catalog_four_times(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("haltere.callbacks.access.nexus_file", lambda run: None)  # a real stop document names it
    asked: list[Any] = []
    hooks = run.context.http_client.event_hooks
    before = list(hooks["request"])
    run.context.http_client.event_hooks = {**hooks, "request": [*before, asked.append]}
    describe_run(run)
    run.context.http_client.event_hooks = hooks
    assert len(asked) == 4


def test_ipython_prints_a_run_as_that(run: Any) -> None:
    display: Any = DisplayFormatter()
    register_formatters(SimpleNamespace(display_formatter=display))
    assert display.format(run)[0]["text/plain"] == describe_run(run)


def test_a_map_is_drawn_from_the_catalog(run: Any, flown: Any) -> None:
    image: Any = plot_map(run, "Fe_Ka").images[-1].get_array()
    np.testing.assert_array_equal(image.filled(np.nan), flown.expected)
