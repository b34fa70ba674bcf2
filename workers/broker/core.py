"""The broker without its sockets: messages and a clock go in, messages come out.

It holds soft state only. What was promised and what is done it learns from the sink, as often as need be; what is in
the ring it learns from the ingest. So it may die at any time, and a message to it may be lost, doubled or late.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import msgspec

from ..processes.status_reply import status_reply
from ..wire.messages import (
    VERSION,
    AnyMessage,
    Beat,
    Bye,
    Claim,
    Connect,
    Credit,
    Done,
    Dropped,
    Expect,
    Frames,
    Gauge,
    Hello,
    Message,
    Nack,
    RunClose,
    RunOpen,
    Spilled,
    Status,
    StreamOpen,
    Welcome,
)
from . import accounts as broker_accounts
from .batch import Held, Key, State
from .drops import DropReports
from .peers import Lease, Peer, Peers
from .queue import Queue
from .rings import Rings
from .runs import Runs
from .stream import Stream
from .turns import SHARE
from .waiting import Waiting

SINK: Final = b"\0the sink"
"""The sink's address; no peer can have it: ZeroMQ's own identities have five bytes, and others no leading 0."""

MAX_CLAIMS: Final = 32
"""Series that ingests are told of; fewer than a :class:`Gauge` has room for."""

MAX_ENDPOINTS: Final = 64
"""Detectors that are pulled from; an ingest takes no more."""

MAX_PEERS: Final = 1024
"""Workers and ingests at a time; one that is silent is soon forgotten."""


class Send(NamedTuple):
    """What to send to whom."""

    peer: bytes
    message: Message


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds."""

    beat: float = 0.5
    """Between two signs of life to each worker."""
    liveness: float = 3.0
    lease: float = 90.0
    late: float = 0.5
    quiet: float = 5.0
    sync: float = 30.0
    """Between two requests to the sink to tell everything: what was lost is noticed, this is for the unforeseen."""
    silent: float = 2.5
    """Until a silent sink is asked: it speaks every 2 s of its own accord while a run is open."""
    unclaimed: float = 30.0
    """That frames of an unknown series may wait in the ring."""
    keep: float = 30.0
    """That a complete run is remembered."""


