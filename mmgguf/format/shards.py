"""Names of the files of a split model: ``<prefix>-00001-of-00003.gguf``.

File names count shards from 1, the metadata key ``split.no`` from 0 (llama.cpp's ``llama_split_path``).
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import Final

from ..errors import SplitError

__all__ = ["ShardName", "parse_shard_name", "shard_name"]

_PATTERN: Final = re.compile(r"(?P<prefix>.*)-(?P<no>[0-9]{5})-of-(?P<count>[0-9]{5})\.gguf", re.DOTALL)


@dataclass(frozen=True, slots=True)
class ShardName:
    """The parts of a shard's path: everything before the numbers, its number from 1, and how many there are."""

    prefix: str
    no: int
    count: int

    def path(self, no: int) -> str:
        """The path of shard `no` (from 1) of the same split."""
        return f"{self.prefix}-{no:05d}-of-{self.count:05d}.gguf"


def parse_shard_name(path: str | os.PathLike[str]) -> ShardName | None:
    """Take a shard's path apart; None if it is not named like one."""
    match = _PATTERN.fullmatch(os.fspath(path))
    return ShardName(match["prefix"], int(match["no"]), int(match["count"])) if match else None


def shard_name(path: str, count: int) -> ShardName:
    """The parts of the path of a file whose metadata says that it is one shard of `count`.

    Raises
    ------
    SplitError
        The name does not say the same, so the other shards cannot be found.
    """
    name = parse_shard_name(path)
    if name is None:
        raise SplitError(
            f"{path}: one shard of {count} (split.count), but not named <prefix>-00001-of-{count:05d}.gguf, "
            "so the others cannot be found"
        )
    if name.count != count:
        raise SplitError(f"{path}: named as one of {name.count} shards, split.count says {count}")
    if not 1 <= name.no <= count:
        raise SplitError(f"{path}: named as shard {name.no} of {count}, they are counted from 1 to {count}")
    return name
