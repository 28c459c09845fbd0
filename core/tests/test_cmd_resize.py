"""``resize``: sizes, what is refused, and what it asks of the format."""

from __future__ import annotations

from typing import Any

import pytest

MIB = 1 << 20
NOT_A_SIZE = "Parameter 'size' expects a non-negative number below 2^64"
SHRINKING = (
    "qemu-img: Use the --shrink option to perform a shrink operation.\n"
    "qemu-img: warning: Shrinking an image will delete all data beyond the shrunken image's end. Before performing "
    "such an operation, make sure there is no important data there.\n"
)


@pytest.fixture
def image(layer_world: Any) -> Any:
    return layer_world.layer("x", "-" * 256)


@pytest.mark.parametrize(
    ("arguments", "size"),
    [
        (["2M"], 2 * MIB),
        (["+1M"], 2 * MIB),
        (["1M"], MIB),
        (["+512"], MIB + 512),
        (["--shrink", "-512k"], MIB // 2),
        (["--shrink", "512"], 512),
        (["--shrink", "--", "-.5M"], MIB // 2),
    ],
)
def test_sizes(layer_world: Any, image: Any, arguments: list[str], size: int) -> None:
    *options, text = arguments
    marks = ["--"] if "--" in options else []
    options = [option for option in options if option != "--"]
    assert layer_world.run("resize", "-f", "layer", *options, *marks, "x", text) == (0, "Image resized.\n", "")
    assert image.size == size
    assert image.log == ["open writable", "resize off", "flush"]


def test_quiet(layer_world: Any, image: Any) -> None:
    assert layer_world.run("resize", "-q", "-f", "layer", "x", "+1M") == (0, "", "")


def test_preallocation(layer_world: Any, image: Any) -> None:
    assert layer_world.run("resize", "--preallocation=full", "-f", "layer", "x", "+1M")[0] == 0
    assert image.log[1] == "resize full"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["x"], "Expecting image file name and size"),
        (["x", "1M", "2M"], "Extra argument(s) in command line"),
        (["x", "xx"], NOT_A_SIZE),
        (["x", "+1x"], NOT_A_SIZE),
        (["x", ""], NOT_A_SIZE),
        (["x", "0"], "New image size must be positive"),
        (["--shrink", "x", "-1M"], "New image size must be positive"),
        (["--shrink", "x", "-5M"], "New image size must be positive"),
        (["x", "+1000"], "The new size must be a multiple of 512"),
        (["x", "8E"], "Invalid image size specified. Must be between 0 and 9223372036854775807."),
        (["--preallocation=foo", "x", "+1M"], "Invalid preallocation mode 'foo'"),
        (["--preallocation=full", "--shrink", "x", "-512"], "Preallocation can only be used for growing images"),
        (["--preallocation=full", "x", "1M"], "Preallocation can only be used for growing images"),
    ],
)
def test_mistakes(layer_world: Any, image: Any, arguments: list[str], message: str) -> None:
    code, out, err = layer_world.run("resize", "-f", "layer", *arguments)
    assert (code, out, err.splitlines()[0]) == (1, "", f"qemu-img: {message}")
    assert image.size == MIB


def test_shrinking_is_to_be_meant(layer_world: Any, image: Any) -> None:
    assert layer_world.run("resize", "-f", "layer", "x", "-512k") == (1, "", SHRINKING)
    assert image.log == ["open writable"]


def test_formats_of_fixed_size(world: Any) -> None:
    world.add("x")
    message = "qemu-img: Image format driver does not support resize\n"
    assert world.run("resize", "-f", "toy", "x", "1M") == (1, "", message)
