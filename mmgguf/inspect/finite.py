"""Which blocks have a scale, and which plain tensors a value, that is NaN or infinite.

Floats are tested as integers: all bits of the exponent are set in what is not finite, and in nothing else.  That needs
no conversion, neither from half precision nor from the other byte order.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from ..types import ByteOrder, GGMLType, Layout

__all__ = ["FiniteTest", "finite_tests"]


@dataclass(frozen=True, slots=True)
class FiniteTest:
    """How to find what is not finite in one place of a block.

    Attributes
    ----------
    name : str
        The place, for people; empty for plain types.
    field : str or None
        The block's field; None for plain types, whose blocks are the numbers.
    part : int or None
        Which number of a field that has several.
    offset : int
        The byte of the block where the place begins.
    mask : numpy scalar
        In the file's byte order: the bits that are all set in what is not finite.
    exact : bool
        Whether the number has to equal `mask` instead: a byte with a single code for NaN.
    severity : {"error", "warning"}
        How bad it is.
    """

    name: str
    field: str | None
    part: int | None
    offset: int
    mask: Any
    exact: bool = False
    severity: Literal["error", "warning"] = "error"

    def find(self, blocks: npt.NDArray[Any]) -> npt.NDArray[np.bool_] | None:
        """Which blocks are bad: shape (n,) for blocks of shape (n,), whose numbers are not swapped; None for none."""
        numbers = blocks if self.field is None else blocks[self.field]
        if self.part is not None:
            numbers = numbers[:, self.part]
        numbers = numbers.view(self.mask.dtype)
        bad: npt.NDArray[np.bool_] = (numbers if self.exact else numbers & self.mask) == self.mask
        return bad if bad.any() else None

    def show(self, stored: Any) -> str:
        """The bad value of one block, which has the dtype that the file stores."""
        value = stored if self.field is None else stored[self.field]
        if self.exact:
            return "NaN" if self.severity == "error" else "NaN, which ggml takes as 0"
        return str(float(value))


@dataclass(frozen=True, slots=True)
class _PackedTest(FiniteTest):
    """IQ1_M: the scale's bits are the top nibbles of four little-endian words, the highest in the last."""

    def find(self, blocks: npt.NDArray[Any]) -> npt.NDArray[np.bool_] | None:
        scales = blocks["scales"]
        # Little-endian words, as bytes: the exponent is three bits of the last byte and two of the last but two.
        bad: npt.NDArray[np.bool_] = (scales[:, 7] & 0x70) == 0x70
        bad &= (scales[:, 5] & 0xC0) == 0xC0
        return bad if bad.any() else None

    def show(self, stored: Any) -> str:
        nibbles = [int(stored["scales"][i]) >> 4 for i in (1, 3, 5, 7)]
        bits = sum(nibble << 4 * i for i, nibble in enumerate(nibbles))
        return str(float(np.array(bits, np.uint16).view(np.float16)))


#: All bits of the exponent, by size in bytes.  BF16 is F32's upper half.
_EXPONENTS: Final = {2: 0x7C00, 4: 0x7F800000, 8: 0x7FF0000000000000}


@cache
def finite_tests(type_: GGMLType, layout: Layout, byte_order: ByteOrder) -> list[FiniteTest]:
    """The tests of a ggml type, for all places of a block that may hold NaN or infinity; none for integers."""

    def mask(bits: int, size: int) -> Any:
        value = np.array(bits, f"u{size}")
        return (value.byteswap() if byte_order == "big" else value)[()]

    if layout.is_plain:
        if type_ is GGMLType.BF16:
            return [FiniteTest("", None, None, 0, mask(0x7F80, 2))]
        if layout.dtype.kind != "f":
            return []
        return [FiniteTest("", None, None, 0, mask(_EXPONENTS[layout.type_size], layout.type_size))]
    if type_ is GGMLType.IQ1_M:
        return [_PackedTest("scale", "scales", None, layout.dtype.fields["scales"][1], np.uint8(0))]  # type: ignore[index]
    if type_ is GGMLType.MXFP4:
        return [FiniteTest("e", "e", None, 0, np.uint8(0xFF), exact=True)]
    if type_ is GGMLType.NVFP4:
        return [FiniteTest(f"d[{i}]", "d", i, i, np.uint8(0x7F), exact=True, severity="warning") for i in range(4)]
    assert layout.dtype.fields is not None  # of a block type
    return [
        FiniteTest(name, name, None, place[1], mask(_EXPONENTS[place[0].itemsize], place[0].itemsize))
        for name, place in layout.dtype.fields.items()
        if place[0].kind == "f"
    ]
