"""Layers whose weights stay packed: a forward pass dequantizes one bounded tile after another."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from typing import Any, Final

import torch
from torch import nn

from ..packing import logical_shape
from ..types import GGMLType
from .packed import PackedTensor, numbers

__all__ = ["QuantizedEmbedding", "QuantizedExperts", "QuantizedLinear"]

#: Elements of a weight that exist as numbers at a time: on the CPU what its cache holds, elsewhere enough for a matrix
#: product to be efficient.
_TILE_ON_THE_CPU: Final = 1 << 20
_TILE: Final = 1 << 26


class _PackedState:
    """Loading a state dict into a module whose buffers are packed: the ggml type has to be the same."""

    def _load_from_state_dict(
        self, state_dict: Any, prefix: str, metadata: Any, strict: bool, missing: Any, unexpected: Any, errors: Any
    ) -> None:
        for name, buffer in self._buffers.items():  # type: ignore[attr-defined]
            value = state_dict.get(prefix + name)
            if isinstance(buffer, PackedTensor) and value is not None:
                if isinstance(value, PackedTensor) and value.ggml_type != buffer.ggml_type:
                    errors.append(
                        f"{prefix + name}: blocks of {value.ggml_type.name} for a module whose blocks are "
                        f"{buffer.ggml_type.name}"
                    )
                elif not isinstance(value, PackedTensor) and value.dtype == torch.uint8:
                    # From a file that keeps bytes but no types, such as safetensors.
                    state_dict[prefix + name] = PackedTensor.wrap(value, buffer.ggml_type)
        super()._load_from_state_dict(state_dict, prefix, metadata, strict, missing, unexpected, errors)  # type: ignore[misc]


class QuantizedLinear(_PackedState, nn.Linear):
    """``nn.Linear`` with a packed weight.

    The forward pass turns the weight into numbers of the input's dtype, a tile of rows at a time, and multiplies; the
    backward pass gives the gradient of the input (and of the bias), so that what is trained around the layer, such as
    LoRA, learns.  The weight itself is a buffer and gets no gradient.

    Parameters
    ----------
    weight : PackedTensor
        Blocks of logical shape (out_features, in_features).
    bias : torch.Tensor, optional
        Of shape (out_features,).

    Attributes
    ----------
    ggml_type : GGMLType
        What the blocks are.

    Examples
    --------
    >>> packed = mmgguf.torch.load_file("model.gguf", dequantize=False)
    >>> layer = QuantizedLinear(packed["token_embd.weight"])
    >>> layer(torch.ones(3, layer.in_features)).shape
    torch.Size([3, 8])
    """

    def __init__(self, weight: PackedTensor, bias: torch.Tensor | None = None) -> None:
        nn.Module.__init__(self)
        self.out_features, self.in_features = _matrix(weight)
        self.ggml_type = weight.ggml_type
        self.register_buffer("weight", weight)
        if bias is not None and tuple(bias.shape) != (self.out_features,):
            raise ValueError(f"bias must have shape ({self.out_features},), got {tuple(bias.shape)}")
        if bias is not None and not isinstance(bias, nn.Parameter):
            bias = nn.Parameter(bias, requires_grad=False)
        self.register_parameter("bias", bias)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        result = multiply(input, self.weight.bytes(), self.ggml_type)
        return result if self.bias is None else result + self.bias.to(result.dtype)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, {self.ggml_type.name}"


class QuantizedEmbedding(_PackedState, nn.Embedding):
    """``nn.Embedding`` with a packed weight, of which the forward pass turns only the rows it needs into numbers.

    Parameters
    ----------
    weight : PackedTensor
        Blocks of logical shape (num_embeddings, embedding_dim).
    dtype : torch.dtype, default torch.float32
        Of the result.  It follows the module: ``module.to(torch.bfloat16)`` and ``module.half()`` change it.
    scale : float, optional
        What each row is multiplied by, as gemma's embeddings are.
    padding_idx : int, optional
        Kept as an attribute, as `torch.nn.Embedding` does; without gradients it means nothing.
    """

    def __init__(
        self,
        weight: PackedTensor,
        *,
        dtype: torch.dtype = torch.float32,
        scale: float | None = None,
        padding_idx: int | None = None,
    ) -> None:
        nn.Module.__init__(self)
        self.num_embeddings, self.embedding_dim = _matrix(weight)
        self.padding_idx = padding_idx
        self.max_norm, self.norm_type, self.scale_grad_by_freq, self.sparse = None, 2.0, False, False
        self.scale = scale
        self.ggml_type = weight.ggml_type
        self.register_buffer("weight", weight)
        # Nothing but its dtype counts, which follows the module's.
        self.register_buffer("_result", torch.empty(0, dtype=dtype, device=weight.device), persistent=False)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        rows = self.weight.bytes().index_select(0, input.reshape(-1))
        result = numbers(rows, self.ggml_type, self._result.dtype).reshape(*input.shape, self.embedding_dim)
        if self.scale is None:
            return result
        # Rounded to the dtype first, as the models that scale were trained with it.
        return result * torch.tensor(self.scale, dtype=result.dtype, device=result.device)

    def extra_repr(self) -> str:
        scale = "" if self.scale is None else f", scale={self.scale:g}"
        return f"{self.num_embeddings}, {self.embedding_dim}, {self.ggml_type.name}{scale}"


class QuantizedExperts(_PackedState, nn.Module):
    """The experts of a mixture, packed: only those that a token is sent to become numbers.

    Parameters
    ----------
    gate, up : PackedTensor
        Blocks of logical shape (experts, intermediate, hidden).
    down : PackedTensor
        Blocks of logical shape (experts, hidden, intermediate).
    act_fn : callable
        The activation between them.

    Notes
    -----
    Called as the experts of transformers are: with hidden states (tokens, hidden), the experts of each token and their
    weights, both (tokens, k); gives (tokens, hidden).  Which experts are hit is not known to a compiler, so
    ``torch.compile`` breaks its graph here.
    """

    def __init__(
        self,
        gate: PackedTensor,
        up: PackedTensor,
        down: PackedTensor,
        act_fn: Callable[[torch.Tensor], torch.Tensor],
    ) -> None:
        super().__init__()
        self.num_experts, hidden, intermediate = down.logical_shape
        for name, weight in (("gate", gate), ("up", up)):
            if weight.logical_shape != (self.num_experts, intermediate, hidden):
                raise ValueError(
                    f"{name} must have logical shape {(self.num_experts, intermediate, hidden)}, "
                    f"got {weight.logical_shape}"
                )
        self.types = {"gate_proj": gate.ggml_type, "up_proj": up.ggml_type, "down_proj": down.ggml_type}
        self.register_buffer("gate_proj", gate)
        self.register_buffer("up_proj", up)
        self.register_buffer("down_proj", down)
        self.act_fn = act_fn

    def forward(
        self, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
    ) -> torch.Tensor:
        result = torch.zeros_like(hidden_states)
        for expert in top_k_index.unique().tolist():
            if not 0 <= expert < self.num_experts:  # how transformers marks tokens that other devices take
                continue
            token, position = torch.where(top_k_index == expert)
            states = hidden_states[token]
            inner = self.act_fn(self._multiply(states, "gate_proj", expert)) * self._multiply(states, "up_proj", expert)
            share = self._multiply(inner, "down_proj", expert) * top_k_weights[token, position, None]
            result = result.index_add(0, token, share.to(result.dtype))
        return result

    def _multiply(self, input: torch.Tensor, name: str, expert: int) -> torch.Tensor:
        return multiply(input, self._buffers[name].bytes()[expert], self.types[name])

    def extra_repr(self) -> str:
        types = ", ".join(f"{name}: {type_.name}" for name, type_ in self.types.items())
        return f"{self.num_experts} experts, {types}"


def _matrix(weight: PackedTensor) -> tuple[int, int]:
    if not isinstance(weight, PackedTensor):
        raise TypeError(f"weight must be a PackedTensor, got {type(weight).__name__}")
    shape = weight.logical_shape
    if len(shape) != 2:
        raise ValueError(f"weight must have two axes, got the logical shape {shape}")
    return shape[0], shape[1]


def multiply(input: torch.Tensor, blocks: torch.Tensor, ggml_type: GGMLType) -> torch.Tensor:
    """``input @ weight.T``, (..., inputs) → (..., outputs), for a weight whose blocks are (outputs, bytes)."""
    device = input.device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        input = input.to(torch.get_autocast_dtype(device))
    width = logical_shape(blocks.shape, ggml_type)[-1]
    if not input.ndim or input.shape[-1] != width:
        raise ValueError(f"input must have a last axis of {width} elements, got the shape {tuple(input.shape)}")
    result: torch.Tensor = _Multiply.apply(input, blocks, int(ggml_type))
    return result


class _Multiply(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: torch.Tensor, blocks: torch.Tensor, type_: int) -> torch.Tensor:
        ctx.save_for_backward(blocks)
        ctx.type_ = type_
        flat = input.reshape(-1, input.shape[-1])
        outputs = blocks.shape[0]
        if torch.compiler.is_compiling():
            parts = [flat @ numbers(part, GGMLType(type_), input.dtype).T for _, part in _tiles(blocks, input)]
            result = torch.cat(parts, dim=-1)
        else:
            result = input.new_empty((flat.shape[0], outputs))
            for start, weight in _dequantized(blocks, GGMLType(type_), input):
                torch.mm(flat, weight.T, out=result[:, start : start + weight.shape[0]])
        return result.reshape(*input.shape[:-1], outputs)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, None, None]:
        (blocks,) = ctx.saved_tensors
        flat = gradients[0].reshape(-1, blocks.shape[0])
        result: torch.Tensor | None = None
        for start, part in _tiles(blocks, flat):
            weight = numbers(part, GGMLType(ctx.type_), flat.dtype)
            share = flat[:, start : start + part.shape[0]] @ weight
            result = share if result is None else result + share
        assert result is not None
        return result.reshape(*gradients[0].shape[:-1], result.shape[-1]), None, None


def _tiles(blocks: torch.Tensor, like: torch.Tensor) -> Iterator[tuple[int, torch.Tensor]]:
    """Rows of the blocks, so many at a time that their numbers are a tile."""
    limit = _TILE_ON_THE_CPU if like.device.type == "cpu" and not torch.compiler.is_compiling() else _TILE
    # At most two elements for each byte: exact for four bits, near enough for the others.
    step = max(1, limit // max(1, 2 * blocks.shape[1]))
    for start in range(0, max(1, blocks.shape[0]), step):
        yield start, blocks[start : start + step]


def _dequantized(blocks: torch.Tensor, ggml_type: GGMLType, like: torch.Tensor) -> Iterator[tuple[int, torch.Tensor]]:
    """The numbers of one tile after another, in the same memory."""
    buffer: torch.Tensor | None = None
    for start, part in _tiles(blocks, like):
        if buffer is None:
            buffer = _buffer((part.shape[0], like.shape[-1]), like)
        yield start, numbers(part, ggml_type, like.dtype, out=buffer[: part.shape[0]])


class _Scratch(threading.local):
    """Memory of a tile for each thread that computes."""

    memory: torch.Tensor | None = None


_SCRATCH: Final = _Scratch()


def _buffer(shape: tuple[int, int], like: torch.Tensor) -> torch.Tensor:
    """Memory for a tile, on the device of `like` and of its dtype.

    On the CPU it is the same for every layer: tiles that come and go leave malloc with several times as much.
    """
    if like.device.type != "cpu":
        return like.new_empty(shape)
    nbytes = math.prod(shape) * like.element_size()
    memory = _SCRATCH.memory
    if memory is None or memory.numel() < nbytes:
        with torch.inference_mode(False):  # or it could not be used outside of it
            memory = _SCRATCH.memory = torch.empty(nbytes, dtype=torch.uint8)
    return memory[:nbytes].view(like.dtype).view(shape)
