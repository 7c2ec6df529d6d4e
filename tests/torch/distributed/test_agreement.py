"""Ranks that do not agree, fail or die: all of them stop, with a message that says who, and none waits for ever."""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

import mmgguf
from mmgguf.errors import FileChangedError

from ...support import ranks
from .test_loading import DTensor, Replicate, Shard, init_device_mesh, load_sharded, path, pytestmark, slow

__all__ = ["path", "pytestmark"]

WAYS = pytest.mark.parametrize("way", [{}, {"from_rank0": True}], ids=["each", "from_rank0"])


def load(rank: int, paths: list[Any], plans: list[Any], timeout: float = 20.0, **way: Any) -> int:
    mesh = init_device_mesh("cpu", (len(paths),))
    return len(load_sharded(None, paths[rank], mesh, plans[rank], timeout=timeout, **way))


def stopped(paths: list[Any], plans: list[Any] | None = None, **way: Any) -> list[BaseException]:
    """The errors of all ranks: each has one, and none gives up only because of the time."""
    start = time.monotonic()
    errors = ranks.run(len(paths), _call, paths, plans or [Shard(0)] * len(paths), way)
    assert time.monotonic() - start < 15
    assert all(isinstance(error, Exception) for error in errors), errors
    return errors


def _call(rank: int, paths: list[Any], plans: list[Any], way: Any) -> int:
    return load(rank, paths, plans, **way)


def changed(path: Path, how: str) -> Path:
    """Another file beside it, of the same name in another folder."""
    other = path.parent / "other" / path.name
    other.parent.mkdir()
    shutil.copy2(path, other)
    status = path.stat()
    if how == "bytes":
        other.write_bytes(path.read_bytes() + bytes(32))
    elif how == "header":
        other.write_bytes(path.read_bytes().replace(b"llama", b"lamas", 1))
    if how != "changed":
        os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    else:
        os.utime(other, ns=(0, 0))
    return other


@pytest.mark.parametrize("how", ["header", *(pytest.param(how, marks=slow) for how in ("bytes", "changed"))])
def test_another_file_on_one_rank(how: str, path: Path) -> None:
    other = changed(path, how)
    host = re.escape(os.uname().nodename)
    for error in stopped([path, path, other]):
        assert isinstance(error, FileChangedError)
        found = rf"rank 2 on {host} has another file than rank 0 on {host}: {re.escape(str(other))}: .*{how}.* where "
        assert re.search(found + re.escape(str(path)), str(error)), error


@slow
def test_copies_of_other_times_can_be_accepted(path: Path) -> None:
    other = changed(path, "changed")
    assert ranks.run(2, _call, [path, other], [Shard(0)] * 2, {"ignore_times": True}) == [8, 8]


@slow
@WAYS
def test_a_rank_without_the_file(way: Any, path: Path) -> None:
    missing = path.parent / "missing.gguf"
    paths = [missing, None] if way else [path, missing]
    with_error = 0 if way else 1
    errors = stopped(paths, **way)
    assert isinstance(errors[with_error], FileNotFoundError)
    other = errors[1 - with_error]
    assert isinstance(other, RuntimeError)
    assert re.search(rf"rank {with_error} on \S+: FileNotFoundError: .*missing\.gguf", str(other))


@slow
def test_a_broken_file_on_one_rank(path: Path) -> None:
    broken = path.parent / "broken.gguf"
    broken.write_bytes(path.read_bytes()[:100])
    errors = stopped([path, broken])
    assert isinstance(errors[1], mmgguf.GGUFError)
    assert re.search(r"rank 1 on \S+: TruncatedError: .*broken\.gguf", str(errors[0]))


@slow
@WAYS
@pytest.mark.parametrize(
    "plan", [{"q4": Shard(1)}, {"q4": Replicate()}, {}, {"*": Shard(0)}], ids=["columns", "whole", "plain", "more"]
)
def test_unequal_plans(plan: Any, way: Any, path: Path) -> None:
    for error in stopped([path, path], [{"q4": Shard(0)}, plan], **way):
        assert isinstance(error, ValueError)
        assert re.search(r"stopped on all ranks: rank 1 on \S+ has another plan than rank 0: \w+ = \w+ ", str(error))


