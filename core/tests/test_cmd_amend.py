"""``amend``: which options there are and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

TABLE = "Amend options for 'layer':\n  label=<str>            - Label\n  size=<size>            - Size\n"


def test_options_come_typed(layer_world: Any) -> None:
    layer = layer_world.layer("x", "1")
    assert layer_world.run("amend", "-f", "layer", "-o", "size=1M", "-o", "label=a,,b", "x") == (0, "", "")
    assert layer.log == ["open writable", "amend {'size': 1048576, 'label': 'a,b'} False", "flush"]
    assert layer_world.run("amend", "-f", "layer", "--force", "-o", "label=x", "x")[0] == 0
    assert layer.log[-2] == "amend {'label': 'x'} True"


def test_progress(layer_world: Any) -> None:
    layer_world.layer("x", "1")
    out = layer_world.run("amend", "-p", "-f", "layer", "-o", "size=1M", "x")[1]
    assert out == "    (0.00/100%)\r    (100.00/100%)\r\n"


def test_help(layer_world: Any) -> None:
    assert layer_world.run("amend", "-f", "layer", "-o", "help") == (0, TABLE, "")
    assert layer_world.run("amend", "-f", "layer", "-o", "help", "nosuch") == (0, TABLE, "")
    layer_world.layer("x", "1")
    assert layer_world.run("amend", "--image-opts", "-o", "help", "driver=layer,file.filename=x") == (0, TABLE, "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["x"], "Must specify options (-o)"),
        (["-o", "size=1M"], "Expecting one image file name"),
        (["-o", "size=1M", "x", "y"], "Expecting one image file name"),
        (["-o", "foo=1", "x"], "Invalid parameter 'foo'"),
        (["-o", "grain=1", "x"], "Invalid parameter 'grain'\nThis option is only supported for image creation"),
        (["-o", ",size=1M", "x"], "Invalid option list: ,size=1M"),
        (["-t", "foo", "-o", "size=1M", "x"], "Invalid cache option: foo"),
    ],
)
def test_mistakes(layer_world: Any, arguments: list[str], message: str) -> None:
    layer = layer_world.layer("x", "1")
    code, out, err = layer_world.run("amend", "-f", "layer", *arguments)
    assert (code, out) == (1, "")
    assert err.removesuffix("Try 'qemu-img amend --help' for more info\n") == f"qemu-img: {message}\n"
    assert not any("amend" in step for step in layer.log)


def test_formats_that_stay_as_they_are(world: Any) -> None:
    world.add("x")
    message = "qemu-img: Format driver 'toy' does not support option amendment\n"
    assert world.run("amend", "-f", "toy", "-o", "size=1M", "x") == (1, "", message)
    assert world.run("amend", "-f", "toy", "-o", "help") == (1, "", message)
