"""Every system call that changes a file fails once, and as on a full disk from then on, in each changing subcommand.

The command ends with one line that has the system's reason, nothing is lost, and nothing is left over.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from diskwright.testing.content import Seen, look, require_before_or_after, require_sound
from diskwright.testing.faults import Call, Folder, Kind, SystemCalls, fail_nth
from diskwright.testing.secret import address, knowing_context, real_check

DISK, BASE = "disk.qcow2", "base.qcow2"
OPTIONAL = frozenset({Kind.ZERO, Kind.UNLINK})
"""What a command may do without: then it does the same by other means, or cannot do better."""


class Injection:
    """A command line and what it does if nothing fails."""

    def __init__(self, modification: Any, disks: Callable[..., Folder], inside: Callable[..., Any], folder: Path):
        self.modification = modification
        self.inside = inside
        self.folder = folder
        self.start = disks(modification.kind, modification.snapshots, modification.bitmap)
        self.restore()
        self.command = modification.command(folder)
        self.names = sorted(self.start.names)
        self.before = self.look()
        with SystemCalls(folder) as calls:
            inside(*self.command, code=0)
        self.log: list[Call] = calls.log
        self.after = self.look()
        self.names_after = sorted(path.name for path in folder.iterdir())

    def restore(self) -> None:
        """Put the files back as they were."""
        self.start.write(self.folder)

    def look(self) -> dict[str, Seen]:
        """What is to be seen of the images."""
        return {name: self.look_at(name) for name in (DISK, BASE)}

    def look_at(self, name: str) -> Seen:
        """What is to be seen of one image."""
        return look(address(self.folder / name), "qcow2", knowing_context())

    def fail(self, number: int, *, lasting: bool) -> None:
        """Let the call of that number fail, counted from 1."""
        kind = self.log[number - 1].kind
        code = errno.EIO if kind is Kind.FLUSH else errno.ENOSPC
        kinds = (Kind.FLUSH,) if kind is Kind.FLUSH else (Kind.WRITE, Kind.ZERO, Kind.TRUNCATE, Kind.CREATE, kind)
        place = sum(call.kind in kinds for call in self.log[:number])
        self.restore()
        fault, has_come = fail_nth(place, code, kinds, lasting=lasting)
        with SystemCalls(self.folder, fault):
            result = self.inside(*self.command)
        what = f"{kind.value} {number} of {len(self.log)}, lasting={lasting}: {result}"
        assert has_come(), what
        left = sorted(path.name for path in self.folder.iterdir())
        if result.code == 0:
            assert kind in OPTIONAL, f"the failure is swallowed: {what}"
            assert self.look() == self.after, what
            assert left == self.names_after, what
            return
        assert result.code == 1, what
        lines = result.err.splitlines()
        assert len(lines) == 1, what
        assert lines[0].startswith("diskwright: "), what
        assert os.strerror(code) in lines[0], what
        self._require_unharmed(left, what)

    def _require_unharmed(self, left: list[str], what: str) -> None:
        assert left == self.names, f"files are left over or missing: {what}"
        for name in (DISK, BASE):
            try:
                require_sound(address(self.folder / name), "qcow2", knowing_context())
                got = self.look_at(name)
                require_before_or_after(got, self.before[name], self.after[name], atomic=self.modification.atomic)
            except Exception as error:
                pytest.fail(f"{name}: {type(error).__name__}: {error}; after {what}")


@pytest.fixture
def injection(modification: Any, disks: Callable[..., Folder], inside: Callable[..., Any], tmp_path: Path) -> Injection:
    """The command of a modification, which has been run once."""
    return Injection(modification, disks, inside, tmp_path / "disk")


def test_some_calls_fail(injection: Injection, qemu_img: Callable[..., Any]) -> None:
    """Calls at all stages of the command, once or for good; the real check agrees at the end."""
    total = len(injection.log)
    step = max(1, total // 16)
    for index, number in enumerate(range(1, total + 1, step)):
        injection.fail(number, lasting=index % 2 == 0)
    injection.fail(total, lasting=False)
    result = real_check(qemu_img, injection.folder / DISK)
    assert result.code in (0, 3), result


@pytest.mark.slow
@pytest.mark.parametrize("lasting", [False, True], ids=["once", "lasting"])
def test_every_call_fails(*, injection: Injection, qemu_img: Callable[..., Any], lasting: bool) -> None:
    """Each call, and the real check agrees each time."""
    for number in range(1, len(injection.log) + 1):
        injection.fail(number, lasting=lasting)
        for name in (DISK, BASE):
            result = real_check(qemu_img, injection.folder / name)
            assert result.code in (0, 3), (number, result)


def test_short_writes(injection: Injection) -> None:
    """The system writes half of what it is given, again and again: nobody notices."""

    shortened = 0

    def half(call: Call) -> int | None:
        nonlocal shortened
        if call.kind is not Kind.WRITE:
            return None
        shortened += 1
        return max(1, len(call.data) // 2)

    injection.restore()
    with SystemCalls(injection.folder, half):
        injection.inside(*injection.command, code=0)
    assert shortened
    assert injection.look() == injection.after
    assert sorted(path.name for path in injection.folder.iterdir()) == injection.names_after
