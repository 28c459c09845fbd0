"""``measure``: what is measured and how it is printed."""

from __future__ import annotations

import json
from typing import Any

import pytest


def test_a_new_image(layer_world: Any) -> None:
    assert layer_world.run("measure", "-O", "layer", "--size", "1M") == (
        0,
        "required size: 0\nfully allocated size: 1048576\n",
        "",
    )


def test_the_data_of_all_layers(layer_world: Any) -> None:
    layer_world.layer("base", "12-")
    layer_world.layer("top", "0-3-", "base")
    arguments = ("measure", "-f", "layer", "-O", "layer", "top")
    assert layer_world.run(*arguments)[1] == "required size: 8192\nfully allocated size: 16384\nbitmaps size: 7\n"
    assert json.loads(layer_world.run(*arguments, "--output=json")[1]) == {
        "bitmaps": 7,
        "required": 8192,
        "fully-allocated": 16384,
    }


def test_a_snapshot(layer_world: Any) -> None:
    from diskwright.facts import Snapshot

    layer_world.layer("x", "----").snapshots = [Snapshot("1", "a", 0, 0, 0, 0)]
    layer_world.layer("snapshot 1", "111")
    out = layer_world.run("measure", "-l", "a", "-f", "layer", "-O", "layer", "x")[1]
    assert out == "required size: 12288\nfully allocated size: 12288\nbitmaps size: 7\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Either --size N or one filename must be specified."),
        (["x", "y"], "At most one filename argument is allowed."),
        (["-s", "1M", "x"], "--size N cannot be used together with a filename."),
        (["-f", "raw", "-s", "1M"], "--image-opts, -f, and -l require a filename argument."),
        (["-l", "a", "-s", "1M"], "--image-opts, -f, and -l require a filename argument."),
        (["--image-opts", "-s", "1M"], "--image-opts, -f, and -l require a filename argument."),
        (["--image-opts", "-f", "toy", "x"], "--image-opts and --format are mutually exclusive"),
        (["-s", "1x"], "Invalid image size specified: '1x'."),
        (["-s", "1M", "--output", "xml"], "--output expects 'human' or 'json' not 'xml'"),
        (["-s", "1M", "-O", "nofmt"], "Unknown file format 'nofmt'"),
        (["-s", "1M", "-O", "layer", "-o", "foo=1"], "Invalid parameter 'foo'"),
        (["-s", "1M", "-O", "toy"], "Format driver 'toy' does not support image creation"),
    ],
)
def test_mistakes(layer_world: Any, arguments: list[str], message: str) -> None:
    code, out, err = layer_world.run("measure", *arguments)
    assert (code, out, err.splitlines()[0]) == (1, "", f"qemu-img: {message}")


@pytest.mark.parametrize("command", ["measure", "convert"])
def test_snapshot_names_are_looked_at_first(layer_world: Any, command: str) -> None:
    assert layer_world.run(command, "-l", "snapshot.foo=bar") == (
        1,
        "",
        "qemu-img: Invalid parameter 'snapshot.foo'\nqemu-img: Failed in parsing snapshot param 'snapshot.foo=bar'\n",
    )


def test_all_option_lists_are_looked_at_before_help(layer_world: Any) -> None:
    for command in ("measure", "convert", "create", "amend"):
        code, out, err = layer_world.run(command, "-o", "help", "-o", ",,")
        assert (code, out, err) == (1, "", "qemu-img: Invalid option list: ,,\n")
