"""Whether the detector's files hold what the account says of them, and give the same results once more."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path

from ..comparing import Comparison
from ..errors import FileError, FileLate, ReductionError
from ..files.frames import FrameReader
from ..intervals import IntervalSet
from ..ledger.reader import LedgerReader
from ..nexus.layout import local_path
from ..wire.messages import QUARANTINED, FileSpan, StreamOpen
from ..worker.apart import Apart
from .accounts import Account, Finding, Word, judged, ranges

Spans = Mapping[str, Sequence[FileSpan]]
"""Per data key where its frames are."""


def audit_files(stream: StreamOpen, base: Account, spans: Spans, reader: FrameReader) -> Iterator[Finding]:
    """Look for every frame in the files: those lost must not be readable, the others must be there."""
    absent, gone, unread = IntervalSet(), set(), set()
    untold = _untold(stream, base.expected, spans)
    for spec in stream.inputs:
        for span in spans.get(spec.key, ()):
            try:
                missing = reader.missing(span, spec)
            except FileLate as error:
                gone.add(local_path(span.uri).name if "doesn't exist" in str(error) else str(error))
                absent.add(span.first, span.first + span.n)
            except FileError as error:
                unread.add(str(error))
                absent.add(span.first, span.first + span.n)
            else:
                absent.update((frame, frame + 1) for frame in missing)
    if untold:
        # A detector without files: what came live lies nowhere.
        text = f"no file was announced for {ranges(untold.ranges())}"
        yield Finding(stream.stream, "frames without a file", Word.unchecked, text)
    if unread:
        yield Finding(stream.stream, "files", Word.unchecked, "; ".join(sorted(unread)[:2]))
    elif gone:
        what = ", ".join(sorted(gone)[:3])
        yield Finding(stream.stream, "files", Word.unchecked, f"{what} isn't there any more")
    elif not untold.covers(0, max(base.expected, 1)):
        good = IntervalSet([*base.sets[0].ranges(), *base.sets[1].ranges()])
        lacking = [gap for first, stop in good.ranges() for gap in _inside(absent, first, stop)]
        yield judged(stream.stream, "files", [f"{ranges(lacking)} aren't there"] if lacking else [])
    readable = [
        (frame, frame + 1)
        for first, stop in base.sets[3].ranges()
        for frame in range(first, stop)
        if frame not in absent and frame not in untold and _can_be_read(stream, spans, reader, frame)
    ]
    if base.sets[3]:
        yield judged(stream.stream, "lost frames", [f"{ranges(readable)} can be read"] if readable else [])


def audit_bits(
    stream: StreamOpen, spans: Spans, ledger: Path, run: str, apart: Apart, frames: int, seed: int
) -> Finding:
    """Reduce some frames once more, with their batches, and compare them with the ledger to the bit."""
    source = "reduced again"
    compared = Comparison()
    untold = _untold(stream, 2**40, spans)
    failed: list[str] = []
    with closing(LedgerReader(ledger)) as reader:
        firsts = reader.firsts(run, stream.stream, stream.cfg)
        random.Random(seed).shuffle(firsts)
        for first in firsts:
            if compared.count >= frames or len(failed) > 2:
                break
            (row,) = reader.batches(run, stream.stream, stream.cfg, first, 1)
            good = [first + k for k in range(row.n) if row.status[k] < QUARANTINED and first + k not in untold]
            mine = [span for spec in stream.inputs for span in spans.get(spec.key, ())]
            if not good:
                continue
            try:
                compared.add(row, apart.reduce(stream, mine, first, row.n, good))
            except ReductionError as error:
                failed.append(str(error))
    different = compared.different.get(stream.stream, {})
    if different:
        outputs = sorted({name for names in different.values() for name in names})
        some = [(frame, frame + 1) for frame in sorted(different)]
        return Finding(stream.stream, source, Word.disagrees, f"{', '.join(outputs)} of {ranges(some)}")
    if failed or not compared.count:
        why = failed[0] if failed else "no frame has a result and lies in a file"
        return Finding(stream.stream, source, Word.unchecked, why)
    return Finding(stream.stream, source, Word.agrees, f"{compared.count} frames to the bit")


def _untold(stream: StreamOpen, stop: int, spans: Spans) -> IntervalSet:
    """Return the frames below ``stop`` of which no file was announced that has them, of one data key or another."""
    untold = IntervalSet()
    for spec in stream.inputs:
        told = IntervalSet((span.first, span.first + span.n) for span in spans.get(spec.key, ()))
        untold.update(told.gaps(0, stop))
    return untold


def _inside(frames: IntervalSet, first: int, stop: int) -> list[tuple[int, int]]:
    return [(max(a, first), min(b, stop)) for a, b in frames.ranges() if a < stop and b > first]


def _can_be_read(stream: StreamOpen, spans: Spans, reader: FrameReader, frame: int) -> bool:
    for spec in stream.inputs:
        for span in spans.get(spec.key, ()):
            if span.first <= frame < span.first + span.n:
                try:
                    reader.read(span, [frame], spec)
                except FileError:
                    return False
    return True
