"""What a result depends on: processor, kernel, disk and versions.  Nothing that tells one machine from another."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import numpy as np

from mmgguf.bench import peers

from .files import FULL, SMALL, cache_folder

#: What takes part beside the peers of `mmgguf.bench`, or makes something faster.
OTHERS = ("numba", "transformers", "diffusers", "xllamacpp")


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def about(small: bool, files: list[str]) -> dict[str, Any]:
    """What two runs must have in common to be one: commit, machine, sizes, files."""
    folder = cache_folder(small)
    folder.mkdir(parents=True, exist_ok=True)
    return {
        "datetime": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "commit_info": _commit(),
        "machine_info": describe(folder),
        "sizes": (SMALL if small else FULL).name,
        "files": files,
        "all_modules": sorted(path.stem.removeprefix("test_") for path in Path(__file__).parent.glob("test_*.py")),
    }


def _commit() -> dict[str, Any]:
    def git(*words: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        # The last that changed what is measured.
        return {
            "id": git("log", "-1", "--format=%H", "--", "../mmgguf"),
            "dirty": bool(git("status", "--porcelain", "--", "../mmgguf")),
        }
    except (OSError, subprocess.CalledProcessError):  # no git, or an unpacked sdist
        return {"id": None, "dirty": None}


def load() -> float:
    """Programs that want a processor, for each that there is; the suite itself is one of them."""
    try:
        return os.getloadavg()[0] / (os.cpu_count() or 1)
    except (OSError, AttributeError):
        return 0.0


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
        **{name: version for name in OTHERS if (version := _version(name)) is not None},
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
