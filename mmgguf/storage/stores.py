"""Model stores of other programs on this machine: where they are, and what is in them.

==========  =====================================================================================================
ollama      ``$OLLAMA_MODELS``, else ``~/.ollama/models`` and ``/usr/share/ollama/.ollama/models`` (Linux service):
            ``manifests/host/namespace/model/tag`` is JSON, its model layer's digest names a file in ``blobs/``
hf          ``$LLAMA_CACHE``, ``$HF_HUB_CACHE``, ``$HF_HOME/hub``, ``$XDG_CACHE_HOME/huggingface/hub``,
            ``~/.cache/huggingface/hub``: ``models--org--repo/{blobs,refs,snapshots}``
llama.cpp   ``$LLAMA_CACHE`` or ``~/.cache/llama.cpp``: ``org_repo_file.gguf``, as before 2026-03
lmstudio    the folder named in ``~/.lmstudio-home-pointer``, else ``~/.cache/lm-studio``, else ``~/.lmstudio``:
            ``models/publisher/model/*.gguf``
==========  =====================================================================================================

Nothing in a store is believed: a manifest is read up to a limit, a digest has to be one, and a blob as long as its
manifest says.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ..errors import StoreError, shown

__all__ = [
    "Layer",
    "StoredModel",
    "hub_repositories",
    "list_stores",
    "llamacpp_folders",
    "lmstudio_folder",
    "model_layer",
    "ollama_blob",
    "ollama_folders",
    "snapshot",
]

#: The most bytes of a manifest.
MAX_MANIFEST: Final = 1 << 20
_MODEL_LAYER: Final = "application/vnd.ollama.image.model"
_DIGEST: Final = re.compile(r"sha256[:-]([0-9a-f]{64})")
_COMMIT: Final = re.compile(r"[0-9a-f]{40,64}")
#: Deeper nobody looks for models.
_DEPTH: Final = 6


@dataclass(frozen=True, slots=True)
class Layer:
    """The model layer of an ollama manifest: the digest in hexadecimal, and the size in bytes."""

    digest: str
    size: int


@dataclass(frozen=True, slots=True)
class StoredModel:
    """One model in a store.

    Attributes
    ----------
    store : {"ollama", "hf", "llama.cpp", "lmstudio"}
        Whose.
    name : str
        What `mmgguf.open` takes for it, a path where the store has no names.
    path : str or None
        The file; None if there is none.
    digest : str or None
        SHA-256 of the file in hexadecimal, if the store knows it.
    problem : str or None
        Why it cannot be opened, as far as the store tells.
    """

    store: str
    name: str
    path: str | None
    digest: str | None = None
    problem: str | None = None


def _home(*parts: str) -> Path:
    return Path(os.path.expanduser("~"), *parts)


def _environment(name: str) -> list[Path]:
    value = os.environ.get(name)
    return [Path(os.path.expanduser(value))] if value else []


def _cache() -> Path:
    given = _environment("XDG_CACHE_HOME")
    return given[0] if given else _home(".cache")


# ---------------------------------------------------------------- ollama


def ollama_folders() -> list[Path]:
    """Folders that have ``manifests`` and ``blobs``, whether they exist or not."""
    service = [Path("/usr/share/ollama/.ollama/models")] if sys.platform == "linux" else []
    return _environment("OLLAMA_MODELS") or [_home(".ollama", "models"), *service]


def model_layer(data: bytes, where: str) -> Layer:
    """The model layer of a manifest.

    Raises
    ------
    StoreError
        It is not a manifest, has no such layer, or one with an invalid digest.
    """
    import json

    try:
        manifest = json.loads(data)
    except (ValueError, RecursionError):
        raise StoreError(f"{where}: not a manifest: not JSON") from None
    layers = manifest.get("layers") if isinstance(manifest, dict) else None
    if not isinstance(layers, list):
        raise StoreError(f"{where}: not a manifest: no list of layers")
    for layer in layers:
        if isinstance(layer, dict) and layer.get("mediaType") == _MODEL_LAYER:
            digest, size = layer.get("digest"), layer.get("size")
            match = _DIGEST.fullmatch(digest) if isinstance(digest, str) else None
            if match is None:
                raise StoreError(
                    f"{where}: the model's digest is {shown(str(digest), quoted=True)}, not sha256: and hex"
                )
            if not isinstance(size, int) or isinstance(size, bool) or size < 0:
                raise StoreError(f"{where}: the model's size is {shown(str(size), quoted=True)}")
            return Layer(match[1], size)
    raise StoreError(f"{where}: has no layer with a GGUF model (of media type {_MODEL_LAYER})")


def read_manifest(path: Path) -> Layer:
    """The model layer of a manifest file; `StoreError` or OSError."""
    with path.open("rb") as file:
        data = file.read(MAX_MANIFEST + 1)
    if len(data) > MAX_MANIFEST:
        raise StoreError(f"{path}: not a manifest: longer than {MAX_MANIFEST >> 20} MiB")
    return model_layer(data, str(path))


def ollama_blob(folder: Path, layer: Layer, where: str) -> Path:
    """The file of a layer.

    Raises
    ------
    StoreError
        It is missing, or has another size than the manifest says.
    """
    for mark in "-:":  # old versions of ollama wrote a colon
        path = folder / "blobs" / f"sha256{mark}{layer.digest}"
        with contextlib.suppress(FileNotFoundError):
            size = path.stat().st_size
            if size != layer.size:
                raise StoreError(
                    f"{path}: has {size} bytes, the manifest {where} says {layer.size}: download incomplete? pull the "
                    "model again"
                )
            return path
    raise StoreError(f"{where}: its blob sha256-{layer.digest} is not in {folder / 'blobs'}: pull the model again")


def _ollama_models() -> Iterator[StoredModel]:
    for folder in ollama_folders():
        root = folder / "manifests"
        for path in _files(root, lambda name: True):
            parts = path.relative_to(root).parts
            if len(parts) != 4:
                continue
            host, namespace, model, tag = parts
            short = [] if (host, namespace) == ("registry.ollama.ai", "library") else [namespace]
            short = short if host == "registry.ollama.ai" else [host, namespace]
            name = f"ollama://{'/'.join([*short, model])}:{tag}"
            digest = None
            try:
                layer = read_manifest(path)
                digest = layer.digest
                blob = ollama_blob(folder, layer, str(path))
            except (StoreError, OSError) as error:
                yield StoredModel("ollama", name, None, digest, str(error))
            else:
                yield StoredModel("ollama", name, str(blob), digest)


# ---------------------------------------------------------------- Hugging Face and llama.cpp


def hub_folders() -> list[Path]:
    """Caches in the layout of the Hub's clients; llama.cpp's own one first, as there."""
    hub = (
        _environment("HF_HUB_CACHE")
        or [home / "hub" for home in _environment("HF_HOME")]
        or [_cache() / "huggingface" / "hub"]
    )
    return [*_environment("LLAMA_CACHE"), *hub]


def llamacpp_folders() -> list[Path]:
    """Folders with files named ``org_repo_file.gguf``."""
    mac = _home("Library", "Caches", "llama.cpp")
    return _environment("LLAMA_CACHE") or [mac if sys.platform == "darwin" else _cache() / "llama.cpp"]


def hub_repositories(repository: str) -> list[Path]:
    """The folders of a model's repository in the caches of this machine."""
    name = "models--" + repository.replace("/", "--")
    return [path for folder in hub_folders() if (path := folder / name).is_dir()]


