"""Opening files, and making every string of a vocabulary, beside the other libraries that open such files.

Opening: everything up to the point where tensors can be asked for, page cache warm.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mmgguf
from mmgguf import compat
from mmgguf.bench.fields import read_fields
from mmgguf.bench.peers import PEERS, Unavailable
from mmgguf.format.parser import parse_header

from .conftest import Case
from .counting import CountingFile
from .files import Files, Model
from .process import fresh_seconds
from .turns import Contestant

#: Why a format takes no part where a file has no tensors.
NO_TENSORS = "its format holds no vocabulary, and this file has nothing else"
REAL = ("ggml-vocab-llama-bpe", "ggml-vocab-qwen2")


def real_vocabularies() -> dict[str, Path]:
    """``ggml-vocab-*.gguf`` in $MMGGUF_DATA, or in ``shared/data`` beside the repository."""
    given = os.environ.get("MMGGUF_DATA")
    folder = Path(given) if given else Path(__file__).resolve().parents[2] / "shared" / "data"
    return {name: folder / f"{name}.gguf" for name in REAL if (folder / f"{name}.gguf").is_file()}


def opening(peer: str, path: str, files: Files) -> Contestant:
    """`peer` opens the file, or its tensors in the peer's own format."""
    found = PEERS[peer]
    found.require()
    if found.format != "gguf":
        with mmgguf.open(path) as file:
            if not file:
                raise Unavailable(NO_TENSORS)
        path = files.in_format(path, found.format)
    return Contestant(lambda: found.open(path), finish=found.close)


def test_open(case: Case, files: Files, model: Model) -> None:
    with mmgguf.open(model.path) as file:
        names = sorted(file)

    def check(peer: str, handle: Any) -> None:
        found = handle.tensors if peer == "mmgguf.compat" else PEERS[peer].names(handle)
        assert sorted(getattr(one, "name", one) for one in found) == names

    contestants: dict[str, Callable[[], Any]] = {peer: partial(opening, peer, model.path, files) for peer in PEERS}
    # Touches what pip's reader makes at opening.
    contestants["mmgguf.compat"] = lambda: partial(_open_compat, model.path)
    case.time(f"open/{model.id}", contestants, check=check, title=model.title)


def _open_compat(path: str) -> Any:
    reader = compat.GGUFReader(path)
    assert reader.tensors is not None
    return reader


@pytest.mark.parametrize("name", REAL)
def test_real_vocabulary(case: Case, files: Files, name: str) -> None:
    found = real_vocabularies()
    if name not in found:
        pytest.skip(f"{name}.gguf is in no folder that is looked at")
    contestants = {peer: partial(opening, peer, str(found[name]), files) for peer in ("mmgguf", "C library")}
    case.time(f"open/{name}", contestants, seconds=1.0, title=f"llama.cpp's {name}.gguf")


def test_system_calls(case: Case, files: Files) -> None:
    with CountingFile(files.generated("vocabulary").path) as buffered, CountingFile(buffered.name) as unbuffered:
        header = parse_header(buffered)
        metadata, _ = read_fields(unbuffered.read)
        assert list(header.metadata) == list(metadata)
        case.keep("open/system calls", mmgguf=buffered.total, unbuffered=unbuffered.total)


# ---------------------------------------------------------------- strings


def _lists(metadata: Any) -> tuple[list[str], list[str]]:
    return list(metadata["tokenizer.ggml.tokens"]), list(metadata["tokenizer.ggml.merges"])


@pytest.fixture(scope="module")
def gguf_reader() -> Iterator[Callable[[str], Any]]:
    """pip's reader of a path, opened once for all tests that need it open: that takes seconds."""

    @cache
    def reader(path: str) -> Any:
        PEERS["gguf-py"].require()
        made, _ = PEERS["gguf-py"].open(path)
        gc.freeze()  # its million arrays are not looked at while others are timed
        return made

    yield reader
    reader.cache_clear()
    gc.unfreeze()


def _of_gguf_py(reader: Any) -> Callable[[], Any]:
    fields = [reader.fields[f"tokenizer.ggml.{key}"] for key in ("tokens", "merges")]
    return lambda: tuple(field.contents() for field in fields)


def _of_mmgguf(path: str) -> Contestant:
    opened: list[mmgguf.GGUFFile] = []

    def prepare() -> None:  # a new file each time, that knows nothing of its strings yet
        while opened:
            opened.pop().close()
        opened.append(mmgguf.open(path))

    return Contestant(lambda: _lists(opened[0].metadata), prepare)


