"""`GGUFFile`: a Mapping of tensors over one file or all shards of a split model; `open` makes one."""

from __future__ import annotations

import io
import itertools
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt

from .dequant import target_dtype
from .errors import ClosedError, FileChangedError, GGUFError, NameNotFoundError, SplitError, shown
from .format.header import Header
from .format.metadata import Metadata, Section
from .format.parser import parse_header
from .format.seeker import DEFAULT_BUFFER_SIZE, BufferedSeeker
from .format.shards import ShardName, shard_name
from .selection import Names, Progress, select, values, walk
from .storage.local import (
    Access,
    Identity,
    Mode,
    StorageFile,
    StorageKind,
    open_descriptor,
    open_storage,
    require_identity,
)
from .tensor import Tensor
from .types import ByteOrder, FileType, layout_of

__all__ = ["GGUFFile", "Shard", "Source", "open", "opened"]

#: How much is waited for at a time, so that progress can be shown.
_PREFETCH_STEP: Final = 16 << 20
#: A name may speak of 99999 shards, and a network's file system be slow.
_COUNTED_MISSING: Final = 100


@dataclass(frozen=True, slots=True)
class Shard:
    """One file of a model.

    Attributes
    ----------
    path : str
        Where it was opened.
    header : Header
        Its parsed header.
    file : StorageFile
        Its bytes.
    """

    path: str
    header: Header
    file: StorageFile


