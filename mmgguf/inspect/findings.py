"""Find problems in files that can be opened, as plain data.

Severities: an *error* is what ggml refuses, or a value that makes the model useless; a *warning* breaks a rule of the
specification, but readers live with it; a *note* is a matter of convention.

Files are read, not mapped: a file that shrinks meanwhile gives an exception.  Memory is bounded by a chunk and by the
header, and so is the number of findings: of each kind only the first are told, and how many more there are.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np

from ..errors import MetadataTypeError, shown
from ..file import GGUFFile, Shard, Source, opened
from ..format.constants import MAGIC, MAX_DIMS, MAX_KEY_SIZE, MAX_NAME_SIZE, QUANTIZATION_VERSION
from ..format.header import Header
from ..format.metadata import Metadata
from ..format.strings import StringArray, decode, encode, is_utf8
from ..selection import Progress, read_ahead
from ..tensor import Tensor
from ..types import GGMLType, ValueType, align
from .contents import CHUNK_SIZE, stored_chunks
from .finite import finite_tests

__all__ = ["Finding", "Findings", "verify"]

Severity = Literal["error", "warning", "note"]

#: Findings of one code in one file that are told one by one.
MAX_FINDINGS: Final = 50
#: ggml's CPU backend asks for it of memory that it uses as it is, as that of a mapped file.
LLAMA_ALIGNMENT: Final = 32
#: Blocks or values of one tensor that are told one by one.
MAX_VALUES: Final = 8

_KEY: Final = re.compile(r"[a-z0-9_]+(?:\.[a-z0-9_]+)*")
_ARCHITECTURE: Final = re.compile(r"[a-z0-9]+")


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is wrong with a file.

    Attributes
    ----------
    severity : {"error", "warning", "note"}
        How bad it is; the module's docstring says what the words mean.
    code : str
        What kind of thing it is, for programs: ``"hole"``, ``"key-style"``, …
    where : str
        The metadata key or the tensor, as stored in the file (it may hold control characters); empty for the file.
    message : str
        What it is, for people; printable.
    byte : int or None
        Where in the file.
    path : str
        The file, or the shard.
    """

    severity: Severity
    code: str
    where: str
    message: str
    byte: int | None
    path: str


class Findings(list[Finding]):
    """A list of findings, which notebooks show as a table."""

    def _repr_html_(self) -> str:
        from ..notebook import records_html

        bad = sum(finding.severity != "note" for finding in self)
        title = f"{len(self)} findings, {bad} of them errors or warnings"
        return records_html(title, self, ("severity", "code", "where", "byte", "message"))


# ---------------------------------------------------------------- verify


def verify(source: Source, *, data: bool = False, progress: Progress | None = None) -> Findings:
    """Find problems in a file that can be opened.

    Parameters
    ----------
    source : path-like or GGUFFile
        The file; of a split model any shard, and all are looked at.
    data : bool, default False
        Look at the values too: NaN and infinity as the scale of a block or as a value.
    progress : callable, optional
        With `data`: called with the bytes of tensors that were looked at and the bytes in all.

    Returns
    -------
    list of Finding
        In the order of the file, shard by shard; empty for a faultless file.

    Raises
    ------
    GGUFError
        The file cannot be opened, or changed meanwhile.
    OSError
        What the operating system refuses.

    Examples
    --------
    >>> [(finding.severity, finding.code) for finding in mmgguf.verify("model.gguf")]
    [('note', 'file-name')]
    """
    with opened(source, storage="read") as f:
        reports = [_Report(shard.path) for shard in f.shards]
        quantized = next((t for t in f.values() if isinstance(t.type, GGMLType) and not t.layout.is_plain), None)
        for shard, report in zip(f.shards, reports, strict=True):
            _Structure(f, shard, report, quantized).check()
        if data:
            known = [t for t in f.values() if isinstance(t.type, GGMLType)]
            total, done = sum(t.nbytes for t in known), 0
            by_file = {shard.file: report for shard, report in zip(f.shards, reports, strict=True)}
            for tensor in read_ahead(known):
                for step in _check_values(tensor, by_file[tensor.storage]):
                    done += step
                    if progress is not None:
                        progress(done, total)
        return Findings(finding for report in reports for finding in report.result())


