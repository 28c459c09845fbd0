"""The map of a disk as a picture for browsers: SVG in one piece, nothing in it comes from elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

from ..engine.overview import DEPTHS, Content, Overview
from ..sizes import human_size
from .printer import escape_text

COLUMNS, ROWS = 64, 32
CELLS = COLUMNS * ROWS
"""Cells that fit into the picture."""

_SIDE = 12
"""Width and height of a cell, pixels."""
_LEFT, _TOP, _LINE = 136, 40, 20
_MAX_NAME = 90
"""Characters of a layer's name that are shown."""

_HUES = {Content.DATA: (215, 70, 35, 8), Content.COMPRESSED: (28, 85, 42, 7), Content.ZERO: (150, 30, 70, 4)}
"""Hue, saturation, lightness of the top layer, and how much lighter each layer below is."""
_WORDS = {Content.DATA: "data", Content.COMPRESSED: "compressed data", Content.ZERO: "zeros"}
_NOTHING = "nothing: in no layer, reads as zeros"


def svg_lines(view: Overview, title: str) -> Iterator[str]:
    """The picture, line by line.

    :param view: of at most :data:`CELLS` cells.
    :param title: what it is a picture of, any text.
    """
    entries = list(_legend(view))
    rows = -(-len(view.bytes) // COLUMNS)
    height = _TOP + rows * _SIDE + _LINE * (len(entries) + len(_layer_names(view)) + 3)
    width = _LEFT + COLUMNS * _SIDE + 16
    heading = f"Map of {_shown(title)}"
    yield (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'role="img" aria-labelledby="title summary" font-family="sans-serif" font-size="12">'
    )
    yield f'<title id="title">{heading}</title>'
    yield f'<desc id="summary">{_summary(view, entries)}</desc>'
    yield f"<style>{''.join(_styles(view))}</style>"
    yield f'<rect width="{width}" height="{height}" fill="#fff"/>'
    yield f'<text x="8" y="24" font-size="15">{heading}</text>'
    for number in range(rows):
        yield from _row(view, number)
    yield from _key(view, entries, _TOP + rows * _SIDE + _LINE)
    yield "</svg>"


def _row(view: Overview, number: int) -> Iterator[str]:
    """One line of cells, with the offset of its first; equal neighbours are drawn as one."""
    first, last = number * COLUMNS, min((number + 1) * COLUMNS, len(view.bytes))
    y = _TOP + number * _SIDE
    offset = view.cell_range(first)[0]
    yield f'<text x="{_LEFT - 8}" y="{y + _SIDE - 2}" text-anchor="end" font-size="10">{offset:#x}</text>'
    position = first
    while position < last:
        shares = _shares(view, position)
        end = position + 1
        while len(shares) == 1 and end < last and [kind for kind, _ in _shares(view, end)] == [shares[0][0]]:
            end += 1
        yield from _run(view, position, end, shares, y)
        position = end


def _run(view: Overview, first: int, end: int, shares: list[tuple[int, int]], y: int) -> Iterator[str]:
    x, width = _LEFT + first % COLUMNS * _SIDE, (end - first) * _SIDE
    start, stop = view.cell_range(first)[0], view.cell_range(end - 1)[1]
    whole = sum(size for _, size in shares)
    said = ", ".join(f"{_label(view, kind)} {100 * size / whole:.3g} %" for kind, size in shares)
    yield f"<g><title>{start:#x} to {stop:#x}: {said}</title>"
    done = 0
    for kind, size in shares:
        top, bottom = _SIDE * done / whole, _SIDE * (done + size) / whole
        yield f'<rect x="{x}" y="{y + top:.5g}" width="{width - 1}" height="{bottom - top:.4g}" class="k{kind}"/>'
        done += size
    yield "</g>"


def _shares(view: Overview, number: int) -> list[tuple[int, int]]:
    """(kind, bytes) of what a cell holds; a kind is a content and a depth as one number."""
    return [(kind, size) for kind, size in enumerate(view.bytes[number].ravel().tolist()) if size]


def _legend(view: Overview) -> Iterator[tuple[int, int]]:
    """(kind, bytes) of what the whole range holds."""
    for kind, size in enumerate(view.bytes.sum(axis=0).ravel().tolist()):
        if size:
            yield kind, size


def _key(view: Overview, entries: list[tuple[int, int]], y: int) -> Iterator[str]:
    for kind, size in entries:
        yield f'<rect x="{_LEFT}" y="{y}" width="{_SIDE}" height="{_SIDE}" class="k{kind}"/>'
        yield f'<text x="{_LEFT + 20}" y="{y + 10}">{_label(view, kind)}: {_amount(size, view.length)}</text>'
        y += _LINE
    for name in _layer_names(view):
        yield f'<text x="{_LEFT}" y="{y + 10}">{_shown(name)}</text>'
        y += _LINE
    yield f'<text x="{_LEFT}" y="{y + 10}">each cell: {human_size(view.cell)}, all: {human_size(view.length)}</text>'


def _styles(view: Overview) -> Iterator[str]:
    for kind, _ in _legend(view):
        content, depth = divmod(kind, DEPTHS)
        if content == Content.HOLE:
            yield f".k{kind}{{fill:#eee}}"
            continue
        hue, saturation, lightness, step = _HUES[Content(content)]
        yield f".k{kind}{{fill:hsl({hue},{saturation}%,{lightness + step * depth}%)}}"


def _summary(view: Overview, entries: list[tuple[int, int]]) -> str:
    parts = [f"{_label(view, kind)}: {_amount(size, view.length)}" for kind, size in entries]
    return f"{human_size(view.length)} of a disk. {'; '.join(parts) or 'empty'}."


def _label(view: Overview, kind: int) -> str:
    content, depth = divmod(kind, DEPTHS)
    if content == Content.HOLE:
        return _NOTHING
    deeper = " and deeper" if depth == DEPTHS - 1 and len(view.layers) > DEPTHS else ""
    return f"{_WORDS[Content(content)]} in layer {depth}{deeper}"


def _amount(size: int, whole: int) -> str:
    return f"{human_size(size)} ({100 * size / whole:.3g} %)"


def _layer_names(view: Overview) -> list[str]:
    """The layers as they are told apart."""
    names = [f"layer {depth}: {name}" for depth, name in enumerate(view.layers[:DEPTHS])]
    if len(view.layers) > DEPTHS:
        names[-1] += f" and {len(view.layers) - DEPTHS} below it"
    return names


def _shown(text: str) -> str:
    """Text from anywhere as text of a picture: XML has no place for control characters, nor has a line for a book."""
    shown = escape_text(text)
    return escape(shown if len(shown) <= _MAX_NAME else f"{shown[: _MAX_NAME - 1]}…")
