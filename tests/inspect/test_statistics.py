"""Statistics of weights, held against numpy on dequantized arrays and against exact fractions."""

from __future__ import annotations

import math
import struct
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mmgguf
from mmgguf.errors import NameNotFoundError
from mmgguf.inspect import bucket_edges, importance, is_imatrix, statistics, stats
from mmgguf.inspect import histogram as histogram_module
from mmgguf.inspect.histogram import Accumulator

from ..support import build

BACKENDS = ["numpy", "numba"]


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "numba":
        pytest.importorskip("numba")
    monkeypatch.setenv("MMGGUF_BACKEND", request.param)
    return str(request.param)


def write(path: Path, **tensors: Any) -> Path:
    mmgguf.write(path, {"general.architecture": "x"}, tensors)
    return path


def exact(values: np.ndarray[Any, Any]) -> tuple[float, Fraction, Fraction]:
    """The mean, the variance and the mean square as fractions."""
    numbers = [Fraction(float(v)) for v in values.reshape(-1)]
    mean = sum(numbers, Fraction()) / len(numbers)
    square = sum((n * n for n in numbers), Fraction()) / len(numbers)
    return float(mean), square - mean * mean, square


def assert_root(found: float, square: Fraction) -> None:
    """Within one unit in the last place of the exact root."""
    low, high = math.nextafter(found, 0), math.nextafter(found, math.inf)
    assert Fraction(low) ** 2 <= square <= Fraction(high) ** 2


HARD = {
    "normal": np.random.default_rng(0).standard_normal(3000).astype("f4"),
    "cancelling": np.array([1e30, 1.0, -1e30, 2.0**-149, 3.4e38, -3.4e38], "f4"),
    "tiny": np.array([1, 2, 3, 0x80000004], "u4").view("f4"),
    "subnormal": np.array([2.0**-149, -(2.0**-126), 2.0**-127, 0.0, -0.0], "f4"),
    "huge": np.full(5, np.finfo("f4").max, "f4"),
    "one": np.array([-2.5], "f4"),
    "zeros": np.zeros(300, "f4"),
    "constant": np.full(70000, 0.1, "f4"),
}


@pytest.mark.parametrize("values", HARD.values(), ids=HARD)
def test_sums_are_exact(values: np.ndarray[Any, Any], backend: str, tmp_path: Path) -> None:
    found = stats(write(tmp_path / "a.gguf", w=values))["w"]
    assert found is not None
    some = values[:5000] if len(values) > 5000 else values  # fractions are slow, and this one is constant
    mean, variance, square = exact(some)
    assert found.mean == mean
    assert_root(found.std, variance)
    assert_root(found.rms, square)
    assert (found.min, found.max, found.count) == (values.min(), values.max(), values.size)
    assert (found.zeros, found.nan, found.infinite) == (np.count_nonzero(values == 0), 0, 0)
    assert found.histogram.counts.sum() == values.size


def test_every_type_like_numpy(all_types: Path, backend: str) -> None:
    found = stats(all_types)
    with mmgguf.open(all_types) as f:
        assert list(found) == list(f)
        for name, tensor in f.items():
            one = found[name]
            assert one is not None
            assert (one.name, one.type) == (name, tensor.type)
            with np.errstate(over="ignore"):
                values = mmgguf.load_file(f, names=[name])[name].astype(np.float32).reshape(-1)
            finite = values[np.isfinite(values)].astype(np.float64)
            assert one.count == values.size
            assert one.nan == np.isnan(values).sum()
            assert one.infinite == np.isinf(values).sum()
            if finite.size:
                assert (one.min, one.max) == (finite.min(), finite.max())
                assert one.mean == pytest.approx(math.fsum(finite) / finite.size, rel=1e-15)
                assert one.rms == pytest.approx(math.sqrt(math.fsum(finite * finite) / finite.size), rel=1e-14)
                order = np.argsort(-np.abs(np.where(np.isnan(values), 0, values)), kind="stable")[:8]
                expected = [(float(values[i]), np.unravel_index(i, tensor.shape)) for i in order]
                assert [(o.value, o.index) for o in one.outliers][:8] == expected[: len(one.outliers)]
            # Positive numbers belong to the bucket that they begin, negative ones to the one that they end.
            magnitudes = bucket_edges()[1020:-1]
            bucket = np.searchsorted(magnitudes, np.abs(finite), side="right") - 1
            signed = np.where(np.signbit(finite), 1019 - bucket, 1020 + bucket)
            assert np.array_equal(one.histogram.counts, np.bincount(signed, minlength=2040))


