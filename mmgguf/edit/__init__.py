"""Change files: their metadata, how they are split, their byte order; and take tensors out of them.

Nothing here converts weights: tensors keep their bytes (in the other byte order: their values).  Outputs get their
names when they are complete, never replace a file unless they are told to, and are never the file that is read.
"""

from __future__ import annotations

from .inplace import recover
from .metadata import Change, Edit, plan_edit, replace_metadata
from .shards import convert_byte_order, extract, merge, plan_split, split

__all__ = [
    "Change",
    "Edit",
    "convert_byte_order",
    "extract",
    "merge",
    "plan_edit",
    "plan_split",
    "recover",
    "replace_metadata",
    "split",
]
