"""What mmgguf claims, each with its bar, measured with the contestants taking turns in one process.

A claim that is not met is no failure, since on a busy machine any may be missed; the table at the end of a run tells.
What each row compares is in its sentence.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mmgguf
from mmgguf import GGMLType
from mmgguf.bench import measure
from mmgguf.bench.fields import read_fields
from mmgguf.bench.measure import Contestant, compare
from mmgguf.bench.models import random_blocks
from mmgguf.bench.peers import PEERS, Unavailable
from mmgguf.bench.ways import WAYS, byte_sum, page_sum
from mmgguf.dequant import dequantize
from mmgguf.dequant.threads import spread
from mmgguf.format.parser import parse_header

from .conftest import Files, Model, Sizes
from .counting import CountingFile
from .process import Child, fresh_seconds, memory_usage
from .test_dequantize import CONTESTANTS, TYPES
from .test_memory import sparse_file
from .test_scaling import scaled_file


class Claim:
    """Measures once, through the benchmark fixture, and keeps the verdict with the result."""

    def __init__(self, benchmark: Any) -> None:
        self.benchmark = benchmark
        self.seconds = 3.0 if benchmark.enabled else 0.01
        benchmark.group = "claims"

    def check(self, text: str, bar: str, run: Callable[[], float], **details: Any) -> None:
        """`bar` is ``<= number`` or ``>= number``."""
        measured = float(self.benchmark.pedantic(run, rounds=1))
        sign, number = bar.split()
        met = measured <= float(number) if sign == "<=" else measured >= float(number)
        assert np.isfinite(measured)
        self.benchmark.extra_info.update(claim=text, bar=bar, measured=measured, met=met, **details)

    def ratio(self, one: Contestant, other: Contestant, max_rounds: int = 200) -> float:
        """The time of `one` divided by that of `other`; both the best of rounds in turns."""
        times = compare({"one": one, "other": other}, self.seconds, max_rounds)
        self.benchmark.extra_info.update(
            milliseconds=[times["one"].best * 1e3, times["other"].best * 1e3],
            ratio_of_medians=times["one"].median / times["other"].median,
            ratio_of_cpu=times["one"].cpu / max(times["other"].cpu, 1e-9),
            rounds=[times["one"].rounds, times["other"].rounds],
        )
        return times["one"].best / times["other"].best

    def ratio_when_fresh(self, one: tuple[str, str], other: tuple[str, str], cache: Path, rounds: int = 15) -> float:
        """The ratio of the medians of statements with their setups, each time in a fresh process of its own."""
        pairs = [
            [fresh_seconds(statement, cache, setup) for setup, statement in (one, other)]
            for _ in range(rounds + 1 if self.benchmark.enabled else 2)
        ]
        ours, theirs = zip(*pairs[1:], strict=True)  # the first compiles
        self.benchmark.extra_info.update(
            milliseconds=[statistics.median(ours) * 1e3, statistics.median(theirs) * 1e3],
            ratio_of_least=min(ours) / min(theirs),
            rounds=[len(ours), len(theirs)],
        )
        return statistics.median(ours) / statistics.median(theirs)


@pytest.fixture
def claim(benchmark: Any) -> Claim:
    return Claim(benchmark)


def _require(*peers: str) -> None:
    for name in peers:
        try:
            PEERS[name].require()
        except Unavailable as reason:
            pytest.skip(str(reason))


def _opening(peer: str, path: str) -> Contestant:
    return Contestant(lambda: PEERS[peer].open(path), PEERS[peer].close)


def real_vocabularies() -> list[Path]:
    """``ggml-vocab-*.gguf`` in $MMGGUF_DATA, or in ``shared/data`` beside the repository."""
    given = os.environ.get("MMGGUF_DATA")
    folder = Path(given) if given else Path(__file__).resolve().parents[2] / "shared" / "data"
    return sorted(folder.glob("ggml-vocab-*.gguf"))


VOCABULARIES = ["generated", *(path.stem for path in real_vocabularies())]


def _vocabulary(name: str, files: Files) -> str:
    if name == "generated":
        return files.generated("vocabulary")
    return next(str(path) for path in real_vocabularies() if path.stem == name)


# ---------------------------------------------------------------- headers


@pytest.mark.parametrize("vocabulary", VOCABULARIES)
def test_open_vocabulary(claim: Claim, files: Files, vocabulary: str) -> None:
    _require("C library")
    path = _vocabulary(vocabulary, files)
    bar = "<= 0.25" if vocabulary in ("generated", "ggml-vocab-llama-bpe") else "<= 0.35"
    claim.check(
        f"open a vocabulary ({vocabulary}): time against the C library",
        bar,
        lambda: claim.ratio(_opening("mmgguf", path), _opening("C library", path)),
    )


_LISTS = "list all tokens and merges ({}), {}: time against the C library's whole opening"
# Kept, so that neither side's time has the giving back of what was made.
_LIST = "kept = list(metadata['tokenizer.ggml.tokens']), list(metadata['tokenizer.ggml.merges'])"


@pytest.mark.parametrize("vocabulary", VOCABULARIES)
def test_lists_of_strings(claim: Claim, files: Files, vocabulary: str, tmp_path: Path) -> None:
    """The C library makes all strings while it opens; here they are made when a list is asked for.

    Both have to get the memory for them from the system, which is a good part of the time.  Thus in fresh processes:
    what an allocator has kept from earlier work makes the one or the other faster.
    """
    _require("C library")
    path = _vocabulary(vocabulary, files)
    ours = f"import mmgguf; metadata = mmgguf.open({path!r}).metadata", _LIST
    theirs = (
        "from mmgguf.bench.ggml import c_library; from mmgguf.bench.peers import PEERS; c_library()",
        f"kept = PEERS['C library'].open({path!r})",
    )
    claim.check(
        _LISTS.format(vocabulary, "first in a process"),
        "<= 1.5",
        lambda: claim.ratio_when_fresh(ours, theirs, tmp_path),
    )
    _check_lists(path)


@pytest.mark.parametrize("vocabulary", VOCABULARIES)
def test_lists_of_strings_again(claim: Claim, files: Files, vocabulary: str) -> None:
    """Over and over in one process: malloc may keep memory for the C library, Python gives its own back each time."""
    _require("C library")
    path = _vocabulary(vocabulary, files)
    opened: list[mmgguf.GGUFFile] = []

    def prepare() -> None:
        # A new file each time, that knows nothing of its strings yet.
        while opened:
            opened.pop().close()
        opened.append(mmgguf.open(path))

    claim.check(
        _LISTS.format(vocabulary, "again and again"),
        "<= 1.5",
        lambda: claim.ratio(
            Contestant(lambda: _lists(opened[0].metadata), prepare=prepare), _opening("C library", path)
        ),
    )
    _check_lists(path)


def _lists(metadata: mmgguf.Metadata) -> tuple[list[str], list[str]]:
    return list(metadata["tokenizer.ggml.tokens"]), list(metadata["tokenizer.ggml.merges"])


def _check_lists(path: str) -> None:
    with mmgguf.open(path) as file:
        for strings, key in zip(_lists(file.metadata), ("tokens", "merges"), strict=True):
            stored = file.metadata[f"tokenizer.ggml.{key}"]
            assert len(strings) == len(stored)
            assert [strings[0], strings[-1]] == [stored[0], stored[-1]]


def test_open_many_tensors(claim: Claim, files: Files, sizes: Sizes) -> None:
    _require("C library")
    path = files.generated("many")
    claim.check(
        f"open a file of {sizes.tensors} tensors: time against the C library",
        "<= 1.0",
        lambda: claim.ratio(_opening("mmgguf", path), _opening("C library", path)),
    )


def test_system_calls(claim: Claim, files: Files) -> None:
    path = files.generated("vocabulary")

    def run() -> float:
        with CountingFile(path) as buffered, CountingFile(path) as unbuffered:
            header = parse_header(buffered)
            metadata, _ = read_fields(unbuffered.read)
            assert list(header.metadata) == list(metadata)
            claim.benchmark.extra_info.update(system_calls=[buffered.total, unbuffered.total])
            return unbuffered.total / buffered.total

    claim.check("parse a header: system calls unbuffered, against the seeker's", ">= 20", run)


@pytest.mark.parametrize("what", ["tensors", "strings", "long strings"])
def test_linear(claim: Claim, files: Files, what: str) -> None:
    small, large = (scaled_file(files, what, times)[0] for times in (1, 8))
    claim.check(
        f"open 8 times as many {what}: time, against 8 times the time",
        "<= 1.2",
        lambda: claim.ratio(_opening("mmgguf", large), _opening("mmgguf", small)) / 8,
    )


def test_import(claim: Claim, tmp_path: Path) -> None:
    claim.check(
        "import mmgguf: time against import numpy, ml_dtypes",
        "<= 1.5",
        lambda: claim.ratio_when_fresh(("", "import mmgguf"), ("", "import numpy, ml_dtypes"), tmp_path),
    )


# ---------------------------------------------------------------- access


def test_microseconds_per_tensor(claim: Claim, files: Files, sizes: Sizes) -> None:
    with mmgguf.open(files.generated("many")) as file:
        tensors = list(file.values())

        def run() -> float:
            every = Contestant(lambda: [tensor.data for tensor in tensors])
            return compare({"": every}, claim.seconds)[""].best / len(tensors) * 1e6

        claim.check(f"touch .data of all of {sizes.tensors} tensors: microseconds each", "<= 5", run)
        assert [tensor.data.nbytes for tensor in tensors] == [tensor.nbytes for tensor in tensors]


def test_one_tensor(claim: Claim, files: Files) -> None:
    """By name, from an open file.  The small file is safetensors' better case: it copies."""
    _require("safetensors")
    path = files.generated("many")
    other = PEERS["safetensors"].open(files.in_format(path, "safetensors"))
    with mmgguf.open(path) as file:
        names = list(file)
        claim.check(
            "get one small tensor by name: time against safetensors",
            "<= 1.0",
            lambda: claim.ratio(
                Contestant(lambda: [file[name].data for name in names]),
                Contestant(lambda: [other.get_tensor(name) for name in names]),
            ),
        )
        assert np.array_equal(file[names[-1]].data, other.get_tensor(names[-1]))