def die(rank: int, path: Path, when: str) -> int:
    mesh = init_device_mesh("cpu", (3,))
    if rank == 1 and when == "before":
        os._exit(1)
    if rank == 1 and when == "absent":
        time.sleep(4)
        return 0
    if rank == 1 and when == "while":
        # The ranks have agreed, and are about to exchange.
        import mmgguf.torch.distributed.loading as loading

        loading._Job.run = lambda *_: os._exit(1)  # type: ignore[method-assign,assignment]
    plan = {"few": Shard(0), "q4": Replicate()} if when == "while" else Shard(0)
    load_sharded(None, path, mesh, plan, timeout=20 if when == "while" else 2, from_rank0=when == "while")
    return 1


@slow
@pytest.mark.parametrize("when", ["before", "absent", "while"])
def test_a_rank_that_is_gone(when: str, path: Path) -> None:
    start = time.monotonic()
    errors = ranks.run(3, die, path, when)
    assert time.monotonic() - start < 15
    for error in (errors[0], errors[2]):
        assert isinstance(error, RuntimeError), error
        if when != "while":
            assert re.search(r"stopped on all ranks: rank 1: no answer within 2 s$", str(error))
        else:
            assert re.search("a rank died", str(error))


def send_header(rank: int, path: Path, header: bytes) -> Any:
    import numpy as np

    import mmgguf.torch.distributed.files as files

    if rank == 0:
        files._header_of = lambda shard: np.frombuffer(header, np.uint8)  # type: ignore[assignment]
    mesh = init_device_mesh("cpu", (2,))
    return load_sharded(None, path if rank == 0 else None, mesh, Shard(0), from_rank0=True, timeout=20)


@slow
@pytest.mark.parametrize("what", ["cut", "garbage", "huge tensor", "nothing"])
def test_a_header_from_the_first_rank_is_not_trusted(what: str, path: Path) -> None:
    with mmgguf.open(path) as f:
        header = path.read_bytes()[: f.shards[0].header.nbytes]
    if what == "huge tensor":
        dimensions = (12).to_bytes(8, "little")
        assert dimensions in header
        header = header.replace(dimensions, (1 << 60).to_bytes(8, "little"))
    header = {"cut": header[:-9], "garbage": b"\x80\x04." * 30, "nothing": b""}.get(what, header)
    first, second = ranks.run(2, send_header, path, header)
    assert isinstance(second, mmgguf.GGUFError)
    assert isinstance(first, RuntimeError)
    assert re.search(r"rank 1 on \S+: \w+Error: ", str(first))


def send_report(rank: int, data: bytes) -> Any:
    """What a foreign program might send in place of a report."""
    from mmgguf.torch.distributed import agreement

    mesh = init_device_mesh("cpu", (2,))
    if rank == 0:
        return agreement.collect(mesh, {}, 5)
    agreement._store().set("mmgguf/0-1/1/1", data)
    return None


@slow
@pytest.mark.parametrize("data", [b"\x80\x04\x95.", b"{", b"[[[[", b'"text"', b"[1]", b"\xff\xfe", b'{"rank": 0}'])
def test_a_report_is_data(data: bytes) -> None:
    first, _ = ranks.run(2, send_report, data)
    assert first[1] == {"rank": 1, "host": "", "gone": "sent what is no report"}


def test_reports_are_json() -> None:
    from mmgguf.torch.distributed import agreement, files, loading

    for module in (agreement, files, loading):
        text = Path(module.__file__ or "").read_text()
        assert not re.search(
            r"pickle|_object|\beval\b|\bexec\b", text.replace("unpickled", "").replace("which pickle", "")
        )
    assert json.dumps({"rank": 0})
    assert DTensor
