"""Shards: the files of a split model, opened and checked against each other."""

from __future__ import annotations

import collections
import contextlib
import itertools
import os
from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from typing import Any, Final

from .errors import GGUFError, SplitError, shown
from .format.header import Header
from .format.parser import parse_header
from .format.shards import ShardName, shard_name
from .storage.base import Storage
from .storage.sources import Opener
from .storage.urls import is_url, shown_url, split_query

__all__ = ["Shard", "open_shards", "parse_storage"]

#: Shards of a remote file: how many there may be, and how many are opened at a time.
_MOST_REMOTE: Final = 1000
_REMOTE_AT_ONCE: Final = 8
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
    file : Storage
        Its bytes.
    """

    path: str
    header: Header
    file: Storage


def open_shards(source: Any, opener: Opener) -> list[Shard]:
    """The file at a source, or all shards of the split model that it belongs to, in order.

    Raises
    ------
    GGUFError
        One is not valid GGUF, or they do not belong together.
    OSError
        One cannot be opened.
    """
    given = parse_storage(opener.open(source))
    try:
        count = _split_value(given, "split.count", 1) if "split.count" in given.header.metadata else 1
        return _open_rest(given, count, opener) if count > 1 else [given]
    except BaseException:
        given.file.close()
        raise


def parse_storage(file: Storage) -> Shard:
    """Parse the header of an open file, which is closed if that fails."""
    try:
        header = parse_header(file.reader(), file, size=file.size, path=file.path)
        file.require_unchanged()
    except BaseException as error:
        if isinstance(error, GGUFError):
            text = str(error)
            error.args = (text if text.startswith(file.path) else f"{file.path}: {text}",)
        elif isinstance(error, OSError) and error.filename is None and error.errno is not None:
            error.filename = file.path  # of some special files there is no end to seek to
        file.close()
        raise
    file.header_nbytes = header.nbytes
    return Shard(file.path, header, file)


def _open_rest(given: Shard, count: int, opener: Opener) -> list[Shard]:
    """All shards of the split that `given` belongs to, in order, checked against each other."""
    if given.file.location is None:
        raise SplitError(f"{given.path}: one shard of {count} (split.count); open it by path or URL to find the others")
    location, query = split_query(given.file.location)
    name = shard_name(split_query(shown_url(location))[0], count)
    name = replace(name, prefix=location[: len(location) - len(name.path(name.no)) + len(name.prefix)])
    places = [name.path(no) + query for no in range(1, count + 1) if no != name.no]
    if is_url(location):
        opened = _open_remote(places, given, count, opener)
    else:
        _require_all(places, given, count)
        opened = (parse_storage(opener.open(place)) for place in places)
    shards: list[Shard] = []
    try:
        with contextlib.closing(opened):
            for no in range(1, count + 1):
                shards.append(given if no == name.no else next(opened))
                _check_shard(shards[-1], no, name)
        _check_together(shards)
    except BaseException:
        for shard in shards:
            shard.file.close()
        raise
    return shards


def _require_all(paths: list[str], given: Shard, count: int) -> None:
    missing = list(itertools.islice((path for path in paths if not os.path.exists(path)), _COUNTED_MISSING))
    if missing:
        least = "at least " if len(missing) == _COUNTED_MISSING else ""
        others = f" and {least}{len(missing) - 1} more" if len(missing) > 1 else ""
        raise SplitError(f"{missing[0]}{others}: missing; {given.path} is one shard of {count}")


def _open_remote(places: list[str], given: Shard, count: int, opener: Opener) -> Generator[Shard, None, None]:
    """Shards in order, several of them opened at a time; those that nobody took are closed at the end."""
    if count > _MOST_REMOTE:
        raise SplitError(f"{given.path}: one shard of {count}, at most {_MOST_REMOTE} are opened remotely")

    def open_one(place: str) -> Shard:
        try:
            return parse_storage(opener.open(place))
        except FileNotFoundError:
            raise SplitError(f"{shown_url(place)}: missing; {given.path} is one shard of {count}") from None

    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(_REMOTE_AT_ONCE, "mmgguf-shards") as pool:
        futures = collections.deque(pool.submit(open_one, place) for place in places)
        try:
            while futures:
                yield futures.popleft().result()
        finally:
            for future in futures:
                if not future.cancel() and future.exception() is None:
                    future.result().file.close()


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
    """Call a typed getter; its errors name the shard."""
    try:
        return getter(key, default)
    except GGUFError as error:
        error.args = (f"{shard.path}: {error}",)
        raise
