"""Dask on a cluster of this machine: scaling over workers, bytes that each reads, overhead per chunk, size of a graph.

``python -m benchmarks.cluster measure MODEL.gguf RESULTS.json [PART ...]`` measures; each part is a run of its own and
replaces its figures in the file.  ``python -m benchmarks.cluster chart RESULTS.json CHART.svg`` draws the scaling.
"""

from __future__ import annotations

import argparse
import datetime
import gc
import json
import os
import pickle
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import mmgguf

__all__ = ["chart", "main", "measure"]

ROOT = Path(__file__).parents[1]
SERVER = ROOT / "tests" / "support" / "server.py"
WORKERS = (1, 2, 4)
LATENCY, RATE = 0.02, 25e6
#: Below the size at which a range is split into several requests: each task has one connection.
SERVED_CHUNKS = "2 MiB"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cluster", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("measure")
    one.add_argument("model", type=Path)
    one.add_argument("results", type=Path)
    one.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; all by default")
    other = commands.add_parser("chart")
    other.add_argument("results", type=Path)
    other.add_argument("chart", type=Path)
    options = parser.parse_args()
    if options.command == "chart":
        chart(json.loads(options.results.read_text("utf-8")), options.chart)
    else:
        measure(options.model, options.results, options.parts or list(PARTS))


def measure(model: Path, results: Path, parts: list[str]) -> None:
    """Measure and write, after each part."""
    from .machine import describe

    found: dict[str, Any] = json.loads(results.read_text("utf-8")) if results.exists() else {}
    machine = describe(model.parent)
    import dask
    import distributed

    found["machine"] = {key: machine[key] for key in ("processor", "memory", "system", "python", "numpy")} | {
        "dask": dask.__version__,
        "distributed": distributed.__version__,
    }
    found["model"] = {"name": model.name, "bytes": model.stat().st_size}
    for part in parts:
        found[part] = {"date": datetime.date.today().isoformat(), **PARTS[part](model)}
        print(part, json.dumps(found[part]), flush=True)
        results.write_text(json.dumps(found, indent=1) + "\n", "utf-8")


@contextmanager
def cluster(workers: int) -> Iterator[Any]:
    """A client of a cluster of processes with one thread each, that have imported what they will need."""
    import distributed

    options: dict[str, Any] = {"n_workers": workers, "threads_per_worker": 1, "dashboard_address": "127.0.0.1:0"}
    with (
        distributed.LocalCluster(host="127.0.0.1", memory_limit=0, **options) as processes,
        distributed.Client(processes) as client,
    ):
        yield client


