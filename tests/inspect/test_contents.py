"""Digests of files, and how two files differ."""

from __future__ import annotations

import dataclasses
import hashlib
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mmgguf
from mmgguf import GGMLType, TypedTensor, TypedValue, ValueType
from mmgguf.inspect import Difference
from mmgguf.types import LAYOUTS

from ..support.build import F32, FLOAT32, Build

METADATA = {
    "general.architecture": "llama",
    "general.name": "näme",
    "a.u8": TypedValue(1, ValueType.UINT8),
    "a.nan": float("nan"),
    "a.flags": [True, False, True],
    "a.numbers": TypedValue([1, 2, 3], ValueType.ARRAY, ValueType.INT16),
    "a.strings": ["x", "", "z" * 300],
}


def content() -> dict[str, Any]:
    rng = np.random.default_rng(5)
    dtype = LAYOUTS[GGMLType.Q4_K].dtype
    blocks = rng.integers(0, 256, (4, 3 * dtype.itemsize), np.uint8).view(dtype)
    return {
        "v": np.arange(1000, dtype=np.float32),
        "q": TypedTensor(blocks, GGMLType.Q4_K),
        "h": np.arange(7, dtype=np.float16),
    }


def reorder(mapping: dict[str, Any]) -> dict[str, Any]:
    return dict(reversed(mapping.items()))


def test_digests_do_not_depend_on_the_layout(tmp_path: Path) -> None:
    paths = [tmp_path / f"{i}.gguf" for i in range(5)]
    mmgguf.write(paths[0], METADATA, content())
    mmgguf.write(paths[1], METADATA, content(), byte_order="big")
    mmgguf.write(paths[2], METADATA, content(), alignment=4096)
    mmgguf.write(paths[3], reorder(METADATA), reorder(content()))
    paths[4].write_bytes(paths[0].read_bytes() + b"trailing")
    first = mmgguf.digest(paths[0])
    assert first.algorithm == "sha256"
    assert len(first.file or "") == 64
    for path in paths[1:]:
        other = mmgguf.digest(path)
        assert (other.file, dict(other.tensors)) == (first.file, dict(first.tensors))
    for path in paths[1:]:
        assert mmgguf.compare(paths[0], path) == []


def test_shards_are_no_difference(tmp_path: Path) -> None:
    whole, tensors = tmp_path / "whole.gguf", content()
    mmgguf.write(whole, METADATA, tensors)
    for number, (name, tensor) in enumerate(tensors.items()):
        counts = {"split.no": np.uint16(number), "split.count": np.uint16(3), "split.tensors.count": np.int32(3)}
        path = tmp_path / f"part-{number + 1:05}-of-00003.gguf"
        mmgguf.write(path, counts if number else METADATA | counts, {name: tensor})
    assert mmgguf.compare(whole, path) == mmgguf.compare(path, whole) == []
    assert mmgguf.digest(whole) == mmgguf.digest(path)


