"""Running one command line by the real qemu-img and by diskwright, each on files of its own, to compare them."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from .oracle import find_qemu_img, require_compatible, unless_busy

TIMEOUT = 20
"""Seconds."""

NAME = "qemu-img"
"""The name that both answer with."""

_SERVER = """
import gc, json, os, sys
import diskwright.cli
from importlib import import_module
for name in diskwright.cli.COMMANDS:
    import_module(f"diskwright.commands.{name}")
from diskwright.context import Context
context = Context()
for registry in (context.formats, context.protocols, context.filters):
    registry.load_all()
gc.freeze()  # what all children share is not looked through, and so not copied, in each of them
requests, answers = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
for line in requests:
    request = json.loads(line)
    child = os.fork()
    if not child:
        os.chdir(request["folder"])
        os.environ.update(request["environment"])
        for number, name in enumerate((os.devnull, request["out"], request["err"])):
            os.dup2(os.open(name, os.O_CREAT | os.O_RDWR | os.O_TRUNC), number)
        code = diskwright.cli.main(request["arguments"], "qemu-img")
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # without taking apart all that is loaded
    _, status = os.waitpid(child, 0)
    print(os.waitstatus_to_exitcode(status), file=answers, flush=True)
"""


@dataclass(frozen=True)
class Ended:
    """How a run ended.

    :ivar code: exit code, negative for the signal that ended it.
    """

    code: int
    out: str
    err: str


def words(line: str | Sequence[str]) -> list[str]:
    """The arguments of a command line, written as for a shell."""
    return shlex.split(line) if isinstance(line, str) else list(line)


def real(line: str | Sequence[str], folder: Path, environment: Mapping[str, str] | None = None) -> Ended:
    """Run the real tool in a folder; the calling test is skipped where there is none."""
    require_compatible()
    program = str(find_qemu_img())
    done = unless_busy(
        lambda: subprocess.run(
            [program, *words(line)],
            cwd=folder,
            env={**os.environ, **(environment or {})},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=TIMEOUT,
            check=False,
        ),
        lambda done: done.stderr.decode(errors="surrogateescape"),
    )
    out, err = done.stdout.decode(errors="surrogateescape"), done.stderr.decode(errors="surrogateescape")
    return Ended(done.returncode, out.replace(program, NAME), err.replace(program, NAME))


class Ours:
    """Runs diskwright many times by forks of one process that has all drivers loaded: milliseconds each."""

    def __init__(self, scratch: Path) -> None:
        self._scratch = scratch
        self._server = subprocess.Popen(
            [sys.executable, "-c", _SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __call__(self, line: str | Sequence[str], folder: Path, environment: Mapping[str, str] | None = None) -> Ended:
        """Run it in a folder."""
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        out, err = self._scratch / "out", self._scratch / "err"
        request = {
            "arguments": words(line),
            "folder": str(folder),
            "environment": dict(environment or {}),
            "out": str(out),
            "err": str(err),
        }
        self._server.stdin.write(json.dumps(request) + "\n")
        self._server.stdin.flush()
        code = int(self._server.stdout.readline())
        texts = [path.read_bytes().decode(errors="surrogateescape") for path in (out, err)]
        return Ended(code, *texts)

    def close(self) -> None:
        """End the process."""
        self._server.communicate(timeout=TIMEOUT)


@contextmanager
def ours(scratch: Path) -> Iterator[Ours]:
    """An :class:`Ours` with a folder for what it prints."""
    runner = Ours(scratch)
    try:
        yield runner
    finally:
        runner.close()


class Pair:
    """Two folders with the same images, one for each program.

    :ivar folders: that of the real one, and ours.
    """

    def __init__(self, samples: Path, scratch: Path, runner: Ours) -> None:
        self.samples, self.scratch, self.runner = samples, scratch, runner
        self.expected = _state(samples)
        self.folders = [scratch / "real", scratch / "ours"]

    def run(self, line: str | Sequence[str]) -> tuple[Ended, Ended]:
        """How both end. What former runs have changed is made up for before."""
        for folder in self.folders:
            self.restore(folder)
        theirs, mine = self.folders
        return real(line, theirs), self.runner(line, mine)

    def changed(self, name: str) -> bool:
        """Whether a file of that name is not as it was at first, in our folder."""
        return _state(self.folders[1]).get(name) != self.expected.get(name)

    def restore(self, folder: Path) -> None:
        """Copy again what has changed, and remove what is new."""
        folder.mkdir(exist_ok=True)
        (folder / "dir").mkdir(exist_ok=True)
        found = _state(folder)
        for name in found.keys() - self.expected.keys():
            (folder / name).unlink()
        for name, state in self.expected.items():
            if found.get(name) != state:
                shutil.copy2(self.samples / name, folder / name)


def _state(folder: Path) -> dict[str, tuple[int, int]]:
    return {path.name: (path.stat().st_size, path.stat().st_mtime_ns) for path in folder.iterdir() if path.is_file()}


def sampled(lines: Iterable[str]) -> list[Any]:
    """Command lines as parameters of a test: each third is always run, the others with the slow tests."""
    return [
        line if number % 3 == 0 else pytest.param(line, marks=pytest.mark.slow) for number, line in enumerate(lines)
    ]
