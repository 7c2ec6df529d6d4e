"""JAX arrays of a GGUF file.

>>> import jax.numpy as jnp
>>> from mmgguf.jax import load_file
>>> params = load_file("model.gguf", dtype=jnp.bfloat16)

On the CPU an array shares memory with the mapped file if its data begins at a multiple of 64 bytes, which is what
XLA asks for; GGUF's default alignment is 32, so about half of a file's tensors are copied by JAX.  A file written with
``alignment=64`` is shared whole.  JAX arrays are immutable, and JAX knows that such memory is not its own: donating
it to a computation makes a copy.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from . import dequant
from .conversion import result_dtype, store
from .dequant import array_api as portable
from .dequant.memory import empty
from .errors import MissingExtraError
from .file import GGUFFile, Source, opened
from .loading import TensorMapping
from .packing import check_backend, logical_shape, takes_rows
from .selection import Names, Progress, walk
from .tensor import Tensor
from .types import LAYOUTS, GGMLType

try:
    import jax
    import jax.numpy as jnp
except ModuleNotFoundError as error:
    if error.name not in ("jax", "jaxlib"):
        raise
    raise MissingExtraError("jax", "jax") from None

__all__ = ["PackedArray", "Tensors", "dequantize", "load_file"]


@dataclass(frozen=True, eq=False, repr=False)
class PackedArray:
    """The stored blocks of a tensor: a pytree with one leaf, so that it passes through ``jit``, ``vmap`` and the like.

    Attributes
    ----------
    data : jax.Array
        uint8 of shape ``(*logical_shape[:-1], bytes per row)``, little-endian.
    ggml_type : GGMLType
        What the blocks are: part of the tree's structure, not of its leaves.

    Examples
    --------
    >>> params = mmgguf.jax.load_file("model.gguf", dequantize=False)
    >>> embed = jax.jit(lambda packed, ids: packed[ids].dequantize(dtype=jnp.bfloat16))
    >>> embed(params["token_embd.weight"], jnp.array([5, 1])).shape  # only these rows become numbers
    (2, 256)
    """

    data: jax.Array
    ggml_type: GGMLType

    @property
    def logical_shape(self) -> tuple[int, ...]:
        """The shape of the numbers that the blocks stand for."""
        return logical_shape(self.data.shape, self.ggml_type)

    def __getitem__(self, key: Any) -> PackedArray:
        """Whole rows: an index of the axes before the last, as arrays and slices select them."""
        if not takes_rows(self.data.ndim, key):
            raise IndexError("only whole rows of packed weights can be taken")
        return PackedArray(self.data[key], self.ggml_type)

    def dequantize(self, *, dtype: npt.DTypeLike | None = None) -> jax.Array:
        """The numbers, of shape `logical_shape`; see `mmgguf.jax.dequantize`."""
        return dequantize(self, dtype=dtype)

    def __repr__(self) -> str:
        # Between transformations the leaf may be anything.
        shape = getattr(self.data, "shape", None)
        of = f"{type(self.data).__name__}" if shape is None else f"bytes of shape {shape}"
        return f"<{type(self).__name__} {getattr(self.ggml_type, 'name', self.ggml_type)}, {of}>"


jax.tree_util.register_dataclass(PackedArray, data_fields=["data"], meta_fields=["ggml_type"])

_OPERATIONS: Final = portable.Operations(
    xp=jnp,
    reinterpret=jax.lax.bitcast_convert_type,
    constant=lambda name, like: jnp.asarray(portable.table(name)),
)


def dequantize(packed: PackedArray, *, dtype: npt.DTypeLike | None = None, backend: str | None = None) -> jax.Array:
    """Turn packed weights into numbers, where they are, with ggml's bits.

    Parameters
    ----------
    packed : PackedArray
        Blocks of any ggml type, on any device, also while JAX traces.
    dtype : {float32, float16, bfloat16, float64}, optional
        Of the result; None means float32.
    backend : {"numba", "numpy", "portable"}, optional
        In the CPU's memory, the library's own kernels run: numba's or numpy's, as `mmgguf.dequantize` chooses.  On
        other devices, under ``jit``, ``vmap`` and so on, and where ``"portable"`` asks for it, XLA compiles kernels
        that are operations of JAX.

    Returns
    -------
    jax.Array
        Of shape ``packed.logical_shape``, where the blocks are.

    Raises
    ------
    TypeError
        Not a `PackedArray` of bytes in blocks, or a dtype that is not offered.
    ValueError
        An unknown backend, or one that cannot reach the blocks.

    Notes
    -----
    XLA's code for the CPU takes numbers below 2^-126 for zero.  Of all types that concerns Q8_K alone, whose scales go
    down so far: a type of intermediate results, which no model is stored in.

    Examples
    --------
    >>> packed = load_file("model.gguf", dequantize=False)["token_embd.weight"]
    >>> dequantize(packed).shape
    (8, 256)
    """
    if not isinstance(packed, PackedArray):
        raise TypeError(f"packed must be a PackedArray, got {type(packed).__name__}")
    data, ggml_type = packed.data, GGMLType(packed.ggml_type)
    if LAYOUTS[ggml_type].is_plain:
        raise TypeError(f"{ggml_type.name} is a plain type: it has no blocks")
    if data.dtype != np.uint8:
        raise TypeError(f"blocks must be bytes, uint8, got {data.dtype}")
    if isinstance(data, np.ndarray):  # as `jax.device_get` leaves it
        data = jnp.asarray(data)
    target = jax.dtypes.canonicalize_dtype(dequant.target_dtype(np.float32 if dtype is None else dtype))
    shape = packed.logical_shape  # checks it
    near = _in_the_cpu_s_memory(data)
    check_backend(backend, near, "elsewhere, or being traced")
    if backend == "portable" or not near:
        return _portable(data, ggml_type, target)
    out = empty(shape, target)
    chosen: Any = backend
    dequant.dequantize(np.asarray(data), ggml_type, dtype=target, out=out, backend=chosen)
    return jax.device_put(out, data.sharding, may_alias=True)


def _in_the_cpu_s_memory(data: Any) -> bool:
    if isinstance(data, jax.core.Tracer):
        return False
    devices = data.devices()
    return len(devices) == 1 and next(iter(devices)).platform == "cpu"


@partial(jax.jit, static_argnums=(1, 2))
def _portable(data: jax.Array, ggml_type: GGMLType, dtype: np.dtype[Any]) -> jax.Array:
    result: jax.Array = portable.dequantize(_OPERATIONS, data, ggml_type, dtype)
    return result


class Tensors(TensorMapping[Any]):
    """The tensors of an open file as JAX arrays, each made on access.

    Parameters
    ----------
    f : GGUFFile
        Must stay open while tensors are asked for; those handed out stay valid after that.
    dtype, dequantize, device
        As of `load_file`.

    Notes
    -----
    Unless ``jax_enable_x64`` is set, JAX makes float64 and int64 into float32 and int32.
    """

    def __init__(
        self, f: GGUFFile, *, dtype: npt.DTypeLike | None = None, dequantize: bool = True, device: Any = None
    ) -> None:
        super().__init__(f)
        self._dtype = dtype
        self._device = device
        self._dequantize = dequantize

    def __getitem__(self, name: str) -> Any:
        return self._load(self._file[name])

    def __repr__(self) -> str:
        return f"<Tensors of {self._file!r}>"

    def _load(self, tensor: Tensor) -> Any:
        data, layout = tensor.data, tensor.layout
        if not layout.is_plain and not self._dequantize:
            shape = layout.packed_shape(tensor.shape)
            blocks = data if data.dtype == layout.dtype else data.astype(layout.dtype)
            raw = blocks.reshape(-1).view(np.uint8) if data.size else np.empty(0, np.uint8)
            return PackedArray(self._put(raw.reshape(shape)), GGMLType(tensor.type))
        target = result_dtype(tensor, self._dtype)
        if data.dtype == target:
            return self._put(data)
        out = empty(tensor.shape, target)
        store(data, tensor, out)
        return self._put(out)

    def _put(self, array: npt.NDArray[Any]) -> jax.Array:
        # Without jax_enable_x64, JAX makes float64 into float32, where large numbers are infinite: worth no warning.
        with np.errstate(over="ignore", invalid="ignore"):
            return jax.device_put(array, self._device, may_alias=True)


def load_file(
    source: Source,
    *,
    names: Names = None,
    dtype: npt.DTypeLike | None = None,
    dequantize: bool = True,
    progress: Progress | None = None,
    device: Any = None,
) -> dict[str, Any]:
    """Load all tensors of a file, or some, as JAX arrays.

    Parameters
    ----------
    source, names, dtype, progress
        As of `mmgguf.load_file`.
    dequantize : bool, default True
        False hands blocks over packed, as `PackedArray`.
    device : jax.Device or jax.sharding.Sharding, optional
        Where the arrays go; by default where JAX puts new ones.

    Returns
    -------
    dict of str to jax.Array
        In the file's order.

    Raises
    ------
    GGUFError, TypeError
        As `mmgguf.load_file`.

    Examples
    --------
    >>> load_file("model.gguf", names="*norm*")["output_norm.weight"].shape
    (256,)
    """
    with opened(source) as f:
        tensors = Tensors(f, dtype=dtype, dequantize=dequantize, device=device)
        return {tensor.name: tensors._load(tensor) for tensor in walk(f, names, progress)}
