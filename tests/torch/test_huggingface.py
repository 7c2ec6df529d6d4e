"""`from_gguf`: models of transformers with the logits of the originals, of transformers' own reader, and of llama.cpp.

Each makes and runs models: slow.
"""

from __future__ import annotations

import copy
import io
import json
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mmgguf
import mmgguf.edit
from mmgguf import ValueType

pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
gguf = pytest.importorskip("gguf")

import torch  # noqa: E402

from mmgguf.torch import PackedTensor, QuantizedEmbedding, QuantizedExperts, QuantizedLinear, from_gguf  # noqa: E402

from ..support.huggingface import MODELS, TinyModel, make, write  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]

by_model = pytest.mark.parametrize("tiny", MODELS, ids=lambda tiny: tiny.id)
IDS = torch.randint(3, 96, (2, 40), generator=torch.Generator().manual_seed(7))
GREEDY = {"max_new_tokens": 20, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
SHORT = GREEDY | {"max_new_tokens": 8}


@cache
def original(tiny: TinyModel) -> Any:
    return make(tiny)


def logits(model: Any, ids: torch.Tensor = IDS) -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = model(ids).logits
    return result


@by_model
def test_the_logits_are_those_of_the_original(tiny: TinyModel, tmp_path: Path) -> None:
    path = write(tmp_path / "model.gguf", tiny, original(tiny))
    assert torch.equal(logits(from_gguf(path, quantized=False)), logits(original(tiny)))


@pytest.mark.parametrize("tiny", [tiny for tiny in MODELS if tiny.read_by_transformers], ids=lambda tiny: tiny.id)
def test_the_logits_are_those_of_transformers_own_reader(tiny: TinyModel, tmp_path: Path) -> None:
    path = write(tmp_path / "model.gguf", tiny, original(tiny), gguf.GGMLQuantizationType.Q8_0)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=path.name, dtype=torch.float32)
    assert torch.equal(logits(from_gguf(path, quantized=False)), logits(theirs.eval()))


@by_model
@pytest.mark.parametrize("type_", [gguf.GGMLQuantizationType.Q8_0, gguf.GGMLQuantizationType.Q4_0], ids=str)
def test_packed_weights_give_the_same_tokens(type_: Any, tiny: TinyModel, tmp_path: Path) -> None:
    path = write(tmp_path / "model.gguf", tiny, original(tiny), type_)
    packed, numbers = from_gguf(path), from_gguf(path, quantized=False)
    torch.testing.assert_close(logits(packed), logits(numbers), rtol=0, atol=1e-4)
    prompt = IDS[:1, :8]
    assert torch.equal(packed.generate(prompt, **SHORT), numbers.generate(prompt, **SHORT))
    layers = [module for module in packed.modules() if isinstance(module, torch.nn.Linear | torch.nn.Embedding)]
    assert {type(layer) for layer in layers} == {QuantizedLinear, QuantizedEmbedding}
    experts = [module for module in packed.modules() if isinstance(module, QuantizedExperts)]
    assert len(experts) == (tiny.metadata.get("expert_count", 0) and packed.config.num_hidden_layers)
    assert all(parameter.is_floating_point() for parameter in packed.parameters())


def test_the_model_computes_in_the_dtype_that_is_asked_for(tmp_path: Path) -> None:
    tiny = MODELS[0]
    path = write(tmp_path / "model.gguf", tiny, original(tiny), gguf.GGMLQuantizationType.Q8_0)
    model = from_gguf(path, dtype=torch.bfloat16)
    assert logits(model).dtype == torch.bfloat16
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    torch.testing.assert_close(logits(model).float(), logits(from_gguf(path)), rtol=0, atol=0.5)


def test_a_checkpoint_of_a_packed_model_can_be_read_again(tmp_path: Path) -> None:
    tiny = MODELS[0]
    path = write(tmp_path / "model.gguf", tiny, original(tiny), gguf.GGMLQuantizationType.Q8_0)
    model, other = from_gguf(path), from_gguf(path)
    torch.save(model.state_dict(), tmp_path / "model.pt")
    for buffer in other.buffers():
        if isinstance(buffer, PackedTensor):
            buffer.zero_()
    other.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True))
    assert torch.equal(logits(other), logits(model))


def test_gradients_reach_the_embeddings_input(tmp_path: Path) -> None:
    tiny = MODELS[0]
    model = from_gguf(write(tmp_path / "m.gguf", tiny, original(tiny), gguf.GGMLQuantizationType.Q8_0))
    inputs = torch.randn(1, 5, model.config.hidden_size, requires_grad=True)
    model(inputs_embeds=inputs).logits.sum().backward()
    assert inputs.grad is not None
    assert inputs.grad.abs().sum() > 0


