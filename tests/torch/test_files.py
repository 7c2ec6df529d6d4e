"""`mmgguf.torch`: shared memory, safe writes, every type, devices, modules."""

from __future__ import annotations

import copy
import io
import os
import pickle
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import mmgguf
from mmgguf.dequant import dequantize
from mmgguf.storage.pages import NO_RESERVE, reserves_nothing
from mmgguf.types import LAYOUTS, GGMLType, ValueType

from ..support import cases

try:
    import torch
except ModuleNotFoundError:
    # CI installs torch on the versions of Python that it exists for.
    if os.environ.get("CI") and sys.version_info < (3, 14):
        pytest.fail("torch is not installed", pytrace=False)
    pytest.skip("torch is not installed", allow_module_level=True)

from mmgguf.torch import PackedTensor, Tensors, load_file, load_model
from mmgguf.torch.staging import Staging

ROOT = Path(__file__).resolve().parents[2]
PLAIN = {
    GGMLType.F32: torch.float32,
    GGMLType.F16: torch.float16,
    GGMLType.F64: torch.float64,
    GGMLType.BF16: torch.bfloat16,
    GGMLType.I8: torch.int8,
    GGMLType.I16: torch.int16,
    GGMLType.I32: torch.int32,
    GGMLType.I64: torch.int64,
}
FLOATS = {
    torch.float32: np.float32,
    torch.float16: np.float16,
    torch.bfloat16: ml_dtypes.bfloat16,
    torch.float64: np.float64,
}


def to_numpy(tensor: torch.Tensor) -> np.ndarray[Any, Any]:
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.uint16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()


def assert_bits(tensor: torch.Tensor, expected: np.ndarray[Any, Any]) -> None:
    actual = to_numpy(tensor)
    assert actual.dtype == expected.dtype
    assert actual.shape == expected.shape
    assert actual.tobytes() == expected.tobytes()


@pytest.mark.parametrize(
    "case_id", ["all-types", "all-types-big", "dimensions", "zero-size", "zero-rows", "no-dimensions"]
)
def test_every_tensor_has_the_file_s_numbers(case_id: str, tmp_path: Path) -> None:
    case = cases.BY_ID[case_id]
    state = load_file(case.write(tmp_path))
    assert list(state) == list(case.tensors)
    for name, tensor in case.tensors.items():
        if tensor.type in PLAIN:
            assert state[name].dtype == PLAIN[tensor.type]
            assert_bits(state[name], tensor.blocks)
        else:
            assert_bits(state[name], dequantize(tensor.blocks, tensor.type))


def test_plain_tensors_share_the_mapping(all_types: Path) -> None:
    with mmgguf.open(all_types, mode="c") as f:
        for name, value in load_file(f).items():
            shared = value.data_ptr() == f[name].data.__array_interface__["data"][0]
            assert shared == (f[name].type in PLAIN), name


def test_a_read_only_file_is_shared_through_a_mapping_of_its_own(all_types: Path) -> None:
    with mmgguf.open(all_types) as f:
        tensors = Tensors(f)
        first, second = tensors["blk.0.f32.weight"], tensors["blk.0.f32.weight"]
        assert first.data_ptr() == second.data_ptr()
        # The distance within the mapping is the one in the file: no tensor was copied anywhere.
        offsets = {tensors[name].data_ptr() - f[name].file_offset for name in f if f[name].type in PLAIN}
        assert len(offsets) == 1


def test_writing_changes_neither_the_file_nor_other_views(all_types: Path) -> None:
    before = all_types.read_bytes()
    with mmgguf.open(all_types) as f:
        tensors = Tensors(f)
        view, name = f["blk.0.i32.weight"].data, "blk.0.i32.weight"
        old = view.copy()
        tensors[name].fill_(7)
        tensors[name].numpy()[0] = 8
        np.testing.assert_array_equal(view, old)
        assert tensors[name].tolist()[0] == [8] * old.shape[1]
    state = load_file(all_types)
    for value in state.values():
        value.zero_()
    assert all_types.read_bytes() == before


