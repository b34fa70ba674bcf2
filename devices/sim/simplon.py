"""The simulated Eiger: a SIMPLON REST server over an acquisition, its stream and its FileWriter.

``/{detector,stream,filewriter,monitor,system}/api/<version>/{config,status,command}/<key>`` and ``/data/<file>``,
as in DECTRIS' SIMPLON API 1.6 and 1.8. An unknown key is answered with 404, a bad value with 400, writing what is
read-only with 403; the body says why, in one line.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final

import msgspec
import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route

from ...workers.errors import SettingsError
from .eiger_acquisition import Acquisition
from .eiger_config import Configuration, Refused, now, status
from .eiger_stream import StreamSource
from .filewriter import FileWriter
from .frames import FrameLibrary

Position = tuple[float, float]

APIS: Final = ("1.6.0", "1.8.0")
_MAX_BODY: Final = 64 * 1024
_json = msgspec.json.Encoder().encode


class SimulatedEiger:
    """An Eiger on loopback: REST, stream v1 and FileWriter, in threads of the calling process.

    Parameters
    ----------
    library
        The frames it can show: ``FrameLibrary.synthetic("500k", phases=sample.phases, seed=0)`` or
        ``FrameLibrary.from_file(path, flip="ud", phases=sample.phases, seed=0)``.
    data_dir
        Where its FileWriter puts files; created when the first series is armed, if it isn't there.
    position
        Says where the sample is, (x, y) in µm, when a *software* trigger (ints, inte) takes a frame.
    api
        SIMPLON version in the REST paths: ``"1.8.0"`` or ``"1.6.0"``.
    rest_port, stream_port
        0: any free port.

    Raises
    ------
    SettingsError
        A port is taken, ``data_dir`` is a file, or the version is unknown.
    """

    def __init__(
        self,
        library: FrameLibrary,
        data_dir: Path | str,
        *,
        position: Callable[[], Position] | None = None,
        api: str = "1.8.0",
        rest_port: int = 0,
        stream_port: int = 0,
    ) -> None:
        if api not in APIS:
            raise SettingsError(f"SIMPLON API {api!r} isn't simulated; there are {', '.join(APIS)}")
        self.api = api
        self.library = library
        self.configuration = Configuration(library, api)
        self._listener = _listen(rest_port)
        try:
            self.stream = StreamSource(library, stream_port)
            try:
                self.writer = FileWriter(data_dir)
            except SettingsError:
                self.stream.close()
                raise
        except SettingsError:
            self._listener.close()
            raise
        self.acquisition = Acquisition(
            library, self.configuration, self.stream, self.writer, position or (lambda: (0.0, 0.0))
        )
        self._server = uvicorn.Server(
            uvicorn.Config(
                self._application(),
                lifespan="off",
                ws="none",
                log_level="warning",
                access_log=False,
                timeout_graceful_shutdown=2,
            )
        )
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [self._listener]}, name="eiger-rest", daemon=True
        )
        self._stopped = False

    # --- for the simulated beamline --------------------------------------------------------------------------------

    def start(self) -> dict[str, str]:
        """Start serving; return the endpoints.

        ``{"rest": "http://127.0.0.1:P", "stream": "tcp://127.0.0.1:P", "api": "1.8.0", "data_dir": "/…"}``.
        """
        if self._thread.ident is None:
            self._thread.start()
        return self.endpoints()

    def endpoints(self) -> dict[str, str]:
        """Return the endpoints."""
        return {
            "rest": f"http://127.0.0.1:{self._listener.getsockname()[1]}",
            "stream": self.stream.endpoint,
            "api": self.api,
            "data_dir": str(self.writer.folder),
        }

    def external_trigger(self, position: Position = (0.0, 0.0), frames: int = 1) -> bool:
        """Give ``frames`` edges on the trigger input while the sample is at ``position`` (x, y), µm.

        Any thread, a few µs, never blocks. Returns whether the detector took them all (armed in exts or exte, and
        not yet at ntrigger); edges it didn't take are counted in :attr:`ignored_triggers`.
        """
        return self.acquisition.external_trigger(position, frames)

    @property
    def ignored_triggers(self) -> int:
        """Edges on the trigger input that gave no frame, since the start."""
        return self.acquisition.ignored

    def stop(self) -> None:
        """Abort what runs, close files, sockets and server; idempotent."""
        if self._stopped:
            return
        self._stopped = True
        self.acquisition.abort()
        self._server.should_exit = True
        if self._thread.ident is not None:
            self._thread.join()
        self._listener.close()
        self.writer.close()
        self.stream.close()

    def __enter__(self) -> SimulatedEiger:
        """Start it."""
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        """Stop it."""
        self.stop()

    # --- REST ------------------------------------------------------------------------------------------------------

    def _application(self) -> Starlette:
        base = f"/{{module}}/api/{self.api}"
        routes = [
            Route("/{module}/api/version", self._version),
            Route("/{module}/api/version/", self._version),
            Route(f"{base}/config/{{key:path}}", self._get_config, methods=["GET"]),
            Route(f"{base}/config/{{key:path}}", self._put_config, methods=["PUT"]),
            Route(f"{base}/status/{{key:path}}", self._get_status, methods=["GET"]),
            Route(f"{base}/command/{{key:path}}", self._get_commands, methods=["GET"]),
            Route(f"{base}/command/{{key:path}}", self._command, methods=["PUT"]),
            Route(f"/filewriter/api/{self.api}/files", self._files),
            Route(f"/filewriter/api/{self.api}/files/", self._files),
            Route("/data/", self._files),
            Route("/data/{name}", self._data),
        ]
        return Starlette(routes=routes, exception_handlers={Refused: _refusal})

    async def _version(self, request: Request) -> Response:
        self._module(request)
        return _answer({"value": self.api, "value_type": "string"})

    async def _get_config(self, request: Request) -> Response:
        parameters = self.configuration.modules[self._module(request)]
        key = request.path_params["key"].strip("/")
        if key in ("", "keys"):
            return _answer(sorted(parameters))
        if key not in parameters:
            raise Refused(HTTPStatus.NOT_FOUND, f"{request.url.path}: no such key")
        return _answer(parameters[key].described())

    async def _put_config(self, request: Request) -> Response:
        module, key = self._module(request), request.path_params["key"].strip("/")
        body = await _body(request)
        if not isinstance(body, dict) or "value" not in body:
            raise Refused(HTTPStatus.BAD_REQUEST, f'{module}/config/{key}: the body is no {{"value": …}}')
        state = self.acquisition.state
        if module == "detector" and state in ("configure", "ready", "acquire"):
            raise Refused(HTTPStatus.BAD_REQUEST, f"{key}: the detector is {state}; disarm first")
        return _answer(self.configuration.put(module, key, body["value"]))

    async def _get_status(self, request: Request) -> Response:
        module, key = self._module(request), request.path_params["key"].strip("/")
        keys = self._status(module)
        if key in ("", "keys"):
            return _answer(sorted(keys))
        if key not in keys:
            raise Refused(HTTPStatus.NOT_FOUND, f"{request.url.path}: no such key")
        return _answer(keys[key])

    def _status(self, module: str) -> dict[str, Any]:
        acquisition, writer = self.acquisition, self.writer
        if module == "detector":
            return {
                "state": status(acquisition.state),
                "error": status([acquisition.reason] if acquisition.reason else [], "string[]"),
                "time": status(now()),
                "board_000/th0_temp": status(24.6, "float", "degree celsius"),
                "board_000/th0_humidity": status(2.1, "float", "percent"),
                "builder/dcu_buffer_free": status(100.0, "float", "percent"),
                "high_voltage/state": status("READY"),
                "temperature": status(24.6, "float", "degree celsius"),
                "humidity": status(2.1, "float", "percent"),
            }
        if module == "stream":
            mode = self.configuration.value("stream", "mode")
            state = {"ready": "acquire", "acquire": "acquire"}.get(acquisition.state, "ready")
            return {
                "state": status("disabled" if mode == "disabled" else state),
                "error": status([], "string[]"),
                "dropped": status(self.stream.dropped, "uint"),
            }
        if module == "filewriter":
            off = self.configuration.value("filewriter", "mode") == "disabled" and writer.state == "ready"
            return {
                "state": status("disabled" if off else writer.state),
                "error": status([writer.reason] if writer.reason else [], "string[]"),
                "buffer_free": status(max(0, 800_000_000 - writer.backlog), "uint", "kB"),
                "files": status(writer.files(), "string[]"),
                "time": status(now()),
            }
        if module == "monitor":
            return {
                "state": status("disabled"),
                "error": status([], "string[]"),
                "buffer_fill_level": status([0, 512], "uint[]"),
                "dropped": status(0, "uint"),
            }
        return {}

    _COMMANDS: Final = {
        "detector": (
            *("initialize", "arm", "trigger", "disarm", "cancel", "abort"),
            *("status_update", "check_connection", "hv_reset"),
        ),
        "stream": ("initialize",),
        "filewriter": ("initialize", "clear"),
        "monitor": ("initialize", "clear"),
        "system": ("restart",),
    }

    async def _get_commands(self, request: Request) -> Response:
        module, key = self._module(request), request.path_params["key"].strip("/")
        if key in ("", "keys"):
            return _answer(sorted(self._COMMANDS[module]))
        raise Refused(HTTPStatus.NOT_FOUND, f"{request.url.path}: a command is PUT")

    async def _command(self, request: Request) -> Response:
        module, key = self._module(request), request.path_params["key"].strip("/")
        if key not in self._COMMANDS[module]:
            raise Refused(HTTPStatus.NOT_FOUND, f"{request.url.path}: no such command")
        await _body(request)
        if module == "filewriter":
            self.writer.clear()
        if module != "detector":
            return _answer({})
        acquisition = self.acquisition
        numbered: dict[str, Callable[[], int]] = {
            "arm": acquisition.arm,
            "disarm": acquisition.disarm,
            "cancel": acquisition.cancel,
            "abort": acquisition.abort,
        }
        if key in numbered:
            return _answer({"sequence id": await run_in_threadpool(numbered[key])})
        if key == "trigger":
            await run_in_threadpool(acquisition.trigger)
        elif key == "initialize":
            await run_in_threadpool(acquisition.initialize)
        return _answer({})

    async def _files(self, request: Request) -> Response:
        return _answer(self.writer.files())

    async def _data(self, request: Request) -> Response:
        name = request.path_params["name"]
        # Only names that are in the folder's own list: no path leads out of it.
        if name not in self.writer.files():
            raise Refused(HTTPStatus.NOT_FOUND, f"/data/{name}: no such file")
        return FileResponse(self.writer.folder / name, media_type="application/x-hdf5")

    def _module(self, request: Request) -> str:
        module: str = request.path_params["module"]
        if module not in self.configuration.modules:
            raise Refused(HTTPStatus.NOT_FOUND, f"{request.url.path}: no module {module!r}")
        return module


def _listen(port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(("127.0.0.1", port))
    except OSError as error:
        listener.close()
        raise SettingsError(f"REST port {port}: {error.strerror}; take another one or 0") from None
    # Clients that come before the server's loop runs wait in the backlog.
    listener.listen(128)
    return listener


def _answer(value: Any, code: int = 200) -> Response:
    return Response(_json(value), code, media_type="application/json")


async def _refusal(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refused)
    return Response(error.reason, int(error.status), media_type="text/plain; charset=utf-8")


async def _body(request: Request) -> Any:
    """Return the request's JSON, None if it has no body."""
    raw = bytearray()
    async for piece in request.stream():
        raw += piece
        if len(raw) > _MAX_BODY:
            raise Refused(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"{request.url.path}: the body is over {_MAX_BODY} bytes"
            )
    if not raw:
        return None
    try:
        return msgspec.json.decode(bytes(raw))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Refused(HTTPStatus.BAD_REQUEST, f"{request.url.path}: the body is no JSON: {error}") from None
