"""Layers with packed weights: their numbers are those of ordinary layers, and gradients go through them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mmgguf.types import GGMLType

from ..dequant.test_dispatch import ordinary

torch = pytest.importorskip("torch")

from mmgguf.torch import PackedTensor, QuantizedEmbedding, QuantizedExperts, QuantizedLinear, layers  # noqa: E402


def pack(type_: GGMLType, rows: int, n_blocks: int = 1) -> PackedTensor:
    return PackedTensor.wrap(torch.from_numpy(ordinary(type_, n_blocks, rows)), type_)


def assert_close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    """Equal but for the order in which a product's terms were added: relative to the largest number."""
    scale = float(expected.detach().abs().max()) if expected.numel() else 1.0
    tolerance = 1e-2 if expected.dtype == torch.bfloat16 else 1e-6
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance * max(scale, 1e-30))


@pytest.fixture(params=[1, 1000, 1 << 20], ids=lambda limit: f"tiles of {limit}")
def tiles(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers, "_TILE_ON_THE_CPU", request.param)


@pytest.mark.usefixtures("tiles")
@pytest.mark.parametrize("type_", [GGMLType.Q4_K, GGMLType.Q8_0], ids=lambda type_: type_.name)
@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (0,), (2, 0, 3)], ids=str)
def test_linear(shape: tuple[int, ...], type_: GGMLType) -> None:
    weight, bias = pack(type_, 11, 2), torch.randn(11)
    layer = QuantizedLinear(weight, bias)
    reference = torch.nn.Linear(layer.in_features, 11)
    reference.load_state_dict({"weight": weight.dequantize(), "bias": bias})
    first = torch.randn(*shape, layer.in_features, requires_grad=True)
    second = first.detach().clone().requires_grad_()
    results = layer(first), reference(second)
    assert_close(*results)
    gradient = torch.randn_like(results[0])
    for result in results:
        result.backward(gradient)
    assert_close(first.grad, second.grad)


@pytest.mark.usefixtures("tiles")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_the_input_s_dtype_decides(dtype: Any) -> None:
    weight = pack(GGMLType.Q8_0, 5)
    result = QuantizedLinear(weight)(torch.ones(2, 32, dtype=dtype))
    assert result.dtype == dtype
    assert_close(result, torch.ones(2, 32, dtype=dtype) @ weight.dequantize(dtype=dtype).T)


def test_autocast() -> None:
    layer = QuantizedLinear(pack(GGMLType.Q8_0, 5))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(torch.ones(2, 32)).dtype == torch.bfloat16


def test_only_a_tile_of_a_weight_exists_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    original = layers.numbers

    def numbers(blocks: Any, *args: Any, **options: Any) -> Any:
        result = original(blocks, *args, **options)
        sizes.append(result.numel())
        return result

    monkeypatch.setattr(layers, "numbers", numbers)
    monkeypatch.setattr(layers, "_TILE_ON_THE_CPU", 4096)
    QuantizedLinear(pack(GGMLType.Q4_0, 1000, 4))(torch.ones(1, 128))
    assert sum(sizes) == 1000 * 128
    assert max(sizes) <= 4096


