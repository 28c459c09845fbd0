"""``compare``: verdicts, exit codes and where the difference is."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from diskwright.engine.compare import CHUNK, Comparison, Difference, MapFailed, compare
from diskwright.errors import InvalidImage
from diskwright.extent import Kind
from diskwright.testing.oracle import qemu_img

MIB = 1 << 20


def raw(world: Any, name: str, data: bytes) -> None:
    world.add(name, (Kind.DATA, len(data), 0), data=data)


def changed(data: bytes, offset: int) -> bytes:
    return data[:offset] + bytes([data[offset] ^ 1]) + data[offset + 1 :]


CONTENT = random.Random(1).randbytes(9 * MIB + 512)


@pytest.mark.parametrize("offset", [0, 511, 512, CHUNK - 1, CHUNK, 5 * MIB + 777, len(CONTENT) - 1])
def test_the_sector_of_the_first_difference(world: Any, offset: int) -> None:
    raw(world, "a", CONTENT)
    later = min(offset + 3 * MIB, len(CONTENT) - 1)
    other = changed(CONTENT, offset)
    raw(world, "b", other if later == offset else changed(other, later))
    assert world.run("compare", "a", "b") == (1, f"Content mismatch at offset {offset - offset % 512}!\n", "")


def test_the_same(world: Any) -> None:
    raw(world, "a", CONTENT)
    raw(world, "b", CONTENT)
    assert world.run("compare", "a", "b") == (0, "Images are identical.\n", "")
    assert world.run("compare", "-s", "-q", "a", "b") == (0, "", "")


def test_layout_does_not_matter_unless_strict(world: Any) -> None:
    raw(world, "a", b"x" * 1024 + bytes(1024) + b"\xee" * 512)
    world.add("b", (Kind.DATA, 1024, 0), (Kind.ABSENT, 512), (Kind.ZERO, 512), (Kind.ENCODED, 512), data=b"x" * 1024)
    assert world.run("compare", "a", "b") == (0, "Images are identical.\n", "")
    assert world.run("compare", "-s", "a", "b") == (1, "Strict mode: Offset 1024 block status mismatch!\n", "")
    raw(world, "a", b"y" * 2048 + b"\xee" * 512)
    assert world.run("compare", "-s", "a", "b") == (1, "Content mismatch at offset 0!\n", "")


def test_backing_layers_count(world: Any) -> None:
    raw(world, "a", CONTENT[:4096] + bytes(4096))
    raw(world, "base", CONTENT[:4096])
    world.add(
        "b",
        (Kind.ABSENT, 1024),
        (Kind.DATA, 1024, 0),
        (Kind.ABSENT, 6144),
        data=CONTENT[1024:2048],
        backing_file="base",
    )
    assert world.run("compare", "a", "b") == (0, "Images are identical.\n", "")


@pytest.mark.parametrize(
    ("tail", "code", "verdict"),
    [(bytes(3 * MIB), 0, "Images are identical."), (bytes(2 * MIB) + b"x", 1, "Content mismatch at offset 3145728!")],
)
def test_a_longer_disk_is_the_same_if_only_zeros_follow(world: Any, tail: bytes, code: int, verdict: str) -> None:
    raw(world, "a", CONTENT[:MIB])
    raw(world, "b", CONTENT[:MIB] + tail)
    for pair in (("a", "b"), ("b", "a")):
        assert world.run("compare", *pair) == (code, f"Warning: Image size mismatch!\n{verdict}\n", "")
        assert world.run("compare", "-s", *pair) == (1, "Strict mode: Image size mismatch!\n", "")


def test_a_difference_in_the_common_part_comes_before_the_warning(world: Any) -> None:
    raw(world, "a", CONTENT[:MIB])
    raw(world, "b", changed(CONTENT[: 2 * MIB], 700))
    assert world.run("compare", "a", "b")[:2] == (1, "Content mismatch at offset 512!\n")


def test_exit_codes_of_failures(world: Any) -> None:
    raw(world, "a", CONTENT[:4096])
    world.add("unreadable", (Kind.ZERO, 1024), (Kind.ENCODED, 3072), broken=InvalidImage("damaged"))
    code, out, err = world.run("compare", "a", "unreadable")
    assert (code, out, err) == (4, "", "qemu-img: Error while reading offset 0 of unreadable: damaged\n")
    code, out, err = world.run("compare", "unreadable", "unreadable")
    assert (code, out, err) == (4, "", "qemu-img: Error while reading offset 1024 of unreadable: damaged\n")
    code, out, err = world.run("compare", "a", "nothing")
    assert (code, out) == (2, "")
    assert err == "qemu-img: Could not open 'nothing': Could not open 'nothing': No such file or directory\n"
    assert world.run("compare", "-T", "foo", "a", "a") == (2, "", "qemu-img: Invalid source cache option: foo\n")
    assert world.run("compare", "a")[0] == 1
    assert world.run("compare", "a", "a", "a")[2].startswith("qemu-img: Expecting two image file names\n")


def test_a_map_that_fails(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    raw(world, "a", CONTENT[:4096])

    def fail(*arguments: object) -> Any:
        raise InvalidImage("broken table")

    with world.context.open("a") as first, world.context.open("a") as second:
        monkeypatch.setattr(second, "_block_status", fail)
        with pytest.raises(MapFailed, match="Sector allocation test failed for a: broken table") as caught:
            compare(first, second)
    assert caught.value.exit_code == 3


def test_progress(world: Any) -> None:
    raw(world, "a", CONTENT[: 2 * MIB] * 2)
    raw(world, "b", CONTENT[: 2 * MIB] * 2)
    expected = "".join(f"    ({percent:.2f}/100%)\r" for percent in (0, 50, 100))
    assert world.run("compare", "-p", "a", "b")[1] == expected + "Images are identical.\n\n"
    assert world.run("compare", "-p", "-q", "a", "b")[1] == ""


def test_huge_disks_without_data_take_no_time(world: Any) -> None:
    world.add("a", (Kind.ZERO, 1 << 50), (Kind.DATA, 512, 0), data=b"a" * 512)
    world.add("b", (Kind.ABSENT, 1 << 50), (Kind.DATA, 512, 0), data=b"b" * 512)
    assert world.run("compare", "a", "b")[1] == f"Content mismatch at offset {1 << 50}!\n"


def test_against_a_model(world: Any) -> None:
    """Random layouts of random content, changed in one byte or not."""
    rng = random.Random(5)
    for _ in range(40):
        sectors = rng.randrange(1, 40)
        content = b"".join(rng.choice([bytes(512), b"\xee" * 512, rng.randbytes(512)]) for _ in range(sectors))
        other = changed(content, rng.randrange(len(content))) if rng.random() < 0.7 else content
        for name, data in (("a", content), ("b", other)):
            world.add(name, *(layout(rng, data[i : i + 512], i) for i in range(0, len(data), 512)), data=data)
        expected = next((i for i in range(0, len(content), 512) if content[i : i + 512] != other[i : i + 512]), None)
        with world.context.open("a") as first, world.context.open("b") as second:
            found = compare(first, second)
        assert found == Comparison(None if expected is None else Difference.CONTENT, expected)
        assert bool(found) == (expected is None)


def layout(rng: random.Random, sector: bytes, offset: int) -> tuple[Any, ...]:
    """One of the ways in which a sector can be stored."""
    ways: list[tuple[Any, ...]] = [(Kind.DATA, 512, offset)]
    if not any(sector):
        ways += [(Kind.ZERO, 512), (Kind.ABSENT, 512)]
    if sector == b"\xee" * 512:
        ways.append((Kind.ENCODED, 512))
    return rng.choice(ways)


@pytest.mark.skipif(shutil.which("qemu-img") is None, reason="qemu-img is not installed")
def test_verdicts_are_those_of_the_real_one(tmp_path: Path) -> None:
    first, second, third = (tmp_path / name for name in "abc")
    first.write_bytes(CONTENT[:MIB] + bytes(MIB))
    qemu_img("convert", "-f", "raw", "-O", "qcow2", first, second)
    third.write_bytes(changed(CONTENT[:MIB], 70000))
    for arguments in ([first, second], [first, third], [third, second], ["-s", first, third]):
        theirs = qemu_img("compare", *arguments, check=False)
        ours = subprocess.run(
            [sys.executable, "-m", "diskwright", "compare", *map(str, arguments)],
            capture_output=True,
            text=True,
            check=False,
        )
        assert (ours.returncode, ours.stdout) == (theirs.returncode, theirs.stdout)


def test_exit_code_with_a_traceback(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who asks for tracebacks still learns what kind of failure it was."""
    world.add("a", (Kind.DATA, 512, 0))
    monkeypatch.setenv("DISKWRIGHT_TRACEBACK", "1")
    code, out, err = world.run("compare", "a", "nosuch")
    assert (code, out) == (2, "")
    assert err.startswith("Traceback ")
    assert err.splitlines()[-1].startswith("qemu-img: Could not open 'nosuch'")
