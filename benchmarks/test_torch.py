"""Stored blocks into torch's numbers on the CPU, per type: `mmgguf.torch.dequantize` and diffusers' function.

Both make new float32 tensors of one weight; the same numbers come out, which is asserted.  One thread each.

    pytest benchmarks/test_torch.py
    python -m benchmarks.test_torch             # a table of the types that diffusers has, in turns, as Markdown
    python -m benchmarks.test_torch 9 Q4_K Q6_K # rounds, and types
"""

from __future__ import annotations

import importlib
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest

from mmgguf import GGMLType
from mmgguf.bench.models import random_blocks
from mmgguf.bench.peers import Unavailable
from mmgguf.types import LAYOUTS

from .conftest import Case
from .files import Sizes
from .test_dequantize import types

__all__ = ["types"]

torch = pytest.importorskip("torch")

from mmgguf.torch import PackedTensor, dequantize  # noqa: E402

TYPES = [type_ for type_, layout in LAYOUTS.items() if not layout.is_plain]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def ours(packed: PackedTensor) -> Callable[[], Any]:
    return lambda: dequantize(packed)


def portable(packed: PackedTensor) -> Callable[[], Any]:
    pytest.importorskip("array_api_compat")
    return lambda: dequantize(packed, backend="portable")


def diffusers(packed: PackedTensor) -> Callable[[], Any]:
    pytest.importorskip("diffusers", reason="diffusers is not installed: pip install diffusers")
    utils = importlib.import_module("diffusers.quantizers.gguf.utils")
    kinds = {kind.name: kind for kind in utils.dequantize_functions}
    if packed.ggml_type.name not in kinds:
        raise Unavailable(f"diffusers has no {packed.ggml_type.name}")
    parameter = utils.GGUFParameter(packed.bytes(), quant_type=kinds[packed.ggml_type.name])
    return lambda: utils.dequantize_gguf_tensor(parameter).to(torch.float32)


WAYS = {"mmgguf.torch": ours, "mmgguf.torch, portable": portable, "diffusers": diffusers}


@pytest.mark.parametrize("type_", TYPES, ids=lambda type_: type_.name)
def test_dequantize_in_torch(case: Case, sizes: Sizes, types: list[GGMLType], type_: GGMLType) -> None:
    if type_ not in types:
        pytest.skip("not in the files that were given")
    rows = max(sizes.matrix[0] // 4, 16)
    blocks = random_blocks(type_, (rows, sizes.matrix[1]))
    raw = torch.from_numpy(blocks.view("u1").reshape(rows, -1).copy())
    packed = PackedTensor.wrap(raw, type_)
    expected = dequantize(packed)
    scale = float(expected.abs().max())

    def check(way: str, result: Any) -> None:
        # diffusers' functions round some products in float16.
        torch.testing.assert_close(result, expected, rtol=0, atol=(2e-3 if way == "diffusers" else 0) * scale)

    contestants = {way: partial(make, packed) for way, make in WAYS.items()}
    case.time(
        f"dequantize in torch/{type_.name}",
        contestants,
        seconds=0.15,
        check=check,
        read=packed.nbytes,
        written=expected.nbytes,
    )


def in_turns(type_: GGMLType, shape: tuple[int, int], rounds: int) -> tuple[list[float], list[float]]:
    """Seconds of `rounds` runs of ours and of diffusers' function, one after the other."""
    raw = torch.from_numpy(random_blocks(type_, shape).view("u1").reshape(shape[0], -1).copy())
    packed = PackedTensor.wrap(raw, type_)
    runs = [ours(packed), diffusers(packed)]
    times: list[list[float]] = [[], []]
    for turn in range(rounds + 1):
        for run, of in zip(runs, times, strict=True):
            began = time.perf_counter()
            run()
            if turn:  # the first warms up
                of.append(time.perf_counter() - began)
    return times[0], times[1]


def main() -> None:
    from diffusers.quantizers.gguf.utils import dequantize_functions

    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 9
    torch.set_num_threads(1)
    shape = (4096, 4096)
    known = {kind.name for kind in dequantize_functions}
    print(f"float32 of {shape[0]} x {shape[1]}, one thread, medians of {rounds} in turns (quartiles of the ratio)\n")
    print("| type | mmgguf.torch, ms | diffusers, ms | times |\n|---|---|---|---|")
    for type_ in TYPES:
        if type_.name not in (known & set(sys.argv[2:]) if sys.argv[2:] else known):
            continue
        mine, theirs = in_turns(type_, shape, rounds)
        low, middle, high = statistics.quantiles([b / a for a, b in zip(mine, theirs, strict=True)], n=4)
        ms = [f"{statistics.median(times) * 1e3:.1f}" for times in (mine, theirs)]
        print(f"| {type_.name} | {ms[0]} | {ms[1]} | {middle:.1f} ({low:.1f} to {high:.1f}) |", flush=True)


if __name__ == "__main__":
    main()
