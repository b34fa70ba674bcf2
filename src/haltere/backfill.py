"""What a run is still owed is reduced from its files: after a crash, when a file has come late, by another recipe.

Everything is read from the catalog, the ledger and the files, and everything that is done stands in the ledger at
once: it may be killed at any time, and goes on from there when it is called again.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from time import monotonic
from typing import Any, Final

from .backfilled import Advance, Backfilled
from .callbacks.dispatch import Dispatcher
from .callbacks.dispatch_core import DispatchCore
from .callbacks.reduction import Reduction, attempt_uid
from .callbacks.replayed import RawRun, read_run
from .workers import recipes as recipe_rules
from .workers.comparing import Comparison, compare
from .workers.errors import FileError, PoolError, SettingsError
from .workers.files.frames import FrameReader
from .workers.intervals import IntervalSet
from .workers.ledger.reader import LedgerReader
from .workers.ledger.rows import RunRow
from .workers.nexus.layout import local_path
from .workers.recipes import Recipe
from .workers.sink.taking_over import take_over
from .workers.wire.messages import STATUS_NAMES, StreamOpen
from .workers.worker.apart import Apart, reducible
from .workshop import Workshop

MODES: Final = ("owed", "quarantined", "all")
"""``owed``: frames without an end, and those that were lost and are in their file now. ``quarantined``: also those
that couldn't be reduced and can be now. ``all``: every frame again, compared to the bit with what there was."""

LOOK: Final = 0.2
"""s between two looks at the ledger."""

PATIENCE: Final = 600.0
"""s without a frame done after which it is given up."""

ENDED: Final = 12.0
"""s that a pool has to close a run whose session is gone."""

RECORDED: Final = 120.0
"""s in which the processed run must have come into the catalog."""

Listener = Callable[[Advance], None]
Choice = Callable[[RawRun, tuple[Recipe, ...]], tuple[Recipe, ...]]


def backfill(
    shop: Workshop,
    uid: str,
    *,
    only: str = "owed",
    recipes: Choice | None = None,
    listen: Listener = lambda _: None,
) -> Backfilled:
    """Reduce what a run is owed.

    Parameters
    ----------
    uid
        The raw run's, its beginning, or the scan's number.
    only
        One of :data:`MODES`.
    recipes
        Says what to make of the frames, given the run and what was made of them when they were measured, or should
        have been; by default that.
    listen
        Told how far it is, a few times a second.

    Raises
    ------
    HaltereError
        There is no such run, a file can't be read where it lies, the pool doesn't answer: one line says which.
    """
    if only not in MODES:
        raise SettingsError(f"{only!r} is none of {', '.join(MODES)}")
    began = monotonic()
    work = _Backfill(shop, uid, only, recipes, listen)
    outcome = work.run()
    outcome.wall_s = round(monotonic() - began, 3)
    return outcome


@dataclass(frozen=True, slots=True)
class _Attempt:
    """A processed run with these recipes. ``run`` is its name in the ledger, None if only the catalog has it."""

    processed: str
    run: str | None
    complete: bool
    account: dict[str, dict[str, Any]]
    start: dict[str, Any]
    nexus: str


