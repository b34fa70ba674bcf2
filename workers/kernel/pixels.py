"""What is done with a run of pixels while it lies in byte planes: sums, first moments, maxima, values put together.

``source`` is a tile's memory; a run begins at ``offset`` in its lowest byte plane, and the next one is ``plane`` bytes
on. Loops go over vectors of a fixed length; the last one takes what is left under a mask. A vector may be read beyond
the run's end, by 31 bytes at most: tiles have that much slack.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from llvmlite import ir

from .compiling import inner, intrinsic
from .intrinsics import I8, I16, I32, I64, constant, load, pointer, read8, read64, shuffle, store, vector
from .late import cgutils, types

STEP: Final = 512
"""Most pixels whose moments fit into 16-bit lanes: 255 · (1 + … + 16) is below 2¹⁶."""

BAD, VOID = 4, 5
"""The planes of a cleaned tile in which pixels left out, and among them those without data, are 1."""


def _lanes(builder: Any, kind: ir.VectorType, left: Any) -> Any:
    """Return which of a vector's lanes are among the first ``left``."""
    numbers = ir.Constant(kind, list(range(kind.count)))
    first = builder.insert_element(ir.Constant(kind, ir.Undefined), builder.trunc(left, kind.element), constant(I32, 0))
    return builder.icmp_unsigned("<", numbers, shuffle(builder, first, first, [0] * kind.count))


def _splat(builder: Any, kind: ir.VectorType, value: Any) -> Any:
    first = builder.insert_element(ir.Constant(kind, ir.Undefined), value, constant(I32, 0))
    return shuffle(builder, first, first, [0] * kind.count)


def _reduce(builder: Any, operation: str, value: Any) -> Any:
    name = f"llvm.vector.reduce.{operation}.v{value.type.count}i{value.type.element.width}"
    function = builder.module.declare_intrinsic(name, (), ir.FunctionType(value.type.element, [value.type]))
    return builder.call(function, [value])


def _kept(builder: Any, kind: ir.VectorType) -> Any:
    """Return a place for a vector that a loop adds to; LLVM keeps it in a register."""
    return cgutils.alloca_once_value(builder, constant(kind, 0))


# --- sums and first moments ------------------------------------------------------------------------------------------


@intrinsic
def _moments(typing: Any, source: Any, offset: Any, count: Any) -> Any:
    """``(source, offset, count) -> (Σ v, Σ v·i)`` of at most :data:`STEP` bytes, i from 0.

    Bytes are added lane by lane, even ones and odd ones in 16 bits each; and after each vector the lanes' sums
    themselves are added up, which weights each vector by how many come after it. So no byte is multiplied.
    """

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        bytes32, words = vector(I8, 32), vector(I16, 16)
        sums = [_kept(builder, words) for _ in range(2)]
        ranks = [_kept(builder, words) for _ in range(2)]

        def add(at: Any, left: Any) -> None:
            place = pointer(context, builder, signature.args[0], given[0], builder.add(given[1], at), 32)
            value = load(builder, place, bytes32)
            if left is not None:
                value = builder.select(_lanes(builder, bytes32, left), value, constant(bytes32, 0))
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
        total = builder.zext(_reduce(builder, "add", builder.add(even, odd)), I64)
        ranked = builder.add(*(builder.zext(builder.load(each), wide) for each in ranks))
        within = builder.add(
            builder.mul(even, ir.Constant(wide, list(range(0, 32, 2)))),
            builder.mul(odd, ir.Constant(wide, list(range(1, 32, 2)))),
        )
        before = builder.sub(builder.mul(vectors, total), builder.zext(_reduce(builder, "add", ranked), I64))
        moment = builder.add(builder.zext(_reduce(builder, "add", within), I64), builder.shl(before, constant(I64, 5)))
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


def _values(context: Any, builder: Any, kind: Any, given: Any, at: Any, planes: int, element: Any = I32) -> Any:
    """Return 16 pixels, put together from so many byte planes. ``given`` : source, offset, plane."""
    source, offset, plane = given
    wide = vector(element, 16)
    value = None
    for j in range(planes):
        place = builder.add(builder.add(offset, at), builder.mul(plane, constant(I64, j)))
        read = builder.zext(load(builder, pointer(context, builder, kind, source, place, 16), vector(I8, 16)), wide)
        if j:
            read = builder.shl(read, constant(wide, 8 * j))
        value = read if value is None else builder.or_(value, read)
    return value


