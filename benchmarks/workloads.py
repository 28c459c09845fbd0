"""The files that are measured on: made once below the benchmark's directory, used again by later runs."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from . import filesystem, fragmented
from .paths import copy, free_space, remove

KIB, MIB, GIB, TIB = 1 << 10, 1 << 20, 1 << 30, 1 << 40
SECRET = "secret,id=key,data=passphrase"  # noqa: S105  of volumes that hold copies of public files
SEED = 10


@dataclass(frozen=True)
class Sizes:
    """How large the workloads are.

    :ivar disk: bytes of the file system image, and what depends on it.
    :ivar sparse: bytes of the sparse disk.
    :ivar clusters: clusters of the fragmented image.
    :ivar layers: layers of the deep chain.
    """

    disk: int = 4 * GIB
    sparse: int = TIB
    clusters: int = 1_000_000
    layers: int = 64

    @property
    def name(self) -> str:
        """Of the directory that they are kept in."""
        return f"v1-{self.disk // MIB}M-{self.sparse // GIB}G-{self.clusters}-{self.layers}"


QUICK = Sizes(128 * MIB, 16 * GIB, 10_000, 16)
"""For a look whether everything works, not for figures."""


@dataclass(frozen=True)
class Workload:
    """A file to measure on.

    :ivar file: its name.
    :ivar make: makes it.
    :ivar size: bytes that it takes on disk at most.
    :ivar needs: the workloads that it is made from, or that it refers to.
    """

    file: str
    make: Callable[[Workshop, Path], None]
    size: Callable[[Sizes], int]
    needs: tuple[str, ...] = ()


class NoSpace(Exception):
    """There is not enough room on the disk."""


class Workshop:
    """Makes workloads as they are asked for.

    :param directory: where they go.
    :param tool: the program, ours or theirs, that makes those which a program must make.
    :param say: told what takes long.
    """

    def __init__(self, directory: Path, sizes: Sizes, tool: str, say: Callable[[str], None]) -> None:
        self.directory = directory / sizes.name
        self.sizes = sizes
        self.tool = tool
        self._say = say

    def path(self, name: str) -> Path:
        """The file of a workload, made if it is not there."""
        workload = WORKLOADS[name]
        path = self.directory / workload.file
        for need in workload.needs:
            self.path(need)
        if not path.exists():
            self._say(f"making {workload.file}")
            self.directory.mkdir(parents=True, exist_ok=True)
            partial = path.with_name(f".{path.name}.partial")
            try:
                workload.make(self, partial)
                partial.rename(path)
            finally:
                remove(partial)
        return path

    def require_space(self, names: Iterable[str], outputs: int) -> None:
        """See that there is room for the workloads and what is made from them.

        :param outputs: bytes for the latter.
        :raises NoSpace: there is not.
        """
        missing = {name for name in self.with_needs(names) if not (self.directory / WORKLOADS[name].file).exists()}
        needed = sum(WORKLOADS[name].size(self.sizes) for name in missing) + outputs + GIB // 2
        self.directory.mkdir(parents=True, exist_ok=True)
        free = free_space(self.directory)
        if free < needed:
            raise NoSpace(
                f"{needed / GIB:.1f} GiB are needed below {self.directory}, {free / GIB:.1f} are free: "
                "take another --directory, a smaller --size, or fewer operations (--only)"
            )

    def with_needs(self, names: Iterable[str]) -> set[str]:
        """Workloads and all that they need."""
        found: set[str] = set()
        pending = list(names)
        while pending:
            name = pending.pop()
            found.add(name)
            pending.extend(WORKLOADS[name].needs)
        return found

    def call(self, *arguments: object) -> None:
        """Run the tool."""
        subprocess.run([self.tool, *map(str, arguments)], check=True, stdout=subprocess.DEVNULL)


def _real_raw(shop: Workshop, path: Path) -> None:
    filesystem.make(path, shop.sizes.disk)


def _converted(source: str, *options: str) -> Callable[[Workshop, Path], None]:
    def make(shop: Workshop, path: Path) -> None:
        source_path = shop.path(source)
        shop.call("convert", "--object", SECRET, "-f", source_path.suffix[1:], *options, source_path, path)

    return make


def _random_raw(shop: Workshop, path: Path) -> None:
    numbers = np.random.default_rng(SEED)
    with path.open("wb") as file:
        for _ in range(shop.sizes.disk // 4 // MIB):
            file.write(numbers.bytes(MIB))


def _sparse_raw(shop: Workshop, path: Path) -> None:
    numbers = np.random.default_rng(SEED)
    size = shop.sizes.sparse
    with path.open("wb") as file:
        file.truncate(size)
        for position in range(0, size, size // 64):
            os.pwrite(file.fileno(), numbers.bytes(MIB), position + 3 * MIB)


def _preallocated(shop: Workshop, path: Path) -> None:
    shop.call("create", "-f", "qcow2", "-o", "preallocation=metadata", path, shop.sizes.sparse)


def _with_snapshot(shop: Workshop, path: Path) -> None:
    copy(shop.path("preallocated"), path)
    shop.call("snapshot", "-c", "kept", path)


def _copy_of(source: str) -> Callable[[Workshop, Path], None]:
    return lambda shop, path: copy(shop.path(source), path)


def _small(shop: Workshop, path: Path) -> None:
    shop.call("create", "-f", "qcow2", path, "64M")


def _every(shop: Workshop, path: Path, first: float, last: float) -> None:
    """A layer with some data between two places of the disk, in clusters of 64 KiB."""
    size = fragmented_size(shop.sizes)
    count = size // (64 * KIB)
    guests = np.arange(int(count * first), int(count * last), 16, dtype=np.int64)
    fragmented.write(path, size, 64 * KIB, guests, shuffle=False)


def fragmented_size(sizes: Sizes) -> int:
    """Bytes of the disk of the fragmented image: of five clusters four are allocated, and clusters have 4 KiB."""
    return -(-sizes.clusters * 5 // 4 * 4 * KIB // MIB) * MIB


def _fragmented(shop: Workshop, path: Path) -> None:
    size = fragmented_size(shop.sizes)
    numbers = np.random.default_rng(SEED)
    guests = np.sort(numbers.choice(size // (4 * KIB), shop.sizes.clusters, replace=False)).astype(np.int64)
    fragmented.write(path, size, 4 * KIB, guests, backing=WORKLOADS["frag_base"].file)


def _chain(shop: Workshop, path: Path) -> None:
    make_chain(path, shop.sizes.disk // 4, shop.sizes.layers, "layer")


def make_chain(path: Path, size: int, layers: int, prefix: str) -> None:
    """Write overlays, one on the other, each with a hundredth of the disk in it, in clusters of 64 KiB.

    :param path: of the top layer; the others are beside it, named ``PREFIX-N.qcow2``.
    """
    numbers = np.random.default_rng(SEED)
    count = size // (64 * KIB)
    below = None
    for layer in range(layers):
        name = path.name if layer == layers - 1 else f"{prefix}-{layer}.qcow2"
        guests = np.sort(numbers.choice(count, max(1, count // 100), replace=False)).astype(np.int64)
        fragmented.write(path.with_name(name), size, 64 * KIB, guests, backing=below)
        below = name


LUKS = ("-O", "luks", "-o", "key-secret=key,iter-time=10")

WORKLOADS = {
    "real_raw": Workload("real.raw", _real_raw, lambda sizes: sizes.disk * 5 // 4),
    "real_qcow2": Workload(
        "real.qcow2", _converted("real_raw", "-O", "qcow2"), lambda sizes: sizes.disk, ("real_raw",)
    ),
    "real_zlib": Workload(
        "real-zlib.qcow2", _converted("real_raw", "-O", "qcow2", "-c"), lambda sizes: sizes.disk // 2, ("real_raw",)
    ),
    "real_zstd": Workload(
        "real-zstd.qcow2",
        _converted("real_raw", "-O", "qcow2", "-c", "-o", "compression_type=zstd"),
        lambda sizes: sizes.disk // 2,
        ("real_raw",),
    ),
    "real_copy": Workload("copy.raw", _copy_of("real_raw"), lambda sizes: sizes.disk, ("real_raw",)),
    "real_luks": Workload(
        "real.luks", _converted("real_raw", *LUKS), lambda sizes: sizes.disk + 4 * MIB, ("real_raw",)
    ),
    "random_raw": Workload("random.raw", _random_raw, lambda sizes: sizes.disk // 4),
    "random_qcow2": Workload(
        "random.qcow2", _converted("random_raw", "-O", "qcow2"), lambda sizes: sizes.disk // 4 + MIB, ("random_raw",)
    ),
    "sparse_raw": Workload("sparse.raw", _sparse_raw, lambda sizes: 65 * MIB),
    "sparse_qcow2": Workload(
        "sparse.qcow2", _converted("sparse_raw", "-O", "qcow2"), lambda sizes: 75 * MIB, ("sparse_raw",)
    ),
    "preallocated": Workload("preallocated.qcow2", _preallocated, lambda sizes: sizes.sparse // 5000),
    "with_snapshot": Workload(
        "with-snapshot.qcow2", _with_snapshot, lambda sizes: sizes.sparse // 2500, ("preallocated",)
    ),
    "frag_base": Workload(
        "frag-base.qcow2", lambda shop, path: _every(shop, path, 0, 0.5), lambda sizes: sizes.clusters * 160
    ),
    "frag_other": Workload(
        "frag-other.qcow2", lambda shop, path: _every(shop, path, 0.25, 0.75), lambda sizes: sizes.clusters * 160
    ),
    "fragmented": Workload(
        "fragmented.qcow2", _fragmented, lambda sizes: sizes.clusters * 4200 + MIB, ("frag_base", "frag_other")
    ),
    "fragmented_raw": Workload(
        "fragmented.raw", _converted("fragmented", "-O", "raw"), fragmented_size, ("fragmented",)
    ),
    "chain": Workload("chain.qcow2", _chain, lambda sizes: sizes.layers * (sizes.disk // 400 + MIB)),
    "small": Workload("small.qcow2", _small, lambda sizes: MIB),
}
"""All of them."""
