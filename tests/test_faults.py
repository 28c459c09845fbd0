"""When something fails: what existed stays as it was, nothing half made is left, the system's reason is told."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

MIB = 1 << 20
SOURCE_SIZE = 12 * MIB


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A raw disk of 12 MiB of noise, alone in a folder."""
    (tmp_path / "in").mkdir()
    path = tmp_path / "in" / "source.raw"
    path.write_bytes(os.urandom(SOURCE_SIZE))
    return path


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """An empty folder for targets."""
    folder = tmp_path / "out"
    folder.mkdir()
    return folder


def limit_files() -> None:
    """For a child process: no file may grow beyond 4 MiB."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (4 * MIB, 4 * MIB))


@pytest.fixture
def tiny_disk(out: Path) -> Iterator[Path]:
    """A file system of 4 MiB, where we may mount one."""
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", out], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip(f"cannot mount a small file system: {mounted.stderr.decode().strip()}")
    yield out
    subprocess.run(["umount", out], check=True)


TARGETS = [["-O", "raw"], ["-O", "qcow2"], ["-O", "qcow2", "-c"], ["-O", "vdi"]]
TARGET_IDS = ["raw", "qcow2", "qcow2-compressed", "vdi"]


class TestFailedConvert:
    """The target cannot be written, or the source not be read."""

    @pytest.mark.parametrize("old", [None, b"old and precious" * 100], ids=["new", "existing"])
    @pytest.mark.parametrize("target_options", TARGETS, ids=TARGET_IDS)
    def test_file_too_large(
        self,
        target_options: list[str],
        old: bytes | None,
        source: Path,
        out: Path,
        cli: Callable[..., Any],
        digest: Any,
    ) -> None:
        """The system refuses to let the file grow."""
        self.fails(cli, digest, target_options, old, source, out, "File too large", preexec_fn=limit_files)

    @pytest.mark.parametrize("old", [None, b"old and precious" * 100], ids=["new", "existing"])
    @pytest.mark.parametrize("target_options", TARGETS, ids=TARGET_IDS)
    def test_no_space(
        self,
        target_options: list[str],
        old: bytes | None,
        source: Path,
        tiny_disk: Path,
        cli: Callable[..., Any],
        digest: Any,
    ) -> None:
        """The disk is full."""
        self.fails(cli, digest, target_options, old, source, tiny_disk, "No space left on device")

    def fails(
        self,
        cli: Callable[..., Any],
        digest: Callable[[Path], str],
        target_options: list[str],
        old: bytes | None,
        source: Path,
        out: Path,
        reason: str,
        **options: Any,
    ) -> None:
        """Convert, see it fail for the reason, and nothing changed."""
        target, before = out / "target", digest(source)
        if old is not None:
            target.write_bytes(old)
            existing = digest(target)
        result = cli("convert", "-f", "raw", *target_options, source, target, **options)
        result.fails_with(reason)
        assert len(result.err.splitlines()) == 1, result
        assert digest(source) == before
        if old is None:
            assert list(out.iterdir()) == []
        else:
            assert list(out.iterdir()) == [target]
            assert digest(target) == existing

    @pytest.mark.parametrize("old", [None, b"old"], ids=["new", "existing"])
    @pytest.mark.parametrize("fault", ["missing source", "cut source", "bad option", "bad size", "bad format"])
    def test_nothing_to_convert(
        self, fault: str, old: bytes | None, source: Path, out: Path, cli: Callable[..., Any]
    ) -> None:
        """It fails before or while the source is read."""
        target = out / "target"
        if old is not None:
            target.write_bytes(old)
        bad = source.with_name("bad.qcow2")
        cli("convert", "-f", "raw", "-O", "qcow2", "-c", source, bad, code=0)
        os.truncate(bad, bad.stat().st_size // 2)
        arguments = {
            "missing source": ["-O", "qcow2", "/nonexistent/source"],
            "cut source": ["-f", "qcow2", "-O", "raw", bad],
            "bad option": ["-O", "qcow2", "-o", "nosuch=1", source],
            "bad size": ["-O", "qcow2", "-o", "cluster_size=100", source],
            "bad format": ["-O", "nosuch", source],
        }[fault]
        cli("convert", *arguments, target).fails_with(".")
        assert [path.name for path in out.iterdir()] == ([] if old is None else ["target"])
        if old is not None:
            assert target.read_bytes() == old

    def test_missing_folder(self, source: Path, out: Path, cli: Callable[..., Any]) -> None:
        """The folder of the target does not exist."""
        result = cli("convert", "-O", "qcow2", source, out / "missing" / "target")
        result.fails_with("No such file or directory")
        assert list(out.iterdir()) == []

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
    def test_folder_not_writable(self, source: Path, out: Path, cli: Callable[..., Any]) -> None:
        """The folder of the target refuses."""
        out.chmod(0o500)
        cli("convert", "-O", "qcow2", source, out / "target").fails_with("Permission denied")

    @pytest.mark.parametrize("share", [[], ["-U"]], ids=["locked", "shared"])
    @pytest.mark.parametrize("target_format", ["raw", "qcow2"])
    @pytest.mark.parametrize("alias", ["same", "symlink", "hardlink", "dots"])
    def test_onto_itself(
        self, alias: str, target_format: str, share: list[str], source: Path, cli: Callable[..., Any], digest: Any
    ) -> None:
        """Source and target are one file, by whatever name, with and without locks."""
        target = source.with_name("alias")
        if alias == "symlink":
            target.symlink_to(source)
        elif alias == "hardlink":
            target.hardlink_to(source)
        else:
            target = source if alias == "same" else source.parent / ".." / "in" / source.name
        before = digest(source)
        cli("convert", *share, "-f", "raw", "-O", target_format, source, target).fails_with(".")
        assert digest(source) == before

    @pytest.mark.parametrize("share", [[], ["-U"]], ids=["locked", "shared"])
    @pytest.mark.parametrize("links", [1, 2])
    def test_onto_its_backing_file(
        self, links: int, share: list[str], source: Path, cli: Callable[..., Any], digest: Any
    ) -> None:
        """The target is a layer of the source's chain."""
        top = source.with_name("top.qcow2")
        cli("create", "-f", "qcow2", "-b", source, "-F", "raw", top, code=0)
        if links == 2:
            source.with_name("link").hardlink_to(source)
        before = digest(source)
        cli("convert", *share, "-O", "raw", top, source).fails_with(".")
        assert digest(source) == before


