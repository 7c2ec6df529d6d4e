"""mmgguf.compat next to pip's gguf: the same attributes, values, effects and failures."""

from __future__ import annotations

import copy
import io
import json
import os
import pickle
import struct
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import gguf.quants
import numpy as np
import pytest

import mmgguf
from mmgguf import GGMLType, GGUFError
from mmgguf.compat import GGUFReader, ReaderField, ReaderTensor, dequantize, install, uninstall
from mmgguf.errors import ClosedError, DuplicateKeyError, TruncatedError, UnknownTypeError
from mmgguf.format.values import TypedValue
from mmgguf.types import ValueType

from ..support import hostile_cases
from ..support.cases import BY_ID, CASES, Case, StoredTensor, array, random_tensor

#: pip's own, whatever the tests install.
PipReader, PipField, PipTensor = gguf.GGUFReader, gguf.ReaderField, gguf.ReaderTensor
pip_dequantize = gguf.dequantize


def outcome(function: Any, *arguments: Any) -> Any:
    """What a call gives, or the class of what it raises; as text, so that NaNs and types count."""
    try:
        return repr(function(*arguments))
    except Exception as error:
        return type(error)


def address(part: np.ndarray[Any, Any]) -> int:
    return int(part.__array_interface__["data"][0])


def assert_same_array(ours: Any, theirs: Any, base: int, their_base: int) -> None:
    assert ours.dtype == theirs.dtype
    assert ours.shape == theirs.shape
    assert ours.tobytes() == theirs.tobytes()
    assert ours.flags.writeable == theirs.flags.writeable
    if ours.size:
        assert address(ours) - base == address(theirs) - their_base


