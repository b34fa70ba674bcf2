"""PyMca's own fits of its own measured spectra, and ours by one matrix."""

from __future__ import annotations

import copy
import sys
import warnings
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from haltere.workers import basis
from haltere.workers.errors import FileError, ReductionError
from haltere.workers.reducers.pymca_basis import linear_configuration, make_basis

DEMO = Path(str(files("haltere.devices.sim") / "demo_xrf.cfg"))


@pytest.fixture(scope="module")
def pymca() -> Path:
    """Return the folder of PyMca's data."""
    return Path(pytest.importorskip("PyMca5").__file__).parent / "PyMcaData"


def spectrum(path: Path, scan: int) -> NDArray[np.float64]:
    from PyMca5.PyMcaIO import specfilewrapper

    return np.asarray(specfilewrapper.Specfile(str(path))[scan].mca(1), np.float64)


def their_fit(configuration: dict[str, Any], counts: NDArray[np.float64]) -> dict[str, tuple[float, float]]:
    """Return area and sigma of each group, by PyMca's own least squares with weights 1/counts."""
    from PyMca5.PyMcaPhysics.xrf import ClassMcaTheory

    configuration = copy.deepcopy(configuration)
    configuration["fit"]["fitweight"] = 1
    theory = ClassMcaTheory.McaTheory()
    theory.setConfiguration(configuration)
    limits = {name: configuration["fit"][name] for name in ("xmin", "xmax")}
    theory.setData(x=np.arange(counts.size), y=counts, **limits)
    theory.estimate()
    _, result = theory.startFit(digest=1)
    return {name.replace(" ", "_"): (result[name]["fitarea"], result[name]["sigmaarea"]) for name in result["groups"]}


def compare(cfg: Path, counts: NDArray[np.float64], clamped: set[str]) -> None:
    """Compare areas: the same linear model, the same weights. PyMca keeps areas from being negative, we don't."""
    ours = make_basis(cfg, channels=counts.size, reference=counts)
    areas = dict(zip(ours.components, ours.operator @ counts, strict=True))
    sigmas = dict(zip(ours.components, np.sqrt(ours.operator**2 @ counts), strict=True))
    theirs = their_fit(linear_configuration(cfg), counts)
    assert set(theirs) == set(ours.of_kind("line", "scatter"))
    assert {name for name, (area, _) in theirs.items() if area == 0} == clamped
    for name in theirs.keys() - clamped:
        area, sigma = theirs[name]
        assert abs(areas[name] - area) < 0.5 * sigma, name
        if name != "Pb_L":  # beside a clamped neighbour in Steel.spe, PyMca's is smaller
            assert sigmas[name] == pytest.approx(sigma, rel=0.01), name


def test_areas_of_the_multi_element_standard_are_pymcas(pymca: Path, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from PyMca5.tests.XrfTest import cfg
    (tmp_path / "a.cfg").write_text(cfg)
    compare(tmp_path / "a.cfg", spectrum(pymca / "XRFSpectrum.mca", 1), set())


def test_areas_of_the_steel_with_a_polynomial_background_are_pymcas(pymca: Path, tmp_path: Path) -> None:
    text = (pymca / "Steel.cfg").read_text()
    assert "continuum = 0\n" in text
    (tmp_path / "a.cfg").write_text(text.replace("continuum = 0\n", "continuum = 4\n"))
    compare(tmp_path / "a.cfg", spectrum(pymca / "Steel.spe", 0), {"As_K"})


@pytest.mark.usefixtures("pymca")
def test_the_shipped_basis_is_what_its_configuration_gives() -> None:
    shipped, made = basis.load(DEMO.with_suffix(".npz")), make_basis(DEMO)
    assert shipped.components == made.components
    assert shipped.kinds == made.kinds
    assert shipped.energy == made.energy == (0.0, 0.01)
    np.testing.assert_allclose(shipped.templates, made.templates, rtol=1e-6, atol=1e-12)
    np.testing.assert_allclose(shipped.operator, made.operator, rtol=1e-6, atol=1e-9)


def test_the_shipped_basis_names_seven_elements_and_two_scatter_peaks() -> None:
    shipped = basis.load(DEMO.with_suffix(".npz"))
    lines = [f"{element}_{line}" for element in ("Ca", "Ti", "Mn", "Fe", "Ni", "Cu", "Zn") for line in ("Ka", "Kb")]
    assert list(shipped.of_kind("line")) == lines
    assert shipped.of_kind("scatter") == ("Scatter_Peak000", "Scatter_Compton000")
    areas = shipped.templates[[shipped.components.index(name) for name in lines]].sum(axis=1)
    np.testing.assert_allclose(areas, 1, atol=0.01)
    iron = shipped.templates[shipped.components.index("Fe_Ka")]
    assert shipped.energy[0] + shipped.energy[1] * iron.argmax() == pytest.approx(6.40, abs=0.011)


@pytest.mark.usefixtures("pymca")
@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda text: text.replace("continuum = 4", "continuum = 5"), "exponential background isn't linear"),
        (lambda text: text.replace("[fit]", "[fot]"), "section 'fit' is missing"),
        (lambda text: "[peaks]\n[fit]\n", "names no elements"),
    ],
)
def test_a_configuration_that_cannot_be_used_says_why(tmp_path: Path, change: Callable[[str], str], says: str) -> None:
    (tmp_path / "a.cfg").write_text(change(DEMO.read_text()))
    with pytest.raises(ReductionError, match=says):
        make_basis(tmp_path / "a.cfg")


def test_a_configuration_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"none\.cfg"):
        make_basis(tmp_path / "none.cfg")


@pytest.mark.usefixtures("pymca")
def test_a_reference_of_another_length_is_refused() -> None:
    with pytest.raises(ReductionError, match="reference spectrum has"):
        make_basis(DEMO, reference=np.ones(7))


def test_without_pymca_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PyMca5", None)
    with pytest.raises(ReductionError, match=r"pip install 'haltere\[physics\]'"):
        make_basis(DEMO)
