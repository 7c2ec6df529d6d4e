"""``mmgguf stats``, ``compare --values``, and the parts that ``show`` can pick."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mmgguf
from mmgguf.inspect import stats

pytest.importorskip("typer")
pytest.importorskip("rich")

from typer.testing import CliRunner, Result

from mmgguf.cli import app


def run(*args: Any) -> Result:
    return CliRunner().invoke(app, list(map(str, args)))


def write(path: Path, metadata: dict[str, Any] | None = None, **tensors: Any) -> Path:
    mmgguf.write(path, {"general.architecture": "x", **(metadata or {})}, tensors)
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    values = np.arange(24, dtype=np.float32).reshape(4, 6)
    tokens = ["hello", "\x1bx", "Ġhello", "other"]
    return write(tmp_path / "a.gguf", {"tokenizer.ggml.tokens": tokens, "tokenizer.chat_template": "a\nb"}, w=values)


def test_stats(path: Path) -> None:
    expected = stats(path)["w"]
    assert expected is not None
    name, type_, count, *numbers = run("stats", path).output.rstrip("\n").split("\t")
    assert (name, type_, count) == ("w", "F32", "24")
    assert [float(x) for x in numbers[:5]] == [0, 23, expected.mean, expected.std, expected.rms]
    (row,) = json.loads(run("stats", path, "--json").output)
    assert (row["mean"], row["outliers"][0]) == (expected.mean, [23, [3, 5]])
    assert sum(row["histogram"]["counts"]) == 24
    assert len(row["histogram"]["edges"]) == len(row["histogram"]["counts"]) + 1
    assert run("stats", path, "-n", "none").exit_code == 1


def test_stats_of_an_importance_matrix(tmp_path: Path) -> None:
    metadata = {"general.type": "imatrix"}
    tensors = {"a.in_sum2": np.ones((1, 4), "f4"), "a.counts": np.full((1, 1), 2, "f4")}
    mmgguf.write(tmp_path / "i.gguf", metadata, tensors)
    assert run("stats", tmp_path / "i.gguf").output.split("\t")[:6] == ["a", "1", "4", "2.0", "0.5", "0.5"]
    assert json.loads(run("stats", tmp_path / "i.gguf", "--json").output)[0]["coverage"] == 1


def test_compare_values(path: Path, tmp_path: Path) -> None:
    with mmgguf.open(path) as f:
        mmgguf.write(tmp_path / "b.gguf", f.metadata, {"w": f["w"].dequantize(np.float16) + np.float16(1)})
    result = run("compare", path, tmp_path / "b.gguf", "--values")
    summary, empty, empty2, row = result.output.splitlines()
    assert summary.startswith("b.gguf is a.gguf in F16: 1 tensor differs, worst w NMSE ")
    assert (empty, empty2) == ("", "")
    assert row.split("\t")[:3] == ["w", "F32", "F16"]
    assert result.exit_code == 1
    found = json.loads(run("compare", path, tmp_path / "b.gguf", "--values", "--json").output)
    assert (found["tensors"][0]["max_error"], found["types"][0]["b_type"]) == (1, "F16")
    assert run("compare", path, path, "--values").exit_code == 0
    assert run("compare", path, tmp_path / "none.gguf", "--values").exit_code == 2


def test_show_finds_tokens(path: Path) -> None:
    assert run("show", path, "tokenizer.ggml.tokens", "--find", "hello").output == "0\thello\n2\tĠhello\n"
    assert run("show", path, "--find", "hello").output.splitlines() == [
        "tokenizer.ggml.tokens\t0\thello",
        "tokenizer.ggml.tokens\t2\tĠhello",
    ]
    assert run("show", path, "--find", "x").output == ("general.architecture\t\tx\ntokenizer.ggml.tokens\t1\t\\x1bx\n")
    found = json.loads(run("show", path, "tokenizer.ggml.tokens", "--find", "other", "--json").output)
    assert found == [{"key": "tokenizer.ggml.tokens", "index": 3, "value": "other"}]
    assert run("show", path, "none", "--find", "x").exit_code == 1


@pytest.mark.parametrize(
    ("rows", "first", "count"),
    [(None, "0.0", 4), ("0:2", "0.0", 2), ("2", "12.0", 1), ("-1", "18.0", 1), ("1:", "6.0", 3), (":1", "0.0", 1)],
)
def test_show_rows_of_a_tensor(path: Path, rows: str | None, first: str, count: int) -> None:
    lines = run("show", path, "--tensor", "w", *(() if rows is None else ("--rows", rows))).output.splitlines()
    assert (lines[0].split("\t")[0], len(lines)) == (first, count)


@pytest.mark.parametrize("rows", ["x", "", "1:2:3", "9", "-", ":-"])
def test_rows_that_cannot_be(path: Path, rows: str) -> None:
    assert run("show", path, "--tensor", "w", "--rows", rows).exit_code == 2


@pytest.mark.parametrize(
    ("shape", "expected"), [((6,), "0.0\t0.0\t0.0\t0.0\n"), ((), "0.0\n"), ((0,), "\n"), ((2, 0), "\n\n")]
)
def test_show_a_vector_and_what_is_empty(tmp_path: Path, shape: tuple[int, ...], expected: str) -> None:
    mmgguf.write(tmp_path / "a.gguf", {}, {"t": np.zeros(shape, "f4")})
    result = run("show", tmp_path / "a.gguf", "--tensor", "t")
    assert (result.exit_code, result.output) == (0, expected)


def test_show_a_block_of_each_type(all_types: Path) -> None:
    with mmgguf.open(all_types) as f:
        for name, tensor in f.items():
            found = json.loads(run("show", all_types, "--tensor", name, "--block", 0, "--json").output)
            assert len(found["values"]) == tensor.layout.block_size
            assert set(tensor.data.dtype.names or ()) <= set(found)
            count = tensor.size // tensor.layout.block_size
            assert run("show", all_types, "--tensor", name, "--block", count).exit_code == 2
            assert run("show", all_types, "--tensor", name, "--block", 0).exit_code == 0
