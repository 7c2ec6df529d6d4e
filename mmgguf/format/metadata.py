"""Metadata: a Mapping of typed values in file order, whose arrays are lazy.

Numbers, bools and strings are Python values.  Arrays of numbers and bools are read-only numpy arrays, views of the
mapping where there is one; arrays of strings are `StringArray`, which decodes what is touched.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, overload

import numpy as np
import numpy.typing as npt

from ..errors import ClosedError, NameNotFoundError, shown
from ..types import ByteOrder, ValueType
from .constants import MAX_KEY_SIZE
from .getters import TypedMapping
from .strings import Chain, StringArray, decode, encode
from .values import NUMBERS, TypedValue, encode_value, type_for

__all__ = ["ArrayInfo", "ArraySource", "Metadata", "RetainedArrays", "Section"]

DEFAULT_MAX_ARRAY_SIZE = 1024


@dataclass(frozen=True, slots=True)
class ArrayInfo:
    """Where a metadata array lies.

    Attributes
    ----------
    element_type : ValueType
        Type of the elements; never ARRAY.
    count : int
        Number of elements.
    offset : int
        Byte in the file where the first element begins (for strings: its length); negative for an array that
        `Metadata.replace` was given, which is in no file.
    nbytes : int
        Bytes that all elements take.
    """

    element_type: ValueType
    count: int
    offset: int
    nbytes: int


class ArraySource(Protocol):
    """Where the bytes of metadata arrays come from."""

    def region(self, offset: int, nbytes: int) -> npt.NDArray[np.uint8]:
        """The bytes at `offset` of the file, shape (nbytes,)."""


class RetainedArrays:
    """The bytes of arrays kept in memory, for headers that were read from a stream."""

    __slots__ = ("_regions",)

    def __init__(self) -> None:
        self._regions: dict[int, bytes] = {}

    def keep(self, offset: int, data: bytes) -> None:
        self._regions[offset] = data

    def region(self, offset: int, nbytes: int) -> npt.NDArray[np.uint8]:
        # An empty array may share its offset with the one that follows it.
        return np.frombuffer(self._regions[offset] if nbytes else b"", np.uint8)


class Metadata(TypedMapping):
    """The key-value pairs of a file, in its order.

    ``dict(metadata)`` has arrays in it, which `json` does not take; it takes what `to_dict` gives.

    Parameters
    ----------
    values : dict
        By key: a Python value, or an `ArrayInfo`.
    types : dict
        By key: its `ValueType`.
    chain : Chain
        How the file stores strings.
    source : ArraySource, optional
        Gives the bytes of arrays.
    path : str, optional
        Where the file is, for errors.

    Attributes
    ----------
    byte_order : {"little", "big"}
        Of the file, and of the numpy arrays.
    """

    __slots__ = ("_arrays", "_chain", "_path", "_source", "_types", "_values", "byte_order")

    def __init__(
        self,
        values: dict[str, Any],
        types: dict[str, ValueType],
        chain: Chain,
        source: ArraySource | None = None,
        path: str = "",
    ) -> None:
        self._values = values
        self._types = types
        self._chain = chain
        self._source = source
        self._arrays: dict[str, Any] = {}
        self._path = path
        # No property: jedi, which completes in notebooks, fails on one that returns a Literal.
        self.byte_order: ByteOrder = chain.byte_order

    def close(self) -> None:
        """Give up the source: arrays can no longer be read."""
        self._source = None
        self._arrays = {}

    def __getitem__(self, key: str) -> Any:
        try:
            value = self._values[key]
        except KeyError:
            raise self._no_key(key) from None
        if not isinstance(value, ArrayInfo):
            return value
        arrays = self._arrays  # once: `close` may come between, and what was read before it is not kept
        array = arrays.get(key)
        if array is None:
            source = self._source  # once, likewise
            if source is None:
                raise ClosedError(f"{shown(key)}: the file is closed")
            array = arrays[key] = self._load(value, source)
        return array

    def _no_key(self, key: object) -> NameNotFoundError:
        where = f"{self._path}: " if self._path else ""
        return NameNotFoundError(f"{where}no metadata key {shown(key, quoted=True)}", key, self._values)

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __contains__(self, key: object) -> bool:
        return key in self._values

    def __repr__(self) -> str:
        return f"<Metadata of {len(self)} keys>"

    def _repr_html_(self) -> str:
        from ..notebook import metadata_html

        return metadata_html(self)

    def _load(self, info: ArrayInfo, source: ArraySource) -> npt.NDArray[Any] | StringArray:
        data = source.region(info.offset, info.nbytes)
        if info.element_type is ValueType.STRING:
            return StringArray(data, info.count, self._chain)
        if info.element_type is ValueType.BOOL:
            # The specification has 0 and 1, ggml takes any non-zero byte as true, numpy trusts the bytes.
            array = data.view(np.bool_) if not (data > 1).any() else data != 0
        else:
            array = data.view(NUMBERS[info.element_type].stored(self.byte_order))
        array.flags.writeable = False
        return array

    def type_of(self, key: str) -> ValueType:
        """The type that a value is stored as.

        Examples
        --------
        >>> mmgguf.open("model.gguf").metadata.type_of("llama.block_count")
        <ValueType.UINT32: 4>
        """
        if key not in self._types:
            raise self._no_key(key)
        return self._types[key]

    def array_info(self, key: str) -> ArrayInfo | None:
        """Element type, length and place of an array, without touching it; None for other values.

        Examples
        --------
        >>> mmgguf.open("model.gguf").metadata.array_info("tokenizer.ggml.tokens").count
        8
        """
        self.type_of(key)
        value = self._values[key]
        return value if isinstance(value, ArrayInfo) else None

    def read(self, key: str, source: ArraySource) -> Any:
        """A value as ``metadata[key]``, but of an array the bytes come from `source`, and it is not kept.

        For one pass over all values: a file of a megabyte may have fifty thousand arrays, and each kept one costs
        hundreds of bytes.
        """
        info = self.array_info(key)
        return self._values[key] if info is None else self._load(info, source)

    @overload
    def typed(self, key: str) -> TypedValue: ...
    @overload
    def typed(self) -> dict[str, TypedValue]: ...
    def typed(self, key: str | None = None) -> TypedValue | dict[str, TypedValue]:
        """A value with the type that it is stored as; or, without a key, a dict of all, ready for `mmgguf.write`.

        ``dict(metadata)`` has Python's values, whose types `mmgguf.write` has to guess: a UINT64 may become a UINT32,
        and a FLOAT64 a FLOAT32.

        Examples
        --------
        >>> with mmgguf.open("model.gguf") as f:
        ...     mmgguf.write("copy.gguf", f.metadata.typed() | {"general.name": "A copy"}, f)
        """
        if key is None:
            return {key: self.typed(key) for key in self._values}
        info = self.array_info(key)
        return TypedValue(self[key], self._types[key], info.element_type if info else None)

    def replace(
        self,
        changes: Mapping[str, Any] | None = None,
        *,
        remove: Iterable[str] = (),
        rename: Mapping[str, str] | None = None,
    ) -> Metadata:
        """The same metadata with other values, for `mmgguf.write`; this one and the file stay as they are.

        Parameters
        ----------
        changes : Mapping of str, optional
            New values by key.  A key that is there keeps its place and its type; only a `TypedValue` changes the type.
            A new key comes last, with the type that `mmgguf.write` would give it.
        remove : iterable of str
            Keys to leave out.
        rename : Mapping of str to str, optional
            New keys by old ones; place, type and value stay.

        Returns
        -------
        Metadata
            Arrays that were not replaced are still those of the file, and need it open.

        Raises
        ------
        TypeError, ValueError
            A value that its type does not hold, a key that cannot be stored, or that would be there twice.
        NameNotFoundError
            A key to remove or to rename that is not there.

        Examples
        --------
        >>> with mmgguf.open("model.gguf") as f:
        ...     new = f.metadata.replace({"general.name": "n"}, remove=["tokenizer.ggml.tokens"])
        ...     mmgguf.write("b.gguf", new, f)
        """
        removed, renamed = set(remove), dict(rename or {})
        for key in (*removed, *renamed):
            self.type_of(key)
            if key in removed and key in renamed:
                raise ValueError(f"{shown(key)}: cannot be removed and renamed")
        values: dict[str, Any] = {}
        types: dict[str, ValueType] = {}
        source = _Overlay(self)
        for key, value in self._values.items():
            if key in removed:
                continue
            new = renamed.get(key, key)
            if new in values or (new != key and new in self._values and new not in removed and new not in renamed):
                raise ValueError(f"{shown(new)}: the key exists already")
            if new != key:
                check_key(new)
            values[new], types[new] = value, self._types[key]
        for key, value in (changes or {}).items():
            where = f"metadata {shown(key, quoted=True)}"
            typed = _retyped(value, types[key], values[key]) if key in types else type_for(key, value, where)
            check_key(key)
            try:
                raw = encode_value(typed, self.byte_order, where, self._chain.width)
            except (TypeError, ValueError) as error:
                if key in types and not isinstance(value, TypedValue):
                    error.args = (f"{error}; a TypedValue would change the type",)
                raise
            types[key] = typed.type
            values[key] = source.keep(raw, typed, self._chain)
        return Metadata(values, types, self._chain, source)

    def section(self, prefix: str) -> Section:
        """The keys that begin with `prefix`, without it.

        Examples
        --------
        >>> mmgguf.open("model.gguf").metadata.section("llama.").get_int("block_count")
        1
        """
        return Section(self, prefix)

    def to_dict(self, max_array_size: int | None = DEFAULT_MAX_ARRAY_SIZE) -> dict[str, Any]:
        """Plain data that `json` takes.

        Parameters
        ----------
        max_array_size : int or None, default 1024
            Longer arrays are summarised as ``{"type": "STRING", "length": 128256}``, and not touched.  None: no limit.

        Returns
        -------
        dict
            Arrays as lists.  Floats may be NaN or infinite; strings may have surrogates for bytes that are not UTF-8.

        Examples
        --------
        >>> data = mmgguf.open("model.gguf").metadata.to_dict(max_array_size=4)
        >>> data["general.name"], data["tokenizer.ggml.tokens"]
        ('Tiny', {'type': 'STRING', 'length': 8})
        """
        result: dict[str, Any] = {}
        for key, value in self._values.items():
            if not isinstance(value, ArrayInfo):
                result[key] = value
            elif max_array_size is not None and value.count > max_array_size:
                result[key] = {"type": value.element_type.name, "length": value.count}
            else:
                array = self[key]
                result[key] = array.tolist()
        return result


class _Overlay:
    """Where the arrays of replaced metadata are: in memory, at negative offsets, or where the others were."""

    __slots__ = ("_base", "_first", "_own")

    def __init__(self, base: Metadata) -> None:
        self._base = base
        #: How many arrays in memory the base has: their offsets are taken.
        self._first: int = base._source.count if isinstance(base._source, _Overlay) else 0
        self._own: list[bytes] = []

    @property
    def count(self) -> int:
        """Arrays in memory, those of the base included."""
        return self._first + len(self._own)

    def keep(self, raw: bytes, typed: TypedValue, chain: Chain) -> Any:
        """The value that `Metadata` holds for stored bytes."""
        order: ByteOrder = chain.byte_order
        if typed.type is ValueType.STRING:
            return decode(raw[chain.width :])
        if typed.type is not ValueType.ARRAY:
            number = np.frombuffer(raw, NUMBERS[typed.type].stored(order))[0].item()
            return number if typed.type is not ValueType.BOOL else bool(number)
        assert typed.element_type is not None  # TypedValue's own check
        head = 4 + chain.width
        self._own.append(raw[head:])
        count = int.from_bytes(raw[4:head], order)
        return ArrayInfo(typed.element_type, count, -self.count, len(raw) - head)

    def region(self, offset: int, nbytes: int) -> npt.NDArray[np.uint8]:
        if -offset > self._first:
            return np.frombuffer(self._own[-offset - 1 - self._first], np.uint8)
        source = self._base._source
        if source is None:
            raise ClosedError("the file that the metadata was taken from is closed")
        return source.region(offset, nbytes)


def _retyped(value: Any, type_: ValueType, stored: Any) -> TypedValue:
    """A new value with the type of the stored one, unless it brings its own."""
    if isinstance(value, TypedValue):
        return value
    return TypedValue(value, type_, stored.element_type if isinstance(stored, ArrayInfo) else None)


def check_key(key: object) -> None:
    """Raise TypeError or ValueError for what cannot be a metadata key."""
    if not isinstance(key, str):
        raise TypeError(f"metadata key: expected str, got {type(key).__name__}: {key!r:.60}")
    try:
        size = len(encode(key))
    except UnicodeEncodeError as error:
        raise ValueError(f"metadata key {key!r:.60}: has no UTF-8 form: {error.reason} at {error.start}") from None
    if not key or "\0" in key:
        what = "is empty" if not key else "holds a NUL, where C's readers would cut it off"
        raise ValueError(f"metadata key {shown(key, quoted=True)}: {what}")
    if size > MAX_KEY_SIZE:
        raise ValueError(
            f"metadata key {key!r:.60}: {size} bytes, the specification's limit for keys is {MAX_KEY_SIZE}"
        )


class Section(TypedMapping):
    """A `Metadata` narrowed to the keys with one prefix, which is dropped."""

    __slots__ = ("_metadata", "prefix")

    def __init__(self, metadata: Metadata, prefix: str) -> None:
        self._metadata = metadata
        self.prefix = prefix

    def _full_key(self, key: str) -> str:
        return self.prefix + key

    def __getitem__(self, key: str) -> Any:
        return self._metadata[self.prefix + key]

    def __iter__(self) -> Iterator[str]:
        cut = len(self.prefix)
        return (key[cut:] for key in self._metadata if key.startswith(self.prefix))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and self.prefix + key in self._metadata

    def __repr__(self) -> str:
        return f"<Section {shown(self.prefix, quoted=True)} of {len(self)} keys>"
