"""`Metadata.replace`: types and order are kept, through a written file, in every version and byte order."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mmgguf
from mmgguf import TypedValue, ValueType
from mmgguf.errors import ClosedError, NameNotFoundError
from mmgguf.format.values import NUMBERS

from ..support.build import Build, ByteOrder

V = ValueType
FORMS = [(1, "little"), (2, "little"), (3, "little"), (3, "big"), (1, "big")]
#: A value that the next smaller type, or the type that would be inferred, does not hold.
SAMPLES: dict[ValueType, Any] = {
    V.UINT8: 200,
    V.INT8: -100,
    V.UINT16: 60000,
    V.INT16: -30000,
    V.UINT32: 4_000_000_000,
    V.INT32: -2_000_000_000,
    V.FLOAT32: 1.5,
    V.BOOL: True,
    V.UINT64: 7,
    V.INT64: 7,
    V.FLOAT64: 0.1,
}


def every_type(version: int, byte_order: ByteOrder) -> bytes:
    """A file with a scalar and an array of every value type."""
    b = Build(version, byte_order).start(tensors=1, pairs=2 * len(SAMPLES) + 2)
    for type_, value in SAMPLES.items():
        b.number(f"one.{type_.name.lower()}".encode(), type_, value)
        b.numbers(f"some.{type_.name.lower()}".encode(), type_, [value, value])
    b.text(b"one.string", b"caf\xc3\xa9 \xff").texts(b"some.string", [b"", b"x" * 300, b"\xfe"])
    return bytes(b.tensor(b"w", [2]).data(struct.pack((">" if byte_order == "big" else "<") + "2f", 1, 2)))


@pytest.fixture(params=FORMS, ids=lambda form: f"v{form[0]}-{form[1]}")
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / "a.gguf"
    path.write_bytes(every_type(*request.param))
    return path


def types(metadata: mmgguf.Metadata) -> dict[str, Any]:
    typed = {key: metadata.typed(key) for key in metadata}
    return {key: (one.type, one.element_type) for key, one in typed.items()}


def test_every_type_survives_and_the_order_too(path: Path, tmp_path: Path) -> None:
    with mmgguf.open(path) as f:
        changes = {key: f.metadata[key] for key in f.metadata}
        plain = {key: list(value) if not np.isscalar(value) else value for key, value in changes.items()}
        new = f.metadata.replace(plain | {"some.string": ["a", "ü", ""], "added": 1})
        assert types(new) == types(f.metadata) | {"added": (V.UINT32, None)}
        assert list(new) == [*f.metadata, "added"]
        assert new == changes | {"some.string": ["a", "ü", ""], "added": 1}
        mmgguf.write(tmp_path / "b.gguf", new, f)
        with mmgguf.open(tmp_path / "b.gguf") as g:
            assert types(g.metadata) == types(new)
            assert g.metadata == new


def test_values_are_those_that_a_file_would_give_back(path: Path) -> None:
    with mmgguf.open(path) as f:
        new = f.metadata.replace({"one.float32": 0.1, "some.float32": [0.1], "one.bool": False})
        assert new["one.float32"] == float(np.float32(0.1))
        assert new["some.float32"].dtype == NUMBERS[V.FLOAT32].stored(f.byte_order)
        assert new["one.bool"] is False
        assert new.replace({"x": 1})["some.float32"].tolist() == [np.float32(0.1)]  # once more
        assert f.metadata["one.float32"] == 1.5


def test_removing_and_renaming(path: Path) -> None:
    with mmgguf.open(path) as f:
        before = list(f.metadata)
        new = f.metadata.replace(remove=[before[1]], rename={before[2]: "other"})
        assert list(new) == [before[0], "other", *before[3:]]
        assert new.type_of("other") is f.metadata.type_of(before[2])
        # A key may take the place of one that is renamed or removed.
        new = f.metadata.replace(remove=[before[0]], rename={before[1]: before[0], before[2]: before[1]})
        assert list(new) == [before[0], before[1], *before[3:]]


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"one.uint8": 256}, ValueError),
        ({"one.uint32": -1}, ValueError),
        ({"one.uint32": "1"}, TypeError),
        ({"one.uint32": 1.5}, TypeError),
        ({"one.uint32": [1]}, TypeError),
        ({"one.bool": 1}, TypeError),
        ({"one.string": 1}, TypeError),
        ({"one.float32": 1e39}, ValueError),
        ({"some.uint8": 1}, TypeError),
        ({"some.uint8": [256]}, ValueError),
        ({"some.string": [1]}, TypeError),
        ({"": 1}, ValueError),
        ({"a\0b": 1}, ValueError),
        ({"k" * 65536: 1}, ValueError),
        ({"new": ...}, TypeError),
        ({"new": 1 << 64}, ValueError),
        ({"llama.block_count": -1}, ValueError),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_what_cannot_be_held_is_an_error(changes: dict[str, Any], error: type[Exception], tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(every_type(3, "little"))
    with mmgguf.open(tmp_path / "a.gguf") as f, pytest.raises(error):
        f.metadata.replace(changes)


def test_keys_that_are_not_there_or_twice(path: Path) -> None:
    with mmgguf.open(path) as f:
        a, b = list(f.metadata)[:2]
        with pytest.raises(NameNotFoundError):
            f.metadata.replace(remove=["none"])
        with pytest.raises(NameNotFoundError):
            f.metadata.replace(rename={"none": "x"})
        with pytest.raises(ValueError, match="exists already"):
            f.metadata.replace(rename={a: b})
        with pytest.raises(ValueError, match="exists already"):
            f.metadata.replace(rename={a: "x", b: "x"})
        with pytest.raises(ValueError, match="removed and renamed"):
            f.metadata.replace(remove=[a], rename={a: "x"})


def test_a_typed_value_changes_the_type(path: Path) -> None:
    with mmgguf.open(path) as f:
        new = f.metadata.replace({"one.uint8": TypedValue(1, V.INT64), "some.uint8": TypedValue("x", V.STRING)})
        assert new.type_of("one.uint8") is V.INT64
        assert new["some.uint8"] == "x"


def test_arrays_of_a_closed_file_are_closed_and_new_ones_are_not(path: Path) -> None:
    with mmgguf.open(path) as f:
        new = f.metadata.replace({"added": [1, 2]})
    assert new["added"].tolist() == [1, 2]
    with pytest.raises(ClosedError):
        new["some.uint8"]


def test_a_plain_dict_gets_the_types_of_the_keys(tmp_path: Path) -> None:
    mmgguf.write(tmp_path / "a.gguf", {"general.architecture": "x", "x.rope.freq_base": 10000, "split.no": 0}, {})
    with mmgguf.open(tmp_path / "a.gguf") as f:
        assert f.metadata.type_of("x.rope.freq_base") is V.FLOAT32
        assert f.metadata.type_of("split.no") is V.UINT16
    with pytest.raises(ValueError, match="range"):
        mmgguf.write(tmp_path / "b.gguf", {"x.block_count": -1}, {})
    assert not (tmp_path / "b.gguf").exists()