def _taking_all(model: Model, way: str, total: Callable[[Any], int], before: Callable[[], None]) -> Contestant:
    """All tensors by one way, each time in memory that is new, from a file that is open already."""
    with mmgguf.open(model.path) as file:
        names = list(file)
    chosen, handles = WAYS[way], list[Any]()

    def close(_: Any = None) -> None:
        while handles:
            chosen.close(handles.pop())

    def prepare() -> None:
        before()
        handles.append(chosen.open(model.path))

    def run() -> int:
        arrays = [chosen.tensor(handles[0], name) for name in names]
        return sum(total(array) for array in arrays)

    return Contestant(run, close, prepare)


@pytest.mark.parametrize("touch", ["a byte of every page", "every byte"])
def test_warm(claim: Claim, large_model: Model, touch: str) -> None:
    measure.warm_up(large_model.path)
    total = byte_sum if touch == "every byte" else page_sum
    ways = [_taking_all(large_model, way, total, lambda: None) for way in ("unbuffered (preadv)", "mmgguf")]
    claim.check(
        f"touch {touch} of all tensors, warm: time of unbuffered reads against mapped",
        ">= 3",
        lambda: claim.ratio(*ways, max_rounds=15),
    )


def test_cold(claim: Claim, large_model: Model, why_not_cold: str | None) -> None:
    if why_not_cold is not None:
        pytest.skip(f"no cold cache here: {why_not_cold}")
    ways = [
        _taking_all(large_model, way, page_sum, lambda: measure.evict(large_model.path))
        for way in ("unbuffered (preadv)", "mmgguf")
    ]
    claim.seconds *= 3
    claim.check(
        "touch all tensors, cold: time of unbuffered reads against mapped",
        ">= 1.0",
        lambda: claim.ratio(*ways, max_rounds=5),
    )
    measure.warm_up(large_model.path)


