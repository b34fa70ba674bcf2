"""The reducer: the worker's child that reads frames and reduces them. A crash or a hang here never stops the beats.

Run by the worker only: ``python -m haltere.workers.worker.reducing '{…}'`` with a socket as an inherited descriptor.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import resource
import signal
import socket
import sys
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
from msgspec import Struct

from .. import recipes
from ..decode import decode
from ..errors import ChunkError, HaltereError, ReductionError
from ..files.frames import FrameReader
from ..frame_life import FRAME, STATUS, Frame, FrameEvent
from ..payload import Piece, pack
from ..processes.death import on_parents_death
from ..reducers.base import Array, Batch, Chunk, Made, Output, Partial, Reducer, Setup
from ..wire.messages import LOST, MAX_CONTROL, Damaged, Nack, RecipeSpec, Result, StreamOpen, Work, encode
from .pipe import BETWEEN, SETTING_UP, At, Failed, Ready, Record, Reduced, Unframer, frame
from .reading import Reading, Unreadable
from .sharing import Walks

log = logging.getLogger(__name__)

KEEP: Final = 8
"""Streams whose operators are kept; an Eiger 4M's takes 60 MB."""

MAX_STREAMS: Final = 256
MOST_MEMORY: Final = 0.75
"""Part of the machine's memory that a reducer may take."""

CAP: Final = 500
"""Characters in a reason."""

SHORT: Final = 120
"""Characters in a reason that many others stand beside."""

StreamKey = tuple[str, str, str]
Build = Callable[[RecipeSpec], Reducer]


@dataclass(slots=True)
class Operator:
    """A recipe, ready to reduce; or the reason why it can't."""

    name: str
    reducer: Reducer | None
    outputs: dict[str, Output]
    consts: dict[str, Array] = field(default_factory=dict)
    broken: str = ""


@dataclass(slots=True)
class Rows:
    """One recipe's results for a batch, as they are put together."""

    operator: Operator
    nav: dict[str, Array]
    acc: dict[str, Array]

    @classmethod
    def empty(cls, operator: Operator, n: int) -> Rows:
        """Return rows without a value: NaN, or 0 where the type has none."""
        nav, acc = {}, {}
        for name, output in operator.outputs.items():
            dtype = np.dtype(output.dtype)
            if output.kind == "nav":
                nav[name] = np.full((n, *output.shape), np.nan if dtype.kind == "f" else 0, dtype)
            elif output.kind == "acc":
                acc[name] = np.zeros(output.shape, dtype)
        return cls(operator, nav, acc)

    def put(self, partial: Partial, at: Array) -> None:
        """Place a partial result; ``at`` : its rows.

        Raises
        ------
        ReductionError
            It isn't what the reducer announced. Nothing was placed then.
        """
        for kind, given, mine in (("nav", partial.nav, self.nav), ("acc", partial.acc, self.acc)):
            if given.keys() != mine.keys():
                raise ReductionError(f"{kind} outputs {sorted(given)}, announced were {sorted(mine)}")
            for name, array in given.items():
                shape = (len(at), *mine[name].shape[1:]) if kind == "nav" else mine[name].shape
                if array.shape != shape or array.dtype != mine[name].dtype:
                    raise ReductionError(
                        f"{name} came as {array.shape} {array.dtype}, announced was {shape} {mine[name].dtype}"
                    )
        for name, array in partial.nav.items():
            self.nav[name][at] = array
        for name, array in partial.acc.items():
            self.acc[name] += array

    def pieces(self) -> Iterator[Piece]:
        """Yield every array as it travels."""
        for kind, arrays in (("nav", self.nav), ("acc", self.acc)):
            for name, array in arrays.items():
                yield Piece(self.operator.name, kind, name, array)


