"""Compares what the two programs made: nothing counts that is not equal."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from .workloads import SECRET


class Unequal(Exception):
    """Contents differ that must not."""


def same_disks(program: str, first: str, second: str) -> None:
    """See that two disks have the same content.

    :param program: the program that compares, the real qemu-img if there is one.
    :param first: a disk, in the syntax of ``--image-opts``.
    :param second: the same.
    :raises Unequal: they have not.
    """
    _demand(program, "compare", "--object", SECRET, "--image-opts", first, second)


def sound(program: str, disk: str) -> None:
    """See that ``check`` finds nothing wrong with an image.

    :raises Unequal: it does.
    """
    _demand(program, "check", "--object", SECRET, "--image-opts", disk)


def same_prints(kind: str, ours: Path, theirs: Path) -> None:
    """See that two outputs say the same.

    :param kind: ``json`` or ``text``.
    :raises Unequal: they do not.
    """
    first, second = ours.read_bytes(), theirs.read_bytes()
    if first == second or (kind == "json" and json.loads(first) == json.loads(second)):
        return
    lines = zip(first.splitlines(), second.splitlines(), strict=False)
    number, (mine, other) = next(
        ((number, pair) for number, pair in enumerate(lines, 1) if pair[0] != pair[1]), (0, (b"(end)", b"(end)"))
    )
    raise Unequal(
        f"the outputs differ from line {number} on: ours {mine[:200].decode(errors='replace')!r}, "
        f"theirs {other[:200].decode(errors='replace')!r}"
    )


def _demand(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Unequal(f"{command[1]} of {' and '.join(command[5:])}: {(done.stdout + done.stderr).strip()[-400:]}")
