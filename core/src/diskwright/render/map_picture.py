"""The map of a disk as a picture for terminals: a character for each cell, coloured where somebody is looking."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping

from ..engine.overview import DEPTHS, Content, Overview
from ..sizes import human_size
from .printer import Printer

ROWS = 16
_GUTTER = 20
"""Columns for the offset in front of a line, and the frame around it."""
_LEAST, _MOST = 16, 200
"""Characters of a line."""

_DATA = "#123456789"
_COMPRESSED = "Cabcdefghi"
"""In letters: data of the top layer and of those below it."""
_BLOCKS = "▁▂▃▄▅▆▇█"
_SHADES = "░▒▓"
_COLOURS = (34, 36, 32, 33, 35, 31)
"""Of layers, by depth, as ANSI has them."""


def width_of(out: Printer) -> int:
    """Cells in a line."""
    columns = shutil.get_terminal_size().columns if out.terminal else _int_or(os.environ.get("COLUMNS"), 80)
    return max(_LEAST, min(columns - _GUTTER, _MOST))


def _int_or(text: str | None, default: int) -> int:
    """A positive number, or the default for what is none."""
    return int(text) if text and text.isdecimal() and 0 < int(text) < 10**6 else default


def wants_colour(out: Printer, environment: Mapping[str, str]) -> bool:
    """Whether to draw with blocks and colours: somebody is looking who can see them and has nothing against them."""
    return (
        out.terminal
        and not environment.get("NO_COLOR")
        and environment.get("TERM", "dumb") != "dumb"
        and out.can_write(_BLOCKS + _SHADES)
    )


def picture_lines(view: Overview, width: int, *, colour: bool) -> Iterator[str]:
    """The picture with its legend. Lines hold nothing from outside but the names of layers, in lines of their own.

    :param width: cells in a line.
    :param colour: with blocks and escape sequences for a terminal; otherwise letters.
    """
    draw = _block if colour else _letter
    cells = view.bytes.tolist()
    for first in range(0, len(cells), width):
        line = "".join(map(draw, cells[first : first + width]))
        yield f"{view.cell_range(first)[0]:#16x} |{line}|"
    yield ""
    yield f"each character: {human_size(view.cell)}, all: {human_size(view.length)}"
    yield from _legend(view, colour=colour)


def layer_lines(view: Overview) -> Iterator[str]:
    """The layers, a line each, if there are several; the names are as they come."""
    if len(view.layers) == 1:
        return
    for depth, name in enumerate(view.layers[:DEPTHS]):
        more = len(view.layers) - DEPTHS
        yield f"layer {depth}: {name}" + (f" and {more} below it" if more > 0 and depth == DEPTHS - 1 else "")


def _chosen(cell: list[list[int]]) -> tuple[Content, int, float]:
    """What to show of a cell: content, depth and share. Stored data is never lost sight of."""
    whole = sum(map(sum, cell))
    stored = [(size, content, depth) for content in (0, 1) for depth, size in enumerate(cell[content]) if size]
    if stored:
        _, content, depth = max(stored)
        return Content(content), depth, sum(size for size, _, _ in stored) / whole
    zeros, nothing = sum(cell[Content.ZERO]), sum(cell[Content.HOLE])
    return (Content.ZERO if zeros >= nothing else Content.HOLE), 0, 0.0


def _letter(cell: list[list[int]]) -> str:
    content, depth, _ = _chosen(cell)
    return _symbol(content, depth)


def _symbol(content: int, depth: int) -> str:
    return {Content.DATA: _DATA[depth], Content.COMPRESSED: _COMPRESSED[depth], Content.ZERO: "0"}.get(
        Content(content), "."
    )


def _block(cell: list[list[int]]) -> str:
    content, depth, share = _chosen(cell)
    if content == Content.HOLE:
        return " "
    if content == Content.ZERO:
        return "·"
    scale = _BLOCKS if content == Content.DATA else _SHADES
    return _coloured(scale[min(int(share * len(scale)), len(scale) - 1)], depth)


def _coloured(text: str, depth: int) -> str:
    return f"\x1b[{_COLOURS[depth]}m{text}\x1b[0m"


def _legend(view: Overview, *, colour: bool) -> Iterator[str]:
    words = {Content.DATA: "data", Content.COMPRESSED: "compressed data", Content.ZERO: "zeros"}
    for content in (Content.DATA, Content.COMPRESSED):
        for depth in range(DEPTHS):
            if size := view.total(content, depth):
                symbol = _symbol(content, depth)
                if colour:
                    symbol = _coloured(_BLOCKS[-1] if content == Content.DATA else _SHADES[1], depth)
                where = f" in layer {depth}" if len(view.layers) > 1 else ""
                yield f"{symbol} {words[content]}{where}: {human_size(size)}"
    if size := view.total(Content.ZERO):
        yield f"{'·' if colour else '0'} zeros: {human_size(size)}"
    if size := view.total(Content.HOLE):
        yield f"{'(blank)' if colour else '.'} nothing, reads as zeros: {human_size(size)}"
