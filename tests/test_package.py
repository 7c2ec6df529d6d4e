"""What the package promises to those who import it: its names, and its errors."""

from __future__ import annotations

import builtins
import pickle
import pkgutil
import re
from types import ModuleType

import pytest

import mmgguf
from mmgguf import edit, errors, report

#: A new name is a promise: it is made here, too.
NAMES = """
    FileType GGMLType GGUFError GGUFFile Header Metadata Tensor TypedTensor TypedValue ValueType compare dequantize
    digest errors estimate inspect load_file read_header resolve types verify write
"""

ERRORS = [getattr(errors, name) for name in errors.__all__ if isinstance(getattr(errors, name), type)]


def test_the_names_of_the_package() -> None:
    # Without `open`: `from mmgguf import *` must not replace the builtin.
    assert mmgguf.__all__ == NAMES.split()
    assert all(hasattr(mmgguf, name) for name in mmgguf.__all__)


@pytest.mark.parametrize("package", [mmgguf, mmgguf.inspect, edit, report], ids=lambda package: package.__name__)
def test_a_name_is_a_function_or_a_module(package: ModuleType) -> None:
    modules = {module.name for module in pkgutil.iter_modules(package.__path__)}
    for name in modules & set(package.__all__):
        assert isinstance(getattr(package, name), ModuleType)


def test_the_errors_are_those_that_the_docstring_draws() -> None:
    drawn: dict[str, set[type]] = {}
    above: dict[int, str] = {}
    for line in (errors.__doc__ or "").splitlines():
        match = re.match(r"    ([│├└─ ]*)(\w+Error) +(?:\((\w+)\))?", line)
        if match is None:
            continue
        depth, name, builtin = len(match[1]), match[2], match[3]
        above[depth] = name
        parents = [getattr(errors, above[depth - 4])] if depth else []
        drawn[name] = {*parents, *([getattr(builtins, builtin)] if builtin else [])}
    assert drawn.pop("GGUFError") == set()
    assert {error.__name__: set(error.__bases__) for error in ERRORS if error is not mmgguf.GGUFError} == drawn


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: error.__name__)
def test_errors_come_back_from_other_processes(error: type[Exception]) -> None:
    raised = error("numba", "fast") if error is mmgguf.errors.MissingExtraError else error("where: what")
    again = pickle.loads(pickle.dumps(raised))
    assert (type(again), str(again), again.args) == (error, str(raised), raised.args)
    assert getattr(again, "name", None) == getattr(raised, "name", None)
