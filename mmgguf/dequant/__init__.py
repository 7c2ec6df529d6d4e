"""Stored blocks → numbers, with ggml's exact bits."""
