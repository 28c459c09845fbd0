"""Subclusters seen by commands: their map through layers, and rebase, like the real tool."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from diskwright.cli import main

QemuImg = Callable[..., str]


def our_map(path: Path, capfd: Any) -> Any:
    capfd.readouterr()
    assert main(["map", "--output=json", str(path)]) == 0
    return json.loads(capfd.readouterr().out)


def real_map(path: Path, qemu_img: QemuImg) -> Any:
    rows = json.loads(qemu_img("map", "--output=json", path))
    for row in rows:
        row.setdefault("compressed", False)  # not told before 8.2; there is nothing compressed here
    return rows


@pytest.mark.parametrize("data_file", [False, True])
def test_map_through_layers(tmp_path: Path, qemu_img: QemuImg, qemu_io: Any, capfd: Any, data_file: bool) -> None:
    """What is unallocated of an allocated cluster has a place, also behind the end of a backing layer."""
    base, middle, top = (tmp_path / name for name in ("base", "middle", "top"))
    more = f",data_file={tmp_path / 'data'}" if data_file else ""
    qemu_img("create", "-q", "-f", "qcow2", "-o", f"extended_l2=on{more}", base, "1M")
    qemu_io(base, "write 4k 2k", "write 70k 4k", "write -z 80k 2k", "write -z 130k 4k", "write 192k 64k")
    qemu_io(base, "write -z -u 256k 64k", "write -z 192k 64k")
    qemu_img("create", "-q", "-f", "qcow2", "-o", "extended_l2=on", "-b", base, "-F", "qcow2", middle, "2M")
    qemu_io(middle, "write 0 2k", "write 1100k 2k")
    qemu_img("create", "-q", "-f", "qcow2", "-b", middle, "-F", "qcow2", top, "2M")
    qemu_io(top, "write 128k 64k")
    for path in (base, middle, top):
        assert our_map(path, capfd) == real_map(path, qemu_img)
    assert any("offset" in row and not row["present"] for row in our_map(top, capfd))


@pytest.mark.parametrize("compress", [False, True])
def test_rebase_allocates_single_subclusters(
    tmp_path: Path, qemu_img: QemuImg, qemu_io: Any, capfd: Any, compress: bool
) -> None:
    """Only subclusters that differ move up; compressed, whole clusters do."""
    options = "cluster_size=1M,extended_l2=on"
    base, middle, ours = (tmp_path / name for name in ("base", "middle", "ours"))
    qemu_img("create", "-q", "-f", "qcow2", "-o", options, base, "2M")
    qemu_img("create", "-q", "-f", "qcow2", "-o", options, "-b", base, "-F", "qcow2", middle, "2M")
    qemu_img("create", "-q", "-f", "qcow2", "-o", options, "-b", middle, "-F", "qcow2", ours, "2M")
    qemu_io(middle, "write -P 17 32k 32k", "write -P 34 960k 32k")
    arguments = ["-c"] if compress else []
    assert main(["rebase", *arguments, "-f", "qcow2", "-b", str(base), "-F", "qcow2", str(ours)]) == 0
    present = [(row["start"], row["length"]) for row in our_map(ours, capfd) if row["present"]]
    assert present == ([(0, 1 << 20)] if compress else [(32 << 10, 32 << 10), (960 << 10, 32 << 10)])
    qemu_img("check", "-q", ours)
    qemu_io(
        ours, "read -P 0 0 32k", "read -P 17 32k 32k", "read -P 0 64k 896k", "read -P 34 960k 32k", "read -P 0 1M 1M"
    )
