"""Layers whose packed weights are DTensors: the tensor parallel `QuantizedLinear` and `QuantizedEmbedding`."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.placement_types import Partial, Replicate, Shard

from ...packing import logical_shape
from ...types import GGMLType
from ..layers import QuantizedEmbedding, QuantizedLinear, multiply
from ..packed import PackedTensor, numbers

__all__ = ["ShardedEmbedding", "ShardedLinear"]


class ShardedLinear(QuantizedLinear):
    """`QuantizedLinear` whose weight is a DTensor of packed bytes on a mesh of one dimension.

    Each rank multiplies with its rows (``Shard(0)``, column parallel in Megatron's words) or its columns
    (``Shard(1)``, row parallel).

    Parameters
    ----------
    weight : DTensor
        uint8 of shape (out_features, bytes per row).
    ggml_type : GGMLType
        What its blocks are.
    bias : torch.Tensor or DTensor, optional
        Of shape (out_features,): all of it, or cut as the rows are.

    Notes
    -----
    Given a plain tensor, it takes that as the same on all ranks, and gives a plain tensor that is, too.  Given a
    DTensor it gives one, cut along the last axis or partial, without communication that is not needed: so
    `ColwiseParallel` and `RowwiseParallel` of `torch.distributed.tensor.parallel` work with it, if `parallelize_module`
    is called before the weights are loaded.
    """

    def __init__(self, weight: DTensor, ggml_type: GGMLType, bias: torch.Tensor | None = None) -> None:
        nn.Module.__init__(self)
        self.out_features, self.in_features = weight.shape[0], _columns(weight, ggml_type)
        self.ggml_type = ggml_type
        self.register_buffer("weight", weight)
        if bias is not None and not isinstance(bias, nn.Parameter):
            bias = nn.Parameter(bias, requires_grad=False)
        self.register_parameter("bias", bias)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        weight = self.weight
        mesh, (placement,) = weight.device_mesh, weight.placements
        is_plain, input = _distributed(input, mesh)
        if placement.is_shard(0):
            cut, given, gradients = Replicate(), Shard(input.ndim - 1), Partial()
        elif placement.is_shard(1):
            cut, given, gradients = Shard(input.ndim - 1), Partial(), Shard(input.ndim - 1)
        else:
            cut = given = gradients = Replicate()
        local = input.redistribute(placements=[cut]).to_local(grad_placements=[gradients])
        result = multiply(local, _bytes(weight), self.ggml_type)
        result = _joined(result, mesh, given, (*input.shape[:-1], self.out_features))
        if self.bias is not None:
            bias = self.bias
            if not isinstance(bias, DTensor):
                bias = DTensor.from_local(bias, mesh, [Replicate()], run_check=False)
            result = result + bias.to(result.dtype)
        return result.full_tensor() if is_plain else result

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, {self.weight.placements[0]}"


class ShardedEmbedding(QuantizedEmbedding):
    """`QuantizedEmbedding` whose weight is a DTensor of packed bytes on a mesh of one dimension.

    Each rank looks up what its rows (``Shard(0)``) or its columns (``Shard(1)``) give; see `ShardedLinear`.
    """

    def __init__(
        self,
        weight: DTensor,
        ggml_type: GGMLType,
        *,
        dtype: torch.dtype = torch.float32,
        scale: float | None = None,
        padding_idx: int | None = None,
    ) -> None:
        nn.Module.__init__(self)
        self.num_embeddings, self.embedding_dim = weight.shape[0], _columns(weight, ggml_type)
        self.padding_idx = padding_idx
        self.max_norm, self.norm_type, self.scale_grad_by_freq, self.sparse = None, 2.0, False, False
        self.scale = scale
        self.ggml_type = ggml_type
        self.register_buffer("weight", weight)
        self.register_buffer("_result", torch.empty(0, dtype=dtype, device=weight.device), persistent=False)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        weight = self.weight
        mesh, (placement,) = weight.device_mesh, weight.placements
        is_plain, input = _distributed(input, mesh)
        ids = input.redistribute(placements=[Replicate()]).to_local().reshape(-1)
        blocks = _bytes(weight)
        given: Any = Shard(input.ndim) if placement.is_shard(1) else Replicate()
        inside = None
        if placement.is_shard(0):
            given = Partial()
            step = -(-self.num_embeddings // mesh.size())
            ids = ids - mesh.get_local_rank() * step
            inside = (ids >= 0) & (ids < blocks.shape[0])
            ids = ids.where(inside, 0)
        if blocks.shape[0]:
            rows = blocks.index_select(0, ids)
            result = numbers(rows, self.ggml_type, self._result.dtype)
        else:
            result = torch.zeros((len(ids), self.embedding_dim), dtype=self._result.dtype, device=ids.device)
        if inside is not None:
            result = result * inside[:, None]
        result = result.reshape(*input.shape, result.shape[-1])
        if self.scale is not None:
            result = result * torch.tensor(self.scale, dtype=result.dtype, device=result.device)
        joined = _joined(result, mesh, given, (*input.shape, self.embedding_dim))
        return joined.full_tensor() if is_plain else joined

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, {self.weight.placements[0]}"


def _columns(weight: DTensor, ggml_type: GGMLType) -> int:
    if weight.device_mesh.ndim != 1:
        raise ValueError(f"weight must be on a mesh of one dimension, such as mesh['tp'], got {weight.device_mesh}")
    if weight.ndim != 2:
        raise ValueError(f"weight must have two axes, got the shape {tuple(weight.shape)}")
    return logical_shape(weight.shape, ggml_type)[1]


def _bytes(weight: DTensor) -> torch.Tensor:
    local: torch.Tensor = weight.to_local()
    return local.bytes() if isinstance(local, PackedTensor) else local


def _distributed(input: torch.Tensor, mesh: Any) -> tuple[bool, Any]:
    if isinstance(input, DTensor):
        return False, input
    return True, DTensor.from_local(input, mesh, [Replicate()], run_check=False)


def _joined(local: torch.Tensor, mesh: Any, placement: Any, shape: tuple[int, ...]) -> Any:
    stride = torch.empty(shape, device="meta").stride()
    return DTensor.from_local(local.contiguous(), mesh, [placement], run_check=False, shape=shape, stride=stride)
