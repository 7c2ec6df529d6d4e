"""What programs do to pip's reader beside its documentation: subclasses, beginnings of files, added types."""

from __future__ import annotations

import io
import json
import math
import os
from enum import IntEnum
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

import mmgguf
from mmgguf.compat import GGUFReader, install, uninstall

from ..support import build
from ..support.build import Build


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.gguf"


class HeaderOnly(GGUFReader):
    """As programs read a header from what they have downloaded of it."""

    def _build_tensors(self, start_offs: int, fields: list[Any]) -> None:
        self.seen = start_offs, [field.name for field in fields]


@pytest.fixture
def beginning(tmp_path: Path) -> Path:
    path = tmp_path / "beginning.gguf"
    tensors = {"a": np.zeros((4, 64), np.float32), "b": np.zeros(1000)}
    mmgguf.write(path, {"general.architecture": "llama", "tokenizer.ggml.tokens": ["x", "y"] * 50}, tensors)
    os.truncate(path, mmgguf.read_header(path).data_offset + 40)
    return path


def test_a_subclass_that_builds_no_tensors_reads_the_beginning_of_a_file(beginning: Path) -> None:
    class Theirs(gguf.GGUFReader):  # type: ignore[misc]
        _build_tensors = HeaderOnly._build_tensors

    ours, theirs = HeaderOnly(beginning), Theirs(beginning)
    assert ours.seen == theirs.seen
    assert ours.tensors == theirs.tensors == []
    assert {key: field.contents() for key, field in ours.fields.items()} == {
        key: field.contents() for key, field in theirs.fields.items()
    }

    class Builds(GGUFReader):
        def _build_tensors(self, start_offs: int, fields: list[Any]) -> None:
            super()._build_tensors(start_offs, fields[:1])

    for reader in (GGUFReader, gguf.GGUFReader, Builds):
        with pytest.raises(ValueError, match=r"download incomplete|reshape"):
            reader(beginning)


def test_a_subclass_that_changes_how_bytes_are_read_gets_the_reader_that_asks_for_them(path: Path) -> None:
    mmgguf.write(path, {"general.name": "n"}, {"a": np.arange(4.0)})
    calls = []

    class Middle(GGUFReader):
        pass

    class Counting(Middle):
        def _get(self, offset: int, *arguments: Any, **options: Any) -> Any:
            calls.append(offset)
            return super()._get(offset, *arguments, **options)  # type: ignore[misc]

    reader = Counting(path)
    assert calls[0] == 0
    assert issubclass(Counting, gguf.GGUFReader)
    assert reader.tensors[0].data.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("installs", [False, True])
def test_the_same_where_it_stands_in_for_gguf(installs: bool, path: Path) -> None:
    if installs:
        install()
    try:

        class Counting(gguf.GGUFReader):  # type: ignore[misc]
            count = 0

            def _get(self, *arguments: Any, **options: Any) -> Any:
                self.count += 1
                return super()._get(*arguments, **options)

        mmgguf.write(path, {}, {"a": np.arange(4.0)})
        assert Counting(path).count > 0
    finally:
        uninstall()


@pytest.mark.parametrize(
    ("size", "error"), [(None, "download incomplete"), (math.inf, None), (1 << 20, None), (1000, "download incomplete")]
)
def test_read_header_of_the_beginning_of_a_file(size: float | None, error: str | None, beginning: Path) -> None:
    content = beginning.read_bytes()
    for source in (beginning, content, io.BytesIO(content)):
        if error is not None:
            with pytest.raises(mmgguf.errors.TruncatedError, match=error):
                mmgguf.read_header(source, size=size)
            continue
        header = mmgguf.read_header(source, size=size)
        assert list(header.tensors) == ["a", "b"]
        assert header.metadata["tokenizer.ggml.tokens"][1] == "y"
    for end in range(0, len(content) - 80, 7):
        with pytest.raises(mmgguf.errors.TruncatedError):
            mmgguf.read_header(content[:end], size=math.inf)


def test_five_dimensions(path: Path) -> None:
    raw = Build().start(1, 0).tensor(b"patch_embedding.weight", [2, 2, 1, 3, 5], build.F32).data(bytes(240))
    path.write_bytes(bytes(raw))
    ours, theirs = GGUFReader(path).tensors[0], gguf.GGUFReader(path).tensors[0]
    assert ours.data.shape == theirs.data.shape == (5, 3, 1, 2, 2)
    assert ours.shape.tolist() == theirs.shape.tolist()
    assert (ours.n_bytes, ours.data_offset) == (theirs.n_bytes, theirs.data_offset)
    with mmgguf.open(path) as f:
        assert f["patch_embedding.weight"].shape == f["patch_embedding.weight"].data.shape == (5, 3, 1, 2, 2)
    assert [finding.code for finding in mmgguf.verify(path) if finding.severity == "error"] == ["dimensions"]
    path.write_bytes(bytes(Build().start(1, 0).tensor(b"w", [1] * 9).data(bytes(32))))
    with pytest.raises(ValueError, match=r"9 dimensions, at most 8 are read \(GGML_MAX_DIMS is 4\)"):
        GGUFReader(path)


def test_types_that_a_program_adds_to_ggufs_tables(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Added(IntEnum):
        Q9_X = 990

    original = gguf.GGMLQuantizationType
    monkeypatch.setattr(gguf.gguf_reader, "GGMLQuantizationType", lambda n: Added(n) if n == 990 else original(n))
    monkeypatch.setitem(gguf.GGML_QUANT_SIZES, Added.Q9_X, (16, 10))
    raw = Build().start(1, 0).tensor(b"w", [32, 2], 990).data(bytes(range(40)) + bytes(24))
    path.write_bytes(bytes(raw))
    ours = GGUFReader(path).tensors[0]
    assert (ours.tensor_type, ours.n_elements, ours.n_bytes) == (Added.Q9_X, 64, 40)
    assert ours.data.tolist() == np.arange(40).reshape(2, 20).tolist()
    path.write_bytes(bytes(raw)[:-40])
    with pytest.raises(mmgguf.errors.TruncatedError, match="download incomplete"):
        _ = GGUFReader(path).tensors
    monkeypatch.undo()
    with pytest.raises(mmgguf.errors.UnknownTypeError):
        _ = GGUFReader(path).tensors


def test_data_of_a_field_can_be_copied(path: Path) -> None:
    mmgguf.write(path, {"a": ["x", "y"]}, {})
    data = GGUFReader(path).fields["a"].data
    assert data.copy() == gguf.GGUFReader(path).fields["a"].data.copy()
    assert json.loads(json.dumps(list(data))) == list(data)
