"""PyTorch tensors of a GGUF file.

>>> from mmgguf.torch import load_file
>>> state = load_file("model.gguf", dtype=torch.bfloat16)  # doctest: +SKIP

torch has no read-only tensors: it would write to a read-only mapping all the same, and the process would die of it.
So whatever is handed out here without a copy is mapped copy-on-write, also where the `GGUFFile` itself was opened
read-only.  Tensors can be written to like any other; the file never changes, and neither does another mapping of it.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final, Self

import ml_dtypes
import numpy as np
import numpy.typing as npt

from .conversion import empty, ranges, result_dtype, store
from .dequant import dequantize
from .errors import MissingExtraError, shown
from .file import GGUFFile, Source, opened
from .loading import TensorMapping
from .selection import Names, Progress, select, walk
from .storage.base import OwnMemory, Storage
from .storage.local import MappedFile, ReadFile
from .tensor import Tensor
from .types import GGMLType

try:
    import torch
except ModuleNotFoundError as error:
    if error.name != "torch":
        raise
    raise MissingExtraError("torch", "torch") from None

__all__ = ["PackedTensor", "Tensors", "load_file", "load_model"]

_BFLOAT16: Final = np.dtype(ml_dtypes.bfloat16)
#: The names that transformers gives to the weights of q and k.
_HUGGING_FACE_QK: Final = re.compile(r"\b[qk]_proj\b")
#: What tensors can be dequantized to.
_NUMPY: Final[dict[torch.dtype, np.dtype[Any]]] = {
    torch.float32: np.dtype(np.float32),
    torch.float16: np.dtype(np.float16),
    torch.bfloat16: _BFLOAT16,
    torch.float64: np.dtype(np.float64),
}
_TORCH: Final[dict[np.dtype[Any], torch.dtype]] = {
    **{dtype: ours for ours, dtype in _NUMPY.items()},
    np.dtype(np.int8): torch.int8,
    np.dtype(np.int16): torch.int16,
    np.dtype(np.int32): torch.int32,
    np.dtype(np.int64): torch.int64,
}
#: Architectures for which llama.cpp's converter orders the rows of the attention's q and k anew (the classes in its
#: folder conversion/ that call ``permute`` or have ``undo_permute = True``).
_PERMUTED: Final = frozenset(
    ("arcee", "arctic", "baichuan", "bailingmoe", "deci", "deepseek", "eagle3", "granite", "granitehybrid")
) | {"granitemoe", "internlm2", "llada", "llama", "minicpm", "mistral3", "nanbeige", "olmo", "smollm3", "xverse"}
#: Bytes of each of the two buffers between the file and a CUDA device.
_STAGING_SIZE: Final = 32 << 20


class PackedTensor(torch.Tensor):
    """The stored blocks of a tensor: uint8 of shape ``(*logical_shape[:-1], bytes per row)``, little-endian.

    Copying it, moving it to another device and pickling keep the attributes; any other operation gives an ordinary
    tensor of bytes.

    Attributes
    ----------
    ggml_type : GGMLType
        What the blocks are.
    logical_shape : tuple of int
        The shape of the numbers that they stand for.
    """

    ggml_type: GGMLType
    logical_shape: tuple[int, ...]

    @classmethod
    def wrap(cls, blocks: torch.Tensor, ggml_type: GGMLType, logical_shape: tuple[int, ...]) -> Self:
        """The same memory, with type and shape attached."""
        raw: Self = blocks.as_subclass(cls)
        raw.ggml_type, raw.logical_shape = ggml_type, logical_shape
        return raw

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            result = func(*args, **(kwargs or {}))
        moved = func in _KEEP_BYTES and isinstance(args[0], cls) and not isinstance(result, cls)
        if moved and result.dtype == torch.uint8:
            return cls.wrap(result, args[0].ggml_type, args[0].logical_shape)
        return result

    def __deepcopy__(self, memo: dict[int, Any]) -> PackedTensor:
        copy: PackedTensor = self.clone()
        memo[id(self)] = copy
        return copy

    def dequantize(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """The numbers, of shape `logical_shape`, on the same device; computed on the CPU."""
        target = _numpy_dtype(dtype)
        blocks = self.cpu().contiguous().as_subclass(torch.Tensor).numpy()
        result = torch.empty(self.logical_shape, dtype=dtype)
        dequantize(blocks, self.ggml_type, dtype=target, out=_as_numpy(result))
        return result.to(self.device)

    def __repr__(self, **_: Any) -> str:
        return f"<PackedTensor {self.ggml_type.name} {self.logical_shape}, {self.numel()} bytes on {self.device}>"


_KEEP_BYTES: Final = frozenset(
    {
        torch.Tensor.clone,
        torch.Tensor.contiguous,
        torch.Tensor.cpu,
        torch.Tensor.cuda,
        torch.Tensor.detach,
        torch.Tensor.pin_memory,
        torch.Tensor.to,
    }
)


class Tensors(TensorMapping[torch.Tensor]):
    """The tensors of an open file as torch tensors, made when they are asked for.

    Parameters
    ----------
    f : GGUFFile
        Must stay open while tensors are asked for; those handed out stay valid after that.
    dtype : torch.dtype, optional
        float32, float16, bfloat16 or float64: what blocks and floats become, while integers stay what they are.
        By default plain types keep their dtype and blocks become float32.
    dequantize : bool, default True
        False hands blocks over as `PackedTensor`.
    device : torch.device or str, default "cpu"
        Where the tensors go.  ``"meta"`` gives shapes and dtypes without touching the data.

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
        self._target = None if dtype is None else _numpy_dtype(dtype)
        self._device = torch.device(device)
        self._dequantize = dequantize
        self._mappings: dict[Storage, Storage] = {}
        self._staging: _Staging | None = None

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

    def _load(self, tensor: Tensor) -> torch.Tensor:
        if not tensor.layout.is_plain and not self._dequantize:
            return self._raw(tensor)
        target = result_dtype(tensor, self._target)
        if self._device.type == "cpu" and target == tensor.layout.dtype:
            return _share(self._writable(tensor).data, target)
        if self._device.type == "cpu":
            result = _share(empty(tensor.shape, target), target)
        else:
            result = torch.empty(tensor.shape, dtype=_TORCH[target], device=self._device)
        self._fill(result, tensor)
        return result

    def _raw(self, tensor: Tensor) -> torch.Tensor:
        layout = tensor.layout
        # A row of no blocks has no bytes, and numpy cannot view an axis of nothing as another dtype.
        shape = layout.packed_shape(tensor.shape)
        if self._device.type == "meta":
            data = torch.empty(shape, dtype=torch.uint8, device=self._device)
        else:
            blocks = _native(self._writable(tensor).data, layout.dtype)
            data = torch.from_numpy(_as_bytes(blocks).reshape(shape)).to(self._device)
        return PackedTensor.wrap(data, GGMLType(tensor.type), tensor.shape)

    def _fill(self, target: torch.Tensor, tensor: Tensor) -> None:
        """Write a tensor's numbers to contiguous memory of the same shape on any device."""
        if target.device.type == "cpu" and tensor.layout.is_plain:
            target.copy_(_share(self._writable(tensor).data, tensor.layout.dtype))  # torch converts faster than numpy
        elif target.device.type == "cpu":
            store(tensor.data, tensor, _as_numpy(target))
        elif target.device.type == "cuda":
            if self._staging is None:
                self._staging = _Staging(_STAGING_SIZE, pinned=True)
            self._staging.fill(target, tensor)
        elif target.device.type != "meta":
            numbers = torch.empty(tensor.shape, dtype=target.dtype)
            store(tensor.data, tensor, _as_numpy(numbers))
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
    """All tensors of a file.

    Parameters
    ----------
    source : path-like or GGUFFile
        The file.
    names : str or iterable of str, optional
        Only these tensors: names, or patterns with ``*``, ``?`` or ``[``.
    dtype : torch.dtype, optional
        float32, float16, bfloat16 or float64: what blocks and floats become, while integers stay what they are.
        By default plain types keep their dtype and blocks become float32.
    dequantize : bool, default True
        False hands blocks over as `PackedTensor`: raw uint8 with ggml type and logical shape.
    progress : callable, optional
        Called with (bytes done, bytes in all).
    device : torch.device or str, default "cpu"
        Where the tensors go.  ``"meta"`` gives shapes and dtypes without touching the data.

    Returns
    -------
    dict of str to torch.Tensor
        In the file's order.  On the CPU, plain types share memory with a copy-on-write mapping of the file, which
        lives as long as one of them; see `Tensors`.

    Raises
    ------
    GGUFError
        The file is not valid, a name is missing, a ggml type is unknown.
    TypeError
        A dtype that is not offered.
    """
    with opened(source, mode="c") as f:
        tensors = Tensors(f, dtype=dtype, dequantize=dequantize, device=device)
        result = {tensor.name: tensors._load(tensor) for tensor in walk(f, names, progress)}
        tensors._finish()
        return result


