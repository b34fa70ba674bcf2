"""Tango attributes as ophyd signals, declared in one line each; with a database or ``tango://host:port/…#dbase=no``.

>>> class Shutter(TangoDevice):
...     delay = Tango("DelayTime", kind="config")  # s
>>> shutter = Shutter("tango://127.0.0.1:1/p06/shutter/1#dbase=no", name="shutter")
>>> shutter.delay.get()
Traceback (most recent call last):
haltere.workers.errors.DetectorError: shutter_delay: tango://127.0.0.1:1/p06/shutter/1#dbase=no: no answer (is the server running?)
"""  # noqa: E501 - the error is one line

from __future__ import annotations

import threading
import time
from typing import Any

import numpy as np
import tango
from ophyd import Component, Device
from ophyd.signal import Signal
from ophyd.status import Status
from ophyd.utils import ReadOnlyError

from ..workers.errors import DetectorError

DTYPES = {
    tango.DevDouble: "number",
    tango.DevFloat: "number",
    tango.DevBoolean: "boolean",
}
"""Event-model's word for each Tango type; others are integers, or strings if their value is."""

UNREACHABLE = {"API_CantConnectToDevice", "API_CommunicationFailed", "API_DeviceNotExported", "API_CorbaException"}


class Connection:
    """A Tango device by its address; connects when first used, again after its server was restarted.

    Parameters
    ----------
    trl
        ``"tango://host:port/domain/family/member#dbase=no"``, or with a database ``"domain/family/member"``.
    timeout
        Longest wait for an answer, s.
    """

    def __init__(self, trl: str, *, timeout: float = 5.0) -> None:
        self.trl = trl
        self._timeout = timeout
        self._lock = threading.Lock()
        self._proxy: Any = None
        self._configs: dict[str, Any] = {}

    @property
    def proxy(self) -> Any:
        """The pytango proxy; raises tango.DevFailed."""
        with self._lock:
            if self._proxy is None:
                proxy = tango.DeviceProxy(self.trl)
                proxy.set_timeout_millis(int(self._timeout * 1000))
                self._proxy = proxy
            return self._proxy

    def ping(self, who: str) -> None:
        """Raise a DetectorError if the device doesn't answer."""
        try:
            self.proxy.ping()
        except tango.DevFailed as error:
            raise self.explain(who, error) from None

    def config(self, who: str, attribute: str) -> Any:
        """Return the attribute's configuration (unit, type, limits), asked for once."""
        if attribute not in self._configs:
            try:
                self._configs[attribute] = self.proxy.get_attribute_config(attribute)
            except tango.DevFailed as error:
                raise self.explain(who, error, attribute) from None
        return self._configs[attribute]

    def read(self, who: str, attribute: str) -> tuple[Any, float]:
        """Return value and time stamp (s since 1970); states as their names, empty arrays as arrays."""
        try:
            answer = self.proxy.read_attribute(attribute)
        except tango.DevFailed as error:
            raise self.explain(who, error, attribute) from None
        return self.plain(who, attribute, answer), answer.time.totime()

    def plain(self, who: str, attribute: str, answer: Any) -> Any:
        """Return what the answer says, in Python's and numpy's types."""
        value = answer.value
        if isinstance(value, tango.DevState):
            return value.name
        if value is None and answer.data_format != tango.AttrDataFormat.SCALAR:
            dimensions = 1 if answer.data_format == tango.AttrDataFormat.SPECTRUM else 2
            return np.empty((0,) * dimensions)
        return value

    def write(self, who: str, attribute: str, value: Any) -> None:
        """Write an attribute."""
        try:
            self.proxy.write_attribute(attribute, value)
        except tango.DevFailed as error:
            raise self.explain(who, error, f"{attribute} = {value!r}") from None
        except (TypeError, ValueError) as error:
            raise DetectorError(f"{who}: {attribute} = {value!r}: {error}") from None

    def command(self, who: str, name: str, argument: Any = None) -> Any:
        """Run a command and return its answer."""
        try:
            return self.proxy.command_inout(name, argument) if argument is not None else self.proxy.command_inout(name)
        except tango.DevFailed as error:
            raise self.explain(who, error, f"{name}()") from None

    def explain(self, who: str, error: Any, what: str = "") -> DetectorError:
        """Return the error as one line that names culprit, place and remedy."""
        reasons = {item.reason for item in error.args}
        first = " ".join(str(error.args[0].desc).split()) if error.args else str(error)
        where = f"{who}: {self.trl}"
        if "API_DeviceTimedOut" in reasons:
            return DetectorError(f"{where}: no answer to {what or 'ping'} within {self._timeout:g} s (is it hung?)")
        if reasons & UNREACHABLE:
            return DetectorError(f"{where}: no answer (is the server running?)")
        if "API_AttrNotFound" in reasons:
            return DetectorError(f"{where}: no attribute {what} (does the server run another class or version?)")
        if "DB_DeviceNotDefined" in reasons:
            return DetectorError(f"{where}: not in the Tango database (is the name right, and TANGO_HOST?)")
        return DetectorError(f"{where}: {what} refused: {first}")


