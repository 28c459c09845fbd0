"""Runs both programs alternately on the same files and compares what they make."""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from . import limits, paths, verify
from .operations import Operation, fill
from .process import Launcher, Run, RunFailed
from .results import Row
from .workloads import SECRET, WORKLOADS, Workshop

SIDES = ("ours", "theirs")


@dataclass
class Setting:
    """What all measurements share.

    :ivar programs: ``ours``, and ``theirs`` if there is one.
    :ivar runs: how often each program is measured; it runs once more before, to warm up.
    :ivar cold: whether the files that are read are taken out of the page cache before each run.
    :ivar limit_runs: how often a limit is measured.
    """

    launcher: Launcher
    shop: Workshop
    scratch: Path
    programs: dict[str, str]
    runs: int = 5
    cold: bool = False
    limit_runs: int = 3

    @property
    def judge(self) -> str:
        """The program that says whether contents are equal."""
        return self.programs.get("theirs", self.programs["ours"])


class Side:
    """One program at work on an operation, with files of its own."""

    def __init__(self, setting: Setting, operation: Operation, name: str) -> None:
        self._setting = setting
        self._operation = operation
        self._directory = setting.scratch / name
        self._program = setting.programs[name]
        self.printed = self._directory / "printed"
        self.out = self._directory / "out"
        self.result = fill(operation.result, self.place)
        self._made = 0

    def place(self, name: str) -> str:
        """The file that a name in braces stands for."""
        if name == "out":
            return str(self.out)
        if name == "secret":
            return SECRET
        if name in self._operation.changes:
            return str(self._directory / WORKLOADS[name].file)
        return str(self._setting.shop.path(name))

    def run(self) -> Run:
        """Run the program once, from the same state as each time."""
        self.clean()
        self._directory.mkdir(parents=True)
        for name in self._operation.changes:
            paths.copy(self._setting.shop.path(name), Path(self.place(name)))
        inputs = [Path(self.place(name)) for name in self._operation.workloads]
        paths.settle(inputs)
        for path in inputs:
            if self._setting.cold:
                paths.forget(path)
        words = [fill(word, self.place) for word in shlex.split(self._operation.command)]
        paths.level_memory(self._directory, self._made)
        taken = self._setting.launcher.run([self._program, *words])
        paths.settle(self._directory.iterdir())  # who runs next is not to wait for what this one wrote
        self._made = sum(map(paths.allocated, self._directory.iterdir()))
        if self._operation.prints:
            shutil.copyfile(self._setting.launcher.output_file, self.printed)
        return taken

    def clean(self) -> None:
        """Remove what it made."""
        shutil.rmtree(self._directory, ignore_errors=True)


def measure(setting: Setting, operation: Operation, say: Callable[[str], None]) -> Row:
    """Measure one operation.

    :param say: told of each pair of runs.
    :returns: with the text of the error where something went wrong or differed.
    """
    row = Row(operation.name, operation.command, operation.goals)
    for name in operation.workloads:
        setting.shop.path(name)
    with _sides(setting, operation) as sides:
        try:
            for number in range(-1, setting.runs):
                say(
                    f"{operation.name}: run {number + 1} of {setting.runs}"
                    if number >= 0
                    else f"{operation.name}: warm-up"
                )
                order = SIDES if number % 2 else SIDES[::-1]  # who runs first changes from pair to pair
                taken = {name: sides[name].run() for name in order if name in sides}
                _compare(setting, operation, sides, first=number < 0)
                row.sizes = _sizes(sides)
                for side in sides.values():
                    side.clean()
                if number >= 0:
                    if operation.goals.over_python is not None:
                        row.python.append(setting.launcher.run([sys.executable, "-c", "pass"]).cpu)
                    row.ours.append(taken["ours"])
                    row.theirs.extend([taken["theirs"]] if "theirs" in taken else [])
        except (RunFailed, verify.Unequal) as error:
            row.error = str(error)
    say(f"{operation.name}: limits")
    for limit in operation.limits if setting.limit_runs else ():
        _add_limit(setting, row, limit)
    return row


@contextmanager
def _sides(setting: Setting, operation: Operation) -> Iterator[dict[str, Side]]:
    sides = {name: Side(setting, operation, name) for name in SIDES if name in setting.programs}
    try:
        yield sides
    finally:
        for side in sides.values():
            side.clean()


def _compare(setting: Setting, operation: Operation, sides: dict[str, Side], *, first: bool) -> None:
    """Compare what both made with each other after each pair of runs; after the first with what it must be like."""
    ours, theirs = sides["ours"], sides.get("theirs")
    if operation.prints and theirs:
        verify.same_prints(operation.prints, ours.printed, theirs.printed)
    if not operation.result:
        return
    if theirs:
        verify.same_disks(setting.judge, ours.result, theirs.result)
    if operation.sound:
        verify.sound(setting.judge, ours.result)
    if operation.like and (first or not theirs):
        verify.same_disks(setting.judge, ours.result, fill(operation.like, ours.place))


def _sizes(sides: dict[str, Side]) -> tuple[int, int] | None:
    files = [side.out for side in sides.values() if side.out.exists()]
    return (paths.allocated(files[0]), paths.allocated(files[1])) if len(files) == 2 else None


def _add_limit(setting: Setting, row: Row, limit: str) -> None:
    name = limit.split(maxsplit=1)[0]
    filled = " ".join(shlex.quote(fill(word, lambda file: str(setting.shop.path(file)))) for word in limit.split())
    try:
        row.limits[name] = median(
            limits.measure(setting.launcher, filled, setting.scratch) for _ in range(setting.limit_runs)
        )
    except RunFailed as error:
        row.error = row.error or f"limit {name}: {error}"
