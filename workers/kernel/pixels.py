"""What is done with a run of pixels while it lies in byte planes: sums, first moments, maxima, values put together.

``source`` is a tile's memory; a run begins at ``offset`` in its lowest byte plane, and the next one is ``plane`` bytes
on. Loops go over vectors of a fixed length; the last one takes what is left under a mask. A vector may be read beyond
the run's end, by 31 bytes at most: tiles have that much slack.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from llvmlite import ir

from .compiling import inner, intrinsic
from .intrinsics import I8, I16, I32, I64, constant, load, pointer, read8, read64, store, vector
from .late import cgutils, types
from .vectors import accumulator, assemble, first_lanes, for_each, reduce

STEP: Final = 512
"""Most pixels whose moments fit into 16-bit lanes: 255 · (1 + … + 16) is below 2¹⁶."""


# --- sums and first moments ------------------------------------------------------------------------------------------


@intrinsic
def _moments(typing: Any, source: Any, offset: Any, count: Any) -> Any:
    """``(source, offset, count) -> (Σ v, Σ v·i)`` of at most :data:`STEP` bytes, i from 0.

    Bytes are added lane by lane, even ones and odd ones in 16 bits each; and after each vector the lanes' sums
    themselves are added up, which weights each vector by how many come after it. So no byte is multiplied.
    """

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        bytes32, words = vector(I8, 32), vector(I16, 16)
        sums = [accumulator(builder, words) for _ in range(2)]
        ranks = [accumulator(builder, words) for _ in range(2)]

        def add(at: Any, left: Any) -> None:
            place = pointer(context, builder, signature.args[0], given[0], builder.add(given[1], at), 32)
            value = load(builder, place, bytes32)
            if left is not None:
                value = builder.select(first_lanes(builder, bytes32, left), value, constant(bytes32, 0))
            both = builder.bitcast(value, words)
            halves = builder.and_(both, constant(words, 255)), builder.lshr(both, constant(words, 8))
            for half, total, rank in zip(halves, sums, ranks, strict=True):
                added = builder.add(builder.load(total), half)
                builder.store(added, total)
                builder.store(builder.add(builder.load(rank), added), rank)

        whole = builder.lshr(given[2], constant(I64, 5))
        with cgutils.for_range(builder, whole) as loop:
            add(builder.shl(loop.index, constant(I64, 5)), None)
        left = builder.and_(given[2], constant(I64, 31))
        rest = builder.icmp_signed("!=", left, constant(I64, 0))
        with builder.if_then(rest):
            add(builder.shl(whole, constant(I64, 5)), left)
        vectors = builder.add(whole, builder.zext(rest, I64))

        wide = vector(I32, 16)
        even, odd = (builder.zext(builder.load(each), wide) for each in sums)
        total = builder.zext(reduce(builder, "add", builder.add(even, odd)), I64)
        ranked = builder.add(*(builder.zext(builder.load(each), wide) for each in ranks))
        within = builder.add(
            builder.mul(even, ir.Constant(wide, list(range(0, 32, 2)))),
            builder.mul(odd, ir.Constant(wide, list(range(1, 32, 2)))),
        )
        before = builder.sub(builder.mul(vectors, total), builder.zext(reduce(builder, "add", ranked), I64))
        moment = builder.add(builder.zext(reduce(builder, "add", within), I64), builder.shl(before, constant(I64, 5)))
        return context.make_tuple(builder, signature.return_type, [total, moment])

    return types.UniTuple(types.int64, 2)(source, types.int64, types.int64), generate


@inner
def add_moments(source: Any, offset: int, count: int, column: int, row: int, to: Any, at: int, apart: int) -> None:
    """Add a run of one byte plane to Σ v at ``to[at]``, Σ v·column ``apart`` from it, Σ v·row as far from that."""
    total = 0
    moment = 0
    done = 0
    while done < count:
        some = min(count - done, STEP)
        added, within = _moments(source, offset + done, some)
        total += added
        moment += within + added * (column + done)
        done += some
    to[at] += total
    to[at + apart] += moment
    to[at + 2 * apart] += total * row


@inner
def count_bytes(source: Any, offset: int, count: int) -> int:
    """Return the sum of so many bytes."""
    total = 0
    done = 0
    while done < count:
        some = min(count - done, STEP)
        added, _ = _moments(source, offset + done, some)
        total += added
        done += some
    return total


# --- values ----------------------------------------------------------------------------------------------------------


def _peak_of(planes: int) -> Callable[..., Any]:
    @intrinsic
    def peak(typing: Any, source: Any, offset: Any, plane: Any, count: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
            wide = vector(I32, 16)
            most = accumulator(builder, wide)

            def step(at: Any, left: Any) -> None:
                value = assemble(context, builder, signature.args[0], given[:3], at, planes)
                if left is not None:
                    value = builder.select(first_lanes(builder, wide, left), value, constant(wide, 0))
                known = builder.load(most)
                builder.store(builder.select(builder.icmp_unsigned(">", value, known), value, known), most)

            for_each(builder, 16, given[3], step)
            return builder.zext(reduce(builder, "umax", builder.load(most)), I64)

        return types.int64(source, types.int64, types.int64, types.int64), generate

    return peak


_peak1, _peak2, _peak3, _peak4 = (_peak_of(planes) for planes in (1, 2, 3, 4))


@inner
def peak(planes: int, source: Any, offset: int, plane: int, count: int) -> Any:
    """Return the greatest value of a run."""
    if planes == 1:
        return _peak1(source, offset, plane, count)
    if planes == 2:
        return _peak2(source, offset, plane, count)
    if planes == 3:
        return _peak3(source, offset, plane, count)
    return _peak4(source, offset, plane, count)


@inner
def next_byte(source: Any, offset: int, i: int, length: int) -> int:
    """Return where from ``i`` on the next byte is that isn't 0, ``length`` if there is none."""
    while i < length:
        if i + 8 <= length and read64(source, offset + i) == 0:
            i += 8
        elif read8(source, offset + i) == 0:
            i += 1
        else:
            return i
    return length


