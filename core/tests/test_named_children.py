"""Nodes that a user names for an image besides its file: ``driver=...,header.filename=...``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from diskwright.errors import ImageError, InvalidImage
from diskwright.extent import Kind
from diskwright.hookspecs import OpenOptions, ProbeHit, hookimpl
from diskwright.node import Image, Node
from diskwright.trees import OptionString


class HeadedImage(Image):
    """An image that may have its header elsewhere."""

    def __init__(self, source: Node, named: dict[str, Node]) -> None:
        self.file = source
        self.named = named

    @property
    def size(self) -> int:
        return 512

    def children(self) -> dict[str, Node]:
        return super().children() | self.named

    def release(self) -> None:
        for child in self.children().values():
            child.close()


class HeadedFormat:
    """The format ``headed``: a file named ``broken`` cannot be opened."""

    def __init__(self) -> None:
        self.seen: list[Node] = []

    @hookimpl
    def probe(self, head: bytes, filename: str) -> ProbeHit | None:
        return None

    @hookimpl
    def child_roles(self) -> Sequence[str]:
        return ["header"]

    @hookimpl
    def open(self, source: Node, options: OpenOptions) -> Image:
        self.seen = list(options.children.values())
        if source.filename == "broken":
            raise InvalidImage("It is broken")
        return HeadedImage(source, dict(options.children))


@pytest.fixture
def headed(world: Any) -> HeadedFormat:
    """The format, in a world with the files ``x``, ``h`` and ``broken``."""
    for name in ("x", "h", "broken"):
        world.add(name, (Kind.ZERO, 512), data=name.encode())
    driver = HeadedFormat()
    world.context.formats.register("headed", driver)
    return driver


OPENERS: list[Callable[[Any, str, str], Image]] = [
    lambda context, file, header: context.open(
        OptionString(f"driver=headed,file.filename={file},header.driver=file,header.filename={header}")
    ),
    lambda context, file, header: context.open(
        f'json:{{"driver": "headed", "file": {{"filename": "{file}"}}, "header": {{"filename": "{header}"}}}}'
    ),
    lambda context, file, header: context.open(file, "headed", options={"header.filename": header}),
]


@pytest.mark.parametrize("opener", OPENERS, ids=["options", "json", "values"])
def test_the_driver_gets_the_node(world: Any, headed: HeadedFormat, opener: Any) -> None:
    with opener(world.context, "x", "h") as image:
        assert set(image.children()) == {"file", "header"}
        header = image.children()["header"]
        assert header.read_at(0, 1) == b"h"
        assert header.driver == "file"
    assert header._closed


def test_the_node_may_be_an_image(world: Any, headed: HeadedFormat) -> None:
    name = OptionString("driver=headed,file.filename=x,header.driver=toy,header.file.filename=h")
    with world.context.open(name) as image:
        assert image.children()["header"].driver == "toy"


@pytest.mark.parametrize("opener", OPENERS, ids=["options", "json", "values"])
def test_the_node_is_closed_if_the_image_is_broken(world: Any, headed: HeadedFormat, opener: Any) -> None:
    with pytest.raises(ImageError, match="It is broken"):
        opener(world.context, "broken", "h")
    assert [node._closed for node in headed.seen] == [True]


def test_the_name_says_all_of_it(world: Any, headed: HeadedFormat) -> None:
    name = OptionString("driver=headed,file.filename=x,header.filename=h")
    with world.context.open(name) as image, world.context.open(image.filename) as again:
        assert again.children()["header"].filename == "h"


@pytest.mark.parametrize(
    ("option", "reason"),
    [
        ("header.filename=missing", "Could not open 'missing': No such file or directory"),
        ("header=h", "Cannot find device='h' nor node-name='h'"),
        ("header.driver=file", "The 'file' block driver requires a file name"),
        ("footer.filename=h", "Block format 'headed' does not support the option 'footer.filename'"),
    ],
)
def test_what_cannot_be_opened(world: Any, headed: HeadedFormat, option: str, reason: str) -> None:
    name = f"driver=headed,file.filename=x,{option}"
    code, out, err = world.run("map", "--image-opts", name)
    assert (code, out, err) == (1, "", f"qemu-img: Could not open '{name}': {reason}\n")
