"""Four jobs that somebody has with a model file, and what that somebody could pick for each.

See the metadata; get one tensor; get all tensors as float32; start computing.  From the path each time, with the
libraries imported and the page cache warm.  The same weights lie beside the GGUF file as bfloat16 in safetensors and as
float32 in ``.npy``, for those who convert once.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mmgguf
from mmgguf import compat
from mmgguf.bench.peers import PEERS, Unavailable
from mmgguf.types import LAYOUTS

from . import node
from .conftest import Case
from .files import Files, Model
from .turns import Contestant

pytestmark = pytest.mark.filterwarnings("ignore")  # those of other libraries

NO_TENSORS = "hands out no tensors"
WHOLE = "gives whole models only"
#: Seconds within which llama.cpp has to answer: now and then its server never does.
PATIENCE = 30
PROMPT = [[504, 3575, 282, 4649, 314]]  # "The capital of France is", for SmolLM2; any ids will do


def need(*modules: str) -> Any:
    """The last of some modules."""
    for name in modules:
        if importlib.util.find_spec(name.partition(".")[0]) is None:
            raise Unavailable(f"{name.partition('.')[0]} is not installed")
    return importlib.import_module(modules[-1])


def unavailable(reason: str) -> Any:
    raise Unavailable(reason)


@pytest.fixture(scope="module")
def path(real_model: Model) -> Iterator[str]:
    os.environ["HF_HUB_OFFLINE"] = "1"
    logging.getLogger("transformers").setLevel(logging.ERROR)
    with mmgguf.open(real_model.path) as file:
        # Kernels are there: what numba's first call costs is measured by `mmgguf bench`.
        for type_ in {tensor.type for tensor in file.values()}:
            mmgguf.dequantize(np.zeros(LAYOUTS[type_].type_size, np.uint8), type_)
    yield real_model.path
    compat.uninstall()


@pytest.fixture(scope="module")
def name(path: str) -> str:
    """Of the tensor that is wanted: the largest of the middle of a model."""
    with mmgguf.open(path) as file:
        inner = [tensor for tensor in file.values() if tensor.name.startswith("blk.")] or list(file.values())
        return max(inner, key=lambda tensor: tensor.nbytes).name


def as_bfloat16(files: Files, path: str) -> str:
    """The same weights as bfloat16 in safetensors."""
    need("torch", "safetensors")
    with mmgguf.open(path) as file:
        nbytes = 2 * sum(tensor.size for tensor in file.values())

        def make(target: Path) -> None:
            import ml_dtypes

            from mmgguf.safetensors import save_file

            save_file(file, target, dtype=ml_dtypes.bfloat16)

        return files.get(f"{Path(path).stem}-bfloat16.safetensors", make, nbytes)


def as_npy(files: Files, path: str) -> dict[str, str]:
    """The same weights as float32, a file for each tensor: numpy maps ``.npy`` and not ``.npz``."""
    with mmgguf.open(path) as file:
        return {
            name: files.get(
                f"{Path(path).stem}-{number}.npy",
                lambda target, tensor=tensor: _save_npy(target, tensor),
                4 * tensor.size,
            )
            for number, (name, tensor) in enumerate(file.items())
        }


def _save_npy(target: Path, tensor: mmgguf.Tensor) -> None:
    with open(target, "wb") as file:
        np.save(file, tensor.dequantize(np.float32))


# ---------------------------------------------------------------- see the metadata


def see_mmgguf(path: str) -> list[str]:
    with mmgguf.open(path) as file:
        dict(file.metadata)
        return list(file)


def see_gguf_py(path: str) -> list[str]:
    reader = importlib.import_module("gguf").GGUFReader(path)
    {name: field.contents() for name, field in reader.fields.items() if len(field.data) < 2}
    return [tensor.name for tensor in reader.tensors]


def see_transformers(path: str) -> None:
    module = need("gguf", "torch", "transformers.modeling_gguf_pytorch_utils")
    assert module.load_gguf_checkpoint(path)["config"]


def see_in_c(path: str) -> list[str]:
    handle = PEERS["C library"].open(path)
    try:
        return PEERS["C library"].names(handle)
    finally:
        PEERS["C library"].close(handle)


def see_in_node(path: str) -> Contestant:
    node.seconds_to_open(path, 1)
    return Contestant(lambda: node.seconds_to_open(path)[0], tells=True)


def installed(peer: str, run: Callable[[], Any]) -> Callable[[], Any]:
    PEERS[peer].require()
    return run


def test_see_the_metadata(case: Case, path: str, real_model: Model) -> None:
    with mmgguf.open(path) as file:
        names = sorted(file)

    def check(contestant: str, found: Any) -> None:
        assert not isinstance(found, list) or sorted(found) == names, contestant

    case.time(
        f"jobs/{real_model.id}, see the metadata",
        {
            "mmgguf": lambda: partial(see_mmgguf, path),
            "C library": lambda: installed("C library", partial(see_in_c, path)),
            "gguf-py": lambda: installed("gguf-py", partial(see_gguf_py, path)),
            "gguf.js": lambda: see_in_node(path),
            "transformers": lambda: partial(see_transformers, path),
            "diffusers": lambda: unavailable("reads GGUF through gguf-py"),
            "llama.cpp": lambda: unavailable("shows it only after it has loaded the model"),
            "safetensors (bf16)": lambda: unavailable("the vocabulary is in other files"),
            "np.load (mmap)": lambda: unavailable("a .npy file has none"),
        },
        seconds=0.5,
        check=check,
        title=real_model.title,
    )


# ---------------------------------------------------------------- get one tensor


def one_of_mmgguf(path: str, name: str) -> Any:
    with mmgguf.open(path) as file:
        return file[name].dequantize()


def one_of_gguf_py(path: str, name: str) -> Any:
    gguf = importlib.import_module("gguf")
    tensor = next(tensor for tensor in gguf.GGUFReader(path).tensors if tensor.name == name)
    return gguf.dequantize(tensor.data, tensor.tensor_type)


def one_of_diffusers(path: str, name: str) -> Any:
    return _numbers(_load_in_diffusers(path)[name])


def _load_in_diffusers(path: str) -> dict[str, Any]:
    module = need("gguf", "torch", "diffusers.models.model_loading_utils")
    loaded: dict[str, Any] = module.load_gguf_checkpoint(path)
    return loaded


def _numbers(tensor: Any) -> Any:
    utils = importlib.import_module("diffusers.quantizers.gguf.utils")
    if isinstance(tensor, utils.GGUFParameter):
        tensor = utils.dequantize_gguf_tensor(tensor)
    return tensor.float()


def one_of_safetensors(path: str, name: str) -> Any:
    with importlib.import_module("safetensors").safe_open(path, "pt") as file:
        return file.get_tensor(name).float()


def one_of_npy(paths: dict[str, str], name: str) -> Any:
    return np.load(paths[name], mmap_mode="r").copy()


def test_get_one_tensor(case: Case, files: Files, path: str, name: str, real_model: Model) -> None:
    expected = one_of_mmgguf(path, name)

    def check(contestant: str, found: Any) -> None:
        rounded = contestant in ("diffusers", "safetensors (bf16)")
        np.testing.assert_allclose(
            np.asarray(found), expected, rtol=0.01 if rounded else 0, atol=1e-3 * np.abs(expected).max() * rounded
        )

    case.time(
        f"jobs/{real_model.id}, get one tensor",
        {
            "mmgguf": lambda: partial(one_of_mmgguf, path, name),
            "C library": lambda: unavailable("its binding here opens files, no more"),
            "gguf-py": lambda: installed("gguf-py", partial(one_of_gguf_py, path, name)),
            "gguf.js": lambda: unavailable(NO_TENSORS),
            "transformers": lambda: unavailable(WHOLE),
            "diffusers": lambda: partial(one_of_diffusers, path, name),
            "llama.cpp": lambda: unavailable(NO_TENSORS),
            "safetensors (bf16)": lambda: partial(one_of_safetensors, as_bfloat16(files, path), name),
            "np.load (mmap)": lambda: partial(one_of_npy, as_npy(files, path), name),
        },
        seconds=0.5,
        check=check,
        tensor=name,
        nbytes=expected.nbytes,
        title=real_model.title,
    )


# ---------------------------------------------------------------- get all tensors as float32


def all_of_mmgguf(path: str) -> dict[str, Any]:
    return mmgguf.load_file(path, dtype=np.float32)


def all_of_gguf_py(path: str) -> dict[str, Any]:
    gguf = importlib.import_module("gguf")
    return {t.name: gguf.dequantize(t.data, t.tensor_type) for t in gguf.GGUFReader(path).tensors}


def all_of_diffusers(path: str) -> dict[str, Any]:
    return {name: _numbers(tensor) for name, tensor in _load_in_diffusers(path).items()}


def all_of_safetensors(path: str) -> dict[str, Any]:
    with importlib.import_module("safetensors").safe_open(path, "pt") as file:
        return {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118


def all_of_npy(paths: dict[str, str]) -> dict[str, Any]:
    return {name: np.load(path, mmap_mode="r").copy() for name, path in paths.items()}


def test_get_all_tensors(case: Case, files: Files, path: str, real_model: Model) -> None:
    with mmgguf.open(path) as file:
        sizes = {name: tensor.size for name, tensor in file.items()}

    def check(contestant: str, found: dict[str, Any]) -> None:
        assert {name: np.asarray(array).size for name, array in found.items()} == sizes
        assert all(np.asarray(array).dtype == np.float32 for array in found.values())

    case.time(
        f"jobs/{real_model.id}, get all tensors as float32",
        {
            "mmgguf": lambda: partial(all_of_mmgguf, path),
            "C library": lambda: unavailable("its binding here opens files, no more"),
            "gguf-py": lambda: installed("gguf-py", partial(all_of_gguf_py, path)),
            "gguf.js": lambda: unavailable(NO_TENSORS),
            "transformers": lambda: unavailable(WHOLE),
            "diffusers": lambda: partial(all_of_diffusers, path),
            "llama.cpp": lambda: unavailable(NO_TENSORS),
            "safetensors (bf16)": lambda: partial(all_of_safetensors, as_bfloat16(files, path)),
            "np.load (mmap)": lambda: partial(all_of_npy, as_npy(files, path)),
        },
        seconds=1.5,
        check=check,
        nbytes=4 * sum(sizes.values()),
        file_nbytes=os.path.getsize(path),
        title=real_model.title,
    )


# ---------------------------------------------------------------- start computing


def _first_logits(model: Any) -> Any:
    torch = importlib.import_module("torch")
    with torch.no_grad():
        return model(torch.tensor(PROMPT)).logits[0, -1]


def start_mmgguf(path: str) -> Any:
    return _first_logits(importlib.import_module("mmgguf.torch").from_gguf(path))


def start_transformers(path: str, with_mmgguf: bool) -> Any:
    transformers = importlib.import_module("transformers")
    if with_mmgguf:
        compat.install()
    try:
        folder, name = os.path.split(path)
        return _first_logits(transformers.AutoModelForCausalLM.from_pretrained(folder, gguf_file=name))
    finally:
        compat.uninstall()


def start_safetensors(folder: str) -> Any:
    transformers = importlib.import_module("transformers")
    return _first_logits(transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="bfloat16"))


def as_checkpoint(files: Files, path: str) -> str:
    """A folder of transformers with the same weights as bfloat16."""
    folder = Path(as_bfloat16(files, path)).with_suffix(".checkpoint")
    if not (folder / "config.json").exists():
        torch = importlib.import_module("torch")
        model = importlib.import_module("mmgguf.torch").from_gguf(path, quantized=False).to(torch.bfloat16)
        model.save_pretrained(folder)
    return str(folder)


#: In a process of its own, since a server there starts threads and does not always end by itself.
LLAMA_CPP = """
import json, os, sys, time, urllib.request
import xllamacpp
params = xllamacpp.CommonParams()
params.model.path = sys.argv[1]
params.n_ctx, params.n_parallel, params.warmup, params.verbosity, params.port = 512, 1, False, 0, 0
began = time.perf_counter()
server = xllamacpp.Server(params)
ready = time.perf_counter() - began
body = json.dumps({"prompt": json.loads(sys.argv[2])[0], "n_predict": 1, "temperature": 0}).encode()
request = urllib.request.Request(server.listening_address + "/completion", body, {"Content-Type": "application/json"})
with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=60) as response:
    json.load(response)
