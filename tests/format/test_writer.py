"""The writer: its bytes, what other readers make of them, and what a crash leaves."""

from __future__ import annotations

import mmap
import os
import signal
import stat
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import mmgguf
from mmgguf.errors import UnknownTypeError
from mmgguf.format import writer
from mmgguf.format.values import NUMBERS, TypedValue
from mmgguf.format.writer import TypedTensor, write
from mmgguf.types import LAYOUTS, GGMLType, ValueType

from ..support import ggml
from ..support.cases import BY_ID, CASES, Case, StoredTensor, random_tensor

V, G = ValueType, GGMLType


def write_case(path: Path, case: Case) -> None:
    tensors = {name: TypedTensor(t.blocks, t.type) for name, t in case.tensors.items()}
    write(path, case.metadata, tensors, alignment=case.alignment, byte_order=case.byte_order)


def cases_read_by(peer: str) -> Any:
    return pytest.mark.parametrize("case", [c for c in CASES if peer in c.peers], ids=lambda c: c.id)


# ---------------------------------------------------------------- the bytes


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.id)
def test_the_bytes_are_those_of_the_table(case: Case, tmp_path: Path) -> None:
    write_case(tmp_path / "a.gguf", case)
    assert (tmp_path / "a.gguf").read_bytes() == case.encoded()
    assert os.listdir(tmp_path) == ["a.gguf"]