class Reducing:
    """Work to results.

    Parameters
    ----------
    assets
        Where recipes' assets are.
    roots
        The folders that frames may be read from.
    say
        Told of each frame before it is touched, if frames go one by one.
    build
        Gives a recipe's reducer.
    """

    def __init__(
        self,
        assets: Path,
        roots: Sequence[Path],
        say: Callable[[At], None],
        build: Build = recipes.build,
    ) -> None:
        self._assets = assets
        self._files = FrameReader(roots)
        self._reading = Reading(self._files)
        self._say = say
        self._build = build
        self._streams: OrderedDict[StreamKey, StreamOpen] = OrderedDict()
        self._operators: OrderedDict[StreamKey, tuple[list[Operator], Walks]] = OrderedDict()
        self._told: set[StreamKey] = set()
        """Streams whose const outputs have gone out."""

    def open(self, stream: StreamOpen) -> None:
        """Take note of a stream."""
        if stream.total is not None:
            self._files.close()  # what was read of them before may have been mended since
        self._streams[stream.run, stream.stream, stream.cfg] = stream
        while len(self._streams) > MAX_STREAMS:
            self._streams.popitem(last=False)

    def reduce(self, work: Work) -> tuple[Reduced, bytearray] | Failed:
        """Reduce a batch: every frame of it, or none."""
        key = work.run, work.stream, work.cfg
        stream = self._streams[key]
        self._streams.move_to_end(key)
        began = time.thread_time()
        absent = {each.frame: each for each in work.absent}
        status = bytearray(work.n)
        reasons: dict[int, str] = {}
        damaged = {each.frame: each.reason for each in work.damaged}
        worse: dict[int, str] = {}
        for each in work.absent:
            before = Frame.MISSING if each.status == LOST else Frame.CONDEMNED
            status[each.frame - work.first] = STATUS[FRAME.move(before, FrameEvent.REPORTED)]
            reasons[each.frame] = each.reason
        some = len(absent) < work.n
        new = some and key not in self._operators
        if new:
            self._say(At(work.token, SETTING_UP))
        operators, walks = self._operators_of(key, stream, ready=some)
        if new:
            self._say(At(work.token, BETWEEN))
        rows = [Rows.empty(operator, work.n) for operator in operators]
        try:
            for group in self._reading.groups(stream, work):
                if work.isolate:
                    self._say(At(work.token, group.frames[0]))
                batch = group.read()
                end = STATUS[FRAME.move(group.before, group.event)]
                for number in group.frames:
                    status[number - work.first] = end
                together = walks.made(batch)
                for place, mine in enumerate(rows):
                    for number, reason in self._reduce(mine, batch, work.first, together.get(place)):
                        if group.live and (damage := _damage(batch, number, group.live)):
                            worse[number] = damage
                            continue
                        if number in damaged:
                            reason = f"{reason[: CAP // 2]}; what came live: {damaged[number]}"
                        status[number - work.first] = STATUS[FRAME.move(group.before, FrameEvent.FAILED)]
                        reasons.setdefault(number, reason[:CAP])
                if gone := group.given_back():
                    # A broker that knows nothing of this work let go of them. What was read may be anything.
                    raise Unreadable(f"frame {gone[0]}: its block in the ring was given back while it was read", gone)
        except Unreadable as error:
            return Failed(
                Nack(*key[:2], work.first, work.n, work.token, -1, str(error)[:CAP], True, sorted(error.missing))
            )
        if work.isolate:  # what ails the result is no frame's fault
            self._say(At(work.token, BETWEEN))
        if worse:  # their files may have them whole; nothing of this batch stands until that is known
            found = [Damaged(number, why) for number, why in sorted(worse.items())]
            reason = f"{len(worse)} frames came damaged, {found[0].frame} first: {found[0].reason}"
            missing = [each.frame for each in found]
            return Failed(Nack(*key[:2], work.first, work.n, work.token, -1, reason, True, missing, found))
        # Of a batch that was given up arrays say nothing, and may be what the sink won't take.
        pieces = [piece for mine in rows for piece in mine.pieces()] if some else []
        if some and key not in self._told and any(operator.consts for operator in operators):
            self._told.add(key)
            pieces += [Piece(o.name, "const", name, array) for o in operators for name, array in o.consts.items()]
        try:
            specs, payload = pack(pieces)
        except ReductionError as error:
            return Failed(Nack(*key[:2], work.first, work.n, work.token, -1, str(error)[:CAP], False))
        cpu_us = int(1e6 * (time.thread_time() - began))
        result = Result(*key, work.first, work.n, work.token, "worker", bytes(status), sorted(reasons.items()), specs)
        if len(encode(result)) > MAX_CONTROL - 128:  # 64 long reasons: enough of each is kept to be understood
            short = [(number, reason[:SHORT]) for number, reason in result.reasons]
            result = msgspec.structs.replace(result, reasons=short)
        if len(encode(result)) > MAX_CONTROL - 128:  # the sink would never read it, and it would be sent for ever
            why = f"{len(specs)} arrays are more than a result can name: use fewer recipes at once"
            return Failed(Nack(*key[:2], work.first, work.n, work.token, -1, why, False))
        return Reduced(result, cpu_us), payload

    def _operators_of(self, key: StreamKey, stream: StreamOpen, *, ready: bool) -> tuple[list[Operator], Walks]:
        """Return the stream's operators, and what they share.

        If none of its frames is to be reduced they needn't be set up, and share nothing.
        """
        if key in self._operators:
            self._operators.move_to_end(key)
            return self._operators[key]
        operators = [self._operator(spec, stream, ready) for spec in stream.recipes]
        walks = Walks([operator.reducer for operator in operators] if ready else [])
        if ready:
            self._told.discard(key)
            self._operators[key] = operators, walks
            while len(self._operators) > KEEP:
                self._operators.popitem(last=False)
        return operators, walks

    def _operator(self, spec: RecipeSpec, stream: StreamOpen, ready: bool) -> Operator:
        inputs = tuple(stream.inputs)
        outputs: dict[str, Output] = {}
        try:
            reducer = self._build(spec)
            outputs = recipes.checked(reducer.outputs(inputs))
            consts = reducer.setup(Setup(inputs, self._assets)) if ready else {}
            if ready:
                _check_consts(consts, outputs)
            return Operator(spec.name, reducer, outputs, consts)
        except MemoryError:
            raise
        except Exception as error:  # a reducer is anybody's code: whatever it raises becomes the frames' reason
            reason = _reason(spec.name, error)
            log.exception("%s", reason)
            return Operator(spec.name, None, outputs, broken=reason)

    def _reduce(self, rows: Rows, batch: Batch, first: int, made: Made | None) -> Iterator[tuple[int, str]]:
        """Take what a shared walk made for a recipe, or reduce the batch by it alone; yield as :meth:`_map`."""
        reducer = rows.operator.reducer
        if made is not None and reducer is not None:
            try:
                rows.put(reducer.finish(batch.index, made), batch.index - first)
            except MemoryError:
                raise
            except Exception as error:  # whatever it is, the recipe alone finds the frame that it is about
                log.info("recipe %s, frames from %d on: by itself now: %s", rows.operator.name, batch.index[0], error)
            else:
                return
        yield from self._map(rows, batch, first)

    def _map(self, rows: Rows, batch: Batch, first: int) -> Iterator[tuple[int, str]]:
        """Reduce a batch by one recipe; yield the frames that it can't reduce, and why."""
        operator = rows.operator
        if operator.reducer is None:
            yield from ((int(number), operator.broken) for number in batch.index)
            return
        try:
            rows.put(operator.reducer.map(batch), batch.index - first)
        except MemoryError:
            raise  # not the frame's fault: this process ends, another tries
        except Exception as error:  # as above
            if len(batch.index) == 1:
                yield int(batch.index[0]), _reason(operator.name, error)
                return
            if not isinstance(error, ReductionError):
                log.exception("recipe %s, frames from %d on: one by one now", operator.name, batch.index[0])
            for at in range(len(batch.index)):
                one = {key: data[at : at + 1] for key, data in batch.data.items()}
                yield from self._map(rows, Batch(batch.index[at : at + 1], one), first)


