"""Every combination of qcow2's creation options, both ways with the real qemu-img: theirs is read, ours is accepted.

The default run covers every pair of parameter values; the slow one every combination of the format's own options.
"""

from __future__ import annotations

import itertools
import json
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import diskwright

KIB, MIB, GIB, TIB = 1 << 10, 1 << 20, 1 << 30, 1 << 40


class Case(NamedTuple):
    """One combination of parameters; ``depth`` counts the layers below the top."""

    cluster_size: int
    compat: str
    extended_l2: bool
    compression: str
    preallocation: str
    refcount_bits: int
    depth: int
    size: int

    @property
    def options(self) -> str:
        """For -o."""
        parts = [f"cluster_size={self.cluster_size}", f"compat={self.compat}", f"preallocation={self.preallocation}"]
        if self.compat == "1.1":
            parts.append(f"extended_l2={'on' if self.extended_l2 else 'off'}")
            parts.append(f"refcount_bits={self.refcount_bits}")
            parts.append(f"compression_type={self.compression or 'zlib'}")
        return ",".join(parts)

    @property
    def compress(self) -> list[str]:
        """For convert."""
        return ["-c"] if self.compression else []

    @property
    def possible(self) -> bool:
        """Whether the format has it, and in a time fit for tests."""
        v3_only = self.extended_l2 or self.compression == "zstd" or self.refcount_bits != 16
        reach = 4 * MIB * self.cluster_size * (self.cluster_size // (16 if self.extended_l2 else 8))
        return not (
            (v3_only and self.compat != "1.1")
            or (self.extended_l2 and self.cluster_size < 16 * KIB)
            or (self.compression and self.preallocation != "off")
            or self.size > reach
            or (self.preallocation != "off" and self.size > 2 * MIB)
        )

    def __str__(self) -> str:
        size = next(f"{self.size >> s}{u}" for s, u in ((40, "T"), (30, "G"), (0, "")) if self.size >> s or not s)
        parts = [f"c{self.cluster_size}", f"v{self.compat}", "ext" if self.extended_l2 else "", self.compression]
        parts += [self.preallocation, f"r{self.refcount_bits}", f"d{self.depth}", size]
        return "-".join(part for part in parts if part)


DOMAIN: dict[str, tuple[Any, ...]] = {
    "cluster_size": tuple(1 << bits for bits in range(9, 22)),
    "compat": ("1.1", "0.10"),
    "extended_l2": (False, True),
    "compression": ("", "zlib", "zstd"),
    "preallocation": ("off", "metadata", "falloc", "full"),
    "refcount_bits": (16, 1, 8, 64),
    "depth": (0, 1, 2, 3),
    "size": (MIB + 512, 0, 512, 64 * KIB - 512, 5 * GIB, TIB),
}


def pairs_of(case: Case) -> set[tuple[int, Any, int, Any]]:
    """All pairs of (position, value) in a case."""
    return {(i, case[i], j, case[j]) for i, j in itertools.combinations(range(len(case)), 2)}


def covering_pairs() -> list[Case]:
    """A small set of possible cases in which every possible pair of values occurs; always the same one."""
    rng = random.Random(7)
    columns = list(DOMAIN.values())
    chosen: list[Case] = []
    covered: set[tuple[int, Any, int, Any]] = set()
    for i, j in itertools.combinations(range(len(columns)), 2):
        for first, second in itertools.product(columns[i], columns[j]):
            if (i, first, j, second) in covered:
                continue
            best: Case | None = None
            for _ in range(60):
                values = [rng.choice(column) for column in columns]
                values[i], values[j] = first, second
                case = Case(*values)
                if case.possible and (best is None or len(pairs_of(case) - covered) > len(pairs_of(best) - covered)):
                    best = case
            if best is not None:
                chosen.append(best)
                covered |= pairs_of(best)
    return chosen


def all_formats() -> Iterator[Case]:
    """Every combination of the format's options; sizes and depths take turns."""
    columns = [column for name, column in DOMAIN.items() if name not in ("depth", "size", "refcount_bits")]
    turn = itertools.count()
    for values in itertools.product(*columns):
        for _ in range(12):
            n = next(turn)
            case = Case(*values, DOMAIN["refcount_bits"][n % 4], n // 4 % 4, DOMAIN["size"][n % 6])
            if case.possible:
                yield case
                break


CASES = [pytest.param(case, id=str(case)) for case in covering_pairs()]
CASES += [
    pytest.param(case, id=f"all-{case}", marks=pytest.mark.slow)
    for case in all_formats()
    if case not in {param.values[0] for param in CASES}
]


def patches(case: Case, layer: int) -> list[tuple[int, int, int]]:
    """What is written on top of the bottom layer: (offset, length, byte), across clusters, at both ends."""
    end = case.size // 512
    if not end:
        return []
    rng = random.Random(layer)
    found = [(0, 512, 16 * layer + 9), (case.size - 512, 512, 16 * layer + 10)]
    for n in range(3):
        start = rng.randrange(end)
        found.append((start * 512, min(end - start, rng.randrange(1, 300)) * 512, 16 * layer + n + 1))
    return found


def overlay_options(case: Case) -> str:
    """Overlays cannot preallocate unless subclusters tell data from holes."""
    return (
        case.options
        if case.extended_l2
        else case.options.replace(
            f"preallocation={case.preallocation}", "lazy_refcounts=off" if case.compat == "1.1" else "preallocation=off"
        )
    )


def map_of(tool: Callable[..., Any], image: Path) -> list[tuple[int, int, dict[str, Any]]]:
    """The JSON map as (start, length, rest).

    Left out is the offset of what is not present, of which only some versions of qemu-img tell, and ``compressed``,
    which old ones lack; ranges that are alike without them are joined. The entry of no bytes that qemu-img has for an
    empty disk is a defect of it that we do not copy.
    """
    joined: list[tuple[int, int, dict[str, Any]]] = []
    for entry in json.loads(tool("map", "--output=json", image).out):
        if not entry["length"]:
            continue
        rest = {key: entry[key] for key in ("depth", "present", "zero", "data")}
        if entry["present"] and "offset" in entry:
            rest["offset from start"] = entry["offset"] - entry["start"]
        start, length, former = joined.pop() if joined else (0, 0, rest)
        if former == rest:
            joined.append((start, length + entry["length"], rest))
        else:
            joined += [(start, length, former), (entry["start"], entry["length"], rest)]
    return joined


@pytest.mark.parametrize("case", CASES)
def test_what_qemu_img_writes_is_read(
    case: Case,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    inside: Callable[..., Any],
    qemu_img: Callable[..., Any],
    qemu_io: Callable[..., Any],
    patterns: Callable[..., None],
    same_disk: Callable[[Path, Path], None],
) -> None:
    """Content, map and check of a chain made by qemu-img; then it is written by us and qemu-img reads that."""
    monkeypatch.chdir(tmp_path)
    source, top = Path("source.raw"), Path("layer0.qcow2")
    patterns(source, case.size)
    qemu_img("convert", "-f", "raw", "-O", "qcow2", *case.compress, "-o", case.options, source, top)
    for layer in range(1, case.depth + 1):
        below, top = top, Path(f"layer{layer}.qcow2")
        qemu_img("create", "-q", "-f", "qcow2", "-b", below, "-F", "qcow2", "-o", overlay_options(case), top)
        written = [f"write -P {byte} {offset} {length}" for offset, length, byte in patches(case, layer)]
        if written:
            qemu_io(top, "qcow2", *written, "write -z 0 512" if layer == 2 else "flush")

    qemu_img("convert", "-O", "raw", top, "theirs.raw")
    inside("convert", "-O", "raw", top, "ours.raw", code=0)
    same_disk(Path("theirs.raw"), Path("ours.raw"))
    inside("compare", top, "theirs.raw", code=0)
    inside("check", top, code=0)
    assert map_of(inside, top) == map_of(qemu_img, top)

    with diskwright.open(str(top), writable=True) as image, Path("theirs.raw").open("r+b") as raw:
        for offset, length, byte in patches(case, 15):
            image.write_at(offset, bytes([byte]) * length)
            raw.seek(offset)
            raw.write(bytes([byte]) * length)
        image.flush()
    qemu_img("check", top)
    qemu_img("compare", "-f", "raw", "-F", "qcow2", "theirs.raw", top)


@pytest.mark.parametrize("case", CASES)
def test_what_we_write_is_accepted(
    case: Case,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    inside: Callable[..., Any],
    qemu_img: Callable[..., Any],
    qemu_io: Callable[..., Any],
    patterns: Callable[..., None],
) -> None:
    """qemu-img checks our images clean, reads the same from them, and goes on writing them."""
    monkeypatch.chdir(tmp_path)
    source, top = Path("source.raw"), Path("layer0.qcow2")
    patterns(source, case.size)
    inside("convert", "-f", "raw", "-O", "qcow2", *case.compress, "-o", case.options, source, top, code=0)
    qemu_img("check", top)
    qemu_img("compare", "-f", "raw", "-F", "qcow2", source, top)
    for layer in range(1, case.depth + 1):
        below, top = top, Path(f"layer{layer}.qcow2")
        options = overlay_options(case)
        inside("create", "-q", "-f", "qcow2", "-b", below, "-F", "qcow2", "-o", options, top, code=0)
        qemu_img("check", top)
        for offset, length, byte in patches(case, layer):
            qemu_io(top, "qcow2", f"write -P {byte} {offset} {length}")
            qemu_io(source, "raw", f"write -P {byte} {offset} {length}")
        qemu_img("check", top)
        qemu_img("compare", "-f", "raw", "-F", "qcow2", source, top)
    inside("compare", "-f", "raw", "-F", "qcow2", source, top, code=0)
    inside("check", top, code=0)


@pytest.mark.parametrize(
    "options", ["cluster_size=4k", "cluster_size=16k,extended_l2=on", "compat=0.10", "refcount_bits=1"]
)
def test_snapshots_survive_writing(
    options: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    qemu_img: Callable[..., Any],
    patterns: Callable[..., None],
) -> None:
    """Clusters that a snapshot shares are copied, not written; refcounts of one bit cannot be shared at all."""
    monkeypatch.chdir(tmp_path)
    case = Case(65536, "1.1", False, "", "off", 16, 0, 3 * MIB)
    patterns(Path("source.raw"), case.size)
    qemu_img("convert", "-f", "raw", "-O", "qcow2", "-o", options, "source.raw", "image.qcow2")
    states = [Path("source.raw")]
    for n in range(2):
        if "refcount_bits=1" not in options:
            qemu_img("snapshot", "-c", f"snapshot{n}", "image.qcow2")
        states.append(Path(f"state{n + 1}.raw"))
        shutil.copy(states[-2], states[-1])
        with diskwright.open("image.qcow2", writable=True) as image, states[-1].open("r+b") as raw:
            for offset, length, byte in patches(case, n + 1):
                image.write_at(offset, bytes([byte]) * length)
                raw.seek(offset)
                raw.write(bytes([byte]) * length)
            image.flush()
        qemu_img("check", "image.qcow2")
        qemu_img("compare", "-f", "raw", "-F", "qcow2", states[-1], "image.qcow2")
    for n in range(2):
        if "refcount_bits=1" not in options:
            qemu_img("convert", "-l", f"snapshot{n}", "-O", "raw", "image.qcow2", "snapshot.raw")
            qemu_img("compare", "-f", "raw", "-F", "raw", states[n], "snapshot.raw")


@pytest.mark.parametrize(
    ("size", "static"),
    [
        *itertools.product([0, 512, MIB - 512, MIB, 5 * MIB + 512], ["off", "on"]),
        (3 * GIB, "off"),
    ],
)
def test_vdi_both_ways(
    size: int,
    static: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    inside: Callable[..., Any],
    qemu_img: Callable[..., Any],
    patterns: Callable[..., None],
    same_disk: Callable[[Path, Path], None],
) -> None:
    """The same for VDI, which has no options to speak of."""
    monkeypatch.chdir(tmp_path)
    source, theirs, ours, back = map(Path, ("source.raw", "theirs.vdi", "ours.vdi", "back.raw"))
    patterns(source, size)
    qemu_img("convert", "-f", "raw", "-O", "vdi", "-o", f"static={static}", source, theirs)
    inside("convert", "-f", "raw", "-O", "vdi", "-o", f"static={static}", source, ours, code=0)
    qemu_img("check", ours)
    qemu_img("compare", "-f", "raw", "-F", "vdi", source, ours)
    for image in (theirs, ours):
        inside("check", image, code=0)
        assert map_of(inside, image) == map_of(qemu_img, image)
        inside("convert", "-O", "raw", image, back, code=0)
        same_disk(source, back)
    if size:
        with diskwright.open(str(theirs), writable=True) as image, source.open("r+b") as raw:
            for offset in (0, size // 2 // 512 * 512, size - 512):
                image.write_at(offset, b"written" * 64)
                raw.seek(offset)
                raw.write(b"written" * 64)
            image.flush()
        qemu_img("check", theirs)
        qemu_img("compare", "-f", "raw", "-F", "vdi", source, theirs)
