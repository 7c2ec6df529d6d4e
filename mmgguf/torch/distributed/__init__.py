"""PyTorch on several processes: each rank loads its part of a file, as DTensors, packed or as numbers.

>>> from torch.distributed.device_mesh import init_device_mesh
>>> from torch.distributed.tensor import Shard
>>> from mmgguf.torch.distributed import load_sharded
>>> mesh = init_device_mesh("cpu", (2,))  # under torchrun  # doctest: +SKIP
>>> parts = load_sharded("blk.*.ffn_up.weight", "model.gguf", mesh, Shard(0), quantized=True)  # doctest: +SKIP
"""

from __future__ import annotations

from .huggingface import from_gguf
from .layers import ShardedEmbedding, ShardedLinear
from .loading import load_sharded

__all__ = ["ShardedEmbedding", "ShardedLinear", "from_gguf", "load_sharded"]
