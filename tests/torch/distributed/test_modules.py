"""Modules whose weights are DTensors: tensor parallel, packed and as numbers, FSDP2, and stages of a pipeline."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

import mmgguf
from mmgguf import GGMLType, TypedTensor
from mmgguf.torch import QuantizedLinear, load_model
from mmgguf.torch.distributed import ShardedEmbedding, ShardedLinear

from ...support import ranks
from ...support.cases import random_tensor
from .test_loading import (
    DTensor,
    Replicate,
    Shard,
    dist,
    init_device_mesh,
    load_sharded,
    pytestmark,
    results,
    slow,
    torch,
)

__all__ = ["pytestmark"]

WIDTH, INNER, WORDS = 64, 128, 10
IDS = [[1, 9, 0, 5], [2, 2, 7, 8]]


class Model(nn.Module):
    """A tied embedding, a normalization, two matrices with biases."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(WORDS, WIDTH)
        self.norm = nn.LayerNorm(WIDTH, bias=False)
        self.up = nn.Linear(WIDTH, INNER)
        self.down = nn.Linear(INNER, WIDTH)
        self.head = nn.Linear(WIDTH, WORDS, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: Any) -> Any:
        x = self.embed(ids)
        return self.head(x + self.down(torch.relu(self.up(self.norm(x)))))


PLAN = {"embed.weight": Shard(0), "up.*": Shard(0), "down.weight": Shard(1)}


