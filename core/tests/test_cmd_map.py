"""``map``: rows, merging, ranges and both forms of output."""

from __future__ import annotations

import io
import itertools
import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from diskwright.engine.mapping import State, map_image
from diskwright.extent import Flag, Kind
from diskwright.render.map_text import print_map_json
from diskwright.render.printer import Printer
from diskwright.testing.oracle import qemu_img

K = 1024
SPARSE, COMPRESSED = Flag.SPARSE, Flag.COMPRESSED
HEADER = "Offset          Length          Mapped to       File\n"


@pytest.fixture
def chain(world: Any) -> Any:
    """top (8 K) on mid (5 K) on base (3 K)."""
    world.add(
        "top",
        (Kind.DATA, K, 9 * K),
        (Kind.DATA, K, 10 * K),
        (Kind.ABSENT, 4 * K),
        (Kind.ZERO, K, 0),
        (Kind.ABSENT, K),
        backing_file="mid",
    )
    world.add("mid", (Kind.ZERO, 2 * K + 512), (Kind.ABSENT, 2 * K + 512), backing_file="base")
    world.add("base", (Kind.DATA, 3 * K, 0))
    return world


def test_json_through_all_layers(chain: Any) -> None:
    expected = [
        '[{ "start": 0, "length": 2048, "depth": 0, "present": true, "zero": false, "data": true, '
        '"compressed": false, "offset": 9216},',
        '{ "start": 2048, "length": 512, "depth": 1, "present": true, "zero": true, "data": false, '
        '"compressed": false},',
        '{ "start": 2560, "length": 512, "depth": 2, "present": true, "zero": false, "data": true, '
        '"compressed": false, "offset": 2560},',
        '{ "start": 3072, "length": 2048, "depth": 1, "present": false, "zero": true, "data": false, '
        '"compressed": false},',
        '{ "start": 5120, "length": 1024, "depth": 0, "present": false, "zero": true, "data": false, '
        '"compressed": false},',
        '{ "start": 6144, "length": 1024, "depth": 0, "present": true, "zero": true, "data": false, '
        '"compressed": false, "offset": 0},',
        '{ "start": 7168, "length": 1024, "depth": 0, "present": false, "zero": true, "data": false, '
        '"compressed": false}]',
    ]
    assert chain.run("map", "--output=json", "top") == (0, "\n".join(expected) + "\n", "")


def test_table_shows_data_only(chain: Any) -> None:
    rows = "0               0x800           0x2400          top\n0xa00           0x200           0xa00           base\n"
    assert chain.run("map", "top") == (0, HEADER + rows, "")


@pytest.mark.parametrize(
    ("arguments", "rows"),
    [
        (["-s", "1k", "-l", "1700"], [(1024, 1024), (2048, 512), (2560, 164)]),
        (["--start-offset", "7k"], [(7168, 1024)]),
        (["-s", "7k", "--max-length", "1T"], [(7168, 1024)]),
        (["-l", "0"], []),
        (["-s", "8k"], []),
        (["-s", "1G"], []),
    ],
)
def test_ranges(chain: Any, arguments: list[str], rows: list[tuple[int, int]]) -> None:
    code, out, _ = chain.run("map", "--output=json", *arguments, "top")
    assert code == 0
    assert [(row["start"], row["length"]) for row in json.loads(out)] == rows


def test_an_empty_disk_has_no_rows(world: Any) -> None:
    world.add("empty")
    assert world.run("map", "--output=json", "empty") == (0, "[]\n", "")
    assert world.run("map", "empty") == (0, HEADER, "")


def test_compressed_data_has_no_place(world: Any) -> None:
    world.add(
        "x",
        (Kind.DATA, K, 0),
        (Kind.ENCODED, K, None, COMPRESSED),
        (Kind.ENCODED, K),
        (Kind.ENCODED, K, None, COMPRESSED),
    )
    code, out, err = world.run("map", "x")
    assert (code, out) == (1, HEADER + "0               0x400           0               x\n")
    assert err == "qemu-img: File contains external, encrypted or compressed clusters.\n"
    rows = json.loads(world.run("map", "--output=json", "x")[1])
    assert [(row["data"], row["compressed"], "offset" in row) for row in rows] == [
        (True, False, True),
        (True, True, False),
        (True, False, False),
        (True, True, False),
    ]


