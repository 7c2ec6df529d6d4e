"""What is estimated: tables of models whose memory a running llama.cpp printed (`test_llamacpp` asks it again)."""

from __future__ import annotations

import io
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mmgguf
from mmgguf import GGMLType
from mmgguf.estimates import ARCHITECTURES, Estimate, estimate

from ..support import tiny, touch

KIB, MIB = 1 << 10, 1 << 20


def of(name: str, folder: Path, changes: dict[str, Any] | None = None, **options: Any) -> Estimate:
    """The estimate of a tiny model, by default with 4,096 cells of F16."""
    path = tiny.write(name, folder / "model.gguf", **(changes or {}))
    return estimate(path, **{"context": 4096, **options})


F, S, R, B, N = "full", "sliding", "recurrent", "both", "none"

#: Model, the layers' kinds, KiB of the cache with 4,096 cells, bytes of the state.  Where nothing else is said, models
#: have 2 key-value heads of 32, so that a full layer takes 4096 cells · 2 (K and V) · 64 · 2 bytes = 1 MiB.
KINDS: list[tuple[str, list[str], int, int]] = [
    ("llama", [F] * 4, 4096, 0),
    ("llama-moe", [F] * 4, 4096, 0),
    ("llama-key-length", [F] * 4, 8192, 0),
    ("llama-kv-array", [F] * 4, 4608, 0),
    ("phi3", [F] * 4, 4096, 0),
    # Windows of 512: 512 + 512 cells.
    ("gemma2", [S, F, S, F], 2 * 1024 + 2 * 256, 0),
    ("gemma3", [S, S, S, S, S, F, S], 1024 + 6 * 256, 0),
    ("gemma3-array", [F, S, F, S, S, S, S], 2 * 1024 + 5 * 256, 0),
    ("cohere2", [S, S, S, F] * 2, 2 * 1024 + 6 * 256, 0),
    ("olmo2", [S, S, S, F], 1024 + 3 * 256, 0),
    ("exaone4", [F] * 4, 4096, 0),
    ("exaone4-64", [S, S, S, F] * 16, 16 * 512 + 48 * 128, 0),
    ("llama4", [S, S, S, F], 4096, 0),
    ("smallthinker", [F, S, S, S], 4096, 0),
    # 128 + 512 cells, rounded up to 768.
    ("gpt-oss", [S, F, S, F], 2 * 1024 + 2 * 192, 0),
    ("mimo2", [F, S, S, S], 768 + 3 * 288, 0),
    ("step35", [S, F, S, S], 1024 + 3 * 256, 0),
    # The other layers use these.
    ("gemma3n", [S, S, S, S, F] * 4 + [N, N], 4 * 1024 + 16 * 256, 0),
    ("gemma4", [S, S, F, N, N, N], 2048 + 2 * 256, 0),
    # Keys of 48 and values of 32 in 4 heads; then keys of 96 alone, which hold the values.
    ("deepseek2", [F] * 4, 4 * 2560, 0),
    ("deepseek2-mla", [F] * 4, 4 * 768, 0),
    ("deepseek2-nextn", [F] * 4 + [N], 4 * 768, 0),
    ("glm4moe-nextn", [F] * 4 + [N], 4096, 0),
    ("mamba", [R] * 4, 0, 4 * 4 * (3 * 256 + 16 * 256)),
    ("mamba2", [R] * 4, 0, 4 * 4 * (3 * (256 + 2 * 2 * 16) + 16 * 256)),
    ("rwkv6", [R] * 4, 0, 4 * 4 * (2 * 128 + 128 * 32)),
    ("rwkv7", [R] * 4, 0, 4 * 4 * (2 * 128 + 128 * 32)),
    ("jamba", [R, R, F, R], 1024, 3 * 4 * (3 * 256 + 16 * 256)),
    ("granitehybrid", [R, R, F, R], 1024, 3 * 4 * (3 * (256 + 2 * 16) + 16 * 256)),
    ("falcon-h1", [B] * 4, 4096, 4 * 4 * (3 * (256 + 2 * 16) + 16 * 256)),
    ("nemotron_h", [R, F, N, R], 1024, 2 * 4 * (3 * (256 + 2 * 16) + 16 * 256)),
    ("plamo2", [R, F, R, F], 2048, 2 * 4 * (3 * 256 + 16 * 256)),
    ("lfm2", [R, R, F, R], 1024, 3 * 4 * 2 * 128),
    ("lfm2-swa", [R, R, S, R], 256, 3 * 4 * 2 * 128),
    ("qwen3next", [R, R, R, F], 1024, 3 * 4 * (3 * (256 + 2 * 4 * 32) + 32 * 256)),
    ("qwen35", [R, R, R, F], 1024, 3 * 4 * (3 * (256 + 2 * 4 * 32) + 32 * 256)),
    ("kimi-linear", [R, R, R, F], 768, 3 * 4 * (3 * 3 * 4 * 32 + 4 * 32 * 32)),
    ("bert", [N] * 4, 0, 0),
    ("modern-bert", [N] * 4, 0, 0),
    ("dream", [N] * 4, 0, 0),
]


