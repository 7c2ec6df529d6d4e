"""`write`: metadata and tensors → a GGUF file, at a path or a URL."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from .format import writer
from .storage.urls import is_url, scheme_of
from .types import ByteOrder

__all__ = ["write"]


def write(
    path: str | os.PathLike[str],
    metadata: Mapping[str, Any],
    tensors: Mapping[str, Any],
    *,
    alignment: int | None = None,
    byte_order: ByteOrder = "little",
    storage_options: Mapping[str, Any] | None = None,
) -> None:
    """Write a GGUF file of version 3 atomically: the path holds the old file or the complete new one.

    Memory does not grow with the tensors: data is written in chunks of at most 8 MiB, also where it is not
    contiguous or has the other byte order, and functions are called one at a time.

    Parameters
    ----------
    path : path-like or URL
        The file to make or to replace.  Of URLs, those whose file system replaces a file in one step: ``s3://``,
        ``gs://`` and ``memory://``.  A symbolic link is followed.  A file that is replaced hands on its
        permissions and owner (`mmgguf.format.target` says what is lost); a process that has it mapped keeps the old
        bytes.  So tensors of an opened file can be written to the path that they are from.
    metadata : Mapping of str
        Values by key, in the order of the file: the ``metadata`` of an opened file, whose stored types are kept, or
        what its `Metadata.replace` gives; or Python and numpy values.  Of these, a key of the specification gets the
        type that `mmgguf.format.keytypes` has for it, any other key the one in the table in `mmgguf.format.values`,
        and `TypedValue` forces a type.  What a type does not hold is an error.  ``general.alignment`` is added
        where it is needed.  A file that is merged from shards should not inherit their ``split.*`` keys.
    tensors : Mapping of str
        Data by name, in the order of the file: arrays (or what `numpy.asarray` takes, and torch tensors, also of
        bfloat16), whose ggml type follows from the dtype; `TypedTensor`; tensors of an opened file, whose stored form
        is copied; or packed ones, as the adapters for torch and JAX hand them out with ``dequantize=False``.
    alignment : int, optional
        Where tensors begin, relative to the data section: at multiples of this power of two from 8 up.  By default
        what ``general.alignment`` in the metadata says, and 32 without it.  llama.cpp refuses 8 and 16.
    byte_order : {"little", "big"}
        Of everything in the file, the tensors included.
    storage_options : dict, optional
        For a URL: options of its file system.

    Raises
    ------
    TypeError
        A value or dtype that GGUF has no type for; a dtype that does not belong to the ggml type.
    ValueError
        What `open` would refuse: a row that is not a whole number of blocks, a shape beyond 64 bits or of more than
        four dimensions, a key that is empty, a name or key that occurs twice, a bad alignment.  And a shape that does
        not fit the data, a name that is empty, a name or key that is too long or holds a NUL, a number out of its
        type's range, a contradicted alignment.
    SplitError
        ``split.count`` says that this is a shard, and the path is not named like one.
    UnknownTypeError
        A tensor of an opened file has a ggml type whose layout is unknown.
    OSError
        What the operating system or a server refuses; the path is a folder, ends in a separator, or is no regular file;
        a URL where files cannot be replaced in one step.

    Examples
    --------
    >>> write("tiny.gguf", {"general.architecture": "llama"}, {"w": np.zeros((2, 3), np.float32)})
    """
    target = None
    if isinstance(path, str) and is_url(path):
        from .storage.sources import path_of

        if scheme_of(path) == "file":
            path = path_of(path)
        else:
            from .storage.upload import replacing_remote

            target = replacing_remote(path, storage_options)
    if storage_options and target is None:
        raise ValueError("storage_options are for URLs: paths have none")
    writer.write(path, metadata, tensors, alignment=alignment, byte_order=byte_order, target=target)
