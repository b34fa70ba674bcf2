"""A recipe as a person names it: a reducer, or a file."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from ..workers import recipes as recipe_rules
from ..workers.errors import ReductionError
from ..workers.recipes import Recipe

if TYPE_CHECKING:
    from ..workers.assets import AssetStore

NAMES = {"azimuthal": "xrd", "fluorescence": "xrf", "columns": "positions"}
"""What a reducer's stream is called, unless the recipe says otherwise."""


def read_recipe(
    given: Path | str, *, source: str = "detector", poni: Path | str | None = None, assets: AssetStore | None = None
) -> Recipe:
    """Return the recipe that a person named: a reducer, or a TOML or JSON file that describes one.

    The file has ``reducer``, and may have ``name``, ``source``, ``params`` and ``policy``, at its top or under
    ``recipe``. Files that ``params`` names (``poni``, ``mask``, ``basis``) are looked for beside it.

    Parameters
    ----------
    poni
        A geometry that goes before the recipe's own.
    assets
        Where the pool keeps masks and bases.

    Raises
    ------
    ReductionError
        The file can't be read or says something else, or the reducer refuses its parameters.
    """
    path = Path(given)
    described: dict[str, Any] = (
        _read(path) if path.suffix in (".toml", ".json") or path.is_file() else {"reducer": str(given)}
    )
    if unknown := sorted(set(described) - {"name", "reducer", "source", "params", "policy"}):
        raise ReductionError(f"{path}: a recipe has no {unknown[0]!r}; it has name, reducer, source, params, policy")
    reducer, params = described.get("reducer"), described.get("params", {})
    if not isinstance(params, dict):
        raise ReductionError(f"{path}: params is a {type(params).__name__}, expected a table")
    params = dict(params)
    if not isinstance(reducer, str):
        raise ReductionError(f'{path}: the recipe names no reducer; add reducer = "azimuthal", for instance')
    for key in ("poni", "mask", "basis"):
        value = params.get(key)
        if isinstance(value, str) and "\n" not in value and (path.parent / value).is_file():
            params[key] = path.parent / value
    if poni is not None:
        params["poni"] = Path(poni)
    recipe = {"name": NAMES.get(reducer, reducer), "source": source, **described}
    (parsed,) = recipe_rules.parse([{**recipe, "params": _written_out(reducer, params, assets)}])
    return parsed


def _written_out(reducer: str, params: dict[str, Any], assets: AssetStore | None) -> dict[str, Any]:
    """Return parameters with the files they name read: as numbers, or as references to assets."""
    if reducer in ("azimuthal", "cake"):
        from ..workers.reducers import azimuthal, cake

        if "poni" not in params:
            raise ReductionError(f"recipe {reducer} needs a geometry: name a .poni file with --poni")
        write_out = azimuthal.recipe_params if reducer == "azimuthal" else cake.recipe_params
        return write_out(assets=assets, **params)
    if reducer == "fluorescence" and isinstance(params.get("basis"), Path):
        from ..workers.reducers import fluorescence

        if assets is None:
            raise ReductionError("recipe fluorescence: a basis file needs the pool's assets to be put into")
        return fluorescence.recipe_params(params.pop("basis"), assets, **params)
    return params


def _read(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text()
        read = tomllib.loads(text) if path.suffix != ".json" else msgspec.json.decode(text)
    except OSError as error:
        raise ReductionError(f"recipe {path} can't be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ReductionError(f"recipe {path}: {error}") from None
    described = read.get("recipe", read) if isinstance(read, dict) else None
    if not isinstance(described, dict):
        raise ReductionError(f"recipe {path}: expected a table [recipe]")
    return described