def assert_same_field(ours: Any, theirs: Any, base: int, their_base: int) -> None:
    assert (ours.offset, ours.name, ours.types) == (theirs.offset, theirs.name, theirs.types)
    assert [type(t) for t in ours.types] == [type(t) for t in theirs.types]
    assert len(ours.data) == len(theirs.data)
    assert ours.data == theirs.data
    assert list(ours.data) == theirs.data
    assert len(ours.parts) == len(theirs.parts)
    # Each one of a vocabulary would take seconds; contents() compares all values.
    for i in range(0, len(theirs.parts), 1 if len(theirs.parts) < 3000 else 101):
        assert_same_array(ours.parts[i], theirs.parts[i], base, their_base)
    for index in (0, -1, len(theirs.data) // 2, slice(None), slice(6), slice(-3, None), slice(None, None, -2)):
        assert outcome(ours.contents, index) == outcome(theirs.contents, index)
    assert outcome(ours.contents) == outcome(theirs.contents)


def assert_same_reader(ours: GGUFReader, theirs: Any) -> None:
    base, their_base = address(ours.data), address(theirs.data)
    assert (type(ours.data), ours.data.shape) == (type(theirs.data), theirs.data.shape)
    for name in ("byte_order", "endianess", "alignment", "data_offset", "gguf_scalar_to_np"):
        assert getattr(ours, name) == getattr(theirs, name), name
    assert list(ours.fields) == list(theirs.fields)
    assert type(ours.fields) is type(theirs.fields)
    for key, field in ours.fields.items():
        assert_same_field(field, theirs.fields[key], base, their_base)
        assert ours.get_field(key) is field
    assert ours.get_field("no.such.key") is theirs.get_field("no.such.key") is None
    assert len(ours.tensors) == len(theirs.tensors)
    for i, (tensor, their_tensor) in enumerate(zip(ours.tensors, theirs.tensors, strict=True)):
        for name in ("name", "tensor_type", "n_elements", "n_bytes", "data_offset"):
            assert getattr(tensor, name) == getattr(their_tensor, name), (tensor.name, name)
            assert type(getattr(tensor, name)) is type(getattr(their_tensor, name)), (tensor.name, name)
        assert_same_array(tensor.shape, their_tensor.shape, base, their_base)
        assert_same_array(tensor.data, their_tensor.data, base, their_base)
        assert_same_field(tensor.field, their_tensor.field, base, their_base)
        assert ours.get_tensor(i) is tensor


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.gguf"


@pytest.fixture(params=["r", "r+", "c"])
def mode(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture
def installed() -> Iterator[None]:
    install()
    yield
    uninstall()


# The same as pip's reader.


def without_q8_1(case: Case) -> Case:
    """gguf 0.19 takes a block of Q8_1 for 40 bytes; it has 36 in ggml,."""
    return replace(case, tensors={k: t for k, t in case.tensors.items() if t.type is not GGMLType.Q8_1})


@pytest.mark.parametrize("case", [case for case in CASES if "pip" in case.peers], ids=lambda case: case.id)
def test_generated_files(case: Case, path: Path) -> None:
    path.write_bytes(without_q8_1(case).encoded())
    assert_same_reader(GGUFReader(path), PipReader(path))


def test_modes(path: Path, mode: Any) -> None:
    path.write_bytes(without_q8_1(BY_ID["all-types"]).encoded(version=2))
    assert_same_reader(GGUFReader(path, mode), PipReader(path, mode))


def test_real_model(smollm2: Path) -> None:
    assert_same_reader(GGUFReader(smollm2), PipReader(smollm2))


def test_real_vocabularies(vocabularies: list[Path], path: Path) -> None:
    for vocabulary in vocabularies:
        with mmgguf.open(vocabulary) as file:
            # pip's reader takes 10 to 20 seconds for a whole one: it gets every 25th element.
            thinned = {key: file.metadata.typed(key) for key in file.metadata}
            for key, typed in thinned.items():
                if typed.type is ValueType.ARRAY:
                    thinned[key] = replace(typed, value=typed.value[::25])
            fields = GGUFReader(vocabulary).fields
            assert {key: fields[key].contents() for key in file.metadata} == file.metadata.to_dict(None)
        mmgguf.write(path, thinned, {})
        assert_same_reader(GGUFReader(path), PipReader(path))


def test_file_objects(path: Path) -> None:
    path.write_bytes(BY_ID["dimensions"].encoded())
    with path.open("rb") as file:
        assert_same_reader(GGUFReader(file), PipReader(file))  # type: ignore[arg-type]


CHANGES = [
    ("number.uint32.0", lambda field: field.data[0], 7),
    ("number.float64.0", lambda field: field.data[0], -2.5),
    ("array.int16", lambda field: field.data[2], -300),
    ("array.string", lambda field: field.data[1], ord("J")),
]


@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize(("key", "part", "value"), CHANGES, ids=[change[0] for change in CHANGES])
def test_writing_to_a_part_writes_to_the_file(path: Path, key: str, part: Any, value: Any, big: bool) -> None:
    case = Case("both", {**BY_ID["scalars"].metadata, **BY_ID["arrays"].metadata})
    raw = (case.swapped() if big else case).encoded()
    written = []
    for reader in (GGUFReader, PipReader):
        path.write_bytes(raw)
        field = reader(path, "r+").fields[key]
        field.parts[part(field)][0] = value
        written.append(path.read_bytes())
        if key.startswith("number"):
            assert reader(path).fields[key].contents() == field.contents() == value
    assert written[0] == written[1] != raw


def test_copy_on_write_leaves_the_file_alone(path: Path) -> None:
    path.write_bytes(raw := BY_ID["dimensions"].encoded())
    reader = GGUFReader(path, "c")
    reader.tensors[0].data[:] = 9
    assert reader.tensors[0].data.tolist() == [9.0] * 5
    assert path.read_bytes() == raw


# Sequences that stand for lists.


@pytest.mark.parametrize("key", ["array.string", "array.int32"])
def test_lazy_sequences_behave_like_lists(path: Path, key: str) -> None:
    path.write_bytes(BY_ID["arrays"].encoded())
    field, their_field = GGUFReader(path).fields[key], PipReader(path).fields[key]
    for ours, theirs in ((field.data, their_field.data), (field.parts, their_field.parts)):
        n = len(theirs)
        for index in (0, 1, n - 1, -1, -n, np.int64(2), True):
            assert np.array_equal(ours[index], theirs[index])
        for index in (n, -n - 1, 10**9):
            with pytest.raises(IndexError):
                ours[index]
        for cut in (slice(None), slice(2, 9, 3), slice(None, None, -1), slice(-4, None), slice(5, 5)):
            assert isinstance(ours[cut], list)
            assert list(map(repr, ours[cut])) == [repr(np.asarray(p) if p is not int else p) for p in theirs[cut]] or (
                ours[cut] == theirs[cut]
            )
        with pytest.raises(TypeError):
            ours["0"]
        assert ours == ours[:]
        assert ours != ours[:-1]
        assert ours != [*ours[:-1], 0]
        assert ours != "text"
        assert len(ours + ours[:2]) == len(ours[:2] + ours) == n + 2
        assert bool(ours) is True
        assert repr(ours).startswith("[")
    assert field.data.index(field.data[3]) == 3
    assert (field.data[3] in field.data, 0 in field.data) == (True, False)


def test_parts_are_views_made_on_access(path: Path) -> None:
    path.write_bytes(BY_ID["vocabulary"].encoded())
    parts = GGUFReader(path, "c").fields["tokenizer.ggml.tokens"].parts
    assert address(parts[6]) == address(parts[6])
    parts[8][0] = 0x21
    assert parts[8][0] == 0x21


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda field: pickle.loads(pickle.dumps(field))], ids=["copy", "pickle"]
)
def test_copies_hold_the_field_alone(path: Path, copied: Any) -> None:
    path.write_bytes(BY_ID["arrays"].encoded())
    for key in ("array.string", "array.int32"):
        field = GGUFReader(path).fields[key]
        other = copied(field)
        assert (type(other.parts), type(other.data)) == (list, list)
        assert (field.parts, field.data) == (other.parts, other.data)
        assert outcome(other.contents, slice(5)) == outcome(field.contents, slice(5))
    assert len(pickle.dumps(GGUFReader(path).fields["array.int32"].data)) < 100


