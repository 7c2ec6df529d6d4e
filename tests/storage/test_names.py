"""Names in the stores of other programs, on this machine and from their servers."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mmgguf
from mmgguf.errors import GGUFError, RemoteError, SplitError, StoreError
from mmgguf.storage import transport
from mmgguf.storage.local import MappedFile
from mmgguf.storage.names import choose_file, hint
from mmgguf.storage.remote import RemoteFile

from ..support.server import Reply, Request, Server, ranged
from ..support.stores import COMMIT, add_hub, add_lmstudio, add_ollama, at_home, manifest

pytestmark = pytest.mark.skipif(os.name != "posix", reason="the stores are laid out with symbolic links")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(transport, "PAUSE", 0.001)
    folder = tmp_path / "home"
    folder.mkdir()
    return at_home(folder, monkeypatch)


@pytest.fixture
def data(tmp_path: Path) -> bytes:
    path = tmp_path / "data.gguf"
    mmgguf.write(path, {"general.architecture": "llama"}, {"w": np.arange(500_000, dtype=np.float32)})
    return path.read_bytes()


def opens(name: str, data: bytes) -> None:
    with mmgguf.open(name) as f:
        assert isinstance(f.shards[0].file, MappedFile)
        assert f["w"].data.tobytes() in data


# ---------------------------------------------------------------- ollama


@pytest.mark.parametrize(
    ("stored", "name"),
    [
        ("registry.ollama.ai/library/llama3.2/1b", "llama3.2:1b"),
        ("registry.ollama.ai/library/llama3.2/1b", "Llama3.2:1B"),
        ("registry.ollama.ai/library/llama3.2/1b", "library/llama3.2:1b"),
        ("registry.ollama.ai/library/llama3.2/latest", "llama3.2"),
        ("registry.ollama.ai/me/mine/v2", "me/mine:v2"),
        ("hf.co/org/Repo-GGUF/Q4_K_M", "hf.co/org/Repo-GGUF:Q4_K_M"),
        ("hf.co/org/Repo-GGUF/Q4_K_M", "hf.co/org/repo-gguf:q4_k_m"),
        ("127.0.0.1:5000/me/mine/latest", "127.0.0.1:5000/me/mine"),
    ],
)
def test_pulled(stored: str, name: str, home: Path, data: bytes) -> None:
    blob = add_ollama(home / ".ollama" / "models", data, stored)
    assert mmgguf.resolve(f"ollama://{name}") == str(blob)
    opens(f"ollama://{name}", data)


def test_where_ollama_keeps_its_models(tmp_path: Path, data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path / "elsewhere"))
    blob = add_ollama(tmp_path / "elsewhere", data)
    assert mmgguf.resolve("ollama://llama3.2:1b") == str(blob)


BROKEN: dict[str, tuple[Callable[[Path, Path, bytes], Any], str]] = {
    "not JSON": (lambda manifest_, blob, data: manifest_.write_bytes(b"<html>"), "not a manifest: not JSON"),
    "deep": (lambda manifest_, blob, data: manifest_.write_bytes(b"[" * 200_000), "not a manifest: not JSON"),
    "a list": (lambda manifest_, blob, data: manifest_.write_bytes(b"[]"), "no list of layers"),
    "huge": (lambda manifest_, blob, data: manifest_.write_bytes(b" " * (2 << 20)), "longer than 1 MiB"),
    "no model": (
        lambda manifest_, blob, data: manifest_.write_bytes(b'{"layers": [{}, 5]}'),
        "no layer with a GGUF model",
    ),
    "outside": (
        lambda manifest_, blob, data: manifest_.write_bytes(manifest(data, digest="sha256:../../../../etc/passwd")),
        "the model's digest is 'sha256:../",
    ),
    "no digest": (lambda manifest_, blob, data: manifest_.write_bytes(manifest(data, digest=None)), "digest is 'None'"),
    "size": (lambda manifest_, blob, data: manifest_.write_bytes(manifest(data, size="5")), "size is '5'"),
    "cut off": (lambda manifest_, blob, data: os.truncate(blob, 100), r"has 100 bytes, the manifest .* says \d+"),
    "gone": (lambda manifest_, blob, data: blob.unlink(), "pull the model again"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_broken_entries(what: str, home: Path, data: bytes) -> None:
    models = home / ".ollama" / "models"
    blob = add_ollama(models, data)
    change, message = BROKEN[what]
    change(models / "manifests/registry.ollama.ai/library/llama3.2/1b", blob, data)
    with pytest.raises(StoreError, match=message):
        mmgguf.open("ollama://llama3.2:1b")


@pytest.mark.parametrize(
    "name",
    [
        *(
            "ollama://",
            "ollama://a/b/c/d",
            "ollama://../x",
            "ollama://x:",
            "ollama://x:..",
            "ollama://a//b",
            "ollama://x y",
        ),
        *("hf://", "hf://org", "hf://org/", "hf://../x", "hf://org/repo/../../x", "hf://org/repo:Q4/x.gguf"),
        *("hf://org/repo@../x.gguf", "hf://org/repo@main:..", "hf://datasets/org/repo/x.gguf"),
        *("lmstudio://", "lmstudio://x", "lmstudio://../../etc/passwd", "lmstudio://a/b/c/d/e", "lmstudio://a/b\0"),
    ],
)
def test_what_is_no_name(name: str) -> None:
    with pytest.raises(ValueError, match=r"a name is|only repositories|both") as caught:
        mmgguf.open(name)
    assert not isinstance(caught.value, GGUFError)


def test_other_sources_come_back_as_they_are() -> None:
    for source in ("model.gguf", "llama3.2:1b", "https://host/x.gguf", "s3://bucket/x.gguf"):
        assert mmgguf.resolve(source) == source


class Registry:
    """ollama's registry: manifests, and blobs behind a redirect."""

    def __init__(self, data: bytes, name: str = "library/llama3.2", tag: str = "1b") -> None:
        self.data = data
        self.manifest = manifest(data)
        self.path = f"/v2/{name}/manifests/{tag}"
        self.blob = f"/v2/{name}/blobs/sha256:{hashlib.sha256(data).hexdigest()}"

    def __call__(self, request: Request) -> Reply:
        path = request.path.partition("?")[0]
        if path == self.path:
            return Reply(200, {"Content-Type": "text/plain"}, self.manifest)
        if path == self.blob:
            return Reply(307, {"Location": f"/cdn?signature={request.number}"})
        return ranged(request, self.data, etag=None) if path == "/cdn" else Reply(404)


