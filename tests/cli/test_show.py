"""``mmgguf show``: the summary, and values of keys."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from mmgguf.cli import app, printing
from mmgguf.format.values import TypedValue
from mmgguf.format.writer import write
from mmgguf.types import ValueType

from ..support.cases import BY_ID
from ..support.commandline import fields, invoke, posix, save
from ..support.terminal import run_in_terminal

V = ValueType


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


def test_typed_values_in_the_table(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    write(path, {"k": TypedValue(3, V.INT64), "f": TypedValue(0.1, V.FLOAT64), "b": True}, {})
    assert parts(invoke("show", path))[2] == [
        ["k", "INT64", "3"],
        ["f", "FLOAT64", "0.1"],
        ["b", "BOOL", "True"],
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["show", "FILE", "general.nme"], "FILE: no metadata key 'general.nme'; did you mean 'general.name'"),
        (["show", "FILE", "general.name", "llama.epsylon"], "did you mean 'llama.epsilon'"),
        (["show", "FILE", "tokens.*"], "FILE: no metadata key 'tokens.*'\n"),
        (["show", "FILE", "--tensor", "outptu"], "FILE: no tensor 'outptu'; did you mean 'output'?"),
        (["ls", "FILE", "blk.2.atn_q.weight"], "no tensor 'blk.2.atn_q.weight'; did you mean 'blk.2.attn_q.weight'"),
        (["edit", "FILE", "--in-place", "--delete", "general.nme"], "did you mean 'general.name'"),
    ],
)
def test_a_misspelt_name_gets_a_suggestion(arguments: list[str], message: str, model: Path) -> None:
    result = CliRunner().invoke(app, [str(model) if argument == "FILE" else argument for argument in arguments])
    assert (result.exit_code, result.stdout) == (1, "")
    assert message.replace("FILE", str(model)) in result.stderr