def test_fields_put_together_by_hand() -> None:
    parts = [np.frombuffer(b"ab", np.uint8), np.frombuffer(b"c", np.uint8), np.array([1, 2], np.int32)]
    array_type, string, int32 = gguf.GGUFValueType.ARRAY, gguf.GGUFValueType.STRING, gguf.GGUFValueType.INT32
    for arguments in (
        (0, "strings", parts, [0, 1], [array_type, string]),
        (0, "numbers", parts, [2], [array_type, int32]),
        (0, "nothing"),
    ):
        ours, theirs = ReaderField(*arguments), PipField(*arguments)
        for index in (slice(None), 0, -1, slice(1)):
            assert outcome(ours.contents, index) == outcome(theirs.contents, index)


def test_a_field_with_fewer_data(path: Path) -> None:
    path.write_bytes(BY_ID["vocabulary"].encoded())
    ours, theirs = (r(path).fields["tokenizer.ggml.tokens"] for r in (GGUFReader, PipReader))
    assert ours._replace(data=ours.data[5:8]).contents() == theirs._replace(data=theirs.data[5:8]).contents()
    assert len(ours._replace(data=ours.data[5:8]).contents()) == 3


# Failures.


def pair(key: str) -> bytes:
    return struct.pack("<Q", len(key)) + key.encode() + struct.pack("<II", ValueType.UINT32, 1)


def head(tensors: int, pairs: int) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, tensors, pairs)


@pytest.mark.parametrize(
    ("raw", "error"),
    [
        (b"GGUX" + bytes(40), ValueError),
        (b"GGUF" + struct.pack("<IQQ", 9, 0, 0) + bytes(40), ValueError),
        (head(0, 2) + pair("a") + pair("a"), KeyError),
        (head(0, 1) + pair("GGUF.version"), KeyError),
        (head(0, 1) + struct.pack("<Q1sII", 1, b"a", 13, 0), ValueError),
        (Case("a", {"general.alignment": TypedValue(24, ValueType.UINT32)}).encoded(), ValueError),
        (Case("a", {"general.alignment": TypedValue(32, ValueType.UINT64)}).encoded(), ValueError),
        (BY_ID["dimensions"].encoded()[:-64], ValueError),
    ],
    ids=[
        "magic",
        "version",
        "duplicate-key",
        "pseudo-key",
        "value-type",
        "alignment",
        "alignment-type",
        "truncated",
    ],
)
def test_what_both_refuse(path: Path, raw: bytes, error: type[Exception]) -> None:
    path.write_bytes(raw)
    for reader in (GGUFReader, PipReader):
        with pytest.raises(error):
            reader(path)


