"""The reader on the table of files: headers, metadata and stored tensors, from files and from streams."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import mmgguf
from mmgguf import GGMLType, ValueType
from mmgguf.errors import MetadataTypeError, NameNotFoundError
from mmgguf.format.strings import StringArray
from mmgguf.format.values import TypedValue
from mmgguf.types import LAYOUTS

from ..support.cases import BY_ID, CASES, Case, StoredTensor, array

cases = pytest.mark.parametrize("case", CASES, ids=lambda c: c.id)
VERSIONS = pytest.mark.parametrize("version", [1, 2, 3])


class OneByteReads(io.BytesIO):
    """Gives a byte at a time, as a slow stream may."""

    def readinto(self, buffer: Any) -> int:
        return super().readinto(memoryview(buffer)[:1])


def plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.tolist()
    return list(value) if isinstance(value, StringArray) else value


def check_metadata(metadata: mmgguf.Metadata, case: Case) -> None:
    assert list(metadata) == list(case.metadata)
    for key, typed in case.metadata.items():
        assert plain(metadata[key]) == typed.value
        assert metadata.type_of(key) is typed.type
        info = metadata.array_info(key)
        assert (info.element_type if info else None) is typed.element_type
        if typed.type is not ValueType.ARRAY:
            assert type(metadata[key]) is type(typed.value)
        elif typed.element_type is not ValueType.STRING:
            values = metadata[key]
            assert not values.flags.writeable


@VERSIONS
@cases
@pytest.mark.parametrize(("stream", "buffer_size"), [(io.BytesIO, 1 << 16), (io.BytesIO, 0), (OneByteReads, 256)])
def test_headers_from_streams(stream: type[io.BytesIO], buffer_size: int, case: Case, version: int) -> None:
    if case.id == "strings" and buffer_size == 0:
        buffer_size = 1  # the slowest way of all is shown by the other cases
    raw = case.header(version)
    padding = bytes(-len(raw) % case.alignment)
    body = case.encoded()[case.data_offset :]
    header = mmgguf.read_header(stream(raw + padding + body), buffer_size=buffer_size)
    assert (header.version, header.byte_order, header.alignment) == (version, case.byte_order, case.alignment)
    assert (header.nbytes, header.data_offset) == (len(raw), len(raw) + len(padding))
    check_metadata(header.metadata, case)
    assert list(header.tensors) == list(case.tensors)
    for name, info in header.tensors.items():
        tensor = case.tensors[name]
        assert (info.name, info.type, info.ne) == (name, tensor.type, tensor.shape[::-1])
        assert (info.shape, info.offset, info.nbytes) == (tensor.shape, case.offsets[name], len(tensor.raw))
        assert info.n_elements == math.prod(tensor.shape)


@VERSIONS
@cases
@pytest.mark.parametrize("storage", ["mmap", "read"])
@pytest.mark.parametrize("mode", ["r", "c"])
def test_files(storage: Any, mode: Any, case: Case, version: int, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    raw = case.header(version)
    path.write_bytes(raw + bytes(-len(raw) % case.alignment) + case.encoded()[case.data_offset :])
    with mmgguf.open(path, storage=storage, mode=mode) as f:
        check_metadata(f.metadata, case)
        assert list(f) == list(case.tensors)
        assert len(f) == len(case.tensors)
        for name, stored in case.tensors.items():
            check_tensor(f[name], stored, case, f, writable=mode == "c")


def check_tensor(tensor: mmgguf.Tensor, stored: StoredTensor, case: Case, f: mmgguf.GGUFFile, writable: bool) -> None:
    data = tensor.data
    assert data.dtype == LAYOUTS[stored.type].stored(case.byte_order)
    assert data.shape == stored.blocks.shape
    assert data.tobytes() == stored.stored(case.byte_order)
    assert data.astype(LAYOUTS[stored.type].dtype).tobytes() == stored.raw
    assert data.flags.writeable == writable
    assert (tensor.type, tensor.shape, tensor.ne) == (stored.type, stored.shape, stored.shape[::-1])
    assert (tensor.nbytes, tensor.ndim) == (len(stored.raw), len(stored.shape))
    assert tensor.file_offset == f.shards[0].header.data_offset + case.offsets[tensor.name]
    assert f.shards[0].header.tensors[tensor.name] is tensor.info
    assert tensor.type.name in repr(tensor)
    if tensor.layout.is_plain:
        logical = np.asarray(tensor)
        assert logical.shape == stored.shape
        # In this machine's order where ml_dtypes knows no other.
        swapped = stored.type == GGMLType.BF16 and case.byte_order == "big"
        assert logical.dtype == LAYOUTS[stored.type].stored("little" if swapped else case.byte_order)
        assert logical.tobytes() == (data.byteswap() if swapped else data).tobytes()


@cases
def test_mapped_arrays_are_the_file(case: Case, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(case.encoded())
    with mmgguf.open(path) as f:
        file: Any = f.shards[0].file
        start = file.base.__array_interface__["data"][0]
        for tensor in f.values():
            data = tensor.data
            if data.size:
                assert data.__array_interface__["data"][0] == start + tensor.file_offset
                assert np.shares_memory(data, file.base)
        for key in f.metadata:
            info, values = f.metadata.array_info(key), f.metadata[key]
            if info and info.count and info.element_type is not ValueType.STRING:
                assert np.shares_memory(values, file.base)


def test_bfloat16_is_bfloat16(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    values = np.array([[1.0, -2.5], [3.0e38, 0.0]], ml_dtypes.bfloat16)
    for byte_order in ("little", "big"):
        mmgguf.write(path, {}, {"w": values}, byte_order=byte_order)  # type: ignore[arg-type]
        with mmgguf.open(path) as f:
            data = f["w"].data
            assert data.dtype.type is ml_dtypes.bfloat16
            assert data.astype(np.float32).tolist() == values.astype(np.float32).tolist()


def test_the_fields_of_blocks_are_views(tmp_path: Path) -> None:
    case = BY_ID["all-types"]
    path = tmp_path / "model.gguf"
    path.write_bytes(case.encoded())
    with mmgguf.open(path) as f:
        t = f["blk.0.q4_k.weight"]
        assert (t.shape, t.data.shape, t.nbytes) == ((3, 512), (3, 2), 3 * 2 * 144)
        assert np.shares_memory(t.data["d"], t.data)
        assert t.data["qs"].shape == (3, 2, 128)
        assert repr(t) == "<Tensor blk.0.q4_k.weight Q4_K (3, 512) 864 B>"


# ---------------------------------------------------------------- metadata


@pytest.fixture
def metadata(tmp_path: Path) -> mmgguf.Metadata:
    case = Case(
        "typed",
        {
            "general.architecture": TypedValue("llama", ValueType.STRING),
            "llama.block_count": TypedValue(32, ValueType.UINT32),
            "llama.rope.freq_base": TypedValue(1e4, ValueType.FLOAT32),
            "llama.causal": TypedValue(True, ValueType.BOOL),
            "llama.heads": array(ValueType.INT32, [1, 2, 3]),
            "llama.tags": array(ValueType.STRING, ["a", "b"]),
            "llama.long": array(ValueType.UINT16, list(range(2000))),
            "other.key": TypedValue(-1, ValueType.INT8),
        },
    )
    return mmgguf.read_header(io.BytesIO(case.encoded())).metadata


GETTERS = ["get_int", "get_float", "get_bool", "get_str", "get_array"]


@pytest.mark.parametrize(
    ("key", "allowed"),
    [
        ("block_count", {"get_int": 32, "get_float": 32.0}),
        ("rope.freq_base", {"get_float": 1e4}),
        ("causal", {"get_bool": True}),
        ("heads", {"get_array": [1, 2, 3]}),
        ("tags", {"get_array": ["a", "b"]}),
    ],
)
def test_typed_getters(key: str, allowed: dict[str, Any], metadata: mmgguf.Metadata) -> None:
    config = metadata.section("llama.")
    for name in GETTERS:
        for getter, full in ((getattr(config, name), key), (getattr(metadata, name), f"llama.{key}")):
            if name in allowed:
                value = getter(full)
                assert plain(value) == allowed[name]
                assert type(plain(value)) is type(allowed[name])
                assert plain(getter(full, None)) == allowed[name]
            else:
                with pytest.raises(MetadataTypeError, match=rf"^llama\.{key}: an? .* was asked for, got "):
                    getter(full)
                with pytest.raises(MetadataTypeError):
                    getter(full, None)


def test_missing_keys(metadata: mmgguf.Metadata) -> None:
    config = metadata.section("llama.")
    for name in GETTERS:
        with pytest.raises(NameNotFoundError, match=r"no metadata key 'llama\.nothing'"):
            getattr(config, name)("nothing")
        assert getattr(config, name)("nothing", default := object()) is default
    with pytest.raises(KeyError):
        metadata["nothing"]
    for method in (metadata.type_of, metadata.array_info, metadata.typed):
        with pytest.raises(KeyError):
            method("nothing")
    assert metadata.get("nothing") is None


def test_metadata_is_a_mapping(metadata: mmgguf.Metadata) -> None:
    config = metadata.section("llama.")
    assert list(config) == ["block_count", "rope.freq_base", "causal", "heads", "tags", "long"]
    assert len(config) == 6
    assert "heads" in config
    assert "general.architecture" not in config
    assert dict(metadata.items())["other.key"] == -1
    assert metadata["llama.tags"] is metadata["llama.tags"]
    assert metadata.typed("llama.tags").element_type is ValueType.STRING
    assert repr(metadata) == "<Metadata of 8 keys>"
    assert repr(config) == "<Section 'llama.' of 6 keys>"


@pytest.mark.parametrize(
    ("limit", "summarised"),
    [(1024, {"llama.long"}), (2, {"llama.long", "llama.heads"}), (None, set()), (2000, set())],
)
def test_to_dict(limit: int | None, summarised: set[str], metadata: mmgguf.Metadata) -> None:
    data = metadata.to_dict(limit)
    assert json.loads(json.dumps(data)) == data
    assert list(data) == list(metadata)
    assert {key for key, value in data.items() if isinstance(value, dict)} == summarised
    for key in summarised:
        assert data[key] == {"type": metadata.typed(key).element_type.name, "length": len(metadata[key])}  # type: ignore[union-attr]
    for key in set(data) - summarised:
        assert data[key] == plain(metadata[key])


def test_bools_that_are_neither_0_nor_1_are_true() -> None:
    raw = bytearray(
        Case(
            "bools", {"s": TypedValue(True, ValueType.BOOL), "a": array(ValueType.BOOL, [True, False, True])}
        ).encoded()
    )
    position = raw.index(b"a", 24)
    raw[position + 1 + 4 + 4 + 8] = 0x80
    raw[raw.index(b"s", 24) + 5] = 7
    metadata = mmgguf.read_header(io.BytesIO(raw)).metadata
    assert metadata["s"] is True
    assert metadata["a"].view(np.uint8).tolist() == [1, 0, 1]


def test_a_header_needs_no_more_than_itself_and_one_buffer() -> None:
    class Watched(io.BytesIO):
        furthest = total = 0

        def readinto(self, buffer: Any) -> int:
            count = super().readinto(buffer)
            self.furthest, self.total = max(self.furthest, self.tell()), self.total + count
            return count

    for case in (BY_ID["vocabulary"], BY_ID["all-types"], BY_ID["arrays"]):
        raw = case.header()
        for buffer_size in (64, 512, 4096):
            file = Watched(case.encoded() + bytes(1 << 20))
            mmgguf.read_header(file, buffer_size=buffer_size)
            assert file.furthest <= len(raw) + buffer_size


def test_an_unknown_type_is_listed_and_raises_when_touched(tmp_path: Path) -> None:
    case = Case(
        "unknown",
        {},
        {"a": StoredTensor(GGMLType.F32, (2,), b"\0" * 8), "b": StoredTensor(GGMLType.F32, (4,), b"\1" * 16)},
    )
    raw = bytearray(case.encoded())
    at = raw.index(b"a", 24) + 1 + 4 + 8
    path = tmp_path / "model.gguf"
    for id_ in (4, 5, 31, 36, 43, 1000, 2**32 - 1):
        raw[at : at + 4] = id_.to_bytes(4, "little")
        path.write_bytes(raw)
        with mmgguf.open(path) as f:
            t = f["a"]
            assert (t.type, t.shape, f["b"].data.tobytes()) == (id_, (2,), b"\1" * 16)
            assert repr(t) == f"<Tensor a unknown type {id_} (2,)>"
            for touch in ("data", "nbytes", "layout"):
                with pytest.raises(mmgguf.errors.UnknownTypeError, match=rf"a: unknown ggml type {id_}"):
                    getattr(t, touch)
            with pytest.raises(mmgguf.errors.UnknownTypeError):
                np.asarray(t)


@pytest.mark.parametrize("name", ["ggml", "ggmf", "ggjt", "ggla"])
def test_the_formats_before_gguf_are_recognised(name: str) -> None:
    magic = {"ggml": 0x67676D6C, "ggmf": 0x67676D66, "ggjt": 0x67676A74, "ggla": 0x67676C61}[name]
    with pytest.raises(mmgguf.errors.NotGGUFError, match=rf"a {name} file.*convert"):
        mmgguf.read_header(io.BytesIO(magic.to_bytes(4, "little") + bytes(100)))


def test_a_reversed_magic_is_read() -> None:
    case = BY_ID["arrays-big"]
    header = mmgguf.read_header(io.BytesIO(b"FUGG" + case.encoded()[4:]))
    check_metadata(header.metadata, case)


def test_all_typed_values_are_one_call(tmp_path: Path) -> None:
    first, copy = tmp_path / "first.gguf", tmp_path / "copy.gguf"
    metadata = {
        "small": TypedValue(5, ValueType.UINT64),
        "tenth": TypedValue(0.1, ValueType.FLOAT64),
        "byte": TypedValue(-1, ValueType.INT8),
        "flags": TypedValue([True], ValueType.ARRAY, ValueType.BOOL),
        "none": TypedValue([], ValueType.ARRAY, ValueType.STRING),
    }
    mmgguf.write(first, metadata, {})
    with mmgguf.open(first) as f:
        assert list(f.metadata.typed()) == list(metadata)
        assert f.metadata.typed()["small"] == f.metadata.typed("small") == metadata["small"]
        mmgguf.write(copy, f.metadata.typed() | {"general.name": "A copy"}, f)
    with mmgguf.open(copy) as f:
        assert {key: (f.metadata.type_of(key), f.metadata[key]) for key in ("small", "tenth", "byte")} == {
            "small": (ValueType.UINT64, 5),
            "tenth": (ValueType.FLOAT64, 0.1),
            "byte": (ValueType.INT8, -1),
        }
    assert [d.name for d in mmgguf.compare(first, copy)] == ["general.name"]


def test_arrays_of_strings_and_of_numbers_have_tolist(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    mmgguf.write(path, {"few": ["a", "b"], "many": [str(i) for i in range(99)], "numbers": [1, 2]}, {})
    with mmgguf.open(path) as f:
        lists = {key: value.tolist() for key, value in f.metadata.items()}
    assert lists == {"few": ["a", "b"], "many": [str(i) for i in range(99)], "numbers": [1, 2]}
    json.dumps(lists)
