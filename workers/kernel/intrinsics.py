"""What Numba has no word for: wide copies, vectors and shuffles, as LLVM instructions.

Every access to memory goes through :func:`_pointer`. With ``HALTERE_KERNEL_CHECKED=1`` that compares it with the
array's ends and raises IndexError; otherwise the callers answer for it. Offsets are in bytes, arrays of any type are
taken as bytes. The vectors are LLVM's own, of no instruction set: LLVM makes them into what the CPU has.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from typing import Any, Final

from llvmlite import ir

from .compiling import CHECKED, intrinsic
from .kept import has
from .late import cgutils, types

I1, I8, I16, I32, I64 = (ir.IntType(bits) for bits in (1, 8, 16, 32, 64))


def vector(element: ir.Type, count: int) -> ir.VectorType:
    """Return a vector type."""
    return ir.VectorType(element, count)


def constant(kind: ir.Type, value: int) -> ir.Constant:
    """Return a constant; of a vector type, one in each element."""
    if isinstance(kind, ir.VectorType):
        return ir.Constant(kind, [ir.Constant(kind.element, value)] * kind.count)
    return ir.Constant(kind, value)


def pointer(context: Any, builder: Any, kind: Any, array: Any, offset: Any, width: int) -> Any:
    """Return where an array's bytes [offset, offset + width) are."""
    made = context.make_array(kind)(context, builder, array)
    if CHECKED:
        size = builder.mul(made.nitems, made.itemsize)
        after = builder.add(offset, ir.Constant(I64, width))
        outside = builder.or_(
            builder.icmp_signed("<", offset, ir.Constant(I64, 0)), builder.icmp_signed(">", after, size)
        )
        with cgutils.if_unlikely(builder, outside):
            context.call_conv.return_user_exc(builder, IndexError, ("the kernel reached out of an array",))
    return builder.gep(builder.bitcast(made.data, I8.as_pointer()), [offset], source_etype=I8)


def load(builder: Any, at: Any, kind: ir.Type) -> Any:
    """Return what lies at a pointer, aligned or not."""
    return builder.load(builder.bitcast(at, kind.as_pointer()), typ=kind, align=1)


def store(builder: Any, value: Any, at: Any) -> None:
    """Put a value at a pointer, aligned or not."""
    builder.store(value, builder.bitcast(at, value.type.as_pointer()), align=1)


def shuffle(builder: Any, one: Any, two: Any, places: Sequence[int]) -> Any:
    """Return the elements of two vectors at these places."""
    return builder.shuffle_vector(one, two, ir.Constant(vector(I32, len(places)), list(places)))


# --- one number ------------------------------------------------------------------------------------------------------


