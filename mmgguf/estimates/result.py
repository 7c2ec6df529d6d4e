"""`Estimate`: the memory that a model needs, and which device holds what."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final

from ..errors import human_size, shown
from .architectures import Architecture
from .cache import CELL_STEP, Cells, Options, keys_and_values, states
from .compute import compute_buffer
from .hyperparameters import Hyperparameters, Kind
from .placement import Part, Placement, place
from .weights import Weights

__all__ = ["Estimate", "Layer", "Model"]

_FLOAT32: Final = 4


@dataclass(frozen=True, slots=True)
class Layer:
    """One block of a model; sizes in bytes.

    Attributes
    ----------
    index : int
        From 0.
    kind : {"full", "sliding", "recurrent", "both", "none", "unknown"}
        What it keeps: keys and values of all tokens, or of a window; a state of constant size; both cache and state; or
        nothing, as an encoder's layer, a feed-forward one, or one that uses the cache of another.
    weights : int
        Its tensors.
    experts : int
        Of these, those of experts.
    kv_cache, recurrent_state : int or None
        What it keeps; None where that is not known.
    """

    index: int
    kind: Kind
    weights: int
    experts: int
    kv_cache: int | None
    recurrent_state: int | None


@dataclass(frozen=True, slots=True)
class Model:
    """What a file says that estimates of it need, whatever the context.

    Attributes
    ----------
    path : str
        Where it is.
    architecture : str
        ``general.architecture``.
    row : Architecture or None
        What is known of it.
    hyperparameters : Hyperparameters or None
        Of a known architecture.
    widths : tuple of int or None
        Numbers per token that computing takes, see `compute`.
    weights : Weights
        Its tensors.
    added : int
        Bytes of the tensors of files that are loaded beside it.
    vocabulary : int or None
        Tokens.
    weights_only : bool
        A projector, an adapter: keeps nothing on its own.
    trained_context : int or None
        Tokens that the model was trained on.
    """

    path: str
    architecture: str
    row: Architecture | None
    hyperparameters: Hyperparameters | None
    widths: tuple[int, ...] | None
    weights: Weights
    added: int
    vocabulary: int | None
    weights_only: bool
    trained_context: int | None


@dataclass(frozen=True, repr=False)
class Estimate:
    """The memory that a model needs to run in llama.cpp; sizes in bytes, None where not known.

    Made by `mmgguf.estimate`.

    Attributes
    ----------
    model : Model
        What the file says.
    options : Options
        How it is run.
    weights : int
        All tensors as they are mapped, and those of `added` files.
    experts : int
        Of these, those of experts: what ``--override-tensor exps=CPU`` or ``--cpu-moe`` leaves in the host's memory.
    kv_cache : int or None
        Keys and values.
    recurrent_state : int or None
        States of recurrent layers.
    output : int or None
        Logits of one token of each sequence.
    compute : int or None
        Buffers for one batch: an estimate, see `exact`.
    cells : int or None
        Tokens that a full layer holds, for each sequence or for all: the context, rounded up.
    exact : frozenset of str
        Which of these are exact.
    warnings : tuple of str
        What speaks against running it so; sentences.
    """

    model: Model
    options: Options
    weights: int = field(init=False)
    kv_cache: int | None = field(init=False)
    recurrent_state: int | None = field(init=False)
    output: int | None = field(init=False)
    compute: int | None = field(init=False)
    cells: int | None = field(init=False)
    warnings: tuple[str, ...] = field(init=False)
    _kept: tuple[list[int], list[int]] | None = field(init=False, repr=False)

    def __post_init__(self) -> None:
        model, options = self.model, self.options
        values: dict[str, Any] = {
            "weights": model.weights.span + model.added,
            "kv_cache": None,
            "recurrent_state": None,
            "output": None,
            "compute": None,
            "cells": None,
            "warnings": self._warned(),
            "_kept": None,
        }
        if model.weights_only:
            values |= {"kv_cache": 0, "recurrent_state": 0, "output": 0}
        elif model.row is not None and model.hyperparameters is not None:
            known = model.hyperparameters
            cells = Cells.of(options, known.window)
            kv, rs = keys_and_values(known, options, cells), states(known, options)
            values |= {"kv_cache": sum(kv), "recurrent_state": sum(rs), "_kept": (kv, rs)}
            values["cells"] = cells.full if sum(kv) else None
            if model.vocabulary is not None:
                # T5 hands out the encoder's embeddings too (`output_reserve` in `src/llama-context.cpp`).
                row = model.vocabulary + (known.embedding if model.architecture == "t5" else 0)
                values["output"] = _FLOAT32 * row * options.sequences
            values["compute"] = compute_buffer(model.widths, known, options, cells, model.vocabulary or 0)
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def __repr__(self) -> str:
        parts = [f"weights {human_size(self.weights)}"]
        for name, text in (("kv_cache", "KV cache"), ("recurrent_state", "state"), ("output", "output")):
            nbytes = getattr(self, name)
            if nbytes != 0:
                parts.append(f"{text} {'?' if nbytes is None else human_size(nbytes)}")
        parts.append(f"compute {'?' if self.compute is None else f'~{human_size(self.compute)}'}")
        total = "?" if self.total is None else f"~{human_size(self.total)}"
        name = shown(self.architecture or "no architecture")
        return f"<Estimate of {name} with a context of {self.context:,}: {', '.join(parts)}; {total} in all>"

    def _repr_html_(self) -> str:
        from ..notebook import table_html

        def row(name: str, nbytes: int | None, exact: bool) -> tuple[str, str, str]:
            size = "not known" if nbytes is None else human_size(nbytes)
            return name, size, "exact" if exact and nbytes is not None else "" if nbytes is None else "estimate"

        parts = ("weights", "kv_cache", "recurrent_state", "output", "compute")
        rows = [row(part.replace("_", " "), getattr(self, part), part in self.exact) for part in parts]
        rows.append(row("all together", self.total, False))
        title = f"{self.architecture or 'no architecture'} with a context of {self.context:,}"
        return table_html(title, ("memory", "size", ""), rows, len(rows), opened=True)

    def _warned(self) -> tuple[str, ...]:
        model, context, found = self.model, self.options.context, []
        trained = model.trained_context
        if trained and context > trained and not model.weights_only:
            found.append(f"a context of {context:,} is beyond the {trained:,} tokens that the model was trained on")
        if model.row is None and not model.weights_only:
            found.append("what this architecture keeps is not known: of the memory, only the weights are")
        return tuple(found)

    @property
    def architecture(self) -> str:
        """``general.architecture``."""
        return self.model.architecture

    @property
    def context(self) -> int:
        """Tokens of all sequences together, as they were asked for."""
        return self.options.context

    @property
    def trained_context(self) -> int | None:
        """Tokens that the model was trained on."""
        return self.model.trained_context

    @property
    def experts(self) -> int:
        """Bytes of the experts' tensors."""
        return sum(self.model.weights.experts)

    @property
    def total(self) -> int | None:
        """All together; None if a part is not known."""
        parts = [self.weights, self.kv_cache, self.recurrent_state, self.output, self.compute]
        known = [part for part in parts if part is not None]
        return sum(known) if len(known) == len(parts) else None

    @property
    def exact(self) -> frozenset[str]:
        """Names of the parts that are exact, not estimated."""
        names = ("weights", "kv_cache", "recurrent_state", "output")
        return frozenset(name for name in names if getattr(self, name) is not None)

    @cached_property
    def layers(self) -> tuple[Layer, ...]:
        """The blocks, in their order."""
        weights, known = self.model.weights, self.model.hyperparameters
        count = len(weights.layers)
        kinds = known.kinds if known is not None else ("unknown",) * count
        nothing: Sequence[int | None] = [0 if self.model.weights_only else None] * count
        kv, rs = self._kept or (nothing, nothing)
        rows = zip(range(count), kinds, weights.layers, weights.experts, kv, rs, strict=True)
        return tuple(Layer(*row) for row in rows)

    def replace(self, **options: Any) -> Estimate:
        """The same model with other options, by the names of `mmgguf.estimate`'s arguments; the file is not needed."""
        return Estimate(self.model, dataclasses.replace(self.options, **options))

    def place(
        self,
        devices: Sequence[int],
        *,
        reserve: int = 0,
        split: Sequence[float] | None = None,
        layers: int | None = None,
        experts: bool = True,
    ) -> Placement:
        """Which layers go to which device, as llama.cpp deals them out, and what stays in the host's memory.

        Layers are dealt in their order, the last ones and the output first where not all fit (``--gpu-layers``); what a
        layer keeps goes with it.  Embeddings stay on the host, and each device has a compute buffer of its own.

        Parameters
        ----------
        devices : sequence of int
            Bytes that each device has.
        reserve : int
            Bytes to leave free on each.
        split : sequence of float, optional
            The devices' shares of the layers (``--tensor-split``); without it, by their sizes, as llama.cpp does, or if
            that does not fit, by whatever does.
        layers : int, optional
            How many layers go to devices, the output counted as one; without it, as many as fit.
        experts : bool, default True
            Whether experts go with their layer; False leaves them on the host (``--cpu-moe``).

        Returns
        -------
        Placement

        Raises
        ------
        ValueError
            Sizes or shares that cannot be, or an estimate that lacks a part: what a model of unknown architecture
            keeps cannot be placed.

        Examples
        --------
        >>> mmgguf.estimate("model.gguf", context=8192).place([24 << 30, 16 << 30]).offloaded
        2
        """
        return place(self._parts(experts), self._fixed(), devices, reserve=reserve, split=split, layers=layers)

    def largest_context(
        self,
        devices: Sequence[int],
        *,
        reserve: int = 0,
        split: Sequence[float] | None = None,
        experts: bool = True,
    ) -> int | None:
        """The most context with which all layers fit on the devices, up to what the model was trained on.

        Parameters
        ----------
        devices, reserve, split, experts
            As for `place`.

        Returns
        -------
        int or None
            A multiple of 256, or what the model was trained on; 0 if none fits, None if the memory is not known.
        """
        if self.total is None:
            return None
        most = self.model.trained_context or self.options.context

        def fits(context: int) -> bool:
            placed = self.replace(context=context)
            every = len(self.model.weights.layers) + 1
            return placed.place(devices, reserve=reserve, split=split, layers=every, experts=experts).complete

        if fits(most):
            return most
        # Most multiples of 256 that fit: below `low` they do, from `high` on they do not.
        low, high = 0, -(-most // CELL_STEP)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if fits(middle * CELL_STEP) else (low, middle)
        return low * CELL_STEP

    def _parts(self, experts: bool) -> list[Part]:
        """What can be placed: each layer, and the output."""
        if self.total is None:
            missing = [n for n in ("kv_cache", "recurrent_state", "output", "compute") if getattr(self, n) is None]
            raise ValueError(f"cannot be placed: {', '.join(missing)} of {self.architecture} models is not known")
        parts = []
        for layer in self.layers:
            host = 0 if experts else layer.experts
            parts.append(Part(layer.weights - host, (layer.kv_cache or 0) + (layer.recurrent_state or 0), host))
        weights = self.model.weights
        return [*parts, Part(weights.output, 0, 0, copied=weights.tied)]

    def _fixed(self) -> tuple[int, int, int]:
        weights = self.model.weights
        padding = weights.span - weights.total
        return weights.input + padding + self.model.added, self.output or 0, self.compute or 0
