"""Where disks may differ: ranges as arrays, against sets of numbers; and maps beside each other."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from itertools import pairwise

import numpy as np
import pytest

from diskwright.engine import differences
from diskwright.engine.chain import side_by_side
from diskwright.engine.differences import Ranges, windows
from diskwright.extent import Extent, ExtentTable, Kind, tabulate

SIZE = 1000


def some(chance: random.Random) -> Ranges:
    """Ranges that do not touch each other."""
    edges = sorted(chance.sample(range(SIZE), 2 * chance.randrange(1, 40)))
    return Ranges(np.array(edges[::2]), np.array(edges[1::2]))


def numbers(found: Iterable[Ranges]) -> list[int]:
    return [n for ranges in found for start, end in zip(*ranges, strict=True) for n in range(start, end)]


@pytest.mark.parametrize("seed", range(100))
def test_windows_hold_what_is_near(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(differences, "NEAR", 9)
    ranges = some(random.Random(seed))
    found = list(windows([ranges], 64))
    assert numbers(found) == numbers([ranges])
    for window in found:
        assert window.start // 64 == (window.end - 1) // 64
        assert (window.starts[1:] - window.ends[:-1] <= 9).all()
    for left, right in pairwise(found):
        assert right.start - left.end > 9 or right.start // 64 != left.start // 64


@pytest.mark.parametrize("seed", range(100))
def test_ranges_are_rounded_out_to_blocks_and_none_comes_twice(seed: int) -> None:
    chance = random.Random(seed)
    ranges, done = some(chance), chance.choice([0, 0, 160, 640])
    found = differences._in_blocks(*ranges, 16, done, 990)
    blocks = {n // 16 for n in numbers([ranges])}
    assert numbers([found]) == [n for n in range(done, 990) if n // 16 in blocks]
    assert (found.starts[1:] > found.ends[:-1]).all()


def a_map(chance: random.Random) -> Iterator[ExtentTable]:
    """A map of the whole disk, in tables of any size."""
    edges = [0, *sorted(chance.sample(range(1, SIZE), chance.randrange(30))), SIZE]
    for start, end in pairwise(edges):
        inner = [start, *sorted(chance.sample(range(start, end), min(end - start, 3)))[1:], end]
        yield from tabulate(Extent(a, b - a, chance.choice([Kind.ZERO, Kind.ABSENT])) for a, b in pairwise(inner))


@pytest.mark.parametrize("seed", range(100))
def test_maps_beside_each_other_cover_the_same(seed: int) -> None:
    maps = [list(a_map(random.Random(number))) for number in (seed, seed + 1000, seed + 2000)]
    position = 0
    seen: list[list[int]] = [[], [], []]
    for tables in side_by_side(*map(iter, maps)):
        assert {table.start for table in tables} == {position}
        (position,) = {table.end for table in tables}
        for kinds, table in zip(seen, tables, strict=True):
            kinds += [extent.kind for extent in table for _ in range(extent.length)]
    assert position == SIZE
    assert seen == [[e.kind for table in tables for e in table for _ in range(e.length)] for tables in maps]