def test_what_is_missing_or_unknown_is_said(tmp_path: Path) -> None:
    tiny = MODELS[0]
    path = write(tmp_path / "m.gguf", tiny, original(tiny))
    with mmgguf.open(path) as f:
        rest = {name: f[name] for name in f if name != "blk.1.ffn_up.weight"}
        mmgguf.write(tmp_path / "less.gguf", f.metadata, rest)
        mmgguf.write(tmp_path / "more.gguf", f.metadata, {**f, "blk.1.strange.weight": np.zeros(3, np.float32)})
        mmgguf.write(tmp_path / "other.gguf", f.metadata.replace({"general.architecture": "mamba"}), f)
        per_layer = mmgguf.TypedValue([2, 2, 1], ValueType.ARRAY, ValueType.UINT32)
        heads = f.metadata.replace({"llama.attention.head_count_kv": per_layer})
        mmgguf.write(tmp_path / "heads.gguf", heads, f)
    with pytest.raises(RuntimeError, match=r'Missing key.*"model\.layers\.1\.mlp\.up_proj\.weight"'):
        from_gguf(tmp_path / "less.gguf")
    with pytest.raises(RuntimeError, match=r'Unexpected key.*"blk\.1\.strange\.weight"'):
        from_gguf(tmp_path / "more.gguf")
    with pytest.raises(NotImplementedError, match="the architecture 'mamba' cannot be turned"):
        from_gguf(tmp_path / "other.gguf")
    with pytest.raises(NotImplementedError, match="head_count_kv differs from layer to layer"):
        from_gguf(tmp_path / "heads.gguf")


def test_sources_of_every_kind(tmp_path: Path) -> None:
    tiny = MODELS[0]
    path = write(tmp_path / "m.gguf", tiny, original(tiny), gguf.GGMLQuantizationType.Q8_0)
    expected = logits(from_gguf(path))
    mmgguf.edit.split(path, tmp_path / "shard", max_tensors=5)
    shards = sorted(tmp_path.glob("shard-*"))
    for source in (io.BytesIO(path.read_bytes()), shards[0], mmgguf.open(path, storage="read")):
        assert torch.equal(logits(from_gguf(source)), expected)
    modules = from_gguf(path, device="meta")
    assert {value.device.type for value in modules.state_dict().values()} == {"meta"}
    assert isinstance(modules.model.layers[0].self_attn.q_proj, QuantizedLinear)


def test_weights_that_are_integers_are_refused(tmp_path: Path) -> None:
    tiny = MODELS[0]
    path = write(tmp_path / "m.gguf", tiny, original(tiny))
    with mmgguf.open(path) as f:
        for name in ("blk.1.ffn_up.weight", "output_norm.weight"):
            numbers = np.zeros(f[name].shape, np.int32)
            mmgguf.write(tmp_path / "x.gguf", f.metadata, {**f, name: numbers})
            with pytest.raises(mmgguf.errors.FormatError, match=f"{name} has integers, int32"):
                from_gguf(tmp_path / "x.gguf")