@pytest.mark.parametrize(("name", "kinds", "kv", "state"), KINDS, ids=[row[0] for row in KINDS])
def test_what_layers_keep(tmp_path: Path, name: str, kinds: list[str], kv: int, state: int) -> None:
    found = of(name, tmp_path)
    assert [layer.kind for layer in found.layers] == kinds
    assert (found.kv_cache, found.recurrent_state) == (kv * KIB, state)
    assert found.output == 4 * tiny.VOCABULARY
    assert sum(layer.recurrent_state or 0 for layer in found.layers) == state
    touch.estimate(found)


#: Model, changed keys, options, KiB of the cache.
OPTIONS: list[tuple[str, dict[str, Any], dict[str, Any], float]] = [
    ("llama", {}, {"context": 1}, 256),
    ("llama", {}, {"context": 257}, 512),
    ("llama", {}, {"context": None}, 4096),
    ("llama", {}, {"cache_type_k": "q8_0"}, 2048 + 2048 * 34 / 64),
    ("llama", {}, {"cache_type_k": "Q8_0", "cache_type_v": GGMLType.Q4_0}, 2048 * 34 / 64 + 2048 * 18 / 64),
    ("llama", {}, {"sequences": 4}, 4096),
    ("llama", {}, {"sequences": 4, "unified": False}, 4096),
    # 3 streams of 4096 / 3 cells, rounded up to 1536.
    ("llama", {}, {"sequences": 3, "unified": False}, 3 * 1536),
    ("gemma2", {}, {"swa_full": True}, 4096),
    ("gemma2", {}, {"ubatch": 100}, 2 * 1024 + 2 * 192),
    ("gemma2", {}, {"context": 300, "ubatch": 2048}, 4 * 128),
    # One window for each of 4 sequences, and one batch.
    ("gemma2", {}, {"sequences": 4}, 2 * 1024 + 2 * 640),
    ("gemma2", {}, {"sequences": 4, "unified": False}, 4096),
    ("gemma2", {"attention.sliding_window": None}, {"context": 16384}, 2 * 4096 + 2 * 1152),
    ("gemma2", {"attention.sliding_window_pattern": 4}, {}, 1024 + 3 * 256),
    ("gemma2", {"attention.sliding_window_pattern": [False, True, True, True]}, {}, 1024 + 3 * 256),
    ("gemma3", {"attention.sliding_window": 0}, {}, 7 * 1024),
    ("gemma3", {"attention.sliding_window": None}, {}, 7 * 1024),
    # Without flash attention values are stored transposed, with the room of the widest layer.
    ("llama-kv-array", {}, {"flash_attention": False}, 4 * 1024 + 2304),
    ("llama", {"attention.head_count_kv": None}, {}, 8192),
    ("llama", {"attention.head_count_kv": [1, 0, 2, 1]}, {}, 2048),
    # Both lengths or neither.
    ("deepseek2-mla", {"attention.value_length_mla": None}, {}, 4 * (768 + 512)),
    ("qwen3next", {"attention.recurrent_layers": [False, True, True, True]}, {}, 1024),
    ("gemma4", {"attention.shared_kv_layers": None}, {}, 2 * 2048 + 4 * 256),
]


