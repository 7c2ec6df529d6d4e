"""`mmgguf.torch.dequantize`: every type, eager and compiled, by each kind of kernels; and what keeps weights packed."""

from __future__ import annotations

import copy
import io
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

from mmgguf import dequant
from mmgguf.types import LAYOUTS, GGMLType

from ..dequant.test_dispatch import BLOCK_TYPES, PATTERNS, assert_same_bits, by_type, ordinary, special_scales

torch = pytest.importorskip("torch")
pytest.importorskip("array_api_compat")

from mmgguf.torch import PackedTensor, dequantize  # noqa: E402
from mmgguf.torch import packed as module  # noqa: E402
from mmgguf.torch.memory import as_numpy  # noqa: E402

DTYPES = {torch.float32: np.float32, torch.float16: np.float16, torch.bfloat16: ml_dtypes.bfloat16}
# torch warns of what it does itself while it compiles.
quiet = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def pack(raw: NDArray[np.uint8], type_: GGMLType) -> PackedTensor:
    return PackedTensor.wrap(torch.from_numpy(raw), type_)


def expected(raw: NDArray[np.uint8], type_: GGMLType, dtype: Any = np.float32) -> NDArray[Any]:
    with np.errstate(all="ignore"):
        return dequant.dequantize(raw, type_, dtype, backend="numpy")


