"""What the tests across packages share: both command lines, and disks with real patterns in them."""

from __future__ import annotations

import hashlib
import os
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from diskwright.testing.faults import Folder
from diskwright.testing.oracle import unless_busy
from diskwright.testing.samples import make_samples
from diskwright.testing.secret import SECRET, address
from diskwright.testing.sidebyside import Pair, ours

KIB, MIB = 1 << 10, 1 << 20
BLOCK = 64 * KIB


@dataclass(frozen=True)
class Result:
    """How a run of a command line ended."""

    code: int
    out: str
    err: str

    def fails_with(self, pattern: str) -> None:
        """It ended with exit code 1 and an error, one line and perhaps a hint, that matches the pattern."""
        assert self.code == 1, (self.code, self.out, self.err)
        first = self.err.splitlines()[0] if self.err else ""
        assert first.startswith("diskwright: "), self.err
        assert re.search(pattern, self.err), self.err


def run(command: Sequence[str | os.PathLike[str]], *, timeout: float = 120, **options: object) -> Result:
    """Run a command to its end; bytes that are no UTF-8 come back as surrogates."""
    done = subprocess.run(
        [os.fspath(part) for part in command],
        capture_output=True,
        check=False,
        stdin=subprocess.DEVNULL,
        timeout=timeout,
        **options,  # type: ignore[call-overload]
    )
    return Result(
        done.returncode, done.stdout.decode(errors="surrogateescape"), done.stderr.decode(errors="surrogateescape")
    )


@pytest.fixture(scope="session")
def cli() -> Callable[..., Result]:
    """Run ``python -m diskwright`` in a process of its own."""

    def call(*args: str | os.PathLike[str], code: int | None = None, **options: object) -> Result:
        result = run([sys.executable, "-m", "diskwright", *args], **options)  # type: ignore[arg-type]
        if "Traceback" in result.err:
            pytest.fail(f"{args} ended in a traceback: {result.err[-1500:]}")
        if code is not None:
            assert result.code == code, (args, result)
        return result

    return call


@pytest.fixture
def inside(capfdbinary: pytest.CaptureFixture[bytes]) -> Callable[..., Result]:
    """Run a command in this process: quick, and what is no expected error comes out as itself."""
    from diskwright.cli import main

    def call(*args: str | os.PathLike[str], code: int | None = None) -> Result:
        capfdbinary.readouterr()
        try:
            status = main([os.fspath(arg) for arg in args])
        except SystemExit as ended:
            status = ended.code if isinstance(ended.code, int) else 1
        sys.stdout.flush()
        sys.stderr.flush()
        out, err = capfdbinary.readouterr()
        result = Result(status, out.decode(errors="surrogateescape"), err.decode(errors="surrogateescape"))
        if code is not None:
            assert result.code == code, (args, result)
        return result

    return call


def oracle_program(name: str) -> str:
    """Path of a program of QEMU's, beside DISKWRIGHT_QEMU_IMG if that is set; the test skips if there is none."""
    chosen = os.environ.get("DISKWRIGHT_QEMU_IMG")
    beside = Path(chosen).with_name(name) if chosen else None
    found = str(beside) if beside and beside.exists() else shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed (Debian: qemu-utils)")
    return found


@pytest.fixture(scope="session")
def qemu_img() -> Callable[..., Result]:
    """Run the real qemu-img; by default it must succeed."""
    program = oracle_program("qemu-img")

    def call(*args: str | os.PathLike[str], code: int | None = 0) -> Result:
        result = unless_busy(lambda: run([program, *args]), lambda result: result.err)
        assert code is None or result.code == code, (args, result)
        return result

    return call


@pytest.fixture(scope="session")
def qemu_io() -> Callable[..., Result]:
    """Run commands of the real qemu-io on an image: ``qemu_io(image, format, "write -P 1 0 64k", ...)``."""
    program = oracle_program("qemu-io")

    def call(image: Path, format: str, *commands: str) -> Result:
        parts = [part for command in commands for part in ("-c", command)]
        result = run([program, "--object", SECRET, "-f", format, *parts, address(image)])
        assert result.code == 0, result
        assert "failed" not in result.out + result.err, result
        return result

    return call


