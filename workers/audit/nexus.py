"""What a run's NeXus file says became of its frames, and whether its values are those of the ledger."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from .. import recipes as recipe_rules
from ..comparing import same
from ..errors import ReductionError
from ..intervals import IntervalSet
from ..ledger.reader import LedgerReader
from ..nexus.account import COUNTS
from ..nexus.layout import dataset_name, fill_value
from ..payload import unpack
from ..wire.messages import QUARANTINED, STATUS_NAMES, StreamOpen
from .accounts import Account, Finding, Word, compared, judged, ranges


def audit_nexus(
    path: Path, streams: list[StreamOpen], accounts: dict[str, Account], ledger: Path | None, run: str
) -> Iterator[Finding]:
    """Compare a NeXus file with the account, and its values with the ledger's.

    Parameters
    ----------
    accounts
        What became of each detector's frames.
    ledger
        The ledger, None if there is none any more.
    run
        What the ledger calls the reduction.
    """
    try:
        file = h5py.File(path, "r", locking=False)
    except OSError as error:
        yield Finding("", "NeXus file", Word.disagrees, f"{path} can't be read: {str(error).splitlines()[0]}")
        return
    with file:
        for stream in streams:
            base = accounts[stream.stream]
            yield _ledger_group(file, stream, base)
            for spec in stream.recipes:
                group = file.get(f"entry/{spec.name}_") or file.get(f"entry/{spec.name}")
                if group is None:
                    yield Finding(stream.stream, f"NeXus {spec.name}", Word.disagrees, "there is no such group")
                    continue
                yield compared(stream.stream, f"NeXus {spec.name}/status", base, Account.of_status(group["status"][()]))
                try:
                    outputs = recipe_rules.outputs(spec, stream.inputs)
                except ReductionError as error:
                    yield Finding(stream.stream, f"NeXus {spec.name}", Word.unchecked, str(error))
                    continue
                navs = [name for name, output in outputs.items() if output.kind == "nav"]
                yield judged(stream.stream, f"NeXus {spec.name}", list(_lengths(group, navs, base)))
            if ledger is not None:
                yield judged(stream.stream, "NeXus values", list(_values(file, stream, base.expected, ledger, run)))


def _ledger_group(file: h5py.File, stream: StreamOpen, base: Account) -> Finding:
    source = "NeXus ledger"
    group = file.get(f"entry/ledger/{stream.stream}")
    if group is None:
        return Finding(stream.stream, source, Word.unchecked, "the file is from before there was one")
    counts = {name: int(group[name][()]) for name in COUNTS}
    intervals: dict[str, list[Any]] = {name: [] for name in STATUS_NAMES}
    for first, stop, status in group["intervals"][()].tolist():
        intervals.setdefault(status.decode(), []).append((first, stop))
    reasons = {str(frame): why.decode() for frame, _, why in group["reasons"][()].tolist()}
    drops = {cause.decode(): int(frames) for cause, frames in group["drops"][()]} if "drops" in group else None
    told = Account.told({"expected": counts["expected"], "intervals": intervals, "reasons": reasons, "drops": drops})
    wrong = base.differences(told) + base.other_drops(told)
    given = told.counts().items()
    wrong += [f"{name} {counts[name]}, its intervals give {n}" for name, n in given if counts[name] != n]
    if silent := Account(base.expected, base.sets, told.reasons).silent():
        wrong.append(f"no reason for {ranges(silent)}")
    return judged(stream.stream, source, wrong)


def _lengths(group: h5py.Group, navs: list[str], base: Account) -> Iterator[str]:
    """Yield the datasets that are too long or short, or have a value where there is no result."""
    bad = np.array([frame for first, stop in base.bad.ranges() for frame in range(first, stop)], int)
    for name in navs:
        dataset = group.get(dataset_name(name))
        if dataset is None:
            yield f"{name} is missing"
        elif len(dataset) != base.expected:
            yield f"{name} has {len(dataset)} frames, not {base.expected}"
        elif len(bad):
            empty = fill_value(dataset.dtype)
            rows = dataset[bad].reshape(len(bad), -1)
            filled = np.isnan(rows) if dataset.dtype.kind == "f" else rows == empty
            if some := [(int(frame), int(frame) + 1) for frame in bad[~filled.all(axis=1)]]:
                yield f"{name} has a value for {ranges(some)}, which have none"


def _values(file: h5py.File, stream: StreamOpen, total: int, ledger: Path, run: str) -> Iterator[str]:
    """Yield where the file has other values than the ledger."""
    wrong: dict[str, IntervalSet] = {}
    datasets: dict[str, Any] = {}
    with closing(LedgerReader(ledger)) as reader:
        first = 0
        while rows := reader.batches(run, stream.stream, stream.cfg, first, 32):
            for row in rows:
                n = min(row.n, total - row.first)
                good = np.frombuffer(row.status, np.uint8)[: max(n, 0)] < QUARANTINED
                for piece in unpack(row.arrays, row.payload, row.n):
                    path = f"entry/{piece.recipe}/{dataset_name(piece.name)}"
                    if path not in datasets:
                        datasets[path] = file.get(path)
                    dataset = datasets[path]
                    if piece.kind != "nav" or n <= 0 or dataset is None or len(dataset) < row.first + n:
                        continue
                    there = dataset[row.first : row.first + n]
                    if same(there[good], piece.array[:n][good].astype(there.dtype)):
                        continue
                    for k in np.flatnonzero(good):
                        if not same(there[k], piece.array[k].astype(there.dtype)):
                            wrong.setdefault(f"{piece.recipe}/{piece.name}", IntervalSet()).add(
                                row.first + int(k), row.first + int(k) + 1
                            )
            first = rows[-1].first + 1
    for name, frames in wrong.items():
        yield f"{name} of {ranges(frames.ranges())} isn't what the ledger has"
