"""Power cuts: each changing operation is recorded call by call, and the files are looked at as a crash may leave them.

Whatever was lost of what was not made durable: guest data and snapshots read as before or after, and the image is clean
but for leaked clusters, or says that it is dirty and is repaired without a change of data.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from diskwright.cli import main
from diskwright.context import Context
from diskwright.engine.checking import CheckRequest, check_file
from diskwright.testing.content import look, require_before_or_after, require_sound
from diskwright.testing.faults import Call, Folder, Loss, SystemCalls, after_crash
from diskwright.testing.secret import SECRET, address, knowing_context, real_check

KIB, MIB = 1 << 10, 1 << 20
DISK, BASE, OTHER, SPARE = "disk.qcow2", "base.qcow2", "other.qcow2", "spare.raw"
"""See the fixture ``disks``."""

IMAGES = ("4k", "512", "extended", "v2")
CRYPT = ("luks", "aes")
"""Kinds of disks, see the fixture ``disks``."""


@dataclass(frozen=True)
class Operation:
    """Something that changes images.

    :ivar act: does it, in a folder.
    :ivar hooks: what the driver must have.
    :ivar prepare: what happens before, unrecorded; whether it concerns this image at all.
    :ivar atomic: each image is as before or after as a whole, not sector by sector.
    :ivar bitmap: whether the disk has a bitmap to begin with.
    :ivar damaged: the image has errors that the operation is to repair.
    """

    act: Callable[[Path], None]
    hooks: tuple[str, ...] = ()
    atomic: bool = True
    prepare: Callable[[Path], None] = lambda _: None
    bitmap: bool = False
    snapshots: bool = True
    damaged: bool = False
    images: tuple[str, ...] = IMAGES


def command(*arguments: str) -> Callable[[Path], None]:
    """A command line; ``{}`` stands for the folder."""

    def act(folder: Path) -> None:
        disk = folder / DISK
        words = [argument.replace("{}", str(folder)) for argument in arguments]
        words = [address(disk) if word == str(disk) else word for word in words]
        code = main([words[0], "--object", SECRET, *words[1:]])
        assert code == 0, f"{arguments}: exit code {code}"

    return act


def guest(*steps: Callable[[Any], None]) -> Callable[[Path], None]:
    """What a guest does to the disk, as steps with a flush after each."""

    def act(folder: Path) -> None:
        with knowing_context().open(address(folder / DISK), "qcow2", writable=True) as image:
            for step in steps:
                step(image)
                image.flush()

    return act


def writing(seed: int, *ranges: tuple[int, int]) -> Callable[[Any], None]:
    """Write noise to ranges that do not overlap, offset and length in bytes."""

    def step(image: Any) -> None:
        for offset, length in ranges:
            image.write_at(offset, random.Random(seed + offset).randbytes(length))

    return step


def compressing(image: Any) -> None:
    """Write compressed clusters over all kinds of others."""
    size = image.cluster_size
    for offset in (0, 64 * KIB, 128 * KIB, 520 * KIB, 800 * KIB):
        start = offset // size * size
        blob = image.compress(memoryview(b"%08d" % offset * (size // 8)))
        assert blob is not None
        image.write_compressed([(start, blob)])


def zeroing(image: Any) -> None:
    """Zero and discard ranges."""
    image.write_zeroes(70 * KIB, 30 * KIB, unmap=True)
    image.write_zeroes(130 * KIB, 9 * KIB, unmap=False)
    image.discard(200 * KIB, 150 * KIB)
    image.discard(500 * KIB, 100 * KIB)


def emptying(folder: Path) -> None:
    """Forget the data of the top layer."""
    context = Context()
    with context.open(str(folder / DISK), "qcow2", writable=True) as image:
        context.formats.call("make_empty", "qcow2", image=image)


def damage(folder: Path) -> None:
    """Count two clusters too high, and two not at all."""
    path = folder / DISK
    data = bytearray(path.read_bytes())
    bits = int.from_bytes(data[20:24], "big")
    order = int.from_bytes(data[96:100], "big") if data[7] > 2 else 4
    width = (1 << order) // 8
    table = int.from_bytes(data[48:56], "big")
    block = int.from_bytes(data[table : table + 8], "big")
    used = [i for i in range((1 << bits) // width) if any(data[block + i * width : block + (i + 1) * width])]
    for cluster, count in ((used[-1], 7), (used[-2], 0), (used[len(used) // 2], 0), (used[2], 3)):
        data[block + cluster * width : block + (cluster + 1) * width] = count.to_bytes(width, "big")
    path.write_bytes(data)


WRITES = ((1000, 100), (68 * KIB, 20 * KIB), (129 * KIB, 3000), (300 * KIB, 70 * KIB), (MIB + 999, 200 * KIB))
MORE = ((90 * KIB, 5 * KIB), (600 * KIB, 1), (705 * KIB, 64 * KIB))

V3 = ("4k", "512", "extended")
OPERATIONS = {
    "write": Operation(guest(writing(1, *WRITES), writing(2, *MORE)), atomic=False, images=IMAGES + CRYPT),
    "write-without-snapshots": Operation(guest(writing(1, *WRITES), writing(2, *MORE)), atomic=False, snapshots=False),
    "write-with-bitmap": Operation(
        guest(writing(1, *WRITES), writing(2, *MORE)), ("bitmap_list",), atomic=False, bitmap=True, images=V3
    ),
    "write-compressed": Operation(guest(compressing), atomic=False),
    "zero-and-discard": Operation(guest(zeroing), atomic=False),
    "snapshot-create": Operation(command("snapshot", "-c", "new", f"{{}}/{DISK}"), ("snapshot_create",)),
    "snapshot-create-with-bitmap": Operation(
        command("snapshot", "-c", "new", f"{{}}/{DISK}"), ("snapshot_create", "bitmap_list"), bitmap=True, images=V3
    ),
    "snapshot-create-first": Operation(
        command("snapshot", "-c", "new", f"{{}}/{DISK}"), ("snapshot_create",), snapshots=False
    ),
    "snapshot-apply": Operation(command("snapshot", "-a", "s1", f"{{}}/{DISK}"), ("snapshot_apply",)),
    "snapshot-delete": Operation(command("snapshot", "-d", "s1", f"{{}}/{DISK}"), ("snapshot_delete",)),
    "resize-grow": Operation(command("resize", f"{{}}/{DISK}", "+700k"), ("resize",), images=V3 + CRYPT),
    "resize-grow-v2": Operation(command("resize", f"{{}}/{DISK}", "+9M"), ("resize",), snapshots=False),
    "resize-grow-full": Operation(
        command("resize", "--preallocation", "full", f"{{}}/{DISK}", "+300k"), ("resize",), images=V3 + CRYPT
    ),
    "resize-shrink": Operation(command("resize", "--shrink", f"{{}}/{DISK}", "400k"), ("resize",), snapshots=False),
    "resize-shrink-with-snapshots": Operation(
        command("resize", "--shrink", f"{{}}/{DISK}", "400k"), ("resize",), images=V3 + CRYPT
    ),
    "commit": Operation(command("commit", f"{{}}/{DISK}"), ("make_empty", "resize"), atomic=False, snapshots=False),
    "commit-keep": Operation(command("commit", "-d", f"{{}}/{DISK}"), ("resize",), atomic=False),
    "rebase": Operation(command("rebase", "-b", OTHER, "-F", "qcow2", f"{{}}/{DISK}"), ("set_backing",), atomic=False),
    "rebase-flat": Operation(command("rebase", "-b", "", f"{{}}/{DISK}"), ("set_backing",), atomic=False),
    "rebase-unsafe": Operation(command("rebase", "-u", "-b", OTHER, "-F", "qcow2", f"{{}}/{DISK}"), ("set_backing",)),
    "make-empty": Operation(emptying, ("make_empty",)),
    "amend-refcounts": Operation(
        command("amend", "-o", "refcount_bits=32", f"{{}}/{DISK}"), ("amend",), images=V3 + CRYPT
    ),
    "amend-upgrade": Operation(command("amend", "-o", "compat=1.1", f"{{}}/{DISK}"), ("amend",), images=("v2",)),
    "amend-downgrade": Operation(command("amend", "-o", "compat=0.10", f"{{}}/{DISK}"), ("amend",), images=("4k",)),
    "amend-lazy": Operation(command("amend", "-o", "lazy_refcounts=on", f"{{}}/{DISK}"), ("amend",), images=V3 + CRYPT),
    "bitmap-add": Operation(command("bitmap", "--add", f"{{}}/{DISK}", "b1"), ("bitmap_add",), bitmap=True, images=V3),
    "bitmap-add-first": Operation(command("bitmap", "--add", f"{{}}/{DISK}", "b1"), ("bitmap_add",), images=V3),
    "bitmap-remove": Operation(
        command("bitmap", "--remove", f"{{}}/{DISK}", "b0"), ("bitmap_remove",), bitmap=True, images=V3
    ),
    "bitmap-disable": Operation(
        command("bitmap", "--disable", f"{{}}/{DISK}", "b0"), ("bitmap_enable",), bitmap=True, images=V3
    ),
    "bitmap-clear": Operation(
        command("bitmap", "--clear", f"{{}}/{DISK}", "b0"), ("bitmap_fill",), bitmap=True, images=V3
    ),
    "repair": Operation(
        lambda folder: _ignore(main(["check", "--object", SECRET, "-q", "-r", "all", address(folder / DISK)])),
        ("amend",),  # comes with repairs
        prepare=damage,
        damaged=True,
        images=IMAGES + CRYPT,
    ),
    "create-over": Operation(command("create", "-q", "-f", "qcow2", f"{{}}/{DISK}", "1M")),
    "convert-over": Operation(command("convert", "-t", "writeback", "-O", "qcow2", f"{{}}/{SPARE}", f"{{}}/{DISK}")),
    "convert-into": Operation(
        command("convert", "-n", "-t", "writeback", "-O", "qcow2", f"{{}}/{SPARE}", f"{{}}/{DISK}"), atomic=False
    ),
}


def _ignore(_: object) -> None:
    """A repair's exit code is told by other tests."""


