"""Stores of other programs, laid out in a folder exactly as the programs do it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

__all__ = ["COMMIT", "add_hub", "add_lmstudio", "add_ollama", "at_home", "manifest"]

COMMIT = "12fd25f77366fa6b3b4b768ec3050bf629380bac"


def at_home(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a folder the home of this process, without any variable that names another store."""
    names = "OLLAMA_MODELS HF_HUB_CACHE HF_HOME XDG_CACHE_HOME LLAMA_CACHE HF_ENDPOINT HF_TOKEN HF_TOKEN_PATH"
    for name in names.split():
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("USERPROFILE", str(home))
    monkeypatch.setenv("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")
    return home


def manifest(data: bytes, **changes: object) -> bytes:
    """An ollama manifest of a model with that content."""
    layer = {
        "mediaType": "application/vnd.ollama.image.model",
        "digest": f"sha256:{hashlib.sha256(data).hexdigest()}",
        "size": len(data),
    }
    layers = [
        layer | changes,
        {"mediaType": "application/vnd.ollama.image.template", "digest": "sha256:" + "a" * 64, "size": 5},
    ]
    config = {"mediaType": "application/vnd.docker.container.image.v1+json", "digest": "sha256:" + "b" * 64, "size": 9}
    whole = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
        "config": config,
        "layers": layers,
    }
    return json.dumps(whole).encode()


def add_ollama(models: Path, data: bytes, name: str = "registry.ollama.ai/library/llama3.2/1b") -> Path:
    """Pull a model: its blob, whose path is returned, and its manifest."""
    blob = models / "blobs" / f"sha256-{hashlib.sha256(data).hexdigest()}"
    blob.parent.mkdir(parents=True, exist_ok=True)
    blob.write_bytes(data)
    path = models / "manifests" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(manifest(data))
    return blob


def add_hub(
    hub: Path, repository: str, files: dict[str, bytes], commit: str = COMMIT, ref: str | None = "main"
) -> Path:
    """Download files of a repository into the Hub's cache; returns the snapshot."""
    folder = hub / ("models--" + repository.replace("/", "--"))
    snapshot = folder / "snapshots" / commit
    for name, data in files.items():
        blob = folder / "blobs" / hashlib.sha256(data).hexdigest()
        blob.parent.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(data)
        path = snapshot / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(blob)
    if ref is not None:
        (folder / "refs").mkdir(parents=True, exist_ok=True)
        (folder / "refs" / ref).write_text(commit)
    return snapshot


def add_lmstudio(folder: Path, name: str, data: bytes) -> Path:
    """Download a file into LM Studio's folder."""
    path = folder / "models" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path
