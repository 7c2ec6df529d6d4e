"""What a real llama.cpp, from the wheel ``xllamacpp``, allocates for a model: read off what it prints as it loads.

Each model is loaded in a process of its own, since a server there starts threads and does not end by itself.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

__all__ = ["NotLoaded", "Printed", "load"]

_TIMEOUT = 120
_PATTERNS: Final = {
    "weights": r"model buffer size = +([\d.]+) MiB",
    "kv_cache": r"KV buffer size = +([\d.]+) MiB",
    "recurrent_state": r"RS buffer size = +([\d.]+) MiB",
    "output": r"output buffer size = +([\d.]+) MiB",
    "compute": r"compute buffer size = +([\d.]+) MiB",
}


class NotLoaded(Exception):
    """llama.cpp refused the model; the message says why."""


@dataclass(frozen=True)
class Printed:
    """What was printed: by part, the MiB of each buffer, two decimals each."""

    buffers: dict[str, list[float]]

    def agrees(self, part: str, nbytes: int) -> bool:
        """Whether so many bytes would have been printed: each buffer was rounded, and its tensors are aligned."""
        found = self.buffers[part]
        return abs(nbytes / 2**20 - sum(found)) <= 0.0055 * max(len(found), 1)


def load(
    model: Path,
    *,
    context: int,
    sequences: int = 1,
    cache_type: str = "F16",
    cache_type_v: str | None = None,
    flash_attention: bool = True,
    swa_full: bool = False,
    ubatch: int = 512,
    unified: bool = False,
    allocate: bool = True,
) -> Printed:
    """Load a model and tell what was allocated.

    Parameters are those of `mmgguf.estimate`.  Without `allocate`, llama.cpp only computes sizes, prints those of the
    compute buffers alone, and the model may be a file of holes.
    """
    question = {
        "model": str(model),
        "n_ctx": context,
        "n_parallel": sequences,
        "cache_type_k": cache_type,
        "cache_type_v": cache_type_v or cache_type,
        "flash_attention": flash_attention,
        "swa_full": swa_full,
        "n_ubatch": ubatch,
        "kv_unified": unified,
        "no_alloc": not allocate,
    }
    command = [sys.executable, "-P", __file__]
    environment = {**os.environ, "GGML_NO_BACKTRACE": "1"}
    # What is printed goes through a thread; where a process without buffers ends early, the last lines may be lost.
    for _ in range(1 if allocate else 20):
        done = subprocess.run(
            command,
            input=json.dumps(question),
            capture_output=True,
            text=True,
            timeout=_TIMEOUT,
            check=False,
            env=environment,
        )
        buffers = {part: [float(x) for x in re.findall(p, done.stderr)] for part, p in _PATTERNS.items()}
        if buffers["compute"]:
            return Printed(buffers)
    raise NotLoaded(f"{model.name}: status {done.returncode}: {done.stderr[-1500:]}")


def main() -> None:
    import time

    import xllamacpp

    question: dict[str, Any] = json.load(sys.stdin)
    params = xllamacpp.CommonParams()
    params.model.path = question["model"]
    for name in ("n_ctx", "n_parallel", "swa_full", "n_ubatch", "kv_unified", "no_alloc"):
        setattr(params, name, question[name])
    for name in ("cache_type_k", "cache_type_v"):
        setattr(params, name, getattr(xllamacpp.ggml_type, f"GGML_TYPE_{question[name].upper()}"))
    kinds = xllamacpp.llama_flash_attn_type
    params.flash_attn_type = (
        kinds.LLAMA_FLASH_ATTN_TYPE_ENABLED if question["flash_attention"] else kinds.LLAMA_FLASH_ATTN_TYPE_DISABLED
    )
    if question["no_alloc"]:
        params.load_mode = xllamacpp.llama_load_mode.LLAMA_LOAD_MODE_NONE
    # Weights as they are in the file, not rearranged for this processor.
    params.no_extra_bufts = True
    params.fit_params = False
    params.warmup = False
    params.verbosity = 4
    params.port = 0
    params.cpuparams.n_threads = 1
    server = xllamacpp.Server(params)
    time.sleep(0.2)  # until all is printed
    assert server is not None
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
