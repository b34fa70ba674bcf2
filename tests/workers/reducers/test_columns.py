"""Scalar keys to columns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from haltere.workers.errors import ReductionError
from haltere.workers.reducers.base import Batch, Setup
from haltere.workers.reducers.columns import Columns
from haltere.workers.wire.messages import InputSpec

INPUTS = (InputSpec("pilc_x", (), "<f8"), InputSpec("pilc_n", (), "<i4"), InputSpec("pilc_trace", (5,), "<f8"))
BATCH = Batch(np.array([3, 4]), {"pilc_x": np.array([0.5, -1.5]), "pilc_n": np.array([7, 8], "<i4")})


@pytest.mark.parametrize(("params", "names"), [({}, ["pilc_x", "pilc_n"]), ({"columns": ["pilc_n"]}, ["pilc_n"])])
def test_scalar_keys_come_as_float64_columns(params: dict[str, Any], names: list[str]) -> None:
    reducer = Columns(**params)
    assert list(reducer.outputs(INPUTS)) == names
    assert reducer.setup(Setup(INPUTS, Path())) == {}
    nav = reducer.map(BATCH).nav
    assert list(nav) == names
    for name in names:
        assert nav[name].dtype == np.float64
        np.testing.assert_array_equal(nav[name], BATCH.data[name])


@pytest.mark.parametrize(
    ("params", "says"),
    [
        ({"column": ["a"]}, "no parameter column; there is columns"),
        ({"columns": []}, "at least one"),
        ({"columns": ["pilc_x", "pilc_x"]}, "each once"),
        ({"columns": "pilc_x"}, "columns"),
        ({"columns": ["pilc_trace"]}, "pilc_trace is no scalar here; there are pilc_x, pilc_n"),
    ],
)
def test_a_wrong_column_is_named(params: dict[str, Any], says: str) -> None:
    with pytest.raises(ReductionError, match=says):
        Columns(**params).outputs(INPUTS)


def test_a_column_of_another_length_is_refused() -> None:
    reducer = Columns()
    reducer.setup(Setup(INPUTS[:1], Path()))
    with pytest.raises(ReductionError, match="not one number per frame"):
        reducer.map(Batch(np.array([3]), {"pilc_x": np.array([0.5, -1.5])}))
