"""``dd``: the same bytes as the system's dd and the real qemu-img take, in any format."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

DISK = random.Random(11).randbytes(300_000) + bytes(400_000) + b"end" + bytes(47 * 512 + 413)
assert len(DISK) % 512 == 0


def part(block: int, count: int | None, skip: int) -> bytes:
    """What is to be in the output: count limits the position in the input, and the size is whole sectors."""
    end = len(DISK) if count is None else min(len(DISK), block * count)
    found = DISK[block * skip : end]
    return found.ljust(-(-len(found) // 512) * 512, b"\0")


@pytest.fixture(params=["raw", "qcow2", "compressed"])
def source(request: pytest.FixtureRequest, tmp_path: Path, inside: Callable[..., Any]) -> Path:
    plain = tmp_path / "disk.img"
    plain.write_bytes(DISK)
    if request.param == "raw":
        return plain
    image = tmp_path / "disk.qcow2"
    options = ["-c"] if request.param == "compressed" else []
    inside("convert", "-f", "raw", "-O", "qcow2", *options, plain, image, code=0)
    return image


@pytest.mark.parametrize(
    ("block", "count", "skip"),
    [
        (512, None, 0),
        (512, None, 1),
        (7, 3, 1),
        (1000, 555, 13),
        (65536, 2, 1),
        (1 << 20, None, 0),
        (513, None, 1000),
        (1, 4, 4),
        (512, 0, 0),
        (512, len(DISK) // 512 + 100, len(DISK) // 512),
    ],
)
@pytest.mark.parametrize("format", ["raw", "qcow2"])
def test_parts(
    source: Path, tmp_path: Path, inside: Callable[..., Any], block: int, count: int | None, skip: int, format: str
) -> None:
    target = tmp_path / "part"
    operands = [f"bs={block}", f"skip={skip}", *([] if count is None else [f"count={count}"])]
    result = inside("dd", "-O", format, f"if={source}", f"of={target}", *operands, code=0)
    assert (result.out, result.err) == ("", "")
    flat = tmp_path / "flat"
    inside("convert", "-f", format, "-O", "raw", target, flat, code=0)
    assert flat.read_bytes() == part(block, count, skip)


def test_the_real_one_takes_the_same(tmp_path: Path, inside: Callable[..., Any], qemu_img: Callable[..., Any]) -> None:
    plain, theirs, ours = tmp_path / "disk.img", tmp_path / "theirs", tmp_path / "ours"
    plain.write_bytes(DISK)
    for operands in (["bs=4096", "skip=3"], ["bs=1000", "count=99", "skip=7"], ["count=5"], ["bs=1M"]):
        qemu_img("dd", "-f", "raw", f"if={plain}", f"of={theirs}", *operands)
        inside("dd", "-f", "raw", f"if={plain}", f"of={ours}", *operands, code=0)
        assert ours.read_bytes() == theirs.read_bytes()


@pytest.mark.parametrize("operands", [["skip=1G"], ["count=1", "skip=2"]])
def test_a_start_behind_the_end_is_told_of(tmp_path: Path, inside: Callable[..., Any], operands: list[str]) -> None:
    plain, target = tmp_path / "disk.img", tmp_path / "part"
    plain.write_bytes(DISK)
    result = inside("dd", f"if={plain}", f"of={target}", *operands)
    assert (result.code, result.err) == (1, f"diskwright: {plain}: cannot skip to specified offset\n")
    assert target.read_bytes() == b""


def test_the_input_is_not_overwritten(source: Path, inside: Callable[..., Any]) -> None:
    before = source.read_bytes()
    inside("dd", f"if={source}", f"of={source}").fails_with('Failed to get "write" lock')
    assert source.read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Must specify both input and output files"),
        (["if=x"], "Must specify both input and output files"),
        (["if=x", "of=y", "seek=1"], "unrecognized operand seek"),
        (["if=x", "of=y", "foo"], "unrecognized operand foo"),
        (["if=x", "of=y", "bs=0"], "Invalid bs specified. Must be between 1 and 2147483647."),
        (["if=x", "of=y", "bs=2G"], "Invalid bs specified. Must be between 1 and 2147483647."),
        (["if=x", "of=y", "bs=1x"], "Invalid bs specified: '1x'."),
        (["if=x", "of=y", "count=-1"], "Invalid count specified. Must be between 0 and 9223372036854775807."),
        (["if=x", "of=y", "skip=x"], "Invalid skip specified: 'x'."),
        (["if=nothing", "of=y"], "Could not open 'nothing': Could not open 'nothing': No such file or directory"),
        (["-O", "bochs", "if=x", "of=y"], "Format driver 'bochs' does not support image creation"),
        (["--image-opts", "-f", "raw", "if=x", "of=y"], "--image-opts and --format are mutually exclusive"),
    ],
)
def test_mistakes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inside: Callable[..., Any], arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x").write_bytes(DISK)
    result = inside("dd", *arguments)
    assert (result.code, result.out, result.err.splitlines()[0]) == (1, "", f"diskwright: {message}")
    assert not (tmp_path / "y").exists()


def test_a_target_that_cannot_be_made(tmp_path: Path, inside: Callable[..., Any]) -> None:
    (tmp_path / "x").write_bytes(DISK)
    target = tmp_path / "nowhere" / "y"
    result = inside("dd", f"if={tmp_path / 'x'}", f"of={target}")
    reason = f"Could not create '{target}': No such file or directory"
    assert (result.code, result.err) == (1, f"diskwright: {target}: error while creating output image: {reason}\n")


def test_option_trees_name_the_input(tmp_path: Path, inside: Callable[..., Any]) -> None:
    (tmp_path / "x").write_bytes(DISK)
    inside(
        "dd", "--image-opts", f"if=driver=raw,file.filename={tmp_path / 'x'}", f"of={tmp_path / 'y'}", "count=2", code=0
    )
    assert (tmp_path / "y").read_bytes() == DISK[:1024]
