"""The simulated Eiger: a SIMPLON REST server over an acquisition, its stream and its FileWriter."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from .frames import FrameLibrary

Position = tuple[float, float]


class SimulatedEiger:
    """An Eiger on loopback: REST, stream v1 and FileWriter, in threads of the calling process.

    Parameters
    ----------
    library
        The frames it can show: ``FrameLibrary.synthetic("500k", phases=sample.phases, seed=0)`` or
        ``FrameLibrary.from_file(path, flip="ud", phases=sample.phases, seed=0)``.
    data_dir
        Where its FileWriter puts files; created if it isn't there.
    position
        Says where the sample is, (x, y) in µm, when a *software* trigger (ints, inte) takes a frame.
    api
        SIMPLON version in the REST paths: ``"1.8.0"`` or ``"1.6.0"``.
    rest_port, stream_port
        0: any free port.
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
        raise NotImplementedError

    def start(self) -> dict[str, str]:
        """Start serving; return ``{"rest": "http://127.0.0.1:P", "stream": "tcp://127.0.0.1:P", "api", "data_dir"}``."""
        raise NotImplementedError

    def external_trigger(self, position: Position = (0.0, 0.0), frames: int = 1) -> bool:
        """Give ``frames`` edges on the trigger input while the sample is at ``position`` (x, y), µm.

        Any thread, a few µs, never blocks. Returns whether the detector took them (armed in exts or exte, and not
        yet at ntrigger); edges it didn't take are counted in :attr:`ignored_triggers`.
        """
        raise NotImplementedError

    def stop(self) -> None:
        """Abort what runs, close files, sockets and server; idempotent."""
        raise NotImplementedError

    ignored_triggers: int

    def __enter__(self) -> SimulatedEiger:
        """Start it."""
        self.start()
        return self

    def __exit__(self, *exc: Any) -> None:
        """Stop it."""
        self.stop()
