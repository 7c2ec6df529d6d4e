"""Run a model of transformers on several processes, each with its part of the packed weights, from one GGUF file.

    torchrun --nproc-per-node 2 examples/generate_distributed.py SmolLM2-135M-Instruct.Q4_1.gguf \\
        "What is the capital of France?" --chat --tokens 10

Each rank maps its part of the file.  With ``--from-rank0`` only the first rank has the file, and sends the others their
parts.  The first rank reads the tokenizer and the prompt, and prints the answer.
"""

from __future__ import annotations

import argparse
import datetime
import os
import sys
from collections.abc import Sequence

import torch
import torch.distributed as dist
import transformers
from torch.distributed.device_mesh import init_device_mesh

import mmgguf.compat
from mmgguf.torch.distributed import from_gguf


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Continue a prompt with a GGUF model, tensor parallel.")
    parser.add_argument("model", help="a GGUF file, such as SmolLM2-135M-Instruct.Q4_1.gguf")
    parser.add_argument("prompt", help="the text to continue; special tokens in it count as such")
    parser.add_argument(
        "--tokens", type=int, default=64, metavar="N", help="stop after N tokens (default: %(default)s)"
    )
    parser.add_argument("--chat", action="store_true", help="put the prompt as a user's message, by the chat template")
    parser.add_argument("--ids", action="store_true", help="print the token ids instead of the text")
    parser.add_argument("--dequantize", action="store_true", help="make numbers of all weights at once")
    parser.add_argument("--from-rank0", action="store_true", help="only the first rank has the file")
    parser.add_argument("--timeout", type=float, default=120, help="seconds to wait for other ranks")
    options = parser.parse_args(arguments)

    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo", timeout=datetime.timedelta(minutes=10)
    )
    mesh = init_device_mesh(device, (dist.get_world_size(),))
    is_first = mesh.get_rank() == 0
    try:
        model = from_gguf(
            options.model if is_first or not options.from_rank0 else None,
            mesh,
            quantized=not options.dequantize,
            from_rank0=options.from_rank0,
            timeout=options.timeout,
        )
    except (OSError, RuntimeError, ValueError, NotImplementedError) as error:
        print(f"{parser.prog}: rank {mesh.get_rank()}: {error}", file=sys.stderr)
        sys.exit(1)

    tokenizer = None
    size, ids = torch.zeros(1, dtype=torch.int64), torch.empty(0, dtype=torch.int64)
    if is_first:
        mmgguf.compat.install()
        folder, name = os.path.split(options.model)
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder or os.curdir, gguf_file=name)
        prompt = options.prompt
        if options.chat:
            message = [{"role": "user", "content": prompt}]
            prompt = tokenizer.apply_chat_template(message, add_generation_prompt=True, tokenize=False)
        ids = tokenizer(prompt, return_tensors="pt", add_special_tokens=not options.chat)["input_ids"][0]
        size[0] = len(ids)
    size, ids = size.to(device), ids.to(device)
    dist.broadcast(size, src=0)
    if not is_first:
        ids = torch.empty(int(size), dtype=torch.int64, device=device)
    dist.broadcast(ids, src=0)

    # All ranks compute the same tokens, since they decode the same logits greedily.
    ids = ids[None]
    result = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=options.tokens, do_sample=False)
    answer = result[0, ids.shape[1] :].tolist()
    if tokenizer is not None:
        print(*answer) if options.ids else print(tokenizer.decode(answer, skip_special_tokens=True))
    dist.destroy_process_group()


if __name__ == "__main__":
    transformers.logging.set_verbosity_error()
    main()