class GGUFFile(Mapping[str, Tensor]):
    """An open model: its tensors by name, in the file's order, and its metadata.

    Made by `mmgguf.open`.  It may be used by many threads at once, and by the children of a ``fork``.  Pickled, it is a
    reference: another process opens the same files, and raises `FileChangedError` if they are others by size, time of
    the last change or digest of the header, or, on the same host, by device and inode.

    Parameters
    ----------
    shards : list of Shard
        The files, in order; metadata is the first one's.
    access : {"normal", "sequential", "random"}
        As `open` had it.
    lock : bool
        Likewise.

    Attributes
    ----------
    shards : tuple of Shard
        The files.
    metadata : Metadata
        The key-value pairs (of the first shard).
    """

    def __init__(self, shards: list[Shard], access: Access = "normal", lock: bool = False) -> None:
        self.shards = tuple(shards)
        self._access: Access = access
        self._lock = lock
        self.metadata: Metadata = shards[0].header.metadata
        # Which shard has a tensor.  Its info comes from there, and is made when it is asked for.
        self._where: dict[str, Shard] = {}
        for shard in shards:
            self._where.update(dict.fromkeys(shard.header.tensors, shard))
        self._closed = False

    # The mapping.

    def __getitem__(self, name: str) -> Tensor:
        try:
            shard = self._where[name]
        except KeyError:
            self._require_open()
            raise NameNotFoundError(f"{self.path}: no tensor {shown(name, quoted=True)}") from None
        if self._closed:
            self._require_open()
        header = shard.header
        return Tensor(header.tensors[name], shard.file, header.data_offset, header.byte_order)

    def __iter__(self) -> Iterator[str]:
        self._require_open()
        return iter(self._where)

    def __len__(self) -> int:
        self._require_open()
        return len(self._where)

    def __contains__(self, name: object) -> bool:
        self._require_open()
        return name in self._where

    def __eq__(self, other: object) -> bool:
        # A Mapping compares its items, and tensors have no cheap comparison.
        return self is other

    def __hash__(self) -> int:
        return id(self)

    # What the header says.

    @property
    def path(self) -> str:
        """The file, or the first shard."""
        return self.shards[0].path

    @property
    def version(self) -> int:
        """GGUF version: 1, 2 or 3."""
        return self.shards[0].header.version

    @property
    def byte_order(self) -> ByteOrder:
        """``"little"`` or ``"big"``."""
        return self.shards[0].header.byte_order

    @property
    def alignment(self) -> int:
        """Alignment of the data in bytes."""
        return self.shards[0].header.alignment

    @property
    def nbytes(self) -> int:
        """Bytes of all files together."""
        return sum(shard.file.size for shard in self.shards)

    @property
    def architecture(self) -> str:
        """``general.architecture``; raises `NameNotFoundError` or `MetadataTypeError`."""
        return self.metadata.get_str("general.architecture")

    @property
    def config(self) -> Section:
        """The metadata under ``<architecture>.``, with that prefix dropped."""
        return self.metadata.section(f"{self.architecture}.")

    @property
    def file_type(self) -> FileType | int | None:
        """``general.file_type``; a plain int if unknown, None if missing."""
        number = self.metadata.get_int("general.file_type", None)
        if number is None:
            return None
        try:
            return FileType(number)
        except ValueError:
            return number

    @property
    def parameter_count(self) -> int:
        """Number of elements of all tensors together."""
        self._require_open()
        return sum(info.n_elements for shard in self.shards for info in shard.header.tensors.values())

    def layers(self) -> dict[str, dict[str, Tensor]]:
        """Tensors by layer, then by the rest of their name.

        As ollama groups them: ``blk.N`` and ``mm.N``, with whatever stands before them, are a layer; all other
        tensors go by the first part of their name.  ``f.layers()["blk.0"]["attn_q.weight"]``.
        """
        layers: dict[str, dict[str, Tensor]] = {}
        for name in self:
            parts = name.split(".")
            cut = next((i + 2 for i, part in enumerate(parts) if part in ("blk", "mm") and i + 2 < len(parts)), 1)
            layers.setdefault(".".join(parts[:cut]), {})[".".join(parts[cut:])] = self[name]
        return layers

    def dequantize_all(
        self, dtype: npt.DTypeLike | None = np.float32, names: Names = None, progress: Progress | None = None
    ) -> Iterator[tuple[str, npt.NDArray[Any]]]:
        """Go through the tensors in the file's order, dequantizing each while the next ones' pages are read.

        Parameters
        ----------
        dtype : {float32, float16, bfloat16, float64} or None
            What blocks and floats become; integers stay what they are.  None: plain types keep their dtype.
        names : str or iterable of str, optional
            Only these tensors: names, or patterns with ``*``, ``?`` or ``[``.
        progress : callable, optional
            Called with (stored bytes done, stored bytes in all).

        Yields
        ------
        name : str
        array : ndarray
            The logical form; a view of the file where nothing has to be computed.

        Raises
        ------
        NameNotFoundError, UnknownTypeError, TypeError
            At the call: a name that the file does not have, a tensor whose ggml type is unknown, or a dtype that is
            not offered.
        """
        if dtype is not None:
            target_dtype(dtype)
        return ((tensor.name, values(tensor, dtype)) for tensor in walk(self, names, progress))

    # Advice to the kernel.

    def prefetch(self, names: Names = None, wait: bool = False, progress: Progress | None = None) -> None:
        """Start reading tensors into memory, in the order of the file.

        Parameters
        ----------
        names : str or iterable of str, optional
            Which tensors, by name or pattern; all by default.
        wait : bool, default False
            Return only when they are there.
        progress : callable, optional
            With `wait`: called with the bytes that are there and the bytes in all.
        """
        ranges = self._ranges(names)
        for file, offset, nbytes in ranges:
            file.prefetch(offset, nbytes)
        if not wait:
            return
        done, total = 0, sum(nbytes for _, _, nbytes in ranges)
        for file, offset, nbytes in ranges:
            for start in range(0, nbytes, _PREFETCH_STEP):
                step = min(_PREFETCH_STEP, nbytes - start)
                file.wait(offset + start, step)
                done += step
                if progress is not None:
                    progress(done, total)

    def release(self, names: Names = None) -> None:
        """Let go of the memory of tensors; they are read from the file again when they are touched.

        Arrays stay valid.  Changes made with ``mode="c"`` are kept.
        """
        for file, offset, nbytes in self._ranges(names):
            file.release(offset, nbytes)

    def resident(self, names: Names = None) -> int:
        """Bytes of tensors that are in the page cache; 0 where the system cannot tell."""
        return sum(file.resident(offset, nbytes) for file, offset, nbytes in self._ranges(names))

    def _ranges(self, names: Names) -> list[tuple[StorageFile, int, int]]:
        """Where tensors lie: (file, offset, bytes), in the order of the file, neighbours merged."""
        tensors = [self[name] for name in select(self, names)]
        order = {shard.file: no for no, shard in enumerate(self.shards)}
        # Padding between neighbours belongs to them: to the kernel they are one range.
        gap = max(shard.header.alignment for shard in self.shards)
        ranges: list[tuple[StorageFile, int, int]] = []
        known = [t for t in tensors if layout_of(t.type) is not None and t.nbytes]
        for t in sorted(known, key=lambda t: (order[t.storage], t.offset)):
            if ranges and ranges[-1][0] is t.storage:
                file, offset, nbytes = ranges[-1]
                if t.file_offset - (offset + nbytes) < gap:
                    ranges[-1] = (file, offset, max(nbytes, t.file_offset + t.nbytes - offset))
                    continue
            ranges.append((t.storage, t.file_offset, t.nbytes))
        return ranges

    # Lifetime.

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed

    def close(self) -> None:
        """Give up the files and their mappings.

        Arrays that were handed out stay valid: a mapping goes away with the last array that uses it.  The file object,
        its tensors and its metadata arrays raise `ClosedError` from now on.
        """
        self._closed = True
        for shard in self.shards:
            shard.header.metadata.bind(None)
            shard.file.close()

    def __enter__(self) -> Self:
        self._require_open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _require_open(self) -> None:
        if self._closed:
            raise ClosedError(f"{self.path}: the file is closed")

    def __reduce__(self) -> tuple[Any, ...]:
        self._require_open()
        file = self.shards[0].file
        identities = [shard.file.identity for shard in self.shards]
        return _restore, (file.absolute_path, file.kind, file.mode, self._access, self._lock, identities)

    def __repr__(self) -> str:
        if self._closed:
            return f"<GGUFFile {self.path} (closed)>"
        shards = f", {len(self.shards)} shards" if len(self.shards) > 1 else ""
        return f"<GGUFFile {self.path}: {len(self._where)} tensors, {len(self.metadata)} metadata keys{shards}>"


