"""Images made by the real tools read as they were made, and map as the real tool maps them."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from diskwright.context import Context
from diskwright.extent import Extent, Flag, Kind, tabulate
from diskwright.node import Image

SIZE = 6 << 20
LAYOUTS = [
    "cluster_size=512",
    "cluster_size=512,compat=v2",
    "cluster_size=4k",
    "cluster_size=64k",
    "cluster_size=64k,compat=v2",
    "cluster_size=2M",
    "cluster_size=2M,compat=v2",
    "cluster_size=16k,extended_l2=on",
    "cluster_size=64k,extended_l2=on",
    "cluster_size=2M,extended_l2=on",
    "cluster_size=64k,refcount_bits=1",
]
COMPRESSED_LAYOUTS = [
    *(f"cluster_size={size},compression_type={codec}" for size in ("512", "64k", "2M") for codec in ("zlib", "zstd")),
    "cluster_size=64k,compat=v2",
    "cluster_size=64k,extended_l2=on",
    "cluster_size=64k,extended_l2=on,compression_type=zstd",
]


@pytest.fixture
def opened() -> Iterator[Callable[[Path], Image]]:
    """Open an image for reading, with its backing chain."""
    context = Context()
    images: list[Image] = []

    def call(path: Path) -> Image:
        images.append(context.open(str(path)))
        return images[-1]

    yield call
    for image in images:
        image.close()


def entries(image: Image) -> list[dict[str, Any]]:
    """The map of an image without backing layers in the shape of ``qemu-img map --output=json``."""
    merged: list[dict[str, Any]] = []
    for table in tabulate(image.extents()):
        for extent in table:
            entry = _entry(extent)
            if not (merged and _continues(merged[-1], entry)):
                merged.append(entry)
            else:
                merged[-1]["length"] += entry["length"]
    return merged


def real_entries(qemu_img: Callable[..., str], path: Path) -> list[dict[str, Any]]:
    """What the real tool maps; before 8.2 it does not tell compressed clusters, which alone have no offset."""
    listed: list[dict[str, Any]] = json.loads(qemu_img("map", "--output=json", path))
    for entry in listed:
        entry.setdefault("compressed", entry["data"] and "offset" not in entry)
    return listed


def _entry(extent: Extent) -> dict[str, Any]:
    entry = {
        "start": extent.offset,
        "length": extent.length,
        "depth": 0,
        "present": extent.kind is not Kind.ABSENT,
        "zero": extent.kind in (Kind.ABSENT, Kind.ZERO),
        "data": extent.kind in (Kind.DATA, Kind.ENCODED),
        "compressed": bool(extent.flags & Flag.COMPRESSED),
    }
    if extent.node_offset is not None:
        entry["offset"] = extent.node_offset
    return entry


def _continues(last: dict[str, Any], entry: dict[str, Any]) -> bool:
    same = all(last[key] == entry[key] for key in ("present", "zero", "data", "compressed"))
    if same and "offset" in last and "offset" in entry:
        return bool(last["offset"] + last["length"] == entry["offset"])
    return same and "offset" not in last and "offset" not in entry


def assert_reads(image: Image, disk: bytes, seed: int) -> None:
    """Whole, in pieces of all sizes and alignments, and behind the end."""
    assert image.read_at(0, len(disk)) == disk
    rng = random.Random(seed)
    for _ in range(150):
        offset = rng.randrange(len(disk))
        length = rng.choice((1, 511, 512, 4096, 65536, 300_000))
        assert image.read_at(offset, length) == disk[offset : offset + length].ljust(length, b"\0")


@pytest.mark.parametrize("options", LAYOUTS)
def test_plain_images(
    options: str,
    tmp_path: Path,
    pattern: Callable[[int, int], bytes],
    qemu_img: Callable[..., str],
    qemu_io: Callable[..., str],
    opened: Callable[[Path], Image],
) -> None:
    raw, path = tmp_path / "disk.raw", tmp_path / "disk.qcow2"
    raw.write_bytes(pattern(SIZE, 1))
    qemu_img("convert", "-f", "raw", "-O", "qcow2", "-o", options, raw, path)
    qemu_io(path, "write -P 7 1000448 9k", "write -z 2M 300k", "write -z -u 3M 17k", "discard 4M 100k")
    qemu_img("convert", "-f", "qcow2", "-O", "raw", path, raw)
    image = opened(path)
    assert image.size == SIZE
    assert_reads(image, raw.read_bytes(), 2)
    assert entries(image) == real_entries(qemu_img, path)


@pytest.mark.parametrize("options", COMPRESSED_LAYOUTS)
def test_compressed_images(
    options: str,
    tmp_path: Path,
    pattern: Callable[[int, int], bytes],
    qemu_img: Callable[..., str],
    qemu_io: Callable[..., str],
    opened: Callable[[Path], Image],
) -> None:
    raw, path = tmp_path / "disk.raw", tmp_path / "disk.qcow2"
    raw.write_bytes(pattern(SIZE - 512, 3))
    qemu_img("convert", "-c", "-f", "raw", "-O", "qcow2", "-o", options, raw, path)
    image = opened(path)
    assert any(extent.kind is Kind.ENCODED for table in tabulate(image.extents()) for extent in table)
    assert_reads(image, raw.read_bytes(), 4)
    image.close()
    qemu_io(path, "write -P 9 70000 5000", "write -P 10 1M 1k")
    qemu_img("convert", "-f", "qcow2", "-O", "raw", path, raw)
    image = opened(path)
    assert_reads(image, raw.read_bytes(), 5)
    assert entries(image) == real_entries(qemu_img, path)


@pytest.mark.parametrize("options", ["cluster_size=64k", "extended_l2=on", "cluster_size=512,compat=v2"])
def test_overlay_over_shorter_backing(
    options: str,
    tmp_path: Path,
    pattern: Callable[[int, int], bytes],
    qemu_img: Callable[..., str],
    qemu_io: Callable[..., str],
    opened: Callable[[Path], Image],
) -> None:
    base, path, raw = tmp_path / "base.raw", tmp_path / "top.qcow2", tmp_path / "flat.raw"
    base.write_bytes(pattern(SIZE // 2 + 512, 6))
    qemu_img("create", "-q", "-f", "qcow2", "-o", options, "-b", base, "-F", "raw", path, str(SIZE))
    qemu_io(path, "write -P 5 100k 9k", "write -z 1M 128k", f"write -P 6 {SIZE // 2 - 1024} 4k", "write -P 7 5M 1k")
    qemu_img("convert", "-f", "qcow2", "-O", "raw", path, raw)
    assert_reads(opened(path), raw.read_bytes(), 7)


@pytest.mark.parametrize("raw_mode", ["on", "off"])
@pytest.mark.parametrize("extended", ["on", "off"])
def test_external_data_file(
    raw_mode: str,
    extended: str,
    tmp_path: Path,
    qemu_img: Callable[..., str],
    qemu_io: Callable[..., str],
    opened: Callable[[Path], Image],
) -> None:
    path, data, raw = tmp_path / "x.qcow2", tmp_path / "x.data", tmp_path / "flat.raw"
    options = f"data_file={data},data_file_raw={raw_mode},extended_l2={extended}"
    qemu_img("create", "-q", "-f", "qcow2", "-o", options, path, str(SIZE))
    qemu_io(path, "write -P 5 0 9k", "write -z 1M 128k", "write -P 6 2M 4k")
    qemu_img("convert", "-f", "qcow2", "-O", "raw", path, raw)
    image = opened(path)
    assert_reads(image, raw.read_bytes(), 8)
    assert set(image.children()) == {"file", "data-file"}
    assert image.read_at(0, 4096) == data.read_bytes()[:4096] == b"\5" * 4096


def test_preallocated_metadata_is_told_to_be_sparse(
    tmp_path: Path, qemu_img: Callable[..., str], opened: Callable[[Path], Image]
) -> None:
    for mode, sparse in (("metadata", True), ("full", False)):
        path = tmp_path / mode
        qemu_img("create", "-q", "-f", "qcow2", "-o", f"preallocation={mode}", path, "8M")
        (extent,) = (e for table in tabulate(opened(path).extents()) for e in table)
        assert extent.kind is Kind.DATA
        assert bool(extent.flags & Flag.SPARSE) is sparse


@pytest.mark.parametrize("options", ["cluster_size=64k", "cluster_size=2M", "extended_l2=on"])
def test_huge_empty_image_is_one_extent(
    options: str, tmp_path: Path, qemu_img: Callable[..., str], opened: Callable[[Path], Image]
) -> None:
    path = tmp_path / "x.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", "-o", options, path, "1T")
    assert list(opened(path).extents()) == [Extent(0, 1 << 40, Kind.ABSENT)]


def test_map_of_a_part(
    tmp_path: Path, qemu_img: Callable[..., str], qemu_io: Callable[..., str], opened: Callable[[Path], Image]
) -> None:
    path = tmp_path / "x.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", "-o", "cluster_size=512", path, "1M")
    qemu_io(path, "write -P 1 32k 100k", "write -P 1 512k 1k")
    image = opened(path)
    whole = [e for table in tabulate(image.extents()) for e in table]
    for start, length in ((0, 1), (32767, 2), (40000, 90000), (131000, 400000), (1048575, 1)):
        part = [e for table in tabulate(image.extents(start, length)) for e in table]
        assert part[0].offset == start
        assert part[-1].end == start + length
        assert all(left.end == right.offset for left, right in pairwise(part))
        for extent in part:
            parent = next(e for e in whole if e.offset <= extent.offset < e.end)
            assert extent.kind is parent.kind
            if parent.node_offset is not None:
                assert extent.node_offset == parent.node_offset + extent.offset - parent.offset
