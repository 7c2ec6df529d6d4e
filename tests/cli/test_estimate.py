"""``mmgguf estimate`` as people and programs run it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from mmgguf import estimate

from ..support import tiny
from ..support.terminal import run, run_in_terminal

MIB = 1 << 20


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return tiny.write("gemma3", tmp_path / "gemma.gguf")


@pytest.fixture
def small(tmp_path: Path) -> Path:
    return tiny.write("llama", tmp_path / "llama.gguf")


def test_lines_for_programs(model: Path) -> None:
    done = run("estimate", model, "-c", "1k,2048", "--sequences", 2)
    assert (done.returncode, done.stderr) == (0, "")
    found = [estimate(model, context=context, sequences=2) for context in (1024, 2048)]
    assert [line.split("\t") for line in done.stdout.splitlines()] == [
        [
            str(model),
            *(str(n) for n in (e.context, e.weights, e.kv_cache, e.recurrent_state, e.output, e.compute, e.total)),
        ]
        for e in found
    ]


def test_lines_of_devices(model: Path) -> None:
    done = run("estimate", model, "-c", "2k", "-d", "12MiB", "-d", "8m", "--reserve", "1MiB")
    placed = estimate(model, context=2048).place([12 * MIB, 8 * MIB], reserve=MIB)
    lines = [line.split("\t") for line in done.stdout.splitlines()]
    assert [line[2] for line in lines] == ["device 0", "device 1", "RAM"]
    assert [int(line[3]) for line in lines[:2]] == [len(one.layers) for one in placed.devices]
    assert [int(line[8]) for line in lines[:2]] == [one.free for one in placed.devices]
    assert lines[2][8] == ""


def test_json(model: Path) -> None:
    done = run(
        "estimate", model, "--json", "-d", "1g", "--cache-type", "q8_0", "--cache-type-v", "q4_0", "--add", model
    )
    (row,) = json.loads(done.stdout)
    e = estimate(model, cache_type_k="q8_0", cache_type_v="q4_0", add=[model])
    assert {part: row[part] for part in ("weights", "kv_cache", "compute", "total", "context")} == {
        part: getattr(e, part) for part in ("weights", "kv_cache", "compute", "total", "context")
    }
    assert row["exact"] == ["kv_cache", "output", "recurrent_state", "weights"]
    assert (row["complete"], row["gpu_layers"], row["tensor_split"]) == (True, 8, None)
    assert row["largest_context"] == row["trained_context"] == 4096
    assert row["devices"][0]["free"] == (1 << 30) - row["devices"][0]["total"]


@pytest.mark.parametrize("columns", [40, 80, 120])
def test_terminals(model: Path, small: Path, columns: int) -> None:
    for arguments in (
        [model, "-c", "1k,4k"],
        [model, "-c", "1k,4k", "-d", "14MiB"],
        [model, small, "-c", "4k", "-d", "9MiB", "-d", "6MiB"],
    ):
        status, output = run_in_terminal("estimate", *arguments, columns=columns)
        assert status == 0
        plain = re.sub(r"\x1b\[[0-9;]*m", "", output)
        assert max(map(len, plain.splitlines())) <= columns
        assert str(estimate(model).context)[:1] in plain
        words = " ".join(plain.split())
        assert "With a context of 4,096" in words


def test_sentences(model: Path, small: Path) -> None:
    def sentences(*arguments: object) -> str:
        _, output = run_in_terminal("estimate", *arguments, columns=200)
        return output

    e = estimate(model, context=4096)
    spare = e.place([64 * MIB]).devices[0].free
    assert spare is not None
    assert (
        f"With a context of 4,096 it fits in 64.0 MiB with {spare / MIB:.1f} MiB to spare; "
        "the most context is the 4,096 it was trained on."
    ) in sentences(model, "-d", "64MiB")
    assert "; the most context is " in sentences(model, "-d", "11MiB")
    assert "does not fit in 1.0 MiB; all of it takes" in sentences(model, "-d", "1MiB")
    assert "with no context do all layers fit" in sentences(model, "-d", "1MiB")
    assert "The best that fits is gemma.gguf, with a context of 1,024." in sentences(
        small, model, "-c", "1k", "-d", "1GiB"
    )
    needs = {path: estimate(path).place([1 << 30]).devices[0].total for path in (small, model)}
    least = min(needs, key=needs.__getitem__)
    assert f"The best that fits is {least.name}" in sentences(model, small, "-d", needs[least])
    assert "None fits in 1.0 MiB with all its layers." in sentences(model, small, "-d", "1MiB")


def test_what_is_not_known_is_a_question_mark(tmp_path: Path) -> None:
    path = tiny.write("llama", tmp_path / "m.gguf", **{"!general.architecture": "of tomorrow"})
    done = run("estimate", path, "-c", "1k", "-d", "1g")
    assert done.returncode == 0
    assert done.stdout.splitlines()[0].split("\t")[3:] == ["?"] * 5
    assert "not known" in done.stderr
    _, output = run_in_terminal("estimate", path, columns=80)
    assert "What it keeps is not known; its weights take" in " ".join(output.split())
    path = tiny.write("llama", tmp_path / "m.gguf", feed_forward_length=None)
    _, output = run_in_terminal("estimate", path, columns=80)
    assert "Its compute buffer is not known; what is takes" in " ".join(output.split())


def test_a_context_beyond_the_training_warns(model: Path) -> None:
    done = run("estimate", model, "-c", "1k,8k")
    assert done.returncode == 0
    assert done.stderr.count("warning") == 1
    assert "8,192 is beyond the 4,096" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-c", "x"], "x is not a number of tokens"),
        (["-c", "0"], "context must be between"),
        (["-c", "99999999999k"], "is not a number of tokens"),
        (["-d", "24XB"], "24XB is not a size"),
        (["-d", "1GiB", "--split", "a"], "a is not a share"),
        (["-d", "1GiB", "--split", "1,2"], "split has a positive share"),
        (["--cache-type", "q9"], "not a ggml type"),
        (["--cache-type-v", "q8_0", "--no-flash-attention"], "needs flash attention"),
        (["--sequences", "0"], "sequences must be between"),
    ],
    ids=str,
)
def test_arguments_that_cannot_be(model: Path, arguments: list[str], message: str) -> None:
    done = run("estimate", model, *arguments)
    assert done.returncode == 2
    assert message in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


def test_a_file_that_is_none_takes_one_line(tmp_path: Path, model: Path) -> None:
    broken = tiny.write("llama", tmp_path / "broken.gguf", block_count=0)
    for path, message in ((tmp_path / "none.gguf", "No such file"), (broken, "block_count: 0 is not between")):
        done = run("estimate", model, path)
        assert (done.returncode, done.stdout) == (1, "")
        assert message in done.stderr
        assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("text", "nbytes"), [("1000", 1000), ("1k", 1024), ("1KB", 1000), ("1.5GiB", 3 << 29), ("2 T", 2 << 40), ("7B", 7)]
)
def test_sizes(text: str, nbytes: int) -> None:
    from mmgguf.cli.estimate import _size

    assert _size(text, "--device") == nbytes
