"""Stored blocks into torch's numbers on the CPU, per type: `mmgguf.torch.dequantize` and diffusers' function.

Both make new float32 tensors of one weight; the same numbers come out, which is asserted.  One thread each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from mmgguf import GGMLType
from mmgguf.bench.models import random_blocks
from mmgguf.types import LAYOUTS

from .conftest import Sizes, Timed

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
    utils = pytest.importorskip("diffusers.quantizers.gguf.utils")
    kinds = {kind.name: kind for kind in utils.dequantize_functions}
    if packed.ggml_type.name not in kinds:
        pytest.skip(f"diffusers has no {packed.ggml_type.name}")
    parameter = utils.GGUFParameter(packed.bytes(), quant_type=kinds[packed.ggml_type.name])
    return lambda: utils.dequantize_gguf_tensor(parameter).to(torch.float32)


WAYS = {"mmgguf.torch": ours, "mmgguf.torch, portable": portable, "diffusers": diffusers}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("type_", TYPES, ids=lambda type_: type_.name)
def test_dequantize_in_torch(benchmark: Any, timed: Timed, sizes: Sizes, type_: GGMLType, way: str) -> None:
    blocks = random_blocks(type_, sizes.matrix)
    raw = torch.from_numpy(blocks.view("u1").reshape(sizes.matrix[0], -1).copy())
    packed = PackedTensor.wrap(raw, type_)
    run = WAYS[way](packed)
    result = run()
    # diffusers' functions round some products in float16.
    scale = float(dequantize(packed).abs().max())
    torch.testing.assert_close(result, dequantize(packed), rtol=0, atol=(2e-3 if way == "diffusers" else 0) * scale)
    benchmark.group = f"dequantize in torch: {type_.name}"
    timed(run, seconds=0.5)
    benchmark.extra_info.update(
        contestant=way, type=type_.name, written=result.nbytes, read=packed.nbytes, dtype=str(result.dtype)
    )
