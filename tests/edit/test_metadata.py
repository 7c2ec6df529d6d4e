"""Editing metadata: every type, version and byte order; in place and anew; what other readers make of it."""

from __future__ import annotations

import errno
import os
import shutil
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mmgguf
from mmgguf import TypedValue, ValueType, edit
from mmgguf.edit import copying
from mmgguf.errors import NameNotFoundError, SplitError

from ..format.test_replace import FORMS, SAMPLES, every_type
from ..support import build, ggml

V = ValueType


def contents(path: Path) -> dict[str, Any]:
    """Everything but how it lies in the file."""
    with mmgguf.open(path) as f:
        typed = {key: f.metadata.typed(key) for key in f.metadata if key != "mmgguf.padding"}
        return {
            "metadata": [
                (key, t.type, t.element_type, list(t.value) if t.type is V.ARRAY else t.value)
                for key, t in typed.items()
            ],
            "tensors": [(name, t.type, t.ne, t.data.tobytes()) for name, t in f.items()],
            "version": (f.version, f.byte_order),
        }


@pytest.fixture(params=FORMS, ids=lambda form: f"v{form[0]}-{form[1]}")
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / "a.gguf"
    path.write_bytes(every_type(*request.param))
    return path


@pytest.mark.parametrize("type_", list(SAMPLES), ids=lambda type_: type_.name)
def test_each_type_in_place_keeps_type_version_and_order(path: Path, type_: ValueType) -> None:
    before = contents(path)
    name = type_.name.lower()
    value = {V.BOOL: False, V.FLOAT32: 2.5, V.FLOAT64: 0.3}.get(type_, 5)
    done = edit.replace_metadata(path, {f"one.{name}": value, f"some.{name}": [value, value]})
    assert done.in_place
    after = contents(path)
    changed = {
        key: v for (key, *_, v) in after["metadata"] if (key, v) not in [(k, w) for k, *_, w in before["metadata"]]
    }
    assert changed == {f"one.{name}": value, f"some.{name}": [value, value]}
    assert [m[:3] for m in after["metadata"]] == [m[:3] for m in before["metadata"]]
    assert (after["tensors"], after["version"]) == (before["tensors"], before["version"])


@pytest.mark.parametrize("value", ["", "x" * 5000], ids=["shorter", "longer"])
@pytest.mark.parametrize("to_output", [False, True], ids=["itself", "output"])
def test_strings_that_change_their_length(path: Path, tmp_path: Path, value: str, to_output: bool) -> None:
    before = contents(path)
    out = tmp_path / "b.gguf" if to_output else path
    raw = path.read_bytes()
    changes = {"one.string": value, "some.string": [value, value], "added": 7}
    done = edit.replace_metadata(
        path, changes, remove=["one.uint8"], rename={"one.int8": "other"}, output=out if to_output else None
    )
    assert done.in_place == (not to_output and not value)
    assert [(c.kind, c.key) for c in done.changes] == [
        ("removed", "one.uint8"),
        ("renamed", "one.int8"),
        ("changed", "one.string"),
        ("changed", "some.string"),
        ("added", "added"),
    ]
    after = contents(out)
    expected = [
        ("other" if key == "one.int8" else key, *rest, changes.get(key, v))
        for key, *rest, v in before["metadata"]
        if key != "one.uint8"
    ]
    assert after["metadata"] == [*expected, ("added", V.UINT32, None, 7)]
    assert (after["tensors"], after["version"]) == (before["tensors"], before["version"])
    if to_output:
        assert path.read_bytes() == raw
    assert {p.name for p in tmp_path.iterdir()} == {"a.gguf", out.name}


def test_what_is_not_named_keeps_its_bytes(tmp_path: Path) -> None:
    # A signalling NaN, a bool of 2, and bytes that are not UTF-8 cannot be written from Python values.
    b = build.Build(3).start(tensors=0, pairs=4)
    b.pair(b"nan", build.FLOAT32).raw(b"\x01\x00\xa0\x7f").pair(b"bool", build.BOOL).raw(b"\x02")
    b.array(b"bools", build.BOOL, 2, b"\x02\x01").text(b"name", b"a")
    path = tmp_path / "a.gguf"
    path.write_bytes(bytes(b.pad()))
    edit.replace_metadata(path, {"name": "b"})
    assert path.read_bytes() == bytes(b).replace(b"\x01\0\0\0\0\0\0\0a", b"\x01\0\0\0\0\0\0\0b")
    edit.replace_metadata(path, {"name": "long " * 100})
    assert path.read_bytes().startswith(bytes(b)[: bytes(b).index(b"name")])