def _damage(batch: Batch, number: int, key: str) -> str:
    """Say why a frame that came live doesn't decode; nothing if it does: then what ails it is its own."""
    (at,) = np.flatnonzero(batch.index == number)
    chunk = batch.data[key][at]
    try:
        decode(chunk)
        if isinstance(chunk, Chunk):
            from ..kernel import check

            check(chunk)  # it lets less pass
    except ChunkError as error:
        return str(error)[:SHORT]
    return ""


def _check_consts(consts: Mapping[str, Array], outputs: Mapping[str, Output]) -> None:
    announced = {name: output for name, output in outputs.items() if output.kind == "const"}
    if consts.keys() != announced.keys():
        raise ReductionError(f"const outputs {sorted(consts)}, announced were {sorted(announced)}")
    for name, output in announced.items():
        shape, dtype = consts[name].shape, consts[name].dtype
        if shape != tuple(output.shape) or dtype != np.dtype(output.dtype):
            raise ReductionError(f"{name} came as {shape} {dtype}, announced was {output.shape} {output.dtype}")


def _reason(recipe: str, error: Exception) -> str:
    text = str(error) if isinstance(error, HaltereError) else f"{type(error).__name__}: {error}"
    return text if text.startswith(f"recipe {recipe}") else f"recipe {recipe}: {text}"


