"""A format that the core has never heard of, as a distribution of its own, gets every subcommand."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

PYPROJECT = """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "bricks-for-diskwright"
version = "3.1"

[project.entry-points."diskwright.formats"]
bricks = "bricks:BricksDriver"
sour = "bricks_sour:Sour"

[tool.hatch.build.targets.wheel]
include = ["bricks.py", "bricks_sour.py"]
"""

SOUR = """
raise RuntimeError("this plugin is broken")
"""

PLUGIN = '''
"""Disks in bricks of 64 KiB: a sector of header, a table of brick numbers (0: none), then the bricks."""

import struct

from diskwright.bounded import BoundedReader
from diskwright.errors import InvalidImage, InvalidOption
from diskwright.extent import Extent, Kind
from diskwright.facts import CheckResult, Description
from diskwright.hookspecs import ProbeHit, hookimpl
from diskwright.node import Placement, WritableImage
from diskwright.options import Option, OptionType

BRICK = 65536
HEADER = struct.Struct("<8sQI")
MAGIC = b"BRICKS\\r\\n"
LIMIT = 1 << 20


class BricksImage(WritableImage):
    cluster_size = BRICK

    def __init__(self, file, options):
        super().__init__()
        self.file = file
        self.reader = BoundedReader(file, "bricks")
        magic, self._size, count = HEADER.unpack(self.reader.bytes(0, HEADER.size, "header"))
        if magic != MAGIC:
            raise InvalidImage("Image is not in bricks format", filename=options.filename)
        if count * BRICK < self._size:
            raise self.reader.error("table too short", 16)
        self.table = self.reader.integers("I", 512, count, "brick table", big_endian=False, limit=LIMIT)
        self.start = 512 + (count * 4 + 511) // 512 * 512
        self.used = max(self.table, default=0)

    @property
    def size(self):
        return self._size

    def place(self, brick):
        return self.start + (brick - 1) * BRICK

    def allocate(self, offset, length):
        found = []
        end = offset + length
        while offset < end:
            index, inside = divmod(offset, BRICK)
            part = min(end - offset, BRICK - inside)
            if self.table[index]:
                found.append(Placement(offset, part, self.file, self.place(self.table[index]) + inside))
            else:
                self.used += 1
                tail = min(BRICK, self._size - index * BRICK) - inside - part
                found.append(Placement(offset, part, self.file, self.place(self.used) + inside, inside, tail))
            offset += part
        return found

    def link(self, placements):
        for placement in placements:
            index = placement.offset // BRICK
            if not self.table[index]:
                self.table[index] = (placement.node_offset - self.start) // BRICK + 1
                self.file.write_at(512 + 4 * index, struct.pack("<I", self.table[index]))


class BricksDriver:
    @hookimpl
    def probe(self, head, filename):
        return ProbeHit("bricks", 100) if head.startswith(MAGIC) else None

    @hookimpl
    def open(self, source, options):
        return BricksImage(source, options)

    @hookimpl
    def creation_options(self):
        return [
            Option("size", OptionType.SIZE, "Virtual disk size"),
            Option("colour", OptionType.STRING, "Colour of the bricks", "red", ("red", "blue")),
        ]

    @hookimpl
    def create(self, target, options):
        count = (options.size + BRICK - 1) // BRICK
        if count > LIMIT:
            raise InvalidOption("The image size is too large for bricks")
        table = bytes((count * 4 + 511) // 512 * 512)
        target.write_at(0, HEADER.pack(MAGIC, options.size, count).ljust(512, b"\\0") + table)
        return True

    @hookimpl
    def block_status(self, image, offset, length):
        end = offset + length
        while offset < end:
            index, inside = divmod(offset, BRICK)
            part = min(end - offset, BRICK - inside)
            brick = image.table[index]
            if brick:
                yield Extent(offset, part, Kind.DATA, image.file, image.place(brick) + inside)
            else:
                yield Extent(offset, part, Kind.ZERO)
            offset += part

    @hookimpl
    def describe(self, image):
        return Description(specific={"colour": "red", "bricks": len(image.table)}, cluster_size=BRICK)

    @hookimpl
    def check(self, image):
        bricks = [brick for brick in image.table if brick]
        result = CheckResult(total_clusters=len(image.table), allocated_clusters=len(bricks))
        for brick in {brick for brick in bricks if bricks.count(brick) > 1}:
            result.error(f"ERROR: brick {brick} is used more than once")
        return result
'''


@pytest.fixture(scope="module")
def bricks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Build and install the plugin into a folder; the environment in which it is found."""
    folder = tmp_path_factory.mktemp("third-party")
    source, target = folder / "source", folder / "site"
    source.mkdir()
    (source / "pyproject.toml").write_text(PYPROJECT)
    (source / "bricks.py").write_text(PLUGIN)
    (source / "bricks_sour.py").write_text(SOUR)
    command = [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-deps", "--no-index"]
    command += ["--no-build-isolation", "--target", str(target), str(source)]
    subprocess.run(command, check=True, timeout=240, capture_output=True)
    return {**os.environ, "PYTHONPATH": str(target), "XDG_CACHE_HOME": str(folder)}


def test_all_subcommands(
    bricks: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Callable[..., Any], patterns: Any
) -> None:
    """info, create, convert, check, compare and map, to and from the formats of the house."""
    monkeypatch.chdir(tmp_path)

    def call(*args: str, code: int = 0) -> Any:
        return cli(*args, code=code, env=bricks)

    patterns(Path("source.raw"), (1 << 20) + 512)
    line = call("create", "-f", "bricks", "-o", "colour=blue", "new.bricks", "1M").out
    assert line == "Formatting 'new.bricks', fmt=bricks size=1048576 colour=blue\n"
    assert "colour=<str>" in call("create", "-f", "bricks", "-o", "help", "new.bricks").out
    call("create", "-f", "bricks", "-o", "colour=green", "bad.bricks", "1M", code=1)
    assert not Path("bad.bricks").exists()

    call("convert", "-f", "raw", "-O", "bricks", "source.raw", "disk.bricks")
    call("compare", "-f", "raw", "source.raw", "disk.bricks")
    call("convert", "-O", "qcow2", "-c", "disk.bricks", "disk.qcow2")
    call("compare", "disk.bricks", "disk.qcow2")
    call("convert", "-O", "raw", "disk.bricks", "back.raw")
    assert Path("back.raw").read_bytes() == Path("source.raw").read_bytes()

    shown = json.loads(call("info", "--output=json", "disk.bricks").out)
    assert (shown["format"], shown["virtual-size"], shown["cluster-size"]) == ("bricks", (1 << 20) + 512, 65536)
    assert shown["format-specific"] == {"type": "bricks", "data": {"colour": "red", "bricks": 17}}
    assert "    colour: red\n" in call("info", "disk.bricks").out
    assert "No errors were found" in call("check", "disk.bricks").out
    table = json.loads(call("map", "--output=json", "disk.bricks").out)
    assert sum(entry["length"] for entry in table) == (1 << 20) + 512
    assert {entry["data"] for entry in table} <= {True, False}
    assert call("map", "disk.bricks").out.startswith("Offset          Length          Mapped to       File\n")
    call("convert", "-c", "-O", "bricks", "source.raw", "compressed.bricks", code=1)

    with Path("disk.bricks").open("r+b") as file:
        file.seek(512)
        file.write(b"\1\0\0\0\1\0\0\0")
    found = call("check", "disk.bricks", code=2)
    assert "brick 1 is used more than once" in found.err
    call("check", "--output=json", "disk.bricks", code=2)


def test_as_backing_file(bricks: dict[str, str], tmp_path: Path, cli: Callable[..., Any], patterns: Any) -> None:
    """An overlay stands on it."""
    source, base, top = (tmp_path / name for name in ("source.raw", "base.bricks", "top.qcow2"))
    patterns(source, 1 << 20)
    cli("convert", "-f", "raw", "-O", "bricks", source, base, code=0, env=bricks)
    cli("create", "-f", "qcow2", "-b", base, "-F", "bricks", top, code=0, env=bricks)
    cli("compare", "-f", "raw", source, top, code=0, env=bricks)


def test_a_broken_neighbour_does_no_harm(bricks: dict[str, str], tmp_path: Path, cli: Callable[..., Any]) -> None:
    """A driver that cannot be imported is in nobody's way, and who names it is told why."""
    image = tmp_path / "disk.raw"
    image.write_bytes(bytes(4096))
    cli("info", image, code=0, env=bricks)
    result = cli("info", "-f", "sour", image, env=bricks)
    result.fails_with("this plugin is broken")


def test_without_the_plugin(tmp_path: Path, cli: Callable[..., Any]) -> None:
    """The same names mean nothing where it is not installed."""
    image = tmp_path / "disk.bricks"
    image.write_bytes(b"BRICKS\r\n".ljust(4096, b"\0"))
    assert "file format: raw" in cli("info", image, code=0).out
    cli("info", "-f", "bricks", image).fails_with("Unknown driver 'bricks'")
