"""Remote files from servers that people run: nginx with TLS, and S3 as moto speaks it.

These need nginx and openssl (Debian's packages), s3fs and ``moto[server]``; what is missing is skipped.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mmgguf
from mmgguf.errors import FileChangedError, GGUFError, RemoteError
from mmgguf.storage import remote, transport
from mmgguf.storage.filesystem import S3Transport

pytest.importorskip("fsspec")
pytest.importorskip("aiohttp")

NGINX = shutil.which("nginx") or shutil.which("/usr/sbin/nginx")
CONFIGURATION = """
daemon off;
worker_processes 1;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{ worker_connections 64; }}
http {{
    access_log {folder}/access.log;
    client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
    gzip on; gzip_types *; gzip_min_length 1;
    server {{
        listen 127.0.0.1:{port} ssl;
        ssl_certificate {folder}/cert.pem; ssl_certificate_key {folder}/key.pem;
        root {folder}/files;
        location /secret/ {{ auth_basic "models"; auth_basic_user_file {folder}/users; alias {folder}/files/; }}
        location /whole/ {{ max_ranges 0; alias {folder}/files/; }}
        location /moved/ {{ return 302 /model.gguf; }}
    }}
}}
"""


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "FIRST_STEP", 4096)
    monkeypatch.setattr(transport, "PAUSE", 0.001)


def write(path: Path, seed: int = 0) -> bytes:
    rng = np.random.default_rng(seed)
    tensors = {name: rng.random((1000, 100), np.float32) for name in ("pad", "a", "b")}
    mmgguf.write(path, {"general.architecture": "test"}, tensors)
    return path.read_bytes()


# ---------------------------------------------------------------- nginx


@pytest.fixture(scope="module")
def nginx(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path, Any]]:
    """A server with a certificate of its own; its URL, its folder, and a context that trusts it."""
    if NGINX is None or shutil.which("openssl") is None:
        pytest.skip("needs nginx and openssl")
    folder = tmp_path_factory.mktemp("nginx")
    (folder / "files").mkdir()
    write(folder / "files" / "model.gguf")
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1", "-days", "2", "-nodes"]
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-keyout", "key.pem", "-out", "cert.pem"]
    subprocess.run(["openssl", "req", "-x509", *key, *subject], cwd=folder, check=True, capture_output=True)
    (folder / "users").write_text("user:{PLAIN}passw0rd\n")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for path in (folder, folder / "files"):
        path.chmod(0o755)
    (folder / "nginx.conf").write_text(CONFIGURATION.format(folder=folder, port=port))
    user = ["-g", "user root;"] if os.geteuid() == 0 else []
    command = [NGINX, "-c", str(folder / "nginx.conf"), "-p", str(folder), "-e", str(folder / "error.log"), *user]
    process = subprocess.Popen(command)
    try:
        deadline = time.monotonic() + 20
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                assert process.poll() is None, (folder / "error.log").read_text()
                assert time.monotonic() < deadline
                time.sleep(0.02)
        yield f"https://127.0.0.1:{port}", folder, ssl.create_default_context(cafile=folder / "cert.pem")
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(20)


def test_https_with_ranges(nginx: tuple[str, Path, Any]) -> None:
    url, folder, context = nginx
    expected = mmgguf.open(folder / "files" / "model.gguf")
    for path in ("/model.gguf", "/moved/"):
        f = mmgguf.open(url + path, storage_options={"ssl": context})
        assert f["b"][5:7].tobytes() == expected["b"][5:7].tobytes()
        for name, array in mmgguf.load_file(f).items():
            assert array.tobytes() == expected[name].data.tobytes()
    assert '"HEAD ' not in (folder / "access.log").read_text()


def test_certificates_that_nobody_vouches_for(nginx: tuple[str, Path, Any]) -> None:
    with pytest.raises(RemoteError, match=r"(?i)certificate"):
        mmgguf.open(nginx[0] + "/model.gguf")


def test_passwords(nginx: tuple[str, Path, Any]) -> None:
    url, _, context = nginx
    options = {"ssl": context}
    good = url.replace("//", "//user:passw0rd@") + "/secret/model.gguf"
    with mmgguf.open(good, storage_options=options) as f:
        assert "passw0rd" not in repr(f)
        assert f["a"].data.size == 100_000
    for bad in (url + "/secret/model.gguf", good.replace("passw0rd", "wr0ng")):
        with pytest.raises(PermissionError) as caught:
            mmgguf.open(bad, storage_options=options)
        assert "wr0ng" not in str(caught.value)


def test_a_server_whose_ranges_are_off(nginx: tuple[str, Path, Any]) -> None:
    url, _, context = nginx
    with pytest.raises(RemoteError, match="ignores ranges"):
        mmgguf.open(url + "/whole/model.gguf", storage_options={"ssl": context})


def test_a_file_that_is_replaced_on_the_server(nginx: tuple[str, Path, Any]) -> None:
    url, folder, context = nginx
    path = folder / "files" / "other.gguf"
    write(path)
    f = mmgguf.open(url + "/other.gguf", storage_options={"ssl": context})
    write(path, 1)
    os.utime(path, (1, 1))
    with pytest.raises(FileChangedError, match="open it again"):
        _ = f["b"].data


# ---------------------------------------------------------------- S3


@pytest.fixture(scope="module")
def s3() -> Iterator[dict[str, Any]]:
    """Options for s3fs that lead to moto's server, with a bucket."""
    pytest.importorskip("s3fs")
    server_module = pytest.importorskip("moto.server")
    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    options = {"key": "k3y", "secret": "s3cret", "client_kwargs": {"endpoint_url": f"http://{host}:{port}"}}
    import fsspec

    fsspec.filesystem("s3", **options).mkdir("bucket")
    yield options
    server.stop()


