"""``mmgguf models``: the stores of this machine."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import mmgguf
from mmgguf.cli import app

from ..support.stores import COMMIT, add_hub, add_lmstudio, add_ollama, at_home, manifest

pytestmark = pytest.mark.skipif(os.name != "posix", reason="the stores are laid out with symbolic links")


def invoke(*args: str) -> str:
    result = CliRunner().invoke(app, ["models", *args])
    assert (result.exit_code, result.stderr) == (0, "")
    return result.stdout


@pytest.fixture
def stores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home with one model in three stores, another in one, and what is broken."""
    home = at_home(tmp_path / "home", monkeypatch)
    contents = []
    for i in range(2):
        path = tmp_path / f"{i}.gguf"
        metadata = {"general.architecture": "llama", "general.file_type": np.uint32(15), "n": i}
        mmgguf.write(path, metadata, {"w": np.zeros(1000 + i, np.float32)})
        contents.append(path.read_bytes())
    one, two = contents
    ollama = home / ".ollama" / "models"
    add_ollama(ollama, one)
    add_ollama(ollama, one, "registry.ollama.ai/me/copy/latest")
    add_ollama(ollama, two, "hf.co/org/repo/Q4_K_M")
    add_ollama(ollama, b"PK\3\4 and more", "registry.ollama.ai/library/zip/latest")
    (ollama / "manifests/registry.ollama.ai/library/llama3.2/broken").write_bytes(b"\x1b[31m")
    (ollama / "manifests/registry.ollama.ai/library/llama3.2/gone").write_bytes(manifest(b"none"))
    (ollama / "manifests/stray").write_bytes(b"")
    hub = home / ".cache/huggingface/hub"
    snapshot = add_hub(hub, "org/some--repo", {"sub/m-Q4_K_M.gguf": one, "x.txt": b""})
    (snapshot / "dangling.gguf").symlink_to(snapshot / "nowhere")
    add_hub(hub, "org/old", {"m.gguf": two[:100]}, "1" * 40, None)
    add_lmstudio(home / ".lmstudio", "publisher/model/m.gguf", one)
    (home / ".cache/llama.cpp").mkdir()
    (home / ".cache/llama.cpp/org_repo_m.gguf").write_bytes(two)
    return home


def test_rows(stores: Path) -> None:
    rows = {row["name"]: row for row in json.loads(invoke("--json"))}
    good = ("llama", 1000, "MOSTLY_Q4_K_M", None)
    names = {
        "ollama://llama3.2:1b": good,
        "ollama://me/copy:latest": good,
        "ollama://hf.co/org/repo:Q4_K_M": ("llama", 1001, "MOSTLY_Q4_K_M", None),
        "ollama://zip:latest": (None, None, None, "not a GGUF file"),
        "ollama://llama3.2:broken": (None, None, None, "not a manifest"),
        "ollama://llama3.2:gone": (None, None, None, "pull the model again"),
        "hf://org/some--repo/sub/m-Q4_K_M.gguf": good,
        "hf://org/some--repo/dangling.gguf": (None, None, None, "download incomplete?"),
        f"hf://org/old@{'1' * 40}/m.gguf": (None, None, None, "download incomplete?"),
        str(stores / ".cache/llama.cpp/org_repo_m.gguf"): ("llama", 1001, "MOSTLY_Q4_K_M", None),
        "lmstudio://publisher/model/m.gguf": good,
    }
    assert rows.keys() == names.keys()
    for name, (architecture, parameters, file_type, problem) in names.items():
        row = rows[name]
        assert (row["architecture"], row["parameters"], row["file_type"]) == (architecture, parameters, file_type)
        assert (row["problem"] is None) == (problem is None)
        assert problem is None or problem in row["problem"]
        if problem is None:
            assert mmgguf.resolve(name) == row["path"]
            assert os.path.getsize(row["path"]) == row["nbytes"]


def test_copies(stores: Path) -> None:
    def copies(*args: str) -> dict[str, int]:
        rows = json.loads(invoke("--json", *args))
        return {row["name"].partition("://")[0]: row["copies"] for row in rows if row["parameters"] == 1000}

    # ollama's two names are one file; LM Studio has no digests until files are read for them.
    assert copies() == {"ollama": 2, "hf": 2, "lmstudio": 1}
    assert copies("--hash") == {"ollama": 3, "hf": 3, "lmstudio": 3}


def test_lines_and_choice_of_stores(stores: Path) -> None:
    output = invoke("--store", "lmstudio", "--store", "ollama")
    assert "\x1b" not in output
    lines = [line.split("\t") for line in output.splitlines()]
    assert {len(line) for line in lines} == {7}
    assert {line[0].partition("://")[0] for line in lines} == {"ollama", "lmstudio"}
    path = stores / ".lmstudio/models/publisher/model/m.gguf"
    expected = ["llama", "1000", "MOSTLY_Q4_K_M", str(path.stat().st_size), "1", str(path)]
    assert next(line for line in lines if "lmstudio" in line[0])[1:] == expected


def test_no_stores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    at_home(tmp_path, monkeypatch)
    assert invoke() == ""
    assert json.loads(invoke("--json")) == []
    assert len(COMMIT) == 40
