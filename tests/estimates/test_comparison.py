"""The page that compares estimates has the figures that its formulas give."""

from __future__ import annotations

from pathlib import Path

from ..support import peer_estimates

PAGE = Path(__file__).resolve().parents[2] / "docs" / "estimate-comparison.md"


def test_the_table_is_what_the_formulas_give() -> None:
    assert peer_estimates.table() in PAGE.read_text(encoding="utf-8")


def test_all_agree_on_a_plain_transformer() -> None:
    architecture, hyperparameters = peer_estimates.MODELS["Llama 3.1 8B"]
    formulas = (peer_estimates.ours, peer_estimates.parser, peer_estimates.naive)
    # 32 layers · 32768 tokens · 8 heads · 128 · (K and V) · 2 bytes
    assert {formula(architecture, hyperparameters) for formula in formulas} == {4 << 30}