@pytest.mark.parametrize("whole", [pytest.param(True, marks=pytest.mark.slow), False])
@pytest.mark.parametrize("reserve", [0, 4096])
def test_other_readers_read_the_result(smollm2: Path, tmp_path: Path, reserve: int, whole: bool) -> None:
    gguf = pytest.importorskip("gguf")
    path = tmp_path / "a.gguf"
    if whole:
        shutil.copy(smollm2, path)
        path.chmod(0o644)
    else:  # less of it, since pip's reader takes seconds for the vocabulary
        with mmgguf.open(smollm2) as f:
            typed = {key: f.metadata.typed(key) for key in f.metadata}
            arrays = {key: replace(v, value=v.value[::99]) for key, v in typed.items() if v.type is V.ARRAY}
            mmgguf.write(path, typed | arrays, {name: t for name, t in f.items() if t.nbytes < 1 << 17})
    original = shutil.copy(path, tmp_path / "original.gguf")
    in_place = [
        edit.replace_metadata(path, {"tokenizer.chat_template": text}, reserve=reserve).in_place
        for text in ("short", "long" * 1000, "longer" * 900)
    ]
    assert in_place == [True, False, bool(reserve)]
    reader = gguf.GGUFReader(path)
    assert reader.get_field("tokenizer.chat_template").contents() == "longer" * 900
    with mmgguf.open(original) as old:
        assert len(reader.tensors) == len(old) > 60
        for tensor in reader.tensors:
            assert tensor.data.tobytes() == old[tensor.name].data.tobytes()
    with ggml.open_gguf(path) as theirs:
        assert theirs is not None
        assert theirs.metadata[b"tokenizer.chat_template"] == b"longer" * 900
    assert mmgguf.digest(path).tensors == mmgguf.digest(original).tensors


@pytest.mark.slow
def test_llama_cpp_answers_the_same(smollm2: Path, tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp")
    from ..support import llamacpp

    edit.replace_metadata(smollm2, {"general.name": "n"}, remove=["general.type"], output=tmp_path / "a.gguf")
    shutil.copy(tmp_path / "a.gguf", tmp_path / "b.gguf")
    assert edit.replace_metadata(tmp_path / "b.gguf", {"general.name": ""}).in_place
    prompts = ["The capital of France is"]
    expected = llamacpp.ask(smollm2, prompts=prompts, n_predict=5)
    for name in ("a.gguf", "b.gguf"):
        assert llamacpp.ask(tmp_path / name, prompts=prompts, n_predict=5) == expected


def test_vocabularies_without_tensors(vocabularies: list[Path], tmp_path: Path) -> None:
    for source in vocabularies:
        path = tmp_path / source.name
        shutil.copy(source, path)
        path.chmod(0o644)
        for name in ("n", "a longer name " * 20, ""):
            edit.replace_metadata(path, {"general.name": name})
            with mmgguf.open(path) as f, mmgguf.open(source) as g:
                assert f.metadata["general.name"] == name
                assert f.metadata["tokenizer.ggml.tokens"] == g.metadata["tokenizer.ggml.tokens"]


def test_another_alignment_lays_the_tensors_out_anew(path: Path) -> None:
    before = contents(path)
    done = edit.replace_metadata(path, {"general.alignment": 128})
    assert not done.in_place
    with mmgguf.open(path) as f:
        assert f.alignment == 128
        assert f.shards[0].header.data_offset % 128 == 0
    assert contents(path)["tensors"] == before["tensors"]


@pytest.mark.parametrize("alignment", [0, 3, 12, TypedValue(64, V.UINT64), "32"], ids=repr)
def test_an_alignment_that_cannot_be(path: Path, alignment: Any) -> None:
    raw = path.read_bytes()
    with pytest.raises((ValueError, TypeError)):
        edit.replace_metadata(path, {"general.alignment": alignment})
    assert path.read_bytes() == raw


def test_unknown_types_holes_and_trailing_bytes_stay(tmp_path: Path) -> None:
    b = build.Build(3).start(tensors=2, pairs=1).text(b"name", b"a")
    b.tensor(b"new", [4], type_=200, offset=0).tensor(b"w", [2], offset=640)
    data = bytes(range(256)) * 4
    path = tmp_path / "a.gguf"
    path.write_bytes(bytes(b.pad().raw(data)))
    for name in ("b", "long" * 100, "c"):
        edit.replace_metadata(path, {"name": name})
        assert path.read_bytes().endswith(data)
        with mmgguf.open(path) as f:
            assert f.metadata["name"] == name
            assert f["w"].data.tobytes() == data[640:648]


def test_only_the_first_shard_of_a_split_changes(smollm2: Path, tmp_path: Path) -> None:
    paths = [Path(p) for p in edit.split(smollm2, tmp_path / "s", max_tensors=100)]
    others = [p.read_bytes() for p in paths[1:]]
    assert edit.replace_metadata(paths[1], {"general.name": "n"}).path == str(paths[0])
    with mmgguf.open(paths[2]) as f:
        assert f.metadata["general.name"] == "n"
    assert [p.read_bytes() for p in paths[1:]] == others
    with pytest.raises(ValueError, match="merge it"):
        edit.replace_metadata(paths[0], {"general.name": "n"}, output=tmp_path / "b.gguf")
    with pytest.raises(ValueError, match="layout"):
        edit.replace_metadata(paths[0], remove=["split.count"])


def test_refusals_leave_everything_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, other = tmp_path / "a.gguf", tmp_path / "b.gguf"
    path.write_bytes(every_type(3, "little"))
    other.write_bytes(b"other")
    (tmp_path / "link.gguf").symlink_to(path)
    os.link(path, tmp_path / "hard.gguf")
    raw = path.read_bytes()
    longer = {"one.string": "x" * 5000}
    with pytest.raises(FileExistsError, match="exists"):
        edit.replace_metadata(path, longer, output=other)
    for same in ("a.gguf", "link.gguf", "hard.gguf"):
        with pytest.raises(FileExistsError, match="the file that is read"):
            edit.replace_metadata(path, longer, output=tmp_path / same, force=True)
    with pytest.raises(NameNotFoundError):
        edit.replace_metadata(path, remove=["none"])
    with pytest.raises(ValueError, match="layout"):
        edit.replace_metadata(path, {"mmgguf.padding": 1})
    for reserve in (-1, (1 << 30) + 1):
        with pytest.raises(ValueError, match="reserve"):
            edit.replace_metadata(path, longer, reserve=reserve)
    for output in (None, tmp_path / "new.gguf"):
        with pytest.raises(SplitError, match="not named"):  # a file that nobody could open, not even to mend it
            edit.replace_metadata(path, {"split.count": 2}, output=output)
        with pytest.raises(ValueError, match="integer"):
            edit.replace_metadata(path, {"split.count": TypedValue("2", ValueType.STRING)}, output=output)
    monkeypatch.setattr(copying.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(100, 100, 100))
    for output in (None, tmp_path / "new.gguf"):
        with pytest.raises(OSError, match="are free") as caught:
            edit.replace_metadata(path, longer, output=output)
        assert caught.value.errno == errno.ENOSPC
    assert (path.read_bytes(), other.read_bytes()) == (raw, b"other")
    assert {p.name for p in tmp_path.iterdir()} == {"a.gguf", "b.gguf", "link.gguf", "hard.gguf"}


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device")], ids=repr)
@pytest.mark.parametrize("by_kernel", [True, False])
def test_an_interrupted_copy_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, by_kernel: bool
) -> None:
    path = tmp_path / "a.gguf"
    mmgguf.write(path, {"general.name": "a"}, {"w": np.zeros(1 << 20, np.float32)})
    raw = path.read_bytes()
    monkeypatch.setattr(copying, "_STEP", 1 << 20)
    if not by_kernel:
        monkeypatch.delattr(os, "copy_file_range", raising=False)
    seen: list[int] = []

    def progress(done: int, total: int) -> None:
        assert total == 4 << 20
        seen.append(done)
        if done >= 2 << 20:
            raise error

    for output in (None, tmp_path / "b.gguf"):
        with pytest.raises(type(error)):
            edit.replace_metadata(path, {"general.name": "x" * 100}, output=output, progress=progress)
        assert [p.name for p in tmp_path.iterdir()] == ["a.gguf"]
        assert path.read_bytes() == raw
    assert seen[:3] == [0, 1 << 20, 2 << 20]


