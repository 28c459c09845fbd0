"""Small things that scripts see: both command lines do the same steps, and everything printed must be the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from diskwright.testing.oracle import find_qemu_img, require_compatible

OURS = [sys.executable, "-c", "from diskwright.cli import main; import sys; sys.exit(main(program='qemu-img'))"]
CLUSTER = 64 << 10
Step = tuple[str, ...]


def shown(command: list[str], folder: Path, steps: list[Step]) -> list[str]:
    """What each step prints and ends with, both streams in one pipe."""
    folder.mkdir()
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    results = []
    for step in steps:
        run = subprocess.run(
            [*command, *step],
            cwd=folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        lines = [line for line in run.stdout.splitlines() if "disk size" not in line and "actual-size" not in line]
        results.append("\n".join([*lines, f"code {run.returncode}"]))
    return results


def alike(tmp_path: Path, *steps: Step) -> list[str]:
    """What both show for the same steps."""
    require_compatible()
    real = str(find_qemu_img())
    ours = shown(OURS, tmp_path / "ours", list(steps))
    assert ours == shown([real], tmp_path / "theirs", list(steps))
    return ours


def raw_file(path: Path, *used: int, unit: int = CLUSTER, length: int) -> str:
    """A disk with data in some units."""
    with path.open("wb") as file:
        for index in used:
            file.seek(index * unit)
            file.write(b"x" * unit)
        file.truncate(length)
    return str(path)


@pytest.mark.parametrize(("least", "lengths"), [("1k", [1024] * 3), ("4k", [4096] * 3), ("8k", [24 << 10])])
def test_least_run_of_zeros_counts_for_small_clusters_too(tmp_path: Path, least: str, lengths: list[int]) -> None:
    disk = bytearray(64 << 10)
    for start in (0, 8 << 10, 17 << 10):
        disk[start : start + 1024] = b"x" * 1024
    (tmp_path / "source").write_bytes(disk)
    convert = ("convert", "-O", "qcow2", "-o", "cluster_size=1k", "-S", least, str(tmp_path / "source"), "out")
    *_, rows = alike(tmp_path, convert, ("map", "--output=json", "out"))
    assert [row["length"] for row in json.loads(rows.rpartition("\n")[0]) if row["data"]] == lengths


def test_known_holes_stay_holes_whatever_the_least_run_is(tmp_path: Path) -> None:
    source = raw_file(tmp_path / "source", 0, 2, unit=4096, length=1 << 20)
    convert = ("convert", "-O", "qcow2", "-o", "cluster_size=1k", "-S", "8k", source, "out")
    alike(tmp_path, convert, ("map", "--output=json", "out"))


def test_a_device_as_backing_file_by_its_driver(tmp_path: Path) -> None:
    alike(
        tmp_path,
        ("create", "-q", "-f", "qcow2", "top", "1M"),
        ("rebase", "-u", "-b", "/dev/null", "-F", "host_device", "top"),
        ("info", "top"),
        ("rebase", "-u", "-b", "x", "-F", "nonsuch", "top"),
    )


def test_backing_file_of_an_image_without_directory(tmp_path: Path) -> None:
    children = [{"driver": "file", "filename": name} for name in ("top", "twin")]
    tree = {"driver": "qcow2", "file": {"driver": "quorum", "vote-threshold": 1, "children": children}}
    name = "json:" + json.dumps(tree)
    *_, text, _, chain = alike(
        tmp_path,
        ("create", "-q", "-f", "qcow2", "base", "1M"),
        ("create", "-q", "-f", "qcow2", "-b", "base", "-F", "qcow2", "top"),
        ("create", "-q", "-f", "qcow2", "-b", "base", "-F", "qcow2", "twin"),
        ("info", name),
        ("info", "--output=json", name),
        ("info", "--backing-chain", name),
    )
    assert "backing file: base (cannot determine actual path)" in text
    assert "Could not determine absolute backing filename" in chain


def test_rebase_of_an_image_that_had_no_backing_file_notes_zeros(tmp_path: Path) -> None:
    base = raw_file(tmp_path / "base", 0, 1, length=4 * CLUSTER)
    *_, rows = alike(
        tmp_path,
        ("create", "-q", "-f", "qcow2", "top", str(4 * CLUSTER)),
        ("rebase", "-b", base, "-F", "raw", "top"),
        ("map", "--output=json", "top"),
    )
    assert not any(row["data"] and row["depth"] == 0 for row in json.loads(rows.rpartition("\n")[0]))


def test_rebase_writes_short_zeros_with_the_data_beside(tmp_path: Path) -> None:
    old = raw_file(tmp_path / "old", 0, 1, 3, length=8 * CLUSTER)
    new = raw_file(tmp_path / "new", 2, length=8 * CLUSTER)
    *_, rows = alike(
        tmp_path,
        ("create", "-q", "-f", "qcow2", "-b", old, "-F", "raw", "top"),
        ("rebase", "-b", new, "-F", "raw", "top"),
        ("map", "top"),
    )
    assert "0x40000" in rows


def test_zeros_on_an_empty_image_are_noted(tmp_path: Path) -> None:
    source = raw_file(tmp_path / "source", length=1 << 20)
    alike(
        tmp_path,
        ("create", "-q", "-f", "qcow2", "out", "1M"),
        ("convert", "-n", "-O", "qcow2", source, "out"),
        ("map", "--output=json", "out"),
    )


def test_errors_come_before_what_a_pipe_holds_back(tmp_path: Path) -> None:
    rules = tmp_path / "rules"
    rules.write_text('[inject-error]\nevent = "read_aio"\nerrno = "5"\nonce = "off"\n')
    source = raw_file(tmp_path / "source", 0, length=CLUSTER)
    *_, text = alike(
        tmp_path,
        ("convert", "-O", "qcow2", source, "left"),
        ("create", "-f", "qcow2", "right", "0"),
        ("compare", "-f", "qcow2", "-F", "qcow2", f"blkdebug:{rules}:left", "right"),
    )
    assert text.index("Error while reading") < text.index("Warning: Image size mismatch!")
