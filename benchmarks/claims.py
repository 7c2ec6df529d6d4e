"""What mmgguf claims, each with its bar, as computed from the medians of a run.

A claim that is not met is no failure of a test, since on a busy machine any may be missed; it stands where the others
do, marked.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from .results import Results
from .words import duration, label, number

__all__ = ["CLAIMS", "HEADLINES", "Claim", "dequantize_ratios"]


@dataclass(frozen=True)
class Claim:
    """A sentence with a number.

    Attributes
    ----------
    id : str
        For the README, which quotes some.
    text : str
        What is compared with what.
    bar : str
        ``<= number`` or ``>= number``.
    value : callable
        The number of a run.  Raises KeyError where that run has not measured it.
    detail : callable
        What stands behind the number.
    """

    id: str
    text: str
    bar: str
    value: Callable[[Results], float]
    detail: Callable[[Results], str]

    def met(self, results: Results) -> bool:
        sign, bar = self.bar.split()
        value = self.value(results)
        return value <= float(bar) if sign == "<=" else value >= float(bar)


def _times(id_: str, text: str, bar: str, case: str, one: str, other: str, scale: float = 1.0) -> Claim:
    """The time of `one` divided by that of `other`."""

    def detail(results: Results) -> str:
        ours, theirs = results.median(case, one), results.median(case, other)
        return f"{label(one)} {duration(ours)}, {label(other)} {duration(theirs)}"

    return Claim(id_, text, bar, lambda results: results.ratio(case, one, other) * scale, detail)


def _both(id_: str, text: str, bar: str, cases: tuple[str, str], one: str, other: str) -> Claim:
    """The time of two cases together: the second was measured on files that were open."""

    def together(results: Results, who: str) -> float:
        return sum(results.median(case, who) for case in cases)

    def detail(results: Results) -> str:
        return f"{label(one)} {duration(together(results, one))}, {label(other)} {duration(together(results, other))}"

    return Claim(id_, text, bar, lambda results: together(results, one) / together(results, other), detail)


def _seconds(id_: str, text: str, bar: str, case: str, one: str, scale: float) -> Claim:
    return Claim(
        id_,
        text,
        bar,
        lambda results: results.median(case, one) * scale,
        lambda results: f"{results.times(case)[one].rounds} rounds",
    )


def dequantize_ratios(results: Results, one: str, other: str, room: str = "dequantize") -> dict[str, float]:
    """By type, how many times as fast `one` is, for the types that both know."""
    found = {}
    for case in results.cases(room):
        if one in results.times(case) and other in results.times(case):
            found[case.partition("/")[2]] = results.ratio(case, other, one)
    if not found:
        raise KeyError(room)
    return found


def _dequantize(id_: str, one: str, other: str, least: str, mean: str, room: str = "dequantize") -> list[Claim]:
    text = f"dequantize with {one}, {{}}: speed against {label(other)}"

    def ratios(results: Results) -> dict[str, float]:
        return dequantize_ratios(results, one, other, room)

    def slowest(results: Results) -> str:
        found = ratios(results)
        return min(found, key=lambda name: found[name])

    return [
        Claim(f"{id_}-least", text.format("slowest type"), least, lambda r: min(ratios(r).values()), slowest),
        Claim(
            f"{id_}-mean",
            text.format("geometric mean over types"),
            mean,
            lambda results: statistics.geometric_mean(ratios(results).values()),
            lambda results: f"{len(ratios(results))} types",
        ),
    ]


def _access(id_: str, text: str, bar: str, pattern: str) -> Claim:
    case = f"access/llama, {pattern}"
    return _times(id_, f"{text}: time of unbuffered reads against mapped", bar, case, "unbuffered (preadv)", "mmgguf")


def _fact(id_: str, text: str, bar: str, case: str, value: Callable[[dict[str, float]], float], detail: str) -> Claim:
    return Claim(
        id_, text, bar, lambda results: value(results.facts(case)), lambda results: detail.format(**results.facts(case))
    )


def _remote(name: str, requests: int) -> list[Claim]:
    case = f"sources/{name}, header"
    return [
        _fact(f"remote-{name}-requests", f"open {name} by a URL: requests", f"<= {requests}", case,
              lambda facts: facts["requests"], "{sent:,} bytes"),
        _fact(f"remote-{name}-bytes", f"open {name} by a URL: bytes against those of the header", "<= 1.4", case,
              lambda facts: facts["sent"] / facts["header_bytes"], "{sent:,} of {header_bytes:,}"),
        _times(f"remote-{name}-time", f"open {name} by a URL, 50 ms for each request: time against @huggingface/gguf",
               "<= 0.5", case, "mmgguf", "gguf.js"),
    ]  # fmt: skip


def _filling(results: Results) -> float:
    times = results.times("load_file/smollm2")
    found = [time.median for name, time in times.items() if name.startswith("filling")]
    if not found:
        raise KeyError("load_file/smollm2")
    return min(found)


CLAIMS: Final[list[Claim]] = [
    *(
        _times(f"open-{name}", f"open {title}: time against ggml's C library", bar, f"open/{name}", "mmgguf",
               "C library")
        for name, title, bar in (
            ("vocabulary", "a vocabulary as large as Llama 3's", "<= 0.25"),
            ("ggml-vocab-llama-bpe", "Llama 3's vocabulary", "<= 0.25"),
            ("ggml-vocab-qwen2", "Qwen 2's vocabulary", "<= 0.35"),
            ("many", "a file of 1,000 tensors", "<= 1.0"),
        )
    ),
    _times("open-plain", "open 291 tensors without a vocabulary: time against safetensors", "<= 1.0", "open/plain",
           "mmgguf", "safetensors"),
    *(
        _times(f"strings-{name}", f"list all strings of {title}, first in a process: time against "
               "opening in ggml's C library, which makes them", "<= 1.0", f"strings first/{name}", "mmgguf",
               "C library")
        for name, title in (("vocabulary", "a vocabulary as large as Llama 3's"), ("ggml-vocab-llama-bpe",
                            "Llama 3's vocabulary"), ("ggml-vocab-qwen2", "Qwen 2's vocabulary"))
    ),
    _fact("system-calls", "parse a header: system calls unbuffered, against the seeker's", ">= 20",
          "open/system calls", lambda facts: facts["unbuffered"] / facts["mmgguf"], "{unbuffered:,} and {mmgguf:,}"),
    *(
        _times(f"linear-{what}", f"open 8 times as many {what}: time, against 8 times the time", "<= 1.2",
               f"scaling/{what}", "8×", "1×", 1 / 8)
        for what in ("tensors", "strings", "long strings")
    ),
    _times("import", "import mmgguf: time against import numpy, ml_dtypes", "<= 1.5", "import/fresh process", "mmgguf",
           "numpy, ml_dtypes"),
    Claim("tensor", "touch .data of all of 1,000 tensors: microseconds each", "<= 5",
          lambda r: r.median("get/many", "mmgguf") / r.facts("get/many")["tensors"] * 1e6,
          lambda r: f"{duration(r.median('get/many', 'mmgguf'))} for all"),
    _times("get-small", "get each of 1,000 small tensors by name: time against safetensors", "<= 1.0", "get/many",
           "mmgguf", "safetensors"),
    _access("touch-pages", "touch a byte of every page of all tensors, warm", ">= 3",
            "all tensors, first touch, warm"),
    _access("touch-bytes", "touch every byte of all tensors, warm", ">= 3", "all tensors, every byte, warm"),
    _access("touch-cold", "touch all tensors, cold", ">= 1.0", "all tensors, first touch, cold"),
    _fact("huge-file", "open a file of 40 GiB: MiB of anonymous memory", "<= 8", "memory/huge file",
          lambda facts: facts["anonymous"] / 2**20, "{anonymous:,} bytes"),
    *_dequantize("numpy", "mmgguf, numpy", "gguf-py", ">= 2.0", ">= 3.5"),
    *_dequantize("numba", "mmgguf, numba", "C library", ">= 0.8", ">= 1.4"),
    *_dequantize("torch", "mmgguf.torch", "diffusers", ">= 3.0", ">= 4.0", "dequantize in torch"),
    Claim("load", "load all of SmolLM2 as float32: speed against filling as much new memory, the fastest way", ">= 0.7",
          lambda r: _filling(r) / r.median("load_file/smollm2", "mmgguf"),
          lambda r: f"mmgguf {duration(r.median('load_file/smollm2', 'mmgguf'))}, filling {duration(_filling(r))}"),
    *(
        _times(f"rows-{type_}", f"get 1,000 random rows of an embedding in {type_}: time against np.take of float16",
               "<= 2.0", f"rows/{type_}", "mmgguf", "np.take, float16")
        for type_ in ("Q4_0", "Q8_0", "Q4_K", "Q6_K")
    ),
    *(
        _times(f"threads-{type_}", f"dequantize {type_} with two threads: speed against one", ">= 1.7",
               f"threads/{type_}", "one thread", "two threads")
        for type_ in ("Q4_K", "Q8_0")
    ),
    _times("float16", "dequantize Q4_K into float16: elements per second against float32", ">= 0.8",
           "dequantize to/Q4_K, float16", "mmgguf, numba into float32", "mmgguf, numba"),
    *(
        _times(f"compat-{id_}", f"mmgguf.compat, open {title}: speed against gguf-py", bar, f"open/{id_}", "gguf-py",
               "mmgguf.compat")
        for id_, title, bar in (("vocabulary", "the vocabulary", ">= 50"), ("smollm2", "SmolLM2", ">= 50"))
    ),
    *(
        _both(f"contents-{id_}", f"mmgguf.compat, open {title}, and every contents(): speed against gguf-py", ">= 5",
              (f"open/{id_}", f"contents/{id_}"), "gguf-py", "mmgguf.compat")
        for id_, title in (("vocabulary", "the vocabulary"), ("smollm2", "SmolLM2"))
    ),
    *_remote("SmolLM2", 3),
    *_remote("Llama 3's vocabulary", 6),
    _fact("remote-tensor", "read one tensor by a URL: requests, for its bytes and no more", "<= 1",
          "sources/one tensor", lambda facts: facts["requests"], "{sent:,} bytes"),
    Claim("remote-all", "load SmolLM2 by a URL, 20 ms for each request, 25 MB/s for each connection: rate against one "
          "connection's", ">= 4",
          lambda r: r.facts("sources/all tensors")["nbytes"] / r.median("sources/all tensors", "mmgguf")
          / r.facts("sources/all tensors")["rate"],
          lambda r: duration(r.median("sources/all tensors", "mmgguf"))),
    _seconds("estimate-SmolLM2", "estimate the memory of SmolLM2: milliseconds", "<= 1", "estimate/SmolLM2", "mmgguf",
             1e3),
    _seconds("estimate-large", "estimate the memory of 1,100 tensors: milliseconds", "<= 1", "estimate/DeepSeek-V3",
             "mmgguf", 1e3),
    Claim("statistics", "statistics of Q4_K on two cores: GB of float32 values per second", ">= 2",
          lambda r: r.facts("statistics/Q4_K")["values_nbytes"] / r.median("statistics/Q4_K", "two threads") / 1e9,
          lambda r: duration(r.median("statistics/Q4_K", "two threads"))),
    _seconds("edit", "shorten a template in a file of 4 GiB, in place: milliseconds", "<= 50", "edit/in place, 4 GiB",
             "mmgguf", 1e3),
    _seconds("report", "the report of SmolLM2: seconds", "<= 10", "report/smollm2", "mmgguf", 1),
]  # fmt: skip

#: Those that the README quotes.
HEADLINES: Final = ("open-ggml-vocab-llama-bpe", "touch-bytes", "huge-file", "numpy-mean", "numba-mean")


def rows(results: Results, ids: tuple[str, ...] | None = None) -> list[tuple[Claim, str, bool]]:
    """The claims that a run has measured, each with its number and whether it is met."""
    found = []
    for claim in CLAIMS:
        if ids is not None and claim.id not in ids:
            continue
        try:
            value = claim.value(results)
            found.append((claim, f"{value:,.0f}" if value == round(value) else number(value, 3), claim.met(results)))
        except KeyError:
            continue
    return found
