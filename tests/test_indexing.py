"""Indexing as pure functions, against numpy: tables of cases, without files."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from mmgguf.indexing import part, select

BLOCK = 4
#: Rows of the last axis are whole blocks.
SHAPES = [(8,), (3, 8), (2, 3, 12)]
ALL, EVEN = slice(None), slice(None, None, 2)


def stored(shape: tuple[int, ...]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Numbers, and the same as blocks of four."""
    numbers = np.arange(math.prod(shape), dtype=np.float32).reshape(shape)
    return numbers, numbers.view(np.dtype((np.void, 4 * BLOCK)))


def by_blocks(blocks: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return np.ascontiguousarray(blocks).view(np.float32)


def check_select(key: Any, shape: tuple[int, ...]) -> int | None:
    """The result is numpy's; how many blocks it took, None if all numbers were needed."""
    numbers, blocks = stored(shape)
    try:
        expected = numbers[key]
    except IndexError:
        try:
            selection = select(key, shape, BLOCK)
            if selection is not None:
                blocks[selection.blocks]
        except IndexError:
            return -1
        assert selection is None, "numpy raises IndexError"  # and will, for all numbers
        return -1
    selection = select(key, shape, BLOCK)
    if selection is None:
        return None
    chosen = blocks[selection.blocks]
    got = by_blocks(chosen)[selection.cut][()]
    assert type(got) is type(expected)
    np.testing.assert_array_equal(got, expected)
    return int(chosen.size)


@pytest.mark.parametrize(
    ("shape", "key", "blocks"),
    [
        ((8,), (), 2), ((8,), ..., 2), ((8,), 5, 1), ((8,), -8, 1), ((8,), (..., 5), None), ((8,), np.int64(3), 1),
        ((8,), slice(1, 3), 1), ((8,), slice(3, 5), 2), ((8,), slice(5, 5), 0), ((8,), slice(None, None, -1), 2),
        ((8,), slice(7, 3, -2), 1), ((8,), slice(2, None, -1), 1), ((8,), [1, 7], None), ((8,), None, None),
        ((8,), True, None), ((8,), 8, -1), ((8,), -9, -1), ((8,), "a", -1), ((8,), b"a", -1), ((8,), 1.5, -1),
        ((8,), (0, 0), -1), ((8,), (..., ...), -1), ((8,), 1j, -1),
        ((3, 8), 1, 2), ((3, 8), (1, 5), 1), ((3, 8), (ALL, 5), 3), ((3, 8), (EVEN, slice(0, 4)), 2),
        ((3, 8), ([2, 0, 2], ALL), 6), ((3, 8), ([2, 0], 7), 2), ((3, 8), np.array([True, False, True]), 4),
        ((3, 8), ([True, False, True], 1), 2), ((3, 8), [True, False], -1), ((3, 8), (0, [1]), None),
        ((3, 8), (..., 1, 5), None), ((3, 8), (1, ..., 5), None), ((3, 8), (1, 5, ...), None), ((3, 8), (3, 0), -1),
        ((3, 8), ([], ALL), 0), ((3, 8), (0, 8), -1), ((3, 8), (None, 1), None), ((3, 8), np.eye(3, 8) > 0, None),
        ((2, 3, 12), (1, 2, 11), 1), ((2, 3, 12), (..., 0), 6), ((2, 3, 12), (ALL, [0, 2], 5), None),
        ((2, 3, 12), ([0, 1], [2, 0], 5), 2), ((2, 3, 12), ([0, 1], 1, slice(2, 9)), 6),
        ((2, 3, 12), (ALL, [1], slice(0, 4)), 2), ((2, 3, 12), (1, ..., [1], 3), None),
        ((2, 3, 12), (0, 1, ..., 2), None),
        ((2, 3, 12), ([[0], [1]], [0, 2], 5), 4), ((2, 3, 12), (slice(1, None), slice(None, None, -2), slice(4, 8)), 2),
    ],
)  # fmt: skip
def test_select(shape: tuple[int, ...], key: Any, blocks: int | None) -> None:
    assert check_select(key, shape) == blocks


@settings(deadline=None)
@given(st.data())
def test_select_any_key(data: st.DataObject) -> None:
    shape = data.draw(st.sampled_from(SHAPES))
    basic = npst.basic_indices(shape, allow_newaxis=True)
    rows = npst.integer_array_indices(shape[:1], result_shape=npst.array_shapes(max_dims=1, max_side=4))
    check_select(data.draw(basic | rows), shape)


def check_part(key: Any, shape: tuple[int, ...]) -> int:
    """What numpy gives of the whole, it gives of the part; how many items that has."""
    items = np.arange(math.prod(shape)).reshape(shape)
    found = part(key, shape)
    if found.rows is None:
        size = math.prod(found.shape)
        piece = items.reshape(-1)[found.start : found.start + size].reshape(found.shape)
    else:
        assert (np.diff(found.rows) > 0).all()
        piece = items.reshape(len(items), -1)[found.rows].reshape(len(found.rows), *found.shape)
    try:
        expected = items[key]
    except IndexError:
        with pytest.raises(IndexError):
            piece[found.key]
        return -1
    np.testing.assert_array_equal(piece[found.key], expected)
    return int(piece.size)


@pytest.mark.parametrize(
    ("shape", "key", "items"),
    [
        ((), (), 1), ((), ..., 1), ((5,), (), 5), ((5,), 3, 1), ((5,), -5, 1), ((5,), slice(1, 3), 2), ((5,), EVEN, 5),
        ((5,), slice(None, None, -2), 5), ((5,), slice(3, 0, -2), 3), ((5,), slice(9, 2), 0), ((5,), [3, 0, 3], 2),
        ((5,), [-1], 1), ((5,), np.array([True, False, True, False, False]), 2), ((5,), [], 5), ((5,), 5, -1),
        ((5,), [5], -1), ((5,), [True, False], -1), ((5,), "a", -1), ((5,), None, 5), ((5,), True, 5),
        ((4, 6), 2, 6), ((4, 6), (2, 3), 1), ((4, 6), (2, slice(1, 3)), 2), ((4, 6), (slice(1, 3), 3), 12),
        ((4, 6), (..., 3), 24), ((4, 6), (2, ...), 6), ((4, 6), ([3, 1], 2), 12), ((4, 6), (1, [2, 3]), 24),
        ((4, 6), (None, 1), 24), ((4, 6), (np.int8(1), np.uint8(2)), 1), ((4, 6), (1, 2, 3), -1),
        ((2, 3, 4), (1, 2), 4), ((2, 3, 4), (1, slice(0, 2), 3), 8), ((2, 3, 4), ([1], slice(None), 2), 12),
        ((2, 3, 4), (1, 2, 3), 1), ((0, 4), ALL, 0), ((0, 4), 0, -1), ((2, 0), 1, 0),
    ],
)  # fmt: skip
def test_part(shape: tuple[int, ...], key: Any, items: int) -> None:
    assert check_part(key, shape) == items


@settings(deadline=None)
@given(st.data())
def test_part_of_any_key(data: st.DataObject) -> None:
    shape = data.draw(npst.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4))
    check_part(data.draw(npst.basic_indices(shape, allow_newaxis=True, allow_ellipsis=True)), shape)
