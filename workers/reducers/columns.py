"""Columns as they are: positions, counters, times; one number per frame and key."""

from __future__ import annotations

from typing import Any

import numpy as np
from msgspec import Struct

from ..errors import ReductionError
from ..wire.messages import InputSpec
from . import params
from .base import Array, Batch, Output, Partial, Reducer, Setup


class Parameters(Struct, frozen=True):
    """``columns`` : the data keys to keep, in this order; None for every scalar one."""

    columns: list[str] | None = None


class Columns(Reducer):
    """Scalar data keys, each as one float64 column of its name."""

    def __init__(self, **given: Any) -> None:
        self.params = params.read(Parameters, "columns", given)
        names = self.params.columns
        if names is not None and (not names or len(set(names)) != len(names)):
            raise ReductionError(f"columns: {names} must name at least one key, each once")

    def outputs(self, inputs: tuple[InputSpec, ...]) -> dict[str, Output]:
        """Name each column after its key."""
        return {key: Output("nav", (), "<f8", long_name=key) for key in self._keys(inputs)}

    def setup(self, run: Setup) -> dict[str, Array]:
        """Note the keys; there is nothing to build."""
        self._chosen = self._keys(run.inputs)
        return {}

    def map(self, batch: Batch) -> Partial:
        """Copy the columns. Integers above 2**53 would not be exact."""
        nav: dict[str, Array] = {}
        for key in self._chosen:
            column = batch.data[key]
            if not isinstance(column, np.ndarray) or column.shape != (len(batch.index),):
                raise ReductionError(f"columns: {key} is not one number per frame")
            nav[key] = column.astype(np.float64)
        return Partial(batch.index, nav)

    def _keys(self, inputs: tuple[InputSpec, ...]) -> list[str]:
        scalars = [spec.key for spec in inputs if spec.shape == ()]
        chosen = self.params.columns or scalars
        if missing := sorted(set(chosen) - set(scalars)):
            raise ReductionError(f"columns: {', '.join(missing)} is no scalar here; there are {', '.join(scalars)}")
        if not chosen:
            raise ReductionError("columns: the detector has no scalar data key")
        return chosen
