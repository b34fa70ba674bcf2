"""How things stand at the broker, as plain data; only so much of each kind, because an answer is bounded."""

from __future__ import annotations

from itertools import islice
from typing import Any, Final

from .peers import Peers
from .runs import Runs
from .stream import Stream

MAX_RUNS: Final = 8
MAX_STREAMS: Final = 12
MAX_WORKERS: Final = 128


def runs(known: Runs, peers: Peers) -> dict[str, Any]:
    """Return the newest runs."""
    return {
        uid: {
            "closed": run.totals is not None,
            "complete": run.complete,
            "streams": {each.key.stream: each.summary() | _gauged(each, peers) for each in run.streams[:MAX_STREAMS]},
        }
        for uid, run in list(known)[-MAX_RUNS:]
    }


def workers(peers: Peers) -> dict[str, Any]:
    """Return the workers."""
    return {
        peer.name: {
            "busy": peer.busy >= 0,
            "leases": len(peer.leases),
            "credit": peer.limit - peer.sent,
            "frames": peer.frames,
            "reduce_us": peer.reduce_us,
        }
        for peer in islice(peers.of("worker"), MAX_WORKERS)
    }


def _gauged(stream: Stream, peers: Peers) -> dict[str, Any]:
    """Return what the ingests say of a stream's series: which part of it goes live now, and how long it had to wait."""
    live = stream.opened.live
    gauges = [peer.gauge for peer in peers.of("ingest") if peer.gauge is not None]
    found = [
        each
        for gauge in gauges
        for each in gauge.series
        if live is not None and (each.endpoint, each.series) == (live.endpoint, live.series)
    ]
    if not found:
        return {}
    return {"kept": round(min(each.kept for each in found), 3), "blocked_s": sum(e.blocked_ms for e in found) / 1000}