def open(
    source: str | os.PathLike[str],
    *,
    storage: StorageKind = "mmap",
    mode: Mode = "r",
    access: Access = "normal",
    lock: bool = False,
) -> GGUFFile:
    """Open a GGUF file, or all shards of a split model by the path of any one.

    Parameters
    ----------
    source : path-like
        The file.
    storage : {"mmap", "read"}
        ``"mmap"``: tensors are views of the mapped file.  ``"read"``: each is read into fresh memory when it is asked
        for; meant for network file systems, and for files that others may truncate.
    mode : {"r", "c"}
        ``"r"``: arrays are read-only.  ``"c"``: they are writable, and the file never changes (copy-on-write).
    access : {"normal", "sequential", "random"}
        How the data will be read, as advice to the kernel.
    lock : bool, default False
        Keep the mapped file in memory (``mlock``); only with ``storage="mmap"`` and ``mode="r"``, since locking what
        is copy-on-write copies all of it.

    Returns
    -------
    GGUFFile
        A context manager.

    Raises
    ------
    GGUFError
        The file is not valid GGUF, or the shards do not belong together.
    OSError
        The system cannot open it, it is not a regular file, or memory cannot be locked.
    ValueError
        An argument that is none of these, or a `lock` that cannot be had.
    """
    for what, given, allowed in (
        ("storage", storage, ("mmap", "read")),
        ("mode", mode, ("r", "c")),
        ("access", access, ("normal", "sequential", "random")),
    ):
        if given not in allowed:
            raise ValueError(f"{what} must be one of {', '.join(map(repr, allowed))}, got {given!r}")
    if lock and (storage, mode) != ("mmap", "r"):
        raise ValueError(f"lock=True needs storage='mmap' and mode='r', got {storage!r} and {mode!r}")
    name = os.fsdecode(source)
    shards = [_open_shard(name, storage, mode)]
    try:
        count = _split_value(shards[0], "split.count", 1)
        if count > 1:
            shards = _open_rest(shards[0], count, storage, mode)
        for shard in shards:
            if access != "normal":
                shard.file.advise(access)
            if lock:
                shard.file.lock()
        return GGUFFile(shards, access, lock)
    except BaseException:
        for shard in shards:
            shard.file.close()
        raise


#: What takes a file takes its path, or the file opened already.
Source = str | os.PathLike[str] | GGUFFile


@contextmanager
def opened(source: Source, *, storage: StorageKind = "mmap", mode: Mode = "r") -> Iterator[GGUFFile]:
    """The open file itself; or the file at a path, which is closed again (arrays of it stay valid)."""
    if isinstance(source, GGUFFile):
        yield source
        return
    with open(source, storage=storage, mode=mode) as f:
        yield f


