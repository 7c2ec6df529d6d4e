"""Use everything that can be reached from a result: whoever accepted a file must be able to live with it."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

import mmgguf
from mmgguf import GGMLType, GGUFError, GGUFFile, Header, Metadata, Tensor
from mmgguf.errors import UnknownTypeError
from mmgguf.estimates import Estimate
from mmgguf.format.strings import StringArray

#: ggml types whose blocks have no numbers on their own.
NOT_DEQUANTIZED = frozenset({GGMLType.Q8_1})
#: Tensors up to this many elements are dequantized whole.
SMALL = 1 << 14


def bounded(text: str) -> str:
    """A message or a repr that may be put on a screen: short, without control characters."""
    assert len(text) < 2000, f"{len(text)} characters: {text[:300]!r}"
    assert text.isprintable() or text == "", repr(text)
    return text


def metadata(found: Metadata) -> None:
    """Every value, by every way."""
    bounded(repr(found))
    for number, key in enumerate(found):
        value = found[key]
        found.type_of(key)
        if number >= 1000:  # for the fuzzer's sake: what follows is the tests' time, not the file's
            len(value) if isinstance(value, StringArray | np.ndarray | str) else value
            continue
        typed = found.typed(key)
        assert typed.type == found.type_of(key)
        if isinstance(value, StringArray):
            bounded(repr(value))
            items = list(value)
            assert len(items) == len(value)
            assert value[:5] == items[:5]
            if items:
                assert value[-1] == items[-1]
        elif isinstance(value, np.ndarray):
            assert not value.flags.writeable
            assert value.ndim == 1
            value.tobytes()
        for getter in (found.get_int, found.get_float, found.get_bool, found.get_str, found.get_array):
            try:
                getter(key)
            except mmgguf.errors.MetadataTypeError as error:
                bounded(str(error))
    # Surrogates for bytes that are not UTF-8 are escaped here.
    json.dumps(found.to_dict())


def header(found: Header) -> None:
    metadata(found.metadata)
    try:
        estimate(mmgguf.estimate(found))
    except GGUFError as error:
        bounded(str(error))
    assert found.data_offset % found.alignment == 0
    for name, info in found.tensors.items():
        assert info.name == name
        assert info.n_elements >= 0
        try:
            assert info.nbytes >= 0
        except UnknownTypeError as error:
            bounded(str(error))


def tensor(t: Tensor, dequantize: bool) -> None:
    bounded(repr(t))
    try:
        data = t.data
    except UnknownTypeError as error:
        bounded(str(error))
        assert not isinstance(t.type, GGMLType)
        return
    assert data.nbytes == t.nbytes
    assert t.layout.is_plain is (data.dtype.names is None)
    np.asarray(data[:1] if data.ndim else data).tobytes()
    data.reshape(-1)[-1:].tobytes()
    assert t.partition(0, 2).nbytes <= data.nbytes
    assert t.partition(1, 3, axis=-1).nbytes <= data.nbytes
    if dequantize and t.type not in NOT_DEQUANTIZED:
        if t.size <= SMALL:
            values = t.dequantize(np.float32)
            assert values.shape == t.shape
            assert np.asarray(t).shape == t.shape
            if t.ndim:
                assert t[:].shape == t.shape
                assert t[..., ::-2].shape == (*t.shape[:-1], -(-t.shape[-1] // 2))
        if t.ndim and t.shape[0] and t.size // t.shape[0] <= SMALL:
            assert t[0:1].shape == (1, *t.shape[1:])


def file(f: GGUFFile, dequantize: bool = True) -> None:
    bounded(repr(f))
    metadata(f.metadata)
    for shard in f.shards:
        for number, name in enumerate(shard.header.tensors):
            assert f[name].path == shard.path
            # Of thousands of tensors, the time that the calls take is the tests', not the file's.
            tensor(f[name], dequantize and number < 200)
    attempts: list[Any] = [
        lambda: f.architecture,
        lambda: dict(f.config),
        lambda: f.config.get_int("block_count"),
        lambda: bounded(repr(f.config)),
        lambda: f.file_type,
        f.layers,
        lambda: f.parameter_count,
        f.prefetch,
        lambda: f.prefetch(wait=True),
        f.resident,
        f.release,
        lambda: f["no such tensor"],
        lambda: f.metadata["no such key"],
    ]
    for attempt in attempts:
        try:
            attempt()
        except mmgguf.GGUFError as error:
            bounded(str(error))


def estimate(found: Estimate) -> None:
    """Every part, and a placement on two devices."""
    bounded(repr(found))
    bounded(str(sorted(found.exact)))
    for part in ("weights", "kv_cache", "recurrent_state", "output", "compute", "cells", "total"):
        value = getattr(found, part)
        assert value is None or value >= 0, part
    assert sum(layer.kv_cache or 0 for layer in found.layers) == (found.kv_cache or 0)
    for warning in found.warnings:
        bounded(warning)
    if found.total is not None:
        placed = found.place([1 << 20, 1 << 16], reserve=100)
        assert placed.offloaded <= len(found.layers) + 1
        assert found.largest_context([1 << 20]) is not None
