"""Generated files with the proportions of real models, from a fixed seed.

`llama`: 291 tensors in the shapes of Llama-3-8B, scaled.  `every_type`: a tensor of each ggml type.
"""

from __future__ import annotations

import os
from functools import partial
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ..format.constants import QUANTIZATION_VERSION
from ..format.writer import TypedTensor, write
from ..types import LAYOUTS, GGMLType

__all__ = [
    "LLAMA_TENSORS",
    "TOKENS",
    "architecture",
    "every_type",
    "llama",
    "random_blocks",
    "tokenizer",
]

#: Of the Llama 3 vocabulary.
TOKENS: Final = 128_256
LLAMA_TENSORS: Final = 291

# How many strings of the Llama 3 vocabulary have 1, 2, 3, … bytes; then (bytes, count) for the long ones, binned.
_TOKEN_LENGTHS: Final = (
    94, 3160, 8553, 12116, 14179, 17830, 12856, 13823, 8896, 7854, 4935, 8514, 2066, 3780, 729, 1352, 210, 2482, 108,
    746, 49, 1100, 26, 466, 15, 688, 5, 106, 92, 563, 2, 71, 1, 190, 2, 64, 0, 111, 0, 15, 1, 66, 0, 11, 0, 32, 0, 22,
)  # fmt: skip
_LONG_TOKENS: Final = ((50, 60), (66, 60), (80, 60), (98, 30), (128, 25), (192, 6), (256, 1))
_MERGE_LENGTHS: Final = (
    0, 0, 2998, 16737, 27872, 36136, 42036, 32987, 30801, 19871, 15817, 9604, 13461, 3739, 6760, 1250, 2786, 321, 4338,
    151, 1490, 67, 1902, 32, 823, 28, 1092, 6, 297, 2, 636, 2, 214, 4, 361, 3, 194, 0, 200, 0, 111, 5, 155, 0, 90, 0,
    89, 0,
)  # fmt: skip
_LONG_MERGES: Final = ((53, 800), (67, 900), (83, 800), (101, 400), (121, 500), (149, 1000), (175, 600), (257, 43))


def _lengths(
    rng: np.random.Generator, count: int, short: tuple[int, ...], long: tuple[tuple[int, int], ...]
) -> npt.NDArray[np.int64]:
    values = np.array([*range(1, len(short) + 1), *(n for n, _ in long)])
    weights = np.array([*short, *(n for _, n in long)], float)
    return rng.choice(values, count, p=weights / weights.sum())


def _strings(rng: np.random.Generator, lengths: npt.NDArray[np.int64], pair: bool) -> list[str]:
    """Strings of so many bytes: 45 of 100 begin with the two bytes of Ġ, as GPT-2's byte-level words do."""
    text = rng.integers(ord("a"), ord("z") + 1, int(lengths.sum()), np.uint8).tobytes().decode("ascii")
    marked = (rng.random(len(lengths)) < 0.45) & (lengths > 2)
    strings = []
    end = 0
    for length, mark in zip(lengths.tolist(), marked.tolist(), strict=True):
        start, end = end, end + length
        word = "Ġ" + text[start + 2 : end] if mark else text[start:end]
        strings.append(f"{word[0]} {word[2:]}" if pair and len(word) > 2 else word)
    return strings


def architecture(name: str) -> dict[str, Any]:
    """Metadata of a small model of that name."""
    return {
        "general.architecture": "llama",
        "general.name": name,
        "llama.block_count": 32,
        "llama.attention.head_count": 32,
        "llama.rope.freq_base": 500000.0,
    }


def tokenizer(tokens: int, merges: int) -> dict[str, Any]:
    """A vocabulary of so many tokens and merges, as long as Llama 3's."""
    rng = np.random.default_rng(8)
    metadata = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.tokens": _strings(rng, _lengths(rng, tokens, _TOKEN_LENGTHS, _LONG_TOKENS), False),
        "tokenizer.ggml.token_type": np.ones(tokens, np.int32),
        "tokenizer.ggml.eos_token_id": tokens - 1,
    }
    if merges:
        lengths = _lengths(rng, merges, _MERGE_LENGTHS, _LONG_MERGES)
        metadata["tokenizer.ggml.merges"] = _strings(rng, lengths, True)
    return metadata


