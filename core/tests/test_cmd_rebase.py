"""``rebase``: the content stays, the overlay names the new backing file last, and what is refused."""

from __future__ import annotations

import random
from typing import Any

import pytest

from diskwright.errors import NodeIOError


def rebase(world: Any, *arguments: str) -> tuple[int, str, str]:
    found: tuple[int, str, str] = world.run("rebase", "-f", "layer", *arguments)
    return found


@pytest.fixture
def chain(layer_world: Any) -> Any:
    layer_world.layer("base", "1111")
    layer_world.layer("mid", "-20-", "base")
    layer_world.layer("top", "---3--", "mid")
    layer_world.layer("other", "1222222")
    return layer_world


@pytest.mark.parametrize(
    ("backing", "own"), [("base", "-203--"), ("other", "--0300"), ("", "12-3--"), ("mid", "---3--")]
)
def test_content_stays(chain: Any, backing: str, own: str) -> None:
    assert chain.read("top") == "120300"
    arguments = ["-b", backing, "-F", "layer"] if backing else ["-b", ""]
    assert rebase(chain, *arguments, "top") == (0, "", "")
    assert chain.read("top") == "120300"
    assert chain.own("top") == own
    assert chain.layers["top"].backing_file == (backing or None)


def test_the_name_comes_last(chain: Any) -> None:
    assert rebase(chain, "-b", "other", "-F", "layer", "top")[0] == 0
    assert chain.layers["top"].log[-3:] == ["flush", "set_backing", "flush"]


@pytest.mark.parametrize("seed", range(30))
def test_any_chain(layer_world: Any, seed: int) -> None:
    chance = random.Random(seed)

    def layer(name: str, backing: str | None) -> None:
        signs = chance.choices("-0123", k=chance.randint(1, 9))
        layer_world.layer(name, "".join(signs), backing)

    layer("base", None)
    layer("mid", "base")
    layer("top", "mid")
    layer("new", chance.choice(["base", "mid", None]))
    before = layer_world.read("top")
    for backing in chance.sample(["base", "mid", "new", ""], 3):
        arguments = ["-b", backing, "-F", "layer"] if backing else ["-b", ""]
        assert rebase(layer_world, *arguments, "top") == (0, "", "")
        assert layer_world.read("top") == before


def test_unsafe_changes_the_name_only(chain: Any) -> None:
    assert rebase(chain, "-u", "-b", "nosuch", "-F", "layer", "top") == (0, "", "")
    assert chain.own("top") == "---3--"
    assert chain.layers["top"].backing_file == "nosuch"
    assert rebase(chain, "-u", "top") == (0, "", "")
    assert chain.layers["top"].backing_file is None


def test_a_failure_keeps_the_backing_file(chain: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(offset: int, data: bytes) -> None:
        raise NodeIOError("Could not write 'top'", OSError(28, ""))

    monkeypatch.setattr(chain.layers["top"].space, "write_at", fail)
    code, _, err = rebase(chain, "-b", "", "top")
    assert code == 1
    assert "No space left on device" in err
    assert chain.layers["top"].backing_file == "mid"
    assert chain.read("top") == "120300"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Expecting one image file name"),
        (["-b", "x", "a", "b"], "Expecting one image file name"),
        (["top"], "Must specify backing file (-b) or use unsafe mode (-u)"),
        (["-b", "other", "top"], "Could not change the backing file to 'other': backing format must be specified"),
        (["-b", "other", "-F", "xyz", "top"], "Invalid format name: 'xyz'"),
        (
            ["-b", "nosuch", "-F", "layer", "top"],
            "Could not open new backing file 'nosuch': Could not open 'nosuch': No such file or directory",
        ),
        (["-b", "top", "-F", "layer", "top"], "Could not open new backing file 'top': it is the image itself"),
        (["-t", "foo", "-b", "", "top"], "Invalid cache option: foo"),
        (["-T", "foo", "-b", "", "top"], "Invalid source cache option: foo"),
        (["-c", "-b", "", "top"], "Compression not supported for this file format"),
    ],
)
def test_mistakes(chain: Any, arguments: list[str], message: str) -> None:
    code, out, err = rebase(chain, *arguments)
    assert (code, out, err.splitlines()[0]) == (1, "", f"qemu-img: {message}")
    assert chain.layers["top"].backing_file == "mid"
    assert chain.own("top") == "---3--"


def test_formats_without_backing_files(world: Any) -> None:
    world.add("x")
    message = "qemu-img: Could not change the backing file to '': Operation not supported\n"
    assert world.run("rebase", "-f", "toy", "-b", "", "x") == (1, "", message)
    message = "qemu-img: Compression not supported for this file format\n"
    for more in ([], ["-u"]):
        assert world.run("rebase", "-c", "-f", "toy", *more, "-b", "", "x") == (1, "", message)