class TestReadingCommands:
    """They read."""

    def test_nothing_is_written(self, source: Path, out: Path, cli: Callable[..., Any], digest: Any) -> None:
        """Neither the image nor its backing file changes, not even in a time stamp."""
        top = source.with_name("top.qcow2")
        cli("create", "-f", "qcow2", "-b", source, "-F", "raw", top, code=0)
        before = digest(source), digest(top)
        for command in ("info", "info --backing-chain", "check", "map"):
            cli(*command.split(), top, code=0)
        cli("compare", top, source, code=0)
        cli("convert", "-O", "vdi", top, out / "flat.vdi", code=0)
        assert (digest(source), digest(top)) == before
        assert sorted(path.name for path in source.parent.iterdir()) == ["source.raw", "top.qcow2"]

    def test_a_read_only_image(self, source: Path, out: Path, cli: Callable[..., Any]) -> None:
        """A file and a folder that cannot be written are read all the same."""
        source.chmod(0o400)
        source.parent.chmod(0o500)
        for command in ("info", "map"):
            cli(command, source, code=0)
        cli("convert", source, out / "copy.raw", code=0)
        source.parent.chmod(0o700)


class TestOutput:
    """What the output goes to fails."""

    @pytest.mark.parametrize("command", ["info", "map", "--help", "check", "compare", "create"])
    def test_a_full_disk_behind_stdout(self, command: str, source: Path, cli: Callable[..., Any]) -> None:
        """An error is an error, there too."""
        image = source.with_name("image.qcow2")
        cli("create", "-q", "-f", "qcow2", image, "1M", code=0)
        operands = {"--help": [], "compare": [image, image], "create": ["-f", "qcow2", image, "1M"]}
        with Path("/dev/full").open("wb") as full:
            done = subprocess.run(
                [sys.executable, "-m", "diskwright", command, *operands.get(command, [image])],
                stdout=full,
                stderr=subprocess.PIPE,
                check=False,
                timeout=60,
            )
        assert b"Traceback" not in done.stderr, done.stderr.decode()
        assert b"Exception ignored" not in done.stderr, done.stderr.decode()
        assert done.returncode != 0
        assert len(done.stderr.splitlines()) == 1, done.stderr.decode()

    @pytest.mark.parametrize("command", ["info", "map", "--help"])
    def test_nobody_reads(self, command: str, source: Path) -> None:
        """A closed pipe is no drama."""
        read_end, write_end = os.pipe()
        os.close(read_end)
        operands = [] if command == "--help" else [source]
        with os.fdopen(write_end, "wb") as pipe:
            done = subprocess.run(
                [sys.executable, "-m", "diskwright", command, *operands],
                stdout=pipe,
                stderr=subprocess.PIPE,
                check=False,
                timeout=60,
            )
        assert done.stderr == b""

    def test_closed_streams(self, source: Path, out: Path) -> None:
        """Descriptors 0 to 2 are closed: files opened then must not be taken for stdout or stderr."""
        script = '"$0" -m diskwright convert -p -f raw -O qcow2 "$1" "$2" <&- >&- 2>&-'
        target = out / "target.qcow2"
        done = subprocess.run(["bash", "-c", script, sys.executable, source, target], check=False, timeout=60)
        assert source.stat().st_size == SOURCE_SIZE
        if done.returncode == 0:
            compare = [sys.executable, "-m", "diskwright", "compare", "-f", "raw", "-F", "qcow2", source, target]
            subprocess.run(compare, check=True, timeout=60, capture_output=True)
        else:
            assert list(out.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_leave_nothing(number: signal.Signals, tmp_path: Path, out: Path, digest: Any) -> None:
    """A conversion is ended from outside: within seconds, silently, without remains."""
    source = tmp_path / "large.raw"
    with source.open("wb") as file:
        for _ in range(48):
            file.write(os.urandom(4 * MIB))
    target = out / "target.qcow2"
    target.write_bytes(b"old")
    before = digest(target)
    process = subprocess.Popen(
        [sys.executable, "-m", "diskwright", "convert", "-c", "-f", "raw", "-O", "qcow2", source, target],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    deadline = time.monotonic() + 20
    while len(list(out.iterdir())) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.2)
    assert process.poll() is None, "the conversion was over too soon"
    process.send_signal(number)
    began = time.monotonic()
    _, err = process.communicate(timeout=20)
    assert time.monotonic() - began < 3
    assert process.returncode in (-number, 128 + number)
    assert b"Traceback" not in err, err.decode()
    assert list(out.iterdir()) == [target]
    assert digest(target) == before


class TestLocks:
    """Another process uses the image."""

    @pytest.fixture
    def busy(self, tmp_path: Path, qemu_img: Callable[..., Any]) -> Iterator[Path]:
        """A qcow2 image that the real qemu-io holds open for writing."""
        image = tmp_path / "busy.qcow2"
        qemu_img("create", "-q", "-f", "qcow2", image, "1M")
        with subprocess.Popen(
            ["qemu-io", "-f", "qcow2", image], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        ) as holder:
            assert holder.stdin
            assert holder.stdout
            holder.stdin.write(b"length\n")
            holder.stdin.flush()
            line = holder.stdout.readline()
            assert b"1 MiB" in line, line
            yield image
            holder.stdin.close()
            holder.stdout.read()

    def test_refused_and_shared(self, busy: Path, out: Path, cli: Callable[..., Any], digest: Any) -> None:
        """Readers are refused unless they share; creating over it is refused before anything changes."""
        for command in ("info", "check", "map"):
            cli(command, busy).fails_with('Failed to get shared "write" lock')
            cli(command, "-U", busy, code=0)
        cli("convert", busy, out / "copy").fails_with('Failed to get shared "write" lock')
        assert list(out.iterdir()) == []
        before = digest(busy)
        cli("create", "-f", "raw", busy, "1M").fails_with('Failed to get "write" lock')
        cli("convert", "-f", "raw", "-O", "raw", "/dev/null", busy).fails_with(".")
        assert digest(busy) == before
