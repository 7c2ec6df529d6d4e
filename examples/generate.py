"""Run a small llama-architecture model in plain numpy, on tensors from mmgguf.

    python examples/generate.py SmolLM2-135M-Instruct.Q4_1.gguf "The days of the week are Monday," --tokens 20
    python examples/generate.py SmolLM2-135M-Instruct.Q4_1.gguf "What is the capital of France?" --chat

One GGUF file is enough: the tokenizer comes from its metadata, every hyperparameter from ``f.config``, every weight
from ``np.asarray(f[name])``.  Decoding is greedy, so the same prompt always gives the same text.  The shapes in
the comments are those of SmolLM2-135M: T new tokens, S tokens so far, 576 features, 9 query heads and 3 key heads
of 64 features each.
"""

from __future__ import annotations

import argparse
import codecs
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np

import mmgguf

Array = np.ndarray[Any, np.dtype[np.float32]]

# --- Tokenizer: byte-level byte-pair encoding, as GPT-2 introduced it ---------------------------------------------

# How a text is cut into words before any merging, per `tokenizer.ggml.pre`.  The patterns are the published ones with
# Unicode classes spelled in ASCII, because they run over `ascii_shadow(text)`.
PRE_TOKENIZERS = {
    # Every digit by itself; then GPT-2's pattern within each run of other characters, so that spaces before
    # a digit are at the end of such a run and stay together.
    "smollm": r"\d|'(?:[stmd]|re|ve|ll)| ?[A-Za-z]+| ?[^\sA-Za-z\d]+|\s+(?![^\s\d])|\s+",
}
CONTROL, USER_DEFINED = 3, 4  # of `tokenizer.ggml.token_type`


@cache
def byte_alphabet() -> list[str]:
    """The printable character that stands for each byte in the vocabulary: itself, or one from U+0100 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    spare = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(spare)) for byte in range(256)]


def ascii_shadow(text: str) -> str:
    r"""Replace each other character by an ASCII one of its class: letter, number, space, anything else.

    The patterns ask for Unicode's \p{L} and \p{N}, which `re` lacks; its own \w and \d are different sets.
    """

    def shadow(char: str) -> str:
        if char.isascii():
            return char
        if char.isspace():
            return "\t"
        return {"L": "a", "N": "0"}.get(unicodedata.category(char)[0], "!")

    return text if text.isascii() else "".join(map(shadow, text))


class Tokenizer:
    """Text to token ids and back, from a file's metadata."""

    def __init__(self, metadata: mmgguf.Metadata) -> None:
        if metadata["tokenizer.ggml.model"] != "gpt2":
            raise NotImplementedError(f"tokenizer {metadata['tokenizer.ggml.model']!r}; only 'gpt2' is known here")
        pre = metadata.get("tokenizer.ggml.pre")
        if pre not in PRE_TOKENIZERS:
            raise NotImplementedError(f"pre-tokenizer {pre!r}; known here: {', '.join(PRE_TOKENIZERS)}")
        self.words = re.compile(PRE_TOKENIZERS[pre], re.ASCII)
        self.tokens: list[str] = list(metadata["tokenizer.ggml.tokens"])
        self.ids = {token: id_ for id_, token in enumerate(self.tokens)}
        self.ranks = {pair: rank for rank, pair in enumerate(metadata["tokenizer.ggml.merges"])}  # "left right"
        self.bytes = {char: byte for byte, char in enumerate(byte_alphabet())}
        types = np.asarray(metadata["tokenizer.ggml.token_type"])
        self.control = {int(id_) for id_ in np.flatnonzero(types == CONTROL)}
        special = [self.tokens[id_] for id_ in np.flatnonzero((types == CONTROL) | (types == USER_DEFINED))]
        # Longest first, so that no special token hides another that it begins.  The group keeps them in `split`.
        either = "|".join(map(re.escape, sorted(special, key=len, reverse=True)))
        self.special = re.compile(f"({either or '(?!)'})")
        add_bos = metadata.get("tokenizer.ggml.add_bos_token", False)
        self.prefix: list[int] = [int(metadata["tokenizer.ggml.bos_token_id"])] if add_bos else []

    def encode(self, text: str) -> list[int]:
        ids = list(self.prefix)
        for part, piece in enumerate(self.special.split(text)):
            if part % 2:
                ids.append(self.ids[piece])
                continue
            for match in self.words.finditer(ascii_shadow(piece)):
                word = piece[match.start() : match.end()].encode("utf-8", "surrogateescape")
                symbols = self.merge([byte_alphabet()[byte] for byte in word])
                # A few control bytes have no token in SmolLM2's vocabulary: left out, as llama.cpp does.
                ids += (self.ids[symbol] for symbol in symbols if symbol in self.ids)
        return ids

    def merge(self, symbols: list[str]) -> list[str]:
        """Join the neighbours that were merged first in training, until no neighbours were."""
        while len(symbols) > 1:
            pairs = [self.ranks.get(f"{a} {b}", len(self.ranks)) for a, b in pairwise(symbols)]
            at = int(np.argmin(pairs))
            if pairs[at] == len(self.ranks):
                break
            symbols[at : at + 2] = [symbols[at] + symbols[at + 1]]
        return symbols

    def decode(self, id_: int) -> bytes:
        """The bytes of a token: not always whole characters."""
        token = self.tokens[id_]
        return token.encode() if self.special.fullmatch(token) else bytes(self.bytes[char] for char in token)