def _putter_of(itemsize: int, planes: int) -> Callable[..., Any]:
    @intrinsic
    def put(typing: Any, to: Any, to_offset: Any, source: Any, offset: Any, plane: Any, at: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
            element = ir.IntType(8 * itemsize)
            read = _wide_values(context, builder, signature.args[2], given[2:5], given[5], planes, element)
            place = builder.add(given[1], builder.mul(given[5], constant(I64, itemsize)))
            store(builder, read, pointer(context, builder, signature.args[0], given[0], place, 16 * itemsize))
            return context.get_dummy_value()

        return types.void(to, types.int64, source, types.int64, types.int64, types.int64), generate

    return put


def _wide_values(context: Any, builder: Any, kind: Any, given: Any, at: Any, planes: int, element: Any) -> Any:
    if element.width == 8:
        place = pointer(context, builder, kind, given[0], builder.add(given[1], at), 16)
        return load(builder, place, vector(I8, 16))
    return assemble(context, builder, kind, given, at, planes, element)


_put11 = _putter_of(1, 1)
_put21, _put22 = (_putter_of(2, planes) for planes in (1, 2))
_put41, _put42, _put43, _put44 = (_putter_of(4, planes) for planes in (1, 2, 3, 4))


@inner
def _put16(itemsize: int, planes: int, to: Any, to_offset: int, source: Any, offset: int, plane: int, at: int) -> None:
    if itemsize == 1:
        _put11(to, to_offset, source, offset, plane, at)
    elif itemsize == 2:
        if planes == 1:
            _put21(to, to_offset, source, offset, plane, at)
        else:
            _put22(to, to_offset, source, offset, plane, at)
    elif planes == 1:
        _put41(to, to_offset, source, offset, plane, at)
    elif planes == 2:
        _put42(to, to_offset, source, offset, plane, at)
    elif planes == 3:
        _put43(to, to_offset, source, offset, plane, at)
    else:
        _put44(to, to_offset, source, offset, plane, at)


@inner
def put_values(
    itemsize: int, planes: int, to: Any, to_offset: int, source: Any, offset: int, plane: int, count: int
) -> None:
    """Write a run as the frame's own type, from the byte ``to_offset`` on, and nothing beyond it."""
    if planes == 0:
        for i in range(to_offset, to_offset + count * itemsize):
            to[i] = 0
        return
    at = 0
    while at + 16 <= count:
        _put16(itemsize, planes, to, to_offset, source, offset, plane, at)
        at += 16
    if at < count and count >= 16:  # the last 16 once more: some are written twice, as the same
        _put16(itemsize, planes, to, to_offset, source, offset, plane, count - 16)
    elif at < count:
        for i in range(count):
            for j in range(itemsize):
                to[to_offset + i * itemsize + j] = read8(source, offset + i + j * plane) if j < planes else 0