def test_all_shards_of_a_split_model_are_shared(tmp_path: Path) -> None:
    for no, name in enumerate(("a", "b")):
        split = {"split.no": np.uint16(no), "split.count": np.uint16(2), "split.tensors.count": np.int32(2)}
        mmgguf.write(tmp_path / f"x-0000{no + 1}-of-00002.gguf", split, {name: np.full(3, no, "f4")})
    with mmgguf.open(tmp_path / "x-00001-of-00002.gguf") as f:
        tensors = Tensors(f)
        assert {name: value.tolist() for name, value in tensors.items()} == {"a": [0.0] * 3, "b": [1.0] * 3}
        for name in f:
            assert tensors[name].data_ptr() == tensors[name].data_ptr()
            tensors[name].fill_(7)
            assert tensors[name].tolist() == [7.0] * 3
    assert load_file(tmp_path / "x-00002-of-00002.gguf")["b"].tolist() == [1.0] * 3


def test_tensors_outlive_the_file(all_types: Path) -> None:
    with mmgguf.open(all_types) as f:
        tensors = Tensors(f)
        value = tensors["blk.0.f64.weight"]
    del tensors
    assert_bits(value, cases.BY_ID["all-types"].tensors["blk.0.f64.weight"].blocks)
    with pytest.raises(mmgguf.errors.ClosedError):
        Tensors(f)["blk.0.f64.weight"]


@pytest.mark.parametrize("mode", ["r", "c"])
def test_read_instead_of_mapped(mode: Any, all_types: Path) -> None:
    with mmgguf.open(all_types, storage="read", mode=mode) as f:
        tensors = Tensors(f)
        for name in f:
            assert_bits(tensors[name], np.asarray(f[name]))
            tensors[name].zero_()


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_dtype_is_that_of_floats_and_blocks(dtype: torch.dtype, all_types: Path) -> None:
    state = load_file(all_types, dtype=dtype)
    for name, tensor in cases.BY_ID["all-types"].tensors.items():
        value = state[name]
        if np.dtype(LAYOUTS[tensor.type].dtype).kind in "iu":
            assert value.dtype == PLAIN[tensor.type]
        elif tensor.type in PLAIN:
            expected = torch.from_numpy(tensor.blocks.astype(np.float64)).to(dtype)
            assert value.dtype == dtype
            assert torch.equal(value.isnan(), expected.isnan())
            if tensor.type is not GGMLType.F64:  # of which the way over float64 is no detour
                torch.testing.assert_close(value, expected, rtol=0, atol=0, equal_nan=True)
        else:
            assert_bits(value, dequantize(tensor.blocks, tensor.type, FLOATS[dtype]))


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn, np.float32, "float32"])
def test_other_dtypes_are_refused(dtype: Any, all_types: Path) -> None:
    with pytest.raises(TypeError, match=r"dtype must be one of torch\.float32, "):
        load_file(all_types, dtype=dtype)


@pytest.mark.parametrize("case_id", ["all-types", "all-types-big", "zero-size", "zero-rows"])
def test_raw_blocks(case_id: str, tmp_path: Path) -> None:
    case = cases.BY_ID[case_id]
    path = case.write(tmp_path)
    with mmgguf.open(path, mode="c") as f:
        state = Tensors(f, dequantize=False)
        for name, tensor in case.tensors.items():
            value = state[name]
            assert isinstance(value, PackedTensor) == (tensor.type not in PLAIN)
            if not isinstance(value, PackedTensor):
                assert_bits(value, tensor.blocks)
                continue
            assert value.ggml_type is tensor.type
            assert value.logical_shape == tensor.shape
            assert value.shape[:-1] == tensor.shape[:-1]
            assert value.numpy().tobytes() == tensor.raw
            if case.byte_order == "little" and tensor.raw:
                assert value.data_ptr() == f[name].data.__array_interface__["data"][0]
            assert_bits(value.dequantize(), dequantize(tensor.blocks, tensor.type))
            half = dequantize(tensor.blocks, tensor.type, np.float16)
            assert_bits(value.dequantize(dtype=torch.float16), half)


def _saved(value: torch.Tensor) -> Any:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


