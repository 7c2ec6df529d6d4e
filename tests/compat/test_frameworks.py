"""Programs that use pip's gguf, with and without `mmgguf.compat.install`: transformers and diffusers.

They are not among the test dependencies (half a gigabyte): who has them, as CI has, runs these tests.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

#: Fails where something else than the local files is asked for.
OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}

# The same call twice in one process: their functions import gguf's reader when they are called.
TRANSFORMERS = """
import sys
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
import gguf, mmgguf.compat

folder, name = sys.argv[1:]

def load():
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name)
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=name)
    return model.state_dict(), model.config.to_dict(), tokenizer.get_vocab(), tokenizer.encode("Hello, 世界!")

without = load()
mmgguf.compat.install()
made = []
original = mmgguf.compat.GGUFReader.__init__
mmgguf.compat.GGUFReader.__init__ = lambda self, *arguments: (made.append(arguments), original(self, *arguments))[1]
with_ = load()
assert made, "transformers did not use the installed reader"
assert with_[0].keys() == without[0].keys() and len(with_[0]) > 270, len(with_[0])
for key, tensor in with_[0].items():
    assert tensor.dtype == without[0][key].dtype and torch.equal(tensor, without[0][key]), key
assert with_[1:] == without[1:]
assert len(with_[2]) == 49152
print("equal", len(with_[0]))
"""

DIFFUSERS = """
import sys
from pathlib import Path
import numpy as np
import torch
from diffusers import FluxTransformer2DModel, GGUFQuantizationConfig
from diffusers.models.model_loading_utils import load_gguf_checkpoint
import gguf, mmgguf, mmgguf.compat

folder = Path(sys.argv[1])
torch.manual_seed(0)
small = FluxTransformer2DModel(
    patch_size=1, in_channels=64, num_layers=1, num_single_layers=1, attention_head_dim=32, num_attention_heads=2,
    joint_attention_dim=64, pooled_projection_dim=64, axes_dims_rope=(8, 12, 12),
)
small.save_config(folder)
writer = gguf.GGUFWriter(folder / "small.gguf", "flux")
for name, tensor in small.state_dict().items():
    values = tensor.numpy().astype(np.float32)
    type_ = gguf.GGMLQuantizationType.Q8_0 if values.ndim == 2 else gguf.GGMLQuantizationType.F32
    writer.add_tensor(name, gguf.quants.quantize(values, type_), raw_dtype=type_)
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()

def load():
    model = FluxTransformer2DModel.from_single_file(
        str(folder / "small.gguf"), config=str(folder), torch_dtype=torch.float32,
        quantization_config=GGUFQuantizationConfig(compute_dtype=torch.float32),
    )
    torch.manual_seed(1)
    with torch.no_grad():
        result = model(
            hidden_states=torch.randn(1, 16, 64), encoder_hidden_states=torch.randn(1, 4, 64),
            pooled_projections=torch.randn(1, 64), timestep=torch.tensor([1.0]), img_ids=torch.zeros(16, 3),
            txt_ids=torch.zeros(4, 3), guidance=None,
        ).sample
    return load_gguf_checkpoint(str(folder / "small.gguf")), model.state_dict(), result

without = load()
mmgguf.compat.install()
made = []
original = mmgguf.compat.GGUFReader.__init__
mmgguf.compat.GGUFReader.__init__ = lambda self, *arguments: (made.append(arguments), original(self, *arguments))[1]
with_ = load()
assert made, "diffusers did not use the installed reader"
quantized = 0
for one, other in zip(with_[:2], without[:2]):
    assert one.keys() == other.keys()
    for key in one:
        assert type(one[key]) is type(other[key]), key
        assert getattr(one[key], "quant_type", None) == getattr(other[key], "quant_type", None), key
        quantized += hasattr(one[key], "quant_type")
        assert bytes(one[key].view(torch.uint8).numpy()) == bytes(other[key].view(torch.uint8).numpy()), key
assert torch.equal(with_[2], without[2]) and with_[2].std() > 0
print("equal", quantized)
"""


def run(script: str, *arguments: str | Path) -> list[str]:
    environment = {**os.environ, **OFFLINE, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    # Their warnings are theirs; the script's assertions are the test.
    command = [sys.executable, "-W", "ignore", "-c", script, *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=600)
    assert result.returncode == 0, result.stderr[-4000:]
    return result.stdout.split()[-2:]


def require(*packages: str) -> None:
    for package in packages:
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")


@pytest.mark.slow
def test_transformers_loads_the_same_model(request: pytest.FixtureRequest) -> None:
    require("torch", "transformers", "accelerate")
    path: Path = request.getfixturevalue("smollm2")
    assert run(TRANSFORMERS, path.parent, path.name) == ["equal", "273"]


@pytest.mark.slow
def test_diffusers_loads_the_same_single_file(tmp_path: Path) -> None:
    require("torch", "diffusers")
    said, quantized = run(DIFFUSERS, tmp_path)
    assert said == "equal"
    assert int(quantized) > 20
