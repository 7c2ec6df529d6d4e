"""``.npz`` archives, and ``mmgguf convert`` and ``mmgguf dequantize`` on the command line."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import mmgguf
from mmgguf import npz
from mmgguf.types import LAYOUTS, GGMLType

from ..support import build, cases

pytest.importorskip("typer")
pytest.importorskip("rich")
safetensors_numpy = pytest.importorskip("safetensors.numpy")

from typer.testing import CliRunner, Result  # noqa: E402

from mmgguf.cli import app  # noqa: E402


@pytest.fixture(autouse=True)
def _without_compiling(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMGGUF_BACKEND", "numpy")


def run(*args: Any) -> Result:
    return CliRunner().invoke(app, list(map(str, args)))


def assert_bits(actual: np.ndarray[Any, Any], expected: np.ndarray[Any, Any]) -> None:
    assert (actual.dtype, actual.shape) == (expected.dtype, expected.shape)
    assert actual.tobytes() == expected.tobytes()


# .npz archives.


@pytest.mark.parametrize("dtype", [None, "float32", np.float16, "float64"])
@pytest.mark.parametrize(
    "case_id", ["empty", "all-types", "all-types-big", "dimensions", "zero-size", "zero-rows", "no-dimensions"]
)
def test_numpy_loads_the_file_s_numbers(case_id: str, dtype: Any, tmp_path: Path) -> None:
    path = cases.BY_ID[case_id].write(tmp_path)
    npz.save_file(path, tmp_path / "x.npz", dtype=dtype)
    expected = mmgguf.load_file(path, dtype=dtype)
    with np.load(tmp_path / "x.npz", allow_pickle=False) as found:
        assert found.files == list(expected)
        for name, array in found.items():
            plain = expected[name]
            # The format cannot name bfloat16, but float32 holds the same numbers.
            assert_bits(array, plain.astype(np.float32) if plain.dtype.name == "bfloat16" else plain)


def test_the_same_archive_every_time(all_types: Path, tmp_path: Path) -> None:
    for name in ("x.npz", "y.npz"):
        npz.save_file(all_types, tmp_path / name, names="*.q*")
    assert (tmp_path / "x.npz").read_bytes() == (tmp_path / "y.npz").read_bytes()


def test_a_name_that_is_too_long_for_an_archive(tmp_path: Path) -> None:
    b = build.Build().start(1, 0).tensor(b"n" * 65532, [2], 0, 0)
    (tmp_path / "x.gguf").write_bytes(bytes(b.data(bytes(8))))
    with pytest.raises(mmgguf.errors.FormatError, match="not a name that a zip archive can hold"):
        npz.save_file(tmp_path / "x.gguf", tmp_path / "x.npz")


def test_names_may_come_from_an_iterator(all_types: Path, tmp_path: Path) -> None:
    with mmgguf.open(all_types) as f:
        names = list(f)[:2]
    npz.save_file(all_types, tmp_path / "x.npz", names=iter(names))
    with np.load(tmp_path / "x.npz") as archive:
        assert list(archive) == names


@pytest.mark.parametrize("dtype", ["bfloat16", "int8", "complex64"])
def test_what_an_archive_cannot_hold_is_refused(dtype: str, all_types: Path, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"dtype must be one of float32, float16, float64 in an \.npz archive"):
        npz.save_file(all_types, tmp_path / "x.npz", dtype=dtype)
    with pytest.raises(mmgguf.errors.FormatError, match="not a name that a zip archive can hold"):
        npz.save_file(cases.BY_ID["undecodable-name"].write(tmp_path), tmp_path / "x.npz")
    assert not (tmp_path / "x.npz").exists()


@pytest.mark.parametrize("case_id", ["all-types", "all-types-big", "zero-size"])
def test_blocks_that_stay_blocks(case_id: str, tmp_path: Path) -> None:
    path = cases.BY_ID[case_id].write(tmp_path)
    names = [name for name, array in mmgguf.load_file(path).items() if array.dtype != ml_dtypes.bfloat16]
    npz.save_file(path, tmp_path / "x.npz", names=names, dequantize=False)
    stored = mmgguf.load_file(path, names=names, dequantize=False)
    with np.load(tmp_path / "x.npz", allow_pickle=False) as found:
        assert list(found) == list(stored)
        for name, blocks in stored.items():
            little = blocks.astype(blocks.dtype.newbyteorder("<"))
            assert (found[name].dtype, found[name].shape) == (little.dtype, little.shape)
            assert found[name].tobytes() == little.tobytes()


def test_names_that_numpy_would_mix_up_are_refused(tmp_path: Path) -> None:
    one = np.ones(1, np.float32)
    mmgguf.write(tmp_path / "x.gguf", {}, {"a.npy": one, "b": one, "a": one, "\x1b.npy": one})
    with pytest.raises(mmgguf.errors.FormatError, match=r"'a' and 'a\.npy' cannot be told apart") as refused:
        npz.save_file(tmp_path / "x.gguf", tmp_path / "x.npz")
    assert str(refused.value).isprintable()
    npz.save_file(tmp_path / "x.gguf", tmp_path / "x.npz", names=["a.npy", "b"])
    with np.load(tmp_path / "x.npz") as archive:
        assert sorted(archive) == ["a.npy", "b"]
        assert archive["a.npy"] == one


def test_memory_does_not_grow_with_the_tensors(tmp_path: Path) -> None:
    blocks = np.zeros((3000, 128), LAYOUTS[GGMLType.Q8_0].dtype)  # 47 MiB as float32
    mmgguf.write(tmp_path / "x.gguf", {}, {"w": mmgguf.TypedTensor(blocks, GGMLType.Q8_0)})
    del blocks
    with mmgguf.open(tmp_path / "x.gguf") as f:
        f["w"].dequantize()  # whatever the first call makes
        tracemalloc.start()
        npz.save_file(f, tmp_path / "x.npz")
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert (tmp_path / "x.npz").stat().st_size > 46 << 20
    assert peak < 20 << 20


# The command line.


def test_convert_there_and_back(all_types: Path, tmp_path: Path) -> None:
    there, back = tmp_path / "x.safetensors", tmp_path / "back.gguf"
    assert run("convert", all_types, there, "--dtype", "bfloat16").exit_code == 0
    found = safetensors_numpy.load_file(there)
    expected = mmgguf.load_file(all_types, dtype="bfloat16")
    assert set(found) == set(expected)
    for name, array in found.items():
        assert_bits(array, expected[name])
    assert run("convert", there, back, "-n", "*.q4_?.*", "-n", "blk.0.i8.weight").exit_code == 0
    with mmgguf.open(back) as f:
        assert sorted(f) == ["blk.0.i8.weight", "blk.0.q4_0.weight", "blk.0.q4_1.weight", "blk.0.q4_k.weight"]
        assert f.architecture == "test"
        assert f["blk.0.q4_k.weight"].type is GGMLType.BF16


@pytest.mark.parametrize("target", ["x.npz", "x.safetensors"])
def test_dequantize(target: str, all_types: Path, tmp_path: Path) -> None:
    result = run("dequantize", all_types, "-o", tmp_path / target, "--names", "blk.0.q*", "--dtype", "float16")
    assert (result.exit_code, result.output) == (0, "")
    load = np.load if target.endswith("npz") else safetensors_numpy.load_file
    found = load(tmp_path / target)
    expected = mmgguf.load_file(all_types, dtype=np.float16, names="blk.0.q*")
    assert set(found) == set(expected)
    for name, array in expected.items():
        assert_bits(found[name], array)
    if target.endswith("npz"):
        found.close()


def test_float32_is_what_dequantize_gives_of_everything(all_types: Path, tmp_path: Path) -> None:
    assert run("dequantize", all_types, "-o", tmp_path / "x.npz", "-n", "*.bf16.*", "-n", "*.f64.*").exit_code == 0
    with np.load(tmp_path / "x.npz") as found:
        assert {array.dtype.name for array in found.values()} == {"float32"}


REFUSED = {
    "suffix": (["convert", "SOURCE", "x.bin"], 2, "must end in .safetensors or .gguf"),
    "both gguf": (["convert", "SOURCE", "x.gguf"], 2, "both files are gguf: there is nothing to convert"),
    "output": (["dequantize", "SOURCE", "-o", "x"], 2, "must end in .npz or .safetensors"),
    "npz": (["dequantize", "SOURCE", "-o", "x.npz", "--dtype", "bfloat16"], 2, "cannot name bfloat16"),
    "no source": (["convert", "nothing.gguf", "x.safetensors"], 1, "nothing.gguf: No such file or directory"),
    "no gguf": (["convert", "old", "x.safetensors"], 1, "not a GGUF file"),
    "no safetensors": (["convert", "old", "x.gguf"], 1, "not a valid safetensors file"),
    "exists": (["convert", "SOURCE", "old.safetensors"], 1, "old.safetensors: already exists; --force"),
    "name": (["dequantize", "SOURCE", "-o", "x.npz", "-n", "nothing*"], 1, "no tensor 'nothing*'"),
    "folder": (["convert", "SOURCE", "no/x.safetensors"], 1, "no/x.safetensors: No such file or directory"),
}


@pytest.mark.parametrize(("arguments", "status", "message"), REFUSED.values(), ids=list(REFUSED))
def test_errors_are_one_line(
    arguments: list[str],
    status: int,
    message: str,
    all_types: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("old.safetensors").write_bytes(b"old file")
    Path("old").write_bytes(b"old file")
    result = run(*[str(all_types) if argument == "SOURCE" else argument for argument in arguments])
    assert result.exit_code == status
    assert message in result.stderr
    assert result.stdout == ""
    assert status == 2 or result.stderr.count("\n") == 1
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["all-types.gguf", "old", "old.safetensors"]
    assert Path("old.safetensors").read_bytes() == b"old file"


def test_force_replaces(all_types: Path, tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(b"old file")
    assert run("convert", all_types, tmp_path / "x.safetensors", "--force", "-n", "*.f32.*").exit_code == 0
    assert list(safetensors_numpy.load_file(tmp_path / "x.safetensors")) == ["blk.0.f32.weight"]


def test_a_terminal_gets_a_progress_bar(all_types: Path, tmp_path: Path) -> None:
    main, other = pty.openpty()
    command = [sys.executable, "-m", "mmgguf", "dequantize", all_types, "-o", tmp_path / "x\u202e.npz", "-n", "*.f32.*"]
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "100"}
    environment.pop("NO_COLOR", None)
    subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=other, env=environment)
    os.close(other)
    shown = b""
    while True:
        try:
            part = os.read(main, 1 << 16)
        except OSError:  # what Linux says at the end
            break
        if not part:
            break
        shown += part
    os.close(main)
    text = shown.decode()
    assert "\\u202e.npz" in text
    assert "\u202e" not in text
    assert "━" in text