class ReducingSettings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What the worker tells it at the start; ``fd`` is its end of the socket pair."""

    fd: int
    parent: int
    name: str
    assets: str
    roots: list[str] = []


def serve(channel: socket.socket, settings: ReducingSettings, build: Build) -> None:
    """Reduce what comes until the other end closes."""

    def send(record: Record, payload: Any = b"") -> None:
        for part in frame(record, payload):
            channel.sendall(part)

    reducing = Reducing(Path(settings.assets), [Path(root) for root in settings.roots], send, build)
    unframer = Unframer()
    if os.environ.get("HALTERE_WARM_UP") != "0":  # some seconds the first time on a machine, then no time
        from ..kernel import warm_up

        warm_up()
    send(Ready())
    while data := channel.recv(1 << 18):
        for record, _ in unframer.feed(data):
            if isinstance(record, StreamOpen):
                reducing.open(record)
            elif isinstance(record, Work):
                answer = reducing.reduce(record)
                if isinstance(answer, Failed):
                    send(answer)
                else:
                    reduced, payload = answer
                    named = msgspec.structs.replace(reduced.result, worker=settings.name)
                    send(Reduced(named, reduced.cpu_us), payload)


def die_with_parent(parent: int) -> None:
    """Ask the kernel to kill this process when ``parent`` dies, however that happens."""
    on_parents_death(signal.SIGKILL)
    if os.getppid() != parent:  # it died before we could ask
        sys.exit(1)


def limit_memory(most: int) -> None:
    """Let this process have at most ``most`` bytes of its own; rings and files that it maps don't count.

    Some of HDF5's filters decompress whatever a chunk unpacks to. One that would take the machine's memory then ends
    with an error, or this process does; not the machine.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


def main(argv: Sequence[str] | None = None, build: Build = recipes.build) -> int:
    """Run until the worker closes the channel or dies."""
    (argument,) = sys.argv[1:] if argv is None else argv
    settings = msgspec.json.decode(argument, type=ReducingSettings)
    die_with_parent(settings.parent)
    limit_memory(int(MOST_MEMORY * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")))
    faulthandler.enable()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the worker decides
    logging.basicConfig(level=logging.INFO, format=f"%(asctime)s {settings.name} reducer %(levelname)s %(message)s")
    with socket.socket(fileno=settings.fd) as channel:
        try:
            serve(channel, settings, build)
        except (BrokenPipeError, ConnectionResetError):
            return 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
