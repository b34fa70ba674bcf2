"""Reduce a run that was measured before by another recipe: from its documents and files, into a run of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from .backfill import Listener, backfill
from .callbacks.access import processed
from .callbacks.dispatch_streams import input_spec
from .callbacks.recipe_file import read_recipe
from .callbacks.replayed import RawRun
from .session import Session
from .workers import recipes as recipe_rules
from .workers.assets import AssetStore
from .workers.errors import PoolError, ReductionError
from .workers.recipes import Recipe
from .workers.wire.messages import InputSpec
from .workshop import Workshop

UNSAID: Final = "detector"
"""What a recipe's source is called where its file doesn't say; also the name of a recorded run's only detector."""

AnyRecipe = Recipe | Mapping[str, Any] | str | Path


def rereduce(
    run: Any,
    recipe: AnyRecipe | Sequence[AnyRecipe],
    where: Session | Workshop,
    *,
    say: Callable[[str], Any] = print,
    listen: Listener = lambda _: None,
) -> Any:
    """Reduce a run by another recipe and return the processed run.

    The same recipe again makes no second run: the one that is there is returned. A scan that flies meanwhile goes
    before it.

    Parameters
    ----------
    run
        ``db[-1]``, a uid or the beginning of one, or a scan's number.
    recipe
        A recipe as ``md["recipes"]`` has it, a TOML file, a reducer's name, or a list of these. The run's positions
        are joined to its results as they were before.
    where
        The session, or a :class:`~haltere.workshop.Workshop` on its folder.
    say
        Told in one line what came of it.
    listen
        Told how far it is, a few times a second.

    Returns
    -------
    The processed run, as :func:`~haltere.callbacks.access.processed` returns it.

    Raises
    ------
    HaltereError
        The recipe doesn't fit, there is no such run, a file can't be read: one line says which.
    """
    shop = where if isinstance(where, Workshop) else Workshop.of(where)
    uid = str(run.start["uid"]) if hasattr(run, "start") else str(run)
    wanted = [recipe] if isinstance(recipe, Recipe | Mapping | str | Path) else list(recipe)
    outcome = backfill(shop, uid, recipes=lambda raw, own: chosen(wanted, raw, own, shop.assets), listen=listen)
    say(outcome.words)
    try:
        return processed(shop.catalog.processed[outcome.processed_uid])
    except KeyError:
        raise PoolError(f"processed run {outcome.processed_uid} has gone from the catalog") from None


def chosen(wanted: Sequence[AnyRecipe], raw: RawRun, own: Sequence[Recipe], assets: AssetStore) -> tuple[Recipe, ...]:
    """Return recipes as a person gave them, with those that give the run's positions.

    Parameters
    ----------
    own
        What was made of the run before.
    assets
        Where the pool keeps masks and bases.

    Raises
    ------
    ReductionError
        One can't be read, is wrong, or doesn't say which detector it is for where several may be.
    """
    given = [
        each if isinstance(each, Recipe | Mapping) else read_recipe(each, source=UNSAID, assets=assets)
        for each in wanted
    ]
    recipes = tuple(_for_a_detector(recipe, raw) for recipe in recipe_rules.parse(given))
    names = {recipe.name for recipe in recipes}
    if any(recipe.reducer == "columns" for recipe in recipes):
        return recipes
    return (*recipes, *(each for each in own if each.reducer == "columns" and each.name not in names))


def _for_a_detector(recipe: Recipe, raw: RawRun) -> Recipe:
    """Return a recipe whose file names no detector for the only one that it fits."""
    devices = raw.devices()
    if recipe.source not in devices and recipe.source != UNSAID:
        raise ReductionError(f"recipe {recipe.name} is for {recipe.source}; run {raw.uid} has {', '.join(devices)}")
    if recipe.source in devices:
        recipe_rules.outputs(recipe.spec(), _inputs(raw, devices[recipe.source]))
        return recipe
    fits = [device for device, keys in devices.items() if _fits(recipe, _inputs(raw, keys))]
    if len(fits) != 1:
        those = f"fits {', '.join(fits)}" if fits else f"fits none of {', '.join(devices)}"
        raise ReductionError(f'recipe {recipe.name} {those}: name its detector, source = "eiger" for instance')
    return msgspec.structs.replace(recipe, source=fits[0])


def _fits(recipe: Recipe, inputs: Sequence[InputSpec]) -> bool:
    try:
        recipe_rules.outputs(recipe.spec(), inputs)
    except ReductionError:
        return False
    return True


def _inputs(raw: RawRun, keys: Sequence[str]) -> list[InputSpec]:
    described = {key: value for each in raw.descriptors for key, value in each["data_keys"].items()}
    return [input_spec(key, described[key]) for key in keys]
