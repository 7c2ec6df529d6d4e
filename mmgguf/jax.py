"""JAX arrays of a GGUF file.

>>> from mmgguf.jax import load_file
>>> params = load_file("model.gguf", dtype=jnp.bfloat16)  # doctest: +SKIP

On the CPU an array shares memory with the mapped file if its data begins at a multiple of 64 bytes, which is what
XLA asks for; GGUF's default alignment is 32, so about half of a file's tensors are copied by JAX.  A file written with
``alignment=64`` is shared whole.  JAX arrays are immutable, and JAX knows that such memory is not its own: donating
it to a computation makes a copy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .conversion import empty, result_dtype, store
from .errors import MissingExtraError
from .file import GGUFFile, Source, opened
from .loading import TensorMapping
from .selection import Names, Progress, walk
from .tensor import Tensor
from .types import GGMLType

try:
    import jax
except ModuleNotFoundError as error:
    if error.name not in ("jax", "jaxlib"):
        raise
    raise MissingExtraError("jax", "jax") from None

__all__ = ["PackedArray", "Tensors", "load_file"]


@dataclass(frozen=True)
class PackedArray:
    """The stored blocks of a tensor: a pytree with one leaf.

    Attributes
    ----------
    data : jax.Array
        uint8 of shape ``(*logical_shape[:-1], bytes per row)``, little-endian.
    ggml_type : GGMLType
        What the blocks are.
    logical_shape : tuple of int
        The shape of the numbers that they stand for.
    """

    data: jax.Array
    ggml_type: GGMLType
    logical_shape: tuple[int, ...]


jax.tree_util.register_dataclass(PackedArray, data_fields=["data"], meta_fields=["ggml_type", "logical_shape"])


class Tensors(TensorMapping[Any]):
    """The tensors of an open file as JAX arrays, made when they are asked for.

    Parameters
    ----------
    f : GGUFFile
        Must stay open while tensors are asked for; those handed out stay valid after that.
    dtype : {float32, float16, bfloat16, float64}, optional
        What blocks and floats become; integers stay what they are.  By default plain types keep their dtype and
        blocks become float32.
    dequantize : bool, default True
        False hands blocks over as `PackedArray`.
    device : jax.Device or jax.sharding.Sharding, optional
        Where the arrays go; by default where JAX puts new ones.

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
            return PackedArray(self._put(raw.reshape(shape)), GGMLType(tensor.type), tensor.shape)
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
    """All tensors of a file.

    Parameters
    ----------
    source : path-like or GGUFFile
        The file.
    names : str or iterable of str, optional
        Only these tensors: names, or patterns with ``*``, ``?`` or ``[``.
    dtype : {float32, float16, bfloat16, float64}, optional
        What blocks and floats become; integers stay what they are.  By default plain types keep their dtype and
        blocks become float32.
    dequantize : bool, default True
        False hands blocks over as `PackedArray`: raw uint8 with ggml type and logical shape.
    progress : callable, optional
        Called with (bytes done, bytes in all).
    device : jax.Device or jax.sharding.Sharding, optional
        Where the arrays go; by default where JAX puts new ones.

    Returns
    -------
    dict of str to jax.Array
        In the file's order.

    Raises
    ------
    GGUFError
        The file is not valid, a name is missing, a ggml type is unknown.
    TypeError
        A dtype that is not offered.
    """
    with opened(source) as f:
        tensors = Tensors(f, dtype=dtype, dequantize=dequantize, device=device)
        return {tensor.name: tensors._load(tensor) for tensor in walk(f, names, progress)}
