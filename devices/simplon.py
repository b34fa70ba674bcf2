"""SIMPLON keys (DECTRIS' REST interface) as ophyd signals, declared in one line each.

>>> class Detector(SimplonDevice):
...     count_time = Simplon("detector/config/count_time", kind="config")  # s
>>> detector = Detector("http://127.0.0.1:1", name="eiger", api="1.8.0")
>>> detector.count_time.get()
Traceback (most recent call last):
haltere.workers.errors.DetectorError: eiger_count_time: http://127.0.0.1:1: no answer (is the detector control unit on?)
"""

from __future__ import annotations

import time
import weakref
from typing import Any

import httpx
import numpy as np
from ophyd import Component, Device
from ophyd.signal import Signal
from ophyd.status import Status
from ophyd.utils import ReadOnlyError

from ..workers.errors import DetectorError

DTYPES = {"float": "number", "uint": "integer", "int": "integer", "bool": "boolean", "string": "string"}
"""Event-model's word for each SIMPLON value type; all others are arrays."""


class Client:
    """Asks one detector control unit over HTTP.

    Parameters
    ----------
    base
        ``"http://host"`` or ``"http://host:port"``.
    api
        The version in the paths, ``"1.6.0"`` or ``"1.8.0"``.
    timeout
        Longest wait for an answer to GET or PUT, s; a command may take as long as the exposure it runs.
    """

    def __init__(self, base: str, api: str, *, timeout: float = 10.0) -> None:
        self.base = base.rstrip("/")
        self.api = api
        self._timeout = timeout
        # A proxy of the campus network must not stand between a beamline and its detector.
        self._http = httpx.Client(timeout=httpx.Timeout(timeout, connect=min(timeout, 3.0)), trust_env=False)
        # Devices are rarely destroyed; a connection must not outlive them.
        weakref.finalize(self, self._http.close)

    def url(self, path: str) -> str:
        """Return where ``"detector/config/count_time"`` lies."""
        module, rest = path.split("/", 1)
        return f"{self.base}/{module}/api/{self.api}/{rest}"

    def get(self, who: str, path: str) -> dict[str, Any]:
        """Return a key: ``{"value", "value_type", "access_mode", "min", "max", "unit", "allowed_values"}``."""
        answer: dict[str, Any] = self._ask(who, "GET", path).json()
        return answer

    def put(self, who: str, path: str, value: Any) -> list[str]:
        """Write a key and return the names of all parameters that changed with it."""
        response = self._ask(who, "PUT", path, value)
        changed = response.json() if response.content else []
        return changed if isinstance(changed, list) else []

    def command(self, who: str, name: str, value: Any = None, *, timeout: float | None = None) -> dict[str, Any]:
        """Run a detector command and return its answer, ``{"sequence id": n}`` of arm and disarm."""
        response = self._ask(who, "PUT", f"detector/command/{name}", value, timeout=timeout or self._timeout)
        answer = response.json() if response.content else {}
        return answer if isinstance(answer, dict) else {}

    def close(self) -> None:
        """Drop the connections."""
        self._http.close()

    def _ask(self, who: str, method: str, path: str, value: Any = None, timeout: float | None = None) -> httpx.Response:
        what = path if value is None else f"{path} = {value!r}"
        try:
            response = self._http.request(
                method,
                self.url(path),
                json=None if value is None else {"value": value},
                timeout=timeout or self._timeout,
            )
        except httpx.ConnectError:
            raise DetectorError(f"{who}: {self.base}: no answer (is the detector control unit on?)") from None
        except httpx.TimeoutException:
            limit = timeout or self._timeout
            raise DetectorError(f"{who}: {self.base}: no answer to {what} within {limit:g} s (is it busy?)") from None
        except httpx.HTTPError as error:
            raise DetectorError(f"{who}: {self.base}: {what} failed: {error} (is it a SIMPLON server?)") from None
        if response.status_code == 404:
            raise DetectorError(f"{who}: {self.base}: no {path} (does it speak API {self.api}?)")
        if not response.is_success:
            reason = " ".join(response.text.split())[:200]
            raise DetectorError(f"{who}: {self.base}: {what} refused with {response.status_code}: {reason}")
        return response


