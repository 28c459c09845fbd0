"""``convert`` into existing targets, from snapshots, with bitmaps; and what does not go together."""

from __future__ import annotations

from typing import Any

import pytest

from diskwright.engine.copy import CopyOptions, copy
from diskwright.errors import NodeIOError
from diskwright.extent import Kind
from diskwright.facts import Bitmap, Snapshot
from diskwright.node import Node
from diskwright.testing.nodes import MemoryNode


def convert(world: Any, *arguments: str) -> tuple[int, str, str]:
    found: tuple[int, str, str] = world.run("convert", "-f", "layer", "-O", "layer", *arguments)
    return found


@pytest.fixture
def world_of_two(layer_world: Any) -> Any:
    layer_world.layer("x", "1-0")
    layer_world.layer("y", "9999")
    return layer_world


def test_all_of_the_source_is_written(world_of_two: Any) -> None:
    assert convert(world_of_two, "-n", "x", "y") == (0, "", "")
    assert world_of_two.read("y") == "1009"


def test_zeros_are_left_out_of_a_target_that_is_zero(layer_world: Any) -> None:
    layer_world.layer("x", "1-0")
    layer_world.layer("y", "----")
    assert convert(layer_world, "-n", "--target-is-zero", "x", "y") == (0, "", "")
    assert layer_world.own("y") == "1---"


def test_zeros_over_a_backing_layer_are_written(layer_world: Any) -> None:
    """A target that is said to be zero is not so where its backing layer shows through."""
    layer_world.layer("x", "1-0---")
    layer_world.layer("base", "777")
    layer_world.layer("y", "-" * 6, "base")
    assert convert(layer_world, "-n", "--target-is-zero", "x", "y") == (0, "", "")
    assert (layer_world.own("y"), layer_world.read("y")) == ("100---", "100000")


def test_only_the_top_layer_goes_above_a_backing_layer(layer_world: Any) -> None:
    layer_world.layer("base", "777")
    layer_world.layer("x", "1-0", "base")
    layer_world.layer("y", "---", "base")
    assert convert(layer_world, "-n", "-B", "base", "-F", "layer", "x", "y") == (0, "", "")
    assert (layer_world.own("y"), layer_world.read("y")) == ("1-0", "170")


