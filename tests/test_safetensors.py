"""`mmgguf.safetensors`: what it writes, as the package safetensors reads it, and the way back."""

from __future__ import annotations

import json
import os
import tracemalloc
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import mmgguf
from mmgguf.safetensors import BLOCKS_KEY, TYPES_KEY, save_file, to_gguf
from mmgguf.types import LAYOUTS, GGMLType, ValueType

from .support import cases, llamacpp

try:
    import safetensors
    import safetensors.numpy
except ModuleNotFoundError:
    if os.environ.get("CI"):
        pytest.fail("safetensors is not installed", pytrace=False)
    pytest.skip("safetensors is not installed", allow_module_level=True)

EVERYTHING = ["empty", "all-types", "all-types-big", "dimensions", "zero-size", "zero-rows", "no-dimensions"]
METADATA = ["empty", "scalars", "strings", "arrays", "empty-arrays", "vocabulary", "arrays-big", "keys"]


def handmade(path: Path, tensors: dict[str, tuple[str, list[int], bytes]], **metadata: str) -> Path:
    """A safetensors file, written here."""
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    data = b""
    for name, (dtype, shape, raw) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def assert_bits(actual: np.ndarray[Any, Any], expected: np.ndarray[Any, Any]) -> None:
    assert (actual.dtype, actual.shape) == (expected.dtype, expected.shape)
    assert actual.tobytes() == expected.tobytes()


def typed(metadata: mmgguf.Metadata) -> dict[str, Any]:
    """Everything that a metadata value is, comparable also where it is an array."""
    found = {}
    for key in metadata:
        value = metadata.typed(key)
        content = list(value.value) if value.element_type is not None else value.value
        found[key] = repr((value.type, value.element_type, content))
    return found


@pytest.mark.parametrize("dtype", [None, "float32", np.float16, ml_dtypes.bfloat16, "float64"])
@pytest.mark.parametrize("case_id", EVERYTHING)
def test_the_package_reads_the_file_s_numbers(case_id: str, dtype: Any, tmp_path: Path) -> None:
    path, target = cases.BY_ID[case_id].write(tmp_path), tmp_path / "x.safetensors"
    save_file(path, target, dtype=dtype)
    expected = mmgguf.load_file(path, dtype=dtype)
    found = safetensors.numpy.load_file(target)
    assert set(found) == set(expected)
    for name, array in found.items():
        assert_bits(array, expected[name])


def test_every_tensor_is_aligned(all_types: Path, tmp_path: Path) -> None:
    save_file(all_types, tmp_path / "x.safetensors")
    raw = (tmp_path / "x.safetensors").read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    sizes = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2, "I16": 2, "I8": 1}
    for name, entry in header.items():
        if name != "__metadata__":
            assert (8 + length + entry["data_offsets"][0]) % sizes[entry["dtype"]] == 0


@pytest.mark.parametrize("case_id", METADATA)
def test_metadata_survives_the_way_there_and_back(case_id: str, tmp_path: Path) -> None:
    path = cases.BY_ID[case_id].write(tmp_path)
    save_file(path, tmp_path / "x.safetensors")
    to_gguf(tmp_path / "x.safetensors", tmp_path / "back.gguf")
    with mmgguf.open(path) as before, mmgguf.open(tmp_path / "back.gguf") as after:
        assert typed(after.metadata) == typed(before.metadata)


def test_the_order_of_keys_survives_and_so_does_a_key_named_format(tmp_path: Path) -> None:
    metadata = {f"key.{i * 7 % 40}": f"{i}" if i % 2 else i for i in range(40)} | {"format": "mine"}
    mmgguf.write(tmp_path / "x.gguf", metadata, {})
    save_file(tmp_path / "x.gguf", tmp_path / "x.safetensors")
    to_gguf(tmp_path / "x.safetensors", tmp_path / "back.gguf")
    with mmgguf.open(tmp_path / "back.gguf") as f:
        assert list(f.metadata.items()) == list(metadata.items())
    mmgguf.write(tmp_path / "x.gguf", {TYPES_KEY: "mine"}, {})
    with pytest.raises(mmgguf.errors.FormatError, match="reserves"):
        save_file(tmp_path / "x.gguf", tmp_path / "x.safetensors")


