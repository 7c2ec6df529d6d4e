"""Load one file on 1, 2 and 4 ranks of torch.distributed: time, bytes read, memory, and bytes between the ranks.

    python -m benchmarks.distributed --output distributed.json        # 1 GiB, made in a temporary folder
    python -m benchmarks.distributed --size 64 --ranks 1 2            # MiB; quick

Matrices of Q4_K, 4096 × 8192, half of them cut by rows and half by columns, with gloo on this machine.  Of each way the
slowest rank's seconds, with every page of the result touched, packed or as bfloat16 (a quarter of the tensors); the
file cold and in the page cache.  Bytes read: from the disk, by ``/proc/self/io``, of a cold file; pages of the
mapping that are this rank's; growth of anonymous memory.  Between the ranks: what went over the loopback device.
Linux only.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROWS, COLUMNS = 4096, 8192
#: Options of `load_sharded`, and which tensors.
WAYS: dict[str, tuple[dict[str, Any], str]] = {
    "rows, packed": ({"quantized": True}, "*up*"),
    "columns, packed, exchanged": ({"quantized": True, "exchange": True}, "*down*"),
    "columns, packed, each for itself": ({"quantized": True}, "*down*"),
    "all, packed, exchanged": ({"quantized": True, "exchange": True}, "*"),
    "all, packed": ({"quantized": True}, "*"),
    "all, packed, from rank 0": ({"quantized": True, "from_rank0": True}, "*"),
    "a quarter, bfloat16": ({"dtype": "bfloat16"}, "blk.?.*"),
}


def write(path: Path, mebibytes: int) -> int:
    """Write the file and give the number of layers, of two matrices each."""
    import numpy as np

    import mmgguf
    from mmgguf import GGMLType, TypedTensor
    from mmgguf.types import LAYOUTS

    layout = LAYOUTS[GGMLType.Q4_K]
    rng = np.random.default_rng(0)
    nbytes = layout.nbytes((ROWS, COLUMNS))
    layers = max(1, (mebibytes << 20) // (2 * nbytes))
    tensors: dict[str, Any] = {}
    for layer in range(layers):
        for name in ("up", "down"):
            blocks = rng.integers(0, 256, nbytes, np.uint8).view(layout.dtype)
            blocks["d"] = blocks["dmin"] = 0.001
            matrix = blocks.reshape(layout.stored_shape((ROWS, COLUMNS)))
            # A digit for the quarter that becomes numbers, two letters for the others.
            place = str(layer) if layer < max(1, layers // 4) else f"x{layer}"
            tensors[f"blk.{place}.ffn_{name}.weight"] = TypedTensor(matrix, GGMLType.Q4_K)
    mmgguf.write(path, {"general.architecture": "llama"}, tensors)
    return layers


def field(path: str, key: str) -> int:
    for line in Path(path).read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1])
    raise KeyError(key)


def mapped(path: Path) -> int:
    """Bytes of the file that are in this process's page tables."""
    found, counts = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        words = line.split()
        if not words[0].endswith(":"):
            counts = line.endswith(str(path))
        elif counts and words[0] == "Rss:":
            found += int(words[1]) << 10
    return found


def loopback() -> int:
    line = next(line for line in Path("/proc/net/dev").read_text().splitlines() if line.strip().startswith("lo:"))
    return int(line.split()[9])


