"""What is reduced when a plan doesn't say."""

from __future__ import annotations

from importlib.resources import as_file, files
from typing import Final

import msgspec

from .recording import Recording
from .workers import recipes
from .workers.assets import AssetStore
from .workers.recipes import Recipe
from .workers.settings import Settings

POSITIONS: Final = Recipe("positions", "columns", "pilc")


def default_recipes(settings: Settings, recording: Recording, assets: AssetStore) -> tuple[Recipe, ...]:
    """Return the settings' recipes; without any, those of the simulated beamline, or the positions of a real one.

    Raises
    ------
    ReductionError
        One of the settings' recipes can't be.
    """
    if settings.recipes:
        return recipes.parse(settings.recipes)
    if settings.beamline is not None:
        return (POSITIONS,)
    return diffraction(settings, recording), fluorescence(assets), POSITIONS


def diffraction(settings: Settings, recording: Recording) -> Recipe:
    """Return the simulated Eiger's recipe: patterns in the geometry that its frames are made for."""
    from .devices.sim.eiger_geometry import default_poni, model
    from .workers.reducers import geometry
    from .workers.reducers.azimuthal import recipe_params

    if recording.poni is None:
        # The shape is told, so that pyFAI needn't be loaded to look it up: a second of the session's start.
        poni = msgspec.structs.replace(geometry.parse(default_poni(settings.model)), shape=model(settings.model).shape)
    else:
        poni = geometry.load(recording.poni)
    return Recipe("xrd", "azimuthal", "eiger", recipe_params(msgspec.to_builtins(poni), bins=1000, unit="2th_deg"))


def fluorescence(assets: AssetStore) -> Recipe:
    """Return the simulated Xspress3's recipe: areas of the sample's element lines."""
    from .workers.reducers.fluorescence import recipe_params

    with as_file(files("haltere.devices.sim") / "demo_xrf.npz") as basis:
        return Recipe("xrf", "fluorescence", "xspress3", recipe_params(basis, assets))
