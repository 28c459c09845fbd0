"""Effects of ``discard``, ``detect-zeroes`` and cache modes: what becomes of the space, what the system is asked."""

import os
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

MIB = 1 << 20


@pytest.fixture(scope="module")
def zeros_inside(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two MiB of data, two of zeros, two of data: QEMU writes two at a time."""
    path = tmp_path_factory.mktemp("source") / "source.raw"
    path.write_bytes(os.urandom(2 * MIB) + bytes(2 * MIB) + os.urandom(2 * MIB))
    return path


@pytest.fixture
def full(tmp_path: Path, qemu_img: Callable[..., Any]) -> Callable[[str, str], Path]:
    """An image of six MiB of data."""

    def make(format: str, name: str) -> Path:
        plain = tmp_path / "plain"
        plain.write_bytes(os.urandom(6 * MIB))
        qemu_img("convert", "-f", "raw", "-O", format, plain, tmp_path / name)
        return tmp_path / name

    return make


def kilobytes(path: Path) -> int:
    return path.stat().st_blocks // 2


KEPT = {
    "": (4, 6),
    "discard=unmap": (4, 6),
    "discard=ignore": (6, 6),
    "file.discard=ignore": (6, 6),
    "detect-zeroes=on": (4, 6),
    "discard=unmap,detect-zeroes=unmap": (4, 4),
    "file.detect-zeroes=on": (4, 6),
    "file.discard=unmap,file.detect-zeroes=unmap": (4, 4),
}
"""MiB that qemu-img 10.0.2 leaves of six, two of which become zeros: with -S 4k and with -S 0."""


@pytest.mark.parametrize("sparse", ["4k", "0"])
@pytest.mark.parametrize("options", KEPT)
@pytest.mark.parametrize("format", ["raw", "qcow2"])
def test_space_after_converting_onto_an_image(
    format: str,
    options: str,
    sparse: str,
    full: Callable[[str, str], Path],
    zeros_inside: Path,
    inside: Callable[..., Any],
    qemu_img: Callable[..., Any],
) -> None:
    """Zeros give back as much space as with the real program."""
    target = full(format, "target")
    tree = ",".join(filter(None, [f"driver={format},file.driver=file,file.filename={target}", options]))
    inside("convert", "-S", sparse, "-n", "--target-image-opts", "-f", "raw", zeros_inside, tree, code=0)
    assert qemu_img("compare", "-F", format, "-f", "raw", zeros_inside, target).out == "Images are identical.\n"
    assert kilobytes(target) // 1024 == KEPT[options][sparse == "0"]


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ("driver=raw", 6),
        ("driver=raw,detect-zeroes=on", 6),
        ("driver=raw,discard=unmap,detect-zeroes=unmap", 5),
        ("driver=raw,discard=unmap,detect-zeroes=unmap,file.discard=ignore", 6),
        ("driver=raw,file.driver=file,file.discard=unmap,file.detect-zeroes=unmap", 5),
    ],
)
def test_zeros_that_are_written_one_by_one(
    options: str, kept: int, full: Callable[[str, str], Path], inside: Callable[..., Any]
) -> None:
    target = full("raw", "target")
    inside("bench", "-w", "-c", "16", "-s", "64k", "--image-opts", f"{options},file.filename={target}", code=0)
    assert target.read_bytes()[:MIB] == bytes(MIB)
    assert round(kilobytes(target) / 1024) == kept


@pytest.fixture
def calls(tmp_path: Path) -> Callable[..., list[str]]:
    """What a run of ours asks the system about one file: lines of strace."""
    program = shutil.which("strace")
    if program is None:
        pytest.skip("strace is not installed")

    def run_traced(about: Path, *arguments: str | os.PathLike[str]) -> list[str]:
        import subprocess

        log = tmp_path / "strace"
        watched = "trace=openat,pread64,preadv,preadv2,pwrite64,fdatasync,fsync"
        done = subprocess.run(
            [program, "-f", "-y", "-e", watched, "-o", log, sys.executable, "-m", "diskwright", *arguments],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        if "PTRACE" in done.stderr or "ptrace" in done.stderr:
            pytest.skip("no process may be traced here")
        assert done.returncode == 0, done.stderr
        return [line for line in log.read_text(errors="replace").splitlines() if f"<{about}>" in line]

    return run_traced


def descriptors(lines: list[str], flag: str) -> set[str]:
    """The descriptors that were opened with a flag."""
    found = set()
    for line in lines:
        if "openat(" in line and re.search(rf"\b{flag}\b", line) and (number := re.search(r"= (\d+)<", line)):
            found.add(number[1])
    return found


def written(lines: list[str]) -> list[tuple[str, int]]:
    """(descriptor, length) of writes, also of those that another thread has interrupted in the log."""
    return [(m[1], int(m[2])) for line in lines if (m := re.search(r"pwrite64\((\d+)<.*, (\d+), \d+", line))]


def read_from(lines: list[str]) -> set[str]:
    """The descriptors that were read from."""
    return {m[1] for line in lines if (m := re.search(r"pread(?:v2?|64)\((\d+)<", line))}


def flushes(lines: list[str]) -> int:
    return sum("fdatasync(" in line or "fsync(" in line for line in lines)


class TestCacheModes:
    """``-t`` and ``-T`` reach the system."""

    @pytest.mark.parametrize("mode", ["none", "directsync"])
    def test_direct_writes(self, mode: str, zeros_inside: Path, tmp_path: Path, calls: Callable[..., Any]) -> None:
        target = tmp_path / "target"
        lines = calls(target, "convert", "-t", mode, "-f", "raw", "-O", "raw", zeros_inside, target)
        direct = descriptors(lines, "O_DIRECT")
        assert len(direct) == 1
        # All data; the system's cache sees the start of the file only, from creating it.
        large = [fd for fd, length in written(lines) if length > 4096]
        assert large
        assert set(large) == direct
        assert bool(descriptors(lines, "O_DSYNC")) is (mode == "directsync")
        assert target.read_bytes() == zeros_inside.read_bytes()

    def test_direct_reads(self, zeros_inside: Path, tmp_path: Path, calls: Callable[..., Any]) -> None:
        lines = calls(zeros_inside, "convert", "-T", "none", "-f", "raw", zeros_inside, tmp_path / "target")
        assert read_from(lines) == descriptors(lines, "O_DIRECT") != set()

    @pytest.mark.parametrize(
        "command",
        [
            ["check", "-T", "none", "IMAGE"],
            ["compare", "-T", "none", "IMAGE", "IMAGE"],
            ["bench", "-t", "none", "-c", "3", "IMAGE"],
            ["commit", "-t", "none", "IMAGE"],
            ["rebase", "-t", "none", "-u", "-b", "", "IMAGE"],
            ["amend", "-t", "none", "-o", "compat=1.1", "IMAGE"],
            ["measure", "--image-opts", "-O", "raw", "driver=qcow2,file.filename=IMAGE,file.cache.direct=on"],
        ],
        ids=lambda command: str(command[0]),
    )
    def test_every_command(
        self, command: list[str], tmp_path: Path, calls: Callable[..., Any], qemu_img: Callable[..., Any]
    ) -> None:
        base, image = tmp_path / "base", tmp_path / "image"
        qemu_img("create", "-q", "-f", "qcow2", base, "1M")
        qemu_img("create", "-q", "-f", "qcow2", "-b", base, "-F", "qcow2", image)
        lines = calls(image, *(part.replace("IMAGE", str(image)) for part in command))
        assert descriptors(lines, "O_DIRECT")

    def test_when_writes_are_made_durable(self, tmp_path: Path, calls: Callable[..., Any]) -> None:
        disk = tmp_path / "disk"
        disk.write_bytes(bytes(MIB))
        bench = ("bench", "-w", "-f", "raw", "-d", "1", "-c", "8")
        assert flushes(calls(disk, *bench, "-t", "writeback", "--flush-interval", "2", disk)) == 4
        assert flushes(calls(disk, *bench, "-t", "unsafe", "--flush-interval", "2", disk)) == 0
        for mode in ("writethrough", "directsync"):
            lines = calls(disk, *bench, "-t", mode, disk)
            synchronous = descriptors(lines, "O_DSYNC")
            places = [fd for fd, _ in written(lines)]
            assert len(places) == 8
            assert set(places) <= synchronous, "each write is on disk when it returns"

    def test_direct_and_never_flushed(self, tmp_path: Path, calls: Callable[..., Any]) -> None:
        """The two options of a node do not exclude each other."""
        disk = tmp_path / "disk"
        disk.write_bytes(bytes(MIB))
        options = f"driver=raw,file.filename={disk},file.cache.direct=on,file.cache.no-flush=on"
        lines = calls(disk, "bench", "-w", "-c", "8", "-d", "1", "--flush-interval", "2", "--image-opts", options)
        assert descriptors(lines, "O_DIRECT")
        assert flushes(lines) == 0

    def test_convert_is_unsafe_unless_told_otherwise(
        self, zeros_inside: Path, tmp_path: Path, calls: Callable[..., Any]
    ) -> None:
        lines = calls(tmp_path / "a", "convert", "-f", "raw", "-O", "qcow2", zeros_inside, tmp_path / "a")
        assert flushes(lines) == 0
        arguments = ("convert", "-t", "writeback", "-f", "raw", "-O", "qcow2", zeros_inside)
        assert flushes(calls(tmp_path / "b", *arguments, tmp_path / "b")) > 0