class _Backfill:
    """One call of :func:`backfill`."""

    def __init__(self, shop: Workshop, uid: str, only: str, recipes: Choice | None, listen: Listener) -> None:
        self._shop = shop
        self._only = only
        self._listen = listen
        client = shop.find(uid)
        self._frames = FrameReader(shop.roots)
        known = self._reductions(str(client.start["uid"]))
        # Of several reductions each was told the same; the first as the frames were taken.
        spans = self._with_reader(lambda reader: reader.spans(known[0].run)) if known else []
        spans += shop.spilled(str(client.start["uid"]))
        promised = self._with_reader(lambda reader: reader.promised(known[0].run)) if known else {}
        self._raw: RawRun = read_run(client, known=spans, promised=promised, length=self._length)
        own = self._own_recipes(known)
        self._recipes = own if recipes is None else recipes(self._raw, own)
        self._first = recipes is None and not any(row.run == self._raw.uid for row in known)

    def run(self) -> Backfilled:
        """Do it."""
        with closing(self._frames):
            self._check()
            self._wait_for_its_end()
            chain = self._chain()
            latest = chain[-1] if chain else None
            outcome = None
            if latest is None:
                self._check_kept()
            if latest is None or not latest.complete:
                reduction = self._next(chain, latest)
                former = next((each for each in chain if each.processed == reduction.supersedes), None)
                outcome = self._reduce(reduction, {} if former is None else self._again(former, reduction.mode))
                accounted = {name: each["expected"] for name, each in outcome.frames.items()}
                whole = all(accounted.get(name, 0) >= n for name, n in self._wanted().items())
                if whole and (latest is None or self._only == "owed" or reduction.mode == self._only):
                    return outcome  # every frame of it has been tried just now
                chain = self._chain()
                latest = chain[-1]
            if again := self._again(latest, self._only):
                return self._reduce(self._next(chain, None), again)
            if outcome is None:
                self._recorded(latest.processed)
                outcome = self._outcome(latest)
                outcome.nothing_to_do = True
            return outcome

    def _wait_for_its_end(self) -> None:
        """See that nobody measures the run any more: a pool closes one whose session is gone within seconds."""
        deadline = monotonic() + ENDED
        pause = threading.Event()
        while self._raw.stop is None and self._shop.has_pool:
            row = next((each for each in self._reductions(self._raw.uid) if each.run == self._raw.uid), None)
            if row is None or row.totals is not None:
                return
            streams: list[StreamOpen] = self._with_reader(lambda reader: reader.streams(self._raw.uid))
            if any(stream.total is not None for stream in streams):
                return  # a backfill had begun
            if monotonic() > deadline:
                raise PoolError(f"run {self._raw.uid} is still being measured: its pool reduces it")
            pause.wait(LOOK)

    def _wanted(self) -> dict[str, int]:
        """Return how many frames the documents promise of each detector that a recipe reads."""
        promised = self._raw.promised()
        return {stream.stream: promised.get(stream.stream, 0) for stream in self._streams()}

    def _check(self) -> None:
        if not self._recipes:
            raise SettingsError(f"run {self._raw.uid} asks for no reduction: name a recipe with --recipe")
        sources = {recipe.source for recipe in self._recipes}
        if not sources & set(self._raw.devices()):
            there = ", ".join(self._raw.devices()) or "no frames at all"
            raise SettingsError(f"run {self._raw.uid} has nothing of {', '.join(sorted(sources))}; it has {there}")

    def _check_kept(self) -> None:
        """See that there is something to be reduced of each detector that a recipe reads."""
        for device in self._raw.unkept():
            if any(recipe.source == device for recipe in self._recipes):
                raise SettingsError(
                    f"run {self._raw.uid}: {device} kept no file, and none of its frames was spilled: "
                    "there is nothing that could be reduced again"
                )

    def _length(self, uri: str, dataset: str) -> int:
        self._shop.check([local_path(uri)])
        return self._frames.length(uri, dataset)

    # --- what there is -----------------------------------------------------------------------------------------------

    def _with_reader(self, ask: Callable[[LedgerReader], Any]) -> Any:
        reader = self._shop.reader()
        if reader is None:
            return None
        with closing(reader):
            return ask(reader)

    def _reductions(self, raw: str) -> list[RunRow]:
        found: list[RunRow] | None = self._with_reader(lambda reader: reader.reductions(raw))
        return found or []

    def _own_recipes(self, known: Sequence[RunRow]) -> tuple[Recipe, ...]:
        """Return what was made of the run as it was measured, or should have been."""
        for row in known:
            if row.run == self._raw.uid:
                return recipe_rules.parse(row.start.get("recipes") or [])
        given = self._raw.start.get("recipes")
        return recipe_rules.parse(given) if given is not None else self._shop.default_recipes()

    def _chain(self) -> list[_Attempt]:
        """Return every attempt with these recipes, in their order: the ledger's, or what the catalog has whole."""
        by_uid = {row.processed: row for row in self._reductions(self._raw.uid)}
        found: list[_Attempt] = []
        while True:
            uid = attempt_uid(self._raw.uid, self._recipes, len(found))
            row = by_uid.get(uid)
            if row is not None:
                found.append(self._attempt(row))
            elif (stop := self._shop.stop_of(uid)) is not None:
                start = dict(self._shop.catalog.processed[uid].start)
                found.append(_Attempt(uid, None, True, stop.get("frames", {}), start, str(stop.get("nexus", ""))))
            else:
                return found

    def _attempt(self, row: RunRow) -> _Attempt:
        account = self._with_reader(lambda reader: reader.accounting(row.run))
        return _Attempt(row.processed, row.run, row.completed is not None, account, row.start, row.nexus or "")

    def _next(self, chain: Sequence[_Attempt], unfinished: _Attempt | None) -> Reduction:
        """Return what is to be reduced: the unfinished attempt, or one after the last."""
        raw, totals = self._raw.uid, self._raw.promised()
        if unfinished is not None:
            name = unfinished.run or unfinished.processed
            before, mode = unfinished.start.get("supersedes"), str(unfinished.start.get("backfill", ""))
            batches = self._batches(unfinished)
            return Reduction(raw, name, unfinished.processed, self._recipes, totals, batches, before, mode)
        uid = attempt_uid(raw, self._recipes, len(chain))
        if not chain:
            return Reduction(raw, raw if self._first else uid, uid, self._recipes, totals, {}, None, self._only)
        batches = self._batches(chain[-1])
        return Reduction(raw, uid, uid, self._recipes, totals, batches, chain[-1].processed, self._only)

    def _batches(self, attempt: _Attempt) -> dict[str, int]:
        """Return how many frames went together: results of other batches couldn't be taken over."""
        run = attempt.run
        if run is None:
            return {}
        streams = self._with_reader(lambda reader: reader.streams(run))
        return {stream.stream: stream.batch for stream in streams}

    def _streams(self) -> list[StreamOpen]:
        """Return what the pool would be told of the run's detectors."""
        core = DispatchCore(0, reduction=self._next([], None))
        for name, doc in self._raw.head():
            core.document(name, doc)
        return core.streams(self._raw.uid)

    # --- what is worth a new run -------------------------------------------------------------------------------------

    def _again(self, attempt: _Attempt, mode: str) -> dict[str, set[int]]:
        """Return the batches of each detector, by their first frames, that another attempt would change for the better.

        What was good must be there still: a run that knows less mustn't take the place of one that knows more.
        """
        found: dict[str, set[int]] = {}
        batches, promised = self._batches(attempt), self._raw.promised()
        for stream in self._streams():
            intervals = attempt.account.get(stream.stream, {}).get("intervals", {})
            good = IntervalSet([*map(tuple, intervals.get("live", ())), *map(tuple, intervals.get("backfilled", ()))])
            lost = list(_numbers(intervals.get("lost", ())))
            quarantined = list(_numbers(intervals.get("quarantined", ()))) if mode == "quarantined" else []
            if lost or quarantined or mode == "all":
                self._shop.check(self._raw.files)  # what may not be read only looks as if it weren't there
            mended = [frame for frame in lost if self._are_there(stream, [frame])]
            mended += self._can_be_reduced(stream, quarantined)
            size = batches.get(stream.stream, stream.batch)
            firsts = {frame - frame % size for frame in mended}
            expected = attempt.account.get(stream.stream, {}).get("expected", 0)
            if promised.get(stream.stream, 0) > expected:
                firsts.add(expected - expected % size)  # it was closed before the documents had said all
            if mode == "all" or (firsts and attempt.run is None):  # without a ledger nothing can be taken over
                firsts = set(range(0, max(expected, 1), size))
            safe = {
                first
                for first in firsts
                if self._are_there(stream, [frame for frame in range(first, first + size) if frame in good])
            }
            if mode == "all" and safe != firsts:
                why = "is in no file" if stream.stream in self._raw.without_files() else "can't be read any more"
                raise FileError(
                    f"run {self._raw.uid}: frame {min(firsts - safe)} of {stream.stream}, or one after it, {why}: "
                    "a run that is reduced anew would know less than the one there is"
                )
            if safe and (attempt.run is not None or safe == firsts):
                found[stream.stream] = safe
        return found

    def _are_there(self, stream: StreamOpen, frames: Sequence[int]) -> bool:
        """Return whether frames can be read."""
        for spec in stream.inputs:
            spans = self._raw.spans.get(spec.key, ())
            for span in spans:
                mine = [frame for frame in frames if span.first <= frame < span.first + span.n]
                try:
                    if mine:
                        self._frames.read(span, mine, spec)
                except FileError:
                    return False
            if any(not any(span.first <= frame < span.first + span.n for span in spans) for frame in frames):
                return False
        return True

    def _can_be_reduced(self, stream: StreamOpen, frames: Sequence[int]) -> list[int]:
        if not frames:
            return []
        spans = [span for spec in stream.inputs for span in self._raw.spans.get(spec.key, ())]
        log = self._shop.directory / "logs" / "tried-again.log"
        log.parent.mkdir(exist_ok=True)
        with Apart(self._shop.assets.directory, self._shop.roots, log=log) as apart:
            return [frame for frame, good in reducible(apart, stream, spans, frames) if good]

    # --- reducing ----------------------------------------------------------------------------------------------------

    def _reduce(self, reduction: Reduction, again: Mapping[str, Collection[int]] | None = None) -> Backfilled:
        """Let the pool reduce what isn't done, and wait until all of it is.

        ``again`` : what isn't taken over from the run that this one supersedes.
        """
        self._shop.check(self._raw.files)
        pool = self._shop.pool
        done = self._done(reduction.name)
        before = self._before(reduction)
        taken = 0
        with closing(Dispatcher(pool.endpoints.sink, reduction=reduction, roots=self._shop.roots)) as dispatcher:
            for name, doc in self._raw.head():
                dispatcher(name, doc)
            if not dispatcher.wait_idle(PATIENCE):
                raise PoolError(f"the sink doesn't answer (see {pool.directory}/logs/sink.log)")
            if before is not None and reduction.mode != "all":
                taken = take_over(self._shop.ledger, before, reduction.name, pool.endpoints.sink, again or {})
            for name, doc in self._raw.tail():
                dispatcher(name, doc)
            self._wait(reduction, done + taken)
        self._recorded(reduction.processed)
        outcome = self._outcome(self._chain_by_uid(reduction.processed))
        outcome.taken_over = taken
        outcome.reduced = max(outcome.expected - done - taken, 0)
        if before is not None and reduction.mode == "all":
            found: Comparison = self._with_reader(lambda reader: compare(reader, before, reduction.name))
            outcome.compared, outcome.different = found.count, found.differing
            outcome.differences = {stream: sorted(frames) for stream, frames in found.different.items()}
        return outcome

    def _before(self, reduction: Reduction) -> str | None:
        """Return what the pool calls the reduction that this one supersedes, if the ledger has it."""
        former = reduction.supersedes
        if former is None:
            return None
        row: RunRow | None = self._with_reader(lambda reader: reader.run(former))
        return None if row is None else row.run

    def _chain_by_uid(self, processed: str) -> _Attempt:
        (found,) = [each for each in self._chain() if each.processed == processed]
        return found

    def _done(self, run: str) -> int:
        return int(self._with_reader(lambda reader: reader.frames_done(run)) or 0)

    def _wait(self, reduction: Reduction, before: int) -> None:
        """Wait until the run is complete, telling how far it is."""
        reader = self._shop.reader()
        assert reader is not None
        sources = {recipe.source for recipe in reduction.recipes}
        owed = sum(n for device, n in reduction.totals.items() if device in sources) - before
        pause = threading.Event()
        began = moved = monotonic()
        last = 0
        with closing(reader):
            while (row := reader.run(reduction.processed)) is None or row.completed is None:
                done = reader.frames_done(reduction.name) - before
                now = monotonic()
                if done > last:
                    last, moved = done, now
                if now - moved > PATIENCE:
                    raise PoolError(
                        f"run {self._raw.uid}: {done} of {owed} frames are done, then none for {PATIENCE:.0f} s "
                        f"(see {self._shop.directory}/pool/logs)"
                    )
                rate = done / (now - began) if now > began else 0.0
                eta = (owed - done) / rate if rate > 0 else None
                self._listen(Advance(min(done, owed), owed, round(rate, 1), None if eta is None else round(eta, 1)))
                pause.wait(LOOK)  # the ledger tells nobody
        self._listen(Advance(owed, owed, round(owed / max(monotonic() - began, 1e-3), 1), 0.0))

    def _recorded(self, processed: str) -> None:
        """See that the processed run is in the catalog, whole."""
        if self._shop.stop_of(processed) is not None:
            return
        pool = self._shop.pool  # its recorder writes what is missing
        if not self._shop.catalog.wait_processed(processed, RECORDED):
            raise PoolError(
                f"run {self._raw.uid} is reduced, but isn't in the catalog (see {pool.directory}/logs/recorder.log)"
            )

    def _outcome(self, attempt: _Attempt) -> Backfilled:
        names = ("expected", *STATUS_NAMES)
        return Backfilled(
            self._raw.uid,
            attempt.processed,
            self._only,
            {stream: {name: each[name] for name in names} for stream, each in attempt.account.items()},
            attempt.start.get("supersedes"),
            reasons={stream: each["reasons"] for stream, each in attempt.account.items() if each.get("reasons")},
            nexus=attempt.nexus,
        )


def _numbers(ranges: Sequence[Sequence[int]]) -> Iterator[int]:
    for first, stop in ranges:
        yield from range(first, stop)
