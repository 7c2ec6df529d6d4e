"""Short vectors as values inside numba functions.

LLVM's automatic vectorizer does not see through the layouts of quantized blocks: a loop over 32 nibbles is
unrolled to scalar code, or pays for checks whether input and output overlap.  Here the vectors are written
down instead: a kernel loads, say, 16 bytes as one value, computes with the usual operators, and stores.
LLVM lowers the vectors to whatever the processor has, so nothing here names an instruction.

Lanes are of one numba type; operators take two vectors of one type, or a vector and a scalar that is
converted to the lanes' type.  Integer lanes wrap, floating-point operations are never fused, reordered or
approximated.  Memory is addressed by plain integers without any check: the callers own the bounds.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, Final, Literal

from llvmlite import ir
from numba import types
from numba.core.typing.templates import AbstractTemplate, infer_global
from numba.core.typing.templates import signature as typing_signature
from numba.extending import intrinsic, lower_builtin, models, register_model, unbox

__all__ = [
    "STREAM_ALIGNMENT", "Output", "OutputName", "address", "bfloat16s", "bits", "concat", "f32", "f32x1", "f32x16",
    "floats", "half", "half_from_bits", "halves", "i8x8", "i8x16", "i8x32", "lane", "lookup", "lower", "negate",
    "pairs", "signed", "spread", "store", "u8", "u8x4", "u8x8", "u8x16", "u8x32", "u16", "u16x1", "u16x16", "u32",
    "upper", "widen",
]  # fmt: skip

#: What an output can hold.
OutputName = Literal["float32", "float16", "bfloat16", "float64"]

_I32 = ir.IntType(32)
_F32 = ir.FloatType()
_HALF = ir.HalfType()


class Vector(types.Type):
    """``lanes`` values of the numba type ``element``."""

    def __init__(self, element: Any, lanes: int) -> None:
        self.element = element
        self.lanes = lanes
        super().__init__(name=f"Vector({element}, {lanes})")

    @property
    def key(self) -> tuple[Any, int]:
        return self.element, self.lanes


@register_model(Vector)
class VectorModel(models.PrimitiveModel):
    """A vector is one LLVM value."""

    def __init__(self, manager: Any, type_: Vector) -> None:
        element = manager.lookup(type_.element).get_value_type()
        super().__init__(manager, type_, ir.VectorType(element, type_.lanes))


# Operators


def _splat(builder: Any, scalar: Any, lanes: int) -> Any:
    undefined = ir.Constant(ir.VectorType(scalar.type, lanes), ir.Undefined)
    one = builder.insert_element(undefined, scalar, _I32(0))
    return builder.shuffle_vector(one, one, ir.Constant(ir.VectorType(_I32, lanes), [0] * lanes))


def _constant(element: Any, values: list[int]) -> Any:
    return ir.Constant(ir.VectorType(element, len(values)), values)


def _operator(function: Any, emit: Callable[[Any, Vector, Any, Any], Any]) -> None:
    """Let ``function`` take a vector and a vector or scalar; ``emit`` builds the instruction."""

    class Template(AbstractTemplate):
        key = function

        def generic(self, args: Any, kws: Any) -> Any:
            if kws or len(args) != 2 or not isinstance(args[0], Vector):
                return None
            left, right = args
            if isinstance(right, types.Integer):
                right = left.element if isinstance(left.element, types.Integer) else None
            elif right != left and right != left.element:
                right = None
            return right and typing_signature(left, left, right)

    infer_global(function)(Template)

    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        left, right = args
        if not isinstance(sig.args[1], Vector):
            right = _splat(builder, right, sig.args[0].lanes)
        return emit(builder, sig.args[0], left, right)

    lower_builtin(function, Vector, types.Any)(lower)


def _arithmetic(name: str) -> Callable[[Any, Vector, Any, Any], Any]:
    def emit(builder: Any, type_: Vector, left: Any, right: Any) -> Any:
        prefix = "f" if type_.element == types.float32 else ""
        return getattr(builder, prefix + name)(left, right)

    return emit


_operator(operator.add, _arithmetic("add"))
_operator(operator.sub, _arithmetic("sub"))
_operator(operator.mul, _arithmetic("mul"))
_operator(operator.and_, lambda builder, type_, left, right: builder.and_(left, right))
_operator(operator.or_, lambda builder, type_, left, right: builder.or_(left, right))
_operator(operator.lshift, lambda builder, type_, left, right: builder.shl(left, right))
# Only unsigned lanes are ever shifted to the right.
_operator(operator.rshift, lambda builder, type_, left, right: builder.lshr(left, right))


# Loads


def _loader(name: str, element: Any, lanes: int, result: Any) -> Any:
    """A function from an address to ``result``: a vector, or a scalar widened as numba computes with it."""

    def load(typingctx: Any, at: Any) -> Any:
        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            stored = context.get_value_type(element)
            if isinstance(result, Vector):
                stored = ir.VectorType(stored, lanes)
            value = builder.load(builder.inttoptr(args[0], stored.as_pointer()), align=1)
            if isinstance(result, types.Integer):
                widen = builder.sext if element.signed else builder.zext
                value = widen(value, context.get_value_type(result))
            return value

        return result(types.intp), codegen

    load.__name__ = load.__qualname__ = name
    load.__doc__ = f"``{result}`` from the little-endian {element} at an address."
    return intrinsic(load)


# Scalar integers all become int64: numba makes floating-point numbers of int64 with uint64.
u8 = _loader("u8", types.uint8, 1, types.int64)
u16 = _loader("u16", types.uint16, 1, types.int64)
u32 = _loader("u32", types.uint32, 1, types.int64)
f32 = _loader("f32", types.float32, 1, types.float32)
u8x4 = _loader("u8x4", types.uint8, 4, Vector(types.uint8, 4))
u8x8 = _loader("u8x8", types.uint8, 8, Vector(types.uint8, 8))
u8x16 = _loader("u8x16", types.uint8, 16, Vector(types.uint8, 16))
u8x32 = _loader("u8x32", types.uint8, 32, Vector(types.uint8, 32))
u16x1 = _loader("u16x1", types.uint16, 1, Vector(types.uint16, 1))
u16x16 = _loader("u16x16", types.uint16, 16, Vector(types.uint16, 16))
f32x1 = _loader("f32x1", types.float32, 1, Vector(types.float32, 1))
f32x16 = _loader("f32x16", types.float32, 16, Vector(types.float32, 16))
i8x8 = _loader("i8x8", types.int8, 8, Vector(types.int8, 8))
i8x16 = _loader("i8x16", types.int8, 16, Vector(types.int8, 16))
i8x32 = _loader("i8x32", types.int8, 32, Vector(types.int8, 32))


@intrinsic
def address(typingctx: Any, array: Any) -> Any:
    """Where an array's data begin."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        data = context.make_array(sig.args[0])(context, builder, args[0]).data
        return builder.ptrtoint(data, context.get_value_type(types.intp))

    return types.intp(array), codegen


