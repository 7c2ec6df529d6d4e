"""`Tensor`: one tensor of an open file, in its stored form and as numbers."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from typing import Any, Final

import ml_dtypes
import numpy as np
import numpy.typing as npt

from . import indexing
from .arithmetic import Arithmetic
from .dequant import DTYPES, dequantize
from .dequant.memory import empty
from .dequant.threads import cores, spread
from .errors import human_size, shown
from .format.header import TensorInfo
from .storage.base import Reference, Storage, open_same
from .types import ByteOrder, GGMLType, Layout, UnknownType, stored_form

__all__ = ["Tensor"]

_BFLOAT16: Final = np.dtype(ml_dtypes.bfloat16)
_FLOAT32: Final = np.dtype(np.float32)
_ARRAYS: Final = frozenset({np.ndarray, list})
#: Bytes of numbers that are made of chosen rows at a time.
_PORTION: Final = 2 << 20


class Tensor(Arithmetic):
    """A tensor of an open `GGUFFile`; its data is not touched until it is asked for.

    It has numpy's attributes (`shape`, `ndim`, `size`, `dtype`), indices and operators; ``t * 2``, ``t @ x`` and
    ``t == 0`` give what they give for ``np.asarray(t)``.  If it has blocks, each of these makes numbers of the whole
    tensor anew: for more than one, take ``np.asarray(t)`` first.  Libraries that look at the class instead of its
    protocols (einops, polars' ``Series``, ``jax.device_put``) need that too.

    Pickled, it is a reference of some hundred bytes: another process maps the same file, and raises
    `FileChangedError` if that has changed since.

    Attributes
    ----------
    info : TensorInfo
        What the file says of it.
    data_offset : int
        Where the data section of its shard begins.
    byte_order : {"little", "big"}
        Of the stored data.
    storage : Storage
        The open file that holds it.
    """

    __slots__ = ("byte_order", "data_offset", "info", "storage")

    def __init__(self, info: TensorInfo, file: Storage, data_offset: int, byte_order: ByteOrder) -> None:
        self.info = info
        self.storage = file
        self.data_offset = data_offset
        self.byte_order: ByteOrder = byte_order

    @property
    def name(self) -> str:
        """Its name in the file."""
        return self.info.name

    @property
    def type(self) -> GGMLType | UnknownType:
        """The ggml type; a number with a name if unknown."""
        return self.info.type

    @property
    def ne(self) -> tuple[int, ...]:
        """Dimensions as stored, fastest first."""
        return self.info.ne

    @property
    def shape(self) -> tuple[int, ...]:
        """Logical shape in numpy's order: `ne` reversed."""
        return self.info.shape

    @property
    def ndim(self) -> int:
        """Number of dimensions, 0 to 4."""
        return len(self.info.ne)

    @property
    def size(self) -> int:
        """Number of elements."""
        return self.info.n_elements

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of the logical form, as ``np.asarray(tensor)`` has it; raises `UnknownTypeError`.

        Of plain types their own (in big-endian files byte-swapped, but for BF16); float32 for blocks.
        """
        layout = self.layout
        if not layout.is_plain:
            return _FLOAT32
        return _BFLOAT16 if self.type == GGMLType.BF16 else layout.stored(self.byte_order)

    @property
    def nbytes(self) -> int:
        """Bytes of the stored data; raises `UnknownTypeError`."""
        return self.info.nbytes

    @property
    def layout(self) -> Layout:
        """The layout of its blocks; raises `UnknownTypeError`."""
        return self.info.layout

    @property
    def offset(self) -> int:
        """Where the data begins, in bytes from the start of the data section."""
        return self.info.offset

    @property
    def file_offset(self) -> int:
        """Where the data begins, in bytes from the start of the file (of its shard)."""
        return self.data_offset + self.info.offset

    @property
    def path(self) -> str:
        """The file (the shard) that holds the data."""
        return self.storage.path

    @property
    def data(self) -> npt.NDArray[Any]:
        """The stored form: a view of the mapped file (with ``storage="read"``, a fresh copy of it).

        Returns
        -------
        ndarray
            Plain types: `shape`, in their own dtype (BF16: ``ml_dtypes.bfloat16``).  Block types: a structured array
            of blocks, shape ``(*shape[:-1], shape[-1] // block_size)``, whose fields have ggml's names.  Both are
            byte-swapped in big-endian files (where ml_dtypes computes with BF16 and converts it, but misreads it in
            ``item`` and ``tolist``; the logical form is in this machine's order).  Valid after the file is closed.

            Read-only unless the file was opened with ``mode="c"``.  torch writes to read-only arrays, too, which
            changes what this process sees of the file: give it the tensor, not the array
            (``torch.as_tensor(f[name])``), or use `mmgguf.torch`.

        Raises
        ------
        UnknownTypeError
            The ggml type is unknown.
        ClosedError, FileChangedError
            The file was closed, or has another size now.
        """
        shape, dtype, _ = self._stored_form()
        return self.storage.array(self.data_offset + self.info.offset, shape, dtype)

    def _stored_form(self) -> tuple[tuple[int, ...], np.dtype[Any], int]:
        """Shape and dtype of `data`, and how many numbers an item of it stands for."""
        info = self.info
        form = stored_form(info.type, self.byte_order)
        if form is None:
            raise info.unknown_type()
        block_size, dtype = form
        shape = info.ne[::-1]
        return (shape if block_size == 1 else (*shape[:-1], shape[-1] // block_size)), dtype, block_size

    def data_at(self, key: Any) -> npt.NDArray[Any]:
        """``data[key]``; with ``storage="read"`` no more is read than integers, a slice or a list of rows choose.

        Examples
        --------
        >>> with mmgguf.open("model.gguf", storage="read") as f:
        ...     f["token_embd.weight"].data_at([5, 1])["d"].shape
        (2, 1)
        """
        if self.storage.is_memory:
            data = self.data
            if data.dtype.names and isinstance(key, tuple) and not _ARRAYS.isdisjoint(map(type, key)):
                # As opaque items: numpy copies structured ones field by field.
                return data.view(f"V{data.dtype.itemsize}")[key].view(data.dtype)
            return data[key]  # type: ignore[no-any-return]
        part = indexing.part(key, self._stored_form()[0])
        if part.rows is None:
            return self._stored(part.start, part.shape)[part.key]  # type: ignore[no-any-return]
        chosen = np.empty((len(part.rows), *part.shape), self._stored_form()[1])
        for place, row in enumerate(part.rows.tolist()):
            chosen[place] = self._stored(row * math.prod(part.shape), part.shape)
        return chosen[part.key]  # type: ignore[no-any-return]

    def _stored(self, start: int, shape: tuple[int, ...]) -> npt.NDArray[Any]:
        """A part of the stored form that begins at item `start`."""
        dtype = self._stored_form()[1]
        return self.storage.array(self.file_offset + start * dtype.itemsize, shape, dtype)

    def flat(self, start: int, stop: int) -> npt.NDArray[Any]:
        """Items `start` to `stop` of the stored form in its order, in one dimension: blocks, or numbers of plain types.

        Of a file that is not mapped, these are all that is read.
        """
        return self._stored(start, (stop - start,))

    def _stored_rows(self, start: int, stop: int) -> npt.NDArray[Any]:
        """Entries `start` to `stop` of the slowest axis, as they are stored."""
        inner = self._stored_form()[0][1:]
        return self._stored(start * math.prod(inner), (stop - start, *inner))

    def partition(self, rank: int, world: int, axis: int = 0) -> npt.NDArray[Any]:
        """The stored form of one rank's part of the tensor, cut along one axis.

        Parameters
        ----------
        rank, world : int
            Which part, from 0, of how many.  Parts differ by at most one row or block where `world` does not divide
            the axis.
        axis : int, default 0
            Of `shape`: 0 for rows, -1 for columns, which are cut at block boundaries.

        Returns
        -------
        ndarray
            A part of `data` along that axis, a view of a mapped file; `mmgguf.dequantize` makes numbers of it.  With
            ``storage="read"`` only the part is read for axis 0, and all of the tensor for others.  A tensor without
            axes is every rank's.

        Raises
        ------
        ValueError
            `rank` is not from 0 to ``world - 1``, or the tensor has no such axis.

        Examples
        --------
        >>> with mmgguf.open("model.gguf") as f:
        ...     f["blk.0.attn_q.weight"].partition(1, 4).shape
        (64, 256)
        """
        if not 0 <= rank < world:
            raise ValueError(f"rank must be from 0 to world - 1, got rank {rank} of world {world}")
        if not -max(self.ndim, 1) <= axis < max(self.ndim, 1):
            raise ValueError(f"{shown(self.name)}: no axis {axis} in a tensor of {self.ndim} dimensions")
        if not self.ndim:
            return self.data
        axis %= self.ndim
        length = self._stored_form()[0][axis]
        start, stop = length * rank // world, length * (rank + 1) // world
        if axis == 0:
            return self._stored_rows(start, stop)
        return self.data[(slice(None),) * axis + (slice(start, stop),)]

    def dequantize(
        self,
        dtype: npt.DTypeLike = np.float32,
        *,
        out: npt.NDArray[Any] | None = None,
        threads: int | None = None,
    ) -> npt.NDArray[Any]:
        """The logical form in memory of its own.

        Parameters
        ----------
        dtype : dtype-like, default float32
            float32, float16, bfloat16 or float64; None: plain types keep their own, blocks become float32.
        out : ndarray, optional
            Where to write, of shape `shape` and dtype `dtype`.
        threads : int, optional
            How many threads share the work; by default all cores for large tensors and one for small ones.

        Returns
        -------
        ndarray
            `out`, or a new array of shape `shape`.  Float32 values have the same bits as ggml's.

        Raises
        ------
        UnknownTypeError, TypeError, ValueError
            As `mmgguf.dequantize`, before anything is written.
        ClosedError, FileChangedError
            The file was closed, or has another size than at opening.

        Examples
        --------
        >>> with mmgguf.open("model.gguf") as f:
        ...     f["token_embd.weight"].dequantize(np.float16).dtype
        dtype('float16')
        """
        data = self.data
        if data.ndim:
            return dequantize(data, self.type, dtype, out, threads)
        if out is not None and np.shape(out) != ():
            raise ValueError(f"out must have shape (), got {np.shape(out)}")
        # A single number: the kernels work along an axis.
        row = out.reshape(1) if isinstance(out, np.ndarray) else out
        values = dequantize(data.reshape(1), self.type, dtype, row, threads)
        return values.reshape(()) if out is None else out

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> npt.NDArray[Any]:
        data = self.data
        if self.layout.is_plain:
            if self._is_swapped_bfloat16:
                dtype, data = dtype or _BFLOAT16, data if copy is False else data.astype(_BFLOAT16)
            if copy is False:
                return np.asarray(data, dtype, copy=False)
            return np.array(data, dtype, copy=copy)
        if copy is False:
            raise ValueError(f"{shown(self.name)}: {GGMLType(self.type).name} blocks become numbers only in a copy")
        if dtype is None or np.dtype(dtype) in DTYPES:
            return dequantize(data, self.type, np.float32 if dtype is None else dtype)
        return dequantize(data, self.type).astype(dtype)

    @property
    def _is_swapped_bfloat16(self) -> bool:
        # Arrays of it are right in arithmetic, but ml_dtypes knows no such dtype: item() and tolist() misread it.
        return self.type == GGMLType.BF16 and self.byte_order != sys.byteorder

    def __getitem__(self, key: Any) -> npt.NDArray[Any]:
        """Index the logical form as numpy would; of block types only the blocks that are needed are dequantized.

        Needed is what integers, slices, and lists or masks of rows choose.  Other arrays, and None, index the numbers
        of the whole tensor.
        """
        _, _, block_size = self._stored_form()
        if block_size == 1:
            result = self.data_at(key)
            return result.astype(_BFLOAT16) if self._is_swapped_bfloat16 else result
        try:
            selection = indexing.select(key, self.shape, block_size)
        except IndexError as error:
            raise IndexError(f"{shown(self.name)}: {error}") from None
        if selection is None:
            whole: npt.NDArray[Any] = dequantize(self.data, self.type)[key]
            return whole
        if self.storage.is_memory and not _ARRAYS.isdisjoint(map(type, selection.blocks[:1])):
            values = self._rows(selection.blocks)
        else:
            values = dequantize(self.data_at(selection.blocks), self.type)
        return values[selection.cut][()]  # type: ignore[no-any-return]  # where no axis is left, a scalar as from numpy

    def _rows(self, key: tuple[Any, ...]) -> npt.NDArray[Any]:
        """The numbers of rows that an array chooses; of many, some at a time, whose blocks are in the cache then."""
        rows, rest = np.asarray(key[0]), key[1:]
        if rows.ndim == 1 and rest and all(isinstance(item, slice) for item in rest):
            *inner, n_blocks = self.data[:1][(slice(None), *rest)].shape[1:]
            shape = (len(rows), *inner, n_blocks * self.layout.block_size)
            nbytes = math.prod(shape[1:]) * _FLOAT32.itemsize
            step = _PORTION // nbytes if nbytes else 0
            if 0 < step <= len(rows) // 4:
                out = empty(shape, _FLOAT32)

                def work(start: int) -> None:
                    blocks = self.data_at((rows[start : start + step], *rest))
                    dequantize(blocks, self.type, out=out[start : start + step], threads=1)

                spread(work, range(0, len(rows), step), cores())
                return out
        return dequantize(self.data_at(key), self.type)

    def __len__(self) -> int:
        if not self.info.ne:
            raise TypeError(f"{shown(self.name)}: a tensor of no dimensions has no length")
        if self.info.ne[-1] > sys.maxsize:  # no tensor of a known type is accepted with such an axis
            raise self.info.unknown_type()
        return self.info.ne[-1]

    def __iter__(self) -> Iterator[npt.NDArray[Any]]:
        return (self[i] for i in range(len(self)))

    def __dlpack__(
        self,
        *,
        stream: Any = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> Any:
        """Export the logical form through DLPack, in memory that a consumer can write to without harm.

        A plain tensor of a mapped file comes from a second, copy-on-write mapping of the same pages, which the first
        export makes and all share: what one consumer writes, later exports show, but neither `data` nor the file.
        Unless the file was opened with ``mode="c"``, it is flagged read-only where the consumer passes
        ``max_version >= (1, 0)``, the first with such a flag.  torch ignores the flag, and older consumers do not
        know it; that is why the memory is writable all the same.  Blocks, and data of the other byte order, become
        numbers in a copy.

        Raises
        ------
        BufferError
            ``copy=False``, and the numbers exist only in a copy.
        UnknownTypeError
            The ggml type is unknown.
        ClosedError, FileChangedError
            The file was closed, or has another size now.
        """
        shape, dtype, _ = self._stored_form()
        if not self.layout.is_plain or not dtype.isnative:
            if copy is False:
                what = f"{GGMLType(self.type).name} of this byte order" if self.layout.is_plain else "blocks"
                raise BufferError(f"{shown(self.name)}: {what} become numbers only in a copy")
            data = self.data.astype(dtype.newbyteorder("=")) if self.layout.is_plain else self.dequantize()
        else:
            data = self.storage.writable_array(self.file_offset, shape, dtype)
            data.flags.writeable = self.storage.mode == "c" or max_version is None or max_version < (1, 0)
        options = {"stream": stream, "max_version": max_version, "dl_device": dl_device, "copy": copy}
        if self.type != GGMLType.BF16:
            return data.__dlpack__(**options)
        from .dlpack import export_bfloat16

        return export_bfloat16(data, **options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return (1, 0)  # kDLCPU

    def __reduce__(self) -> tuple[Any, ...]:
        # By reference: where the data lies, not the data.
        return _restore, (self.info, self.storage.reference(), self.data_offset, self.byte_order)

    def hist(self, bins: int | Sequence[float] = 100, ax: Any = None) -> Any:
        """Draw a histogram of the numbers by matplotlib, and give its axes; memory does not grow with the tensor.

        Parameters
        ----------
        bins : int or sequence of float
            How many from the least to the greatest finite number, or their edges.
        ax : matplotlib axes, optional
            Where to draw.
        """
        from .notebook import CHUNK, hist

        rows = max(1, CHUNK // max(1, self.size // max(1, self.shape[0]))) if self.ndim else 1

        def pieces() -> Iterator[npt.NDArray[Any]]:
            for start in range(0, self.shape[0], rows) if self.ndim else ():
                yield np.asarray(self[start : start + rows]).reshape(-1)
            if not self.ndim:
                yield np.asarray(self.dequantize()).reshape(-1)

        return hist(f"{self.name} {GGMLType(self.type).name}", pieces, bins, ax)

    def _repr_html_(self) -> str:
        from .notebook import tensor_html

        return tensor_html(self)

    def __repr__(self) -> str:
        if isinstance(self.type, GGMLType):
            return f"<Tensor {shown(self.name)} {self.type.name} {self.shape} {human_size(self.nbytes)}>"
        return f"<Tensor {shown(self.name)} unknown type {self.type} {self.shape}>"


def _restore(info: TensorInfo, reference: Reference, data_offset: int, byte_order: ByteOrder) -> Tensor:
    return Tensor(info, open_same(reference), data_offset, byte_order)