@cases_read_by("c")
def test_the_c_library_reads_it_back(case: Case, tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    write_case(path, case)

    def expected(typed: TypedValue) -> Any:
        if typed.type is V.STRING or typed.element_type is V.STRING:
            items = [typed.value] if typed.type is V.STRING else typed.value
            # C's accessors end a string at its first NUL.
            raw = [item.encode("utf-8", "surrogateescape").split(b"\0")[0] for item in items]
            return raw[0] if typed.type is V.STRING else raw
        return typed.value

    with ggml.open_gguf(path) as file:
        assert file is not None
        assert (file.version, file.alignment) == (3, case.alignment)
        # Without tensors C looks for no data section, and reports the end of the header.
        assert file.data_offset == (case.data_offset if case.tensors else len(case.header()))
        assert file.keys == [key.encode("utf-8", "surrogateescape") for key in case.metadata]
        for i, typed in enumerate(case.metadata.values()):
            assert file.value_type(i) == (typed.type, typed.element_type)
            value = file.value(i)
            assert (value.tolist() if isinstance(value, np.ndarray) else value) == expected(typed)
        assert file.tensors == {
            name.encode("utf-8", "surrogateescape"): (
                t.type,
                (*t.shape[::-1], 1, 1, 1, 1)[:4],
                case.offsets[name],
                len(t.raw),
            )
            for name, t in case.tensors.items()
        }


@cases_read_by("pip")
def test_pip_gguf_reads_it_back(case: Case, tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    path = tmp_path / "a.gguf"
    write_case(path, case)
    reader = gguf.GGUFReader(path)
    fields = {key: f for key, f in reader.fields.items() if not key.startswith("GGUF.")}
    assert list(fields) == list(case.metadata)
    for key, typed in case.metadata.items():
        field = fields[key]
        if typed.element_type is not None:
            assert field.parts[3][0] == typed.element_type
            assert len(field.data) == len(typed.value)
        assert int(field.types[0]) == typed.type
        if typed.type is V.STRING or typed.element_type is V.STRING:
            got = [field.parts[i].tobytes().decode("utf-8", "surrogateescape") for i in field.data]
            assert got == ([typed.value] if typed.type is V.STRING else typed.value)
        else:
            assert field.contents() == typed.value
    assert [t.name for t in reader.tensors] == list(case.tensors)
    for tensor in reader.tensors:
        expected = case.tensors[tensor.name]
        assert int(tensor.tensor_type) == expected.type
        assert tensor.shape.tolist() == list(expected.shape[::-1])
        assert tensor.data_offset == case.data_offset + case.offsets[tensor.name]
        if expected.type is not G.Q8_1:  # gguf takes its blocks for 40 bytes; C has 36
            assert tensor.data.tobytes() == expected.stored(case.byte_order)


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.id)
@pytest.mark.parametrize("storage", ["mmap", "read"])
def test_a_file_can_be_copied(case: Case, storage: Any, tmp_path: Path) -> None:
    """Through the reader and back, in both byte orders."""
    (tmp_path / "a.gguf").write_bytes(case.encoded())
    with mmgguf.open(tmp_path / "a.gguf", storage=storage) as file:
        for other in (case, case.swapped(), replace(case, byte_order="little")):
            write(
                tmp_path / "b.gguf",
                file.metadata,
                file,
                alignment=file.alignment,
                byte_order=other.byte_order,
            )
            assert (tmp_path / "b.gguf").read_bytes() == other.encoded()


_STRINGS = st.text(st.characters(exclude_categories=["Cs"])) | st.binary(max_size=20).map(
    lambda raw: raw.decode("utf-8", "surrogateescape")
)
_ELEMENTS: dict[ValueType, st.SearchStrategy[Any]] = {
    V.STRING: _STRINGS,
    V.BOOL: st.booleans(),
    V.FLOAT32: st.floats(width=32, allow_nan=False),
    V.FLOAT64: st.floats(allow_nan=False),
} | {
    type_: st.integers(int(np.iinfo(row.dtype).min), int(np.iinfo(row.dtype).max))
    for type_, row in NUMBERS.items()
    if row.dtype.kind in "iu"
}
_VALUES = st.sampled_from(list(_ELEMENTS)).flatmap(
    lambda type_: (
        _ELEMENTS[type_].map(lambda value: TypedValue(value, type_))
        | st.lists(_ELEMENTS[type_]).map(lambda values: TypedValue(values, V.ARRAY, type_))
    )
)
_NAMES = _STRINGS.filter(lambda name: "\0" not in name and 0 < len(name.encode("utf-8", "surrogateescape")) <= 64)
_TENSORS = st.builds(
    random_tensor, st.sampled_from(GGMLType), st.lists(st.integers(0, 3), min_size=1, max_size=4).map(tuple)
)


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    # hypothesis tries the strings of the program: of keys that describe the layout not every value can be written.
    metadata=st.dictionaries(
        _NAMES.filter(lambda key: not key.startswith(("split.", "general."))), _VALUES, max_size=4
    ),
    tensors=st.dictionaries(_NAMES, _TENSORS, max_size=4),
    alignment=st.sampled_from([8, 32, 256]),
    byte_order=st.sampled_from(["little", "big"]),
)
def test_whatever_is_written_is_read_back(
    metadata: dict[str, TypedValue],
    tensors: dict[str, StoredTensor],
    alignment: int,
    byte_order: Any,
    tmp_path: Path,
) -> None:
    typed = {name: TypedTensor(tensor.blocks, tensor.type) for name, tensor in tensors.items()}
    write(tmp_path / "a.gguf", metadata, typed, alignment=alignment, byte_order=byte_order)
    with mmgguf.open(tmp_path / "a.gguf") as file:
        extra = [] if alignment == 32 else ["general.alignment"]
        assert list(file.metadata) == [*metadata, *extra]
        assert (file.alignment, file.byte_order) == (alignment, byte_order)
        for key, expected in metadata.items():
            got = file.metadata.typed(key)
            value = got.value if got.element_type is None else list(got.value)
            assert (value, got.type, got.element_type) == (expected.value, expected.type, expected.element_type)
        assert list(file) == list(tensors)
        for name, tensor in tensors.items():
            assert (file[name].type, file[name].shape) == (tensor.type, tensor.shape)
            assert file[name].data.tobytes() == tensor.stored(byte_order)