class TangoSignal(Signal):  # type: ignore[misc]  # ophyd carries no types
    """One Tango attribute.

    While somebody subscribes it follows change events, or where the server pushes none it asks every ``poll`` s.

    Parameters
    ----------
    attribute
        Its name in the Tango class.
    connection
        The device; by default that of the parent.
    """

    def __init__(
        self,
        attribute: str,
        *,
        name: str,
        connection: Connection | None = None,
        parent: Any = None,
        poll: float = 0.1,
        **kwargs: Any,
    ) -> None:
        self.attribute = attribute
        self.connection: Connection = connection or parent.connection
        self._poll = poll
        self._event: int | None = None
        self._known = False
        self._ended = threading.Event()
        self._poller: threading.Thread | None = None
        super().__init__(name=name, parent=parent, **kwargs)

    @property
    def source_name(self) -> str:
        """Where it comes from, as data keys say it."""
        return f"TANGO:{self.connection.trl}/{self.attribute}"

    @property
    def connected(self) -> bool:
        """Whether the device answers now."""
        try:
            self.connection.ping(self.name)
        except DetectorError:
            return False
        return True

    def wait_for_connection(self, timeout: float = 0.0) -> None:
        """Raise a DetectorError if the device doesn't answer."""
        self.connection.ping(self.name)

    @property
    def configuration(self) -> Any:
        """What the server says about the attribute: unit, type, minimum, maximum."""
        return self.connection.config(self.name, self.attribute)

    @property
    def minimum(self) -> float | None:
        """The lowest value that may be written, if the server states one."""
        try:
            return float(self.configuration.min_value)
        except ValueError:
            return None

    def get(self, **kwargs: Any) -> Any:
        """Read the attribute."""
        value, timestamp = self.connection.read(self.name, self.attribute)
        self._readback, self._metadata["timestamp"], self._known = value, timestamp, True
        return value

    def put(self, value: Any, **kwargs: Any) -> None:
        """Write the attribute and return when the server has taken it."""
        if self.configuration.writable == tango.AttrWriteType.READ:
            raise ReadOnlyError(f"{self.name}: {self.attribute} is read-only")
        self.connection.write(self.name, self.attribute, value)
        self._update(value, time.time())

    def set(self, value: Any, **kwargs: Any) -> Status:
        """Write the attribute; the status is done, failed if the server refused."""
        status = Status(self)
        try:
            self.put(value)
        except (DetectorError, ReadOnlyError) as error:
            status.set_exception(error)
        else:
            status.set_finished()
        return status

    def describe(self) -> dict[str, dict[str, Any]]:
        """Return the data key; a signal that was read before isn't read again."""
        value = self._readback if self._known else self.get()
        plain = "string" if isinstance(value, str) else DTYPES.get(self.configuration.data_type, "integer")
        kind = "array" if np.ndim(value) else plain
        key: dict[str, Any] = {"source": self.source_name, "dtype": kind, "shape": list(np.shape(value))}
        if kind in ("array", "number", "integer") and np.asarray(value).dtype.kind in "biuf":
            key["dtype_numpy"] = np.asarray(value).dtype.str
        if self.configuration.unit not in ("", "No unit"):
            key["units"] = self.configuration.unit
        return {self.name: key}

    def subscribe(self, callback: Any, event_type: Any = None, run: bool = True) -> Any:
        """Call back at each change, from now on."""
        number = super().subscribe(callback, event_type=event_type, run=run)
        if self._event is None and self._poller is None:
            self._follow()
        return number

    def clear_sub(self, cb: Any, event_type: Any = None) -> None:
        """Forget a subscriber; the last one takes the monitor with it."""
        super().clear_sub(cb, event_type=event_type)
        if not any(self._callbacks.values()):
            self._unfollow()

    def destroy(self) -> None:
        """Stop following."""
        self._unfollow()
        super().destroy()

    def _update(self, value: Any, timestamp: float) -> None:
        old, self._readback, self._known = self._readback, value, True
        self._metadata["timestamp"] = timestamp
        self._run_subs(sub_type=self.SUB_VALUE, old_value=old, value=value, timestamp=timestamp)

    def _follow(self) -> None:
        try:
            self._event = self.connection.proxy.subscribe_event(
                self.attribute, tango.EventType.CHANGE_EVENT, self._on_event
            )
        except tango.DevFailed:
            # The server pushes no events for this attribute.
            self._ended = threading.Event()
            self._poller = threading.Thread(
                target=self._ask, args=(self._ended,), name=f"poll {self.name}", daemon=True
            )
            self._poller.start()

    def _unfollow(self) -> None:
        self._ended.set()
        self._poller = None
        if self._event is not None:
            event, self._event = self._event, None
            self.connection.proxy.unsubscribe_event(event)

    def _on_event(self, event: Any) -> None:
        if not event.err and event.attr_value is not None:
            value = self.connection.plain(self.name, self.attribute, event.attr_value)
            self._update(value, event.attr_value.time.totime())

    def _ask(self, ended: threading.Event) -> None:
        last: Any = None
        while not ended.wait(self._poll):
            try:
                value, timestamp = self.connection.read(self.name, self.attribute)
            except DetectorError:
                continue  # it may come back; whoever needs it now gets the error from get()
            if last is None or np.ndim(value) or value != last:
                last = value
                self._update(value, timestamp)


