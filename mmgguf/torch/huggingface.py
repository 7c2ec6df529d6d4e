"""Models of Hugging Face's transformers from one file."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from ..errors import FormatError, MetadataValueError, MissingExtraError, shown
from ..file import GGUFFile, Source, opened
from ..selection import Progress
from .configs import configuration
from .hyperparameters import factors, token
from .memory import numpy_dtype
from .models import fill
from .names import plan_for
from .origins import Plan

__all__ = ["check_numbers", "empty_model", "finish", "from_gguf"]


def from_gguf(
    source: Source,
    *,
    quantized: bool = True,
    dtype: torch.dtype | None = None,
    device: torch.device | str | int = "cpu",
    progress: Progress | None = None,
) -> Any:
    """A model of transformers, ready to generate, from one file: configuration, names and numbers.

    Parameters
    ----------
    source : path-like or GGUFFile
        The file: of the architecture llama (mistral and mixtral too), qwen2, qwen3, qwen3moe, gemma2, gemma3 or phi3.
    quantized : bool, default True
        Weights stay packed, in `QuantizedLinear`, `QuantizedEmbedding` and `QuantizedExperts`; on the CPU the mapped
        file is their memory.  False makes them numbers of `dtype`.
    dtype : torch.dtype, default torch.float32
        What the model computes in.
    device : torch.device or str, default "cpu"
        Where the model goes; ``"meta"`` gives its modules without any data.
    progress : callable, optional
        Called with (bytes done, bytes in all).

    Returns
    -------
    transformers.PreTrainedModel
        In evaluation mode, a `transformers.GenerationMixin`.

    Raises
    ------
    NotImplementedError
        An architecture that is not among these, or something in the file that transformers cannot have.
    RuntimeError
        Tensors that are missing, left over, or of another shape than the configuration says.
    GGUFError
        The file is not valid.
    ImportError
        transformers or gguf is not installed; a `MissingExtraError`.

    Notes
    -----
    Rows of queries and keys that llama.cpp permuted are put back, exactly, also where they stay packed: these tensors
    are copied.  Factors of rotary embeddings that the file holds as a tensor are applied.  Embeddings that serve as the
    output too stay one tensor.  Nothing in the file is executed.

    Examples
    --------
    >>> model = mmgguf.torch.from_gguf("SmolLM2-135M-Instruct.Q4_1.gguf")  # doctest: +SKIP
    >>> model.generate(ids, max_new_tokens=20)  # doctest: +SKIP
    """
    dtype = dtype or torch.float32
    numpy_dtype(dtype)
    # Read-only: what is copied is read through this mapping, and its pages are given back.
    with opened(source, mode="r") as f:
        model = empty_model(f, dtype)
        plan = plan_for(model, f, f)
        check_numbers(f, plan)
        fill(
            model,
            f,
            plan,
            assign=True,
            quantized=quantized,
            tie=True,
            dtype=dtype,
            device=device,
            progress=progress,
        )
        finish(model, f, torch.device(device))
    return model


def empty_model(f: GGUFFile, dtype: torch.dtype) -> Any:
    """The model that a file describes, on the device "meta"; see `from_gguf`."""
    try:
        import transformers
    except ModuleNotFoundError as error:
        if error.name != "transformers":
            raise
        raise MissingExtraError("transformers", "transformers") from None

    model_type, fields = configuration(f)
    with _refusals(f):
        config = transformers.AutoConfig.for_model(model_type, **fields, dtype=dtype)
        with torch.device("meta"):
            make: Any = transformers.AutoModelForCausalLM.from_config
            return make(config, dtype=dtype)


def finish(model: Any, f: GGUFFile, device: torch.device) -> None:
    """Make a model whose weights are filled ready to generate."""
    if device.type != "meta":
        with _refusals(f):
            _compute_buffers(model, device)
        _apply_rope_factors(model, f)
    _set_generation(model, f)
    model.eval()


def check_numbers(f: GGUFFile, plan: Plan) -> None:
    """Raise for integers in place of weights."""
    for origins in plan.values():
        for origin in origins:
            tensor = f[origin.name]
            if tensor.layout.is_plain and tensor.dtype.kind in "iu":
                raise FormatError(f"{f.path}: {shown(origin.name)} has integers, {tensor.dtype}, in place of weights")


@contextmanager
def _refusals(f: GGUFFile) -> Iterator[None]:
    """Say which file it was, where transformers has an error of any kind with the configuration."""
    try:
        yield
    except NotImplementedError:
        raise
    except Exception as error:
        message = " ".join(str(error).split())
        raise MetadataValueError(f"{f.path}: transformers refuses the configuration: {shown(message)}") from error


def _compute_buffers(model: nn.Module, device: torch.device) -> None:
    """Give memory to buffers that are computed, not stored: those of rotary embeddings and of scaled embeddings."""
    for path, module in list(model.named_modules()):
        missing = [name for name, buffer in module.named_buffers(recurse=False) if buffer.is_meta]
        if not missing:
            continue
        if "RotaryEmbedding" in type(module).__name__:
            model.set_submodule(path, type(module)(module.config).to(device))
        elif missing == ["embed_scale"]:
            module.embed_scale = torch.tensor(module.scalar_embed_scale, device=device)
        else:
            raise NotImplementedError(f"{path}.{missing[0]}: an unknown buffer, which no file contains")


def _apply_rope_factors(model: nn.Module, f: GGUFFile) -> None:
    """Divide frequencies by the factors that a file brings: how llama 3.1's scaling is stored."""
    if "rope_freqs.weight" not in f:
        return
    for module in model.modules():
        frequencies = getattr(module, "inv_freq", None)
        if not isinstance(frequencies, torch.Tensor):
            continue
        divisors = torch.from_numpy(factors(f, "rope_freqs.weight", frequencies.numel())).to(frequencies.device)
        for name in ("inv_freq", "original_inv_freq"):
            if hasattr(module, name):
                setattr(module, name, getattr(module, name) / divisors)


def _set_generation(model: Any, f: GGUFFile) -> None:
    """Add the file's end-of-turn tokens to those at which generation stops."""
    ends = [token(f, f"tokenizer.ggml.{kind}_token_id") for kind in ("eos", "eot")]
    known = list(dict.fromkeys(end for end in ends if end is not None))
    if len(known) > 1:
        model.generation_config.eos_token_id = known
