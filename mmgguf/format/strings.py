"""Arrays of strings: find where each begins without visiting them one by one, and decode lazily.

In a GGUF file an array of strings is a chain: an eight-byte length, that many bytes, the next length, and so on.
To find the end of the array, let alone an element, the whole chain has to be walked, and vocabularies have half a
million links.  `walk` does it with a few numpy operations per window instead:

A length below 256 is one byte and seven zeros, and any run of seven zeros holds exactly one *aligned* four-byte
word that is zero.  So every zero word proposes one string.  Where it would begin and how long it would be follows from
the word before it (its highest non-zero byte is the length); the bytes after it must be the rest of the
zeros.  Proposals that form an unbroken chain from a known beginning are strings.  Where the chain breaks (a length of
256 and more, an empty string, a NUL inside a string) one link is walked by hand.  The result is exact for any bytes:
proposals are only believed when the chain leads to them.

In a big-endian file the length is the last of the eight bytes and the picture is mirrored.  Version 1 has four-byte
lengths, which need not hold an aligned zero word, and is walked by hand.
"""

from __future__ import annotations

import builtins
import itertools
import operator
import struct
from collections.abc import Iterator, Sequence
from typing import Any, Final, overload

import numpy as np
import numpy.typing as npt

from ..errors import FileChangedError, TruncatedError
from ..types import ByteOrder, byte_order_character
from .seeker import DEFAULT_BUFFER_SIZE, BufferedSeeker

__all__ = ["Chain", "StringArray", "decode", "encode", "encoded_size", "is_utf8", "scan"]

#: Bytes looked at together: about what a core's second-level cache holds along with the intermediate arrays.
WINDOW: Final = 256 * 1024

#: Strings that are decoded together.  In vocabularies, every buffer on their way is then below 128 KiB: larger ones
#: malloc maps and unmaps each time at first, and touching new pages costs more than all else that is done to them.
_PORTION: Final = 4096

#: Bytes that a string and its length take in vocabularies, with something to spare.
_ORDINARY: Final = 32

_FF_TO_NUL: Final = bytes(range(255)) + b"\0"

UInt8Array = npt.NDArray[np.uint8]


def decode(data: bytes) -> str:
    """Decode UTF-8; other bytes become surrogates, from which `encode` restores them."""
    return data.decode("utf-8", "surrogateescape")


def encode(text: str) -> bytes:
    """Restore the bytes from which `decode` made a text."""
    return text.encode("utf-8", "surrogateescape")


def encoded_size(text: str) -> int:
    """Bytes that `encode` makes of a text."""
    return len(text) if text.isascii() else len(encode(text))


