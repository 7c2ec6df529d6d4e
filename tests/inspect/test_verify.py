"""verify, compare and digest: everything that an accepted file may still have wrong, found and nothing more."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mmgguf
from mmgguf import GGMLType, GGUFError, TypedTensor
from mmgguf.inspect import Finding
from mmgguf.inspect.contents import CHUNK_SIZE
from mmgguf.inspect.findings import MAX_FINDINGS, MAX_VALUES
from mmgguf.inspect.finite import finite_tests
from mmgguf.types import LAYOUTS

from ..support import ggml, touch
from ..support.build import BOOL, F32, INT32, Q4_0, UINT8, UINT16, UINT32, Build, small
from ..support.cases import CASES, Case
from ..support.hostile_cases import TABLE

ORDERS: Any = ("little", "big")
#: A name that follows the naming convention.
GOOD = "Tiny-7B-v1.0-F32.gguf"


def codes(findings: list[Finding]) -> list[str]:
    return [f"{finding.severity} {finding.code}" for finding in findings]


def faultless(b: Build, tensors: int = 1, pairs: int = 0) -> Build:
    """The beginning of a file in which only what follows can be wrong."""
    return b.start(tensors, 2 + pairs).text(b"general.architecture", b"llama").number(b"general.file_type", UINT32, 0)


def plain(b: Build, name: bytes = b"w") -> Build:
    """One tensor of eight floats."""
    return b.tensor(name, [8], F32).data(bytes(32))


def pair(add: Callable[[Build], object]) -> Callable[[Build], object]:
    """A file with one more pair."""

    def make(b: Build) -> None:
        faultless(b, pairs=1)
        add(b)
        plain(b)

    return make


def infos(*rows: tuple[bytes, list[int], int, int], data: int) -> Callable[[Build], object]:
    """A file with these tensors."""

    def make(b: Build) -> None:
        faultless(b, tensors=len(rows))
        for row in rows:
            b.tensor(*row)
        b.pad().raw(bytes(data))

    return make


def aligned(alignment: int) -> Callable[[Build], object]:
    def make(b: Build) -> None:
        faultless(b, pairs=1).number(b"general.alignment", UINT32, alignment).tensor(b"w", [8]).data(
            bytes(32), alignment=alignment
        )

    return make


def dirty_header_padding(b: Build) -> None:
    faultless(b, pairs=1).number(b"odd", UINT8, 1)
    b.tensor(b"w", [8])
    assert len(b) % 32
    b.pad(fill=b"\7").raw(bytes(32))


def bools(b: Build) -> None:
    b.array(b"a.flags", BOOL, 4, b"\0\1\3\2")


def many_bools_after_strings(b: Build) -> None:
    faultless(b, pairs=2).texts(b"a.words", [b"x", b"y"])
    plain(b.array(b"a.flags", BOOL, 70_000, b"\1" * 69_999 + b"\3"))


#: What is wrong, the findings, where, a part of the first message, and what stands at the byte that it names.
CASES_OF_FINDINGS: list[tuple[str, Callable[[Build], object], list[str], str, str, bytes | None]] = [
    ("nothing", lambda b: plain(faultless(b)), [], "", "", None),
    ("unknown-keys-are-fine", pair(lambda b: b.number(b"x.y_z.0", UINT8, 1)), [], "", "", None),
    (
        "upper-case",
        pair(lambda b: b.number(b"Upper.case", UINT8, 1)),
        ["warning key-style"],
        "Upper.case",
        "snake",
        None,
    ),
    ("dash", pair(lambda b: b.number(b"a-b", UINT8, 1)), ["warning key-style"], "a-b", "lower_snake_case", None),
    ("two-dots", pair(lambda b: b.number(b"a..b", UINT8, 1)), ["warning key-style"], "a..b", "", None),
    ("key-newline", pair(lambda b: b.number(b"a\n", UINT8, 1)), ["warning key-style"], "a\n", "", None),
    ("key-unicode", pair(lambda b: b.number("é".encode(), UINT8, 1)), ["warning key-style"], "é", "", None),
    ("key-latin-1", pair(lambda b: b.number(b"\xe9", UINT8, 1)), ["warning key-not-utf8"], "\udce9", "ASCII", None),
    ("key-nul", pair(lambda b: b.number(b"a\0b", UINT8, 1)), ["warning key-nul"], "a\0b", "cut it off", None),
    ("key-of-65535", pair(lambda b: b.number(b"k" * 65535, UINT8, 1)), [], "", "", None),
    (
        "key-of-65536",
        pair(lambda b: b.number(b"k" * 65536, UINT8, 1)),
        ["warning key-too-long"],
        "k" * 65536,
        "65536",
        None,
    ),
    (
        "value-latin-1",
        pair(lambda b: b.text(b"a", b"caf\xe9")),
        ["warning value-not-utf8"],
        "a",
        "not UTF-8",
        b"caf\xe9",
    ),
    ("value-escapes", pair(lambda b: b.text(b"a", b"\x1b[2J\0")), [], "", "", None),
    (
        "strings-latin-1",
        pair(lambda b: b.texts(b"a", [b"x", b"\xe9", b"\xff\xfe", "é".encode()])),
        ["note strings-not-utf8"],
        "a",
        "2 of 4 strings",
        None,
    ),
    ("bool-2", pair(lambda b: b.pair(b"a", BOOL).raw(b"\2")), ["warning bool-byte"], "a", "stored as 2", b"\2"),
    ("bools", pair(bools), ["warning bool-byte"], "a.flags", "stored as 3", b"\3\2"),
    ("many-bools", many_bools_after_strings, ["warning bool-byte"], "a.flags", "stored as 3", b"\3"),
    ("bools-right", pair(lambda b: b.array(b"a", BOOL, 3, b"\0\1\1")), [], "", "", None),
    (
        "dimensions",
        infos((b"w", [8, 1, 1, 1, 1], F32, 0), data=32),
        ["error dimensions"],
        "w",
        "5 dimensions, ggml takes 4",
        None,
    ),
    ("alignment-4", aligned(4), ["warning alignment"], "general.alignment", "4 is not a multiple of 8", None),
    ("alignment-8", aligned(8), ["warning alignment-small"], "general.alignment", "8: llama.cpp refuses", None),
    ("alignment-16", aligned(16), ["warning alignment-small"], "general.alignment", "16: llama.cpp refuses", None),
    ("alignment-32", aligned(32), [], "", "", None),
    (
        "no-architecture",
        lambda b: plain(b.start(1, 0)),
        ["warning architecture-missing"],
        "general.architecture",
        "is missing",
        None,
    ),
    (
        "architecture-number",
        lambda b: plain(b.start(1, 1).number(b"general.architecture", UINT32, 1)),
        ["error architecture-type"],
        "general.architecture",
        "stored as UINT32, must be STRING",
        None,
    ),
    (
        "architecture-escape",
        lambda b: plain(b.start(1, 1).text(b"general.architecture", b"\x1b[31m")),
        ["note architecture-style"],
        "general.architecture",
        r"'\x1b[31m' has other characters",
        None,
    ),
    (
        "file-type-text",
        lambda b: plain(b.start(1, 2).text(b"general.architecture", b"a").text(b"general.file_type", b"F16")),
        ["warning value-type"],
        "general.file_type",
        "stored as STRING, must be an integer",
        None,
    ),
    (
        "no-quantization-version",
        lambda b: faultless(b).tensor(b"q", [32], Q4_0).data(bytes(18)),
        ["warning quantization-version-missing"],
        "general.quantization_version",
        "is missing, and q is quantized",
        None,
    ),
    (
        "quantization-version-1",
        lambda b: (
            faultless(b, pairs=1)
            .number(b"general.quantization_version", UINT32, 1)
            .tensor(b"q", [32], Q4_0)
            .data(bytes(18))
        ),
        ["warning quantization-version"],
        "general.quantization_version",
        "1, the blocks of current readers are of 2",
        None,
    ),
    (
        "split-count-0",
        pair(lambda b: b.number(b"split.count", UINT16, 0)),
        ["warning split-count"],
        "split.count",
        "",
        None,
    ),
    ("split-count-1", pair(lambda b: b.number(b"split.count", UINT16, 1)), [], "", "", None),
    (
        "split-count-negative",
        pair(lambda b: b.number(b"split.count", INT32, -3)),
        ["warning split-count"],
        "split.count",
        "-3, must be at least 1",
        None,
    ),
    (
        "split-of-one",
        lambda b: plain(
            faultless(b, pairs=3)
            .number(b"split.count", UINT16, 1)
            .number(b"split.no", UINT16, 3)
            .number(b"split.tensors.count", INT32, 5)
        ),
        ["warning split-no", "warning split-tensors-count"],
        "split.no",
        "3, but split.count is 1",
        None,
    ),
    ("name-of-63", lambda b: plain(faultless(b), b"n" * 63), [], "", "", None),
    (
        "name-of-64",
        lambda b: plain(faultless(b), b"n" * 64),
        ["warning name-of-64-bytes"],
        "n" * 64,
        "ggml refuses",
        None,
    ),
    ("name-of-65", lambda b: plain(faultless(b), b"n" * 65), ["error name-too-long"], "n" * 65, "65 bytes", None),
    ("name-empty", lambda b: plain(faultless(b), b""), ["warning name-empty"], "", "empty", None),
    ("name-nul", lambda b: plain(faultless(b), b"a\0b"), ["warning name-nul"], "a\0b", "NUL", None),
    (
        "name-control",
        lambda b: plain(faultless(b), b"a\x1bb"),
        ["warning name-control"],
        "a\x1bb",
        "not printable",
        None,
    ),
    ("name-latin-1", lambda b: plain(faultless(b), b"\xe9"), ["warning name-not-utf8"], "\udce9", "not UTF-8", None),
    ("unknown-type", infos((b"w", [7], 99, 0), data=64), ["error unknown-type"], "w", "unknown ggml type 99", None),
    ("removed-type", infos((b"w", [7], 4, 0), data=0), ["error unknown-type"], "w", "unknown ggml type 4", None),
    (
        "empty-tensor",
        infos((b"w", [3, 0], F32, 0), data=0),
        ["warning empty-tensor"],
        "w",
        "a dimension of (3, 0)",
        None,
    ),
    ("hole-at-the-start", infos((b"w", [8], F32, 64), data=96), ["error hole"], "w", "64 bytes before", None),
    (
        "hole-between",
        infos((b"v", [1], F32, 0), (b"w", [8], F32, 96), data=128),
        ["error hole"],
        "w",
        "64 bytes before its data belong to no tensor",
        None,
    ),
    (
        "other-order",
        infos((b"v", [8], F32, 32), (b"w", [8], F32, 0), data=64),
        ["error offset-order"],
        "w",
        "offset 0 is below that of the tensor before",
        None,
    ),
    (
        "dirty-padding-between",
        lambda b: (
            faultless(b, 2)
            .tensor(b"v", [1])
            .tensor(b"w", [8], F32, 32)
            .pad()
            .raw(bytes(9) + b"\5" + bytes(22))
            .raw(bytes(32))
        ),
        ["warning padding"],
        "",
        "padding before w is 5, must be 0",
        b"\5",
    ),
    (
        "dirty-padding-of-the-header",
        dirty_header_padding,
        ["warning padding"],
        "",
        "between header and data is 7",
        b"\7",
    ),
    (
        "dirty-tail",
        lambda b: faultless(b).tensor(b"w", [1]).pad().raw(bytes(4)).pad(fill=b"\1"),
        ["warning padding"],
        "",
        "at the end of the file is 1",
        b"\1",
    ),
    ("no-tail", lambda b: faultless(b).tensor(b"w", [1]).pad().raw(bytes(4)), [], "", "", None),
    ("no-data", lambda b: faultless(b, 0), [], "", "", None),
    (
        "trailing-bytes",
        lambda b: plain(faultless(b)).raw(b"appended"),
        ["warning trailing-bytes"],
        "",
        "8 bytes after the last tensor",
        b"appended",
    ),
    (
        "unknown-sizes-hide-holes",
        infos((b"v", [8], F32, 0), (b"u", [8], 99, 32), (b"w", [8], F32, 960), data=992),
        ["error unknown-type"],
        "u",
        "",
        None,
    ),
]

_NOT_THE_VERSION = ("old-version", "byte-order")


@pytest.mark.parametrize(
    ("make", "expected", "where", "message", "at"),
    [row[1:] for row in CASES_OF_FINDINGS],
    ids=[row[0] for row in CASES_OF_FINDINGS],
)
def test_findings(make: Any, expected: list[str], where: str, message: str, at: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / GOOD
    for order in ORDERS:
        for version in (1, 2, 3):
            b = Build(version, order)
            make(b)
            path.write_bytes(bytes(b))
            found = [f for f in mmgguf.verify(path) if f.code not in _NOT_THE_VERSION]
            assert codes(found) == expected
            for finding in found:
                touch.bounded(finding.message)
                assert finding.path == str(path)
            if found:
                assert found[0].where == where
                assert message in found[0].message
            if at is not None:
                assert bytes(b)[found[0].byte :].startswith(at)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("version", [1, 2, 3])
def test_versions(version: int, order: Any, tmp_path: Path) -> None:
    path = tmp_path / GOOD
    b = Build(version, order)
    path.write_bytes(bytes(plain(faultless(b))))
    expected = ["note old-version"] * (version < 3) + ["warning byte-order"] * (version < 3 and order == "big")
    assert codes(mmgguf.verify(path)) == expected
    b.out[:4] = b"FUGG"
    path.write_bytes(bytes(b))
    assert codes(mmgguf.verify(path)) == ["warning magic-reversed", *expected]


@pytest.mark.parametrize(
    ("name", "follows"),
    [
        # The specification's own examples, and names as they are in the wild.
        ("Mixtral-8x7B-v0.1-KQ2.gguf", True),
        ("Grok-100B-v1.0-Q4_0-00003-of-00009.gguf", True),
        ("Phi-3-mini-3.8B-ContextLength4k-instruct-v1.0.gguf", True),
        ("Tiny-v1-LoRA.gguf", True),
        ("Tiny-v1-F16-vocab.gguf", True),
        ("Hermes-2-Pro-Llama-3-8B-F16.gguf", False),
        ("not-a-known-arrangement.gguf", False),
        ("SmolLM2-135M-Instruct.Q4_1.gguf", False),
        ("ggml-vocab-llama-bpe.gguf", False),
        ("v1.0.gguf", False),
        ("-v1.0.gguf", False),
        ("Tiny-v1.0.bin", False),
        ("Tiny-v1.0-F16-Q4_0-x.gguf", False),
        ("Ti\x1bny-v1.0.gguf", False),
        (".gguf", False),
        ("A" + "-1" * 100 + ".gguf", False),
    ],
)
def test_naming_convention(name: str, follows: bool, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(bytes(plain(faultless(Build()))))
    assert codes(mmgguf.verify(path)) == ([] if follows else ["note file-name"])


def test_the_number_of_findings_is_bounded(tmp_path: Path) -> None:
    b = Build().start(1, 1001).text(b"general.architecture", b"llama")
    for i in range(1000):
        b.number(b"KEY%d" % i, UINT8, 1)
    path = tmp_path / GOOD
    path.write_bytes(bytes(plain(b)))
    found = mmgguf.verify(path)
    assert len(found) == MAX_FINDINGS + 1
    assert found[-1] == Finding(
        "warning", "key-style", "", f"{1000 - MAX_FINDINGS} more findings of this kind", None, str(path)
    )


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_ordinary_files_have_no_errors(case: Case, tmp_path: Path) -> None:
    path = tmp_path / GOOD
    path.write_bytes(case.encoded())
    errors = [f for f in mmgguf.verify(path) if f.severity == "error"]
    assert not errors
    digests = mmgguf.digest(path)
    assert list(digests.tensors) == list(case.tensors)
    assert mmgguf.compare(path, path) == []


def test_hostile_files_give_findings_or_the_errors_of_open(tmp_path: Path) -> None:
    path = tmp_path / GOOD
    for row in TABLE:
        for example in row.examples():
            path.write_bytes(example)
            for use in (
                lambda: mmgguf.verify(path, data=True),
                lambda: mmgguf.digest(path),
                lambda: mmgguf.compare(path, path),
            ):
                if row.error is not None:
                    with pytest.raises(row.error):
                        use()
                else:
                    use()


def test_real_files(vocabularies: list[Path]) -> None:
    for path in vocabularies:
        assert codes(mmgguf.verify(path, data=True)) == ["note file-name"]


def test_a_real_model(smollm2: Path) -> None:
    steps: list[tuple[int, int]] = []
    found = mmgguf.verify(smollm2, data=True, progress=lambda done, total: steps.append((done, total)))
    assert codes(found) == ["note file-name"]
    with mmgguf.open(smollm2) as f:
        total = sum(t.nbytes for t in f.values())
    assert steps[-1] == (total, total)
    assert steps == sorted(steps)


# Values.

BLOCK_TYPES = [t for t in GGMLType if not LAYOUTS[t].is_plain]
FLOATS = [GGMLType.F32, GGMLType.F16, GGMLType.BF16, GGMLType.F64]


def write(path: Path, type_: GGMLType, raw: np.ndarray[Any, Any], order: Any = "little") -> Path:
    """A file with one tensor of stored blocks, given little-endian."""
    blocks = np.ascontiguousarray(raw).view(np.uint8).reshape(-1)
    blocks = blocks.view(LAYOUTS[type_].dtype)
    mmgguf.write(path, {"general.architecture": "a"}, {"w": TypedTensor(blocks, type_)}, byte_order=order)
    return path


def value_findings(path: Path) -> list[Finding]:
    return [f for f in mmgguf.verify(path, data=True) if f.code.endswith("-not-finite")]


def _is_bad(block: np.ndarray[Any, Any], type_: GGMLType) -> bool:
    """What C says of the scales of one block; where it says nothing of use, what numpy does."""
    if type_ is GGMLType.NVFP4:  # C takes 0x7F, which is NaN in UE4M3, as 0
        return 0x7F in block[:4]
    if type_ in ggml.NOT_IN_C or type_ in (
        GGMLType.Q8_1,
        GGMLType.F64,
    ):  # C refuses the one, and rounds the other to F32
        stored = block.view(LAYOUTS[type_].dtype)[0]
        floats = (
            [stored[n] for n, (dtype, _) in stored.dtype.fields.items() if dtype.kind == "f"]
            if stored.dtype.names
            else [stored]
        )
        return not np.isfinite(floats).all()
    return not ggml.is_valid(block, type_)


@pytest.mark.parametrize("type_", [*BLOCK_TYPES, *FLOATS], ids=lambda t: t.name)
def test_random_bytes_are_judged_as_ggml_does(type_: GGMLType) -> None:
    """Block by block: C says of each whether its scales are finite."""
    rng = np.random.default_rng(int(type_))
    size = LAYOUTS[type_].type_size
    raw = rng.integers(0, 256, (300, size), np.uint8)
    # Extremes are rare among random bits: let every byte of some blocks be full or nearly so.
    raw[100:150] |= 0x7C
    raw[150:200] |= 0xFC
    raw[200:250][rng.random((50, size)) < 0.7] = 0xFF
    raw[250:275][rng.random((25, size)) < 0.7] = 0x7F
    expected = [_is_bad(block, type_) for block in raw]
    assert True in expected
    assert False in expected
    layout = LAYOUTS[type_]
    for order in ORDERS:
        blocks = raw.reshape(-1).view(layout.dtype)
        blocks = blocks.view(f"u{size}") if layout.is_plain else blocks
        blocks = blocks.byteswap() if order == "big" else blocks
        found = np.zeros(300, bool)
        for test in finite_tests(type_, layout, order):
            bad = test.find(blocks)
            if bad is not None:
                found |= bad
        assert found.tolist() == expected


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("type_", [*BLOCK_TYPES, *FLOATS], ids=lambda t: t.name)
def test_where_a_bad_value_is(type_: GGMLType, order: Any, tmp_path: Path) -> None:
    """The number of the block, its byte, and what it is; across the border of a chunk."""
    layout = LAYOUTS[type_]
    step = CHUNK_SIZE // layout.type_size
    n = step + 10
    raw = np.zeros((n, layout.type_size), np.uint8)
    bad = [3, step - 1, step, n - 1]
    fields = layout.dtype.fields or {}
    if layout.is_plain:
        name, offset, value = (
            "value",
            0,
            {2: b"\x00\xfc", 4: b"\x00\x00\x80\xff", 8: b"\0\0\0\0\0\0\xf0\xff"}[layout.type_size],
        )
        value = b"\x80\xff" if type_ is GGMLType.BF16 else value
        shown = "-inf"
    elif type_ is GGMLType.IQ1_M:
        name, offset, value, shown = ": scale", fields["scales"][1], bytes([0, 0, 0, 0, 0, 0xC0, 0, 0xF0]), "-inf"
    elif type_ is GGMLType.MXFP4:
        name, offset, value, shown = ": e", 0, b"\xff", "NaN"
    elif type_ is GGMLType.NVFP4:
        name, offset, value, shown = ": d[2]", 2, b"\x7f", "NaN, which ggml takes as 0"
    else:
        name, (dtype, offset) = next((f": {k}", v[:2]) for k, v in reversed(fields.items()) if v[0].kind == "f")
        value, shown = np.array(-np.inf, dtype).tobytes(), "-inf"
    for i in bad:
        raw[i, offset : offset + len(value)] = list(value)
    path = write(tmp_path / GOOD, type_, raw, order)
    found = value_findings(path)
    with mmgguf.open(path) as f:
        start = f["w"].file_offset
    assert [f.byte for f in found] == [start + i * layout.type_size + offset for i in bad]
    assert {f.severity for f in found} == {"warning" if type_ is GGMLType.NVFP4 else "error"}
    what = "value {}" if layout.is_plain else "block {}" + name
    assert [f.message for f in found] == [f"{what.format(i)} is {shown}" for i in bad]
    stored = path.read_bytes()
    for finding in found:
        assert finding.byte is not None
        assert any(stored[finding.byte : finding.byte + 8])


def test_the_number_of_values_is_bounded_per_tensor(tmp_path: Path) -> None:
    nans = np.full(300_000, np.nan, np.float32)
    path = tmp_path / GOOD
    mmgguf.write(path, {"general.architecture": "a"}, {"v": nans, "ok": np.ones(3, np.float32), "w": nans[:9]})
    found = value_findings(path)
    assert [f.where for f in found] == ["v"] * (MAX_VALUES + 1) + ["w"] * (MAX_VALUES + 1)
    assert found[MAX_VALUES].message == f"{300_000 - MAX_VALUES} more values are not finite"
    assert found[-1].message == "1 more values are not finite"
    assert found[0].message == "value 0 is nan"


def test_integers_are_always_finite(tmp_path: Path) -> None:
    path = tmp_path / GOOD
    full = {f"i{n}": np.full(40, -1, f"i{n}") for n in (1, 2, 4, 8)}
    mmgguf.write(path, {"general.architecture": "a"}, full)
    assert mmgguf.verify(path, data=True) == []


# Splits.


def test_every_shard_is_looked_at(tmp_path: Path) -> None:
    paths = [tmp_path / f"Tiny-v1.0-0000{i}-of-00002.gguf" for i in (1, 2)]
    for no, path in enumerate(paths):
        b = Build().start(1, 3 - no).number(b"split.no", UINT16, no).number(b"split.count", UINT16, 2)
        if not no:
            b.text(b"general.architecture", b"llama")
        path.write_bytes(
            bytes(b.tensor(b"w%d" % no, [8], F32, 32 * no).data(bytes(32 * no) + bytes(28) + b"\0\0\x80\x7f"))
        )
    for path in paths:
        found = mmgguf.verify(path, data=True)
        assert [(f.severity, f.code, f.where, f.path) for f in found] == [
            ("error", "value-not-finite", "w0", str(paths[0])),
            ("error", "hole", "w1", str(paths[1])),
            ("error", "value-not-finite", "w1", str(paths[1])),
        ]


# What goes for verify, digest and compare alike.


@pytest.mark.parametrize("use", [mmgguf.verify, mmgguf.digest, lambda path: mmgguf.compare(path, path)])
def test_what_cannot_be_opened_raises(use: Any, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        use(tmp_path / "nothing.gguf")
    path = tmp_path / "cut.gguf"
    path.write_bytes(bytes(small())[:200])
    with pytest.raises(GGUFError):
        use(path)


@pytest.mark.parametrize("use", [partial(mmgguf.verify, data=True), mmgguf.digest], ids=["verify", "digest"])
def test_a_file_that_shrinks_meanwhile(use: Any, tmp_path: Path) -> None:
    path = tmp_path / GOOD
    mmgguf.write(path, {"general.architecture": "a"}, {"v": np.zeros(1 << 20, np.float32)})

    def shrink(done: int, total: int) -> None:
        os.truncate(path, 4096)

    with pytest.raises(mmgguf.errors.FileChangedError):
        use(path, progress=shrink)