def with_offset(offset: int) -> bytes:
    """A file of two tensors, the second of which is said to begin at `offset`."""
    case = Case("two", {}, {"a": random_tensor(GGMLType.F32, (16,)), "b": random_tensor(GGMLType.F32, (4,))})
    info = b"b" + struct.pack("<IQI", 1, 4, GGMLType.F32)
    return case.encoded().replace(info + struct.pack("<Q", 64), info + struct.pack("<Q", offset))


@pytest.mark.parametrize(
    ("raw", "match"),
    [
        (with_offset(8), "not a multiple of the alignment 32"),
        (with_offset(32), "inside"),
        (head(0, 1) + struct.pack("<QIQ", 0, ValueType.UINT64, 1), "the key is empty"),
        (head(0, 1) + struct.pack("<Q1sIIQIQB", 1, b"k", 9, 9, 1, 0, 1, 5), "array of arrays"),
        (
            (head(1, 0) + struct.pack("<Q1sI9QIQ", 1, b"t", 9, *[1] * 8, 2, 0, 0)).ljust(160, b"\0") + bytes(8),
            "9 dimensions",
        ),
    ],
    ids=["misaligned", "overlap", "empty-key", "nested-array", "nine-dimensions"],
)
def test_what_only_pip_reads(path: Path, raw: bytes, match: str) -> None:
    path.write_bytes(raw)
    assert PipReader(path).fields
    with pytest.raises(mmgguf.errors.FormatError, match=match):
        GGUFReader(path)


def test_messages_name_the_file(path: Path) -> None:
    path.write_bytes(head(0, 2) + pair("a") + pair("a"))
    with pytest.raises(DuplicateKeyError, match=r"model\.gguf: metadata pair 1 at byte 41: the key a was"):
        GGUFReader(path)
    path.write_bytes(BY_ID["dimensions"].encoded()[:-64])
    with pytest.raises(TruncatedError, match=r"model\.gguf: .*download incomplete\?"):
        GGUFReader(path)


def test_missing_files_and_modes(tmp_path: Path) -> None:
    for reader in (GGUFReader, PipReader):
        with pytest.raises(FileNotFoundError):
            reader(tmp_path / "none.gguf")
        with pytest.raises(FileNotFoundError):
            reader(tmp_path / "none.gguf", "r+")
        with pytest.raises(IsADirectoryError):
            reader(tmp_path)
    with pytest.raises(ValueError, match="mode must be"):
        GGUFReader(tmp_path, "w+")  # type: ignore[arg-type]  # np.memmap would empty the file


# More than pip's reader.


@pytest.mark.parametrize(
    "examples",
    [pytest.param(lambda case=case: [case.encoded()], id=case.id) for case in CASES]
    + [pytest.param(row.examples, id=f"hostile-{row.id}") for row in hostile_cases.TABLE],
)
def test_parts_cover_the_header_without_a_gap(path: Path, examples: Any) -> None:
    """Of any file that is not refused, however odd."""
    for raw in examples():
        path.write_bytes(raw)
        try:
            header = mmgguf.read_header(io.BytesIO(raw))
        except GGUFError as error:
            with pytest.raises(type(error)):
                GGUFReader(path)
            continue
        reader = GGUFReader(path)
        fields = list(reader.fields.values())
        if all(isinstance(info.type, GGMLType) for info in header.tensors.values()):
            fields += [tensor.field for tensor in reader.tensors]
        else:
            with pytest.raises(UnknownTypeError):
                reader.tensors  # noqa: B018
            continue
        position = 4
        for field in fields:
            assert field.offset == position
            stored = b"".join(field.parts)
            assert raw[position : position + len(stored)] == stored
            position += len(stored)
        assert position == header.nbytes


def test_version_1(path: Path) -> None:
    case = BY_ID["vocabulary"]
    path.write_bytes(case.encoded())
    expected = {name: outcome(f.contents) for name, f in PipReader(path).fields.items() if "GGUF" not in name}
    path.write_bytes(case.encoded(version=1))
    with pytest.raises(ValueError, match="version 1 which we cannot handle"):
        PipReader(path)
    reader = GGUFReader(path)
    assert {name: outcome(reader.fields[name].contents) for name in expected} == expected
    assert reader.fields["GGUF.kv_count"].contents() == len(expected)
    tokens = reader.fields["tokenizer.ggml.tokens"]
    stored = b"".join(part.tobytes() for part in tokens.parts)
    assert path.read_bytes()[tokens.offset :].startswith(stored)
    end = reader.fields["tokenizer.ggml.scores"].offset
    assert tokens.offset + len(stored) == end


