"""What a report tells of a file, as plain data that JSON takes."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

import numpy as np

from .. import notebook
from ..errors import GGUFError, human_size
from ..file import GGUFFile
from ..format.metadata import Metadata
from ..format.strings import StringArray
from ..inspect import Finding, TensorDistance, TensorStats, ValueComparison
from ..notebook import type_name
from ..tensor import Tensor
from ..types import layout_of

__all__ = ["METRICS", "collect", "layer_of", "nbytes_of", "type_name", "visible"]

#: Characters of a value, elements of an array and tokens that the page has.
MAX_VALUE: Final = 1 << 16
MAX_ELEMENTS: Final = 64
MAX_TOKENS: Final = 1 << 19
MAX_TOKEN: Final = 200
MAX_TENSORS: Final = 1 << 14
#: Bins of a tensor's histogram.
BINS: Final = 61
#: What the heat map can show: the field, and what it is for people.
METRICS: Final = {
    "rms": "root mean square",
    "std": "standard deviation",
    "mean": "mean",
    "peak": "greatest magnitude",
    "zeros": "share of zeros",
    "bpw": "bits per weight",
}

_LAYER: Final = re.compile(r"(?:.*\.)?blk\.([0-9]{1,6})\.(.+)", re.DOTALL)


def visible(text: object, limit: int = MAX_VALUE, lines: bool = False) -> str:
    """A text from the file as the page shows it; see `mmgguf.notebook.visible`."""
    return notebook.visible(text, limit, lines)


def nbytes_of(tensor: Tensor) -> int | None:
    """Bytes of a tensor, None for an unknown type."""
    return tensor.nbytes if layout_of(tensor.type) is not None else None


def layer_of(name: str) -> tuple[int, str] | None:
    """The number of a tensor's layer and what it is there; None outside of layers."""
    match = _LAYER.fullmatch(name)
    return (int(match[1]), match[2]) if match else None


def collect(
    f: GGUFFile,
    findings: list[Finding] | None,
    statistics: Mapping[str, TensorStats | None],
    comparison: ValueComparison | None,
    other: str | None,
) -> dict[str, Any]:
    """Everything that the page's tables show."""
    return {
        "title": visible(os.path.basename(f.path), 200),
        "summary": list(_summary(f)),
        "tensors": [_tensor(t, statistics.get(t.name)) for _, t in _first(f)],
        "tensorCount": len(f),
        "outliers": _outliers(statistics),
        "metadata": [_pair(f.metadata, key) for key in f.metadata],
        "templates": _templates(f.metadata),
        "tokens": _tokens(f.metadata),
        "findings": None if findings is None else [_finding(x) for x in findings],
        "comparison": None if comparison is None else _comparison(comparison, other or ""),
    }


def _first(f: GGUFFile) -> Iterator[tuple[int, Tensor]]:
    for number, tensor in enumerate(f.values()):
        if number == MAX_TENSORS:
            return
        yield number, tensor


def _summary(f: GGUFFile) -> Iterator[tuple[str, str]]:
    known = [(n, t.size) for t in f.values() if (n := nbytes_of(t)) is not None]
    weights = sum(size for _, size in known)
    yield "file", visible(f.path, 500)
    yield "format", f"GGUF {f.version}, {f.byte_order}-endian, alignment {f.alignment}"
    for label, key in (("architecture", "general.architecture"), ("name", "general.name")):
        value = f.metadata.get(key)
        if isinstance(value, str):
            yield label, visible(value, 200)
    try:
        if f.file_type is not None:
            yield "file type", getattr(f.file_type, "name", f"unknown ({f.file_type})")
    except GGUFError:
        pass  # stored as something else than an integer; the metadata shows it
    yield "parameters", f"{f.parameter_count:,}"
    if weights:
        yield "bits per weight", f"{8 * sum(n for n, _ in known) / weights:.3f}"
    yield "size", f"{human_size(f.nbytes)} ({f.nbytes:,} bytes)"
    yield "tensors", f"{len(f):,}"
    if len(f.shards) > 1:
        yield "shards", str(len(f.shards))


def _number(value: float) -> float | str:
    """A number for JSON; NaN and infinities, which it lacks, as text."""
    return value if np.isfinite(value) else str(value)


def _tensor(tensor: Tensor, stats: TensorStats | None) -> list[Any]:
    nbytes = nbytes_of(tensor)
    row: list[Any] = [
        visible(tensor.name, 300),
        type_name(tensor.type),
        "×".join(map(str, tensor.shape)) or "scalar",
        tensor.size,
        nbytes,
        tensor.file_offset,
    ]
    if stats is None:
        return [*row, None, None, None, None, None, None, None, None]
    values = (stats.min, stats.max, stats.mean, stats.std, stats.rms, stats.zero_share)
    low, high, counts = _histogram(stats)
    return [*row, *map(_number, values), stats.nan + stats.infinite, [low, high, counts]]


