"""What a result depends on: processor, kernel, disk and versions.  Nothing that tells one machine from another."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import numpy as np

from mmgguf.bench import peers


def describe(folder: Path) -> dict[str, str]:
    """What to print above results; `folder` is where the measured files are."""
    return {
        "processor": _processor(),
        "memory": _memory(),
        "system": f"{platform.system()} {platform.release()}",
        "disk": _disk(folder),
        "python": platform.python_version(),
        "numpy": np.__version__,
        **{peers.PEERS[name].package: version for name, version in peers.versions().items()},
    }


def _processor() -> str:
    name = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                name = line.partition(":")[2].strip()
                break
    except OSError:
        pass
    return f"{name}, {os.cpu_count()} cores"


def _memory() -> str:
    try:
        return f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB"
    except (ValueError, OSError, AttributeError):
        return "unknown"


def _disk(folder: Path) -> str:
    """File system and kind of device under a folder."""
    try:
        device = os.stat(folder).st_dev
        number = f"{os.major(device)}:{os.minor(device)}"
        for line in Path("/proc/self/mountinfo").read_text().splitlines():
            before, _, after = line.partition(" - ")
            if before.split()[2] == number:
                file_system, source = after.split()[:2]
                break
        else:
            return "unknown"
        block = Path("/sys/dev/block", number).resolve()
        if not (block / "queue").exists():
            block = block.parent  # a partition
        if not (block / "queue").exists():
            return file_system
        spins = (block / "queue" / "rotational").read_text().strip() == "1"
        kind = "virtual disk" if block.name.startswith("vd") else "rotating disk" if spins else "solid state"
        return f"{file_system} on {kind} ({Path(source).name if source.startswith('/') else source})"
    except (OSError, AttributeError, IndexError):
        return "unknown"