class BrokerCore:
    """Frames and files in, work out.

    Each method returns what to send. ``now`` is in seconds of a monotonic clock, and nothing here reads another.

    Parameters
    ----------
    epoch
        Grows each time the broker starts anew; tokens of work count on from it, so they are never used twice.
    backfill
        The part of the workers' time that a backfill has while live batches wait.
    """

    def __init__(self, epoch: int, times: Times = Times(), *, backfill: float = SHARE) -> None:
        self.epoch = epoch
        self.times = times
        self.peers = Peers(lease=times.lease, liveness=times.liveness)
        self.runs = Runs(late=times.late, quiet=times.quiet, keep=times.keep)
        self.counts: Counter[str] = Counter()
        """What was refused, lost or let go, by its reason."""
        self._token = epoch
        self._series: dict[tuple[str, int], Key] = {}
        self._endpoints: dict[str, str] = {}
        self._waiting = Waiting(times.unclaimed)
        self._rings = Rings()
        self._queue = Queue(backfill)
        self._heard_sink = float("-inf")
        self._asked_sink = float("-inf")
        self._beaten = float("-inf")
        self._drops = DropReports(epoch)
        self._of_sink: dict[type[Message], Callable[..., list[Send]]] = {
            RunOpen: self._run_open,
            StreamOpen: self._stream_open,
            Expect: self._expect,
            RunClose: self._run_close,
            Spilled: self._spilled,
            Done: self._done,
            Welcome: self._sink_welcome,
        }
        self._of_peers: dict[type[Message], Callable[..., list[Send]]] = {
            Hello: self._hello,
            Frames: self._frames,
            Dropped: self._dropped,
            Gauge: self._gauge,
            Spilled: self._spills,
            Credit: self._credit,
            Beat: self._beat,
            Nack: self._nack,
            Bye: self._bye,
            Connect: self._connect,
            Status: self._status,
        }

    # --- the outside ------------------------------------------------------------------------------------------------

    def receive(self, peer: bytes, message: AnyMessage, now: float) -> list[Send]:
        """Take a message; :meth:`pump` then says what work can go."""
        if peer == SINK:
            self._heard_sink = now
            of_sink = self._of_sink.get(type(message))
            if of_sink is not None:
                return of_sink(message, now)
        else:
            of_peer = self._of_peers.get(type(message))
            if of_peer is not None:
                return of_peer(peer, message, now)
        self.counts[f"refused {type(message).__name__}"] += 1
        return []

    def sink_connected(self) -> None:
        """Take word that the connection to the sink is there (again): it has to be told who is here."""
        self.runs.lacking = True

    def unreachable(self, peer: bytes, message: Message, now: float) -> None:
        """Take back a message that couldn't be delivered: the transport knows the peer no more."""
        self.counts["unreachable"] += 1
        self._lose(peer, now, "unreachable")
        self._rings.lost(peer)

    def tick(self, now: float) -> list[Send]:
        """Do what time brings; call it every 50 ms or so."""
        out: list[Send] = []
        for peer, why in self.peers.failing(now):
            self._lose(peer.peer, now, why)
            # If it lives it has to know that its session ended; Hello with a new one gives it credit again.
            out.append(Send(peer.peer, Welcome(VERSION, self.epoch, 0, 0)))
        for lease in self.peers.unheld(now):
            self.counts["NACK lost on the way"] += 1
            self.peers.end(lease, now)
            self._give_back([lease], -1)
        self._let_go(self._waiting.expired(now))
        for stream in self.runs.streams:
            for number in stream.scan(now, self._queue.room(stream.key)):
                self._enqueue(stream, number)
        for uid in self.runs.stale(now):
            self._forget(uid, now)
        if now - self._beaten >= self.times.beat:
            self._beaten = now
            out += [Send(peer.peer, self._welcome()) for peer in self.peers.of("worker")]
        # First the drops: with the last of the work that follows the account of its run is closed.
        out += [Send(SINK, report) for report in self._drops.due(self.runs.streams, now)]
        return out + self._sync(now) + self.pump(now)

    def pump(self, now: float) -> list[Send]:
        """Give work to whoever has credit, and blocks back to the rings."""
        out: list[Send] = []
        for lease, seconds in self.peers.take_ended():
            self._queue.ended(lease.backfill, lease.charged, seconds)
        while self._queue and (peer := self.peers.next()) is not None:
            out += self._give(peer, now)
        return [*out, *(Send(owner, free) for owner, free in self._rings.take(self._queue.live))]

    # --- from the sink ----------------------------------------------------------------------------------------------

    def _sink_welcome(self, message: Welcome, now: float) -> list[Send]:
        self._drops.repeat()
        for uid in self.runs.welcome(message):
            self.counts["runs that the sink closed unheard"] += 1
            self._forget(uid, now)
        return []

    def _run_open(self, message: RunOpen, now: float) -> list[Send]:
        before = self.runs.opening(message)
        if before is not None:
            self.counts["runs let go"] += 1
            self._forget(before, now)
        self.runs.open(message)
        return []

    def _stream_open(self, message: StreamOpen, now: float) -> list[Send]:
        stream = self.runs.open_stream(message, now)
        lane = message.live
        if message.total is not None:
            # Its series may be another run's by now: what comes of that is not of this one.
            key = Key(message.run, message.stream, message.cfg)
            self._series = {known: owner for known, owner in self._series.items() if owner != key}
            return []
        if stream is None or lane is None:
            return []
        self._series[lane.endpoint, lane.series] = stream.key
        self._endpoints[lane.endpoint] = lane.protocol
        for waited in self._waiting.claim(lane.endpoint, lane.series):
            if isinstance(waited, Frames):
                self._arrive(stream, waited, now)
            else:
                stream.let_go("", waited.ranges, waited.reason, now)
        told = Connect(lane.endpoint, lane.protocol), stream.claim
        return [Send(peer.peer, each) for peer in self.peers.of("ingest") for each in told if each is not None]

    def _expect(self, message: Expect, now: float) -> list[Send]:
        self.runs.expect(message, now)
        return []

    def _run_close(self, message: RunClose, now: float) -> list[Send]:
        for stream in self.runs.close(message, now):
            self._collect(stream)
        return []

    def _spilled(self, message: Spilled, now: float) -> list[Send]:
        self.runs.spilled(message, now)
        return [Send(peer.peer, message) for peer in self.peers.of("ingest")]

    def _done(self, message: Done, now: float) -> list[Send]:
        known = self.runs.done(message)
        if known is not None:
            stream, finished = known
            self._collect(stream)
            self.peers.finish(stream.key, finished, now)
        return []

    # --- from the ingest --------------------------------------------------------------------------------------------

    def _frames(self, peer: bytes, message: Frames, now: float) -> list[Send]:
        out = self._met(peer, now)
        self._rings.met(message.ring, peer)
        living = self._rings.living(message.ring, message.blocks)
        stream = self._streamed(message)
        if not living:
            return out
        message = msgspec.structs.replace(message, blocks=living)
        if stream is None:
            self._let_go(self._waiting.put(message, now))
        else:
            self._arrive(stream, message, now)
        return out

    def _arrive(self, stream: Stream, message: Frames, now: float) -> None:
        if (wrong := stream.misfit(message)) is not None:
            # The worker would decode it by what the document says. Its file is looked at instead, and tells.
            self._rings.free(Held(message.ring, block) for block in message.blocks)
            stream.let_go("", [(block.frame, block.frame + 1) for block in message.blocks], wrong, now)
            return
        for block in message.blocks:
            number = stream.arrive(message.ring, block, now)
            if number is not None:
                self._enqueue(stream, number)
        self._collect(stream)

    def _dropped(self, peer: bytes, message: Dropped, now: float) -> list[Send]:
        stream = self._streamed(message)
        if stream is None:
            self._waiting.put(message, now)
        else:
            known = self.peers.get(peer)
            stream.let_go("" if known is None else known.name, message.ranges, message.reason, now)
        return self._met(peer, now)

    def _spills(self, peer: bytes, message: Spilled, now: float) -> list[Send]:
        if self.runs.has_spilled(message):
            return [Send(peer, message), *self._met(peer, now)]
        return [Send(SINK, message), *self._met(peer, now)]

    def _gauge(self, peer: bytes, message: Gauge, now: float) -> list[Send]:
        known = self.peers.knows(peer, message.session, now)
        if known is None or known.role != "ingest":
            return [self._stranger(peer)]
        known.gauge = message
        heard = {(each.endpoint, each.series) for each in message.series}
        for each in message.series:
            key = self._series.get((each.endpoint, each.series))
            stream = None if key is None else self.runs.stream(key)
            if stream is not None:
                stream.lane.gauge(each.spills_known, now)
        return [Send(peer, claim) for claim in self._claims() if (claim.endpoint, claim.series) not in heard]

    def _claims(self) -> list[Claim]:
        """Return how ingests are to treat the newest streams' frames."""
        claims = (stream.claim for stream in self.runs.streams if not stream.complete)
        return [claim for claim in claims if claim is not None][-MAX_CLAIMS:]

    # --- from the workers -------------------------------------------------------------------------------------------

    def _hello(self, peer: bytes, message: Hello, now: float) -> list[Send]:
        if message.role not in ("ingest", "worker"):
            self.counts["refused a role"] += 1
            return []
        known = self.peers.get(peer)
        if known is None and len(self.peers) >= MAX_PEERS:
            self.counts["refused a peer: too many"] += 1
            return []
        busy = -1 if known is None else known.busy
        if message.role == "ingest" and (known is None or known.session != message.session):
            self._doubt(message.name, now)
        self._give_back(self.peers.hello(peer, message, now), busy)
        out = [Send(peer, self._welcome())]
        if message.role == "ingest":
            out += [Send(peer, Connect(endpoint, protocol)) for endpoint, protocol in self._endpoints.items()]
            out += [Send(peer, claim) for claim in self._claims()]
        return out

    def _credit(self, peer: bytes, message: Credit, now: float) -> list[Send]:
        known = self.peers.knows(peer, message.session, now)
        if known is None or known.role != "worker":
            return [self._stranger(peer)]
        self.peers.grant(known, message.limit, now)
        return []

    def _beat(self, peer: bytes, message: Beat, now: float) -> list[Send]:
        known = self.peers.knows(peer, message.session, now)
        if known is None:
            return [self._stranger(peer)]
        self.peers.beat(known, message, now)
        return []

    def _nack(self, peer: bytes, message: Nack, now: float) -> list[Send]:
        lease = self.peers.find(message.token, peer)
        if lease is None:
            self.counts["stale NACK"] += 1
            return []
        self.counts["NACK"] += 1
        if message.damaged:
            self.counts["frames that came damaged"] += len(message.damaged)
        self.peers.end(lease, now)
        stream = self.runs.stream(lease.key)
        if stream is not None:
            if message.setup:
                stream.give_back(lease.number)
                stream.cannot_set_up(peer, [each.peer for each in self.peers.of("worker")], message.reason, now)
            else:
                stream.refuse(lease.number, message, now)
            self._again(lease, stream, now)
        return []

    def _bye(self, peer: bytes, message: Bye, now: float) -> list[Send]:
        if self.peers.knows(peer, message.session, now) is not None:
            self._give_back(self.peers.lose(peer), -1)
        return []

    def _connect(self, peer: bytes, message: Connect, now: float) -> list[Send]:
        """Have a detector pulled from before any run names it, so that a scan's first frames come live."""
        if message.endpoint not in self._endpoints and len(self._endpoints) >= MAX_ENDPOINTS:
            self.counts["endpoints beyond the bound"] += 1
            return []
        self._endpoints[message.endpoint] = message.protocol
        return [Send(each.peer, message) for each in self.peers.of("ingest")]

    def _status(self, peer: bytes, message: Status, now: float) -> list[Send]:
        return [Send(peer, status_reply(message.serial, self.snapshot()))]

    # --- inside -----------------------------------------------------------------------------------------------------

    def _welcome(self) -> Welcome:
        return Welcome(VERSION, self.epoch, int(1000 * self.times.lease), int(1000 * self.times.beat))

    def _stranger(self, peer: bytes) -> Send:
        self.counts["unknown session"] += 1
        return Send(peer, Welcome(VERSION, self.epoch, 0, 0))

    def _met(self, peer: bytes, now: float) -> list[Send]:
        known = self.peers.get(peer)
        if known is None:
            return [self._stranger(peer)]
        known.heard = now
        return []

    def _streamed(self, message: Frames | Dropped) -> Stream | None:
        key = self._series.get((message.endpoint, message.series))
        return None if key is None else self.runs.stream(key)

    def _sync(self, now: float) -> list[Send]:
        """Ask the sink to tell everything: at the start, when something is lacking, when it is silent, now and then."""
        since = now - self._asked_sink
        silent = now - self._heard_sink >= self.times.silent
        asked = self.runs.lacking and since >= self.times.beat / 5
        if asked or since >= self.times.sync or (silent and since >= self.times.silent):
            self._asked_sink = now
            self.runs.lacking = False
            return [Send(SINK, Hello(VERSION, "broker", "broker", self.epoch))]
        return []

    def _let_go(self, blocks: Iterable[Held]) -> None:
        """Free what came of a series that nobody claimed: too many, or too long ago."""
        some = list(blocks)
        if some:
            self.counts["frames of unknown series let go"] += len(some)
            self._rings.free(some)

    def _collect(self, stream: Stream) -> None:
        self._rings.free(stream.freed)
        stream.freed.clear()

    def _enqueue(self, stream: Stream, number: int, *, first: bool = False) -> None:
        filed = not stream.queue(number)
        self._queue.put(stream.key, number, backfill=filed and stream.backfills, filed=filed, first=first)

    def _give(self, peer: Peer, now: float) -> list[Send]:
        key, number, backfill, charged = self._queue.take(self.peers.backfilling)
        stream = self.runs.stream(key)
        work = None if stream is None else stream.work(number, self._token + 1, now)
        if stream is None or work is None:
            self._queue.let_go(backfill, charged)
            return []  # done meanwhile
        self._token += 1
        self.peers.assign(Lease(self._token, peer.peer, key, number, backfill, charged), now)
        out = [] if key in peer.told else [Send(peer.peer, stream.opened)]
        peer.told.add(key)
        return [*out, Send(peer.peer, work)]

    def _doubt(self, ingest: str, now: float) -> None:
        """Note of every stream that an ingest may have spilled more of it than it has said."""
        for stream in self.runs.streams:
            if stream.opened.policy == "spill":
                stream.lane.doubt(ingest, now)

    def _lose(self, peer: bytes, now: float, why: str) -> None:
        known = self.peers.get(peer)
        if known is not None:
            if known.role == "ingest":
                self._doubt(known.name, now)
            self.counts[f"{known.role} lost: {why}"] += 1
            self._give_back(self.peers.lose(peer), known.busy)

    def _give_back(self, leases: list[Lease], busy: int) -> None:
        for lease in reversed(leases):  # so that the first sent is the first to go again
            stream = self.runs.stream(lease.key)
            if stream is not None:
                stream.give_back(lease.number, suspect=lease.token == busy)
                self._again(lease, stream, None)

    def _again(self, lease: Lease, stream: Stream, now: float | None) -> None:
        """Queue a batch that came back at the front, if it can go at once; else the next scan finds it."""
        self._collect(stream)
        batch = stream.batches.get(lease.number)
        if batch is not None and batch.state is State.OPEN and (now is None or stream.ready(lease.number, now)):
            self._enqueue(stream, lease.number, first=True)

    def _forget(self, uid: str, now: float) -> None:
        for stream in self.runs.forget(uid):
            self._collect(stream)
            self._queue.forget(stream.key)
            self._drops.forget(stream.key)
            self.peers.forget(stream.key, now)
        self._series = {lane: key for lane, key in self._series.items() if self.runs.stream(key) is not None}

    # --- accounts ---------------------------------------------------------------------------------------------------

    def snapshot(self) -> dict[str, Any]:
        """Return how things stand, as plain data."""
        return {
            "role": "broker",
            "epoch": self.epoch,
            "runs": broker_accounts.runs(self.runs, self.peers),
            "workers": broker_accounts.workers(self.peers),
            "ingests": [peer.name for peer in self.peers.of("ingest")][:16],
            "queued": self._queue.summary(),
            "ring_bytes": sum(stream.held_bytes for stream in self.runs.streams),
            "unclaimed": len(self._waiting),
            "orphans": self._rings.orphans,
            "counts": dict(self.counts),
        }
