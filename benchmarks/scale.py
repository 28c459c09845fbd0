"""How time and memory grow with the size of a disk, its allocated clusters, the depth of its chain, its snapshots."""

from __future__ import annotations

import math
import shlex
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from . import fragmented, paths, report
from .process import RunFailed
from .runner import SIDES, Setting
from .stats import Growth, growth
from .workloads import GIB, KIB, MIB, NoSpace, make_chain

LINEAR = 1.15
"""A fitted exponent up to this is linear: fits are not exact."""
SPACE = 6 * GIB
"""Bytes that the files of all series take on disk at most, outputs included."""


@dataclass(frozen=True)
class Series:
    """A row of ever larger files and what is done with them.

    :ivar sizes: what grows, a number for each file.
    :ivar make: makes the file for a number; others may go beside it.
    :ivar commands: by name; ``{file}`` is the file, ``{out}`` the output. A command with ``{copy}`` changes a copy.
    """

    what: str
    sizes: Sequence[int]
    quick: Sequence[int]
    make: Callable[[Setting, Path, int], None]
    commands: dict[str, str]


@dataclass
class Curve:
    """What one program took for a series of files.

    :ivar cpu: seconds of processor time for each of ``sizes``, medians; shorter if a run failed.
    :ivar peak: bytes of memory.
    """

    series: str
    name: str
    side: str
    sizes: list[int]
    cpu: list[float] = field(default_factory=list)
    wall: list[float] = field(default_factory=list)
    peak: list[float] = field(default_factory=list)
    error: str = ""

    @property
    def time(self) -> Growth | None:
        """How processor time grows."""
        return growth(self.sizes[: len(self.cpu)], self.cpu) if len(self.cpu) > 2 else None

    @property
    def memory(self) -> Growth | None:
        """How memory grows."""
        return growth(self.sizes[: len(self.peak)], self.peak) if len(self.peak) > 2 else None

    def as_json(self) -> dict[str, Any]:
        """For the report."""
        return {
            **{name: getattr(self, name) for name in ("series", "name", "side", "sizes", "cpu", "wall", "peak")},
            "time_growth": self.time.as_json() if self.time else None,
            "memory_growth": self.memory.as_json() if self.memory else None,
            "error": self.error or None,
        }


