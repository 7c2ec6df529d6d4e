"""``mmgguf verify``: what is wrong with a file."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

import mmgguf

from ..inspect.contents import Digests
from ..inspect.findings import Finding
from .options import File
from .printing import (
    UNUSABLE,
    errors_as_one_line,
    is_terminal,
    print_json,
    print_lines,
    print_note,
    print_sentence,
    print_table,
)
from .progress import progress_bar

__all__ = ["verify"]


def verify(
    file: File,
    data: Annotated[bool, typer.Option("--data", help="Look at every value: NaN and infinity.")] = False,
    hash_: Annotated[bool, typer.Option("--hash", help="Print a SHA-256 per tensor and one for the whole.")] = False,
    json: Annotated[bool, typer.Option("--json", help="One JSON object: findings, and digests with --hash.")] = False,
) -> None:
    """Find problems in a file that can be opened.

    The exit status is 0 for no findings or notes only, 1 for warnings or errors, 2 for a file that cannot be read or an
    output that cannot be written.

    Into a pipe: one line per finding, severity, code, where, byte, message and path separated by tabs; with --hash
    an empty line and one line per digest, that of the whole first. Digests are of the content: they do not depend on
    alignment, order, byte order or shards.
    """
    digests = None
    with errors_as_one_line(UNUSABLE):
        with progress_bar("checking", wanted=data) as progress:
            findings = mmgguf.verify(file, data=data, progress=progress)
        if hash_:
            with progress_bar("hashing") as progress:
                digests = mmgguf.digest(file, progress=progress)
    if json:
        result = {"findings": [asdict(finding) for finding in findings]}
        print_json(result if digests is None else result | {"digests": asdict(digests)})
    else:
        _print_findings(findings, data)
        if digests is not None:
            _print_digests(digests)
    if any(finding.severity != "note" for finding in findings):
        raise typer.Exit(1)


def _print_findings(findings: list[Finding], data: bool) -> None:
    rows = [(f.severity, f.code, f.where, "" if f.byte is None else f.byte, f.message) for f in findings]
    if not is_terminal():
        print_lines((*row, finding.path) for row, finding in zip(rows, findings, strict=True))
        return
    if all(finding.code == "file-name" for finding in findings):  # a matter of taste, and of many good files
        print_sentence(
            "Nothing wrong was found." if data else "Nothing wrong was found; --data looks at the values too."
        )
        for finding in findings[:1]:
            print_note(f"Note: {finding.message}")
        return
    if len({finding.path for finding in findings}) > 1:
        # Messages of shards need the shard; one file's findings do without.
        rows = [(*row[:4], f"{row[4]} ({f.path})") for row, f in zip(rows, findings, strict=True)]
    print_table(("severity", "code", "where", "byte", "what"), rows, right=("byte",), flexible="what")


def _print_digests(digests: Digests) -> None:
    whole = "unknown" if digests.file is None else digests.file
    rows = [(f"{digests.algorithm}:{whole}", "")]
    rows += [(f"{digests.algorithm}:{one or 'unknown'}", name) for name, one in digests.tensors.items()]
    if is_terminal():
        print_note("")
        print_table(("digest", "tensor"), [(digest, name or "(the whole)") for digest, name in rows], flexible="tensor")
    else:
        print_lines([("",), *rows])
