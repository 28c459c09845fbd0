"""``snapshot``: which one is meant, what is printed, and what is refused."""

from __future__ import annotations

import re
from typing import Any

import pytest

from diskwright.facts import Snapshot


def snapshots(*pairs: tuple[str, str]) -> list[Snapshot]:
    return [Snapshot(id, name, 0, 0, 0, 0, 0) for id, name in pairs]


@pytest.fixture
def image(layer_world: Any) -> Any:
    layer = layer_world.layer("x", "1")
    layer.snapshots = snapshots(("1", "a"), ("2", "1"), ("3", "a"))
    return layer


def test_list(layer_world: Any, image: Any) -> None:
    code, out, err = layer_world.run("snapshot", "-f", "layer", "x")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[:2] == [
        "Snapshot list:",
        f"{'ID':7} {'TAG':16} {'VM_SIZE':>8} {'DATE':>19} {'VM_CLOCK':>15} {'ICOUNT':>10}",
    ]
    assert [line.split()[:2] for line in lines[2:]] == [["1", "a"], ["2", "1"], ["3", "a"]]
    assert layer_world.run("snapshot", "-q", "-l", "-f", "layer", "x")[1] == out
    assert image.log == ["open", "open"]


def test_nothing_to_list(world: Any, layer_world: Any) -> None:
    layer_world.layer("x", "1")
    assert layer_world.run("snapshot", "-l", "-f", "layer", "x") == (0, "", "")


@pytest.mark.parametrize(("text", "id"), [("1", "1"), ("2", "2"), ("a", "1")])
def test_apply_looks_for_the_id_first(layer_world: Any, image: Any, text: str, id: str) -> None:
    assert layer_world.run("snapshot", "-a", text, "-f", "layer", "x") == (0, "", "")
    assert image.log == ["open writable", f"apply {id}", "flush"]


@pytest.mark.parametrize(("text", "id"), [("1", "2"), ("a", "1")])
def test_delete_goes_by_the_name(layer_world: Any, image: Any, text: str, id: str) -> None:
    assert layer_world.run("snapshot", "-d", text, "-f", "layer", "x") == (0, "", "")
    assert image.log == ["open writable", f"delete {id}", "flush"]


def test_create(layer_world: Any, image: Any) -> None:
    assert layer_world.run("snapshot", "-c", "new", "-f", "layer", "x") == (0, "", "")
    assert image.snapshots[-1].name == "new"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-l", "-c", "n"], "Cannot mix '-l', '-a', '-c', '-d'"),
        (["-c", "n", "-a", "n"], "Cannot mix '-l', '-a', '-c', '-d'"),
        (["-l", "-l"], "Cannot mix '-l', '-a', '-c', '-d'"),
        (["-a", "no"], "Could not apply snapshot 'no': Failed to load snapshot: No such file or directory"),
        (["-d", "3"], "Could not delete snapshot '3': snapshot not found"),
        (["x"], "Expecting one image file name"),
        (["-U", "-c", "n"], "Could not open 'x': force-share=on can only be used with read-only images"),
    ],
)
def test_mistakes(layer_world: Any, image: Any, arguments: list[str], message: str) -> None:
    code, out, err = layer_world.run("snapshot", "-f", "layer", *arguments, "x")
    assert (code, out) == (1, "")
    assert err.removesuffix("Try 'qemu-img snapshot --help' for more info\n") == f"qemu-img: {message}\n"
    assert len(image.snapshots) == 3


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("-c", "Could not create snapshot 's': Operation not supported"),
        ("-a", "Could not apply snapshot 's': Block driver does not support snapshots"),
        ("-d", "Could not delete snapshot 's': snapshot not found"),
    ],
)
def test_formats_without_snapshots(world: Any, option: str, message: str) -> None:
    world.add("x")
    assert world.run("snapshot", "-f", "toy", option, "s", "x") == (1, "", f"qemu-img: {message}\n")


@pytest.mark.parametrize(("wanted", "content"), [("1", "7"), ("snapshot.id=2", "8"), ("snapshot.name=1", "8")])
def test_view(layer_world: Any, image: Any, wanted: str, content: str) -> None:
    from diskwright import snapshot_view

    layer_world.layer("snapshot 1", "7")
    layer_world.layer("snapshot 2", "8")
    with layer_world.context.open("x", "layer") as opened:
        shown = snapshot_view(opened, wanted, context=layer_world.context)
        assert shown.read_at(0, 1) == bytes([int(content)])


@pytest.mark.parametrize(
    ("wanted", "reason"),
    [
        ("no", "Can't find snapshot"),
        ("snapshot.id=1,snapshot.name=1", "Can't find snapshot"),
        ("snapshot.foo=1", "Invalid parameter 'snapshot.foo'"),
    ],
)
def test_no_view(layer_world: Any, image: Any, wanted: str, reason: str) -> None:
    from diskwright import ImageError, snapshot_view

    with (
        layer_world.context.open("x", "layer") as opened,
        pytest.raises(ImageError, match=re.escape(f"Failed to load snapshot: {reason}")),
    ):
        snapshot_view(opened, wanted, context=layer_world.context)