def _of_size(setting: Setting, path: Path, size: int) -> None:
    """A disk of so many bytes with ten clusters in it."""
    guests = np.unique(np.linspace(0, size // (64 * KIB) - 1, 10).astype(np.int64))
    fragmented.write(path, size, 64 * KIB, guests, shuffle=False)


def _of_clusters(setting: Setting, path: Path, count: int) -> None:
    """A disk with so many clusters, every other one allocated, in any order; the clusters are holes of the file."""
    guests = np.arange(count, dtype=np.int64) * 2
    fragmented.write(path, count * 2 * 64 * KIB, 64 * KIB, guests, data=False)


def _of_layers(setting: Setting, path: Path, layers: int) -> None:
    make_chain(path, 256 * MIB, layers, path.stem + "-layer")


def _of_snapshots(setting: Setting, path: Path, count: int) -> None:
    """A disk with so many snapshots of 2,000 clusters."""
    fragmented.write(path, 256 * MIB, 64 * KIB, np.arange(0, 4000, 2, dtype=np.int64))
    from diskwright import create_snapshot
    from diskwright import open as open_image

    with open_image(path, "qcow2", writable=True) as image:
        for number in range(count):
            create_snapshot(image, f"snapshot-{number}")


IMAGE = {
    "info": "info --output=json {file}",
    "check": "check -f qcow2 {file}",
    "map": "map -f qcow2 --output=json {file}",
    "-> raw": "convert -f qcow2 -O raw {file} {out}",
    "-> qcow2": "convert -f qcow2 -O qcow2 {file} {out}",
    "measure": "measure -f qcow2 -O qcow2 --output=json {file}",
    "snapshot -c": "snapshot -c new {copy}",
}
SERIES = {
    series.what: series
    for series in (
        Series(
            "bytes of disk",
            [GIB << shift for shift in (0, 3, 6, 8, 10, 12, 14)],
            [GIB, 8 * GIB, 64 * GIB, 512 * GIB],
            _of_size,
            IMAGE,
        ),
        Series(
            "allocated clusters",
            [10_000, 30_000, 100_000, 300_000, 1_000_000],
            [1_000, 4_000, 16_000, 64_000],
            _of_clusters,
            IMAGE,
        ),
        Series(
            "layers of the chain",
            [1, 4, 16, 64, 128, 200],
            [1, 4, 16, 32],
            _of_layers,
            {
                "info --backing-chain": "info --backing-chain --output=json {file}",
                "map": IMAGE["map"],
                "-> raw": IMAGE["-> raw"],
                "measure": IMAGE["measure"],
            },
        ),
        Series(
            "snapshots",
            [1, 10, 100, 300, 1000],
            [1, 10, 50, 100],
            _of_snapshots,
            {
                "info": IMAGE["info"],
                "check": IMAGE["check"],
                "snapshot -l": "snapshot -l {file}",
                "snapshot -c": IMAGE["snapshot -c"],
                "snapshot -d": "snapshot -d snapshot-0 {copy}",
            },
        ),
    )
}


def require_space(setting: Setting, quick: bool) -> None:
    """See that there is room for the files of all series.

    :raises NoSpace: there is not.
    """
    needed = SPACE // (6 if quick else 1)
    free = paths.free_space(setting.scratch)
    if free < needed:
        raise NoSpace(f"{needed / GIB:.1f} GiB are needed in {setting.scratch.parent}, {free / GIB:.1f} are free")


def measure(setting: Setting, name: str, quick: bool, say: Callable[[str], None]) -> list[Curve]:
    """Measure a series with both programs; their runs alternate.

    :returns: a curve for each command and program.
    """
    series = SERIES[name]
    sizes = list(series.quick if quick else series.sizes)
    curves = {
        (command, side): Curve(name, command, side, sizes)
        for command in series.commands
        for side in SIDES
        if side in setting.programs
    }
    directory = setting.scratch / "series"
    for size in sizes:
        directory.mkdir()
        try:
            file = directory / "image.qcow2"
            say(f"{name}: making {size:,}")
            series.make(setting, file, size)
            for command, template in series.commands.items():
                say(f"{name}: {command}, {size:,}")
                both = [curves[command, side] for side in SIDES if (command, side) in curves]
                _measure_one(setting, template, file, [curve for curve in both if not curve.error])
        finally:
            shutil.rmtree(directory)
    return list(curves.values())


def _measure_one(setting: Setting, template: str, file: Path, curves: Sequence[Curve]) -> None:
    out, copy = file.with_name("out"), file.with_name("copy.qcow2")
    places = {"{file}": str(file), "{out}": str(out), "{copy}": str(copy)}
    words = [places.get(word, word) for word in shlex.split(template)]
    runs: dict[str, list[Any]] = {curve.side: [] for curve in curves}
    for number in range(-1, setting.runs):
        for curve in curves if number % 2 else curves[::-1]:  # who runs first changes from pair to pair
            paths.remove(out)
            if "{copy}" in template:
                paths.copy(file, copy)
                paths.settle([copy])
            try:
                run = setting.launcher.run([setting.programs[curve.side], *words])
            except RunFailed as error:
                curve.error = str(error)
                continue
            paths.settle(path for path in (out, copy) if path.exists())  # who is next is not to wait for that
            if number >= 0:  # the first pair warms up
                runs[curve.side].append(run)
    for curve in curves:
        if not curve.error:
            for quantity in ("cpu", "wall", "peak"):
                getattr(curve, quantity).append(median(getattr(run, quantity) for run in runs[curve.side]))
    paths.remove(out)
    paths.remove(copy)


def table(curves: Sequence[Curve]) -> str:
    """A line for each curve: CPU time and memory at both ends, the fitted exponents, and what they say."""
    head = ("grows with", "operation", "program", "from", "to", "CPU s", "exponent", "peak MiB", "exponent", "")
    lines: list[tuple[str, ...]] = [head]
    for curve in curves:
        if not curve.cpu:
            lines.append((curve.series, curve.name, curve.side, *[""] * 6, f"ERROR: {curve.error[:120]}"))
            continue
        lines.append(
            (
                *(curve.series, curve.name, curve.side),
                *(f"{curve.sizes[0]:.4g}", f"{curve.sizes[len(curve.cpu) - 1]:.4g}"),
                *(f"{curve.cpu[0]:.3f} -> {curve.cpu[-1]:.3f}", _exponent(curve.time)),
                *(f"{curve.peak[0] / MIB:.0f} -> {curve.peak[-1] / MIB:.0f}", _exponent(curve.memory)),
                verdict(curve),
            )
        )
    return report.columns(lines)


def verdict(curve: Curve) -> str:
    """Whether a program's time and memory grow no faster than what they are measured by."""
    if curve.error:
        return f"ERROR: {curve.error[:120]}"
    quantities = (("time", curve.time, curve.cpu), ("memory", curve.memory, curve.peak))
    worse = [name for name, fit, costs in quantities if fit is not None and _more_than_linear(fit, curve.sizes, costs)]
    return f"MORE THAN LINEAR: {', '.join(worse)}" if worse else "linear or better"


def _more_than_linear(fit: Growth, sizes: Sequence[int], costs: Sequence[float]) -> bool:
    """The fit says so and so do the largest two: with little growth over a fixed cost, noise makes any exponent."""
    step = math.log(costs[-1] / costs[-2]) / math.log(sizes[len(costs) - 1] / sizes[len(costs) - 2])
    return fit.exponent > LINEAR and step > LINEAR


def _exponent(fit: Growth | None) -> str:
    return "" if fit is None else f"{fit.exponent:.2f}"
