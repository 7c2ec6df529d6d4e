"""`load_sharded` on ranks that are forked here: parts against `torch.chunk` of what one process loads."""

from __future__ import annotations

import itertools
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mmgguf
from mmgguf import GGMLType, TypedTensor
from mmgguf.errors import NameNotFoundError

from ...support import ranks
from ...support.cases import random_tensor

torch = pytest.importorskip("torch")
if not torch.distributed.is_available() or sys.platform != "linux":
    pytest.skip("needs torch.distributed and fork", allow_module_level=True)

import torch._dynamo  # noqa: E402  # as every DTensor does: once, before ranks are forked
import torch.distributed as dist  # noqa: E402
from torch.distributed.device_mesh import init_device_mesh  # noqa: E402
from torch.distributed.tensor import DTensor, distribute_tensor  # noqa: E402
from torch.distributed.tensor._utils import _compute_local_shape_and_global_offset  # noqa: E402
from torch.distributed.tensor.placement_types import Partial, Replicate, Shard, _StridedShard  # noqa: E402

from mmgguf.torch import PackedTensor, load_file  # noqa: E402
from mmgguf.torch.distributed import load_sharded  # noqa: E402
from mmgguf.torch.distributed.parts import part_of  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
    pytest.mark.filterwarnings("default"),
]

#: Each test forks processes: few of them are run every time.
slow = pytest.mark.slow
WAYS: list[dict[str, Any]] = [{}, {"exchange": True}, {"from_rank0": True}]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    rng = np.random.default_rng(5)
    tensors = {
        "norm": rng.standard_normal(13, np.float32),
        "q4": TypedTensor(random_tensor(GGMLType.Q4_1, (12, 8)).blocks, GGMLType.Q4_1),
        "f32": rng.standard_normal((10, 12), np.float32),
        "q6": TypedTensor(random_tensor(GGMLType.Q6_K, (5, 4)).blocks, GGMLType.Q6_K),
        "f16": rng.standard_normal((7, 5), np.float32).astype(np.float16),
        "experts": TypedTensor(random_tensor(GGMLType.Q8_0, (4, 6, 2)).blocks, GGMLType.Q8_0),
        "ids": np.arange(5, dtype=np.int32),
        "few": rng.standard_normal((1, 6), np.float32),
    }
    target = tmp_path / "model.gguf"
    mmgguf.write(target, {"general.architecture": "llama"}, tensors)
    load_file(target)  # compiles what the ranks would compile each for itself
    return target


def results(count: int, function: Any, *arguments: Any) -> list[Any]:
    found = ranks.run(count, function, *arguments)
    for one in found:
        if isinstance(one, BaseException):
            raise one
    return found


def same(a: Any, b: Any) -> bool:
    """Of one dtype and shape, with the same bits: random blocks have NaN, too."""
    if (a.dtype, a.shape) != (b.dtype, b.shape):
        return False
    return torch.equal(*(one.contiguous().reshape(-1).view(torch.uint8) for one in (a, b)))


# ---------------------------------------------------------------- tensors by name

PLANS: list[dict[str, Any]] = [
    {"*": Shard(0)},
    {"norm": Shard(0), "ids": Replicate(), "*": Shard(-1)},
    {"q4": Shard(1), "f*": Replicate(), "experts": Shard(1)},
    {},
]


def load_all_ways(rank: int, path: Path, count: int) -> int:
    mesh = init_device_mesh("cpu", (count,))
    whole = load_file(path)
    bytes_of = load_file(path, dequantize=False)
    checked = 0
    for plan, way, quantized in itertools.product(PLANS, WAYS, [False, True]):
        if count == 3 and {Shard(1), Shard(-1)} & set(plan.values()):
            continue  # there are blocks that cannot be cut in three
        found = load_sharded(None, path, mesh, plan, quantized=quantized, **way)
        assert list(found) == list(whole)
        for name, value in found.items():
            full = bytes_of[name] if quantized else whole[name]
            placement = next((plan[p] for p in (name, "f*", "*") if p in plan and (p != "f*" or name[0] == "f")), None)
            local = value
            if placement is None:
                assert not isinstance(value, DTensor)
            else:
                assert isinstance(value, DTensor)
                assert value.shape == full.shape
                local = value.to_local()
            if isinstance(full, PackedTensor):
                assert isinstance(local, PackedTensor)
                assert local.ggml_type == full.ggml_type
                full, local = full.bytes(), local.bytes()
            if isinstance(placement, Shard):
                parts = torch.chunk(full, count, placement.dim)
                full = parts[rank] if rank < len(parts) else full.narrow(placement.dim, 0, 0)
            assert same(local, full), (name, plan, way)
            checked += 1
    return checked


@pytest.mark.parametrize("count", [1, 2, pytest.param(3, marks=slow)])
def test_parts_are_the_chunks_of_the_whole(count: int, path: Path) -> None:
    assert min(results(count, load_all_ways, path, count)) == 8 * 6 * (2 if count == 3 else 4)


