"""``checksum``: the definition, and that the layout of an image does not matter."""

from __future__ import annotations

import json
import random
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import diskwright
from diskwright.engine import checksum as engine
from diskwright.engine.checksum import CHUNK, checksum, chunks
from diskwright.engine.hashtree import ALGORITHMS, BLOCK, FANOUT, HashTree
from diskwright.errors import ImageError, InvalidImage
from diskwright.extent import Extent, Kind, tabulate

DOCUMENT = Path(__file__).parents[2] / "docs" / "checksum.md"


@pytest.fixture(scope="module")
def defined() -> Callable[..., str]:
    """The definition in the documentation, as code."""
    (code,) = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)
    names: dict[str, Any] = {}
    exec(code, names)
    found: Callable[..., str] = names["checksum"]
    return found


def raw(world: Any, name: str, data: bytes) -> None:
    world.add(name, (Kind.DATA, len(data), 0), data=data)


def of(world: Any, name: str, algorithm: str = "sha256") -> str:
    with world.context.open(name) as image:
        return checksum(image, algorithm)


@pytest.mark.parametrize("size", [0, 512, BLOCK - 512, BLOCK, BLOCK + 512, CHUNK, 5 * CHUNK - 512, 17 * CHUNK + 512])
@pytest.mark.parametrize("filled", [False, True])
def test_the_definition(world: Any, defined: Callable[..., str], size: int, filled: bool) -> None:
    data = random.Random(size).randbytes(size) if filled else bytes(size)
    world.add("x", *([(Kind.DATA, size, 0)] if size else []), data=data)
    assert of(world, "x") == defined(data)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_algorithms(world: Any, defined: Callable[..., str], algorithm: str) -> None:
    raw(world, "x", b"x" * (BLOCK + 512))
    assert of(world, "x", algorithm) == defined(b"x" * (BLOCK + 512), algorithm)


def test_a_tree_over_mostly_zeros_is_that_over_all_blocks() -> None:
    """Leaves in far places; the same tree with every leaf put in one by one."""
    places = [0, 3, FANOUT - 1, FANOUT, 2 * FANOUT + 5, 40 * FANOUT, 40 * FANOUT + 1]
    total = 41 * FANOUT + 7
    short, long = HashTree("blake2s"), HashTree("blake2s")
    zero = long.leaf(bytes(BLOCK))
    for index in range(total):
        if index in places:
            short.add(index, bytes([index % 251]) * 32)
        long.add(index, bytes([index % 251]) * 32 if index in places else zero)
    assert short.checksum(total * BLOCK) == long.checksum(total * BLOCK)


def test_content_size_and_place_matter(world: Any) -> None:
    disks = {
        "a": b"a" * 512 + bytes(BLOCK * 2),
        "b": b"b" * 512 + bytes(BLOCK * 2),
        "longer": b"a" * 512 + bytes(BLOCK * 2 + 512),
        "moved": bytes(BLOCK) + b"a" * 512 + bytes(BLOCK),
        "zeros": bytes(BLOCK),
        "more zeros": bytes(2 * BLOCK),
        "nothing": b"",
    }
    for name, data in disks.items():
        world.add(name, *([(Kind.DATA, len(data), 0)] if data else []), data=data)
    assert len({of(world, name) for name in disks}) == len(disks)


def test_layout_does_not_matter(world: Any, defined: Callable[..., str]) -> None:
    """Random layouts of the same content, with parts in backing layers and borders anywhere."""
    rng = random.Random(3)
    for _ in range(30):
        sectors = rng.randrange(1, 9000)
        runs = []
        while sum(length for _, length in runs) < sectors:
            runs.append((rng.choice("zde"), min(rng.choice([1, 5, 127, 128, 900, 3000]), sectors)))
        content, extents, below, position = bytearray(), [], [], 0
        for kind, length in runs:
            size = length * 512
            content += {"z": bytes(size), "e": b"\xee" * size, "d": rng.randbytes(512) * length}[kind]
            way: tuple[Any, ...] = {
                "z": (Kind.ZERO, size),
                "e": (Kind.ENCODED, size),
                "d": (Kind.DATA, size, position),
            }[kind]
            inherited = rng.random() < 0.5
            extents.append((Kind.ABSENT, size) if inherited else way)
            below.append(way if inherited else (Kind.DATA, size, 0))
            position += size
        world.add("below", *below, data=bytes(content))
        world.add("x", *extents, data=bytes(content), backing_file="below")
        raw(world, "plain", bytes(content))
        assert of(world, "x") == of(world, "plain") == defined(bytes(content))