class TangoDevice(Device):  # type: ignore[misc]  # ophyd carries no types
    """A Device whose signals are attributes of one Tango device; its prefix is that device's address."""

    def __init__(self, prefix: str, *, name: str, **kwargs: Any) -> None:
        self.connection = Connection(prefix)
        super().__init__(prefix, name=name, **kwargs)

    def wait_for_connection(self, all_signals: bool = False, timeout: Any = None) -> None:
        """Raise a DetectorError if the device doesn't answer."""
        self.connection.ping(self.name)

    def command(self, command: str, argument: Any = None) -> Any:
        """Run a Tango command."""
        return self.connection.command(self.name, command, argument)

    def fault(self, state: str) -> DetectorError:
        """Return the error that it is in this state, with what it says of it itself."""
        status = " ".join(str(self.connection.read(self.name, "Status")[0]).split())
        return DetectorError(f"{self.name}: {self.prefix} is in state {state}: {status[:300]}")


def Tango(attribute: str, *, kind: str = "normal", **kwargs: Any) -> Any:  # noqa: N802 - it stands where a class would
    """Declare a Tango attribute of a :class:`TangoDevice`: ``exposure = Tango("ExposureTime", kind="config")``."""
    return Component(TangoSignal, attribute, add_prefix=(), kind=kind, **kwargs)
