"""Tables for people and JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .results import Inside, Row
from .stats import Spread

MIB = 1 << 20
HEAD = ("operation", "wall", "goal", "CPU", "goal", "peak MiB", "goal", "x theirs", "to limit", "goals")


def table(rows: Sequence[Row]) -> str:
    """The operations, one a line: ratios ours/theirs as medians, with the lowest and the highest."""
    return columns([HEAD, *(_line(row) for row in rows)])


def _line(row: Row) -> tuple[str, ...]:
    peak = row.peak
    cells = (
        row.name,
        _ratio(row.wall),
        _number(row.goals.wall),
        _ratio(row.cpu),
        _number(row.goals.cpu),
        f"{peak.median / MIB:.0f}" if peak else "-",
        f"{row.goals.peak // MIB}" if row.goals.peak else "",
        f"{row.memory.median:.2f}" if row.memory else "-",
        " ".join(f"{name} {ratio:.1f}" for name in row.limits if (ratio := row.to_limit(name)) is not None),
    )
    return (*cells, verdict(row))


def verdict(row: Row) -> str:
    """Whether the goals are met, and by how much other goals than the usual ones are."""
    if row.error:
        return f"ERROR: {row.error.splitlines()[0][:150]}"
    verdicts = row.verdicts()
    missed = [name for name, met in verdicts.items() if not met]
    words = ["" if not verdicts else f"MISSED {', '.join(missed)}" if missed else "met"]
    if row.over_python is not None:
        words.append(f"python + {row.over_python * 1000:.0f} ms CPU (goal {(row.goals.over_python or 0) * 1000:.0f})")
    if row.goals.size is not None and row.growth is not None:
        words.append(f"output x {row.growth:.3f} (goal {row.goals.size})")
    return "; ".join(word for word in words if word)


def inside_table(rows: Sequence[Inside]) -> str:
    """What the library does in a process that runs already."""
    lines = [("in-process", "ours", "theirs", "ratio", "goal", "against", "goals")]
    for row in rows:
        met = {True: "met", False: "MISSED", None: ""}[row.met]
        theirs = _time(row.theirs.median) if row.theirs else "-"
        ratio = f"{row.ratio:.3f}" if row.ratio is not None else "-"
        lines.append((row.name, _time(row.ours.median), theirs, ratio, _number(row.goal), row.against, met))
    return columns(lines)


def columns(lines: Sequence[Sequence[str]]) -> str:
    """Cells in columns, the first line over a rule; the last column may be as long as it is."""
    widths = [max(len(line[number]) for line in lines) for number in range(len(lines[0]) - 1)]
    texts = ["  ".join([*map(str.ljust, line, widths), line[-1]]).rstrip() for line in lines]
    return "\n".join([texts[0], "-" * (sum(widths) + 2 * len(widths) + len(lines[0][-1])), *texts[1:]])


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a report for programs, replacing an earlier one."""
    path.write_text(json.dumps(content, indent=1) + "\n")


def _ratio(value: Spread | None) -> str:
    return "-" if value is None else f"{value.median:.2f} ({value.low:.2f}-{value.high:.2f})"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:g}"


def _time(seconds: float) -> str:
    for unit, scale in (("s", 1.0), ("ms", 1e3), ("us", 1e6)):
        if seconds * scale >= 1:
            return f"{seconds * scale:.3g} {unit}"
    return f"{seconds * 1e9:.3g} ns"