# Half precision


def _converts_halves(context: Any) -> bool:
    """Whether the processor converts half precision itself.

    Otherwise LLVM would call functions of a runtime library that need not be linked into the process.
    """
    triple, _, features = context.codegen().magic_tuple()
    return "+f16c" in features.split(",") or triple.startswith(("aarch64", "arm64"))


def _each(like: Any, number: float) -> Any:
    """A constant of the type ``like``: a scalar, or a vector of this number in all lanes."""
    return ir.Constant(like, [number] * like.count if isinstance(like, ir.VectorType) else number)


def _same_lanes(like: Any, element: Any) -> Any:
    return ir.VectorType(element, like.count) if isinstance(like, ir.VectorType) else element


def _half_to_f32(context: Any, builder: Any, stored: Any) -> Any:
    """16-bit integers that hold halves → float32; scalars or vectors."""
    words, numbers = _same_lanes(stored.type, _I32), _same_lanes(stored.type, _F32)
    if _converts_halves(context):
        return builder.fpext(builder.bitcast(stored, _same_lanes(stored.type, _HALF)), numbers)
    word = builder.zext(stored, words)
    magnitude = builder.shl(builder.and_(word, _each(words, 0x7FFF)), _each(words, 13))
    # The exponent's bias differs by 112; the multiplication also normalizes what was subnormal.
    scaled = builder.fmul(builder.bitcast(magnitude, numbers), _each(numbers, 2.0**112))
    result = builder.bitcast(scaled, words)
    special = builder.icmp_unsigned(">=", magnitude, _each(words, 0x7C00 << 13))
    result = builder.select(special, builder.or_(result, _each(words, 0x7F800000)), result)
    sign = builder.shl(builder.and_(word, _each(words, 0x8000)), _each(words, 16))
    return builder.bitcast(builder.or_(result, sign), numbers)