# --- Model: a llama-style transformer ------------------------------------------------------------------------------


def rms_norm(x: Array, weight: Array, epsilon: float) -> Array:
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + epsilon) * weight


def softmax(x: Array) -> Array:
    x = np.exp(x - x.max(axis=-1, keepdims=True))
    return x / x.sum(axis=-1, keepdims=True)


def silu(x: Array) -> Array:
    return x * (1 + np.tanh(x / 2)) / 2  # x * sigmoid(x), in a form that cannot overflow


def rotate(x: Array, angles: Array) -> Array:
    """Turn each pair of neighbouring features by its angle: x (T, heads, 64), angles (T, 32).

    Files of this architecture hold the query and key weights permuted so that the pairs are neighbours.
    """
    even, odd = x[..., 0::2], x[..., 1::2]
    cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]
    return np.stack((even * cos - odd * sin, even * sin + odd * cos), axis=-1).reshape(x.shape)


@dataclass
class Layer:
    """The weights of one block, float32, (outputs, inputs); the fields have the names that the tensors have."""

    attn_norm: Array
    attn_q: Array
    attn_k: Array
    attn_v: Array
    attn_output: Array
    ffn_norm: Array
    ffn_gate: Array
    ffn_up: Array
    ffn_down: Array


class Llama:
    """A model's weights as float32 arrays, and its forward pass with a cache of keys and values."""

    def __init__(self, f: mmgguf.GGUFFile, context: int) -> None:
        config = f.config
        if f.architecture != "llama" or "rope.scaling.type" in config or "expert_count" in config:
            raise NotImplementedError(f"this example runs plain llama models, not {f.architecture} with these keys")
        self.heads = config.get_int("attention.head_count")
        self.kv_heads = config.get_int("attention.head_count_kv", self.heads)
        self.epsilon = config.get_float("attention.layer_norm_rms_epsilon")
        self.context = context
        if context > (trained := config.get_int("context_length")):
            raise ValueError(f"{context} tokens are more than the {trained} that the model was trained for")
        width = config.get_int("embedding_length")
        self.head_size = config.get_int("rope.dimension_count", width // self.heads)
        base = config.get_float("rope.freq_base", 10000.0)
        self.frequencies = base ** -(np.arange(0, self.head_size, 2) / self.head_size)
        if "rope_freqs.weight" in f:
            self.frequencies /= np.asarray(f["rope_freqs.weight"])

        # Here the quantized blocks become float32; plain float32 tensors are views of the mapped file.
        self.embedding = np.asarray(f["token_embd.weight"])
        self.output = np.asarray(f["output.weight"]) if "output.weight" in f else self.embedding
        self.output_norm = np.asarray(f["output_norm.weight"])
        self.layers = [
            Layer(**{name: np.asarray(f[f"blk.{n}.{name}.weight"]) for name in Layer.__dataclass_fields__})
            for n in range(config.get_int("block_count"))
        ]
        shape = (len(self.layers), self.kv_heads, self.context, self.head_size)
        self.keys, self.values = np.empty(shape, np.float32), np.empty(shape, np.float32)
        self.length = 0  # positions that are filled

    def forward(self, ids: Sequence[int]) -> Array:
        """Take in T tokens after those before; return the logits of the next one, (vocabulary,)."""
        start, end = self.length, self.length + len(ids)
        if end > self.context:
            raise ValueError(f"{end} tokens do not fit a context of {self.context}")
        positions = np.arange(start, end)
        angles = (positions[:, None] * self.frequencies).astype(np.float32)
        # -inf where a token would look at a later one: (T, S).
        mask = np.where(np.arange(end) > positions[:, None], np.float32(-np.inf), np.float32(0))
        x = self.embedding[np.asarray(ids)]
        for n, layer in enumerate(self.layers):
            x = x + self.attend(n, rms_norm(x, layer.attn_norm, self.epsilon), angles, mask)
            y = rms_norm(x, layer.ffn_norm, self.epsilon)
            x = x + (silu(y @ layer.ffn_gate.T) * (y @ layer.ffn_up.T)) @ layer.ffn_down.T
        self.length = end
        return rms_norm(x[-1], self.output_norm, self.epsilon) @ self.output.T

    def attend(self, n: int, x: Array, angles: Array, mask: Array) -> Array:
        """Grouped-query attention of layer n, (T, 576) to (T, 576): three query heads share one key and value head."""
        layer, count = self.layers[n], len(x)
        start, end = self.length, self.length + count
        q = rotate((x @ layer.attn_q.T).reshape(count, self.heads, self.head_size), angles)
        k = rotate((x @ layer.attn_k.T).reshape(count, self.kv_heads, self.head_size), angles)
        v = (x @ layer.attn_v.T).reshape(count, self.kv_heads, self.head_size)
        self.keys[n, :, start:end] = k.swapaxes(0, 1)
        self.values[n, :, start:end] = v.swapaxes(0, 1)
        keys, values = self.keys[n, :, None, :end], self.values[n, :, None, :end]  # (3, 1, S, 64)
        q = q.reshape(count, self.kv_heads, -1, self.head_size).transpose(1, 2, 0, 3)  # (3, 3, T, 64)
        scores = q @ keys.swapaxes(-1, -2) / np.float32(np.sqrt(self.head_size)) + mask  # (3, 3, T, S)
        mixed = softmax(scores) @ values  # (3, 3, T, 64)
        return mixed.transpose(2, 0, 1, 3).reshape(count, -1) @ layer.attn_output.T


def generate(model: Llama, prompt: Sequence[int], limit: int, stop: set[int]) -> Iterator[int]:
    """Yield up to `limit` tokens after the prompt, always the most likely one, until one of `stop` would come."""
    ids = list(prompt)
    for _ in range(limit):
        best = int(np.argmax(model.forward(ids)))
        if best in stop:
            return
        yield best
        ids = [best]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Continue a prompt with a llama-architecture GGUF model, in numpy.")
    parser.add_argument("model", help="a GGUF file, such as SmolLM2-135M-Instruct.Q4_1.gguf")
    parser.add_argument("prompt", help="the text to continue; special tokens in it count as such")
    parser.add_argument(
        "--tokens", type=int, default=64, metavar="N", help="stop after N tokens (default: %(default)s)"
    )
    parser.add_argument("--chat", action="store_true", help="put the prompt as a user's message, in ChatML")
    parser.add_argument("--ids", action="store_true", help="print the token ids instead of the text")
    options = parser.parse_args(arguments)

    prompt = (
        f"<|im_start|>user\n{options.prompt}<|im_end|>\n<|im_start|>assistant\n" if options.chat else options.prompt
    )
    try:
        with mmgguf.open(options.model) as f:
            tokenizer = Tokenizer(f.metadata)
            ids = tokenizer.encode(prompt)
            model = Llama(f, context=len(ids) + options.tokens)
    except (OSError, mmgguf.GGUFError, NotImplementedError, ValueError) as error:
        parser.exit(1, f"{parser.prog}: {error}\n")
    if not ids:
        parser.error("the prompt is empty")
    # From here on the file is closed; the arrays that are views of it keep the mapping alive.
    text = codecs.getincrementaldecoder("utf-8")("replace")  # a character may be spread over tokens
    for id_ in generate(model, ids, options.tokens, stop=tokenizer.control):
        print(id_ if options.ids else text.decode(tokenizer.decode(id_)), end=" " if options.ids else "", flush=True)
    print(text.decode(b"", final=True))


if __name__ == "__main__":
    main()
