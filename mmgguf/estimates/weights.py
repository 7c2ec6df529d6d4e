"""The bytes of a model's tensors: in all, by layer, and those of experts apart."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import compress
from typing import Final, cast

from ..format.header import Header, TensorInfos
from ..types import layout_of

__all__ = ["Weights"]

#: What looks rows up, and stays in the host's memory (``LLM_TENSOR_LAYER_INPUT`` in ``src/llama-arch.cpp``).
_INPUTS: Final = frozenset({"token_embd", "token_embd_norm", "position_embd", "token_types", "per_layer_token_embd"})
#: The tensors that llama.cpp's ``--cpu-moe`` leaves in the host's memory (``LLM_FFN_EXPS_REGEX`` in ``common.h``).
_EXPERTS: Final = tuple(f"ffn_{part}_{of}exps" for part in ("up", "down", "gate", "gate_up") for of in ("", "ch"))
#: How the tensors of layers begin: of most models, and of the two halves of an encoder-decoder.
_LAYERS: Final = ("blk.", "enc.blk.", "dec.blk.")
#: What no tensor of a layer begins with.
_NO_LAYER: Final = "\0"
_TOKEN_EMBEDDING: Final = "token_embd.weight"


@dataclass(frozen=True, slots=True)
class Weights:
    """Bytes of the tensors of all shards.

    Attributes
    ----------
    span : int
        What llama.cpp maps: of each file from the first tensor to the end of the last, padding between them included.
    layers : tuple of int
        The tensors ``blk.N.*``.
    experts : tuple of int
        Of these, those of experts among which a router chooses.
    input : int
        Embeddings, of which rows are looked up.
    output : int
        All others: what makes logits, norms, projectors.
    tied : int
        The embeddings again, where they make the logits too: a device that has the output needs a copy of its own.
    rows : int or None
        Tokens that have an embedding.
    """

    span: int
    layers: tuple[int, ...]
    experts: tuple[int, ...]
    input: int
    output: int
    tied: int
    rows: int | None

    @classmethod
    def of(cls, headers: Sequence[Header], layers: int, trunk: int | None = None) -> Weights:
        """Those of a model of so many layers; tensors of further ones count as output.

        Layers from `trunk` on are not loaded, and count nothing.

        Raises
        ------
        UnknownTypeError
            A tensor of a ggml type whose size is not known.
        """
        span = inputs = outputs = 0
        # Numbers as they are written: "007" is the name of no layer.
        numbers = {str(layer): layer for layer in range(layers)}
        loaded = layers if trunk is None else trunk
        by_layer, experts = [0] * layers, [0] * layers
        embeddings, rows, has_output = 0, None, False
        for header in headers:
            names, sizes, offsets = _extents(header)
            if None in sizes:
                raise header.tensors[names[sizes.index(None)]].unknown_type()
            nbytes_of = cast(list[int], sizes)
            not_loaded: set[str] = set()
            # The tensors of a layer mostly follow each other.
            prefix, layer = _NO_LAYER, None
            for name, nbytes in zip(names, nbytes_of, strict=True):
                if not name.startswith(prefix):
                    prefix, layer = _layer_of(name, numbers)
                if layer is not None:
                    if layer >= loaded:
                        not_loaded.add(name)
                        continue
                    by_layer[layer] += nbytes
                    if "exps" in name and name[len(prefix) :].partition(".")[0] in _EXPERTS:
                        experts[layer] += nbytes
                elif name.partition(".")[0] in _INPUTS:
                    inputs += nbytes
                    if name == _TOKEN_EMBEDDING:
                        embeddings = nbytes
                        ne = header.tensors[name].ne
                        rows = ne[1] if len(ne) > 1 else None
                else:
                    outputs += nbytes
                    has_output = has_output or name == "output.weight"
            ends = list(map(operator.add, offsets, nbytes_of))
            if not_loaded:
                is_loaded = [name not in not_loaded for name in names]
                offsets, ends = list(compress(offsets, is_loaded)), list(compress(ends, is_loaded))
            span += max(ends, default=0) - min(offsets, default=0)
        tied = 0 if has_output else embeddings
        return cls(span, tuple(by_layer), tuple(experts), inputs, outputs, tied, rows)

    @property
    def total(self) -> int:
        """Bytes of all tensors, without padding."""
        return sum(self.layers) + self.input + self.output


def _layer_of(name: str, numbers: Mapping[str, int]) -> tuple[str, int | None]:
    """What the names of a tensor's layer begin with, and its number; None for a tensor of no layer."""
    if name.startswith(_LAYERS):
        _, number, *role = name[name.index("blk.") :].split(".", 2)
        layer = numbers.get(number) if role else None
        if layer is not None:
            return (name[: -len(role[0])] if role[0] else name), layer
    return _NO_LAYER, None


def _extents(header: Header) -> tuple[list[str], list[int | None], list[int]]:
    """Names, bytes and offsets of the tensors; None for the bytes of an unknown ggml type."""
    if isinstance(header.tensors, TensorInfos):
        return header.tensors.extents()
    infos = header.tensors.values()
    sizes = [info.nbytes if layout_of(info.type) else None for info in infos]
    return list(header.tensors), sizes, [info.offset for info in infos]
