"""Streams of ranges, against sets of numbers."""

from __future__ import annotations

import random
from collections.abc import Iterable

import pytest

from diskwright.engine import ranges

Ranges = list[tuple[int, int]]


def some(chance: random.Random) -> Ranges:
    edges = sorted(chance.sample(range(100), 2 * chance.randrange(12)))
    return list(zip(edges[::2], edges[1::2], strict=True))


def numbers(found: Iterable[tuple[int, int]]) -> set[int]:
    covered: set[int] = set()
    last = -1
    for start, end in found:
        assert last <= start < end
        last = end
        covered.update(range(start, end))
    return covered


@pytest.mark.parametrize("seed", range(200))
def test_streams_do_what_sets_do(seed: int) -> None:
    chance = random.Random(seed)
    left, right = some(chance), some(chance)
    a, b = numbers(left), numbers(right)
    assert numbers(ranges.intersection(left, right)) == a & b
    assert numbers(ranges.difference(left, right)) == a - b
    assert numbers(ranges.joined(left)) == a
    assert numbers(ranges.aligned(left, 8, 97)) == {n for x in a for n in range(x // 8 * 8, x // 8 * 8 + 8) if n < 97}
    pieces = list(ranges.cut(left, 8))
    assert numbers(pieces) == a
    assert all(start // 8 == (end - 1) // 8 for start, end in pieces)
