"""Parsing a header: through `BufferedSeeker` at several buffer sizes, without a buffer, and from the mapping."""

from __future__ import annotations

import io
import mmap
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import mmgguf
from mmgguf.bench.fields import read_fields
from mmgguf.format.parser import parse_header

from .conftest import Case
from .counting import CountingFile
from .files import Model

KIB = 1024


def _seeker(buffer_size: int) -> Callable[[Any], tuple[int, int]]:
    def parse(file: Any) -> tuple[int, int]:
        header = parse_header(file, buffer_size=buffer_size)
        return len(header.metadata), len(header.tensors)

    return parse


def _stream(file: Any) -> tuple[int, int]:
    header = mmgguf.read_header(file)
    return len(header.metadata), len(header.tensors)


def _fields(file: Any) -> tuple[int, int]:
    metadata, tensors = read_fields(file.read)
    return len(metadata), len(tensors)


def _fields_buffered(file: Any) -> tuple[int, int]:
    reader = io.BufferedReader(file, 64 * KIB)
    try:
        return _fields(reader)
    finally:
        reader.detach()


def _mapping(parse: Callable[[Any], tuple[int, int]]) -> Callable[[Any], tuple[int, int]]:
    def parse_mapped(file: Any) -> tuple[int, int]:
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapping:
            return parse(mapping)

    return parse_mapped


WAYS: dict[str, Callable[[Any], tuple[int, int]]] = {
    "seeker, unbuffered": _seeker(0),
    "seeker, 4 KiB": _seeker(4 * KIB),
    "seeker, 16 KiB": _seeker(16 * KIB),
    "seeker, 64 KiB": _seeker(64 * KIB),
    "seeker, 256 KiB": _seeker(256 * KIB),
    "seeker, 1 MiB": _seeker(1024 * KIB),
    "seeker over the mapping": _mapping(_seeker(64 * KIB)),
    "read_header, arrays kept": _stream,
    "field by field, unbuffered": _fields,
    "field by field, buffered": _fields_buffered,
    "field by field, mapping": _mapping(_fields),
}


def test_header(case: Case, model: Model) -> None:
    with mmgguf.open(model.path) as file:
        expected = len(file.metadata), len(file)
        nbytes = file.shards[0].header.nbytes

    calls = {}
    for name, way in WAYS.items():
        with CountingFile(model.path) as counted:
            assert way(counted) == expected
            calls[name] = counted.total

    def run(way: Callable[[Any], tuple[int, int]]) -> tuple[int, int]:
        # Unbuffered: whatever buffers is the way's own.
        with io.FileIO(model.path) as file:
            return way(file)

    def check(_: str, result: tuple[int, int]) -> None:
        assert result == expected

    case.time(
        f"header/{model.id}",
        {name: lambda way=way: partial(run, way) for name, way in WAYS.items()},
        seconds=0.15,
        check=check,
        title=model.title,
        system_calls=calls,
        header_bytes=nbytes,
    )


def test_system_calls_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(100))
    with CountingFile(path) as file:
        assert file.read(10) == bytes(10)
        assert file.readinto(bytearray(20)) == 20
        assert file.seek(-5, os.SEEK_END) == 95
        assert file.tell() == 95
        with pytest.raises(ValueError, match="without a size"):
            file.read()
        assert (file.calls, file.total) == ({"read": 2, "lseek": 2}, 4)
