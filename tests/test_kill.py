"""Each changing subcommand is killed at random moments: what it works on stays whole."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from diskwright.testing.content import Seen, look, require_before_or_after, require_sound
from diskwright.testing.faults import Folder
from diskwright.testing.secret import address, knowing_context, real_check

DISK, BASE = "disk.qcow2", "base.qcow2"


class Victim:
    """A command line, what it does if it lives, and how long that takes."""

    def __init__(self, modification: Any, disks: Callable[..., Folder], folder: Path) -> None:
        self.modification = modification
        self.folder = folder
        self.start = disks(modification.kind, modification.snapshots, modification.bitmap)
        self.start.write(folder)
        self.command = [sys.executable, "-m", "diskwright", *modification.command(folder)]
        self.before = self.look()
        began = time.monotonic()
        process = self.launch()
        self.writing = self.wait_for_change(process, began)
        assert process.wait(60) == 0
        self.duration = time.monotonic() - began
        self.after = self.look()

    def look(self) -> dict[str, Seen]:
        """What is to be seen of the images."""
        return {name: look(address(self.folder / name), "qcow2", knowing_context()) for name in (DISK, BASE)}

    def launch(self) -> subprocess.Popen[bytes]:
        """Start the command."""
        return subprocess.Popen(
            self.command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

    def state(self) -> list[tuple[str, int, int]]:
        """What the system knows of the files; it changes with each write."""
        found = []
        for entry in os.scandir(self.folder):
            try:
                status = entry.stat()
            except FileNotFoundError:
                continue
            found.append((entry.name, status.st_mtime_ns, status.st_size))
        return sorted(found)

    def wait_for_change(self, process: subprocess.Popen[bytes], began: float) -> float:
        """Wait until the command has written something, or has ended; seconds since ``began``."""
        first = self.state()
        while self.state() == first and process.poll() is None:
            time.sleep(0.0002)
        return time.monotonic() - began

    def kill(self, chance: random.Random) -> bool:
        """Start the command and kill it, mostly soon after its first write; whether it was still running."""
        self.start.write(self.folder)
        began = time.monotonic()
        process = self.launch()
        if chance.random() < 0.75:
            self.wait_for_change(process, began)
            time.sleep(chance.random() ** 2 * max(0.002, self.duration - self.writing))
        else:
            time.sleep(chance.random() * self.duration)
        process.send_signal(signal.SIGKILL)
        return process.wait(60) == -signal.SIGKILL

    def inspect(self, qemu_img: Callable[..., Any]) -> None:
        """The images are there, the checks find leaks at most, and the content is as before or after."""
        for name in (DISK, BASE):
            path = self.folder / name
            result = real_check(qemu_img, path)
            data = path.read_bytes()
            if result.code == 2 and data[7] > 2 and data[79] & 1:  # the dirty bit
                real_check(qemu_img, path, "-q", "-r", "all")
                result = real_check(qemu_img, path)
            assert result.code in (0, 3), (name, result)
            require_sound(address(path), "qcow2", knowing_context())
            got = look(address(path), "qcow2", knowing_context())
            require_before_or_after(got, self.before[name], self.after[name], atomic=self.modification.atomic)
        for name in self.start.names:
            assert (self.folder / name).exists(), f"{name} is gone"


@pytest.fixture
def victim(modification: Any, disks: Callable[..., Folder], tmp_path: Path) -> Victim:
    """The command of a modification, which has been run once."""
    return Victim(modification, disks, tmp_path / "disk")


def run(victim: Victim, times: int, seed: int, qemu_img: Callable[..., Any]) -> None:
    """Kill the command again and again."""
    chance = random.Random(seed)
    for _ in range(times):
        victim.kill(chance)
        victim.inspect(qemu_img)


def test_killed(victim: Victim, qemu_img: Callable[..., Any]) -> None:
    """Killed twice."""
    run(victim, 2, 1, qemu_img)


@pytest.mark.slow
def test_killed_often(victim: Victim, qemu_img: Callable[..., Any]) -> None:
    """Killed many times; some of them while it was at work."""
    chance = random.Random(2)
    hit = 0
    for _ in range(25):
        hit += victim.kill(chance)
        victim.inspect(qemu_img)
    assert hit, "the command was never killed in time"
