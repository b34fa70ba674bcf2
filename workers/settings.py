"""Settings of a session: one TOML file, then ``HALTERE_*`` variables on top.

The beamline's part has the shape of the line that ``haltere sim --json`` prints, so a simulated and a real beamline
are described alike::

    workers = 4
    directory = "/gpfs/current/scratch/haltere"

    [beamline.eiger]
    rest = "http://eiger.example"
    stream = "tcp://eiger.example:9999"
    api = "1.6.0"
    data_dir = "/gpfs/current/raw/eiger"
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from .errors import SettingsError


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class EigerSettings(_Part):
    """Where an Eiger's DCU answers, and where its files are seen from here."""

    rest: str
    stream: str
    api: str = "1.8.0"
    data_dir: Path


class Xspress3Settings(_Part):
    """Where an Xspress3's Tango server answers, and where its files are seen from here."""

    tango: str
    epics: str | None = None
    data_dir: Path


class PiLCSettings(_Part):
    """Where the PiLC's Tango servers answer; ``axes`` names the encoders by the motors they read."""

    trigger_generator: str
    scan_slave: str | None = None
    axes: dict[str, int] = Field(default_factory=lambda: {"x": 1, "y": 2})


class BeamlineSettings(_Part):
    """The instruments' addresses."""

    eiger: EigerSettings
    xspress3: Xspress3Settings
    pilc: PiLCSettings
    stage: dict[str, str]


class Settings(BaseSettings):
    """What a session needs to know. Without a ``beamline`` a simulated one is started."""

    model_config = SettingsConfigDict(
        env_prefix="HALTERE_", env_nested_delimiter="__", toml_file="haltere.toml", extra="forbid"
    )

    directory: Path = Path("haltere-data")
    """Catalog, ledger, NeXus files and logs; with a simulated beamline also the raw data."""
    workers: int = Field(default=2, ge=1, le=256)
    ring_bytes: int = Field(default=256 << 20, ge=1 << 20)
    """Bytes of frames that may wait in shared memory before new ones are dropped and counted."""
    spill_bytes: int = Field(default=256 << 30, ge=0)
    """Most bytes of one run's detector that are written to the pool's own files, where a recipe asks for it."""
    backfill: float = Field(default=0.25, gt=0, lt=1)
    """The part of the workers' time that a backfill has while live frames wait; without these it has all."""
    beamline: BeamlineSettings | None = None
    recipes: list[dict[str, Any]] = Field(default_factory=list)
    """What is reduced when a plan doesn't say; each a table with name, reducer, source and params."""
    model: str = Field(default="500k", pattern="^(500k|4M)$")
    """The simulated Eiger."""
    seed: int = Field(default=1, ge=0)
    """Of everything simulated."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Say what goes before what: arguments, variables, the file."""
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls)


def load(**values: Any) -> Settings:
    """Return the settings; ``values`` go before the variables and the file.

    Raises
    ------
    SettingsError
        A value is wrong: named, in one line.
    """
    try:
        return Settings(**values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise SettingsError(f"setting {where}: {first['msg']} (in haltere.toml or HALTERE_{where.upper()})") from None
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"haltere.toml can't be read: {error}") from None
