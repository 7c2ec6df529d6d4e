"""``mmgguf edit``, ``split``, ``merge``, ``extract`` and ``convert --byte-order`` on the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mmgguf
from mmgguf import ValueType, edit
from mmgguf.errors import human_size

from ..format.test_replace import every_type

pytest.importorskip("typer")
pytest.importorskip("rich")

from typer.testing import CliRunner, Result

from mmgguf.cli import app
from mmgguf.cli.split import parse_size

V = ValueType


def run(*args: Any) -> Result:
    return CliRunner().invoke(app, list(map(str, args)))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "a.gguf"
    path.write_bytes(every_type(3, "little"))
    return path


@pytest.mark.parametrize(
    ("option", "key", "value", "type_"),
    [
        ("one.uint8=7", "one.uint8", 7, V.UINT8),
        ("one.uint64=0x10", "one.uint64", 16, V.UINT64),
        ("one.uint8:i64=-7", "one.uint8", -7, V.INT64),
        ("one.float64=0.3", "one.float64", 0.3, V.FLOAT64),
        ("one.bool=false", "one.bool", False, V.BOOL),
        ("one.string=a=b: c", "one.string", "a=b: c", V.STRING),
        ("some.uint8=[1, 2]", "some.uint8", [1, 2], V.ARRAY),
        ('some.string=["a", "é"]', "some.string", ["a", "é"], V.ARRAY),
        ("new=1", "new", 1, V.UINT32),
        ("new=-1", "new", -1, V.INT32),
        ("new=1.5", "new", 1.5, V.FLOAT32),
        ("new=true", "new", True, V.BOOL),
        ("new=text", "new", "text", V.STRING),
        ("new:string=1", "new", "1", V.STRING),
        ("new:[int16]=[1]", "new", [1], V.ARRAY),
        ('general.tags=["x"]', "general.tags", ["x"], V.ARRAY),
        ("general.name=[x]", "general.name", "[x]", V.STRING),
        ("general.name=5", "general.name", "5", V.STRING),
        ("llama.rope.freq_base=10000", "llama.rope.freq_base", 10000.0, V.FLOAT32),
        ("some:key=1", None, None, None),
        ("one.uint8=256", None, None, None),
        ("one.uint8=x", None, None, None),
        ("one.bool=maybe", None, None, None),
        ("some.uint8=1", None, None, None),
        ("some.uint8=[", None, None, None),
        ("novalue", None, None, None),
        ("=1", None, None, None),
    ],
)
def test_set(path: Path, option: str, key: str | None, value: Any, type_: ValueType | None) -> None:
    before = path.read_bytes()
    result = run("edit", path, "--set", option, "--in-place")
    if key is None:
        assert (result.exit_code, path.read_bytes()) == (2, before)
        assert "Error" in result.output
        return
    assert result.exit_code == 0, result.output
    assert result.stdout.split("\t")[1] == key
    assert ("Wrote the header of" in result.stderr) != (" anew, because" in result.stderr)
    with mmgguf.open(path) as f:
        assert f.metadata.type_of(key) is type_
        found = f.metadata[key]
        assert (list(found) if type_ is V.ARRAY else found) == value


def test_everything_at_once_to_another_file(path: Path, tmp_path: Path) -> None:
    raw = path.read_bytes()
    (tmp_path / "template").write_bytes(b"{{ a }}\n\xff")
    result = run(
        "edit", path, "--set-file", f"tokenizer.chat_template={tmp_path / 'template'}", "--delete", "one.uint8",
        "--rename", "one.int8=other", "--set", "other=5", "-o", tmp_path / "b.gguf",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert result.stderr == f"Wrote {tmp_path / 'b.gguf'}: {human_size((tmp_path / 'b.gguf').stat().st_size)}.\n"
    assert [line.split("\t")[:2] for line in result.stdout.splitlines()] == [
        ["removed", "one.uint8"],
        ["renamed", "one.int8"],
        ["changed", "other"],
        ["added", "tokenizer.chat_template"],
    ]
    assert path.read_bytes() == raw
    with mmgguf.open(tmp_path / "b.gguf") as f:
        assert f.metadata["tokenizer.chat_template"] == "{{ a }}\n\udcff"
        assert (f.metadata["other"], f.metadata.type_of("other")) == (5, V.INT8)
        assert "one.uint8" not in f.metadata
    result = run("edit", path, "--set", "new=1", "-o", tmp_path / "b.gguf")
    assert (result.exit_code, result.output) == (
        1,
        f"mmgguf: {tmp_path / 'b.gguf'}: already exists; --force replaces it\n",
    )
    assert run("edit", path, "--set", "new=1", "-o", tmp_path / "b.gguf", "--force").exit_code == 0


@pytest.mark.parametrize("template", ["{{ a }}", "{{ a }}\n", "\n\n", ""])
def test_what_show_gave_comes_back(path: Path, tmp_path: Path, template: str) -> None:
    edit.replace_metadata(path, {"tokenizer.chat_template": template})
    shown = run("show", path, "tokenizer.chat_template")
    (tmp_path / "template").write_text(shown.stdout, "utf-8", newline="")
    result = run("edit", path, "--set-file", f"tokenizer.chat_template={tmp_path / 'template'}", "--in-place")
    assert (result.exit_code, result.stdout) == (0, "")
    assert mmgguf.open(path).metadata["tokenizer.chat_template"] == template


def test_what_changes_nothing(path: Path, tmp_path: Path) -> None:
    raw = path.read_bytes()
    assert run("edit", path, "--set", "new=1", "--dry-run").output == "added\tnew\t\tUINT32 1\n"
    assert run("edit", path, "--set", "new=1").exit_code == 2
    assert run("edit", path, "--in-place", "-o", tmp_path / "x").exit_code == 2
    assert run("edit", path, "--in-place", "--reserve", 1 << 31, "--set", "new=1").exit_code == 2
    assert run("edit", path, "--in-place").exit_code == 0
    assert run("edit", path, "--delete", "none", "--in-place").exit_code == 1
    assert run("edit", path, "--recover").output == f"{path}: nothing\n"
    assert path.read_bytes() == raw


def test_names_and_values_cannot_drive_the_terminal(path: Path) -> None:
    result = run("edit", path, "--set", "one.string=\x1b[31m", "--set", "\x1bnew=1", "--in-place")
    assert result.exit_code == 0
    assert "\x1b" not in result.output


def test_split_merge_extract_and_byte_order(path: Path, tmp_path: Path, all_types: Path) -> None:
    result = run("split", all_types, tmp_path / "s", "--max-tensors", 8)
    rows = [line.split("\t") for line in result.output.splitlines()]
    with mmgguf.open(rows[0][0]) as f:
        assert len(f.shards) == len(rows)
        assert sum(int(count) for _, count, _ in rows) == len(f)
        assert sum(int(nbytes) for *_, nbytes in rows) == sum(t.nbytes for t in f.values())
    assert run("split", all_types, tmp_path / "t", "--max-size", "1KiB", "--dry-run").exit_code == 0
    assert not list(tmp_path.glob("t-*"))
    assert run("split", all_types, tmp_path / "t").exit_code == 2
    assert run("merge", rows[-1][0], tmp_path / "m.gguf").exit_code == 0
    assert mmgguf.compare(tmp_path / "m.gguf", all_types) == []
    assert run("merge", rows[-1][0], tmp_path / "m.gguf").exit_code == 1
    assert run("extract", all_types, tmp_path / "e.gguf", "-n", next(iter(mmgguf.open(all_types)))).exit_code == 0
    assert len(mmgguf.open(tmp_path / "e.gguf")) == 1
    assert run("convert", all_types, tmp_path / "b.gguf", "--byte-order", "big").exit_code == 0
    assert mmgguf.open(tmp_path / "b.gguf").byte_order == "big"
    assert mmgguf.compare(tmp_path / "b.gguf", all_types) == []
    assert run("convert", all_types, tmp_path / "b.gguf", "--byte-order", "big").exit_code == 1
    assert run("convert", all_types, tmp_path / "c.gguf", "--byte-order", "big", "-n", "x").exit_code == 2


@pytest.mark.parametrize(
    ("text", "size"),
    [("1", 1), ("2GiB", 2 << 30), ("2G", 2 * 10**9), ("500M", 500 * 10**6), ("1.5kb", 1500), ("3 MiB", 3 << 20)],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "G", "-1", "1X", "1e9", "0x10", "0", "0.5", "9" * 400, "9" * 19 + "G"])
def test_what_is_no_size(text: str) -> None:
    import typer

    with pytest.raises(typer.BadParameter):
        parse_size(text)


def test_a_shard_keeps_its_own_tensors(tmp_path: Path) -> None:
    path, expected = tmp_path / "whole.gguf", ["a", "b", "c", "d"]
    mmgguf.write(path, {}, {name: np.zeros(4, "f4") for name in expected})
    shards = edit.split(path, tmp_path / "shard", max_tensors=len(expected) // 2)
    # Another alignment: the writer lays all tensors of the file out anew.
    assert run("edit", shards[0], "--set", "general.alignment=64", "--in-place").exit_code == 0
    with mmgguf.open(shards[0]) as f:
        assert (len(f.shards), list(f)) == (len(shards), expected)


@pytest.mark.parametrize("option", ["new=", "general.tags:[string]="])
def test_json_that_is_too_deep(path: Path, option: str) -> None:
    result = run("edit", path, "--set", option + "[" * 50_000, "--dry-run")
    assert result.exception is None or isinstance(result.exception, SystemExit)
