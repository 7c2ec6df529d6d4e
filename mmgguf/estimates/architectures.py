"""What each architecture keeps while it runs: one row each, with the file that says so.

The rows were read off llama.cpp's sources at tag b10472 (2026-08-18).  Each names the file under ``src/models`` whose
``load_arch_hparams`` decides which layers slide, recur or share; what the memory of such a layer takes is in
``src/llama-kv-cache.cpp``, ``src/llama-kv-cache-iswa.cpp``, ``src/llama-memory-recurrent.cpp`` and
``src/llama-hparams.cpp``, and which of these classes an architecture gets in ``llama_model::create_memory`` of
``src/llama-model.cpp``.  An architecture without a row is unknown: its memory is not guessed.

The llama.cpp that the tests run (``xllamacpp`` 2026.10) is newer, and where it differs, the rows follow it: it takes an
array as ``attention.sliding_window_pattern`` wherever a period may stand, which b10472 passes over, and gives no cache
to layers that predict further tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal

__all__ = ["ARCHITECTURES", "Architecture", "Sliding"]


@dataclass(frozen=True, slots=True)
class Sliding:
    """Which layers see a window only.

    Attributes
    ----------
    period : int
        Layer i slides if ``i % period < period - 1``; 0: all that attend do.  The metadata
        ``attention.sliding_window_pattern`` comes before it.
    window : int or None
        Tokens of the window where the metadata ``attention.sliding_window`` has none; None: then no layer slides.
    pattern : {"none", "either", "array"}
        What that metadata may be: it is not read; a period or one bool per layer; the latter, and it must be there.
    dense_first : bool
        Of each period the first layer is full, not the last.
    fixed : int or None
        The window, whatever the metadata says; only whether it is there and not 0 counts then.
    layers : int or None
        Only models of so many layers slide.
    """

    period: int = 0
    window: int | None = None
    pattern: Literal["none", "either", "array"] = "either"
    dense_first: bool = False
    fixed: int | None = None
    layers: int | None = None


@dataclass(frozen=True, slots=True)
class Architecture:
    """What the layers of an architecture keep in memory while a model runs.

    Attributes
    ----------
    source : str
        The file under llama.cpp's ``src/models`` that says it.
    memory : {"attention", "recurrent", "hybrid", "none"}
        Keys and values in each layer; a state of constant size in each; some of both; nothing at all.
    sliding : Sliding or None
        Which layers have a window.
    state : {"ssm", "ssm-ungrouped", "rwkv", "shortconv", "kda"} or None
        The formula for the size of the state.
    recurrent : {"headless", "headless-ffn", "interval", "every"}
        In hybrids: layers without key-value heads recur; those without feed-forward besides, and others with it keep
        nothing; every layer but each n-th; all layers do both.
    latent : bool
        With ``attention.key_length_mla``, keys hold the values too (multi-head latent attention).
    cached : int or "shared_kv_layers" or None
        How many of the first layers have a cache, the others using theirs; or the key with the number of the others.
    nextn : bool
        ``nextn_predict_layers`` of the last layers predict further tokens.  They are not loaded and keep nothing: who
        uses them gives them a context of their own.
    """

    source: str
    memory: Literal["attention", "recurrent", "hybrid", "none"] = "attention"
    sliding: Sliding | None = None
    state: Literal["ssm", "ssm-ungrouped", "rwkv", "shortconv", "kda"] | None = None
    recurrent: Literal["headless", "headless-ffn", "interval", "every"] = "headless"
    latent: bool = False
    cached: int | Literal["shared_kv_layers"] | None = None
    nextn: bool = False


def _files(text: str) -> Iterator[tuple[str, str]]:
    """Pairs of architecture and file, written ``arch`` where the file is named alike, else ``arch=file``."""
    for word in text.split():
        name, _, file = word.partition("=")
        yield name, f"{file or name}.cpp"


#: Keys and values in every layer, nothing else.
_PLAIN: Final = """
    apertus arcee arctic baichuan bailingmoe bitnet bloom chameleon chatglm codeshell cogvlm command-r dbrx
    deci deepseek deepseek2-ocr=deepseek2ocr dots1 ernie4_5=ernie4-5 ernie4_5-moe=ernie4-5-moe exaone falcon gemma
    gpt2 gptneox granite granitemoe=granite-moe grok grovemoe hunyuan-dense hunyuan-moe
    hunyuan_vl=hunyuan-vl internlm2 jais jais2 llama llama-embed maincoder minicpm minicpm3 minimax-m2 mistral3 mpt
    nemotron olmo olmoe openelm orion paddleocr pangu-embedded=pangu-embed phi2 phi3 phimoe plamo plm qwen qwen2
    qwen2moe qwen2vl qwen3 qwen3moe qwen3vl qwen3vlmoe refact seed_oss=seed-oss smollm3 stablelm starcoder starcoder2
    t5 talkie xverse
