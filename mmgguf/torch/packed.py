"""Packed weights: stored blocks in torch's memory, and their numbers on the device where they are."""

from __future__ import annotations

import math
from typing import Any, Final, Self

import torch

from .. import dequant
from ..dequant import array_api as portable
from ..dequant.dispatch import Backend
from ..dequant.memory import empty
from ..errors import MissingExtraError
from ..packing import check_backend, logical_shape, takes_rows
from ..types import LAYOUTS, GGMLType
from .memory import as_numpy, numpy_dtype, share

try:
    import array_api_compat.torch as array_api
except ModuleNotFoundError:  # only the portable kernels need it
    array_api = None

__all__ = ["PackedTensor", "dequantize"]

#: Elements that the portable kernels compute at a time where nothing fuses them: their temporaries are several times
#: as large as the result.
_CHUNK: Final = 1 << 24


class PackedTensor(torch.Tensor):
    """The stored blocks of a tensor: uint8 of shape ``(*logical_shape[:-1], bytes per row)``, little-endian.

    Copying it, moving it to another device, pickling it, joining tensors of one type and taking rows (``packed[ids]``,
    ``packed[10:20]``, ``packed[expert]``, iteration, ``index_select``, ``narrow``, ``split``, ``chunk``,
    `torch.nn.functional.embedding`) give packed tensors again; any other operation gives an ordinary tensor of bytes.
    It can be a buffer of a module, a value of a ``state_dict``, and be read by ``torch.load`` with
    ``weights_only=True`` once this module is imported.

    Attributes
    ----------
    ggml_type : GGMLType
        What the blocks are.
    logical_shape : tuple of int
        The shape of the numbers that they stand for.

    Examples
    --------
    >>> state = mmgguf.torch.load_file("model.gguf", dequantize=False)
    >>> packed = state["token_embd.weight"].to("cuda" if torch.cuda.is_available() else "cpu")
    >>> packed[torch.tensor([5, 1])].dequantize(dtype=torch.bfloat16).shape  # only these rows, on the device
    torch.Size([2, 256])
    """

    ggml_type: GGMLType

    @classmethod
    def wrap(cls, blocks: torch.Tensor, ggml_type: GGMLType) -> Self:
        """The same memory, as blocks of that type.

        Raises
        ------
        TypeError
            `blocks` is not of uint8, or the type is a plain one.
        ValueError
            A last axis that is not a whole number of blocks, or no axis at all.
        """
        ggml_type = GGMLType(ggml_type)
        if LAYOUTS[ggml_type].is_plain:
            raise TypeError(f"{ggml_type.name} is a plain type: it has no blocks")
        if blocks.dtype != torch.uint8:
            raise TypeError(f"blocks must be bytes, torch.uint8, got {blocks.dtype}")
        logical_shape(blocks.shape, ggml_type)
        return cls._wrap(blocks, ggml_type)

    @classmethod
    def _wrap(cls, blocks: torch.Tensor, ggml_type: GGMLType) -> Self:
        packed: Self = blocks.as_subclass(cls)
        packed.ggml_type = ggml_type
        if not torch.compiler.is_compiling():
            _prepare(blocks.device)
        return packed

    @property
    def logical_shape(self) -> tuple[int, ...]:
        return logical_shape(self.shape, self.ggml_type)

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        with torch._C.DisableTorchFunctionSubclass():
            result = func(*args, **kwargs)
        if func in _SPLITS:
            ggml_type = _kept_type(cls, func, args, kwargs)
            return result if ggml_type is None else tuple(cls._wrap(part, ggml_type) for part in result)
        if isinstance(result, torch.Tensor) and not isinstance(result, cls) and result.dtype == torch.uint8:
            ggml_type = _kept_type(cls, func, args, kwargs)
            if ggml_type is not None:
                return cls._wrap(result, ggml_type)
        return result

    def __deepcopy__(self, memo: dict[int, Any]) -> PackedTensor:
        copy: PackedTensor = self.clone()
        memo[id(self)] = copy
        return copy

    def bytes(self) -> torch.Tensor:
        """The same memory as an ordinary tensor of bytes."""
        # As `as_subclass(torch.Tensor)`, which ``torch.compile`` cannot follow.
        plain: torch.Tensor = self.view(self.shape)
        return plain

    def dequantize(self, *, dtype: torch.dtype | None = None) -> torch.Tensor:
        """The numbers, of shape `logical_shape`, on the same device; see `mmgguf.torch.dequantize`."""
        return dequantize(self, dtype=dtype)

    def __repr__(self, **_: Any) -> str:
        return (
            f"<{type(self).__name__} {self.ggml_type.name} {self.logical_shape}, {self.numel()} bytes on {self.device}>"
        )