MESHES: list[tuple[tuple[int, ...], dict[str, Any]]] = [
    ((2, 2), {"*": (Replicate(), Shard(0))}),
    ((2, 2), {"*": (Shard(0), Replicate())}),
    ((2, 2), {"*": (Replicate(), Replicate())}),
    ((2, 2), {"q?": (Shard(0), Shard(1)), "f32": (Shard(1), Shard(0)), "*": (Shard(0), Shard(0))}),
    ((2, 2), {"q4": (Shard(1), Shard(1)), "experts": (Shard(1), Shard(2)), "*": (Shard(0), Replicate())}),
    ((4, 1), {"q6": (Shard(1), Replicate()), "*": (Shard(0), Shard(0))}),
]


def load_on_meshes(rank: int, path: Path) -> None:
    meshes = {shape: init_device_mesh("cpu", shape) for shape in ((2, 2), (4, 1))}
    whole, bytes_of = load_file(path), load_file(path, dequantize=False)
    for (shape, plan), way, quantized in itertools.product(MESHES, WAYS, [False, True]):
        found = load_sharded(None, path, meshes[shape], plan, quantized=quantized, **way)
        for name, value in found.items():
            full = bytes_of[name] if quantized else whole[name]
            full = full.bytes() if isinstance(full, PackedTensor) else full
            expected = distribute_tensor(full, meshes[shape], value.placements).to_local()
            local = value.to_local()
            assert same(local.bytes() if isinstance(local, PackedTensor) else local, expected), (name, plan, way)


@slow
def test_meshes_of_two_dimensions(path: Path) -> None:
    results(4, load_on_meshes, path)


@pytest.mark.parametrize("shape", [(16,), (17, 5), (8, 16)])
def test_parts_are_those_of_torch(shape: tuple[int, ...]) -> None:
    """Also where FSDP cuts what tensor parallelism has cut."""
    axes = [Replicate(), *(Shard(axis) for axis in range(len(shape)))]
    plans = [*itertools.product(axes, axes), (_StridedShard(0, split_factor=4), Shard(0))]
    for placements in plans:
        if isinstance(placements[0], _StridedShard) and shape[0] % 8:
            continue
        for at in itertools.product(range(2), range(4)):
            part = part_of(shape, placements, (2, 4), at)
            local, start = _compute_local_shape_and_global_offset(shape, (2, 4), list(at), placements)
            assert part.shape == tuple(local)
            if all(local):
                first = sum(i * n for i, n in zip(start[:-1], np.cumprod([1, *shape[:-1]]).tolist(), strict=False))
                assert part.columns == (start[-1], start[-1] + local[-1])
                assert part.rows[0][0] == (first if len(shape) == 2 else 0)


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (
            {"q6": Shard(1)},
            r"q6: 1024 columns are 4 blocks of 256 \(Q6_K\), which 3 parts would cut: .* 1, 2 or 4 parts",
        ),
        ({"experts": Shard(2)}, r"experts: 64 columns are 2 blocks of 32 \(Q8_0\), .* in 1 or 2 parts"),
        ({"q6": Shard(2)}, "q6: no axis 2 in a tensor of 2 dimensions"),
        ({"q6": Partial()}, "q6: what is loaded is Shard or Replicate"),
        ({"q6": (Shard(0), Shard(1))}, "q6: a mesh of 1 dimensions needs as many placements"),
        ({"norms": Shard(0)}, "placements: nothing to load is called 'norms'; did you mean 'norm'"),
    ],
)
@slow
@pytest.mark.parametrize("way", [{}, {"from_rank0": True}], ids=["each", "from_rank0"])
def test_a_plan_that_cannot_be(plan: Any, message: str, way: Any, path: Path) -> None:
    for error in ranks.run(3, load, path, plan, way):
        assert isinstance(error, ValueError | NameNotFoundError)
        assert re.search(message, str(error)), error


def load(rank: int, path: Path, plan: Any, way: Any) -> Any:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    return {name: value.shape for name, value in load_sharded(None, path, mesh, plan, **way).items()}


def load_stages(rank: int, path: Path, way: Any) -> Any:
    mesh = init_device_mesh("cpu", (2,))
    whole = load_file(path)
    names = [["q4", "f*"], ["q6", "experts", "ids", "f32", "norm"]][rank]
    found = load_sharded(names, path if rank == 0 or not way else None, mesh, {"f32": Shard(0)}, **way)
    for name, value in found.items():
        if isinstance(value, DTensor):
            value, whole[name] = value.to_local(), whole[name].chunk(2)[rank]
        assert same(value, whole[name])
    return set(found)


@slow
@pytest.mark.parametrize("way", [{}, {"from_rank0": True}], ids=["each", "from_rank0"])
def test_stages_have_plain_tensors_of_their_own(way: Any, path: Path) -> None:
    found = results(2, load_stages, path, way)
    assert found == [{"q4", "f32", "f16", "few"}, {"q6", "experts", "ids", "f32", "norm"}]


def load_with_progress(rank: int, path: Path) -> list[tuple[int, int]]:
    calls: list[tuple[int, int]] = []
    load_sharded(["q4", "norm"], path, placements={"q4": Shard(0)}, progress=lambda *call: calls.append(call))
    return calls


@slow
def test_progress_is_of_the_parts(path: Path) -> None:
    norm, half = 13 * 4, 6 * 8 * 20
    assert results(2, load_with_progress, path) == [[(0, norm + half), (norm, norm + half), (norm + half,) * 2]] * 2
