"""The table of blocks: every size is C's."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable

import numpy as np
import pytest

from mmgguf.types import LAYOUTS, FileType, GGMLType, UnknownType, ValueType, layout_of

from .support import ggml

# Sizes of types newer than the C library that the tests have, from ggml-common.h.
NEWER = {GGMLType.Q2_0: (64, 18)}


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (lambda t: str(t), "Q4_K"),
        (lambda t: f"{t}", "Q4_K"),
        (lambda t: f"{t:>6}", "  Q4_K"),
        (lambda t: f"{t!s:6}|", "Q4_K  |"),
        (lambda t: f"{t:d} {t:#x} {t:03d}", "12 0xc 012"),
        (lambda t: f"{t!r}", "<GGMLType.Q4_K: 12>"),
        (lambda t: "%d" % t, "12"),  # noqa: UP031
        (json.dumps, "12"),
        (lambda t: str(FileType.MOSTLY_Q4_K_M), "MOSTLY_Q4_K_M"),
        (lambda t: f"{ValueType.STRING}", "STRING"),
    ],
)
def test_types_are_shown_by_name(shown: Callable[[GGMLType], str], expected: str) -> None:
    assert shown(GGMLType.Q4_K) == expected


def test_an_unknown_type_is_a_number_with_a_name() -> None:
    type_ = UnknownType(99)
    assert (type_, type_.name, f"{type_}", hash(type_)) == (99, "UNKNOWN_99", "99", hash(99))
    again = pickle.loads(pickle.dumps(type_))
    assert (type(again), again) == (UnknownType, 99)
    assert not isinstance(type_, GGMLType)


def test_every_type_has_a_layout() -> None:
    assert set(LAYOUTS) == set(GGMLType)
    assert set(NEWER) == ggml.NOT_IN_C


@pytest.mark.parametrize("type_", GGMLType, ids=lambda t: t.name)
def test_sizes_are_those_of_c(type_: GGMLType) -> None:
    layout = LAYOUTS[type_]
    expected = NEWER.get(type_) or (ggml.block_size(type_), ggml.type_size(type_))
    assert (layout.block_size, layout.type_size) == expected
    assert layout.bpw == 8 * expected[1] / expected[0]
    assert layout.is_plain == (layout.block_size == 1)


@pytest.mark.parametrize("type_", GGMLType, ids=lambda t: t.name)
def test_fields_are_packed_and_little_endian(type_: GGMLType) -> None:
    dtype = LAYOUTS[type_].dtype
    if dtype.names is None:
        assert dtype.newbyteorder("<") == dtype
        return
    end = 0
    for name in dtype.names:
        field, offset = dtype.fields[name][:2]
        assert offset == end
        assert field.base.newbyteorder("<") == field.base
        end += field.itemsize
    assert end == dtype.itemsize


@pytest.mark.parametrize("type_", GGMLType, ids=lambda t: t.name)
def test_big_endian_swaps_only_wide_fields(type_: GGMLType) -> None:
    little, big = LAYOUTS[type_].stored("little"), LAYOUTS[type_].stored("big")
    assert little == LAYOUTS[type_].dtype
    assert big.itemsize == little.itemsize
    assert big.names == little.names
    values = np.arange(2 * little.itemsize, dtype=np.uint8).view(little)
    np.testing.assert_array_equal(values.astype(big).astype(little).view(np.uint8), values.view(np.uint8))
    for name in little.names or ():
        assert (big[name] == little[name]) == (little[name].base.itemsize == 1)


@pytest.mark.parametrize("type_id", [4, 5, 31, 32, 33, 36, 37, 38, 43, 1 << 31])
def test_removed_and_unknown_ids_have_no_layout(type_id: int) -> None:
    assert layout_of(type_id) is None
    assert layout_of(int(GGMLType.Q4_K)) is LAYOUTS[GGMLType.Q4_K]
