"""Run a model of transformers with packed weights, straight from one GGUF file.

    python examples/generate_torch.py SmolLM2-135M-Instruct.Q4_1.gguf "The days of the week are Monday," --tokens 20
    python examples/generate_torch.py SmolLM2-135M-Instruct.Q4_1.gguf "What is the capital of France?" --chat
    python examples/generate_torch.py model.gguf "Once upon a time" --device cuda --dtype bfloat16

Weights stay in the file's blocks: on the CPU the mapped file is their memory, on a GPU the blocks are copied there,
and numbers exist a tile at a time.  The tokenizer is transformers' own, made from the same file.  Decoding is greedy,
so the same prompt always gives the same text.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

import torch
import transformers

import mmgguf.compat
from mmgguf.torch import from_gguf


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Continue a prompt with a GGUF model, in transformers.")
    parser.add_argument("model", help="a GGUF file, such as SmolLM2-135M-Instruct.Q4_1.gguf")
    parser.add_argument("prompt", help="the text to continue; special tokens in it count as such")
    parser.add_argument(
        "--tokens", type=int, default=64, metavar="N", help="stop after N tokens (default: %(default)s)"
    )
    parser.add_argument("--chat", action="store_true", help="put the prompt as a user's message, by the chat template")
    parser.add_argument("--ids", action="store_true", help="print the token ids instead of the text")
    parser.add_argument("--device", default="cpu", help="where to compute (default: %(default)s)")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--dequantize", action="store_true", help="make numbers of all weights at once")
    options = parser.parse_args(arguments)

    try:
        model = from_gguf(
            options.model,
            quantized=not options.dequantize,
            dtype=getattr(torch, options.dtype),
            device=options.device,
        )
    except (OSError, mmgguf.GGUFError, NotImplementedError) as error:
        parser.exit(1, f"{parser.prog}: {error}\n")

    # transformers reads the tokenizer with pip's gguf; this puts mmgguf's reader in its place, which takes a fraction
    # of the time.  The template runs in Jinja's sandbox.
    mmgguf.compat.install()
    folder, name = os.path.split(options.model)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder or os.curdir, gguf_file=name)
    prompt = options.prompt
    if options.chat:
        message = [{"role": "user", "content": prompt}]
        prompt = tokenizer.apply_chat_template(message, add_generation_prompt=True, tokenize=False)
    ids = tokenizer(prompt, return_tensors="pt", add_special_tokens=not options.chat)["input_ids"].to(options.device)
    if not ids.numel():
        parser.error("the prompt is empty")
    streamer = None if options.ids else transformers.TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    result = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=options.tokens,
        do_sample=False,
        streamer=streamer,
    )
    if options.ids:
        print(*result[0, ids.shape[1] :].tolist())


if __name__ == "__main__":
    transformers.logging.set_verbosity_error()
    sys.exit(main())
