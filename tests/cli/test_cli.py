"""The command line: what it prints to people and to programs, and how it fails."""

from __future__ import annotations

import importlib
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from rich.cells import cell_len
from typer.testing import CliRunner

import mmgguf
from mmgguf.cli import app, printing
from mmgguf.format.values import TypedValue
from mmgguf.format.writer import TypedTensor, write
from mmgguf.types import FileType, GGMLType, ValueType

from ..support.build import Build
from ..support.cases import BY_ID, Case
from ..support.terminal import MMGGUF, run, run_in_terminal

G, V = GGMLType, ValueType
# The package's own names for its commands are the functions; these are the modules.
ls, show = (importlib.import_module(f"mmgguf.cli.{name}") for name in ("ls", "show"))
posix = pytest.mark.skipif(os.name != "posix", reason="needs a pseudo terminal")


def invoke(*args: object) -> str:
    result = CliRunner().invoke(app, list(map(str, args)))
    assert result.exit_code == 0, result.output
    return result.stdout


def fields(output: str) -> list[list[str]]:
    return [line.split("\t") for line in output.splitlines()]


def parts(output: str) -> list[list[list[str]]]:
    """The three parts of `show` in a pipe, with an empty line between."""
    found: list[list[list[str]]] = [[]]
    for row in fields(output):
        if row == [""]:
            found.append([])
        else:
            found[-1].append(row)
    assert len(found) == 3
    return found


