"""``haltere backfill``: its arguments, its progress, its last word."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .backfill import Choice, backfill
from .backfilled import Advance
from .progress import Reducing, print_backfilled
from .rereduce import chosen
from .session_log import session_log
from .workers.errors import FileError, ReductionError, SettingsError
from .workers.settings import load
from .workshop import Workshop


@dataclass(frozen=True, slots=True)
class Request:
    """What was asked for."""

    run: str
    only: str
    recipe: Path | None
    directory: Path | None
    roots: tuple[Path, ...]
    workers: int | None


def run_backfill(request: Request, *, as_json: bool) -> bool:
    """Do it, show how far it is, print what came of it; return whether nothing is left to be done.

    With ``as_json`` each step of the progress is a line of its own, and the outcome the last.
    """
    given: dict[str, Any] = {"directory": request.directory, "workers": request.workers}
    settings = load(**{name: value for name, value in given.items() if value is not None})
    with Workshop.open(settings, [root.resolve() for root in request.roots]) as shop, Reducing() as shown:
        (shop.directory / "logs").mkdir(exist_ok=True)
        with session_log(shop.directory / "logs" / "backfill.log"):
            choose = None if request.recipe is None else _choice(request.recipe, shop)
            listen = _print_advance if as_json else shown
            outcome = backfill(shop, request.run, only=request.only, recipes=choose, listen=listen)
    if as_json:
        print(json.dumps(outcome.json()), flush=True)
    else:
        print_backfilled(outcome)
    return outcome.whole


def _choice(path: Path, shop: Workshop) -> Choice:
    def choose(raw: Any, own: Any) -> Any:
        try:
            return chosen([path], raw, own, shop.assets)
        except (ReductionError, FileError) as error:
            raise SettingsError(f"--recipe {path}: {error}") from None

    return choose


def _print_advance(advance: Advance) -> None:
    print(json.dumps({"progress": asdict(advance)}), flush=True)
