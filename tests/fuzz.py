"""The fuzzer: hypothesis builds valid files and breaks them; mmgguf gives a result or a GGUFError, in bounds.

In the ordinary tests a fixed number of examples (`test_fuzz`); at length, by hand::

    python -m tests.fuzz --minutes 10                  # reports executions, distinct errors and peak memory
    python -m tests.fuzz --minutes 10 --differential   # and whether ggml's own reader judges alike
    python -m tests.fuzz --minutes 10 --atheris        # guided by coverage, where atheris installs
    python -m tests.fuzz --worst                       # times and memory of the largest structures in a megabyte
    python -m tests.fuzz --replay FOLDER               # the saved reproducers once more

The long run is a process of its own that is started again if it dies; what it was doing is then saved as a reproducer.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import io
import os
import re
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from types import FunctionType
from typing import Any

import numpy as np
from hypothesis import HealthCheck, Phase, Verbosity, given, seed, settings
from hypothesis import strategies as st

import mmgguf
from mmgguf.errors import GGUFError
from mmgguf.types import LAYOUTS

from .support import build, touch
from .support.build import BOOL, CODES, Build
from .support.hostile_cases import TABLE
from .support.worst_cases import comparisons, worst_cases

#: Bounds for one call with an input of at most a megabyte: seconds of the processor, and bytes above the start.
MAX_SECONDS = 1.0
MAX_MEMORY = 64 << 20
#: Ways of using a file that are several calls, or open two files; each counts.
CALLS = {"use header": 3, "use mapped": 10, "use read": 10, "compare": 2}
#: In the long run.
BROKEN_PER_FILE = 20

# ---------------------------------------------------------------- valid files

KEYS = [b"general.architecture", b"general.alignment", b"general.file_type", b"general.quantization_version"]
KEYS += [
    b"llama.block_count",
    b"llama.attention.head_count",
    b"tokenizer.ggml.tokens",
    b"split.count",
    b"split.no",
    b"a",
    b"Upper",
    b"\xff",
    b"n\0l",
]
NAMES = [
    b"token_embd.weight",
    b"blk.0.attn_q.weight",
    b"blk.1.w",
    b"w",
    b"",
    b"\xff\xfe",
    b"n\0l",
    b"n" * 64,
    b"\x1b[31m",
]

_texts = st.one_of(
    st.sampled_from([b"", b"llama", b"x" * 255, b"y" * 256, b"\0" * 9, b"\xff", b"\3" + bytes(7) + b"abc", b"\x1b[2J"]),
    st.binary(max_size=12),
)
_scalar_types = st.sampled_from(sorted(CODES))
_extremes = [0, 1, 2, 3, 7, 8, 12, 13, 31, 32, 33, 64, 255, 256, 65535, 65536, 1 << 20]
_extremes += [n + d for n in (1 << 31, 1 << 32, 1 << 61, 1 << 62, 1 << 63, 1 << 64) for d in (-2, -1, 0, 1)]


def _payload(draw: Any, b: Build, type_: int, count: int) -> None:
    size = len(Build().scalar(type_, 0).out) - 8
    b.raw(draw(st.binary(min_size=count * size, max_size=count * size)))


def _value(draw: Any, b: Build, key: bytes) -> None:
    if key == b"general.alignment":
        b.number(key, build.UINT32, 1 << draw(st.integers(0, 8)))
        return
    if key == b"general.architecture":
        b.text(key, draw(st.sampled_from([b"llama", b"a.b", b""])))
        return
    if key.startswith(b"split"):
        b.number(key, build.UINT16, draw(st.integers(0, 1)))
        return
    kind = draw(st.integers(0, 3))
    if kind == 0:
        b.text(key, draw(_texts))
    elif kind == 1:
        b.texts(key, draw(st.lists(_texts, max_size=draw(st.sampled_from([0, 3, 40])))))
    else:
        type_ = draw(_scalar_types)
        count = draw(st.integers(0, 20)) if kind == 2 else 1
        if kind == 2:
            b.array(key, type_, count)
        else:
            b.pair(key, type_)
        if type_ == BOOL:
            b.raw(draw(st.binary(min_size=count, max_size=count)))
        else:
            _payload(draw, b, type_, count)


@st.composite
def valid_files(draw: Any, versions: tuple[int, ...] = (1, 2, 3), orders: tuple[Any, ...] = ("little", "big")) -> Build:
    """A builder that holds a whole file which every rule of the format allows."""
    b = Build(draw(st.sampled_from(versions)), draw(st.sampled_from(orders)))
    keys = draw(st.lists(st.sampled_from(KEYS), unique=True, max_size=6))
    names = draw(st.lists(st.sampled_from(NAMES), unique=True, max_size=5))
    b.start(len(names), len(keys))
    for key in keys:
        _value(draw, b, key)
    alignment = 32
    if b"general.alignment" in keys:
        place = bytes(b).index(b"general.alignment") + len(b"general.alignment") + 4
        alignment = int.from_bytes(b.out[place : place + 4], b.byte_order)
    offset, data = 0, []
    for name in names:
        type_ = draw(st.sampled_from(sorted(LAYOUTS)))
        layout = LAYOUTS[type_]
        shape = draw(st.lists(st.integers(0, 3), max_size=3))
        ne = (
            [draw(st.integers(0 if shape else 1, 2)) * layout.block_size, *shape]
            if shape or not layout.is_plain
            else []
        )
        nbytes = int(np.prod(ne, dtype=object) if ne else 1) // layout.block_size * layout.type_size
        b.tensor(name, ne, int(type_), offset)
        padded = -(-nbytes // alignment) * alignment
        byte = draw(st.sampled_from([b"\0", b"\x3c", b"\x7c", b"\xff"]))
        data.append(byte * nbytes + bytes(padded - nbytes))
        offset += padded
    b.pad(alignment).raw(b"".join(data))
    return b


# ---------------------------------------------------------------- breaking them


def _flip(rng: Random, b: Build, data: bytearray) -> None:
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def _integer(rng: Random, b: Build, data: bytearray) -> None:
    """An extreme value, or one near the right one, in an integer field."""
    field = rng.choice(b.fields)
    place = slice(field.position, field.position + field.width)
    if rng.randrange(2):
        value = rng.choice(_extremes)
    else:
        value = int.from_bytes(data[place], b.byte_order) + rng.choice([-32, -8, -1, 1, 2, 8, 32])
    data[place] = (value & ((1 << 8 * field.width) - 1)).to_bytes(field.width, b.byte_order)


def _cut(rng: Random, b: Build, data: bytearray) -> None:
    del data[rng.randrange(len(data)) :]


def _splice(rng: Random, b: Build, data: bytearray) -> None:
    """A piece from one place to another: in addition, or over what is there; or gone."""
    start = rng.randrange(len(data))
    piece = data[start : start + rng.choice([1, 4, 8, 40, 200])]
    to = rng.randrange(len(data) + 1)
    kind = rng.randrange(3)
    data[to : to + (0 if kind == 0 else len(piece))] = piece if kind < 2 else b""


def _noise(rng: Random, b: Build, data: bytearray) -> None:
    at = rng.randrange(len(data))
    piece = bytes(rng.randrange(256) for _ in range(rng.randrange(1, 9)))
    data[at : at + len(piece)] = piece


_BREAKS: list[Callable[[Random, Build, bytearray], None]] = [_integer, _integer, _integer, _flip, _cut, _splice, _noise]


def broken(b: Build, rng: Random) -> bytes:
    """The file of a builder, broken up to four times."""
    data = bytearray(bytes(b))
    whole = len(data)
    for _ in range(rng.choice([0, 1, 1, 1, 2, 2, 3, 4])):
        breaking = rng.choice(_BREAKS)
        if not data:
            break
        # After a cut, fields may be gone.
        (_flip if breaking is _integer and len(data) < whole else breaking)(rng, b, data)
    return bytes(data)


@st.composite
def files(draw: Any, **options: Any) -> bytes:
    """A valid file, broken up to four times, by hypothesis's own choices."""
    return broken(draw(valid_files(**options)), draw(st.randoms(note_method_calls=False, use_true_random=False)))


