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
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import mmgguf

from .test_claims import Claim, claim, real_vocabularies

__all__ = ["claim"]

pytest.importorskip("fsspec")
pytest.importorskip("aiohttp")

SERVER = Path(__file__).parents[1] / "tests" / "support" / "server.py"
PADDING = 32 << 20
GGUF_JS = """
import { gguf } from "@huggingface/gguf";
const times = [];
for (let i = 0; i < Number(process.argv[3]); i++) {
  const began = performance.now();
  await gguf(process.argv[2]);
  times.push((performance.now() - began) / 1000);
}
console.log(JSON.stringify(times));
"""


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


@pytest.fixture(scope="session")
def node(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with @huggingface/gguf, and a script that times it."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("needs node and npm")
    folder = tmp_path_factory.mktemp("node")
    done = subprocess.run(
        ["npm", "install", "--silent", "@huggingface/gguf"], cwd=folder, capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip(f"npm has no @huggingface/gguf: {done.stderr[-200:]}")
    (folder / "open.mjs").write_text(GGUF_JS)
    return folder


def header_files(smollm2: Path) -> dict[str, Path]:
    vocabulary = [path for path in real_vocabularies() if path.stem == "ggml-vocab-llama-bpe"]
    return {"SmolLM2": smollm2} | dict(zip(["Llama 3's vocabulary"], vocabulary, strict=False))


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


def test_requests_for_a_header(claim: Claim, header_file: tuple[str, Path]) -> None:
    name, path = header_file
    with served(path, padding=PADDING) as server:
        with mmgguf.open(server.url) as f:
            nbytes = f.shards[0].header.nbytes
        ranges, sent = server.asked()
    bar = "<= 3" if name == "SmolLM2" else "<= 6"
    claim.check(f"open {name} from afar: requests", bar, lambda: float(len(ranges)), ratio_of_bytes=sent / nbytes)


def test_bytes_of_a_header(claim: Claim, header_file: tuple[str, Path]) -> None:
    name, path = header_file
    with served(path, padding=PADDING) as server:
        with mmgguf.open(server.url) as f:
            nbytes = f.shards[0].header.nbytes
        _, sent = server.asked()
    claim.check(f"open {name} from afar: bytes against those of the header", "<= 1.4", lambda: sent / nbytes)


def test_time_for_a_header(claim: Claim, header_file: tuple[str, Path], node: Path) -> None:
    name, path = header_file
    rounds = 7 if claim.benchmark.enabled else 1
    with served(path, latency=0.05, padding=PADDING) as server:
        ours = times(lambda: mmgguf.open(server.url).close(), rounds)
        command = ["node", "open.mjs", server.url, str(rounds)]
        theirs = json.loads(subprocess.run(command, cwd=node, capture_output=True, text=True, check=True).stdout)
        hf_mem = times_of_hf_mem(server.url, rounds)
        whole = times(lambda: download(server.url), 1)
    claim.check(
        f"open {name} from afar, 50 ms for each request: time against gguf.js",
        "<= 0.5",
        lambda: statistics.median(ours) / statistics.median(theirs),
        seconds={"mmgguf": ours, "gguf.js": theirs, "hf-mem": hf_mem, "whole download": whole},
    )


def test_one_tensor(claim: Claim, smollm2_path: Path) -> None:
    with served(smollm2_path) as server, mmgguf.open(server.url) as f:
        tensor = max(f.values(), key=lambda one: one.nbytes)
        server.asked()
        data = tensor.data
        ranges, sent = server.asked()
    assert data.nbytes == sent == tensor.nbytes
    claim.check("read one tensor from afar: requests, for its bytes and no more", "<= 1", lambda: float(len(ranges)))


def test_all_tensors(claim: Claim, smollm2_path: Path) -> None:
    rate = 25e6
    with served(smollm2_path, latency=0.02, rate=rate) as server:

        def load() -> None:
            with mmgguf.open(server.url) as f:
                assert len(mmgguf.load_file(f, dequantize=False)) == len(f)

        load()
        seconds = statistics.median(times(load, 5 if claim.benchmark.enabled else 1))
    claim.check(
        "load SmolLM2 from afar, 20 ms for each request, 25 MB/s for each connection: rate against one connection",
        ">= 4",
        lambda: smollm2_path.stat().st_size / seconds / rate,
        seconds=seconds,
    )


def times(run: Callable[[], Any], rounds: int) -> list[float]:
    seconds = []
    for _ in range(rounds):
        began = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - began)
    return seconds


def times_of_hf_mem(url: str, rounds: int) -> list[float] | str:
    """What hf-mem takes for a header, or why it was not measured."""
    try:
        fetch = importlib.import_module("hf_mem.gguf.fetch")
        httpx = importlib.import_module("httpx2")
    except ImportError:
        return "not installed"

    async def run() -> None:
        async with httpx.AsyncClient() as client:
            await fetch.fetch_gguf_metadata(client, url)

    try:
        return times(lambda: asyncio.run(run()), rounds)
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def download(url: str) -> None:
    """All of the file over one connection."""
    import urllib.request

    with urllib.request.urlopen(url) as response:
        while response.read(1 << 20):
            pass