class _Report:
    """Collects the findings of one file, a bounded number of each code."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.findings: list[Finding] = []
        self.counts: dict[tuple[str, Severity], int] = {}

    def add(self, severity: Severity, code: str, where: str, message: str, byte: int | None = None) -> None:
        count = self.counts[code, severity] = self.counts.get((code, severity), 0) + 1
        if count <= MAX_FINDINGS:
            self.findings.append(Finding(severity, code, where, message, byte, self.path))

    def result(self) -> list[Finding]:
        return self.findings + [
            Finding(severity, code, "", f"{count - MAX_FINDINGS} more findings of this kind", None, self.path)
            for (code, severity), count in self.counts.items()
            if count > MAX_FINDINGS
        ]


class _Structure:
    """Everything but the tensors' values, of one file."""

    def __init__(self, f: GGUFFile, shard: Shard, report: _Report, quantized: Tensor | None) -> None:
        self.f = f
        self.shard = shard
        self.header: Header = shard.header
        self.metadata: Metadata = shard.header.metadata
        # By place, never through the descriptor's position, which every look at an array's bytes moves.
        self.region = shard.file.region
        self.add = report.add
        #: The first tensor of blocks in any shard.
        self.quantized = quantized
        # The part of the header that `byte` has looked at last.
        self.block_no, self.block = -1, b""

    def check(self) -> None:
        self.file()
        self.pairs()
        self.meaning()
        self.split()
        self.infos()
        self.places()

    def file(self) -> None:
        header = self.header
        if not _follows_naming_convention(os.path.basename(self.shard.path)):
            text = "the name is not <BaseName>-<SizeLabel>-<FineTune>-<Version>-<Encoding>-<Type>-<Shard>.gguf"
            self.add("note", "file-name", "", text)
        if self.region(0, 4).tobytes() != MAGIC:
            self.add("warning", "magic-reversed", "", "the magic is FUGG, must be GGUF in either byte order", 0)
        if header.version < 3:
            text = f"version {header.version}, the current one is 3"
            self.add("note", "old-version", "", text, 4)
            if header.byte_order == "big":
                text = f"big-endian with version {header.version}; big-endian files came with version 3"
                self.add("warning", "byte-order", "", text, 4)

    # Metadata.

    def pairs(self) -> None:
        """Each key and value by itself."""
        width = self.header.length_size
        for key, position in zip(self.metadata, self.header.pair_positions(), strict=False):
            raw = encode(key)
            self.key(key, raw, position)
            value_position = position + width + len(raw) + 4
            type_ = self.metadata.type_of(key)
            info = self.metadata.array_info(key)
            if info is not None:
                if info.element_type is ValueType.BOOL:
                    self.bools(key, info.offset, info.nbytes)
                elif info.element_type is ValueType.STRING:
                    self.strings(key, info.offset)
            elif type_ is ValueType.STRING:
                if not is_utf8(self.metadata[key]):
                    self.add("warning", "value-not-utf8", key, "the string is not UTF-8", value_position + width)
            elif type_ is ValueType.BOOL and (byte := self.byte(value_position)) > 1:
                self.add("warning", "bool-byte", key, f"a bool is stored as {byte}, must be 0 or 1", value_position)

    def byte(self, position: int) -> int:
        """One byte of the header; a file may have a bool in every pair."""
        block_no = position // CHUNK_SIZE
        if block_no != self.block_no:
            start = block_no * CHUNK_SIZE
            self.block = self.region(start, min(CHUNK_SIZE, self.header.nbytes - start)).tobytes()
            self.block_no = block_no
        return self.block[position % CHUNK_SIZE]

    def key(self, key: str, raw: bytes, position: int) -> None:
        if len(raw) > MAX_KEY_SIZE:
            self.add("warning", "key-too-long", key, f"key of {len(raw)} bytes, at most {MAX_KEY_SIZE}", position)
        if not is_utf8(key):
            self.add("warning", "key-not-utf8", key, "the key is not UTF-8, must be ASCII", position)
        elif "\0" in key:
            self.add("warning", "key-nul", key, "the key holds a NUL, where C's readers cut it off", position)
        elif not _KEY.fullmatch(key):
            text = "the key is not ASCII lower_snake_case in parts that are divided by dots"
            self.add("warning", "key-style", key, text, position)

    def bools(self, key: str, offset: int, nbytes: int) -> None:
        for start in range(0, nbytes, CHUNK_SIZE):
            chunk = self.region(offset + start, min(CHUNK_SIZE, nbytes - start))
            odd = chunk > 1
            if odd.any():
                at = int(odd.argmax())
                text = f"a bool is stored as {chunk[at]}, must be 0 or 1"
                self.add("warning", "bool-byte", key, text, offset + start + at)
                return

    def strings(self, key: str, offset: int) -> None:
        array = self.metadata[key]
        bad = _count_undecodable(array)
        if bad:
            # Vocabularies of bytes do this, and every reader copes.
            text = f"{bad} of {len(array)} strings are not UTF-8"
            self.add("note", "strings-not-utf8", key, text, offset)

    def meaning(self) -> None:
        """The keys that every file needs."""
        first = self.shard is self.f.shards[0]
        if self.header.alignment % 8:
            text = f"{self.header.alignment} is not a multiple of 8"
            self.add("warning", "alignment", "general.alignment", text)
        elif self.header.alignment < LLAMA_ALIGNMENT and self.header.tensors:
            text = f"{self.header.alignment}: llama.cpp refuses tensors that are aligned to less than {LLAMA_ALIGNMENT}"
            self.add("warning", "alignment-small", "general.alignment", text)
        key = "general.architecture"
        if key not in self.metadata:
            if first:
                self.add("warning", "architecture-missing", key, "is missing, every model needs it")
        elif (type_ := self.metadata.type_of(key)) is not ValueType.STRING:
            self.add("error", "architecture-type", key, f"is stored as {type_.name}, must be STRING")
        elif not _ARCHITECTURE.fullmatch(value := self.metadata[key]):
            text = f"{shown(value, quoted=True)} has other characters than lower-case letters and digits"
            self.add("note", "architecture-style", key, text)
        key = "general.quantization_version"
        quantized = self.quantized
        if key in self.metadata:
            if self.integer(key, "warning") not in (None, QUANTIZATION_VERSION) and quantized is not None:
                text = f"{self.metadata[key]}, the blocks of current readers are of {QUANTIZATION_VERSION}"
                self.add("warning", "quantization-version", key, text)
        elif first and quantized is not None:
            text = f"is missing, and {shown(quantized.name)} is quantized"
            self.add("warning", "quantization-version-missing", key, text)
        self.integer("general.file_type", "warning")

    def integer(self, key: str, severity: Severity) -> int | None:
        try:
            return self.metadata.get_int(key, None)
        except MetadataTypeError:
            type_ = self.metadata.type_of(key)
            self.add(severity, "value-type", key, f"is stored as {type_.name}, must be an integer")
            return None

    def split(self) -> None:
        """Keys of splits, which `mmgguf.open` checks only where there are several shards."""
        count = self.integer("split.count", "error")
        if count is None or len(self.f.shards) > 1:
            return
        if count < 1:
            self.add("warning", "split-count", "split.count", f"{count}, must be at least 1")
        no = self.integer("split.no", "error")
        if no not in (None, 0):
            self.add("warning", "split-no", "split.no", f"{no}, but split.count is {count}")
        total = self.integer("split.tensors.count", "error")
        if total is not None and total != len(self.header.tensors):
            text = f"{total}, but the file has {len(self.header.tensors)} tensors"
            self.add("warning", "split-tensors-count", "split.tensors.count", text)

    # Tensors.

    def infos(self) -> None:
        """Each tensor info by itself."""
        for (name, info), position in zip(self.header.tensors.items(), self.header.info_positions(), strict=False):
            raw = encode(name)
            if not raw:
                self.add("warning", "name-empty", name, "the name is empty", position)
            elif len(raw) > MAX_NAME_SIZE:
                text = f"name of {len(raw)} bytes, at most {MAX_NAME_SIZE}"
                self.add("error", "name-too-long", name, text, position)
            elif len(raw) == MAX_NAME_SIZE:
                text = "name of 64 bytes, which the specification allows, but ggml refuses"
                self.add("warning", "name-of-64-bytes", name, text, position)
            if not is_utf8(name):
                self.add("warning", "name-not-utf8", name, "the name is not UTF-8", position)
            elif "\0" in name:
                self.add("warning", "name-nul", name, "the name holds a NUL, where ggml cuts it off", position)
            elif not name.isprintable():
                self.add("warning", "name-control", name, "the name holds characters that are not printable", position)
            if not isinstance(info.type, GGMLType):
                self.add("error", "unknown-type", name, f"unknown ggml type {info.type}", position)
            if len(info.ne) > MAX_DIMS:
                self.add("error", "dimensions", name, f"{len(info.ne)} dimensions, ggml takes {MAX_DIMS}", position)
            if 0 in info.ne:
                text = f"no elements: a dimension of {info.ne} is 0, and not every reader copes"
                self.add("warning", "empty-tensor", name, text, position)

    def places(self) -> None:
        """Order of offsets, holes, padding and the file's tail."""
        header, size = self.header, self.shard.file.size
        self.padding(header.nbytes, min(header.data_offset, size), "between header and data")
        offsets = [info.offset for info in header.tensors.values()]
        for info, (before, offset) in zip(
            itertools.islice(header.tensors.values(), 1, None), itertools.pairwise(offsets), strict=True
        ):
            if offset < before:
                text = f"offset {offset} is below that of the tensor before, ggml wants them ascending"
                self.add("error", "offset-order", info.name, text, header.data_offset + offset)
        end: int | None = 0  # of the tensor before, in the order of offsets; None if it has no known size
        for info in sorted(header.tensors.values(), key=lambda info: info.offset):
            if end is not None:
                padded = align(end, header.alignment)
                if info.offset > padded:
                    text = f"{info.offset - padded} bytes before its data belong to no tensor, ggml refuses that"
                    self.add("error", "hole", info.name, text, header.data_offset + padded)
                self.padding(header.data_offset + end, header.data_offset + min(padded, info.offset), info.name)
            if not isinstance(info.type, GGMLType):
                end = None
            elif end is None or info.nbytes:
                end = info.offset + info.nbytes
        if end is not None:
            end += header.data_offset
            padded = align(end, header.alignment)
            self.padding(min(end, size), min(padded, size), "at the end of the file")
            if size > padded:
                self.add("warning", "trailing-bytes", "", f"{size - padded} bytes after the last tensor", padded)

    def padding(self, start: int, end: int, where: str) -> None:
        for at in range(start, end, CHUNK_SIZE):
            chunk = self.region(at, min(CHUNK_SIZE, end - at))
            if chunk.any():
                first = int((chunk != 0).argmax())
                text = f"padding {_before(where)} is {chunk[first]}, must be 0"
                self.add("warning", "padding", "", text, at + first)
                return


