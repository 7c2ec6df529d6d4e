"""The distributed example and guide under a real ``torchrun``, with the real model: results of one process.

Each starts Python several times: slow.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import mmgguf

for package in ("torch", "transformers", "gguf"):
    pytest.importorskip(package)

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="gloo, and /proc")]

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "examples"
GUIDE = ROOT / "docs" / "guides" / "distributed.md"


#: What torch 2.13 with gloo may say when the interpreter ends right behind the last collective.  It aborts then, also
#: in programs that do not import mmgguf.
ABORTED = "terminate called without an active exception"


def torchrun(count: int, *arguments: object, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    paths = [str(Path(mmgguf.__file__).parents[1]), str(ROOT)]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "OMP_NUM_THREADS": "1",
        "PYTHONWARNINGS": "ignore",
    }
    environment.pop("PYTHONSAFEPATH", None)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
    command += map(str, arguments)
    for _ in range(5):
        process = subprocess.run(
            command, capture_output=True, text=True, env=environment, timeout=280, cwd=folder, check=False
        )
        if ABORTED not in process.stderr:
            break
    return process


def answer(process: subprocess.CompletedProcess[str]) -> str:
    assert process.returncode == 0, process.stderr
    return process.stdout


def test_the_tokens_are_those_of_one_process(smollm2: Path) -> None:
    prompt = (smollm2, "The days of the week are Monday,", "--ids", "--tokens", "12")
    one = subprocess.run(
        [sys.executable, "-W", "ignore", EXAMPLES / "generate_torch.py", *prompt],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(Path(mmgguf.__file__).parents[1])},
    ).stdout
    assert len(one.split()) == 12
    for more in ((), ("--from-rank0",)):
        assert answer(torchrun(2, EXAMPLES / "generate_distributed.py", *prompt, *more)) == one


def test_a_rank_that_finds_another_file(smollm2: Path, tmp_path: Path) -> None:
    """The message names host and file on every rank, and nobody waits."""
    (tmp_path / "model.gguf").symlink_to(smollm2)
    script = tmp_path / "script.py"
    script.write_text(
        "import os, shutil, sys\n"
        "from torch.distributed.device_mesh import init_device_mesh\n"
        "from mmgguf.torch.distributed import load_sharded\n"
        "mesh = init_device_mesh('cpu', (2,))\n"
        "path = 'model.gguf'\n"
        "if mesh.get_rank() == 1:\n"
        "    path = shutil.copyfile('model.gguf', 'other.gguf')\n"
        "load_sharded(None, path, mesh, quantized=True, timeout=60)\n"
    )
    process = torchrun(2, script, folder=tmp_path)
    assert process.returncode == 1
    found = re.findall(
        r"FileChangedError: .*rank 1 on \S+ has another file than rank 0 on \S+: other.gguf: ", process.stderr
    )
    assert len(found) == 2, process.stderr


LOGITS = """
import json, sys
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
import mmgguf.torch
from mmgguf.torch.distributed import from_gguf

mesh = init_device_mesh("cpu", (dist.get_world_size() if dist.is_initialized() else 2,))
ids = torch.randint(3, 40000, (2, 16), generator=torch.Generator().manual_seed(7))
one = mmgguf.torch.from_gguf("model.gguf")
with torch.no_grad():
    expected = one(ids).logits
differences = {}
for name, options in {
    "packed": {},
    "with exchange": {"exchange": True},
    "from rank 0": {"from_rank0": True},
    "numbers": {"quantized": False},
}.items():
    source = None if options.get("from_rank0") and mesh.get_rank() else "model.gguf"
    model = from_gguf(source, mesh, **options)
    with torch.no_grad():
        found = model(ids).logits
    differences[name] = float((found - expected).abs().max() / expected.abs().max())
if mesh.get_rank() == 0:
    print(json.dumps(differences))
dist.destroy_process_group()
"""


def test_logits_are_those_of_one_process_to_rounding(smollm2: Path, tmp_path: Path) -> None:
    (tmp_path / "model.gguf").symlink_to(smollm2)
    (tmp_path / "script.py").write_text(LOGITS)
    differences = json.loads(answer(torchrun(2, "script.py", folder=tmp_path)))
    assert len(differences) == 4
    assert max(differences.values()) < 2e-5, differences


MEMORY = """
import json, os, sys
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard
import mmgguf
from mmgguf.torch.distributed import load_sharded

options = json.loads(sys.argv[1])
mesh = init_device_mesh("cpu", (2,))
plan = {"*norm*": Replicate(), "*attn_output*": Shard(1), "*ffn_down*": Shard(1), "*": Shard(0)}
with mmgguf.open("model.gguf") as f:
    mine = sum(t.nbytes if "norm" in n else t.nbytes // 2 for n, t in f.items())
    load_sharded("blk.0.*", f, mesh, plan, **options)  # what first uses need

def status(key):
    return next(int(line.split()[1]) << 10 for line in open("/proc/self/status") if line.startswith(key))

def mapped():
    found, counts = 0, False
    for line in open("/proc/self/smaps"):
        head = line.split()
        if not head[0].endswith(":"):
            counts = line.rstrip().endswith(".gguf")
        elif counts and head[0] == "Rss:":
            found += int(head[1]) << 10
    return found

anonymous = status("RssAnon")
parts = load_sharded(None, "model.gguf", mesh, plan, **options)
local = [p.to_local() for p in parts.values()]
sums = [int(p.reshape(-1).view(torch.uint8)[::256].sum()) for p in local]  # every page
report = {"part": mine, "mapped": mapped(), "anonymous": status("RssAnon") - anonymous}
report["result"] = sum(p.nbytes for p in local)
with open(f"rank{mesh.get_rank()}.json", "w") as out:  # the ranks' prints may share a line
    json.dump(report, out)
"""


@pytest.mark.parametrize(
    "options",
    [{"quantized": True, "exchange": True}, {"quantized": True, "from_rank0": True}, {"exchange": True}],
    ids=str,
)
def test_memory_of_each_rank(options: dict[str, Any], smollm2: Path, tmp_path: Path) -> None:
    """No pages but the rank's own, and no memory but its part."""
    (tmp_path / "model.gguf").symlink_to(smollm2)
    (tmp_path / "script.py").write_text(MEMORY)
    answer(torchrun(2, "script.py", json.dumps(options), folder=tmp_path))
    for rank in range(2):
        report = json.loads((tmp_path / f"rank{rank}.json").read_text())
        assert report["mapped"] <= 1.05 * report["part"], report
        assert report["anonymous"] <= report["result"] + (64 << 20), report


def guide_blocks() -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", GUIDE.read_text(), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("number", range(4))
def test_the_guide(number: int, smollm2: Path, tmp_path: Path) -> None:
    blocks = guide_blocks()
    assert len(blocks) == 4
    (tmp_path / "model.gguf").symlink_to(smollm2)
    (tmp_path / "script.py").write_text(blocks[number])
    answer(torchrun(2, "script.py", folder=tmp_path))
