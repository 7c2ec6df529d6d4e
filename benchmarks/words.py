"""Figures and names as a person writes them: 8.9 s, 37 µs, 12 times, "ggml's C library"."""

from __future__ import annotations

import math
from typing import Final

__all__ = ["LABELS", "duration", "label", "mebibytes", "number", "rate", "short_rate", "size"]

#: Contestants whose name in the JSON says too little on a page.
LABELS: Final = {
    "C library": "ggml's C library",
    "mmgguf, storage=read": "mmgguf, storage=read",
    "unbuffered (preadv)": "unbuffered reads",
    "buffered (64 KiB)": "buffered reads, 64 KiB",
    "gguf.js": "@huggingface/gguf (node)",
    "transformers, mmgguf.compat": "transformers on mmgguf",
    "safetensors (bf16)": "safetensors of bfloat16",
    "np.load (mmap)": "np.load(mmap_mode), float32",
    "mmgguf.torch, portable": "mmgguf.torch, any device",
}


def label(contestant: str) -> str:
    """A contestant's name for tables and charts."""
    return LABELS.get(contestant, contestant)


def number(value: float, digits: int = 2) -> str:
    """So many significant digits, without exponents: 0.13, 8.6, 35, 11,000."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    decimals = digits - 1 - math.floor(math.log10(abs(value)))
    rounded = round(value, decimals)
    # Rounding up may have given a digit more: 9.96 is 10, not 10.0.
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(rounded))))
    return f"{rounded:,.{decimals}f}"


def duration(seconds: float, digits: int = 2) -> str:
    """So many digits and a unit: 350 ns, 37 µs, 4.6 ms, 8.9 s."""
    for unit, scale in (("s", 1.0), ("ms", 1e3), ("µs", 1e6)):
        if float(f"{seconds * scale:.2g}") >= 1:
            return f"{number(seconds * scale, digits)} {unit}"
    return f"{number(seconds * 1e9, digits)} ns"


def rate(nbytes: float, seconds: float) -> str:
    """Gigabytes per second, for work that uses every byte."""
    return f"{number(nbytes / seconds / 1e9)} GB/s"


def short_rate(nbytes: float, seconds: float) -> str:
    return number(nbytes / seconds / 1e9)


def size(nbytes: float) -> str:
    """Gigabytes, or megabytes: of files."""
    return f"{nbytes / 1e9:.2g} GB" if nbytes >= 1e9 else f"{nbytes / 1e6:.0f} MB"


def mebibytes(nbytes: float) -> str:
    return f"{number(nbytes / 2**20, 3)} MiB"