def test_digests_are_of_the_documented_bytes(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    mmgguf.write(path, {"b.k": "v", "a.k": TypedValue(7, ValueType.UINT16)}, {"w": np.array([[1, 2, 3]], np.float32)})
    data = np.array([1, 2, 3], "<f4").tobytes()
    content = struct.pack("<Q3sIH", 3, b"a.k", ValueType.UINT16, 7)[:8] + b"a.k" + struct.pack("<IH", 2, 7)
    content += struct.pack("<Q", 3) + b"b.k" + struct.pack("<IQ", 8, 1) + b"v"
    content += struct.pack("<Q", 1) + b"w" + struct.pack("<IQQI", 2, 3, 1, 0)
    for algorithm in ("sha256", "blake2b", "md5"):
        whole = hashlib.new(algorithm, content + hashlib.new(algorithm, data).digest())
        digests = mmgguf.digest(path, algorithm=algorithm)
        assert digests == mmgguf.inspect.Digests(
            algorithm, whole.hexdigest(), {"w": hashlib.new(algorithm, data).hexdigest()}
        )


def test_digests_of_arrays_are_those_of_the_encoder(tmp_path: Path) -> None:
    """Arrays of strings take a shorter way, which must give the same bytes."""
    little, big, one = (tmp_path / name for name in ("l.gguf", "b.gguf", "1.gguf"))
    for path, build in ((little, Build()), (big, Build(3, "big")), (one, Build(1))):
        build.start(0, 2).texts(b"s", [b"x", b"", b"\xff" * 300]).numbers(b"n", FLOAT32, [1.0, -2.0])
        path.write_bytes(bytes(build))
    assert mmgguf.digest(little) == mmgguf.digest(big) == mmgguf.digest(one)
    from mmgguf.format.values import encode_value
    from mmgguf.inspect.contents import encoded

    content = b""
    with mmgguf.open(little) as f:
        for key in ("n", "s"):
            value = struct.pack("<I", 9) + encode_value(f.metadata.typed(key), "little", key)
            assert encoded(f.metadata, key) == value
            content += struct.pack("<Q", 1) + key.encode() + value
    assert mmgguf.digest(little).file == hashlib.sha256(content).hexdigest()


def test_every_change_changes_the_digest(tmp_path: Path) -> None:
    base = tmp_path / "base.gguf"
    mmgguf.write(base, METADATA, content())
    reference = mmgguf.digest(base)
    changed: list[tuple[dict[str, Any], dict[str, Any]]] = [
        (METADATA | {"a.u8": TypedValue(1, ValueType.INT8)}, content()),
        (METADATA | {"general.name": "name"}, content()),
        (METADATA | {"more": 1}, content()),
        (METADATA, content() | {"v": np.arange(1000, dtype=np.float32).reshape(10, 100)}),
        (METADATA, content() | {"v": np.arange(1000, dtype=np.int32)}),
        (METADATA, {k if k != "v" else "u": t for k, t in content().items()}),
    ]
    seen = {reference.file}
    for metadata, tensors in changed:
        path = tmp_path / "changed.gguf"
        mmgguf.write(path, metadata, tensors)
        seen.add(mmgguf.digest(path).file)
    assert len(seen) == len(changed) + 1


def test_an_unknown_type_has_no_digest(tmp_path: Path) -> None:
    b = Build().start(2, 0).tensor(b"v", [3], 99).tensor(b"w", [8], F32, 32).data(bytes(64))
    path = tmp_path / "a.gguf"
    path.write_bytes(bytes(b))
    digests = mmgguf.digest(path)
    assert digests.file is None
    assert digests.tensors["v"] is None
    assert digests.tensors["w"] is not None
    assert mmgguf.compare(path, path) == [
        Difference("tensor", "unknown", "v", "unknown type 99 (3,): data of unknown size, not compared")
    ]


def test_an_unknown_algorithm() -> None:
    with pytest.raises(ValueError, match="md55"):
        mmgguf.digest("nowhere.gguf", algorithm="md55")
    with pytest.raises(ValueError, match="variable length"):
        mmgguf.digest("nowhere.gguf", algorithm="shake_128")


def test_differences(tmp_path: Path) -> None:
    a, b = tmp_path / "a.gguf", tmp_path / "b.gguf"
    mmgguf.write(a, METADATA | {"only.a": 1, "text": "x" * 150 + "a"}, content() | {"gone": np.zeros(3, np.int8)})
    blocks = content()["q"].data.copy()
    blocks[1, 2]["qs"][5] ^= 1
    blocks[3, 0]["d"] = 3
    mmgguf.write(
        b,
        METADATA
        | {
            "a.u8": TypedValue(1, ValueType.INT8),
            "a.numbers": TypedValue([1, 5, 3], ValueType.ARRAY, ValueType.INT16),
            "a.strings": ["x", "", "\x1b[31m"],
            "general.name": "other",
            "only.b": [1, 2],
            "text": "x" * 150 + "b",
        },
        content()
        | {
            "q": TypedTensor(blocks, GGMLType.Q4_K),
            "h": np.arange(7, dtype=np.float32),
            "new": np.zeros((2, 3), np.int16),
        },
    )
    steps: list[tuple[int, int]] = []
    found = mmgguf.compare(a, b, progress=lambda done, total: steps.append((done, total)))
    long = f"'{'z' * 100}'… (300 characters)"
    assert [dataclasses.astuple(d) for d in found] == [
        ("metadata", "changed", "general.name", "STRING 'näme' → STRING 'other'"),
        ("metadata", "changed", "a.u8", "UINT8 1 → INT8 1"),
        ("metadata", "changed", "a.numbers", "ARRAY of 3 INT16: element 1 is 2 → 5"),
        ("metadata", "changed", "a.strings", f"ARRAY of 3 STRING: element 2 is {long} → '\\x1b[31m'"),
        ("metadata", "removed", "only.a", "UINT32 1"),
        ("metadata", "changed", "text", f"STRING '{'x' * 100}'… (151 characters), in a part that is not shown"),
        ("metadata", "added", "only.b", "ARRAY of 2 UINT32"),
        ("tensor", "changed", "q", "Q4_K (4, 768): 2 of 12 blocks differ, the first is 5"),
        ("tensor", "changed", "h", "F16 (7,) → F32 (7,)"),
        ("tensor", "removed", "gone", "I8 (3,)"),
        ("tensor", "added", "new", "I16 (2, 3)"),
    ]
    assert steps[-1][0] == steps[-1][1] == 4000 + 12 * 144
