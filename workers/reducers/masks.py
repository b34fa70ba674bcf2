"""Masks and labels: a number for each pixel, kept as an asset, so that a recipe names them by their hash."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..assets import AssetStore, is_ref
from ..errors import ReductionError, ShapeMismatch
from .base import Array


def put(mask: Path | str | Array, assets: AssetStore | None, reducer: str, *, labels: bool = False) -> str:
    """Put a mask into the store and return its reference.

    Parameters
    ----------
    mask
        A mask file (any that fabio reads, or ``.npy``), an array, or a reference; not 0 means masked.
    assets
        Where the pool keeps assets; needed with a mask that is no reference.
    labels
        Keep the numbers: they name regions.

    Raises
    ------
    ReductionError
        It can't be read, or there is no store.
    """
    if isinstance(mask, str) and is_ref(mask):
        return mask
    if assets is None:
        what = "labels need" if labels else "a mask needs"
        raise ReductionError(f"{reducer}: {what} assets=, the store where the pool keeps its assets")
    array = _read(mask, reducer)
    content = io.BytesIO()
    np.save(content, array if labels else np.not_equal(array, 0).astype(np.uint8), allow_pickle=False)
    return assets.put(content.getvalue())


def load(assets: AssetStore, ref: str, shape: tuple[int, int], reducer: str) -> Array:
    """Return a mask, or labels, of the store.

    Raises
    ------
    ShapeMismatch
        It is of another shape than the frames.
    ReductionError
        It is no 2-D array of integers or bools.
    """
    array = _parse(assets.read(ref), reducer)
    if array.shape != shape:
        raise ShapeMismatch(f"the mask has {array.shape} pixels, the frames have {shape}: use this detector's")
    return array


def _parse(content: bytes, reducer: str) -> Array:
    try:
        array: Array = np.load(io.BytesIO(content), allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise ReductionError(f"{reducer}: the mask asset is no .npy array: {error}") from None
    if not isinstance(array, np.ndarray) or array.ndim != 2 or array.dtype.kind not in "biu":
        raise ReductionError(f"{reducer}: a mask is a 2-D array of integers or bools")
    return array


def _read(mask: Path | str | Array, reducer: str) -> NDArray[np.generic]:
    if not isinstance(mask, str | Path):
        return np.asarray(mask)
    path = Path(mask)
    try:
        if path.suffix == ".npy":
            return _parse(path.read_bytes(), reducer)
        import fabio

        array: Array = fabio.open(str(path)).data
    except OSError as error:
        raise ReductionError(f"mask {path} can't be read: {error}") from None
    return array
