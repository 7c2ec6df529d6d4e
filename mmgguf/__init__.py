"""Open GGUF model files; every tensor is a zero-copy numpy view of the mapped file."""

from __future__ import annotations

__version__ = "0.1.0"