def _before(where: str) -> str:
    return where if where.startswith(("between ", "at the end")) else f"before {shown(where)}"


def _count_undecodable(array: StringArray) -> int:
    """How many strings are not UTF-8."""
    raw = array.encoded()
    if raw.isascii():
        return 0
    bad = position = 0
    if len(raw) < 4096:  # by hand: there may be thousands of such arrays
        while position < len(raw):
            end = position + 8 + int.from_bytes(raw[position : position + 8], "little")
            bad += not is_utf8(decode(raw[position + 8 : end]))
            position = end
        return bad
    for start in range(0, len(array), 1 << 15):
        portion = array[start : start + (1 << 15)]
        if not is_utf8("".join(portion)):
            bad += sum(not is_utf8(item) for item in portion)
    return bad


def _follows_naming_convention(name: str) -> bool:
    """Whether a file's name has at least a base name and a version, in the specification's order.

    The specification's own regular expression takes exponential time on some names, so parts are counted here.
    """
    match = re.fullmatch(r"(.+?)(?:-[0-9]{5}-of-[0-9]{5})?\.gguf", name)
    if match is None:
        return False
    *parts, last = match[1].split("-")
    if last not in ("LoRA", "vocab"):
        parts.append(last)
    for encoding in (0, 1):
        *base, version = parts[: len(parts) - encoding] or [""]
        if base and base[0] and re.fullmatch(r"v[0-9]+(\.[0-9]+)*", version):
            return re.fullmatch(r"[A-Za-z0-9\s.\-]+", "-".join(base)) is not None and (
                not encoding or re.fullmatch(r"\w+", parts[-1]) is not None
            )
    return False


