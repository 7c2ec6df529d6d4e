"""peft's LoRA on a model with packed weights: it learns, is saved without the weights, and leaves these alone."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
gguf = pytest.importorskip("gguf")
peft = pytest.importorskip("peft")

import torch  # noqa: E402

from mmgguf.torch import PackedTensor, QuantizedLinear, from_gguf  # noqa: E402

from ..support.huggingface import MODELS, make, write  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]

IDS = torch.randint(3, 96, (4, 16), generator=torch.Generator().manual_seed(7))
BY_ID = {tiny.id: tiny for tiny in MODELS}


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = model(IDS).logits
    return result


def trained(model: Any, steps: int) -> list[float]:
    optimizer = torch.optim.Adam([parameter for parameter in model.parameters() if parameter.requires_grad], 1e-2)
    losses = []
    for _ in range(steps):
        loss = model(IDS, labels=IDS).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize(
    ("model", "dtype"),
    [
        ("llama", torch.float32),
        ("llama", torch.bfloat16),
        ("llama-tied-biased", torch.float32),
        ("mixtral", torch.float32),
    ],
    ids=str,
)
# peft looks for experts in parameters, which packed ones are not.
@pytest.mark.filterwarnings("ignore:The following .*_pattern keys did not match:RuntimeWarning")
def test_it_trains_and_is_read_again(dtype: torch.dtype, model: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    tiny = BY_ID[model]
    path = write(tmp_path / "model.gguf", tiny, make(tiny), gguf.GGMLQuantizationType.Q8_0)
    base = from_gguf(path, dtype=dtype)
    blocks = {key: value.clone() for key, value in base.state_dict().items() if isinstance(value, PackedTensor)}
    before = logits(base)
    lora = peft.get_peft_model(base, peft.LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    adapted = lora.base_model.model.model.layers[0].self_attn.q_proj
    assert isinstance(adapted.base_layer, QuantizedLinear)
    losses = trained(lora.train(), 15)
    assert losses[-1] < 0.7 * losses[0]
    lora.eval()
    with lora.disable_adapter():
        assert torch.equal(logits(lora), before)
    # The blocks are those of the file still.
    after = {
        key.replace("base_model.model.", "").replace(".base_layer", ""): value for key, value in lora.named_buffers()
    }
    for key, value in blocks.items():
        if key in after:
            assert torch.equal(after[key].bytes(), value.bytes()), key
    lora.save_pretrained(tmp_path / "adapter")
    assert (tmp_path / "adapter" / "adapter_model.safetensors").stat().st_size < 0.7 * path.stat().st_size
    again = peft.PeftModel.from_pretrained(from_gguf(path, dtype=dtype), tmp_path / "adapter").eval()
    assert torch.equal(logits(again), logits(lora))


def test_gradient_checkpointing(tmp_path: Path) -> None:
    tiny = BY_ID["llama"]
    path = write(tmp_path / "model.gguf", tiny, make(tiny), gguf.GGMLQuantizationType.Q8_0)
    base = from_gguf(path)
    base.gradient_checkpointing_enable()
    base.enable_input_require_grads()
    lora = peft.get_peft_model(base, peft.LoraConfig(r=4, target_modules=["q_proj"])).train()
    lora(IDS, labels=IDS, use_cache=False).loss.backward()
    assert all(parameter.grad is not None for parameter in lora.parameters() if parameter.requires_grad)


def test_merging_into_blocks_is_an_error_that_changes_nothing(tmp_path: Path) -> None:
    tiny = BY_ID["llama"]
    path = write(tmp_path / "model.gguf", tiny, make(tiny), gguf.GGMLQuantizationType.Q8_0)
    lora = peft.get_peft_model(from_gguf(path), peft.LoraConfig(r=4, target_modules=["q_proj"]))
    trained(lora.train(), 2)
    expected = logits(lora.eval())
    for safe in (False, True):
        with pytest.raises(RuntimeError):
            copy.deepcopy(lora).merge_and_unload(safe_merge=safe)
    assert torch.equal(logits(lora), expected)
    # The way to one set of weights: the adapter on a model of numbers.
    lora.save_pretrained(tmp_path / "adapter")
    numbers = peft.PeftModel.from_pretrained(from_gguf(path, quantized=False), tmp_path / "adapter")
    torch.testing.assert_close(logits(numbers.merge_and_unload().eval()), expected, rtol=0, atol=1e-4)