def load_model(
    module: torch.nn.Module,
    source: Source,
    *,
    rename: Mapping[str, str] | Callable[[str], str | None] | None = None,
    names: Names = None,
    dtype: torch.dtype | None = None,
    progress: Progress | None = None,
    strict: bool = True,
    assign: bool = False,
) -> Any:
    """Fill a module's parameters and buffers in place, without a second copy of the weights in between.

    Parameters
    ----------
    module : torch.nn.Module
        What to fill, on any device.
    source : path-like or GGUFFile
        The file.
    rename : mapping or callable, optional
        From names in the file to names in the module: a mapping (names that it lacks stay what they are), or a
        function, which may return None for a tensor that is to be left out.
    names : str or iterable of str, optional
        Only these tensors of the file: names, or patterns with ``*``, ``?`` or ``[``.
    dtype : torch.dtype, optional
        Of the tensors that are assigned; otherwise the module's own dtypes decide.
    progress : callable, optional
        Called with (bytes done, bytes in all).
    strict : bool, default True
        Whether missing and unexpected names are an error.  Shapes that differ always are.
    assign : bool, default False
        Put the file's tensors in the place of the module's, as `torch.nn.Module.load_state_dict` does: the way to
        fill a module that was made on the device ``"meta"``, and to share memory with the file.

    Returns
    -------
    NamedTuple
        With the lists ``missing_keys`` and ``unexpected_keys``, as `torch.nn.Module.load_state_dict` returns.

    Raises
    ------
    RuntimeError
        What does not fit, in the words of `load_state_dict`; nothing was written then.
    GGUFError
        The file is not valid, a name is missing, a ggml type is unknown.

    Notes
    -----
    A name that is missing in the file, but shares its memory with one that is there (tied embeddings), is not
    missing unless `assign` is set.

    Tensors are put in as the file has them.  For some architectures, llama's among them, llama.cpp's converter changes
    weights: it orders the rows of q and k as its own rotary embedding needs them, so that a model of transformers
    computes wrong results with them.  Where a file of such an architecture fills a ``q_proj`` or ``k_proj``, a
    `UserWarning` says so.
    """
    if dtype is not None and not assign:
        raise ValueError("dtype needs assign=True: in place, the module's own dtypes decide")
    with opened(source, mode="c") as f:
        renamed = {name: new for name in select(f, names) if (new := _rename(rename, name)) is not None}
        _check_unique(renamed)
        _warn_of_permuted_rows(f, renamed)
        if assign:
            state = load_file(f, names=renamed, dtype=dtype, progress=progress)
            return module.load_state_dict({renamed[name]: value for name, value in state.items()}, strict, True)
        targets = module.state_dict()
        result = _check_state(module, targets, {new: f[name].shape for name, new in renamed.items()}, strict)
        tensors = Tensors(f)
        wanted = [name for name, new in renamed.items() if new in targets]
        with torch.no_grad():
            for tensor in walk(f, wanted, progress):
                _fill_parameter(targets[renamed[tensor.name]], tensor, tensors)
        tensors._finish()
        return result


