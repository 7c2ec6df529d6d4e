"""Tensor parallel models of transformers from one file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor.parallel import ColwiseParallel, ParallelStyle, RowwiseParallel, parallelize_module
from torch.distributed.tensor.placement_types import Replicate, Shard

from ...file import GGUFFile, Source
from ...selection import Progress
from ..huggingface import check_numbers, empty_model, finish
from ..memory import numpy_dtype
from ..names import plan_for
from .loading import Options, device_of, load, mesh_for
from .parts import Placements, placements_of

__all__ = ["from_gguf"]

#: What is cut by rows and by columns, as Megatron does, in transformers' names.
_BY_ROWS: Final = re.compile(r"\b(q|k|v|qkv|gate|up|gate_up)_proj$|\b(embed_tokens|lm_head)$")
_BY_COLUMNS: Final = re.compile(r"\b(o|down)_proj$")


def from_gguf(
    source: Source | None,
    mesh: DeviceMesh | None = None,
    placements: Mapping[str, Placements | None] | None = None,
    *,
    quantized: bool = True,
    dtype: torch.dtype | None = None,
    progress: Progress | None = None,
    from_rank0: bool = False,
    exchange: bool | None = None,
    ignore_times: bool = False,
    timeout: float = 120.0,
) -> Any:
    """A tensor parallel model of transformers, ready to generate: each rank has its part of each large weight.

    All ranks call it alike, and call the model alike: it takes and gives the same plain tensors on all of them.

    Parameters
    ----------
    source : path-like, URL or GGUFFile
        As of `mmgguf.torch.from_gguf`; with `from_rank0` only the first rank opens it.
    mesh : DeviceMesh, optional
        Of one dimension, such as ``mesh2d["tp"]``; by default all ranks.
    placements : mapping, optional
        By name or pattern of the model's parameters.  By default projections into heads and into the inner layer,
        embeddings and the output are cut by rows, the projections back by columns.
    quantized : bool, default True
        Weights stay packed.  False makes them numbers of `dtype`.
    dtype : torch.dtype, default torch.float32
        What the model computes in.
    progress, from_rank0, exchange, ignore_times, timeout
        As of `load_sharded`.

    Returns
    -------
    transformers.PreTrainedModel
        In evaluation mode, a `transformers.GenerationMixin`.

    Raises
    ------
    ValueError
        A weight that cannot be cut between blocks into so many parts; `placements` can say otherwise.
    NotImplementedError, RuntimeError, GGUFError, ImportError
        As `mmgguf.torch.from_gguf`, and `load_sharded`.

    Notes
    -----
    Between a projection and the one that undoes it, activations stay cut: in the inner layer always, in attention if
    the heads, and those of keys and values, can be dealt out evenly.  Otherwise the heads are gathered, and every rank
    computes attention for all of them.  Experts of mixtures are not cut.

    Examples
    --------
    >>> model = from_gguf("SmolLM2-135M-Instruct.Q4_1.gguf")  # under torchrun  # doctest: +SKIP
    >>> model.generate(ids, max_new_tokens=20)  # on all ranks  # doctest: +SKIP
    """
    mesh = mesh_for(None, mesh)
    if mesh.ndim != 1:
        raise ValueError(f"mesh must have one dimension, such as mesh['tp'], got {mesh}")
    device, dtype = device_of(mesh), dtype or torch.float32
    numpy_dtype(dtype)
    model: Any = None
    plan: Any = None

    def make(f: GGUFFile) -> Any:
        nonlocal model, plan
        model = empty_model(f, dtype)
        check_numbers(f, plan_for(model, f, f))
        plan = _placements(model) if placements is None else placements
        # Before weights are made, since torch then makes no parameters of those that are packed.
        parallelize_module(model, mesh, _staying_cut(model, plan, mesh.size()))
        return model

    options = Options("hf", None, dtype, True, quantized, from_rank0, exchange, ignore_times, timeout)
    load(make, source, mesh, lambda _: plan, options, progress, lambda f: finish(model, f, device))
    if not quantized:
        parallelize_module(model, mesh, _gathering(model, plan, mesh.size()))
    return model


def _placements(model: nn.Module) -> dict[str, Placements]:
    found: dict[str, Placements] = {}
    for path, module in model.named_modules():
        if not isinstance(module, nn.Linear | nn.Embedding):
            continue
        if _BY_ROWS.search(path):
            found[f"{path}.weight"] = Shard(0)
            if getattr(module, "bias", None) is not None:
                found[f"{path}.bias"] = Shard(0)
        elif _BY_COLUMNS.search(path):
            found[f"{path}.weight"] = Shard(1)
    return found


def _staying_cut(model: Any, plan: Any, count: int) -> dict[str, ParallelStyle]:
    """Projections between which activations stay cut."""
    config = model.config
    heads = [config.num_attention_heads, getattr(config, "num_key_value_heads", None) or config.num_attention_heads]
    styles: dict[str, ParallelStyle] = {}
    for path, module in model.named_modules():
        for *into, back in (("q_proj", "k_proj", "v_proj", "o_proj"), ("gate_proj", "up_proj", "down_proj")):
            axes = [_axis(getattr(module, name, None), plan, f"{path}.{name}") for name in (*into, back)]
            if axes == [0] * len(into) + [1] and not (back == "o_proj" and any(n % count for n in heads)):
                styles |= {f"{path}.{name}": ColwiseParallel() for name in into}
                styles[f"{path}.{back}"] = RowwiseParallel()
    return styles


def _gathering(model: Any, plan: Any, count: int) -> dict[str, ParallelStyle]:
    """All other layers that are cut: they take and give whole activations, as packed ones do by themselves."""
    done = _staying_cut(model, plan, count)
    styles: dict[str, ParallelStyle] = {}
    for path, module in model.named_modules():
        axis = _axis(module, plan, path)
        if axis is None or path in done:
            continue
        if (axis == 0) is isinstance(module, nn.Linear):
            styles[path] = ColwiseParallel(output_layouts=Replicate())
        else:
            styles[path] = RowwiseParallel(input_layouts=Replicate())
    return styles


def _axis(module: Any, plan: Any, path: str) -> int | None:
    """The axis along which a plan cuts a layer's weight."""
    if not isinstance(module, nn.Linear | nn.Embedding):
        return None
    return getattr(placements_of(plan, f"{path}.weight"), "dim", None)
