"""Checking: the same numbers and lines as the real tool, on sound and on damaged images."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import diskwright

SIZE = 12 << 20
KINDS = {
    "default": [],
    "compressed": ["-c"],
    "4k": ["-o", "cluster_size=4k"],
    "512 compressed": ["-c", "-o", "cluster_size=512"],
    "version 2": ["-o", "compat=0.10"],
    "extended": ["-o", "extended_l2=on,cluster_size=16k"],
    "1 bit": ["-o", "refcount_bits=1,cluster_size=4k"],
    "64 bits": ["-o", "refcount_bits=64"],
}
NUMBERS = {
    "check-errors": "check_errors",
    "corruptions": "corruptions",
    "leaks": "leaks",
    "image-end-offset": "image_end",
    "total-clusters": "total_clusters",
    "allocated-clusters": "allocated_clusters",
    "compressed-clusters": "compressed_clusters",
    "fragmented-clusters": "fragmented_clusters",
}


def real_check(path: Path) -> tuple[dict[str, int], list[str]]:
    """Numbers and findings of the real tool."""
    program = os.environ.get("DISKWRIGHT_QEMU_IMG") or shutil.which("qemu-img")
    if program is None:
        pytest.skip("qemu-img is not installed (Debian: qemu-utils)")
    done = subprocess.run(
        [program, "check", "-f", "qcow2", "--output=json", path], capture_output=True, text=True, check=False
    )
    report: dict[str, Any] = json.loads(done.stdout)
    lines = [line for line in done.stderr.splitlines() if line and not line.startswith("qemu-img: ")]
    return {name: report.get(name, 0) for name in NUMBERS}, sorted(lines)


def our_check(path: Path) -> tuple[dict[str, int], list[str]]:
    result = diskwright.check(path)
    lines = sorted(line for finding in result.findings for line in finding.splitlines())
    return {name: getattr(result, attribute) for name, attribute in NUMBERS.items()}, lines


@pytest.fixture
def image(
    request: pytest.FixtureRequest, tmp_path: Path, qemu_img: Callable[..., str], pattern: Callable[[int, int], bytes]
) -> Path:
    """An image of the kind asked for, with a snapshot where that is possible."""
    path = tmp_path / "disk.qcow2"
    (tmp_path / "disk.raw").write_bytes(pattern(SIZE, 3))
    qemu_img("convert", "-f", "raw", "-O", "qcow2", *KINDS[request.param], tmp_path / "disk.raw", path)
    if request.param != "1 bit":
        qemu_img("snapshot", "-c", "s", path)
    return path


@pytest.mark.parametrize("image", KINDS, indirect=True)
def test_sound_images(image: Path, qemu_io: Callable[..., str]) -> None:
    assert our_check(image) == real_check(image)
    qemu_io(image, "write 5M 300k", "write 70001 999", "discard 1M 128k")
    numbers, lines = our_check(image)
    assert (numbers, lines) == real_check(image)
    assert not lines
    assert numbers["leaks"] == numbers["corruptions"] == 0


def test_bitmaps(tmp_path: Path, qemu_img: Callable[..., str]) -> None:
    path = tmp_path / "disk.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", path, "100M")
    qemu_img("bitmap", "--add", "-g", "512", path, "b")
    assert our_check(path) == real_check(path)


def damage(data: bytearray, rng: random.Random) -> None:
    """Change words of the tables of an image."""

    def word(offset: int) -> int:
        return int.from_bytes(data[offset : offset + 8], "big")

    cluster = 1 << int.from_bytes(data[20:24], "big")
    l1, refcount_table = word(40), word(48)
    l2 = [word(l1 + i * 8) & ((1 << 56) - 512) for i in range(int.from_bytes(data[36:40], "big"))]
    blocks = [word(refcount_table + i) for i in range(0, 64, 8)]
    tables = [(l1, len(l2) * 8), (refcount_table, 16)]
    tables += [(offset, cluster) for offset in (*blocks, *l2, *l2) if offset]
    for _ in range(rng.choice([1, 1, 2, 5])):
        start, size = rng.choice(tables)
        used = [offset for offset in range(start, start + size, 8) if word(offset)]
        place = rng.choice(used or [start])
        value = word(place)
        value = rng.choice(
            [
                value ^ 1 << rng.randrange(64),
                0,
                value & ~((1 << 56) - 512) | rng.randrange(len(data) // cluster + 3) * cluster,
                word(rng.choice(used or [start])),
                value ^ 1 << 63,
            ]
        )
        data[place : place + 8] = value.to_bytes(8, "big")


@pytest.mark.parametrize("image", KINDS, indirect=True)
def test_damaged_images(image: Path) -> None:
    sound = image.read_bytes()
    rng = random.Random(8)
    for number in range(8):
        data = bytearray(sound)
        damage(data, rng)
        image.write_bytes(data)
        numbers, lines = our_check(image)
        expected_numbers, expected_lines = real_check(image)
        assert numbers == expected_numbers, number
        if len(lines) < 1000:
            assert lines == expected_lines, number


def test_l1_entries_that_share_a_table(tmp_path: Path) -> None:
    """Four million entries for one L2 table are one table to look at."""
    path = tmp_path / "disk.qcow2"
    diskwright.create(path, "qcow2", "128G", cluster_size="512")
    with path.open("r+b") as file:
        file.seek(40)
        l1 = int.from_bytes(file.read(8), "big")
        count = 4 << 20
        file.seek(l1)
        file.write((1 << 63 | 1024).to_bytes(8, "big") * count)
    start = time.process_time()
    result = diskwright.check(path)
    assert result.corruptions >= count
    assert time.process_time() - start < 10


def test_overlapping_snapshot_tables(tmp_path: Path, qemu_img: Callable[..., str]) -> None:
    """Snapshots whose L1 tables lie over each other cannot make more work than the file is long."""
    path = tmp_path / "disk.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", path, "1M")
    data = bytearray(path.read_bytes().ljust(1 << 20, b"\0"))
    entry = (65536).to_bytes(8, "big") + (100_000).to_bytes(4, "big") + bytes(24) + (16).to_bytes(4, "big") + bytes(16)
    count = 5000
    data[60:64] = count.to_bytes(4, "big")
    data[64:72] = len(data).to_bytes(8, "big")
    path.write_bytes(data + entry * count)
    start = time.process_time()
    assert diskwright.check(path).corruptions >= count - 1
    assert time.process_time() - start < 5
