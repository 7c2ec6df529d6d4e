"""Remote files, from servers on 127.0.0.1 that behave or not."""

from __future__ import annotations

import gc
import itertools
import os
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mmgguf
from mmgguf.errors import ClosedError, FileChangedError, GGUFError, NotGGUFError, RemoteError, SplitError
from mmgguf.storage import remote, transport
from mmgguf.storage.local import MappedFile
from mmgguf.storage.remote import RemoteFile

from ..support.server import Reply, Request, Server, files, ranged, redirecting, whole

pytest.importorskip("fsspec")
pytest.importorskip("aiohttp")

#: Beyond one step, so that tensors are not in what was read for the header.
N = 100_000


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "PAUSE", 0.001)


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """Four tensors of 400 kB each; of the first some is read with the header.  The first step is small."""
    monkeypatch.setattr(remote, "FIRST_STEP", 4096)
    path = tmp_path / "model.gguf"
    metadata = {"general.architecture": "test", "words": [f"word{i}" for i in range(3000)], "n": np.arange(500)}
    rng = np.random.default_rng(1)
    mmgguf.write(path, metadata, {name: rng.random((N // 100, 100), np.float32) for name in ("pad", *"abc")})
    return path.read_bytes()


@pytest.fixture
def expected(model: bytes) -> mmgguf.GGUFFile:
    return mmgguf.open(model)


@pytest.fixture
def server(model: bytes) -> Iterator[Server]:
    with Server(files({"/model.gguf": model})) as running:
        yield running


def storage_of(f: mmgguf.GGUFFile) -> RemoteFile:
    storage = f.shards[0].file
    assert isinstance(storage, RemoteFile)
    return storage


# ---------------------------------------------------------------- what is asked for


def test_the_header_in_steps_and_a_tensor_as_one_range(server: Server, expected: mmgguf.GGUFFile) -> None:
    f = mmgguf.open(server.url + "/model.gguf")
    header = server.with_range()
    assert len(header) > 2
    assert all(stop <= start for (_, stop), (start, _) in itertools.pairwise(header)), "no byte is asked for twice"
    assert f.metadata == expected.metadata
    assert server.sent < f["a"].data_offset + 60_000
    count = len(server.requests)
    assert f["b"].data.tobytes() == expected["b"].data.tobytes()
    offset = f["b"].file_offset
    assert server.with_range()[count:] == [(offset, offset + 4 * N)]
    assert {request.method for request in server.requests} == {"GET"}


def test_rows_are_ranges(server: Server, expected: mmgguf.GGUFFile) -> None:
    f = mmgguf.open(server.url + "/model.gguf")
    count = len(server.requests)
    np.testing.assert_array_equal(f["c"][10:20], expected["c"][10:20])
    np.testing.assert_array_equal(f["c"].partition(1, 4), expected["c"].partition(1, 4))
    offset = f["c"].file_offset
    assert server.with_range()[count:] == [(offset + 4000, offset + 8000), (offset + N, offset + 2 * N)]


def test_read_header_reads_nothing_else(server: Server, expected: mmgguf.GGUFFile) -> None:
    header = mmgguf.read_header(server.url + "/model.gguf")
    count = len(server.requests)
    assert header.metadata == expected.metadata
    assert len(server.requests) == count
    assert server.sent < header.data_offset + 60_000


def test_whole_files_with_ranges_in_flight(
    server: Server, expected: mmgguf.GGUFFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "PART", 65536)
    server.latency = 0.01
    f = mmgguf.open(server.url + "/model.gguf", max_concurrency=5)
    steps: list[tuple[int, int]] = []
    arrays = mmgguf.load_file(f, progress=lambda done, total: steps.append((done, total)))
    for name, array in arrays.items():
        assert array.tobytes() == expected[name].data.tobytes()
    assert steps == [(4 * N * i, 16 * N) for i in range(5)]
    assert 2 <= server.most_at_once <= 5
    assert storage_of(f).resident(f["a"].file_offset, 12 * N) == 0


def test_a_walk_that_is_left_holds_nothing(server: Server) -> None:
    f = mmgguf.open(server.url + "/model.gguf")
    for _ in f.dequantize_all():
        break
    gc.collect()
    assert f.resident([*"abc"]) == 0


def test_prefetch_and_release(server: Server, expected: mmgguf.GGUFFile) -> None:
    f = mmgguf.open(server.url + "/model.gguf")
    done: list[int] = []
    f.prefetch(["a", "c"], wait=True, progress=lambda now, total: done.append(now))
    assert done[-1] == f.resident([*"abc"]) == 8 * N
    count = len(server.requests)
    array = f["a"].data
    assert array.tobytes() == expected["a"].data.tobytes()
    assert f["c"][5:7].tobytes() == expected["c"][5:7].tobytes()
    assert len(server.requests) == count
    f.release("a")
    assert f.resident([*"abc"]) == 4 * N
    assert array.tobytes() == expected["a"].data.tobytes()
    assert f["a"].data.tobytes() == array.tobytes()
    assert len(server.requests) == count + 1


def test_what_is_held_is_bounded(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "MAX_HELD", 5 * N)
    f = mmgguf.open(server.url + "/model.gguf")
    f.prefetch(["b", "c"], wait=True)
    assert f.resident(["b", "c"]) == 4 * N
    assert len(mmgguf.load_file(f)) == 4


def test_release_while_it_is_on_its_way(server: Server, expected: mmgguf.GGUFFile) -> None:
    f = mmgguf.open(server.url + "/model.gguf")
    server.latency = 0.2
    f.prefetch()
    f.release()
    server.latency = 0
    assert f["b"].data.tobytes() == expected["b"].data.tobytes()


@pytest.mark.parametrize("held", [False, True])
def test_copy_on_write(held: bool, server: Server, expected: mmgguf.GGUFFile) -> None:
    f = mmgguf.open(server.url + "/model.gguf", mode="c")
    if held:
        f.prefetch(wait=True)
    f["a"].data[...] = 0
    assert f["a"].data.tobytes() == expected["a"].data.tobytes()
    assert not mmgguf.open(server.url + "/model.gguf")["a"].data.flags.writeable


def test_verify_digest_and_compare(
    server: Server, expected: mmgguf.GGUFFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "PART", 65536)
    url = server.url + "/model.gguf"
    server.latency = 0.01
    assert mmgguf.digest(url) == mmgguf.digest(tmp_path / "model.gguf")
    assert mmgguf.compare(url, tmp_path / "model.gguf") == []
    found = [
        [(f.code, f.where, f.message) for f in mmgguf.verify(one, data=True)] for one in (url, tmp_path / "model.gguf")
    ]
    assert found[0] == found[1]
    assert server.most_at_once > 1


def test_statistics_read_each_byte_once(server: Server, expected: mmgguf.GGUFFile) -> None:
    f = mmgguf.open(server.url + "/model.gguf")
    count = len(server.requests)
    assert mmgguf.inspect.stats(f, names="b") == mmgguf.inspect.stats(expected, names="b")
    assert sum(stop - start for start, stop in server.with_range()[count:]) == 4 * N
    assert mmgguf.inspect.compare_values(f, expected).summary


def test_torch_gets_memory_of_its_own(server: Server, expected: mmgguf.GGUFFile) -> None:
    pytest.importorskip("torch")
    import mmgguf.torch

    f = mmgguf.open(server.url + "/model.gguf")
    f.prefetch(wait=True)
    tensors = mmgguf.torch.load_file(f)
    tensors["a"].zero_()
    assert f["a"].data.tobytes() == expected["a"].data.tobytes()


def test_small_neighbours_are_one_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "FIRST_STEP", 4096)
    tensors = {f"{i}": np.full(1000 * (i % 3) + 1, i, np.float32) for i in range(60)}
    tensors["large"] = np.zeros(300_000, np.float32)
    mmgguf.write(tmp_path / "x.gguf", {}, tensors | {"last": np.ones(3, np.float32)})
    monkeypatch.setattr(remote, "PART", 100_000)
    with Server(files({"/x.gguf": (tmp_path / "x.gguf").read_bytes()})) as server:
        f = mmgguf.open(server.url + "/x.gguf")
        count = len(server.requests)
        for name, array in mmgguf.load_file(f).items():
            np.testing.assert_array_equal(array, tensors.get(name, np.ones(3, np.float32)))
        ranges = sorted(server.with_range()[count:])
        assert max(stop - start for start, stop in ranges) <= 100_000
        assert len(ranges) < 20
        assert all(start <= after <= start + 300_000 for (_, start), (after, _) in itertools.pairwise(ranges))


# ---------------------------------------------------------------- splits, lifetimes, threads, processes


def _split(tmp_path: Path) -> dict[str, bytes]:
    contents = {}
    for no in range(2):
        metadata = {"split.no": np.uint16(no), "split.count": np.uint16(2), "split.tensors.count": np.int32(2)}
        path = tmp_path / f"m-{no + 1:05d}-of-00002.gguf"
        mmgguf.write(path, metadata, {f"t{no}": np.full(4, no, np.float32)})
        contents[f"/{path.name}"] = path.read_bytes()
    return contents


def test_shards_are_found_beside_the_first(tmp_path: Path) -> None:
    contents = _split(tmp_path)
    with Server(files(contents)) as server:
        for no in (1, 2):
            with mmgguf.open(f"{server.url.replace('//', '//me:pw@')}/m-0000{no}-of-00002.gguf?download=true") as f:
                assert [tensor.data[0] for tensor in f.values()] == [0, 1]
        assert {request.path.partition("?")[2] for request in server.requests} == {"download=true"}
        del contents["/m-00002-of-00002.gguf"]
        with pytest.raises(SplitError, match=r"m-00002-of-00002\.gguf: missing"):
            mmgguf.open(f"{server.url}/m-00001-of-00002.gguf")


def test_after_closing(server: Server) -> None:
    f = mmgguf.open(server.url + "/model.gguf")
    tensor, array = f["a"], f["a"].data
    f.prefetch()
    f.close()
    f.close()
    assert array.sum() > 0
    for use in (lambda: tensor.data, f.prefetch, f.resident, lambda: f.metadata["words"], lambda: pickle.dumps(f)):
        with pytest.raises(ClosedError):
            use()


def test_threads(server: Server, expected: mmgguf.GGUFFile) -> None:
    f = mmgguf.open(server.url + "/model.gguf")
    wrong: list[str] = []

    def read(name: str) -> None:
        for i in range(0, 1000, 100):
            f.prefetch(name)
            if f[name][i : i + 50].tobytes() != expected[name][i : i + 50].tobytes():
                wrong.append(name)
            f.release(name)

    threads = [threading.Thread(target=read, args=(name,)) for name in "abcabc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_pickled_by_reference(server: Server, expected: mmgguf.GGUFFile) -> None:
    f = mmgguf.open(server.url + "/model.gguf?token=s3cret&version=2", storage_options={"headers": {"X-Key": "hidden"}})
    pickled = pickle.dumps((f, f["a"]))
    assert len(pickled) < 2000
    assert b"s3cret" not in pickled
    assert b"hidden" not in pickled
    again, tensor = pickle.loads(pickled)
    assert tensor.data.tobytes() == again["a"].data.tobytes() == expected["a"].data.tobytes()
    assert server.requests[-1].path == "/model.gguf?version=2"


def test_pickles_of_a_file_that_has_changed(server: Server, model: bytes) -> None:
    f = mmgguf.open(server.url + "/model.gguf")
    pickled = pickle.dumps(f["a"])
    server.respond = lambda request: ranged(request, model, etag='"2"')
    with pytest.raises(FileChangedError, match="its ETag was"):
        pickle.loads(pickled)
    server.respond = lambda request: ranged(request, model[:-1])
    with pytest.raises(FileChangedError, match=r"it had \d+ bytes"):
        pickle.loads(pickled)
    other = model[:60] + bytes([model[60] ^ 1]) + model[61:]
    server.respond = lambda request: ranged(request, other)
    with pytest.raises(FileChangedError, match="another header"):
        pickle.loads(pickled)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_after_a_fork(server: Server, expected: mmgguf.GGUFFile) -> None:
    f = mmgguf.open(server.url + "/model.gguf")
    f.prefetch("b")
    child = os.fork()
    if not child:
        code = 1
        try:
            code = 0 if f["a"].data.tobytes() == expected["a"].data.tobytes() else 2
        finally:
            os._exit(code)
    deadline = time.monotonic() + 30
    while (status := os.waitpid(child, os.WNOHANG)) == (0, 0) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert status == (child, 0)
    assert f["b"].data.tobytes() == expected["b"].data.tobytes()


def test_importing_the_package_imports_nothing_of_this() -> None:
    code = "import mmgguf, sys; print([m for m in ('asyncio', 'fsspec', 'aiohttp', 'ssl') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


# ---------------------------------------------------------------- bad servers


def _never(request: Request, data: bytes) -> Reply:
    raise AssertionError


def _when(part: Callable[[Request], bool], then: Callable[[Request, bytes], Reply]) -> Callable[..., Reply]:
    return lambda request, data: then(request, data) if part(request) else ranged(request, data)


def _first(count: int) -> Callable[[Request], bool]:
    return lambda request: request.number < count


def _later(request: Request) -> bool:
    return request.range is not None and request.range[1] - request.range[0] > 200_000


def _status(code: int, **headers: str) -> Callable[[Request, bytes], Reply]:
    return lambda request, data: Reply(code, {name.replace("_", "-"): value for name, value in headers.items()})


def _patched(**changes: Any) -> Callable[[Request, bytes], Reply]:
    """A range with headers changed (None: left out), or parts of the reply."""

    def respond(request: Request, data: bytes) -> Reply:
        reply = ranged(request, data)
        headers = dict(reply.headers)
        parts = {name: changes[name] for name in ("cut", "stall", "body", "status") if name in changes}
        for name, value in changes.items():
            if name in parts:
                continue
            headers.pop(name.replace("_", "-"), None)
            if value is not None:
                headers[name.replace("_", "-")] = value
        return Reply(**{"status": reply.status, "headers": headers, "body": reply.body} | parts)

    return respond


def _short(request: Request, data: bytes) -> Reply:
    """Says that it sends a part of the range, and does."""
    assert request.range is not None
    start, stop = request.range
    stop = min(stop, len(data), start + N)
    return Reply(206, {"Content-Range": f"bytes {start}-{stop - 1}/{len(data)}"}, data[start:stop])


#: What a bad server does, and that nobody notices.
TOLERATED: dict[str, Callable[[Request, bytes], Reply]] = {
    "busy for a moment": _when(_first(2), _status(503)),
    "too many requests": _when(_first(1), _status(429, Retry_After="0")),
    "closes in the middle of a body": _when(lambda request: request.number % 3 == 1, _patched(cut=1000)),
    "sends less than asked": _short,
    "no ETag": _patched(ETag=None),
    "a last-modified only": _patched(ETag=None, Last_Modified="Wed, 25 Nov 2026 22:00:00 GMT"),
    "refuses HEAD": _when(lambda request: request.method == "HEAD", _status(403)),
    "denies ranges in its headers": _patched(Accept_Ranges="none"),
}


@pytest.mark.parametrize("behaviour", TOLERATED)
def test_tolerated(behaviour: str, model: bytes, expected: mmgguf.GGUFFile) -> None:
    with Server(lambda request: TOLERATED[behaviour](request, model)) as server:
        f = mmgguf.open(server.url + "/model.gguf", timeout=5)
        for name, array in mmgguf.load_file(f).items():
            assert array.tobytes() == expected[name].data.tobytes()


Bad = tuple[Callable[[Request, bytes], Reply], type[Exception], str]
REFUSED: dict[str, Bad] = {
    "ignores ranges": (whole, RemoteError, r"ignores ranges and would send the whole file \(1\.\d MiB\)"),
    "ignores ranges, no length": (
        lambda request, data: Reply(200, {"Content-Length": "", "Transfer-Encoding": "chunked"}, b""),
        RemoteError,
        "ignores ranges and does not tell",
    ),
    "ignores ranges later": (_when(_later, whole), RemoteError, "ignores ranges"),
    "another range": (
        _when(_later, lambda r, d: Reply(206, {"Content-Range": f"bytes 0-99/{len(d)}"}, d[:100])),
        RemoteError,
        "sends bytes 0 to 100",
    ),
    "a longer range": (
        lambda request, data: Reply(206, {"Content-Range": f"bytes 0-{len(data) - 1}/{len(data)}"}, data),
        RemoteError,
        "were asked for",
    ),
    "no Content-Range": (_patched(Content_Range=None), RemoteError, "without telling where it lies"),
    "unknown size": (_patched(Content_Range="bytes 0-4095/*"), RemoteError, "how long the file is"),
    "broken Content-Range": (_patched(Content_Range="bytes " + "9" * 5000), RemoteError, "without telling"),
    "multipart": (_patched(Content_Range=None, Content_Type="multipart/byteranges"), RemoteError, "without telling"),
    "compressed": (_patched(Content_Encoding="gzip", body=b"x" * 50), RemoteError, "come encoded"),
    "gone": (_status(404), FileNotFoundError, "No such file on the server"),
    "gone later": (_when(_later, _status(404)), FileNotFoundError, "No such file on the server"),
    "forbidden": (_status(403), PermissionError, "token or other credentials"),
    "wrong token": (_status(401), PermissionError, "token or other credentials"),
    "teapot": (_status(418), RemoteError, "HTTP status 418"),
    "always busy": (_status(503), RemoteError, r"HTTP status 503.*after 5 tries"),
    "busy for an hour": (_status(429, Retry_After="3600"), RemoteError, r"HTTP status 429.*after 1 try"),
    "internal error later": (_when(_later, _status(500)), RemoteError, "HTTP status 500"),
    "changes its ETag": (_when(_later, _patched(ETag='"2"')), FileChangedError, r"\"1\".*when it was opened.*\"2\""),
    "grows": (
        _when(_later, lambda request, data: ranged(request, data + b"x")),
        FileChangedError,
        "when it was opened",
    ),
    "precondition": (_when(_later, _status(412)), FileChangedError, "changed since it was opened"),
    "endless redirects": (_status(302, Location="/again"), RemoteError, "too many redirects"),
    "redirects nowhere": (_status(302, Location="ftp://host/x"), RemoteError, "redirects to an invalid address"),
    "stalls before the head": (_patched(stall=1.0), RemoteError, r"nothing, or too little, came for 0\.05 s"),
    "stalls in the body": (_when(_later, _patched(cut=500, stall=1.0)), RemoteError, r"after 5 tries; timeout=0\.05"),
    "closes at once": (_patched(cut=0), RemoteError, "after 5 tries"),
    "a page": (lambda request, data: ranged(request, b"<html>" + bytes(9000)), NotGGUFError, "begins with b'<htm'"),
    "416": (_status(416), RemoteError, "HTTP status 416"),
}


@pytest.mark.parametrize("behaviour", REFUSED)
def test_refused(behaviour: str, model: bytes) -> None:
    respond, error, message = REFUSED[behaviour]
    began = time.monotonic()
    timeout = 0.05 if "stalls" in behaviour else 5
    with Server(lambda request: respond(request, model), rate=None if "stalls" in behaviour else 5e6) as server:
        secret = f"{server.url.replace('//', '//user:passw0rd@')}/model.gguf?X-Amz-Signature=s1gnature"
        with pytest.raises(error, match=message) as caught:
            mmgguf.load_file(mmgguf.open(secret, timeout=timeout))
        # Nothing was downloaded on the quiet, but for what was on its way when we hung up.
        assert server.sent < len(model)
    assert isinstance(caught.value, GGUFError | OSError)
    text = "".join(_texts(caught.value))
    assert "passw0rd" not in text
    assert "s1gnature" not in text
    assert "model.gguf" in text
    assert time.monotonic() - began < 20


def _texts(error: BaseException | None) -> Iterator[str]:
    while error is not None:
        yield f"{error} {error!r} {getattr(error, 'filename', '')}"
        error = error.__cause__ or error.__context__


def test_small_files_from_a_server_without_ranges(model: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "FIRST_STEP", len(model))
    with Server(lambda request: whole(request, model)) as server:
        assert len(mmgguf.load_file(mmgguf.open(server.url + "/model.gguf"))) == 4
        assert len(server.requests) == 1


def test_an_empty_file() -> None:
    with (
        Server(lambda request: ranged(request, b"")) as server,
        pytest.raises(GGUFError, match="needs 4 bytes, file has 0"),
    ):
        mmgguf.open(server.url + "/empty.gguf")


def test_a_header_that_does_not_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "MAX_HEADER", 10 << 20)
    monkeypatch.setattr(remote, "FIRST_STEP", 1 << 16)
    # A string array of a million million strings, in a file that says that it is that long.
    head = b"GGUF" + (3).to_bytes(4, "little") + (0).to_bytes(8, "little") + (1).to_bytes(8, "little")
    head += (1).to_bytes(8, "little") + b"k" + (9).to_bytes(4, "little") + (8).to_bytes(4, "little")
    head += (10**12).to_bytes(8, "little")
    size = 10**14

    def respond(request: Request) -> Reply:
        assert request.range is not None
        start, stop = request.range
        body = (head + bytes(stop))[start:stop] if start < len(head) else bytes(stop - start)
        return Reply(206, {"Content-Range": f"bytes {start}-{stop - 1}/{size}"}, body)

    with Server(respond) as server:
        with pytest.raises(GGUFError, match="a header of more than 10 MiB"):
            mmgguf.open(server.url + "/endless.gguf")
        assert server.sent <= 11 << 20


# ---------------------------------------------------------------- redirects


def test_addresses_that_expire(model: bytes, expected: mmgguf.GGUFFile) -> None:
    """As on the Hub: each address is good for two requests, and its host gets no token."""
    uses: dict[str, int] = {}
    with Server(files({})) as cdn, Server(files({})) as server:

        def at_cdn(request: Request) -> Reply:
            assert "authorization" not in request.headers
            uses[request.path] = uses.get(request.path, 0) + 1
            return Reply(403) if uses[request.path] > 2 else ranged(request, model)

        def at_server(request: Request) -> Reply:
            if request.headers.get("authorization") != "Bearer t0ken":
                return Reply(401)
            return Reply(302, {"Location": f"{cdn.url}/blob?signature={request.number}"})

        cdn.respond, server.respond = at_cdn, at_server
        f = mmgguf.open(server.url + "/x.gguf", storage_options={"headers": {"Authorization": "Bearer t0ken"}})
        for name in "abcabc":
            assert f[name].data.tobytes() == expected[name].data.tobytes()
        assert max(uses.values()) == 3
        assert len(cdn.requests) < 3 * len(server.requests) <= 3 * 6
        with pytest.raises(PermissionError):
            mmgguf.open(server.url + "/x.gguf")


def test_an_address_that_stays_forbidden(model: bytes) -> None:
    with Server(lambda request: Reply(403)) as cdn:
        with Server(redirecting(files({}), cdn.url)) as server, pytest.raises(PermissionError):
            mmgguf.open(server.url + "/model.gguf")
        assert len(cdn.requests) == 1


def test_credentials_of_the_session_stay_at_home(model: bytes, expected: mmgguf.GGUFFile) -> None:
    with Server(lambda request: ranged(request, model)) as cdn, Server(redirecting(files({}), cdn.url)) as server:
        options = {"client_kwargs": {"headers": {"Authorization": "Bearer t0ken"}}}
        f = mmgguf.open(server.url + "/model.gguf", storage_options=options)
        assert f["a"].data.tobytes() == expected["a"].data.tobytes()
        assert all("authorization" not in request.headers for request in cdn.requests)
        assert all("authorization" in request.headers for request in server.requests)


# ---------------------------------------------------------------- other file systems


def test_file_urls(tmp_path: Path, model: bytes) -> None:
    path = tmp_path / "a model.gguf"
    path.write_bytes(model)
    before = set(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else set()
    threads = threading.active_count()
    for _ in range(1000):
        with mmgguf.open(path.as_uri()) as f:
            assert isinstance(f.shards[0].file, MappedFile)
    gc.collect()
    if before:
        assert len(os.listdir("/proc/self/fd")) == len(before)
    assert threading.active_count() == threads
    with pytest.raises(ValueError, match="begins with file:///"):
        mmgguf.open("file://model.gguf")


@pytest.mark.parametrize("protocol", ["simplecache", "filecache"])
def test_downloads_are_mapped(protocol: str, server: Server, tmp_path: Path, expected: mmgguf.GGUFFile) -> None:
    options = {protocol: {"cache_storage": str(tmp_path / "cache")}}
    with mmgguf.open(f"{protocol}::{server.url}/model.gguf", storage="mmap", storage_options=options) as f:
        assert isinstance(f.shards[0].file, MappedFile)
        assert f["a"].data.tobytes() == expected["a"].data.tobytes()
    with pytest.raises(FileNotFoundError):
        mmgguf.open(f"{protocol}::{server.url}/other.gguf", storage_options=options)


def test_memory_file_system(model: bytes, expected: mmgguf.GGUFFile) -> None:
    import fsspec

    fs = fsspec.filesystem("memory")
    fs.pipe("/sources/model.gguf", model)
    try:
        f = mmgguf.open("memory://sources/model.gguf")
        assert f["a"].data.tobytes() == expected["a"].data.tobytes()
        assert len(mmgguf.load_file(f)) == 4
        fs.pipe("/sources/model.gguf", model + b"x")
        with pytest.raises(FileChangedError):
            _ = f["b"].data
        for url, error in (("memory://sources/none.gguf", FileNotFoundError), ("memory://sources", IsADirectoryError)):
            with pytest.raises(error):
                mmgguf.open(url)
    finally:
        fs.rm("/sources", recursive=True)


def test_a_member_of_a_remote_archive(model: bytes, expected: mmgguf.GGUFFile, tmp_path: Path) -> None:
    import zipfile

    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("model.gguf", model)
    with Server(files({"/x.zip": (tmp_path / "x.zip").read_bytes()})) as server:
        f = mmgguf.open(f"zip://model.gguf::{server.url}/x.zip")
        assert f["a"].data.tobytes() == expected["a"].data.tobytes()


def test_what_cannot_be_mapped_says_so(server: Server) -> None:
    with pytest.raises(ValueError, match=r"storage='mmap' maps files of this machine"):
        mmgguf.open(server.url + "/model.gguf", storage="mmap")
    with pytest.raises(ValueError, match="lock=True needs a file that is mapped"):
        mmgguf.open(server.url + "/model.gguf", lock=True)


@pytest.mark.parametrize(
    ("url", "error", "message"),
    [
        ("nothing://host/model.gguf", ValueError, "nothing"),
        ("https://", ValueError, "not a valid URL"),
        ("http://127.0.0.1:1/model.gguf", RemoteError, "after 5 tries"),
        ("https:/host/model.gguf", FileNotFoundError, "for a URL, type https://host/model.gguf"),
    ],
)
def test_urls_that_lead_nowhere(url: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        mmgguf.open(url)
    assert isinstance(caught.value, GGUFError | OSError | ValueError)


def test_a_url_is_no_path() -> None:
    with pytest.raises(FileNotFoundError, match=r"for a URL, type https://host/model\.gguf"):
        mmgguf.open(Path("https://host/model.gguf"))


@pytest.mark.parametrize(("option", "value"), [("timeout", 0), ("timeout", -1), ("max_concurrency", 0)])
def test_limits_that_are_none(option: str, value: float, server: Server) -> None:
    with pytest.raises(ValueError, match=option):
        mmgguf.open(server.url + "/model.gguf", **{option: value})
