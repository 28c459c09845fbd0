"""The header changes at one instant, also where it takes several sectors and a power cut keeps any of them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import diskwright
from diskwright.context import default_context
from diskwright.facts import Bitmap
from diskwright.node import SECTOR, Node
from diskwright.testing import RecordingNode, open_node
from diskwright_qcow2.extensions import Extension
from diskwright_qcow2.image import Qcow2Image
from diskwright_qcow2.switching import switch_header

SIZE = 1 << 20
LONG = "a name that is longer than the old one"
Change = Callable[[Qcow2Image], None]


def hook(name: str, **arguments: Any) -> Change:
    return lambda image: default_context().formats.call(name, "qcow2", image=image, **arguments)


def amend(**values: Any) -> Change:
    return hook("amend", values=values, force=False, progress=lambda done, total: None)


CHANGES: dict[str, Change] = {
    "longer name": hook("set_backing", backing_file=LONG, backing_format="qcow2"),
    "shorter name": hook("set_backing", backing_file="b", backing_format="qcow2"),
    "longer format": hook("set_backing", backing_file="other", backing_format="parallels"),
    "no format": hook("set_backing", backing_file="other", backing_format=None),
    "no name": hook("set_backing", backing_file=None, backing_format=None),
    "bitmap": hook("bitmap_add", bitmap=Bitmap("b", 65536, enabled=True)),
    "version": amend(compat="1.1"),
}
IMAGES: dict[str, dict[str, Any]] = {
    "default": {},
    "no format": {"changes": {"backing_format": None}},
    "unknown extension": {"changes": {"unknown_extensions": (Extension(0x12345678, b"whatever"),)}},
    "long name": {"backing_file": LONG * 2},
    "no name": {"backing_file": None, "backing_format": None},
    "1k": {"cluster_size": 1024},
    "512": {"cluster_size": 512},
    "version 2": {"compat": "0.10"},
    "extended": {"extended_l2": True, "cluster_size": 16384},
}


def opened(node: Node, *, writable: bool = False) -> Qcow2Image:
    image = open_node(node, "qcow2", writable=writable)
    assert isinstance(image, Qcow2Image)
    return image


def said(node: Node) -> tuple[Any, ...]:
    """What the header says, but for where things stand."""
    image = opened(node)
    header = image.header
    bitmaps = header.bitmaps and (header.bitmaps.number, header.autoclear_features)
    return header.version, header.backing_file, header.backing_format, bitmaps, header.unknown_extensions, header.size


def power_cuts(node: RecordingNode) -> Iterator[Node]:
    """The file with the first writes, and any sectors of those that were not made durable."""
    for count in range(len(node.steps) + 1):
        safe = node.safe_before(count)
        sectors = [sector for step in node.steps[safe:count] for sector in split(step)]
        for kept in itertools.product((False, True), repeat=min(len(sectors), 8)):
            left = node.after(safe)
            for sector in itertools.compress(sectors, kept):
                left.write_at(*sector)
            yield left


def split(step: tuple[int, bytes | None]) -> Iterator[tuple[int, bytes]]:
    offset, data = step
    assert data is not None, "nothing is cut off here"
    while data:
        length = SECTOR - offset % SECTOR
        yield offset, data[:length]
        offset, data = offset + length, data[length:]


@pytest.fixture
def image(request: pytest.FixtureRequest, tmp_path: Path) -> RecordingNode:
    path = tmp_path / "image"
    options: dict[str, Any] = {"backing_file": "the old name", "backing_format": "qcow2", **IMAGES[request.param]}
    changes: dict[str, Any] = options.pop("changes", {})
    if options["backing_file"]:
        diskwright.create(tmp_path / options["backing_file"], "qcow2", SIZE)
    diskwright.create(path, "qcow2", SIZE, **options)
    with diskwright.open(path, "qcow2", writable=True, backing=False) as found:
        assert isinstance(found, Qcow2Image)
        if changes:
            switch_header(found, **changes)
    return RecordingNode(path.read_bytes())


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("image", IMAGES, indirect=True)
def test_power_cuts(image: RecordingNode, change: str) -> None:
    writer = opened(image, writable=True)
    if change == "bitmap" and writer.header.version == 2:
        pytest.skip("version 2 has no bitmaps")
    before = said(image)
    CHANGES[change](writer)
    writer.close()
    after = said(image)
    seen = {said(left) for left in power_cuts(image)}
    assert seen == {before, after}
    expected = writer.header.build()
    assert image.read_at(0, len(expected)) == expected, "nothing is left of the way"


def test_a_disk_grows_when_the_last_sector_that_counts_is_written(tmp_path: Path) -> None:
    diskwright.create(tmp_path / "image", "qcow2", SIZE)
    with diskwright.open(tmp_path / "image", "qcow2", writable=True) as found:
        assert isinstance(found, Qcow2Image)
        switch_header(found, backing_format="raw")  # so that the names of features end in the second sector
    data = bytearray((tmp_path / "image").read_bytes())
    data[514:519] = b"other"  # as others name them
    image = RecordingNode(data)
    writer = opened(image, writable=True)
    hook("resize", size=2 * SIZE, preallocation="off")(writer)
    writer.close()
    final = image.read_at(0, 65536)
    assert final == writer.header.build()
    for count in range(len(image.steps) + 1):
        left = image.after(count)
        assert opened(left).size in (SIZE, 2 * SIZE)
        if opened(left).size > SIZE:
            assert left.read_at(0, 65536) == final
