"""`load_model` with packed weights and with transformers' names, on modules of one's own."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mmgguf
from mmgguf.types import GGMLType

from ..support import cases

torch = pytest.importorskip("torch")

from mmgguf.torch import PackedTensor, QuantizedEmbedding, QuantizedLinear, load_model  # noqa: E402
from mmgguf.torch.names import unpermuted  # noqa: E402

WIDTH, HEADS, ROWS = 32, 4, 12


class Attention(torch.nn.Module):
    """Names as in transformers, for whoever builds a model on one's own."""

    def __init__(self) -> None:
        super().__init__()
        self.q_proj = torch.nn.Linear(WIDTH, WIDTH, bias=True)
        self.k_proj = torch.nn.Linear(WIDTH, WIDTH // 2, bias=False)
        self.o_proj = torch.nn.Linear(WIDTH, WIDTH, bias=False)


class Layer(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.self_attn = Attention()
        self.input_layernorm = torch.nn.LayerNorm(WIDTH, bias=False)


class Inner(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed_tokens = torch.nn.Embedding(ROWS, WIDTH)
        self.layers = torch.nn.ModuleList([Layer()])


class Own(torch.nn.Module):
    def __init__(self, tied: bool = True) -> None:
        super().__init__()
        self.model = Inner()
        self.lm_head = torch.nn.Linear(WIDTH, ROWS, bias=False)
        if tied:
            self.lm_head.weight = self.model.embed_tokens.weight


TENSORS = {
    "token_embd.weight": cases.random_tensor(GGMLType.Q8_0, (ROWS, 1)).blocks,
    "blk.0.attn_norm.weight": np.linspace(0, 1, WIDTH, dtype=np.float32),
    "blk.0.attn_q.weight": cases.random_tensor(GGMLType.Q4_0, (WIDTH, 1)).blocks,
    "blk.0.attn_q.bias": np.arange(WIDTH, dtype=np.float32),
    "blk.0.attn_k.weight": cases.random_tensor(GGMLType.Q5_1, (WIDTH // 2, 1)).blocks,
    "blk.0.attn_output.weight": cases.random_tensor(GGMLType.IQ4_NL, (WIDTH, 1)).blocks,
}
TYPES = {
    "token_embd.weight": GGMLType.Q8_0,
    "blk.0.attn_q.weight": GGMLType.Q4_0,
    "blk.0.attn_k.weight": GGMLType.Q5_1,
    "blk.0.attn_output.weight": GGMLType.IQ4_NL,
}
METADATA = {
    "general.architecture": "llama",
    "llama.block_count": np.uint32(1),
    "llama.attention.head_count": np.uint32(HEADS),
    "llama.attention.head_count_kv": np.uint32(HEADS // 2),
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    tensors = {name: mmgguf.TypedTensor(data, TYPES[name]) if name in TYPES else data for name, data in TENSORS.items()}
    mmgguf.write(tmp_path / "own.gguf", METADATA, tensors)
    return tmp_path / "own.gguf"


def expected(path: Path) -> dict[str, Any]:
    """What transformers' names stand for, by the definition of the permutation: one head after the other."""
    numbers = {name: np.array(array) for name, array in mmgguf.load_file(path).items()}

    def back(array: Any, heads: int) -> Any:
        parts = np.split(array, heads)
        return np.concatenate([np.concatenate([part[0::2], part[1::2]]) for part in parts])

    return {
        "model.embed_tokens.weight": numbers["token_embd.weight"],
        "lm_head.weight": numbers["token_embd.weight"],
        "model.layers.0.input_layernorm.weight": numbers["blk.0.attn_norm.weight"],
        "model.layers.0.self_attn.q_proj.weight": back(numbers["blk.0.attn_q.weight"], HEADS),
        "model.layers.0.self_attn.q_proj.bias": back(numbers["blk.0.attn_q.bias"], HEADS),
        "model.layers.0.self_attn.k_proj.weight": back(numbers["blk.0.attn_k.weight"], HEADS // 2),
        "model.layers.0.self_attn.o_proj.weight": numbers["blk.0.attn_output.weight"],
    }


def held(module: torch.nn.Module) -> dict[str, Any]:
    return {
        key: (value.dequantize() if isinstance(value, PackedTensor) else value.detach()).numpy()
        for key, value in module.state_dict().items()
    }


@pytest.mark.parametrize("where", ["memory", "meta"])
@pytest.mark.parametrize("quantized", [False, True])
@pytest.mark.filterwarnings("error")
def test_transformers_names_and_rows(quantized: bool, where: str, path: Path) -> None:
    pytest.importorskip("gguf")
    with torch.device("meta" if where == "meta" else "cpu"):
        module = Own()
    if where == "meta" and not quantized:
        with pytest.raises(ValueError, match="pass assign=True"):
            load_model(module, path, rename="hf")
        result = load_model(module, path, rename="hf", assign=True, strict=False)
        assert result.missing_keys == ["lm_head.weight"]
        return
    result = load_model(module, path, rename="hf", quantized=quantized)
    assert (result.missing_keys, result.unexpected_keys) == ([], [])
    actual = held(module)
    for key, value in expected(path).items():
        np.testing.assert_array_equal(actual[key], value, err_msg=key)
    packed = {key for key, value in module.state_dict().items() if isinstance(value, PackedTensor)}
    assert len(packed) == (5 if quantized else 0)


def test_the_mapping_is_the_memory(path: Path) -> None:
    pytest.importorskip("gguf")
    with torch.device("meta"):
        module = Own()
    with mmgguf.open(path, mode="c") as f:
        load_model(module, f, rename="hf", quantized=True)
        pointers = {key: value.data_ptr() for key, value in module.state_dict().items()}
        places = {name: f[name].data.__array_interface__["data"][0] for name in f}
    assert isinstance(module.lm_head, QuantizedLinear)
    assert isinstance(module.model.embed_tokens, QuantizedEmbedding)
    assert pointers["model.embed_tokens.weight"] == pointers["lm_head.weight"] == places["token_embd.weight"]
    assert pointers["model.layers.0.self_attn.o_proj.weight"] == places["blk.0.attn_output.weight"]
    assert pointers["model.layers.0.input_layernorm.weight"] == places["blk.0.attn_norm.weight"]
    # Rows in another order are a copy.
    assert pointers["model.layers.0.self_attn.q_proj.weight"] != places["blk.0.attn_q.weight"]
    assert module.model.embed_tokens(torch.tensor([3])).shape == (1, WIDTH)


def test_packed_without_transformers_names(path: Path) -> None:
    module = torch.nn.Module()
    module.a = torch.nn.Linear(WIDTH, WIDTH)
    module.b = torch.nn.Sequential(torch.nn.Embedding(ROWS, WIDTH, dtype=torch.float16))
    module.c = torch.nn.Parameter(torch.zeros(WIDTH, WIDTH))
    bias = module.a.bias
    rename = {
        "blk.0.attn_q.weight": "a.weight",
        "blk.0.attn_q.bias": "a.bias",
        "token_embd.weight": "b.0.weight",
        "blk.0.attn_output.weight": "c",
    }
    result = load_model(module, path, rename=rename, names=list(rename), quantized=True)
    assert (result.missing_keys, result.unexpected_keys) == ([], [])
    assert isinstance(module.a, QuantizedLinear)
    assert module.a.bias is bias
    assert bias.tolist() == TENSORS["blk.0.attn_q.bias"].tolist()
    assert module.b[0](torch.tensor([1])).dtype == torch.float16
    # A parameter of something else becomes numbers.
    np.testing.assert_array_equal(module.c.detach().numpy(), mmgguf.load_file(path)["blk.0.attn_output.weight"])


def test_what_does_not_fit_changes_nothing(path: Path) -> None:
    module = Own()
    before = {key: value.clone() for key, value in module.state_dict().items()}
    with pytest.raises(RuntimeError, match="Unexpected key"):
        load_model(module, path, quantized=True)
    assert type(module.lm_head) is torch.nn.Linear
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())


def test_a_module_that_is_a_layer_itself_gets_numbers(path: Path) -> None:
    module = torch.nn.Linear(WIDTH, WIDTH)
    rename = {"blk.0.attn_q.weight": "weight", "blk.0.attn_q.bias": "bias"}
    load_model(module, path, rename=rename, names=list(rename), quantized=True)
    np.testing.assert_array_equal(module.weight.detach().numpy(), mmgguf.load_file(path)["blk.0.attn_q.weight"])


def test_a_model_without_its_head_is_filled_by_the_same_names(path: Path) -> None:
    pytest.importorskip("gguf")
    module = Inner()
    load_model(module, path, rename="hf", quantized=True)
    wanted = expected(path)
    for key, value in held(module).items():
        np.testing.assert_array_equal(value, wanted[f"model.{key}"], err_msg=key)


def test_an_architecture_that_is_not_covered_is_refused_by_name(tmp_path: Path) -> None:
    mmgguf.write(tmp_path / "x.gguf", {"general.architecture": "rwkv7"}, {})
    with pytest.raises(NotImplementedError, match=r"architecture 'rwkv7' cannot be turned .* those that can are llama"):
        load_model(Own(), tmp_path / "x.gguf", rename="hf")


@pytest.mark.parametrize("heads", [0, 3, 32])
def test_heads_that_do_not_divide_the_rows_are_refused(heads: int, path: Path) -> None:
    pytest.importorskip("gguf")
    metadata = {**METADATA, "llama.attention.head_count": np.uint32(heads)}
    with mmgguf.open(path) as f:
        mmgguf.write(path.with_name("bad.gguf"), metadata, f)
    with pytest.raises(mmgguf.GGUFError, match="not a whole number of pairs"):
        load_model(Own(), path.with_name("bad.gguf"), rename="hf")


def test_names_of_one_s_own_are_warned_of_and_transformers_not(path: Path) -> None:
    pytest.importorskip("gguf")
    rename = {"blk.0.attn_q.weight": "model.layers.0.self_attn.q_proj.weight"}
    with pytest.warns(UserWarning, match='rename="hf" puts them back'):
        load_model(Own(), path, rename=rename, strict=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_model(Own(), path, rename="hf")


@pytest.mark.parametrize(("count", "heads"), [(8, 1), (8, 2), (8, 4), (24, 3)])
def test_unpermuted_is_the_inverse_of_the_converter_s_order(count: int, heads: int) -> None:
    # As in llama.cpp's converter: each head's halves, row beside row.
    permuted = np.arange(count).reshape(heads, 2, count // heads // 2).swapaxes(1, 2).reshape(-1)
    assert permuted[unpermuted(count, heads, "x")].tolist() == list(range(count))