@contextmanager
def served(path: Path, latency: float = LATENCY, rate: float = RATE) -> Iterator[tuple[str, Callable[[], list[Any]]]]:
    """A URL of a file behind a server in another process, and what gives the ranges asked for since the last call."""
    command = [sys.executable, str(SERVER), str(path), str(latency), str(rate), "0"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        url = process.stdout.readline().strip() + "/model.gguf"

        def ranges() -> list[Any]:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write("\n")
            process.stdin.flush()
            asked: list[Any] = json.loads(process.stdout.readline())["ranges"]
            return asked

        try:
            yield url, ranges
        finally:
            process.stdin.close()


def scaling(model: Path, workers: int) -> dict[str, Any]:
    """Seconds with so many workers, quartiles of five runs: statistics of a local file, arrays from a server."""
    import dask

    from mmgguf.dask import from_gguf, stats

    with served(model) as (url, _), cluster(workers) as client:
        client.run(warm, str(model))
        local = quartiles(lambda: dask.compute(stats(model)))
        arrays = from_gguf(url, names="blk.?.*", dequantize=False, chunks=SERVED_CHUNKS)
        remote = quartiles(lambda: dask.compute([each(a, size, int) for a in arrays.values()]))
    return {"statistics": local, "server": remote, "bytes": sum(array.nbytes for array in arrays.values())}


def warm(path: str) -> None:
    """Compile, import and map what the tasks will need."""
    with mmgguf.open(path) as f:
        mmgguf.inspect.stats(f, threads=1)
    __import__("aiohttp")
    __import__("mmgguf.dask")


def each(array: Any, function: Any, dtype: Any) -> Any:
    """An array of what a function makes of each chunk: one number."""
    return array.map_blocks(function, dtype=dtype, chunks=tuple((1,) * n for n in array.numblocks))


def size(block: Any) -> Any:
    import numpy as np

    return np.full((1,) * block.ndim, block.nbytes)


def quartiles(action: Callable[[], Any], rounds: int = 5) -> list[float]:
    """Seconds that an action takes: the first quartile, the median, the third."""
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        action()
        times.append(time.perf_counter() - began)
    return statistics.quantiles(times, method="inclusive")


def reading(model: Path) -> dict[str, Any]:
    """Bytes that four workers read, by the server's log and by the kernel's count, against their parts."""
    import dask

    from mmgguf.dask import from_gguf

    with cluster(4) as client, served(model, 0, 0) as (url, ranges):
        client.run(warm, str(model))
        with mmgguf.open(url) as f:
            client_header = sum(stop - start for start, stop in ranges())
            arrays = from_gguf(f, dequantize=False, chunks=SERVED_CHUNKS)
            dask.compute([each(a, size, int) for a in arrays.values()])
            first = min(t.file_offset for t in f.values())
            wanted = sum(t.nbytes for t in f.values())
        asked = ranges()
        by_server = {
            "header_of_client": client_header,
            "headers_of_workers": sum(stop - start for start, stop in asked if start < first),
            "tensors": wanted,
            "asked": sum(stop - start for start, stop in asked if start >= first),
            "requests": len(asked),
        }
        with tempfile.TemporaryDirectory(dir=model.parent) as folder:
            cold = Path(folder) / "cold.gguf"
            cold.write_bytes(model.read_bytes())
            arrays = from_gguf(cold, names="blk.*", dequantize=False, chunks=SERVED_CHUNKS)
            with cold.open("rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            before = client.run(read_bytes)
            pids = {value: worker for worker, value in client.run(os.getpid).items()}
            blocks = dask.compute([each(a, where, object).ravel() for a in arrays.values()])[0]
            after = client.run(read_bytes)
        parts: dict[str, int] = dict.fromkeys(pids.values(), 0)
        for pid, nbytes in (one for array in blocks for one in array):
            parts[pids[pid]] += nbytes
        local = [{"part": parts[worker], "read": after[worker] - before[worker]} for worker in sorted(parts)]
    return {"server": by_server, "cold": local}


def where(block: Any) -> Any:
    import numpy as np

    result = np.empty((1,) * block.ndim, object)
    result.flat[0] = (os.getpid(), block.nbytes)
    return result


def read_bytes() -> int:
    """Bytes that this process made the kernel fetch from disks."""
    text = Path("/proc/self/io").read_text()
    return int(next(line for line in text.splitlines() if line.startswith("read_bytes")).split()[1])


def overhead(model: Path) -> dict[str, Any]:
    """Microseconds that Dask adds to each chunk, beside what its reading takes in a loop; medians of five."""
    import dask

    from mmgguf.dask import _read, _reference, from_gguf

    with mmgguf.open(model) as f:
        tensor = max(f.values(), key=lambda t: t.size)
        array = from_gguf(f, names=tensor.name, chunks=max(1, tensor.shape[0] // 2000))[tensor.name]
        reference = _reference(tensor)
    edges = [(slice(i * array.chunks[0][0], i * array.chunks[0][0] + n),) for i, n in enumerate(array.chunks[0])]
    parts = [(*rows, slice(0, tensor.shape[1])) for rows in edges]

    def loop() -> None:
        for part in parts:
            size(_read(reference, part, array.dtype))

    sizes = each(array, size, int)
    alone = middle(loop)
    found: dict[str, Any] = {"chunks": len(parts), "loop": 1e6 * alone / len(parts)}
    for name, options in {"sync": {}, "threads": {"num_workers": 1}}.items():
        took = middle(lambda name=name, options=options: dask.compute(sizes, scheduler=name, **options))
        found[name] = 1e6 * (took - alone) / len(parts)
    with cluster(1) as client:
        client.run(warm, str(model))
        found["distributed"] = 1e6 * (middle(lambda: dask.compute(sizes)) - alone) / len(parts)
    return found


def middle(action: Callable[[], Any]) -> float:
    action()
    return quartiles(action)[1]


def graph(model: Path) -> dict[str, Any]:
    """A graph over the proportions of a model of 70B parameters: 80 layers of 9 tensors, of which only a header is."""
    from mmgguf.dask import from_gguf, stats

    sys.path.append(str(ROOT))
    from tests.support.readers import write_large

    with tempfile.TemporaryDirectory() as folder:
        path = write_large(Path(folder) / "large.gguf")
        found: dict[str, Any] = {"bytes": path.stat().st_size}
        for name, build in {"from_gguf": lambda: from_gguf(path), "stats": lambda: stats(path)}.items():
            gc.collect()
            found[f"{name}_seconds"] = quartiles(build)[1]
            tasks = [t for one in build().values() for t in dict(one.__dask_graph__()).values()]
            found[f"{name}_tasks"] = len(tasks)
            found[f"{name}_largest_task"] = max(len(pickle.dumps(task)) for task in tasks)
    return found


PARTS: dict[str, Callable[[Path], dict[str, Any]]] = {
    **{f"scaling-{workers}": partial(scaling, workers=workers) for workers in WORKERS},
    "reading": reading,
    "overhead": overhead,
    "graph": graph,
}


def chart(results: dict[str, Any], path: Path) -> None:
    """The scaling as SVG, without a background and in colours that light and dark pages can be read in."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    ink = "#7b828a"
    plt.rcParams.update(
        {
            "svg.fonttype": "none",
            "svg.hashsalt": "mmgguf",
            "font.family": "sans-serif",
            "font.size": 11,
            **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), ink),
        }
    )
    figure, axes = plt.subplots(figsize=(6.4, 3.6))
    lines = {
        "arrays from a server of 20 ms and 25 MB/s": ("server", "#2f8fbf", "o"),
        "statistics of a local file": ("statistics", "#d9772b", "s"),
    }
    workers = list(WORKERS)
    axes.plot(workers, workers, color=ink, linewidth=1, linestyle=":", label="as many times as workers")
    for label, (key, colour, marker) in lines.items():
        seconds = {n: results[f"scaling-{n}"][key] for n in workers}
        one = seconds[1][1]
        speeds = [one / seconds[n][1] for n in workers]
        # From the first quartile of the times to the third: a shorter time is a higher speed.
        whiskers = [
            [one / seconds[n][1] - one / seconds[n][2] for n in workers],
            [one / seconds[n][0] - one / seconds[n][1] for n in workers],
        ]
        axes.errorbar(
            workers, speeds, whiskers, color=colour, marker=marker, linewidth=2, capsize=3,
            label=f"{label}: {one:.1f} s with one",
        )  # fmt: skip
        text = f"{seconds[4][1]:.1f} s"
        axes.annotate(text, (4, speeds[-1]), xytext=(10, -4), textcoords="offset points", color=colour)
    axes.set_xticks(workers)
    axes.set_xlim(0.8, 4.6)
    axes.set_ylim(0, 5.6)
    axes.set_xlabel("workers (processes of one thread)")
    axes.set_ylabel("times one worker")
    axes.grid(color=ink, alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="upper left", fontsize=10)
    processor = results["machine"]["processor"]
    figure.text(0.99, 0.01, f"{processor}; {results['scaling-4']['date']}", ha="right", fontsize=8)
    figure.tight_layout(rect=(0, 0.03, 1, 1))
    figure.savefig(path, format="svg", transparent=True, metadata={"Date": None, "Title": "Scaling over Dask workers"})


if __name__ == "__main__":
    main()
