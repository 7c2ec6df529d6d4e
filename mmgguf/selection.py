"""Select tensors by name, and go through them in the file's order while the next ones are read ahead.

What every consumer of whole files shares: `GGUFFile.dequantize_all`, the adapters and the converters.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Any

from .errors import NameNotFoundError, shown
from .tensor import Tensor

__all__ = ["Names", "Progress", "match", "read_ahead", "select", "walk"]

#: A name or a pattern with ``*``, ``?`` or ``[``, or several; None: all.
Names = str | Iterable[str] | None
#: Called with the bytes done so far and those in all.
Progress = Callable[[int, int], object]


def select(f: Mapping[str, Tensor], names: Names) -> list[str]:
    """The tensors that `names` stands for, in the file's order, each once.

    Raises
    ------
    NameNotFoundError
        A name that the file does not have, or a pattern that fits none.
    """
    return match(f, names, getattr(f, "path", "the mapping"))


def match(known: Mapping[str, Any], names: Names, where: str) -> list[str]:
    """The keys of `known` that `names` stands for, in their order; see `select`."""
    if names is None:
        return list(known)
    chosen: set[str] = set()
    for name in [names] if isinstance(names, str) else names:
        if name in known:
            chosen.add(name)
            continue
        fitting = [key for key in known if fnmatchcase(key, name)] if any(c in name for c in "*?[") else []
        if not fitting:
            raise NameNotFoundError(f"{where}: no tensor {shown(name, quoted=True)}", name, list(known))
        chosen.update(fitting)
    return [key for key in known if key in chosen]


def walk(
    f: Mapping[str, Tensor],
    names: Names = None,
    progress: Progress | None = None,
    key: Callable[[Tensor], int] | None = None,
) -> Iterator[Tensor]:
    """Go through tensors in the file's order, asking the system for the pages of those that come next.

    Names and types are checked at the call, before the first tensor.  Where there is a `key`, the order is that of
    its values.  `progress` is called with stored bytes, from (0, total) to (total, total).

    Raises
    ------
    NameNotFoundError, UnknownTypeError
        As `select`; a tensor whose ggml type is unknown.
    """
    tensors = [f[name] for name in select(f, names)]
    if key is not None:
        tensors.sort(key=key)
    return _walk(tensors, sum(tensor.nbytes for tensor in tensors), progress)


def read_ahead(tensors: Iterable[Tensor]) -> Iterator[Tensor]:
    """Go through tensors of known types as they come; those of remote files are asked for some way ahead."""
    tensors = list(tensors)
    is_remote = any(tensor.storage.is_remote for tensor in tensors)
    return _walk(tensors, 0, None) if is_remote else iter(tensors)


def _walk(tensors: list[Tensor], total: int, progress: Progress | None) -> Iterator[Tensor]:
    done = ahead = asked = 0
    if progress is not None:
        progress(0, total)
    try:
        for index, tensor in enumerate(tensors):
            # A mapping brings the pages of the tensor at hand by itself; ranges of a remote file come faster in parts.
            is_here = not tensor.storage.is_remote
            ahead, asked = max(ahead, index + is_here), max(asked, done + tensor.nbytes * is_here)
            limit, begin = tensor.storage.ahead, ahead
            if is_here or ahead <= index or asked - done - tensor.nbytes < limit // 2:  # many at a time, from afar
                while ahead < len(tensors) and asked - done - tensor.nbytes < limit:
                    asked += tensors[ahead].nbytes
                    ahead += 1
                for storage, some in itertools.groupby(tensors[begin:ahead], key=lambda one: one.storage):
                    storage.prefetch_ranges([(one.file_offset, one.nbytes) for one in some], once=True)
            yield tensor
            done += tensor.nbytes
            if progress is not None:
                progress(done, total)
    finally:
        for storage in {tensor.storage for tensor in tensors[:ahead] if tensor.storage.is_remote}:
            storage.forget()
