"""The real qemu-img, to compare with."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TypeVar

import pytest

from .. import COMPATIBLE_VERSION

T = TypeVar("T")

TIMEOUT = 120
"""Seconds."""
_ATTEMPTS = 25
_BUSY = "Unable to get accurate CPU usage"
"""What it says when it creates a LUKS volume and the machine has too much else to do to measure its speed."""


def find_qemu_img() -> str | None:
    """Path of the real qemu-img: the environment variable ``DISKWRIGHT_QEMU_IMG``, or what ``PATH`` has."""
    return shutil.which(os.environ.get("DISKWRIGHT_QEMU_IMG") or "qemu-img")


def find_qemu_io() -> str:
    """Path of the real qemu-io: what is beside the chosen qemu-img, or what ``PATH`` has."""
    chosen = os.environ.get("DISKWRIGHT_QEMU_IMG")
    return str(Path(chosen).with_name("qemu-io")) if chosen else shutil.which("qemu-io") or "qemu-io"


@cache
def qemu_img_version() -> int:
    """The major version of the real qemu-img, 0 if there is none."""
    program = find_qemu_img()
    if program is None:
        return 0
    told = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=TIMEOUT, check=False).stdout
    found = re.match(r"qemu-img version (\d+)", told)
    return int(found[1]) if found else 0


def require_compatible() -> None:
    """Skip the calling test unless the real qemu-img is of the versions whose words and details are followed."""
    wanted = int(COMPATIBLE_VERSION.split(".")[0])
    if qemu_img_version() < wanted:
        pytest.skip(f"this qemu-img is older than version {wanted}, or not installed")


def unless_busy(run: Callable[[], T], errors: Callable[[T], str]) -> T:
    """Run the real program, again and again while the machine is too busy for it.

    :param errors: what a run has written to standard error.
    """
    for attempt in range(_ATTEMPTS):
        time.sleep(0.02 * attempt)
        done = run()
        if _BUSY not in errors(done):
            break
    return done


def qemu_img(*arguments: object, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run the real qemu-img; the calling test is skipped where there is none.

    :param check: fail the test if the exit status is not 0.
    """
    program = find_qemu_img()
    if program is None:
        pytest.skip("qemu-img is not installed")
    command = [program, *map(str, arguments)]
    done = unless_busy(
        lambda: subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=False),
        lambda done: done.stderr,
    )
    if check and done.returncode:
        pytest.fail(f"{' '.join(map(str, done.args))}: exit {done.returncode}\n{done.stdout}{done.stderr}")
    return done
