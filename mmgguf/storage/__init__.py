"""Storages: where the bytes of a file are, and how arrays are taken from them."""
