"""``bitmap``: actions in their order, merging, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from diskwright.facts import Bitmap


@pytest.fixture
def image(layer_world: Any) -> Any:
    layer = layer_world.layer("x", "--")
    layer.bitmaps = {"b": Bitmap("b", 65536, True), "broken": Bitmap("broken", 65536, False, inconsistent=True)}
    layer.dirty = {"b": [(0, 512)], "broken": []}
    return layer


def run(world: Any, *arguments: str) -> tuple[int, str, str]:
    found: tuple[int, str, str] = world.run("bitmap", "-f", "layer", *arguments)
    return found


@pytest.mark.parametrize(
    ("arguments", "bitmap"),
    [
        (["--add"], Bitmap("n", 4096, True)),
        (["--add", "-g", "2G"], Bitmap("n", 1 << 31, True)),
        (["--add", "-g", "0"], Bitmap("n", 4096, True)),
        (["--add", "--disable"], Bitmap("n", 4096, False)),
        (["--add", "--disable", "--enable"], Bitmap("n", 4096, True)),
    ],
)
def test_add(layer_world: Any, image: Any, arguments: list[str], bitmap: Bitmap) -> None:
    assert run(layer_world, *arguments, "x", "n") == (0, "", "")
    assert image.bitmaps["n"] == bitmap
    assert image.log == ["open writable", "flush"]


def test_actions_are_done_in_their_order(layer_world: Any, image: Any) -> None:
    assert run(layer_world, "--add", "--merge", "b", "x", "n") == (0, "", "")
    assert image.dirty["n"] == [(0, 512)]
    code, _, err = run(layer_world, "--merge", "b", "--add", "x", "m")
    assert (code, err) == (1, "qemu-img: Operation merge on bitmap m failed: Dirty bitmap 'm' not found\n")


def test_clear_and_remove(layer_world: Any, image: Any) -> None:
    assert run(layer_world, "--clear", "x", "b") == (0, "", "")
    assert image.dirty["b"] == []
    assert run(layer_world, "--remove", "x", "b") == (0, "", "")
    assert run(layer_world, "--remove", "x", "broken") == (0, "", "")
    assert not image.bitmaps


def test_merge_from_another_image(layer_world: Any, image: Any) -> None:
    other = layer_world.layer("y", "--")
    other.bitmaps, other.dirty = {"o": Bitmap("o", 512, True)}, {"o": [(4096, 4096)]}
    assert run(layer_world, "--merge", "o", "-b", "y", "-F", "layer", "x", "b") == (0, "", "")
    assert image.dirty["b"] == [(0, 512), (4096, 4096)]
    other.size += 512
    code, _, err = run(layer_world, "--merge", "o", "-b", "y", "-F", "layer", "x", "b")
    assert code == 1
    assert err == (
        "qemu-img: Operation merge on bitmap b failed: Bitmaps are of different sizes (destination size is 8192, "
        "source size is 8704) and can't be merged\n"
    )


def test_merge_with_itself_changes_nothing(layer_world: Any, image: Any) -> None:
    assert run(layer_world, "--merge", "b", "x", "b") == (0, "", "")
    assert image.dirty["b"] == [(0, 512)]


INCONSISTENT = "Bitmap 'broken' is inconsistent and cannot be used"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["x", "b"], "Need at least one of --add, --remove, --clear, --enable, --disable, or --merge"),
        (["--add", "x"], "Expecting filename and bitmap name"),
        (["--add", "x", "b", "c"], "Expecting filename and bitmap name"),
        (["--clear", "-g", "64k", "x", "b"], "granularity only supported with --add"),
        (["--clear", "-F", "layer", "x", "b"], "-F only supported with -b"),
        (["--clear", "-b", "y", "x", "b"], "Merge bitmap source file only supported with --merge"),
        (["--add", "-g", "1x", "x", "n"], "Invalid granularity specified: '1x'."),
        (
            ["--merge", "o", "-b", "nosuch", "x", "b"],
            "Could not open 'nosuch': Could not open 'nosuch': No such file or directory",
        ),
        (["--add", "x", "b"], "Operation add on bitmap b failed: Bitmap already exists: b"),
        (["--add", "x", ""], "Operation add on bitmap  failed: Bitmap name cannot be empty"),
        (
            ["--add", "-g", "1000", "x", "n"],
            "Operation add on bitmap n failed: Granularity must be power of 2 and at least 512",
        ),
        (
            ["--add", "-g", "256", "x", "n"],
            "Operation add on bitmap n failed: Granularity must be power of 2 and at least 512",
        ),
        (
            ["--add", "-g", "4G", "x", "n"],
            "Operation add on bitmap n failed: Granularity must be power of 2 and at least 512",
        ),
        (["--remove", "x", "n"], "Operation remove on bitmap n failed: Dirty bitmap 'n' not found"),
        (["--enable", "x", "n"], "Operation enable on bitmap n failed: Dirty bitmap 'n' not found"),
        (["--merge", "n", "x", "b"], "Operation merge on bitmap b failed: Dirty bitmap 'n' not found"),
        (["--clear", "x", "broken"], f"Operation clear on bitmap broken failed: {INCONSISTENT}"),
        (["--disable", "x", "broken"], f"Operation disable on bitmap broken failed: {INCONSISTENT}"),
        (["--merge", "broken", "x", "b"], f"Operation merge on bitmap b failed: {INCONSISTENT}"),
        (["--merge", "b", "x", "broken"], f"Operation merge on bitmap broken failed: {INCONSISTENT}"),
    ],
)
def test_mistakes(layer_world: Any, image: Any, arguments: list[str], message: str) -> None:
    code, out, err = run(layer_world, *arguments)
    assert (code, out, err.splitlines()[0]) == (1, "", f"qemu-img: {message}")
    assert set(image.bitmaps) == {"b", "broken"}
    assert image.dirty["b"] == [(0, 512)]


def test_a_name_has_its_limit(layer_world: Any, image: Any) -> None:
    assert run(layer_world, "--add", "x", "n" * 1023)[0] == 0
    assert "Bitmap name too long" in run(layer_world, "--add", "x", "n" * 1024)[2]


def test_formats_without_bitmaps(world: Any) -> None:
    world.add("x")
    code, _, err = world.run("bitmap", "-f", "toy", "--add", "x", "b")
    assert code == 1
    assert err == (
        "qemu-img: Operation add on bitmap b failed: Can't store persistent bitmaps to x: Operation not supported\n"
    )
    code, _, err = world.run("bitmap", "-f", "toy", "--clear", "x", "b")
    assert (code, err) == (1, "qemu-img: Operation clear on bitmap b failed: Dirty bitmap 'b' not found\n")
