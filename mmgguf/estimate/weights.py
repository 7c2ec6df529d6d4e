"""The bytes of a model's tensors: in all, by layer, and those of experts apart."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from ..format.header import Header, TensorInfos
from ..types import LAYOUTS

__all__ = ["Weights"]

#: What looks rows up, and stays in the host's memory (``LLM_TENSOR_LAYER_INPUT`` in ``src/llama-arch.cpp``).
_INPUTS: Final = frozenset({"token_embd", "token_embd_norm", "position_embd", "token_types", "per_layer_token_embd"})
#: The tensors that llama.cpp's ``--cpu-moe`` leaves in the host's memory (``LLM_FFN_EXPS_REGEX`` in ``common.h``).
_EXPERTS: Final = tuple(f"ffn_{part}_{of}exps" for part in ("up", "down", "gate", "gate_up") for of in ("", "ch"))
#: By ggml type: elements and bytes of a block.
_BLOCKS: Final[dict[int, tuple[int, int]]] = {
    type_: (layout.block_size, layout.type_size) for type_, layout in LAYOUTS.items()
}
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
        blocks, prod = _BLOCKS, math.prod  # local: a model may have thousands of tensors, and a millisecond is long
        for header in headers:
            first, last = None, 0
            # The tensors of a layer mostly follow each other.
            prefix, layer = _NO_LAYER, None
            for name, ne, type_, offset in _rows(header):
                if type_ not in blocks:
                    raise header.tensors[name].unknown_type()
                elements, size = blocks[type_]
                nbytes = prod(ne) // elements * size
                if not name.startswith(prefix):
                    prefix, layer = _NO_LAYER, None
                    if name.startswith(_LAYERS):
                        _, number, *role = name[name.index("blk.") :].split(".", 2)
                        layer = numbers.get(number) if role else None
                        if layer is not None:
                            prefix = name[: -len(role[0])] if role[0] else name
                if layer is not None:
                    if layer >= loaded:
                        continue
                    by_layer[layer] += nbytes
                    if "exps" in name and name[len(prefix) :].partition(".")[0] in _EXPERTS:
                        experts[layer] += nbytes
                elif name.partition(".")[0] in _INPUTS:
                    inputs += nbytes
                    if name == _TOKEN_EMBEDDING:
                        embeddings = nbytes
                        rows = ne[1] if len(ne) > 1 else None
                else:
                    outputs += nbytes
                    has_output = has_output or name == "output.weight"
                if first is None or offset < first:
                    first = offset
                if (end := offset + nbytes) > last:
                    last = end
            span += last - (first or 0)
        tied = 0 if has_output else embeddings
        return cls(span, tuple(by_layer), tuple(experts), inputs, outputs, tied, rows)

    @property
    def total(self) -> int:
        """Bytes of all tensors, without padding."""
        return sum(self.layers) + self.input + self.output


def _rows(header: Header) -> Iterable[tuple[str, Sequence[int], int, int]]:
    """Name, `ne`, ggml type and offset of each tensor."""
    if isinstance(header.tensors, TensorInfos):
        return header.tensors.rows()
    return ((name, info.ne, info.type, info.offset) for name, info in header.tensors.items())
