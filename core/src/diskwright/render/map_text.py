"""What ``map`` prints: a table for people, or JSON in the form that qemu-img writes by hand, one object a line."""

from __future__ import annotations

from collections.abc import Iterable

from ..engine.mapping import MapTable, State
from ..errors import UnsupportedFeature
from .printer import Printer

_CHUNK = 50_000
"""Rows turned into text at a time."""


def print_map_json(tables: Iterable[MapTable], out: Printer) -> None:
    """Print rows as they come: one object a line, the lines separated by commas."""
    facts = [_facts(State(state)) for state in range(32)]
    separator = ""
    out.write("[")
    for table in tables:
        for begin in range(0, len(table.rows), _CHUNK):
            rows = table.rows[begin : begin + _CHUNK].tolist()
            lines = [
                f'{{ "start": {start}, "length": {length}, "depth": {depth}, {facts[state]}{offset}}}'
                if state & 16
                else f'{{ "start": {start}, "length": {length}, "depth": {depth}, {facts[state]}}}'
                for start, length, offset, depth, _, state in rows
            ]
            out.write(separator + ",\n".join(lines))
            separator = ",\n"
    out.write("]\n")


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
            for start, length, offset, _, file, state in data[begin : begin + _CHUNK].tolist():
                if not state & State.PLACED:
                    out.write("".join(lines))
                    raise UnsupportedFeature("File contains external, encrypted or compressed clusters.")
                lines.append(f"{_hex(start):<16}{_hex(length):<16}{_hex(offset):<16}{names[file]}\n")
            out.write("".join(lines))


def _hex(number: int) -> str:
    return f"{number:#x}" if number else "0"
