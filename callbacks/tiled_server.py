"""The embedded Tiled server: ``python -m haltere.callbacks.tiled_server '<json>'``, one process on the loopback.

Settings, as one JSON argument: ``directory`` (databases, tables, key), ``readable`` (folders of detectors' and NeXus
files), ``port`` (0: any free one). When both catalogs answer it prints one line, ``{"uri": …, "pid": …}``. It ends on
SIGTERM, and when its standard input ends.

Against ``tiled serve config`` this saves a second interpreter with the same 3 s of imports: Tiled makes a new database
in a subprocess, here it is made in this one.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import signal
import socket
import sys
import threading
from pathlib import Path
from typing import Any, Final
from urllib.error import HTTPError
from urllib.request import ProxyHandler, Request, build_opener

from ..workers.processes.beating import Beating
from ..workers.processes.death import on_parents_death

CATALOGS: Final = ("raw", "processed")
SPEC: Final = {"name": "CatalogOfBlueskyRuns", "version": "3.0"}
KEY_FILE: Final = "api_key"


def server_uri(port: int) -> str:
    """Return where the server's API is."""
    return f"http://127.0.0.1:{port}/api/v1"


def read_or_make_key(path: Path) -> str:
    """Return the API key in ``path``; a new file gets a random one and is its owner's alone."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return path.read_text().strip()
    key = secrets.token_hex(32)
    with os.fdopen(descriptor, "w") as file:
        file.write(key)
    return key


def configuration(directory: Path, readable: list[str], key: str) -> dict[str, Any]:
    """Return Tiled's configuration: SQLite for the tree, DuckDB for tables (SQLite's fail on array columns)."""
    return {
        "authentication": {"single_user_api_key": key, "allow_anonymous_access": False},
        "trees": [
            {
                "tree": "catalog",
                "path": "/",
                "args": {
                    "uri": f"sqlite:///{directory / 'catalog.db'}",
                    "writable_storage": [str(directory / "data"), f"duckdb:///{directory / 'tables.duckdb'}"],
                    "readable_storage": readable,
                },
            }
        ],
        # Without this exporter run.documents() is answered by 406.
        "media_types": {"BlueskyRun": {"application/json-seq": "bluesky_tiled_plugins.exporters:json_seq_exporter"}},
        "routers": ["bluesky_tiled_plugins.routers.validator:router"],
        "streaming_cache": {"uri": "memory"},
    }


def make_database(path: Path) -> None:
    """Make Tiled's tree database, if it isn't there; what ``tiled catalog init --if-not-exists`` does."""
    from sqlalchemy.ext.asyncio import create_async_engine
    from tiled.alembic_utils import UninitializedDatabase, check_database, stamp_head
    from tiled.catalog.alembic_constants import ALEMBIC_DIR, ALEMBIC_INI_TEMPLATE_PATH
    from tiled.catalog.core import ALL_REVISIONS, REQUIRED_REVISION, initialize_database

    uri = f"sqlite+aiosqlite:///{path}"

    async def make() -> bool:
        engine = create_async_engine(uri)
        try:
            await check_database(engine, REQUIRED_REVISION, ALL_REVISIONS)
        except UninitializedDatabase:
            await initialize_database(engine)
            return True
        finally:
            await engine.dispose()
        return False

    if asyncio.run(make()):
        stamp_head(ALEMBIC_INI_TEMPLATE_PATH, ALEMBIC_DIR, uri)


def remember_dependants() -> None:
    """Let FastAPI look up what a dependency depends on, instead of working it out for each request again.

    It does that as soon as an application overrides a dependency, which Tiled's does with its settings: measured, a
    third of the CPU that recording a scan costs the server.
    """
    from fastapi.dependencies import utils

    work_out = getattr(utils, "get_dependant", None)
    if work_out is None:
        return  # another FastAPI: it only is slower then
    known: dict[tuple[Any, ...], Any] = {}  # as many as the application's routes have dependencies

    def get_dependant(**of: Any) -> Any:
        key = tuple((name, tuple(each) if isinstance(each, list) else each) for name, each in of.items())
        if key not in known:
            known[key] = work_out(**of)
        return known[key]

    utils.get_dependant = get_dependant


def make_catalogs(uri: str, key: str) -> None:
    """Make the containers :data:`CATALOGS` where they are missing."""
    opener = build_opener(ProxyHandler({}))
    for name in CATALOGS:
        body: dict[str, Any] = {
            "id": name,
            "structure_family": "container",
            "metadata": {},
            "specs": [SPEC],
            "data_sources": [],
        }
        request = Request(f"{uri}/metadata/", json.dumps(body).encode(), {"Content-Type": "application/json"})
        request.add_header("Authorization", f"Apikey {key}")
        try:
            opener.open(request, timeout=30).close()
        except HTTPError as error:
            if error.code != 409:  # it is there already
                raise RuntimeError(f"catalog {name!r} can't be made: {error.code} {error.read()[:300]!r}") from None


def serve(settings: dict[str, Any]) -> None:
    """Serve until SIGTERM or the end of standard input."""
    on_parents_death(signal.SIGCONT)  # one that is stopped wouldn't see that its input ended
    directory = Path(settings["directory"]).resolve()
    # Named, or asyncio takes it for no TCP and leaves Nagle's delay on: 40 ms more for every answer.
    listening = socket.socket(proto=socket.IPPROTO_TCP)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind(("127.0.0.1", settings["port"]))
        # Listening from now on, so that whoever else wants the port fails now rather than later.
        listening.listen(128)
    except OSError as error:
        sys.exit(f"port {settings['port']} can't be used: {error.strerror}; name another, or 0 for any")
    (directory / "data").mkdir(parents=True, exist_ok=True)
    key = read_or_make_key(directory / KEY_FILE)

    import uvicorn
    from tiled.server.app import build_app_from_config

    make_database(directory / "catalog.db")
    app = build_app_from_config(configuration(directory, settings["readable"], key))
    remember_dependants()
    uri = server_uri(listening.getsockname()[1])

    def announce() -> None:
        try:
            make_catalogs(uri, key)
        except Exception as error:
            print(f"catalog: {error}", file=sys.stderr, flush=True)
            os.kill(os.getpid(), signal.SIGTERM)
            return
        print(json.dumps({"uri": uri, "pid": os.getpid()}), flush=True)

    def end_with_parent() -> None:
        sys.stdin.buffer.read()
        os.kill(os.getpid(), signal.SIGTERM)

    beating = Beating()

    async def beat() -> None:
        beating.beat()

    # The socket listens already, so the first request simply waits until the server runs.
    threading.Thread(target=announce, name="announce", daemon=True).start()
    threading.Thread(target=end_with_parent, name="end with parent", daemon=True).start()
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            loop="asyncio",
            timeout_graceful_shutdown=2,
            timeout_notify=1,
            callback_notify=beat,  # called from the loop that answers: if that hangs, so do the beats
        )
    )
    server.run(sockets=[listening])


if __name__ == "__main__":
    serve(json.loads(sys.argv[1]))
