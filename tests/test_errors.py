"""What errors say: names that are spelt much alike, in bounded time and characters."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mmgguf
from mmgguf import errors
from mmgguf.errors import NameNotFoundError, similar_names


@pytest.fixture
def path(tmp_path: Path) -> Path:
    target = tmp_path / "model.gguf"
    tensors = {f"blk.{i}.{part}.weight": np.zeros(4) for i in range(3) for part in ("attn_q", "attn_k", "ffn_up")}
    mmgguf.write(target, {"general.architecture": "llama", "llama.block_count": 3}, tensors)
    return target


@pytest.mark.parametrize(
    ("ask", "meant"),
    [
        (lambda f: f["blk.0.attn_w.weight"], "; did you mean 'blk.0.attn_q.weight' or 'blk.0.attn_k.weight' or "),
        (lambda f: f["blk.1.ffn_upp.weight"], "; did you mean 'blk.1.ffn_up.weight'"),
        (lambda f: mmgguf.load_file(f, names="blk.2.ffn_up.wieght"), "; did you mean 'blk.2.ffn_up.weight'"),
        (lambda f: f.metadata["general.architectur"], "; did you mean 'general.architecture'?"),
        (lambda f: f.metadata["block_count"], "; did you mean 'llama.block_count'?"),
        (lambda f: f.metadata.type_of("llama.blockcount"), "; did you mean 'llama.block_count'?"),
        (lambda f: f.config["blockcount"], "; did you mean 'llama.block_count'?"),
        (lambda f: f["zzz"], "no tensor 'zzz'"),
        (lambda f: f.metadata["zzz"], "no metadata key 'zzz'"),
        (lambda f: f[3], "no tensor 3"),
        (lambda f: f["x" * 10_000], "'… (10000 characters)"),
    ],
)
def test_a_misspelt_name_says_what_was_meant_and_the_file(ask: Any, meant: str, path: Path) -> None:
    with mmgguf.open(path) as f, pytest.raises(NameNotFoundError) as caught:
        ask(f)
    message = str(caught.value)
    assert message.startswith(f"{path}: no ")
    assert meant in message
    assert ("did you mean" in message) == ("did you mean" in meant)
    assert str(pickle.loads(pickle.dumps(caught.value))) == message


def test_no_time_is_spent_on_errors_that_nobody_reads(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(errors, "similar_names", lambda *args: pytest.fail("was looked for"))
    with mmgguf.open(path) as f:
        assert f.get("blk.0.attn_w.weight") is None
        assert f.metadata.get_int("block_count", 7) == 7


@pytest.mark.parametrize(
    "known",
    [
        [f"blk.{i}.attn_q.weight" for i in range(100_000)],
        [f"{'x' * 90}{i}" for i in range(100_000)],
        ["y" * (1 << 20)] * 10,
        [f"{i}blk.0.attn_w.weight" for i in range(100_000)],
    ],
    ids=["layers", "alike in front", "long", "alike behind"],
)
def test_many_names_are_compared_in_bounded_time(known: list[str]) -> None:
    """Counted in calls, which do not swing as times do."""
    calls = 0

    def count(frame: object, event: str, arg: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        found = similar_names("blk.0.attn_w.weight", known)
    finally:
        sys.setprofile(before)
    assert len(found) <= 3
    assert calls < 1_000_000


def test_a_missing_architecture_and_file_type_are_told_alike(tmp_path: Path) -> None:
    mmgguf.write(tmp_path / "empty.gguf", {}, {})
    with mmgguf.open(tmp_path / "empty.gguf") as f:
        for key in ("architecture", "file_type"):
            with pytest.raises(NameNotFoundError, match=f"empty.gguf: no metadata key 'general.{key}'"):
                getattr(f, key)
