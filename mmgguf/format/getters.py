"""Getters that check the type of a value: what `Metadata` and its sections have in common."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NoReturn, Self, TypeVar, overload

import numpy as np
import numpy.typing as npt

from ..errors import MetadataTypeError, shown
from .strings import StringArray

__all__ = ["TypedMapping"]

T = TypeVar("T")
_MISSING: Any = object()


class TypedMapping(Mapping[str, Any]):
    """Getters that check the type of a value: a wrong type raises `MetadataTypeError`.

    Each takes a key and optionally a default for a missing key.  Without one, a missing key raises
    `NameNotFoundError`; a value of another type raises `MetadataTypeError` in either case.
    """

    __slots__ = ()

    def _full_key(self, key: str) -> str:
        return key

    def _ipython_key_completions_(self) -> list[str]:
        """What TAB offers between the brackets."""
        return list(self)

    def __eq__(self, other: object) -> bool:
        """Whether another mapping has the same keys and equal values, whatever their order and stored types."""
        if not isinstance(other, Mapping):
            return NotImplemented
        return self.keys() == other.keys() and all(_equal(value, other[key]) for key, value in self.items())

    __hash__ = None  # type: ignore[assignment]  # as for any container that compares by value

    def __copy__(self) -> Self:
        return self  # nothing in it can be changed

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"{type(self).__name__} cannot be pickled: send the file, or dict() of it")

    @overload
    def get_int(self, key: str) -> int: ...
    @overload
    def get_int(self, key: str, default: T) -> int | T: ...
    def get_int(self, key: str, default: Any = _MISSING) -> Any:
        """An integer of any width and sign."""
        return self._typed(key, int, "an integer", default)

    @overload
    def get_float(self, key: str) -> float: ...
    @overload
    def get_float(self, key: str, default: T) -> float | T: ...
    def get_float(self, key: str, default: Any = _MISSING) -> Any:
        """A float; an integer is taken too, since writers store whole numbers as either."""
        return self._typed(key, (float, int), "a float", default, float)

    @overload
    def get_bool(self, key: str) -> bool: ...
    @overload
    def get_bool(self, key: str, default: T) -> bool | T: ...
    def get_bool(self, key: str, default: Any = _MISSING) -> Any:
        """A bool."""
        return self._typed(key, bool, "a bool", default)

    @overload
    def get_str(self, key: str) -> str: ...
    @overload
    def get_str(self, key: str, default: T) -> str | T: ...
    def get_str(self, key: str, default: Any = _MISSING) -> Any:
        """A string."""
        return self._typed(key, str, "a string", default)

    @overload
    def get_array(self, key: str) -> npt.NDArray[Any] | StringArray: ...
    @overload
    def get_array(self, key: str, default: T) -> npt.NDArray[Any] | StringArray | T: ...
    def get_array(self, key: str, default: Any = _MISSING) -> Any:
        """An array: a numpy array of shape (n,), or a `StringArray`."""
        return self._typed(key, (np.ndarray, StringArray), "an array", default)

    def _typed(
        self,
        key: str,
        types: type | tuple[type, ...],
        wanted: str,
        default: Any,
        convert: Callable[[Any], Any] | None = None,
    ) -> Any:
        try:
            value = self[key]
        except KeyError:
            if default is _MISSING:
                raise
            return default
        if not isinstance(value, types) or (isinstance(value, bool) and types is not bool):
            raise MetadataTypeError(f"{shown(self._full_key(key))}: {wanted} was asked for, got {_describe(value)}")
        return value if convert is None else convert(value)


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, np.ndarray) or isinstance(b, np.ndarray):
        return bool(np.array_equal(a, b))
    return bool(a == b)


def _describe(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"an array of {len(value)} {value.dtype}"
    if isinstance(value, StringArray):
        return f"an array of {len(value)} strings"
    return f"the {type(value).__name__} {value!r:.60}"