def _f32_to_half(context: Any, builder: Any, value: Any) -> Any:
    """A vector of 16-bit integers: the halves nearest to the float32 lanes, ties to even."""
    shorts, words = _same_lanes(value.type, ir.IntType(16)), _same_lanes(value.type, _I32)
    if _converts_halves(context):
        return builder.bitcast(builder.fptrunc(value, _same_lanes(value.type, _HALF)), shorts)
    word = builder.bitcast(value, words)
    magnitude = builder.and_(word, _each(words, 0x7FFFFFFF))
    odd = builder.and_(builder.lshr(magnitude, _each(words, 13)), _each(words, 1))
    # Rebias the exponent by 112 and add just less than half of the last place that stays.
    rebiased = builder.add(builder.sub(magnitude, _each(words, (112 << 23) - 0xFFF)), odd)
    normal = builder.lshr(rebiased, _each(words, 13))
    # Below 2**-14 one addition of 0.5 lets the adder do the rounding: its last place is the smallest half.
    shifted = builder.fadd(builder.bitcast(magnitude, value.type), _each(value.type, 0.5))
    small = builder.sub(builder.bitcast(shifted, words), _each(words, 0x3F000000))
    nan = builder.icmp_unsigned(">", magnitude, _each(words, 0x7F800000))
    special = builder.select(nan, _each(words, 0x7E00), _each(words, 0x7C00))
    is_small = builder.icmp_unsigned("<", magnitude, _each(words, 0x38800000))
    is_special = builder.icmp_unsigned(">=", magnitude, _each(words, 0x47800000))
    result = builder.select(is_special, special, builder.select(is_small, small, normal))
    sign = builder.and_(builder.lshr(word, _each(words, 16)), _each(words, 0x8000))
    return builder.trunc(builder.or_(result, sign), shorts)


def _f32_to_bfloat16(context: Any, builder: Any, value: Any) -> Any:
    """A vector of 16-bit integers: the bfloat16 nearest to the float32 lanes, ties to even."""
    words = _same_lanes(value.type, _I32)
    word = builder.bitcast(value, words)
    odd = builder.and_(builder.lshr(word, _each(words, 16)), _each(words, 1))
    rounded = builder.lshr(builder.add(builder.add(word, _each(words, 0x7FFF)), odd), _each(words, 16))
    # Rounding may carry a NaN into infinity.
    nan = builder.fcmp_unordered("uno", value, value)
    rounded = builder.select(nan, _each(words, 0x7FC0), rounded)
    return builder.trunc(rounded, _same_lanes(value.type, ir.IntType(16)))


@intrinsic
def half(typingctx: Any, at: Any) -> Any:
    """The half at an address, as float32."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        pointer = builder.inttoptr(args[0], ir.IntType(16).as_pointer())
        return _half_to_f32(context, builder, builder.load(pointer, align=1))

    return types.float32(types.intp), codegen


@intrinsic
def half_from_bits(typingctx: Any, word: Any) -> Any:
    """The half whose bits are the low 16 of an integer, as float32."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return _half_to_f32(context, builder, builder.trunc(args[0], ir.IntType(16)))

    return types.float32(types.int64), codegen


