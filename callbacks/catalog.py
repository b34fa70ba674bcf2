"""The catalog: two Tiled catalogs, ``raw`` and ``processed``, of one server, embedded or elsewhere."""

from __future__ import annotations

import json
import logging
import socket
import stat
import sys
from collections.abc import Sequence
from pathlib import Path
from threading import Event, Lock
from time import monotonic
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self
from urllib.parse import urlsplit

from ..workers.errors import PoolError, SettingsError
from ..workers.pool.file import CatalogAddress
from ..workers.processes.child import Process
from .tiled_server import KEY_FILE, read_or_make_key, server_uri

if TYPE_CHECKING:
    from bluesky_tiled_plugins import CatalogOfBlueskyRuns

    from .buffer import FlushableBuffer

log = logging.getLogger(__name__)

PORT_FILE: Final = "port"
"""In the catalog's folder: the server's port, which the next one takes too if it is free."""

PATIENCE: Final = 60.0
"""s that the server may not answer until it is held to hang: a large table holds up everything else in it."""

RAW_PERIOD: Final = 5.0
"""s for which raw documents are gathered. Each of a scan's twenty data keys costs the server two requests a time."""


class Catalog:
    """Databroker's catalogs. ``catalog.raw`` is what a session calls ``db``.

    >>> with Catalog.start(Path("haltere-data/catalog")) as catalog:  # doctest: +SKIP
    ...     db = catalog.raw
    ...     db[-1]
    """

    def __init__(self, uri: str, api_key_file: Path, process: Process | None = None) -> None:
        self.uri = uri
        """Of the server's API, e.g. ``http://127.0.0.1:8000/api/v1``."""
        self.api_key_file = api_key_file
        """A file of mode 0600 that holds the API key."""
        self._process = process
        self._launched = False
        self._launching = Lock()
        self._root: Any = None
        self._clients: dict[str, Any] = {}

    @classmethod
    def start(cls, directory: Path | str, *, readable: Sequence[Path | str] = (), port: int = 0) -> Self:
        """Start a server of its own on the loopback, for as long as this process lives; it is restarted if it dies.

        Parameters
        ----------
        directory
            Where its databases and key lie; made if it isn't there. What an earlier server left is served again.
        readable
            The folders whose files the server may read: of the detectors' and of the NeXus files.
        port
            0 for any free one.

        Raises
        ------
        PoolError
            The port is taken, or the server can't start.
        SettingsError
            The directory can't be made.
        """
        catalog = cls.begin(directory, readable=readable, port=port)
        import tiled.client  # noqa: F401 - takes a second or two, as the server does: let both go on at once

        try:
            catalog.wait_ready()
        except BaseException:
            catalog.close()
            raise
        return catalog

    @classmethod
    def begin(
        cls, directory: Path | str, *, readable: Sequence[Path | str] = (), port: int = 0, launch: bool = True
    ) -> Self:
        """Do what :meth:`start` does, without waiting until the server answers; who asks for a catalog waits then.

        Without ``launch`` the server isn't even started before :meth:`launch` is called.

        Raises
        ------
        SettingsError
            The directory can't be made, or its key may be read by others.
        """
        directory = Path(directory).resolve()
        try:
            directory.mkdir(parents=True, exist_ok=True)
            read_or_make_key(directory / KEY_FILE)
            # The number is fixed here, so that a restarted server is found where the first one was.
            port = port or kept_port(directory / PORT_FILE)
        except OSError as error:
            raise SettingsError(f"catalog's folder {directory} can't be made: {error.strerror}; name another") from None
        settings = {
            "directory": str(directory),
            "readable": [str(Path(each).resolve()) for each in readable],
            "port": port,
        }
        command = [sys.executable, "-m", "haltere.callbacks.tiled_server", json.dumps(settings)]
        process = Process("catalog", command, directory / "server.log", patience=PATIENCE)
        catalog = cls(server_uri(port), directory / KEY_FILE, process)
        if launch:
            catalog.launch()
        return catalog

    def launch(self) -> None:
        """Start the server, if that is this catalog's affair and wasn't done."""
        with self._launching:
            if self._process is not None and not self._launched:
                self._launched = True
                self._process.start()

    @classmethod
    def connect(cls, uri: str, api_key_file: Path | str) -> Self:
        """Use a server that runs already.

        Raises
        ------
        SettingsError
            The key's file is missing, or others may read it.
        """
        catalog = cls(uri.rstrip("/"), Path(api_key_file))
        read_key(catalog.api_key_file)
        return catalog

    @property
    def process(self) -> Process | None:
        """The server, if it was started here."""
        return self._process

    @property
    def address(self) -> CatalogAddress:
        """Where others find it."""
        return CatalogAddress(self.uri, str(self.api_key_file))

    def wait_ready(self, timeout: float = 60.0) -> None:
        """Wait until the server answers, if it was started here.

        Raises
        ------
        PoolError
            It can't start: the port is taken, say.
        """
        self.launch()
        if self._process is not None:
            self._process.ready(timeout)

    @property
    def raw(self) -> CatalogOfBlueskyRuns:
        """What the RunEngine recorded."""
        return self._client("raw")

    @property
    def processed(self) -> CatalogOfBlueskyRuns:
        """What was reduced from it."""
        return self._client("processed")

    def wait_processed(self, uid: str, timeout: float) -> bool:
        """Wait until the recorder has written the processed run ``uid`` to its stop document; False after ``timeout``.

        Raises
        ------
        PoolError
            Nobody answers any more.
        """
        deadline = monotonic() + timeout
        pause = Event()
        while monotonic() < deadline:
            try:
                if self.processed[uid].metadata.get("stop"):
                    return True
            except KeyError:
                log.debug("run %s isn't in the catalog yet", uid)
            pause.wait(0.1)  # the catalog tells nobody that a run has ended
        return False

    @property
    def pid(self) -> int:
        """Of the server; −1 if it is down or not ours."""
        return -1 if self._process is None else self._process.condition.pid

    def kill(self) -> None:
        """Kill the server, as a fault would; it is started again.

        Raises
        ------
        PoolError
            It isn't ours.
        """
        if self._process is None:
            raise PoolError(f"catalog {self.uri} wasn't started here: it can't be killed from here")
        self._process.kill()

    def close(self) -> None:
        """Close the connections, and end the server if it was started here. May be called again."""
        self._clients.clear()
        if self._root is not None:
            self._root.context.http_client.close()
            self._root = None
        if self._process is not None:
            self._process.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _client(self, name: str) -> CatalogOfBlueskyRuns:
        if self._root is None:
            self.wait_ready()
            self._root = connect(self.uri, read_key(self.api_key_file))
        if name not in self._clients:
            if name not in self._root:
                raise SettingsError(f"catalog {self.uri} has no {name!r}; its owner must make it")
            self._clients[name] = self._root[name]
        found: CatalogOfBlueskyRuns = self._clients[name]
        return found


