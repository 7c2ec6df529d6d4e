"""What other formulas say of the memory that well-known models keep: the table of ``docs/estimate-comparison.md``.

``python -m tests.support.peer_estimates`` prints the page's table.
"""

from __future__ import annotations

import io
from typing import Any, Final

import mmgguf

from .build import UINT32, Build

__all__ = ["CONTEXT", "MODELS", "naive", "ours", "parser", "table"]

CONTEXT: Final = 32768
#: gguf-parser-go's default for the batch that it adds to a window.
_LOGICAL_BATCH: Final = 2048
#: Architectures that gguf-parser-go takes to have a state, and those of them that have a cache besides.
_RECURRENT: Final = frozenset({"mamba", "mamba2", "rwkv6", "rwkv6qwen2", "rwkv7", "arwkv7"})
_HYBRID: Final = frozenset({"jamba", "falcon-h1", "granitehybrid"})
#: Its periods; in all other architectures no layer slides.
_PERIODS: Final = {"llama4": 4, "gemma2": 2, "gemma3": 6, "cohere2": 4}


def _heads(layers: int, embedding: int, heads: int, kv: Any, length: int = 0, **more: Any) -> dict[str, Any]:
    found = {"block_count": layers, "embedding_length": embedding}
    found |= {"attention.head_count": heads, "attention.head_count_kv": kv}
    if length:
        found |= {"attention.key_length": length, "attention.value_length": length}
    return {**found, **{key.replace("__", "."): value for key, value in more.items()}}


def _window(window: int) -> dict[str, int]:
    return {"attention__sliding_window": window}


def _ssm(inner: int, state: int, **more: int) -> dict[str, int]:
    return {"ssm__conv_kernel": 4, "ssm__inner_size": inner, "ssm__state_size": state, **more}


_LFM2 = [8 if layer in (2, 5, 8, 10, 12, 14) else 0 for layer in range(16)]
_JAMBA = [8 if layer % 8 == 4 else 0 for layer in range(32)]

#: Architecture and hyperparameters, as the models' published configurations are converted.
MODELS: Final[dict[str, tuple[str, dict[str, Any]]]] = {
    "Llama 3.1 8B": ("llama", _heads(32, 4096, 32, 8)),
    "Qwen2.5 7B": ("qwen2", _heads(28, 3584, 28, 4)),
    "Gemma 2 9B": ("gemma2", _heads(42, 3584, 16, 8, 256, **_window(4096))),
    "Gemma 3 12B": ("gemma3", _heads(48, 3840, 16, 8, 256, **_window(1024))),
    "gpt-oss 20B": ("gpt-oss", _heads(24, 2880, 64, 8, 64, **_window(128))),
    "Command R7B": ("cohere2", _heads(32, 4096, 32, 8, **_window(4096))),
    "Llama 4 Scout": ("llama4", _heads(48, 5120, 40, 8, 128)),
    "DeepSeek-V3": (
        "deepseek2",
        _heads(61, 7168, 128, 1)
        | {"attention.key_length": 576, "attention.value_length": 512}
        | {"attention.key_length_mla": 192, "attention.value_length_mla": 128},
    ),
    "Mamba 2.8B": (
        "mamba",
        {"block_count": 64, "embedding_length": 2560}
        | {"ssm.conv_kernel": 4, "ssm.inner_size": 5120, "ssm.state_size": 16},
    ),
    "Jamba v0.1": ("jamba", _heads(32, 4096, 32, _JAMBA, **_ssm(8192, 16))),
    "LFM2 1.2B": ("lfm2", _heads(16, 2048, 32, _LFM2, shortconv__l_cache=3)),
    "Qwen3-Next 80B": ("qwen3next", _heads(48, 2048, 16, 2, 256, **_ssm(4096, 128, ssm__group_count=16))),
}


def header(architecture: str, hyperparameters: dict[str, Any]) -> mmgguf.Header:
    """A header that says this, without tensors."""
    b = Build().start(tensors=0, pairs=1 + len(hyperparameters)).text(b"general.architecture", architecture.encode())
    for key, value in hyperparameters.items():
        full = f"{architecture}.{key}".encode()
        if isinstance(value, list):
            b.array(full, UINT32, len(value)).raw(b"".join(n.to_bytes(4, "little") for n in value))
        else:
            b.number(full, UINT32, value)
    return mmgguf.read_header(io.BytesIO(bytes(b.pad(32))))


def ours(architecture: str, hyperparameters: dict[str, Any]) -> int:
    """What `mmgguf.estimate` says: cache and states."""
    found = mmgguf.estimate(header(architecture, hyperparameters), context=CONTEXT)
    assert found.kv_cache is not None
    assert found.recurrent_state is not None
    return found.kv_cache + found.recurrent_state


def naive(architecture: str, h: dict[str, Any]) -> int:
    """Keys and values of all layers and tokens, each with the largest number of heads."""
    heads = h.get("attention.head_count", 0)
    kv = h.get("attention.head_count_kv", heads)
    kv = max(kv) if isinstance(kv, list) else kv
    default = h["embedding_length"] // heads if heads else 0
    lengths = h.get("attention.key_length", default) + h.get("attention.value_length", default)
    return int(h["block_count"] * CONTEXT * kv * lengths * 2)


def parser(architecture: str, h: dict[str, Any]) -> int:
    """gguf-parser-go's formula (``file_estimate__llamacpp.go`` at 8dc7a62), flash attention on, one sequence."""
    layers, state = h["block_count"], 0
    if architecture in _RECURRENT | _HYBRID:
        groups = h.get("ssm.group_count", 0)
        conv = (h["ssm.conv_kernel"] - 1) * (h["ssm.inner_size"] + 2 * groups * h["ssm.state_size"])
        state = 4 * layers * (conv + h["ssm.state_size"] * h["ssm.inner_size"])
        if architecture in _RECURRENT:
            return state
    heads = h["attention.head_count"]
    kv = h.get("attention.head_count_kv", heads)
    kv = kv[0] if isinstance(kv, list) else kv
    lengths = [h.get(f"attention.{part}_length", h["embedding_length"] // heads) for part in ("key", "value")]
    mla = [h.get(f"attention.{part}_length_mla", 0) for part in ("key", "value")]
    token = 2 * kv * sum(mla if all(mla) else lengths)
    period = _PERIODS.get(architecture, 1)
    window = h.get("attention.sliding_window", 8192 if architecture == "llama4" else 0)
    slides = sum(layer % period != 0 for layer in range(layers)) if period > 1 else 0
    seen = min(CONTEXT, -(-(window + _LOGICAL_BATCH) // 256) * 256)
    return state + token * (slides * seen + (layers - slides) * CONTEXT)


def table() -> str:
    """The page's table, in Markdown."""
    lines = ["| model | architecture | llama.cpp, mmgguf | gguf-parser-go | naive |", "|---|---|--:|--:|--:|"]
    for name, (architecture, hyperparameters) in MODELS.items():
        right = ours(architecture, hyperparameters)
        others = [f"{_mib(n)} ({_off(n, right)})" for n in (f(architecture, hyperparameters) for f in (parser, naive))]
        lines.append(f"| {name} | {architecture} | {_mib(right)} | {' | '.join(others)} |")
    return "\n".join(lines) + "\n"


def _mib(nbytes: int) -> str:
    return f"{nbytes / 2**20:,.1f}"


def _off(nbytes: int, right: int) -> str:
    if nbytes == right:
        return "right"
    if nbytes > 2 * right:
        return f"× {nbytes / right:.1f}"
    return f"{nbytes / right - 1:+.0%}"


if __name__ == "__main__":
    print(table(), end="")