@pytest.fixture
def model_file(tmp_path: Path) -> Path:
    rng = np.random.default_rng(3)

    def blocks(rows: int, columns: int) -> TypedTensor:
        stored = random_tensor(GGMLType.Q8_0, (rows, columns // 32)).blocks.copy()
        stored["d"] = rng.uniform(0.001, 0.002, stored.shape)
        return TypedTensor(stored, GGMLType.Q8_0)

    tensors = {
        "embed.weight": blocks(WORDS, WIDTH),
        "norm.weight": rng.uniform(0.5, 1, WIDTH).astype(np.float32),
        "up.weight": blocks(INNER, WIDTH),
        "up.bias": rng.standard_normal(INNER, np.float32),
        "down.weight": blocks(WIDTH, INNER),
        "down.bias": rng.standard_normal(WIDTH, np.float32),
    }
    mmgguf.write(tmp_path / "model.gguf", {}, tensors)
    expected(tmp_path / "model.gguf")
    return tmp_path / "model.gguf"


def empty() -> Model:
    with torch.device("meta"):
        model = Model()
    model.head.weight = model.embed.weight
    return model


def expected(path: Path) -> Any:
    model = empty()
    load_model(model, path, quantized=True)
    with torch.no_grad():
        return model(torch.tensor(IDS))


STYLES = {
    "embed": lambda: RowwiseParallel(input_layouts=Replicate()),
    "up": lambda: ColwiseParallel(),
    "down": lambda: RowwiseParallel(),
    "head": lambda: ColwiseParallel(output_layouts=Replicate()),
}


def parallel(rank: int, path: Path, quantized: bool, hooked: str, from_rank0: bool) -> float:
    mesh = init_device_mesh("cpu", (2,))
    model = empty()
    if hooked == "before":  # which unties the weights: the output is loaded as one of its own
        parallelize_module(model, mesh, {name: STYLES[name]() for name in ("up", "down")})
        load_sharded(model, path, mesh, quantized=quantized, from_rank0=from_rank0)
    else:
        load_sharded(model, path, mesh, PLAN, quantized=quantized, from_rank0=from_rank0)
        assert model.head.weight.to_local().data_ptr() == model.embed.weight.to_local().data_ptr()
    if hooked == "after":
        parallelize_module(model, mesh, {name: style() for name, style in STYLES.items()})
    layers = [type(layer) for layer in (model.embed, model.up, model.head)]
    whole = hooked == "before"
    if quantized and not whole:
        assert layers == [ShardedEmbedding, ShardedLinear, ShardedLinear]
    assert isinstance(model.up.weight, DTensor)
    assert model.up.weight.to_local().shape[0] == INNER // 2
    assert model.down.weight.to_local().shape[1] == (INNER // 2 if not quantized else INNER // 32 * 34 // 2)
    with torch.no_grad():
        result = model(torch.tensor(IDS))
    assert type(result) is torch.Tensor
    return float((result - expected(path)).abs().max())


@pytest.mark.parametrize("from_rank0", [False, pytest.param(True, marks=slow)], ids=["each", "from_rank0"])
@pytest.mark.parametrize(
    ("quantized", "hooked"),
    [
        (True, "never"),
        *(pytest.param(*one, marks=slow) for one in ((True, "before"), (False, "after"), (False, "before"))),
    ],
)
def test_tensor_parallel(quantized: bool, hooked: str, from_rank0: bool, model_file: Path) -> None:
    assert max(results(2, parallel, model_file, quantized, hooked, from_rank0)) < 1e-4


def gradients(rank: int, path: Path, count: int) -> float:
    """What is trained around packed weights gets the gradients that it would get from whole ones."""
    mesh = init_device_mesh("cpu", (count,))
    model, whole = empty(), empty()
    load_sharded(model, path, mesh, {"up.*": Shard(0), "down.weight": Shard(1)}, quantized=True)
    load_model(whole, path, quantized=True)
    found = []
    for one in (model, whole):
        x = torch.linspace(-1, 1, 3 * WIDTH).reshape(3, WIDTH).requires_grad_()
        one.down(torch.relu(one.up(x))).square().sum().backward()
        found.append(x.grad)
    return float((found[0] - found[1]).abs().max() / found[1].abs().max())


@slow
def test_gradients(model_file: Path) -> None:
    assert max(results(2, gradients, model_file, 2)) < 1e-5


def fully_sharded(rank: int, path: Path, from_rank0: bool, device: str) -> float:
    mesh = init_device_mesh("cpu", (2,))
    with torch.device("meta"):
        model = Model()
    model.head.weight = model.embed.weight
    for layer in (model.up, model.down):
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    if device == "cpu":
        model.to_empty(device="cpu")
    load_sharded(model, path, from_rank0=from_rank0, strict=device == "meta")
    assert all(isinstance(parameter, DTensor) for parameter in model.parameters())
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    result = model(torch.tensor(IDS))
    result.square().mean().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    return float((result.detach() - expected(path)).abs().max())


@slow
@pytest.mark.parametrize("device", ["meta", "cpu"])
@pytest.mark.parametrize("from_rank0", [False, True], ids=["each", "from_rank0"])
def test_fully_shard(from_rank0: bool, device: str, model_file: Path) -> None:
    assert max(results(2, fully_sharded, model_file, from_rank0, device)) < 1e-4


def two_dimensions(rank: int, path: Path) -> float:
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
    model = empty()
    parallelize_module(model, mesh["tp"], {name: STYLES[name]() for name in ("up", "down")})
    for layer in (model.up, model.down):
        fully_shard(layer, mesh=mesh["dp"])
    fully_shard(model, mesh=mesh["dp"])
    load_sharded(model, path, from_rank0=True)
    result = model(torch.tensor(IDS))
    return float((result.detach() - expected(path)).abs().max())


@slow
def test_tensor_parallel_and_fully_shard(model_file: Path) -> None:
    assert max(results(4, two_dimensions, model_file)) < 1e-4


def stage(rank: int, path: Path, from_rank0: bool) -> float | None:
    mesh = init_device_mesh("cpu", (2,))
    from torch.distributed.pipelining import PipelineStage, ScheduleGPipe

    with torch.device("meta"):
        whole = Model()
    module = nn.Sequential(whole.norm, whole.up) if rank == 0 else nn.Sequential(nn.ReLU(), whole.down)
    names = ["norm.*", "up.*"] if rank == 0 else ["down.*"]
    places = {"norm.weight": "0.weight", "up.weight": "1.weight", "up.bias": "1.bias"}
    places |= {"down.weight": "1.weight", "down.bias": "1.bias"}
    load_sharded(module, path, mesh, names=names, rename=places, quantized=True, from_rank0=from_rank0)
    assert type(module[1]) is QuantizedLinear
    schedule = ScheduleGPipe(PipelineStage(module, rank, 2, torch.device("cpu")), n_microbatches=2)
    x = torch.linspace(-1, 1, 4 * WIDTH).reshape(4, WIDTH)
    with torch.no_grad():
        result = schedule.step(x) if rank == 0 else schedule.step()
    if rank == 0:
        return None
    one = empty()
    load_model(one, path, quantized=True)
    with torch.no_grad():
        return float((result - one.down(torch.relu(one.up(one.norm(x))))).abs().max())


@slow
@pytest.mark.parametrize("from_rank0", [False, True], ids=["each", "from_rank0"])
def test_a_pipeline(from_rank0: bool, model_file: Path) -> None:
    _, difference = results(2, stage, model_file, from_rank0)
    assert difference < 1e-4


def wrong(rank: int, path: Path, plan: Any, changes: Any) -> None:
    mesh = init_device_mesh("cpu", (2,))
    load_sharded(empty(), path, mesh, plan, **changes)


@slow
@pytest.mark.parametrize(
    ("plan", "changes", "message"),
    [
        ({"down.weight": Shard(0)}, {"names": "up.*"}, "nothing to load is called|Missing key"),
        ({"dawn.weight": Shard(0)}, {}, "nothing to load is called 'dawn.weight'; did you mean 'down.weight'"),
        (None, {"rename": {"up.weight": "up.bias", "up.bias": "up.weight"}}, "size mismatch for up.bias"),
    ],
)
def test_what_does_not_fit(plan: Any, changes: Any, message: str, model_file: Path) -> None:
    for error in ranks.run(2, wrong, model_file, plan, changes):
        assert isinstance(error, Exception)
        assert re.search(message, str(error)), error
    assert not dist.is_initialized()
