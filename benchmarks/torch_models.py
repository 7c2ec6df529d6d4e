"""A whole model from one file: ours packed and as numbers, transformers, and llama.cpp.

    python -m benchmarks.torch_models SmolLM2-135M-Instruct.Q4_1.gguf
    python -m benchmarks.torch_models SmolLM2-135M-Instruct.Q4_1.gguf --perplexity

Each in processes of its own, in turns: seconds from the call to the first token of a prompt, and the peak of resident
memory above that of the process before, as medians with quartiles.  Imports and compiled kernels are there before, and
torch has run a tiny model.  The file is in the page cache.  Pages of the mapped file count as resident memory.
``--results FILE`` keeps every run, and shows those of earlier calls too.  ``--perplexity`` gives the perplexity of one
paragraph instead.  Linux only.
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

import numpy as np

from .machine import describe

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


def measure_in_torch(path: str, way: str, threads: int, perplexity: bool) -> dict[str, Any]:
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
    # What any use in the process pays once: the code of a model of this class, and the kernels, which lie compiled in
    # numba's cache.
    torch.set_num_threads(threads)
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    tiny = transformers.LlamaConfig(vocab_size=32, **sizes)
    with torch.no_grad():
        transformers.AutoModelForCausalLM.from_config(tiny)(torch.tensor([[1, 2]]))
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
        if perplexity:
            logits = model(text).logits[0]
            losses = torch.nn.functional.cross_entropy(logits[:-1], text[0, 1:])
            return {"perplexity": math.exp(float(losses))}
    return {"load": loaded, "first_token": seconds, "token": first, "peak_loading": peak_loading, "peak": peak}


def measure_llama_cpp(path: str, way: str, threads: int, perplexity: bool) -> dict[str, Any]:
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

    if perplexity:
        ids = tokenize(PARAGRAPH)
        losses = []
        for end in range(1, len(ids)):
            answer = complete(ids[:end], 1 << 20)["completion_probabilities"][0]["top_logprobs"]
            losses.append(-next(top["logprob"] for top in answer if top["id"] == ids[end]))
        return {"perplexity": math.exp(sum(losses) / len(losses))}
    first = complete(tokenize(PROMPT), 1)["tokens"][0]
    seconds = time.perf_counter() - began
    peak = resident("VmHWM") - before
    return {"load": loaded, "first_token": seconds, "token": first, "peak_loading": peak_loading, "peak": peak}


MEASURES: dict[str, Callable[[str, str, int, bool], dict[str, Any]]] = {
    way: measure_llama_cpp if way == "llama.cpp" else measure_in_torch for way in WAYS
}


def in_a_process(path: str, way: str, options: argparse.Namespace) -> dict[str, Any]:
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.torch_models", path, "--way", way]
    command += ["--threads", str(options.threads), *(["--perplexity"] if options.perplexity else [])]
    # llama.cpp's server hangs at times.
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=options.timeout)
    if done.returncode:
        raise RuntimeError(f"{way} failed:\n{done.stderr[-3000:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def quartiles(values: list[float], factor: float = 1.0, digits: int = 2) -> str:
    """The median, and in brackets the first and third quartile."""
    low, middle, high = (np.percentile(values, percent) * factor for percent in (25, 50, 75))
    return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def table(runs: dict[str, list[dict[str, Any]]], size: int) -> list[str]:
    """Lines of Markdown: for each way the medians of its runs."""
    lines = [
        "| | runs | loaded, s | first token, s | peak while loading, × file | peak at the first token, × file |",
        "|---|---|---|---|---|---|",
    ]
    for way, of in runs.items():
        if not of:
            continue
        cells = [quartiles([run[key] for run in of]) for key in ("load", "first_token")]
        cells += [quartiles([run[key] for run in of], 1 / size) for key in ("peak_loading", "peak")]
        lines.append(f"| {way} | {len(of)} | {' | '.join(cells)} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("model")
    parser.add_argument("--way", choices=WAYS, help="only this one, in this process, as a line of JSON")
    parser.add_argument("--ways", nargs="*", choices=WAYS, default=WAYS, metavar="WAY", help="only these")
    parser.add_argument("--repeat", type=int, default=5, metavar="N", help="processes for each (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="of each (default: %(default)s)")
    parser.add_argument("--timeout", type=float, default=120, metavar="S", help="of each (default: %(default)s)")
    parser.add_argument("--results", type=Path, metavar="FILE", help="JSON that runs are added to")
    parser.add_argument("--perplexity", action="store_true", help="of one paragraph, and nothing else")
    options = parser.parse_args()
    if options.way:
        result = MEASURES[options.way](options.model, options.way, options.threads, options.perplexity)
        print(json.dumps(result), flush=True)
        # Threads of a server do not end by themselves.
        os._exit(0)
    size = os.path.getsize(options.model)
    processor = describe(Path(options.model).parent)["processor"]
    print(f"{os.path.basename(options.model)}: {size / 1e6:.1f} MB, {options.threads} thread(s), {processor}")
    Path(options.model).read_bytes()  # into the page cache
    if options.perplexity:
        for way in options.ways:
            print(f"| {way} | {in_a_process(options.model, way, options)['perplexity']:.4f} |", flush=True)
        return
    runs: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    if options.results and options.results.exists():
        runs |= json.loads(options.results.read_text())
    for _ in range(options.repeat):
        for way in options.ways:
            runs[way].append(in_a_process(options.model, way, options))
            if options.results:
                options.results.write_text(json.dumps(runs))
    print("\n".join(table(runs, size)))


if __name__ == "__main__":
    main()