def test_a_hole_behind_data_is_both(world: Any) -> None:
    world.add("x", (Kind.ZERO, K, 4 * K, SPARSE), (Kind.ZERO, K, 5 * K))
    rows = json.loads(world.run("map", "--output=json", "x")[1])
    assert [(row["zero"], row["data"], row["offset"]) for row in rows] == [(True, True, 4 * K), (True, False, 5 * K)]
    assert world.run("map", "x")[1] == HEADER


def test_rows_are_merged_across_tables(world: Any) -> None:
    """Tables hold a few thousand single extents; what continues across their border is one row all the same."""
    alternating = [(Kind.DATA, 512, 1024 * i) for i in range(6000)]
    world.add("many", *alternating)
    world.add("one", *[(Kind.DATA, 512, 512 * i) for i in range(6000)])
    with world.context.open("many") as image:
        tables = list(map_image(image))
    assert sum(len(table.rows) for table in tables) == 6000
    with world.context.open("one") as image:
        [table] = map_image(image)
    assert table.rows.tolist() == [(0, 6000 * 512, 0, 0, 0, State.PRESENT | State.DATA | State.PLACED)]


def test_random_maps_cover_the_disk_and_merge(world: Any) -> None:
    rng = random.Random(7)
    for attempt in range(30):
        extents = []
        for _ in range(rng.randrange(1, 50)):
            kind = rng.choice(list(Kind))
            placed = rng.randrange(4) * 512 if kind in (Kind.DATA, Kind.ZERO) and rng.random() < 0.8 else None
            extents.append((kind, 512 * rng.randrange(1, 3), placed if kind is not Kind.DATA else placed or 0))
        world.add(f"x{attempt}", *extents)
        with world.context.open(f"x{attempt}") as image:
            text = io.StringIO()
            print_map_json(map_image(image), Printer(text))
        rows = json.loads(text.getvalue())
        assert sum(row["length"] for row in rows) == sum(extent[1] for extent in extents)
        position = 0
        for row in rows:
            assert row["start"] == position
            position += row["length"]
        for left, right in itertools.pairwise(rows):
            left_end = left["offset"] + left["length"] if "offset" in left else None
            same = all(left[key] == right[key] for key in ("depth", "present", "zero", "data", "compressed"))
            assert not same or left_end != right.get("offset")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Expecting one image file name"),
        (["-s", "1x", "top"], "Invalid start offset specified: '1x'."),
        (["-l", "8E", "top"], "Invalid max length specified. Must be between 0 and 9223372036854775807."),
        (["--output", "xml", "top"], "--output expects 'human' or 'json' not 'xml'"),
    ],
)
def test_mistakes(chain: Any, arguments: list[str], message: str) -> None:
    code, out, err = chain.run("map", *arguments)
    assert (code, out, err.splitlines()[0]) == (1, "", f"qemu-img: {message}")


@pytest.mark.skipif(shutil.which("qemu-img") is None, reason="qemu-img is not installed")
def test_rows_are_those_of_the_real_one(tmp_path: Path) -> None:
    base, top = tmp_path / "base", tmp_path / "top"
    with base.open("wb") as file:
        for offset in (0, 300 << 10, 900 << 10):
            os.pwrite(file.fileno(), b"x" * 5000, offset)
        file.truncate(2 << 20)
    qemu_img("create", "-q", "-f", "qcow2", "-b", base, "-F", "raw", top, "4M")
    for path in (base, top):
        theirs = json.loads(qemu_img("map", "--output=json", path).stdout)
        done = subprocess.run(
            [sys.executable, "-m", "diskwright", "map", "--output=json", path], capture_output=True, check=True
        )
        ours = json.loads(done.stdout)
        common = theirs[0].keys() | {"offset"}  # older ones say less
        assert [{key: row[key] for key in row.keys() & common} for row in ours] == theirs
