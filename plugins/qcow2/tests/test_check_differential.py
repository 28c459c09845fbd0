"""Damaged images: check and its repairs print, count and exit as the real tool does, and repair without loss."""

from __future__ import annotations

import io
import os
import random
import re
import shutil
import subprocess
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from diskwright.cli import main
from diskwright.context import Context

SIZE = 1 << 20
COPIED = 1 << 63
OFFSET = (1 << 56) - 512


class Kind(NamedTuple):
    """How an image is made."""

    options: str
    snapshot: bool = False
    bitmap: bool = False


KINDS = {
    "64k": Kind("cluster_size=64k"),
    "512": Kind("cluster_size=512"),
    "version-2": Kind("compat=0.10", snapshot=True),
    "1-bit": Kind("refcount_bits=1,cluster_size=4k"),
    "64-bits": Kind("refcount_bits=64,cluster_size=4k", snapshot=True),
    "extended": Kind("extended_l2=on,cluster_size=16k", snapshot=True),
    "snapshot": Kind("cluster_size=4k", snapshot=True),
    "bitmap": Kind("cluster_size=16k", bitmap=True),
}


class Outcome(NamedTuple):
    """What a command did."""

    code: int
    out: str
    err: str


@dataclass
class Harm:
    """The bytes of an image, and what can be done to them.

    :ivar clean: whether a full repair leaves nothing wrong.
    :ivar beyond: whether the real repair fails to do what it should, or harms the guest's data.
    """

    data: bytearray
    rng: random.Random
    clean: bool = True
    beyond: bool = False

    def number(self, offset: int, length: int = 8) -> int:
        """A big-endian number."""
        return int.from_bytes(self.data[offset : offset + length], "big")

    def put(self, offset: int, value: int, length: int = 8) -> None:
        """Store a big-endian number."""
        self.data[offset : offset + length] = value.to_bytes(length, "big")

    @property
    def cluster(self) -> int:
        return 1 << self.number(20, 4)

    @property
    def table(self) -> int:
        return self.number(48)

    @property
    def width(self) -> int:
        """Bits of a refcount."""
        return 1 << (self.number(96, 4) if self.number(4, 4) > 2 else 4)

    def l1(self) -> int:
        """Place of an L1 entry that is in use."""
        start = self.number(40)
        return self.rng.choice([o for o in range(start, start + 8 * self.number(36, 4), 8) if self.number(o)])

    def l2(self) -> int:
        """Place of an L2 entry that is in use."""
        extended = self.number(4, 4) > 2 and self.number(72) & 16
        table = self.number(self.l1()) & OFFSET
        return self.rng.choice(
            [o for o in range(table, table + self.cluster, 16 if extended else 8) if self.number(o) & OFFSET]
        )

    def refcount(self, cluster: int, value: int) -> None:
        """Set the refcount of a cluster in the first block."""
        block = self.number(self.table)
        if self.width == 1:
            self.data[block + cluster // 8] &= ~(1 << cluster % 8)
            self.data[block + cluster // 8] |= value << cluster % 8
        else:
            self.put(block + cluster * self.width // 8, value, self.width // 8)

    def some_cluster(self) -> int:
        """A cluster of the file that the first refcount block counts."""
        return self.rng.randrange(min(len(self.data) // self.cluster, 8 * self.cluster // self.width))


def too_high(harm: Harm) -> None:
    """Leaked clusters."""
    for _ in range(3):
        harm.refcount(harm.some_cluster(), 1 if harm.width == 1 else harm.rng.choice([2, 3, 200]))


def behind_the_end(harm: Harm) -> None:
    """Leaked clusters that the file does not have."""
    last = min(len(harm.data) // harm.cluster + 3, 8 * harm.cluster // harm.width - 1)
    harm.refcount(last, 1)


def too_low(harm: Harm) -> None:
    """Clusters in use that count as free."""
    for _ in range(2):
        harm.refcount(harm.some_cluster(), 0)


def header_free(harm: Harm) -> None:
    """The header's cluster, which is always in use, counts as free."""
    harm.refcount(0, 0)


def l1_flag(harm: Harm) -> None:
    """An L1 entry's flag."""
    place = harm.l1()
    harm.put(place, harm.number(place) ^ COPIED)


def l2_flags(harm: Harm) -> None:
    """Flags of L2 entries."""
    for _ in range(3):
        place = harm.l2()
        harm.put(place, harm.number(place) ^ COPIED)


def used_twice(harm: Harm) -> None:
    """Two L2 entries for one cluster; where a count cannot say so, nobody can repair that."""
    harm.put(harm.l2(), harm.number(harm.l2()))
    harm.clean &= harm.width > 1


def over_metadata(harm: Harm) -> None:
    """An L2 entry for the first refcount block; the real repair writes that block if a count cannot say so."""
    harm.put(harm.l2(), harm.number(harm.table) | COPIED)
    harm.beyond |= harm.width == 1


def outside(harm: Harm) -> None:
    """An L2 entry for a place behind the end of the file."""
    harm.put(harm.l2(), len(harm.data) + 9 * harm.cluster & -harm.cluster)
    harm.clean = False


def reserved_l2(harm: Harm) -> None:
    """Reserved bits of an L2 entry."""
    place = harm.l2()
    harm.put(place, harm.number(place) | 1 << 57)
    harm.clean = False


def reserved_l1(harm: Harm) -> None:
    """Reserved bits of an L1 entry."""
    place = harm.l1()
    harm.put(place, harm.number(place) | 1 << 60)
    harm.clean = False


def unaligned(harm: Harm) -> None:
    """A data cluster that does not start at a cluster's boundary."""
    if harm.cluster > 512:
        place = harm.l2()
        harm.put(place, harm.number(place) + 512)
        harm.clean = False


def block_reserved(harm: Harm) -> None:
    """Reserved bits in the refcount table; the real repair trips over them when it is nearly done."""
    harm.beyond = True
    harm.data[harm.table + 7] |= 1


def block_lost(harm: Harm) -> None:
    """A refcount block that the table does not name."""
    harm.put(harm.table, 0)


def block_outside(harm: Harm) -> None:
    """An empty refcount block a little behind the end of the file."""
    harm.put(harm.table + 8, len(harm.data) + 4 * harm.cluster & -harm.cluster)


def block_shared(harm: Harm) -> None:
    """A refcount block for two ranges; the real repair leaves that if a count cannot say so."""
    harm.beyond |= harm.width == 1
    harm.put(harm.table + 8, harm.number(harm.table))


def no_table(harm: Harm) -> None:
    """No refcount table at all."""
    harm.put(48, 0)
    harm.put(56, 0, 4)


LIGHT = [too_high, behind_the_end, too_low, l1_flag, l2_flags, used_twice, over_metadata]
HARMS = [*LIGHT, header_free, outside, reserved_l2, reserved_l1, unaligned]
HARMS += [block_reserved, block_lost, block_outside, block_shared, no_table]


@pytest.fixture(scope="session")
def oracle() -> Callable[..., Outcome]:
    """Run the real tool, whose messages are those of version 10."""
    program = _real_program()
    version = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"version (\d+)", version)
    if found is None or int(found[1]) < 10:
        pytest.skip(f"messages are compared with those of qemu-img 10, this is {version.splitlines()[0]}")

    def call(*arguments: str | os.PathLike[str]) -> Outcome:
        done = subprocess.run([program, *arguments], capture_output=True, text=True, check=False, timeout=60)
        return Outcome(done.returncode, done.stdout, done.stderr)

    return call


def _real_program() -> str:
    found = os.environ.get("DISKWRIGHT_QEMU_IMG") or shutil.which("qemu-img")
    if found is None:
        pytest.skip("qemu-img is not installed (Debian: qemu-utils)")
    return found


def ours(*arguments: str | os.PathLike[str]) -> Outcome:
    """Run our command line in this process, under the name of the real tool."""
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8") for _ in range(2))
    with redirect_stdout(out), redirect_stderr(err):
        code = main([os.fspath(argument) for argument in arguments], program="qemu-img")
    out.flush()
    err.flush()
    texts = [stream.buffer.getvalue().decode() for stream in (out, err)]  # type: ignore[attr-defined]
    return Outcome(code, *texts)


@pytest.fixture(scope="module", params=KINDS)
def sound(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    oracle: Callable[..., Outcome],
    qemu_io: Callable[..., str],
) -> bytes:
    """An image with data in several places."""
    kind: Kind = KINDS[request.param]
    path = tmp_path_factory.mktemp("sound") / "disk"
    steps = [("create", "-q", "-f", "qcow2", "-o", kind.options, path, str(SIZE))]
    if kind.snapshot:
        steps.append(("snapshot", "-c", "s", path))
    if kind.bitmap:
        steps.append(("bitmap", "--add", path, "b"))
    for step in steps:
        assert oracle(*step).code == 0
        qemu_io(path, "write -P 7 0 100k", "write -P 8 300k 50k")
    qemu_io(path, "write -P 9 50k 40k", "write -P 10 900k 100k")
    assert oracle("check", path).code == 0
    return path.read_bytes()


def content(path: Path) -> list[bytes]:
    """The disk and its snapshots."""
    context = Context()
    with context.open(str(path), "qcow2", writable=False, check=True) as image:
        views: list[Any] = [image]
        snapshots = context.formats.call("snapshot_list", "qcow2", image=image)
        views += [context.formats.call("snapshot_view", "qcow2", image=image, snapshot=one) for one in snapshots]
        return [view.read_at(0, view.size) for view in views]


def defective(expected: Outcome) -> bool:
    """Whether the real tool crashed or lost the bitmaps, as it does when it writes them to clusters that are in use."""
    return expected.code < 0 or "Lost persistent bitmaps" in expected.err


def compare(harmed: Harm, path: Path, oracle: Callable[..., Outcome]) -> None:
    """Check, repair leaks, repair all: the same words and numbers; and nothing is lost."""
    data = bytes(harmed.data)
    for mode in ([], ["-r", "leaks"], ["-r", "all"]):
        path.write_bytes(data)
        expected = oracle("check", *mode, path)
        path.write_bytes(data)
        before = content(path) if harmed.clean else []
        done = ours("check", *mode, path)
        if not defective(expected) and not (mode and harmed.beyond):
            assert done == expected, mode
        if not mode:
            assert path.read_bytes() == data
        if harmed.clean:
            assert content(path) == before, mode
    if harmed.clean:
        assert oracle("check", path).code == 0


@pytest.mark.parametrize("harm", HARMS, ids=lambda harm: harm.__name__)
def test_one_fault(sound: bytes, tmp_path: Path, oracle: Callable[..., Outcome], harm: Callable[[Harm], None]) -> None:
    for seed in range(2):
        harmed = Harm(bytearray(sound), random.Random(seed))
        harm(harmed)
        compare(harmed, tmp_path / "disk", oracle)


@pytest.mark.parametrize("seed", range(8))
def test_several_faults(sound: bytes, tmp_path: Path, oracle: Callable[..., Outcome], seed: int) -> None:
    harmed = Harm(bytearray(sound), random.Random(seed))
    for harm in harmed.rng.sample(LIGHT, 3):
        harm(harmed)
    compare(harmed, tmp_path / "disk", oracle)