# ---------------------------------------------------------------- judging


class Violation(Exception):
    """mmgguf broke a promise."""


def error_key(error: BaseException) -> str:
    """What kind of refusal it is: the class and the place that raised it."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__} {Path(place.filename).name}:{place.lineno}"


def judge(data: bytes, path: Path, cli: bool = False) -> str | None:
    """Read bytes in every way and use all that comes of it; the kind of refusal, or None if they were accepted.

    Whatever else is raised than `GGUFError` is a failure, and so are two ways that disagree.
    """
    refusal: GGUFError | None = None
    try:
        touch.header(mmgguf.read_header(io.BytesIO(data)))
    except GGUFError as error:
        refusal = error
        touch.bounded(str(error))
    path.write_bytes(data)
    for storage in ("mmap", "read"):
        _judge_open(path, storage, refusal)
    if cli:
        _judge_commands(path)
    return None if refusal is None else error_key(refusal)


def _judge_open(path: Path, storage: Any, refusal: GGUFError | None) -> None:
    try:
        f = mmgguf.open(path, storage=storage)
    except (mmgguf.errors.SplitError, mmgguf.errors.MetadataTypeError) as error:
        # About the file's place among others, of which `read_header` knows nothing.
        touch.bounded(str(error))
        if refusal is not None:
            raise Violation(f"read_header refused: {refusal}; open went on to: {error}") from None
        return
    except GGUFError as error:
        if type(refusal) is not type(error) or str(error) != f"{path}: {refusal}":
            raise Violation(f"read_header: {refusal!r}; open: {error!r}") from None
        return
    with f:
        if refusal is not None:
            raise Violation(f"read_header refused: {refusal}; open accepted it")
        touch.file(f)
    if storage == "read":
        for finding in mmgguf.verify(path, data=True):
            touch.bounded(finding.message)
        digests = mmgguf.digest(path)
        differences = mmgguf.compare(path, path)
        if any(d.change != "unknown" for d in differences):
            raise Violation(f"differs from itself: {differences[:3]}")
        if (digests.file is None) is not bool(differences):
            raise Violation("a digest, or none, against what compare says")


def _judge_commands(path: Path) -> None:
    from mmgguf.cli import app

    from .support.commandline import CliRunner

    for command in (
        ["ls"],
        ["ls", "--json", "--sort", "name"],
        ["show", "--full"],
        ["show", "--json"],
        ["verify", "--hash"],
    ):
        result = CliRunner().invoke(app, [*command, str(path)])
        if result.exit_code not in (0, 1, 2) or not isinstance(result.exception, SystemExit | None):
            raise Violation(f"{command}: exit status {result.exit_code}") from result.exception
        odd = {char for char in result.output if not char.isprintable()} - {"\n", "\t"}
        if odd:
            raise Violation(f"{command}: raw characters in the output: {odd}")


# ---------------------------------------------------------------- measuring


@dataclass
class Bounds:
    """Time and memory of single inputs; the largest are kept."""

    seconds: float = 0.0
    memory: int = 0
    worst: dict[str, str] = field(default_factory=dict)

    def run(self, what: str, use: Callable[[], Any], calls: int = 1) -> Any:
        """Call and measure; raises `Violation` past a bound.  `use` makes so many calls, and time is that of each."""
        before = _start_of_peak()
        start = time.process_time()
        try:
            return use()
        finally:
            seconds, memory = (time.process_time() - start) / calls, max(0, _peak() - before)
            if seconds > self.seconds:
                self.seconds, self.worst["seconds"] = seconds, what
            if memory > self.memory:
                self.memory, self.worst["memory"] = memory, what
            if sys.exc_info()[0] is None or isinstance(sys.exc_info()[1], GGUFError):
                if seconds > MAX_SECONDS:
                    raise Violation(f"{what}: {seconds:.2f} s")
                if memory > MAX_MEMORY:
                    raise Violation(f"{what}: {memory / (1 << 20):.0f} MiB")


def _start_of_peak() -> int:
    """Bytes that are resident now; the kernel's record of the peak starts again here."""
    try:
        Path("/proc/self/clear_refs").write_bytes(b"5")
        return int(Path("/proc/self/statm").read_bytes().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:  # not Linux
        return 0


def _peak() -> int:
    try:
        match = re.search(rb"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_bytes())
    except OSError:
        return 0
    return int(match[1]) * 1024 if match else 0


def measure_worst_cases(report: Callable[[str], object] = print) -> tuple[Bounds, list[str]]:
    """Every structure that fits a megabyte, and every case of the table: each way of using it by itself."""
    bounds, violations = Bounds(), []
    cases = [(name, make()) for name, make in worst_cases()]
    cases += [(row.id, data) for row in TABLE for data in row.examples() if row.versions]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "worst.gguf"
        for name, data in cases:
            path.write_bytes(data)
            taken: list[str] = []
            for what, use in _uses(data, path):
                start = time.process_time()
                try:
                    bounds.run(f"{name}: {what}", use, CALLS.get(what, 1))
                except GGUFError as error:
                    touch.bounded(str(error))
                except Violation as error:
                    violations.append(str(error))
                taken.append(f"{what} {1000 * (time.process_time() - start):.0f}")
            if len(data) > 1 << 19:
                report(f"{name:40s} {len(data):8d} bytes; ms: {', '.join(taken)}")
        second = Path(folder) / "other.gguf"
        for name, data, other in comparisons():
            path.write_bytes(data)
            second.write_bytes(other)
            start = time.process_time()
            try:
                # Two files of a megabyte each: the bound is for each of them.
                bounds.run(f"{name}: compare with another", lambda: mmgguf.compare(path, second), 2)
            except Violation as error:
                violations.append(str(error))
            report(f"{name:40s} {len(data):8d} bytes; ms: {1000 * (time.process_time() - start):.0f}")
    return bounds, violations


def _uses(data: bytes, path: Path) -> list[tuple[str, Callable[[], Any]]]:
    from mmgguf.cli import app

    from .support.commandline import CliRunner

    def use_open(storage: Any) -> None:
        with mmgguf.open(path, storage=storage) as f:
            touch.file(f)

    def dequantize() -> None:
        with mmgguf.open(path) as f:
            for t in f.values():
                if t.nbytes > 1 << 19:
                    t.dequantize(np.float32)

    def command(*arguments: str) -> None:
        result = CliRunner().invoke(app, [*arguments, str(path)])
        if not isinstance(result.exception, SystemExit | None):
            raise Violation(f"{arguments}") from result.exception

    return [
        ("header", lambda: mmgguf.read_header(io.BytesIO(data))),
        ("use header", lambda: touch.header(mmgguf.read_header(io.BytesIO(data)))),
        ("open", lambda: mmgguf.open(path).close()),
        ("use mapped", lambda: use_open("mmap")),
        ("use read", lambda: use_open("read")),
        ("dequantize", dequantize),
        ("verify", lambda: mmgguf.verify(path, data=True)),
        ("digest", lambda: mmgguf.digest(path)),
        ("compare", lambda: mmgguf.compare(path, path)),
        ("ls", lambda: command("ls", "--sort", "name")),
        ("show", lambda: command("show", "--full")),
        ("show --json", lambda: command("show", "--full", "--json")),
    ]


# ---------------------------------------------------------------- the long run


class Run:
    """One process of the long run: inputs until the time is over, each noted before it is used."""

    def __init__(self, folder: Path, until: float, against_c: Callable[[bytes], object] | None = None) -> None:
        self.folder, self.until, self.against_c = folder, until, against_c
        self.path = folder / "input.gguf"
        self.bounds = Bounds()
        self.errors: Counter[str] = Counter()
        self.executions = self.accepted = self.violations = 0
        # Imports and compilation are no input's fault.
        for row in TABLE[-3:]:
            judge(next(row.examples()), self.path, cli=True)

    def one(self, data: bytes) -> None:
        faulthandler.dump_traceback_later(30, exit=True)
        (self.folder / "current").write_bytes(data)
        cli = self.executions % 200 == 0
        try:
            found = self.bounds.run("input", lambda: judge(data, self.path, cli))
            if self.against_c is not None:
                self.against_c(data)
        except Exception as error:
            self.violations += 1
            name = f"{type(error).__name__}-{error_key(error).split()[-1].replace(':', '-')}-{len(data)}"
            (self.folder / f"{name}.gguf").write_bytes(data)
            (self.folder / f"{name}.txt").write_text("".join(traceback.format_exception(error)))
        else:
            self.accepted += found is None
            self.errors[found or ""] += 1
        self.executions += 1
        faulthandler.cancel_dump_traceback_later()

    def loop(self, first_seed: int) -> None:
        number = first_seed
        while time.monotonic() < self.until:
            number += 1

            @seed(number)
            @settings(
                max_examples=500,
                deadline=None,
                database=None,
                phases=[Phase.generate],
                verbosity=Verbosity.quiet,
                suppress_health_check=list(HealthCheck),
            )
            @given(valid_files(), st.integers(0, (1 << 64) - 1))
            def batch(b: Build, start: int) -> None:
                # Breaking a file costs less than building one.
                rng = Random(start)
                for _ in range(BROKEN_PER_FILE):
                    if time.monotonic() < self.until:
                        self.one(broken(b, rng))

            batch()

    def report(self) -> str:
        kinds = sorted(kind for kind in self.errors if kind)
        lines = [
            f"{self.executions} executions, {self.accepted} accepted, {len(kinds)} kinds of refusal, "
            f"{self.violations} violations",
            f"at most {self.bounds.seconds:.3f} s and {self.bounds.memory >> 20} MiB above the start, per input",
            *(f"  {self.errors[kind]:8d} {kind}" for kind in kinds),
        ]
        return "\n".join(lines)


def long_run(minutes: float, folder: Path, first_seed: int, differential: bool) -> int:
    """Start workers until the time is over; the exit status is 1 if anything was found."""
    folder.mkdir(parents=True, exist_ok=True)
    until = time.monotonic() + 60 * minutes
    crashes = 0
    while (left := until - time.monotonic()) > 1:
        command = [sys.executable, "-m", "tests.fuzz", "--worker", "--minutes", f"{left / 60}", "--folder", str(folder)]
        command += ["--differential"] * differential
        status = subprocess.run([*command, "--seed", str(first_seed + 1_000_000 * crashes)], check=False).returncode
        if status in (0, 1):
            return status
        crashes += 1
        os.replace(folder / "current", folder / f"crash-{crashes}.gguf")
        print(f"the process ended with status {status}: saved as crash-{crashes}.gguf", flush=True)
    return 1


def _atheris(run: Run, minutes: float) -> None:
    try:
        import atheris  # type: ignore[import-not-found]
    except ImportError:
        sys.exit("atheris is not installed (it has no wheels for every Python): pip install atheris")

    @settings(database=None, deadline=None, suppress_health_check=list(HealthCheck))
    @given(files())
    def one(data: bytes) -> None:
        run.one(data)

    atheris.Setup([sys.argv[0], f"-max_total_time={int(60 * minutes)}"], one.hypothesis.fuzz_one_input)
    for function in _functions("mmgguf"):
        atheris.instrument_func(function)
    atheris.Fuzz()


def _functions(package: str) -> list[FunctionType]:
    """The package's own Python functions: instrumenting everything that is imported takes minutes."""
    found: dict[int, FunctionType] = {}
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] == package:
            classes = [value for value in vars(module).values() if isinstance(value, type)]
            for owner in (module, *classes):
                for value in vars(owner).values():
                    function = getattr(value, "fget", None) or getattr(value, "__func__", value)
                    if isinstance(function, FunctionType) and function.__module__.partition(".")[0] == package:
                        found[id(function)] = function
    return list(found.values())


def main() -> int:
    """The command line of the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--minutes", type=float, default=1)
    parser.add_argument(
        "--folder", type=Path, default=Path(tempfile.gettempdir()) / "mmgguf-fuzz", help="for reproducers"
    )
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--atheris", action="store_true", help="guided by coverage")
    parser.add_argument("--differential", action="store_true", help="hold each input against the C library as well")
    parser.add_argument("--worst", action="store_true", help="measure the largest structures only")
    parser.add_argument("--replay", type=Path, help="a file, or a folder of reproducers")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worst:
        bounds, violations = measure_worst_cases()
        print(f"at most {bounds.seconds:.3f} s per call ({bounds.worst.get('seconds')}), limit {MAX_SECONDS} s")
        print(f"and {bounds.memory / (1 << 20):.1f} MiB above the start ({bounds.worst.get('memory')}), limit 64 MiB")
        print(f"{len(violations)} violations", *violations, sep="\n")
        return int(bool(violations))
    if options.replay:
        for path in sorted(options.replay.glob("*.gguf")) if options.replay.is_dir() else [options.replay]:
            print(path.name, judge(path.read_bytes(), Path(tempfile.mkdtemp()) / "replay.gguf", cli=True))
        return 0
    if not (options.worker or options.atheris):
        return long_run(options.minutes, options.folder, options.seed, options.differential)
    options.folder.mkdir(parents=True, exist_ok=True)
    until = time.monotonic() + 60 * options.minutes
    with contextlib.ExitStack() as stack:
        against_c = None
        if options.differential:
            from .support.differential import Judge, Oracle

            against_c = Judge(stack.enter_context(Oracle()), options.folder / "differential.gguf")
        run = Run(options.folder, until, against_c)
        if options.atheris:
            _atheris(run, options.minutes)
        else:
            run.loop(options.seed)
        if against_c is not None:
            print("against C:", dict(against_c.explained))
    print(run.report(), flush=True)
    return int(run.violations > 0)


if __name__ == "__main__":
    sys.exit(main())
