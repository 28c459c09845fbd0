"""Plots as SVG."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from typing import TYPE_CHECKING

from .results import Inside, Row
from .stats import Spread

if TYPE_CHECKING:
    from .scale import Curve

COLOURS = {"wall": "#0072b2", "CPU": "#d55e00", "memory": "#009e73"}
"""Colours that people who see colours differently can tell apart."""
MIB = 1 << 20
LOW, HIGH = 0.01, 32.0
LEFT, WIDTH, LINE, TOP = 250, 640, 34, 84
FONT = "font-family='sans-serif' font-size='12'"


class Drawing:
    """The elements of a picture."""

    def __init__(self) -> None:
        self._parts: list[str] = []

    def text(
        self, x: float, y: float, text: str, *, anchor: str = "start", colour: str = "#222", size: int = 12
    ) -> None:
        """A line of text."""
        self._parts.append(
            f"<text x='{x:.1f}' y='{y:.1f}' text-anchor='{anchor}' fill='{colour}' font-size='{size}'>"
            f"{escape(text)}</text>"
        )

    def line(self, x1: float, y1: float, x2: float, y2: float, colour: str, width: float = 1, dashes: str = "") -> None:
        """A straight line."""
        dash = f" stroke-dasharray='{dashes}'" if dashes else ""
        self._parts.append(
            f"<line x1='{x1:.1f}' y1='{y1:.1f}' x2='{x2:.1f}' y2='{y2:.1f}' "
            f"stroke='{colour}' stroke-width='{width}'{dash}/>"
        )

    def dot(self, x: float, y: float, colour: str, title: str, *, hollow: bool = False) -> None:
        """A point that tells its value to who points at it."""
        fill = "white" if hollow else colour
        self._parts.append(
            f"<circle cx='{x:.1f}' cy='{y:.1f}' r='4' fill='{fill}' stroke='{colour}' stroke-width='1.5'>"
            f"<title>{escape(title)}</title></circle>"
        )

    def finish(self, width: float, height: float) -> str:
        """The whole file."""
        return (
            f"<svg xmlns='http://www.w3.org/2000/svg' width='{width:.0f}' height='{height:.0f}' "
            f"viewBox='0 0 {width:.0f} {height:.0f}' {FONT}>\n<rect width='100%' height='100%' fill='white'/>\n"
            + "\n".join(self._parts)
            + "\n</svg>\n"
        )


def ratios(rows: Sequence[Row], inside: Sequence[Inside], caption: str) -> str:
    """Ratios ours/theirs of all operations on a logarithmic axis, with their spread, and the goals as bars."""
    drawing = Drawing()
    lines = [(row.name, _marks(row)) for row in rows]
    lines += [(row.name, [("wall", row.spread, row.goal)]) for row in inside if row.spread]
    height = TOP + LINE * len(lines) + 30
    drawing.text(
        10, 20, "Ratio ours/theirs: left of 1 ours takes less. Bars are goals, lines lowest to highest.", size=14
    )
    drawing.text(10, 38, caption, colour="#666", size=11)
    for number, (name, colour) in enumerate(COLOURS.items()):
        drawing.dot(LEFT + 90 * number, 56, colour, name)
        drawing.text(LEFT + 90 * number + 9, 60, name)
    for tick in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20):
        x = _across(tick)
        drawing.line(x, TOP, x, height - 25, "#222" if tick == 1 else "#ddd", 1.2 if tick == 1 else 1)
        drawing.text(x, height - 8, f"{tick:g}", anchor="middle")
    for number, (name, marks) in enumerate(lines):
        y = TOP + LINE * (number + 0.5)
        drawing.text(LEFT - 10, y + 4, name, anchor="end")
        if not marks:
            drawing.text(_across(1) + 8, y + 4, "not measured", colour="#999")
        for place, (kind, value, goal) in enumerate(marks):
            _draw_mark(drawing, y + 9 * (place - (len(marks) - 1) / 2), kind, value, goal)
    return drawing.finish(LEFT + WIDTH + 30, height)


def _marks(row: Row) -> list[tuple[str, Spread, float | None]]:
    found = [("wall", row.wall, row.goals.wall), ("CPU", row.cpu, row.goals.cpu), ("memory", row.memory, None)]
    return [(kind, value, goal) for kind, value, goal in found if value is not None and not row.error]


def _draw_mark(drawing: Drawing, y: float, kind: str, value: Spread, goal: float | None) -> None:
    colour = COLOURS[kind]
    title = f"{kind} {value.median:.3g} ({value.low:.3g} to {value.high:.3g})"
    drawing.line(_across(value.low), y, _across(value.high), y, colour, 2)
    met = goal is None or value.median <= goal
    drawing.dot(_across(value.median), y, colour, title if goal is None else f"{title}, goal {goal:g}", hollow=not met)
    if goal is not None:
        drawing.line(_across(goal), y - 5, _across(goal), y + 5, colour, 3)


def _across(ratio: float) -> float:
    inside = min(max(ratio, LOW), HIGH)
    return LEFT + WIDTH * math.log(inside / LOW) / math.log(HIGH / LOW)


PANEL_WIDTH, PANEL_HEIGHT, MARGIN, ACROSS = 250, 180, 60, 4


def curves(found: Sequence[Curve], caption: str) -> str:
    """A panel for each operation and quantity: how it grows, both axes logarithmic."""
    drawing = Drawing()
    drawing.text(10, 20, "Growth: measured (dots) and fitted (lines), ours filled and theirs hollow", size=14)
    drawing.text(10, 38, caption, colour="#666", size=11)
    panels = [
        (series, name, quantity)
        for series, name in dict.fromkeys((curve.series, curve.name) for curve in found)
        for quantity in ("CPU s", "memory MiB")
    ]
    for number, (series, name, quantity) in enumerate(panels):
        x = MARGIN + (number % ACROSS) * (PANEL_WIDTH + MARGIN)
        y = 70 + (number // ACROSS) * (PANEL_HEIGHT + MARGIN)
        both = [curve for curve in found if (curve.series, curve.name) == (series, name)]
        drawing.text(x, y - 8, f"{name} by {series}: {quantity}", size=11)
        _panel(drawing, x, y, [_plotted(curve, quantity) for curve in both])
    down = -(-len(panels) // ACROSS)
    return drawing.finish(MARGIN + ACROSS * (PANEL_WIDTH + MARGIN), 80 + max(1, down) * (PANEL_HEIGHT + MARGIN))


@dataclass(frozen=True)
class _Plotted:
    """One quantity of a curve."""

    side: str
    points: list[tuple[float, float]]
    fit: Callable[[float], float] | None


def _plotted(curve: Curve, quantity: str) -> _Plotted:
    costs, fit, unit = (curve.cpu, curve.time, 1.0) if quantity == "CPU s" else (curve.peak, curve.memory, MIB)
    points = [(float(size), cost / unit) for size, cost in zip(curve.sizes, costs, strict=False)]
    return _Plotted(curve.side, points, None if fit is None else lambda size: fit.at(size) / unit)


def _panel(drawing: Drawing, x: float, y: float, found: Sequence[_Plotted]) -> None:
    drawing.line(x, y + PANEL_HEIGHT, x + PANEL_WIDTH, y + PANEL_HEIGHT, "#222")
    drawing.line(x, y, x, y + PANEL_HEIGHT, "#222")
    values = [point for item in found for point in item.points]
    if not values:
        drawing.text(x + 10, y + 20, "not measured", colour="#999")
        return
    (low_x, high_x), (low_y, high_y) = (_span([value[axis] for value in values]) for axis in (0, 1))

    def place(size: float, cost: float) -> tuple[float, float]:
        inside = min(max(cost, low_y), high_y)
        return (
            x + PANEL_WIDTH * math.log(size / low_x) / math.log(high_x / low_x),
            y + PANEL_HEIGHT * (1 - math.log(inside / low_y) / math.log(high_y / low_y)),
        )

    for tick in _ticks(low_y, high_y):
        drawing.text(x - 5, place(low_x, tick)[1] + 4, f"{tick:g}", anchor="end", size=10)
    for tick in _ticks(low_x, high_x):
        drawing.text(
            place(tick, low_y)[0], y + PANEL_HEIGHT + 14, f"{tick:.0e}".replace("e+", "e"), anchor="middle", size=9
        )
    steps = [low_x * (high_x / low_x) ** (part / 20) for part in range(21)]
    for item in found:
        colour, hollow = (COLOURS["wall"], False) if item.side == "ours" else (COLOURS["CPU"], True)
        for size, cost in item.points:
            drawing.dot(*place(size, cost), colour, f"{item.side}: {cost:.3g} at {size:g}", hollow=hollow)
        if item.fit is not None:
            for first, second in pairwise([place(size, item.fit(size)) for size in steps]):
                drawing.line(*first, *second, colour)


def _span(values: Sequence[float]) -> tuple[float, float]:
    low, high = max(min(values), 1e-4), max([*values, 2e-4])
    return low / 1.2, high * 1.2


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers between two, not too many."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1,) if high / low > 100 else (1, 2, 5)
    every = 1 + len(powers) // 6
    ticks = [factor * 10.0**power for power in powers[::every] for factor in factors]
    return [tick for tick in ticks if low <= tick <= high]
