"""mmgguf beside the other libraries that open such files, as far as they are installed."""

from __future__ import annotations

from typing import Any

import pytest

import mmgguf
from mmgguf.bench.peers import PEERS, Unavailable

from .conftest import Files, Model, Timed


@pytest.fixture
def path(model: Model, files: Files, request: pytest.FixtureRequest) -> str:
    """The model's file in the format of the peer."""
    peer = PEERS[request.getfixturevalue("peer")]
    try:
        peer.require()
        if peer.format != "gguf":
            with mmgguf.open(model.path) as file:
                if not file:
                    pytest.skip(f"{model.label} has no tensors to write as {peer.format}")
        return files.in_format(model.path, peer.format)
    except Unavailable as reason:
        pytest.skip(str(reason))


def _skip_unless_opened(peer: str, path: str) -> None:
    """Skip where a peer that does not take every GGUF file refuses this one."""
    if peer in ("mmgguf", "C library", "gguf-py", "safetensors"):
        return
    try:
        PEERS[peer].close(PEERS[peer].open(path))
    except Unavailable as reason:
        pytest.skip(str(reason))
    except Exception as error:  # whatever it raises
        pytest.skip(f"{peer} does not open this file: {type(error).__name__}: {error}"[:200])


@pytest.mark.parametrize("peer", PEERS)
def test_open(benchmark: Any, timed: Timed, model: Model, path: str, peer: str) -> None:
    """Everything up to the point where tensors can be asked for.  safetensors and torch files hold no vocabulary."""
    benchmark.group = f"open: {model.label}"
    benchmark.extra_info.update(peer=peer, version=PEERS[peer].version)
    _skip_unless_opened(peer, path)
    handle = timed(lambda: PEERS[peer].open(path), finish=PEERS[peer].close)
    with mmgguf.open(model.path) as file:
        assert sorted(PEERS[peer].names(handle)) == sorted(file)


@pytest.mark.parametrize("peer", [name for name, peer in PEERS.items() if peer.get is not None])
def test_all_tensors_handed_out(benchmark: Any, timed: Timed, model: Model, path: str, peer: str) -> None:
    """Every tensor as an array, from an open file; what maps hands out views, what reads reads."""
    get = PEERS[peer].get
    assert get is not None
    with mmgguf.open(model.path) as file:
        names = list(file)
        nbytes = sum(tensor.nbytes for tensor in file.values())
    if not names:
        pytest.skip(f"{model.label} has no tensors")
    benchmark.group = f"all tensors handed out: {model.label}"
    benchmark.extra_info.update(peer=peer, tensors=len(names), maps=PEERS[peer].maps)
    _skip_unless_opened(peer, path)
    handle = PEERS[peer].open(path)
    try:
        arrays = timed(lambda: [get(handle, name) for name in names])
        assert sum(array.nbytes for array in arrays) == nbytes
    finally:
        PEERS[peer].close(handle)


def _lists(path: str) -> tuple[list[str], list[str]]:
    with mmgguf.open(path) as file:
        return list(file.metadata["tokenizer.ggml.tokens"]), list(file.metadata["tokenizer.ggml.merges"])


def _lists_of_gguf_py(path: str) -> tuple[list[str], list[str]]:
    reader, _ = PEERS["gguf-py"].open(path)
    return reader.fields["tokenizer.ggml.tokens"].contents(), reader.fields["tokenizer.ggml.merges"].contents()


@pytest.mark.parametrize("peer", ["mmgguf", "gguf-py", "C library"])
def test_open_and_list_strings(benchmark: Any, timed: Timed, model: Model, peer: str) -> None:
    """Open the file and make every token and merge a str.  The C library has built all its strings when it is open."""
    with mmgguf.open(model.path) as file:
        if "tokenizer.ggml.merges" not in file.metadata:
            pytest.skip(f"{model.label} has no merges")
    benchmark.group = f"open and list all strings: {model.label}"
    benchmark.extra_info.update(peer=peer)
    try:
        PEERS[peer].require()
    except Unavailable as reason:
        pytest.skip(str(reason))
    if peer == "C library":
        timed(lambda: PEERS[peer].open(model.path), finish=PEERS[peer].close)
        return
    tokens, merges = timed(lambda: (_lists if peer == "mmgguf" else _lists_of_gguf_py)(model.path))
    with mmgguf.open(model.path) as file:
        assert tokens == [file.metadata["tokenizer.ggml.tokens"][i] for i in range(len(tokens))]
        assert merges == [file.metadata["tokenizer.ggml.merges"][i] for i in range(len(merges))]