@pytest.mark.parametrize("case_id", ["undecodable-key", "undecodable-name", "newest-types"])
def test_files_that_only_we_read(path: Path, case_id: str) -> None:
    case = BY_ID[case_id]
    path.write_bytes(case.encoded())
    with pytest.raises(ValueError):  # noqa: PT011  # UnicodeDecodeError, or an enum without the member
        PipReader(path)
    reader = GGUFReader(path)
    assert list(reader.fields)[3:] == list(case.metadata)
    assert [(t.name, t.tensor_type, t.n_bytes) for t in reader.tensors] == [
        (name, tensor.type, len(tensor.raw)) for name, tensor in case.tensors.items()
    ]
    assert [t.data.tobytes() for t in reader.tensors] == [tensor.raw for tensor in case.tensors.values()]


def test_an_unknown_tensor_type_leaves_the_metadata_readable(path: Path) -> None:
    case = Case("x", {"k": TypedValue(1, ValueType.UINT8)}, {"t": random_tensor(GGMLType.F32, (1,))})
    info = b"t" + struct.pack("<IQ", 1, 1)
    raw = case.encoded().replace(info + struct.pack("<I", GGMLType.F32), info + struct.pack("<I", 99))
    path.write_bytes(raw)
    reader = GGUFReader(path)
    assert reader.fields["k"].contents() == 1
    with pytest.raises(UnknownTypeError, match="t: unknown ggml type 99"):
        reader.tensors  # noqa: B018


def test_context_manager(path: Path) -> None:
    path.write_bytes(BY_ID["dimensions"].encoded())
    with GGUFReader(path) as reader:
        data = reader.tensors[0].data
        expected = data.tobytes()
    assert data.tobytes() == expected
    for name in ("data", "fields", "tensors"):
        with pytest.raises(ClosedError, match="closed"):
            getattr(reader, name)
    reader.close()
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        reader.nonsense  # noqa: B018


# dequantize.

DEQUANTIZED_BY_PIP = sorted(gguf.quants._type_traits)


@pytest.mark.parametrize("type_", DEQUANTIZED_BY_PIP, ids=lambda type_: type_.name)
@pytest.mark.parametrize("shape", [(2,), (3, 2), (2, 1, 3), (2, 2, 2, 1)], ids=str)
def test_dequantize(type_: Any, shape: tuple[int, ...]) -> None:
    tensor = random_tensor(GGMLType(type_), shape)
    data = np.frombuffer(tensor.raw, np.uint8).reshape(*shape[:-1], -1)
    ours = dequantize(data, type_)
    with np.errstate(all="ignore"):
        theirs = pip_dequantize(data, type_)
    assert (ours.dtype, ours.shape, ours.flags.writeable) == (theirs.dtype, theirs.shape, True)
    np.testing.assert_array_equal(ours, theirs)
    with pytest.raises(ValueError):  # noqa: PT011  # each in its own words
        pip_dequantize(data[..., :-1], type_)
    with pytest.raises(ValueError, match="whole number"):
        dequantize(data[..., :-1], type_)


def test_dequantize_plain_types() -> None:
    f32, f16 = np.arange(6, dtype="f4").reshape(2, 3), np.arange(6, dtype="f2").reshape(2, 3)
    assert np.shares_memory(dequantize(f32, GGMLType.F32), f32)
    for data, type_ in ((f32, GGMLType.F32), (f16, GGMLType.F16), (f16.view("u1"), GGMLType.F16)):
        ours, theirs = dequantize(data, type_), pip_dequantize(data, gguf.GGMLQuantizationType(type_))
        assert (ours.dtype, ours.tolist()) == (theirs.dtype, theirs.tolist())
    for type_ in (GGMLType.I8, GGMLType.I32, GGMLType.F64):
        for function in (dequantize, pip_dequantize):
            with pytest.raises(NotImplementedError, match=f"^Dequantization for {type_.name} is not yet implemented$"):
                function(f32, gguf.GGMLQuantizationType(type_))
    with pytest.raises(NotImplementedError, match="for 99 is"):
        dequantize(f32, 99)