def _restore(
    path: str, storage: StorageKind, mode: Mode, access: Access, lock: bool, identities: list[Identity]
) -> GGUFFile:
    file = open(path, storage=storage, mode=mode, access=access, lock=lock)
    try:
        if len(file.shards) != len(identities):
            raise FileChangedError(f"{path}: had {len(identities)} shards when it was sent, has {len(file.shards)} now")
        for shard, identity in zip(file.shards, identities, strict=True):
            require_identity(shard.file, identity)
    except BaseException:
        file.close()
        raise
    return file


def _open_shard(path: str, storage: StorageKind, mode: Mode) -> Shard:
    descriptor = open_descriptor(path)
    try:
        with io.FileIO(descriptor, closefd=False) as raw:
            seeker = BufferedSeeker(raw, DEFAULT_BUFFER_SIZE)
            header = parse_header(seeker)
    except GGUFError as error:
        error.args = (f"{path}: {error}",)
        raise
    except OSError as error:  # of some special files there is no end to seek to
        error.filename = path
        raise
    file = open_storage(descriptor, path, storage, mode)
    if file.size != seeker.size:
        # The header was held against another size than the one that is mapped.
        file.close()
        raise FileChangedError(f"{path}: had {seeker.size} bytes when its header was read, has {file.size} now")
    file.header_nbytes = header.nbytes
    header.metadata.bind(file)
    return Shard(path, header, file)


def _open_rest(given: Shard, count: int, storage: StorageKind, mode: Mode) -> list[Shard]:
    """All shards of the split that `given` belongs to, in order, held against each other."""
    name = shard_name(given.path, count)
    every = (name.path(no) for no in range(1, count + 1))
    missing = list(itertools.islice((path for path in every if not os.path.exists(path)), _COUNTED_MISSING))
    if missing:
        least = "at least " if len(missing) == _COUNTED_MISSING else ""
        others = f" and {least}{len(missing) - 1} more" if len(missing) > 1 else ""
        raise SplitError(f"{missing[0]}{others}: missing; {given.path} is one shard of {count}")
    shards: list[Shard] = []
    try:
        for no in range(1, count + 1):
            shards.append(given if no == name.no else _open_shard(name.path(no), storage, mode))
            _check_shard(shards[-1], no, name)
        _check_together(shards)
    except BaseException:
        for shard in shards:
            shard.file.close()
        raise
    return shards


def _check_shard(shard: Shard, no: int, name: ShardName) -> None:
    for key, expected in (("split.no", no - 1), ("split.count", name.count)):
        value = _split_value(shard, key, None)
        if value != expected:
            said = "is missing" if value is None else f"is {value}"
            raise SplitError(f"{shard.path}: foreign shard: {key} {said}, the file's name asks for {expected}")


def _check_together(shards: list[Shard]) -> None:
    first = shards[0]
    expected = sum(len(shard.header.tensors) for shard in shards)
    seen: dict[str, str] = {}
    for shard in shards:
        for what in ("version", "byte_order"):
            ours, theirs = getattr(first.header, what), getattr(shard.header, what)
            if ours != theirs:
                raise SplitError(f"{shard.path}: foreign shard: {what} {theirs}, {first.path} has {ours}")
        key = "general.architecture"
        ours, theirs = (_named(one, one.header.metadata.get_str, key, None) for one in (first, shard))
        if theirs not in (None, ours) and ours is not None:
            raise SplitError(
                f"{shard.path}: foreign shard: {key} is {shown(theirs, quoted=True)}, "
                f"{first.path} has {shown(ours, quoted=True)}"
            )
        total = _split_value(shard, "split.tensors.count", None)
        if total is not None and total != expected:
            raise SplitError(
                f"{shard.path}: split.tensors.count is {total}, the shards have {expected} tensors together"
            )
        for name in shard.header.tensors:
            if name in seen:
                raise SplitError(f"{shard.path}: duplicate tensor {shown(name, quoted=True)}, {seen[name]} has it too")
            seen[name] = shard.path


def _split_value(shard: Shard, key: str, default: Any) -> Any:
    return _named(shard, shard.header.metadata.get_int, key, default)


def _named(shard: Shard, getter: Callable[[str, Any], Any], key: str, default: Any) -> Any:
    """What a typed getter gives; its errors name the shard."""
    try:
        return getter(key, default)
    except GGUFError as error:
        error.args = (f"{shard.path}: {error}",)
        raise
