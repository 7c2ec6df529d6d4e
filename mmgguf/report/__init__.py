"""Pictures of files: a self-contained page, and what notebooks show.

The page needs the extra ``report``; what notebooks show needs nothing, and ``hist`` and ``plot`` need matplotlib.
"""

from __future__ import annotations

from .page import write_page

__all__ = ["write_page"]
