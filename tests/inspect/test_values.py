"""Two quantizations side by side, held against numpy on dequantized arrays."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mmgguf
from mmgguf import GGMLType, TypedTensor
from mmgguf.inspect import compare_values, values

from ..support import ggml


def write(path: Path, tensors: dict[str, Any], **metadata: Any) -> Path:
    mmgguf.write(path, {"general.architecture": "x"} | {k.replace("__", "."): v for k, v in metadata.items()}, tensors)
    return path


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """A model in float32 and the same in Q8_0 and Q4_K, as ggml's own quantizer makes them."""
    rng = np.random.default_rng(2)
    plain = {f"blk.{i}.w": (rng.standard_normal((64, 512)) * (i + 1)).astype("f4") for i in range(3)}
    types = [GGMLType.Q8_0, GGMLType.Q4_K, GGMLType.Q4_K]
    quantized = {
        name: TypedTensor(ggml.quantize(array, type_), type_, array.shape)
        for (name, array), type_ in zip(plain.items(), types, strict=True)
    }
    plain["norm"] = np.ones(7, "f4")
    return write(tmp_path / "A.gguf", plain), write(tmp_path / "B.gguf", quantized | {"norm": plain["norm"]})


def test_distances_like_numpy(pair: tuple[Path, Path]) -> None:
    found = compare_values(*pair)
    a, b = (mmgguf.load_file(path) for path in pair)
    assert [t.name for t in found.tensors] == list(a)
    for t in found.tensors:
        x, y = a[t.name].astype("f8").reshape(-1), b[t.name].astype("f8").reshape(-1)
        assert t.count == x.size
        assert t.rmse == pytest.approx(math.sqrt(((x - y) ** 2).mean()), rel=1e-12)
        assert t.nmse == pytest.approx(((x - y) ** 2).sum() / (x * x).sum(), rel=1e-12)
        assert t.max_error == np.abs(x - y).max()
        assert t.cosine == pytest.approx(x @ y / math.sqrt((x @ x) * (y @ y)), rel=1e-12)
        assert (t.kl > 0) == (t.name != "norm")
    assert found.structure == []
    rows = {(r.a_type.name, r.b_type.name): (r.tensors, r.count) for r in found.types}
    assert rows == {("F32", "Q4_K"): (2, 65536), ("F32", "Q8_0"): (1, 32768), ("F32", "F32"): (1, 7)}
    assert found.summary.startswith("B.gguf is A.gguf in Q4_K: 3 tensors differ, worst blk.")


def test_the_same_on_any_number_of_threads(pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    from mmgguf.inspect import statistics

    monkeypatch.setattr(statistics, "PART", 4096)
    assert compare_values(*pair, threads=1) == compare_values(*pair, threads=4)


def test_a_file_and_itself(pair: tuple[Path, Path]) -> None:
    found = compare_values(pair[0], pair[0])
    assert found.summary == "A.gguf is A.gguf in F32: all 4 tensors have equal numbers"
    assert all((t.rmse, t.nmse, t.max_error, t.cosine, t.kl) == (0, 0, 0, 1, 0) for t in found.tensors)


@pytest.mark.parametrize(
    ("x", "y", "expected"),
    [
        ([0, 0], [0, 1], {"nmse": math.inf, "max_error": 1, "count": 2}),
        ([1, 0], [0, 0], {"nmse": 1.0, "count": 2}),
        ([1, np.nan, np.inf, 2], [1, 1, 1, np.nan], {"nmse": 0.0, "count": 1, "non_finite": 3}),
        ([np.inf, 1], [-np.inf, 1], {"count": 1, "non_finite": 1}),
        ([3e38, -3e38], [-3e38, 3e38], {"max_error": 2 * float(np.float32(3e38)), "cosine": -1.0}),
        ([], [], {"count": 0, "nmse": 0.0, "kl": 0.0}),
    ],
    ids=["a zero", "b zero", "not finite", "opposite infinities", "huge", "empty"],
)
def test_odd_numbers(tmp_path: Path, x: Any, y: Any, expected: dict[str, Any]) -> None:
    a = write(tmp_path / "a.gguf", {"w": np.array(x, "f4")})
    b = write(tmp_path / "b.gguf", {"w": np.array(y, "f4")})
    (found,) = compare_values(a, b).tensors
    assert {key: getattr(found, key) for key in expected} == expected


def test_structure_and_tokens(tmp_path: Path) -> None:
    one, other = np.zeros(3, "f4"), np.zeros(4, "f4")
    tokens = [f"t{i}" for i in range(50)]
    a = write(
        tmp_path / "a.gguf", {"w": one, "gone": one, "shape": one}, tokenizer__ggml__tokens=tokens, x=1,
        tokenizer__ggml__scores=[0.5, 1.0],
    )  # fmt: skip
    b = write(
        tmp_path / "b.gguf", {"w": one, "shape": other, "new": one}, x=2, tokenizer__ggml__scores=[0.5, 2.0],
        tokenizer__ggml__tokens=[*tokens[:3], "\x1b[31m", *tokens[4:], "extra"],
    )  # fmt: skip
    found = compare_values(a, b)
    told = {(d.change, d.name): d.message for d in found.structure}
    assert told == {
        ("changed", "x"): "UINT32 1 → UINT32 2",
        ("changed", "tokenizer.ggml.tokens"): (
            "50 → 51 elements, 2 differ: 3: 't3' → '\\x1b[31m', 50: nothing → 'extra'"
        ),
        ("changed", "tokenizer.ggml.scores"): "1 differ: 1: 1.0 → 2.0",
        ("removed", "gone"): "F32 (3,)",
        ("changed", "shape"): "F32 (3,) → F32 (4,)",
        ("added", "new"): "F32 (3,)",
    }
    assert found.summary.endswith("3 tensors of only one or of another shape")
    assert [t.name for t in compare_values(a, b, names="w").tensors] == ["w"]
    assert compare_values(a, write(tmp_path / "c.gguf", {})).summary == "a.gguf and c.gguf have no common tensors"


def test_module_is_by_name() -> None:
    assert values.compare_values is compare_values
