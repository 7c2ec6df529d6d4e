"""How a file is replaced: permissions, links, what is refused, what a killed process leaves."""

from __future__ import annotations

import contextlib
import errno
import math
import os
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import mmgguf
from mmgguf import npz, safetensors
from mmgguf.errors import SplitError
from mmgguf.format.target import replacing
from mmgguf.format.writer import TypedTensor, write
from mmgguf.types import LAYOUTS, GGMLType, ValueType

posix = pytest.mark.skipif(os.name != "posix", reason="permissions, links and signals of POSIX")
root = pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs root")


def save(path: Path, data: bytes = b"new") -> None:
    with replacing(path) as file:
        file.write(data)


def temporary_files(folder: Path) -> list[Path]:
    return sorted(folder.glob(".mmgguf-*"))


# ---------------------------------------------------------------- permissions


@posix
@pytest.mark.parametrize(
    ("old", "new"),
    [
        (0o600, 0o600),
        (0o444, 0o444),
        (0o666, 0o666),
        (0o640, 0o640),
        pytest.param(0o4755, 0o755, id="set-user-ID"),
        pytest.param(0o2750, 0o750, id="set-group-ID"),
    ],
)
def test_permissions_hold_while_the_file_is_written(old: int, new: int, tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"old")
    path.chmod(old)
    with replacing(path) as file:
        file.write(b"secret")
        (temporary,) = temporary_files(tmp_path)
        assert stat.S_IMODE(temporary.stat().st_mode) == new
    assert stat.S_IMODE(path.stat().st_mode) == new


@posix
def test_a_new_file_follows_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        save(tmp_path / "a")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o640


@root
def test_owner_and_group_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"old")
    os.chown(path, 12345, 23456)
    save(path)
    assert (path.stat().st_uid, path.stat().st_gid) == (12345, 23456)


AS_ANOTHER = """
import hashlib, os, sys  # hashlib: later this user may not read where Python is
from mmgguf.format.target import replacing
os.setgroups([]); os.setgid(4321); os.setuid(4321)
with replacing(sys.argv[1]) as file:
    file.write(b"new")
"""


@root
def test_what_a_group_might_do_is_not_for_another_group(tmp_path: Path) -> None:
    """The group cannot be handed on by one who is not in it."""
    folder = tmp_path
    while folder != folder.parent and str(folder) != "/tmp":
        folder.chmod(0o755)
        folder = folder.parent
    tmp_path.chmod(0o777)
    path = tmp_path / "a"
    path.write_bytes(b"old")
    os.chown(path, 4321, 23456)
    path.chmod(0o664)
    done = subprocess.run([sys.executable, "-c", AS_ANOTHER, str(path)], capture_output=True, text=True, check=False)
    if "Permission" in done.stderr and "site-packages" in done.stderr:
        pytest.skip("the interpreter's packages are not for others to read")
    assert done.returncode == 0, done.stderr
    assert (path.stat().st_gid, stat.S_IMODE(path.stat().st_mode)) == (4321, 0o644)


@pytest.mark.skipif(not hasattr(os, "setxattr"), reason="needs Linux")
def test_an_access_list_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"old")
    # Version 2, then tag, permissions and id of each entry: owner, user 4321, group, mask, others.
    entries = [(1, 6, -1), (2, 4, 4321), (4, 4, -1), (16, 4, -1), (32, 0, -1)]
    packed = b"".join(t.to_bytes(2, "little") + p.to_bytes(2, "little") + (i % 2**32).to_bytes(4, "little")
                      for t, p, i in entries)  # fmt: skip
    try:
        os.setxattr(path, "system.posix_acl_access", (2).to_bytes(4, "little") + packed)
    except OSError as error:
        pytest.skip(f"the file system has no access lists: {error}")
    before = os.getxattr(path, "system.posix_acl_access")
    save(path)
    assert os.getxattr(path, "system.posix_acl_access") == before


