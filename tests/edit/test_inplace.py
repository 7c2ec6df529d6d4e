"""Edits in place: killed at any moment, a file has the old header or the new one."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import mmgguf
from mmgguf import edit
from mmgguf.edit.inplace import overwrite
from mmgguf.errors import FileChangedError
from mmgguf.storage.journal import Journal, journal_path, read_journal, write_journal

from ..support.build import Build

#: Calls of an edit in place that change something, as names in `os`.
CALLS = ("open", "fsync", "rename", "pwrite", "unlink", "close")
TEMPLATE = "{{ bos }}" * 5000

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="processes are forked and killed")


def model(path: Path) -> bytes:
    """A file whose header spans several pages."""
    b = Build(3, "little").start(tensors=1, pairs=3)
    b.text(b"general.architecture", b"llama").text(b"tokenizer.chat_template", TEMPLATE.encode())
    b.texts(b"tokenizer.ggml.tokens", [b"token %d" % i for i in range(500)])
    raw = bytes(b.tensor(b"w", [64]).data(struct.pack("64f", *range(64))))
    path.write_bytes(raw)
    return raw


def killed_at(moment: int, path: Path, change: Callable[[], Any]) -> bool:
    """Run a change in a child that is killed before its n-th call; whether it came that far.

    Every byte boundary of the write may be such a moment as well: of the one `pwrite` only a part is done.
    """
    child = os.fork()
    if child == 0:
        try:
            count = 0

            def die() -> None:
                os.kill(os.getpid(), signal.SIGKILL)

            def wrapped(name: str) -> Callable[..., Any]:
                real = getattr(os, name)

                def call(*arguments: Any, **options: Any) -> Any:
                    nonlocal count
                    if name == "pwrite":
                        descriptor, data, offset = arguments
                        pieces = 200
                        for piece in range(pieces):
                            if count == moment:
                                die()
                            count += 1
                            start, end = len(data) * piece // pieces, len(data) * (piece + 1) // pieces
                            real(descriptor, data[start:end], offset + start)
                        return len(data)
                    if count == moment:
                        die()
                    count += 1
                    return real(*arguments, **options)

                return call

            for name in CALLS:
                setattr(os, name, wrapped(name))
            change()
            os._exit(0)
        except BaseException:
            os._exit(7)
    _, status = os.waitpid(child, 0)
    if os.WIFEXITED(status):
        assert os.WEXITSTATUS(status) == 0, "the change failed by itself"
        return False
    return True


@pytest.mark.parametrize("stride", [11, pytest.param(1, marks=pytest.mark.slow)])
def test_killed_at_any_moment_the_header_is_the_old_or_the_new(tmp_path: Path, stride: int) -> None:
    path = tmp_path / "a.gguf"
    old = model(path)
    edit.replace_metadata(path, {"tokenizer.chat_template": "short"})
    new = path.read_bytes()
    assert len(new) == len(old)
    seen, moments = set(), 0
    while True:
        path.write_bytes(old)
        died = killed_at(moments, path, lambda: edit.replace_metadata(path, {"tokenizer.chat_template": "short"}))
        if not died:
            break
        moments += stride
        current = path.read_bytes()
        if current not in (old, new):
            with pytest.raises(FileChangedError, match="recover"):
                mmgguf.open(path)
            seen.add("torn")
        state = edit.recover(path)
        settled = path.read_bytes()
        assert settled == (new if state == "finished" else settled)
        assert settled in (old, new)
        seen.add("old" if settled == old else "new")
        mmgguf.open(path).close()
        # The name of a journal that was never completed may be left, and nothing else.
        assert {p.name for p in tmp_path.iterdir() if p.suffix != ".tmp"} == {"a.gguf"}
        for left in tmp_path.glob(".*.tmp"):
            left.unlink()
    assert path.read_bytes() == new
    assert seen == {"old", "new", "torn"}
    assert moments > 200


def test_an_edit_settles_the_one_before_it(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    old = model(path)
    edit.replace_metadata(path, {"general.architecture": "gemma"})
    new = path.read_bytes()
    start = next(i for i in range(len(old)) if old[i] != new[i])
    write_journal(str(path), Journal(len(old), start, old[start : start + 5], new[start : start + 5]))
    path.write_bytes(old[: start + 2] + new[start + 2 :])
    assert edit.replace_metadata(path, {"tokenizer.chat_template": "x"}).in_place
    with mmgguf.open(path) as f:
        assert (f.architecture, f.metadata["tokenizer.chat_template"]) == ("gemma", "x")
    assert not os.path.exists(journal_path(path))


def test_a_journal_of_other_bytes_is_not_played_back(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    raw = model(path)
    write_journal(str(path), Journal(len(raw), 4, b"\1\1\1\1", b"\2\2\2\2"))
    mmgguf.open(path).close()  # it is not torn
    with pytest.raises(FileChangedError, match="changed by others"):
        edit.recover(path)
    write_again = Journal(len(raw) + 1, 4, raw[4:8], b"\2\2\2\2")
    os.unlink(journal_path(path))
    write_journal(str(path), write_again)
    with pytest.raises(FileChangedError, match="another size"):
        edit.recover(path)
    assert path.read_bytes() == raw


@pytest.mark.parametrize("damage", [b"", b"junk", None], ids=["empty", "junk", "one bit"])
def test_a_damaged_journal_is_refused(tmp_path: Path, damage: bytes | None) -> None:
    path = tmp_path / "a.gguf"
    raw = model(path)
    write_journal(str(path), Journal(len(raw), 4, raw[4:8], b"\2\0\0\0"))
    place = Path(journal_path(path))
    if damage is None:
        whole = bytearray(place.read_bytes())
        whole[-40] ^= 1
        damage = bytes(whole)
    place.chmod(0o600)
    place.write_bytes(damage)
    with pytest.raises(FileChangedError, match="damaged"):
        read_journal(path)
    with pytest.raises(FileChangedError, match="damaged"):
        edit.replace_metadata(path, {"general.name": "x"})
    mmgguf.open(path).close()
    assert path.read_bytes() == raw


def test_a_file_that_changed_since_is_not_written(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    model(path)
    plan = edit.plan_edit(path, {"general.architecture": "gemma"})
    edit.replace_metadata(path, {"general.architecture": "qwen2"})
    before = path.read_bytes()
    with pytest.raises(FileChangedError, match="changed"):
        plan.apply()
    assert path.read_bytes() == before


def test_two_editors_at_once(tmp_path: Path) -> None:
    fcntl = pytest.importorskip("fcntl")
    path = tmp_path / "a.gguf"
    raw = model(path)
    with open(path, "r+b") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(OSError, match="another process") as caught:
            edit.replace_metadata(path, {"general.architecture": "gemma"})
        assert caught.value.errno == errno.EBUSY
    assert path.read_bytes() == raw
    assert not os.path.exists(journal_path(path))


def test_a_disk_that_is_full_for_the_journal_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.gguf"
    raw = model(path)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        edit.replace_metadata(path, {"tokenizer.chat_template": "x"})
    assert path.read_bytes() == raw
    assert [p.name for p in tmp_path.iterdir()] == ["a.gguf"]


def test_files_of_a_store_are_left_alone(tmp_path: Path) -> None:
    blob = tmp_path / ("sha256-" + "0" * 64)
    raw = model(blob)
    link = tmp_path / "model.gguf"
    link.symlink_to(blob)
    with pytest.raises(PermissionError, match="digest"):
        edit.replace_metadata(link, {"general.architecture": "gemma"})
    assert blob.read_bytes() == raw
    edit.replace_metadata(link, {"general.architecture": "gemma"}, output=tmp_path / "b.gguf")
    assert edit.replace_metadata(link, {"general.architecture": "gemma"}, force=True).in_place
    assert link.is_symlink()
    assert blob.read_bytes() != raw


def test_links_hard_links_and_permissions_stay(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    model(path)
    os.chmod(path, 0o640)
    os.link(path, tmp_path / "b.gguf")
    inode = path.stat().st_ino
    assert edit.replace_metadata(path, {"general.architecture": "gemma"}).in_place
    assert (path.stat().st_ino, path.stat().st_mode & 0o777) == (inode, 0o640)
    assert (tmp_path / "b.gguf").read_bytes() == path.read_bytes()


def test_nothing_to_write(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    raw = model(path)
    time = path.stat().st_mtime_ns
    assert edit.replace_metadata(path, {"general.architecture": "llama"}).changes == ()
    assert overwrite(str(path), raw[:100], raw[:100]) == 0
    assert (path.read_bytes(), path.stat().st_mtime_ns) == (raw, time)


def test_shrinking_and_growing_again_and_again(tmp_path: Path) -> None:
    path, copy = tmp_path / "a.gguf", tmp_path / "b.gguf"
    raw = model(path)
    shutil.copy(path, copy)
    for length in [*range(0, 200, 7), len(TEMPLATE) - 40, len(TEMPLATE)]:
        done = edit.replace_metadata(path, {"tokenizer.chat_template": TEMPLATE[:length]})
        assert done.in_place, length
        with mmgguf.open(path) as f:
            assert f.metadata["tokenizer.chat_template"] == TEMPLATE[:length]
            assert f["w"].data.tolist() == list(range(64))
        assert not [x for x in mmgguf.verify(path) if x.severity != "note"]
        differences = {d.name for d in mmgguf.compare(path, copy)}
        assert differences == ({"tokenizer.chat_template"} if length < len(TEMPLATE) else set())
    assert path.read_bytes() == raw  # the padding was used up


@pytest.mark.parametrize("what", ["pipe", "link", "folder", "of another user", "huge"])
def test_journals_that_others_may_have_put_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    path = tmp_path / "a.gguf"
    raw = model(path)
    place = journal_path(path)
    # One that would turn the file's bytes into others, were it believed.
    evil = Journal(len(raw), 4, b"\xff" + raw[5:8], raw[4:5] + b"\x00\x00\x07")
    if what == "pipe":
        os.mkfifo(place)
    elif what == "folder":
        os.mkdir(place)
    elif what == "huge":
        with open(place, "wb") as file:
            length = 1 << 40
            file.write(struct.pack("<16sQQQ", b"mmgguf journal 1", len(raw), 4, length))
            file.truncate(40 + 2 * length + 32)
    else:
        write_journal(str(path), evil)
        if what == "link":
            os.rename(place, tmp_path / "elsewhere")
            os.symlink(tmp_path / "elsewhere", place)
        else:
            monkeypatch.setattr(os, "geteuid", lambda: 12345)
            os.chown(place, 54321, -1) if os.getuid() == 0 else pytest.skip("only root can give files away")
    mmgguf.open(path).close()
    with pytest.raises((FileChangedError, IsADirectoryError)):
        edit.replace_metadata(path, {"general.name": "x"})
    assert path.read_bytes() == raw