def raw_writer(catalog: Catalog) -> FlushableBuffer:
    """Return what ``RE.subscribe`` takes to record runs in ``catalog.raw``, off the RunEngine's thread.

    A run is seen in the catalog as soon as it starts; its frames within a few seconds; its events, 20 at a time.
    After ``flush()`` everything is there.
    """
    from .buffer import FlushableBuffer
    from .rewriting import Rewriting

    return FlushableBuffer(Rewriting(lambda: catalog.raw, batch_size=20), period=RAW_PERIOD)


def connect(uri: str, key: str) -> Any:
    """Return Tiled's client for ``uri``.

    Raises
    ------
    PoolError
        Nobody answers there.
    SettingsError
        The key is wrong.
    """
    import httpx

    # The proxies that an environment may name don't reach this host's loopback.
    loopback = urlsplit(uri).hostname in ("127.0.0.1", "localhost", "::1")
    try:
        # Tiled's client itself tries for 45 s before it says that nobody is there.
        answer = httpx.get(
            f"{uri}/metadata/", headers={"Authorization": f"Apikey {key}"}, timeout=10, trust_env=not loopback
        )
    except httpx.TransportError as error:
        raise PoolError(f"catalog {uri} doesn't answer: {error}; is it running?") from None
    if answer.is_error:
        raise SettingsError(f"catalog {uri} refuses: HTTP {answer.status_code}; is the key its own?")
    from tiled.client import from_uri

    return from_uri(uri, api_key=key, trust_env=not loopback)


def read_key(path: Path) -> str:
    """Return the API key in ``path``.

    Raises
    ------
    SettingsError
        It is missing, or others than its owner may read it.
    """
    try:
        mode = path.stat().st_mode
        key = path.read_text().strip()
    except OSError as error:
        raise SettingsError(f"catalog's key {path} can't be read: {error.strerror}") from None
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise SettingsError(f"catalog's key {path} may be read by others: chmod 600 {path}")
    return key


def free_port(wanted: int = 0) -> int:
    """Return ``wanted`` if that port of the loopback is free now, else another that is."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", wanted))
        except (OSError, OverflowError):
            probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def kept_port(path: Path) -> int:
    """Return the port of the loopback that the file names if it is free, else another; the file then names that.

    So a catalog that is started anew is found where it was, by sessions that are still there.
    """
    try:
        port = free_port(int(path.read_text()))
    except (OSError, ValueError):
        port = free_port()
    path.write_text(f"{port}\n")
    return port
