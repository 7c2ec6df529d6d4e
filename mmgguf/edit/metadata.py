"""Change a file's metadata: in place where the new header fits, else by writing the file anew."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ..errors import FileChangedError
from ..file import GGUFFile, open
from ..format.constants import DEFAULT_ALIGNMENT, PADDING_KEY
from ..format.metadata import Metadata
from ..format.writer import check_split, write
from ..inspect.contents import encoded, show_value
from ..selection import Progress
from ..types import ValueType
from .copying import Copier, check_output, new_files, pad
from .inplace import overwrite, recover, require_own
from .raw import RawHeader

__all__ = ["Change", "Edit", "plan_edit", "replace_metadata"]

_ALIGNMENT_KEY = "general.alignment"

#: Bytes of padding at most: the header is made in memory.
_MAX_RESERVE = 1 << 30


@dataclass(frozen=True, slots=True)
class Change:
    """One change of the metadata.

    Attributes
    ----------
    kind : {"added", "removed", "changed", "renamed"}
        What happens.
    key : str
        The key, before the change.
    before, after : str
        Type and value, for people and printable; of a renamed key `after` is the new key.  Empty where there is none.
    """

    kind: Literal["added", "removed", "changed", "renamed"]
    key: str
    before: str
    after: str


@dataclass(frozen=True, slots=True)
class Edit:
    """A planned edit; nothing is written before `apply`.

    Attributes
    ----------
    path : str
        The file that is read; of a split model the first shard, which has the metadata.
    output : str
        The file that will be written; the same for an edit in place.
    changes : tuple of Change
        What will be different, in the order of the new metadata; first what is removed.
    in_place : bool
        Whether only the header will be written, where it is.
    nbytes : int
        Bytes of the header, if it is in place, else of the whole file.
    """

    path: str
    output: str
    changes: tuple[Change, ...]
    in_place: bool
    nbytes: int
    _old: bytes = field(repr=False)
    #: The new header, and how much padding comes behind it; nothing if the writer has to lay everything out anew.
    _new: bytes = field(repr=False)
    _padding: int = field(repr=False)
    _data_offset: int = field(repr=False)
    _arguments: dict[str, Any] = field(repr=False)
    _itself: bool = field(repr=False)
    _force: bool = field(repr=False)

    def apply(self, progress: Progress | None = None) -> None:
        """Write the planned changes.

        Raises
        ------
        FileChangedError
            The file has changed since the edit was planned.
        OSError
            What the operating system refuses.
        """
        if self.in_place:
            overwrite(self.path, self._old, self._new)
            return
        # The old file stays until the new one is complete.
        itself = self._itself
        check_output([self.output], [] if itself else [self.path], self.nbytes, itself or self._force)
        with open(self.path) as f:
            shard = f.shards[0]
            if shard.file.region(0, len(self._old)).tobytes() != self._old:
                raise FileChangedError(f"{self.path}: has changed since the edit was planned")
            if not self._new:
                own = {name: f[name] for name in shard.header.tensors}  # of a split model, `f` has those of all shards
                write(self.output, f.metadata.replace(**self._arguments), own, byte_order=f.byte_order)
                return
            copier = Copier(self.nbytes - len(self._new) - self._padding, progress)
            with new_files([self.output], self.path) as (file,):
                file.write(self._new)
                pad(file, self._padding)
                copier.copy(shard.file, self._data_offset, copier.total, file)


def replace_metadata(
    path: str | os.PathLike[str],
    changes: Mapping[str, Any] | None = None,
    *,
    remove: Iterable[str] = (),
    rename: Mapping[str, str] | None = None,
    output: str | os.PathLike[str] | None = None,
    reserve: int = 0,
    force: bool = False,
    progress: Progress | None = None,
) -> Edit:
    """Change the metadata of a file.

    Every value that is not named keeps its bytes, and the tensors keep theirs.  Where the new header takes no more room
    than the old one, only the header is written, in one call and with a journal beside the file: a crash at any moment
    leaves the old header or the new one, if need be after `recover`.  A header that shrinks is filled up with the key
    ``mmgguf.padding``, which the next edit uses up.  A header that does not fit means that the file is written anew,
    under a temporary name, and takes the old one's place in one rename; its data does not pass through this process
    where the system can copy it.

    Parameters
    ----------
    path : path-like
        The file; of a split model any shard, and the first is changed.
    changes, remove, rename
        As `Metadata.replace` takes them: types are kept.
    output : path-like, optional
        Where to write the edited file.  By default the file itself is edited.
    reserve : int, default 0
        Bytes of padding to leave in the header when the file is written anew, for later edits in place; at most 1 GiB.
    force : bool, default False
        Replace an `output` that is there; edit a file in place that a store knows by its digest.
    progress : callable, optional
        Called with the bytes of data that were copied and those in all.

    Returns
    -------
    Edit
        What was done; ``in_place`` tells which of the two ways.

    Raises
    ------
    TypeError, ValueError
        A value that its type does not hold, a key that cannot be stored, or a `reserve` beyond its range.
    NameNotFoundError
        A key to remove or to rename that is not there.
    GGUFError
        The file is not valid, or changed meanwhile.
    FileExistsError
        `output` is there, or is the file itself.
    OSError
        What the operating system refuses; a disk too full, found before anything is written.

    Notes
    -----
    Who has the file open sees the bytes of the header change: open it again.

    Examples
    --------
    >>> replace_metadata("model.gguf", {"general.name": "n"}).in_place
    True
    """
    edit = plan_edit(path, changes, remove=remove, rename=rename, output=output, reserve=reserve, force=force)
    if edit.changes or output is not None:
        edit.apply(progress)
    return edit


def plan_edit(
    path: str | os.PathLike[str],
    changes: Mapping[str, Any] | None = None,
    *,
    remove: Iterable[str] = (),
    rename: Mapping[str, str] | None = None,
    output: str | os.PathLike[str] | None = None,
    reserve: int = 0,
    force: bool = False,
) -> Edit:
    """Plan the edit that `replace_metadata` makes, without writing anything.

    Examples
    --------
    >>> edit = plan_edit("model.gguf", {"general.name": "n"})
    >>> [(change.kind, change.key) for change in edit.changes]
    [('changed', 'general.name')]
    """
    if not 0 <= reserve <= _MAX_RESERVE:
        raise ValueError(f"reserve must be from 0 to {_MAX_RESERVE} bytes, got {reserve}")
    changes, remove, rename = dict(changes or {}), list(remove), dict(rename or {})
    name = os.fsdecode(path)
    if output is None and "://" in name and not os.path.exists(name):
        raise ValueError(f"{name}: only local files can be edited in place; name an output")
    if output is None:
        # An edit that was interrupted comes first.
        recover(path)
    with open(path) as f:
        if output is not None and len(f.shards) > 1:
            raise ValueError(f"{f.path}: has {len(f.shards)} shards; edit it in place, or merge it first")
        return _plan(f, changes, remove, rename, None if output is None else os.fsdecode(output), reserve, force)


def _plan(
    f: GGUFFile,
    changes: dict[str, Any],
    remove: list[str],
    rename: dict[str, str],
    output: str | None,
    reserve: int,
    force: bool,
) -> Edit:
    shard = f.shards[0]
    header, path = shard.header, shard.path
    if output is None and not force:
        require_own(path)
    touched = {*changes, *remove, *rename, *rename.values()}
    for key in touched:
        if key == PADDING_KEY or (key.startswith("split.") and len(f.shards) > 1):
            raise ValueError(f"{key}: describes the layout of the file and cannot be edited")
    metadata = f.metadata.replace(changes, remove=remove, rename=rename)
    if "split.count" in touched and "split.count" in metadata:
        check_split(metadata.typed("split.count"), path if output is None else output)
    told = tuple(_changes(f.metadata, metadata, changes, remove, rename))
    raw = RawHeader.of(shard)
    pairs = {key: raw.pairs[old] for key, old in _origins(f.metadata, metadata, changes, rename)}
    new = RawHeader(raw.magic, raw.version, raw.byte_order, pairs, raw.infos)
    new.pairs = {key: pairs[key] if key in pairs else new.pair(key, metadata.typed(key)) for key in metadata}
    target = path if output is None else output
    alignment = _alignment(metadata)
    limit = min(header.data_offset, shard.file.size)
    itself = output is None
    if alignment != header.alignment:
        # Every offset changes: the writer lays the tensors out anew.
        old = shard.file.region(0, header.nbytes).tobytes()
        arguments = {"changes": changes, "remove": remove, "rename": rename}
        return Edit(path, target, told, False, shard.file.size, old, b"", 0, limit, arguments, itself, force)
    if itself and new.fill(header.data_offset, alignment) and new.nbytes <= limit:
        head = new.encoded()
        # As far as either header reaches; behind it is padding, which may be as long as the alignment says.
        reach = max(len(head), header.nbytes)
        old = shard.file.region(0, reach).tobytes()
        head += bytes(reach - len(head))
        return Edit(path, target, told, True, len(head), old, head, 0, limit, {}, itself, force)
    new.pairs.pop(PADDING_KEY, None)
    if reserve > 0:
        new.pairs[PADDING_KEY] = new.padding(reserve)
    old = shard.file.region(0, header.nbytes).tobytes()
    head = new.encoded()
    padding = -len(head) % alignment
    nbytes = len(head) + padding + shard.file.size - limit
    return Edit(path, target, told, False, nbytes, old, head, padding, limit, {}, itself, force)


def _alignment(metadata: Metadata) -> int:
    if _ALIGNMENT_KEY not in metadata:
        return DEFAULT_ALIGNMENT
    alignment = metadata[_ALIGNMENT_KEY]
    if metadata.type_of(_ALIGNMENT_KEY) is not ValueType.UINT32 or alignment < 8 or alignment & (alignment - 1):
        raise ValueError(f"{_ALIGNMENT_KEY}: must be UINT32 and a power of two from 8 up, got {alignment!r:.60}")
    return int(alignment)


def _origins(
    before: Metadata, after: Metadata, changes: Mapping[str, Any], rename: Mapping[str, str]
) -> Iterable[tuple[str, str]]:
    """The pairs that keep their bytes, each as its key in the new header and its key in the old one."""
    renamed = set(rename) | set(rename.values())
    return [(key, key) for key in after if key in before and key not in changes and key not in renamed]


def _changes(
    before: Metadata, after: Metadata, changes: Mapping[str, Any], remove: list[str], rename: Mapping[str, str]
) -> Iterable[Change]:
    for key in dict.fromkeys(remove):
        if key not in changes:
            yield Change("removed", key, show_value(before, key), "")
    for old, new in rename.items():
        if old != new:
            yield Change("renamed", old, show_value(before, old), new)
    origin = {new: old for old, new in rename.items()}
    for key in after:
        if key not in changes:
            continue
        old = origin.get(key, key)
        if old not in before:
            yield Change("added", key, "", show_value(after, key))
        elif encoded(before, old) != encoded(after, key):
            yield Change("changed", key, show_value(before, old), show_value(after, key))