def _reader(bits: int, swapped: bool = False) -> Callable[..., Any]:
    @intrinsic
    def read(typing: Any, array: Any, offset: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
            at = pointer(context, builder, signature.args[0], given[0], given[1], bits // 8)
            value = load(builder, at, ir.IntType(bits))
            if swapped:
                value = builder.bswap(value)
            return value if bits == 64 else builder.zext(value, I64)

        return types.int64(array, types.int64), generate

    return read


read8, read16, read32, read64 = (_reader(bits) for bits in (8, 16, 32, 64))
"""``(array, offset) -> int64``: the unsigned number there, little-endian."""

read32_big, read64_big = _reader(32, True), _reader(64, True)
"""The same, big-endian."""


def _writer(bits: int) -> Callable[..., Any]:
    @intrinsic
    def write(typing: Any, array: Any, offset: Any, value: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
            at = pointer(context, builder, signature.args[0], given[0], given[1], bits // 8)
            store(builder, given[2] if bits == 64 else builder.trunc(given[2], ir.IntType(bits)), at)
            return context.get_dummy_value()

        return types.void(array, types.int64, types.int64), generate

    return write


write8, write16, write32, write64 = (_writer(bits) for bits in (8, 16, 32, 64))
"""``(array, offset, value)``: put the number there, little-endian."""


# --- many bytes ------------------------------------------------------------------------------------------------------


def _copier(width: int) -> Callable[..., Any]:
    @intrinsic
    def copy(typing: Any, to: Any, to_offset: Any, source: Any, offset: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
            source = pointer(context, builder, signature.args[2], given[2], given[3], width)
            to = pointer(context, builder, signature.args[0], given[0], given[1], width)
            store(builder, load(builder, source, vector(I8, width)), to)
            return context.get_dummy_value()

        return types.void(to, types.int64, source, types.int64), generate

    return copy


copy16, copy32, copy64 = (_copier(width) for width in (16, 32, 64))
"""``(to, to_offset, source, offset)``: copy so many bytes; all are read before any is written."""


@intrinsic
def memory(typing: Any, address: Any, size: Any) -> Any:
    """``(address, size) -> array of uint8``: the bytes there, which the caller keeps alive."""
    kind = types.Array(types.uint8, 1, "C")

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        made = context.make_array(kind)(context, builder)
        context.populate_array(
            made,
            data=builder.inttoptr(given[0], I8.as_pointer()),
            shape=cgutils.pack_array(builder, [given[1]]),
            strides=cgutils.pack_array(builder, [ir.Constant(I64, 1)]),
            itemsize=ir.Constant(I64, 1),
            meminfo=None,
        )
        return made._getvalue()

    return kind(types.int64, types.int64), generate


@intrinsic
def prefetch(typing: Any, array: Any, offset: Any) -> Any:
    """``(array, offset)``: have the cache line there brought near; it needn't be in the array."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        made = context.make_array(signature.args[0])(context, builder, given[0])
        at = builder.gep(builder.bitcast(made.data, I8.as_pointer()), [given[1]], source_etype=I8)
        kind = ir.FunctionType(ir.VoidType(), [at.type, I32, I32, I32])
        function = builder.module.declare_intrinsic("llvm.prefetch", (at.type,), kind)
        builder.call(function, [at, ir.Constant(I32, 0), ir.Constant(I32, 3), ir.Constant(I32, 1)])
        return context.get_dummy_value()

    return types.void(array, types.int64), generate


# --- patterns --------------------------------------------------------------------------------------------------------

_ARM: Final = platform.machine() in ("aarch64", "arm64")
_PSHUFB: Final = platform.machine() in ("x86_64", "AMD64") and has("ssse3")


def permute16(builder: Any, value: Any, places: Any) -> Any:
    """Return ``value[places[i]]`` for 16 bytes; places are below 16.

    LLVM has no word for it, CPUs have; elsewhere it is written out.
    """
    kind = vector(I8, 16)
    if _ARM or _PSHUFB:
        name = "llvm.aarch64.neon.tbl1.v16i8" if _ARM else "llvm.x86.ssse3.pshuf.b.128"
        return builder.call(
            builder.module.declare_intrinsic(name, (), ir.FunctionType(kind, [kind, kind])), [value, places]
        )
    made = ir.Constant(kind, ir.Undefined)
    for i in range(16):
        place = builder.extract_element(places, ir.Constant(I32, i))
        made = builder.insert_element(made, builder.extract_element(value, place), ir.Constant(I32, i))
    return made


@intrinsic
def repeat16(typing: Any, to: Any, to_offset: Any, source: Any, offset: Any, table: Any, row: Any) -> Any:
    """``(to, to_offset, source, offset, table, row)``: write the 16 bytes there in the order at ``table, row``."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        kind = vector(I8, 16)
        value = load(builder, pointer(context, builder, signature.args[2], given[2], given[3], 16), kind)
        order = load(builder, pointer(context, builder, signature.args[4], given[4], given[5], 16), kind)
        to = pointer(context, builder, signature.args[0], given[0], given[1], 16)
        store(builder, permute16(builder, value, order), to)
        return context.get_dummy_value()

    return types.void(to, types.int64, source, types.int64, table, types.int64), generate


@intrinsic
def fill32(typing: Any, array: Any, to: Any, end: Any, begin: Any, table: Any, row: Any, step: Any) -> Any:
    """``(array, to, end, begin, table, row, step)``: write 32 bytes at ``to``, ``to + step`` … before ``end``.

    They are the 16 at ``begin`` in the two orders at ``table, row``; at ``to`` they are written in any case.
    """

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        kind = vector(I8, 16)
        value = load(builder, pointer(context, builder, signature.args[0], given[0], given[3], 16), kind)
        row = pointer(context, builder, signature.args[4], given[4], given[5], 32)
        rows = [row, builder.gep(row, [ir.Constant(I64, 16)], source_etype=I8)]
        halves = [permute16(builder, value, load(builder, at, kind)) for at in rows]
        value = shuffle(builder, halves[0], halves[1], range(32))
        before, loop, after = builder.block, builder.append_basic_block("fill"), builder.append_basic_block("filled")
        builder.branch(loop)
        builder.position_at_end(loop)
        place = builder.phi(I64)
        place.add_incoming(given[1], before)
        store(builder, value, pointer(context, builder, signature.args[0], given[0], place, 32))
        following = builder.add(place, given[6])
        place.add_incoming(following, builder.block)
        builder.cbranch(builder.icmp_signed("<", following, given[2]), loop, after)
        builder.position_at_end(after)
        return context.get_dummy_value()

    numbers = [types.int64] * 3
    return types.void(array, *numbers, table, types.int64, types.int64), generate


# --- bits ------------------------------------------------------------------------------------------------------------

_SWAPS: Final = ((4, 0x0F), (2, 0x33), (1, 0x55))


def _transpose_bits(builder: Any, rows: list[Any]) -> list[Any]:
    """Transpose 8 × 8 bits in each byte lane of 8 vectors: bit k of row i becomes bit i of row k.

    Three rounds of swaps between pairs of rows, half the work of transposing within 64-bit words. The shifts cross
    bytes; the masks take away what came across.
    """
    kind = rows[0].type
    words = vector(I64, kind.count // 8)
    rows = [builder.bitcast(row, words) for row in rows]
    for distance, mask in _SWAPS:
        shift, kept = constant(words, distance), constant(words, mask * 0x0101010101010101)
        for i in range(8):
            if i & distance:
                continue
            low, high = rows[i], rows[i + distance]
            swapped = builder.and_(builder.xor(builder.lshr(low, shift), high), kept)
            rows[i + distance] = builder.xor(high, swapped)
            rows[i] = builder.xor(low, builder.shl(swapped, shift))
    return [builder.bitcast(row, kind) for row in rows]


def _interleave_bytes(builder: Any, rows: list[Any]) -> list[Any]:
    """Return the bytes of 8 vectors of n in the order byte 0 of each, byte 1 of each …: 8 vectors of n.

    Three rounds within 128-bit lanes, as x86's unpack does; then lanes are put in order.
    """
    count = rows[0].type.count
    for _ in range(3):
        rows = [
            shuffle(builder, rows[i], rows[i + 4], _unpacked(count, half)) for i in range(4) for half in (False, True)
        ]
    if count == 16:
        return rows
    # Vector v holds, in lane l, the pixels [(l·8 + v)·16, …): collect lane 0 of all, then lane 1.
    pairs = [(rows[v], rows[v + 1]) for v in range(0, 8, 2)]
    lanes = [list(range(16)) + list(range(32, 48)), list(range(16, 32)) + list(range(48, 64))]
    return [shuffle(builder, one, two, places) for places in lanes for one, two in pairs]


def _unpacked(count: int, half: bool) -> list[int]:
    places: list[int] = []
    for lane in range(0, count, 16):
        for i in range(8):
            place = lane + 8 * half + i
            places += [place, count + place]
    return places


def _transposer(width: int) -> Callable[..., Any]:
    @intrinsic
    def transpose(typing: Any, planes: Any, offset: Any, plane: Any, to: Any, to_offset: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
            kind = vector(I8, width)
            rows = []
            for i in range(8):
                place = builder.add(given[1], builder.mul(given[2], ir.Constant(I64, i)))
                rows.append(load(builder, pointer(context, builder, signature.args[0], given[0], place, width), kind))
            for i, row in enumerate(_interleave_bytes(builder, _transpose_bits(builder, rows))):
                place = builder.add(given[4], ir.Constant(I64, i * width))
                store(builder, row, pointer(context, builder, signature.args[3], given[3], place, width))
            return context.get_dummy_value()

        return types.void(planes, types.int64, types.int64, to, types.int64), generate

    return transpose


transpose16, transpose32 = _transposer(16), _transposer(32)
"""``(planes, offset, plane, to, to_offset)``: of 8 bit planes, ``plane`` bytes apart, so many bytes each are made into
8 times as many bytes, one per pixel."""


def _tester(width: int) -> Callable[..., Any]:
    @intrinsic
    def covered(typing: Any, planes: Any, offset: Any, plane: Any, cover: Any, cover_offset: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
            kind = vector(I64, width // 8) if width > 1 else I8
            any_bit = None
            for i in range(8):
                place = builder.add(given[1], builder.mul(given[2], ir.Constant(I64, i)))
                row = load(builder, pointer(context, builder, signature.args[0], given[0], place, width), kind)
                any_bit = row if any_bit is None else builder.or_(any_bit, row)
            mask = load(builder, pointer(context, builder, signature.args[3], given[3], given[4], width), kind)
            left = builder.and_(any_bit, mask)
            if width == 1:
                return builder.zext(left, I64)
            name = f"llvm.vector.reduce.or.v{kind.count}i64"
            return builder.call(builder.module.declare_intrinsic(name, (), ir.FunctionType(I64, [kind])), [left])

        return types.int64(planes, types.int64, types.int64, cover, types.int64), generate

    return covered


covered1, covered64 = _tester(1), _tester(64)
"""``(planes, offset, plane, cover, cover_offset) -> int64``: not 0 if a bit that the cover has is set in one of 8 bit
planes, ``plane`` bytes apart, over so many bytes."""


# --- arithmetic ------------------------------------------------------------------------------------------------------


@intrinsic
def square_root(typing: Any, value: Any) -> Any:
    """``(value) -> float64``: the square root, by the CPU's instruction, which rounds as IEEE 754 says."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        kind = ir.DoubleType()
        function = builder.module.declare_intrinsic("llvm.sqrt", (kind,), ir.FunctionType(kind, [kind]))
        return builder.call(function, given)

    return types.float64(types.float64), generate
