"""``convert ... -``: an image written from its first byte to its last."""

from __future__ import annotations

import hashlib
import json
import os
import pty
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

MIB = 1 << 20
PROGRAM = [sys.executable, "-m", "diskwright"]


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory, cli: Callable[..., Any]) -> tuple[Path, bytes]:
    """A qcow2 overlay with data in both layers, compressed data and holes; and what it reads as."""
    folder = tmp_path_factory.mktemp("disk")
    content = bytearray(9 * MIB + 512)
    content[0:700_000] = os.urandom(700_000)
    content[5 * MIB + 100 : 5 * MIB + 300_000] = b"y" * 299_900
    content[-512:] = b"z" * 512
    (folder / "disk.raw").write_bytes(content)
    cli("convert", "-c", "-f", "raw", "-O", "qcow2", folder / "disk.raw", folder / "base.qcow2", code=0)
    cli("create", "-q", "-f", "qcow2", "-b", folder / "base.qcow2", "-F", "qcow2", folder / "top.qcow2", code=0)
    return folder / "top.qcow2", bytes(content)


def run(*arguments: object, **settings: Any) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([*PROGRAM, *map(str, arguments)], stderr=subprocess.PIPE, timeout=60, check=False, **settings)


def test_into_a_pipe(disk: tuple[Path, bytes]) -> None:
    done = run("convert", disk[0], "-", stdout=subprocess.PIPE)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout == disk[1]


def test_into_a_file_with_holes(disk: tuple[Path, bytes], tmp_path: Path) -> None:
    target = tmp_path / "out"
    with target.open("wb") as file:
        assert run("convert", disk[0], "-", stdout=file).returncode == 0
    assert target.read_bytes() == disk[1]
    assert target.stat().st_blocks * 512 < 2 * MIB
    with target.open("wb") as file:
        assert run("convert", "-S", "0", disk[0], "-", stdout=file).returncode == 0
    assert target.read_bytes() == disk[1]
    assert target.stat().st_blocks * 512 >= len(disk[1])


def test_behind_and_over_what_a_file_holds(disk: tuple[Path, bytes], tmp_path: Path) -> None:
    target = tmp_path / "out"
    target.write_bytes(b"before")
    with target.open("ab") as file:
        assert run("convert", disk[0], "-", stdout=file).returncode == 0
    assert target.read_bytes() == b"before" + disk[1]
    target.write_bytes(b"\xff" * 10 * MIB)
    with target.open("r+b") as file:
        assert run("convert", disk[0], "-", stdout=file).returncode == 0
    assert target.read_bytes() == disk[1] + b"\xff" * (MIB - 512)


def test_a_hole_at_the_end_of_a_huge_disk(tmp_path: Path, cli: Callable[..., Any]) -> None:
    cli("create", "-q", "-f", "qcow2", tmp_path / "huge", "1T", code=0)
    with (tmp_path / "out").open("wb") as file:
        assert run("convert", tmp_path / "huge", "-", stdout=file).returncode == 0
    assert (tmp_path / "out").stat().st_size == 1 << 40
    assert (tmp_path / "out").stat().st_blocks * 512 < MIB


def test_several_sources_and_a_snapshot(disk: tuple[Path, bytes], tmp_path: Path, cli: Callable[..., Any]) -> None:
    done = run("convert", disk[0], disk[0], "-", stdout=subprocess.PIPE)
    assert done.stdout == disk[1] * 2
    image = tmp_path / "kept.qcow2"
    cli("convert", "-O", "qcow2", disk[0], image, code=0)
    cli("snapshot", "-c", "one", image, code=0)
    assert run("convert", "-l", "one", image, "-", stdout=subprocess.PIPE).stdout == disk[1]


@pytest.mark.parametrize("options", [[], ["-o", "static=on"]])
def test_a_format_with_a_block_map(
    options: list[str], disk: tuple[Path, bytes], tmp_path: Path, cli: Callable[..., Any]
) -> None:
    target = tmp_path / "out.vdi"
    target.write_bytes(run("convert", "-O", "vdi", *options, disk[0], "-", stdout=subprocess.PIPE).stdout)
    cli("check", target, code=0)
    cli("compare", "-f", "vdi", target, disk[0], code=0)
    size = target.stat().st_size
    assert size == 1024 + 10 * MIB if options else size < 5 * MIB


