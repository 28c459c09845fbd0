"""The real qemu-img, to compare with."""

from __future__ import annotations

import os
import shutil
import subprocess
import time

import pytest

TIMEOUT = 120
"""Seconds."""
ATTEMPTS = 25
BUSY = "Unable to get accurate CPU usage"
"""What it says when it creates a LUKS volume and the machine has too much else to do to measure its speed."""


def find_qemu_img() -> str | None:
    """Path of the real qemu-img: the environment variable ``DISKWRIGHT_QEMU_IMG``, or what ``PATH`` has."""
    return shutil.which(os.environ.get("DISKWRIGHT_QEMU_IMG") or "qemu-img")


def qemu_img(*arguments: object, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run the real qemu-img; the calling test is skipped where there is none.

    :param check: fail the test if the exit status is not 0.
    """
    program = find_qemu_img()
    if program is None:
        pytest.skip("qemu-img is not installed")
    for attempt in range(ATTEMPTS):
        time.sleep(0.02 * attempt)
        done = subprocess.run(
            [program, *map(str, arguments)], capture_output=True, text=True, timeout=TIMEOUT, check=False
        )
        if BUSY not in done.stderr:
            break
    if check and done.returncode:
        pytest.fail(f"{' '.join(map(str, done.args))}: exit {done.returncode}\n{done.stdout}{done.stderr}")
    return done
