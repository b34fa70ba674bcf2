"""Recount a run from its documents, files and ledger, each by itself, and say whether they agree."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .callbacks.access import streams_of
from .callbacks.dispatch_core import DispatchCore
from .callbacks.reduction import Reduction
from .callbacks.replayed import RawRun, read_run
from .workers import recipes as recipe_rules
from .workers.audit.accounts import Account, Finding, Word, judged, ranges
from .workers.audit.files import audit_bits, audit_files
from .workers.audit.nexus import audit_nexus
from .workers.errors import FileError, PoolError, SettingsError
from .workers.files.frames import FrameReader
from .workers.ledger.rows import RunRow
from .workers.nexus.layout import joined
from .workers.wire.messages import FileSpan, StreamOpen
from .workers.worker.apart import Apart
from .workshop import Workshop


@dataclass(slots=True)
class Verdict:
    """What was found. ``frames`` is the account that the findings are compared with, per detector."""

    raw_uid: str
    processed_uid: str
    base: str
    frames: dict[str, dict[str, int]]
    findings: list[Finding] = field(default_factory=list)
    drops: dict[str, dict[str, int]] = field(default_factory=dict)
    """Frames of each detector that were seen to be dropped on their way, by cause: what there is to explain those that
    weren't live. It needn't add up."""

    @property
    def agrees(self) -> bool:
        """Whether no source says anything else."""
        return not any(finding.word is Word.disagrees for finding in self.findings)

    @property
    def words(self) -> str:
        """The verdict in one line."""
        wrong = [finding for finding in self.findings if finding.word is Word.disagrees]
        unchecked = sum(finding.word is Word.unchecked for finding in self.findings)
        rest = f", {unchecked} couldn't be checked" if unchecked else ""
        if not wrong:
            return f"all of {len(self.findings) - unchecked} checks agree{rest}"
        named = dict.fromkeys(f"{each.source} of {each.stream}".removesuffix(" of ") for each in wrong)
        return f"{len(wrong)} of {len(self.findings)} checks disagree: {', '.join(named)}{rest}"

    def json(self) -> dict[str, Any]:
        """Return it as one JSON object."""
        return {**asdict(self), "agrees": self.agrees, "verdict": self.words}


def verify(shop: Workshop, uid: str, *, bits: int = 0, seed: int = 0) -> Verdict:
    """Recount a run.

    Parameters
    ----------
    uid
        A raw run's, or a processed one's, or the beginning of one, or a scan's number. Of a raw run the latest
        processed run is looked at.
    bits
        How many frames of each detector are reduced once more and compared to the bit.
    seed
        Of their choice.

    Raises
    ------
    SettingsError
        There is no such run, or it hasn't been reduced.
    PoolError
        The processed run isn't complete.
    """
    return _Verifying(shop, uid).run(bits, seed)


class _Verifying:
    """One call of :func:`verify`."""

    def __init__(self, shop: Workshop, uid: str) -> None:
        self._shop = shop
        self._raw = shop.find(uid)
        self._run = shop.find_processed(uid, self._raw)
        self._uid = str(self._run.start["uid"])
        self._stop = self._run.metadata.get("stop")
        self._row = self._ledger_row()
        if self._stop is None:
            raise PoolError(
                f"processed run {self._uid} isn't complete in the catalog: `haltere backfill {self._raw.start['uid']}`"
            )

    def run(self, bits: int, seed: int) -> Verdict:
        """Do it."""
        told = {name: Account.told(each) for name, each in self._stop.get("frames", {}).items()}
        ledger = self._accounting()
        base = told if ledger is None else ledger
        verdict = Verdict(
            str(self._raw.start["uid"]),
            self._uid,
            "stop document" if ledger is None else "ledger",
            {name: account.counts() for name, account in sorted(base.items())},
            drops={name: account.drops for name, account in sorted(base.items()) if account.drops},
        )
        verdict.findings += self._findings(base, told, bits, seed)
        return verdict

    def _findings(self, base: dict[str, Account], told: dict[str, Account], bits: int, seed: int) -> Iterator[Finding]:
        known = self._spans_of_the_ledger()
        with closing(FrameReader(self._shop.roots)) as reader:
            raw, why = self._read_raw(known, reader)
            yield from self._raw_documents(base)
            yield from self._ledger(base)
            yield from self._stop_document(base, told)
            streams = self._streams(raw)
            yield from self._events(base, streams)
            yield from self._nexus(base, streams)
            if raw is None:
                yield Finding("", "files", Word.unchecked, why)
                return
            try:
                self._shop.check(raw.files)
            except SettingsError as error:
                yield Finding("", "files", Word.unchecked, str(error))
                return
            for stream in streams:
                yield from audit_files(stream, base[stream.stream], raw.spans, reader)
        if bits > 0:
            yield from self._bits(streams, raw, bits, seed)

    # --- what there is -----------------------------------------------------------------------------------------------

    def _ledger_row(self) -> RunRow | None:
        reader = self._shop.reader()
        if reader is None:
            return None
        with closing(reader):
            row = reader.run(self._uid)
        return row if row is not None and row.processed == self._uid else None

    def _accounting(self) -> dict[str, Account] | None:
        reader = self._shop.reader()
        if reader is None or self._row is None:
            return None
        with closing(reader):
            return {name: Account.told(each) for name, each in reader.accounting(self._row.run).items()}

    def _spans_of_the_ledger(self) -> list[FileSpan]:
        reader = self._shop.reader()
        if reader is None or self._row is None:
            return []
        with closing(reader):
            return joined(reader.spans(self._row.run))

    def _promised(self) -> dict[str, int]:
        reader = self._shop.reader()
        if reader is None or self._row is None:
            return {}
        with closing(reader):
            return reader.promised(self._row.run)

    def _read_raw(self, known: list[FileSpan], reader: FrameReader) -> tuple[RawRun | None, str]:
        try:
            known = [*known, *self._shop.spilled(str(self._raw.start["uid"]))]
            return read_run(self._raw, known=known, promised=self._promised(), length=reader.length), ""
        except FileError as error:
            return None, str(error)

    def _streams(self, raw: RawRun | None) -> list[StreamOpen]:
        """Return what the pool was told of the detectors: from the ledger, else from the documents."""
        reader = self._shop.reader()
        if reader is not None and self._row is not None:
            with closing(reader):
                return reader.streams(self._row.run)
        if raw is None:
            return []
        recipes = recipe_rules.parse(self._run.start["provenance"]["recipes"])
        core = DispatchCore(0, reduction=Reduction(raw.uid, raw.uid, self._uid, recipes, raw.promised()))
        for name, doc in raw.head():
            core.document(name, doc)
        return core.streams(raw.uid)

    # --- documents and ledger ----------------------------------------------------------------------------------------

    def _raw_documents(self, base: dict[str, Account]) -> Iterator[Finding]:
        """Compare the frames that the raw run's documents promise with those accounted for."""
        promised: dict[str, int] = {}
        elsewhere: set[str] = set()
        for client in streams_of(self._raw).values():
            there = set(client.base)
            for key, described in client.metadata["data_keys"].items():
                device = str(described.get("object_name", key))
                if str(described.get("external", "")).startswith("STREAM:") and device in base:
                    if key not in there:
                        elsewhere.add(device)
                        continue
                    n = int(client.base[key].shape[0])
                    promised[device] = min(n, promised.get(device, n))
        ended = bool(self._raw.metadata.get("stop"))
        for stream, account in base.items():
            if stream in elsewhere and account.expected:
                yield Finding(stream, "raw documents", Word.unchecked, "the catalog has nothing of its frames")
                continue
            n = promised.get(stream, 0)
            if not ended and n <= account.expected:
                text = f"{n} frames: the session died before the catalog had the rest"
                yield Finding(stream, "raw documents", Word.agrees if n == account.expected else Word.unchecked, text)
                continue
            wrong = [f"{n} frames, not {account.expected}"] if n != account.expected else []
            yield judged(stream, "raw documents", wrong)

    def _ledger(self, base: dict[str, Account]) -> Iterator[Finding]:
        if self._row is None:
            yield Finding("", "ledger", Word.unchecked, "it has nothing of the run any more")
            return
        for stream, account in base.items():
            wrong = account.faults()
            if silent := account.silent():
                wrong.append(f"no reason for {ranges(silent)}")
            if self._row.completed is None:
                wrong.append("the run isn't completed")
            yield judged(stream, "ledger", wrong)

    def _stop_document(self, base: dict[str, Account], told: dict[str, Account]) -> Iterator[Finding]:
        said = self._stop["frames"]
        for stream, account in base.items():
            if stream not in told:
                yield Finding(stream, "stop document", Word.disagrees, "it says nothing of it")
                continue
            if "intervals_left_out" in said[stream]:
                counts = [(name, said[stream][name], n) for name, n in account.counts().items()]
                wrong = [f"{name} {theirs}, not {mine}" for name, theirs, mine in counts if theirs != mine]
                wrong += account.other_drops(told[stream])
                yield judged(stream, "stop document", wrong)
                continue
            wrong = account.differences(told[stream]) + told[stream].faults() + account.other_drops(told[stream])
            wrong += [
                f"{name} {said[stream][name]}, its intervals give {n}"
                for name, n in told[stream].counts().items()
                if said[stream][name] != n
            ]
            if "reasons_left_out" not in said[stream] and told[stream].reasons != account.reasons:
                wrong.append("other reasons")
            yield judged(stream, "stop document", wrong)

    def _events(self, base: dict[str, Account], streams: list[StreamOpen]) -> Iterator[Finding]:
        """Look at the processed run's events: every frame once, in order, with its status; and its arrays' lengths."""
        clients = streams_of(self._run)
        for stream in streams:
            account = base[stream.stream]
            for spec in stream.recipes:
                source = f"events {spec.name}"
                client = clients.get(spec.name)
                if client is None:
                    wrong = ["there are none"] if account.expected else []
                    yield judged(stream.stream, source, wrong)
                    continue
                table = client.base["internal"].read()
                wrong = []
                for column, first in (("seq_num", 1), ("frame", 0)):
                    numbers = np.asarray(table[column])
                    if not np.array_equal(numbers, np.arange(first, first + len(numbers))):
                        at = int(np.argmax(numbers != np.arange(first, first + len(numbers))))
                        wrong.append(f"{column} isn't in order: {numbers[at]} at {at + first}")
                wrong += account.differences(Account.of_status(table["status"]))
                counted = self._stop.get("num_events", {}).get(spec.name, 0)
                if counted != len(table):
                    wrong.append(f"num_events says {counted}, there are {len(table)}")
                for key, described in client.metadata["data_keys"].items():
                    if described.get("external") and (n := int(client.base[key].shape[0])) != account.expected:
                        wrong.append(f"stream_datums of {key} name {n} frames, not {account.expected}")
                yield judged(stream.stream, source, wrong)

    def _nexus(self, base: dict[str, Account], streams: list[StreamOpen]) -> Iterator[Finding]:
        path = self._stop.get("nexus")
        if not path:
            yield Finding("", "NeXus file", Word.unchecked, "the run has none")
            return
        if self._row is not None and self._row.nexus_error:
            yield Finding("", "NeXus file", Word.unchecked, f"it was given up: {self._row.nexus_error}")
            return
        ledger = self._shop.ledger if self._row is not None else None
        yield from audit_nexus(Path(path), streams, base, ledger, self._row.run if self._row is not None else "")

    def _bits(self, streams: list[StreamOpen], raw: RawRun, bits: int, seed: int) -> Iterator[Finding]:
        if self._row is None:
            yield Finding("", "reduced again", Word.unchecked, "the ledger has nothing to compare with")
            return
        log = self._shop.directory / "logs" / "tried-again.log"
        log.parent.mkdir(exist_ok=True)
        with Apart(self._shop.assets.directory, self._shop.roots, log=log) as apart:
            for stream in streams:
                yield audit_bits(stream, raw.spans, self._shop.ledger, self._row.run, apart, bits, seed)