def test_formats_that_cannot(disk: tuple[Path, bytes]) -> None:
    done = run("convert", "-O", "qcow2", disk[0], "-", stdout=subprocess.PIPE)
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr.startswith(b"diskwright: Format driver 'qcow2' cannot write to a stream")
    assert len(done.stderr.splitlines()) == 1
    for options in (["-n"], ["-c"], ["--bitmaps"], ["-B", "x", "-F", "raw"]):
        done = run("convert", *options, disk[0], "-", stdout=subprocess.PIPE)
        assert (done.returncode, done.stdout) == (1, b""), options
        assert len(done.stderr.splitlines()) == 1


def test_progress_is_not_in_the_image(disk: tuple[Path, bytes]) -> None:
    done = run("convert", "-p", disk[0], "-", stdout=subprocess.PIPE)
    assert done.stdout == disk[1]
    assert done.stderr.endswith(b"(100.00/100%)\r\n")
    done = run("convert", "--progress=json", disk[0], "-", stdout=subprocess.PIPE)
    assert done.stdout == disk[1]
    last = json.loads(done.stderr.splitlines()[-1])
    assert last["done"] == last["total"] == len(disk[1])


def test_nobody_reads(disk: tuple[Path, bytes]) -> None:
    """As other programs: ended by the pipe, without a word."""
    reading, writing = os.pipe()
    child = subprocess.Popen([*PROGRAM, "convert", str(disk[0]), "-"], stdout=writing, stderr=subprocess.PIPE)
    os.close(writing)
    assert os.read(reading, 10) == disk[1][:10]
    os.close(reading)
    assert child.communicate(timeout=30)[1] == b""
    assert child.returncode == 141


def test_not_to_a_terminal(disk: tuple[Path, bytes]) -> None:
    master, slave = pty.openpty()
    done = run("convert", disk[0], "-", stdout=slave)
    os.close(slave)
    os.close(master)
    assert done.returncode == 1
    assert b"is a terminal" in done.stderr


def test_a_disk_that_is_full(disk: tuple[Path, bytes]) -> None:
    with open("/dev/full", "wb") as full:
        done = run("convert", disk[0], "-", stdout=full)
    assert done.returncode == 1
    assert done.stderr == b"diskwright: error while writing to standard output: No space left on device\n"


def test_not_over_the_source(disk: tuple[Path, bytes], tmp_path: Path) -> None:
    source = tmp_path / "source.raw"
    source.write_bytes(disk[1])
    with source.open("r+b") as file:
        done = run("convert", "-f", "raw", source, "-", stdout=file)
    assert done.returncode == 1
    assert source.read_bytes() == disk[1]


def test_unreadable_data(tmp_path: Path, disk: tuple[Path, bytes]) -> None:
    """An error says where; with ``--salvage`` the rest comes out all the same."""
    source = tmp_path / "source.raw"
    source.write_bytes(disk[1])
    rule = "inject-error.0.event=none,inject-error.0.iotype=read,inject-error.0.sector=3,inject-error.0.immediately=off"
    tree = f"driver=raw,file.driver=blkdebug,file.image.driver=file,file.image.filename={source},file.{rule}"
    tree = tree.replace(",inject", ",file.inject")
    done = run("convert", "--image-opts", tree, "-", stdout=subprocess.PIPE)
    assert done.returncode == 1
    assert b"error while reading at byte" in done.stderr
    done = run("convert", "--salvage", "--image-opts", tree, "-", stdout=subprocess.PIPE)
    expected = disk[1][:1536] + bytes(512) + disk[1][2048:]
    assert done.returncode == 0
    assert hashlib.sha256(done.stdout).digest() == hashlib.sha256(expected).digest()


def test_a_file_of_that_name(disk: tuple[Path, bytes], tmp_path: Path) -> None:
    done = run("convert", disk[0], "./-", cwd=tmp_path, stdout=subprocess.PIPE)
    assert done.returncode == 0
    assert (tmp_path / "-").read_bytes() == disk[1]
