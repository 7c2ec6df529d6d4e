"""Split a model into shards, merge them, take some tensors out, change the byte order.

Shards are laid out as llama.cpp's ``llama-gguf-split`` does it: files ``PREFIX-00001-of-00003.gguf``, all metadata in
the first, and in each ``split.no`` (UINT16, from 0), ``split.tensors.count`` (INT32, of all shards together) and
``split.count`` (UINT16), in this order behind the other keys; tensors in their order.  It differs in one point: a
``general.alignment`` other than 32 is written to every shard, because every shard is read by itself.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import Any, Final

from ..errors import UnknownTypeError, shown
from ..file import GGUFFile, Source, opened
from ..format.constants import DEFAULT_ALIGNMENT, PADDING_KEY
from ..format.shards import ShardName
from ..format.values import TypedValue
from ..format.writer import TypedTensor, write
from ..selection import Names, Progress, select
from ..tensor import Tensor
from ..types import ByteOrder, GGMLType, ValueType, align
from .copying import Copier, check_output, new_files, pad
from .raw import RawHeader

__all__ = ["convert_byte_order", "extract", "merge", "plan_split", "split"]

_ALIGNMENT_KEY: Final = "general.alignment"
#: ``split.no`` is stored as UINT16; file names have room for five digits.
MAX_SHARDS: Final = 65535
_LAYER: Final = re.compile(r"(?:.*\.)?(?:blk|mm)\.[0-9]+(?=\.)")


def split(
    source: Source,
    prefix: str | os.PathLike[str],
    *,
    max_size: int | None = None,
    max_tensors: int | None = None,
    at_layers: bool = False,
    empty_first: bool = False,
    force: bool = False,
    progress: Progress | None = None,
) -> list[str]:
    """Split a model into several files, as llama.cpp's ``llama-gguf-split`` does.

    Parameters
    ----------
    source : path-like or GGUFFile
        The model; if it is split already, it is split anew.
    prefix : path-like
        The shards are ``PREFIX-00001-of-00003.gguf``, ….
    max_size : int, optional
        Bytes of tensors in a shard, at most: a shard with a single larger tensor has more, and the header comes on top.
    max_tensors : int, optional
        Tensors in a shard, at most.
    at_layers : bool, default False
        Never divide a layer (tensors ``blk.N.*``).  Without a limit each layer becomes a shard, and so does each run
        of tensors between layers; with one, a shard has as many whole layers as the limit takes, but at least one.
    empty_first : bool, default False
        Leave the first shard without tensors, so that metadata can be read without data.
    force : bool, default False
        Replace files that are there.
    progress : callable, optional
        Called with the bytes of tensors that were copied and those in all.

    Returns
    -------
    list of str
        The shards' paths, in order.  They get their names when all of them are complete, and the model's permissions.

    Raises
    ------
    ValueError
        No limit, or one that is below one; more than 65535 shards.
    UnknownTypeError
        A tensor has a ggml type whose size is unknown.
    FileExistsError
        A shard exists already, or is the model itself.
    GGUFError, OSError
        The model cannot be read; what the operating system refuses, a disk too full at the outset.

    Examples
    --------
    >>> split("model.gguf", "part", max_tensors=2)
    ['part-00001-of-00002.gguf', 'part-00002-of-00002.gguf']
    """
    with opened(source) as f:
        parts = plan_split(f, max_size=max_size, max_tensors=max_tensors, at_layers=at_layers, empty_first=empty_first)
        name = ShardName(os.fsdecode(prefix), 1, len(parts))
        paths = [name.path(no) for no in range(1, len(parts) + 1)]
        whole = _whole(f)
        alignment = f.alignment
        headers = []
        for no in range(len(parts)):
            header = whole if no == 0 else RawHeader(whole.magic, whole.version, whole.byte_order)
            if no and alignment != DEFAULT_ALIGNMENT:
                header.pairs[_ALIGNMENT_KEY] = header.pair(_ALIGNMENT_KEY, TypedValue(alignment, ValueType.UINT32))
            for key, value, type_ in (
                ("split.no", no, ValueType.UINT16),
                ("split.tensors.count", len(f), ValueType.INT32),
                ("split.count", len(parts), ValueType.UINT16),
            ):
                header.pairs[key] = header.pair(key, TypedValue(value, type_))
            headers.append(header)
        _write(f, list(zip(paths, headers, parts, strict=True)), force, progress)
        return paths


def plan_split(
    f: GGUFFile,
    *,
    max_size: int | None = None,
    max_tensors: int | None = None,
    at_layers: bool = False,
    empty_first: bool = False,
) -> list[list[Tensor]]:
    """Which tensors go into which shard; see `split`.

    Examples
    --------
    >>> with mmgguf.open("model.gguf") as f:
    ...     [[t.name for t in part] for part in plan_split(f, max_tensors=2)]
    [['token_embd.weight', 'blk.0.attn_q.weight'], ['output_norm.weight']]
    """
    if max_size is None and max_tensors is None and not at_layers:
        raise ValueError("one of max_size, max_tensors and at_layers is needed")
    for what, limit in (("max_size", max_size), ("max_tensors", max_tensors)):
        if limit is not None and limit < 1:
            raise ValueError(f"{what} must be at least 1, got {limit}")
    tensors = list(f.values())
    _require_known(tensors)
    parts: list[list[Tensor]] = [[]] if empty_first else []
    size = 0
    for group in _layers(tensors) if at_layers else ([tensor] for tensor in tensors):
        more = sum(align(tensor.nbytes, f.alignment) for tensor in group)
        fits = bool(parts) and not (empty_first and len(parts) == 1)
        if fits and max_size is None and max_tensors is None:
            fits = False
        if fits and max_size is not None and size + more > max_size:
            fits = False
        if fits and max_tensors is not None and len(parts[-1]) + len(group) > max_tensors:
            fits = False
        if not fits:
            parts.append([])
            size = 0
        parts[-1] += group
        size += more
    if not parts:
        parts.append([])
    if len(parts) > MAX_SHARDS:
        raise ValueError(f"{len(parts)} shards, at most {MAX_SHARDS} can be counted: allow more for each")
    return parts


def merge(
    source: Source,
    output: str | os.PathLike[str],
    *,
    force: bool = False,
    progress: Progress | None = None,
) -> None:
    """Put the shards of a model together into one file.

    Parameters
    ----------
    source : path-like or GGUFFile
        Any shard.
    output : path-like
        The file to write: all tensors in their order, and the first shard's metadata without ``split.*``.
    force, progress
        As in `split`.

    Raises
    ------
    UnknownTypeError, FileExistsError, GGUFError, OSError
        As `split`.

    Notes
    -----
    What `split` made becomes, byte by byte, the file that was split, if that was laid out as this library and llama.cpp
    write: tensors in the order of their offsets, without holes, padded at the end, and without ``split.*`` keys.

    Examples
    --------
    >>> parts = split("model.gguf", "part", max_tensors=2)
    >>> merge(parts[0], "whole.gguf")
    >>> mmgguf.compare("model.gguf", "whole.gguf")
    []
    """
    extract(source, output, force=force, progress=progress)


def extract(
    source: Source,
    output: str | os.PathLike[str],
    *,
    names: Names = None,
    force: bool = False,
    progress: Progress | None = None,
) -> None:
    """Write some tensors of a model to a file of their own, with all of the model's metadata.

    Parameters
    ----------
    source : path-like or GGUFFile
        The model.
    output : path-like
        The file to write.
    names : str or iterable of str, optional
        Which tensors: names, or patterns with ``*``, ``?`` or ``[``.
    force, progress
        As in `split`.

    Raises
    ------
    NameNotFoundError
        A name that the model does not have, or a pattern that fits none.
    UnknownTypeError, FileExistsError, GGUFError, OSError
        As `split`.

    Examples
    --------
    >>> extract("model.gguf", "norms.gguf", names="*norm*")
    >>> with mmgguf.open("norms.gguf") as f:
    ...     list(f)
    ['output_norm.weight']
    """
    with opened(source) as f:
        tensors = [f[name] for name in select(f, names)]
        _write(f, [(os.fsdecode(output), _whole(f), tensors)], force, progress)


def convert_byte_order(
    source: Source,
    output: str | os.PathLike[str],
    *,
    byte_order: ByteOrder,
    force: bool = False,
    progress: Progress | None = None,
) -> None:
    """Write a model in the other byte order, or in its own; as version 3, the only one that may be big-endian.

    Parameters
    ----------
    source : path-like or GGUFFile
        The model; shards are merged.
    output : path-like
        The file to write.
    byte_order : {"little", "big"}
        Of everything in it: numbers in the header, and in blocks every field of several bytes.
    force, progress
        As in `split`.

    Raises
    ------
    UnknownTypeError, FileExistsError, GGUFError, OSError
        As `split`.

    Examples
    --------
    >>> convert_byte_order("model.gguf", "big.gguf", byte_order="big")
    >>> mmgguf.open("big.gguf").byte_order
    'big'
    """
    with opened(source) as f:
        _require_known(f.values())
        target = os.fsdecode(output)
        check_output([target], _paths(f), f.nbytes, force)
        metadata = f.metadata.replace(remove=_layout_keys(f))
        total = sum(tensor.nbytes for tensor in f.values())
        copier = Copier(total, progress)
        tensors = {name: _counted(tensor, copier) for name, tensor in f.items()}
        write(target, metadata, tensors, byte_order=byte_order)
        if progress is not None:
            progress(total, total)


def _counted(tensor: Tensor, copier: Copier) -> TypedTensor:
    def load() -> Any:
        if copier.progress is not None:
            copier.progress(copier.done, copier.total)
        copier.done += tensor.nbytes
        return tensor.data

    return TypedTensor(load, GGMLType(tensor.type), tensor.shape)


def _layers(tensors: list[Tensor]) -> Iterator[list[Tensor]]:
    """Runs of tensors that belong to one layer, or to none."""
    run: list[Tensor] = []
    current: str | None = None
    for tensor in tensors:
        match = _LAYER.match(tensor.name)
        layer = match[0] if match else None
        if run and layer != current:
            yield run
            run = []
        current = layer
        run.append(tensor)
    if run:
        yield run


def _layout_keys(f: GGUFFile) -> list[str]:
    return [key for key in f.metadata if key.startswith("split.") or key == PADDING_KEY]


def _whole(f: GGUFFile) -> RawHeader:
    """The header of the whole model, without tensor infos."""
    header = RawHeader.of(f.shards[0]).without(_layout_keys(f))
    header.infos = []
    return header


def _paths(f: GGUFFile) -> list[str]:
    return [shard.path for shard in f.shards]


def _require_known(tensors: Any) -> None:
    for tensor in tensors:
        if not isinstance(tensor.type, GGMLType):
            raise UnknownTypeError(
                f"{shown(tensor.name)}: ggml type {int(tensor.type)} is unknown, so the size of its data is too"
            )


def _write(
    f: GGUFFile, files: list[tuple[str, RawHeader, list[Tensor]]], force: bool, progress: Progress | None
) -> None:
    """Write files of tensors of an open model, which keep their stored bytes."""
    alignment = f.alignment
    heads: list[bytes] = []
    sizes: dict[str, int] = {}
    for path, header, tensors in files:
        _require_known(tensors)
        offset = 0
        for tensor in tensors:
            header.infos.append(header.info(tensor.info, offset))
            offset += align(tensor.nbytes, alignment)
        raw = header.encoded()
        heads.append(raw)
        sizes[path] = align(len(raw), alignment) + offset
    paths = [path for path, _, _ in files]
    check_output(paths, _paths(f), sum(sizes.values()), force)
    copier = Copier(sum(tensor.nbytes for _, _, tensors in files for tensor in tensors), progress)
    with new_files(paths, f.path) as outputs:
        for (_, _, tensors), head, output in zip(files, heads, outputs, strict=True):
            output.write(head)
            pad(output, -len(head) % alignment)
            for tensor in tensors:
                copier.copy(tensor.storage, tensor.file_offset, tensor.nbytes, output)
                pad(output, -tensor.nbytes % alignment)