def test_pieces_of_a_cluster_keep_what_is_around_them(layer_world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The source has parts of what is one cluster in the target; between them the backing layer shows through."""
    layer_world.layer("base", "7777")
    layer_world.layer("x", "1-2-", "base")
    layer_world.layer("y", "----", "base")
    with (
        layer_world.context.open("x", "layer") as source,
        layer_world.context.open("y", "layer", writable=True) as target,
    ):
        target.cluster_size = 4 * 4096
        copy([source], target, CopyOptions(depth_limit=1))
    assert layer_world.read("y") == "1727"


def test_a_snapshot(layer_world: Any) -> None:
    layer_world.layer("x", "1-").snapshots = [Snapshot("1", "a", 0, 0, 0, 0)]
    layer_world.layer("snapshot 1", "55")
    layer_world.layer("y", "--")
    assert convert(layer_world, "-n", "-l", "a", "x", "y") == (0, "", "")
    assert layer_world.read("y") == "55"


def bitmaps(*, broken: bool) -> dict[str, Bitmap]:
    return {"b": Bitmap("b", 65536, True), "d": Bitmap("d", 512, False), "i": Bitmap("i", 512, False, broken)}


def test_bitmaps(world_of_two: Any) -> None:
    source, target = world_of_two.layers["x"], world_of_two.layers["y"]
    source.bitmaps = bitmaps(broken=False)
    source.dirty = {"b": [(0, 512)], "d": [], "i": [(512, 512)]}
    assert convert(world_of_two, "-n", "--bitmaps", "x", "y") == (0, "", "")
    assert (target.bitmaps, target.dirty) == (source.bitmaps, source.dirty)
    code, _, err = convert(world_of_two, "-n", "--bitmaps", "x", "y")
    assert (code, err) == (1, "qemu-img: Failed to create bitmap b: Bitmap already exists: b\n")


def test_broken_bitmaps(world_of_two: Any) -> None:
    source, target = world_of_two.layers["x"], world_of_two.layers["y"]
    source.bitmaps, source.dirty = bitmaps(broken=True), {"b": [], "d": [], "i": []}
    code, _, err = convert(world_of_two, "-n", "--bitmaps", "x", "y")
    assert (code, err.splitlines()[0]) == (1, "qemu-img: Cannot copy inconsistent bitmap 'i'")
    assert world_of_two.read("y") == "9999"
    assert convert(world_of_two, "-n", "--bitmaps", "--skip-broken-bitmaps", "x", "y")[0] == 0
    assert world_of_two.warnings == ["Skipping inconsistent bitmap 'i'"]
    assert set(target.bitmaps) == {"b", "d"}


class BadSector(MemoryNode):
    """A disk of which one sector cannot be read."""

    def read_into(self, offset: int, buffer: Any) -> None:
        if offset <= 512 < offset + len(buffer):
            raise NodeIOError("Could not read 'x'", OSError(5, ""))
        super().read_into(offset, buffer)


def test_salvage(world_of_two: Any) -> None:
    layer = world_of_two.layers["x"]
    space: Node = BadSector(layer.space.data, writable=True)
    layer.space = space
    code, _, err = convert(world_of_two, "-n", "x", "y")
    assert code == 1
    assert "error while reading at byte 0: " in err
    assert convert(world_of_two, "-n", "--salvage", "x", "y")[0] == 0
    assert world_of_two.warnings == ["error while reading offset 512: Input/output error"]
    with world_of_two.context.open("y", "layer") as image:
        assert image.read_at(0, 4096) == b"\1" * 512 + bytes(512) + b"\1" * 3072


def test_a_target_named_by_options(world_of_two: Any) -> None:
    arguments = ["-n", "--image-opts", "--target-image-opts", "driver=layer,file.filename=x"]
    code, out, err = world_of_two.run("convert", *arguments, "driver=layer,file.filename=y")
    assert (code, out, err) == (0, "", "")
    assert world_of_two.read("y") == "1009"


def test_a_source_is_not_its_own_target(world_of_two: Any) -> None:
    code, _, err = convert(world_of_two, "-n", "x", "x")
    assert (code, err.splitlines()[0]) == (1, 'qemu-img: Failed to get "write" lock')


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["x"], "Must specify image file name"),
        (["--target-image-opts", "x", "y"], "--target-image-opts requires use of -n flag"),
        (["--target-is-zero", "x", "y"], "--target-is-zero requires use of -n flag"),
        (
            ["--target-is-zero", "-n", "-B", "base", "-F", "layer", "x", "y"],
            "Cannot use --target-is-zero when the destination image has a backing file",
        ),
        (["-n", "-o", "size=1", "x", "y"], "-o has no effect when skipping image creation"),
        (["--skip-broken-bitmaps", "x", "y"], "Use of --skip-broken-bitmaps requires --bitmaps"),
        (["--bitmaps", "-n", "x", "x", "y"], "Copying bitmaps only possible with single source"),
        (
            ["-n", "-B", "base", "-F", "layer", "x", "x", "y"],
            "Having a backing file for the target makes no sense when concatenating multiple input images",
        ),
        (["-l", "a", "-n", "x", "x", "y"], "No support for concatenating multiple snapshot"),
        (["-l", "a", "-n", "x", "y"], "Failed to load snapshot: Can't find snapshot"),
        (["-C", "-c", "x", "y"], "Cannot enable copy offloading when -c is used"),
        (["-C", "-S", "4k", "x", "y"], "Cannot enable copy offloading when -S is used"),
        (["-C", "--salvage", "x", "y"], "Cannot use copy offloading in salvaging mode"),
        (["-r", "1x", "-n", "x", "y"], "Invalid rate limit specified: '1x'."),
        (["--image-opts", "-n", "x", "y"], "--image-opts and --format are mutually exclusive"),
        (["-n", "y", "x"], "output file is smaller than input file"),
        (["-n", "-c", "x", "y"], "Compression not supported for this file format"),
        (["-t", "foo", "-n", "x", "y"], "Invalid cache option: foo"),
        (["-T", "foo", "-n", "x", "y"], "Invalid source cache option: foo"),
    ],
)
def test_mistakes(world_of_two: Any, arguments: list[str], message: str) -> None:
    code, out, err = convert(world_of_two, *arguments)
    assert (code, out, err.splitlines()[0]) == (1, "", f"qemu-img: {message}")
    assert (world_of_two.own("x"), world_of_two.own("y")) == ("1-0", "9999")


def test_bitmaps_need_formats_that_have_them(world_of_two: Any) -> None:
    world_of_two.add("z", (Kind.ABSENT, 512))
    code, _, err = world_of_two.run("convert", "-n", "-O", "layer", "--bitmaps", "-f", "toy", "z", "y")
    assert (code, err) == (1, "qemu-img: Source lacks bitmap support\n")
    code, _, err = world_of_two.run("convert", "-n", "-O", "toy", "--bitmaps", "-f", "layer", "x", "z")
    assert (code, err) == (1, "qemu-img: Format driver 'toy' does not support bitmaps\n")