def snapshot(repository: Path, revision: str) -> Path | None:
    """The folder of a revision in a cached repository; None if it is not there."""
    commit = revision
    with (
        contextlib.suppress(OSError, UnicodeDecodeError, ValueError),
        (repository / "refs" / revision).open("rb") as file,
    ):
        commit = file.read(100).decode("ascii").strip()
    path = repository / "snapshots" / commit
    return path if _COMMIT.fullmatch(commit) and path.is_dir() else None


def _hub_models() -> Iterator[StoredModel]:
    for folder in hub_folders():
        for repository in sorted(folder.glob("models--*")):
            name = repository.name.removeprefix("models--").replace("--", "/", 1)
            main = snapshot(repository, "main")
            root = repository / "snapshots"
            for path in _files(root, lambda name: name.endswith(".gguf")):
                commit, *rest = path.relative_to(root).parts
                revision = "" if main is not None and commit == main.name else f"@{commit}"
                url = f"hf://{name}{revision}/{'/'.join(rest)}"
                blob = os.path.basename(os.path.realpath(path))
                digest = blob if re.fullmatch("[0-9a-f]{64}", blob) else None
                if path.exists():
                    yield StoredModel("hf", url, str(path), digest)
                else:
                    problem = "points to a blob that is not there: download incomplete?"
                    yield StoredModel("hf", url, None, digest, problem)


def _llamacpp_models() -> Iterator[StoredModel]:
    for folder in llamacpp_folders():
        for path in sorted(folder.glob("*.gguf")):
            yield StoredModel("llama.cpp", str(path), str(path))


# ---------------------------------------------------------------- LM Studio


def lmstudio_folder() -> Path:
    """The folder that has ``models``."""
    with contextlib.suppress(OSError, UnicodeDecodeError, ValueError):
        with _home(".lmstudio-home-pointer").open("rb") as file:
            text = file.read(4096).decode().strip()
        if os.path.isabs(text):
            return Path(text)
    old = _home(".cache", "lm-studio")
    return old if old.is_dir() else _home(".lmstudio")


def _lmstudio_models() -> Iterator[StoredModel]:
    root = lmstudio_folder() / "models"
    for path in _files(root, lambda name: name.endswith(".gguf")):
        yield StoredModel("lmstudio", f"lmstudio://{path.relative_to(root).as_posix()}", str(path))


def _files(root: Path, is_wanted: Callable[[str], bool]) -> Iterator[Path]:
    """Files below a folder, in order, not deeper than models lie; folders that cannot be read have none."""
    depth = len(root.parts)
    for folder, folders, files in os.walk(root):
        folders.sort()
        if len(Path(folder).parts) - depth >= _DEPTH:
            folders.clear()
        for name in sorted(files):
            if is_wanted(name) and not name.startswith("."):
                yield Path(folder, name)


_STORES: Final[dict[str, Callable[[], Iterator[StoredModel]]]] = {
    "ollama": _ollama_models,
    "hf": _hub_models,
    "llama.cpp": _llamacpp_models,
    "lmstudio": _lmstudio_models,
}


def list_stores(stores: Any = None) -> Iterator[StoredModel]:
    """All models that are in stores of this machine.

    Parameters
    ----------
    stores : iterable of str, optional
        Only these.
    """
    for store, models in _STORES.items():
        if stores is None or store in stores:
            yield from models()
