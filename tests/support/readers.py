"""Several processes that read one file: a model to read, and a server's log told apart by process."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np

import mmgguf
from mmgguf.storage import remote
from mmgguf.types import LAYOUTS, GGMLType

from .build import Build
from .server import Server

__all__ = ["bytes_of", "each_once", "joined", "tag_requests", "write_large", "write_model"]


def write_model(path: Path, rows: int = 1024, seed: int = 0) -> Path:
    """A file of some MiB with blocks, floats, a vector and a tensor of three axes."""
    rng = np.random.default_rng(seed)
    size = LAYOUTS[GGMLType.Q8_0].row_size(2048)
    blocks = rng.integers(0, 120, (rows, size), np.uint8)
    blocks[:, 1::34] = 20 + rng.integers(0, 8, blocks[:, 1::34].shape, np.uint8)  # scales that float16 has room for
    tensors = {
        "blk.0.weight": mmgguf.TypedTensor(blocks, GGMLType.Q8_0, (rows, 2048)),
        "blk.1.weight": rng.standard_normal((rows, 512)).astype(np.float32),
        "experts.weight": rng.standard_normal((4, rows // 4, 256)).astype(np.float32),
        "norm.bias": rng.standard_normal(512).astype(np.float32),
    }
    # More than the first step of a header, so that none of the tensors lies in it.
    tokens = [f"{i:0100}" for i in range(remote.FIRST_STEP // 90)] if rows > 100 else ["a"]
    mmgguf.write(path, {"general.architecture": "test", "tokenizer.ggml.tokens": tokens}, tensors)
    return path


def write_large(path: Path) -> Path:
    """80 layers of 9 tensors as in a model of 70B parameters: a sparse file, of which only the header is written."""
    shapes = [(8192, 8192)] * 4 + [(28672, 8192)] * 3 + [(8192,)] * 2
    build, offset = Build().start(80 * len(shapes), 0), 0
    for layer in range(80):
        for i, shape in enumerate(shapes):
            build.tensor(f"blk.{layer}.{i}".encode(), shape[::-1], int(GGMLType.Q4_K), offset)
            offset += (LAYOUTS[GGMLType.Q4_K].nbytes(shape) + 31) // 32 * 32
    header = bytes(build)
    with path.open("wb") as file:
        file.write(header)
        file.truncate((len(header) + 31) // 32 * 32 + offset)
    return path


def tag_requests() -> None:
    """Let each request over http from now on say which process it comes from."""
    import fsspec.config

    fsspec.config.conf["http"] = {"client_kwargs": {"headers": {"X-Process": str(os.getpid())}}}


def bytes_of(server: Server, header: int) -> dict[str, int]:
    """Bytes behind the header that a server was asked for, by process."""
    asked: dict[str, int] = {}
    for request in server.requests:
        start, stop = request.range or (0, 0)
        if start >= header:
            process = request.headers.get("x-process", "")
            asked[process] = asked.get(process, 0) + stop - start
    return asked


def each_once(server: Server, tensors: Iterable[mmgguf.Tensor]) -> int:
    """Check that each byte of some tensors was asked for once, and that nothing else was but headers; their bytes."""
    wanted = sorted((t.file_offset, t.file_offset + t.nbytes) for t in tensors)
    begin = wanted[0][0]
    asked = sorted(server.with_range())
    headers = [one for one in asked if one[0] < begin]
    data = asked[len(headers) :]
    assert joined(data) == joined(wanted)
    assert sum(stop - start for start, stop in data) == sum(stop - start for start, stop in wanted)
    assert all(stop <= begin + remote.FIRST_STEP for _, stop in headers)
    return sum(stop - start for start, stop in headers)


def joined(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Neighbours as one range; what overlaps stays."""
    result: list[tuple[int, int]] = []
    for start, stop in ranges:
        if result and result[-1][1] == start:
            start = result.pop()[0]
        result.append((start, stop))
    return result