def _rename(rename: Mapping[str, str] | Callable[[str], str | None] | None, name: str) -> str | None:
    if rename is None:
        return name
    return rename.get(name, name) if isinstance(rename, Mapping) else rename(name)


def _warn_of_permuted_rows(f: GGUFFile, renamed: Mapping[str, str]) -> None:
    name = next((name for name, new in renamed.items() if _HUGGING_FACE_QK.search(new)), None)
    architecture = f.metadata.get("general.architecture")
    if name is not None and isinstance(architecture, str) and architecture in _PERMUTED:
        warnings.warn(
            f"{f.path}: {shown(name)} fills {shown(renamed[name])}, but for the architecture {architecture} the rows "
            "of q and k are in llama.cpp's order in the file: a model of transformers computes wrong results with them",
            stacklevel=3,
        )


def _check_unique(renamed: dict[str, str]) -> None:
    origin: dict[str, str] = {}
    for name, new in renamed.items():
        if new in origin:
            raise ValueError(f"rename: {origin[new]!r} and {name!r} both become {new!r}")
        origin[new] = name


def _check_state(
    module: torch.nn.Module, targets: dict[str, Any], shapes: dict[str, tuple[int, ...]], strict: bool
) -> Any:
    """Hold names and shapes against a module's, and report as torch does."""
    on_meta = [key for key in shapes if key in targets and targets[key].is_meta]
    if on_meta:
        raise ValueError(f"{on_meta[0]} is on the device 'meta', which has no memory to fill: pass assign=True")
    filled = {_memory(targets[key]) for key in shapes if key in targets}
    missing = [key for key, value in targets.items() if key not in shapes and _memory(value) not in filled]
    unexpected = [key for key in shapes if key not in targets]
    problems = [
        "{} key(s) in state_dict: {}. ".format(what, ", ".join(f'"{key}"' for key in keys))
        for what, keys in (("Missing", missing), ("Unexpected", unexpected))
        if strict and keys
    ]
    problems += [
        f"size mismatch for {key}: copying a param with shape {torch.Size(shape)} from checkpoint, "
        f"the shape in current model is {targets[key].shape}."
        for key, shape in shapes.items()
        if key in targets and targets[key].shape != shape
    ]
    if problems:
        raise RuntimeError(
            "Error(s) in loading state_dict for {}:\n\t{}".format(type(module).__name__, "\n\t".join(problems))
        )
    # The class of the result is private to torch: have it make one.
    nothing = torch.nn.Module().load_state_dict({})
    return nothing._replace(missing_keys=missing, unexpected_keys=unexpected)