def test_lora_learns_on_top() -> None:
    torch.manual_seed(0)
    base = QuantizedLinear(pack(GGMLType.Q4_0, 16))
    down, up = torch.nn.Linear(32, 4, bias=False), torch.nn.Linear(4, 16, bias=False)
    head = torch.nn.Linear(16, 8)
    inputs, targets = torch.randn(64, 32), torch.randn(64, 8)
    optimizer = torch.optim.Adam([*down.parameters(), *up.parameters()], 1e-2)
    losses = []
    for _ in range(30):
        loss = torch.nn.functional.mse_loss(head(base(inputs) + up(down(inputs))), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
    assert not list(base.parameters())


def test_gradients_reach_what_is_before_a_packed_layer() -> None:
    first, second = torch.nn.Linear(8, 32), QuantizedLinear(pack(GGMLType.Q4_0, 16))
    second(first(torch.ones(1, 8))).sum().backward()
    assert first.weight.grad is not None
    assert first.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("scale", [None, 2.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_embedding(dtype: Any, scale: float | None) -> None:
    weight = pack(GGMLType.Q5_K, 9)
    layer = QuantizedEmbedding(weight, dtype=dtype, scale=scale)
    ids = torch.tensor([[8, 0], [3, 3]])
    expected = weight.dequantize(dtype=dtype)[ids] * (1 if scale is None else torch.tensor(scale, dtype=dtype))
    assert torch.equal(layer(ids), expected)
    assert layer(ids[:, :0]).shape == (2, 0, 256)
    assert layer.half()(ids).dtype == torch.float16


def test_an_embedding_makes_numbers_of_the_rows_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, ...]] = []
    original = layers.numbers
    monkeypatch.setattr(layers, "numbers", lambda blocks, *rest: seen.append(blocks.shape) or original(blocks, *rest))
    QuantizedEmbedding(pack(GGMLType.Q4_0, 1000))(torch.tensor([5, 7]))
    assert seen == [(2, 18)]


def test_experts() -> None:
    torch.manual_seed(0)
    gate, up, down = (pack(GGMLType.Q8_0, rows).reshape(3, -1, 34) for rows in (3 * 32, 3 * 32, 3 * 32))
    gate, up, down = (PackedTensor.wrap(part * 1, GGMLType.Q8_0) for part in (gate, up, down))
    act = torch.nn.SiLU()
    layer = QuantizedExperts(gate, up, down, act)
    states, index = torch.randn(5, 32, requires_grad=True), torch.tensor([[0, 2], [2, 0], [0, 3], [2, 0], [0, 2]])
    weights = torch.rand(5, 2)
    result = layer(states, index, weights)
    expected = torch.zeros(5, 32)
    with torch.no_grad():
        g, u, d = (part.dequantize() for part in (gate, up, down))
        for token in range(5):
            for k in range(2):
                expert = int(index[token, k])
                if expert < 3:  # 3 stands for an expert that is elsewhere
                    inner = act(states[token] @ g[expert].T) * (states[token] @ u[expert].T)
                    expected[token] += (inner @ d[expert].T) * weights[token, k]
    assert_close(result, expected)
    result.sum().backward()
    assert states.grad is not None


def test_state_dicts() -> None:
    module = torch.nn.Sequential(QuantizedLinear(pack(GGMLType.Q4_K, 4)), QuantizedEmbedding(pack(GGMLType.Q4_K, 4)))
    fresh = torch.nn.Sequential(
        QuantizedLinear(PackedTensor.wrap(torch.zeros(4, 144, dtype=torch.uint8), GGMLType.Q4_K)),
        QuantizedEmbedding(PackedTensor.wrap(torch.zeros(4, 144, dtype=torch.uint8), GGMLType.Q4_K)),
    )
    assert list(module.state_dict()) == ["0.weight", "1.weight"]
    fresh.load_state_dict(module.state_dict())
    assert torch.equal(fresh[0].weight.dequantize(), module[0].weight.dequantize())
    # From a file that keeps bytes but no types.
    fresh.load_state_dict({key: value.bytes() for key, value in module.state_dict().items()}, assign=True)
    assert type(fresh[0].weight) is PackedTensor
    other = torch.nn.Sequential(QuantizedLinear(PackedTensor.wrap(torch.zeros(4, 144, dtype=torch.uint8), 2)))
    with pytest.raises(RuntimeError, match=r"0\.weight: blocks of Q4_K for a module whose blocks are Q4_0"):
        other.load_state_dict({"0.weight": module[0].weight})


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch warns of what it does itself while it compiles
def test_compiled_layers_have_one_graph() -> None:
    torch._dynamo.reset()
    module = torch.nn.Sequential(
        QuantizedEmbedding(pack(GGMLType.Q4_0, 8)), QuantizedLinear(pack(GGMLType.Q8_0, 4), torch.ones(4))
    )
    compiled = torch.compile(module, fullgraph=True)
    ids = torch.tensor([[1, 2, 7]])
    assert_close(compiled(ids), module(ids))


def test_gradients_of_gradients() -> None:
    layer = QuantizedLinear(pack(GGMLType.Q4_0, 5))
    assert torch.autograd.gradgradcheck(layer, torch.randn(2, 32, dtype=torch.float64, requires_grad=True))


def test_tiles_are_in_memory_that_is_used_again() -> None:
    layer, other = QuantizedLinear(pack(GGMLType.Q8_0, 5)), QuantizedLinear(pack(GGMLType.Q4_0, 4))
    with torch.inference_mode():
        layer(torch.ones(1, 32, dtype=torch.float64))
    memory = layers._SCRATCH.memory
    inputs = torch.ones(1, 32, requires_grad=True)
    first = layer(inputs)
    kept = first.detach().clone()
    second = other(inputs)
    assert layers._SCRATCH.memory is memory
    # Neither result, nor what the backward pass needs, is in it.
    (first.sum() + second.sum()).backward()
    assert torch.equal(first, kept)
    assert_close(inputs.grad, (layer.weight.dequantize().sum(0) + other.weight.dequantize().sum(0))[None])


@pytest.mark.parametrize("shape", [(2, 33), (2, 31), (1,), (32, 2)], ids=str)
def test_inputs_of_another_width_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"a last axis of 32 elements, got the shape \("):
        QuantizedLinear(pack(GGMLType.Q8_0, 5))(torch.ones(shape))


def test_only_shapes_on_meta() -> None:
    layer = QuantizedLinear(pack(GGMLType.Q8_0, 5)).to("meta")
    assert layer(torch.ones(2, 32, device="meta")).shape == (2, 5)


def test_bad_weights() -> None:
    with pytest.raises(TypeError, match="weight must be a PackedTensor, got Tensor"):
        QuantizedLinear(torch.zeros(2, 2))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="two axes"):
        QuantizedEmbedding(pack(GGMLType.Q4_0, 4)[0])
    with pytest.raises(ValueError, match=r"bias must have shape \(4,\), got \(3,\)"):
        QuantizedLinear(pack(GGMLType.Q4_0, 4), torch.zeros(3))
    three = PackedTensor.wrap(torch.from_numpy(np.zeros((2, 32, 18), np.uint8)), GGMLType.Q4_0)
    with pytest.raises(ValueError, match="up must have logical shape"):
        QuantizedExperts(three, three[:, :16], three, torch.nn.SiLU())
