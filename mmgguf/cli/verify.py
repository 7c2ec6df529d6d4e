"""``mmgguf verify`` and ``mmgguf compare``: what is wrong with a file, and how two differ."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

import mmgguf

from ..inspect.contents import Digests
from ..inspect.verify import Finding
from .printing import UNUSABLE, errors_as_one_line, is_terminal, print_json, print_lines, print_note, print_table
from .progress import progress_bar

__all__ = ["compare", "verify"]

#: The exit status for findings and differences; `UNUSABLE` says that nothing is known.
BAD = 1


def verify(
    file: Annotated[str, typer.Argument(help="A GGUF file, or any shard of a split model.")],
    data: Annotated[bool, typer.Option("--data", help="Look at every value: NaN and infinity.")] = False,
    hash_: Annotated[bool, typer.Option("--hash", help="Print a SHA-256 per tensor and one for the whole.")] = False,
    json: Annotated[bool, typer.Option("--json", help="One JSON object: findings, and digests with --hash.")] = False,
) -> None:
    """Find what is wrong with a file that can be opened.

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
        _print_findings(findings)
        if digests is not None:
            _print_digests(digests)
    if any(finding.severity != "note" for finding in findings):
        raise typer.Exit(BAD)


def compare(
    a: Annotated[str, typer.Argument(help="A GGUF file, or any shard of a split model.")],
    b: Annotated[str, typer.Argument(help="Another.")],
    json: Annotated[bool, typer.Option("--json", help="A JSON array, one line per difference.")] = False,
) -> None:
    """Tell how the metadata and the tensors of two files differ.

    The exit status is 0 if they do not, 1 if they do, 2 if a file cannot be read or the output cannot be written.
    Alignment, offsets, order, byte order and the distribution over shards do not count.

    Into a pipe: one line per difference, change, kind, name and what exactly separated by tabs.
    """
    with errors_as_one_line(UNUSABLE), progress_bar("comparing") as progress:
        differences = mmgguf.compare(a, b, progress=progress)
    rows = [(d.change, d.kind, d.name, d.message) for d in differences]
    if json:
        print_json([asdict(difference) for difference in differences])
    elif not is_terminal():
        print_lines(rows)
    elif rows:
        print_table(("change", "kind", "name", "what"), rows, flexible="what")
    else:
        print_note("no differences")
    if differences:
        raise typer.Exit(BAD)


def _print_findings(findings: list[Finding]) -> None:
    rows = [(f.severity, f.code, f.where, "" if f.byte is None else f.byte, f.message) for f in findings]
    if not is_terminal():
        print_lines((*row, finding.path) for row, finding in zip(rows, findings, strict=True))
        return
    several = len({finding.path for finding in findings}) > 1
    if several:
        # Messages of shards need the shard; one file's findings do without.
        rows = [(*row[:4], f"{row[4]} ({f.path})") for row, f in zip(rows, findings, strict=True)]
    if rows:
        print_table(("severity", "code", "where", "byte", "what"), rows, right=("byte",), flexible="what")
    else:
        print_note("nothing found")


def _print_digests(digests: Digests) -> None:
    whole = "unknown" if digests.file is None else digests.file
    rows = [(f"{digests.algorithm}:{whole}", "")]
    rows += [(f"{digests.algorithm}:{one or 'unknown'}", name) for name, one in digests.tensors.items()]
    if is_terminal():
        print_note("")
        print_table(("digest", "tensor"), [(digest, name or "(the whole)") for digest, name in rows], flexible="tensor")
    else:
        print_lines([("",), *rows])
