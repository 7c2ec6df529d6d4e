"""Remote files: requests, bytes and time for headers, tensors and whole files, from a server of this machine.

The server (``tests/support/server.py``) runs in a process of its own, with latency before each answer and a rate for
each connection.  Contestants: ``@huggingface/gguf`` in node, which npm fetches, and hf-mem where it is installed;
both parse headers.  Behind the header lie zeros, as many as a model of that vocabulary would have data at least, so
that nobody profits from the file's end.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import mmgguf
from mmgguf.bench.peers import Unavailable

from . import node
from .conftest import Case
from .test_open import real_vocabularies
from .turns import Contestant

pytest.importorskip("fsspec")
pytest.importorskip("aiohttp")

SERVER = Path(__file__).parents[1] / "tests" / "support" / "server.py"
PADDING = 32 << 20


class Served:
    """A file behind a server in another process."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._in, self._out = process.stdin, process.stdout
        self.url = self._out.readline().strip() + "/model.gguf"

    def asked(self) -> tuple[list[list[int]], int]:
        """The ranges that were asked for since the last call, and the bytes that were sent."""
        time.sleep(0.2)  # it counts what it has sent after we have it
        self._in.write("\n")
        self._in.flush()
        answer = json.loads(self._out.readline())
        return answer["ranges"], answer["sent"]


@contextmanager
def served(path: Path, latency: float = 0.0, rate: float = 0.0, padding: int = 0) -> Iterator[Served]:
    command = [sys.executable, str(SERVER), str(path), str(latency), str(rate), str(padding)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with process:
        try:
            yield Served(process)
        finally:
            assert process.stdin is not None
            process.stdin.close()


def header_files(smollm2: Path) -> dict[str, Path]:
    vocabulary = real_vocabularies().get("ggml-vocab-llama-bpe")
    return {"SmolLM2": smollm2} | ({} if vocabulary is None else {"Llama 3's vocabulary": vocabulary})


@pytest.fixture(params=["SmolLM2", "Llama 3's vocabulary"])
def header_file(request: pytest.FixtureRequest, smollm2_path: Path) -> tuple[str, Path]:
    files = header_files(smollm2_path)
    if request.param not in files:
        pytest.skip("ggml-vocab-llama-bpe.gguf is in no folder that is looked at")
    return request.param, files[request.param]


@pytest.fixture(scope="session")
def smollm2_path() -> Path:
    models = importlib.import_module("tests.support.models")
    try:
        path: Path = models.smollm2()
    except models.Unavailable as error:
        pytest.skip(str(error))
    return path


def test_header(case: Case, header_file: tuple[str, Path]) -> None:
    """Requests and bytes; and seconds where each request takes 50 ms."""
    name, path = header_file
    id_ = f"sources/{name}, header"
    with mmgguf.open(path) as local:
        names = sorted(local)
    with served(path, padding=PADDING) as server:
        with mmgguf.open(server.url) as f:
            nbytes = f.shards[0].header.nbytes
        ranges, sent = server.asked()
        case.keep(id_, title=name, requests=len(ranges), sent=sent, header_bytes=nbytes)

    def of_node(url: str) -> Contestant:
        _, found = node.seconds_to_open(url, 1)
        assert sorted(found) == names
        return Contestant(lambda: node.seconds_to_open(url, 2)[0], tells=True)

    with served(path, latency=0.05, padding=PADDING) as server:
        case.time(
            id_,
            {
                "mmgguf": lambda: lambda: mmgguf.open(server.url).close(),
                "gguf.js": lambda: of_node(server.url),
                "hf-mem": lambda: hf_mem(server.url),
            },
            seconds=0.5,
            latency=0.05,
        )


def test_one_tensor(case: Case, smollm2_path: Path) -> None:
    with served(smollm2_path) as server, mmgguf.open(server.url) as f:
        tensor = max(f.values(), key=lambda one: one.nbytes)
        server.asked()
        data = tensor.data
        ranges, sent = server.asked()
    assert data.nbytes == sent == tensor.nbytes
    case.keep("sources/one tensor", requests=len(ranges), sent=sent)


def test_all_tensors(case: Case, smollm2_path: Path) -> None:
    rate = 25e6
    with served(smollm2_path, latency=0.02, rate=rate) as server:

        def load() -> None:
            with mmgguf.open(server.url) as f:
                assert len(mmgguf.load_file(f, dequantize=False)) == len(f)

        case.time(
            "sources/all tensors",
            {"mmgguf": lambda: load, "one connection": lambda: lambda: download(server.url)},
            seconds=1.0,
            nbytes=smollm2_path.stat().st_size,
            rate=rate,
        )


def hf_mem(url: str) -> Callable[[], Any]:
    """What hf-mem does to read a header."""
    try:
        fetch = importlib.import_module("hf_mem.gguf.fetch")
        httpx = importlib.import_module("httpx2")
    except ImportError as error:
        raise Unavailable("hf-mem is not installed") from error

    async def run() -> None:
        async with httpx.AsyncClient() as client:
            await fetch.fetch_gguf_metadata(client, url)

    return lambda: asyncio.run(run())


def download(url: str) -> None:
    """All of the file over one connection."""
    import urllib.request

    with urllib.request.urlopen(url) as response:
        while response.read(1 << 20):
            pass
