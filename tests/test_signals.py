"""Signals: some ask how far an operation has come, others end it with the exit code that tells of them."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

MIB = 1 << 20


@contextmanager
def slow_convert(folder: Path, *options: str) -> Iterator[subprocess.Popen[bytes]]:
    """A conversion that takes many seconds, once it is under way."""
    source, target = folder / "source", folder / "target"
    source.write_bytes(os.urandom(64 * MIB))
    command = [sys.executable, "-m", "diskwright", "convert", "-r", "2M", *options, "-f", "raw", "-O", "raw"]
    process = subprocess.Popen([*command, source, target], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        until = time.monotonic() + 30
        while len(list(folder.iterdir())) < 2 and time.monotonic() < until:
            time.sleep(0.02)
        time.sleep(0.5)
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("name", ["SIGUSR1", "SIGINFO"])
def test_progress_on_request(tmp_path: Path, name: str) -> None:
    if not hasattr(signal, name):
        pytest.skip(f"this system has no {name}")
    with slow_convert(tmp_path) as process:
        process.send_signal(getattr(signal, name))
        assert process.stderr is not None
        line = process.stderr.readline()
        assert re.fullmatch(rb"    \(\d+\.\d\d/100%\)\n", line)
        assert process.poll() is None


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("options", [[], ["-p"], ["--progress=json"]])
def test_an_end_on_request(tmp_path: Path, number: signal.Signals, options: list[str]) -> None:
    with slow_convert(tmp_path, *options) as process:
        process.send_signal(number)
        _, err = process.communicate(timeout=10)
    assert process.returncode == 128 + number
    assert b"Traceback" not in err
    assert options == ["--progress=json"] or err == b""
    assert [entry.name for entry in tmp_path.iterdir()] == ["source"]


def test_commands_without_progress_are_not_disturbed() -> None:
    script = (
        "import os, signal, diskwright.cli as cli\n"
        "cli.main = lambda program: os.kill(os.getpid(), signal.SIGUSR1) or 7\n"
        "cli.entry_point()\n"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 7
