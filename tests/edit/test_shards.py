"""Split, merge, extract and the other byte order: nothing is lost, and others read it."""

from __future__ import annotations

import itertools
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mmgguf
from mmgguf import GGMLType, TypedTensor, ValueType, edit
from mmgguf.errors import NameNotFoundError, UnknownTypeError
from mmgguf.types import LAYOUTS

from ..support import build

V = ValueType


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Two layers with one tensor of every ggml type, and tensors before, between and behind."""
    rng = np.random.default_rng(1)
    tensors: dict[str, Any] = {"token_embd.weight": np.arange(640, dtype=np.float32).reshape(10, 64)}
    types = list(GGMLType)
    for layer, chosen in enumerate((types[::2], types[1::2])):
        for type_ in chosen:
            row = 256 // LAYOUTS[type_].block_size * LAYOUTS[type_].type_size
            blocks = rng.integers(0, 256, (2, row), np.uint8)
            tensors[f"blk.{layer}.{type_.name.lower()}.weight"] = TypedTensor(blocks, type_)
    tensors["output_norm.weight"] = np.ones(3, np.float32)
    path = tmp_path / "m.gguf"
    mmgguf.write(path, {"general.architecture": "llama", "general.name": "ä", "x": [1, 2]}, tensors)
    return path


WAYS: list[dict[str, Any]] = [
    {"max_tensors": 1},
    {"max_tensors": 7},
    {"max_tensors": 1000},
    {"max_size": 1},
    {"max_size": 3000},
    {"at_layers": True},
    {"at_layers": True, "max_size": 4000},
    {"at_layers": True, "max_tensors": 18},
    {"max_tensors": 7, "empty_first": True},
    {"at_layers": True, "empty_first": True},
]


@pytest.mark.parametrize("way", WAYS, ids=str)
@pytest.mark.parametrize("alignment", [32, 64])
def test_merging_what_was_split_gives_the_same_file(model: Path, tmp_path: Path, way: Any, alignment: int) -> None:
    with mmgguf.open(model) as f:
        source = tmp_path / "source.gguf"
        mmgguf.write(source, f.metadata, f, alignment=alignment)
    paths = edit.split(source, tmp_path / "s", **way)
    assert [os.path.basename(p) for p in paths] == [
        f"s-{no:05d}-of-{len(paths):05d}.gguf" for no in range(1, len(paths) + 1)
    ]
    edit.merge(paths[-1], tmp_path / "merged.gguf")
    assert (tmp_path / "merged.gguf").read_bytes() == source.read_bytes()
    assert mmgguf.digest(paths[0]) == mmgguf.digest(source)
    assert not [x for p in paths[:1] for x in mmgguf.verify(p) if x.severity == "error"]
    # Shards can be split anew.
    again = edit.split(paths[0], tmp_path / "again", max_tensors=5)
    edit.merge(again[0], tmp_path / "merged2.gguf")
    assert (tmp_path / "merged2.gguf").read_bytes() == source.read_bytes()


def test_the_keys_are_those_of_llama_gguf_split(model: Path, tmp_path: Path) -> None:
    paths = edit.split(model, tmp_path / "s", max_tensors=20)
    with mmgguf.open(model) as whole, mmgguf.open(paths[0]) as f:
        keys = ["split.no", "split.tensors.count", "split.count"]
        assert [list(s.header.metadata) for s in f.shards] == [[*whole.metadata, *keys], keys]
        for no, shard in enumerate(f.shards):
            metadata = shard.header.metadata
            assert [metadata[key] for key in keys] == [no, len(whole), 2]
            assert [metadata.type_of(key) for key in keys] == [V.UINT16, V.INT32, V.UINT16]


def test_limits_hold(model: Path, tmp_path: Path) -> None:
    with mmgguf.open(model) as f:
        padded = {name: -(-t.nbytes // 32) * 32 for name, t in f.items()}
        for limit in (1, 3000, 10_000):
            parts = edit.plan_split(f, max_size=limit)
            assert [t.name for part in parts for t in part] == list(f)
            for part, following in itertools.pairwise(parts):
                size = sum(padded[t.name] for t in part)
                assert size <= limit or len(part) == 1
                assert size + padded[following[0].name] > limit
        assert {len(part) for part in edit.plan_split(f, max_tensors=7)[:-1]} == {7}
        layers = [[t.name.split(".")[:2] for t in part] for part in edit.plan_split(f, at_layers=True)]
        assert [part[0] for part in layers] == [
            ["token_embd", "weight"],
            ["blk", "0"],
            ["blk", "1"],
            ["output_norm", "weight"],
        ]
        assert all(name == part[0] for part in layers for name in part)
        assert edit.plan_split(f, max_tensors=9, empty_first=True)[0] == []


def test_no_tensors_at_all(tmp_path: Path) -> None:
    mmgguf.write(tmp_path / "v.gguf", {"general.name": "v"}, {})
    paths = edit.split(tmp_path / "v.gguf", tmp_path / "s", max_tensors=1)
    assert len(paths) == 1
    edit.merge(paths[0], tmp_path / "m.gguf")
    assert (tmp_path / "m.gguf").read_bytes() == (tmp_path / "v.gguf").read_bytes()


def test_extract_takes_some_tensors_and_all_metadata(model: Path, tmp_path: Path) -> None:
    edit.extract(model, tmp_path / "e.gguf", names=["blk.0.*", "output_norm.weight"])
    with mmgguf.open(model) as f, mmgguf.open(tmp_path / "e.gguf") as g:
        assert list(g) == [name for name in f if name.startswith(("blk.0.", "output_norm"))]
        assert g.metadata == f.metadata
        for name in g:
            assert (g[name].type, g[name].data.tobytes()) == (f[name].type, f[name].data.tobytes())
    with pytest.raises(NameNotFoundError):
        edit.extract(model, tmp_path / "none.gguf", names="blk.9.*")
    assert not (tmp_path / "none.gguf").exists()


def test_the_other_byte_order_and_back(model: Path, tmp_path: Path) -> None:
    steps: list[tuple[int, int]] = []
    edit.convert_byte_order(model, tmp_path / "big.gguf", byte_order="big", progress=lambda *s: steps.append(s))
    edit.convert_byte_order(tmp_path / "big.gguf", tmp_path / "little.gguf", byte_order="little")
    assert (tmp_path / "little.gguf").read_bytes() == model.read_bytes()
    assert mmgguf.digest(tmp_path / "big.gguf") == mmgguf.digest(model)
    assert steps[-1][0] == steps[-1][1] > 0
    with mmgguf.open(tmp_path / "big.gguf") as f:
        assert f.byte_order == "big"
    shards = edit.split(tmp_path / "big.gguf", tmp_path / "b", max_tensors=9)
    with mmgguf.open(shards[0]) as f:
        assert f.byte_order == "big"
        assert f.metadata["split.count"] == len(shards)


def test_gguf_of_pip_reads_big_endian(model: Path, tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    edit.extract(model, tmp_path / "e.gguf", names=["token_embd.weight", "blk.0.f32.weight"])
    edit.convert_byte_order(tmp_path / "e.gguf", tmp_path / "big.gguf", byte_order="big")
    reader = gguf.GGUFReader(tmp_path / "big.gguf")
    assert reader.byte_order == "S"
    assert reader.get_tensor(0).data.tolist() == np.arange(640).reshape(10, 64).tolist()


@pytest.mark.slow
def test_llama_cpp_loads_the_shards(smollm2: Path, tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp")
    from ..support import llamacpp

    prompts = ["The capital of France is"]
    expected = llamacpp.ask(smollm2, prompts=prompts, n_predict=5)
    first = edit.split(smollm2, tmp_path / "a", max_size=40 << 20)[0]
    empty = edit.split(smollm2, tmp_path / "b", max_tensors=150, empty_first=True)[0]
    for path in (first, empty):
        assert llamacpp.ask(Path(path), prompts=prompts, n_predict=5) == expected
    edit.merge(first, tmp_path / "m.gguf")
    assert (tmp_path / "m.gguf").read_bytes() == smollm2.read_bytes()


@pytest.mark.parametrize("arguments", [{}, {"max_size": 0}, {"max_tensors": 0}, {"max_tensors": -1}], ids=str)
def test_limits_that_cannot_be(model: Path, tmp_path: Path, arguments: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="max_"):
        edit.split(model, tmp_path / "s", **arguments)
    assert [p.name for p in tmp_path.iterdir()] == ["m.gguf"]


def test_refusals_and_interrupts_leave_no_files(model: Path, tmp_path: Path) -> None:
    (tmp_path / "s-00002-of-00002.gguf").write_bytes(b"other")
    with pytest.raises(FileExistsError, match="exists"):
        edit.split(model, tmp_path / "s", max_tensors=20)
    for action in (
        lambda: edit.merge(model, model, force=True),
        lambda: edit.extract(model, model, names="*", force=True),
        lambda: edit.convert_byte_order(model, model, byte_order="big", force=True),
    ):
        with pytest.raises(FileExistsError, match="the file that is read"):
            action()

    def interrupt(done: int, total: int) -> None:
        if done > total // 2:
            raise KeyboardInterrupt

    for action in (
        lambda: edit.split(model, tmp_path / "s", max_tensors=20, force=True, progress=interrupt),
        lambda: edit.merge(model, tmp_path / "m2.gguf", progress=interrupt),
        lambda: edit.convert_byte_order(model, tmp_path / "b.gguf", byte_order="big", progress=interrupt),
    ):
        with pytest.raises(KeyboardInterrupt):
            action()
    assert {p.name for p in tmp_path.iterdir()} == {"m.gguf", "s-00002-of-00002.gguf"}
    assert (tmp_path / "s-00002-of-00002.gguf").read_bytes() == b"other"


def test_a_rename_that_fails_takes_the_others_back(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = os.replace, []

    def fail_later(source: Any, target: Any, **options: Any) -> None:
        calls.append(target)
        if len(calls) == 3:
            raise OSError(5, "Input/output error")
        real(source, target, **options)

    monkeypatch.setattr(os, "replace", fail_later)
    with pytest.raises(OSError, match="Input/output"):
        edit.split(model, tmp_path / "s", max_tensors=5)
    assert [p.name for p in tmp_path.iterdir()] == ["m.gguf"]


def test_unknown_types_cannot_be_moved(tmp_path: Path) -> None:
    b = build.Build(3).start(tensors=1, pairs=0).tensor(b"new", [4], type_=200)
    (tmp_path / "a.gguf").write_bytes(bytes(b.pad().raw(bytes(64))))
    with pytest.raises(UnknownTypeError, match="200"):
        edit.split(tmp_path / "a.gguf", tmp_path / "s", max_tensors=1)
    with pytest.raises(UnknownTypeError):
        edit.merge(tmp_path / "a.gguf", tmp_path / "m.gguf")


def test_names_that_are_not_utf8_stay(tmp_path: Path) -> None:
    b = build.Build(3).start(tensors=2, pairs=1).text(b"a\xff", b"\xfe")
    b.tensor(b"w\xff", [2], offset=0).tensor(b"\n", [2], offset=32).data(b"12345678", b"abcdefgh")
    (tmp_path / "a.gguf").write_bytes(bytes(b))
    edit.merge(edit.split(tmp_path / "a.gguf", tmp_path / "s", max_tensors=1)[1], tmp_path / "m.gguf")
    assert (tmp_path / "m.gguf").read_bytes() == bytes(b)