"""

#: Encoders and diffusion models see all tokens at once and keep nothing.
_NONE: Final = """
    bert dream eurobert gemma-embedding jina-bert-v2 jina-bert-v3 llada llada-moe modern-bert neo-bert nomic-bert
    nomic-bert-moe rnd1 wavtokenizer-dec
"""

ARCHITECTURES: Final[dict[str, Architecture]] = {
    **{name: Architecture(file) for name, file in _files(_PLAIN)},
    **{name: Architecture(file, "none") for name, file in _files(_NONE)},
    # Sliding windows.
    "afmoe": Architecture("afmoe.cpp", sliding=Sliding(4)),
    "cohere2": Architecture("cohere2.cpp", sliding=Sliding(4)),
    "cohere2moe": Architecture("cohere2moe.cpp", sliding=Sliding(4, dense_first=True), nextn=True),
    "exaone-moe": Architecture("exaone-moe.cpp", sliding=Sliding(4, 128), nextn=True),
    "exaone4": Architecture("exaone4.cpp", sliding=Sliding(4, 4096, layers=64), nextn=True),
    "gemma2": Architecture("gemma2.cpp", sliding=Sliding(2, 4096)),
    "gemma3": Architecture("gemma3.cpp", sliding=Sliding(6)),
    "gemma3n": Architecture("gemma3n.cpp", sliding=Sliding(5), cached=20),
    "gemma4": Architecture("gemma4.cpp", sliding=Sliding(pattern="array"), cached="shared_kv_layers"),
    "gpt-oss": Architecture("openai-moe.cpp", sliding=Sliding(2)),
    "laguna": Architecture("laguna.cpp", sliding=Sliding(4, dense_first=True)),
    "llama4": Architecture("llama4.cpp", sliding=Sliding(4, 8192, fixed=8192)),
    "mellum": Architecture("mellum.cpp", sliding=Sliding(4)),
    "mimo2": Architecture("mimo2.cpp", sliding=Sliding(pattern="array"), nextn=True),
    "olmo2": Architecture("olmo2.cpp", sliding=Sliding(4)),
    "plamo3": Architecture("plamo3.cpp", sliding=Sliding(8)),
    "smallthinker": Architecture("smallthinker.cpp", sliding=Sliding(4, dense_first=True, fixed=4096)),
    "step35": Architecture("step35.cpp", sliding=Sliding(pattern="array"), nextn=True),
    # Latent attention.
    "deepseek2": Architecture("deepseek2.cpp", latent=True, nextn=True),
    "mistral4": Architecture("mistral4.cpp", latent=True, nextn=True),
    # Layers that predict further tokens.
    **{name: Architecture(file, nextn=True) for name, file in _files("bailingmoe2 glm4 glm4moe=glm4-moe hy_v3=hy-v3")},
    # A state of constant size.
    "mamba": Architecture("mamba.cpp", "recurrent", state="ssm-ungrouped"),
    "mamba2": Architecture("mamba2.cpp", "recurrent", state="ssm"),
    "rwkv6": Architecture("rwkv6.cpp", "recurrent", state="rwkv"),
    "rwkv6qwen2": Architecture("rwkv6qwen2.cpp", "recurrent", state="rwkv"),
    "rwkv7": Architecture("rwkv7.cpp", "recurrent", state="rwkv"),
    "arwkv7": Architecture("arwkv7.cpp", "recurrent", state="rwkv"),
    # Hybrids.
    "falcon-h1": Architecture("falcon-h1.cpp", "hybrid", state="ssm", recurrent="every"),
    "granitehybrid": Architecture("granite-hybrid.cpp", "hybrid", state="ssm"),
    "jamba": Architecture("jamba.cpp", "hybrid", state="ssm-ungrouped"),
    "kimi-linear": Architecture("kimi-linear.cpp", "hybrid", state="kda", latent=True),
    "lfm2": Architecture("lfm2.cpp", "hybrid", Sliding(pattern="none"), state="shortconv"),
    "lfm2moe": Architecture("lfm2moe.cpp", "hybrid", state="shortconv"),
    "nemotron_h": Architecture("nemotron-h.cpp", "hybrid", state="ssm", recurrent="headless-ffn"),
    "nemotron_h_moe": Architecture("nemotron-h-moe.cpp", "hybrid", state="ssm", recurrent="headless-ffn"),
    "plamo2": Architecture("plamo2.cpp", "hybrid", state="ssm"),
    "qwen35": Architecture("qwen35.cpp", "hybrid", state="ssm", recurrent="interval", nextn=True),
    "qwen35moe": Architecture("qwen35moe.cpp", "hybrid", state="ssm", recurrent="interval", nextn=True),
    "qwen3next": Architecture("qwen3next.cpp", "hybrid", state="ssm", recurrent="interval", nextn=True),
}
