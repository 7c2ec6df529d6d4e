"""Real files, held against pip's `gguf` and the C library value by value and byte by byte."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mmgguf
from mmgguf import ValueType
from mmgguf.format.strings import StringArray

from .support import ggml


def check_against_pip_gguf(path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    theirs = gguf.GGUFReader(path)
    fields = {key: field for key, field in theirs.fields.items() if not key.startswith("GGUF.")}
    with mmgguf.open(path) as ours:
        assert list(ours.metadata) == list(fields)
        for key, field in fields.items():
            value = ours.metadata[key]
            assert ours.metadata.type_of(key) == field.types[0]
            if isinstance(value, StringArray):
                assert [item.encode("utf-8", "surrogateescape") for item in value] == [
                    bytes(field.parts[i]) for i in field.data
                ]
            elif isinstance(value, np.ndarray):
                assert ours.metadata.typed(key).element_type == field.types[1]
                assert value.tobytes() == b"".join(field.parts[i].tobytes() for i in field.data)
            else:
                assert value == field.contents()
        assert list(ours) == [tensor.name for tensor in theirs.tensors]
        for tensor in theirs.tensors:
            t = ours[tensor.name]
            assert (t.type, t.ne, t.nbytes) == (tensor.tensor_type, tuple(tensor.shape.tolist()), tensor.n_bytes)
            assert t.file_offset == tensor.data_offset
            assert t.data.tobytes() == tensor.data.tobytes()


def check_against_c(path: Path) -> None:
    with ggml.open_gguf(path) as theirs, mmgguf.open(path) as ours:
        assert theirs is not None
        metadata = theirs.metadata
        assert [key.encode() for key in ours.metadata] == list(metadata)
        for key, value in metadata.items():
            mine: Any = ours.metadata[key.decode()]
            if isinstance(mine, StringArray):
                # C's accessors end a string at its first NUL.
                assert [s.encode("utf-8", "surrogateescape").split(b"\0")[0] for s in mine] == value
            elif isinstance(mine, np.ndarray):
                assert mine.tolist() == value.tolist()
            else:
                is_string = ours.metadata.type_of(key.decode()) is ValueType.STRING
                assert (mine.encode("utf-8", "surrogateescape") if is_string else mine) == value
        assert {
            name.encode(): (t.type, (*t.ne, 1, 1, 1)[:4], t.offset, t.nbytes) for name, t in ours.items()
        } == theirs.tensors


@pytest.mark.slow  # `compat.test_reader` holds the same file against pip's reader, through mmgguf's own
def test_smollm2_as_pip_gguf_reads_it(smollm2: Path) -> None:
    check_against_pip_gguf(smollm2)


def test_smollm2_as_c_reads_it(smollm2: Path) -> None:
    check_against_c(smollm2)


def test_smollm2_at_a_glance(smollm2: Path) -> None:
    with mmgguf.open(smollm2) as f:
        assert (f.architecture, len(f), f.file_type) == ("llama", 272, mmgguf.FileType.MOSTLY_Q4_1)
        assert f.config.get_int("block_count") == 30
        assert f.parameter_count == 134_515_008
        assert len(f.metadata["tokenizer.ggml.tokens"]) == 49152
        assert len([layer for layer in f.layers() if layer.startswith("blk.")]) == 30


@pytest.mark.slow
def test_vocabularies_as_pip_gguf_reads_them(vocabularies: list[Path]) -> None:
    for path in vocabularies:
        check_against_pip_gguf(path)


def test_vocabularies_as_c_reads_them(vocabularies: list[Path]) -> None:
    for path in vocabularies:
        check_against_c(path)


def test_a_rewritten_file_is_the_same(smollm2: Path, tmp_path: Path) -> None:
    target = tmp_path / "rewritten.gguf"
    with mmgguf.open(smollm2) as f:
        mmgguf.write(target, f.metadata, f, alignment=f.alignment)
        with mmgguf.open(target) as again:
            assert again.metadata.to_dict(None) == f.metadata.to_dict(None)
            assert list(again) == list(f)
            for name, t in f.items():
                assert (again[name].type, again[name].offset) == (t.type, t.offset)
    check_against_c(target)
    assert target.read_bytes() == smollm2.read_bytes()