class SimplonSignal(Signal):  # type: ignore[misc]  # ophyd carries no types
    """One SIMPLON key.

    Parameters
    ----------
    path
        Module, task and key: ``"detector/config/count_time"``.
    client
        The detector control unit; by default that of the parent.
    """

    def __init__(
        self, path: str, *, name: str, client: Client | None = None, parent: Any = None, **kwargs: Any
    ) -> None:
        self.path = path
        self.client: Client = client or parent.client
        self.meta: dict[str, Any] = {}
        super().__init__(name=name, parent=parent, **kwargs)

    @property
    def source_name(self) -> str:
        """Where it comes from, as data keys say it."""
        return f"SIMPLON:{self.client.url(self.path)}"

    @property
    def connected(self) -> bool:
        """Whether the detector answers now."""
        try:
            self.get()
        except DetectorError:
            return False
        return True

    def wait_for_connection(self, timeout: float = 0.0) -> None:
        """Raise a DetectorError if the detector doesn't answer."""
        self.get()

    @property
    def minimum(self) -> float | None:
        """The lowest value that may be written, if the detector states one."""
        if not self.meta:
            self.get()
        return self.meta.get("min")

    def get(self, **kwargs: Any) -> Any:
        """Ask for the value."""
        self.meta = self.client.get(self.name, self.path)
        self._readback, self._metadata["timestamp"] = self.meta["value"], time.time()
        return self._readback

    def put(self, value: Any, **kwargs: Any) -> None:
        """Write the value; siblings that the detector changed with it are read again."""
        if self.meta.get("access_mode") == "r":
            raise ReadOnlyError(f"{self.name}: {self.path} is read-only")
        changed = self.client.put(self.name, self.path, value)
        self._update(value)
        folder = self.path.rpartition("/")[0]
        for sibling in self.parent.simplon_signals() if self.parent is not None else ():
            if sibling is not self and sibling.path.removeprefix(f"{folder}/") in changed:
                sibling.refresh()

    def set(self, value: Any, **kwargs: Any) -> Status:
        """Write the key; the status is done, failed if the detector refused."""
        status = Status(self)
        try:
            self.put(value)
        except (DetectorError, ReadOnlyError) as error:
            status.set_exception(error)
        else:
            status.set_finished()
        return status

    def refresh(self) -> None:
        """Read again and tell subscribers if the value changed."""
        old = self._readback
        if self.get() != old:
            self._tell(old)

    def describe(self) -> dict[str, dict[str, Any]]:
        """Return the data key; a key that was read before isn't read again."""
        value = self._readback if self.meta else self.get()
        key: dict[str, Any] = {
            "source": self.source_name,
            "dtype": DTYPES.get(self.meta.get("value_type", ""), "array"),
            "shape": list(np.shape(value)),
        }
        if unit := self.meta.get("unit"):
            key["units"] = unit
        return {self.name: key}

    def _update(self, value: Any) -> None:
        old, self._readback = self._readback, value
        self._metadata["timestamp"] = time.time()
        self._tell(old)

    def _tell(self, old: Any) -> None:
        self._run_subs(
            sub_type=self.SUB_VALUE, old_value=old, value=self._readback, timestamp=self._metadata["timestamp"]
        )


class SimplonDevice(Device):  # type: ignore[misc]  # ophyd carries no types
    """A Device whose signals are keys of one detector control unit; its prefix is that unit's URL."""

    def __init__(self, prefix: str, *, name: str, api: str, **kwargs: Any) -> None:
        self.client = Client(prefix, api)
        super().__init__(prefix, name=name, **kwargs)

    def simplon_signals(self) -> list[SimplonSignal]:
        """Return the components that are SIMPLON keys."""
        return [signal for _, signal in self._signals.items() if isinstance(signal, SimplonSignal)]

    def command(self, command: str, value: Any = None, *, timeout: float | None = None) -> dict[str, Any]:
        """Run a detector command."""
        return self.client.command(self.name, command, value, timeout=timeout)

    def destroy(self) -> None:
        """Drop the connections."""
        self.client.close()
        super().destroy()


def Simplon(path: str, *, kind: str = "normal", **kwargs: Any) -> Any:  # noqa: N802 - it stands where a class would
    """Declare a key: ``count_time = Simplon("detector/config/count_time", kind="config")``."""
    return Component(SimplonSignal, path, add_prefix=(), kind=kind, **kwargs)
