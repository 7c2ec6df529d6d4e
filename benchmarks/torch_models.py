"""A whole model from one file: ours packed and as numbers, transformers, and llama.cpp.

    python -m benchmarks.torch_models SmolLM2-135M-Instruct.Q4_1.gguf

For each, in a process of its own: seconds from the call to the first token of a prompt, the peak of resident memory
above that of the process before, and the perplexity of one paragraph.  Imports and compiled kernels are there before.
The file is in the page cache.  Pages of the mapped file count as resident memory.  Linux only.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

WAYS = ("mmgguf, packed", "mmgguf, numbers", "transformers", "llama.cpp")
PARAGRAPH = (
    "The water of a river comes from rain and from melting snow. It flows downhill, because gravity pulls it, and "
    "joins other streams on its way to the sea. Where the land is flat, a river moves slowly and turns from side to "
    "side; where it is steep, the river is fast and cuts deep into the rock."
)
PROMPT = "The capital of France is"


def resident(field: str) -> int:
    """Bytes of a field of this process's status, such as VmRSS or VmHWM (the peak)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) << 10
    raise KeyError(field)


def reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def measure_in_torch(path: str, way: str, threads: int) -> dict[str, Any]:
    import numpy as np
    import torch
    import transformers
    import transformers.models.llama.modeling_llama

    import mmgguf
    from mmgguf.torch import from_gguf
    from mmgguf.types import LAYOUTS

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    folder, name = os.path.split(os.path.abspath(path))
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, gguf_file=name)
    prompt, text = (tokenizer(part, return_tensors="pt")["input_ids"] for part in (PROMPT, PARAGRAPH))
    # What any use in the process pays once: BLAS, and the kernels, which lie compiled in numba's cache.
    torch.set_num_threads(threads)
    torch.ones(64, 64) @ torch.ones(64, 64)
    for type_ in mmgguf.GGMLType:
        if way.startswith("mmgguf") and not LAYOUTS[type_].is_plain:
            mmgguf.dequantize(np.zeros(LAYOUTS[type_].type_size, np.uint8), type_)
    reset_peak()
    before, began = resident("VmRSS"), time.perf_counter()
    if way == "transformers":
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32)
    else:
        model = from_gguf(path, quantized=way == "mmgguf, packed")
    loaded = time.perf_counter() - began
    peak_loading = resident("VmHWM") - before
    with torch.no_grad():
        first = int(model(prompt).logits[0, -1].argmax())
        seconds = time.perf_counter() - began
        peak = resident("VmHWM") - before
        logits = model(text).logits[0]
    losses = torch.nn.functional.cross_entropy(logits[:-1], text[0, 1:])
    return {
        "load": loaded,
        "first_token": seconds,
        "token": first,
        "peak_loading": peak_loading,
        "peak": peak,
        "perplexity": math.exp(float(losses)),
    }


def measure_llama_cpp(path: str, way: str, threads: int) -> dict[str, Any]:
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = path
    params.n_ctx, params.n_parallel, params.warmup, params.verbosity, params.port = 512, 1, False, 0, 0
    params.cpuparams.n_threads = threads
    reset_peak()
    before, began = resident("VmRSS"), time.perf_counter()
    server = xllamacpp.Server(params)
    loaded = time.perf_counter() - began
    peak_loading = resident("VmHWM") - before
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def post(where: str, **body: object) -> Any:
        request = urllib.request.Request(server.listening_address + where, json.dumps(body).encode())
        request.add_header("Content-Type", "application/json")
        with opener.open(request, timeout=600) as response:
            return json.load(response)

    def complete(tokens: list[int], candidates: int) -> Any:
        options = {"n_predict": 1, "temperature": 0, "cache_prompt": True, "return_tokens": True}
        return post("/completion", prompt=tokens, n_probs=candidates, **options)

    def tokenize(text: str) -> list[int]:
        return list(post("/tokenize", content=text, add_special=True)["tokens"])

    first = complete(tokenize(PROMPT), 1)["tokens"][0]
    seconds = time.perf_counter() - began
    peak = resident("VmHWM") - before  # before the answers with the whole vocabulary, which are large
    ids = tokenize(PARAGRAPH)
    losses = []
    for end in range(1, len(ids)):
        answer = complete(ids[:end], 1 << 20)["completion_probabilities"][0]["top_logprobs"]
        losses.append(-next(top["logprob"] for top in answer if top["id"] == ids[end]))
    return {
        "load": loaded,
        "first_token": seconds,
        "token": first,
        "peak_loading": peak_loading,
        "peak": peak,
        "perplexity": math.exp(sum(losses) / len(losses)),
    }


MEASURES: dict[str, Callable[[str, str, int], dict[str, Any]]] = {
    way: measure_llama_cpp if way == "llama.cpp" else measure_in_torch for way in WAYS
}


def in_a_process(path: str, way: str, threads: int) -> dict[str, Any]:
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.torch_models", path, "--way", way]
    command += ["--threads", str(threads)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{way} failed:\n{done.stderr[-3000:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("model")
    parser.add_argument("--way", choices=WAYS, help="only this one, in this process, as a line of JSON")
    parser.add_argument("--repeat", type=int, default=3, metavar="N", help="the best of N (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="of each (default: %(default)s)")
    options = parser.parse_args()
    if options.way:
        print(json.dumps(MEASURES[options.way](options.model, options.way, options.threads)), flush=True)
        # Threads of a server do not end by themselves.
        os._exit(0)
    size = os.path.getsize(options.model)
    Path(options.model).read_bytes()  # into the page cache
    print(f"{options.model}: {size / 1e6:.1f} MB")
    print(f"{'':18}{'load, s':>9}{'first token, s':>16}{'peak loading':>14}{'peak':>8}{'perplexity':>12}")
    for way in WAYS:
        runs = [in_a_process(options.model, way, options.threads) for _ in range(options.repeat)]
        best = {key: min(run[key] for run in runs) for key in runs[0]}
        print(
            f"{way:18}{best['load']:9.2f}{best['first_token']:16.2f}{best['peak_loading'] / size:12.2f} x"
            f"{best['peak'] / size:6.2f} x{best['perplexity']:12.3f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
