"""Recipes: which reducer, on which detector, with which parameters; and the hash that stands for them."""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from importlib.metadata import entry_points
from typing import Annotated, Any, Final

import msgspec
import numpy as np
from msgspec import Meta, Struct

from .errors import ReductionError
from .reducers.base import Output, Reducer
from .wire.messages import DType, InputSpec, Name, Policy, RecipeSpec


class Recipe(Struct, frozen=True, forbid_unknown_fields=True):
    """What ``md["recipes"]`` holds, one per stream of the processed run.

    ``policy`` is the detector's, so all recipes on one detector have the same. It says how its frames travel, not what
    is made of them: no hash depends on it.

    >>> Recipe("positions", "columns", "pilc").source
    'pilc'
    """

    name: Name
    reducer: Name
    source: Name
    params: Annotated[dict[str, Any], Meta(max_length=64)] = {}
    policy: Policy = "drop"

    def spec(self) -> RecipeSpec:
        """Return the recipe as it travels."""
        return RecipeSpec(self.name, self.reducer, canonical(self.params))


def canonical(value: Any) -> bytes:
    """Return JSON with sorted keys and no spaces: equal values, equal bytes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def parse(value: Any) -> tuple[Recipe, ...]:
    """Return the recipes in ``md["recipes"]``: a list of mappings or of :class:`Recipe`.

    Raises
    ------
    ReductionError
        One isn't a recipe, its reducer isn't installed, its parameters are wrong, two have the same name, or two on
        one detector have different policies.
    """
    if isinstance(value, Mapping | str | bytes) or not isinstance(value, Iterable):
        raise ReductionError(f"recipes: expected a list of recipes, got {type(value).__name__}")
    recipes = []
    for number, item in enumerate(value):
        try:
            plain = msgspec.to_builtins(item) if isinstance(item, Recipe) else dict(item)
            recipes.append(msgspec.convert(plain, Recipe))
        except (msgspec.ValidationError, TypeError, ValueError) as error:
            raise ReductionError(f"recipe {number}: {error}") from None
    names = [recipe.name for recipe in recipes]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ReductionError(f"recipes: {', '.join(twice)} stands twice; give each its own name")
    for recipe in recipes:
        build(recipe.spec())
        check_policy(recipe, recipes)
    return tuple(recipes)


def check_policy(recipe: Recipe, others: Iterable[Recipe]) -> None:
    """See that a recipe's policy is that of the others on its detector.

    Raises
    ------
    ReductionError
        It isn't: both are named.
    """
    for other in others:
        if other.source == recipe.source and other.policy != recipe.policy:
            raise ReductionError(
                f"recipe {recipe.name} has policy {recipe.policy!r}, and {other.name} on the same detector "
                f"{recipe.source} has {other.policy!r}: give both the same"
            )


@cache
def reducer_class(name: str) -> type[Reducer]:
    """Return the installed reducer of that entry-point name; nothing else can be named over a wire."""
    found = {point.name: point for point in entry_points(group="haltere.reducers")}
    if name not in found:
        raise ReductionError(f"reducer {name!r} isn't installed; there are {', '.join(sorted(found))}")
    loaded = found[name].load()
    if not (isinstance(loaded, type) and issubclass(loaded, Reducer)):
        raise ReductionError(f"reducer {name!r}: {loaded!r} isn't a haltere Reducer")
    return loaded


def build(spec: RecipeSpec) -> Reducer:
    """Return the recipe's reducer, parameters checked, not set up."""
    try:
        params = json.loads(spec.params)
        return reducer_class(spec.reducer)(**params)
    except ReductionError as error:
        raise ReductionError(f"recipe {spec.name}: {error}") from None
    except TypeError as error:
        raise ReductionError(f"recipe {spec.name}: reducer {spec.reducer}: {error}") from None


def checked(outputs: Mapping[str, Output]) -> dict[str, Output]:
    """Return what a reducer announces, if it keeps the rules.

    Raises
    ------
    ReductionError
        An output is of no known kind or of a type that doesn't travel; or it is to be added over batches and isn't of
        an integer type: such a sum would depend on their order.
    """
    for name, output in outputs.items():
        if output.kind not in ("nav", "acc", "const"):
            raise ReductionError(f"output {name} is of kind {output.kind!r}, which is none of nav, acc, const")
        try:
            kind = np.dtype(msgspec.convert(output.dtype, DType)).kind
        except (msgspec.ValidationError, TypeError):
            raise ReductionError(f"output {name} is of type {output.dtype!r}, which doesn't travel") from None
        if output.kind == "acc" and kind not in "iu":
            raise ReductionError(
                f"output {name} adds up over frames as {output.dtype}: its last digits would depend on the order; "
                "scale it to integers, or give it per frame"
            )
    return dict(outputs)


def outputs(
    spec: RecipeSpec, inputs: Iterable[InputSpec], build: Callable[[RecipeSpec], Any] = build
) -> dict[str, Output]:
    """Return what a recipe gives of these inputs, checked.

    Raises
    ------
    ReductionError
        It doesn't fit them, or its reducer breaks a rule; the recipe is named.
    """
    try:
        return checked(build(spec).outputs(tuple(inputs)))
    except Exception as error:  # a reducer is anybody's code
        text = str(error) if isinstance(error, ReductionError) else f"{type(error).__name__}: {error}"
        raise ReductionError(text if text.startswith("recipe ") else f"recipe {spec.name}: {text}") from error


def cfg_hash(recipes: Sequence[RecipeSpec]) -> str:
    """Return 16 hex digits that stand for these recipes, their parameters and their reducers' versions."""
    digest = hashlib.sha256()
    for spec in sorted(recipes, key=lambda each: each.name):
        version = reducer_class(spec.reducer).version
        digest.update(canonical([spec.name, spec.reducer, version, json.loads(spec.params)]))
    return digest.hexdigest()[:16]


PROCESSED: Final = uuid.UUID("6b9c6a0e-52c6-5d0e-9a53-6d3d1f4c2a71")
"""The namespace of processed runs' uids."""


def processed_uid(run: str, recipes: Iterable[Recipe]) -> str:
    """Return the uid of the run that these recipes make of a raw run: the same ones, the same uid.

    >>> processed_uid("a", []) == processed_uid("a", ()) != processed_uid("b", [])
    True
    """
    cfgs = sorted(f"{recipe.source} {cfg_hash([recipe.spec()])}" for recipe in recipes)
    return str(uuid.uuid5(PROCESSED, "\n".join([run, *cfgs])))