class Trial:
    """One operation on one image, recorded, and the crashes that are made of it."""

    def __init__(self, operation: Operation, start: Folder, folder: Path, qemu_img: Callable[..., Any]) -> None:
        self.operation = operation
        self.qemu_img = qemu_img
        self.folder = folder
        start.write(folder)
        operation.prepare(folder)
        self.start = Folder.read(folder)
        self.names = [name for name in (DISK, BASE) if name in self.start.names]
        self.before = {name: look(address(folder / name), "qcow2", knowing_context()) for name in self.names}
        with SystemCalls(folder) as calls:
            operation.act(folder)
        self.log: list[Call] = calls.log
        self.after = {name: look(address(folder / name), "qcow2", knowing_context()) for name in self.names}
        self.copy = folder.with_name("crashed")

    def crash(self, count: int, loss: Loss, seed: int) -> None:
        """Look at what a crash leaves."""
        crashed = after_crash(self.start, self.log, count, loss, random.Random(seed))
        crashed.write(self.copy)
        for name in self.names:
            assert name in crashed.names, f"{name} is gone"
            if crashed.files[crashed.names[name]] == self.start.files[self.start.names[name]]:
                continue
            self._require_sound(self.copy / name)
        for name in self.names:
            got = look(address(self.copy / name), "qcow2", knowing_context())
            require_before_or_after(got, self.before[name], self.after[name], atomic=self.operation.atomic)

    def _require_sound(self, path: Path) -> None:
        """The real check finds leaks at most, or the image says that it is dirty and can be repaired."""
        if self.operation.damaged:
            check_file(knowing_context(), CheckRequest(address(path), "qcow2", repair="all"), lambda _: None)
        result = real_check(self.qemu_img, path)
        data = path.read_bytes()
        if result.code == 2 and data[7] > 2 and data[79] & 1:  # the dirty bit
            self.qemu_img("check", "-q", "-r", "all", "-f", "qcow2", path, code=None)
            result = real_check(self.qemu_img, path)
        assert result.code in (0, 3), result
        require_sound(address(path), "qcow2", knowing_context())

    def survives(self, points: int, seed: int) -> None:
        """Crash at many points; and the operation is durable when it says that it is done."""
        chance = random.Random(seed)
        total = len(self.log)
        self._crash(total, Loss.ALL, 0)
        final = {name: look(address(self.copy / name), "qcow2", knowing_context()) for name in self.names}
        assert final == self.after, "what was done and reported as done is lost in a power cut"
        counts = range(total + 1) if total < points else sorted(chance.sample(range(total + 1), points))
        for count in counts:
            loss = chance.choice((Loss.NOTHING, Loss.CALLS, Loss.CALLS, Loss.SECTORS))
            self._crash(count, loss, chance.randrange(1 << 30))

    def _crash(self, count: int, loss: Loss, seed: int) -> None:
        try:
            self.crash(count, loss, seed)
        except Exception as error:
            last = [f"{call.kind.value} {call.offset}+{len(call.data) or call.length}" for call in self.log[:count]]
            pytest.fail(
                f"crash({count}, {loss}, {seed}) of {len(self.log)} calls, after {last[-12:]}: "
                f"{type(error).__name__}: {error}"
            )


