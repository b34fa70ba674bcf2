"""What a processed run's documents say of columns, arrays and axes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from haltere.callbacks import processed_keys
from haltere.callbacks.processed_keys import array_key, axis, scalar_key
from haltere.workers.ledger.rows import ConstRow
from haltere.workers.payload import Piece, pack
from haltere.workers.reducers.base import Output
from haltere.workers.wire.messages import RecipeSpec

XRF = RecipeSpec("xrf", "counts", b"{}")


def const(values: Any) -> ConstRow:
    (spec,), payload = pack([Piece("xrf", "const", "energy", np.asarray(values))])
    return ConstRow("raw", "xspress3", "cfg", spec, bytes(payload))


def test_a_scalar_is_a_64_bit_number_with_its_units_and_its_origin() -> None:
    floating = {"dtype": "number", "dtype_numpy": "<f8", "shape": []}
    whole = {"dtype": "integer", "dtype_numpy": "<i8", "shape": []}
    assert scalar_key(XRF, Output("nav", (), "<f4")) == {**floating, "source": "recipe:xrf"}
    assert scalar_key(XRF, Output("nav", (), "<u2", "counts", "iron")) == {
        **whole,
        "source": "recipe:xrf",
        "units": "counts",
        "long_name": "iron",
    }
    joined = scalar_key(XRF, Output("nav", (), "<f8", "um"), joined="pilc")
    assert joined == {**floating, "source": "stream:pilc", "units": "um"}


def test_an_array_lies_in_a_file_and_names_its_axes_or_stands_in_the_document() -> None:
    plain = {"source": "recipe:xrf", "dtype": "array", "dtype_numpy": "<f4", "shape": [3, 4]}
    output = Output("nav", (3, 4), ">f4", "counts", "map", (".", "energy"))
    labels = {"units": "counts", "long_name": "map"}
    assert array_key(XRF, output) == {**plain, **labels, "external": "STREAM:", "dims": ["xrf_1", "energy"]}
    assert array_key(XRF, output, external=False) == {**plain, **labels}
    assert array_key(XRF, Output("nav", (3, 4), "<f4", axes=("energy",))) == {**plain, "external": "STREAM:"}


def test_an_axis_is_a_list_if_it_is_one_and_not_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processed_keys, "MOST_AXIS", 3)
    assert axis(const([1.5, 2.5, 3.5])) == [1.5, 2.5, 3.5]
    assert axis(const([1.5, 2.5, 3.5, 4.5])) is None
    assert axis(const([[1.5], [2.5]])) is None
    assert axis(const(1.5)) is None