def is_utf8(text: str) -> bool:
    """Whether a text that `decode` made was UTF-8, and has no surrogates in the place of other bytes."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


class Chain:
    """How strings are stored in one file: the byte order and the width of their lengths (4 in version 1)."""

    __slots__ = ("byte_order", "prefix", "unpack_from", "width")

    def __init__(self, byte_order: ByteOrder, width: int = 8) -> None:
        self.byte_order: ByteOrder = byte_order
        self.width = width
        self.prefix = struct.Struct(byte_order_character(byte_order) + ("Q" if width == 8 else "I"))
        self.unpack_from = self.prefix.unpack_from

    def walk(self, window: UInt8Array, count: int, starts: list[npt.NDArray[np.uint32]] | None) -> tuple[int, int]:
        """Follow the chain from the first byte of a window.

        Parameters
        ----------
        window : uint8 array, shape (n,)
            Its first byte is that of a length.  The memory must be aligned to four bytes.
        count : int
            How many strings there are at most.
        starts : list, optional
            Gets arrays of uint32: where, in this window, the lengths of the strings begin.

        Returns
        -------
        found : int
            How many strings begin in the window with their whole length inside it.
        end : int
            Where the last of them ends; this may lie beyond the window, but for its length nothing there was looked at.
        """
        if self.width != 8 or count < 32 or len(window) < 64:
            return self._step(window, 0, count, starts)
        proposed, ends = self._propose(window)
        last_of_run: list[int] = np.flatnonzero(proposed[1:] != ends[:-1]).tolist()
        last_of_run.append(len(proposed) - 1)
        run = index = position = found = leaps = 0
        limit = len(window) - 8
        while found < count and position <= limit:
            if leaps * 8 > found + 256:
                # Hardly a chain at all.  One plain loop costs less than many short leaps.
                stepped, position = self._step(window, position, count - found, starts)
                return found + stepped, position
            leaps += 1
            if index < len(proposed) and proposed[index] == position:
                while last_of_run[run] < index:
                    run += 1
                taken = min(last_of_run[run] - index + 1, count - found)
                if starts is not None:
                    starts.append(proposed[index : index + taken])
                found += taken
                index += taken
                position = int(ends[index - 1])
            else:
                if starts is not None:
                    starts.append(np.array([position], np.uint32))
                found += 1
                position += 8 + self.unpack_from(window.data, position)[0]
                index = int(proposed.searchsorted(position)) if position <= limit else 0
        return found, position

    def _propose(self, window: UInt8Array) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.uint32]]:
        """Where strings shorter than 256 bytes might begin and end, ascending."""
        # In 32 bits throughout: half the memory traffic, and no operation that mixes widths, which numpy runs slowly.
        big = self.byte_order == "big"
        words = window[: len(window) & ~3].view(">u4" if big else "<u4")
        # The neighbours on both sides are looked at too, so the first and the last word cannot be the zero.
        zeros = np.flatnonzero(words[1:-1] == 0)
        before, after = words.take(zeros), words[2:].take(zeros)
        if big:
            before, after = after.astype(np.uint32), before.astype(np.uint32)
        # Which byte of its word the length is: the highest that is not zero.
        byte = (before > 0xFF).view(np.uint8)
        byte = byte + (before > 0xFFFF).view(np.uint8)
        byte += (before > 0xFFFFFF).view(np.uint8)
        shift = byte.astype(np.uint32)
        starts = zeros.astype(np.uint32)
        starts <<= 2
        if big:
            starts += 4
            starts -= shift
        else:
            starts += shift
        shift <<= 3
        before >>= shift
        before += starts
        before += 8
        # `shift` bits of the word on the other side belong to the length as well, and have to be zero.
        after <<= np.subtract(32, shift, out=shift)  # nothing where `shift` was 0
        if after.max(initial=0):
            exact = after == 0
            return starts[exact], before[exact]
        return starts, before

    def _step(
        self, window: UInt8Array, position: int, count: int, starts: list[npt.NDArray[np.uint32]] | None
    ) -> tuple[int, int]:
        """`walk`, one string at a time."""
        data, unpack_from, width = window.tobytes(), self.unpack_from, self.width
        limit = len(data) - width
        found: list[int] = []
        while position <= limit and len(found) < count:
            found.append(position)
            position += width + unpack_from(data, position)[0]
        if starts is not None:
            starts.append(np.array(found, np.uint32))
        return len(found), position


def scan(seeker: BufferedSeeker, count: int, chain: Chain, what: str, keep: bool = False) -> tuple[int, list[bytes]]:
    """Pass over an array of `count` strings, from the seeker's position to the array's end.

    Fetches nothing beyond the array but what the seeker's buffer holds.

    Returns
    -------
    nbytes : int
        Bytes that the array takes in the file.
    pieces : list of bytes
        These bytes, where `keep` asks for them.

    Raises
    ------
    TruncatedError
        A string ends behind the end of the file.
    """
    if count < 8:
        return _scan_few(seeker, count, chain, what, keep)
    beginning = position = seeker.tell()
    size, width = seeker.size, chain.width
    scratch = np.empty(min(WINDOW, max(count * width, DEFAULT_BUFFER_SIZE)), np.uint8)
    pieces: list[bytes] = []
    left = count
    if seeker.expect is not None:
        seeker.expect(position + int(count * max(seeker.typical, width)))
    while left:
        # Each string to come takes a length at least, so this much cannot be beyond the array.  Towards its end, what
        # lies in the buffer anyway saves many small steps.  But not all of it for a few strings: a file may have
        # thousands of such arrays.
        safe = left * width
        if safe < DEFAULT_BUFFER_SIZE:
            safe = max(safe, min(seeker.buffered, left * _ORDINARY))
        window = scratch[: min(len(scratch), safe)]
        seeker.readinto(window, what)
        found, end = chain.walk(window, left, None)
        position += end
        left -= found
        if seeker.expect is not None:
            seeker.typical = (position - beginning) / (count - left) if left < count else width
            seeker.expect(position + int(left * seeker.typical))
        if position + left * width > size:
            raise _cut_off(what, count - left - 1, count, position, size)
        if keep:
            pieces.append(window[:end].tobytes())
            if end > len(window):
                pieces.append(seeker.read(end - len(window), what))
        if end != len(window):
            seeker.seek(position)
    return position - beginning, pieces


def _scan_few(seeker: BufferedSeeker, count: int, chain: Chain, what: str, keep: bool) -> tuple[int, list[bytes]]:
    """`scan`, one string at a time."""
    beginning = seeker.tell()
    pieces: list[bytes] = []
    for number in range(count):
        prefix = seeker.read(chain.width, what)
        (length,) = chain.unpack_from(prefix)
        if length > seeker.remaining:
            raise _cut_off(what, number, count, seeker.tell() + length, seeker.size)
        if keep:
            pieces += prefix, seeker.read(length, what)
        else:
            seeker.seek(length, 1)
    return seeker.tell() - beginning, pieces


def _cut_off(what: str, number: int, count: int, position: int, size: int) -> TruncatedError:
    return TruncatedError(
        f"{what}: string {number} of {count} ends at byte {position}, and {count - number - 1} more are to come, "
        f"but the file has {size} bytes: download incomplete?"
    )


class StringArray(Sequence[str]):
    """The strings of a metadata array, each decoded on access.

    A read-only sequence: ``len``, index, slice (a list), iteration, ``==``.  Bytes that are not UTF-8 come as
    surrogates (``surrogateescape``); `bytes` gives any element as it is stored.

    Parameters
    ----------
    data : uint8 array
        The array's bytes in the file: the chain of lengths and strings.
    count : int
        Number of strings.
    chain : Chain
        How they are stored.
    """

    __slots__ = ("_chain", "_count", "_data", "_offsets")

    def __init__(self, data: UInt8Array, count: int, chain: Chain) -> None:
        self._data = data
        self._count = count
        self._chain = chain
        self._offsets: npt.NDArray[Any] | None = None

    def __len__(self) -> int:
        return self._count

    def bytes(self, index: int) -> bytes:
        """Element `index` as stored, without its length."""
        index = operator.index(index)
        if not -self._count <= index < self._count:
            raise IndexError(f"string {index} of an array of {self._count}")
        index %= self._count
        offsets = self._index()
        start, end = int(offsets[index]) + self._chain.width, int(offsets[index + 1])
        return self._data[start:end].tobytes()

    @property
    def offsets(self) -> npt.NDArray[Any]:
        """Where in the array's bytes each string's length begins, and at the end where the last string ends.

        Read-only, ascending, shape (n + 1,), uint32 or uint64; found at the first access.
        """
        return self._index()

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if not isinstance(index, slice):
            return decode(self.bytes(index))
        start, stop, step = index.indices(self._count)
        if step == 1:
            items: list[str] = []
            for portion in self._portions(start, stop):
                items += portion
            return items
        return [decode(self.bytes(i)) for i in range(start, stop, step)]

    def __iter__(self) -> Iterator[str]:
        return itertools.chain.from_iterable(self._portions(0, self._count))

    def _portions(self, start: int, stop: int) -> Iterator[list[str]]:
        # Portions that grow: who stops early has decoded little.
        if start == 0 and self._offsets is None and self._count >= 8:
            yield from self._windows(stop)
            return
        size = 64
        while start < stop:
            yield self._strings(start, min(start + size, stop))
            start += size
            size = min(size * 8, _PORTION)

    def _windows(self, stop: int) -> Iterator[list[str]]:
        """The first `stop` strings, found and decoded window by window, without an index."""
        data, left = self._data, stop
        position, size = 0, 1024
        scratch = np.empty(min(WINDOW, len(data)), np.uint8)
        while left:
            window = scratch[: min(size, len(data) - position)]
            window[:] = data[position : position + len(window)]
            starts: list[npt.NDArray[np.uint32]] = []
            found, end = self._chain.walk(window, left, starts)
            if not found or position + end > len(data):
                raise self._changed()
            if end > len(window):
                # The last one goes on behind the window.
                if found == 1:
                    yield [decode(data[position + self._chain.width : position + end].tobytes())]
                    position += end
                    left -= 1
                    size = min(size * 8, len(scratch))
                    continue
                found -= 1
                end = int(starts[-1][-1])
                starts[-1] = starts[-1][:-1]
            heads = np.concatenate(starts).astype(np.intp)
            for first in range(0, found, _PORTION):
                few = heads[first : first + _PORTION]
                behind = int(heads[first + _PORTION]) if first + _PORTION < found else end
                yield self._decode(window[few[0] : behind], few - few[0])
            position += end
            left -= found
            size = min(size * 8, len(scratch))
        if stop == self._count and position != len(data):
            raise self._changed()

    def tolist(self) -> list[str]:
        """All strings, as an array of numbers gives its numbers."""
        return self[:]

    def __contains__(self, value: object) -> bool:
        return any(value == item for item in self)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, str | bytes) or not isinstance(other, Sequence):
            return NotImplemented
        return len(other) == self._count and all(a == b for a, b in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]  # as for any container that compares by value

    def __repr__(self) -> str:
        first = ", ".join(f"{item[:60]!r}{'…' if len(item) > 60 else ''}" for item in self[:3])
        return f"<StringArray of {self._count}: [{first}{', …' if self._count > 3 else ''}]>"

    def __reduce__(self) -> tuple[Any, ...]:
        return list, (list(self),)

    def encoded(self, byte_order: ByteOrder = "little") -> builtins.bytes:
        """The lengths and strings as a file of that byte order, of version 2 or 3, stores them."""
        if self._chain.byte_order == byte_order and self._chain.width == 8:
            return self._data.tobytes()
        strings = map(encode, self)
        return b"".join(len(raw).to_bytes(8, byte_order) + raw for raw in strings)

    def _index(self) -> npt.NDArray[Any]:
        """Where each string's length begins, and at the end where the last string ends: count + 1 offsets."""
        if self._offsets is None:
            data = self._data
            offsets = np.empty(self._count + 1, np.uint32 if len(data) < 1 << 32 else np.uint64)
            position = done = 0
            while done < self._count:
                starts: list[npt.NDArray[np.uint32]] = []
                window = data[position : position + WINDOW].copy()  # aligned
                found, end = self._chain.walk(window, self._count - done, starts)
                if not found or position + end > len(data):
                    break
                for part in starts:
                    np.add(part, position, out=offsets[done : done + len(part)], dtype=offsets.dtype, casting="unsafe")
                    done += len(part)
                position += end
            if done < self._count or position != len(data):
                raise self._changed()
            offsets[self._count] = position
            offsets.flags.writeable = False
            self._offsets = offsets
        return self._offsets

    def _changed(self) -> FileChangedError:
        return FileChangedError(f"array of {self._count} strings: its bytes changed since the file was opened")

    def _few(self) -> list[str]:
        """All strings of a short array, without an index: a file may have thousands of such arrays."""
        data, position, strings = self._data.tobytes(), 0, []
        for _ in range(self._count):
            start = position + self._chain.width
            if start > len(data):
                raise self._changed()
            position = start + self._chain.unpack_from(data, position)[0]
            strings.append(decode(data[start:position]))
        if position != len(data):
            raise self._changed()
        return strings

    def _strings(self, start: int, stop: int) -> list[str]:
        """Elements start to stop, all at once."""
        if self._offsets is None and self._count < 8:
            return self._few()[start:stop]
        if stop - start < 8:
            return [decode(self.bytes(i)) for i in range(start, stop)]
        offsets = self._index()[start : stop + 1].astype(np.intp)
        return self._decode(self._data[offsets[0] : offsets[-1]].copy(), offsets[:-1] - offsets[0])

    def _decode(self, text: UInt8Array, heads: npt.NDArray[np.intp]) -> list[str]:
        """The strings of a piece of the chain.

        Each length becomes one 0xFF and NULs.  Dropping all NULs, turning 0xFF into NUL, decoding the whole and
        splitting it there is work done in C throughout.  A string with a NUL of its own shows in the number of
        NULs, one with 0xFF in the number of pieces: then they are decoded one by one.

        Parameters
        ----------
        text : uint8 array, shape (n,)
            Lengths and strings, to be overwritten.
        heads : intp array, shape (k,)
            Where in `text` the lengths begin; the first is 0.
        """
        width = self._chain.width
        mark, zeros = (width - 1, range(width - 1)) if self._chain.byte_order == "big" else (0, range(1, width))
        text[heads + mark if mark else heads] = 0xFF
        sizes = heads[1:] - heads[:-1]
        if sizes.max(initial=len(text) - heads[-1]) >= 256 + width:
            long = heads[np.append(sizes, len(text) - heads[-1]) >= 256 + width]
            for i in zeros:
                text[long + i] = 0
        if len(text) - np.count_nonzero(text) == len(heads) * (width - 1):
            pieces = decode(text.tobytes().translate(_FF_TO_NUL, b"\0")).split("\0")
            if len(pieces) == len(heads) + 1:
                del pieces[0]  # what is before the first mark: nothing
                return pieces
        return [decode(text[a + width : b].tobytes()) for a, b in itertools.pairwise([*heads.tolist(), len(text)])]