def test_the_same_bits_in_any_order_and_on_any_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(5)
    values = (rng.standard_normal(300_000) * 10.0 ** rng.integers(-30, 30, 300_000)).astype("f4")
    results = []
    for no, (order, part) in enumerate([(slice(None), 1 << 20), (slice(None, None, -1), 1 << 16), (slice(None), 4096)]):
        monkeypatch.setattr(statistics, "PART", part)
        path = write(tmp_path / f"{no}.gguf", w=np.ascontiguousarray(values[order]))
        for threads in (1, 3):
            one = stats(path, threads=threads)["w"]
            assert one is not None
            values_of = tuple(o.value for o in one.outliers)
            results.append((one.mean, one.std, one.rms, one.min, one.max, values_of, one.histogram.counts.tobytes()))
    assert len(set(results)) == 1


def test_outliers_are_the_first_of_equal_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "PART", 1 << 16)
    values = np.tile(np.array([1, -3, 3, 0.5], "f4"), 200_000).reshape(1000, 800)
    values[700, 5] = np.inf
    values[1, 1] = np.nan
    path = write(tmp_path / "a.gguf", w=values)
    for threads in (1, 4):
        one = stats(path, threads=threads)["w"]
        assert one is not None
        assert [o.index for o in one.outliers] == [(700, 5), (0, 1), (0, 2), (0, 5), (0, 6), (0, 9), (0, 10), (0, 13)]
        assert [o.value for o in one.outliers][:3] == [math.inf, -3, 3]
        assert (one.nan, one.infinite, one.min, one.max) == (1, 1, -3, 3)
        assert one.non_finite_share == 2 / values.size


def test_nothing_finite_empty_and_no_dimensions(tmp_path: Path, backend: str) -> None:
    path = write(
        tmp_path / "a.gguf", nan=np.full(4, np.nan, "f4"), empty=np.zeros((0, 3), "f4"), scalar=np.array(2.5, "f4")
    )
    found = stats(path)
    nan, empty, scalar = found["nan"], found["empty"], found["scalar"]
    assert nan is not None
    assert empty is not None
    assert scalar is not None
    assert (nan.count, nan.nan, nan.outliers) == (4, 4, ())
    assert all(math.isnan(x) for x in (nan.min, nan.max, nan.mean, nan.std, nan.rms, empty.mean))
    assert (empty.count, empty.zero_share, empty.non_finite_share) == (0, 0.0, 0.0)
    assert (scalar.mean, scalar.std, scalar.outliers[0].index) == (2.5, 0.0, ())


def test_wide_types_are_rounded_to_float32(tmp_path: Path) -> None:
    path = write(tmp_path / "a.gguf", d=np.array([1e300, 0.1]), i=np.array([1 << 40, -1], "i8"))
    found = stats(path)
    d, i = found["d"], found["i"]
    assert d is not None
    assert i is not None
    assert (d.infinite, d.max) == (1, float(np.float32(0.1)))
    assert (i.min, i.max, i.mean) == (-1, 1 << 40, (2**40 - 1) / 2)