REFUSED = {
    "phi3-long": {"phi3.rope.scaling.original_context_length": mmgguf.TypedValue(1, ValueType.UINT32)},
    "phi3": {"phi3.rope.scaling.factor": mmgguf.TypedValue(2.0, ValueType.FLOAT32)},
    "gemma2-narrow": {"gemma2.embedding_length": mmgguf.TypedValue(7, ValueType.UINT32)},
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_transformers_refuses_is_an_error_of_the_file(name: str, tmp_path: Path) -> None:
    (tiny,) = (tiny for tiny in MODELS if tiny.id == name)
    path = write(tmp_path / "m.gguf", tiny, original(tiny))
    with mmgguf.open(path) as f:
        mmgguf.write(tmp_path / "x.gguf", f.metadata.replace(REFUSED[name]), f)
    with pytest.raises(mmgguf.GGUFError, match="transformers refuses the configuration") as caught:
        from_gguf(tmp_path / "x.gguf")
    assert str(caught.value).isprintable()


def test_an_end_token_that_is_an_array_is_refused(tmp_path: Path) -> None:
    tiny = MODELS[0]
    path = write(tmp_path / "m.gguf", tiny, original(tiny))
    with mmgguf.open(path) as f:
        ends = mmgguf.TypedValue([1, 2], ValueType.ARRAY, ValueType.UINT32)
        mmgguf.write(tmp_path / "x.gguf", f.metadata.replace({"tokenizer.ggml.eot_token_id": ends}), f)
    with pytest.raises(mmgguf.errors.MetadataTypeError, match="eot_token_id: an integer was asked for"):
        from_gguf(tmp_path / "x.gguf")


def test_copies_and_closed_files(tmp_path: Path) -> None:
    (tiny,) = (tiny for tiny in MODELS if tiny.id == "llama-tied-biased")
    path = write(tmp_path / "m.gguf", tiny, original(tiny), gguf.GGMLQuantizationType.Q4_0)
    with mmgguf.open(path) as f:
        model = from_gguf(f)
    expected = logits(model)
    duplicate = copy.deepcopy(model)
    assert duplicate.lm_head.weight.data_ptr() == duplicate.model.embed_tokens.weight.data_ptr()
    model.tie_weights()
    assert torch.equal(logits(model), expected)
    del model
    assert torch.equal(logits(duplicate), expected)
    # Whoever writes to a model does not write to the file.
    before = path.read_bytes()
    other = from_gguf(path)
    for buffer in other.buffers():
        if isinstance(buffer, PackedTensor):
            buffer.zero_()
    assert path.read_bytes() == before
    assert torch.equal(logits(duplicate), expected)


@pytest.mark.parametrize("name", ["llama", "qwen2", "gemma3"])
def test_another_dtype_afterwards(name: str, tmp_path: Path) -> None:
    (tiny,) = (tiny for tiny in MODELS if tiny.id == name)
    path = write(tmp_path / "m.gguf", tiny, original(tiny), gguf.GGMLQuantizationType.Q8_0)
    actual, expected = logits(from_gguf(path).to(torch.bfloat16)), logits(from_gguf(path, dtype=torch.bfloat16))
    assert actual.dtype == torch.bfloat16
    # torch rounds the frequencies of rotary embeddings as well.
    torch.testing.assert_close(actual, expected, rtol=0, atol=0.05 * float(expected.abs().max()))


# A real model.

PROMPT = [1, 504, 3575, 282, 4649, 314]  # "The capital of France is", after the token that begins a text


def test_smollm2_as_transformers_reads_it(smollm2: Path) -> None:
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        smollm2.parent, gguf_file=smollm2.name, dtype=torch.float32
    ).eval()
    ids = torch.tensor([PROMPT])
    packed, numbers = from_gguf(smollm2), from_gguf(smollm2, quantized=False)
    assert torch.equal(logits(numbers, ids), logits(theirs, ids))
    torch.testing.assert_close(logits(packed, ids), logits(theirs, ids), rtol=0, atol=1e-3)
    expected = theirs.generate(ids, **GREEDY)
    assert torch.equal(packed.generate(ids, **GREEDY), expected)
    assert torch.equal(numbers.generate(ids, **GREEDY), expected)


MEMORY = """
import json, os, sys, threading, time
import torch, transformers, transformers.models.llama.modeling_llama
from mmgguf.torch import from_gguf
import mmgguf.torch.huggingface

def resident():
    with open("/proc/self/status") as status:
        fields = dict(line.split(":", 1) for line in status)
    return {key: int(fields[key].split()[0]) << 10 for key in ("VmRSS", "RssAnon", "VmHWM")}

torch.ones(8, 8) @ torch.ones(8, 8)
tiny = transformers.LlamaConfig(hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
                                vocab_size=32)
transformers.AutoModelForCausalLM.from_config(tiny)(torch.tensor([[1, 2]]))
open("/proc/self/clear_refs", "w").write("5")  # the peak from here on
before = resident()
model = from_gguf(sys.argv[1])
loaded = resident()
# Every weight is used: the file is in memory now, as far as it will be.
total = sum(int(buffer.bytes().numpy().max()) for buffer in model.buffers() if buffer.dtype == torch.uint8)
print(json.dumps([before, loaded, resident(), total]))
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux tells the peak")
def test_a_loaded_model_takes_little_more_memory_than_its_file(smollm2: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", MEMORY, str(smollm2)], check=True, capture_output=True, text=True
    )
    before, loaded, used, _ = json.loads(run.stdout.splitlines()[-1])
    size = smollm2.stat().st_size
    assert loaded["VmHWM"] - before["VmRSS"] <= 1.15 * size
    assert used["VmHWM"] - before["VmRSS"] <= 1.15 * size
    # Memory of its own are the rows that were put back, and little else.
    assert loaded["RssAnon"] - before["RssAnon"] <= 0.4 * size
