"""A basis as numbers: what is saved is loaded, and nothing else is."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from haltere.workers import basis
from haltere.workers.basis import Basis
from haltere.workers.errors import FileError, ReductionError

TEMPLATES = np.stack(
    [np.ones(100), *(np.exp(-((np.arange(100) - place) ** 2) / 18) / np.sqrt(18 * np.pi) for place in (30, 50, 57))]
)


def small(**changes: Any) -> Basis:
    made = Basis(
        ("A0", "Fe_Ka", "Cu_Ka", "Zn_Ka"),
        ("background", "line", "line", "line"),
        TEMPLATES,
        basis.operator(TEMPLATES),
        (0.0, 0.01),
        "a test",
    )
    return dataclasses.replace(made, **changes)


def test_a_basis_comes_back_from_its_file_and_equal_ones_are_equal_bytes(tmp_path: Path) -> None:
    made = small()
    made.save(tmp_path / "b.npz")
    for loaded in (basis.load(tmp_path / "b.npz"), basis.load(made.to_bytes())):
        for field in dataclasses.fields(Basis):
            np.testing.assert_array_equal(getattr(loaded, field.name), getattr(made, field.name))
        assert loaded.to_bytes() == made.to_bytes() == (tmp_path / "b.npz").read_bytes()
    assert made.of_kind("line") == ("Fe_Ka", "Cu_Ka", "Zn_Ka")
    assert made.channels == 100


@pytest.mark.parametrize("reference", [None, np.linspace(0, 1e6, 100)])
def test_the_operator_gives_back_areas_whatever_the_weights(reference: Any) -> None:
    areas = np.array([3.0, 1000, 0, 20])
    np.testing.assert_allclose(basis.operator(TEMPLATES, reference) @ (areas @ TEMPLATES), areas, atol=1e-6)


def test_weights_of_a_typical_spectrum_make_small_lines_beside_large_ones_more_certain() -> None:
    expected = np.array([1.0, 1e6, 100, 100]) @ TEMPLATES
    sigmas = [np.sqrt(basis.operator(TEMPLATES, weights) ** 2 @ expected)[2] for weights in (None, expected)]
    assert sigmas[1] < 0.5 * sigmas[0]


@pytest.mark.parametrize("templates", [TEMPLATES[[0, 1, 1]], TEMPLATES * [[1], [1], [0], [1]]])
def test_components_that_cannot_be_told_apart_are_refused(templates: Any) -> None:
    with pytest.raises(ReductionError, match="empty, or a mixture of others"):
        basis.operator(templates)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"components": ("A0", "Fe_Ka", "Fe_Ka", "Zn_Ka")}, "3 names"),
        ({"components": ("A0", "Fe Ka", "Cu_Ka", "Zn_Ka")}, "'Fe Ka' can't name"),
        ({"components": ()}, "0 components"),
        ({"kinds": ("line",)}, "1 kinds"),
        ({"kinds": ("line", "line", "line", "noise")}, "'noise' is no kind"),
        ({"templates": TEMPLATES[:, :99]}, "templates"),
        ({"templates": TEMPLATES[:3]}, "for 4 components"),
        ({"operator": TEMPLATES * np.nan}, "finite"),
        ({"operator": TEMPLATES.astype("f4")}, "float64"),
        ({"energy": (0.0, -1.0)}, "energy calibration"),
        ({"weights": np.ones(99)}, "weights"),
        ({"weights": -np.ones(100)}, "positive"),
    ],
)
def test_a_basis_that_contradicts_itself_is_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ReductionError, match=says):
        small(**changes)


def _archive(**changes: Any) -> bytes:
    with np.load(io.BytesIO(small().to_bytes())) as npz:
        members = {name: npz[name] for name in npz.files} | changes
    content = io.BytesIO()
    np.savez(content, allow_pickle=True, **{name: value for name, value in members.items() if value is not None})
    return content.getvalue()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"hello", "not a basis"),
        (small().to_bytes()[:-100], "not a basis"),
        (_archive(components=np.array([object()])), "not a basis"),
        (_archive(kinds=None), "not a basis"),
        (_archive(more=np.ones(3)), "not a basis"),
        (_archive(format=np.int64(2)), "format 2, expected 2"),  # without weights it is no such format
        (_archive(format=np.int64(3)), "format 3, expected 2"),
        (_archive(format=np.array([1])), "format"),
        (_archive(format=np.int64(2), weights=np.zeros(100)), "positive"),
        (_archive(energy=np.ones(3)), "energy calibration"),
        (_archive(templates=np.ones((4, 20_000))), "templates"),
    ],
)
def test_what_is_no_basis_is_refused_without_unpickling(content: bytes, says: str) -> None:
    with pytest.raises(ReductionError, match=says):
        basis.load(content)


def test_an_archive_that_would_unpack_to_too_much_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(basis, "_MAX_BYTES", 1000)
    with pytest.raises(ReductionError, match="not a basis: it holds"):
        basis.load(small().to_bytes())


def test_a_basis_keeps_its_weights_and_one_of_before_has_none(tmp_path: Path) -> None:
    weighted = small(weights=basis.weights(100, np.arange(100.0)))
    loaded = basis.load(weighted.to_bytes())
    np.testing.assert_array_equal(loaded.weights, 1 / np.maximum(np.arange(100), 1))
    assert loaded.to_bytes() == weighted.to_bytes()
    assert basis.load(small().to_bytes()).weights is None
    with pytest.raises(ReductionError, match="no weights: make it anew"):
        small().covariance()


@pytest.mark.parametrize("reference", [None, np.linspace(0, 1e4, 100)])
def test_the_covariance_is_that_of_the_areas_where_weights_are_inverse_variances(reference: Any) -> None:
    made = small(operator=basis.operator(TEMPLATES, reference), weights=basis.weights(100, reference))
    covariance = made.covariance()
    np.testing.assert_array_equal(covariance, covariance.T)
    np.testing.assert_allclose(covariance, np.linalg.inv(TEMPLATES * made.weights @ TEMPLATES.T), rtol=1e-9)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"none\.npz"):
        basis.load(tmp_path / "none.npz")
    with pytest.raises(FileError, match="can't be written"):
        small().save(tmp_path / "no" / "b.npz")