def test_strings_are_plain_text_for_others(tmp_path: Path) -> None:
    mmgguf.write(tmp_path / "x.gguf", {"general.name": "Naïve", "n": np.uint32(3), "tokens": ["a", "b"]}, {})
    save_file(tmp_path / "x.gguf", tmp_path / "x.safetensors")
    with safetensors.safe_open(tmp_path / "x.safetensors", "np") as file:
        types = json.dumps({"general.name": "TEXT", "n": "UINT32", "tokens": "STRING[]"})
        expected = {"format": "pt", "general.name": "Naïve", "n": "3", "tokens": '["a", "b"]', TYPES_KEY: types}
        assert file.metadata() == expected


def test_keys_that_would_be_false_are_left_out(tmp_path: Path) -> None:
    metadata = {"general.file_type": 2, "general.quantization_version": 2, "split.no": 0, "general.alignment": 64}
    blocks = mmgguf.TypedTensor(cases.random_tensor(GGMLType.Q4_0, (1,)).blocks, GGMLType.Q4_0)
    mmgguf.write(tmp_path / "x.gguf", metadata, {"w": blocks, "v": np.zeros(3, "f4")}, alignment=64)
    for names, kept in (("w", set()), ("v", {"general.file_type", "general.quantization_version"})):
        save_file(tmp_path / "x.gguf", tmp_path / "x.safetensors", names=names)
        to_gguf(tmp_path / "x.safetensors", tmp_path / "back.gguf")
        with mmgguf.open(tmp_path / "back.gguf") as f:
            assert set(f.metadata) == kept


def test_metadata_of_one_s_own(all_types: Path, tmp_path: Path) -> None:
    save_file(all_types, tmp_path / "x.safetensors", metadata={"a": "1"})
    with safetensors.safe_open(tmp_path / "x.safetensors", "np") as file:
        assert file.metadata() == {"a": "1"}
    to_gguf(tmp_path / "x.safetensors", tmp_path / "x.gguf", metadata={"a": np.int8(2), "b": True})
    with mmgguf.open(tmp_path / "x.gguf") as f:
        assert dict(f.metadata) == {"a": 2, "b": True}


def test_plain_types_come_back_as_they_were(all_types: Path, tmp_path: Path) -> None:
    names = [f"blk.0.{kind}.weight" for kind in ("f64", "f32", "f16", "bf16", "i64", "i32", "i16", "i8")]
    save_file(all_types, tmp_path / "x.safetensors", names=names)
    to_gguf(tmp_path / "x.safetensors", tmp_path / "back.gguf")
    with mmgguf.open(tmp_path / "back.gguf") as f:
        assert set(f) == set(names)
        for name in names:
            assert f[name].type is cases.BY_ID["all-types"].tensors[name].type
            assert_bits(f[name].data, cases.BY_ID["all-types"].tensors[name].blocks)


def test_a_file_of_the_package_becomes_gguf(tmp_path: Path) -> None:
    arrays = {
        "b": np.arange(6, dtype=np.float32).reshape(2, 3),
        "a": np.arange(4).astype(ml_dtypes.bfloat16).reshape(1, 4),
        "c": np.array(7, np.int64),
        "none": np.zeros((0, 3), np.float16),
    }
    safetensors.numpy.save_file(arrays, tmp_path / "x.safetensors", {"general.architecture": "tiny", "format": "pt"})
    calls: list[tuple[int, int]] = []
    to_gguf(tmp_path / "x.safetensors", tmp_path / "x.gguf", progress=lambda *call: calls.append(call))
    found = mmgguf.load_file(tmp_path / "x.gguf")
    assert set(found) == set(arrays)
    for name, array in arrays.items():
        assert_bits(found[name], array)
    assert calls[0] == (0, 40)
    assert calls[-1] == (40, 40)
    assert calls == sorted(calls)
    with mmgguf.open(tmp_path / "x.gguf") as f:
        assert dict(f.metadata) == {"general.architecture": "tiny"}
    to_gguf(tmp_path / "x.safetensors", tmp_path / "x.gguf", dtype="float16", names=["a", "[bc]"])
    found = mmgguf.load_file(tmp_path / "x.gguf")
    assert {name: array.dtype.name for name, array in found.items()} == {"a": "float16", "b": "float16", "c": "int64"}


