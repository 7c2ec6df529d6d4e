"""Metadata values: which type they get, and how they are stored."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from mmgguf.format.values import TypedValue, encode_value, infer_type
from mmgguf.types import FileType, ValueType

V = ValueType


@pytest.mark.parametrize(
    ("value", "type_", "element_type"),
    [
        (True, V.BOOL, None),
        (0, V.UINT32, None),
        ((1 << 32) - 1, V.UINT32, None),
        (1 << 32, V.UINT64, None),
        ((1 << 64) - 1, V.UINT64, None),
        (-1, V.INT32, None),
        (-(1 << 31), V.INT32, None),
        (-(1 << 31) - 1, V.INT64, None),
        (-(1 << 63), V.INT64, None),
        (1.5, V.FLOAT32, None),
        ("text", V.STRING, None),
        (b"\xff", V.STRING, None),
        (bytearray(b"x"), V.STRING, None),
        (FileType.MOSTLY_Q4_0, V.UINT32, None),
        (np.uint8(1), V.UINT8, None),
        (np.int16(-1), V.INT16, None),
        (np.float32(1), V.FLOAT32, None),
        (np.float64(1), V.FLOAT64, None),
        (np.bool_(True), V.BOOL, None),
        (np.longlong(1), V.INT64, None),
        (np.str_("x"), V.STRING, None),
        (np.array(7, "u2"), V.UINT16, None),
        (np.arange(3, dtype=">i2"), V.ARRAY, V.INT16),
        (np.zeros(0, "f8"), V.ARRAY, V.FLOAT64),
        (np.array([True]), V.ARRAY, V.BOOL),
        (np.array(["a", "bc"]), V.ARRAY, V.STRING),
        (np.array([1, -1], object), V.ARRAY, V.INT32),
        ([1, 2], V.ARRAY, V.UINT32),
        ([1, -2], V.ARRAY, V.INT32),
        ([-1, 1 << 31], V.ARRAY, V.INT64),
        ([1, 1 << 40], V.ARRAY, V.UINT64),
        (range(3), V.ARRAY, V.UINT32),
        ((1.0, 2), V.ARRAY, V.FLOAT32),
        (["a", b"b"], V.ARRAY, V.STRING),
        ([True, False], V.ARRAY, V.BOOL),
        ([np.int8(1), np.int8(2)], V.ARRAY, V.INT8),
    ],
    ids=repr,
)
def test_inferred_types(value: Any, type_: ValueType, element_type: ValueType | None) -> None:
    typed = infer_type(value, "key")
    assert (typed.type, typed.element_type) == (type_, element_type)


@pytest.mark.parametrize(
    ("typed", "stored"),
    [
        (TypedValue(7, V.UINT8), b"\x07"),
        (TypedValue(np.int64(7), V.UINT16), b"\x07\x00"),
        (TypedValue(7, V.FLOAT32), b"\x00\x00\xe0\x40"),
        (TypedValue(math.nan, V.FLOAT32), b"\x00\x00\xc0\x7f"),
        (TypedValue(np.array([1, 2]), V.ARRAY, V.UINT8), b"\0\0\0\0\2" + bytes(7) + b"\1\2"),
        (TypedValue((1, 2), V.ARRAY, V.UINT8), b"\0\0\0\0\2" + bytes(7) + b"\1\2"),
        (TypedValue(np.array([1.0], "f2"), V.ARRAY, V.FLOAT32), b"\6\0\0\0\1" + bytes(7) + b"\0\0\x80\x3f"),
        (TypedValue(np.array([math.inf]), V.ARRAY, V.FLOAT32), b"\6\0\0\0\1" + bytes(7) + b"\0\0\x80\x7f"),
        # A view of stored bytes may hold trues other than 1.
        (
            TypedValue(np.array([0, 1, 2], "u1").view("?"), V.ARRAY, V.BOOL),
            b"\7\0\0\0\3" + bytes(7) + b"\0\1\1",
        ),
        (
            TypedValue(np.array(["a"]), V.ARRAY, V.STRING),
            b"\x08\0\0\0\1" + bytes(7) + b"\1" + bytes(7) + b"a",
        ),
    ],
    ids=repr,
)
def test_forced_types(typed: TypedValue, stored: bytes) -> None:
    assert encode_value(typed, "little", "key") == stored


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1, V.ARRAY), "needs an element_type"),
        (([], V.ARRAY, V.ARRAY), "nested"),
        ((1, V.UINT8, V.UINT8), "UINT8 takes no element_type"),
        ((1, 13), "13 is not a valid ValueType"),
    ],
)
def test_typed_values_are_checked(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TypedValue(*arguments)