COMBINATIONS = [
    pytest.param(name, image, id=f"{name}-{image}")
    for name, operation in OPERATIONS.items()
    for image in operation.images
]
"""Each operation on each image that it is for."""


def run_trial(
    name: str, image: str, disks: Callable[..., Folder], folder: Path, qemu_img: Callable[..., Any], points: int
) -> None:
    """Make the trial of an operation on an image."""
    operation = OPERATIONS[name]
    formats = Context().formats
    for hook in operation.hooks:
        if not formats.has(hook, "qcow2"):
            pytest.skip(f"qcow2 has no {hook}")
    start = disks(image, operation.snapshots, operation.bitmap)
    Trial(operation, start, folder / "disk", qemu_img).survives(points, len(name))


@pytest.mark.parametrize(("name", "image"), COMBINATIONS)
def test_power_cut(
    name: str, image: str, disks: Callable[..., Folder], tmp_path: Path, qemu_img: Callable[..., Any]
) -> None:
    """A crash at some points."""
    run_trial(name, image, disks, tmp_path, qemu_img, 12)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "image"), COMBINATIONS)
def test_power_cut_at_many_points(
    name: str, image: str, disks: Callable[..., Folder], tmp_path: Path, qemu_img: Callable[..., Any]
) -> None:
    """A crash at nearly every point."""
    run_trial(name, image, disks, tmp_path, qemu_img, 400)
