"""``map --output=svg`` and ``--output=picture``: what is where, counted in cells."""

from __future__ import annotations

import os
import pty
import random
import re
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from diskwright.engine.overview import DEPTHS, Content, overview
from diskwright.extent import Flag, Kind
from diskwright.render.map_svg import CELLS

K = 1024
SVG = "{http://www.w3.org/2000/svg}"


def test_cells_count_every_byte(world: Any) -> None:
    """Against a count byte by byte, for extents that have nothing to do with the borders of cells."""
    choice = random.Random(5)
    kinds = [Kind.DATA, Kind.ZERO, Kind.ABSENT, Kind.ENCODED]
    extents: list[tuple[Any, ...]] = []
    for _ in range(200):
        kind = choice.choice(kinds)
        flags = Flag.COMPRESSED if kind is Kind.ENCODED else Flag(0)
        extents.append((kind, choice.randrange(1, 3000), 0 if kind is Kind.DATA else None, flags))
    extents.append((Kind.ABSENT, -sum(length for _, length, *_ in extents) % 512 + 512))
    world.add("x", *extents)
    content = {Kind.DATA: 0, Kind.ENCODED: 1, Kind.ZERO: 2, Kind.ABSENT: 3}
    plain = np.repeat([content[extent[0]] for extent in extents], [extent[1] for extent in extents])
    with world.context.open("x") as image:
        for cells, start, length in ((1, 0, None), (37, 0, None), (64, 777, 100_000), (2000, 0, None)):
            view = overview(image, cells, start, length)
            assert len(view.bytes) <= cells
            assert view.bytes.sum() == view.length
            for number in range(len(view.bytes)):
                first, end = view.cell_range(number)
                expected = np.bincount(plain[first:end], minlength=4)
                assert view.bytes[number].sum(axis=1).tolist() == expected.tolist()


@pytest.fixture
def layered(world: Any) -> Any:
    """Data, compressed data, zeros and nothing, in two layers."""
    world.add(
        "top",
        (Kind.DATA, 64 * K, 0),
        (Kind.ABSENT, 64 * K),
        (Kind.ENCODED, 64 * K, None, Flag.COMPRESSED),
        (Kind.ZERO, 64 * K),
        backing_file="base",
    )
    world.add("base", (Kind.ABSENT, 96 * K), (Kind.DATA, 32 * K, 0), (Kind.ABSENT, 128 * K))
    return world


def test_svg(layered: Any) -> None:
    code, out, err = layered.run("map", "--output=svg", "top")
    assert (code, err) == (0, "")
    root = ET.fromstring(out)
    assert root.tag == f"{SVG}svg"
    assert root.get("role") == "img"
    assert root.findtext(f"{SVG}title") == "Map of top"
    summary = root.findtext(f"{SVG}desc") or ""
    for part in (
        "data in layer 0: 64 KiB (25 %)",
        "data in layer 1: 32 KiB (12.5 %)",
        "compressed data in layer 0: 64 KiB",
        "zeros in layer 0: 64 KiB",
        "nothing: in no layer, reads as zeros: 32 KiB",
    ):
        assert part in summary
    texts = [element.text or "" for element in root.iter(f"{SVG}text")]
    assert {"layer 0: top", "layer 1: base"} <= set(texts)
    assert not re.search(r"href|url\(|<image|<script|@import|http(?!://www\.w3\.org/2000/svg)", out)


def test_svg_colours_are_all_explained(layered: Any) -> None:
    """Each class that a cell has is defined, and stands in the legend."""
    out = layered.run("map", "--output=svg", "top")[1]
    used = set(re.findall(r'class="(k\d+)"', out))
    assert len(used) == 5
    assert used == set(re.findall(r"\.(k\d+)\{", out))


def test_svg_of_nothing(world: Any) -> None:
    world.add("empty")
    code, out, _ = world.run("map", "--output=svg", "empty")
    assert code == 0
    assert "empty" in (ET.fromstring(out).findtext(f"{SVG}desc") or "")


def test_svg_takes_names_as_text(world: Any) -> None:
    """A name cannot break out of the picture."""
    name = "</text><script>alert(1)</script>\x1b[31m\udcff&"
    world.add(name, (Kind.DATA, 512, 0))
    out = world.run("map", "--output=svg", name)[1]
    root = ET.fromstring(out)
    assert root.find(f".//{SVG}script") is None
    assert root.findtext(f"{SVG}title") == r"Map of </text><script>alert(1)</script>\x1b[31m\xff&"


