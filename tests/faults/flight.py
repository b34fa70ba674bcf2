"""A scan flown by a session in a process of its own, so that a test can kill that process, or those beneath it.

:class:`Flight` starts this file as a program and reads what that prints, one JSON object per line::

    {"event": "ready", "pid": 4031, "processes": {"sink": 4040, …}, "endpoints": {"sink": "ipc://…", …}, …}
    {"event": "start", "uid": "…"}
    {"event": "frames", "n": 25}                the Eiger's frames that documents have promised so far
    {"event": "paused"}
    {"event": "stop", "exit_status": "success"}
    {"event": "reduced", "stop": {…}}           the processed run's stop document

It reads orders: ``pause``, ``resume``, ``abort``, ``stop``, ``halt``, one per line.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

if __name__ == "__main__":  # found as the tests find it, or where PYTHONPATH says
    from bluesky.utils import RunEngineInterrupted

    from haltere.plans.fly import FlyDetector, fly_grid
    from haltere.session import Session
    from haltere.workers.pool.local import Chaos
    from haltere.workers.settings import load

DEADLINE = 120.0
ORDERS = ("pause", "resume", "abort", "stop", "halt")


class Flight:
    """The process of a session that flies grids.

    Parameters
    ----------
    directory
        The session's.
    rows, columns, dwell
        Of the grid; dwell in s.
    scans
        How many are flown, one after the other.
    workers
        Of the session's own pool.
    drop
        Whether the ingest drops frames on purpose.
    """

    def __init__(
        self,
        directory: Path,
        *,
        rows: int = 8,
        columns: int = 25,
        dwell: float = 4e-3,
        scans: int = 1,
        workers: int = 1,
        drop: bool = False,
        recipes: Sequence[dict[str, Any]] | None = None,
    ) -> None:
        options = {
            "directory": str(directory),
            "rows": rows,
            "columns": columns,
            "dwell": dwell,
            "scans": scans,
            "workers": workers,
            "drop": drop,
            "recipes": recipes,
        }
        self.log = directory.parent / f"{directory.name}.flight.log"
        self.events: list[dict[str, Any]] = []
        """All that it has said."""
        self._said = threading.Condition()
        with self.log.open("a") as errors:
            self.process = subprocess.Popen(
                [sys.executable, __file__, json.dumps(options)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                start_new_session=True,
            )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def wait(self, event: str, timeout: float = DEADLINE, **words: Any) -> dict[str, Any]:
        """Wait for an event in which ``words`` stand; numbers: at least so much. Return the first."""

        def fits(said: dict[str, Any]) -> bool:
            return said["event"] == event and all(
                said[key] >= value if isinstance(value, int) else said[key] == value for key, value in words.items()
            )

        def found() -> dict[str, Any] | None:
            return next((each for each in self.events if fits(each)), None)

        with self._said:
            self._said.wait_for(lambda: found() or self._ended, timeout)
            said = found()
        if said is None:
            raise AssertionError(f"no {event} {words} in {timeout:.0f} s: {self.events[-5:]}; {self.last_words()}")
        return said

    def order(self, word: str) -> None:
        """Tell it to pause, resume, abort, stop or halt."""
        assert self.process.stdin is not None
        self.process.stdin.write(word + "\n")
        self.process.stdin.flush()

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send it a signal; after SIGKILL, wait until it is gone."""
        self.process.send_signal(number)
        if number == signal.SIGKILL:
            self.process.wait()

    def end(self, timeout: float = DEADLINE) -> int:
        """Wait until it has ended by itself; return its exit code."""
        return self.process.wait(timeout)

    def last_words(self) -> str:
        """Return the end of its log."""
        return self.log.read_text(errors="replace")[-2000:]

    def __enter__(self) -> Flight:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        self._reader.join()
        for stream in (self.process.stdin, self.process.stdout):
            assert stream is not None
            try:
                stream.close()
            except BrokenPipeError:
                continue  # an order that it didn't live to read

    @property
    def _ended(self) -> bool:
        return not self._reader.is_alive()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith('{"event"'):
                with self._said:
                    self.events.append(json.loads(line))
                    self._said.notify_all()
        with self._said:
            self._said.notify_all()


# --- the program -----------------------------------------------------------------------------------------------------


def say(event: str, **words: Any) -> None:
    print(json.dumps({"event": event, **words}), flush=True)


class Pilot:
    """Flies, and takes orders. Those to a running plan come from another thread; a paused one is the main thread's."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._orders: queue.Queue[str] = queue.Queue()
        self._keys: dict[str, str] = {}
        self._uid: str | None = None
        session.RE.subscribe(self._tell)
        threading.Thread(target=self._listen, daemon=True).start()

    def fly(self, rows: int, columns: int, dwell: float) -> str | None:
        """Fly one grid; return its run's uid, if one was opened."""
        session, engine = self._session, self._session.RE
        detectors: list[FlyDetector] = [session.eiger, session.xspress3, session.pilc]
        y, x = session.stage.y, session.stage.x
        self._uid = None
        fly = partial(engine, fly_grid(detectors, y, -20, 20, rows, x, -30, 30, columns, dwell=dwell))
        while True:
            try:
                fly()
                return self._uid
            except RunEngineInterrupted:
                if engine.state != "paused":
                    return self._uid
                say("paused")
                fly = getattr(engine, self._orders.get())

    def _tell(self, name: str, doc: dict[str, Any]) -> None:
        if str(name) == "start":
            self._uid = doc["uid"]
            say("start", uid=doc["uid"])
        elif str(name) == "stream_datum" and "eiger" in self._keys.get(doc["stream_resource"], ""):
            say("frames", n=doc["seq_nums"]["stop"] - 1)
        elif str(name) == "stream_resource":
            self._keys[doc["uid"]] = doc["data_key"]
        elif str(name) == "stop":
            say("stop", exit_status=doc["exit_status"])

    def _listen(self) -> None:
        engine = self._session.RE
        for line in sys.stdin:
            word = line.strip()
            if word not in ORDERS:
                say("refused", order=word)
            elif engine.state == "paused":
                self._orders.put(word)
            elif word == "pause":
                engine.request_pause(defer=False)
            else:
                getattr(engine, word)()
        os.kill(os.getpid(), signal.SIGKILL)  # whoever started it is gone


def main(options: dict[str, Any]) -> None:
    settings = load(directory=Path(options["directory"]), workers=options["workers"])
    with Session.start(settings, chaos=Chaos() if options["drop"] else None, log=True) as session:
        processes = {name: each["pid"] for name, each in session.pool.status()["processes"].items()}
        say(
            "ready",
            pid=os.getpid(),
            processes={**processes, "catalog": session.catalog.pid},
            endpoints=msgspec.structs.asdict(session.pool.endpoints),
            ledger=str(session.pool.ledger),
        )
        pilot = Pilot(session)
        for _ in range(options["scans"]):
            uid = pilot.fly(options["rows"], options["columns"], options["dwell"])
            if uid is not None:
                say("reduced", stop=session.wait(uid, timeout=DEADLINE))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
