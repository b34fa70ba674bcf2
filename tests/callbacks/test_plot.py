"""Maps stand where they were measured, with names, units and what is missing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import xarray
from matplotlib.figure import Figure

from haltere.callbacks import access
from haltere.callbacks.plot import plot_map


class Stream:
    """A stream of the processed run, from its documents."""

    def __init__(self, keys: dict[str, Any], columns: dict[str, Any]):
        self.metadata = {"data_keys": keys}
        self._columns = columns

    def read(self, variables: list[str]) -> xarray.Dataset:
        """Return these columns along frame."""
        return xarray.Dataset({name: ("frame", np.asarray(self._columns[name])) for name in variables})


class Run(dict[str, Stream]):
    """A processed run, from its documents."""

    def __init__(self, flown: Any, **start: Any):
        super().__init__()
        names: dict[str, str] = {}
        for name, doc in flown.processed():
            if name == "start":
                self.start = {**doc, **start}
            elif name == "descriptor":
                names[doc["uid"]] = doc["name"]
                self[doc["name"]] = Stream(doc["data_keys"], {key: [] for key in doc["data_keys"]})
            elif name == "event_page":
                for key, values in doc["data"].items():
                    self[names[doc["descriptor"]]]._columns[key] += values


@pytest.fixture(autouse=True)
def _processed_is_at_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access, "processed", lambda run: run)


def drawn(ax: Any) -> Any:
    return ax.images[-1].get_array().filled(np.nan)


def bare_axes() -> Any:
    return Figure().subplots()


def test_each_value_stands_in_its_pixel_and_those_missing_are_masked(flown: Any) -> None:
    ax = plot_map(Run(flown), "Fe_Ka", bare_axes())
    np.testing.assert_array_equal(drawn(ax), flown.expected)
    assert np.isnan(drawn(ax)).sum() == 2


def test_axes_are_in_micrometres_by_name(flown: Any) -> None:
    ax = plot_map(Run(flown), "Fe_Ka", bare_axes())
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("pilc_x (µm)", "pilc_y (µm)")
    left, right, bottom, top = ax.images[-1].get_extent()
    assert (left, right) == pytest.approx((-10 - 10 / 19, 10 + 10 / 19))
    assert (bottom, top) == pytest.approx((-5 - 5 / 11, 5 + 5 / 11))


def test_title_and_colour_bar_say_what_is_seen(flown: Any) -> None:
    ax: Any = plot_map(Run(flown), "Fe_Ka", bare_axes())
    assert ax.get_title(loc="left").splitlines() == [
        "scan 17 · fly_grid · Fe_Ka",
        "238 of 240 pixels · 2 frames without a result",
    ]
    (bar,) = ax.child_axes
    assert bar.get_ylabel() == "Fe_Ka (counts)"


def test_a_plan_in_other_units_gives_way_to_what_was_measured(flown: Any) -> None:
    ax = plot_map(Run(flown, extents=[[-0.005, 0.005], [-0.01, 0.01]]), "Fe_Ka", bare_axes())
    assert np.isfinite(drawn(ax)).sum() > 0.8 * flown.fe.size
    assert ax.images[-1].get_extent()[0] == pytest.approx(-10.5, abs=0.5)


def test_an_unknown_result_is_answered_with_what_there_is(flown: Any) -> None:
    with pytest.raises(KeyError, match="scan 17 has no 'Zn_Ka'; it has xrf: Fe_Ka, Ca_Ka"):
        plot_map(Run(flown), "Zn_Ka")


def test_without_measured_positions_the_remedy_is_named(flown: Any) -> None:
    with pytest.raises(KeyError, match="scan 17: xrf has no measured positions; add a recipe 'columns'"):
        plot_map(Run(flown, hints={}), "Fe_Ka")
