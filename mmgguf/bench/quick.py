"""The important comparisons in under a minute: what ``mmgguf bench`` prints."""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

import numpy as np

import mmgguf

from ..dequant import dequantize
from ..types import LAYOUTS, GGMLType
from . import measure, models
from .fields import read_fields
from .ggml import Unavailable, dequantize_in_c
from .measure import Contestant, Timing, compare
from .peers import PEERS, save_as
from .verdict import Advice, advise, by_elements
from .ways import WAYS, Way, page_sum

__all__ = ["Row", "measure_all"]

#: Bytes of tensors that are touched; of larger files the first tensors up to that many.
MOST: Final = 1 << 30
#: Seconds per contestant.
SECONDS: Final = 0.3


@dataclass(frozen=True, slots=True)
class Row:
    """One comparison.

    Attributes
    ----------
    what : str
        The work.
    one, other : str
        The contestants.
    seconds, other_seconds : float
        The least time that each took.
    meaning : str
        What that means for the reader.
    """

    what: str
    one: str
    other: str
    seconds: float
    other_seconds: float
    meaning: str

    @property
    def ratio(self) -> float:
        """How many times as long the other one takes."""
        return self.other_seconds / max(self.seconds, 1e-9)


@dataclass(frozen=True, slots=True)
class _Job:
    """The file, a folder for others, how long each contestant may run, and what was opened and is used again."""

    path: str
    folder: str
    seconds: float
    kept: dict[str, Any] = field(default_factory=dict)


def measure_all(
    path: str | None = None,
    progress: Callable[[int, int, str], Any] = lambda done, total, what: None,
    seconds: float = SECONDS,
) -> tuple[list[Row], list[Advice], list[str]]:
    """Run all comparisons, and measure what to do with the file.

    Parameters
    ----------
    path : str, optional
        A GGUF file.  Without one, a model of about 300 MB is written to a temporary folder, and deleted.
    progress : callable
        Told how many steps are done, how many there are, and what comes next.
    seconds : float
        For each contestant of each comparison.

    Returns
    -------
    rows : list of Row
        The comparisons.
    verdict : list of Advice
        What to do on this machine, for this file; empty where it has no tensors.
    left_out : list of str
        What could not be compared, and why.
    """
    with tempfile.TemporaryDirectory(prefix="mmgguf-bench-") as folder:
        steps: list[tuple[str, Callable[[_Job], Iterator[Row]]]] = [
            ("headers", _headers),
            ("opening", _opening),
            ("access", _access),
            ("touching all tensors", _touching),
            ("a cold cache", _cold),
            ("dequantizing", _dequantizing),
        ]
        total = len(steps) + 2
        progress(0, total, "writing a model" if path is None else "reading the file")
        if path is None:
            path = os.path.join(folder, "model.gguf")
            models.llama(path, 0.25, tokens=32_000)
        mmgguf.open(path).close()  # before any time is spent on a file that is none
        measure.warm_up(path)
        job = _Job(path, folder, seconds)
        rows: list[Row] = []
        left_out: list[str] = []
        for number, (what, step) in enumerate(steps, 1):
            progress(number, total, what)
            try:
                rows.extend(step(job))
            except Unavailable as reason:
                left_out.append(str(reason))
        progress(total - 1, total, "the verdict")
        verdict = advise(path, seconds)
        progress(total, total, "")
        return rows, verdict, left_out + _missing()


def _missing() -> list[str]:
    wanted = ("gguf-py", "C library", "safetensors")
    return [f"{name} is not installed: pip install {PEERS[name].package}" for name in wanted if not PEERS[name].version]


def _rows(what: str, times: dict[str, Timing], one: str, meanings: dict[str, str]) -> Iterator[Row]:
    for other, meaning in meanings.items():
        if other in times:
            yield Row(what, one, other, times[one].best, times[other].best, meaning)


