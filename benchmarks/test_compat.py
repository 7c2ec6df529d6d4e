"""mmgguf.compat in the place of pip's gguf: opening, walking all metadata, dequantizing, and transformers on top."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mmgguf
from mmgguf import compat
from mmgguf.bench.measure import Contestant, compare

from .conftest import Model, Timed

gguf = pytest.importorskip("gguf")

Reader = Callable[[str], Any]
READERS: dict[str, Reader] = {"gguf": gguf.GGUFReader, "mmgguf.compat": compat.GGUFReader}
DEQUANTIZERS: dict[str, Callable[..., Any]] = {"gguf": gguf.dequantize, "mmgguf.compat": compat.dequantize}


def _open(reader: Reader, path: str) -> Any:
    opened = reader(path)
    # A list that pip's reader makes at opening, and ours when it is touched.
    return opened, opened.tensors


def _walk(reader: Reader, path: str) -> dict[str, Any]:
    opened, _ = _open(reader, path)
    return {name: field.contents() for name, field in opened.fields.items()}


def _parts(reader: Reader, path: str) -> int:
    """What transformers does: every part that is data, one by one."""
    return sum(len(field.parts[i]) for field in reader(path).fields.values() for i in field.data)


WORK: dict[str, tuple[Callable[[Reader, str], Any], float | None]] = {
    "open": (_open, 50),
    "open and every contents()": (_walk, 5),
    "open and every data part": (_parts, None),
}


@pytest.mark.parametrize("work", WORK)
@pytest.mark.parametrize("reader", READERS)
def test_reader(benchmark: Any, timed: Timed, model: Model, reader: str, work: str) -> None:
    benchmark.group = f"compat, {work}: {model.label}"
    benchmark.extra_info.update(reader=reader, gguf=importlib.metadata.version("gguf"))
    result = timed(lambda: WORK[work][0](READERS[reader], model.path))
    if work == "open and every contents()":
        with mmgguf.open(model.path) as file:
            assert {key: result[key] for key in file.metadata} == file.metadata.to_dict(max_array_size=None)


@pytest.mark.parametrize("work", [work for work, (_, bar) in WORK.items() if bar])
def test_claims(benchmark: Any, model: Model, work: str) -> None:
    """Both in turns, by processor time, so that it holds on a busy machine too; both run on one thread."""
    run, bar = WORK[work]
    timings = compare(
        {name: Contestant(lambda reader=reader: run(reader, model.path)) for name, reader in READERS.items()},
        seconds=2 if benchmark.enabled else 0,
        max_rounds=20,
    )
    ratio = timings["gguf"].cpu / timings["mmgguf.compat"].cpu
    benchmark.group = f"compat, claims: {model.label}"
    benchmark.extra_info.update(
        claim=f"compat, {work}, {model.label}: times faster than gguf",
        measured=ratio,
        bar=f">= {bar:.0f}",
        met=ratio >= (bar or 0),
    )
    benchmark.pedantic(lambda: run(compat.GGUFReader, model.path), rounds=1)


@pytest.mark.parametrize("function", DEQUANTIZERS)
def test_dequantize_the_whole_file(benchmark: Any, timed: Timed, large_model: Model, function: str) -> None:
    """Tensor by tensor, as transformers does it; the largest is checked."""
    tensors = [t for t in compat.GGUFReader(large_model.path).tensors if t.data.dtype == np.uint8]
    benchmark.group = f"compat, dequantize: {large_model.label}"
    benchmark.extra_info.update(function=function, elements=sum(t.n_elements for t in tensors))

    def run() -> Any:
        return [DEQUANTIZERS[function](t.data, t.tensor_type).dtype for t in tensors]

    assert set(timed(run)) == {np.dtype(np.float32)}
    largest = max(tensors, key=lambda t: t.n_elements)
    arrays = [dequantize(largest.data[:64], largest.tensor_type) for dequantize in DEQUANTIZERS.values()]
    np.testing.assert_array_equal(*arrays)


@pytest.fixture
def installed(reader: str) -> Iterator[None]:
    if reader == "mmgguf.compat":
        compat.install()
    yield
    compat.uninstall()


@pytest.mark.filterwarnings("ignore")  # transformers' own
@pytest.mark.parametrize("what", ["metadata", "model"])
@pytest.mark.parametrize("reader", READERS)
def test_transformers(
    benchmark: Any,
    timed: Timed,
    pytestconfig: pytest.Config,
    model: Model,
    reader: str,
    what: str,
    installed: None,
) -> None:
    """``from_pretrained(gguf_file=...)``, and the part of it that reads configuration and tokenizer."""
    if not pytestconfig.getoption("--file"):
        pytest.skip("transformers loads real models only: give one with --file")
    if not all(importlib.util.find_spec(package) for package in ("torch", "transformers")):
        pytest.skip("transformers or torch is not installed")
    os.environ["HF_HUB_OFFLINE"] = "1"
    logging.getLogger("transformers").setLevel(logging.ERROR)
    from transformers import AutoModelForCausalLM
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    path = Path(model.path)
    benchmark.group = f"compat, transformers, {what}: {model.label}"
    benchmark.extra_info.update(reader=reader, transformers=importlib.metadata.version("transformers"))
    if what == "metadata":
        result = timed(lambda: load_gguf_checkpoint(str(path)))
        assert result["tokenizer"]["tokens"]
    else:
        loaded = timed(lambda: AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name))
        with mmgguf.open(path) as file:
            assert len(loaded.state_dict()) >= len(file)