def _each(builder: Any, width: int, count: Any, step: Callable[[Any, Any], None]) -> None:
    """Call ``step(at, left)`` for every ``width`` of ``count``, and once more with what is ``left``."""
    bits = width.bit_length() - 1
    whole = builder.lshr(count, constant(I64, bits))
    with cgutils.for_range(builder, whole) as loop:
        step(builder.shl(loop.index, constant(I64, bits)), None)
    left = builder.and_(count, constant(I64, width - 1))
    with builder.if_then(builder.icmp_signed("!=", left, constant(I64, 0))):
        step(builder.shl(whole, constant(I64, bits)), left)


def _peak_of(planes: int) -> Callable[..., Any]:
    @intrinsic
    def peak(typing: Any, source: Any, offset: Any, plane: Any, count: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
            wide = vector(I32, 16)
            most = _kept(builder, wide)

            def step(at: Any, left: Any) -> None:
                value = _values(context, builder, signature.args[0], given[:3], at, planes)
                if left is not None:
                    value = builder.select(_lanes(builder, wide, left), value, constant(wide, 0))
                known = builder.load(most)
                builder.store(builder.select(builder.icmp_unsigned(">", value, known), value, known), most)

            _each(builder, 16, given[3], step)
            return builder.zext(_reduce(builder, "umax", builder.load(most)), I64)

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


def _adder_of(planes: int) -> Callable[..., Any]:
    @intrinsic
    def add(typing: Any, to: Any, first: Any, source: Any, offset: Any, plane: Any, count: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
            wide = vector(I32, 16)

            def step(at: Any, left: Any) -> None:
                value = _values(context, builder, signature.args[2], given[2:5], at, planes)
                if left is not None:
                    value = builder.select(_lanes(builder, wide, left), value, constant(wide, 0))
                place = builder.shl(builder.add(given[1], at), constant(I64, 2))
                place = pointer(context, builder, signature.args[0], given[0], place, 64)
                store(builder, builder.add(load(builder, place, wide), value), place)

            _each(builder, 16, given[5], step)
            return context.get_dummy_value()

        return types.void(to, types.int64, source, types.int64, types.int64, types.int64), generate

    return add


_add1, _add2, _add3 = (_adder_of(planes) for planes in (1, 2, 3))


@inner
def add_values(planes: int, to: Any, first: int, source: Any, offset: int, plane: int, count: int) -> None:
    """Add the lowest 24 bits of a run's pixels to uint32 from ``to[first]`` on.

    Up to 15 beyond are written as they are.
    """
    if planes == 1:
        _add1(to, first, source, offset, plane, count)
    elif planes == 2:
        _add2(to, first, source, offset, plane, count)
    else:
        _add3(to, first, source, offset, plane, count)


def _pair_adder_of(planes: int) -> Callable[..., Any]:
    @intrinsic
    def add(typing: Any, to: Any, first: Any, source: Any, offset: Any, plane: Any, count: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
            bytes32, words, wide = vector(I8, 32), vector(I16, 16), vector(I32, 16)

            def step(at: Any, left: Any) -> None:
                place = builder.shl(builder.add(given[1], builder.lshr(at, constant(I64, 1))), constant(I64, 2))
                place = pointer(context, builder, signature.args[0], given[0], place, 64)
                total = load(builder, place, wide)
                for j in range(planes):
                    byte = builder.add(builder.add(given[3], at), builder.mul(given[4], constant(I64, j)))
                    read = load(builder, pointer(context, builder, signature.args[2], given[2], byte, 32), bytes32)
                    if left is not None:
                        read = builder.select(_lanes(builder, bytes32, left), read, constant(bytes32, 0))
                    both = builder.bitcast(read, words)
                    pair = builder.add(builder.and_(both, constant(words, 255)), builder.lshr(both, constant(words, 8)))
                    total = builder.add(total, builder.shl(builder.zext(pair, wide), constant(wide, 8 * j)))
                store(builder, total, place)

            _each(builder, 32, given[5], step)
            return context.get_dummy_value()

        return types.void(to, types.int64, source, types.int64, types.int64, types.int64), generate

    return add


_pairs1, _pairs2, _pairs3 = (_pair_adder_of(planes) for planes in (1, 2, 3))


@inner
def add_pairs(planes: int, to: Any, first: int, source: Any, offset: int, plane: int, count: int) -> None:
    """Add the lowest 24 bits of a run's pixels, two and two, to uint32 from ``to[first]`` on.

    A last one alone is added alone. Up to 15 beyond are written as they are.
    """
    if planes == 1:
        _pairs1(to, first, source, offset, plane, count)
    elif planes == 2:
        _pairs2(to, first, source, offset, plane, count)
    else:
        _pairs3(to, first, source, offset, plane, count)


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
    return _values(context, builder, kind, given, at, planes, element)


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


# --- cells -----------------------------------------------------------------------------------------------------------


def _joiner_of(some: int) -> Callable[..., Any]:
    @intrinsic
    def join(typing: Any, array: Any, first: Any, count: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
            kind = vector(I32, 8)

            def at(place: Any) -> Any:
                place = builder.shl(builder.add(given[1], place), constant(I64, 2))
                return pointer(context, builder, signature.args[0], given[0], place, 32)

            def step(begin: Any, left: Any) -> None:
                source = builder.mul(begin, constant(I64, some))
                rows = [load(builder, at(builder.add(source, constant(I64, 8 * k))), kind) for k in range(some)]
                total = None
                for k in range(some):
                    picked = _picked(builder, rows, range(k, 8 * some, some))
                    total = picked if total is None else builder.add(total, picked)
                store(builder, total, at(begin))

            _each(builder, 8, given[2], step)
            return context.get_dummy_value()

        return types.void(array, types.int64, types.int64), generate

    return join


def _picked(builder: Any, rows: list[Any], places: Sequence[int]) -> Any:
    """Return 8 elements of several vectors of 8."""
    made = shuffle(builder, rows[0], rows[1], [place if place < 16 else 0 for place in places])
    for k, row in enumerate(rows[2:], 2):
        made = shuffle(builder, made, row, [i if place // 8 < k else 8 + place % 8 for i, place in enumerate(places)])
    return made


halve, add_threes, add_fives = (_joiner_of(some) for some in (2, 3, 5))
"""``(array, first, count)``: of every 2, 3 or 5 uint32 from ``array[first]`` on make a sum, ``count`` in all, in their
place. Up to 7 more are written, of what lies behind."""


def _mover_of(bits: int) -> Callable[..., Any]:
    @intrinsic
    def move(
        typing: Any, to: Any, offset: Any, array: Any, first: Any, left: Any, left_first: Any, cells: Any, cell: Any
    ) -> Any:
        def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
            def read(k: int, size: int, kind: Any) -> Any:
                place = builder.mul(given[k + 1], constant(I64, size))
                return load(builder, pointer(context, builder, signature.args[k], given[k], place, 16 * size), kind)

            kind, words = vector(ir.IntType(bits), 16), vector(I16, 16)
            value = read(2, 4, vector(I32, 16))
            value = value if bits == 32 else builder.zext(value, kind)
            nothing = builder.icmp_unsigned("==", read(4, 2, words), read(6, 2, words))
            value = builder.or_(value, builder.sext(nothing, kind))
            store(builder, value, pointer(context, builder, signature.args[0], given[0], given[1], 2 * bits))
            return context.get_dummy_value()

        numbers = types.int64
        return types.void(to, numbers, array, numbers, left, numbers, cells, numbers), generate

    return move


move32, move64 = _mover_of(32), _mover_of(64)
"""``(to, offset, array, first, left, left_first, cells, cell)``: write 16 uint32 from ``array[first]`` on as 32 or 64
bits; all bits set where as many were left out as there are pixels, uint16 each."""


@intrinsic
def add_longs(typing: Any, to: Any, to_first: Any, array: Any, first: Any, count: Any) -> Any:
    """``(to, to_first, array, first, count)``: add so many uint32 to int64, and set them to 0.

    Up to 15 of ``to`` beyond are written as they are.
    """

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        narrow, kind = vector(I32, 16), vector(I64, 16)

        def step(at: Any, left: Any) -> None:
            place = builder.shl(builder.add(given[3], at), constant(I64, 2))
            source = pointer(context, builder, signature.args[2], given[2], place, 64)
            value = load(builder, source, narrow)
            rest = constant(narrow, 0)
            if left is not None:
                mine = _lanes(builder, narrow, left)
                value, rest = (builder.select(mine, *each) for each in ((value, rest), (rest, value)))
            store(builder, rest, source)
            place = builder.shl(builder.add(given[1], at), constant(I64, 3))
            target = pointer(context, builder, signature.args[0], given[0], place, 128)
            store(builder, builder.add(load(builder, target, kind), builder.zext(value, kind)), target)

        _each(builder, 16, given[4], step)
        return context.get_dummy_value()

    return types.void(to, types.int64, array, types.int64, types.int64), generate


# --- exclusion -------------------------------------------------------------------------------------------------------


def _cleaner_of(planes: int) -> Callable[..., Any]:
    """Compare byte by byte, the highest first, 32 pixels at a time: four times as many as whole values would be."""

    @intrinsic
    def clean(
        typing: Any, source: Any, offset: Any, plane: Any, count: Any, limit: Any, void: Any, to: Any, apart: Any
    ) -> Any:
        def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
            kind = vector(I8, 32)

            def byte(value: Any, j: int) -> Any:
                return _splat(builder, kind, builder.trunc(builder.lshr(value, constant(I64, 8 * j)), I8))

            limits, voids = ([byte(given[place], j) for j in range(planes)] for place in (4, 5))
            # Without as many bytes as the value of a pixel without data has, none is one.
            possible = builder.icmp_unsigned("==", builder.lshr(given[5], constant(I64, 8 * planes)), constant(I64, 0))
            found, bits = _kept(builder, kind), [_kept(builder, kind) for _ in range(planes)]

            def step(at: Any, left: Any) -> None:
                above = same = nothing = None
                values: list[Any] = []
                for j in reversed(range(planes)):
                    place = builder.add(builder.add(given[1], at), builder.mul(given[2], constant(I64, j)))
                    value = load(builder, pointer(context, builder, signature.args[0], given[0], place, 32), kind)
                    if left is not None:
                        value = builder.select(_lanes(builder, kind, left), value, constant(kind, 0))
                    values.insert(0, value)
                    more = builder.icmp_unsigned(">", value, limits[j])
                    equal = builder.icmp_unsigned("==", value, limits[j])
                    full = builder.icmp_unsigned("==", value, voids[j])
                    above = more if above is None else builder.or_(above, builder.and_(same, more))
                    same = equal if same is None else builder.and_(same, equal)
                    nothing = full if nothing is None else builder.and_(nothing, full)
                bad = builder.zext(above, kind)
                empty = builder.select(possible, builder.zext(builder.and_(nothing, above), kind), constant(kind, 0))
                builder.store(builder.or_(builder.load(found), bad), found)
                made = [builder.select(above, constant(kind, 0), value) for value in values]
                for seen, value in zip(bits, made, strict=True):
                    builder.store(builder.or_(builder.load(seen), value), seen)
                for number, written in [*enumerate(made), (BAD, bad), (VOID, empty)]:
                    place = builder.add(at, builder.mul(given[7], constant(I64, number)))
                    store(builder, written, pointer(context, builder, signature.args[6], given[6], place, 32))

            _each(builder, 32, given[3], step)
            high = constant(I64, 0)
            for j, seen in enumerate(bits):
                any_bit = builder.icmp_unsigned("!=", _reduce(builder, "or", builder.load(seen)), constant(I8, 0))
                high = builder.select(any_bit, constant(I64, j + 1), high)
            some = builder.zext(_reduce(builder, "or", builder.load(found)), I64)
            return context.make_tuple(builder, signature.return_type, [some, high])

        given = (types.int64, types.int64, types.int64, types.int64, types.int64)
        return types.UniTuple(types.int64, 2)(source, *given, to, types.int64), generate

    return clean


_clean1, _clean2, _clean3, _clean4 = (_cleaner_of(planes) for planes in (1, 2, 3, 4))


@inner
def clean(
    planes: int, source: Any, offset: int, plane: int, count: int, limit: int, void: int, to: Any, apart: int
) -> Any:
    """Copy a tile with the pixels above ``limit`` set to 0.

    Parameters
    ----------
    void
        The value of pixels without data.
    to, apart
        Where byte plane j of the copy goes: to ``apart * j``; :data:`BAD` and :data:`VOID` say which are left out.

    Returns
    -------
    1 if some are left out, or 0; and how many byte planes the others need.
    """
    if planes == 1:
        return _clean1(source, offset, plane, count, limit, void, to, apart)
    if planes == 2:
        return _clean2(source, offset, plane, count, limit, void, to, apart)
    if planes == 3:
        return _clean3(source, offset, plane, count, limit, void, to, apart)
    return _clean4(source, offset, plane, count, limit, void, to, apart)
