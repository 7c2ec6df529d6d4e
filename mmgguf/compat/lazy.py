"""Lazy sequences in place of the lists of pip's reader."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from typing import Any, Generic, TypeVar, overload

import numpy as np
import numpy.typing as npt

from ..format.strings import StringArray

__all__ = ["ArrayParts", "LazyList", "NumberParts", "PartIndexes", "Parts", "StringParts"]

Array = npt.NDArray[Any]
Index = int | slice
Spans = Sequence[tuple[np.dtype[Any], int]]
T = TypeVar("T")


class LazyList(Sequence[T], Generic[T]):
    """A read-only sequence that makes its items when they are asked for; slices and sums are lists."""

    __slots__ = ()

    def _item(self, index: int) -> T:
        """Item `index`, which is in range."""
        raise NotImplementedError

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> list[T]: ...
    def __getitem__(self, index: Index) -> T | list[T]:
        if isinstance(index, slice):
            return [self._item(i) for i in range(*index.indices(len(self)))]
        position = operator.index(index)
        if position < 0:
            position += len(self)
        if not 0 <= position < len(self):
            raise IndexError(f"list index {index} out of range: {len(self)} items")
        return self._item(position)

    def __iter__(self) -> Iterator[T]:
        return map(self._item, range(len(self)))

    def copy(self) -> list[T]:
        """A list of the items."""
        return list(self)

    def __add__(self, other: Sequence[T]) -> list[T]:
        return [*self, *other]

    def __radd__(self, other: Sequence[T]) -> list[T]:
        return [*other, *self]

    def __eq__(self, other: object) -> bool:
        if isinstance(other, str | bytes) or not isinstance(other, Sequence):
            return NotImplemented
        return len(self) == len(other) and all(
            np.array_equal(a, b)  # type: ignore[arg-type]  # numbers or arrays
            for a, b in zip(self, other, strict=True)
        )

    __hash__ = None  # type: ignore[assignment]  # as for any container that compares by value

    def __reduce__(self) -> tuple[Any, ...]:
        # By its items: what it refers to is the whole file.
        return list, (list(self),)

    def __repr__(self) -> str:
        shown = ", ".join(repr(item) for item in self[:6])
        return f"[{shown}{', …' if len(self) > 6 else ''}]"


class Parts(LazyList[Array]):
    """The stored pieces of a field in file order, as views of the file.

    Parameters
    ----------
    base : ndarray of uint8, shape (file size,)
        The file.
    spans : sequence of (dtype, count)
        The pieces.
    offset : int
        Where the first of them begins; each begins where the one before it ends.
    """

    __slots__ = ("_base", "_offset", "_spans")

    def __init__(self, base: Array, spans: Spans, offset: int) -> None:
        self._base = base
        self._spans = spans
        self._offset = offset

    def __len__(self) -> int:
        return len(self._spans)

    def _item(self, index: int) -> Array:
        offset = self._offset
        for dtype, count in self._spans[:index]:
            offset += dtype.itemsize * count
        dtype, count = self._spans[index]
        return np.ndarray((count,), dtype, self._base, offset)


class ArrayParts(Parts):
    """The pieces of a metadata array: those in front, and those of the elements.

    Attributes
    ----------
    indexes : PartIndexes
        Which parts hold the elements' values: the field's ``data``.
    """

    __slots__ = ("_first", "indexes")

    def __init__(self, base: Array, spans: Spans, offset: int, tail: int, per_element: int) -> None:
        super().__init__(base, spans, offset)
        self._first = len(spans)
        # The last of an element's parts is its value.
        start = self._first + per_element - 1
        self.indexes = PartIndexes(range(start, start + tail * per_element, per_element))

    def contents(self, index: Index) -> Any:
        """The value of one element, or a list."""
        raise NotImplementedError


class NumberParts(ArrayParts):
    """The pieces of an array of numbers: one part, of one number, for each element."""

    __slots__ = ("_values",)

    def __init__(self, base: Array, spans: Spans, offset: int, values: Array) -> None:
        super().__init__(base, spans, offset, len(values), 1)
        self._values = values

    def __len__(self) -> int:
        return self._first + len(self._values)

    def _item(self, index: int) -> Array:
        if index < self._first:
            return super()._item(index)
        index -= self._first
        return self._values[index : index + 1]

    def contents(self, index: Index) -> Any:
        return self._values[index].tolist()


class StringParts(ArrayParts):
    """The pieces of an array of strings: two parts, length and bytes, for each element."""

    __slots__ = ("_bounds", "_data", "_length_dtype", "_size", "_strings")

    def __init__(
        self, base: Array, spans: Spans, offset: int, data: Array, strings: StringArray, length: np.dtype[Any]
    ) -> None:
        super().__init__(base, spans, offset, len(strings), 2)
        self._data = data
        self._strings = strings
        self._length_dtype = length
        self._size = self._first + 2 * len(strings)
        self._bounds: memoryview[int] | None = None

    def __len__(self) -> int:
        return self._size

    @overload
    def __getitem__(self, index: int) -> Array: ...
    @overload
    def __getitem__(self, index: slice) -> list[Array]: ...
    def __getitem__(self, index: Index) -> Array | list[Array]:
        # Programs take half a million of these one by one: the straight way for them.
        if type(index) is int and 0 <= index < self._size:
            return self._item(index)
        return super().__getitem__(index)

    def _item(self, index: int) -> Array:
        index -= self._first
        if index < 0:
            return super()._item(index + self._first)
        # Where strings begin, and so where each ends; a memoryview gives an int twice as fast as an array does.
        bounds = self._bounds
        if bounds is None:
            bounds = self._bounds = self._strings.offsets.data
        start = bounds[index >> 1]
        if index & 1:
            return self._data[start + self._length_dtype.itemsize : bounds[(index >> 1) + 1]]
        return np.ndarray((1,), self._length_dtype, self._data, start)

    def contents(self, index: Index) -> Any:
        if not isinstance(index, slice):
            return str(self._strings.bytes(index), "utf-8")
        found = self._strings[index]
        try:
            # Bytes that are not UTF-8 were decoded to surrogates, which do not encode.
            "".join(found).encode()
        except UnicodeEncodeError:
            return [str(self._strings.bytes(i), "utf-8") for i in range(*index.indices(len(self._strings)))]
        return found


class PartIndexes(LazyList[int]):
    """Numbers of parts at an even distance."""

    __slots__ = ("_range",)

    def __init__(self, indexes: range) -> None:
        self._range = indexes

    def __len__(self) -> int:
        return len(self._range)

    def _item(self, index: int) -> int:
        return self._range[index]

    def __iter__(self) -> Iterator[int]:
        return iter(self._range)

    def __contains__(self, value: object) -> bool:
        return value in self._range

    def __eq__(self, other: object) -> bool:
        return list(self._range) == list(other) if isinstance(other, list | PartIndexes) else NotImplemented

    __hash__ = None