def test_svg_is_bounded(world: Any) -> None:
    """However many extents there are, and however large the disk is."""
    world.add("busy", *[(kind, 512, 0) for _ in range(20_000) for kind in (Kind.DATA, Kind.ZERO)])
    world.add("huge", (Kind.DATA, 1 << 50, 0), (Kind.ABSENT, 1 << 50))
    busy = world.run("map", "--output=svg", "busy")[1]
    assert len(ET.fromstring(busy).findall(f".//{SVG}rect")) <= 2 * CELLS + 10
    assert len(world.run("map", "--output=svg", "huge")[1]) < 10_000


def test_picture_in_letters(layered: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "36")
    code, out, err = layered.run("map", "--output=picture", "top")
    assert (code, err) == (0, "")
    assert out.isascii()
    assert "\x1b" not in out
    cells = "".join(re.findall(r"\|(.*)\|", out))
    assert len(cells) == 256
    assert cells == "#" * 64 + "." * 32 + "1" * 32 + "C" * 64 + "0" * 64
    assert all(len(line) <= 36 for line in out.splitlines() if "|" in line)
    assert "# data in layer 0: 64 KiB" in out
    assert "layer 1: base" in out


def test_picture_of_a_part(layered: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "36")
    out = layered.run("map", "--output=picture", "-s", "128k", "-l", "1k", "top")[1]
    assert re.findall(r"(\S+) \|(.*)\|", out) == [("0x20000", "CC")]


def test_little_data_is_not_lost(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "36")
    world.add("x", (Kind.ABSENT, 1 << 30), (Kind.DATA, 512, 0), (Kind.ABSENT, (1 << 40) - (1 << 30) - 512))
    assert "".join(re.findall(r"\|(.*)\|", world.run("map", "--output=picture", "x")[1])).count("#") == 1


def on_terminal(*arguments: str, **environment: str) -> str:
    """What a command prints on a terminal of 60 columns."""
    master, slave = pty.openpty()
    variables = {"PATH": os.environ["PATH"], "TERM": "xterm", "LC_ALL": "C.UTF-8", "COLUMNS": "60"} | environment
    child = subprocess.Popen(
        [sys.executable, "-m", "diskwright", *arguments], stdin=slave, stdout=slave, stderr=slave, env=variables
    )
    os.close(slave)
    parts = []
    while True:
        try:
            part = os.read(master, 65536)
        except OSError:
            break
        if not part:
            break
        parts.append(part)
    os.close(master)
    assert child.wait(30) == 0
    return b"".join(parts).decode()


def test_colours_on_a_terminal_only_where_wanted(tmp_path: Path) -> None:
    image = tmp_path / "disk.raw"
    image.write_bytes(b"x" * 65536 + bytes(65536))
    arguments = ("map", "--output=picture", "-f", "raw", str(image))
    assert re.search("\x1b\\[34m█\x1b\\[0m", on_terminal(*arguments))
    for variables in (
        {"NO_COLOR": "1"},
        {"TERM": "dumb"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    ):
        plain = on_terminal(*arguments, **variables)
        assert plain.isascii()
        assert "\x1b" not in plain
        assert "#" in plain


def test_deep_chains_are_one_colour_at_the_end(world: Any) -> None:
    for depth in range(10):
        below = {"backing_file": f"l{depth + 1}"} if depth < 9 else {}
        parts = [(Kind.ABSENT, 512 * depth)] if depth else []
        world.add(f"l{depth}", *parts, (Kind.DATA, 512, 0), (Kind.ABSENT, 512 * (19 - depth)), **below)
    with world.context.open("l0") as image:
        view = overview(image, 20)
    assert [view.total(Content.DATA, depth) // 512 for depth in range(DEPTHS)] == [1, 1, 1, 1, 1, 5]
    out = world.run("map", "--output=svg", "l0")[1]
    assert "data in layer 5 and deeper" in out
    assert "l5 and 4 below it" in out


def test_unknown_form(world: Any) -> None:
    world.add("x", (Kind.DATA, 512, 0))
    assert world.run("map", "--output=png", "x")[0] == 1


def test_counting_is_fast(world: Any) -> None:
    """Two hundred thousand rows in tables: far from one Python step each."""
    from diskwright.extent import ExtentTable, extent_dtype

    world.add("x", (Kind.DATA, 200_000 * 512, 0))
    rows = np.zeros(200_000, extent_dtype())
    rows["offset"], rows["length"], rows["node_offset"] = np.arange(200_000) * 512, 512, -1
    rows["kind"][::2] = Kind.ZERO
    with world.context.open("x") as image:
        image._block_status = lambda node, offset, length: [ExtentTable(rows, (None,))]
        began = time.process_time()
        view = overview(image, 2048)
        assert time.process_time() - began < 2
    assert view.total(Content.ZERO) == 100_000 * 512
