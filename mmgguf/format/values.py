"""One row per metadata value type, and the way from Python values to stored ones.

The reader takes its dtypes and struct codes from the same rows (`NUMBERS`), so that both directions agree.

Which type an untyped value gets, where its key says nothing (`type_for` looks the key up in `keytypes` first):

========================================  ===================================================================
value                                     stored as
========================================  ===================================================================
``bool``                                  BOOL
``int``                                   UINT32 or UINT64 from zero up, INT32 or INT64 below zero: the
                                          smaller one that holds it
``float``                                 FLOAT32
``str``, ``bytes``                        STRING (UTF-8 with ``surrogateescape``; bytes as they are)
numpy scalar                              exactly its own type
numpy array of one dimension              ARRAY of exactly its element type
list, tuple, other sequence               ARRAY of the type that all elements share, by the rules above
`TypedValue`                              what it says
========================================  ===================================================================
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from ..types import ByteOrder, ValueType, byte_order_character
from .keytypes import array_type, scalar_type
from .strings import StringArray

__all__ = ["NUMBERS", "NumberFormat", "TypedValue", "encode_string", "encode_value", "infer_type", "type_for"]


@dataclass(frozen=True, slots=True)
class NumberFormat:
    """How a value type of fixed size is stored.

    Attributes
    ----------
    code : str
        Its format character for `struct`, without a byte order.
    dtype : numpy.dtype
        The same, little-endian.  BOOL is one byte: 0 or 1.
    """

    code: str
    dtype: np.dtype[Any]

    def stored(self, byte_order: ByteOrder) -> np.dtype[Any]:
        """The dtype of an element in a file of that byte order."""
        return self.dtype.newbyteorder(">") if byte_order == "big" else self.dtype


#: All value types but STRING and ARRAY.
NUMBERS: Final[dict[ValueType, NumberFormat]] = {
    ValueType.UINT8: NumberFormat("B", np.dtype("u1")),
    ValueType.INT8: NumberFormat("b", np.dtype("i1")),
    ValueType.UINT16: NumberFormat("H", np.dtype("<u2")),
    ValueType.INT16: NumberFormat("h", np.dtype("<i2")),
    ValueType.UINT32: NumberFormat("I", np.dtype("<u4")),
    ValueType.INT32: NumberFormat("i", np.dtype("<i4")),
    ValueType.FLOAT32: NumberFormat("f", np.dtype("<f4")),
    ValueType.BOOL: NumberFormat("?", np.dtype("?")),
    ValueType.UINT64: NumberFormat("Q", np.dtype("<u8")),
    ValueType.INT64: NumberFormat("q", np.dtype("<i8")),
    ValueType.FLOAT64: NumberFormat("d", np.dtype("<f8")),
}

# Keyed by kind and size: neither the byte order nor C's names (long, long long) make another value type.
_BY_KIND: Final = {(row.dtype.kind, row.dtype.itemsize): type_ for type_, row in NUMBERS.items()}
_ARRAY: Final = ValueType.ARRAY
#: Lengths and counts have four bytes in version 1.
_SIZES: Final = {4: "I", 8: "Q"}


@dataclass(frozen=True, slots=True)
class TypedValue:
    """A metadata value together with the type that it is stored as.

    Attributes
    ----------
    value
        A Python or numpy value; for ARRAY a sequence or a numpy array of one dimension.
    type : ValueType
        What it is stored as.
    element_type : ValueType, optional
        What the elements of an ARRAY are stored as: needed there, and only there.

    Raises
    ------
    ValueError
        ``element_type`` is missing, out of place, or ARRAY (ggml refuses nested arrays).

    Examples
    --------
    >>> TypedValue(32, ValueType.UINT64)
    TypedValue(value=32, type=<ValueType.UINT64: 10>, element_type=None)
    >>> TypedValue([], ValueType.ARRAY, ValueType.STRING).element_type.name
    'STRING'
    """

    value: Any
    type: ValueType
    element_type: ValueType | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "type", ValueType(self.type))
        if self.element_type is not None:
            object.__setattr__(self, "element_type", ValueType(self.element_type))
        if self.type is ValueType.ARRAY:
            if self.element_type is None:
                raise ValueError("an ARRAY needs an element_type")
            if self.element_type is ValueType.ARRAY:
                raise ValueError("an ARRAY of ARRAY cannot be stored: ggml refuses nested arrays")
        elif self.element_type is not None:
            raise ValueError(f"{self.type.name} takes no element_type, got {self.element_type.name}")


def infer_type(value: Any, where: str) -> TypedValue:
    """Choose the stored type of a Python value, by the rules in the module's docstring.

    Parameters
    ----------
    value
        A Python or numpy value, or a `TypedValue`, which is returned unchanged.
    where : str
        What the value is, for the error message.

    Raises
    ------
    TypeError
        GGUF has no type for the value, or the elements of a sequence have no type in common.
    ValueError
        An integer is beyond 64 bits, an array has not one dimension, or a sequence is empty.
    """
    if isinstance(value, TypedValue):
        return value
    if isinstance(value, np.ndarray):
        return _infer_array(value, where)
    if isinstance(value, StringArray):
        return TypedValue(value, ValueType.ARRAY, ValueType.STRING)
    if isinstance(value, Sequence) and not isinstance(value, str | bytes | bytearray | memoryview):
        items = list(value)
        return TypedValue(items, ValueType.ARRAY, _common_type(items, where))
    return TypedValue(value, _scalar_type(value, where))


def type_for(key: str, value: Any, where: str) -> TypedValue:
    """Choose the stored type of a value by its key, or by `infer_type` if the key is not known.

    A value that brings a type of its own (`TypedValue`, numpy's scalars and arrays) keeps it.  Whether the type of the
    key holds the value is seen when it is encoded.

    Raises
    ------
    TypeError, ValueError
        As `infer_type`.

    Examples
    --------
    >>> type_for("llama.block_count", 32, "").type.name, type_for("my.count", -1, "").type.name
    ('UINT32', 'INT32')
    """
    if isinstance(value, TypedValue | np.ndarray | np.generic | StringArray):
        return infer_type(value, where)
    if isinstance(value, Sequence) and not isinstance(value, str | bytes | bytearray | memoryview):
        element_type = array_type(key)
        return infer_type(value, where) if element_type is None else TypedValue(list(value), _ARRAY, element_type)
    if (type_ := scalar_type(key)) is not None:
        return TypedValue(value, type_)
    if isinstance(value, bytes | bytearray) and array_type(key) is ValueType.UINT8:
        return TypedValue(np.frombuffer(value, np.uint8), _ARRAY, ValueType.UINT8)
    return infer_type(value, where)


def _infer_array(value: np.ndarray[Any, Any], where: str) -> TypedValue:
    if value.ndim == 0:
        return infer_type(value[()], where)
    _require_one_dimension(value, where)
    if value.dtype.kind in "USTO":
        return infer_type(value.tolist(), where)
    element_type = _BY_KIND.get((value.dtype.kind, value.dtype.itemsize))
    if element_type is None:
        raise TypeError(f"{where}: GGUF has no value type for arrays of {value.dtype}")
    return TypedValue(value, ValueType.ARRAY, element_type)


def _require_one_dimension(value: np.ndarray[Any, Any], where: str) -> None:
    if value.ndim != 1:
        raise ValueError(f"{where}: arrays in metadata have one dimension, got shape {value.shape}")


def _scalar_type(value: Any, where: str) -> ValueType:
    match value:
        case str() | bytes() | bytearray():
            return ValueType.STRING
        case np.generic():
            type_ = _BY_KIND.get((value.dtype.kind, value.dtype.itemsize))
            if type_ is not None:
                return type_
        case bool():
            return ValueType.BOOL
        case int():
            return _integer_type(value, value, where)
        case float():
            return ValueType.FLOAT32
    raise TypeError(f"{where}: GGUF has no value type for {type(value).__name__}: {value!r:.60}")


def _integer_type(low: int, high: int, where: str) -> ValueType:
    """The smallest type of 32 or 64 bits that holds every integer from `low` to `high`."""
    if low >= 0:
        if high < 1 << 32:
            return ValueType.UINT32
        if high < 1 << 64:
            return ValueType.UINT64
    else:
        if low >= -(1 << 31) and high < 1 << 31:
            return ValueType.INT32
        if low >= -(1 << 63) and high < 1 << 63:
            return ValueType.INT64
    raise ValueError(f"{where}: no integer type of 64 bits holds {low if low < 0 else high}")


def _common_type(items: list[Any], where: str) -> ValueType:
    if not items:
        raise ValueError(
            f"{where}: an empty sequence has no element type; name one with "
            "TypedValue([], ValueType.ARRAY, ValueType.STRING), or pass an empty numpy array"
        )
    classes = set(map(type, items))
    # Python's own ints and floats (and subclasses, such as IntEnum members) mix as they do in arithmetic.
    if all(issubclass(c, int) and c is not bool for c in classes):
        return _integer_type(min(items), max(items), where)
    if all(issubclass(c, int | float) and not issubclass(c, bool | np.generic) for c in classes):
        return ValueType.FLOAT32
    if any(issubclass(c, Sequence | np.ndarray) and not issubclass(c, str | bytes | bytearray) for c in classes):
        raise TypeError(f"{where}: nested arrays cannot be stored, ggml refuses them")
    examples = {c: next(item for item in items if type(item) is c) for c in classes}
    types = {_scalar_type(example, where) for example in examples.values()}
    if len(types) > 1:
        names = ", ".join(sorted(c.__name__ for c in classes))
        raise TypeError(f"{where}: the elements of an array share one type, got {names}")
    return types.pop()


def encode_string(value: str | bytes, byte_order: ByteOrder, where: str, width: int = 8) -> bytes:
    """A string as the format stores it: a length of `width` bytes and that many bytes, without a terminator."""
    raw = _string_bytes(value, where)
    return struct.pack(byte_order_character(byte_order) + _SIZES[width], len(raw)) + raw


def _string_bytes(value: Any, where: str) -> bytes:
    if isinstance(value, str):
        try:
            return value.encode("utf-8", "surrogateescape")
        except UnicodeEncodeError as error:
            raise ValueError(f"{where}: {value!r:.60} has no UTF-8 form: {error.reason} at {error.start}") from None
    if isinstance(value, bytes | bytearray):
        return bytes(value)
    raise TypeError(f"{where}: STRING takes str or bytes, got {type(value).__name__}: {value!r:.60}")


def encode_value(typed: TypedValue, byte_order: ByteOrder, where: str, width: int = 8) -> bytes:
    """Encode a value as the file stores it, without the value type in front.

    Lengths and counts take `width` bytes: 4 in version 1, else 8.

    Raises
    ------
    TypeError
        The value is of another kind than its type (a float for an integer type, say).
    ValueError
        The value is out of its type's range.
    """
    if typed.type is ValueType.STRING:
        return encode_string(typed.value, byte_order, where, width)
    if typed.type is ValueType.ARRAY:
        assert typed.element_type is not None  # TypedValue's own check
        return _encode_array(typed.value, typed.element_type, byte_order, where, width)
    return _pack_numbers([typed.value], typed.type, byte_order, where)


def _encode_array(value: Any, element_type: ValueType, byte_order: ByteOrder, where: str, width: int) -> bytes:
    if isinstance(value, StringArray) and element_type is ValueType.STRING and width == 8:
        head = struct.pack(byte_order_character(byte_order) + "IQ", element_type, len(value))
        return head + value.encoded(byte_order)
    if isinstance(value, np.ndarray):
        _require_one_dimension(value, where)
        if element_type is ValueType.STRING or value.dtype.kind == "O":
            value = value.tolist()
    elif isinstance(value, Sequence) and not isinstance(value, str | bytes | bytearray | memoryview):
        value = list(value)
    else:
        raise TypeError(f"{where}: ARRAY takes a sequence, got {type(value).__name__}: {value!r:.60}")
    head = struct.pack(byte_order_character(byte_order) + "I" + _SIZES[width], element_type, len(value))
    if element_type is ValueType.STRING:
        return head + b"".join([encode_string(item, byte_order, where, width) for item in value])
    if isinstance(value, np.ndarray):
        return head + _convert_array(value, element_type, byte_order, where).tobytes()
    return head + _pack_numbers(value, element_type, byte_order, where)


def _pack_numbers(values: list[Any], type_: ValueType, byte_order: ByteOrder, where: str) -> bytes:
    for value in values:
        # struct takes anything as a bool, and bools as numbers; both are slips of the caller here.
        if isinstance(value, bool | np.bool_) != (type_ is ValueType.BOOL):
            raise TypeError(f"{where}: {type_.name} does not take {type(value).__name__}: {value!r:.60}")
    try:
        return struct.pack(f"{byte_order_character(byte_order)}{len(values)}{NUMBERS[type_].code}", *values)
    except (struct.error, OverflowError) as error:
        shown = f"{values[0]!r:.60}" if len(values) == 1 else f"one of {len(values)} values"
        wrong_kind = "not an integer" in str(error) or "must be real number" in str(error)
        if wrong_kind or not all(isinstance(value, int | float | np.number) for value in values):
            raise TypeError(f"{where}: {type_.name} does not take {shown} ({error})") from None
        raise ValueError(f"{where}: {shown} is out of {type_.name}'s range ({error})") from None


def _convert_array(
    value: np.ndarray[Any, Any], element_type: ValueType, byte_order: ByteOrder, where: str
) -> np.ndarray[Any, Any]:
    target = NUMBERS[element_type].stored(byte_order)
    if value.dtype.kind == "b" and target.kind == "b":
        # A view of stored bytes may hold trues other than 1.
        truth: np.ndarray[Any, Any] = value.view(np.uint8) != 0
        return truth
    if value.dtype.kind not in ("iu" if target.kind in "iu" else "iuf") or target.kind == "b":
        raise TypeError(f"{where}: {element_type.name} does not take an array of {value.dtype}")
    if value.dtype == target:
        return value
    if target.kind in "iu" and value.size:
        limits = np.iinfo(target)
        low, high = int(value.min()), int(value.max())
        if low < limits.min or high > limits.max:
            outside = low if low < limits.min else high
            raise ValueError(f"{where}: {outside} is out of {element_type.name}'s range")
    try:
        with np.errstate(over="raise"):
            return value.astype(target)
    except FloatingPointError:
        raise ValueError(f"{where}: a number is out of {element_type.name}'s range") from None