#: What copies all bytes, whatever its other arguments are.
_COPIES: Final = frozenset(
    {
        torch.Tensor.clone,
        torch.Tensor.contiguous,
        torch.Tensor.cpu,
        torch.Tensor.cuda,
        torch.Tensor.detach,
        torch.Tensor.pin_memory,
        torch.Tensor.to,
        torch.clone,
        torch.empty_like,
    }
)
_JOINS: Final = frozenset({torch.cat, torch.concat, torch.stack})
#: What gives parts along an axis; where in the arguments that is, and what it is by default.
_SPLITS: Final = {
    **dict.fromkeys((torch.Tensor.unbind, torch.unbind), (1, 0)),
    **dict.fromkeys((torch.Tensor.split, torch.split, torch.Tensor.chunk, torch.chunk), (2, 0)),
}
#: What takes rows along an axis; likewise.
_TAKES: Final[dict[Any, tuple[int, int | None]]] = dict.fromkeys(
    (
        torch.Tensor.index_select,
        torch.index_select,
        torch.Tensor.narrow,
        torch.narrow,
        torch.Tensor.select,
        torch.select,
    ),
    (1, None),
)


def _kept_type(cls: Any, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> GGMLType | None:
    """The type of the blocks in the result of an operation, or None if it does not consist of whole rows."""
    if func in _COPIES:
        return _type_of(cls, args[0])
    if func is torch.Tensor.view_as:  # how a DTensor takes up its local tensor, and gives it out
        return _type_of(cls, args[0]) if args[0].shape == args[1].shape else None
    if func is torch.Tensor.__getitem__:
        return _type_of(cls, args[0]) if takes_rows(args[0].ndim, args[1]) else None
    if func is torch.nn.functional.embedding:
        return _type_of(cls, args[1] if len(args) > 1 else kwargs["weight"])
    if func in _SPLITS or func in _TAKES:
        place, default = _SPLITS.get(func) or _TAKES[func]
        dim = args[place] if len(args) > place else kwargs.get("dim", default)
        blocks = args[0] if args else kwargs["input"]
        return _type_of(cls, blocks) if isinstance(dim, int) and dim not in (-1, blocks.ndim - 1) else None
    if func in _JOINS:
        parts = args[0] if args else kwargs["tensors"]
        found = {_type_of(cls, part) for part in parts}
        dim = args[1] if len(args) > 1 else kwargs.get("dim", 0)
        last = parts[0].ndim - (func is not torch.stack)
        return found.pop() if len(found) == 1 and dim not in (-1, last) else None
    return None


def _type_of(cls: Any, tensor: Any) -> GGMLType | None:
    return tensor.ggml_type if isinstance(tensor, cls) else None


def dequantize(
    packed: PackedTensor,
    *,
    dtype: torch.dtype | None = None,
    out: torch.Tensor | None = None,
    backend: str | None = None,
) -> torch.Tensor:
    """Turn packed weights into numbers, on the device where they are, with ggml's bits.

    Parameters
    ----------
    packed : PackedTensor
        Blocks of any ggml type, on any device.
    dtype : torch.dtype, optional
        float32, float16, bfloat16 or float64; None means float32, or the dtype of `out`.
    out : torch.Tensor, optional
        Memory to write to: of that dtype and of shape ``packed.logical_shape``, on the same device, any strides.
    backend : {"numba", "numpy", "portable"}, optional
        On the CPU, the library's own kernels run on the tensor's memory: numba's or numpy's, as `mmgguf.dequantize`
        chooses.  On other devices, and where ``"portable"`` asks for them, the kernels are operations of torch, which
        ``torch.compile`` fuses into one.

    Returns
    -------
    torch.Tensor
        `out`, or a new tensor of shape ``packed.logical_shape``.

    Raises
    ------
    TypeError
        Not a `PackedTensor`, a dtype that is not offered, an `out` of another dtype.
    ValueError
        An `out` of another shape or device, one that overlaps the blocks, an unknown backend, or one that cannot reach
        the device.

    Notes
    -----
    Works under ``torch.compile`` without graph breaks.  Where nothing is compiled, the portable kernels work on parts,
    so that their temporaries stay bounded.

    Examples
    --------
    >>> packed = mmgguf.torch.load_file("model.gguf", dequantize=False)["token_embd.weight"]
    >>> mmgguf.torch.dequantize(packed, dtype=torch.bfloat16).shape
    torch.Size([8, 256])
    """
    if not isinstance(packed, PackedTensor):
        raise TypeError(f"packed must be a PackedTensor, got {type(packed).__name__}")
    return numbers(packed.bytes(), packed.ggml_type, dtype, out, backend)


def numbers(
    blocks: torch.Tensor,
    ggml_type: GGMLType,
    dtype: torch.dtype | None = None,
    out: torch.Tensor | None = None,
    backend: str | None = None,
) -> torch.Tensor:
    """`dequantize` of bytes whose type is given."""
    if dtype is None:
        dtype = torch.float32 if out is None else out.dtype
    numpy_dtype(dtype)
    check_backend(backend, blocks.device.type == "cpu", f"on {blocks.device}")
    shape = logical_shape(blocks.shape, ggml_type)
    if out is not None:
        _check_out(out, shape, dtype, blocks)
    if blocks.device.type == "cpu" and backend != "portable":
        if torch.compiler.is_compiling():
            # In another shape than it has, so that the compiled code hands over an ordinary tensor of the memory, not
            # the packed tensor itself: the checks of custom operations refuse subclasses.
            flat = blocks.reshape(-1) if blocks.ndim > 1 else blocks[None]
            result = torch.ops.mmgguf.dequantize(flat, int(ggml_type), dtype, backend).reshape(shape)
            return result if out is None else out.copy_(result)
        if out is None:
            out = share(empty(shape, numpy_dtype(dtype)), numpy_dtype(dtype))
        _on_the_cpu(blocks, ggml_type, out, backend)
        return out
    if blocks.device.type == "meta":
        return torch.empty(shape, dtype=dtype, device="meta") if out is None else out
    return _portable(blocks, ggml_type, shape, dtype, out)


def _check_out(out: torch.Tensor, shape: tuple[int, ...], dtype: torch.dtype, blocks: torch.Tensor) -> None:
    if out.dtype != dtype:
        raise TypeError(f"out must have dtype {dtype}, as dtype= says, got {out.dtype}")
    if tuple(out.shape) != shape:
        raise ValueError(f"out must have shape {shape}, got {tuple(out.shape)}")
    if out.device != blocks.device:
        raise ValueError(f"out must be on {blocks.device}, where the blocks are, got {out.device}")


# On the CPU


def _on_the_cpu(blocks: torch.Tensor, ggml_type: GGMLType, out: torch.Tensor, backend: str | None) -> None:
    if blocks.ndim and blocks.stride(-1) != 1 and blocks.shape[-1] > 1:
        blocks = blocks.contiguous()
    chosen: Backend | None = backend  # type: ignore[assignment]  # checked by the caller
    target = as_numpy(out)
    dequant.dequantize(blocks.detach().numpy(), ggml_type, dtype=target.dtype, out=target, backend=chosen)


@torch.library.custom_op(
    "mmgguf::dequantize", mutates_args=(), schema="(Tensor blocks, int type, ScalarType dtype, str? backend) -> Tensor"
)
def _opaque(blocks: torch.Tensor, type: int, dtype: torch.dtype, backend: str | None) -> torch.Tensor:
    """The kernels of the CPU as one operation, which a compiler does not look into."""
    out = torch.empty(logical_shape(blocks.shape, GGMLType(type)), dtype=dtype)
    _on_the_cpu(blocks, GGMLType(type), out, backend)
    return out


@_opaque.register_fake
def _(blocks: torch.Tensor, type: int, dtype: torch.dtype, backend: str | None) -> torch.Tensor:
    return blocks.new_empty(logical_shape(blocks.shape, GGMLType(type)), dtype=dtype)


# Elsewhere

#: The kernels' tables by type and number of the device.  A compiler finds them made, as constants: it must not look
#: into how they are made.
_TABLES: Final[dict[tuple[str, int | None], dict[str, torch.Tensor]]] = {
    ("cpu", None): {name: torch.from_numpy(portable.table(name).copy()) for name in portable.TABLES}
}


def _prepare(device: torch.device) -> None:
    """Bring the tables to a device, all of them: together they take about 100 KiB."""
    key = (device.type, device.index)
    if device.type != "meta" and key not in _TABLES:
        _TABLES[key] = {name: table.to(device) for name, table in _TABLES["cpu", None].items()}


def _table(name: str, like: torch.Tensor) -> torch.Tensor:
    found = _TABLES.get((like.device.type, like.device.index))
    # The second only where a compiler meets a device before any packed tensor was made there.
    return found[name] if found is not None else _TABLES["cpu", None][name].to(like.device)


_OPERATIONS: Final = portable.Operations(
    xp=array_api,
    reinterpret=lambda array, dtype: array.view(dtype),
    constant=_table,
)


def _portable(
    blocks: torch.Tensor, ggml_type: GGMLType, shape: tuple[int, ...], dtype: torch.dtype, out: torch.Tensor | None
) -> torch.Tensor:
    if array_api is None:
        raise MissingExtraError("array-api-compat", "torch")
    if not torch.compiler.is_compiling():
        _prepare(blocks.device)
    if torch.compiler.is_compiling() or math.prod(shape) <= _CHUNK:
        result: torch.Tensor = portable.dequantize(_OPERATIONS, blocks, ggml_type, dtype)
        return result if out is None else out.copy_(result)
    if out is None:
        out = torch.empty(shape, dtype=dtype, device=blocks.device)
    layout = LAYOUTS[ggml_type]
    rows = blocks.reshape(-1, blocks.shape[-1])
    target = out if out.is_contiguous() else torch.empty(shape, dtype=dtype, device=blocks.device)
    numbers_of_rows = target.view(-1, shape[-1])
    # A part is some rows, or some blocks of one row.
    high = max(1, _CHUNK // shape[-1])
    wide = max(1, min(shape[-1], _CHUNK) // layout.block_size)
    for row in range(0, rows.shape[0], high):
        for column in range(0, shape[-1] // layout.block_size, wide):
            part = rows[row : row + high, column * layout.type_size : (column + wide) * layout.type_size]
            place = numbers_of_rows[row : row + high, column * layout.block_size : (column + wide) * layout.block_size]
            place.copy_(portable.dequantize(_OPERATIONS, part, ggml_type, dtype))
    if target is not out:
        out.copy_(target)
    return out


# What `torch.load(weights_only=True)` may make: neither runs anything, and whatever uses packed tensors checks them.
torch.serialization.add_safe_globals([PackedTensor, GGMLType])