@intrinsic
def halves(typingctx: Any, vector: Any) -> Any:
    """uint16 lanes that hold halves, as float32."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return _half_to_f32(context, builder, args[0])

    return Vector(types.float32, vector.lanes)(vector), codegen


@intrinsic
def bfloat16s(typingctx: Any, vector: Any) -> Any:
    """uint16 lanes that hold bfloat16, as float32."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        words = _same_lanes(args[0].type, _I32)
        word = builder.shl(builder.zext(args[0], words), _each(words, 16))
        return builder.bitcast(word, _same_lanes(word.type, _F32))

    return Vector(types.float32, vector.lanes)(vector), codegen


# Conversions and shuffles


@intrinsic
def floats(typingctx: Any, vector: Any) -> Any:
    """The integer lanes as float32."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        lanes = vector.lanes
        widen = builder.sext if vector.element.signed else builder.zext
        return builder.sitofp(widen(args[0], ir.VectorType(_I32, lanes)), ir.VectorType(_F32, lanes))

    return Vector(types.float32, vector.lanes)(vector), codegen


@intrinsic
def signed(typingctx: Any, vector: Any) -> Any:
    """The same bits, read as signed integers."""
    element = types.int8 if vector.element == types.uint8 else types.int16
    return Vector(element, vector.lanes)(vector), lambda context, builder, sig, args: args[0]


@intrinsic
def widen(typingctx: Any, vector: Any) -> Any:
    """uint8 lanes as uint16."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.zext(args[0], ir.VectorType(ir.IntType(16), vector.lanes))

    return Vector(types.uint16, vector.lanes)(vector), codegen


@intrinsic
def concat(typingctx: Any, first: Any, second: Any) -> Any:
    """The lanes of two vectors of one type, one after the other."""
    lanes = 2 * first.lanes

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.shuffle_vector(args[0], args[1], _constant(_I32, list(range(lanes))))

    return Vector(first.element, lanes)(first, first), codegen


def _part(name: str, upper: bool) -> Any:
    def part(typingctx: Any, vector: Any) -> Any:
        lanes = vector.lanes // 2

        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            first = lanes if upper else 0
            return builder.shuffle_vector(args[0], args[0], _constant(_I32, list(range(first, first + lanes))))

        return Vector(vector.element, lanes)(vector), codegen

    part.__name__ = part.__qualname__ = name
    part.__doc__ = f"The {name} half of the lanes."
    return intrinsic(part)


lower = _part("lower", False)
upper = _part("upper", True)


@intrinsic
def lane(typingctx: Any, vector: Any, index: Any) -> Any:
    """One lane as a scalar."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.extract_element(args[0], args[1])

    return vector.element(vector, types.int64), codegen


@intrinsic
def bits(typingctx: Any, word: Any) -> Any:
    """The low 32 bits of an integer, lowest first, as 32 lanes of uint8 that are 0 or 1."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        flags = builder.bitcast(builder.trunc(args[0], _I32), ir.VectorType(ir.IntType(1), 32))
        return builder.zext(flags, ir.VectorType(ir.IntType(8), 32))

    return Vector(types.uint8, 32)(types.int64), codegen


@intrinsic
def pairs(typingctx: Any, word: Any) -> Any:
    """The low 32 bits of an integer, two by two, lowest first, as 16 lanes of int32."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        words = _splat(builder, builder.trunc(args[0], _I32), 16)
        return builder.and_(builder.lshr(words, _constant(_I32, list(range(0, 32, 2)))), _constant(_I32, [3] * 16))

    return Vector(types.int32, 16)(types.int64), codegen


@intrinsic
def negate(typingctx: Any, vector: Any, mask: Any) -> Any:
    """float32 lanes, negated where an integer has a bit: the lowest is for the first lane, of 32 at most."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        lanes = vector.lanes
        masks = _splat(builder, builder.trunc(args[1], _I32), lanes)
        at_top = builder.shl(masks, _constant(_I32, [31 - i for i in range(lanes)]))
        signs = builder.and_(at_top, _constant(_I32, [0x80000000] * lanes))
        flipped = builder.xor(builder.bitcast(args[0], signs.type), signs)
        return builder.bitcast(flipped, args[0].type)

    return vector(vector, types.int64), codegen


