"""What the simulated Tango classes have in common: declaring a setting in one line, refusing in one line."""

from __future__ import annotations

from typing import Any, NoReturn

from tango import AttrWriteType, Except
from tango.server import Device, attribute


def setting(name: str, kind: Any, unit: str = "", doc: str = "", **limits: str) -> Any:
    """Return a read-write attribute that the device keeps in ``self.settings[name]``, once ``self.allow`` lets it.

    ``min_value`` and ``max_value`` stand in the attribute's configuration, and Tango enforces them.
    """

    def read(device: Any) -> Any:
        return device.settings[name]

    def write(device: Any, value: Any) -> None:
        device.allow(name, value)
        device.settings[name] = value

    many = {"max_dim_x": 1024} if isinstance(kind, tuple) else {}
    return attribute(
        name=name,
        dtype=kind,
        access=AttrWriteType.READ_WRITE,
        fget=read,
        fset=write,
        unit=unit,
        doc=doc,
        **many,
        **limits,
    )


def refuse(device: Device, what: str, why: object) -> NoReturn:
    """Raise a DevFailed of one line: device, attribute or command, reason."""
    Except.throw_exception("Refused", f"{device.get_name()}/{what}: {why}", what)
    raise AssertionError("unreachable")  # pytango isn't typed: throw_exception never returns
