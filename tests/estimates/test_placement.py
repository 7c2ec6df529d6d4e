"""Dealing layers out to devices: held against a plain rendering of llama.cpp's rule, and against trying all."""

from __future__ import annotations

import bisect
import itertools
from pathlib import Path

import numpy as np
import pytest

from mmgguf.estimates import Estimate, estimate
from mmgguf.estimates.placement import _bounds

from ..support import tiny

MIB = 1 << 20


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Estimate:
    return estimate(tiny.write("gemma3", tmp_path_factory.mktemp("m") / "model.gguf"), context=4096)


def owner(shares: list[float], layer: int, number: int) -> int:
    """Which device a layer goes to: ``std::upper_bound`` over the shares' sums, all in float32."""
    sums, total = [], np.float32(0)
    for share in shares:
        total += np.float32(share)
        sums.append(total)
    return bisect.bisect_right([x / total for x in sums], np.float32(layer) / np.float32(number))


@pytest.mark.parametrize("number", [1, 2, 7, 33, 65, 513])
@pytest.mark.parametrize(
    "shares", [[1.0], [1.0, 1.0], [3.0, 1.0], [24.0, 16.0, 8.0], [0.0, 1.0], [1e9, 1.0], [7.0] * 8]
)
def test_llamacpps_rule(shares: list[float], number: int) -> None:
    count = number + 5
    bounds = _bounds(shares, number, count)
    owners = [owner(shares, layer, number) for layer in range(number)]
    assert bounds[0] == 5
    assert bounds[-1] == count
    assert [bounds[d + 1] - bounds[d] for d in range(len(shares))] == [owners.count(d) for d in range(len(shares))]


def test_counts_given_as_a_split_are_those_counts() -> None:
    """What was found can be given as ``--tensor-split``."""
    for first, second, third in itertools.product((0, 1, 5, 20, 33), (1, 3, 31), (0, 1, 8)):
        number = first + second + third
        assert _bounds([first, second, third], number, number) == [0, first, first + second, number]


def test_everything_is_somewhere(found: Estimate) -> None:
    weights = found.model.weights
    for sizes in ([], [0], [MIB], [8 * MIB], [12 * MIB, 9 * MIB], [64 * MIB], [6 * MIB, 64 * MIB, 7 * MIB]):
        placed = found.place(sizes)
        places = [*placed.devices, placed.host]
        assert placed.fits
        copied = weights.tied if placed.offloaded else 0
        assert sum(one.weights for one in places) == found.weights + copied
        assert sum(one.kept for one in places) == found.kv_cache
        assert sum(len(one.layers) for one in placed.devices) == placed.offloaded
        edges = [placed.host.layers.stop, *(one.layers.stop for one in placed.devices)]
        assert edges == sorted(edges)
        assert placed.count == len(found.layers) + 1
        for one, size in zip(placed.devices, sizes, strict=True):
            assert one.total + (one.free or 0) == size
    assert not found.place([]).complete
    assert found.place([64 * MIB]).complete


def test_as_many_layers_as_fit(found: Estimate) -> None:
    for size in range(6 * MIB, 40 * MIB, MIB):
        placed = found.place([size])
        assert placed.fits
        if not placed.complete:
            assert not found.place([size], layers=placed.offloaded + 1).fits


def test_a_split_is_found_where_llamacpps_own_does_not_fit(found: Estimate) -> None:
    given = found.place([11 * MIB, 64 * MIB], layers=8, split=[1, 1])
    assert not given.fits
    placed = found.place([11 * MIB, 64 * MIB])
    assert placed.complete
    sizes = [11 * MIB, 64 * MIB]
    again = found.place(sizes, split=placed.split or sizes, layers=placed.offloaded)
    assert [one.layers for one in again.devices] == [one.layers for one in placed.devices]


def test_the_reserve_stays_free(found: Estimate) -> None:
    assert found.place([40 * MIB], reserve=40 * MIB).offloaded == 0
    assert found.place([44 * MIB], reserve=4 * MIB).devices[0].capacity == 40 * MIB


def test_the_largest_context(smollm2: Path) -> None:
    model = estimate(smollm2, context=512)
    for sizes in ([160 * MIB], [200 * MIB], [120 * MIB, 100 * MIB]):
        most = model.largest_context(sizes)
        assert most is not None
        assert 0 < most < 8192
        assert most % 256 == 0
        assert model.replace(context=most).place(sizes).complete
        assert not model.replace(context=most + 256).place(sizes).complete
    assert model.largest_context([1 << 40]) == 8192
    assert model.largest_context([MIB]) == 0
    assert model.largest_context([]) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([-1],), "whole numbers of bytes"),
        (([1.5],), "whole numbers of bytes"),
        (([1] * 17,), "at most 16"),
    ],
    ids=str,
)
def test_sizes_that_cannot_be(found: Estimate, arguments: tuple[list[int]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        found.place(*arguments)


def test_shares_and_layers_that_cannot_be(found: Estimate) -> None:
    for split in ([1.0], [0.0, 0.0], [-1.0, 2.0], [float("nan"), 1.0]):
        with pytest.raises(ValueError, match="split has a positive share"):
            found.place([MIB, MIB], split=split)
    with pytest.raises(ValueError, match="layers must be between 0 and 8"):
        found.place([MIB], layers=9)