@pytest.mark.parametrize(
    ("name", "shape", "stored", "dtype", "expected"),
    [
        ("blk.0.attn_norm.weight", [2], "BF16", None, "F32"),
        ("blk.0.attn_norm.weight", [2], "F32", "bfloat16", "F32"),
        ("blk.0.attn_norm.weight", [2], "F16", "float64", "F64"),
        ("blk.0.attn_norm.weight", [2], "F64", "float16", "F32"),
        ("blk.0.attn_norm.weight", [2], "F64", None, "F64"),
        ("blk.0.attn_q.bias", [2], "F16", None, "F32"),
        ("scalar", [], "F16", None, "F32"),
        ("ids", [2], "I16", "float16", "I16"),
        ("blk.0.attn_q_norm.weight", [1, 2], "F32", "float16", "F32"),
        ("model.layers.0.input_layernorm.weight", [1, 2], "F32", "float16", "F32"),
        ("blk.0.ffn_gate_inp.weight", [1, 2], "BF16", None, "F32"),
        ("blk.0.ssm_conv1d.weight", [1, 2], "F32", "float16", "F32"),
        ("token_types.weight", [1, 2], "F32", "float16", "F32"),
        ("blk.0.attn_q.weight", [1, 2], "F32", "float16", "F16"),
        ("blk.0.ffn_gate_exps.weight", [1, 1, 2], "F32", "bfloat16", "BF16"),
        ("token_embd.weight", [1, 2], "BF16", None, "BF16"),
    ],
)
def test_what_llama_cpp_takes_as_float32_alone_stays_that(
    name: str, shape: list[int], stored: str, dtype: Any, expected: str, tmp_path: Path
) -> None:
    size = {"F64": 8, "F32": 4}.get(stored, 2) * (2 if shape else 1)
    path = handmade(tmp_path / "x.safetensors", {name: (stored, shape, bytes(size))})
    to_gguf(path, tmp_path / "x.gguf", dtype=dtype)
    with mmgguf.open(tmp_path / "x.gguf") as f:
        assert GGMLType(f[name].type).name == expected


@pytest.mark.parametrize("case_id", ["all-types", "all-types-big", "zero-size", "zero-rows"])
def test_blocks_that_stay_blocks_come_back(case_id: str, tmp_path: Path) -> None:
    path = cases.BY_ID[case_id].write(tmp_path)
    save_file(path, tmp_path / "x.safetensors", dequantize=False)
    to_gguf(tmp_path / "x.safetensors", tmp_path / "back.gguf")
    with mmgguf.open(path) as before, mmgguf.open(tmp_path / "back.gguf") as after:
        assert set(after) == set(before)
        assert dict(after.metadata) == {k: v for k, v in before.metadata.items() if k != "general.alignment"}
        for name, tensor in before.items():
            assert (after[name].type, after[name].shape) == (tensor.type, tensor.shape)
            assert after[name].data.tobytes() == tensor.data.astype(tensor.layout.dtype).tobytes()
    with safetensors.safe_open(tmp_path / "x.safetensors", "np") as file, mmgguf.open(path) as before:
        types = json.loads((file.metadata() or {}).get(BLOCKS_KEY, "{}"))
        blocks = {name: tensor for name, tensor in before.items() if not tensor.layout.is_plain}
        assert types == {name: tensor.type.name for name, tensor in blocks.items()}
        for name, tensor in blocks.items():
            assert tuple(file.get_slice(name).get_shape()) == tensor.layout.packed_shape(tensor.shape)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [None, "bfloat16", "float16"])