@pytest.mark.parametrize("code", ["EXDEV", "ENOSYS", "EOPNOTSUPP", "EINVAL"])
def test_where_the_kernel_does_not_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    def refuse(*_: object) -> int:
        raise OSError(getattr(errno, code), code)

    monkeypatch.setattr(os, "copy_file_range", refuse, raising=False)
    path = tmp_path / "a.gguf"
    mmgguf.write(path, {"general.name": "a"}, {"w": np.arange(1 << 18, dtype=np.float32)})
    edit.replace_metadata(path, {"general.name": "x" * 100})
    with mmgguf.open(path) as f:
        assert (f["w"].data == np.arange(1 << 18)).all()


def test_new_files_get_the_permissions_of_the_old(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(every_type(3, "little"))
    path.chmod(0o600)
    edit.replace_metadata(path, {"one.string": "x" * 900}, output=tmp_path / "b.gguf")
    edit.replace_metadata(path, {"one.string": "x" * 900})
    assert [(tmp_path / n).stat().st_mode & 0o777 for n in ("a.gguf", "b.gguf")] == [0o600, 0o600]


def test_an_alignment_of_gigabytes_takes_no_memory(tmp_path: Path) -> None:
    # The file is sparse: two gigabytes of padding, which no edit may read or write.
    b = build.Build(3).start(tensors=1, pairs=2).text(b"name", b"a" * 100)
    b.number(b"general.alignment", build.UINT32, 1 << 31).tensor(b"w", [2])
    path = tmp_path / "a.gguf"
    with open(path, "wb") as file:
        file.write(bytes(b))
        file.seek(1 << 31)
        file.write(b"12345678")
    tracemalloc.start()
    try:
        for name in ("b", "c" * 300):
            assert edit.replace_metadata(path, {"name": name}).in_place
        assert tracemalloc.get_traced_memory()[1] < 1 << 24
    finally:
        tracemalloc.stop()
    with mmgguf.open(path) as f:
        assert (f.metadata["name"], f["w"].data.tobytes()) == ("c" * 300, b"12345678")


def test_what_is_not_local_needs_an_output() -> None:
    with pytest.raises(ValueError, match="name an output"):
        edit.replace_metadata("https://127.0.0.1:1/a.gguf", {"a": 1})
