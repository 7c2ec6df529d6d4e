"""``mmgguf ls``."""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path

import numpy as np
import pytest

import mmgguf
from mmgguf.cli import printing
from mmgguf.format.writer import write

from ..support.cases import BY_ID, Case
from ..support.commandline import fields, invoke, save

# The package's own name for the command is the function; this is the module.
ls = importlib.import_module("mmgguf.cli.ls")

NAMES = ["blk.2.attn_q.weight", "blk.10.attn_q.weight", "blk.1.ffn_up.weight", "output"]


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
