"""``commit``: what is written where, in which order, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from diskwright.errors import NodeIOError


def commit(world: Any, *arguments: str) -> tuple[int, str, str]:
    found: tuple[int, str, str] = world.run("commit", "-f", "layer", *arguments)
    return found


@pytest.fixture
def chain(layer_world: Any) -> Any:
    layer_world.layer("base", "1111")
    layer_world.layer("mid", "-222", "base")
    layer_world.layer("top", "--03", "mid")
    return layer_world


def test_into_the_layer_below(chain: Any) -> None:
    assert commit(chain, "top") == (0, "Image committed.\n", "")
    assert (chain.own("base"), chain.own("mid"), chain.own("top")) == ("1111", "-203", "----")
    assert chain.read("top") == "1203"


def test_the_base_is_safe_before_the_top_is_emptied(chain: Any) -> None:
    log: list[str] = []
    for name in ("mid", "top"):
        chain.layers[name].log = log
    assert commit(chain, "-q", "top") == (0, "", "")
    writes = [step for step in log if not step.startswith("open")]
    assert writes == ["zero", "link", "flush", "make_empty", "flush"]


@pytest.mark.parametrize("arguments", [["-d"], ["-b", "mid"]])
def test_the_top_can_be_kept(chain: Any, arguments: list[str]) -> None:
    assert commit(chain, *arguments, "top")[0] == 0
    assert (chain.own("mid"), chain.own("top")) == ("-203", "--03")


def test_into_a_layer_further_down(chain: Any) -> None:
    assert commit(chain, "-b", "base", "top")[0] == 0
    assert (chain.own("base"), chain.own("mid"), chain.own("top")) == ("1203", "-222", "--03")
    assert chain.read("top") == "1203"


def test_a_shorter_layer_between_reads_as_zeros(layer_world: Any) -> None:
    """Where it ends, it does not let the base show through."""
    layer_world.layer("base", "1111")
    layer_world.layer("mid", "--", "base")
    layer_world.layer("top", "----", "mid")
    assert layer_world.read("top") == "1100"
    assert commit(layer_world, "-b", "base", "top")[0] == 0
    assert layer_world.read("base") == "1100"


def test_a_smaller_base_grows(layer_world: Any) -> None:
    base = layer_world.layer("base", "11")
    layer_world.layer("top", "-2--", "base")
    assert commit(layer_world, "top")[0] == 0
    assert base.size == 4 * 4096
    assert "resize off" in base.log
    assert (layer_world.read("base"), layer_world.read("top")) == ("1200", "1200")


def test_a_larger_base_keeps_its_rest(layer_world: Any) -> None:
    layer_world.layer("base", "1111")
    layer_world.layer("top", "2-", "base")
    assert commit(layer_world, "top")[0] == 0
    assert layer_world.read("base") == "2111"


def test_a_failure_keeps_the_top(chain: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(offset: int, data: bytes) -> None:
        raise NodeIOError("Could not write 'mid'", OSError(28, ""))

    monkeypatch.setattr(chain.layers["mid"].space, "write_at", fail)
    code, out, err = commit(chain, "top")
    assert (code, out) == (1, "")
    assert "No space left on device" in err
    assert chain.own("top") == "--03"
    assert chain.read("top") == "1203"


def test_progress(chain: Any) -> None:
    out = commit(chain, "-p", "top")[1]
    assert out.startswith("    (0.00/100%)\r")
    assert out.endswith("    (100.00/100%)\r\nImage committed.\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Expecting one image file name"),
        (["top", "mid"], "Expecting one image file name"),
        (["base"], "Image does not have a backing file"),
        (["-b", "nosuch", "top"], "Did not find 'nosuch' in the backing chain of 'top'"),
        (["-b", "top", "top"], "Did not find 'top' in the backing chain of 'top'"),
        (["-r", "1x", "top"], "Invalid rate limit specified: '1x'."),
        (["-t", "foo", "top"], "Invalid cache option: foo"),
    ],
)
def test_mistakes(chain: Any, arguments: list[str], message: str) -> None:
    code, out, err = commit(chain, *arguments)
    assert (code, out, err.splitlines()[0]) == (1, "", f"qemu-img: {message}")
    assert chain.own("mid") == "-222"


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("mid", True),
        ("./mid", True),
        ("../sub/mid", True),
        ("sub/mid", False),
        ("file:mid", False),
        ("top", False),
    ],
)
def test_a_base_is_named_from_where_its_overlay_is(layer_world: Any, name: str, found: bool) -> None:
    layer_world.layer("sub/base", "1")
    layer_world.layer("sub/mid", "2", "base")
    layer_world.layer("sub/top", "3", "mid")
    code, _, err = commit(layer_world, "-b", name, "sub/top")
    assert (code == 0) == found
    assert found or err == f"qemu-img: Did not find '{name}' in the backing chain of 'sub/top'\n"
    assert layer_world.own("sub/mid") == ("3" if found else "2")


def test_a_base_that_cannot_be_written(layer_world: Any) -> None:
    from diskwright.extent import Kind

    layer_world.add("base", (Kind.ABSENT, 512))
    layer_world.layer("top", "1", "base").backing_format = "toy"
    code, _, err = commit(layer_world, "top")
    assert (code, err) == (1, "qemu-img: Format driver 'toy' does not support writing\n")
