"""The tensors of a file as torch tensors, one by one or all together."""

from __future__ import annotations

from functools import partial
from typing import Any, Final

import torch

from ..conversion import result_dtype, store
from ..dequant.memory import empty
from ..file import GGUFFile, Source, opened
from ..loading import TensorMapping
from ..selection import Names, Progress, walk
from ..storage.base import OwnMemory, Storage
from ..storage.local import MappedFile, ReadFile
from ..tensor import Tensor
from ..types import GGMLType
from .memory import TORCH_DTYPES, as_bytes, as_numpy, native, numpy_dtype, share
from .packed import PackedTensor
from .staging import Staging

__all__ = ["Tensors", "load_file"]

#: Bytes of each of the two buffers between the file and a CUDA device.
_STAGING_SIZE: Final = 32 << 20


class Tensors(TensorMapping[torch.Tensor]):
    """The tensors of an open file as torch tensors, each made on access.

    Parameters
    ----------
    f : GGUFFile
        Must stay open while tensors are asked for; those handed out stay valid after that.
    dtype, dequantize, device
        As of `load_file`.

    Notes
    -----
    On the CPU plain tensors share memory with a copy-on-write mapping of the file: the file's own if it was opened
    with ``mode="c"`` (writes are then seen in its arrays too), otherwise one made here.  Big-endian data and data
    that is not aligned is copied.  A `GGUFFile` with ``storage="read"`` gives each tensor memory of its own.
    """

    def __init__(
        self,
        f: GGUFFile,
        *,
        dtype: torch.dtype | None = None,
        dequantize: bool = True,
        device: torch.device | str | int = "cpu",
    ) -> None:
        super().__init__(f)
        self._dtype = dtype
        self._target = None if dtype is None else numpy_dtype(dtype)
        self._device = torch.device(device)
        self._dequantize = dequantize
        self._mappings: dict[Storage, Storage] = {}
        self._staging: Staging | None = None

    def __getitem__(self, name: str) -> torch.Tensor:
        tensor = self._load(self._file[name])
        self._finish()
        return tensor

    def __reduce__(self) -> tuple[Any, ...]:
        # By reference, as the file itself: a worker process maps it on its own.
        options = {"dtype": self._dtype, "dequantize": self._dequantize, "device": self._device}
        return partial(Tensors, **options), (self._file,)

    def __repr__(self) -> str:
        return f"<Tensors of {self._file!r} on {self._device}>"

    @property
    def device(self) -> torch.device:
        """Where the tensors go."""
        return self._device

    def _load(self, tensor: Tensor) -> torch.Tensor:
        if not tensor.layout.is_plain and not self._dequantize:
            return self._raw(tensor)
        target = result_dtype(tensor, self._target)
        if self._device.type == "cpu" and target == tensor.layout.dtype:
            return share(self._writable(tensor).data, target)
        if self._device.type == "cpu":
            result = share(empty(tensor.shape, target), target)
        else:
            result = torch.empty(tensor.shape, dtype=TORCH_DTYPES[target], device=self._device)
        self._fill(result, tensor)
        return result

    def _raw(self, tensor: Tensor) -> torch.Tensor:
        layout = tensor.layout
        # A row of no blocks has no bytes, and numpy cannot view an axis of nothing as another dtype.
        shape = layout.packed_shape(tensor.shape)
        if self._device.type == "meta":
            data = torch.empty(shape, dtype=torch.uint8, device=self._device)
        else:
            blocks = native(self._writable(tensor).data, layout.dtype)
            data = self._send(torch.from_numpy(as_bytes(blocks).reshape(shape)))
        return PackedTensor.wrap(data, GGMLType(tensor.type))

    def _send(self, data: torch.Tensor) -> torch.Tensor:
        """Bytes in the CPU's memory, on the device."""
        if self._device.type != "cuda":
            return data.to(self._device)
        target = torch.empty(data.shape, dtype=data.dtype, device=self._device)
        self._pinned().copy(target, data)
        return target

    def _pinned(self) -> Staging:
        if self._staging is None:
            self._staging = Staging(_STAGING_SIZE, pinned=True)
        return self._staging

    def _fill(self, target: torch.Tensor, tensor: Tensor) -> None:
        """Write a tensor's numbers to contiguous memory of the same shape on any device."""
        if target.device.type == "cpu" and tensor.layout.is_plain:
            # torch converts faster than numpy.
            target.copy_(share(self._writable(tensor).data, tensor.layout.dtype))
        elif target.device.type == "cpu":
            store(tensor.data, tensor, as_numpy(target))
        elif target.device.type == "cuda":
            self._pinned().fill(target, tensor)
        elif target.device.type != "meta":
            numbers = torch.empty(tensor.shape, dtype=target.dtype)
            store(tensor.data, tensor, as_numpy(numbers))
            target.copy_(numbers)

    def _finish(self) -> None:
        """Wait for the copies that are under way."""
        if self._staging is not None:
            self._staging.finish()

    def _writable(self, tensor: Tensor) -> Tensor:
        """The tensor on memory that may be written to."""
        file = tensor.storage
        if file.mode == "c" or isinstance(file, ReadFile):
            return tensor
        if not isinstance(file, MappedFile):
            return Tensor(tensor.info, OwnMemory(file), tensor.data_offset, tensor.byte_order)
        mapping = self._mappings.get(file)
        if mapping is None:
            mapping = self._mappings.setdefault(file, file.copy_on_write())
        return Tensor(tensor.info, mapping, tensor.data_offset, tensor.byte_order)


def load_file(
    source: Source,
    *,
    names: Names = None,
    dtype: torch.dtype | None = None,
    dequantize: bool = True,
    progress: Progress | None = None,
    device: torch.device | str | int = "cpu",
) -> dict[str, torch.Tensor]:
    """Load all tensors of a file, or some, as torch tensors.

    Parameters
    ----------
    source, names, progress
        As of `mmgguf.load_file`.
    dtype : torch.dtype, optional
        What blocks and floats become, as of `mmgguf.load_file`.
    dequantize : bool, default True
        False hands blocks over packed, as `PackedTensor`.
    device : torch.device or str, default "cpu"
        Where the tensors go.  ``"meta"`` gives shapes and dtypes without touching the data.

    Returns
    -------
    dict of str to torch.Tensor
        In the file's order.  On the CPU, plain types share memory with a copy-on-write mapping of the file, which
        lives as long as one of them; see `Tensors`.

    Raises
    ------
    GGUFError, TypeError
        As `mmgguf.load_file`.

    Examples
    --------
    >>> load_file("model.gguf", names="*norm*", dtype=torch.bfloat16)["output_norm.weight"].dtype
    torch.bfloat16
    """
    with opened(source, mode="c") as f:
        tensors = Tensors(f, dtype=dtype, dequantize=dequantize, device=device)
        result = {tensor.name: tensors._load(tensor) for tensor in walk(f, names, progress)}
        tensors._finish()
        return result