def load(path: Path, mesh: Any, names: str, options: dict[str, Any], is_cold: bool) -> dict[str, Any]:
    """Load once on this rank, and say what that took."""
    import gc

    import torch
    import torch.distributed as dist
    from torch.distributed.tensor import Shard

    from mmgguf.bench.measure import evict
    from mmgguf.torch.distributed import load_sharded

    gc.collect()
    if "dtype" in options:
        options = {**options, "dtype": getattr(torch, options["dtype"])}
    plan = (
        {"*down*": Shard(1), "*": Shard(0)} if names not in ("*up*", "*down*") else Shard(1 if "down" in names else 0)
    )
    dist.barrier()
    if is_cold and mesh.get_rank() == 0:
        evict(path)
    dist.barrier()
    Path("/proc/self/clear_refs").write_text("5")
    read, anonymous, sent = field("/proc/self/io", "read_bytes"), field("/proc/self/status", "RssAnon"), loopback()
    dist.barrier()
    start = time.perf_counter()
    parts = load_sharded(names, path, mesh, plan, **options)
    local = [part.to_local().reshape(-1).view(torch.uint8) for part in parts.values()]
    total = sum(int(part[::4096].sum()) for part in local)
    seconds = time.perf_counter() - start
    assert total
    report = {
        "seconds": seconds,
        "result": sum(part.numel() for part in local),
        "disk": field("/proc/self/io", "read_bytes") - read,
        "mapped": mapped(path),
        "anonymous": (field("/proc/self/status", "RssAnon") - anonymous) << 10,
    }
    dist.barrier()
    report["loopback"] = loopback() - sent
    return report


def rank(path: Path) -> None:
    """Measure every way on one of the ranks, and print the reports of all on the first."""
    import datetime

    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh

    import mmgguf

    dist.init_process_group("gloo", timeout=datetime.timedelta(minutes=5))
    count = dist.get_world_size()
    mesh = init_device_mesh("cpu", (count,))
    with mmgguf.open(path) as f:
        first = next(iter(f))
    for options in ({"quantized": True}, {"dtype": "bfloat16"}):  # what first uses need
        load(path, mesh, first, options, False)
    for way, (options, names) in WAYS.items():
        for is_cold in (True, False):
            reports: list[Any] = [None] * count
            mine = load(path, mesh, names, options, is_cold)
            dist.all_gather_object(reports, mine)
            if mesh.get_rank() == 0:
                print(json.dumps({"ranks": count, "way": way, "cold": is_cold, "reports": reports}), flush=True)
    dist.destroy_process_group()
    time.sleep(1)  # torch 2.13 may abort where the interpreter ends before gloo's threads do


def run(path: Path, count: int) -> list[dict[str, Any]]:
    command = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", str(count), "-m", "benchmarks.distributed", "--rank", str(path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment).stdout
    return [json.loads(line) for line in output.splitlines() if line.startswith("{")]


def table(results: list[dict[str, Any]]) -> str:
    mib = 1 << 20
    lines = ["| ranks | way | seconds, cold | seconds, warm | part | disk | mapped | memory | between ranks |"]
    lines.append("|---|---|---|---|---|---|---|---|---|")
    for cold, warm in zip(results[::2], results[1::2], strict=True):
        worst = {key: max(one[key] for one in cold["reports"]) for key in cold["reports"][0]}
        seconds = max(one["seconds"] for one in warm["reports"])
        sizes = " | ".join(f"{worst[key] / mib:.1f}" for key in ("result", "disk", "mapped", "anonymous", "loopback"))
        lines.append(f"| {cold['ranks']} | {cold['way']} | {worst['seconds']:.2f} | {seconds:.2f} | {sizes} |")
    return "\n".join([*lines, "", "Sizes in MiB, of the rank that has most; the last column is of all ranks."])


def main() -> None:
    parser = argparse.ArgumentParser(description="Load one file on several ranks.")
    parser.add_argument("--size", type=int, default=1024, help="MiB of the file (default: %(default)s)")
    parser.add_argument("--ranks", type=int, nargs="*", default=[1, 2, 4])
    parser.add_argument("--folder", type=Path, help="where to make the file: on the disk that is to be measured")
    parser.add_argument("--file", type=Path, help="where the file is kept; made if it is not there")
    parser.add_argument("--output", type=Path, help="JSON")
    parser.add_argument("--rank", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rank:
        rank(options.rank)
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        path = options.file or Path(folder) / "model.gguf"
        if not path.exists():
            write(path, options.size)
        results = [result for count in options.ranks for result in run(path, count)]
    if options.output:
        options.output.write_text(json.dumps(results, indent=1))
    print(table(results))


if __name__ == "__main__":
    main()
