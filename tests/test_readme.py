"""What the README and the documentation say of themselves: size, links, names of tests.  Figures: test_measurements."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_readme_is_a_page() -> None:
    lines = README.splitlines()
    assert len(lines) <= 150
    assert max(map(len, lines)) <= 120


def test_its_links_lead_to_files() -> None:
    links = re.findall(r"\]\((?!https?://)([^)#]+)", README)
    assert len(links) >= 8
    assert [link for link in links if not (ROOT / link).is_file()] == []


def test_the_tests_that_the_promises_name_exist() -> None:
    promises = (ROOT / "docs" / "guides" / "untrusted-files.md").read_text(encoding="utf-8")
    file, missing, found = "", [], 0
    for given, test in re.findall(r"`(?:tests/)?((?:\w+/)?test_\w+\.py)?(?:::(test_\w+))?`", promises):
        file = given or file
        if not file:
            continue
        path = ROOT / "tests" / file
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
        found += bool(test)
        if not text or (test and f"def {test}(" not in text):
            missing.append(f"{file}::{test}")
    assert missing == []
    assert found > 10


def test_the_files_that_contributing_names_exist() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    named = re.findall(r"`((?:docs|mmgguf|tests)/[\w./]*)`", text)
    assert len(named) > 10
    assert [name for name in named if "NAME" not in name and not (ROOT / name).exists()] == []