@by_type(BLOCK_TYPES)
@pytest.mark.parametrize("backend", [None, "numpy", "portable"])
def test_eager(backend: str | None, type_: GGMLType) -> None:
    for pattern in PATTERNS:
        raw = pattern(type_)
        actual = dequantize(pack(raw, type_), backend=backend)
        assert actual.shape == (raw.shape[0], raw.shape[1] // LAYOUTS[type_].type_size * LAYOUTS[type_].block_size)
        assert_same_bits(actual.numpy(), expected(raw, type_))


def test_the_guide_s_table_has_every_type() -> None:
    text = (Path(__file__).parents[2] / "docs" / "guides" / "torch.md").read_text()
    rows = re.findall(r"^\| ([A-Z].*?) \|.* equal .*\|$", text, re.MULTILINE)
    assert sorted(name for row in rows for name in row.split(", ")) == sorted(type_.name for type_ in BLOCK_TYPES)


@pytest.mark.slow
@quiet
@by_type(BLOCK_TYPES)
@pytest.mark.parametrize("pattern", [special_scales], ids=["special_scales"])
def test_compiled(pattern: Callable[[GGMLType], NDArray[np.uint8]], type_: GGMLType) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(lambda packed: dequantize(packed, backend="portable"), fullgraph=True)
    raw = pattern(type_)
    assert_same_bits(compiled(pack(raw, type_)).numpy(), expected(raw, type_))


@by_type(BLOCK_TYPES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("backend", [None, "portable"])
def test_dtypes(backend: str | None, dtype: Any, type_: GGMLType) -> None:
    raw = ordinary(type_, 3)
    actual = dequantize(pack(raw, type_), dtype=dtype, backend=backend)
    assert actual.dtype == dtype
    assert_same_bits(as_numpy(actual), expected(raw, type_, DTYPES[dtype]))


@pytest.mark.parametrize("backend", [None, "portable"])
@pytest.mark.parametrize("limit", [1, 300, 512, 1 << 24])
def test_parts_of_any_size(limit: int, backend: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CHUNK", limit)
    for type_ in (GGMLType.Q4_K, GGMLType.Q8_0):
        raw = ordinary(type_, 3, 5)
        out = torch.full((5, 3 * LAYOUTS[type_].block_size + 7), 9, dtype=torch.bfloat16)
        inner = out[:, 2:-5]
        assert dequantize(pack(raw, type_), out=inner, backend=backend) is inner
        assert_same_bits(as_numpy(inner.contiguous()), expected(raw, type_, ml_dtypes.bfloat16))
        assert (out[:, :2] == 9).all()
        assert (out[:, -5:] == 9).all()


def test_out_is_the_memory_that_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = ordinary(GGMLType.Q5_1, 4)
    out = torch.empty(3, 128, dtype=torch.float16)
    assert dequantize(pack(raw, GGMLType.Q5_1), out=out) is out
    assert_same_bits(out.numpy(), expected(raw, GGMLType.Q5_1, np.float16))


def test_the_cpu_s_kernels_work_on_the_tensor_s_own_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def kernel(blocks: NDArray[Any], type_: GGMLType, **options: Any) -> Any:
        seen.append(blocks.__array_interface__["data"][0])
        seen.append(options["out"].__array_interface__["data"][0])

    monkeypatch.setattr("mmgguf.dequant.dequantize", kernel)
    packed = pack(ordinary(GGMLType.Q4_0), GGMLType.Q4_0)
    result = dequantize(packed)
    assert seen == [packed.data_ptr(), result.data_ptr()]


ROWS: dict[str, Any] = {
    "one": 2,
    "negative": -1,
    "slice": slice(1, 3),
    "backwards": [2, 0, 0],
    "ids": torch.tensor([[3, 1], [0, 3]]),
    "mask": torch.tensor([True, False, True, True]),
    "new axis": (None, slice(2)),
    "ellipsis": (1, Ellipsis),
    "all": Ellipsis,
}


@pytest.mark.parametrize("key", ROWS.values(), ids=list(ROWS))
def test_rows_stay_packed(key: Any) -> None:
    raw = ordinary(GGMLType.Q4_K, 2, 4)
    taken = pack(raw, GGMLType.Q4_K)[key]
    assert type(taken) is PackedTensor
    assert taken.ggml_type == GGMLType.Q4_K
    key = key.numpy() if isinstance(key, torch.Tensor) else key
    numbers = expected(raw, GGMLType.Q4_K)[key]
    assert taken.logical_shape == numbers.shape
    assert_same_bits(taken.dequantize().numpy(), numbers)


IDS = torch.tensor([3, 1])
TAKEN: dict[str, tuple[Any, Any]] = {
    "index_select": (lambda packed: packed.index_select(0, IDS), [3, 1]),
    "torch.index_select": (lambda packed: torch.index_select(packed, dim=0, index=IDS), [3, 1]),
    "narrow": (lambda packed: packed.narrow(0, 1, 2), slice(1, 3)),
    "select": (lambda packed: packed.select(0, 2), 2),
    "embedding": (lambda packed: torch.nn.functional.embedding(IDS, packed), [3, 1]),
    "iteration": (lambda packed: list(packed)[1], 1),
    "unbind": (lambda packed: torch.unbind(packed)[3], 3),
    "split": (lambda packed: packed.split(3)[1], slice(3, 4)),
    "split of sizes": (lambda packed: torch.split(packed, [1, 3], dim=0)[1], slice(1, 4)),
    "chunk": (lambda packed: packed.chunk(2, dim=-2)[0], slice(0, 2)),
}


@pytest.mark.parametrize(("take", "key"), TAKEN.values(), ids=list(TAKEN))
def test_rows_taken_by_functions_stay_packed(take: Any, key: Any) -> None:
    packed = pack(ordinary(GGMLType.Q4_K, 2, 4), GGMLType.Q4_K)
    taken = take(packed)
    assert type(taken) is PackedTensor
    assert torch.equal(taken.dequantize(), packed.dequantize()[key])


@pytest.mark.parametrize(
    "take",
    [
        lambda packed: packed.index_select(1, IDS),
        lambda packed: packed.narrow(-1, 0, 144),
        lambda packed: packed.chunk(2, 1)[0],
        lambda packed: packed.split(144, dim=-1)[0],
        lambda packed: packed.unbind(-1)[0],
        lambda packed: packed.T,
        lambda packed: packed + packed,
    ],
)
def test_other_operations_give_bytes(take: Any) -> None:
    assert type(take(pack(ordinary(GGMLType.Q4_K, 2, 4), GGMLType.Q4_K))) is torch.Tensor


def test_experts_stay_packed() -> None:
    packed = pack(ordinary(GGMLType.Q8_0, 2, 12).reshape(3, 4, -1), GGMLType.Q8_0)
    assert packed.logical_shape == (3, 4, 64)
    assert torch.equal(packed[1].dequantize(), packed.dequantize()[1])
    assert torch.equal(packed[:, 2].dequantize(), packed.dequantize()[:, 2])
    assert type(packed[..., :34]) is torch.Tensor


@pytest.mark.parametrize(
    "key", [(slice(None), slice(0, 144)), (Ellipsis, 0), (0, 0), (slice(None), torch.arange(288))], ids=str
)
def test_parts_of_rows_are_bytes(key: Any) -> None:
    taken = pack(ordinary(GGMLType.Q4_K, 2, 4), GGMLType.Q4_K)[key]
    assert type(taken) is torch.Tensor


JOINED: dict[str, Any] = {
    "cat": lambda a, b: torch.cat([a, b]),
    "cat dim": lambda a, b: torch.cat((a, b), dim=-2),
    "stack": lambda a, b: torch.stack([a, b]),
    "stack dim": lambda a, b: torch.stack([a, b], 1),
}


@pytest.mark.parametrize("join", JOINED.values(), ids=list(JOINED))
def test_joined_rows_of_one_type_stay_packed(join: Any) -> None:
    first, second = (pack(ordinary(type_, 2), type_) for type_ in (GGMLType.Q4_0, GGMLType.IQ4_NL))
    assert torch.equal(join(first, first).dequantize(), join(first.dequantize(), first.dequantize()))
    # As many bytes, but something else.
    assert type(join(first, second)) is torch.Tensor
    assert type(torch.cat([first, first], dim=1)) is torch.Tensor
    assert type(torch.stack([first, first], -1)) is torch.Tensor


def _loaded(value: Any) -> Any:
    buffer = io.BytesIO()
    torch.save({"w": value}, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)["w"]


class _Module(torch.nn.Module):
    def __init__(self, packed: PackedTensor) -> None:
        super().__init__()
        self.register_buffer("w", packed)


class _Rows(torch.utils.data.Dataset[Any]):
    def __init__(self, packed: PackedTensor) -> None:
        self.packed = packed

    def __len__(self) -> int:
        return len(self.packed)

    def __getitem__(self, index: int) -> Any:
        return self.packed[index]


KEPT: dict[str, Any] = {
    "to": lambda packed: packed.to("cpu", copy=True),
    "deepcopy": copy.deepcopy,
    "pickle": lambda packed: pickle.loads(pickle.dumps(packed)),
    "torch.load with weights_only": _loaded,
    "state_dict": lambda packed: _Module(packed).state_dict()["w"],
    "a module's half": lambda packed: _Module(packed).half().w,
    "to_empty": lambda packed: _Module(packed.to("meta")).to_empty(device="cpu").w.copy_(packed),
    "load_state_dict": lambda packed: _filled(packed).w,
    "a batch of a DataLoader": lambda packed: next(iter(torch.utils.data.DataLoader(_Rows(packed), batch_size=4))),
}


def _filled(packed: PackedTensor) -> Any:
    module = _Module(packed.to("meta"))
    module.load_state_dict({"w": packed}, assign=True)
    return module


@pytest.mark.parametrize("do", KEPT.values(), ids=list(KEPT))
def test_it_stays_packed(do: Any) -> None:
    packed = pack(ordinary(GGMLType.Q6_K, 2, 4), GGMLType.Q6_K)
    kept = do(packed)
    assert type(kept) is PackedTensor
    assert (kept.ggml_type, kept.logical_shape) == (GGMLType.Q6_K, (4, 512))
    assert torch.equal(kept.dequantize(), packed.dequantize())


@pytest.mark.slow
def test_workers_of_a_data_loader_hand_over_packed_rows() -> None:
    packed = pack(ordinary(GGMLType.Q6_K, 2, 4), GGMLType.Q6_K)
    loader = torch.utils.data.DataLoader(_Rows(packed), batch_size=2, num_workers=1, multiprocessing_context="spawn")
    batches = list(loader)
    assert [type(batch) for batch in batches] == [PackedTensor] * 2
    assert torch.equal(torch.cat([batch.dequantize() for batch in batches]), packed.dequantize())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="memory is pinned for a GPU, and there is none")
def test_pinned_memory_stays_packed() -> None:
    packed = pack(ordinary(GGMLType.Q6_K, 2, 4), GGMLType.Q6_K).pin_memory()
    assert (type(packed), packed.is_pinned()) == (PackedTensor, True)


def test_only_metadata_on_meta() -> None:
    packed = pack(ordinary(GGMLType.Q4_0), GGMLType.Q4_0).to("meta")
    numbers = dequantize(packed, dtype=torch.bfloat16)
    assert (numbers.is_meta, numbers.dtype, tuple(numbers.shape)) == (True, torch.bfloat16, packed.logical_shape)


@pytest.mark.slow
@quiet
@pytest.mark.parametrize("backend", [None, "numpy", "portable"])
def test_a_compiled_function_has_one_graph(backend: str | None) -> None:
    raw = ordinary(GGMLType.Q4_K, 2, 4)
    torch._dynamo.reset()

    @torch.compile(fullgraph=True)
    def gather(packed: PackedTensor, ids: torch.Tensor) -> torch.Tensor:
        return dequantize(packed[ids], dtype=torch.bfloat16, backend=backend) * 2

    result = gather(pack(raw, GGMLType.Q4_K), torch.tensor([3, 1]))
    assert_same_bits(as_numpy(result), expected(raw, GGMLType.Q4_K, ml_dtypes.bfloat16)[[3, 1]] * 2)


@pytest.mark.slow
@quiet
@pytest.mark.parametrize("backend", [None, "portable"])
def test_a_compiled_function_takes_any_number_of_rows(backend: str | None) -> None:
    packed = pack(ordinary(GGMLType.Q8_0, 2, 16), GGMLType.Q8_0)
    torch._dynamo.reset()
    compiled = torch.compile(lambda packed, ids: dequantize(packed[ids], backend=backend), fullgraph=True, dynamic=True)
    for count in (3, 7, 16, 0, 1):
        assert torch.equal(compiled(packed, torch.arange(count)), packed.dequantize()[:count])


@pytest.mark.slow
@quiet
@pytest.mark.parametrize("backend", [None, "portable"])
def test_a_compiled_function_writes_to_out(backend: str | None) -> None:
    packed = pack(ordinary(GGMLType.Q4_K, 2, 4), GGMLType.Q4_K)
    torch._dynamo.reset()
    out = torch.zeros(packed.logical_shape)
    torch.compile(lambda packed, out: dequantize(packed, out=out, backend=backend), fullgraph=True)(packed, out)
    assert torch.equal(out, packed.dequantize())


def test_tables_are_where_packed_tensors_are(monkeypatch: pytest.MonkeyPatch) -> None:
    tables = {("cpu", None): module._TABLES["cpu", None]}
    monkeypatch.setattr(module, "_TABLES", tables)
    packed = pack(ordinary(GGMLType.IQ2_XS, 2), GGMLType.IQ2_XS)
    packed.to("meta")
    assert list(tables) == [("cpu", None)]
    like = torch.zeros(1, device="meta")  # a device that nothing was brought to
    assert module._table("iq2xs_grid", like).is_meta
    assert module._table("iq2xs_grid", torch.zeros(1)) is tables["cpu", None]["iq2xs_grid"]


RAW = torch.zeros(2, 36, dtype=torch.uint8)
BAD: dict[str, tuple[Any, type[Exception], str]] = {
    "not packed": (lambda p: dequantize(RAW), TypeError, "must be a PackedTensor, got Tensor"),
    "dtype": (lambda p: dequantize(p, dtype=torch.int32), TypeError, "dtype must be one of torch.float32"),
    "backend": (lambda p: dequantize(p, backend="cuda"), ValueError, "backend must be one of portable, numba, numpy"),
    "out's dtype": (
        lambda p: dequantize(p, dtype=torch.float16, out=torch.empty(2, 64)),
        TypeError,
        "out must have dtype torch.float16",
    ),
    "out's shape": (lambda p: dequantize(p, out=torch.empty(2, 32)), ValueError, r"shape \(2, 64\), got \(2, 32\)"),
    "out's device": (
        lambda p: dequantize(p, out=torch.empty(2, 64, device="meta")),
        ValueError,
        "out must be on cpu, where the blocks are, got meta",
    ),
    "unreachable": (lambda p: dequantize(p.to("meta"), backend="numpy"), ValueError, "the blocks are on meta"),
    "plain type": (lambda p: PackedTensor.wrap(RAW, GGMLType.F16), TypeError, "F16 is a plain type"),
    "floats": (lambda p: PackedTensor.wrap(RAW.float(), GGMLType.Q4_0), TypeError, "must be bytes"),
    "part of a block": (lambda p: PackedTensor.wrap(RAW[:, 1:], GGMLType.Q4_0), ValueError, "35 bytes is not a whole"),
    "no axis": (lambda p: PackedTensor.wrap(RAW[0, 0], GGMLType.Q4_0), ValueError, "at least one axis"),
    "no such type": (lambda p: PackedTensor.wrap(RAW, 4), ValueError, "4 is not a valid GGMLType"),
}


@pytest.mark.parametrize(("use", "error", "message"), BAD.values(), ids=list(BAD))
def test_bad_arguments(use: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        use(PackedTensor.wrap(RAW.clone(), GGMLType.Q4_0))


def test_a_checkpoint_that_lies_about_its_type_is_refused() -> None:
    lying = PackedTensor._wrap(RAW, GGMLType.Q6_K)
    with pytest.raises(ValueError, match="36 bytes is not a whole number of Q6_K blocks"):
        _loaded(lying).dequantize()
