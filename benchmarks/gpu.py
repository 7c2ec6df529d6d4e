"""Packed weights on a GPU: is every type right there, and how fast is it?  Ready to run, and not run yet.

    python -m benchmarks.gpu                  # everything, on cuda:0
    python -m benchmarks.gpu --types Q4_K Q6_K --rows 8192

1. Every block type: the numbers on the device, eager and compiled, against those of the CPU, bit for bit.
2. GB/s of `mmgguf.torch.dequantize` to bfloat16 (bytes read and written), eager and compiled, beside a device copy that
   moves as many bytes in the same run; diffusers' function where it is installed and has the type.
3. Host to device: packed weights through `load_file(device=...)`, beside a plain copy from pinned memory.

Needs torch with CUDA, this repository with its extra `torch`, and for what is compiled Triton, which torch brings.
Without a GPU it ends with status 1; the same steps on the CPU, in seconds, to see that they run:

    python -m benchmarks.gpu --device cpu --no-compile --rows 64 --mib 4
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

import mmgguf
from mmgguf.bench.models import random_blocks
from mmgguf.torch import PackedTensor, dequantize, load_file
from mmgguf.types import LAYOUTS, GGMLType

BLOCK_TYPES = [type_ for type_, layout in LAYOUTS.items() if not layout.is_plain]
#: What host to device has to reach of a plain pinned copy.
TRANSFER = 0.85
#: What a compiled function has to reach of a device copy before Triton kernels are worth writing.
WORTHWHILE = 0.6
COLUMNS = 4096


def packed(type_: GGMLType, rows: int, seed: int = 0) -> PackedTensor:
    """Random bytes, so that scales are anything."""
    layout = LAYOUTS[type_]
    raw = np.random.default_rng(seed).integers(0, 256, (rows, layout.row_size(COLUMNS)), np.uint8)
    return PackedTensor.wrap(torch.from_numpy(raw), type_)


def ordinary(type_: GGMLType, rows: int) -> PackedTensor:
    blocks = random_blocks(type_, (rows, COLUMNS))
    return PackedTensor.wrap(torch.from_numpy(blocks.view(np.uint8).reshape(rows, -1).copy()), type_)


def same_bits(actual: torch.Tensor, expected: torch.Tensor) -> bool:
    actual, expected = actual.cpu(), expected.cpu()
    integers = {4: torch.int32, 2: torch.int16}[actual.element_size()]
    same = actual.view(integers) == expected.view(integers)
    return bool((same | (actual.isnan() & expected.isnan())).all())


def compiled(dtype: torch.dtype) -> Callable[[PackedTensor], torch.Tensor]:
    torch._dynamo.reset()
    function: Any = torch.compile(
        lambda weights: dequantize(weights, dtype=dtype, backend="portable"), fullgraph=True, dynamic=False
    )
    return function  # type: ignore[no-any-return]


def check(types: list[GGMLType], device: torch.device, with_compiler: bool) -> list[str]:
    """The types whose numbers differ from those of the CPU, and how."""
    wrong = []
    for type_ in types:
        weights = packed(type_, 64)
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            expected = dequantize(weights, dtype=dtype, backend="numpy")
            ways = {"eager": dequantize(weights.to(device), dtype=dtype, backend="portable")}
            if with_compiler:
                ways["compiled"] = compiled(dtype)(weights.to(device))
            wrong += [f"{type_.name} {dtype} {way}" for way, actual in ways.items() if not same_bits(actual, expected)]
        is_wrong = any(what.startswith(type_.name + " ") for what in wrong)
        print(f"{type_.name:8} {'wrong' if is_wrong else 'right'}", flush=True)
    return wrong


def seconds(run: Callable[[], object], device: torch.device, repeat: int = 30) -> float:
    """The median of timings by events of the device, after a warm-up."""
    for _ in range(5):
        run()
    if device.type != "cuda":
        times = []
        for _ in range(repeat):
            began = time.perf_counter()
            run()
            times.append(time.perf_counter() - began)
        return statistics.median(times)
    times = []
    for _ in range(repeat):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        run()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 1e3)
    return statistics.median(times)


def rate(type_: GGMLType, rows: int, device: torch.device, with_compiler: bool) -> dict[str, Any]:
    """GB/s, of bytes read and written, and of a copy that moves as many."""
    weights = ordinary(type_, rows).to(device)
    out = torch.empty(weights.logical_shape, dtype=torch.bfloat16, device=device)
    moved = weights.nbytes + out.nbytes
    half = torch.empty(moved // 2, dtype=torch.uint8, device=device)
    other = torch.empty_like(half)
    result: dict[str, Any] = {"type": type_.name, "bytes": moved}
    runs: dict[str, Callable[[], object]] = {
        "copy": lambda: other.copy_(half),
        "eager": lambda: dequantize(weights, out=out, backend="portable"),
    }
    if with_compiler:
        function = compiled(torch.bfloat16)
        runs["compiled"] = lambda: function(weights)
    try:
        from diffusers.quantizers.gguf.utils import GGUFParameter, dequantize_functions, dequantize_gguf_tensor

        kinds = {kind.name: kind for kind in dequantize_functions}
        if type_.name in kinds:
            theirs = GGUFParameter(weights.bytes(), quant_type=kinds[type_.name])
            runs["diffusers"] = lambda: dequantize_gguf_tensor(theirs).to(torch.bfloat16)
    except ImportError:
        pass
    for name, run in runs.items():
        result[name] = moved / seconds(run, device) / 1e9
    return result


def host_to_device(device: torch.device, nbytes: int) -> dict[str, float]:
    """GB/s of packed weights of a mapped file (in the page cache) to the device, and of a plain pinned copy."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "weights.gguf"
        rows = nbytes // LAYOUTS[GGMLType.Q4_K].row_size(COLUMNS)
        blocks = random_blocks(GGMLType.Q4_K, (rows, COLUMNS))
        mmgguf.write(path, {}, {"w": mmgguf.TypedTensor(blocks, GGMLType.Q4_K)})
        size = blocks.nbytes
        pinned = torch.empty(size, dtype=torch.uint8, pin_memory=device.type == "cuda")
        target = torch.empty(size, dtype=torch.uint8, device=device)

        def plain() -> None:
            target.copy_(pinned, non_blocking=True)
            if device.type == "cuda":
                torch.cuda.synchronize()

        def ours() -> None:
            load_file(path, dequantize=False, device=device)
            if device.type == "cuda":
                torch.cuda.synchronize()

        times = {}
        for name, run in {"pinned copy": plain, "load_file": ours}.items():
            run()
            spans = []
            for _ in range(5):
                began = time.perf_counter()
                run()
                spans.append(time.perf_counter() - began)
            times[name] = size / statistics.median(spans) / 1e9
        return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--types", nargs="*", default=[type_.name for type_ in BLOCK_TYPES])
    parser.add_argument("--rows", type=int, default=16384, help=f"of {COLUMNS} elements (default: %(default)s)")
    parser.add_argument("--mib", type=int, default=1024, help="that go to the device (default: %(default)s)")
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--no-timing", action="store_true", help="only the checks")
    options = parser.parse_args()
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.exit(1, "torch finds no CUDA device\n")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    print(f"torch {torch.__version__} on {name}")
    types = [GGMLType[name] for name in options.types]
    wrong = check(types, device, not options.no_compile)
    if not options.no_timing:
        for type_ in types:
            result = rate(type_, options.rows, device, not options.no_compile)
            best = result.get("compiled", result["eager"]) / result["copy"]
            note = "" if best >= WORTHWHILE else f"  below {WORTHWHILE:.0%} of a copy"
            rates = "  ".join(f"{key} {result[key]:8.1f}" for key in result if key not in ("type", "bytes"))
            print(f"{type_.name:8} GB/s: {rates}{note}", flush=True)
        speeds = host_to_device(device, options.mib << 20)
        share = speeds["load_file"] / speeds["pinned copy"]
        note = "" if share >= TRANSFER else f"  below {TRANSFER:.0%} of a pinned copy"
        print(f"host to device, GB/s: {json.dumps({key: round(speed, 2) for key, speed in speeds.items()})}{note}")
    if wrong:
        parser.exit(1, "differ from the CPU: " + "; ".join(wrong) + "\n")
    print("every number is that of the CPU, bit for bit")


if __name__ == "__main__":
    main()
