"""Bytes ↔ header, as the GGUF specification says; `header` tells the format."""
