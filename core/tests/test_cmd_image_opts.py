"""``--image-opts`` and ``--object`` on all commands, and the options that all nodes have in common."""

from __future__ import annotations

from typing import Any

import pytest

from diskwright.errors import ImageError
from diskwright.extent import Kind
from diskwright.trees import NodeOptions, OptionString, flat, take_node_options, tree_from_options


@pytest.mark.parametrize("command", ["info", "map", "check", "snapshot", "commit", "rebase -u", "amend -o size=1M"])
def test_no_format_beside_it(world: Any, command: str) -> None:
    code, out, err = world.run(*command.split(), "-f", "toy", "--image-opts", "driver=toy,file.filename=x")
    assert (code, out, err) == (1, "", "qemu-img: --image-opts and --format are mutually exclusive\n")


def test_opens_what_the_options_name(world: Any) -> None:
    world.add("x", (Kind.ABSENT, 512))
    code, out, _ = world.run("info", "--image-opts", "driver=toy,file.driver=file,file.filename=x")
    assert code == 0
    assert out.startswith("image: x\nfile format: toy\n")


def test_the_format_is_probed_if_need_be(world: Any) -> None:
    world.add("x", (Kind.ABSENT, 512))
    assert world.run("info", "--image-opts", "file.filename=x")[1].splitlines()[1] == "file format: toy"


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ("driver=toy,file.filename=missing", "Could not open 'missing': No such file or directory"),
        ("x", "Cannot find device='x' nor node-name='x'"),
        ("filename=x", "Must specify either driver or file"),
        ("driver=nofmt,file.filename=x", "Unknown driver 'nofmt'"),
        ("driver=toy,file.filename=x,foo=bar", "Block format 'toy' does not support the option 'foo'"),
        ("driver=toy,file.filename=x,read-only=maybe", "Parameter 'read-only' expects 'on' or 'off'"),
        ("driver=toy,file.filename=x,discard=maybe", "Invalid discard option"),
        (
            "file=x,file.driver=file",
            "Cannot reference an existing block device with additional options or a new filename",
        ),
        ("driver=toy,driver.x=1,file.filename=x", "Block format 'toy' does not support the option 'driver.x'"),
        ("driver=toy", 'A block device must be specified for "file"'),
    ],
)
def test_errors_say_what_the_user_wrote(world: Any, options: str, reason: str) -> None:
    world.add("x", (Kind.ABSENT, 512))
    code, out, err = world.run("map", "--image-opts", options)
    assert (code, out, err) == (1, "", f"qemu-img: Could not open '{options}': {reason}\n")


def test_a_key_may_have_a_value_and_keys_below_it() -> None:
    tree = tree_from_options("a.b=1,a=all,a.c.d=2,x.y=1,x.z=2")
    assert tree == {"a": "all", "a.b": "1", "a.c.d": "2", "x": {"y": "1", "z": "2"}}
    assert flat(tree) == {"a": "all", "a.b": "1", "a.c.d": "2", "x.y": "1", "x.z": "2"}


def test_both_images_of_compare(world: Any) -> None:
    world.add("x", (Kind.ZERO, 512))
    world.add("y", (Kind.ABSENT, 512))
    assert world.run("compare", "--image-opts", "file.filename=x", "file.filename=y")[0] == 0
    code, _, err = world.run("compare", "--image-opts", "-F", "toy", "file.filename=x", "file.filename=y")
    assert (code, err) == (2, "qemu-img: --image-opts and --format are mutually exclusive\n")


def test_a_backing_layer_of_ones_own(layer_world: Any) -> None:
    layer_world.layer("base", "12")
    layer_world.layer("other", "34")
    layer_world.layer("top", "-5", "base")
    with layer_world.context.open(
        OptionString("driver=layer,file.filename=top,backing.driver=layer,backing.file.filename=other")
    ) as image:
        assert image.read_at(0, 1) == b"\3"
    missing = "driver=layer,file.filename=top,backing.driver=layer,backing.file.filename=nosuch"
    with pytest.raises(ImageError, match="Could not open backing file: Could not open 'nosuch'"):
        layer_world.context.open(OptionString(missing))


def test_no_backing_layer(layer_world: Any) -> None:
    layer_world.layer("top", "-5", "nosuch")
    with layer_world.context.open(OptionString("driver=layer,file.filename=top,backing=")) as image:
        assert image.read_at(0, 1) == b"\0"
    assert layer_world.warnings == ['Use of "backing": "" is deprecated; use "backing": null instead']


def test_read_only_nodes_are_not_written(layer_world: Any) -> None:
    layer_world.layer("x", "1")
    name = "driver=layer,file.filename=x,read-only=on"
    code, _, err = layer_world.run("resize", "--image-opts", name, "1M")
    assert (code, err) == (1, f"qemu-img: Could not open '{name}': Block node is read-only\n")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("node-name=n,auto-read-only=on", NodeOptions("n")),
        ("detect-zeroes=unmap,discard=unmap", NodeOptions(discard=True, detect_zeroes="unmap")),
        ("detect-zeroes=on,discard=ignore,active=on", NodeOptions(discard=False, detect_zeroes="on")),
        ("read-only=on,force-share=on", NodeOptions(read_only=True, force_share=True)),
        ("cache.direct=on", NodeOptions(cache="none")),
        ("cache.direct=on,cache.writeback=off", NodeOptions(cache="directsync")),
        ("cache.writeback=off", NodeOptions(cache="writethrough")),
        ("cache.no-flush=on", NodeOptions(cache="unsafe")),
        ("discard=unmap", NodeOptions(discard=True)),
        ("discard=ignore", NodeOptions(discard=False)),
        ("cache.direct=off", NodeOptions(cache="writeback")),
    ],
)
def test_common_options(options: str, expected: NodeOptions) -> None:
    tree = tree_from_options(f"driver=x,{options}")
    assert take_node_options(tree) == expected
    assert tree == {"driver": "x"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("secret,id=s0", "Either 'file' or 'data' must be provided"),
        ("foo,id=s0", "Parameter 'qom-type' does not accept value 'foo'"),
        ("secret,data=x", "Parameter 'id' is missing"),
    ],
)
def test_objects_are_checked(world: Any, text: str, message: str) -> None:
    for command in ("info", "resize", "bitmap", "convert"):
        code, _, err = world.run(command, "--object", text, "x")
        assert (code, err.splitlines()[0]) == (1, f"qemu-img: {message}")


def test_objects_are_there_for_the_command(world: Any) -> None:
    world.add("x", (Kind.ABSENT, 512))
    assert world.run("info", "--object", "secret,id=s0,data=x", "--object", "secret,id=s1,data=y", "x")[0] == 0
    assert world.context.objects.secret("s1") == b"y"
