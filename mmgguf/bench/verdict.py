"""What to do on this machine, for one file: measured on the file's own tensors, with the reason for each answer."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt

import mmgguf

from ..dequant import dequantize
from ..dequant.threads import cores
from ..errors import human_size
from ..tensor import Tensor
from ..types import GGMLType, layout_of
from . import measure
from .measure import Contestant, compare
from .ways import page_sum

__all__ = ["Advice", "advise", "by_elements"]

#: Bytes of tensors that are touched; of larger files the first tensors up to that many.
MOST: Final = 1 << 30
#: Elements of each type that are dequantized.
_ELEMENTS: Final = 1 << 22
#: How many types are measured: those with the most elements.
_TYPES: Final = 3
#: Seconds that the first calls in a new process may take.
_PATIENCE: Final = 20.0


@dataclass(frozen=True, slots=True)
class Advice:
    """One answer.

    Attributes
    ----------
    about : str
        What it is about: ``"storage"``, ``"numba"``, …
    answer : str
        What to do, or what it costs.
    reason : str
        Why, in one sentence without a full stop.
    seconds : dict of str to float
        What was measured: the medians.
    """

    about: str
    answer: str
    reason: str
    seconds: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Model:
    path: str
    tensors: list[Tensor]
    folder: str
    seconds: float
    why_not_cold: str | None


def advise(path: str, seconds: float = 0.3) -> list[Advice]:
    """Measure on the tensors of a file what to do with it on this machine.

    Parameters
    ----------
    path : str
        A GGUF file.
    seconds : float
        For each way that is measured, about.

    Returns
    -------
    list of Advice
        Empty where the file has no tensors of known types.
    """
    with tempfile.TemporaryDirectory(prefix="mmgguf-verdict-") as folder, mmgguf.open(path) as f:
        tensors = [t for t in f.values() if layout_of(t.type) is not None and t.nbytes]
        if not tensors:
            return []
        model = _Model(path, tensors, folder, seconds, measure.why_not_cold(path))
        threads, rates = _dequantizing(model)
        return [*_storage(model), *_cold(model), *threads, *_numba(model, rates), *_everything(model, rates)]


def _some(tensors: list[Tensor]) -> list[str]:
    names, nbytes = list[str](), 0
    for tensor in tensors:
        if names and nbytes + tensor.nbytes > MOST:
            break
        names.append(tensor.name)
        nbytes += tensor.nbytes
    return names


def _touching(path: str, names: list[str], **options: Any) -> Callable[[], int]:
    """Open the file, and touch every page of these tensors."""

    def run() -> int:
        with mmgguf.open(path, **options) as f:
            return sum(page_sum(f[name].data) for name in names)

    return run


def _storage(model: _Model) -> Iterator[Advice]:
    names = _some(model.tensors)
    ways = {kind: Contestant(_touching(model.path, names, storage=kind)) for kind in ("mmap", "read")}
    times = {kind: timing.median for kind, timing in compare(ways, model.seconds, 20).items()}
    best = min(times, key=lambda kind: times[kind])
    if best == "mmap":
        reason = (
            f"from memory, opening it and touching every page takes {_duration(times['mmap'])} mapped and "
            f"{_duration(times['read'])} read, which copies"
        )
    else:
        reason = f"reading takes {_duration(times['read'])} here, mapping {_duration(times['mmap'])}"
    yield Advice("storage", f'storage="{best}"', reason, times)


def _cold(model: _Model) -> Iterator[Advice]:
    why_not = model.why_not_cold
    if why_not is None:
        try:
            yield from _from_disk(model)
            return
        except OSError as error:  # pages stayed in the cache this time
            why_not = error.strerror or str(error)
        finally:
            measure.warm_up(model.path)
    reason = f"no cold start could be made here: {why_not}"
    yield Advice("access", 'access="normal"', f"it is the default, and {reason}")
    yield Advice("cold start", "not known", reason)


def _from_disk(model: _Model) -> list[Advice]:
    names = _some(model.tensors)

    def evict() -> None:
        measure.evict(model.path)

    ways = {
        access: Contestant(_touching(model.path, names, access=access), prepare=evict)
        for access in ("normal", "sequential", "random")
    }
    times = {access: timing.median for access, timing in compare(ways, model.seconds * 2, 3).items()}
    measure.warm_up(model.path)
    warm = compare({"": Contestant(_touching(model.path, names))}, model.seconds / 4, 5)[""].median
    best = min(times, key=lambda access: times[access])
    # A difference that the next run may turn around is none.
    best = best if times[best] < 0.8 * times["normal"] else "normal"
    shown = ", ".join(f"{access} {_duration(seconds)}" for access, seconds in times.items())
    reason = f'all tensors from the disk take: {shown}; for a few rows of a cold file take access="random"'
    return [
        Advice("access", f'access="{best}"', reason, times),
        Advice(
            "cold start",
            f"{_duration(times['normal'])} for all tensors",
            f"from memory it is {_duration(warm)}; the rest is the disk, and whoever asks for a part waits for a part",
            {"cold": times["normal"], "warm": warm},
        ),
    ]


def by_elements(tensors: Iterable[Tensor]) -> dict[GGMLType, int]:
    """Elements by type, for known types that are computed, most first."""
    counts: dict[GGMLType, int] = {}
    for tensor in tensors:
        if layout_of(tensor.type) is None:
            continue
        if not tensor.layout.is_plain or tensor.type in (GGMLType.F16, GGMLType.BF16):
            type_ = GGMLType(tensor.type)
            counts[type_] = counts.get(type_, 0) + tensor.size
    return dict(sorted(counts.items(), key=lambda item: -item[1]))


def _sample(model: _Model, type_: GGMLType) -> npt.NDArray[Any]:
    """The first blocks of the largest tensor of a type."""
    largest = max((t for t in model.tensors if t.type == type_), key=lambda t: t.size)
    return largest.flat(0, min(largest.size, _ELEMENTS) // largest.layout.block_size)


#: Seconds per element, by type and backend.
_Rates = dict[GGMLType, dict[str, float]]


def _dequantizing(model: _Model) -> tuple[list[Advice], _Rates]:
    types = list(by_elements(model.tensors))[:_TYPES]
    backends = ("numpy", "numba") if importlib.util.find_spec("numba") else ("numpy",)
    rates: _Rates = {}
    advice: list[Advice] = []
    samples = {type_: _sample(model, type_) for type_ in types}
    largest = max(types, key=lambda type_: samples[type_].size * _layout(type_).block_size, default=None)
    for type_, blocks in samples.items():
        elements = blocks.size * _layout(type_).block_size
        out = np.empty(elements, np.float32)

        def ways(backend: Any, threads: int, blocks: Any = blocks, out: Any = out, type_: Any = type_) -> Contestant:
            return Contestant(lambda: dequantize(blocks, type_, out=out, threads=threads, backend=backend))

        contestants = {backend: ways(backend, 1) for backend in backends}
        if type_ is largest and cores() > 1:
            contestants["threads"] = ways(backends[-1], cores())
        for contestant in contestants.values():
            contestant.run()  # compiled once
        times = compare(contestants, model.seconds / 2)
        rates[type_] = {backend: times[backend].median / elements for backend in backends}
        if "threads" in times:
            one, many = times[backends[-1]].median, times["threads"].median
            gain = one / many
            answer = f"leave threads= alone: {cores()} are used" if gain > 1.1 else "threads=1 is as fast"
            reason = (
                f"{elements:,} elements of {type_.name} take {_duration(one)} with one thread and {_duration(many)} "
                f"with {cores()}"
            )
            advice.append(Advice("threads", answer, reason, {"one": one, "all": many}))
    if not advice:
        reason = "this process may use one core" if cores() == 1 else "nothing in this file has to be computed"
        advice.append(Advice("threads", "leave threads= alone", reason))
    return advice, rates


def _layout(type_: GGMLType) -> Any:
    layout = layout_of(type_)
    assert layout is not None
    return layout


_FIRST_CALLS: Final = """
import sys, time
start = time.perf_counter()
import numpy as np
from mmgguf.dequant import dequantize
from mmgguf.types import LAYOUTS, GGMLType
imported = time.perf_counter()
for name in sys.argv[1:]:
    layout = LAYOUTS[GGMLType[name]]
    dequantize(np.zeros(1, layout.dtype), GGMLType[name], backend="numba")