def test_dequantize_odd_arrays() -> None:
    tensor = random_tensor(GGMLType.Q8_0, (4, 3))
    data = np.frombuffer(tensor.raw, np.uint8).reshape(4, -1)
    expected = dequantize(data, GGMLType.Q8_0)
    assert expected.shape == tensor.shape
    for odd in (np.asfortranarray(data), data.view(np.int8), [*data]):
        np.testing.assert_array_equal(dequantize(odd, GGMLType.Q8_0), expected)
    np.testing.assert_array_equal(dequantize(data[::2], GGMLType.Q8_0), expected[::2])
    assert dequantize(data[:0], GGMLType.Q8_0).shape == (0, 96)


def test_dequantize_of_a_reader(path: Path) -> None:
    path.write_bytes(without_q8_1(BY_ID["all-types"]).encoded())
    for ours, theirs in zip(GGUFReader(path).tensors, PipReader(path).tensors, strict=True):
        if theirs.tensor_type in DEQUANTIZED_BY_PIP:
            with np.errstate(all="ignore"):
                expected = pip_dequantize(theirs.data, theirs.tensor_type)
            np.testing.assert_array_equal(dequantize(ours.data, ours.tensor_type), expected)


def test_dequantize_lazy_tensors_of_gguf(installed: None) -> None:
    data = np.frombuffer(random_tensor(GGMLType.Q8_0, (4, 3)).raw, np.uint8).reshape(4, -1)
    lazy = dequantize(gguf.LazyNumpyTensor.from_eager(data), gguf.GGMLQuantizationType.Q8_0)
    assert type(lazy) is gguf.LazyNumpyTensor
    np.testing.assert_array_equal(gguf.LazyNumpyTensor.to_eager(lazy), dequantize(data, GGMLType.Q8_0))


# install.


def test_install_and_uninstall() -> None:
    places = [
        (module, name)
        for module, names in (
            (gguf, ("GGUFReader", "ReaderField", "ReaderTensor", "dequantize")),
            (gguf.gguf_reader, ("GGUFReader", "ReaderField", "ReaderTensor")),
            (gguf.quants, ("dequantize",)),
        )
        for name in names
    ]
    ours = {"GGUFReader": GGUFReader, "ReaderField": ReaderField, "ReaderTensor": ReaderTensor}
    ours["dequantize"] = dequantize
    before = [getattr(*place) for place in places]
    uninstall()
    assert [getattr(*place) for place in places] == before
    try:
        for _ in range(2):
            install()
            assert [getattr(*place) for place in places] == [ours[name] for _, name in places]
    finally:
        for _ in range(2):
            uninstall()
            assert [getattr(*place) for place in places] == before
    assert before[0] is PipReader


#: Runs gguf's scripts in one process: argv[1] is "1" to install first, argv[2] a list of [module, arguments, input].
DRIVER = """
import contextlib, importlib, io, json, sys
if sys.argv[1] == "1":
    import mmgguf.compat
    mmgguf.compat.install()
import gguf
results = []
for module, arguments, answer in json.loads(sys.argv[2]):
    sys.argv, sys.stdin, out = [module, *arguments], io.StringIO(answer), io.StringIO()
    try:
        main = importlib.import_module("gguf.scripts." + module).main
        with contextlib.redirect_stdout(out):
            code = main()
    except SystemExit as error:
        code = error.code
    results.append([code or 0, out.getvalue()])
print(json.dumps([gguf.GGUFReader.__module__, results]))
"""


def run_python(code: str, *arguments: str) -> str:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr[-4000:]
    return result.stdout