def test_names_progress_and_unknown_types(tmp_path: Path) -> None:
    b = build.Build(3).start(tensors=2, pairs=0).tensor(b"new", [4], type_=200).tensor(b"w", [8], offset=32)
    (tmp_path / "a.gguf").write_bytes(bytes(b.data(bytes(32), struct.pack("8f", *range(8)))))
    steps: list[tuple[int, int]] = []
    found = stats(tmp_path / "a.gguf", progress=lambda *step: steps.append(step))
    assert found["new"] is None
    assert steps == [(0, 32), (32, 32)]
    assert list(stats(tmp_path / "a.gguf", names="w")) == ["w"]
    with pytest.raises(NameNotFoundError):
        stats(tmp_path / "a.gguf", names="none")


def test_a_full_table_is_emptied(monkeypatch: pytest.MonkeyPatch, backend: str) -> None:
    monkeypatch.setattr(histogram_module, "TABLE_LIMIT", 1000)
    values = np.random.default_rng(1).standard_normal(5500).astype("f4")
    one, other = Accumulator(), Accumulator()
    one.add(values[:2600])
    other.add(values[2600:])
    one.merge(other)
    mean, variance, _ = exact(values)
    moments = one.moments()
    assert (moments["count"], moments["mean"]) == (5500, mean)
    assert_root(moments["std"], variance)


def test_other_edges(tmp_path: Path) -> None:
    values = np.linspace(-1, 1, 100_001, dtype="f4")
    one = stats(write(tmp_path / "a.gguf", w=values))["w"]
    assert one is not None
    counts = one.histogram.rebinned(np.linspace(-1, 1, 9))
    assert counts.sum() == pytest.approx(values.size, rel=1e-3)
    assert counts == pytest.approx(np.full(8, values.size / 8), rel=0.01)
    span = one.histogram.span()
    assert bucket_edges()[span][0] <= -1
    assert np.all(np.diff(bucket_edges()) > 0)


# Importance matrices.


def imatrix(path: Path, **tensors: Any) -> Path:
    named = {name.replace("__", "."): np.asarray(value, np.float32) for name, value in tensors.items()}
    mmgguf.write(path, {"general.type": "imatrix", "imatrix.chunk_count": 3}, named)
    return path


def test_importance(tmp_path: Path) -> None:
    path = imatrix(
        tmp_path / "i.gguf",
        a__in_sum2=[[8, 8, 8, 8]],
        a__counts=[[4]],
        b__in_sum2=[[0, 30, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0]],
        b__counts=[[3], [1], [0]],
    )
    with mmgguf.open(path) as f:
        assert is_imatrix(f.metadata)
    b, a = importance(path)
    assert (a.name, a.experts, a.columns, a.activations) == ("a", 1, 4, 4)
    assert (a.mean, a.max, a.total, a.entropy, a.coverage) == (2, 2, 8, pytest.approx(1), 1)
    assert (b.name, b.experts, b.total, b.max) == ("b", 3, 14, 10)
    assert b.coverage == 5 / 12
    assert 0 < b.entropy < 1


@pytest.mark.parametrize(
    "tensors",
    [
        {"w": [1.0]},
        {"a__in_sum2": [[1.0]]},
        {"a__in_sum2": [[1.0], [2.0]], "a__counts": [[1.0]]},
    ],
    ids=["none", "no counts", "counts of others"],
)
def test_what_is_no_importance_matrix(tmp_path: Path, tensors: Any) -> None:
    with pytest.raises(ValueError, match=r"importance|counts"):
        importance(imatrix(tmp_path / "i.gguf", **tensors))


def test_an_importance_matrix_of_odd_numbers(tmp_path: Path) -> None:
    path = imatrix(
        tmp_path / "i.gguf",
        a__in_sum2=[[np.nan, np.inf, 1]],
        a__counts=[[1]],
        b__in_sum2=[[1, 2]],
        b__counts=[[0]],
        c__in_sum2=np.zeros((1, 0)),
        c__counts=[[1]],
    )
    rows = {row.name: row for row in importance(path)}
    assert rows["a"].total == 1
    assert math.isnan(rows["b"].mean)
    assert rows["c"].total == 0