def _memory(tensor: Any) -> Any:
    """What two entries of a state dict have in common if they are the same memory."""
    if not isinstance(tensor, torch.Tensor):  # a module's extra state
        return id(tensor)
    return tensor.device, tensor.data_ptr() or id(tensor), tensor.shape, tensor.stride()


def _fill_parameter(target: torch.Tensor, tensor: Tensor, tensors: Tensors) -> None:
    dtype = _NUMPY.get(target.dtype)
    if dtype is not None and dtype == result_dtype(tensor, dtype) and target.is_contiguous():
        tensors._fill(target, tensor)
    else:
        target.copy_(tensors._load(tensor))


class _Staging:
    """Two buffers in host memory: while the device copies the one, the next numbers are computed into the other.

    Only from pinned memory does CUDA copy on its own, so `pinned` is set for a device and not in tests without one.
    """

    def __init__(self, nbytes: int, pinned: bool) -> None:
        self._buffers = [torch.empty(nbytes, dtype=torch.uint8, pin_memory=pinned) for _ in range(2)]
        self._copied: list[Any] = [None, None]
        self._pinned = pinned
        self._next = 0

    def fill(self, target: torch.Tensor, tensor: Tensor) -> None:
        """Write a tensor's numbers to contiguous memory of the same shape on a device; `finish` waits for the end."""
        stored, flat = tensor.data.reshape(-1), target.view(-1)
        block_size = tensor.layout.block_size
        for start, stop in ranges(len(flat), flat.element_size(), self._buffers[0].numel()):
            turn, self._next = self._next, 1 - self._next
            self._wait(turn)
            part = self._buffers[turn][: (stop - start) * flat.element_size()].view(flat.dtype)
            store(stored[start // block_size : stop // block_size], tensor, _as_numpy(part))
            flat[start:stop].copy_(part, non_blocking=self._pinned)
            if self._pinned:
                self._copied[turn] = torch.cuda.current_stream(target.device).record_event()

    def finish(self) -> None:
        """Wait until everything has been copied."""
        for turn in range(2):
            self._wait(turn)

    def _wait(self, turn: int) -> None:
        event, self._copied[turn] = self._copied[turn], None
        if event is not None:
            event.synchronize()


def _numpy_dtype(dtype: torch.dtype) -> np.dtype[Any]:
    try:
        return _NUMPY[dtype]
    except (KeyError, TypeError):
        offered = ", ".join(map(str, _NUMPY))
        raise TypeError(f"dtype must be one of {offered}, got {dtype!r}") from None


def _as_numpy(tensor: torch.Tensor) -> npt.NDArray[Any]:
    """The memory of a contiguous CPU tensor as a numpy array."""
    tensor = tensor.detach()
    if tensor.dtype == torch.bfloat16:
        shared: npt.NDArray[Any] = tensor.view(torch.uint16).numpy().view(_BFLOAT16)
        return shared
    array: npt.NDArray[Any] = tensor.numpy()
    return array


def _as_bytes(array: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    return array.reshape(-1).view(np.uint8) if array.size else np.empty(0, np.uint8)


def _native(array: npt.NDArray[Any], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """The array in that byte order, aligned and writable; a copy only where it must be one."""
    if array.dtype != dtype or not array.flags.aligned:
        return array.astype(dtype)
    if not array.flags.writeable:
        # Only files that are read get here: the memory is this array's own, and nobody else has it.
        array.flags.writeable = True
    return array


def _share(array: npt.NDArray[Any], dtype: np.dtype[Any]) -> torch.Tensor:
    array = _native(array, dtype)
    if dtype == _BFLOAT16:
        return torch.from_numpy(array.view(np.uint16)).view(torch.bfloat16)
    return torch.from_numpy(array)
