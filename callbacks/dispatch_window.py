"""The dispatcher's conversation with the sink: numbered messages, sent again until they are acknowledged."""

from __future__ import annotations

from collections import deque
from typing import Final

import msgspec

from ..workers.ledger.rows import Control
from ..workers.wire.messages import Ack, Welcome, encode

WINDOW: Final = 64
"""Most messages on their way without an acknowledgement."""

PATIENCE: Final = 1.0
"""Seconds without an acknowledgement after which the sink is greeted anew, and then told everything again."""


class Window:
    """The messages on their way.

    Parameters
    ----------
    session
        Names this conversation.
    """

    def __init__(self, session: int) -> None:
        self.session = session
        self.acknowledged = 0
        """The last serial that the sink has on disk."""
        self._serial = 0
        self._unacknowledged: deque[tuple[int, bytes]] = deque()
        self._unsent = 0  # of the unacknowledged, how many at the end haven't been sent since the last greeting
        self._welcome = False
        self._greeted = False
        self._heard = 0.0

    @property
    def welcome(self) -> bool:
        """Whether the sink takes messages."""
        return self._welcome

    @property
    def empty(self) -> bool:
        """Whether everything is acknowledged."""
        return not self._unacknowledged

    @property
    def room(self) -> bool:
        """Whether one more message may go."""
        return len(self._unacknowledged) < WINDOW

    def add(self, message: Control) -> int:
        """Take a message to be sent; return its serial."""
        self._serial += 1
        numbered = msgspec.structs.replace(message, serial=self._serial)
        self._unacknowledged.append((self._serial, encode(numbered)))
        self._unsent += 1
        return self._serial

    def heard(self, message: Welcome | Ack, now: float) -> bool:
        """Take the sink's answer. Return whether it must be greeted (anew)."""
        if isinstance(message, Ack):
            if message.session == self.session:
                if message.serial > self.acknowledged:  # an answer that brings nothing new is no reason to be patient
                    self._heard = now
                self.acknowledged = max(self.acknowledged, message.serial)
                while self._unacknowledged and self._unacknowledged[0][0] <= message.serial:
                    self._unacknowledged.popleft()
                self._unsent = min(self._unsent, len(self._unacknowledged))
            return False
        if message.lease_ms == 0:
            # A sink that started anew says this to each message that it gets; one greeting is enough.
            self._welcome = False
            again, self._greeted = not self._greeted, True
            self._heard = now
            return again
        if not self._greeted:
            return False
        self._welcome, self._greeted = True, False
        self._heard = now
        self._unsent = len(self._unacknowledged)
        return False

    def impatient(self, now: float) -> bool:
        """Return whether the sink must be greeted anew, having been silent for too long about what it was told."""
        if self._welcome and not self._unacknowledged:
            return False
        if now - self._heard < PATIENCE:
            return False
        self._heard = now
        self._greeted = True
        return True

    def rest(self, now: float) -> None:
        """Note that nothing waits for an answer: silence is no reason to be impatient."""
        if not self._unacknowledged:
            self._heard = now

    def outgoing(self) -> list[bytes]:
        """Return what is to be sent now."""
        found = [data for _, data in self._unacknowledged][len(self._unacknowledged) - self._unsent :]
        self._unsent = 0
        return found