def test_huge_file(claim: Claim, files: Files) -> None:
    try:
        memory_usage()
    except OSError as error:
        pytest.skip(f"no /proc/self/smaps_rollup: {error.strerror}")
    path = sparse_file(files)

    def run() -> float:
        with Child() as child:
            return (child.step("open", path, "mmap")["anonymous"] - child.memory["anonymous"]) / 2**20

    claim.check("open a file of 40 GiB: MiB of anonymous memory", "<= 8", run)


# ---------------------------------------------------------------- dequantizing


def _mean(values: list[float]) -> float:
    return statistics.geometric_mean(values)


@pytest.mark.parametrize(
    ("one", "other", "least", "mean"),
    [("mmgguf, numpy", "gguf-py", 2.0, 3.5), ("mmgguf, numba", "C library", 0.8, 1.4)],
    ids=["numpy", "numba"],
)
@pytest.mark.parametrize("which", ["slowest type", "mean over types"])
def test_dequantize(claim: Claim, sizes: Sizes, one: str, other: str, least: float, mean: float, which: str) -> None:
    _require(other)
    if one == "mmgguf, numba":
        pytest.importorskip("numba")
    ratios = _dequantize_ratios(one, other, sizes.matrix, claim.seconds / 10)
    slowest = min(ratios, key=lambda name: ratios[name])
    if which == "slowest type":
        text, bar, value = f"dequantize with {one}, slowest type", f">= {least}", ratios[slowest]
    else:
        text, bar, value = f"dequantize with {one}, geometric mean over types", f">= {mean}", _mean([*ratios.values()])
    claim.check(f"{text}: speed against {other}", bar, lambda: value, slowest=slowest, ratios=ratios)


