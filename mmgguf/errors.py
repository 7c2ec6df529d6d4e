"""Every error that mmgguf raises about a file.

::

    GGUFError                                the root: catch this one
    ├── FormatError          (ValueError)    the bytes break a rule of the format
    │   ├── NotGGUFError                     no GGUF magic; names the older ggml formats
    │   ├── VersionError                     GGUF, but of a version that does not exist
    │   ├── DuplicateKeyError (KeyError)     a metadata key that is there twice
    │   └── TruncatedError   (EOFError)      the file ends before what its header announces
    ├── SplitError           (ValueError)    shards that are missing, foreign or disagree
    ├── UnknownTypeError     (TypeError)     data of a ggml type that this version does not know
    ├── MetadataTypeError    (TypeError)     a typed getter met a value of another type
    ├── MetadataValueError   (ValueError)    a metadata value that cannot be meant
    ├── NameNotFoundError    (KeyError)      no such tensor or metadata key
    ├── FileChangedError     (RuntimeError)  the file is not the one that was opened
    ├── RemoteError          (OSError)       a server or file system did not give what was asked for
    ├── StoreError           (ValueError)    a store of another program has a broken entry
    └── ClosedError          (ValueError)    the file was closed

    MissingExtraError        (ImportError)   an optional dependency is not installed (not about a file)

A message says where, what, got and limit.  What the operating system refuses (no such file, a directory, no
permission) stays the ordinary `OSError`.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Collection
from typing import Any, Final

__all__ = [
    "ClosedError",
    "DuplicateKeyError",
    "FileChangedError",
    "FormatError",
    "GGUFError",
    "MetadataTypeError",
    "MetadataValueError",
    "MissingExtraError",
    "NameNotFoundError",
    "NotGGUFError",
    "RemoteError",
    "SplitError",
    "StoreError",
    "TruncatedError",
    "UnknownTypeError",
    "VersionError",
    "human_size",
    "shown",
    "similar_names",
]

#: Characters of a name or value that a message shows.
_SHOWN_LENGTH: Final = 100
#: Names that a misspelt one is compared with: some milliseconds.
_MOST_COMPARED: Final = 500


def shown(text: object, quoted: bool = False) -> str:
    """A name from a file as messages show it: cut to a limit, control characters escaped.

    As it is where that is harmless and no quotes are asked for; otherwise quoted and escaped as `repr` does, and cut.
    Of what is no string, as an index in place of a name, the `repr` tells what it is.

    Examples
    --------
    >>> print(shown("blk.0.attn_q.weight"), shown("\\x1b[2J"))
    blk.0.attn_q.weight '\\x1b[2J'
    """
    if not isinstance(text, str):
        return f"{text!r:.100}"
    if len(text) <= _SHOWN_LENGTH:
        return repr(text) if quoted or not text or not text.isprintable() else text
    return f"{text[:_SHOWN_LENGTH]!r}… ({len(text)} characters)"


def human_size(nbytes: int) -> str:
    """Bytes for people: 9437184 → ``9.0 MiB``.

    Examples
    --------
    >>> human_size(9437184), human_size(1000)
    ('9.0 MiB', '1000 B')
    """
    if nbytes < 1024:
        return f"{nbytes} B"
    value, units = nbytes / 1024, iter(("KiB", "MiB", "GiB", "TiB", "PiB", "EiB"))
    unit = next(units)
    while value >= 999.95:
        value /= 1024
        unit = next(units)
    return f"{value:.1f} {unit}"


class GGUFError(Exception):
    """Root of every error about a file."""


class FormatError(GGUFError, ValueError):
    """The bytes break a rule of the GGUF format."""


class NotGGUFError(FormatError):
    """The file does not begin with the GGUF magic."""


class VersionError(FormatError):
    """The file says that it is GGUF of a version that this library cannot read."""


class DuplicateKeyError(FormatError, KeyError):
    """A metadata key is there twice.  It is a `KeyError` too, which is what pip's gguf raises for it."""

    def __str__(self) -> str:
        return Exception.__str__(self)  # KeyError would show the repr


class TruncatedError(FormatError, EOFError):
    """The file ends before the data that it announces."""


class SplitError(GGUFError, ValueError):
    """Shards of a split model are missing, occur twice, belong to another model, or contradict each other."""


class UnknownTypeError(GGUFError, TypeError):
    """The data of a tensor whose ggml type is unknown or was removed cannot be read."""


class MetadataTypeError(GGUFError, TypeError):
    """A metadata value is not of the type that was asked for."""


class MetadataValueError(GGUFError, ValueError):
    """A metadata value has the right type but makes no sense, such as 0 heads."""


class NameNotFoundError(GGUFError, KeyError):
    """No tensor or metadata key of that name; the message has those that are spelt much alike.

    Parameters
    ----------
    message : str
        Where, and what is not there.
    name : str, optional
        The name that was asked for.
    known : Collection of str, optional
        The names that are there.  They are looked at when the message is shown: most of these errors are caught, by
        `Mapping.get` for one.
    """

    def __init__(self, message: str = "", name: object = None, known: Collection[str] = ()) -> None:
        super().__init__(message)
        self._name, self._known = name, known

    def __str__(self) -> str:
        # KeyError shows the repr of its argument, which would put the whole sentence in quotes.
        message = str(self.args[0]) if self.args else ""
        similar = similar_names(self._name, self._known) if isinstance(self._name, str) else []
        if not similar:
            return message
        return f"{message}; did you mean {' or '.join(shown(name, quoted=True) for name in similar)}?"

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self),)  # without the names


def similar_names(name: str, known: Collection[str]) -> list[str]:
    """At most three of the known names that are spelt much like `name`, the most alike first.

    In bounded time for names from hostile files: long names, and those beyond the first twenty thousand, are left out;
    and of many, those that begin and end as `name` does are compared.

    Examples
    --------
    >>> similar_names("attn_p", ["attn_q", "ffn_up"])
    ['attn_q']
    """
    if len(name) > _SHOWN_LENGTH:
        return []
    candidates = [other for other in itertools.islice(known, 20_000) if len(other) <= _SHOWN_LENGTH]
    if len(candidates) > _MOST_COMPARED:
        backwards = name[::-1]
        candidates = heapq.nlargest(
            _MOST_COMPARED,
            candidates,
            lambda other: _common_length(name, other) + _common_length(backwards, other[::-1]),
        )
    import difflib

    return difflib.get_close_matches(name, candidates)


def _common_length(a: str, b: str) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


class FileChangedError(GGUFError, RuntimeError):
    """The file on disk is not, or no longer, the one that was opened."""


class RemoteError(GGUFError, OSError):
    """A server or a file system did not give what was asked for, and asking again would not help."""


class StoreError(GGUFError, ValueError):
    """A store of another program (ollama, LM Studio, a cache) has an entry that is broken."""


class ClosedError(GGUFError, ValueError):
    """The `GGUFFile` was closed."""


class MissingExtraError(ImportError):
    """An optional dependency is not installed; the message holds the command that installs it."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"{package} is not installed; get it with: pip install 'mmgguf[{extra}]'", name=package)
        self.extra = extra

    def __reduce__(self) -> tuple[Any, ...]:
        # ImportError's own way calls the class with the message, and a worker's error must come back to its caller.
        return type(self), (self.name, self.extra)