@pytest.mark.parametrize(("name", "changes", "options", "kv"), OPTIONS, ids=[f"{r[0]}-{r[1]}-{r[2]}" for r in OPTIONS])
def test_options(tmp_path: Path, name: str, changes: dict[str, Any], options: dict[str, Any], kv: float) -> None:
    assert of(name, tmp_path, changes, **options).kv_cache == kv * KIB


def test_states_are_per_sequence(tmp_path: Path) -> None:
    one, four = (of("mamba", tmp_path, sequences=n) for n in (1, 4))
    assert four.recurrent_state == 4 * (one.recurrent_state or 0) > 0
    assert four.output == 4 * (one.output or 0)
    assert one.cells is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"context": 0}, "context must be between"),
        ({"context": 1 << 32}, "context must be between"),
        ({"sequences": 0}, "sequences must be between"),
        ({"sequences": 257}, "sequences must be between 1 and 256"),
        ({"ubatch": 0}, "ubatch must be between"),
        ({"cache_type_k": "q9"}, "not a ggml type"),
        ({"cache_type_v": "q8_0", "flash_attention": False}, "needs flash attention"),
        ({"cache_type_k": "q4_k"}, "blocks of 256 elements"),
    ],
    ids=str,
)
def test_options_that_cannot_be(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        of("llama", tmp_path, **options)
    with pytest.raises(TypeError, match="context must be an integer"):
        of("llama", tmp_path, context=8192.0)


def test_blocks_have_to_divide_the_heads_only_where_they_are_kept(tmp_path: Path) -> None:
    assert of("mamba", tmp_path, cache_type_k="q4_k").kv_cache == 0
    with pytest.raises(ValueError, match="not made of"):
        of("llama", tmp_path, {"attention.key_length": 33}, cache_type_k="q8_0")


def test_an_unknown_architecture_is_not_guessed(tmp_path: Path) -> None:
    metadata = {key: value for key, value in tiny.metadata_of("llama").items() if not key.startswith("llama")}
    path = tmp_path / "model.gguf"
    tensors = {"token_embd.weight": np.zeros((3, 32), np.float32), "blk.1.w": np.zeros(8, np.float32)}
    mmgguf.write(path, {**metadata, "general.architecture": "of tomorrow", "of tomorrow.block_count": 2}, tensors)
    found = estimate(path)
    assert found.weights == 3 * 32 * 4 + 32
    assert (found.kv_cache, found.recurrent_state, found.output, found.compute, found.total) == (None,) * 5
    assert found.exact == {"weights"}
    assert [(layer.kind, layer.weights, layer.kv_cache) for layer in found.layers] == [
        ("unknown", 0, None),
        ("unknown", 32, None),
    ]
    assert "not known" in found.warnings[0]
    assert found.largest_context([1 << 30]) is None
    with pytest.raises(ValueError, match="cannot be placed: kv_cache"):
        found.place([1 << 30])
    for name in ("deepseek32", "glm-dsa", "deepseek4", "minimax-m3", "nanbeige"):
        assert name not in ARCHITECTURES, "keeps more than the rules here know of"


def test_compute_is_not_guessed_without_widths(tmp_path: Path) -> None:
    found = of("llama", tmp_path, {"feed_forward_length": None})
    assert (found.compute, found.total) == (None, None)
    assert found.kv_cache == 4096 * KIB
    with pytest.raises(ValueError, match="cannot be placed: compute of llama"):
        found.place([MIB])


def test_projectors_and_adapters_add_their_weights(tmp_path: Path) -> None:
    beside = tmp_path / "mmproj.gguf"
    metadata = {"general.architecture": "clip", "general.type": "mmproj", "clip.vision.block_count": 2}
    mmgguf.write(beside, metadata, {"v.blk.0.w": np.zeros(64, np.float32), "mm.0": np.zeros(8, np.float32)})
    alone, model = estimate(beside), of("llama", tmp_path)
    assert (alone.weights, alone.kv_cache, alone.recurrent_state, alone.output) == (288, 0, 0, 0)
    with mmgguf.open(beside) as f, open(beside, "rb") as raw:
        both = of("llama", tmp_path, add=[beside, f, mmgguf.read_header(raw)])
    assert both.weights == model.weights + 3 * 288
    assert both.replace(context=512).weights == both.weights


def test_experts(tmp_path: Path) -> None:
    found = of("llama-moe", tmp_path)
    assert [layer.experts for layer in found.layers] == [3 * 4 * 128 * 256 * 4] * 4
    assert found.experts == sum(layer.experts for layer in found.layers)
    away = found.place([64 * MIB], experts=False)
    assert away.devices[0].weights + found.experts == found.place([64 * MIB]).devices[0].weights
    assert of("llama", tmp_path).experts == 0


def test_names_that_are_of_no_layer(tmp_path: Path) -> None:
    names = [
        "blk.",
        "blk.1",
        "blk.12",
        "blk.01.w",
        "blk.4.w",
        "blk.x.w",
        "ablk.1.w",
        "enc.blk.1",
        "v.blk.1.w",
        "blk.-1.w",
    ]
    path = tmp_path / "model.gguf"
    mmgguf.write(path, tiny.metadata_of("llama"), {name: np.zeros(8, np.float32) for name in names})
    found = estimate(path)
    assert [layer.weights for layer in found.layers] == [0] * 4
    assert found.model.weights.output == found.weights == 32 * len(names)
    named = ["blk.1.w", "enc.blk.1.w", "dec.blk.1.w.x", "blk.3.ffn_up_exps.weight", "blk.3.ffn_up_exps_norm.weight"]
    mmgguf.write(path, tiny.metadata_of("llama"), {name: np.zeros(8, np.float32) for name in named})
    found = estimate(path)
    assert [(layer.weights, layer.experts) for layer in found.layers] == [(0, 0), (96, 0), (0, 0), (64, 32)]


def test_weights_are_what_is_mapped(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    tensors = {"token_embd.weight": np.zeros((2, 5), np.float32), "blk.0.w": np.zeros(3, np.float32)}
    tensors |= {"blk.9.w": np.zeros(1, np.float32), "output_norm.weight": np.zeros(1, np.float32)}
    mmgguf.write(path, tiny.metadata_of("llama"), tensors)
    found = estimate(path, context=256)
    # 40 bytes, padded to 64; 12, 4 and 4, the first two padded to 32.
    assert found.weights == 64 + 32 + 32 + 4
    assert [layer.weights for layer in found.layers] == [12, 0, 0, 0]
    placed = found.place([MIB * 64])
    # The output is the embeddings again, which the host keeps.
    assert placed.devices[0].weights == 12 + 4 + 4 + 40
    assert placed.host.weights == found.weights - 12 - 4 - 4


def test_split_models(tmp_path: Path) -> None:
    metadata = tiny.metadata_of("llama")
    for no, name in enumerate(("token_embd.weight", "blk.0.w")):
        more = {"split.no": no, "split.count": 2, "split.tensors.count": 2}
        path = tmp_path / f"m-0000{no + 1}-of-00002.gguf"
        mmgguf.write(path, {**(metadata if no == 0 else {}), **more}, {name: np.zeros(8, np.float32)})
    found = estimate(path)
    assert found.weights == 64
    assert found.kv_cache == 4096 * KIB


def test_a_context_beyond_the_training_warns(tmp_path: Path) -> None:
    assert not of("llama", tmp_path).warnings
    assert "beyond the 4,096 tokens" in of("llama", tmp_path, context=4097).warnings[0]


def test_sources(tmp_path: Path) -> None:
    path = tiny.write("llama-kv-array", tmp_path / "model.gguf")
    by_path = estimate(path)
    with mmgguf.open(path) as f, open(path, "rb") as raw:
        by_file, by_header = estimate(f), mmgguf.estimate(mmgguf.read_header(io.BytesIO(raw.read())))
    by_bytes, by_object = estimate(path.read_bytes()), estimate(io.BytesIO(path.read_bytes()))
    # What follows needs the file no more.
    for found in (by_path, by_file, by_header, by_bytes, by_object):
        assert (found.total, found.compute) == (by_path.total, by_path.compute)
        assert found.replace(context=512).kv_cache == by_path.replace(context=512).kv_cache
        assert found.context == found.trained_context == 4096
        assert found.architecture == "deci"
        assert found.total == sum(
            part or 0 for part in (found.weights, found.kv_cache, found.recurrent_state, found.output, found.compute)
        )


def test_of_a_remote_file_only_the_header_is_read(tmp_path: Path) -> None:
    pytest.importorskip("fsspec")
    pytest.importorskip("aiohttp")
    from ..support.server import Server, files

    path = tmp_path / "model.gguf"
    tensors = {"token_embd.weight": np.zeros((1 << 20, 32), np.float32)}
    mmgguf.write(path, tiny.metadata_of("llama"), tensors)
    with Server(files({"/model.gguf": path.read_bytes()})) as server:
        found = estimate(f"{server.url}/model.gguf", context=4096)
        assert server.sent < 8 << 20
    assert (found.weights, found.kv_cache) == (128 << 20, 4096 * KIB)


def test_repr(tmp_path: Path) -> None:
    assert repr(of("llama", tmp_path)) == (
        "<Estimate of llama with a context of 4,096: weights 2.4 MiB, KV cache 4.0 MiB, output 1.2 KiB, "
        "compute ~6.8 MiB; ~13.2 MiB in all>"
    )
    assert "state 76.0 KiB" in repr(of("mamba", tmp_path))
    unknown = of("llama", tmp_path, {"!general.architecture": "x\x1b[2J"})
    assert repr(unknown).endswith("KV cache ?, state ?, output ?, compute ?; ? in all>")
    assert repr(unknown).isprintable()


def test_importing_it_imports_nothing_else() -> None:
    code = "import sys, mmgguf.estimates; print([m for m in ('typer', 'rich', 'torch', 'numba') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_compute_grows_as_it_should(smollm2: Path) -> None:
    """Recorded from a running llama.cpp, in hundredths of a MiB: context, ubatch, flash attention."""
    for context, ubatch, flash, printed in [
        (512, 512, True, 15.14),
        (4096, 128, True, 4.66),
        (4096, 512, True, 18.64),
        (4096, 1024, True, 37.29),
        (8192, 512, True, 22.64),
        (512, 512, False, 17.51),
        (4096, 512, False, 87.51),
        (8192, 512, False, 167.51),
    ]:
        found = estimate(smollm2, context=context, ubatch=ubatch, flash_attention=flash)
        assert (found.compute or 0) / MIB == pytest.approx(printed, rel=0.01)


@dataclass
class Recorded:
    """What llama.cpp (xllamacpp 2026.10) printed for SmolLM2: MiB of its cache."""

    context: int
    cache_type: str
    kv: float


@pytest.mark.parametrize(
    "row",
    [
        Recorded(512, "f16", 11.25),
        Recorded(4096, "f16", 90.0),
        Recorded(8192, "f16", 180.0),
        Recorded(4096, "q8_0", 47.81),
        Recorded(4096, "q4_0", 25.31),
        Recorded(8192, "q4_0", 50.62),
    ],
    ids=str,
)
def test_smollm2(smollm2: Path, row: Recorded) -> None:
    found = estimate(smollm2, context=row.context, cache_type_k=row.cache_type, cache_type_v=row.cache_type)
    assert (found.kv_cache or 0) / MIB == pytest.approx(row.kv, abs=0.006)
    assert found.weights / MIB == pytest.approx(92.10, abs=0.006)
    assert (found.output or 0) / MIB == pytest.approx(0.19, abs=0.006)