@pytest.mark.slow
def test_s3(s3: dict[str, Any], tmp_path: Path) -> None:
    import fsspec

    data = write(tmp_path / "model.gguf")
    expected = mmgguf.open(data)
    fs = fsspec.filesystem("s3", **s3)
    fs.pipe("bucket/model.gguf", data)
    f = mmgguf.open("s3://bucket/model.gguf", storage_options=s3)
    assert isinstance(f.shards[0].file._transport, S3Transport)  # type: ignore[attr-defined]
    assert f["b"][5:7].tobytes() == expected["b"][5:7].tobytes()
    for name, array in mmgguf.load_file(f).items():
        assert array.tobytes() == expected[name].data.tobytes()
    fs.pipe("bucket/model.gguf", write(tmp_path / "model.gguf", 1))
    with pytest.raises(FileChangedError, match="changed since it was opened"):
        _ = f["a"].data
    fs.pipe("bucket/empty.gguf", b"")
    for url, error in (
        ("s3://bucket/none.gguf", FileNotFoundError),
        ("s3://none/none.gguf", FileNotFoundError),
        ("s3://bucket", IsADirectoryError),
        ("s3://bucket/empty.gguf", GGUFError),
    ):
        with pytest.raises(error) as caught:
            mmgguf.open(url, storage_options=s3)
        assert "s3cret" not in str(caught.value)


@pytest.mark.slow
def test_s3_without_credentials(s3: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(PermissionError, match=r"[Cc]redentials"):
        mmgguf.open("s3://bucket/model.gguf", storage_options={"client_kwargs": s3["client_kwargs"]})


@pytest.mark.slow
def test_writing_to_s3(s3: dict[str, Any], tmp_path: Path) -> None:
    import fsspec

    fs = fsspec.filesystem("s3", **s3)
    tensors = {"a": np.zeros((2000, 1000), np.float32), "b": np.arange(5)}
    for large in (False, True):  # in one request, and in parts
        tensors = {"b": np.arange(5, dtype=np.int32)} | ({"a": np.ones((2000, 1000), np.float32)} if large else {})
        mmgguf.write("s3://bucket/new.gguf", {"n": 1}, tensors, storage_options=s3)
        mmgguf.write(tmp_path / "new.gguf", {"n": 1}, tensors)
        fs.invalidate_cache()
        assert fs.cat("bucket/new.gguf") == (tmp_path / "new.gguf").read_bytes()
    before = fs.cat("bucket/new.gguf")

    def fails() -> Any:
        raise RuntimeError("in the middle")

    broken = tensors | {"c": mmgguf.TypedTensor(fails, mmgguf.GGMLType.F32, (4,))}
    with pytest.raises(RuntimeError, match="in the middle"):
        mmgguf.write("s3://bucket/new.gguf", {"n": 2}, broken, storage_options=s3)
    fs.invalidate_cache()
    assert fs.cat("bucket/new.gguf") == before
    with pytest.raises(OSError, match=r"s3://none/x\.gguf"):
        mmgguf.write("s3://none/x.gguf", {}, tensors, storage_options=s3)
