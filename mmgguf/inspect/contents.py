"""Digest and compare GGUF content, independent of file layout."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from ..errors import shown
from ..file import GGUFFile, Source, opened
from ..format.constants import PADDING_KEY
from ..format.header import TensorInfo
from ..format.metadata import Metadata
from ..format.strings import StringArray, encode
from ..format.values import TypedValue, encode_string, encode_value
from ..selection import Progress, read_ahead
from ..tensor import Tensor
from ..types import GGMLType, ValueType

__all__ = ["Difference", "Digests", "compare", "compare_metadata", "digest", "encoded", "show_value", "stored_chunks"]

#: Bytes of data that are looked at together: what fits a core's second-level cache.
CHUNK_SIZE: Final = 512 * 1024
#: What stands before the elements of an array: value type, element type and count.
_ARRAY_HEAD: Final = struct.Struct("<IIQ")
_FLOAT: Final = struct.Struct("<d")
_FLOATS: Final = (ValueType.FLOAT32, ValueType.FLOAT64)


@dataclass(frozen=True, slots=True)
class Difference:
    """One way in which two files differ.

    Attributes
    ----------
    kind : {"metadata", "tensor"}
        What differs.
    change : {"added", "removed", "changed", "unknown"}
        From the first file to the second.  Unknown: both have a tensor of the same shape and of a ggml type whose size
        is not known, so that its data cannot be compared.
    name : str
        The key or the tensor's name, as stored in the file.
    message : str
        What exactly, for people; printable.
    """

    kind: Literal["metadata", "tensor"]
    change: Literal["added", "removed", "changed", "unknown"]
    name: str
    message: str


@dataclass(frozen=True, slots=True)
class Digests:
    """Digests of a model's logical content.

    Attributes
    ----------
    algorithm : str
        Its name in `hashlib`.
    file : str or None
        Of the whole: metadata and tensors.  None if a tensor has no digest.
    tensors : dict
        By name: of a tensor's data, in hexadecimal; None for an unknown ggml type.
    """

    algorithm: str
    file: str | None
    tensors: dict[str, str | None]


def stored_chunks(tensor: Tensor) -> Iterator[tuple[int, npt.NDArray[np.uint8]]]:
    """A tensor's data in whole blocks: the number of the first one, and bytes."""
    type_size, nbytes = tensor.layout.type_size, tensor.nbytes
    step = max(1, CHUNK_SIZE // type_size)
    count = nbytes // type_size
    for first in range(0, count, step):
        size = min(step, count - first) * type_size
        yield first, tensor.storage.region(tensor.file_offset + first * type_size, size)


def _is_layout(key: str) -> bool:
    """Whether a metadata key tells how the content lies in files, and is no part of it."""
    return key in ("general.alignment", PADDING_KEY) or key.startswith("split.")


def encoded(metadata: Metadata, key: str) -> bytes:
    """Type and value of a metadata key, as a little-endian file of version 3 stores them."""
    return _encoded(metadata, key, metadata[key])


def _encoded(metadata: Metadata, key: str, value: Any) -> bytes:
    info = metadata.array_info(key)
    if info is None:
        typed = TypedValue(value, metadata.type_of(key))
        return typed.type.to_bytes(4, "little") + encode_value(typed, "little", key)
    head = _ARRAY_HEAD.pack(ValueType.ARRAY, info.element_type, info.count)
    if isinstance(value, StringArray):
        return head + value.encoded("little")
    if value.dtype == np.bool_:
        # A view of stored bytes may hold trues other than 1.
        return head + bytes((value.view(np.uint8) != 0).tobytes())
    return head + bytes(value.astype(value.dtype.newbyteorder("<"), copy=False).tobytes())


class _Values:
    """One pass over the metadata of a file: values are read in windows of the header, and not kept.

    A file of a megabyte may have fifty thousand arrays: reading each by itself takes a second, keeping them 60 MiB.
    """

    WINDOW: Final = 1 << 16

    def __init__(self, f: GGUFFile) -> None:
        shard = f.shards[0]
        self.metadata, self._file, self._end = f.metadata, shard.file, shard.header.nbytes
        #: Equal arrays of strings have equal bytes where this is equal.
        self.string_form = f.byte_order, shard.header.length_size
        self._start = 0
        self._window = np.zeros(0, np.uint8)

    def region(self, offset: int, nbytes: int) -> npt.NDArray[np.uint8]:
        """The bytes at `offset` of the file, shape (nbytes,)."""
        start = offset - self._start
        if start < 0 or start + nbytes > len(self._window):
            if nbytes > self.WINDOW:
                return self._file.region(offset, nbytes)
            self._window, self._start = self._file.region(offset, min(self.WINDOW, self._end - offset)), offset
            start = 0
        return self._window[start : start + nbytes]

    def __getitem__(self, key: str) -> Any:
        return self.metadata.read(key, self)

    def encoded(self, key: str) -> bytes:
        """Type and value of a key, as a little-endian file of version 3 stores them."""
        return _encoded(self.metadata, key, self[key])


# ---------------------------------------------------------------- digests


def digest(source: Source, *, algorithm: str = "sha256", progress: Progress | None = None) -> Digests:
    """Compute digests of the tensors and of the whole content, independent of file layout.

    A tensor's digest is of its data as a little-endian file stores it, without padding.  The file's is of the logical
    content: all metadata but ``general.alignment``, ``split.*`` and padding, in the order of keys (each as a
    little-endian file of version 3 stores key, type and value), then all tensors in the order of names (name, number
    of dimensions, ``ne`` and ggml type as a tensor info stores them, and the tensor's digest).  Version, byte order,
    alignment, offsets, the order in the file and the distribution over shards do not change it, nor does whether a
    FLOAT32 value that is a NaN is a signalling one: as a Python value it is not.

    Parameters
    ----------
    source : path-like or GGUFFile
        The file; of a split model any shard.
    algorithm : str, default "sha256"
        Any of `hashlib` whose digests have one length.
    progress : callable, optional
        Called with the bytes of tensors that are done and the bytes in all.

    Returns
    -------
    Digests
        In hexadecimal.

    Raises
    ------
    ValueError
        `hashlib` has no such algorithm, or its digests have any length.
    GGUFError, OSError
        The file cannot be opened, or changed meanwhile.

    Examples
    --------
    >>> mmgguf.digest("model.gguf").algorithm
    'sha256'
    >>> mmgguf.digest("model.gguf", algorithm="md5").tensors["output_norm.weight"]
    '54a4dad91b4975e74b572c96cc9873d7'
    """
    import hashlib

    empty = hashlib.new(algorithm)
    if not empty.digest_size:
        raise ValueError(f"algorithm {algorithm!r} gives digests of variable length; choose one of fixed length")
    whole = empty.copy()
    tensors: dict[str, str | None] = {}
    with opened(source, storage="read") as f:
        known = {name: t for name, t in f.items() if isinstance(t.type, GGMLType)}
        total, done = sum(t.nbytes for t in known.values()), 0
        stored = _Values(f)
        for key in sorted(f.metadata, key=encode):
            if not _is_layout(key):
                whole.update(encode_string(key, "little", "") + stored.encoded(key))
        ahead = read_ahead(known[name] for name in sorted(known, key=encode))
        for name in sorted(f, key=encode):
            if name not in known:
                tensors[name] = None
                continue
            tensor = next(ahead)
            one = empty.copy()  # looking the algorithm up takes longer than a small tensor
            for _, chunk in stored_chunks(tensor):
                one.update(_little(chunk, tensor).data)
                done += chunk.nbytes
                if progress is not None:
                    progress(done, total)
            tensors[name] = one.hexdigest()
            numbers = struct.pack(f"<I{len(tensor.ne)}QI", len(tensor.ne), *tensor.ne, tensor.type)
            whole.update(encode_string(name, "little", "") + numbers + one.digest())
        complete = len(known) == len(f)
        return Digests(algorithm, whole.hexdigest() if complete else None, {name: tensors[name] for name in f})


def _little(chunk: npt.NDArray[np.uint8], tensor: Tensor) -> npt.NDArray[np.uint8]:
    """Bytes of blocks as a little-endian file has them."""
    if tensor.byte_order == "little":
        return chunk
    layout = tensor.layout
    dtype = np.dtype(f"u{layout.type_size}") if layout.is_plain else layout.dtype
    return chunk.view(dtype).byteswap().view(np.uint8)


# ---------------------------------------------------------------- compare


def compare(a: Source, b: Source, *, progress: Progress | None = None) -> list[Difference]:
    """Compare the metadata and the tensors of two files.

    Metadata differs in type or value, tensors in ggml type, shape or data.  Version, byte order, alignment, offsets,
    order and the distribution over shards do not matter, nor do ``general.alignment`` and ``split.*``, which only
    state them: two files differ if their `digest` does.

    Parameters
    ----------
    a, b : path-like or GGUFFile
        The files; of split models any shard.
    progress : callable, optional
        Called with the bytes of tensors that were compared and the bytes in all.

    Returns
    -------
    list of Difference
        What was removed or changed in the order of `a`, then what was added in the order of `b`: metadata first.

    Raises
    ------
    GGUFError, OSError
        A file cannot be opened, or changed meanwhile.

    Examples
    --------
    >>> mmgguf.write("other.gguf", {"general.architecture": "llama", "general.name": "x"}, {})
    >>> [d.message for d in mmgguf.compare("model.gguf", "other.gguf") if d.name == "general.name"]
    ["STRING 'Tiny' → STRING 'x'"]
    """
    with opened(a, storage="read") as first, opened(b, storage="read") as second:
        return [*compare_metadata(first, second), *_compare_tensors(first, second, progress)]


def compare_metadata(a: GGUFFile, b: GGUFFile) -> Iterator[Difference]:
    """Compare the metadata of two files."""
    return _compare_metadata(_Values(a), _Values(b))


def _compare_metadata(a: _Values, b: _Values) -> Iterator[Difference]:
    for key in a.metadata:
        if _is_layout(key):
            continue
        if key not in b.metadata:
            yield Difference("metadata", "removed", key, show_value(a.metadata, key))
        elif _differ(a, b, key):
            yield Difference("metadata", "changed", key, _show_change(a, b, key))
    for key in b.metadata:
        if key not in a.metadata and not _is_layout(key):
            yield Difference("metadata", "added", key, show_value(b.metadata, key))


def _differ(a: _Values, b: _Values, key: str) -> bool:
    """Whether two values are stored otherwise by a little-endian file of version 3; as `_Values.encoded`, but quick."""
    type_ = a.metadata.type_of(key)
    if type_ is not b.metadata.type_of(key):
        return True
    ours, theirs = a.metadata.array_info(key), b.metadata.array_info(key)
    if ours is None or theirs is None:
        x, y = a.metadata[key], b.metadata[key]
        # By their bits, since NaNs may be the same.
        return bool(_FLOAT.pack(x) != _FLOAT.pack(y) if type_ in _FLOATS else x != y)
    if (ours.element_type, ours.count) != (theirs.element_type, theirs.count):
        return True
    if ours.element_type is ValueType.STRING:
        if a.string_form != b.string_form:
            return a.encoded(key) != b.encoded(key)
    elif a.metadata.byte_order != b.metadata.byte_order and ours.nbytes != ours.count:
        return a.encoded(key) != b.encoded(key)
    before, after = a.region(ours.offset, ours.nbytes), b.region(theirs.offset, theirs.nbytes)
    if ours.element_type is ValueType.BOOL:
        before, after = before != 0, after != 0
    return before.tobytes() != after.tobytes()


def show_value(metadata: Metadata, key: str) -> str:
    """A value and its type, for people; printable."""
    info = metadata.array_info(key)
    if info is not None:
        return f"ARRAY of {info.count} {info.element_type.name}"
    value = metadata[key]
    return f"{metadata.type_of(key).name} {shown(value, quoted=True) if isinstance(value, str) else value}"


def _show_change(a: _Values, b: _Values, key: str) -> str:
    before, after = show_value(a.metadata, key), show_value(b.metadata, key)
    if before != after:
        return f"{before} → {after}"
    ours, theirs = a[key], b[key]
    if isinstance(ours, np.ndarray):
        # Not a NaN beside a NaN, which are printed alike.
        differ = (ours != theirs) & ((ours == ours) | (theirs == theirs))
        at = int(differ.argmax())
        x, y = str(ours[at]), str(theirs[at])
        if not differ[at]:
            return f"{before}: NaNs of other bits"
    elif isinstance(ours, StringArray):
        pairs = enumerate(zip(ours, theirs, strict=True))
        at, x, y = next((i, shown(x, quoted=True), shown(y, quoted=True)) for i, (x, y) in pairs if x != y)
    else:
        return f"{before}, in a part that is not shown"
    return f"{before}: element {at} is {x} → {y}"


def _compare_tensors(a: GGUFFile, b: GGUFFile, progress: Progress | None) -> Iterator[Difference]:
    same = [name for name in a if name in b and _show_info(a[name].info) == _show_info(b[name].info)]
    same = [name for name in same if isinstance(a[name].type, GGMLType)]
    total, done = sum(a[name].nbytes for name in same), 0
    ahead, ahead_of_b = (read_ahead(f[name] for name in same) for f in (a, b))
    for name in a:
        ours = a[name]
        if name not in b:
            yield Difference("tensor", "removed", name, _show_info(ours.info))
            continue
        theirs = b[name]
        before, after = _show_info(ours.info), _show_info(theirs.info)
        if before != after:
            yield Difference("tensor", "changed", name, f"{before} → {after}")
            continue
        if not isinstance(ours.type, GGMLType):
            yield Difference("tensor", "unknown", name, f"{before}: data of unknown size, not compared")
            continue
        ours, theirs = next(ahead), next(ahead_of_b)
        count, where = 0, None
        size = ours.layout.type_size
        for (first, x), (_, y) in zip(stored_chunks(ours), stored_chunks(theirs), strict=True):
            x, y = _little(x, ours), _little(y, theirs)
            if not np.array_equal(x, y):
                differ = (x.reshape(-1, size) != y.reshape(-1, size)).any(axis=1)
                where = first + int(differ.argmax()) if where is None else where
                count += int(np.count_nonzero(differ))
            done += x.nbytes
            if progress is not None:
                progress(done, total)
        if count:
            what = "values" if ours.layout.is_plain else "blocks"
            text = f"{before}: {count} of {ours.nbytes // size} {what} differ, the first is {where}"
            yield Difference("tensor", "changed", name, text)
    for name in b:
        if name not in a:
            yield Difference("tensor", "added", name, _show_info(b[name].info))


def _show_info(info: TensorInfo) -> str:
    type_name = info.type.name if isinstance(info.type, GGMLType) else f"unknown type {info.type}"
    return f"{type_name} {info.shape}"