def test_strings(case: Case, files: Files, model: Model, gguf_reader: Callable[[str], Any]) -> None:
    """Every token and merge as a str, of an open file; the C library has made all its strings when it is open."""
    with mmgguf.open(model.path) as file:
        if "tokenizer.ggml.merges" not in file.metadata:
            pytest.skip(f"{model.id} has no merges")
        expected = tuple(
            [stored[i] for i in range(len(stored))]
            for stored in (file.metadata["tokenizer.ggml.tokens"], file.metadata["tokenizer.ggml.merges"])
        )

    def check(peer: str, result: Any) -> None:
        assert peer == "C library" or tuple(result) == expected

    case.time(
        f"strings/{model.id}",
        {
            "mmgguf": lambda: _of_mmgguf(model.path),
            "C library": lambda: opening("C library", model.path, files),
            "gguf-py": lambda: _of_gguf_py(gguf_reader(model.path)),
        },
        seconds=0.5,
        check=check,
        title=model.title,
    )


@pytest.mark.parametrize("id_", ["vocabulary", "real"])
def test_contents(case: Case, files: Files, real_model: Model, gguf_reader: Callable[[str], Any], id_: str) -> None:
    """Every value of pip's reader, and of `mmgguf.compat` in its place, of an open file."""
    model = real_model if id_ == "real" else files.generated(id_)
    opened: list[Any] = []

    def walk(reader: Any) -> dict[str, Any]:
        return {name: field.contents() for name, field in reader.fields.items()}

    def check(_: str, values: dict[str, Any]) -> None:
        with mmgguf.open(model.path) as file:
            assert {key: values[key] for key in file.metadata} == file.metadata.to_dict(max_array_size=None)

    ours = Contestant(lambda: walk(opened[0]), lambda: opened.__setitem__(slice(None), [compat.GGUFReader(model.path)]))
    contestants = {"mmgguf.compat": lambda: ours, "gguf-py": lambda: partial(walk, gguf_reader(model.path))}
    case.time(f"contents/{model.id}", contestants, check=check, title=model.title)


# Kept, so that neither side's time has the giving back of what was made.
_LIST = "kept = list(metadata['tokenizer.ggml.tokens']), list(metadata['tokenizer.ggml.merges'])"


@pytest.mark.parametrize("name", ["vocabulary", *REAL])
def test_strings_first_in_a_process(case: Case, files: Files, name: str, tmp_path: Path, once: bool) -> None:
    """Both have to get the memory from the system, which is a good part of the time.  Thus in fresh processes: what an
    allocator has kept from earlier work makes the one or the other faster."""
    found = {"vocabulary": Path(files.generated("vocabulary").path), **real_vocabularies()}
    if name not in found:
        pytest.skip(f"{name}.gguf is in no folder that is looked at")
    path = str(found[name])

    def ours() -> Contestant:
        setup = f"import mmgguf; metadata = mmgguf.open({path!r}).metadata"
        return Contestant(lambda: fresh_seconds(_LIST, tmp_path, setup), tells=True)

    def theirs() -> Contestant:
        PEERS["C library"].require()
        setup = "from mmgguf.bench.ggml import c_library; from mmgguf.bench.peers import PEERS; c_library()"
        return Contestant(
            lambda: fresh_seconds(f"kept = PEERS['C library'].open({path!r})", tmp_path, setup), tells=True
        )

    case.time(f"strings first/{name}", {"mmgguf": ours, "C library": theirs}, seconds=1.5)


# ---------------------------------------------------------------- small things


def test_import(case: Case, tmp_path: Path) -> None:
    def fresh(statement: str) -> Callable[[], Contestant]:
        fresh_seconds(statement, tmp_path)  # compiles
        return lambda: Contestant(lambda: fresh_seconds(statement, tmp_path), tells=True)

    contestants = {"mmgguf": fresh("import mmgguf"), "numpy, ml_dtypes": fresh("import numpy, ml_dtypes")}
    case.time("import/fresh process", contestants, seconds=1.5)


def test_every_small_tensor(case: Case, files: Files) -> None:
    """By name, from an open file.  The small file is safetensors' better case: it copies."""
    model = files.generated("many")

    def theirs() -> Callable[[], Any]:
        PEERS["safetensors"].require()
        other = PEERS["safetensors"].open(files.in_format(model.path, "safetensors"))
        return lambda: [other.get_tensor(name) for name in names]

    with mmgguf.open(model.path) as file:
        names = list(file)
        contestants = {"mmgguf": lambda: lambda: [file[name].data for name in names], "safetensors": theirs}

        def check(_: str, arrays: list[Any]) -> None:
            assert np.array_equal(arrays[-1], file[names[-1]].data)

        case.time("get/many", contestants, seconds=1.0, check=check, tensors=len(names), title=model.title)