def save(folder: Path, case: Case) -> Path:
    path = folder / f"{case.id}.gguf"
    path.write_bytes(case.encoded())
    return path


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A small model with names and types to sort and to filter."""
    path = tmp_path / "model.gguf"
    metadata = {
        "general.architecture": "llama",
        "general.name": "A test",
        "general.file_type": FileType.MOSTLY_Q8_0,
        "tokenizer.ggml.tokens": [f"token {i}" for i in range(2000)],
        "tokenizer.ggml.scores": np.zeros(2000, "f4"),
        "llama.epsilon": 1e-5,
        "llama.template": "x" * 5000,
    }
    tensors = {
        "blk.2.attn_q.weight": TypedTensor(np.zeros((64, 2 * 34), "u1"), G.Q8_0),
        "blk.10.attn_q.weight": np.zeros((3, 5), "f4"),
        "blk.1.ffn_up.weight": np.zeros((2, 2, 4), "f2"),
        "output": np.zeros(1000, "i1"),
    }
    write(path, metadata, tensors)
    return path


NAMES = ["blk.2.attn_q.weight", "blk.10.attn_q.weight", "blk.1.ffn_up.weight", "output"]


# ---------------------------------------------------------------- ls


def test_ls_in_a_pipe(model: Path) -> None:
    with open(model, "rb") as file:
        start = mmgguf.read_header(file).data_offset
    assert fields(invoke("ls", model)) == [
        ["blk.2.attn_q.weight", "Q8_0", "64x64", "4352", str(start)],
        ["blk.10.attn_q.weight", "F32", "3x5", "60", str(start + 4352)],
        ["blk.1.ffn_up.weight", "F16", "2x2x4", "32", str(start + 4416)],
        ["output", "I8", "1000", "1000", str(start + 4448)],
    ]


@pytest.mark.parametrize(
    ("arguments", "order"),
    [
        (["--sort", "name"], [2, 0, 1, 3]),
        (["--sort", "type"], [2, 1, 3, 0]),
        (["--sort", "shape"], [1, 2, 3, 0]),
        (["--sort", "size"], [2, 1, 3, 0]),
        (["--sort", "offset"], [0, 1, 2, 3]),
        (["--sort", "size", "--reverse"], [0, 3, 1, 2]),
        (["-r"], [3, 2, 1, 0]),
        (["blk.*"], [0, 1, 2]),
        (["output", "*.1.*"], [2, 3]),
        (["--type", "q8_0", "-t", "1"], [0, 2]),
        (["output", "--type", "F32"], []),
    ],
)
def test_ls_sorts_and_filters(model: Path, arguments: list[str], order: list[int]) -> None:
    expected = [NAMES[i] for i in order]
    assert [row[0] for row in fields(invoke("ls", model, *arguments))] == expected
    assert [row["name"] for row in json.loads(invoke("ls", model, "--json", *arguments))] == expected


@pytest.mark.parametrize("case", [BY_ID["all-types"], BY_ID["all-types-big"], BY_ID["dimensions"]], ids=lambda c: c.id)
def test_ls_json(case: Case, tmp_path: Path) -> None:
    output = invoke("ls", save(tmp_path, case), "--json")
    assert output.isascii()
    assert len(output.splitlines()) == len(case.tensors) + 2
    assert json.loads(output) == [
        {
            "name": name,
            "type": tensor.type.name,
            "type_id": int(tensor.type),
            "shape": list(tensor.shape),
            "nbytes": len(tensor.raw),
            "offset": case.offsets[name],
            "file_offset": case.data_offset + case.offsets[name],
        }
        for name, tensor in case.tensors.items()
    ]


def test_an_empty_model(tmp_path: Path) -> None:
    path = save(tmp_path, BY_ID["empty"])
    assert invoke("ls", path) == ""
    assert json.loads(invoke("ls", path, "--json")) == []
    shown = json.loads(invoke("show", path, "--json"))
    assert (shown["parameters"], shown["bits_per_weight"], shown["architecture"]) == (0, None, None)
    assert "parameters\t0 (0)" in invoke("show", path)


def test_an_unknown_type_is_listed(tmp_path: Path) -> None:
    path = save(tmp_path, BY_ID["dimensions"])
    data = path.read_bytes()
    at = data.index(b"two") + 3 + 4 + 16  # behind n_dims and ne
    path.write_bytes(data[:at] + (99).to_bytes(4, "little") + data[at + 4 :])
    row = json.loads(invoke("ls", path, "--json"))[1]
    assert (row["type"], row["type_id"], row["nbytes"]) == (None, 99, None)
    assert ["two", "unknown(99)", "3x5", "?", str(row["file_offset"])] in fields(invoke("ls", path))
    assert ["unknown(99)", "1", "15", "?"] in fields(invoke("show", path))
    assert invoke("ls", path, "--type", "99").startswith("two\t")


def test_scalars_have_a_shape_too(tmp_path: Path) -> None:
    case = BY_ID["no-dimensions"]
    assert fields(invoke("ls", save(tmp_path, case))) == [["scalar", "F32", "scalar", "4", str(case.data_offset)]]


# ---------------------------------------------------------------- show


def test_show_in_a_pipe(model: Path) -> None:
    summary, types, metadata = parts(invoke("show", model))
    size = model.stat().st_size
    assert summary == [
        ["file", str(model)],
        ["format", "GGUF 3, little-endian, alignment 32"],
        ["architecture", "llama"],
        ["name", "A test"],
        ["file type", "MOSTLY_Q8_0"],
        ["parameters", "5.1 K (5,127)"],
        ["bits per weight", f"{8 * (4352 + 60 + 32 + 1000) / 5127:.2f}"],
        ["size", f"{size / 1024:.1f} KiB ({size:,} bytes)"],
        ["tensors", "4"],
    ]
    assert types == [
        ["Q8_0", "1", "4096", "4352"],
        ["I8", "1", "1000", "1000"],
        ["F16", "1", "16", "32"],
        ["F32", "1", "15", "60"],
    ]
    tokens = ", ".join(f'"token {i}"' for i in range(8))
    template = "x" * 100 + "… (5,000 characters)"  # 120 characters
    assert metadata == [
        ["general.architecture", "STRING", "llama"],
        ["general.name", "STRING", "A test"],
        ["general.file_type", "UINT32", "7"],
        ["tokenizer.ggml.tokens", "STRING[2000]", f"[{tokens}, …]"],
        ["tokenizer.ggml.scores", "FLOAT32[2000]", f"[{', '.join(['0.0'] * 8)}, …]"],
        ["llama.epsilon", "FLOAT32", "1e-05"],
        ["llama.template", "STRING", template],
    ]


def test_show_full(model: Path) -> None:
    pairs = {key: value for key, _, value in parts(invoke("show", model, "--full"))[2]}
    assert pairs["llama.template"] == "x" * 5000
    tokens = ", ".join(f'"token {i}"' for i in range(2000))
    assert pairs["tokenizer.ggml.tokens"] == f"[{tokens}]"
    assert pairs["tokenizer.ggml.scores"].count("0.0") == 2000


def test_show_json(model: Path) -> None:
    shown = json.loads(invoke("show", model, "--json"))
    assert shown["metadata"]["tokenizer.ggml.tokens"] == {"type": "STRING", "length": 2000}
    assert shown["value_types"]["tokenizer.ggml.tokens"] == "ARRAY[STRING]"
    assert shown["value_types"]["llama.epsilon"] == "FLOAT32"
    assert shown["metadata"]["llama.template"] == "x" * 5000
    assert shown["nbytes"] == model.stat().st_size
    assert shown["shards"] == [{"path": str(model), "nbytes": model.stat().st_size, "tensors": 4}]
    assert [share["type"] for share in shown["types"]] == ["Q8_0", "I8", "F16", "F32"]
    assert math.isclose(sum(share["share"] for share in shown["types"]), 1)
    full = json.loads(invoke("show", model, "--json", "--full"))
    assert full["metadata"]["tokenizer.ggml.tokens"][-1] == "token 1999"


TEMPLATE = "{% if x %}\x1b[31m\t{{ 'é' }}\n{% endif %}\n"


@pytest.fixture
def values(tmp_path: Path) -> Path:
    path = tmp_path / "values.gguf"
    metadata = {
        "tokenizer.chat_template": TEMPLATE,
        "odd": b"\xff\x00\xc3",
        "one.float": np.float32(0.1),
        "one.bool": True,
        "some.floats": np.array([0.1, np.nan], "f4"),
        "some.strings": ["a\nb", "é", "\x1b"],
        "many": np.arange(3000, dtype="u2"),
    }
    write(path, metadata, {})
    return path


@pytest.mark.parametrize(
    ("keys", "output"),
    [
        (["tokenizer.chat_template"], TEMPLATE.encode() + b"\n"),
        (["odd"], b"\xff\x00\xc3\n"),
        (["one.float"], b"0.1\n"),
        (["one.*"], b"0.1\nTrue\n"),
        (["one.bool", "one.float", "one.b*"], b"True\n0.1\n"),
        (["some.floats"], b"0.1\nnan\n"),
        (["some.strings"], "a\\nb\né\n\\x1b\n".encode()),
        (["many"], "".join(f"{i}\n" for i in range(3000)).encode()),
    ],
)
def test_show_values_in_a_pipe(keys: list[str], output: bytes, values: Path) -> None:
    result = CliRunner().invoke(app, ["show", str(values), *keys])
    assert (result.exit_code, result.stdout_bytes) == (0, output)


def test_show_values_in_json(values: Path) -> None:
    found = json.loads(invoke("show", values, "some.*", "many", "tokenizer.chat_template", "--json"))
    assert list(found) == ["some.floats", "some.strings", "many", "tokenizer.chat_template"]
    assert found["many"] == list(range(3000))
    assert found["tokenizer.chat_template"] == TEMPLATE


@posix
def test_show_values_on_a_terminal(values: Path) -> None:
    status, output = run_in_terminal("show", values, "tokenizer.chat_template", columns=20)
    assert status == 0
    assert output == TEMPLATE.replace("\x1b", "\\x1b").replace("\t", "\\t") + "\n"
    output = run_in_terminal("show", values, "one.*", columns=40, environment={"NO_COLOR": "1"})[1]
    assert output == "one.float\n0.1\none.bool\nTrue\n"


@pytest.mark.parametrize("command", [["show", "nothing.*"], ["show", "general.name"], ["ls", "nothing*"], ["ls", "x"]])
def test_what_is_not_there_is_an_error(command: list[str], values: Path) -> None:
    result = CliRunner().invoke(app, [command[0], str(values), command[1]])
    assert (result.exit_code, result.stdout) == (1, "")
    what = "tensor" if command[0] == "ls" else "metadata key"
    assert f"no {what} {command[1]!r}" in result.stderr


@pytest.mark.parametrize("id_", ["scalars", "strings", "arrays", "empty-arrays", "undecodable-key"])
def test_show_prints_every_kind_of_value(id_: str, tmp_path: Path) -> None:
    case = BY_ID[id_]
    path = save(tmp_path, case)

    def refuse(constant: str) -> Any:
        pytest.fail(f"{constant} is not JSON")

    output = invoke("show", path, "--json", "--full")
    assert output.isascii()
    metadata = json.loads(output, parse_constant=refuse)["metadata"]
    assert len(metadata) == len(case.metadata)
    for key, typed in case.metadata.items():
        shown = metadata[printing.safe(key)]
        items = zip(shown, typed.value, strict=True) if typed.element_type is not None else [(shown, typed.value)]
        for got, expected in items:
            if isinstance(expected, float) and math.isinf(expected):
                assert got == ("Infinity" if expected > 0 else "-Infinity")
            elif isinstance(expected, str):
                assert got == re.sub("[\udc80-\udcff]", lambda match: f"\\x{ord(match[0]) - 0xDC00:02x}", expected)
            else:
                assert got == expected
    assert [row[0] for row in parts(invoke("show", path))[2]] == [printing.safe(key) for key in case.metadata]


def test_show_of_odd_metadata(tmp_path: Path) -> None:
    """Values of other types than the specification has, where the summary looks for its own."""
    path = tmp_path / "odd.gguf"
    odd = {
        "general.architecture": TypedValue(5, V.UINT32),
        "general.name": TypedValue([1], V.ARRAY, V.UINT32),
        "general.file_type": TypedValue("x", V.STRING),
        "nan": math.nan,
    }
    write(path, odd, {})
    assert "architecture\t?" in invoke("show", path)
    shown = json.loads(invoke("show", path, "--json"))
    assert (shown["architecture"], shown["name"], shown["file_type"]) == (None, None, None)
    assert shown["metadata"]["nan"] == "NaN"
    write(path, {"general.file_type": 12345}, {})
    assert "file type\tunknown(12345)" in invoke("show", path)


def test_a_split_model(tmp_path: Path) -> None:
    paths = [tmp_path / f"m-0000{no}-of-00002.gguf" for no in (1, 2)]
    for no, path in enumerate(paths):
        split = {"split.no": np.uint16(no), "split.count": np.uint16(2), "split.tensors.count": np.int32(2)}
        write(path, split | ({"general.architecture": "llama"} if no == 0 else {}), {f"w{no}": np.zeros(3, "f4")})
    rows = json.loads(invoke("ls", paths[1], "--json"))
    assert [(row["name"], row["path"]) for row in rows] == [("w0", str(paths[0])), ("w1", str(paths[1]))]
    assert "shard 2 of 2\tm-00002-of-00002.gguf" in invoke("show", paths[0])
    assert [shard["path"] for shard in json.loads(invoke("show", paths[0], "--json"))["shards"]] == list(
        map(str, paths)
    )
    paths[1].unlink()
    result = CliRunner().invoke(app, ["ls", str(paths[0])])
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert "m-00002-of-00002.gguf" in result.stderr


# ---------------------------------------------------------------- text that nobody vouches for


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("blk.0 [bold]x[/bold] :smile: 漢字 é 🦙 \\n", "blk.0 [bold]x[/bold] :smile: 漢字 é 🦙 \\n"),
        ("a\x1b[31mb\x07", "a\\x1b[31mb\\x07"),
        ("a\r\n\tb\0\x7f", "a\\r\\n\\tb\\x00\\x7f"),
        ("\x9b31m", "\\u009b31m"),
        ("a\u202eb\u2066c\u200fd", "a\\u202eb\\u2066c\\u200fd"),
        ("a\u2028b\ufeffc\u200bd\U000e0041", "a\\u2028b\\ufeffc\\u200bd\\U000e0041"),
        ("\udcff\udc80", "\\xff\\x80"),
    ],
)
def test_safe(text: str, shown: str) -> None:
    assert printing.safe(text) == shown


HOSTILE = "w\x1b]0;owned\x07\x7f\x9b2J\u202e[bold]x[/]\r\n:smile:\udcff"


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    path = tmp_path / "hostile.gguf"
    write(path, {HOSTILE: HOSTILE, "array": [HOSTILE] * 3, "general.name": HOSTILE}, {HOSTILE: np.zeros(3, "f4")})
    return path


def assert_harmless(output: str) -> None:
    assert {char for char in output if not char.isprintable()} <= {"\n", "\t"}


@posix
@pytest.mark.parametrize(("command", "columns"), [("ls", 40), ("ls", 200), ("show", 80)])
def test_nothing_hostile_reaches_a_terminal(command: str, columns: int, hostile: Path) -> None:
    status, output = run_in_terminal(command, hostile, columns=columns)
    assert status == 0
    styles = re.compile(r"\x1b\[[0-9;]*m")
    assert styles.search(output)
    plain = styles.sub("", output)
    assert_harmless(plain)
    assert printing.safe(HOSTILE) in re.sub(r"\n *", "", plain)


def test_no_key_is_lost_that_looks_like_another_s_escapes(tmp_path: Path) -> None:
    write(tmp_path / "x.gguf", {"a\udcff": 1, "a\\xff": 2}, {})
    found = json.loads(invoke("show", tmp_path / "x.gguf", "--json"))
    assert sorted(found["metadata"].values()) == [1, 2]


@posix
@pytest.mark.parametrize("command", ["ls", "show"])
def test_a_hundred_thousand_accents_are_cut(command: str, tmp_path: Path) -> None:
    name = "x" * 200 + "\u0301" * 100_000
    path = tmp_path / "x.gguf"
    b = Build().start(1, 1).text(b"general.name", name.encode()).tensor(name.encode(), [2])
    path.write_bytes(bytes(b.data(bytes(8))))
    status, output = run_in_terminal(command, path, columns=80)
    assert status == 0
    assert len(output) < 20_000


@pytest.mark.parametrize("command", [("ls",), ("show",), ("show", "--full")], ids=" ".join)
def test_nothing_hostile_reaches_a_pipe(command: tuple[str, ...], hostile: Path) -> None:
    output = invoke(*command, hostile)
    assert_harmless(output)
    assert printing.safe(HOSTILE) in output
    assert_harmless(invoke(*command, hostile, "--json"))


def test_errors_are_safe_too(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["ls", str(tmp_path / "\x1b[31m\u202e\n.gguf")])
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert "\\x1b[31m\\u202e\\n.gguf: No such file" in result.stderr


@pytest.mark.parametrize(
    ("text", "width", "shown"),
    [
        ("abcdefgh", 8, "abcdefgh"),
        ("abcdefghi", 8, "abcd…ghi"),
        ("abcdefghi", 7, "abc…ghi"),
        ("漢字漢字漢字", 7, "漢…字"),
        ("abc", 1, "…"),
    ],
)
def test_shorten_middle(text: str, width: int, shown: str) -> None:
    assert printing.shorten_middle(text, width) == shown
    assert cell_len(shown) <= width


@pytest.mark.parametrize(
    ("text", "width", "lines"),
    [
        ("", 5, [""]),
        ("the key is not ASCII", 10, ["the key is", "not ASCII"]),
        ("a-b-c d…e", 6, ["a-b-c", "d…e"]),
        ("abcdefgh ij", 6, ["abcdef", "gh ij"]),
        ("漢字 漢字", 6, ["漢字 ", "漢字"]),
    ],
)
def test_fold(text: str, width: int, lines: list[str]) -> None:
    assert printing.fold(text, width) == lines


@pytest.mark.parametrize(
    ("size", "shown"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1 << 20, "1.0 MiB"),
        ((1 << 20) - 1, "1.0 MiB"),
        (3 << 39, "1.5 TiB"),
        (None, "?"),
    ],
)
def test_size_text(size: int | None, shown: str) -> None:
    assert printing.size_text(size) == shown


@pytest.mark.parametrize(
    ("count", "shown"),
    [(999, "999"), (1000, "1.0 K"), (999_999, "1.0 M"), (134_515_008, "134.5 M"), (671 * 10**9, "671.0 B")],
)
def test_human_count(count: int, shown: str) -> None:
    assert printing.human_count(count) == shown


# ---------------------------------------------------------------- terminals


@pytest.mark.parametrize("columns", [20, 40, 60, 80, 200])
@pytest.mark.parametrize("command", [("ls",), ("show",), ("show", "--full"), ("demo", "--size", "1")], ids=" ".join)
def test_nothing_is_wider_than_the_terminal(
    command: tuple[str, ...], columns: int, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (printing, ls, show):
        monkeypatch.setattr(module, "is_terminal", lambda: True)
    monkeypatch.setenv("COLUMNS", str(columns))
    output = invoke(*command, *([] if command[0] == "demo" else [model]))
    assert max(map(cell_len, output.splitlines())) <= columns
    if command == ("ls",):
        assert all(name in output.replace("\n", "") for name in NAMES)
        assert output.rstrip("\n").endswith("4 tensors, 5.3 KiB")


@pytest.mark.parametrize(
    ("columns", "shown"),
    [
        (100, "v.blk.0." + "n" * 48 + ".weight  F32  3  12 B  160"),
        (60, "v.blk.0.nnnnnn…nnnnnnn.weight  F32  3  12 B  160"),
        (40, "v.blk.0." + "n" * 32 + "\n" + "n" * 16 + ".weight\n  F32  3  12 B  offset 160\n"),
    ],
)
def test_long_names_keep_both_ends(columns: int, shown: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(
        tmp_path / "a.gguf", {}, {"v.blk.0." + "n" * 48 + ".weight": np.zeros(3, "f4"), "x": np.zeros((7, 700), "f4")}
    )
    for module in (printing, ls):
        monkeypatch.setattr(module, "is_terminal", lambda: True)
    monkeypatch.setenv("COLUMNS", str(columns))
    output = invoke("ls", tmp_path / "a.gguf")
    assert shown in re.sub("(?<=[^ ])   +", "  ", output)


@posix
def test_colours_only_where_they_are_wanted(model: Path) -> None:
    colours = re.compile(r"\x1b\[(\d+;)*3\dm")
    assert colours.search(run_in_terminal("ls", model, columns=80)[1])
    assert not colours.search(run_in_terminal("ls", model, columns=80, environment={"NO_COLOR": "1"})[1])
    assert "\x1b" not in run("ls", model, env=os.environ | {"FORCE_COLOR": "1"}).stdout


def test_a_terminal_without_unicode(tmp_path: Path) -> None:
    write(tmp_path / "a.gguf", {"k": "é漢"}, {"漢": np.zeros(1, "f4")})
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    assert "\\u6f22\tF32" in run("ls", tmp_path / "a.gguf", env=environment).stdout
    assert "k\tSTRING\t\\xe9\\u6f22" in run("show", tmp_path / "a.gguf", env=environment).stdout


# ---------------------------------------------------------------- demo


def test_demo(tmp_path: Path) -> None:
    done = run("demo", "--size", 1, env=os.environ | {"TMPDIR": str(tmp_path)})
    assert (done.returncode, done.stderr) == (0, "")
    *tensors, sentence = done.stdout.splitlines()
    assert {line.split("\t")[1] for line in tensors} == {type_.name for type_ in GGMLType}
    assert sentence.startswith("Mapping gave all 35 tensors as arrays in ")
    assert not os.listdir(tmp_path)


def test_demo_leaves_a_sound_model_where_it_is_wanted(tmp_path: Path) -> None:
    path = tmp_path / "demo.gguf"
    assert "35 tensors" in invoke("demo", path, "--size", 1)
    assert mmgguf.verify(path, data=True)[1:] == []  # but for its name
    assert CliRunner().invoke(app, ["demo", str(path)]).exit_code == 1
    assert "35 tensors" in invoke("demo", path, "--size", 1, "--force")


# ---------------------------------------------------------------- failures


def _not_gguf(path: Path) -> None:
    path.write_bytes(b"PK\x03\x04" + bytes(100))


def _cut(path: Path) -> None:
    path.write_bytes(BY_ID["all-types"].encoded()[:-1000])


def _nothing(path: Path) -> None:
    path.write_bytes(b"")


FAILURES: dict[str, tuple[Any, str]] = {
    "missing": (lambda path: None, "{path}: No such file or directory"),
    "folder": (Path.mkdir, "{path}: Is a directory"),
    "other format": (_not_gguf, "{path}: not a GGUF file"),
    "empty": (_nothing, "{path}: "),
    "cut": (_cut, "{path}: "),
    "legacy": (lambda path: path.write_bytes(b"tjgg" + bytes(100)), "{path}: this is a ggjt file"),
    "special": (lambda path: path.symlink_to("/proc/self/maps"), "{path}: Invalid argument"),
}


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("memory://no/model.gguf", "No such file"),
        ("https:/host/model.gguf", "No such file or directory (for a URL, type https://host/model.gguf)"),
        ("nothing://host/model.gguf", "Protocol not known: nothing"),
        ("https://", "no URL: there is no host in it"),
    ],
)
def test_a_url_is_shown_as_it_was_given(path: str, message: str) -> None:
    pytest.importorskip("fsspec")
    result = CliRunner().invoke(app, ["show", path])
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == f"mmgguf: {path}: {message}\n"


@pytest.mark.parametrize("command", [("ls",), ("ls", "--json"), ("show",)], ids=" ".join)
@pytest.mark.parametrize("failure", FAILURES)
def test_failures_are_one_line(failure: str, command: tuple[str, ...], tmp_path: Path) -> None:
    if failure == "special" and not Path("/proc/self/maps").exists():
        pytest.skip("needs Linux")
    make, message = FAILURES[failure]
    path = tmp_path / "model.gguf"
    make(path)
    result = CliRunner().invoke(app, [*command, str(path)])
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.startswith("mmgguf: " + message.format(path=path))
    assert result.stderr.endswith("\n")
    assert result.stderr.count("\n") == 1


@posix
@pytest.mark.parametrize(("arguments", "status"), [(["ls"], 0), (["show"], 0), (["verify", "--nope"], 2)])
def test_closed_streams(arguments: list[str], status: int, model: Path) -> None:
    command = ["sh", "-c", 'exec "$@" >&- 2>&-', "sh", *MMGGUF, *arguments, str(model)]
    assert subprocess.run(command, check=False).returncode == status


def test_what_the_commands_do_not_need_is_not_imported(model: Path) -> None:
    code = (
        "import atexit, sys; from mmgguf.__main__ import main\n"
        "heavy = 'numba', 'torch', 'gguf', 'safetensors', 'rich.progress', 'mmgguf.bench', 'mmgguf.compat'\n"
        "atexit.register(lambda: print([name for name in heavy if name in sys.modules]))\n"
        f"sys.argv = ['mmgguf', 'ls', {str(model)!r}]; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr, done.stdout.splitlines()[-1]) == (0, "", "[]")


@pytest.mark.parametrize("package", ["typer", "rich"])
def test_without_the_extra(package: str) -> None:
    code = f"import sys; sys.modules[{package!r}] = None; from mmgguf.__main__ import main; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"mmgguf: {package} is not installed; get it with: pip install 'mmgguf[cli]'\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ls", "--type", "Q9_9", "x"], "no ggml type 'Q9_9'; there are F32, F16"),
        (["ls", "--type", "9" * 5000, "x"], "no ggml type '999"),
        (["ls", "--sort", "colour", "x"], "'colour' is not one of 'name', 'type'"),
        (["ls"], "Missing argument"),
        (["frobnicate"], "No such command 'frobnicate'"),
    ],
)
def test_errors_of_usage(arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_version() -> None:
    assert invoke("--version") == f"mmgguf {mmgguf.__version__}\n"


COMMANDS = sorted(command.name or "" for command in typer.main.get_group(app).commands.values())


@pytest.mark.parametrize("columns", [30, 40, 80, 200])
def test_help(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole words, uncut; nothing is wider than the terminal but a word that is wider itself."""
    monkeypatch.setenv("COLUMNS", str(columns))
    output = invoke("--help")
    assert output.startswith("Usage: mmgguf [OPTIONS]")
    for command in COMMANDS:
        assert f"\n  {command}" in output
    group = typer.main.get_group(app)
    for name in ["", *COMMANDS]:
        output = invoke(*filter(None, [name]), "-h")
        assert all(cell_len(line) <= columns or len(line.split()) == 1 or "<" in line for line in output.splitlines())
        # Every word of every text is there, whole and in order.
        command = group.commands[name] if name else group
        texts = [command.help or "", *(getattr(parameter, "help", None) or "" for parameter in command.params)]
        for text in texts:
            assert " ".join(text.split()) in " ".join(output.split())


