"""What was measured of an operation, and what follows from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from .operations import Goals
from .process import Run
from .stats import Spread, ratios, spread


@dataclass
class Row:
    """An operation's measurements; ``theirs`` is empty where there was no qemu-img.

    :ivar limits: seconds of what bounds it, by name.
    :ivar sizes: bytes of our output and of theirs.
    :ivar error: what went wrong, or differed; empty if nothing.
    :ivar python: processor time of an interpreter that does nothing, measured beside each run of ours, seconds.
    """

    name: str
    command: str
    goals: Goals
    ours: list[Run] = field(default_factory=list)
    theirs: list[Run] = field(default_factory=list)
    limits: dict[str, float] = field(default_factory=dict)
    sizes: tuple[int, int] | None = None
    error: str = ""
    python: list[float] = field(default_factory=list)

    def _ratio(self, quantity: str) -> Spread | None:
        if not self.ours or not self.theirs:
            return None
        pairs = zip(self.ours, self.theirs, strict=False)
        mine, other = zip(*((getattr(a, quantity), getattr(b, quantity)) for a, b in pairs), strict=True)
        return ratios(mine, other)

    @property
    def wall(self) -> Spread | None:
        """Ratio of the wall times."""
        return self._ratio("wall")

    @property
    def cpu(self) -> Spread | None:
        """Ratio of the processor times."""
        return self._ratio("cpu")

    @property
    def memory(self) -> Spread | None:
        """Ratio of the peaks of memory."""
        return self._ratio("peak")

    @property
    def peak(self) -> Spread | None:
        """Our peak of memory, bytes."""
        return spread([run.peak for run in self.ours]) if self.ours else None

    @property
    def growth(self) -> float | None:
        """Our output divided by theirs, in bytes."""
        return self.sizes[0] / self.sizes[1] if self.sizes and self.sizes[1] else None

    @property
    def over_python(self) -> float | None:
        """Seconds of processor time more than an interpreter that does nothing takes."""
        if not self.python:
            return None
        return median(run.cpu - python for run, python in zip(self.ours, self.python, strict=True))

    def to_limit(self, name: str) -> float | None:
        """How many times as long as what bounds it ours took."""
        if not self.ours or not self.limits[name]:
            return None
        return median(run.wall for run in self.ours) / self.limits[name]

    def verdicts(self) -> dict[str, bool]:
        """Which goals are met; those that could not be measured are left out."""
        measured = {
            "wall": self.wall and self.wall.median,
            "cpu": self.cpu and self.cpu.median,
            "peak": self.peak and self.peak.median,
            "size": self.growth,
            "over_python": self.over_python,
        }
        goals = self.goals.as_json()
        return {name: value <= goals[name] for name, value in measured.items() if name in goals and value is not None}

    def as_json(self) -> dict[str, Any]:
        """For the report."""
        return {
            "name": self.name,
            "command": self.command,
            "goals": self.goals.as_json(),
            "met": self.verdicts(),
            "ratios": {
                name: value.as_json()
                for name, value in (("wall", self.wall), ("cpu", self.cpu), ("memory", self.memory))
                if value is not None
            },
            "output_size_ratio": self.growth,
            "output_sizes": self.sizes,
            "cpu_over_python": self.over_python,
            "limits": {name: {"seconds": value, "ratio": self.to_limit(name)} for name, value in self.limits.items()},
            "runs": {"ours": _runs(self.ours), "theirs": _runs(self.theirs)},
            "error": self.error or None,
        }


def _runs(runs: Sequence[Run]) -> list[dict[str, Any]]:
    return [run.as_json() for run in runs]


@dataclass(frozen=True)
class Inside:
    """Something that the library does, against what a program does, which had to be started for it.

    :ivar ours: seconds for one.
    :ivar theirs: the same; ``None`` where there was no such program.
    :ivar goal: the most that ours may take, times theirs.
    """

    name: str
    ours: Spread
    theirs: Spread | None
    goal: float | None
    against: str

    @property
    def spread(self) -> Spread | None:
        """Ours divided by theirs; at most as low and as high as the figures allow."""
        if self.theirs is None:
            return None
        ours, theirs = self.ours, self.theirs
        return Spread(ours.median / theirs.median, ours.low / theirs.high, ours.high / theirs.low)

    @property
    def ratio(self) -> float | None:
        """The one in the middle."""
        return self.spread.median if self.spread else None

    @property
    def met(self) -> bool | None:
        """Whether the goal is met, if there is one and it could be measured."""
        return None if self.goal is None or self.ratio is None else self.ratio <= self.goal

    def as_json(self) -> dict[str, Any]:
        """For the report."""
        return {
            "name": self.name,
            "ours": self.ours.as_json(),
            "theirs": self.theirs.as_json() if self.theirs else None,
            "against": self.against,
            "ratio": self.ratio,
            "goal": self.goal,
            "met": self.met,
        }
