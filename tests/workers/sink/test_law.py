"""The law: nobody is answered before the commit, and everything that was promised is answered in the end."""

from __future__ import annotations

import itertools
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from haltere.workers.ledger.reader import LedgerReader
from haltere.workers.wire.messages import LIVE, Ack, Done, Hello, Message, Welcome

from ..flying import BATCH, FRAMES, RUN, control, results
from .bench import DISPATCHER, WORKER, Bench

_numbers = itertools.count()


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_whatever_is_lost_doubled_reordered_or_killed_every_frame_is_on_disk_once(
    tmp_path: Path, data: st.DataObject
) -> None:
    path = tmp_path / f"{next(_numbers)}.db"
    bench = Bench(path)
    promised = control()
    acknowledged = 0
    pending = {(message.stream, message.first): (message, payload) for message, payload in results()}

    def hear(answers: list[tuple[bytes, Message]]) -> None:
        nonlocal acknowledged
        for peer, message in answers:
            if data.draw(st.sampled_from(["heard", "heard", "lost"])) == "lost":
                continue
            if isinstance(message, Ack):
                acknowledged = max(acknowledged, message.serial)
            elif isinstance(message, Welcome) and message.lease_ms == 0 and peer == DISPATCHER:
                hear(bench.tell(DISPATCHER, Hello(1, "dispatcher", "session", 7)))
            elif isinstance(message, Done) and peer == WORKER:
                on_disk = bench.accounting()[message.stream]["intervals"].values()
                for first, stop in message.ranges:
                    assert sum(min(b, stop) - max(a, first) for s in on_disk for a, b in s if a < stop and b > first)
                    for batch in range(first, stop, BATCH):
                        pending.pop((message.stream, batch), None)

    for _ in range(40):
        what = data.draw(st.sampled_from(["control", "results", "commit", "kill", "fail"]))
        if what == "control":
            for message in promised[acknowledged:]:
                hear(bench.tell(DISPATCHER, message))
        elif what == "results" and pending:
            for key in data.draw(st.lists(st.sampled_from(sorted(pending)), max_size=6)):
                if key in pending:
                    hear(bench.tell(WORKER, *pending[key]))
        elif what == "commit":
            hear(bench.commit())
        elif what == "kill":
            bench.ledger.close()
            bench = Bench(path)
        elif bench.core.take(bench.now + 1) is not None:
            bench.core.failed(OSError("disk full"), bench.now)
            bench.now += 10
    for _ in range(200):
        if not pending and acknowledged == len(promised):
            break
        for message in promised[acknowledged:]:
            hear(bench.tell(DISPATCHER, message))
        hear(bench.commit())
        for message, payload in list(pending.values()):
            hear(bench.tell(WORKER, message, payload))
        hear(bench.commit())
    assert not pending
    accounting = bench.accounting()
    assert {name: (each["live"], each["backfilled"]) for name, each in accounting.items()} == {
        "eiger": (FRAMES - BATCH, BATCH),
        "pilc": (FRAMES - BATCH, BATCH),
    }
    reader = LedgerReader(path)
    stored = [batch.first for batch in reader.batches(RUN, "eiger", "cfg-a")]
    assert stored == list(range(0, FRAMES, BATCH))
    assert all(status == LIVE for status in reader.batches(RUN, "eiger", "cfg-a", limit=1)[0].status)
    reader.close()
    bench.ledger.close()
    assert RUN in Bench(path).core.take_finished()
