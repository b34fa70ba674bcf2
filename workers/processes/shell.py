"""What the pool's processes share: how each starts, and how it ends."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Sequence
from typing import Literal, TypeVar

import msgspec
from msgspec import Struct

from ..errors import HaltereError, SettingsError
from .lifeline import Lifeline

Level = Literal["DEBUG", "INFO", "WARNING", "ERROR"]


class ShellSettings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What every process is told at the start. ``log`` : the least level that goes to its standard error."""

    log: Level = "INFO"


S = TypeVar("S", bound=ShellSettings)


def run(role: str, kind: type[S], work: Callable[[S, Lifeline], None], argv: Sequence[str] | None = None) -> int:
    """Run a process until SIGTERM, or the end of its standard input. Return its exit code.

    Parameters
    ----------
    role
        What it is called in its log and in errors, if its settings don't give it a name.
    kind
        What its one argument, in JSON, is read as.
    work
        Does it all, and returns when the lifeline says that it is over. It announces that it is ready.
    argv
        The arguments; by default the process's own.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        if len(arguments) != 1:
            raise SettingsError(f"{role}: expected its settings as one JSON argument")
        try:
            settings = msgspec.json.decode(arguments[0], type=kind)
        except msgspec.DecodeError as error:
            raise SettingsError(f"{role}: settings: {error}") from None
        name = getattr(settings, "name", role)
        logging.basicConfig(level=settings.log, format=f"%(asctime)s {name} %(levelname)s %(message)s")
        work(settings, Lifeline())
    except HaltereError as error:
        print(error, file=sys.stderr)
        return 2
    return 0