@pytest.fixture
def registry(data: bytes) -> Iterator[Server]:
    pytest.importorskip("aiohttp")
    with Server(Registry(data)) as server:
        yield server


def test_not_pulled_yet(registry: Server, data: bytes) -> None:
    name = f"ollama://{registry.url.removeprefix('http://')}/library/llama3.2:1b"
    assert mmgguf.resolve(name).startswith(f"{registry.url}/v2/library/llama3.2/blobs/sha256:")
    with mmgguf.open(name) as f:
        assert isinstance(f.shards[0].file, RemoteFile)
        assert f.path == name
        assert f["w"].data.tobytes() in data
    assert registry.sent < 2 * len(data)


def test_in_no_registry(registry: Server) -> None:
    host = registry.url.removeprefix("http://")
    with pytest.raises(FileNotFoundError, match=r"Not pulled, and 127.* has no such model"):
        mmgguf.open(f"ollama://{host}/library/none")
    registry.respond = lambda request: Reply(200, {}, b"<html>")
    with pytest.raises(StoreError, match="not a manifest"):
        mmgguf.open(f"ollama://{host}/library/llama3.2:1b")
    registry.respond = lambda request: Reply(200, {}, b" " * (3 << 20))
    with pytest.raises(RemoteError, match="at most"):
        mmgguf.open(f"ollama://{host}/library/llama3.2:1b")
    registry.respond = lambda request: Reply(500)
    with pytest.raises(RemoteError, match="HTTP status 500"):
        mmgguf.open(f"ollama://{host}/library/llama3.2:1b")


# ---------------------------------------------------------------- Hugging Face


