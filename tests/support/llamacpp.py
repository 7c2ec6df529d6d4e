"""A real llama.cpp, from the wheel ``xllamacpp``: how it cuts texts into tokens and how it continues prompts.

It runs as a process of its own, because it starts threads and a local server that outlive their owner.
"""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

__all__ = ["ask"]


def ask(
    model: Path, *, texts: Sequence[str] = (), prompts: Sequence[str] = (), n_predict: int = 20, exact: bool = False
) -> dict[str, Any]:
    """Tokenize `texts` and continue `prompts` greedily; `exact` keeps keys and values in float32.

    Returns
    -------
    dict
        ``tokens``: for each text its ids, special tokens parsed.  ``answers``: for each prompt its ``tokens`` (the
        ids), ``text``, and for each token ``logprobs``, the logarithms of the two best probabilities there.
    """
    question = {
        "model": str(model),
        "texts": list(texts),
        "prompts": list(prompts),
        "n_predict": n_predict,
        "exact": exact,
    }
    command = [sys.executable, "-P", __file__]
    done = subprocess.run(command, input=json.dumps(question), capture_output=True, text=True, timeout=120, check=False)
    if done.returncode:
        raise RuntimeError(f"llama.cpp ended with status {done.returncode}:\n{done.stderr[-2000:]}")
    # llama.cpp may print; the answer is the last line.
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def main() -> None:
    import xllamacpp

    question = json.load(sys.stdin)
    params = xllamacpp.CommonParams()
    params.model.path = question["model"]
    params.n_ctx = 512
    params.n_parallel = 1
    params.cpuparams.n_threads = 1  # the order of its sums, and so its last bits, must not depend on the machine
    if question["exact"]:
        params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.warmup = False
    params.verbosity = 0
    params.port = 0  # any that is free
    server = xllamacpp.Server(params)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # never through a proxy to oneself

    def post(path: str, **body: object) -> dict[str, Any]:
        request = urllib.request.Request(server.listening_address + path, json.dumps(body).encode())
        request.add_header("Content-Type", "application/json")
        with opener.open(request, timeout=60) as response:
            result: dict[str, Any] = json.load(response)
            return result

    def tokenize(text: str) -> list[int]:
        return list(post("/tokenize", content=text, add_special=True, parse_special=True)["tokens"])

    def complete(prompt: str) -> dict[str, Any]:
        options = {"n_predict": question["n_predict"], "temperature": 0, "n_probs": 2, "cache_prompt": False}
        result = post("/completion", prompt=tokenize(prompt), return_tokens=True, **options)
        steps = [[top["logprob"] for top in step["top_logprobs"]] for step in result["completion_probabilities"]]
        return {"tokens": result["tokens"], "text": result["content"], "logprobs": steps}

    tokens = [tokenize(text) for text in question["texts"]]
    answers = [complete(prompt) for prompt in question["prompts"]]
    print()
    print(json.dumps({"tokens": tokens, "answers": answers}), flush=True)


if __name__ == "__main__":
    main()