KEEPING = {
    "clone": lambda raw: raw.clone(),
    "to": lambda raw: raw.to("cpu", copy=True),
    "meta": lambda raw: raw.to("meta"),
    "same": lambda raw: raw.to("cpu"),
    "detach": lambda raw: raw.detach(),
    "contiguous": lambda raw: raw.contiguous(),
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda raw: pickle.loads(pickle.dumps(raw)),
    "save": _saved,
}
LOSING = {
    "columns": lambda raw: raw[:, :18],
    "add": lambda raw: raw + 1,
    "cast": lambda raw: raw.to(torch.float32),
    "view": lambda raw: raw.view(torch.int16),
    "argument": lambda raw: torch.zeros(2).to(raw),
}


@pytest.mark.parametrize("do", [*KEEPING.values(), *LOSING.values()], ids=[*KEEPING, *LOSING])
def test_type_and_shape_go_with_the_bytes_only(do: Any, all_types: Path) -> None:
    raw = load_file(all_types, names="blk.0.q4_0.weight", dequantize=False)["blk.0.q4_0.weight"]
    result = do(raw)
    if do in KEEPING.values():
        assert type(result) is PackedTensor
        assert (result.ggml_type, result.logical_shape) == (GGMLType.Q4_0, (3, 64))
        assert result.is_meta or result.tolist() == raw.tolist()
    else:
        assert type(result) is torch.Tensor


@pytest.mark.parametrize("names", ["blk.0.f32.weight", "blk.?.[fq]*32*", ["blk.0.f32.weight", "*.f32.*"]])
def test_names(names: Any, all_types: Path) -> None:
    assert list(load_file(all_types, names=names)) == ["blk.0.f32.weight"]


def test_a_missing_name_is_an_error(all_types: Path) -> None:
    for names in ("nothing", "nothing*", ["blk.0.f32.weight", "nothing"]):
        with pytest.raises(mmgguf.errors.NameNotFoundError, match="no tensor 'nothing"):
            load_file(all_types, names=names)


def test_progress_counts_stored_bytes(all_types: Path) -> None:
    calls: list[tuple[int, int]] = []
    load_file(all_types, progress=lambda done, total: calls.append((done, total)))
    sizes = [len(tensor.raw) for tensor in cases.BY_ID["all-types"].tensors.values()]
    assert calls == [(sum(sizes[:i]), sum(sizes)) for i in range(len(sizes) + 1)]


def test_tensors_is_a_mapping(all_types: Path) -> None:
    with mmgguf.open(all_types) as f:
        tensors = Tensors(f, dtype=torch.float16, device="meta")
        assert (len(tensors), list(tensors)) == (len(f), list(f))
        assert "blk.0.f32.weight" in tensors
        assert "nothing" not in tensors
        with pytest.raises(KeyError):
            tensors["nothing"]


def test_tensors_pickle_by_reference(all_types: Path) -> None:
    with mmgguf.open(all_types) as f:
        tensors = Tensors(f, dtype=torch.float16, dequantize=False)
        assert tensors["blk.0.f32.weight"].dtype == torch.float16
        pickled = pickle.dumps(tensors)
        again = pickle.loads(pickled)
        assert len(pickled) < 1000
        for name, value in tensors.items():
            assert_bits(again[name].as_subclass(torch.Tensor), to_numpy(value.as_subclass(torch.Tensor)))
            assert type(again[name]) is type(value)


def test_the_device_meta_has_shapes_without_data(all_types: Path) -> None:
    state = load_file(all_types, device="meta", dequantize=False)
    for name, value in load_file(all_types, dequantize=False).items():
        assert (state[name].device.type, state[name].shape) == ("meta", value.shape)
        assert (state[name].dtype, type(state[name])) == (value.dtype, type(value))


@pytest.mark.parametrize("case_id", ["all-types", "all-types-big", "zero-size", "no-dimensions"])
@pytest.mark.parametrize("size", [1 << 10, 1 << 20])
def test_staging_moves_everything_through_two_buffers(size: int, case_id: str, tmp_path: Path) -> None:
    # What a CUDA device gets, with the CPU in its place.
    with mmgguf.open(cases.BY_ID[case_id].write(tmp_path)) as f:
        staging = Staging(size, pinned=False)
        for name, expected in Tensors(f).items():
            target = torch.empty_like(expected)
            staging.fill(target, f[name])
            staging.finish()
            assert_bits(target, to_numpy(expected))