FILES = [
    "README.md",
    "model-BF16.gguf",
    "model-Q4_K_M.gguf",
    "model-Q4_K_S.gguf",
    "model-Q8_0-00001-of-00002.gguf",
    "model-Q8_0-00002-of-00002.gguf",
    "mmproj-model-Q5_K_M.gguf",
    "model.imatrix-Q5_K_M.gguf",
    "UD-IQ1_S/other-00002-of-00002.gguf",
    "UD-IQ1_S/other-00001-of-00002.gguf",
]


@pytest.mark.parametrize(
    ("files", "quant", "chosen"),
    [
        (FILES, "", "model-Q4_K_M.gguf"),
        (FILES[:2] + FILES[4:], "", "model-Q8_0-00001-of-00002.gguf"),
        (FILES[:2], "", "model-BF16.gguf"),
        (FILES[:1], "", None),
        (FILES, "q4_k_s", "model-Q4_K_S.gguf"),
        (FILES, "Q4_K", None),
        (FILES, "Q8_0", "model-Q8_0-00001-of-00002.gguf"),
        (FILES, "Q5_K_M", None),
        (FILES, "bf16", "model-BF16.gguf"),
        (FILES, "UD-IQ1_S", None),
        ([*FILES, "UD-IQ1_S/UD-IQ1_S-00001-of-00002.gguf"], "UD-IQ1_S", "UD-IQ1_S/UD-IQ1_S-00001-of-00002.gguf"),
    ],
)
def test_the_file_that_llama_cpp_would_choose(files: list[str], quant: str, chosen: str | None) -> None:
    assert choose_file(files, quant) == chosen


