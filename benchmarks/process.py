"""Runs programs, one at a time, and tells what they took."""

from __future__ import annotations

import marshal
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, Self

TIMEOUT = 3600
"""Seconds after which a program is ended and counts as failed."""


class RunFailed(Exception):
    """A program did not do what it was to do."""


@dataclass(frozen=True)
class Run:
    """What one run of a program took.

    :ivar wall: seconds from before it is started to after its end.
    :ivar user: seconds of processor time in the program, all its threads together.
    :ivar system: seconds of processor time in the kernel.
    :ivar peak: most memory that it had at once, bytes.
    """

    wall: float
    user: float
    system: float
    peak: int

    @property
    def cpu(self) -> float:
        """Seconds of processor time."""
        return self.user + self.system

    def as_json(self) -> dict[str, Any]:
        """For the report."""
        return {**asdict(self), "cpu": self.cpu}


class Launcher:
    """A small process (:mod:`benchmarks.launch`) that starts the programs and waits for them.

    :param directory: where the output of the programs goes.
    :param address_space: most bytes of addresses that each program may have, ``None``: as this process.
    """

    def __init__(self, directory: Path, address_space: int | None = None) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._stdout = directory / "stdout"
        self._stderr = directory / "stderr"
        script = str(Path(__file__).with_name("launch.py"))
        limit = [] if address_space is None else [str(address_space)]
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", script, *limit], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def run(self, arguments: Sequence[str], codes: Sequence[int] = (0,), timeout: int = TIMEOUT) -> Run:
        """Run a program to its end.

        :param codes: the exit codes that are no failure.
        :raises RunFailed: it could not be started, or ended in another way.
        """
        requests, answers = self._pipes
        marshal.dump((list(arguments), str(self._stdout), str(self._stderr), timeout), requests)
        requests.flush()
        answer: Any = marshal.load(answers)  # noqa: S302  from our own child
        if isinstance(answer, str):
            raise RunFailed(f"{arguments[0]}: {answer}")
        wall, user, system, peak, status = answer
        code = os.waitstatus_to_exitcode(status)
        if code not in codes:
            said = self._stderr.read_text(errors="replace")[-600:] or self.output()[-600:]
            raise RunFailed(f"exit code {code} of {' '.join(arguments)}\n{said}".rstrip())
        return Run(wall, user, system, peak << 10)

    @property
    def _pipes(self) -> tuple[IO[bytes], IO[bytes]]:
        requests, answers = self._process.stdin, self._process.stdout
        if requests is None or answers is None:
            raise AssertionError("both were asked for")
        return requests, answers

    def output(self) -> str:
        """What the last program wrote to standard output."""
        return self._stdout.read_text(errors="replace")

    @property
    def output_file(self) -> Path:
        """The file that has it."""
        return self._stdout

    def close(self) -> None:
        """End the process, and with it what it may be running."""
        self._process.terminate()
        for pipe in self._pipes:
            pipe.close()
        self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def module_command(module: str) -> list[str]:
    """The command that calls ``main`` of a module of ours with the arguments behind it, from any working directory."""
    root = str(Path(__file__).parent.parent)
    code = f"import sys; sys.path.insert(0, {root!r}); from {module} import main; main(sys.argv[1:])"
    return [sys.executable, "-c", code]