print(time.perf_counter() - imported)
"""


def _first_calls(model: _Model, types: list[GGMLType]) -> tuple[float, float] | None:
    """Seconds of the first calls in a new process: compiling, and with what an earlier one has compiled."""
    root = os.path.dirname(os.path.dirname(mmgguf.__file__))
    code = f"import sys; sys.path.append({root!r})\n{_FIRST_CALLS}"
    environment = {**os.environ, "NUMBA_CACHE_DIR": os.path.join(model.folder, "numba")}
    found: list[float] = []
    deadline = time.monotonic() + _PATIENCE
    for _ in range(2):
        try:
            done = subprocess.run(
                [sys.executable, "-c", code, *(type_.name for type_ in types)],
                env=environment, capture_output=True, text=True, timeout=max(1.0, deadline - time.monotonic()),
            )  # fmt: skip
            found.append(float(done.stdout))
        except (subprocess.TimeoutExpired, OSError, ValueError):
            return None
    return found[0], found[1]


def _numba(model: _Model, rates: _Rates) -> Iterator[Advice]:
    if not rates:
        yield Advice("numba", "not needed", "nothing in this file has to be computed: its tensors are numbers already")
        return
    counts = by_elements(model.tensors)
    numpy = sum(rates[type_]["numpy"] * counts[type_] for type_ in rates)
    names = ", ".join(type_.name for type_ in rates)
    if any("numba" not in rate for rate in rates.values()):
        yield Advice(
            "numba",
            "worth a try: pip install 'mmgguf[fast]'",
            f"numpy takes {_duration(numpy)} for all {names} of this file; numba is not installed and was not measured",
            {"numpy": numpy},
        )
        return
    numba = sum(rates[type_]["numba"] * counts[type_] for type_ in rates)
    seconds = {"numpy": numpy, "numba": numba}
    first = _first_calls(model, list(rates))
    cost = "what its first call costs could not be measured"
    if first is not None:
        seconds |= {"first call, compiling": first[0], "first call, compiled": first[1]}
        cost = f"the first calls take {_duration(first[0])} once, and {_duration(first[1])} in later processes"
    later = first[1] if first is not None else 0.5
    gains = numpy - numba
    if gains > later:
        answer = "worth it: keep the extra fast"
    elif numba < 0.7 * numpy:
        answer = "worth it in programs that run on; not for one pass over this file"
    else:
        answer = "not needed"
    reason = f"all {names} of this file take {_duration(numpy)} with numpy and {_duration(numba)} with numba; {cost}"
    yield Advice("numba", answer, reason, seconds)


def _everything(model: _Model, rates: _Rates) -> Iterator[Advice]:
    nbytes = sum(4 * t.size for t in model.tensors)
    free = _free_memory()
    if nbytes > min(free // 3, 2 << 30):
        if not rates:
            return
        backend = "numba" if "numba" in next(iter(rates.values())) else "numpy"
        mean = sum(rate[backend] for rate in rates.values()) / len(rates)
        seconds = mean * nbytes / 4
        reason = f"computed from the speed of its types on one core; {human_size(nbytes)} as float32"
        yield Advice("loading everything", f"about {_duration(seconds)}", reason, {"estimated": seconds})
        return
    names = [tensor.name for tensor in model.tensors]
    run = Contestant(lambda: mmgguf.load_file(model.path, names=names, dtype=np.float32))
    # Time for three: the first may wait for memory that nobody has used since the machine started.
    seconds = compare({"": run}, model.seconds * 4, 3)[""].median
    reason = f"load_file(path, dtype=np.float32), from memory, into {human_size(nbytes)}"
    yield Advice("loading everything", _duration(seconds), reason, {"measured": seconds})


def _free_memory() -> int:
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            for line in file:
                if line.startswith("MemAvailable"):
                    return int(line.split()[1]) << 10
    except (OSError, ValueError):
        pass
    return 4 << 30


def _duration(seconds: float) -> str:
    for unit, scale in (("s", 1.0), ("ms", 1e3)):
        if seconds * scale >= 1:
            return f"{seconds * scale:.3g} {unit}"
    return f"{seconds * 1e6:.3g} µs"
