"""What people and programs ask of a pool, from what its processes say of themselves."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, Final

Said = Mapping[str, Any]

STATES: Final = {"open": "measuring", "closed": "reducing", "finished": "writing", "completed": "complete"}
"""Where a run stands, by the sink's own word for it."""

NOTHING: Final[Said] = {}


def report(said: Said) -> dict[str, Any]:
    """Return how a pool does, from :meth:`~.view.PoolView.status`.

    The keys are described in ``docs/pool.md``. Numbers that a process alone knows are left at 0 while it is down;
    ``troubles`` says that it is.
    """
    processes = said.get("processes") or NOTHING
    broker, sink = said.get("broker") or NOTHING, said.get("sink") or NOTHING
    runs = [_run(each, broker) for each in sink.get("runs", ())]
    streams = [stream for run in runs for stream in run["streams"].values()]
    spoken = [process.get("said") or NOTHING for process in processes.values()]
    return {
        "pool": dict(said.get("pool") or NOTHING),
        "troubles": list(troubles(said)),
        "processes": [_process(each) for each in processes.values()],
        "runs": runs,
        "rates": {key: round(sum(stream[key] for stream in streams), 2) for key in ("live_per_s", "backfilled_per_s")},
        "lag": {
            "oldest_s": max((stream["lag_s"] for stream in streams), default=0.0),
            "recorder_frames": _sum(spoken, "behind"),
        },
        "queues": {
            "ring_bytes": _sum(spoken, "ring_bytes"),
            "ring_used": _sum(spoken, "ring_used"),
            "unclaimed_frames": broker.get("unclaimed", 0),
            "live_batches": (broker.get("queued") or NOTHING).get("live", 0),
            "file_batches": (broker.get("queued") or NOTHING).get("files", 0),
            "leases": sum(worker["leases"] for worker in (broker.get("workers") or NOTHING).values()),
            "kept_results": _sum(spoken, "kept"),
            "sink_rows": sink.get("buffered_rows", 0),
            "sink_bytes": sink.get("buffered_bytes", 0),
            "catalog_documents": _sum(spoken, "documents"),
        },
        "drops": _drops(streams, spoken),
        "duplicates": sink.get("duplicates", 0),
    }


def troubles(said: Said) -> Iterable[str]:
    """Yield one line for each thing that is wrong now."""
    processes = said.get("processes") or NOTHING
    if not processes:
        yield "the pool's owner doesn't answer: nothing is known of its processes"
    for name, each in processes.items():
        if each["gave_up"]:
            yield f"{name} is given up, and tried again each minute: {each['last_words']}"
        elif each["state"] in ("down", "starting") and each["restarts"]:
            yield f"{name} is being started again: {each['last_words']}"
        elif each["state"] == "silent":
            yield f"{name} (pid {each['pid']}) doesn't answer"
        yield from (each.get("said") or NOTHING).get("misfits") or ()
    for name in ("broker", "sink"):
        # What else ails it has been said above.
        if said.get(name) is None and (processes.get(name) or NOTHING).get("state", "running") == "running":
            yield f"the {name} doesn't answer"
    sink = said.get("sink") or NOTHING
    if sink.get("stalled"):
        yield f"the ledger can't be written: {sink.get('last_error', '')}; results wait with the workers"
    for run in sink.get("runs", ()):
        if run.get("nexus_error") and run["completed"] is None:
            yield f"run {run['run']}: its NeXus file can't be written: {run['nexus_error']}"


def _process(each: Said) -> dict[str, Any]:
    return {
        "name": each["name"],
        "pid": each["pid"],
        "state": each["state"],
        "uptime_s": each["uptime"],
        "restarts": each["restarts"],
        "hung": each["hung"],
        "cpu_percent": each["cpu"],
        "rss_bytes": each["rss"],
        "last_exit": each["last_exit"],
        "last_words": each["last_words"],
    }


def _run(run: Said, broker: Said) -> dict[str, Any]:
    known = ((broker.get("runs") or NOTHING).get(run["run"]) or NOTHING).get("streams") or NOTHING
    return {
        "run": run["run"],
        "processed": run["processed"],
        "scan_id": run["scan_id"],
        "state": STATES[run["phase"]],
        "since": run["since"],
        "abandoned": run["abandoned"],
        "duplicates": run["duplicates"],
        "nexus": run["nexus"],
        "nexus_error": run["nexus_error"],
        "streams": {name: _stream(each, known.get(name) or NOTHING) for name, each in run["streams"].items()},
    }


def _stream(counts: Said, known: Said) -> dict[str, Any]:
    """Return a stream's account; what the broker doesn't know (any more) follows from what is done."""
    done = sum(counts[each] for each in ("live", "backfilled", "quarantined", "lost"))
    return {
        "expected": counts["expected"],
        "live": counts["live"],
        "backfilled": counts["backfilled"],
        "owed": known.get("owed", max(counts["expected"] - done, 0)),
        "quarantined": counts["quarantined"],
        "lost": counts["lost"],
        "duplicates": known.get("duplicates", 0),
        "dropped": dict(known.get("dropped") or NOTHING),
        "live_per_s": counts["live_per_s"],
        "backfilled_per_s": counts["backfilled_per_s"],
        "lag_s": counts["lag_s"],
    }


def _drops(streams: Iterable[Said], spoken: Iterable[Said]) -> dict[str, int]:
    """Return the drops by cause: what the ingest counts, and what of a former ingest's the broker still knows."""
    by_broker: Counter[str] = Counter()
    for stream in streams:
        by_broker.update(stream["dropped"])
    by_ingest: Counter[str] = Counter()
    for words in spoken:
        by_ingest.update(words.get("dropped") or NOTHING)
    return {cause: max(by_broker[cause], by_ingest[cause]) for cause in sorted({*by_broker, *by_ingest})}


def _sum(spoken: Iterable[Said], key: str) -> int:
    return sum(int(words.get(key, 0)) for words in spoken)
