"""``@huggingface/gguf`` in node: npm fetches it into a temporary folder, where both are installed; never required."""

from __future__ import annotations

import atexit
import json
import shutil
import subprocess
import tempfile
from functools import cache

from mmgguf.bench.peers import Unavailable

__all__ = ["seconds_to_open", "version"]

PACKAGE = "@huggingface/gguf"
#: Opens a path or a URL so many times; the last one is warm, as those of the other contestants are.
SCRIPT = """
import { gguf } from "@huggingface/gguf";
const options = process.argv[2].startsWith("http") ? {} : { allowLocalFile: true };
let took, found;
for (let i = 0; i < Number(process.argv[3]); i++) {
  const began = performance.now();
  found = await gguf(process.argv[2], options);
  took = (performance.now() - began) / 1000;
}
console.log(JSON.stringify([took, found.tensorInfos.map((info) => info.name)]));
"""


@cache
def _folder() -> str:
    if shutil.which("node") is None or shutil.which("npm") is None:
        raise Unavailable("node and npm are not installed")
    folder = tempfile.mkdtemp(prefix="mmgguf-node-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    try:
        command = ["npm", "install", "--silent", PACKAGE]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, check=False)
    except subprocess.TimeoutExpired:
        raise Unavailable(f"npm did not fetch {PACKAGE} within 60 s") from None
    if done.returncode:
        raise Unavailable(f"npm has no {PACKAGE}: {' '.join(done.stderr.split())[-150:]}")
    with open(f"{folder}/open.mjs", "w", encoding="utf-8") as file:
        file.write(SCRIPT)
    return folder


def version() -> str:
    """The version that was fetched.  Raises `Unavailable`."""
    with open(f"{_folder()}/node_modules/{PACKAGE}/package.json", encoding="utf-8") as file:
        return str(json.load(file)["version"])


def seconds_to_open(source: str, times: int = 3) -> tuple[float, list[str]]:
    """Seconds of the last of so many openings in a fresh process, and the names of the tensors.

    Raises
    ------
    Unavailable
        There is no node, no npm, or the package cannot be fetched or does not open this file.
    """
    command = ["node", "open.mjs", source, str(times)]
    done = subprocess.run(command, cwd=_folder(), capture_output=True, text=True, timeout=300, check=False)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if "Error" in line] or done.stderr.splitlines()
        raise Unavailable(f"does not open this file: {lines[0][:150] if lines else done.returncode}")
    seconds, names = json.loads(done.stdout)
    return float(seconds), list(names)