@intrinsic
def spread(typingctx: Any, scalar: Any, like: Any) -> Any:
    """A scalar in as many lanes as the vector ``like`` has."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return _splat(builder, args[0], like.lanes)

    return Vector(scalar, like.lanes)(scalar, like), codegen


@intrinsic
def lookup(typingctx: Any, table: Any, indices: Any) -> Any:
    """The lanes of ``table`` at ``indices``: one of its 16 lanes for each of 16 indices."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        # LLVM recognizes lane by lane as one shuffle of bytes where the processor has it.
        result = ir.Constant(args[0].type, ir.Undefined)
        for i in range(indices.lanes):
            index = builder.extract_element(args[1], _I32(i))
            value = builder.extract_element(args[0], builder.zext(index, _I32))
            result = builder.insert_element(result, value, _I32(i))
        return result

    return table(table, indices), codegen


# Stores


#: What numpy's own large arrays have; wider streaming stores are hardly faster.
STREAM_ALIGNMENT: Final = 16


class Output(types.Type):
    """Memory that takes float32 lanes as numbers of ``dtype``; an integer address at run time.

    ``streamed`` memory is written past the caches, which spares reading it first: half as fast again for an
    output that would not stay in the cache anyway.  It must be aligned to `STREAM_ALIGNMENT`.
    """

    def __init__(self, dtype: OutputName, streamed: bool) -> None:
        self.dtype = dtype
        self.streamed = streamed
        super().__init__(name=f"Output({dtype}, streamed={streamed})")

    @property
    def key(self) -> tuple[str, bool]:
        return self.dtype, self.streamed


@register_model(Output)
class OutputModel(models.PrimitiveModel):
    """An address is one integer."""

    def __init__(self, manager: Any, type_: Output) -> None:
        super().__init__(manager, type_, manager.lookup(types.intp).get_value_type())


@unbox(Output)
def _unbox_output(type_: Output, value: Any, c: Any) -> Any:
    return c.unbox(types.intp, value)


@intrinsic
def store(typingctx: Any, out: Any, index: Any, vector: Any) -> Any:
    """Write float32 lanes to ``out[index:]``, converted to its dtype."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        base, index, value = args
        if out.dtype == "float64":
            value = builder.fpext(value, ir.VectorType(ir.DoubleType(), vector.lanes))
        elif out.dtype == "float16":
            value = _f32_to_half(context, builder, value)
        elif out.dtype == "bfloat16":
            value = _f32_to_bfloat16(context, builder, value)
        item = {"float64": 8, "float32": 4}.get(out.dtype, 2)
        at = builder.add(base, builder.mul(index, index.type(item)))
        if not out.streamed:
            builder.store(value, builder.inttoptr(at, value.type.as_pointer()), align=1)
            return context.get_dummy_value()
        flag = builder.module.add_metadata([_I32(1)])
        lanes = min(STREAM_ALIGNMENT // item, vector.lanes)
        for first in range(0, vector.lanes, lanes):
            part = builder.shuffle_vector(value, value, _constant(_I32, list(range(first, first + lanes))))
            pointer = builder.inttoptr(
                builder.add(at, at.type(item * first)), ir.VectorType(value.type.element, lanes).as_pointer()
            )
            builder.store(part, pointer, align=item * lanes).set_metadata("nontemporal", flag)
        return context.get_dummy_value()

    return types.void(out, types.intp, vector), codegen
