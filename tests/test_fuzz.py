"""A fixed number of the fuzzer's examples; ``python -m tests.fuzz`` runs for as long as one likes."""

from __future__ import annotations

import io
import os
import sys
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings

import mmgguf

from . import fuzz
from .support import ggml, touch
from .support.build import Build, small
from .support.differences import ACCEPTED_BY_US, REFUSED_BY_US
from .support.differential import Judge, Oracle
from .support.hostile_cases import TABLE
from .support.worst_cases import MEGABYTE, comparisons, worst_cases

ALWAYS_THE_SAME = settings(
    derandomize=True,
    deadline=None,
    database=None,
    phases=[Phase.generate, Phase.shrink],
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(autouse=True, scope="module")
def _without_compiling() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MMGGUF_BACKEND", "numpy")
        yield


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz") / "input.gguf"


@given(b=fuzz.valid_files())
@settings(ALWAYS_THE_SAME, max_examples=120)
def test_valid_files_are_accepted(path: Path, b: Build) -> None:
    """The strategy builds what it says: otherwise everything would be refused at the first byte."""
    header = mmgguf.read_header(io.BytesIO(bytes(b)))
    touch.header(header)
    assert header.version == b.version
    assert header.byte_order == b.byte_order


@given(data=fuzz.files())
@settings(ALWAYS_THE_SAME, max_examples=400)
def test_broken_files(path: Path, data: bytes) -> None:
    fuzz.judge(data, path)


@given(data=fuzz.files())
@settings(ALWAYS_THE_SAME, max_examples=12)
def test_broken_files_on_the_command_line(path: Path, data: bytes) -> None:
    fuzz.judge(data, path, cli=True)


def test_every_field_of_a_builder_is_where_it_says(path: Path) -> None:
    for version in (1, 2, 3):
        b = small(version, "big")
        found = [f for f in b.fields if f.what == "array length"]
        assert [int.from_bytes(b.out[f.position : f.position + f.width], "big") for f in found] == [4, 4]
        for field in b.fields:
            data = bytearray(bytes(b))
            data[field.position : field.position + field.width] = b"\xff" * field.width
            if field.what not in ("value type", "ggml type"):
                with pytest.raises(mmgguf.GGUFError):
                    mmgguf.read_header(io.BytesIO(data))
            fuzz.judge(bytes(data), path)


# The C library.


@pytest.fixture(scope="module")
def judge(path: Path) -> Iterator[Judge]:
    if not hasattr(os, "fork"):
        pytest.skip("the C library may abort, and needs a process to do it in")
    ggml.require()
    with Oracle() as oracle:
        yield Judge(oracle, path)


def test_c_reads_what_we_read(judge: Judge) -> None:
    judge.explained.clear()
    judge(bytes(small()))
    judge(bytes(small(2)))
    assert judge.explained == {"both accept": 2}


def test_c_and_the_table_of_cases(judge: Judge) -> None:
    judge.explained.clear()
    for row in TABLE:
        if len(row.versions) != 1 or row.id.startswith(("magic", "version")):
            b = Build(3)
            row.make(b)
            judge(bytes(b))
    # Rows that explain nothing are out of date.
    needed = {row.id for row in (*ACCEPTED_BY_US, *REFUSED_BY_US)} - {"version-1", "big-endian", "equal-up-to-nul"}
    for version, order in ((1, "little"), (3, "big")):
        judge(bytes(small(version, order)))
    b = Build().start(2, 0).tensor(b"n\0a", [8]).tensor(b"n\0b", [8], offset=32).data(bytes(64))
    judge(bytes(b))
    assert needed | {"version-1", "big-endian", "equal-up-to-nul"} <= set(judge.explained)


@given(data=fuzz.files(versions=(2, 3), orders=("little",)))
@settings(ALWAYS_THE_SAME, max_examples=250)
def test_c_and_broken_files(judge: Judge, data: bytes) -> None:
    judge(data)


# Memory.


LARGE = dict(worst_cases())


@pytest.mark.parametrize(
    "name",
    [
        "empty strings, v3 little",
        pytest.param("pairs of u8, v1 little", marks=pytest.mark.slow),
        pytest.param("arrays of one u8, v1 little", marks=pytest.mark.slow),
        "empty tensors",
        "one text, wide",
    ],
)
def test_a_megabyte_takes_less_than_64_more(name: str) -> None:
    """The worst of the structures; ``python -m tests.fuzz --worst`` measures all, and the time."""
    data = LARGE[name]()
    assert len(data) <= MEGABYTE * 1.1
    tracemalloc.start()
    try:
        header = mmgguf.read_header(io.BytesIO(data))
        for key in header.metadata:
            _ = header.metadata[key]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 64 << 20, f"{peak / (1 << 20):.0f} MiB"


def test_comparing_takes_less_than_64_times_the_size(tmp_path: Path) -> None:
    one, other = tmp_path / "a.gguf", tmp_path / "b.gguf"
    name, size = "arrays of one u8, v1 and v1", 1 << 16
    for path, data in zip((one, other), next(files for n, *files in comparisons(size) if n == name), strict=True):
        path.write_bytes(data)
    tracemalloc.start()
    try:
        differences = mmgguf.compare(one, other)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(differences) == 3_276
    assert peak < 64 * size, f"{peak / size:.0f} times"


@pytest.mark.parametrize(("name", "one", "other"), [pytest.param(*case, id=case[0]) for case in comparisons(16 << 10)])
def test_comparing_costs_few_calls_for_each_value(name: str, one: bytes, other: bytes, tmp_path: Path) -> None:
    """Whose every value differs.  The number of calls stands in for the time, and does not swing."""
    paths = [tmp_path / "a.gguf", tmp_path / "b.gguf"]
    for path, data in zip(paths, (one, other), strict=True):
        path.write_bytes(data)
    calls = 0

    def count(frame: object, event: str, arg: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        differences = mmgguf.compare(*paths)
    finally:
        sys.setprofile(before)
    assert {difference.change for difference in differences} == {"changed"}
    assert calls / len(differences) < (290 if "string" in name else 170)


def test_strategies_shrink_to_little(path: Path) -> None:
    """What hypothesis shows of a failure is small."""
    from hypothesis import find

    found = find(fuzz.valid_files(), lambda b: len(b.fields) > 3, settings=settings(database=None, deadline=None))
    assert len(found) < 80