def _headers(job: _Job) -> Iterator[Row]:
    def fields(wrap: Callable[[io.FileIO], Any]) -> Callable[[], Any]:
        def run() -> Any:
            with io.FileIO(job.path) as raw:
                reader = wrap(raw)
                result = read_fields(reader.read)
                if reader is not raw:
                    reader.detach()
                return result

        return run

    def seeker() -> Any:
        with io.FileIO(job.path) as raw:
            return mmgguf.read_header(raw)

    with mmgguf.open(job.path) as file:
        if file.version == 1 or file.byte_order == "big":
            raise Unavailable("the plain parser reads little-endian files of version 2 and 3 only")
    buffered, unbuffered, ours = "buffered", "unbuffered", "mmgguf"
    times = compare(
        {
            ours: Contestant(seeker),
            buffered: Contestant(fields(lambda raw: io.BufferedReader(raw, 65536))),
            unbuffered: Contestant(fields(lambda raw: raw)),
        },
        job.seconds,
    )
    what = "parse the header"
    yield from _rows(
        what, times, buffered, {unbuffered: "a buffer spares a system call per field, if you write a parser"}
    )
    yield from _rows(
        what,
        times,
        ours,
        {buffered: "finding strings with numpy, not one by one, is what makes large vocabularies cheap"},
    )


def _opening(job: _Job) -> Iterator[Row]:
    contestants = {}
    for name in ("mmgguf", "C library", "gguf-py"):
        peer = PEERS[name]
        if peer.version is not None:
            # Opening takes gguf-py seconds: what it has opened is used again.
            finish = partial(job.kept.__setitem__, name) if name == "gguf-py" else peer.close
            contestants[name] = Contestant(_bound(peer.open, job.path), finish)
    times = compare(contestants, job.seconds)
    meanings = {
        "C library": "llama.cpp's own reader makes every string at once, mmgguf only finds where they are",
        "gguf-py": "scripts that look at many files, and workers that start often, wait for this",
    }
    yield from _rows("open the file", times, "mmgguf", meanings)


def _bound(function: Callable[[str], Any], path: str) -> Callable[[], Any]:
    return lambda: function(path)


def _names(path: str) -> list[str]:
    """The first tensors, up to `MOST` bytes."""
    names: list[str] = []
    total = 0
    with mmgguf.open(path) as file:
        for name, tensor in file.items():
            if _has_data(tensor) and (total := total + tensor.nbytes) <= MOST:
                names.append(name)
    if not names:
        raise Unavailable("the file has no tensors to measure")
    return names


def _has_data(tensor: mmgguf.Tensor) -> bool:
    """Whether a tensor has a known type, and some data."""
    return isinstance(tensor.type, GGMLType) and tensor.nbytes > 0


def _access(job: _Job) -> Iterator[Row]:
    names = _names(job.path)
    handles = {}
    for name in ("mmgguf", "np.memmap", "gguf-py", "safetensors"):
        way = WAYS[name]
        try:
            handle = job.kept.pop(name, None) or way.open(_in_format(way, job.path, job.folder))
            handles[name] = (way, handle)
        except Unavailable:
            continue

    def get_all(way: Way, handle: Any) -> Callable[[], Any]:
        return lambda: [way.tensor(handle, name) for name in names]

    times = compare({name: Contestant(get_all(way, handle)) for name, (way, handle) in handles.items()}, job.seconds)
    for way, handle in handles.values():
        way.close(handle)
    meanings = {
        "np.memmap": "both hand out views; a bare slice of bytes has no type and shape, and nobody checks the file",
        "gguf-py": "it has made all its views at opening, which is where that time is",
        "safetensors": "its numpy interface copies each tensor, a view costs the same for any size",
    }
    yield from _rows(f"get {len(names)} tensors as arrays", times, "mmgguf", meanings)


def _in_format(way: Way, path: str, folder: str) -> str:
    if way.format == "gguf":
        return path
    if os.path.getsize(path) > MOST:
        raise Unavailable(f"{way.name}: the file is too large to be copied into that format")
    target = os.path.join(folder, f"model.{way.format}")
    if not os.path.exists(target):
        with mmgguf.open(path) as source:
            save_as(way.format, source, target)
    return target