_measured: dict[tuple[str, str, tuple[int, int]], dict[str, float]] = {}


def _dequantize_ratios(one: str, other: str, shape: tuple[int, int], seconds: float) -> dict[str, float]:
    """How many times as fast `one` is, by type, for the types that both know."""
    key = one, other, shape
    if key not in _measured:
        found = {}
        for type_ in TYPES:
            blocks = random_blocks(type_, shape)
            try:
                runs = {name: CONTESTANTS[name](type_, blocks, shape) for name in (one, other)}
            except pytest.skip.Exception:
                continue
            runs[one]()  # compiled on first use
            times = compare({name: Contestant(run) for name, run in runs.items()}, seconds)
            found[type_.name] = times[other].best / times[one].best
        _measured[key] = found
    return _measured[key]


@pytest.mark.parametrize("type_", [GGMLType.Q4_K, GGMLType.Q8_0], ids=lambda type_: type_.name)
def test_two_threads(claim: Claim, sizes: Sizes, type_: GGMLType) -> None:
    """Beside it what two threads gain that do nothing but store: where one core can write as much as the memory takes,
    nothing gains, and whether that is so can change from second to second on a virtual machine."""
    pytest.importorskip("numba")
    if (os.cpu_count() or 1) < 2:
        pytest.skip("one core")
    blocks, out = random_blocks(type_, sizes.matrix), np.empty(sizes.matrix, np.float32)

    def threads(count: int) -> Contestant:
        return Contestant(lambda: dequantize(blocks, type_, out=out, threads=count, backend="numba"))

    def stores(count: int) -> Contestant:
        return Contestant(lambda: spread(lambda part: part.fill(1), np.split(out, 8), count))

    def run() -> float:
        contestants = {"one": threads(1), "two": threads(2), "fill": stores(1), "fill by two": stores(2)}
        times = compare(contestants, claim.seconds * 4, 10_000)
        claim.benchmark.extra_info.update(
            milliseconds=[times["one"].best * 1e3, times["two"].best * 1e3],
            ratio_of_medians=times["one"].median / times["two"].median,
            rounds=[times["one"].rounds, times["two"].rounds],
            gain_of_stores=[
                times["fill"].best / times["fill by two"].best,
                times["fill"].median / times["fill by two"].median,
            ],
        )
        return times["one"].best / times["two"].best

    threads(2).run()
    claim.check(f"dequantize {type_.name} with two threads: speed against one", ">= 1.7", run)
    # The same numbers, whoever computed them.
    threads(1).run()
    alone = out.copy()
    threads(2).run()
    assert np.array_equal(alone, out, equal_nan=True)


def test_float16(claim: Claim, sizes: Sizes) -> None:
    pytest.importorskip("numba")
    blocks = random_blocks(GGMLType.Q4_K, sizes.matrix)

    def into(dtype: Any) -> Contestant:
        out = np.empty(sizes.matrix, dtype)
        return Contestant(lambda: dequantize(blocks, GGMLType.Q4_K, dtype, out=out, threads=1, backend="numba"))

    contestants = into(np.float32), into(np.float16)
    for contestant in contestants:
        contestant.run()
    claim.check(
        "dequantize Q4_K into float16: elements per second against float32",
        ">= 0.8",
        lambda: claim.ratio(*contestants),
    )