@posix
def test_another_hard_link_keeps_the_old_bytes(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"old")
    os.link(tmp_path / "a", tmp_path / "b")
    save(tmp_path / "a")
    assert ((tmp_path / "a").read_bytes(), (tmp_path / "b").read_bytes()) == (b"new", b"old")


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("path", "error"),
    [
        ("newdir/", FileNotFoundError),
        ("newdir/.", FileNotFoundError),
        ("f/", NotADirectoryError),
        ("f/.", NotADirectoryError),
        ("f/../g", NotADirectoryError),
        ("folder", IsADirectoryError),
        ("folder/", IsADirectoryError),
        ("folder/.", IsADirectoryError),
        ("folder/..", IsADirectoryError),
        ("no/g", FileNotFoundError),
        ("loop", OSError),
        ("", FileNotFoundError),
    ],
)
@posix
def test_paths_that_are_no_files(
    path: str, error: type[OSError], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("f").write_bytes(b"old")
    Path("folder").mkdir()
    Path("loop").symlink_to("loop")
    with pytest.raises(error) as caught:
        write(path, {}, {})
    assert caught.value.filename == path
    assert sorted(os.listdir()) == ["f", "folder", "loop"]
    assert Path("f").read_bytes() == b"old"


def _link(old: Path, new: Path) -> None:
    new.symlink_to(old)


@posix
@pytest.mark.parametrize("make", [_link, os.link, None], ids=["symbolic link", "hard link", "other spelling"])
@pytest.mark.parametrize("function", [npz.save_file, safetensors.save_file, safetensors.to_gguf])
def test_the_source_is_not_replaced(
    function: Callable[..., None], make: Callable[[Path, Path], None] | None, all_types: Path, tmp_path: Path
) -> None:
    pytest.importorskip("safetensors")
    source = tmp_path / "source"
    if function is safetensors.to_gguf:
        safetensors.save_file(all_types, source)
    else:
        shutil.copy(all_types, source)
    before = source.read_bytes()
    target = tmp_path / "target"
    if make is None:
        (tmp_path / "folder").mkdir()
        target = tmp_path / "folder" / ".." / "source"
    else:
        make(source, target)
    with pytest.raises(OSError, match=r"Is the same file as the source .*, which would be lost"):
        function(source, target)
    assert source.read_bytes() == before
    assert not temporary_files(tmp_path)


@posix
def test_no_shard_of_the_source_is_replaced(tmp_path: Path) -> None:
    paths = [tmp_path / f"m-0000{no}-of-00002.gguf" for no in (1, 2)]
    for no, path in enumerate(paths):
        write(path, {"split.no": np.uint16(no), "split.count": np.uint16(2)}, {f"w{no}": np.zeros(3, "f4")})
    (tmp_path / "x.npz").symlink_to(paths[1])
    with pytest.raises(OSError, match="Is the same file"):
        npz.save_file(paths[0], tmp_path / "x.npz")
    assert mmgguf.open(paths[0])["w1"].data.tolist() == [0] * 3


@pytest.mark.parametrize(
    ("metadata", "name", "error", "match"),
    [
        ({"split.count": np.uint16(2)}, "a.gguf", SplitError, r"one shard of 2 .*not named <prefix>-00001-of-00002"),
        ({"split.count": np.uint16(2)}, "a-00001-of-00003.gguf", SplitError, "named as one of 3 shards"),
        ({"split.count": np.uint16(2)}, "a-00003-of-00002.gguf", SplitError, "named as shard 3 of 2"),
        ({"split.count": mmgguf.TypedValue("2", ValueType.STRING)}, "a.gguf", ValueError, "an integer type"),
        ({"split.count": np.uint16(1)}, "a.gguf", None, ""),
        ({"split.count": np.uint16(2)}, "a-00001-of-00002.gguf", None, ""),
    ],
)
def test_what_open_refuses_about_splits(
    metadata: dict[str, object], name: str, error: type[Exception] | None, match: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(b"old")
    with pytest.raises(error, match=match) if error else contextlib.nullcontext():
        write(tmp_path / name, metadata, {})
    assert ((tmp_path / name).read_bytes() == b"old") == (error is not None)


SHAPES = [
    (0, 2**62),
    (2**62, 0),
    (0, 2**60),
    (0, 2**59),
    (0, 2**31, 2**31),
    (0, 2**32),
    (2**31, 2**30, 0),
    (0,),
    (3, 0),
]


@pytest.mark.parametrize("type_", [GGMLType.F32, GGMLType.F64, GGMLType.I8, GGMLType.Q4_0, GGMLType.Q2_0])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_what_can_be_written_can_be_opened(shape: tuple[int, ...], type_: GGMLType, tmp_path: Path) -> None:
    """Shapes without elements: nothing but the shape itself is in the way."""
    path = tmp_path / "a.gguf"
    path.write_bytes(b"old")
    try:
        write(path, {}, {"w": TypedTensor(lambda: np.zeros(0, "u1"), type_, shape)})
    except ValueError:
        assert path.read_bytes() == b"old"
        assert math.prod(n for n in shape if n) >= 2**58 or shape[-1] % LAYOUTS[type_].block_size
    else:
        with mmgguf.open(path) as f:
            assert f["w"].shape == shape
            assert f["w"].data.size == f["w"].dequantize().size == 0


def test_data_beyond_63_bits(tmp_path: Path) -> None:
    tensors = {f"w{i}": TypedTensor(lambda: np.zeros(0), GGMLType.F32, (1 << 60,)) for i in range(9)}
    with pytest.raises(ValueError, match=r"w1: ends at offset .* more than 63 bits"):
        write(tmp_path / "a.gguf", {}, tensors)


# ---------------------------------------------------------------- errors name the file


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs a limit on the size of files")
@pytest.mark.parametrize("size", [1, 1 << 20], ids=["at the end", "on the way"])
def test_no_space_left(size: int, tmp_path: Path) -> None:
    import resource

    (tmp_path / "a").write_bytes(b"old")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        with pytest.raises(OSError, match="File too large") as caught:
            save(tmp_path / "a", bytes(size))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert (caught.value.errno, caught.value.filename) == (errno.EFBIG, str(tmp_path / "a"))
    assert os.listdir(tmp_path) == ["a"]
    assert (tmp_path / "a").read_bytes() == b"old"


# ---------------------------------------------------------------- what a killed process leaves


WRITING = """
import sys, time
from mmgguf.format.target import replacing
with replacing(sys.argv[1]) as file:
    file.write(b"half")
    print("writing", flush=True)
    sys.stdin.read()
"""


def writing(path: Path) -> subprocess.Popen[str]:
    """A process in the middle of a write, which goes on when its standard input ends."""
    process = subprocess.Popen(
        [sys.executable, "-c", WRITING, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "writing\n"
    return process


@posix
def test_the_next_write_removes_what_a_killed_one_left(tmp_path: Path) -> None:
    path, other = tmp_path / "a", tmp_path / "b"
    for target in (path, other):
        with writing(target) as process:
            process.kill()
    left = temporary_files(tmp_path)
    assert len(left) == 2
    save(path)
    assert path.read_bytes() == b"new"
    # Of the other target's nothing is known here.
    assert len(temporary_files(tmp_path)) == 1
    save(other)
    assert not temporary_files(tmp_path)


@posix
def test_what_another_process_is_writing_stays(tmp_path: Path) -> None:
    path = tmp_path / "a"
    with writing(path) as process:
        (temporary,) = temporary_files(tmp_path)
        os.utime(temporary, (0, 0))  # old age is no reason
        save(path)
        assert path.read_bytes() == b"new"
        assert temporary_files(tmp_path) == [temporary]
        process.communicate()
    assert process.returncode == 0
    assert path.read_bytes() == b"half"
    assert not temporary_files(tmp_path)


@posix
def test_a_link_in_the_place_of_a_temporary_file(tmp_path: Path) -> None:
    """In a folder for everybody anybody can put one there."""
    path, victim = tmp_path / "a", tmp_path / "victim"
    victim.write_bytes(b"precious")
    with writing(path) as process:
        (temporary,) = temporary_files(tmp_path)
        process.kill()
    temporary.unlink()
    temporary.symlink_to(victim)
    os.mkfifo(f"{temporary}.tmp")
    save(path)
    assert victim.read_bytes() == b"precious"


@posix
def test_a_temporary_file_that_another_process_takes_for_stale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between making a file and locking it there is a moment."""
    opened, removed = os.open, []

    def spy(path: str, flags: int, mode: int = 0o777) -> int:
        descriptor = opened(path, flags, mode)
        if flags & os.O_CREAT and not removed:
            removed.append(path)
            os.unlink(path)
        return descriptor

    monkeypatch.setattr(os, "open", spy)
    save(tmp_path / "a")
    assert removed
    assert (tmp_path / "a").read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["a"]
