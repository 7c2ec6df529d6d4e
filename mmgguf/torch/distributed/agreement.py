"""What ranks tell each other before they load: errors, the file that they found, and their plan.

A report is JSON, a few hundred bytes; nothing that is received is unpickled or run.  The first rank of a mesh collects
the reports and passes all of them on, so that every rank knows all and decides the same.  Nobody waits longer than the
timeout: a rank that does not answer is named.
"""

from __future__ import annotations

import hashlib
import json
import platform
import time
from collections import Counter
from datetime import timedelta
from typing import Any, Final

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh

from ...errors import FileChangedError, shown

__all__ = ["Report", "bounded", "collect", "communication_device", "require_agreement", "wait"]

#: rank, host and whatever was found.
Report = dict[str, Any]
#: Characters of another rank's message that are shown.
_SHOWN: Final = 500


def communication_device(group: Any, mesh: DeviceMesh) -> torch.device:
    """Where tensors have to be for a group to send them: the CPU if that is possible."""
    on_the_cpu = "cpu" in str(dist.get_backend_config(group)) or dist.get_backend(group) == "gloo"
    return torch.device("cpu" if on_the_cpu else mesh.device_type)


def wait(work: Any, timeout: float, what: str) -> None:
    """Wait for a transfer; its failure as one error that says what it was."""
    if work is None:
        return
    try:
        done = work.wait(timedelta(seconds=max(timeout, 0.001)))
    except RuntimeError as error:
        raise RuntimeError(f"{what}: a rank died, or did not answer within {timeout:.0f} s ({_line(error)})") from error
    if done is False:
        raise RuntimeError(f"{what}: a rank did not answer within {timeout:.0f} s")


def collect(mesh: DeviceMesh, found: Report, timeout: float) -> list[Report]:
    """The reports of all ranks of a mesh, in the order of its ranks.

    Through the store of the process group: it answers when ranks do not, and a wait that ends without one breaks
    nothing, as it would break a group of gloo.
    """
    ranks, me = mesh.mesh.flatten().tolist(), dist.get_rank()
    report = {"rank": me, "host": platform.node(), **found}
    if len(ranks) == 1:
        return [report]
    store, end = _store(), time.monotonic() + timeout
    call = _calls[tuple(ranks)] = _calls[tuple(ranks)] + 1
    prefix = f"mmgguf/{'-'.join(map(str, ranks)) if len(ranks) < 9 else _digest(ranks)}/{call}"
    if me != ranks[0]:
        store.set(f"{prefix}/{me}", json.dumps(report))
        # The first rank may wait as long as it takes to know who is missing.
        if not _is_there(store, f"{prefix}/all", 2 * timeout):
            raise RuntimeError(
                f"rank {ranks[0]}: no word from it within {2 * timeout:.0f} s: is it running, and loading the same?"
            )
        return [_parsed(one, rank) for rank, one in zip(ranks, _split(store.get(f"{prefix}/all")), strict=True)]
    reports = [report]
    for rank in ranks[1:]:
        key = f"{prefix}/{rank}"
        if _is_there(store, key, max(end - time.monotonic(), 0.1)):
            reports.append(_parsed(store.get(key), rank))
            store.delete_key(key)
        else:
            reports.append({"rank": rank, "host": "", "gone": f"no answer within {timeout:.0f} s"})
    store.set(f"{prefix}/all", json.dumps(reports))
    return reports


#: How often the ranks of each mesh have reported.
_calls: Final[Counter[tuple[int, ...]]] = Counter()


def _store() -> Any:
    """The store by which the processes have found each other; torch has no public name for it."""
    return dist.distributed_c10d._get_default_store()


def _digest(ranks: list[int]) -> str:
    return hashlib.blake2b(repr(ranks).encode(), digest_size=16).hexdigest()


def _is_there(store: Any, key: str, timeout: float) -> bool:
    try:
        store.wait([key], timedelta(seconds=timeout))
    except RuntimeError:  # of which dist.DistStoreError is one
        return False
    return True


def _split(data: bytes) -> list[bytes]:
    """The reports in a list of them."""
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, list):
        raise RuntimeError("the first rank sent what is no list of reports")
    return [json.dumps(one).encode() for one in found]


def _parsed(data: bytes, rank: int) -> Report:
    """A report, or that there is none where something else was sent."""
    try:
        report = json.loads(data)
    except (ValueError, RecursionError):
        report = None
    if not isinstance(report, dict) or report.get("rank") != rank:
        return {"rank": rank, "host": "", "gone": "sent what is no report"}
    return report


def require_agreement(reports: list[Report], error: BaseException | None) -> None:
    """Raise on every rank if one of them failed, is gone, or found another file than the first.

    Raises
    ------
    BaseException
        This rank's own error, if it has one.
    RuntimeError
        Another rank failed or is gone.
    FileChangedError
        Two ranks have different files.
    """
    failed = [
        f"rank {one['rank']}{_on(one)}: {bounded(problem)}"
        for one in reports
        if (problem := one.get("gone") or one.get("error"))
    ]
    if error is not None:
        raise error
    if failed:
        more = f" (and {len(failed) - 8} more)" if len(failed) > 8 else ""
        raise RuntimeError(f"load_sharded stopped on all ranks: {'; '.join(failed[:8])}{more}")
    with_file = [one for one in reports if one.get("files") is not None]
    for one in with_file[1:]:
        first = with_file[0]
        if problem := _difference(first["files"], one["files"]):
            raise FileChangedError(
                f"load_sharded stopped on all ranks: rank {one['rank']}{_on(one)} has another file than rank "
                f"{first['rank']}{_on(first)}: {problem}"
            )


def _difference(ours: list[Any], theirs: list[Any]) -> str | None:
    if len(ours) != len(theirs):
        return f"{len(theirs)} shards, not {len(ours)}"
    for mine, other in zip(ours, theirs, strict=True):
        for key, what in (
            ("size", "bytes"),
            ("changed", "changed at (ns, or ETag)"),
            ("header", "digest of the header"),
        ):
            if mine[key] != other[key]:
                return f"{bounded(other['path'])}: {what} {other[key]}, where {bounded(mine['path'])} has {mine[key]}"
    return None


def bounded(text: object) -> str:
    """A message of another rank as this one shows it."""
    line = "".join(c if c.isprintable() else " " for c in str(text))
    return line if len(line) <= _SHOWN else f"{line[:_SHOWN]}…"


def _on(report: Report) -> str:
    return f" on {shown(report['host'])}" if report.get("host") else ""


def _line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return bounded(lines[0]) if lines else type(error).__name__
