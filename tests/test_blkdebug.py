"""Changing commands on a disk whose file fails as blkdebug's rules say: one line, exit 1, and nothing is lost."""

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from diskwright.testing.content import look, require_before_or_after, require_sound
from diskwright.testing.faults import Folder
from diskwright.testing.secret import address, knowing_context, real_check

pytest.importorskip("diskwright_debug", reason="the package diskwright-debug is not installed")

DISK, BASE = "disk.qcow2", "base.qcow2"
RULES = {
    "first write": {"event": "none", "iotype": "write"},
    "flush": {"event": "none", "iotype": "flush"},
    "data": {"event": "write_aio"},
    "refcounts": {"event": "refblock_update_part"},
    "refcount table": {"event": "reftable_update"},
    "L2 table": {"event": "l2_update"},
    "L1 table": {"event": "l1_update"},
    "freeing": {"event": "cluster_free"},
    "header": {"event": "none", "iotype": "write", "sector": 0},
}


def failing(disk: Path, rule: dict[str, Any], number: int) -> str:
    """The name of a disk whose file fails."""
    below = {"driver": "blkdebug", "image.filename": str(disk), "inject-error": [{**rule, "errno": number}]}
    key = {} if address(disk) == str(disk) else {"encrypt.key-secret": "s0"}
    return f"json:{json.dumps({'driver': 'qcow2', **key, 'file': below})}"


def command_of(modification: Any, folder: Path) -> list[str]:
    """The arguments; a name relative to the disk would mean nothing where the disk is named by its nodes."""
    arguments = modification.command(folder)
    return [str(folder / argument) if argument == "other.qcow2" else argument for argument in arguments]


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC], ids=["EIO", "ENOSPC"])
def test_nothing_is_lost(
    modification: Any,
    disks: Callable[..., Folder],
    inside: Callable[..., Any],
    qemu_img: Callable[..., Any],
    tmp_path: Path,
    number: int,
) -> None:
    arguments = modification.arguments
    in_place = arguments[0] not in ("create", "commit") and "{}/disk.qcow2" in arguments
    if not in_place or (arguments[0] == "convert" and "-n" not in arguments):
        pytest.skip("the disk is not changed in place")
    folder = tmp_path / "disk"
    original = disks(modification.kind, modification.snapshots, modification.bitmap)
    original.write(folder)
    before = look(address(folder / DISK), "qcow2", knowing_context())
    inside(*command_of(modification, folder), code=0)
    after = look(address(folder / DISK), "qcow2", knowing_context())
    failures = 0
    for what, rule in RULES.items():
        original.write(folder)
        plain = address(folder / DISK)
        command = [
            failing(folder / DISK, rule, number) if argument == plain else argument
            for argument in command_of(modification, folder)
        ]
        result = inside(*command)
        if result.code:
            failures += 1
            assert (result.code, len(result.err.splitlines())) == (1, 1), (what, result)
            assert os.strerror(number) in result.err, (what, result)
        require_sound(address(folder / DISK), "qcow2", knowing_context())
        got = look(address(folder / DISK), "qcow2", knowing_context())
        require_before_or_after(got, before, after, atomic=modification.atomic)
        checked = real_check(qemu_img, folder / DISK)
        assert checked.code in (0, 3), (what, checked)
    assert failures >= 2
