"""Look into files: findings, digests, differences and statistics as data, never printed."""

from __future__ import annotations

from .contents import Difference, Digests, compare, digest
from .verify import Finding, verify

__all__ = ["Difference", "Digests", "Finding", "compare", "digest", "verify"]
