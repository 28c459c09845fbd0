"""Showing that a structure is read and built as it is declared."""

from __future__ import annotations

import random
from typing import Any

from construct import Const

from ..packed import PackedStruct

ROUNDS = 20


def require_counterpart(packed: PackedStruct, declaration: Any) -> None:
    """Compare a :class:`PackedStruct` with its construct declaration: names, order, sizes, values, both ways.

    :param declaration: a ``construct.Struct`` of integers, ``Bytes`` and ``Const``.
    :raises AssertionError: they differ.
    """
    assert packed.names == tuple(field.name for field in declaration.subcons)
    assert packed.sizeof() == declaration.sizeof()
    fixed = {f.name: f.subcon.value for f in declaration.subcons if isinstance(getattr(f, "subcon", None), Const)}
    chance = random.Random(0)
    for _ in range(ROUNDS):
        fields = vars(packed.parse(chance.randbytes(packed.sizeof()))) | fixed
        stored = packed.build(fields)
        parsed = declaration.parse(stored)
        assert {name: parsed[name] for name in packed.names} == fields
        assert declaration.build(fields) == stored
