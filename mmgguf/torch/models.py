"""Fill modules from a file: in place, with the file's own memory, or with packed weights."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Mapping
from typing import Any, Final, Literal

import torch
from torch import nn

from ..conversion import result_dtype
from ..errors import shown
from ..file import GGUFFile, Source, opened
from ..selection import Names, Progress, select, walk
from ..tensor import Tensor
from ..types import GGMLType
from .configs import PERMUTED
from .files import Tensors
from .layers import QuantizedEmbedding, QuantizedExperts, QuantizedLinear
from .memory import NUMPY_DTYPES, numpy_dtype, share
from .names import plan_for
from .origins import Origin, Plan, numbers_of, packed_bytes, shape_of
from .packed import PackedTensor

__all__ = ["Rename", "load_model"]

#: The names that transformers gives to the weights of q and k.
_HUGGING_FACE_QK: Final = re.compile(r"\b[qk]_proj\b")

Rename = Mapping[str, str] | Callable[[str], str | None] | Literal["hf"] | None


def load_model(
    module: nn.Module,
    source: Source,
    *,
    rename: Rename = None,
    names: Names = None,
    dtype: torch.dtype | None = None,
    progress: Progress | None = None,
    strict: bool = True,
    assign: bool = False,
    quantized: bool = False,
) -> Any:
    """Fill a module's parameters and buffers, without a second copy of the weights in between.

    Parameters
    ----------
    module : torch.nn.Module
        What to fill, on any device.
    source : path-like or GGUFFile
        The file.
    rename : mapping, callable or "hf", optional
        From names in the file to names in the module: a mapping (names that it lacks stay what they are), or a
        function, which may return None for a tensor that is to be left out.  ``"hf"`` stands for the names of Hugging
        Face's transformers, by the tables of the package gguf, and for what llama.cpp does to numbers on their way into
        a file: rows of queries and keys are put back in their order, and gemma's norms are without their one again.
    names : str or iterable of str, optional
        Only these tensors of the file: names, or patterns with ``*``, ``?`` or ``[``.
    dtype : torch.dtype, optional
        Of the tensors that are assigned, and of what packed embeddings give; otherwise the module's own dtypes decide.
    progress : callable, optional
        Called with (bytes done, bytes in all).
    strict : bool, default True
        Whether missing and unexpected names are an error.  Shapes that differ always are.
    assign : bool, default False
        Put the file's tensors in the place of the module's, as `torch.nn.Module.load_state_dict` does: the way to
        fill a module that was made on the device ``"meta"``, and to share memory with the file.
    quantized : bool, default False
        Replace every `torch.nn.Linear` and `torch.nn.Embedding` (and the experts of transformers' mixtures) whose
        weight the file holds as blocks by a `QuantizedLinear` or `QuantizedEmbedding`, which keeps the blocks: on the
        CPU they are the mapped file.  What else is on the device ``"meta"`` is assigned.

    Returns
    -------
    NamedTuple
        With the lists ``missing_keys`` and ``unexpected_keys``, as `torch.nn.Module.load_state_dict` returns.

    Raises
    ------
    RuntimeError
        What does not fit, in the words of `load_state_dict`; nothing was written then.
    GGUFError
        The file is not valid, a name is missing, a ggml type is unknown.
    NotImplementedError
        ``rename="hf"`` for an architecture that it does not cover.

    Warns
    -----
    UserWarning
        The file's architecture is one whose queries and keys llama.cpp permutes, the module's names are those of
        transformers, and `rename` is not ``"hf"``: the results would be wrong.

    Notes
    -----
    A name that is missing in the file, but shares its memory with one that is there (tied embeddings), is not
    missing unless `assign` is set without `quantized`.

    Examples
    --------
    >>> with torch.device("meta"):
    ...     module = torch.nn.Embedding(8, 256)
    >>> load_model(module, "model.gguf", names="token_embd.*", rename={"token_embd.weight": "weight"}, assign=True)
    <All keys matched successfully>
    """
    if dtype is not None and not (assign or quantized):
        raise ValueError("dtype needs assign=True or quantized=True: in place, the module's own dtypes decide")
    with opened(source, mode="r" if quantized else "c") as f:
        plan = plan_of(module, f, rename, names)
        return fill(module, f, plan, strict=strict, assign=assign, quantized=quantized, dtype=dtype, progress=progress)


def plan_of(module: nn.Module, f: GGUFFile, rename: Rename, names: Names, *, stacklevel: int = 4) -> Plan:
    """What fills which key of a module, by its `rename`; see `load_model`."""
    if rename == "hf":
        return plan_for(module, f, select(f, names))
    plan = _renamed(f, rename, names)
    _warn_of_permuted_rows(f, plan, stacklevel)
    return plan


def _renamed(f: GGUFFile, rename: Any, names: Names) -> Plan:
    plan: Plan = {}
    for name in select(f, names):
        new = _rename(rename, name)
        if new is None:
            continue
        if new in plan:
            raise ValueError(f"rename: {plan[new][0].name!r} and {name!r} both become {new!r}")
        plan[new] = (Origin(name),)
    return plan


def _rename(rename: Mapping[str, str] | Callable[[str], str | None] | None, name: str) -> str | None:
    if rename is None:
        return name
    return rename.get(name, name) if isinstance(rename, Mapping) else rename(name)


def _warn_of_permuted_rows(f: GGUFFile, plan: Plan, stacklevel: int) -> None:
    key = next((key for key in plan if _HUGGING_FACE_QK.search(key)), None)
    architecture = f.metadata.get("general.architecture")
    if key is not None and isinstance(architecture, str) and architecture in PERMUTED:
        warnings.warn(
            f"{f.path}: {shown(plan[key][0].name)} fills {shown(key)}, but for the architecture {architecture} the "
            "rows of q and k are in llama.cpp's order in the file: a model of transformers computes wrong results with "
            'them (rename="hf" puts them back)',
            stacklevel=stacklevel,
        )


def fill(
    module: nn.Module,
    f: GGUFFile,
    plan: Plan,
    *,
    strict: bool = True,
    assign: bool = False,
    quantized: bool = False,
    tie: bool = False,
    dtype: torch.dtype | None = None,
    device: torch.device | str | int = "cpu",
    progress: Progress | None = None,
) -> Any:
    """Fill a module as a plan says; see `load_model`.

    What is assigned or packed goes to `device`.  With `tie`, parameters that were one stay one where they are assigned.
    """
    targets = module.state_dict()
    ties = ties_of(module) if quantized or tie else {}
    shapes = {key: shape_of(f, origins) for key, origins in plan.items()}
    result = check_state(module, targets, shapes, ties, strict, assign or quantized)
    wanted = {key: origins for key, origins in plan.items() if key in targets}
    filler = _Filler(module, f, wanted, ties, Tensors(f, dtype=dtype, device=device), dtype, assign, quantized)
    keys = {origin.name: key for key, origins in wanted.items() for origin in origins}
    with torch.no_grad():
        for tensor in walk(f, keys, progress):
            filler.fill(keys[tensor.name], targets)
    filler.finish()
    return result


class _Filler:
    """Fills one key of a module after another, in whatever order the file has."""

    def __init__(
        self,
        module: nn.Module,
        f: GGUFFile,
        plan: Plan,
        ties: dict[str, list[str]],
        tensors: Tensors,
        dtype: torch.dtype | None,
        assign: bool,
        quantized: bool,
    ) -> None:
        self._module, self._file, self._plan, self._ties = module, f, plan, ties
        self._tensors, self._dtype, self._assign, self._quantized = tensors, dtype, assign, quantized
        #: What the keys that get packed weights belong to.
        self._packable = packable(module, f, plan) if quantized else {}
        self._state: dict[str, torch.Tensor] = {}
        self._done: set[str] = set()

    def fill(self, key: str, targets: dict[str, torch.Tensor]) -> None:
        if key in self._done:
            return
        self._done.add(key)
        target, origins = targets[key], self._plan[key]
        if key in self._packable:
            self._pack(key, self._packable[key])
        elif self._assign or (self._quantized and target.is_meta):
            self._state[key] = self._new(origins)
        elif len(origins) == 1 and origins[0].is_plain:
            _fill_parameter(target, self._file[origins[0].name], self._tensors)
        else:
            numbers = numbers_of(self._file, origins, NUMPY_DTYPES.get(target.dtype))
            target.copy_(share(numbers, numbers.dtype))

    def finish(self) -> None:
        self._tensors._finish()
        if not self._state:
            return
        self._module.load_state_dict(self._state, strict=False, assign=True)
        for key in self._state:
            for other in self._ties.get(key, ()):
                owner, name = owner_of(self._module, other)
                setattr(owner, name, self._module.get_parameter(key))

    def _new(self, origins: tuple[Origin, ...]) -> torch.Tensor:
        if len(origins) == 1 and origins[0].is_plain:
            return self._tensors._load(self._file[origins[0].name])
        numbers = numbers_of(self._file, origins, None if self._dtype is None else numpy_dtype(self._dtype))
        return share(numbers, numbers.dtype).to(self._tensors.device)

    def _pack(self, key: str, path: str) -> None:
        old = self._module.get_submodule(path)
        if hasattr(old, "gate_up_proj"):
            keys = [f"{path}.gate_up_proj", f"{path}.down_proj"]
            self._done.update(keys)
            gate, up, down = (self._packed(origin) for key in keys for origin in self._plan[key])
            self._module.set_submodule(path, QuantizedExperts(gate, up, down, old.act_fn))
            return
        packed = self._packed(self._plan[key][0])
        for place in (key, *self._ties.get(key, ())):
            owner_path = place.rpartition(".")[0]
            owner = self._module.get_submodule(owner_path)
            self._module.set_submodule(owner_path, layer_for(owner, packed, self._dtype or owner.weight.dtype))

    def _packed(self, origin: Origin) -> PackedTensor:
        tensor = self._file[origin.name]
        if origin.rows is None:
            packed: PackedTensor = self._tensors._raw(tensor)
            return packed
        blocks = torch.from_numpy(packed_bytes(tensor, origin.rows)).to(self._tensors.device)
        # They were read once and copied: no need to keep their pages as well.
        tensor.storage.release(tensor.file_offset, tensor.nbytes)
        return PackedTensor.wrap(blocks, GGMLType(tensor.type))


def packable(module: nn.Module, f: GGUFFile, plan: Plan) -> dict[str, str]:
    """The keys whose weights can stay packed, and the paths of the modules that are to be replaced for it."""

    def in_blocks(key: str) -> bool:
        return key in plan and all(not f[o.name].layout.is_plain and not o.plus and not o.shape for o in plan[key])

    found: dict[str, str] = {}
    for path, child in module.named_modules():
        weight = f"{path}.weight"
        if not path:
            continue  # it cannot be replaced in itself
        if type(child) in (nn.Linear, nn.Embedding) or _scale(child) is not None:
            if in_blocks(weight) and len(plan[weight]) == 1:
                found[weight] = path
        elif hasattr(child, "gate_up_proj") and hasattr(child, "down_proj") and hasattr(child, "act_fn"):
            keys = [f"{path}.gate_up_proj", f"{path}.down_proj"]
            if all(in_blocks(key) for key in keys) and [len(plan[key]) for key in keys] == [2, 1]:
                found.update(dict.fromkeys(keys, path))
    return found


def layer_for(old: nn.Module, packed: PackedTensor, dtype: torch.dtype) -> nn.Module:
    if isinstance(old, nn.Embedding):
        layer: nn.Module = QuantizedEmbedding(packed, dtype=dtype, scale=_scale(old), padding_idx=old.padding_idx)
    else:
        layer = QuantizedLinear(packed, old.bias)
    return layer.train(old.training)


def _scale(module: nn.Module) -> float | None:
    """What an embedding of transformers multiplies its rows by."""
    return getattr(module, "scalar_embed_scale", None) if isinstance(module, nn.Embedding) else None


def owner_of(module: nn.Module, key: str) -> tuple[nn.Module, str]:
    path, _, name = key.rpartition(".")
    return module.get_submodule(path), name


def ties_of(module: nn.Module) -> dict[str, list[str]]:
    """For each key the other keys of the same parameter."""
    keys: dict[int, list[str]] = {}
    for key, parameter in module.named_parameters(remove_duplicate=False):
        keys.setdefault(id(parameter), []).append(key)
    return {key: [other for other in group if other != key] for group in keys.values() for key in group}


def check_state(
    module: nn.Module,
    targets: dict[str, Any],
    shapes: dict[str, tuple[int, ...]],
    ties: dict[str, list[str]],
    strict: bool,
    assign: bool,
) -> Any:
    """Check names and shapes against a module's, and report differences as torch does."""
    on_meta = [key for key in shapes if key in targets and targets[key].is_meta]
    if on_meta and not assign:
        raise ValueError(f"{on_meta[0]} is on the device 'meta', which has no memory to fill: pass assign=True")
    filled = {_memory(targets[key]) for key in shapes if key in targets} if not assign else set()
    filled_keys = {other for key in shapes for other in ties.get(key, ())}
    missing = [
        key
        for key, value in targets.items()
        if key not in shapes and key not in filled_keys and (assign or _memory(value) not in filled)
    ]
    unexpected = [key for key in shapes if key not in targets]
    problems = [
        "{} key(s) in state_dict: {}. ".format(what, ", ".join(f'"{key}"' for key in keys))
        for what, keys in (("Missing", missing), ("Unexpected", unexpected))
        if strict and keys
    ]
    problems += [
        f"size mismatch for {key}: copying a param with shape {torch.Size(shape)} from checkpoint, "
        f"the shape in current model is {targets[key].shape}."
        for key, shape in shapes.items()
        if key in targets and tuple(targets[key].shape) != tuple(shape)
    ]
    if problems:
        raise RuntimeError(
            "Error(s) in loading state_dict for {}:\n\t{}".format(type(module).__name__, "\n\t".join(problems))
        )
    # The class of the result is private to torch: have it make one.
    nothing = nn.Module().load_state_dict({})
    return nothing._replace(missing_keys=missing, unexpected_keys=unexpected)


def _memory(tensor: Any) -> Any:
    """What two entries of a state dict have in common if they are the same memory."""
    if not isinstance(tensor, torch.Tensor):  # a module's extra state
        return id(tensor)
    return tensor.device, tensor.data_ptr() or id(tensor), tensor.shape, tensor.stride()


def _fill_parameter(target: torch.Tensor, tensor: Tensor, tensors: Tensors) -> None:
    dtype = NUMPY_DTYPES.get(target.dtype)
    if dtype is not None and dtype == result_dtype(tensor, dtype) and target.is_contiguous():
        tensors._fill(target, tensor)
    else:
        target.copy_(tensors._load(tensor))