def test_scripts_of_gguf(tmp_path: Path) -> None:
    """Each script gives the same output and leaves the same bytes in the file with and without `install`."""
    model = Case(
        "model",
        {
            **BY_ID["vocabulary"].metadata,
            "tokenizer.ggml.tokens": array(ValueType.STRING, [f"token {i}" for i in range(2000)]),
            "tokenizer.ggml.bos_token_id": TypedValue(1, ValueType.UINT32),
            "general.name": TypedValue("Tést", ValueType.STRING),
            "general.file_type": TypedValue(7, ValueType.UINT32),
            "llama.context_length": TypedValue(2048, ValueType.UINT64),
        },
        {
            "token_embd.weight": random_tensor(GGMLType.Q8_0, (4, 2)),
            "blk.0.attn_q.weight": random_tensor(GGMLType.Q4_K, (4, 1)),
            "blk.0.attn_norm.weight": StoredTensor(GGMLType.F32, (4,), struct.pack("<4f", 1, 2, 3, 4)),
            "output.weight": random_tensor(GGMLType.BF16, (2, 3)),
            "half": random_tensor(GGMLType.F16, (2, 3)),
        },
    )
    files = {"model.gguf": model.encoded(), "big.gguf": model.swapped().encoded()}
    commands: list[tuple[str, list[str], str]] = [
        ("gguf_dump", [name, *options], "")
        for name in files
        for options in ([], ["--json"], ["--json", "--json-array"], ["--markdown"], ["--no-tensors"], ["--data-offset"])
    ]
    commands += [
        ("gguf_hash", ["model.gguf"], ""),
        ("gguf_hash", ["big.gguf", "--no-layer"], ""),
        ("gguf_new_metadata", ["model.gguf", "new.gguf", "--general-name", "other"], ""),
        ("gguf_set_metadata", ["model.gguf", "tokenizer.ggml.bos_token_id", "77", "--dry-run"], ""),
        ("gguf_set_metadata", ["model.gguf", "tokenizer.ggml.bos_token_id", "77", "--force"], ""),
        ("gguf_set_metadata", ["big.gguf", "llama.context_length", "4096", "--force"], ""),
        ("gguf_set_metadata", ["model.gguf", "no.such.key", "1"], ""),
        ("gguf_set_metadata", ["model.gguf", "tokenizer.ggml.tokens", "1"], ""),
        ("gguf_convert_endian", ["new.gguf", "big"], "YES\n"),
        ("gguf_convert_endian", ["big.gguf", "little"], "YES\n"),
    ]
    seen = []
    for flag in ("0", "1"):
        folder = tmp_path / flag
        folder.mkdir()
        for name, raw in files.items():
            (folder / name).write_bytes(raw)
        code = f"import os; os.chdir({str(folder)!r})\n" + DRIVER
        reader, results = json.loads(run_python(code, flag, json.dumps(commands)).splitlines()[-1])
        assert reader.partition(".")[0] == ("mmgguf" if flag == "1" else "gguf")
        seen.append((results, {file.name: file.read_bytes() for file in sorted(folder.iterdir())}))
    for command, without, with_ in zip(commands, seen[0][0], seen[1][0], strict=True):
        assert without == with_, command
    assert seen[0][1] == seen[1][1]
    codes = [code for code, _ in seen[0][0]]
    assert codes == [0] * 12 + [0, 0, 0, 0, 0, 0, 1, 1, 0, 0]
    assert GGUFReader(tmp_path / "1" / "model.gguf").fields["tokenizer.ggml.bos_token_id"].contents() == 77
    assert GGUFReader(tmp_path / "1" / "new.gguf").byte_order == "S"
    dumped = seen[1][0][2][1]
    assert "token 1999" in dumped


def test_without_gguf(path: Path) -> None:
    path.write_bytes(BY_ID["dimensions"].encoded())
    code = """
import sys
sys.modules["gguf"] = None
import mmgguf, mmgguf.compat as compat
reader = compat.GGUFReader(sys.argv[1])
print([type(t.tensor_type).__module__ for t in reader.tensors][0], reader.endianess.name)
print(reader.fields["GGUF.version"].types, reader.gguf_scalar_to_np[mmgguf.ValueType.UINT8].__name__)
try:
    compat.install()
except mmgguf.errors.MissingExtraError as error:
    print(error)
"""
    assert run_python(code, str(path)).splitlines() == [
        "mmgguf.types LITTLE",
        "[<ValueType.UINT32: 4>] uint8",
        "gguf is not installed; get it with: pip install 'mmgguf[compat]'",
    ]


def test_opening_imports_no_kernels(path: Path) -> None:
    path.write_bytes(BY_ID["dimensions"].encoded())
    code = (
        "import sys, mmgguf.compat as c; c.GGUFReader(sys.argv[1]).tensors; "
        "print(sorted({'numba', 'torch', 'mmgguf.dequant.numpy.simple', 'mmgguf.dequant.numba'} & set(sys.modules)))"
    )
    assert run_python(code, str(path)).strip() == "[]"
