"""Dequantize stored blocks, bit for bit as ggml does.

`dispatch` holds `dequantize` and what is common to all types; ``numpy`` and ``numba`` have the kernels of each
backend, the latter imported when they are first asked for.  ``array_api`` has kernels for torch and JAX.
"""

from __future__ import annotations

from .dispatch import BACKENDS, DTYPES, dequantize, get_backend, target_dtype

__all__ = ["BACKENDS", "DTYPES", "dequantize", "get_backend", "target_dtype"]
