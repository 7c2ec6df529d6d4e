"""Run a function on several ranks of torch.distributed: forked, with gloo on this machine."""

from __future__ import annotations

import datetime
import multiprocessing
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["run"]


def run(count: int, function: Callable[..., Any], *arguments: Any, timeout: float = 60.0) -> list[Any]:
    """What the function gives on each rank, called with its rank and the arguments; exceptions as they were raised.

    A rank that ends without a result, as a killed one, gives None.  Ranks that take longer than the timeout are
    killed, and the test fails.
    """
    context = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory() as folder:
        pipes = [context.Pipe(duplex=False) for _ in range(count)]
        processes = [
            context.Process(target=_main, args=(Path(folder), rank, count, pipes[rank][1], function, arguments))
            for rank in range(count)
        ]
        for process in processes:
            process.start()
        for _, end in pipes:
            end.close()
        try:
            results = []
            for rank, (pipe, _) in enumerate(pipes):
                assert pipe.poll(timeout), f"rank {rank} hangs"
                try:
                    results.append(pipe.recv())
                except EOFError:
                    results.append(None)
            return results
        finally:
            for process in processes:
                process.join(5)
                if process.is_alive():
                    process.kill()
                    process.join()


def _main(folder: Path, rank: int, count: int, pipe: Any, function: Callable[..., Any], arguments: Any) -> None:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / "store"), count)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=count, timeout=datetime.timedelta(seconds=60))
    try:
        result = function(rank, *arguments)
    except BaseException as error:
        traceback.print_exc()
        result = error
    pipe.send(result)
    pipe.close()
    store = None
    dist.destroy_process_group()