def _touch(job: _Job, names: list[str], prepare: Callable[[], Any], which: tuple[str, ...]) -> dict[str, Timing]:
    """Every page of every tensor, in memory that is new each time."""
    contestants = {}
    sums = set()
    for name in which:
        way, handles = WAYS[name], list[Any]()

        def start(way: Way = way, handles: list[Any] = handles) -> None:
            while handles:
                way.close(handles.pop())
            prepare()
            handles.append(way.open(job.path))

        def run(way: Way = way, handles: list[Any] = handles) -> int:
            arrays = [way.tensor(handles[0], tensor) for tensor in names]
            return sum(page_sum(array) for array in arrays)

        def finish(total: int, way: Way = way, handles: list[Any] = handles) -> None:
            sums.add(total)
            while handles:
                way.close(handles.pop())

        contestants[name] = Contestant(run, finish, start)
    times = compare(contestants, 2 * job.seconds, 20)
    if len(sums) != 1:
        raise AssertionError(f"the ways read different bytes: {sums}")
    return times


def _touching(job: _Job) -> Iterator[Row]:
    names = _names(job.path)
    times = _touch(job, names, lambda: None, ("mmgguf", "unbuffered (preadv)", "buffered (64 KiB)"))
    meanings = {
        "unbuffered (preadv)": "a warm file is in memory already; mapped it is used there, read it is copied",
    }
    yield from _rows("touch all pages, warm", times, "mmgguf", meanings)
    meanings = {"unbuffered (preadv)": "large reads go past a buffer, so for tensors it is neither help nor harm"}
    yield from _rows("touch all pages, warm", times, "buffered (64 KiB)", meanings)


def _cold(job: _Job) -> Iterator[Row]:
    names = _names(job.path)
    reason = measure.why_not_cold(job.path)
    if reason is not None:
        raise Unavailable(f"no cold cache here: {reason}")
    try:
        times = _touch(job, names, lambda: measure.evict(job.path), ("mmgguf", "unbuffered (preadv)"))
    except OSError as error:
        raise Unavailable(f"no cold cache here: {error.strerror or error}") from error
    finally:
        measure.warm_up(job.path)
    meanings = {"unbuffered (preadv)": "after a restart the disk decides; the kernel reads ahead of mappings too"}
    yield from _rows("touch all pages, cold", times, "mmgguf", meanings)


def _dequantizing(job: _Job) -> Iterator[Row]:
    with mmgguf.open(job.path) as file:
        types = [type_ for type_ in by_elements(file.values()) if not LAYOUTS[type_].is_plain]
    type_, shape = types[0] if types else GGMLType.Q4_K, (1024, 4096)
    blocks = models.random_blocks(type_, shape)
    out, theirs = np.empty(shape, np.float32), np.empty(shape, np.float32)
    contestants = {"mmgguf": Contestant(lambda: dequantize(blocks, type_, out=out, threads=1))}
    contestants["mmgguf"].run()  # kernels are compiled once
    if PEERS["gguf-py"].version is not None:
        from importlib import import_module

        gguf = import_module("gguf")
        raw, number = blocks.view(np.uint8), gguf.GGMLQuantizationType(int(type_))
        contestants["gguf-py"] = Contestant(lambda: gguf.quants.dequantize(raw, number))
    if PEERS["C library"].version is not None:
        with suppress(Unavailable):  # it has no function for some types
            function = dequantize_in_c(type_)
            contestants["C library"] = Contestant(lambda: function(blocks, theirs))
    times = compare(contestants, job.seconds)
    meanings = {
        "C library": "one thread each and the same bits; what competes with C is the extra 'fast' (numba)",
        "gguf-py": "what a conversion or an inspection of quantized weights waits for",
    }
    yield from _rows(f"dequantize {type_.name}, 16 MB", times, "mmgguf", meanings)