def _at_least(data: bytes, length: int) -> bytes:
    return data * -(-length // len(data))


def _texts() -> bytes:
    library = Path(os.__file__).parent
    return b"".join((library / name).read_bytes() for name in ("argparse.py", "typing.py", "inspect.py", "tarfile.py"))


def write_patterns(path: Path, size: int, seed: int = 1) -> None:
    """Make a raw disk as disks are: texts, program code, noise, written zeros and long holes.

    :param size: bytes; of large disks only some places have data, at both ends too.
    """
    rng = random.Random(seed)
    window = 256 * KIB
    sources = [_texts(), Path(sys.executable).resolve().read_bytes()[: 4 * MIB], rng.randbytes(window), bytes(window)]
    sources = [_at_least(source, window) for source in sources]
    with path.open("wb") as disk:
        disk.truncate(size)
        places = {0, max(0, size - BLOCK), *(rng.randrange(0, max(1, size)) // 512 * 512 for _ in range(12))}
        for place in sorted(places):
            room = min(size - place, rng.choice((512, 4 * KIB, BLOCK, 200 * KIB)))
            source = rng.choice(sources)
            start = rng.randrange(0, len(source) - window + 1)
            disk.seek(place)
            disk.write(source[start : start + room])


def nonzero_blocks(path: Path) -> Iterator[tuple[int, bytes]]:
    """Offset and digest of each block of a raw file that is not all zeros; holes are not read."""
    zeros = bytes(BLOCK)
    with path.open("rb", buffering=0) as disk:
        end = disk.seek(0, os.SEEK_END)
        offset = 0
        while offset < end:
            try:
                data = os.lseek(disk.fileno(), offset, os.SEEK_DATA)
            except OSError:
                return
            offset = data // BLOCK * BLOCK
            block = os.pread(disk.fileno(), BLOCK, offset)
            if block != zeros[: len(block)]:
                yield offset, hashlib.blake2b(block.rstrip(b"\0")).digest()
            offset += BLOCK


def assert_same_disk(left: Path, right: Path) -> None:
    """Two raw files are equally long and read the same, whatever their holes."""
    assert left.stat().st_size == right.stat().st_size
    assert list(nonzero_blocks(left)) == list(nonzero_blocks(right))


@pytest.fixture(scope="session")
def patterns() -> Callable[..., None]:
    """See :func:`write_patterns`."""
    return write_patterns


@pytest.fixture(scope="session")
def same_disk() -> Callable[[Path, Path], None]:
    """See :func:`assert_same_disk`."""
    return assert_same_disk


@pytest.fixture(scope="session")
def digest() -> Callable[[Path], str]:
    """Digest of a file's bytes and of what the system knows of it; to show that a file was not touched."""

    def of(path: Path) -> str:
        status = path.stat()
        seen = f"{status.st_size} {status.st_mtime_ns} {status.st_mode} {status.st_ino}"
        return hashlib.blake2b(path.read_bytes() + seen.encode()).hexdigest()

    return of


DISKS = {
    "4k": "cluster_size=4k",
    "512": "cluster_size=512,refcount_bits=64",
    "extended": "cluster_size=16k,extended_l2=on",
    "v2": "cluster_size=4k,compat=0.10",
    "luks": "cluster_size=4k,encrypt.format=luks,encrypt.key-secret=s0,encrypt.iter-time=10",
    "aes": "cluster_size=4k,encrypt.format=aes,encrypt.key-secret=s0",
}
"""Creation options of the disks that the fixture ``disks`` makes, by the name of the kind."""


ENCRYPTED = frozenset({"luks", "aes"})
"""Those of them that are encrypted, and without a backing file; see :mod:`diskwright.testing.secret`."""


@pytest.fixture(scope="session")
def disks(
    tmp_path_factory: pytest.TempPathFactory, qemu_img: Callable[..., Result], qemu_io: Callable[..., Result]
) -> Callable[[str, bool, bool], Folder]:
    """Make a qcow2 disk by the real tools: ``disks(kind, snapshots, bitmap)`` is the folder with it, to be written.

    It holds ``disk.qcow2`` with data, zeros and compressed clusters over ``base.qcow2``, with the snapshots ``s1`` and
    ``s2`` and the bitmap ``b0`` if they are asked for; ``other.qcow2``; and ``spare.raw``, a raw disk of the same size.
    """
    made: dict[tuple[str, bool, bool], Folder] = {}
    noise = tmp_path_factory.mktemp("noise") / "noise"

    def write(path: Path, *ranges: str, flags: str = "") -> None:
        noise.write_bytes(random.Random(str(ranges)).randbytes(300 * KIB))
        qemu_io(path, "qcow2", *(f"write {flags} -s {noise} {text}" for text in ranges))

    def build(folder: Path, kind: str, snapshots: bool, bitmap: bool) -> None:
        disk = folder / "disk.qcow2"
        for base, place in (("base.qcow2", "0"), ("other.qcow2", "200k")):
            qemu_img("create", "-q", "-f", "qcow2", folder / base, "1M")
            write(folder / base, f"{place} 300k", "700k 64k")
        (folder / "spare.raw").write_bytes(random.Random(9).randbytes(MIB) + bytes(512 * KIB))
        # What is named with its options finds no backing file by a relative name.
        backing = [] if kind in ENCRYPTED else ["-u", "-b", "base.qcow2", "-F", "qcow2"]
        secret = ["--object", SECRET]
        qemu_img("create", "-q", *secret, "-f", "qcow2", "-o", DISKS[kind], *backing, disk, "1536k")
        write(disk, "64k 100k", "1100k 90k")
        write(disk, "512k 64k", flags="-c" if kind not in ENCRYPTED | {"512"} else "")
        for snapshot, place in (("s1", "128k 30k"), ("s2", "320k 64k")) if snapshots else ():
            qemu_img("snapshot", *secret, "-c", snapshot, address(disk))
            write(disk, place)
        qemu_io(disk, "qcow2", "write -z 560k 64k", "write -zu 1120k 32k")
        if bitmap:
            qemu_img("bitmap", "--add", disk, "b0")
            write(disk, "400k 10k")

    def make(kind: str, snapshots: bool = True, bitmap: bool = False) -> Folder:
        key = kind, snapshots, bitmap
        if key not in made:
            folder = tmp_path_factory.mktemp("disk")
            build(folder, *key)
            made[key] = Folder.read(folder)
            shutil.rmtree(folder)
        return made[key]

    return make


@dataclass(frozen=True)
class Modification:
    """A command line that changes a disk of the fixture ``disks``.

    :ivar arguments: ``{}`` stands for the folder.
    :ivar hooks: what the driver must have.
    :ivar atomic: whether the disk is as before or after as a whole, not sector by sector.
    """

    arguments: tuple[str, ...]
    hooks: tuple[str, ...] = ()
    atomic: bool = True
    kind: str = "4k"
    snapshots: bool = True
    bitmap: bool = False

    def command(self, folder: Path) -> list[str]:
        """The arguments for a disk in that folder."""
        arguments = [argument.replace("{}", str(folder)) for argument in self.arguments]
        if self.kind in ENCRYPTED:
            disk = folder / "disk.qcow2"
            arguments = [address(disk) if argument == str(disk) else argument for argument in arguments]
            arguments[1:1] = ["--object", SECRET]
        return arguments


def _on_disk(text: str, *hooks: str, **properties: Any) -> Modification:
    """A command with options, separated by blanks, and a disk as its operand."""
    return Modification((*text.split(), "{}/disk.qcow2"), hooks, **properties)


MODIFICATIONS = {
    "create-new": Modification(("create", "-q", "-f", "qcow2", "{}/new.qcow2", "1M")),
    "create-over": Modification(("create", "-q", "-f", "qcow2", "{}/disk.qcow2", "1M")),
    "create-raw": Modification(("create", "-q", "-f", "raw", "{}/new.raw", "1M")),
    "convert-new": Modification(("convert", "-t", "writeback", "-O", "qcow2", "{}/disk.qcow2", "{}/new.qcow2")),
    "convert-compressed": Modification(
        ("convert", "-c", "-t", "writeback", "-O", "qcow2", "{}/disk.qcow2", "{}/new.qcow2")
    ),
    "convert-raw": Modification(("convert", "-t", "writeback", "-O", "raw", "{}/disk.qcow2", "{}/new.raw")),
    "convert-over": Modification(("convert", "-t", "writeback", "-O", "qcow2", "{}/spare.raw", "{}/disk.qcow2")),
    "convert-into": Modification(
        ("convert", "-n", "-t", "writeback", "-O", "qcow2", "{}/spare.raw", "{}/disk.qcow2"), atomic=False
    ),
    "snapshot-create": _on_disk("snapshot -c new", "snapshot_create"),
    "snapshot-apply": _on_disk("snapshot -a s1", "snapshot_apply", kind="512"),
    "snapshot-delete": _on_disk("snapshot -d s1", "snapshot_delete", kind="extended"),
    "resize-grow": Modification(("resize", "{}/disk.qcow2", "+700k"), ("resize",)),
    "resize-shrink": Modification(("resize", "--shrink", "{}/disk.qcow2", "400k"), ("resize",), kind="512"),
    "resize-full": Modification(("resize", "--preallocation=full", "{}/disk.qcow2", "+300k"), ("resize",)),
    "commit": _on_disk("commit", "make_empty", "resize", atomic=False, snapshots=False, kind="512"),
    "commit-keep": _on_disk("commit -d", "resize", atomic=False),
    "rebase": _on_disk("rebase -b other.qcow2 -F qcow2", "set_backing", atomic=False),
    "rebase-unsafe": _on_disk("rebase -u -b other.qcow2 -F qcow2", "set_backing"),
    "amend-refcounts": _on_disk("amend -o refcount_bits=32", "amend", kind="512"),
    "amend-upgrade": _on_disk("amend -o compat=1.1", "amend", kind="v2"),
    "resize-grow-luks": Modification(("resize", "{}/disk.qcow2", "+700k"), ("resize",), kind="luks"),
    "resize-full-aes": Modification(
        ("resize", "--preallocation=full", "{}/disk.qcow2", "+300k"), ("resize",), kind="aes"
    ),
    "resize-shrink-luks": Modification(("resize", "--shrink", "{}/disk.qcow2", "400k"), ("resize",), kind="luks"),
    "amend-refcounts-luks": _on_disk("amend -o refcount_bits=32", "amend", kind="luks"),
    "amend-lazy-aes": _on_disk("amend -o lazy_refcounts=on", "amend", kind="aes"),
    "amend-downgrade": _on_disk("amend -o compat=0.10", "amend"),
    "bitmap-add": Modification(("bitmap", "--add", "{}/disk.qcow2", "b1"), ("bitmap_add",), bitmap=True),
    "bitmap-remove": Modification(("bitmap", "--remove", "{}/disk.qcow2", "b0"), ("bitmap_remove",), bitmap=True),
    "bitmap-clear": Modification(("bitmap", "--clear", "{}/disk.qcow2", "b0"), ("bitmap_fill",), bitmap=True),
    "bitmap-disable": Modification(("bitmap", "--disable", "{}/disk.qcow2", "b0"), ("bitmap_enable",), bitmap=True),
}
"""Each changing subcommand in its ways."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run each test that asks for a ``modification`` with all of them."""
    if "modification" in metafunc.fixturenames:
        metafunc.parametrize("modification", list(MODIFICATIONS), indirect=True)


@pytest.fixture
def modification(request: pytest.FixtureRequest) -> Modification:
    """A changing command; the test is skipped while the driver cannot do it."""
    from diskwright.context import Context

    chosen = MODIFICATIONS[request.param]
    formats = Context().formats
    for hook in chosen.hooks:
        if not formats.has(hook, "qcow2"):
            pytest.skip(f"qcow2 has no {hook}")
    return chosen


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """Both programs with folders of images; each run begins with the images as they were made."""
    scratch = tmp_path_factory.mktemp("pair")
    make_samples(scratch / "samples")
    with ours(scratch) as runner:
        yield Pair(scratch / "samples", scratch, runner)
