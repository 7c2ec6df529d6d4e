"""The names that transformers gives to what a file holds, and how llama.cpp's converter changed the numbers.

The names come from the tables of the package gguf, which that converter uses, read the other way round: for each key of
a module they say which tensor of the file it became.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from torch import nn

from ..errors import FormatError, MissingExtraError
from ..file import GGUFFile
from .configs import Architecture, architecture_of
from .hyperparameters import block_count
from .origins import Origin, Plan

__all__ = ["NOT_PARAMETERS", "plan_for", "unpermuted"]

#: Tensors of a file that are no parameters: what they say goes elsewhere.
NOT_PARAMETERS: Final = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
_EXPERTS: Final = (("gate_up_proj", ("gate_proj", "up_proj")), ("down_proj", ("down_proj",)))


def plan_for(module: nn.Module, f: GGUFFile, names: Iterable[str]) -> Plan:
    """Where the parameters of a module with transformers' names are in a file; of the tensors that `names` has.

    Raises
    ------
    NotImplementedError
        The file's architecture is not one of those that are known here.
    """
    architecture = architecture_of(f)
    table = _name_table(f)
    left = dict.fromkeys(name for name in names if name not in NOT_PARAMETERS)
    plan: Plan = {}
    for key, target in module.state_dict().items():
        found = [name for name in _names(key, table) if name in left]
        if not found:
            continue
        for name in found:
            left[name] = None
        plan[key] = tuple(_origin(f, architecture, name, tuple(target.shape)) for name in found)
    # What nothing asked for is reported as unexpected, by the name that it has.
    used = {origin.name for origins in plan.values() for origin in origins}
    plan.update({name: (Origin(name),) for name in left if name not in used})
    return plan


def _name_table(f: GGUFFile) -> Any:
    try:
        import gguf
    except ModuleNotFoundError as error:
        if error.name != "gguf":
            raise
        raise MissingExtraError("gguf", "transformers") from None
    kinds = {name: kind for kind, name in gguf.MODEL_ARCH_NAMES.items()}
    return gguf.get_tensor_name_map(kinds[f.architecture], block_count(f))


def _names(key: str, table: Any) -> list[str]:
    """The tensors that a key of a module became: one, two for experts whose gates and inputs are joined, or none."""
    path, _, last = key.rpartition(".")
    parts = dict(_EXPERTS).get(last, ()) if path.endswith(".experts") else ()
    for prefix in ("", "model."):  # the second for a model without its head
        if parts:
            names = [table.get_name(f"{prefix}{path}.{part}") for part in parts]
        else:
            names = [table.get_name(prefix + key, try_suffixes=(".weight", ".bias"))]
        if None not in names:
            # Parameters of experts have no suffix in the module, but in the file.
            return [name if name.endswith((".weight", ".bias")) else f"{name}.weight" for name in names]
    return []


def _origin(f: GGUFFile, architecture: Architecture, name: str, shape: tuple[int, ...]) -> Origin:
    rows = None
    if architecture.permuted and ".attn_q." in name:
        rows = unpermuted(f[name].shape[0], f.config.get_int("attention.head_count"), name)
    elif architecture.permuted and ".attn_k." in name:
        heads = f.config.get_int("attention.head_count_kv", f.config.get_int("attention.head_count"))
        rows = unpermuted(f[name].shape[0], heads, name)
    plus = -architecture.norm_offset if name.endswith("norm.weight") else 0.0
    return Origin(name, rows, plus)


def unpermuted(count: int, heads: int, name: str) -> npt.NDArray[np.intp]:
    """The rows of a query or key weight in the order that transformers has.

    llama.cpp's converter puts row i of the first half of each head beside row i of the second half, since its rotary
    embedding turns neighbours.
    """
    if heads < 1 or count % (2 * heads):
        raise FormatError(f"{name}: {count} rows are not a whole number of pairs for each of {heads} heads")
    return np.arange(count).reshape(heads, count // heads // 2, 2).swapaxes(1, 2).reshape(-1)
