"""PiLC trigger generator: armed for each line of a scan, its captured positions drained into a file of ours."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from bluesky.utils import NoReplayAllowed
from numpy.typing import NDArray
from ophyd.status import DeviceStatus, WaitTimeoutError

from ..workers.errors import DetectorError, SettingsError
from . import growing
from .assets import FlyInfo, LineInfo, Look, StreamAssets
from .progress import Progress, background, finished
from .tango import Connection, Tango, TangoDevice
from .writes_files import WritesFiles

POLL = 0.05
"""s between two looks at a running line."""

ROWS_PER_CHUNK = 1024
POSITION_MODE = 1
MIN_INTERVAL = 1e-4
"""s: the card gives 10 kHz at most."""


class PositionFile:
    """Where the rows of one scan go: one float64 column per key, readable (SWMR) while it grows."""

    def __init__(self, path: Path, columns: Mapping[str, str]) -> None:
        """Columns: name → unit.

        Raises
        ------
        SettingsError
            The folder isn't there or can't be written.
        """
        self.path = path
        self.rows = 0
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = growing.create(path)
        except OSError as error:
            raise SettingsError(f"{path}: can't be written: {error} (is data_dir a folder of yours?)") from None
        data = self._file.create_group("entry").create_group("data")
        self._file["entry"].attrs["NX_class"] = "NXentry"
        data.attrs["NX_class"] = "NXdata"
        self._columns = {}
        for name, unit in columns.items():
            column = data.create_dataset(name, (0,), "f8", maxshape=(None,), chunks=(ROWS_PER_CHUNK,))
            column.attrs["units"] = unit
            self._columns[name] = column
        growing.reveal(self._file, path)

    def append(self, rows: Mapping[str, NDArray[np.float64]]) -> None:
        """Add rows, all columns equally many, and let readers see them."""
        stop = self.rows + len(next(iter(rows.values())))
        for name, column in self._columns.items():
            column.resize((stop,))
            column[self.rows : stop] = rows[name]
            column.flush()
        self.rows = stop

    def close(self) -> None:
        """Close it; harmless if it is."""
        if self._file:
            self._file.close()


class _OwnAssets(StreamAssets):
    """Stream assets of a file that this process writes itself: no need to open it again to see how far it is."""

    def __init__(self, datasets: Mapping[str, str], file: PositionFile) -> None:
        super().__init__(datasets, lambda number: file.path)
        self._own = file

    def look(self, path: Path) -> Look | None:
        return Look(self._own.rows, dict.fromkeys(self.datasets, (ROWS_PER_CHUNK,))) if self._own.rows else None


class PiLC(WritesFiles, TangoDevice):
    """The trigger source of a fly scan, and the recorder of positions.

    In a scan each line is prepared (:class:`LineInfo`) and kicked off; ``line`` is the status of the latest one.
    ``complete`` returns the status of the whole scan, which counts the points of complete lines.

    Parameters
    ----------
    prefix
        Address of the PiLCTriggerGenerator.
    axes
        Axis → encoder number: ``{"x": 1, "y": 2}`` gives the data keys ``<name>_x`` and ``<name>_y``, µm. An axis is
        found by the end of a motor's name: ``stage_x``.
    data_dir
        Where the file of positions is written, from here.
    card_dir
        Where the card's own server writes its files, as that server sees it; by default ``data_dir``.
    scan_slave
        Address of a PiLCScanSlave that shall count along.
    """

    # trigger generator
    mode = Tango("TriggerMode", kind="config")  # 1 position, 2 time, 3 position→time, 4 time→position
    triggers = Tango("NbTriggers", kind="config")
    start = Tango("PositionTriggerStart", kind="config")  # µm
    step = Tango("PositionTriggerStepSize", kind="config")  # µm
    stop_position = Tango("PositionTriggerStop", kind="config")  # µm
    pulse = Tango("TriggerPulseLength", kind="config")  # s
    encoder = Tango("EncoderTriggering", kind="config")  # 1 … 5
    arm = Tango("Arm", kind="omitted")
    state = Tango("State", kind="omitted")
    counter = Tango("TriggerCounter", kind="omitted")

    # the card's own files
    file_dir = Tango("FileDir", kind="omitted")
    file_prefix = Tango("FilePrefix", kind="omitted")

    deadtime = 0.0
    minimum_dwell = MIN_INTERVAL

    def __init__(
        self,
        prefix: str,
        *,
        name: str,
        axes: Mapping[str, int],
        data_dir: str | Path,
        card_dir: str | None = None,
        scan_slave: str | None = None,
        **kwargs: Any,
    ) -> None:
        for axis, number in axes.items():
            if not 1 <= number <= 5:
                raise SettingsError(f"{name}: axis {axis} on encoder {number}; a PiLC has encoders 1 to 5")
        super().__init__(prefix, name=name, **kwargs)
        self.axes = dict(axes)
        self.data_dir = Path(data_dir)
        self._card_dir = str(data_dir) if card_dir is None else card_dir
        self._slave = Connection(scan_slave) if scan_slave else None
        self._lock = threading.RLock()
        self._forget()

    def _forget(self) -> None:
        self.assets: StreamAssets | None = None
        self.line: DeviceStatus | None = None
        self.interrupted = False
        self._file: PositionFile | None = None
        self._scan: Progress | None = None
        self._info: LineInfo | None = None
        self._lines_done = 0
        self._line_rows = 0

    # --- before the scan ---------------------------------------------------------------------------------------------

    def wait_for_connection(self, all_signals: bool = False, timeout: Any = None) -> None:
        """Raise a DetectorError if a card doesn't answer."""
        super().wait_for_connection()
        if self._slave is not None:
            self._slave.ping(f"{self.name}_scan_slave")

    def encoder_of(self, motor: Any) -> int:
        """Return the number of the encoder that reads ``motor``.

        Raises
        ------
        SettingsError
            None does.
        """
        return self.axes[self.axis_of(motor)]

    def axis_of(self, motor: Any) -> str:
        """Return the name of the axis that ``motor`` moves: ``"x"`` for ``stage_x``."""
        for axis in self.axes:
            if motor.name == axis or motor.name.endswith(f"_{axis}"):
                return axis
        known = ", ".join(self.axes)
        raise SettingsError(f"{self.name}: no encoder reads {motor.name} (its axes are {known}; name one after it)")

    def stage(self) -> list[object]:
        """Make sure that the cards answer and nothing is armed."""
        self.wait_for_connection()
        self._forget()
        self._disarm()
        staged: list[object] = super().stage()
        return staged

    def prepare(self, value: LineInfo) -> DeviceStatus:
        """Set the triggers of the next line; the first line of a scan opens its file."""
        if not isinstance(value, LineInfo):
            raise SettingsError(f"{self.name}: prepare takes a LineInfo, not {type(value).__name__}")
        return background(self, lambda: self._prepare(value), "prepare")

    def _prepare(self, info: LineInfo) -> None:
        with self._lock:
            if self._file is None:
                self._open(info)
            self._info = info
            self._disarm()
            self.mode.put(POSITION_MODE)
            self.encoder.put(info.encoder)
            self.start.put(info.start)
            self.step.put(info.step)
            self.stop_position.put(info.start + info.n * info.step)
            self.triggers.put(info.n)
            self.pulse.put(info.livetime)
            if self._slave is not None:
                self._prepare_slave(self._slave, info)

    def _prepare_slave(self, slave: Connection, info: FlyInfo) -> None:
        who = f"{self.name}_scan_slave"
        slave.write(who, "ManualMode", 0)
        connected, _ = slave.read(who, "PiLCTGConnected")
        if not connected:
            raise DetectorError(f"{who}: {slave.trl}: no trigger generator connected (is the cable in?)")
        slave.write(who, "NbTriggers", info.n)
        slave.write(who, "GateExpTime", info.livetime)
        slave.write(who, "FileDir", self._card_dir)
        slave.write(who, "FilePrefix", f"{info.prefix}_{self.name}_slave")

    def _open(self, info: LineInfo) -> None:
        columns = dict.fromkeys(self.axes, "um") | {"time": "s"}
        self._file = PositionFile(self.data_dir / f"{info.prefix}_{self.name}.h5", columns)
        self.assets = _OwnAssets({f"{self.name}_{column}": f"/entry/data/{column}" for column in columns}, self._file)
        self.file_dir.put(self._card_dir)
        self.file_prefix.put(f"{info.prefix}_{self.name}_card")
        self._scan = Progress(self, info.n * info.lines)

    # --- during the scan ---------------------------------------------------------------------------------------------

    def kickoff(self) -> DeviceStatus:
        """Arm for the line that was prepared; done when the card waits for its first position."""
        return background(self, self._kickoff, "kickoff")

    def _kickoff(self) -> None:
        with self._lock:
            if self._info is None or self._file is None:
                raise DetectorError(f"{self.name}: kickoff before prepare (there is no line to fly)")
            self._line_rows = 0
            self.interrupted = False
            self.line = DeviceStatus(self)
            self.arm.put(1)
            threading.Thread(
                target=self._follow, args=(self._info, self.line), name=f"{self.name} line", daemon=True
            ).start()

    @property
    def fired(self) -> int:
        """Triggers recorded in the latest line."""
        return self._line_rows

    def complete(self) -> DeviceStatus:
        """Return the status of the whole scan, the same each time; done when all lines are."""
        return self._scan if self._scan is not None else finished(self)

    def _follow(self, info: LineInfo, line: DeviceStatus) -> None:
        """Drain a line's rows until the card has given its last trigger, or was disarmed."""
        tick = threading.Event()
        scan = self._scan
        assert scan is not None
        try:
            while True:
                state = self.state.get()
                self._drain()  # after the look: what came before the end is in the last drain
                scan.advance(self._lines_done * info.n + self._line_rows)
                if state != "MOVING":
                    break
                tick.wait(POLL)
            if state != "ON":
                raise self.fault(state)
        except Exception as error:
            reason = error if isinstance(error, DetectorError) else DetectorError(f"{self.name}: {error}")
            line.set_exception(reason)
            if not scan.done:
                scan.set_exception(reason)
            return
        if self._line_rows >= info.n:
            self._lines_done += 1
        line.set_finished()
        if self._lines_done >= info.lines and not scan.done:
            self._close()
            scan.set_finished()

    def _drain(self) -> None:
        """Move the triggers captured since the last time into the file."""
        there = int(self.counter.get())
        if there <= self._line_rows:
            return
        captured = {axis: self._captured(f"Position{number}Data") for axis, number in self.axes.items()}
        captured["time"] = self._captured("TimeData")
        there = min(there, *(len(column) for column in captured.values()))
        if there > self._line_rows and self._file is not None:
            self._file.append({name: column[self._line_rows : there] for name, column in captured.items()})
            self._line_rows = there

    def _captured(self, attribute: str) -> NDArray[np.float64]:
        value, _ = self.connection.read(self.name, attribute)
        return np.asarray(value, dtype=np.float64)

    # --- documents ---------------------------------------------------------------------------------------------------

    def describe_collect(self) -> dict[str, dict[str, Any]]:
        """Return the data keys ``<name>_<axis>``, µm, and ``<name>_time``, s since its line's first trigger."""
        keys = {}
        for column, unit in (*((axis, "um") for axis in self.axes), ("time", "s")):
            attribute = "TimeData" if column == "time" else f"Position{self.axes[column]}Data"
            keys[f"{self.name}_{column}"] = {
                "source": f"TANGO:{self.prefix}/{attribute}",
                "dtype": "number",
                "dtype_numpy": "<f8",
                "shape": [],
                "external": "STREAM:",
                "units": unit,
            }
        return keys

    def frames(self) -> int:
        """Return how many triggers were recorded in all, those of interrupted lines too."""
        return 0 if self._file is None else self._file.rows

    # --- interruptions, and after the scan ---------------------------------------------------------------------------

    def pause(self) -> None:
        """Disarm; no trigger reaches a detector until the plan arms again.

        Raises
        ------
        NoReplayAllowed
            A scan is on. Its plan flies the interrupted line again; the RunEngine must not repeat messages by itself,
            for that would count the same sequence numbers twice.
        """
        if self._scan is None or self._scan.done:
            return
        self.interrupted = True
        try:
            self._disarm()
        except DetectorError as error:
            if not self._scan.done:
                self._scan.set_exception(error)
        raise NoReplayAllowed

    def stop(self, *, success: bool = False) -> None:
        """Disarm, keep what was recorded, close the file, end the statuses. Harmless when idle."""
        self.interrupted = True
        try:
            self._disarm()
        finally:
            line, scan = self.line, self._scan
            if line is not None:
                with suppress(WaitTimeoutError, DetectorError):
                    line.wait(timeout=5.0)
            self._close()
            if scan is not None and not scan.done:
                scan.set_finished()

    def unstage(self) -> list[object]:
        """Disarm and close the file, should a plan have left them."""
        self.stop(success=True)
        unstaged: list[object] = super().unstage()
        return unstaged

    def _disarm(self) -> None:
        if self.arm.get():
            self.arm.put(0)

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
