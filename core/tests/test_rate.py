"""Keeping a rate."""

from __future__ import annotations

import time

import pytest

from diskwright.engine.copy import CopyOptions, copy
from diskwright.engine.rate import RateLimit


def test_delays_add_up() -> None:
    now = 100.0
    limit = RateLimit(1000, lambda: now)
    assert [limit.delay(500), limit.delay(1000), limit.delay(1)] == [0.0, 0.5, 1.5]
    now = 110.0
    assert limit.delay(1000) == 0.0
    assert limit.delay(1) == pytest.approx(1.0)


def test_a_copy_takes_its_time(layer_world: object) -> None:
    source = layer_world.layer("x", "1" * 2048)  # type: ignore[attr-defined]
    layer_world.layer("y", "-" * 2048)  # type: ignore[attr-defined]
    context = layer_world.context  # type: ignore[attr-defined]
    with context.open("x", "layer") as left, context.open("y", "layer", writable=True) as right:
        start = time.monotonic()
        copy([left], right, CopyOptions(rate=source.size * 2))
        assert 0.2 < time.monotonic() - start < 5
    assert layer_world.read("y") == "1" * 2048  # type: ignore[attr-defined]