def _check_values(tensor: Tensor, report: _Report) -> Iterator[int]:
    """Look at all blocks, and give the bytes done after each chunk."""
    if not isinstance(tensor.type, GGMLType) or not tensor.nbytes:
        return
    layout = tensor.layout
    tests = finite_tests(tensor.type, layout, tensor.byte_order)
    code = "value-not-finite" if layout.is_plain else "scale-not-finite"
    dtype = np.dtype(f"u{layout.type_size}") if layout.is_plain else layout.dtype
    total = 0
    if not tests:
        yield tensor.nbytes
        return
    for first, chunk in stored_chunks(tensor):
        blocks = chunk.view(dtype)
        for test in tests:
            bad = test.find(blocks)
            if bad is None:
                continue
            if total < MAX_VALUES:
                for at in np.flatnonzero(bad)[: MAX_VALUES - total].tolist():
                    stored = blocks[at : at + 1].view(layout.stored(tensor.byte_order))[0]
                    what = f"value {first + at}" if layout.is_plain else f"block {first + at}: {test.name}"
                    byte = tensor.file_offset + (first + at) * layout.type_size + test.offset
                    report.add(test.severity, code, tensor.name, f"{what} is {test.show(stored)}", byte)
            total += int(np.count_nonzero(bad))
        yield chunk.nbytes
    if total > MAX_VALUES:
        what = "values" if layout.is_plain else "scales"
        report.add(tests[0].severity, code, tensor.name, f"{total - MAX_VALUES} more {what} are not finite")
