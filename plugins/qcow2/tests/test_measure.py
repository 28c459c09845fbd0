"""How large images will be: the figures are qemu-img's."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import diskwright
from diskwright.context import default_context
from diskwright.engine.chain import data_ranges
from diskwright.errors import InvalidOption
from diskwright.facts import Measurement
from diskwright.hookspecs import no_secrets
from diskwright.options import parse_options

QemuImg = Callable[..., str]


def ours(size: int, options: str, source: Any = None) -> Measurement:
    formats = default_context().formats
    values = parse_options(formats.call("creation_options", "qcow2"), [options] if options else [])
    found: Measurement = formats.call(
        "measure",
        "qcow2",
        size=size,
        values=values,
        ranges=iter(()) if source is None else data_ranges([source]),
        source=source,
        secret=no_secrets,
    )
    return found


def theirs(text: str) -> Measurement:
    figures = json.loads(text)
    return Measurement(figures["required"], figures["fully-allocated"], figures.get("bitmaps"))


SIZES = [0, 512, 1 << 20, (5 << 30) + 512, 3 << 40]
OPTIONS = [
    "",
    "cluster_size=4k",
    "cluster_size=2M,refcount_bits=1",
    "extended_l2=on",
    "extended_l2=on,cluster_size=16k,refcount_bits=64",
    "compat=0.10",
    "preallocation=metadata",
    "preallocation=falloc",
    "preallocation=full,cluster_size=4k",
    "backing_file=/nowhere,backing_fmt=raw",
    "lazy_refcounts=on,compression_type=zstd",
]


@pytest.mark.parametrize("options", OPTIONS)
def test_a_new_image(qemu_img: QemuImg, options: str) -> None:
    """Sizes from nothing to terabytes, with all options that matter and some that do not."""
    given = ["-o", options] if options else []
    for size in SIZES if "4k" not in options else SIZES[:-1]:
        expected = theirs(qemu_img("measure", "-O", "qcow2", "--output=json", *given, "--size", str(size)))
        assert ours(size, options) == expected, size


@pytest.mark.parametrize("cluster", ["512", "64k"])
def test_an_image_to_convert(tmp_path: Path, qemu_img: QemuImg, qemu_io: Callable[..., str], cluster: str) -> None:
    """Data, zeros and holes, over a backing file, with bitmaps: for all options."""
    base, path = tmp_path / "base.qcow2", tmp_path / "disk.qcow2"
    size = (3 << 20) + 512
    qemu_img("create", "-q", "-f", "qcow2", base, str(size))
    qemu_io(base, "write -P 1 100k 70k", "write -P 2 2M 512k")
    qemu_img("create", "-q", "-f", "qcow2", "-o", f"cluster_size={cluster}", "-b", base, "-F", "qcow2", path)
    qemu_io(
        path, "write -P 3 1M 1k", "write -z 2M 64k", "write -c 2560k 64k", "write -P 4 1200k 3k", "write -P 5 3M 512"
    )
    for name, granularity in (("b", "512"), ("a longer name", "64k")):
        qemu_img("bitmap", "--add", "-g", granularity, path, name)
    with diskwright.open(path, "qcow2") as image:
        for options in OPTIONS:
            given = ["-o", options] if options else []
            expected = theirs(qemu_img("measure", "-O", "qcow2", "--output=json", *given, "-f", "qcow2", path))
            assert ours(image.size, options, image) == expected, options


def test_a_raw_source_has_no_bitmaps(tmp_path: Path, qemu_img: QemuImg) -> None:
    """Where bitmaps cannot be copied, nothing is said of them; version 2 cannot have them either."""
    path = tmp_path / "disk.raw"
    path.write_bytes(bytes(100_000) + b"x" * 1000 + bytes(400_000 - 1000 - 100_000 - 128))
    with diskwright.open(path, "raw") as image:
        expected = theirs(qemu_img("measure", "-O", "qcow2", "--output=json", "-f", "raw", path))
        assert expected.bitmaps is None
        found = ours(image.size, "", image)
        assert (found.fully_allocated, found.bitmaps) == (expected.fully_allocated, None)
    old = tmp_path / "old.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", "-o", "compat=0.10", old, "1M")
    with diskwright.open(old, "qcow2") as image:
        assert ours(image.size, "", image).bitmaps is None
        assert theirs(qemu_img("measure", "-O", "qcow2", "--output=json", "-f", "qcow2", old)).bitmaps is None


def test_ranges_that_share_clusters_count_once() -> None:
    """Each cluster that holds data is counted once, in whatever pieces its data comes."""
    formats = default_context().formats
    starts = range(0, 1 << 20, 4096)
    for step in (1, 3, 50):
        ranges = [(start, 512) for start in itertools.islice(starts, 0, None, step)]
        found = formats.call(
            "measure", "qcow2", size=1 << 20, values={}, ranges=iter(ranges), source=None, secret=no_secrets
        )
        touched = {start // 65536 for start, _ in ranges}
        assert found.required == found.fully_allocated - (16 - len(touched)) * 65536


def test_what_cannot_be_measured() -> None:
    """A disk that no L1 table can map, and options out of range."""
    with pytest.raises(InvalidOption, match="^The image size is too large"):
        ours(100 << 40, "cluster_size=512")
    with pytest.raises(InvalidOption, match="^Cluster size must be a power of two between 512 and 2048k$"):
        ours(1 << 30, "cluster_size=3000")
