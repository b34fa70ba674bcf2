"""The spiller's process, and the ingest's end of the socket to it. Nothing here waits."""

from __future__ import annotations

import logging
import socket
import subprocess
import sys
from collections import deque
from contextlib import suppress
from typing import Final

import msgspec

from ..processes.death import describe_exit
from .pipe import MAX_RECORD, Answer, Order, decode_answer, encode
from .process import SpillingSettings

log = logging.getLogger(__name__)

PAUSE: Final = 0.5
"""Seconds until a spiller that died is started again."""

LAST_SECONDS: Final = 5.0
"""How long it may take to write what it has when the ingest ends."""


class SpillerProcess:
    """The child that writes frames to files, started again when it dies: what it was given lies in memory still."""

    def __init__(self, folder: str, ring: str, most: int, spare: int) -> None:
        self._told = (folder, ring, most, spare)
        self._out: deque[bytes] = deque()
        self._process: subprocess.Popen[bytes] | None = None
        self.channel: socket.socket | None = None
        self.died = 0
        self._start_at = float("-inf")

    def start(self, now: float) -> bool:
        """Start it if it is down and the time has come; return whether it was started."""
        if self._process is not None or now < self._start_at:
            return False
        folder, ring, most, spare = self._told
        mine, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with its:
            settings = SpillingSettings(fd=its.fileno(), ring=ring, folder=folder, most=most, spare=spare)
            self._process = subprocess.Popen(
                [sys.executable, "-m", f"{__package__}.process", msgspec.json.encode(settings).decode()],
                pass_fds=[its.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=sys.stderr,
            )
        mine.setblocking(False)
        self.channel = mine
        self._out.clear()
        return True

    @property
    def pid(self) -> int:
        """Its pid; −1 while it is down."""
        return -1 if self._process is None else self._process.pid

    @property
    def writing(self) -> bool:
        """Whether it takes no more orders just now."""
        return bool(self._out)

    def tell(self, order: Order) -> None:
        """Give it an order, now or when it takes more; those that wait are bounded by the memory of their frames."""
        self._out.append(encode(order))
        self.flush()

    def flush(self) -> None:
        """Give it the orders that it takes."""
        with suppress(BlockingIOError, BrokenPipeError, ConnectionResetError):  # its death shows when reading
            while self._out and self.channel is not None:
                self.channel.send(self._out[0])
                self._out.popleft()

    def read(self, now: float) -> list[Answer] | None:
        """Return what it says; None if it has died."""
        answers: list[Answer] = []
        try:
            while self.channel is not None and (data := self.channel.recv(MAX_RECORD)):
                answers.append(decode_answer(data))
        except BlockingIOError:
            return answers
        except ConnectionResetError:
            log.debug("the spiller's socket was reset")
        if answers:
            return answers  # its end is read next
        self._bury(now)
        return None

    def kill(self) -> None:
        """Kill it; that it died then shows when reading."""
        if self._process is not None:
            self._process.kill()

    def _bury(self, now: float) -> None:
        assert self._process is not None
        assert self.channel is not None
        self.channel.close()
        self._process.kill()
        code = self._process.wait()
        self.died += 1
        log.error("the spiller ended (%s): starting it again", describe_exit(code))
        self._process = self.channel = None
        self._start_at = now + PAUSE

    def close(self) -> None:
        """Let it write what it has, and end it."""
        if self._process is None or self.channel is None:
            return
        self.channel.shutdown(socket.SHUT_WR)
        try:
            self._process.wait(LAST_SECONDS)
        except subprocess.TimeoutExpired:
            log.error("the spiller hasn't written everything after %g s: killed", LAST_SECONDS)
            self._process.kill()
            self._process.wait()
        self.channel.close()
        self._process = self.channel = None