class FileMetadata(Mapping[str, Any]):
    """As the metadata of an opened file: plain values, and `typed` for the stored types."""

    def __init__(self, pairs: dict[str, TypedValue]) -> None:
        self.pairs = pairs

    def __getitem__(self, key: str) -> Any:
        return self.pairs[key].value

    def __iter__(self) -> Iterator[str]:
        return iter(self.pairs)

    def __len__(self) -> int:
        return len(self.pairs)

    def typed(self, key: str) -> TypedValue:
        return self.pairs[key]


def test_the_metadata_of_a_file_keeps_its_types(tmp_path: Path) -> None:
    for case in (BY_ID["scalars"], BY_ID["empty-arrays"]):
        write(tmp_path / "a.gguf", FileMetadata(case.metadata), {})
        assert (tmp_path / "a.gguf").read_bytes() == case.encoded()


# ---------------------------------------------------------------- sources of tensor data


@dataclass
class FileTensor:
    """As a tensor of an opened file."""

    type: int
    shape: tuple[int, ...]
    data: np.ndarray[Any, Any]

    @property
    def ne(self) -> tuple[int, ...]:
        return self.shape[::-1]


def spread(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The same values, every second element of a larger array along each axis, with junk between."""
    wide = np.full([2 * n for n in array.shape], 0xAA, np.uint8).astype(array.dtype)
    view = wide[tuple(slice(None, None, 2) for _ in array.shape)]
    view[...] = array
    return view


def big(type_: GGMLType, array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return array.byteswap().view(LAYOUTS[type_].stored("big"))


PLAIN = random_tensor(G.F32, (4, 6)).blocks
BLOCKS = random_tensor(G.Q4_0, (4, 3)).blocks
RAW = BLOCKS.view(np.uint8)


@pytest.mark.parametrize("byte_order", ["little", "big"])
@pytest.mark.parametrize(
    ("value", "type_", "shape", "blocks"),
    [
        (PLAIN, G.F32, (4, 6), PLAIN),
        (big(G.F32, PLAIN), G.F32, (4, 6), PLAIN),
        (np.asfortranarray(PLAIN), G.F32, (4, 6), PLAIN),
        (PLAIN.T, G.F32, (6, 4), PLAIN.T),
        (PLAIN[::-1, ::2], G.F32, (4, 3), PLAIN[::-1, ::2]),
        (np.broadcast_to(PLAIN[0], (5, 6)), G.F32, (5, 6), np.broadcast_to(PLAIN[0], (5, 6))),
        (np.float32(2), G.F32, (), np.array(2, "f4")),
        ([[1.0, 2.0]], G.F64, (1, 2), np.array([[1.0, 2.0]])),
        (np.arange(3, dtype="q"), G.I64, (3,), np.arange(3)),
        (np.arange(3).astype(ml_dtypes.bfloat16), G.BF16, (3,), np.arange(3).astype(ml_dtypes.bfloat16)),
        (TypedTensor(PLAIN, G.F32), G.F32, (4, 6), PLAIN),
        (TypedTensor(PLAIN.reshape(-1), G.F32, (2, 3, 4)), G.F32, (2, 3, 4), PLAIN),
        (TypedTensor(PLAIN.view(np.uint8), G.F32), G.F32, (4, 6), PLAIN),
        (random_tensor(G.Q4_K, (2, 1)).blocks, G.Q4_K, (2, 256), random_tensor(G.Q4_K, (2, 1)).blocks),
        (TypedTensor(BLOCKS, G.IQ4_NL), G.IQ4_NL, (4, 96), BLOCKS),
        (TypedTensor(BLOCKS, G.Q4_0, (4, 96)), G.Q4_0, (4, 96), BLOCKS),
        (TypedTensor(BLOCKS, G.Q1_0), G.Q1_0, (4, 384), BLOCKS),
        (TypedTensor(big(G.Q4_0, BLOCKS), G.Q4_0), G.Q4_0, (4, 96), BLOCKS),
        (TypedTensor(spread(BLOCKS), G.Q4_0), G.Q4_0, (4, 96), BLOCKS),
        (TypedTensor(RAW, G.Q4_0), G.Q4_0, (4, 96), BLOCKS),
        (TypedTensor(RAW[::2], G.Q4_0), G.Q4_0, (2, 96), BLOCKS[::2]),
        (TypedTensor(spread(RAW), G.Q4_0), G.Q4_0, (4, 96), BLOCKS),
        (TypedTensor(RAW.reshape(-1), G.Q4_0, (2, 2, 96)), G.Q4_0, (2, 2, 96), BLOCKS),
        (TypedTensor(lambda: BLOCKS, G.Q4_0, (4, 96)), G.Q4_0, (4, 96), BLOCKS),
        (TypedTensor(lambda: RAW, G.Q4_0, (4, 96)), G.Q4_0, (4, 96), BLOCKS),
        (TypedTensor(lambda: [1.0, 2.0], G.F64, (2,)), G.F64, (2,), np.array([1.0, 2.0])),
        (FileTensor(2, (4, 96), BLOCKS), G.Q4_0, (4, 96), BLOCKS),
        (FileTensor(G.Q4_0, (4, 96), big(G.Q4_0, BLOCKS)), G.Q4_0, (4, 96), BLOCKS),
    ],
)
def test_sources(
    value: Any,
    type_: GGMLType,
    shape: tuple[int, ...],
    blocks: np.ndarray[Any, Any],
    byte_order: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if byte_order == "big":
        monkeypatch.setattr(writer, "CHUNK_SIZE", 40)  # several chunks, some of a single block
    plain = np.ascontiguousarray(blocks)
    raw = (plain.byteswap() if byte_order == "big" else plain).tobytes()
    write(tmp_path / "a.gguf", {}, {"w": value}, byte_order=byte_order)
    content = (tmp_path / "a.gguf").read_bytes()
    order = "<" if byte_order == "little" else ">"
    ne = np.array(shape[::-1], order + "u8").tobytes()
    head = content.index(b"w") + 1
    assert content[head : head + 4] == np.array(len(shape), order + "u4").tobytes()
    assert content[head + 4 : head + 4 + len(ne)] == ne
    assert content[head + 4 + len(ne) :][:4] == np.array(type_, order + "u4").tobytes()
    start = -(-(head + 4 + len(ne) + 12) // 32) * 32
    assert content[start : start + len(raw)] == raw


@pytest.mark.parametrize("type_", G, ids=lambda t: t.name)
def test_another_byte_order_keeps_every_bit(type_: GGMLType, tmp_path: Path) -> None:
    """Little-endian blocks into a big-endian file and back; not-a-numbers are not touched either."""
    blocks = random_tensor(type_, (64, 2)).blocks
    size = blocks.nbytes
    write(tmp_path / "big.gguf", {}, {"w": TypedTensor(blocks, type_)}, byte_order="big")
    swapped = np.frombuffer((tmp_path / "big.gguf").read_bytes()[-(size + -size % 32) :][:size], "u1")
    there = swapped.view(LAYOUTS[type_].stored("big")).reshape(blocks.shape)
    assert there.byteswap().tobytes() == blocks.tobytes()
    write(tmp_path / "little.gguf", {}, {"w": TypedTensor(there, type_)})
    assert (tmp_path / "little.gguf").read_bytes()[-(size + -size % 32) :][:size] == blocks.tobytes()


def test_numbers_of_numpy_do_for_an_alignment(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    tensors = {"v": np.zeros(99, "f4"), "w": np.ones(3, "f4")}
    write(path, {}, tensors, alignment=64)
    expected = path.read_bytes()
    write(path, {}, tensors, alignment=np.uint8(64))  # type: ignore[arg-type]
    assert path.read_bytes() == expected


# ---------------------------------------------------------------- what is refused

F32 = np.zeros(4, "f4")


def metadata(**pairs: Any) -> dict[str, Any]:
    return {"metadata": pairs}


def tensor(value: Any) -> dict[str, Any]:
    return {"tensors": {"w": value}}


def fails() -> Any:
    raise KeyError("the source broke")


REFUSED: dict[str, tuple[dict[str, Any], type[BaseException], str]] = {
    "none": (metadata(k=None), TypeError, "metadata 'k': GGUF has no value type for NoneType"),
    "dict": (metadata(k={}), TypeError, "no value type for dict"),
    "complex": (metadata(k=1j), TypeError, "no value type for complex"),
    "half": (metadata(k=np.float16(1)), TypeError, "no value type for float16"),
    "long double": (metadata(k=np.longdouble(1)), TypeError, "no value type for longdouble"),
    "complex array": (metadata(k=np.zeros(1, "c8")), TypeError, "arrays of complex64"),
    "matrix": (metadata(k=np.zeros((1, 2))), ValueError, r"one dimension, got shape \(1, 2\)"),
    "big int": (metadata(k=1 << 64), ValueError, "no integer type of 64 bits holds 18446744073709551616"),
    "wide ints": (metadata(k=[-1, 1 << 63]), ValueError, "no integer type of 64 bits holds -1"),
    "big float": (metadata(k=1e300), ValueError, r"1e\+300 is out of FLOAT32's range"),
    "empty list": (metadata(k=[]), ValueError, "an empty sequence has no element type"),
    "nested": (metadata(k=[[1]]), TypeError, "nested arrays"),
    "nested numpy": (metadata(k=[np.zeros(1)]), TypeError, "nested arrays"),
    "mixed": (metadata(k=[1, "a"]), TypeError, "share one type, got int, str"),
    "bool and int": (metadata(k=[True, 1]), TypeError, "share one type, got bool, int"),
    "surrogate": (metadata(k="\ud800"), ValueError, "has no UTF-8 form"),
    "u8 range": (metadata(k=TypedValue(256, V.UINT8)), ValueError, "256 is out of UINT8's range"),
    "u8 array range": (
        metadata(k=TypedValue([1, 256], V.ARRAY, V.UINT8)),
        ValueError,
        "one of 2 values is out of UINT8's range",
    ),
    "u8 numpy range": (
        metadata(k=TypedValue(np.array([1, -1]), V.ARRAY, V.UINT8)),
        ValueError,
        "-1 is out of UINT8's range",
    ),
    "f32 numpy range": (
        metadata(k=TypedValue(np.array([1e300]), V.ARRAY, V.FLOAT32)),
        ValueError,
        "out of FLOAT32's range",
    ),
    "float for int": (metadata(k=TypedValue(1.5, V.INT32)), TypeError, "INT32 does not take 1.5"),
    "floats for ints": (
        metadata(k=TypedValue(np.zeros(1), V.ARRAY, V.INT32)),
        TypeError,
        "INT32 does not take an array of float64",
    ),
    "str for float": (metadata(k=TypedValue("1", V.FLOAT32)), TypeError, "FLOAT32 does not take '1'"),
    "bool for int": (metadata(k=TypedValue(True, V.INT32)), TypeError, "INT32 does not take bool"),
    "int for bool": (metadata(k=TypedValue(1, V.BOOL)), TypeError, "BOOL does not take int"),
    "int for str": (metadata(k=TypedValue(1, V.STRING)), TypeError, "STRING takes str or bytes, got int"),
    "str for array": (
        metadata(k=TypedValue("ab", V.ARRAY, V.STRING)),
        TypeError,
        "ARRAY takes a sequence, got str",
    ),
    "empty key": ({"metadata": {"": 1}}, ValueError, "metadata key: is empty"),
    "nul key": ({"metadata": {"a\0": 1}}, ValueError, "holds a NUL"),
    "long key": ({"metadata": {"k" * 65536: 1}}, ValueError, "65536 bytes, the specification's limit"),
    "int key": ({"metadata": {1: 1}}, TypeError, "metadata key: expected str, got int"),
    "surrogate key": ({"metadata": {"\ud800": 1}}, ValueError, "has no UTF-8 form"),
    "same bytes": ({"metadata": {"é": 1, "\udcc3\udca9": 1}}, ValueError, "its bytes occur twice"),
    "alignment 0": ({"alignment": 0}, ValueError, "power of two from 8 to 2.31, got 0"),
    "alignment 4": ({"alignment": 4}, ValueError, "got 4"),
    "alignment 48": ({"alignment": 48}, ValueError, "got 48"),
    "alignment 2^32": ({"alignment": 1 << 32}, ValueError, "got 4294967296"),
    "alignment float": ({"alignment": 32.0}, ValueError, "got 32.0"),
    "other alignment": (
        {"metadata": {"general.alignment": 64}, "alignment": 32},
        ValueError,
        "UINT32 64 contradicts the argument alignment=32",
    ),
    "stated alignment": (
        {"metadata": {"general.alignment": 48}},
        ValueError,
        "power of two from 8 to 2.31, got 48",
    ),
    "ragged": (tensor([[1, 2], [3]]), ValueError, "w: .*inhomogeneous"),
    "wide alignment": (
        {"metadata": {"general.alignment": np.uint64(32)}},
        ValueError,
        "must be UINT32",
    ),
    "byte order": ({"byte_order": "middle"}, ValueError, "'little' or 'big', got 'middle'"),
    "empty name": ({"tensors": {"": F32}}, ValueError, "tensor name: is empty"),
    "nul name": ({"tensors": {"a\0b": F32}}, ValueError, "holds a NUL"),
    "long name": ({"tensors": {"n" * 65: F32}}, ValueError, r"65 bytes, .* is 64"),
    "same name bytes": ({"tensors": {"é": F32, "\udcc3\udca9": F32}}, ValueError, "occur twice"),
    "uint8": (tensor(np.zeros(3, "u1")), TypeError, "w: no ggml type has dtype uint8; .* raw bytes"),
    "bool": (tensor(np.zeros(3, "?")), TypeError, "no ggml type has dtype bool"),
    "complex tensor": (tensor(np.zeros(3, "c8")), TypeError, "no ggml type has dtype complex64"),
    "object": (tensor([None]), TypeError, "no ggml type has dtype object"),
    "ambiguous": (tensor(BLOCKS), TypeError, "Q4_0, IQ4_NL, Q1_0, Q2_0 have the same blocks"),
    "wrong blocks": (tensor(TypedTensor(BLOCKS, G.Q8_0)), TypeError, "Q8_0 takes .* or raw uint8"),
    "wrong dtype": (tensor(TypedTensor(np.zeros(3), G.F32)), TypeError, "F32 takes float32 or raw uint8"),
    "no dimensions": (tensor(TypedTensor(BLOCKS[0, 0], G.Q4_0)), ValueError, "single block without"),
    "raw length": (tensor(TypedTensor(RAW[:, :20], G.Q4_0)), ValueError, r"shape \(4, 20\) is not a whole"),
    "raw scalar": (tensor(TypedTensor(np.uint8(1), G.I8)), ValueError, "not a whole number"),
    "row": (
        tensor(TypedTensor(lambda: BLOCKS, G.Q4_0, (4, 100))),
        ValueError,
        "w: row of 100 elements is not a multiple of Q4_0's block size 32",
    ),
    "scalar row": (tensor(TypedTensor(lambda: BLOCKS, G.Q4_0, ())), ValueError, "row of 1 elements"),
    "shape": (
        tensor(TypedTensor(PLAIN, G.F32, (6, 4))),
        ValueError,
        r"shape \(6, 4\) is \(6, 4\) elements, the data has \(4, 6\)",
    ),
    "block shape": (
        tensor(TypedTensor(BLOCKS, G.Q4_0, (3, 96))),
        ValueError,
        r"shape \(3, 96\) is \(3, 3\) blocks of 32, the data has \(4, 3\)",
    ),
    "negative": (tensor(TypedTensor(fails, G.F32, (-1, 3))), ValueError, "negative"),
    "float": (tensor(TypedTensor(F32, G.F32, (2, 2.0))), TypeError, r"w: .* integers, got \(2, 2\.0\)"),  # type: ignore[arg-type]
    "no tuple": (tensor(TypedTensor(F32, G.F32, 4)), TypeError, "w: .* integers, got 4"),  # type: ignore[arg-type]
    "huge": (tensor(TypedTensor(fails, G.F32, (1 << 62, 2))), ValueError, "more than 63 bits"),
    "five dimensions": (tensor(np.zeros((1,) * 5, "f4")), ValueError, "5 dimensions, ggml's limit is 4"),
    "lazy without shape": (tensor(TypedTensor(fails, G.F32)), ValueError, "needs a shape"),
    "unknown type": (
        tensor(TypedTensor(fails, 99, (1,))),  # type: ignore[arg-type]
        UnknownTypeError,
        "ggml type 99 is unknown",
    ),
    "unknown stored": (tensor(FileTensor(31, (1,), F32)), UnknownTypeError, "ggml type 31 is unknown"),
}
#: These only show when the data is made, with the temporary file half written.
REFUSED_LATE: dict[str, tuple[dict[str, Any], type[BaseException], str]] = {
    "source fails": (tensor(TypedTensor(fails, G.F32, (4,))), KeyError, "the source broke"),
    "source of another shape": (
        tensor(TypedTensor(lambda: np.zeros((2, 3), "f4"), G.F32, (3, 2))),
        ValueError,
        r"the data has \(2, 3\)",
    ),
    "source of another size": (
        tensor(TypedTensor(lambda: np.zeros(5, "f4"), G.F32, (3, 2))),
        ValueError,
        r"the data has \(5,\)",
    ),
    "source of another dtype": (
        tensor(TypedTensor(lambda: np.zeros(6), G.F32, (3, 2))),
        TypeError,
        "F32 takes float32 or raw uint8, got float64",
    ),
}


@pytest.mark.parametrize("name", [*REFUSED, *REFUSED_LATE])
def test_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments, error, message = {**REFUSED, **REFUSED_LATE}[name]
    path = tmp_path / "a.gguf"
    path.write_bytes(b"the old file")
    if name in REFUSED:
        monkeypatch.setattr(writer, "replacing", lambda *_: pytest.fail("a file was made"))
    with pytest.raises(error, match=message):
        write(path, **{"metadata": {}, "tensors": {}, **arguments})
    assert path.read_bytes() == b"the old file"
    assert os.listdir(tmp_path) == ["a.gguf"]


# ---------------------------------------------------------------- the file


def test_other_permissions_and_links(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write(tmp_path / "new.gguf", {}, {})
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "new.gguf").stat().st_mode) == 0o640
    (tmp_path / "new.gguf").chmod(0o604)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "link.gguf").symlink_to("../new.gguf")
    write(tmp_path / "folder" / "link.gguf", {"k": 1}, {})
    assert (tmp_path / "folder" / "link.gguf").is_symlink()
    assert b"k" in (tmp_path / "new.gguf").read_bytes()
    assert stat.S_IMODE((tmp_path / "new.gguf").stat().st_mode) == 0o604
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["folder", "link.gguf", "new.gguf"]


def _folder(path: Path) -> Path:
    path.mkdir()
    return path


def _fifo(path: Path) -> Path:
    os.mkfifo(path)
    return path


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (_folder, IsADirectoryError),
        (_fifo, OSError),
        (lambda path: path / "a.gguf", FileNotFoundError),
    ],
    ids=["folder", "fifo", "missing folder"],
)
def test_targets_that_cannot_be_replaced(make: Callable[[Path], Path], error: type[OSError], tmp_path: Path) -> None:
    path = make(tmp_path / "target")
    with pytest.raises(error) as caught:
        write(path, {}, {})
    assert str(path) in str(caught.value)
    assert len(os.listdir(tmp_path)) == path.exists()


def test_a_mapped_file_is_never_changed(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    write(path, {}, {"w": np.ones(5000, "f4")})
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        before = bytes(mapped)
        write(path, {"k": 1}, {"w": np.zeros(5, "f4")})
        assert bytes(mapped) == before
    assert len(path.read_bytes()) < len(before)


def test_a_file_can_be_rewritten_from_its_own_map(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    write(path, {}, {"w": np.arange(5000, dtype="f4")})
    old = np.memmap(path, "f4", "r", path.stat().st_size - 20_000, 5000)
    write(path, {}, {"v": old[::-1], "w": old})
    assert path.read_bytes()[-20_000:] == np.arange(5000, dtype="f4").tobytes()


def test_synced_before_and_after_the_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []
    fsync, replace = os.fsync, os.replace

    def spy_fsync(descriptor: int) -> None:
        folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        size = os.fstat(descriptor).st_size
        log.append("folder" if folder else f"file of {size}")
        fsync(descriptor)

    def spy_replace(source: str, target: str) -> None:
        assert os.path.dirname(source) == os.path.dirname(target)
        log.append("rename")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", spy_fsync)
    monkeypatch.setattr(os, "replace", spy_replace)
    write(tmp_path / "a.gguf", {}, {"w": F32})
    assert log == ["file of 96", "rename", "folder"]


KILLED = """
import os, signal, sys
import numpy as np
from mmgguf.types import GGMLType
from mmgguf.format.writer import TypedTensor, write

def die():
    os.kill(os.getpid(), signal.SIGKILL)

write(sys.argv[1], {}, {
    "first": np.zeros(1 << 20, "f4"),
    "second": TypedTensor(die, GGMLType.F32, (1 << 20,)),
})
"""


def test_a_killed_process_leaves_no_half_file(tmp_path: Path) -> None:
    for old in (None, b"the old file"):
        path = tmp_path / f"{old is None}.gguf"
        if old is not None:
            path.write_bytes(old)
        done = subprocess.run([sys.executable, "-c", KILLED, str(path)], check=False)
        assert done.returncode == -signal.SIGKILL
        assert (path.read_bytes() if path.exists() else None) == old


@pytest.mark.parametrize("byte_order", ["little", "big"])
def test_memory_does_not_grow_with_the_tensors(byte_order: Any, tmp_path: Path) -> None:
    each = 16 << 20
    plain = np.zeros((1 << 10, 1 << 12), "f4")
    tensors: dict[str, Any] = {
        f"lazy.{i}": TypedTensor(lambda: np.empty(each, "u1"), G.F32, (1, each // 4)) for i in range(4)
    }
    tensors |= {"plain": plain, "transposed": plain.T, "wide": np.broadcast_to(F32[:1], (1, 1, 1 << 22))}
    tracemalloc.start()
    try:
        write(tmp_path / "a.gguf", {}, tensors, byte_order=byte_order)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (tmp_path / "a.gguf").stat().st_size > len(tensors) * each
    # One lazy tensor at a time, one chunk, and the chunk before it that is still being let go.
    assert peak < each + 2 * writer.CHUNK_SIZE + (1 << 20)


def test_a_copy_keeps_the_alignment(tmp_path: Path) -> None:
    write(tmp_path / "a.gguf", {}, {"v": np.zeros(3, "f4"), "w": np.zeros(3, "f4")}, alignment=128)
    with mmgguf.open(tmp_path / "a.gguf") as file:
        write(tmp_path / "b.gguf", file.metadata, file)
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


def test_a_path_of_bytes(tmp_path: Path) -> None:
    write(os.fsencode(tmp_path / "a.gguf"), {"k": 1}, {})
    with mmgguf.open(tmp_path / "a.gguf") as file:
        assert file.metadata["k"] == 1
