"""A recipe is a reducer's name or a file beside the files it needs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from haltere.callbacks.recipe_file import read_recipe
from haltere.workers.assets import AssetStore
from haltere.workers.errors import ReductionError

PONI = """poni_version: 2
Detector: Detector
Detector_config: {"pixel1": 5.5e-05, "pixel2": 5.5e-05, "max_shape": null}
Distance: 0.3
Poni1: 0.03
Poni2: 0.14
Rot1: 0.0
Rot2: 0.0
Rot3: 0.0
Wavelength: 4.836e-11
"""


@pytest.fixture
def poni(tmp_path: Path) -> Path:
    path = tmp_path / "geometry.poni"
    path.write_text(PONI)
    return path


def test_a_reducers_name_and_a_geometry_are_a_recipe(poni: Path) -> None:
    recipe = read_recipe("azimuthal", source="lambda", poni=poni)
    assert (recipe.name, recipe.reducer, recipe.source) == ("xrd", "azimuthal", "lambda")
    assert recipe.params["poni"]["dist"] == 0.3


def test_a_toml_file_says_more_and_names_files_beside_it(poni: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "mask.npy", np.zeros((4, 6), np.uint8))
    path = tmp_path / "ring.toml"
    path.write_text(
        '[recipe]\nname = "q"\nreducer = "azimuthal"\n'
        '[recipe.params]\nponi = "geometry.poni"\nmask = "mask.npy"\nbins = 200\nunit = "q_nm^-1"\n'
    )
    recipe = read_recipe(path, assets=AssetStore(tmp_path / "assets"))
    assert (recipe.name, recipe.source) == ("q", "detector")
    assert recipe.params["bins"] == 200
    assert recipe.params["mask"].startswith("sha256:")


def test_a_file_may_name_a_policy(tmp_path: Path) -> None:
    path = tmp_path / "positions.toml"
    path.write_text('reducer = "columns"\npolicy = "spill"\n')
    assert read_recipe(path).policy == "spill"


def test_json_does_as_well(tmp_path: Path) -> None:
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps({"reducer": "columns", "source": "pilc"}))
    assert read_recipe(path) == read_recipe("columns", source="pilc")


def test_the_geometry_at_hand_goes_before_the_files(poni: Path, tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text('reducer = "azimuthal"\n[params]\nponi = "elsewhere.poni"\n')
    assert read_recipe(path, poni=poni).params["poni"]["poni1"] == 0.03


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[recipe", "recipe .*recipe.toml: "),
        ('recipe = "xrd"', r"expected a table \[recipe\]"),
        ('[recipe]\nname = "xrd"', "the recipe names no reducer"),
        ('[recipe]\nreducer = "columns"\nmodule = "os"', "a recipe has no 'module'"),
        ('[recipe]\nreducer = "columns"\nparams = 3', "params is a int, expected a table"),
        ('[recipe]\nreducer = "os.system"', "isn't installed"),
        ('[recipe]\nreducer = "azimuthal"', "needs a geometry"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    with pytest.raises(ReductionError, match=message) as caught:
        read_recipe(path)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(ReductionError, match=r"none\.toml can't be read"):
        read_recipe(tmp_path / "none.toml")


def test_azimuthal_without_a_geometry_asks_for_one() -> None:
    with pytest.raises(ReductionError, match=r"name a \.poni file with --poni"):
        read_recipe("azimuthal")