print()
print(json.dumps([ready, time.perf_counter() - began]), flush=True)
os._exit(0)
"""


def seconds_of_llama_cpp(path: str, which: int) -> float:
    """Until it is ready, or until it has the first token.  It is asked once more where it does not come back."""
    command = [sys.executable, "-P", "-c", LLAMA_CPP, path, json.dumps(PROMPT)]
    for _ in range(2):
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
        except subprocess.TimeoutExpired:
            continue
        if done.returncode:
            raise Unavailable(f"ended with status {done.returncode}")
        return float(json.loads(done.stdout.splitlines()[-1])[which])
    raise Unavailable(f"its server did not come back within {PATIENCE} s, twice")


def start_llama_cpp(path: str, which: int = 1) -> Contestant:
    need("xllamacpp")
    seconds_of_llama_cpp(path, which)
    return Contestant(lambda: seconds_of_llama_cpp(path, which), tells=True)


def test_start_computing(case: Case, files: Files, path: str, real_model: Model, once: bool) -> None:
    """Until the logits of the first token are there; llama.cpp: until its server has answered with that token."""
    if once and os.environ.get("CI"):
        pytest.skip("loads a model of transformers five times")

    def in_torch(run: Callable[[], Any]) -> Callable[[], Any]:
        need("torch", "transformers", "gguf")
        return run

    case.time(
        f"jobs/{real_model.id}, start computing",
        {
            "mmgguf": lambda: in_torch(partial(start_mmgguf, path)),
            "C library": lambda: unavailable("it is llama.cpp's, below"),
            "gguf-py": lambda: unavailable("computes nothing"),
            "gguf.js": lambda: unavailable("computes nothing"),
            "transformers": lambda: in_torch(partial(start_transformers, path, False)),
            "transformers, mmgguf.compat": lambda: in_torch(partial(start_transformers, path, True)),
            "diffusers": lambda: unavailable("has no language models"),
            "llama.cpp": lambda: start_llama_cpp(path),
            "safetensors (bf16)": lambda: in_torch(partial(start_safetensors, as_checkpoint(files, path))),
            "np.load (mmap)": lambda: unavailable("computes nothing"),
        },
        seconds=2.0,
        title=real_model.title,
    )


def test_load_a_model(case: Case, path: str, real_model: Model) -> None:
    """llama.cpp's own loading, until its server is ready."""
    case.time(f"load/{real_model.id}", {"llama.cpp": lambda: start_llama_cpp(path, 0)}, title=real_model.title)
