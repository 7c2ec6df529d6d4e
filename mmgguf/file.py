"""`GGUFFile`: a Mapping of tensors over one file or all shards of a split model; `open` makes one."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any, BinaryIO, Final, Self

import numpy.typing as npt

from .conversion import values
from .dequant import target_dtype
from .errors import ClosedError, NameNotFoundError, human_size, shown
from .format.metadata import Metadata, Section
from .selection import Names, Progress, select, walk
from .shard import Shard, open_shards, parse_storage
from .storage.base import MAX_CONCURRENCY, TIMEOUT, Access, Mode, Reference, Storage, StorageKind, Transfer
from .storage.sources import Opener
from .tensor import Tensor
from .types import ByteOrder, FileType, layout_of

__all__ = ["GGUFFile", "Shard", "Source", "open", "opened"]

#: How much is waited for at a time, so that progress can be shown.
_PREFETCH_STEP: Final = 16 << 20


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
    byte_order : {"little", "big"}
        Of the header and of the data.
    """

    def __init__(self, shards: list[Shard], access: Access = "normal", lock: bool = False) -> None:
        self.shards = tuple(shards)
        self._access: Access = access
        self._lock = lock
        self.metadata: Metadata = shards[0].header.metadata
        # No property: jedi, which completes in notebooks, fails on one that returns a Literal.
        self.byte_order: ByteOrder = shards[0].header.byte_order
        # Which shard has a tensor, where there are several.  Its info comes from there, made when it is asked for.
        self._only = shards[0] if len(shards) == 1 else None
        self._where = {name: shard for shard in shards for name in shard.header.tensors} if len(shards) > 1 else {}
        self._names: Mapping[str, object] = shards[0].header.tensors if self._only is not None else self._where
        self._closed = False
        for shard in shards:
            if access != "normal":
                shard.file.advise(access)
            if lock:
                shard.file.lock()

    # The mapping.

    def __getitem__(self, name: str) -> Tensor:
        try:
            shard = self._only or self._where[name]
            header = shard.header
            info = header.tensors[name]
        except KeyError:
            self._require_open()
            message = f"{self.path}: no tensor {shown(name, quoted=True)}"
            raise NameNotFoundError(message, name, self._names) from None
        if self._closed:
            self._require_open()
        return Tensor(info, shard.file, header.data_offset, header.byte_order)

    def __iter__(self) -> Iterator[str]:
        self._require_open()
        return iter(self._names)

    def __len__(self) -> int:
        self._require_open()
        return len(self._names)

    def __contains__(self, name: object) -> bool:
        self._require_open()
        return name in self._names

    def _ipython_key_completions_(self) -> list[str]:
        """What TAB offers in ``f["``."""
        return list(self)

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
    def file_type(self) -> FileType | int:
        """``general.file_type``, a plain int if unknown; raises as `architecture`."""
        number = self.metadata.get_int("general.file_type")
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

        Examples
        --------
        >>> with mmgguf.open("model.gguf") as f:
        ...     f.layers()["blk.0"]
        {'attn_q.weight': <Tensor blk.0.attn_q.weight F16 (256, 256) 128.0 KiB>}
        """
        layers: dict[str, dict[str, Tensor]] = {}
        for name in self:
            parts = name.split(".")
            cut = next((i + 2 for i, part in enumerate(parts) if part in ("blk", "mm") and i + 2 < len(parts)), 1)
            layers.setdefault(".".join(parts[:cut]), {})[".".join(parts[cut:])] = self[name]
        return layers

    def dequantize_all(
        self, *, names: Names = None, dtype: npt.DTypeLike | None = None, progress: Progress | None = None
    ) -> Iterator[tuple[str, npt.NDArray[Any]]]:
        """Go through the tensors in the file's order, dequantizing each while the next ones' pages are read.

        Parameters
        ----------
        names : str or iterable of str, optional
            Only these tensors: names, or patterns with ``*``, ``?`` or ``[``.
        dtype : {float32, float16, bfloat16, float64}, optional
            What blocks and floats become; integers stay what they are.  By default plain types keep their dtype and
            blocks become float32.
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

        Examples
        --------
        >>> with mmgguf.open("model.gguf") as f:
        ...     for name, array in f.dequantize_all(names="blk.*", dtype=np.float32):
        ...         print(name, array.shape, array.dtype)
        blk.0.attn_q.weight (256, 256) float32
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

        Examples
        --------
        >>> with mmgguf.open("model.gguf") as f:
        ...     f.prefetch("blk.0.*", wait=True)
        """
        ranges = self._ranges(names)
        for file, some in itertools.groupby(ranges, key=lambda one: one[0]):
            file.prefetch_ranges([(offset, nbytes) for _, offset, nbytes in some])
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

        Examples
        --------
        >>> with mmgguf.open("model.gguf") as f:
        ...     total = f["token_embd.weight"].dequantize().sum()
        ...     f.release("token_embd.weight")
        """
        for file, offset, nbytes in self._ranges(names):
            file.release(offset, nbytes)

    def resident(self, names: Names = None) -> int:
        """Bytes of tensors that are in the page cache; 0 where the system cannot tell.

        Examples
        --------
        >>> with mmgguf.open("model.gguf") as f:
        ...     0 <= f.resident() <= f.nbytes
        True
        """
        return sum(file.resident(offset, nbytes) for file, offset, nbytes in self._ranges(names))

    def _ranges(self, names: Names) -> list[tuple[Storage, int, int]]:
        """Where tensors lie: (file, offset, bytes), in the order of the file, neighbours merged."""
        tensors = [self[name] for name in select(self, names)]
        order = {shard.file: no for no, shard in enumerate(self.shards)}
        # Padding between neighbours belongs to them: to the kernel they are one range.
        gap = max(shard.header.alignment for shard in self.shards)
        ranges: list[tuple[Storage, int, int]] = []
        known = [t for t in tensors if layout_of(t.type) is not None and t.nbytes]
        for t in sorted(known, key=lambda t: (order[t.storage], t.offset)):
            if ranges and ranges[-1][0] is t.storage and not t.storage.is_remote:
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

        Examples
        --------
        >>> f = mmgguf.open("model.gguf")
        >>> norm = f["output_norm.weight"].data
        >>> f.close()
        >>> norm.shape, f.closed
        ((256,), True)
        """
        self._closed = True
        for shard in self.shards:
            shard.header.metadata.close()
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
        return _restore, ([shard.file.reference() for shard in self.shards], self._access, self._lock)

    def plot(self, ax: Any = None) -> Any:
        """Draw the bytes of each layer by ggml type with matplotlib, and give its axes; only the header is read.

        Parameters
        ----------
        ax : matplotlib axes, optional
            Where to draw.
        """
        from . import notebook

        return notebook.plot(os.path.basename(self.path), self, ax)

    def _repr_html_(self) -> str:
        from . import notebook

        if self._closed:
            return notebook.table_html(repr(self), (), (), 0)
        facts = [("architecture", self.metadata.get("general.architecture")), ("size", human_size(self.nbytes))]
        facts += [("parameters", f"{self.parameter_count:,}"), ("format", f"GGUF {self.version}, {self.byte_order}")]
        return notebook.file_html(os.path.basename(self.path), facts, self, self.metadata._repr_html_())

    def __repr__(self) -> str:
        if self._closed:
            return f"<GGUFFile {self.path} (closed)>"
        shards = f", {len(self.shards)} shards" if len(self.shards) > 1 else ""
        return f"<GGUFFile {self.path}: {len(self._names)} tensors, {len(self.metadata)} metadata keys{shards}>"


def open(
    source: Source,
    *,
    storage: StorageKind | None = None,
    mode: Mode = "r",
    access: Access = "normal",
    lock: bool = False,
    storage_options: Mapping[str, Any] | None = None,
    timeout: float = TIMEOUT,
    max_concurrency: int = MAX_CONCURRENCY,
) -> GGUFFile:
    """Open a GGUF file, or all shards of a split model by the path or URL of any one.

    Parameters
    ----------
    source : path-like, URL, bytes or binary file object
        A path; a URL of any file system that fsspec knows (``https://``, ``s3://``, ``simplecache::https://``, …); a
        name in a store (``ollama://llama3.2:1b``, ``hf://org/repo:Q4_K_M``, ``lmstudio://publisher/model/file``, see
        `mmgguf.resolve`); the file's content (bytes, bytearray, memoryview, …), which is used without a copy; or any
        seekable binary file object, which stays open.  A real file is mapped through its descriptor.
    storage : {"mmap", "read"}, optional
        ``"mmap"``: tensors are views of the mapped file.  ``"read"``: each is read into fresh memory when it is asked
        for; meant for network file systems, and for files that others may truncate.  By default files of this machine
        are mapped, and others are read.
    mode : {"r", "c"}
        ``"r"``: arrays are read-only.  ``"c"``: they are writable, and the file never changes (copy-on-write).
    access : {"normal", "sequential", "random"}
        How the data will be read, as advice to the kernel.
    lock : bool, default False
        Keep the mapped file in memory (``mlock``); only with a mapped file and ``mode="r"``, since locking what is
        copy-on-write copies all of it.
    storage_options : dict, optional
        For a URL: options of its file system, as pandas and Dask have it.
    timeout : float, default 30
        For a URL: seconds without a byte after which a request has failed.  What may pass is tried again four times.
    max_concurrency : int, default 16
        For a URL: ranges in flight at a time.

    Returns
    -------
    GGUFFile
        A context manager.

    Raises
    ------
    GGUFError
        The file is not valid GGUF, the shards do not belong together, or a server does not give what it should.
    OSError
        The system or a server cannot open it, it is not a regular file, or memory cannot be locked.
    ValueError
        An argument that is none of these, a `lock` that cannot be had, ``storage="mmap"`` for what cannot be mapped.
    MissingExtraError
        A URL needs ``pip install 'mmgguf[remote]'``.

    Examples
    --------
    >>> import io
    >>> file = io.BytesIO()
    >>> _ = file.write(b"GGUF" + (3).to_bytes(4, "little") + bytes(16))
    >>> len(mmgguf.open(file))
    0
    """
    for what, given, allowed in (
        ("storage", storage, (None, "mmap", "read")),
        ("mode", mode, ("r", "c")),
        ("access", access, ("normal", "sequential", "random")),
    ):
        if given not in allowed:
            raise ValueError(f"{what} must be one of {', '.join(map(repr, allowed))}, got {given!r}")
    if lock and (storage == "read" or mode != "r"):
        raise ValueError(f"lock=True needs storage='mmap' and mode='r', got {storage!r} and {mode!r}")
    shards = open_shards(source, Opener(storage, mode, storage_options, Transfer(timeout, max_concurrency)))
    try:
        if lock and shards[0].file.kind != "mmap":
            raise ValueError(f"lock=True needs a file that is mapped, and {shards[0].path} is not")
        return GGUFFile(shards, access, lock)
    except BaseException:
        for shard in shards:
            shard.file.close()
        raise


#: What takes a file takes its path, a URL or name, its content, a binary file object, or the file opened already.
Source = str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO | GGUFFile | Any


@contextmanager
def opened(source: Source, *, storage: StorageKind | None = None, mode: Mode = "r") -> Iterator[GGUFFile]:
    """An open file itself, or a source's file, which is closed at the end (its arrays stay valid)."""
    if isinstance(source, GGUFFile):
        yield source
        return
    with open(source, storage=storage, mode=mode) as f:
        yield f


def _restore(references: list[Reference], access: Access, lock: bool) -> GGUFFile:
    shards: list[Shard] = []
    try:
        for reference in references:
            shard = parse_storage(reference.open())
            shards.append(shard)
        return GGUFFile(shards, access, lock)
    except BaseException:
        for shard in shards:
            shard.file.close()
        raise