def test_chunks_are_whole_whatever_the_tables_are() -> None:
    rng = random.Random(8)
    for _ in range(50):
        items, position = [], 0
        while position < 9 * CHUNK:
            length = 512 * rng.choice([1, 7, 100, 2048, 3000])
            items.append(Extent(position, length, rng.choice([Kind.DATA, Kind.ZERO, Kind.ABSENT, Kind.ENCODED])))
            position += length
        tables = []
        while items:
            count = rng.randrange(1, 6)
            tables += list(tabulate(items[:count]))
            del items[:count]
        found = list(chunks(tables))
        assert [chunk.number for chunk in found] == list(range(len(found)))
        covered = set()
        for chunk in found:
            assert chunk.start % CHUNK == 0
            assert chunk.tables[0].start == chunk.start
            assert all(a.end == b.start for a, b in zip(chunk.tables, chunk.tables[1:], strict=False))
            assert chunk.tables[-1].end == min(chunk.start + CHUNK, position)
            covered.add(chunk.start // CHUNK)
        for table in tables:
            for extent in table:
                if extent.kind in (Kind.DATA, Kind.ENCODED):
                    assert set(range(extent.offset // CHUNK, (extent.end - 1) // CHUNK + 1)) <= covered


def test_huge_disks_without_data_take_no_time(world: Any) -> None:
    world.add("x", (Kind.ZERO, 1 << 50), (Kind.DATA, 512, 0), (Kind.ABSENT, 1 << 50), data=b"a" * 512)
    start = time.monotonic()
    of(world, "x")
    assert time.monotonic() - start < 5
    world.add("tib", (Kind.ZERO, 1 << 40))
    assert of(world, "tib") != of(world, "x")


def test_many_workers(world: Any, monkeypatch: pytest.MonkeyPatch, defined: Callable[..., str]) -> None:
    data = random.Random(1).randbytes(20 * CHUNK)
    raw(world, "x", data)
    monkeypatch.setattr(engine, "worker_count", lambda wanted: 8)
    assert of(world, "x") == defined(data)


def test_failures(world: Any) -> None:
    world.add("x", (Kind.ZERO, CHUNK), (Kind.ENCODED, 512), broken=InvalidImage("damaged"))
    assert world.run("checksum", "x") == (1, "", f"qemu-img: error while reading at byte {CHUNK}: damaged\n")
    raw(world, "y", b"y" * 512)
    code, out, err = world.run("checksum", "-a", "md5", "y")
    assert (code, out) == (1, "")
    assert err.startswith("qemu-img: Unknown checksum algorithm 'md5'")
    assert world.run("checksum")[2].splitlines()[0] == "qemu-img: Expecting one image file name"
    with pytest.raises(ImageError):
        diskwright.checksum("nothing", context=world.context)


def test_output(world: Any, defined: Callable[..., str]) -> None:
    raw(world, "x", b"x" * 512)
    expected = defined(b"x" * 512)
    assert world.run("checksum", "x") == (0, f"{expected}  x\n", "")
    assert world.run("checksum", "-q", "x") == (0, "", "")
    assert json.loads(world.run("checksum", "--output=json", "x")[1]) == {
        "filename": "x",
        "virtual-size": 512,
        "algorithm": "sha256",
        "checksum": expected,
    }
    assert diskwright.checksum("x", context=world.context) == expected
    with world.context.open("x") as image:
        assert diskwright.checksum(image) == expected


def test_comparing(world: Any, defined: Callable[..., str]) -> None:
    raw(world, "x", b"x" * 512)
    expected = defined(b"x" * 512)
    for given in (expected, expected.upper(), f"{expected}  other name\n"):
        assert world.run("checksum", "--compare", given, "x") == (0, "x: OK\n", "")
    for given in (expected[:-1], "", "0" * 64):
        assert world.run("checksum", "--compare", given, "x") == (1, "x: FAILED\n", "")
    assert world.run("checksum", "-q", "-c", "0", "x") == (1, "", "")
    assert json.loads(world.run("checksum", "--output=json", "-c", "0", "x")[1])["matches"] is False