@posix
def test_help_has_colours_on_a_terminal() -> None:
    assert "\x1b[36m--version\x1b[0m" in run_in_terminal("--help", columns=80)[1]
    assert "\x1b[36m" not in run_in_terminal("ls", "--help", columns=80, environment={"NO_COLOR": "1"})[1]
    assert "\x1b" not in run("--help").stdout


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(shell: str) -> None:
    environment = os.environ | {"_MMGGUF_COMPLETE": f"complete_{shell}"}
    environment |= {"COMP_WORDS": "mmgguf ver", "COMP_CWORD": "1", "_TYPER_COMPLETE_ARGS": "mmgguf ver"}
    environment |= {"_TYPER_COMPLETE_FISH_ACTION": "get-args"}
    assert "verify" in run(env=environment).stdout
    assert "_MMGGUF_COMPLETE" in run(env=os.environ | {"_MMGGUF_COMPLETE": f"source_{shell}"}).stdout


def test_python_m_and_bugs(model: Path) -> None:
    """What is no error of the file keeps its traceback."""
    code = "import mmgguf; mmgguf.open = lambda *_: 1 / 0; from mmgguf.__main__ import main; main()"
    done = subprocess.run([sys.executable, "-c", code, "ls", str(model)], capture_output=True, text=True, check=False)
    assert "ZeroDivisionError" in done.stderr
    assert done.returncode == 1


def test_typed_values_in_the_table(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    write(path, {"k": TypedValue(3, V.INT64), "f": TypedValue(0.1, V.FLOAT64), "b": True}, {})
    assert parts(invoke("show", path))[2] == [
        ["k", "INT64", "3"],
        ["f", "FLOAT64", "0.1"],
        ["b", "BOOL", "True"],
    ]
