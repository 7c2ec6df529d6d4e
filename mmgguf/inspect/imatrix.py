"""Importance matrices: GGUF files of ``llama-imatrix``, with sums of the squared activations of each weight matrix.

For a matrix NAME such a file has two tensors: ``NAME.in_sum2``, the sums of the squared activations of each input
column, one row per expert, and ``NAME.counts``, how many activations were summed for each expert.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ..file import GGUFFile, Source, opened
from ..format.metadata import Metadata

__all__ = ["Importance", "importance", "is_imatrix"]

_SUMS, _COUNTS = ".in_sum2", ".counts"


@dataclass(frozen=True, slots=True)
class Importance:
    """What an importance matrix says of one weight matrix.

    Attributes
    ----------
    name : str
        The matrix.
    experts, columns : int
        Rows of the importance matrix, and activations of each.
    activations : float
        How many were summed, over all experts.
    mean, max : float
        Of the mean squared activations of columns: what matters.  NaN if none was seen.
    total : float
        Sum of the mean squared activations: how much the matrix matters in all.
    entropy : float
        Of the shares of columns in `total`, from 0 (one column is all) to 1 (all alike).
    coverage : float
        Share of experts that have seen an activation, times the share of their columns that were not always zero.
    """

    name: str
    experts: int
    columns: int
    activations: float
    mean: float
    max: float
    total: float
    entropy: float
    coverage: float


def is_imatrix(metadata: Metadata) -> bool:
    """Whether a file is an importance matrix, by ``general.type``.

    Examples
    --------
    >>> with mmgguf.open("model.gguf") as f:
    ...     is_imatrix(f.metadata)
    False
    """
    return metadata.get("general.type") == "imatrix"


def importance(source: Source) -> list[Importance]:
    """The matrices of an importance matrix, those that matter most first.

    Parameters
    ----------
    source : path-like or GGUFFile
        A file that ``llama-imatrix`` wrote as GGUF.

    Returns
    -------
    list of Importance
        By `total`, descending.

    Raises
    ------
    ValueError
        The file is none: no tensor has a name that ends in ``.in_sum2``, or one lacks its ``.counts``.
    GGUFError, OSError
        The file cannot be read.

    Examples
    --------
    >>> sums = np.array([[4.0, 0.0]], np.float32)
    >>> tensors = {"w.in_sum2": sums, "w.counts": np.array([[2.0]], np.float32)}
    >>> mmgguf.write("imatrix.gguf", {"general.type": "imatrix"}, tensors)
    >>> [(row.name, row.total) for row in importance("imatrix.gguf")]
    [('w', 2.0)]
    """
    with opened(source) as f:
        rows = [_one(f, name.removesuffix(_SUMS)) for name in f if name.endswith(_SUMS)]
        if not rows:
            raise ValueError(f"{f.path}: not an importance matrix: no tensor's name ends in {_SUMS}")
    return sorted(rows, key=lambda row: -row.total if row.total == row.total else math.inf)


def _one(f: GGUFFile, name: str) -> Importance:
    if name + _COUNTS not in f:
        raise ValueError(f"{f.path}: {name!r:.100} has {_SUMS}, but no {_COUNTS}")
    sums = f[name + _SUMS].dequantize(np.float64)
    counts = f[name + _COUNTS].dequantize(np.float64).reshape(-1)
    columns = sums.shape[-1] if sums.ndim else 1
    experts = math.prod(sums.shape[:-1])
    sums = sums.reshape(experts, columns)
    if len(counts) != experts:
        raise ValueError(f"{f.path}: {name!r:.100} has {experts} rows of sums and {len(counts)} counts")
    seen = counts > 0
    means = sums[seen] / counts[seen, None]
    finite = means[np.isfinite(means)]
    total = float(finite.sum())
    shares = finite[finite > 0] / total if total > 0 else finite[:0]
    entropy = float(-(shares * np.log(shares)).sum() / math.log(finite.size)) if finite.size > 1 else 0.0
    covered = np.count_nonzero(sums[seen] > 0) / sums.size if sums.size else 0.0
    none = math.nan
    return Importance(
        name,
        experts,
        columns,
        float(counts[np.isfinite(counts)].sum()),
        float(finite.mean()) if finite.size else none,
        float(finite.max()) if finite.size else none,
        total,
        entropy,
        float(covered),
    )