def random_blocks(type_: GGMLType, shape: tuple[int, ...], seed: int = 0) -> npt.NDArray[Any]:
    """Stored data of a logical shape: random bits, with scales that are ordinary numbers."""
    layout = LAYOUTS[type_]
    rng = np.random.default_rng(seed)
    stored = layout.stored_shape(shape)
    if layout.is_plain:
        return rng.standard_normal(stored, np.float32).astype(layout.dtype)
    count = int(np.prod(stored))
    blocks = np.frombuffer(bytearray(rng.bytes(count * layout.type_size)), layout.dtype).reshape(stored)
    for field in ("d", "dmin", "m", "s", "e"):
        if field not in (layout.dtype.names or ()):
            continue
        if blocks[field].dtype.kind == "f":
            blocks[field] = rng.uniform(0.001, 0.1, blocks[field].shape)
        else:  # a byte that holds an exponent
            blocks[field] = rng.integers(48, 72, blocks[field].shape) if field == "d" else 120
    if type_ is GGMLType.IQ1_M:  # the scale is spread over the top nibbles: 0x2E66 is 0.1
        scales = blocks["scales"].view("<u2")
        scales &= 0x0FFF
        scales |= np.array([0x6000, 0x6000, 0xE000, 0x2000], np.uint16)
    return blocks


def every_type(path: str | os.PathLike[str], nbytes: int) -> None:
    """Write a model of about so many bytes with one tensor of each ggml type."""
    columns = 1024  # a whole number of every type's blocks
    tensors: dict[str, TypedTensor] = {}
    for type_, layout in LAYOUTS.items():
        row_size = columns // layout.block_size * layout.type_size
        shape = max(1, nbytes // len(LAYOUTS) // row_size), columns
        # Made when their turn comes, and let go afterwards.
        tensors[f"blk.0.{type_.name.lower()}.weight"] = TypedTensor(partial(random_blocks, type_, shape), type_, shape)
    metadata = {"general.architecture": "demo", "general.name": "One tensor of each type"}
    write(path, metadata | {"general.quantization_version": QUANTIZATION_VERSION}, tensors)


def llama(
    path: str | os.PathLike[str],
    scale: float = 0.5,
    vocabulary_size: int | None = None,
    tokens: int = 4096,
) -> None:
    """Write 291 tensors in Llama-3-8B's shapes and types (as Q4_K_M has them), dimensions scaled.

    Parameters
    ----------
    path : path-like
        The file to make.
    scale : float
        0.5 makes about 1.1 GiB, 0.0625 about 20 MiB.
    vocabulary_size : int, optional
        Rows of the embedding; by default Llama 3's, scaled.
    tokens : int
        Tokens in the metadata; twice as many merges.
    """

    def scaled(n: int) -> int:
        return max(256, round(n * scale) // 256 * 256)

    width, inner, kv = scaled(4096), scaled(14336), scaled(1024)
    rows = vocabulary_size or round(TOKENS * scale)
    tensors: dict[str, Any] = {}

    def add(name: str, type_: GGMLType, *shape: int) -> None:
        seed = len(tensors)
        tensors[name] = TypedTensor(lambda: random_blocks(type_, shape, seed), type_, shape)

    q4, q6, f32 = GGMLType.Q4_K, GGMLType.Q6_K, GGMLType.F32
    add("token_embd.weight", q4, rows, width)
    for n in range(32):
        finer = q6 if n % 2 else q4
        add(f"blk.{n}.attn_norm.weight", f32, width)
        add(f"blk.{n}.ffn_down.weight", finer, width, inner)
        add(f"blk.{n}.ffn_gate.weight", q4, inner, width)
        add(f"blk.{n}.ffn_up.weight", q4, inner, width)
        add(f"blk.{n}.ffn_norm.weight", f32, width)
        add(f"blk.{n}.attn_k.weight", q4, kv, width)
        add(f"blk.{n}.attn_output.weight", q4, width, width)
        add(f"blk.{n}.attn_q.weight", q4, width, width)
        add(f"blk.{n}.attn_v.weight", finer, kv, width)
    add("output.weight", q6, rows, width)
    add("output_norm.weight", f32, width)
    write(path, {**architecture("llama, scaled"), **tokenizer(tokens, 2 * tokens)}, tensors)