@pytest.mark.parametrize(
    ("variables", "folder"),
    [
        ({}, "home/.cache/huggingface/hub"),
        ({"XDG_CACHE_HOME": "x"}, "x/huggingface/hub"),
        ({"XDG_CACHE_HOME": "x", "HF_HOME": "y"}, "y/hub"),
        ({"HF_HOME": "y", "HF_HUB_CACHE": "z"}, "z"),
        ({"LLAMA_CACHE": "w", "HF_HUB_CACHE": "z"}, "w"),
    ],
)
@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("hf://org/repo:Q8_0", "m-Q8_0.gguf"),
        ("hf://org/repo", "m-Q4_K_M.gguf"),
        ("hf://org/repo/sub/m-F16.gguf", "sub/m-F16.gguf"),
        (f"hf://org/repo@{COMMIT}/m-Q8_0.gguf", "m-Q8_0.gguf"),
        ("hf://org/repo@main:q8_0", None),
    ],
)
def test_cached(
    variables: dict[str, str], folder: str, name: str, file: str | None, tmp_path: Path, data: bytes,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    for variable, value in variables.items():
        monkeypatch.setenv(variable, str(tmp_path / value))
    snapshot = add_hub(
        tmp_path / folder, "org/repo", dict.fromkeys(["m-Q4_K_M.gguf", "m-Q8_0.gguf", "sub/m-F16.gguf"], data)
    )
    name = name.replace("repo@main:q8_0", "repo:q8_0@main") if file is None else name
    if file is None:
        with pytest.raises(ValueError, match="a name is"):
            mmgguf.resolve(name)
        return
    assert mmgguf.resolve(name) == str(snapshot / file)
    opens(name, data)


def test_the_cache_that_llama_cpp_had_before(home: Path, data: bytes) -> None:
    folder = home / ".cache" / "llama.cpp"
    folder.mkdir(parents=True)
    for file in ("org_repo_m-Q4_K_M.gguf", "org_repo_m-Q8_0.gguf", "org_other_m-Q2_K.gguf"):
        (folder / file).write_bytes(data)
    assert mmgguf.resolve("hf://org/repo") == str(folder / "org_repo_m-Q4_K_M.gguf")
    assert mmgguf.resolve("hf://org/repo/m-Q8_0.gguf") == str(folder / "org_repo_m-Q8_0.gguf")
    assert mmgguf.resolve("hf://org/other:q2_k") == str(folder / "org_other_m-Q2_K.gguf")


def test_a_ref_that_points_outside(home: Path, data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("huggingface_hub")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    snapshot = add_hub(home / ".cache/huggingface/hub", "org/repo", {"m.gguf": data})
    (snapshot.parents[1] / "refs" / "main").write_text("../../../../..")
    with pytest.raises(RemoteError):
        mmgguf.open("hf://org/repo")


class Hub:
    """The Hub: the list of a repository's files, and resolve routes that redirect to an address with a signature."""

    def __init__(self, files: dict[str, bytes], token: str | None = None) -> None:
        self.files = files
        self.token = token

    def __call__(self, request: Request) -> Reply:
        path = request.path.partition("?")[0]
        if path.startswith("/cdn/"):
            assert "authorization" not in request.headers or "127.0.0.1" in request.headers["host"]
            return ranged(request, self.files[path.removeprefix("/cdn/")])
        if self.token is not None and request.headers.get("authorization") != f"Bearer {self.token}":
            return Reply(401, {"X-Error-Code": "GatedRepo", "X-Error-Message": "restricted"}, b"{}")
        if path in ("/api/models/org/repo", "/api/models/org/repo/revision/main"):
            siblings = [{"rfilename": name} for name in self.files]
            body = json.dumps({"id": "org/repo", "modelId": "org/repo", "sha": COMMIT, "siblings": siblings})
            return Reply(200, {"Content-Type": "application/json"}, body.encode())
        name = path.removeprefix("/org/repo/resolve/main/")
        if name not in self.files:
            code = "RepoNotFound" if path.startswith("/api/") else "EntryNotFound"
            return Reply(404, {"X-Error-Code": code, "X-Error-Message": "not found"}, b"{}")
        headers = {"Location": f"/cdn/{name}?Signature=s1gned", "X-Repo-Commit": COMMIT, "X-Linked-Size": "1"}
        return Reply(302, headers, b"Found")


@pytest.fixture
def hub(data: bytes, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    pytest.importorskip("aiohttp")
    pytest.importorskip("huggingface_hub")
    names = ["README.md", "m-Q4_K_M.gguf", "m-Q8_0.gguf", "a b/m-F16.gguf"]
    with Server(Hub(dict.fromkeys(names, data))) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        yield server


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("hf://org/repo:q8_0", "m-Q8_0.gguf"),
        ("hf://org/repo", "m-Q4_K_M.gguf"),
        ("hf://org/repo@main/m-Q8_0.gguf", "m-Q8_0.gguf"),
        ("hf://org/repo/a b/m-F16.gguf", "a%20b/m-F16.gguf"),
    ],
)
def test_from_the_hub(name: str, path: str, hub: Server, data: bytes) -> None:
    if "%" in path:
        hub.respond.files[path] = data  # type: ignore[attr-defined]
    assert mmgguf.resolve(name) == f"{hub.url}/org/repo/resolve/main/{path}"
    with mmgguf.open(name) as f:
        assert f["w"].data.tobytes() in data
        assert f.path == name


def test_a_split_model_by_its_quantization(hub: Server, tmp_path: Path) -> None:
    """Neither the name nor its address says where the other shards are; the file that was chosen does."""
    for no in range(3):
        metadata = {"split.no": np.uint16(no), "split.count": np.uint16(3), "split.tensors.count": np.int32(3)}
        path = tmp_path / f"m-Q2_K-{no + 1:05d}-of-00003.gguf"
        mmgguf.write(path, metadata, {f"t{no}": np.full(4, no, np.float32)})
        hub.respond.files[path.name] = path.read_bytes()  # type: ignore[attr-defined]
    with mmgguf.open("hf://org/repo:Q2_K") as f:
        assert [tensor.data[0] for tensor in f.values()] == [0, 1, 2]
        assert pickle.loads(pickle.dumps(f))["t2"].data[0] == 2
    del hub.respond.files["m-Q2_K-00002-of-00003.gguf"]  # type: ignore[attr-defined]
    with pytest.raises(SplitError, match=r"hf://org/repo@main/m-Q2_K-00002-of-00003\.gguf: missing"):
        mmgguf.open("hf://org/repo:Q2_K")


def test_pickles_have_no_token(hub: Server, data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.respond.token = "t0ken"  # type: ignore[attr-defined]
    pickled = pickle.dumps(mmgguf.open("hf://org/repo", storage_options={"token": "t0ken"}))
    assert b"t0ken" not in pickled
    with pytest.raises(PermissionError):
        pickle.loads(pickled)
    monkeypatch.delenv("HF_HUB_DISABLE_IMPLICIT_TOKEN")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_IMPLICIT_TOKEN", False)
    monkeypatch.setenv("HF_TOKEN", "t0ken")
    assert pickle.loads(pickled)["w"].data.tobytes() in data


def test_tokens(hub: Server, data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.respond.token = "t0ken"  # type: ignore[attr-defined]
    for name in ("hf://org/repo", "hf://org/repo/m-Q8_0.gguf"):
        for options in ({}, {"token": "wr0ng"}):
            with pytest.raises(PermissionError, match="token") as caught:
                mmgguf.open(name, storage_options=options)
            assert "wr0ng" not in f"{caught.value!r}{caught.value.__context__!r}"
        with mmgguf.open(name, storage_options={"token": "t0ken"}) as f:
            assert f["w"].data.tobytes() in data
    assert "t0ken" not in mmgguf.resolve("hf://org/repo", storage_options={"token": "t0ken"})


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("hf://org/none", FileNotFoundError, "No such repository"),
        ("hf://org/none:Q4_0", FileNotFoundError, "No such repository"),
        ("hf://org/repo:Q2_K", FileNotFoundError, "No file of the repository fits .*m-Q4_K_M.gguf"),
        ("hf://org/repo/none.gguf", FileNotFoundError, "No such file on the server"),
    ],
)
def test_not_on_the_hub(name: str, error: type[Exception], message: str, hub: Server) -> None:
    with pytest.raises(error, match=message):
        mmgguf.open(name)


def test_a_hub_that_does_not_answer(hub: Server) -> None:
    hub.respond = lambda request: Reply(500)
    with pytest.raises(RemoteError, match=r"cannot be asked|HTTP status 500"):
        mmgguf.open("hf://org/repo", timeout=1)


# ---------------------------------------------------------------- LM Studio


@pytest.mark.parametrize("where", [".lmstudio", ".cache/lm-studio", "named"])
def test_lmstudio(where: str, home: Path, data: bytes) -> None:
    if where == "named":
        (home / ".lmstudio-home-pointer").write_text(f"{home / 'named'}\n")
    path = add_lmstudio(home / where, "publisher/model/m-Q4_K_M.gguf", data)
    for name in ("publisher/model/m-Q4_K_M.gguf", "publisher/model"):
        assert mmgguf.resolve(f"lmstudio://{name}") == str(path)
        opens(f"lmstudio://{name}", data)
    add_lmstudio(home / where, "publisher/model/m-Q8_0.gguf", data)
    with pytest.raises(FileNotFoundError, match=r"there are m-Q4_K_M\.gguf, m-Q8_0\.gguf"):
        mmgguf.open("lmstudio://publisher/model")
    with pytest.raises(FileNotFoundError, match="no such file"):
        mmgguf.open("lmstudio://publisher/none/m.gguf")


# ---------------------------------------------------------------- hints


def test_words_are_paths_and_the_error_says_what_to_type(home: Path, data: bytes) -> None:
    add_ollama(home / ".ollama" / "models", data)
    add_hub(home / ".cache/huggingface/hub", "org/repo", {"m-Q4_K_M.gguf": data})
    add_lmstudio(home / ".lmstudio", "publisher/model/m.gguf", data)
    for word, scheme in (("llama3.2:1b", "ollama"), ("org/repo:Q4_K_M", "hf"), ("publisher/model", "lmstudio")):
        with pytest.raises(FileNotFoundError) as caught:
            mmgguf.open(word)
        assert caught.value.filename == word
        assert f"type {scheme}://{word}" in str(caught.value)
    for path in ("none", "/llama3.2:1b", "./llama3.2:1b", "a/b/c/d.gguf", "x" * 1000, ".."):
        assert hint(path) == ""
