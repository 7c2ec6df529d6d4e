"""Look into files: findings, digests, differences and statistics as data, never printed."""

from __future__ import annotations

from .contents import Difference, Digests, compare, digest
from .findings import Finding, verify
from .histogram import Histogram, bucket_edges
from .imatrix import Importance, importance, is_imatrix
from .statistics import Outlier, TensorStats, stats
from .values import TensorDistance, TypeDistance, ValueComparison, compare_values

__all__ = [
    "Difference",
    "Digests",
    "Finding",
    "Histogram",
    "Importance",
    "Outlier",
    "TensorDistance",
    "TensorStats",
    "TypeDistance",
    "ValueComparison",
    "bucket_edges",
    "compare",
    "compare_values",
    "digest",
    "importance",
    "is_imatrix",
    "stats",
    "verify",
]