def test_staging_waits_for_a_buffer_before_it_writes_to_it(all_types: Path) -> None:
    staging = Staging(1 << 10, pinned=False)
    log: list[str] = []

    class Event:
        def synchronize(self) -> None:
            log.append("waited")

    with mmgguf.open(all_types) as f:
        staging._copied = [Event(), Event()]
        staging.fill(torch.empty(f["blk.0.q4_k.weight"].shape), f["blk.0.q4_k.weight"])
    assert log == ["waited", "waited"]


def test_staging_copies_on_its_own_from_pinned_memory(all_types: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The order of events on a CUDA device, recorded without one.
    log: list[str] = []

    class Event:
        def __init__(self, number: int) -> None:
            self.number = number

        def synchronize(self) -> None:
            log.append(f"wait {self.number}")

    class Stream:
        count = 0

        def record_event(self) -> Event:
            Stream.count += 1
            log.append(f"copy {Stream.count}")
            return Event(Stream.count)

    empty, pinned = torch.empty, []

    def fake_empty(*args: Any, pin_memory: bool = False, **options: Any) -> torch.Tensor:
        pinned.append(pin_memory)
        return empty(*args, **options)

    monkeypatch.setattr("torch.empty", fake_empty)
    monkeypatch.setattr("torch.cuda.current_stream", lambda device: Stream())
    staging = Staging(1 << 10, pinned=True)
    assert pinned == [True, True]
    name = "blk.0.q8_0.weight"
    with mmgguf.open(all_types) as f:
        targets = [empty(f[name].shape) for _ in range(4)]  # each of one piece
        for target in targets:
            staging.fill(target, f[name])
        staging.finish()
    assert log == ["copy 1", "copy 2", "wait 1", "copy 3", "wait 2", "copy 4", "wait 3", "wait 4"]
    for target in targets:
        tensor = cases.BY_ID["all-types"].tensors[name]
        assert_bits(target, dequantize(tensor.blocks, tensor.type))


# Modules.


class Tied(torch.nn.Module):
    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(4, 32, dtype=dtype)
        self.norm = torch.nn.LayerNorm(32, bias=False, dtype=dtype)
        self.head = torch.nn.Linear(32, 4, bias=False, dtype=dtype)
        self.head.weight = self.embed.weight
        self.register_buffer("count", torch.zeros(3, dtype=torch.int32))


RENAME = {"token_embd.weight": "embed.weight", "output_norm.weight": "norm.weight"}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.gguf"
    tensors = {
        "token_embd.weight": mmgguf.TypedTensor(cases.random_tensor(GGMLType.IQ4_NL, (4, 1)).blocks, GGMLType.IQ4_NL),
        "output_norm.weight": np.arange(32, dtype=np.float32) / 7,
        "count": np.arange(3, dtype=np.int32),
    }
    mmgguf.write(path, {}, tensors)
    return path


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_a_module_is_filled_in_place(dtype: torch.dtype, model: Path) -> None:
    module = Tied(dtype)
    where = {key: value.data_ptr() for key, value in module.state_dict().items()}
    result = load_model(module, model, rename=RENAME)
    assert (result.missing_keys, result.unexpected_keys) == ([], [])
    assert {key: value.data_ptr() for key, value in module.state_dict().items()} == where
    expected = load_file(model, dtype=dtype)
    for name in expected:
        assert_bits(module.state_dict()[RENAME.get(name, name)], to_numpy(expected[name]))


def test_a_module_of_another_layout_is_filled_too(model: Path) -> None:
    module = torch.nn.Module()
    module.w = torch.nn.Parameter(torch.zeros(32, 4).t())
    module.count = torch.nn.Buffer(torch.zeros(3))
    result = load_model(module, model, rename=lambda name: {"token_embd.weight": "w", "count": "count"}.get(name))
    assert not result.missing_keys
    assert not result.unexpected_keys
    assert_bits(module.w.detach().contiguous(), to_numpy(load_file(model)["token_embd.weight"]))
    assert module.count.tolist() == [0, 1, 2]


def test_a_module_on_meta_gets_the_file_s_own_memory(model: Path) -> None:
    with torch.device("meta"):
        module = Tied()
    with pytest.raises(ValueError, match="pass assign=True"):
        load_model(module, model, rename=RENAME)
    with mmgguf.open(model, mode="c") as f:
        result = load_model(module, f, rename=RENAME, strict=False, assign=True)
        assert module.norm.weight.data_ptr() == f["output_norm.weight"].data.__array_interface__["data"][0]
    assert result.missing_keys == ["head.weight"]
    assert isinstance(module.norm.weight, torch.nn.Parameter)
    assert load_model(Tied(), model, rename=RENAME, strict=False, assign=True, dtype=torch.float16).missing_keys


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize(
    "rename",
    [
        {},
        {**RENAME, "count": "more"},
        {**RENAME, "count": "norm.weight", "output_norm.weight": "count"},
        {"count": "x"},
    ],
)
def test_what_does_not_fit_is_reported_as_by_torch(rename: dict[str, str], strict: bool, model: Path) -> None:
    def outcome(load: Any) -> tuple[Any, ...]:
        module = Tied()
        module.head = torch.nn.Linear(32, 4, bias=False)
        try:
            return tuple(load(module))
        except RuntimeError as error:
            return (str(error),)

    state = {rename.get(name, name): value for name, value in load_file(model).items()}
    expected = outcome(lambda module: module.load_state_dict(state, strict=strict))
    assert outcome(lambda module: load_model(module, model, rename=rename, strict=strict)) == expected


def test_nothing_is_written_where_something_does_not_fit(model: Path) -> None:
    module = Tied()
    before = module.embed.weight.detach().clone()
    with pytest.raises(RuntimeError, match="Missing key"):
        load_model(module, model, rename={"token_embd.weight": "embed.weight"})
    assert torch.equal(module.embed.weight, before)


def test_bad_arguments_of_load_model(model: Path) -> None:
    with pytest.raises(ValueError, match=r"'token_embd\.weight' and 'output_norm\.weight' both become 'x'"):
        load_model(Tied(), model, rename=lambda name: None if name == "count" else "x")
    with pytest.raises(ValueError, match="dtype needs assign=True"):
        load_model(Tied(), model, dtype=torch.float16)


# The core's tensors, as torch takes them by itself.


WAYS: dict[str, Any] = {
    "as_tensor": torch.as_tensor,
    "asarray": torch.asarray,
    "from_dlpack": torch.from_dlpack,
    "utils": torch.utils.dlpack.from_dlpack,
}


# The next two write to memory that may be mapped read-only: what fails there is the process.  So they have one of their
# own, which takes long to start: one for all ways.


def test_writing_to_what_torch_takes_by_itself_is_harmless(all_types: Path) -> None:
    code = f"""
import sys, torch, mmgguf
sys.path.append({str(ROOT)!r})  # behind the installed package, so that this one is tested
from tests.torch.test_files import WAYS
for name, way in WAYS.items():
    print(name, flush=True)
    with mmgguf.open(sys.argv[1]) as f:
        for t in f.values():
            tensor = way(t)
            assert tensor.shape == t.shape
            before = t.data.tobytes()
            tensor.fill_(3)
            assert (tensor == 3).all() and t.data.tobytes() == before
    assert (tensor == 3).all()
"""
    before = all_types.read_bytes()
    done = subprocess.run([sys.executable, "-c", code, str(all_types)], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout.split(), done.stderr) == (0, list(WAYS), "")
    assert all_types.read_bytes() == before


@pytest.mark.skipif(not (NO_RESERVE and reserves_nothing()), reason="mapped read-only here")
def test_writing_to_what_torch_takes_of_an_array_leaves_the_file(all_types: Path) -> None:
    code = """
import sys, warnings, torch, mmgguf
warnings.simplefilter("ignore")  # from_numpy warns that the array is not writable
for way in ("from_dlpack", "from_numpy"):
    with mmgguf.open(sys.argv[1]) as f:
        for t in f.values():
            if t.type.name in ("F32", "F16", "I8") and t.size:
                getattr(torch, way)(t.data).fill_(3)
                print(way, t.type, flush=True)
"""
    before = all_types.read_bytes()
    done = subprocess.run([sys.executable, "-c", code, str(all_types)], cwd=ROOT, capture_output=True, text=True)
    written = [f"{way} {type_}" for way in ("from_dlpack", "from_numpy") for type_ in ("F32", "F16", "I8")]
    assert (done.returncode, sorted(done.stdout.splitlines()), done.stderr) == (0, sorted(written), "")
    assert all_types.read_bytes() == before


@pytest.mark.parametrize("case_id", ["all-types", "all-types-big"])
def test_torch_takes_every_tensor_as_numbers(case_id: str, tmp_path: Path) -> None:
    with mmgguf.open(cases.BY_ID[case_id].write(tmp_path)) as f:
        for t in f.values():
            expected = np.asarray(t).astype(t.dtype.newbyteorder("="))
            for way in (*WAYS.values(), torch.tensor):
                assert_bits(way(t), expected)


# Written again.


@pytest.mark.parametrize("dequantize", [True, False])
@pytest.mark.parametrize("case_id", ["all-types", "zero-size", "no-dimensions"])
def test_what_was_loaded_can_be_written(case_id: str, dequantize: bool, tmp_path: Path) -> None:
    path = cases.BY_ID[case_id].write(tmp_path)
    for dtype in [None] if not dequantize else [None, *FLOATS]:
        state = load_file(path, dtype=dtype, dequantize=dequantize)
        mmgguf.write(tmp_path / "copy.gguf", {}, state)
        with mmgguf.open(path) as before, mmgguf.open(tmp_path / "copy.gguf") as after:
            for name in before:
                if not dequantize:
                    assert (after[name].type, after[name].shape) == (before[name].type, before[name].shape)
                    assert after[name].data.tobytes() == before[name].data.tobytes()
                else:
                    assert_bits(state[name], after[name].data)


def test_parameters_can_be_written_and_an_error_names_the_tensor(tmp_path: Path) -> None:
    module = torch.nn.Linear(3, 2).to(torch.bfloat16)
    mmgguf.write(tmp_path / "x.gguf", {}, dict(module.named_parameters()))
    assert_bits(module.weight.detach(), mmgguf.load_file(tmp_path / "x.gguf")["weight"])
    for bad, message in (
        (torch.zeros(2, dtype=torch.float8_e4m3fn), r"^w: .*Float8_e4m3fn"),
        (torch.zeros(2, dtype=torch.complex64), r"^w: no ggml type has dtype complex64"),
        (torch.zeros(2, device="meta"), r"^w: "),
        (torch.eye(2).to_sparse(), r"^w: "),
    ):
        with pytest.raises(TypeError, match=message):
            mmgguf.write(tmp_path / "y.gguf", {}, {"v": torch.zeros(2), "w": bad})
    assert not (tmp_path / "y.gguf").exists()


# Rows in llama.cpp's order.


@pytest.mark.parametrize(
    ("architecture", "name", "warned"),
    [
        ("llama", "model.layers.0.self_attn.q_proj.weight", True),
        ("granite", "model.layers.0.self_attn.k_proj.bias", True),
        ("llama", "layers.0.attention.wq.weight", False),
        ("llama", "blk.0.attn_q.weight", False),
        ("llama", "model.layers.0.self_attn.v_proj.weight", False),
        ("qwen2", "model.layers.0.self_attn.q_proj.weight", False),
        (mmgguf.TypedValue(7, ValueType.UINT32), "model.layers.0.self_attn.q_proj.weight", False),
        (["llama"], "model.layers.0.self_attn.q_proj.weight", False),
        (None, "model.layers.0.self_attn.q_proj.weight", False),
    ],
)
@pytest.mark.parametrize("assign", [True, False])
def test_permuted_rows_are_warned_of(architecture: Any, name: str, warned: bool, assign: bool, tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    metadata = {} if architecture is None else {"general.architecture": architecture}
    mmgguf.write(path, metadata, {"blk.0.attn_q.weight": np.ones((2, 2), np.float32)})
    module = torch.nn.Module()
    *parents, last = name.split(".")
    inner = module
    for parent in parents:
        inner.add_module(parent, torch.nn.Module())
        inner = getattr(inner, parent)
    inner.register_parameter(last, torch.nn.Parameter(torch.zeros(2, 2)))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        load_model(module, path, rename={"blk.0.attn_q.weight": name}, assign=assign)
    assert [(w.category, w.filename) for w in caught] == [(UserWarning, __file__)] * warned
    assert all("rows of q and k are in llama.cpp's order" in str(w.message) for w in caught)