def _histogram(stats: TensorStats) -> tuple[float, float, list[float]]:
    """Counts in even bins from the least to the greatest number that is no outlier."""
    if not np.isfinite(stats.min):
        return 0.0, 0.0, []
    reach = min(max(abs(stats.min), abs(stats.max)), abs(stats.mean) + 8 * stats.std) or 1.0
    low, high = max(stats.min, -reach), min(stats.max, reach)
    if not low < high:
        low, high = low - 0.5 * reach, low + 0.5 * reach
    counts = stats.histogram.rebinned(np.linspace(low, high, BINS + 1))
    return low, high, np.round(counts, 1).tolist()


def _outliers(statistics: Mapping[str, TensorStats | None]) -> list[list[Any]]:
    """The numbers that stick out most, in their tensor's own standard deviations."""
    rows = []
    for stats in statistics.values():
        if stats is None:
            continue
        for outlier in stats.outliers[:4]:
            finite = bool(np.isfinite(outlier.value)) and stats.std > 0
            sigmas = abs(outlier.value - stats.mean) / stats.std if finite else float("inf")
            rows.append((sigmas, visible(stats.name, 300), outlier))
    rows.sort(key=lambda row: -row[0])
    return [[_number(sigmas), name, "×".join(map(str, o.index)), _number(o.value)] for sigmas, name, o in rows[:500]]


def _pair(metadata: Metadata, key: str) -> list[str]:
    info, value = metadata.array_info(key), metadata[key]
    if info is None:
        return [visible(key, 300), metadata.type_of(key).name, visible(value, lines=True)]
    items = value[:MAX_ELEMENTS] if isinstance(value, StringArray) else value[:MAX_ELEMENTS].tolist()
    texts = ", ".join(f'"{visible(x, MAX_TOKEN)}"' if isinstance(x, str) else str(x) for x in items)
    more = ", …" if info.count > MAX_ELEMENTS else ""
    return [visible(key, 300), f"{info.element_type.name}[{info.count:,}]", f"[{texts}{more}]"]


def _templates(metadata: Metadata) -> list[list[str]]:
    prefix = "tokenizer.chat_template"
    return [
        [visible(key, 300), visible(metadata[key], lines=True)]
        for key in metadata
        if (key == prefix or key.startswith(prefix + ".")) and isinstance(metadata[key], str)
    ]


def _tokens(metadata: Metadata) -> dict[str, Any] | None:
    tokens = metadata.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, StringArray):
        return None
    count = min(len(tokens), MAX_TOKENS)
    result: dict[str, Any] = {
        "count": len(tokens),
        "tokens": [visible(token, MAX_TOKEN) for token in tokens[:count]],
        "model": visible(metadata.get("tokenizer.ggml.model", ""), 100),
    }
    for name in ("token_type", "scores"):
        values = metadata.get(f"tokenizer.ggml.{name}")
        if isinstance(values, np.ndarray) and len(values) == len(tokens) and values.dtype.kind in "iuf":
            plain = values[:count].astype(np.float64)
            if np.any(plain != plain[:1]):
                result[name] = np.where(np.isfinite(plain), np.round(plain, 4), -1e30).tolist()
    merges = metadata.get("tokenizer.ggml.merges")
    if isinstance(merges, StringArray):
        result["merges"] = [len(merges), [visible(merge, MAX_TOKEN) for merge in merges[:100]]]
    return result


def _finding(finding: Finding) -> list[Any]:
    return [
        finding.severity,
        finding.code,
        visible(finding.where, 300),
        finding.byte,
        visible(finding.message, 1000),
        visible(os.path.basename(finding.path), 200),
    ]


def _differing(comparison: ValueComparison) -> list[TensorDistance]:
    """Tensors whose numbers or types differ, the most distant first."""
    differ = [t for t in comparison.tensors if t.nmse or t.non_finite or t.a_type is not t.b_type]
    return sorted(differ, key=lambda t: -t.nmse)


def _comparison(comparison: ValueComparison, other: str) -> dict[str, Any]:
    return {
        "other": visible(os.path.basename(other), 200),
        "summary": visible(comparison.summary, 1000),
        "structure": [
            [d.change, d.kind, visible(d.name, 300), visible(d.message, 1000)] for d in comparison.structure[:2000]
        ],
        "types": [
            [t.a_type.name, t.b_type.name, t.tensors, t.count, _number(t.nmse), _number(t.rmse), _number(t.max_error)]
            for t in comparison.types
        ],
        "tensors": [
            [
                visible(t.name, 300),
                t.a_type.name,
                t.b_type.name,
                *map(_number, (t.nmse, t.rmse, t.max_error, t.cosine, t.kl)),
                t.non_finite,
            ]
            for t in _differing(comparison)[:MAX_TENSORS]
        ],
    }
