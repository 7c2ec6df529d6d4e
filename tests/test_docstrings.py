"""Every public function has an example in its docstring, and all examples run, beside a small ``model.gguf``.

An example sees its module's names, `mmgguf` and `np`.  One line is not run if it says ``# doctest: +SKIP``: where it
needs a whole model, from which transformers could generate text.
"""

from __future__ import annotations

import doctest
import importlib
import inspect
import os
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mmgguf
from mmgguf import GGMLType, TypedTensor
from mmgguf.types import LAYOUTS

#: What people import.  Everything in `__all__` of these is public.
PUBLIC = [
    "mmgguf",
    "mmgguf.compat",
    "mmgguf.dask",
    "mmgguf.edit",
    "mmgguf.errors",
    "mmgguf.estimates",
    "mmgguf.inspect",
    "mmgguf.jax",
    "mmgguf.npz",
    "mmgguf.report",
    "mmgguf.safetensors",
    "mmgguf.torch",
    "mmgguf.torch.distributed",
    "mmgguf.types",
]
#: Packages that adapters need.
OPTIONAL = {"dask", "gguf", "jax", "jaxlib", "safetensors", "torch", "transformers", "typer"}
FINDER = doctest.DocTestFinder(exclude_empty=True, recurse=True)
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def module(name: str) -> types.ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        if (error.name or "").partition(".")[0] not in OPTIONAL:
            raise
        pytest.skip(f"{error.name} is not installed")


def modules() -> list[str]:
    """Those that have examples, found without importing them."""
    root = Path(mmgguf.__file__).parent
    found = [path for path in sorted(root.rglob("*.py")) if ">>> " in path.read_text(encoding="utf-8")]
    return [".".join(path.relative_to(root.parent).with_suffix("").parts).removesuffix(".__init__") for path in found]


def has_example(thing: Any) -> bool:
    return ">>>" in (inspect.getdoc(thing) or "")


@pytest.mark.parametrize("name", PUBLIC)
def test_public_functions_have_examples(name: str) -> None:
    home = module(name)
    names = [*home.__all__, *(["open"] if name == "mmgguf" else [])]
    functions = {n: getattr(home, n) for n in names if inspect.isroutine(getattr(home, n))}
    assert [n for n, function in functions.items() if not has_example(function)] == []


@pytest.mark.parametrize(
    ("of", "names"),
    [
        (mmgguf.GGUFFile, "layers dequantize_all prefetch release resident close"),
        (mmgguf.Tensor, "partition dequantize"),
        (mmgguf.Metadata, "typed replace type_of array_info section to_dict"),
    ],
)
def test_methods_of_what_people_hold_have_examples(of: type, names: str) -> None:
    assert [name for name in names.split() if not has_example(getattr(of, name))] == []


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    layout = LAYOUTS[GGMLType.Q4_K]
    blocks = np.arange(8 * layout.type_size, dtype=np.uint8).view(layout.dtype).reshape(8, 1)
    blocks["d"] = blocks["dmin"] = 0.01
    metadata = {
        "general.architecture": "llama",
        "general.name": "Tiny",
        "general.quantization_version": 2,
        "llama.block_count": 1,
        "llama.context_length": 128,
        "llama.embedding_length": 256,
        "llama.feed_forward_length": 256,
        "llama.attention.head_count": 4,
        "tokenizer.ggml.tokens": list("abcdefgh"),
    }
    tensors = {
        "token_embd.weight": TypedTensor(blocks, GGMLType.Q4_K),
        "blk.0.attn_q.weight": np.eye(256, dtype=np.float16),
        "output_norm.weight": np.ones(256, np.float32),
    }
    mmgguf.write(tmp_path / "model.gguf", metadata, tensors)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", modules())
def test_examples_run(name: str, folder: Path) -> None:
    content = (folder / "model.gguf").read_bytes()
    for test in FINDER.find(module(name), name, extraglobs={"mmgguf": mmgguf, "np": np, "os": os}):
        # Each in a folder of its own, as it were.
        for path in folder.iterdir():
            path.unlink()
        (folder / "model.gguf").write_bytes(content)
        try:
            doctest.DebugRunner(optionflags=FLAGS, verbose=False).run(test)
        except doctest.UnexpectedException as unexpected:
            error = unexpected.exc_info[1]
            if isinstance(error, ImportError) and (error.name or "").partition(".")[0] in OPTIONAL:
                pytest.skip(f"{error.name} is not installed")
            assert error is not None
            error.add_note(f"in the example of {test.name}: {unexpected.example.source}")
            raise error from None
        except doctest.DocTestFailure as failure:
            example = failure.example
            pytest.fail(f"{test.name}: {example.source}gave {failure.got}instead of {example.want}", pytrace=False)