def test_llama_cpp_generates_from_a_model_that_came_back(dtype: Any, smollm2: Path, tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp")
    save_file(smollm2, tmp_path / "x.safetensors", dtype=dtype)
    to_gguf(tmp_path / "x.safetensors", tmp_path / "x.gguf")
    (tmp_path / "x.safetensors").unlink()
    answer = llamacpp.ask(tmp_path / "x.gguf", prompts=["The capital of France is"], n_predict=3)["answers"][0]
    assert answer["text"].startswith(" Paris")


def test_how_a_file_is_laid_out_is_not_for_another_to_say(tmp_path: Path) -> None:
    said = {"general.alignment": "UINT32", "split.count": "UINT16", "split.no": "UINT16", "a": "UINT8"}
    metadata = {"general.alignment": "2147483648", "split.count": "3", "split.no": "x", "a": "1"}
    path = handmade(tmp_path / "x.safetensors", {"w": ("I8", [1], b"x")}, **metadata, **{TYPES_KEY: json.dumps(said)})
    to_gguf(path, tmp_path / "x.gguf")
    assert (tmp_path / "x.gguf").stat().st_size < 1000
    with mmgguf.open(tmp_path / "x.gguf") as f:
        assert dict(f.metadata) == {"a": 1}
        assert (f.alignment, f["w"].data.tobytes()) == (32, b"x")


LONG = "n" * 65
REFUSED = {
    "dtype": (mmgguf.errors.UnknownTypeError, "x.safetensors: w: no ggml type holds U8", {"w": ("U8", [1], b"x")}, {}),
    "name": (mmgguf.errors.FormatError, "65 bytes, the specification's limit", {LONG: ("I8", [1], b"x")}, {}),
    "dimensions": (mmgguf.errors.FormatError, "x.safetensors: w: 5 dimensions", {"w": ("I8", [1] * 5, b"x")}, {}),
    "evil name": (
        mmgguf.errors.UnknownTypeError,
        "(7000 characters): no ggml type",
        {"\x1b" * 7000: ("U8", [1], b"x")},
        {},
    ),
    "types": (mmgguf.errors.FormatError, f"metadata '{TYPES_KEY}'", {}, {TYPES_KEY: "[1"}),
    "types too deep": (mmgguf.errors.FormatError, f"metadata '{TYPES_KEY}'", {}, {TYPES_KEY: "[" * 100_000}),
    "types no object": (mmgguf.errors.FormatError, f"metadata '{TYPES_KEY}'", {}, {TYPES_KEY: "3"}),
    "type": (mmgguf.errors.FormatError, "metadata 'a'", {}, {"a": "1", TYPES_KEY: '{"a": "UINT7"}'}),
    "type no text": (mmgguf.errors.FormatError, "metadata 'a'", {}, {"a": "1", TYPES_KEY: '{"a": 3}'}),
    "value": (mmgguf.errors.FormatError, "metadata 'a'", {}, {"a": "x", TYPES_KEY: '{"a": "UINT8"}'}),
    "range": (mmgguf.errors.FormatError, "metadata 'a'", {}, {"a": "256", TYPES_KEY: '{"a": "UINT8"}'}),
    "blocks": (mmgguf.errors.FormatError, f"metadata '{BLOCKS_KEY}'", {}, {BLOCKS_KEY: "{"}),
    "blocks no object": (mmgguf.errors.FormatError, f"metadata '{BLOCKS_KEY}'", {}, {BLOCKS_KEY: "[3]"}),
    "blocks too deep": (mmgguf.errors.FormatError, f"metadata '{BLOCKS_KEY}'", {}, {BLOCKS_KEY: "[" * 100_000}),
    "blocks of no type": (mmgguf.errors.FormatError, f"metadata '{BLOCKS_KEY}'", {}, {BLOCKS_KEY: '{"w": "Q7"}'}),
    "blocks plain": (mmgguf.errors.FormatError, "F32 has no blocks", {}, {BLOCKS_KEY: '{"w": "F32"}'}),
    "blocks no text": (mmgguf.errors.FormatError, f"metadata '{BLOCKS_KEY}'", {}, {BLOCKS_KEY: '{"w": [1]}'}),
    "blocks no bytes": (
        mmgguf.errors.FormatError,
        "w: I8 of shape (18,) are no rows of Q4_0's blocks of 18 bytes",
        {"w": ("I8", [18], bytes(18))},
        {BLOCKS_KEY: '{"w": "Q4_0"}'},
    ),
    "blocks in parts": (
        mmgguf.errors.FormatError,
        "w: U8 of shape (2, 9) are no rows",
        {"w": ("U8", [2, 9], bytes(18))},
        {BLOCKS_KEY: '{"w": "Q4_0"}'},
    ),
    "array": (mmgguf.errors.FormatError, "metadata 'a'", {}, {"a": "[1]", TYPES_KEY: '{"a": "ARRAY"}'}),
}


@pytest.mark.parametrize(("error", "message", "tensors", "metadata"), REFUSED.values(), ids=list(REFUSED))
def test_what_gguf_cannot_hold_is_refused(
    error: type[Exception], message: str, tensors: Any, metadata: Any, tmp_path: Path
) -> None:
    path = handmade(tmp_path / "x.safetensors", tensors, **metadata)
    with pytest.raises(error) as caught:
        to_gguf(path, tmp_path / "x.gguf")
    assert message in str(caught.value)
    assert str(caught.value).isprintable()
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.safetensors"]


def test_a_broken_safetensors_file_is_an_error_of_ours(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(mmgguf.errors.FormatError, match=r"x\.safetensors: not a valid safetensors file: "):
        to_gguf(tmp_path / "x.safetensors", tmp_path / "x.gguf")
    for name in ("\x1b[2J" * 200_000, "w"):  # quoted in the error's text, as that of dtypes is
        header = json.dumps({name: {"dtype": "\x1b[31m" * 1000, "shape": [1], "data_offsets": [0, 9]}}).encode()
        (tmp_path / "x.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"x")
        with pytest.raises(mmgguf.errors.FormatError) as refused:
            to_gguf(tmp_path / "x.safetensors", tmp_path / "x.gguf")
        assert str(refused.value).isprintable()
        assert len(str(refused.value)) < 1000
    with pytest.raises(FileNotFoundError) as caught:
        to_gguf(tmp_path / "nothing.safetensors", tmp_path / "x.gguf")
    assert caught.value.filename == str(tmp_path / "nothing.safetensors")
    with pytest.raises(mmgguf.errors.NameNotFoundError, match="no tensor 'w'"):
        to_gguf(handmade(tmp_path / "y.safetensors", {}), tmp_path / "x.gguf", names="w")


@pytest.mark.parametrize(
    ("case", "message"),
    [
        (cases.BY_ID["undecodable-name"], "not UTF-8"),
        (cases.BY_ID["undecodable-key"], "not UTF-8"),
        (cases.Case("x", {}, {"__metadata__": cases.random_tensor(GGMLType.F32, (1,))}), "'__metadata__'"),
    ],
    ids=["name", "key", "reserved"],
)
def test_what_safetensors_cannot_hold_is_refused(case: cases.Case, message: str, tmp_path: Path) -> None:
    path = case.write(tmp_path)
    with pytest.raises(mmgguf.errors.FormatError, match=message):
        save_file(path, tmp_path / "x.safetensors")
    assert list(tmp_path.iterdir()) == [path]


def test_too_large_a_header_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmgguf.safetensors.MAX_HEADER_SIZE", 1000)
    mmgguf.write(tmp_path / "x.gguf", {"a": "x" * 1000}, {})
    with pytest.raises(mmgguf.errors.FormatError, match="safetensors' limit is 1000; pass less metadata"):
        save_file(tmp_path / "x.gguf", tmp_path / "x.safetensors")
    save_file(tmp_path / "x.gguf", tmp_path / "x.safetensors", metadata={})


@pytest.mark.parametrize("dtype", ["int8", "float128", np.complex64, "uint8"])
def test_other_dtypes_are_refused(dtype: Any, all_types: Path, tmp_path: Path) -> None:
    path = handmade(tmp_path / "x.safetensors", {})
    for function, source, target in ((save_file, all_types, "y.safetensors"), (to_gguf, path, "y.gguf")):
        with pytest.raises(TypeError, match="dtype must be one of float32, float16, bfloat16, float64"):
            function(source, tmp_path / target, dtype=dtype)
        assert not (tmp_path / target).exists()


def test_a_failure_leaves_the_old_file(all_types: Path, tmp_path: Path) -> None:
    target = tmp_path / "x.safetensors"
    target.write_bytes(b"old")

    def progress(done: int, total: int) -> None:
        if done > total / 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        save_file(all_types, target, progress=progress)
    assert target.read_bytes() == b"old"
    assert {entry.name for entry in tmp_path.iterdir()} == {all_types.name, target.name}


def test_memory_does_not_grow_with_the_tensors(tmp_path: Path) -> None:
    shape = (3000, 128)  # blocks: 47 MiB as float32
    blocks = np.zeros(shape, LAYOUTS[GGMLType.Q8_0].dtype)
    mmgguf.write(tmp_path / "x.gguf", {}, {"w": mmgguf.TypedTensor(blocks, GGMLType.Q8_0)})
    del blocks
    with mmgguf.open(tmp_path / "x.gguf") as f:
        f["w"].dequantize()  # whatever the first call makes
        tracemalloc.start()
        save_file(f, tmp_path / "x.safetensors")
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert (tmp_path / "x.safetensors").stat().st_size > 46 << 20
    assert peak < 20 << 20


def test_the_metadata_s_types_are_those_of_the_enumeration(tmp_path: Path) -> None:
    # Pinned: files that were written must stay readable.
    save_file(cases.BY_ID["arrays"].write(tmp_path), tmp_path / "x.safetensors")
    with safetensors.safe_open(tmp_path / "x.safetensors", "np") as file:
        names = set(json.loads(file.metadata()[TYPES_KEY]).values())
    assert names == {f"{type_.name}[]" for type_ in ValueType if type_ is not ValueType.ARRAY}


@pytest.mark.parametrize("metadata", [{"a": 1}, {"a": None}, {"a": b"x"}, {1: "a"}])
def test_metadata_that_is_no_text(tmp_path: Path, metadata: Any) -> None:
    mmgguf.write(tmp_path / "a.gguf", {}, {"t": np.zeros(4, "f4")})
    with pytest.raises(TypeError, match="strings by string"):
        mmgguf.safetensors.save_file(tmp_path / "a.gguf", tmp_path / "a.safetensors", metadata=metadata)
    assert not (tmp_path / "a.safetensors").exists()
