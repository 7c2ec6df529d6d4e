"""`mmgguf.bench`: that the measurements measure what they say.  No test here depends on how fast anything is."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import mmgguf
from mmgguf import GGMLType
from mmgguf.bench import measure, models, quick, verdict
from mmgguf.bench.fields import read_fields
from mmgguf.bench.peers import PEERS, Unavailable
from mmgguf.bench.verdict import advise
from mmgguf.bench.ways import WAYS, byte_sum, page_sum
from mmgguf.dequant import dequantize
from mmgguf.types import LAYOUTS

from ..support import build

pytest.importorskip("typer")

ABOUT = {"storage", "access", "cold start", "threads", "numba", "loading everything"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = str(tmp_path_factory.mktemp("bench") / "model.gguf")
    models.llama(path, 1 / 64, vocabulary_size=256, tokens=64)
    return path


def test_contestants_take_turns() -> None:
    log: list[str] = []

    def contestant(name: str) -> measure.Contestant:
        return measure.Contestant(
            lambda: log.append(f"run {name}") or name, lambda result: log.append(f"finish {result}")
        )

    times = measure.compare({name: contestant(name) for name in "ab"}, seconds=60, max_rounds=2)
    assert log == ["run a", "finish a", "run b", "finish b"] * 2
    assert [(name, time.rounds) for name, time in times.items()] == [("a", 2), ("b", 2)]
    assert all(0 <= time.best <= time.median for time in times.values())


def test_slow_contestants_run_once() -> None:
    times = measure.compare({"slow": measure.Contestant(lambda: None)}, seconds=-1.0)
    assert times["slow"].rounds == 1


def test_cache_is_cold_after_evicting(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(8 << 20))
    reason = measure.why_not_cold(path)
    if reason is not None:
        pytest.skip(f"no cold cache here: {reason}")
    # Not exactly all and nothing: the kernel moves pages about while one looks.
    assert measure.is_cached(path) > 0.5
    measure.evict(path)
    # Other places than `evict` has asked about: the kernel starts to read a page that it had to say no to.
    assert measure.is_cached(path, samples=61) < 0.1


def test_plain_parser_agrees(model: str) -> None:
    with open(model, "rb") as stream, mmgguf.open(model) as file:
        metadata, tensors = read_fields(stream.read)
        assert metadata == file.metadata.to_dict(None)
        assert tensors == {name: (t.ne, t.type, t.offset) for name, t in file.items()}
        assert len(tensors) == models.LLAMA_TENSORS


@pytest.mark.parametrize("name", [name for name, way in WAYS.items() if way.format == "gguf"])
def test_ways_give_the_same_bytes(model: str, name: str) -> None:
    way = WAYS[name]
    try:
        handle = way.open(model)
    except Unavailable as reason:
        pytest.skip(str(reason))
    try:
        with mmgguf.open(model) as file:
            for tensor in ("blk.3.ffn_down.weight", "output_norm.weight"):
                data = file[tensor].data
                assert byte_sum(way.tensor(handle, tensor)) == byte_sum(data)
                assert page_sum(way.tensor(handle, tensor)) == page_sum(data)
                last = data.reshape(-1, data.shape[-1])[-1]
                index = data.size // data.shape[-1] - 1
                assert way.row(handle, tensor, index).tobytes() == last.tobytes()
    finally:
        way.close(handle)


def test_byte_sum_adds_all_bytes() -> None:
    data = np.arange(19, dtype=np.uint8)
    whole = int.from_bytes(data[:8].tobytes(), "little") + int.from_bytes(data[8:16].tobytes(), "little")
    assert byte_sum(data) == whole + 16 + 17 + 18


@pytest.mark.parametrize("type_", LAYOUTS, ids=lambda type_: type_.name)
def test_random_blocks_are_ordinary_numbers(type_: GGMLType) -> None:
    if LAYOUTS[type_].dtype.kind == "i":
        return
    values = dequantize(models.random_blocks(type_, (4, 256)), type_, backend="numpy")
    assert np.isfinite(values).all()
    assert 1e-6 < np.abs(values).max() < 1e6


def test_measure_all(model: str) -> None:
    told: list[tuple[int, int, str]] = []
    rows, _, left_out = quick.measure_all(model, lambda *step: told.append(step), seconds=0.0)
    works = {row.what.split(" ")[0] for row in rows}
    assert works >= {"parse", "get", "touch"}
    assert all(row.seconds > 0 and row.other_seconds > 0 and row.meaning for row in rows)
    assert [done for done, _, _ in told] == list(range(told[-1][1] + 1))
    installed = {name for name in ("C library", "gguf-py") if PEERS[name].version}
    assert installed <= {row.other for row in rows if row.what == "open the file"}
    assert not any(PEERS[name].package in reason for name in installed for reason in left_out)


def test_a_tensor_of_an_unknown_type_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    b = build.Build().start(2, 0).tensor(b"a", [8]).tensor(b"b", [8], 119, offset=32)
    path.write_bytes(bytes(b.data(bytes(64))))
    rows, advice, _ = quick.measure_all(str(path), lambda *step: None, seconds=0.0)
    assert any(row.what.startswith("touch") for row in rows)
    assert {one.about for one in advice} == ABOUT


def test_command(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from typer.testing import CliRunner

    from mmgguf.cli import app

    monkeypatch.setattr(quick.measure_all, "__defaults__", (None, lambda *step: None, 0.0))
    done = CliRunner().invoke(app, ["bench", model, "--json"])
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    rows, advice = result["rows"], result["verdict"]
    assert {one["about"] for one in advice} == ABOUT
    assert all(one["answer"] and "\n" not in one["reason"] for one in advice)
    assert {"what", "one", "other", "seconds", "other_seconds", "ratio", "meaning"} == set(rows[0])
    done = CliRunner().invoke(app, ["bench", model])
    first = [line.split("\t")[0] for line in done.stdout.splitlines()]
    assert first == [row["what"] for row in rows] + ["verdict"] * len(advice)


@pytest.mark.parametrize("content", [b"", b"GGUF", b"no model" * 100, None])
def test_command_says_at_once_what_is_wrong_with_a_file(content: bytes | None, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from mmgguf.cli import app

    path = tmp_path / "x.gguf"
    if content is not None:
        path.write_bytes(content)
    done = CliRunner().invoke(app, ["bench", str(path)])
    assert done.exit_code == 1
    assert not done.stdout
    assert len(done.stderr.splitlines()) == 1
    assert "x.gguf" in done.stderr


def test_a_file_without_tensors_has_no_verdict(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    mmgguf.write(path, {"general.architecture": "llama"}, {})
    assert advise(str(path), 0.0) == []


@pytest.mark.parametrize("reason", ["Function not implemented", None])
def test_verdict_says_where_no_cold_start_can_be_made(
    reason: str | None, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: str) -> None:
        raise OSError(16, "pages stayed")

    monkeypatch.setattr(verdict.measure, "why_not_cold", lambda path: reason)
    monkeypatch.setattr(verdict.measure, "evict", fail)
    monkeypatch.setattr(verdict, "_first_calls", lambda *_: None)
    advice = {one.about: one for one in advise(model, 0.0)}
    assert set(advice) == ABOUT
    assert (reason or "pages stayed") in advice["cold start"].reason
    assert advice["access"].answer == 'access="normal"'
