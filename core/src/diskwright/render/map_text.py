"""What ``map`` prints: a table for people, or JSON in the form that qemu-img writes by hand, one object a line."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import TYPE_CHECKING

from ..engine.mapping import MapTable, State
from ..errors import UnsupportedFeature
from ..extent import NO_OFFSET
from .printer import Printer

if TYPE_CHECKING:
    from ..extent import Column

_CHUNK = 50_000
"""Rows turned into text at a time."""


def print_map_json(tables: Iterable[MapTable], out: Printer) -> None:
    """Print rows as they come: one object a line, the lines separated by commas."""
    middles = _Middles()
    separator = ""
    out.write("[")
    for table in tables:
        for begin in range(0, len(table.rows), _CHUNK):
            out.write(separator + _json_lines(table.rows[begin : begin + _CHUNK], middles))
            separator = ",\n"
    out.write("]\n")


def _json_lines(rows: Column, middles: _Middles) -> str:
    # Most of the time of a map of a million rows is spent here, half as much as if each number were formatted anew.
    start, length, depth, state = (rows[name].tolist() for name in ("start", "length", "depth", "state"))
    offset = ["" if number == NO_OFFSET else number for number in rows["offset"].tolist()]
    middle = map(middles.__getitem__, zip(length, depth, state, strict=True))
    return ",\n".join([f'{{ "start": {s}{m}{o}}}' for s, m, o in zip(start, middle, offset, strict=True)])


class _Middles(dict[tuple[int, int, int], str]):
    """What stands in a line between start and offset, by length, depth and state, of which few differ."""

    def __missing__(self, key: tuple[int, int, int]) -> str:
        if len(self) >= _CHUNK:
            self.clear()
        length, depth, state = key
        text = self[key] = f', "length": {length}, "depth": {depth}, {_facts(State(state))}'
        return text


@cache
def _facts(state: State) -> str:
    """The part of a line that depends on the state only."""
    named = (
        ("present", State.PRESENT),
        ("zero", State.ZERO),
        ("data", State.DATA),
        ("compressed", State.COMPRESSED),
    )
    facts = ", ".join(f'"{name}": {"true" if bit in state else "false"}' for name, bit in named)
    return f'{facts}, "offset": ' if State.PLACED in state else facts


def print_map_table(tables: Iterable[MapTable], out: Printer) -> None:
    """Print where data is, for people; what is not data is left out.

    :raises UnsupportedFeature: there is data that has no place in a file; what comes before it has been printed.
    """
    out.line(f"{'Offset':<16}{'Length':<16}{'Mapped to':<16}File")
    for table in tables:
        names = [out.safe(name) for name in table.files]
        data = table.rows[table.rows["state"] & (State.DATA | State.ZERO) == State.DATA]
        for begin in range(0, len(data), _CHUNK):
            lines: list[str] = []
            for start, length, offset, file, _, state in data[begin : begin + _CHUNK].tolist():
                if not state & State.PLACED:
                    out.write("".join(lines))
                    raise UnsupportedFeature("File contains external, encrypted or compressed clusters.")
                lines.append(f"{_hex(start):<16}{_hex(length):<16}{_hex(offset):<16}{names[file]}\n")
            out.write("".join(lines))


def _hex(number: int) -> str:
    return f"{number:#x}" if number else "0"
