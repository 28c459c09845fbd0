"""What an image tells of itself equals what the real tool tells."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from diskwright.context import Context
from diskwright.errors import ImageError, InvalidImage
from diskwright_qcow2.image import Qcow2Image
from diskwright_qcow2.plugin import Qcow2Driver

SECRET = ("--object", "secret,id=s,data=12345678")


def describe(path: Path) -> tuple[Any, list[Any]]:
    with Context().open(str(path), describe_only=True, backing=False) as image:
        assert isinstance(image, Qcow2Image)
        driver = Qcow2Driver()
        return driver.describe(image), list(driver.snapshot_list(image))


@pytest.mark.parametrize(
    "options",
    [
        "compat=v2",
        "compat=v3",
        "lazy_refcounts=on,refcount_bits=64",
        "extended_l2=on,compression_type=zstd,cluster_size=2M",
        "data_file={tmp}/data file,data_file_raw=on",
        "data_file={tmp}/data file",
        "encryption=on,encrypt.key-secret=s",
    ],
)
def test_facts(options: str, tmp_path: Path, qemu_img: Callable[..., str]) -> None:
    path = tmp_path / "x.qcow2"
    secret = SECRET if "secret" in options else ()
    qemu_img("create", "-q", "-f", "qcow2", *secret, "-o", options.format(tmp=tmp_path), path, "64M")
    if "data_file" in options:
        (tmp_path / "data file").unlink()  # describing must not need it
    facts = json.loads(qemu_img("info", "-f", "qcow2", "--output=json", path)) if "data_file" not in options else None
    description, snapshots = describe(path)
    assert snapshots == []
    if facts is None:
        assert description.specific["data-file"] == f"{tmp_path}/data file"
        assert description.specific["data-file-raw"] is ("raw" in options)
        return
    assert description.specific == facts["format-specific"]["data"]
    assert description.cluster_size == facts["cluster-size"]
    assert description.dirty is facts["dirty-flag"] is False


def test_bitmaps_and_snapshots(tmp_path: Path, qemu_img: Callable[..., str]) -> None:
    path = tmp_path / "x.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", path, "64M")
    qemu_img("bitmap", "--add", path, "first")
    qemu_img("bitmap", "--add", "--disable", "-g", "4k", path, "second one")
    for name in ("one", "zwei \u00e4", "3"):
        qemu_img("snapshot", "-c", name, path)
    facts = json.loads(qemu_img("info", "--output=json", path))
    description, snapshots = describe(path)
    assert description.specific == facts["format-specific"]["data"]
    assert [(s.id, s.name, s.date_sec, s.date_nsec, s.icount) for s in snapshots] == [
        (s["id"], s["name"], s["date-sec"], s["date-nsec"], s.get("icount")) for s in facts["snapshots"]
    ]
    with Context().open(str(path)) as image:
        assert isinstance(image, Qcow2Image)
        assert [entry.disk_size for entry in image.snapshots] == [64 << 20] * 3


def test_dirty_and_corrupt(tmp_path: Path, qemu_img: Callable[..., str]) -> None:
    path = tmp_path / "x.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", path, "1M")
    data = bytearray(path.read_bytes())
    for bits, dirty, corrupt in ((1, True, False), (2, False, True)):
        data[79] = bits
        path.write_bytes(data)
        description, _ = describe(path)
        assert description.dirty is dirty
        assert description.specific["corrupt"] is corrupt
        with Context().open(str(path)) as image:
            assert image.read_at(0, 512) == bytes(512)
        assert path.read_bytes() == data
    with pytest.raises(ImageError, match=r"Image is corrupt; cannot be opened read/write"):
        Context().open(str(path), writable=True)
    assert path.read_bytes() == data


def corrupted(path: Path, offset: int, value: int, width: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(value.to_bytes(width, "big"))


@pytest.mark.parametrize(
    ("offset", "value", "width", "message"),
    [
        (4 + 4, 0, 4, "doesn't satisfy the constraints"),
        (12, 4, 4, "doesn't satisfy the constraints"),
        (16, 2, 1, "doesn't satisfy the constraints"),
        (17, 32, 1, "doesn't satisfy the constraints"),
        (18, 60000, 2, "Broken bitmap directory"),
        (18, 0, 2, "Bitmap '' doesn't satisfy the constraints"),
        (20, 1, 4, "Bitmap extra data is not supported"),
        (20, 8, 4, "Broken bitmap directory"),
    ],
)
def test_broken_bitmap_directory(
    offset: int, value: int, width: int, message: str, tmp_path: Path, qemu_img: Callable[..., str]
) -> None:
    path = tmp_path / "x.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", path, "64M")
    qemu_img("bitmap", "--add", path, "first")
    with Context().open(str(path)) as image:
        assert isinstance(image, Qcow2Image)
        assert image.header.bitmaps is not None
        directory = image.header.bitmaps.offset
    corrupted(path, directory + offset, value, width)
    for options in ({}, {"writable": True}, {"check": True}, {"describe_only": True}):
        with pytest.raises(InvalidImage, match=f"Could not open '[^']*': ({message}|Bitmap 'first' {message})$"):
            Context().open(str(path), **options)


def test_bitmap_tables_are_looked_at_when_an_image_is_opened(tmp_path: Path, qemu_img: Callable[..., str]) -> None:
    path = tmp_path / "x.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", path, "64M")
    qemu_img("bitmap", "--add", path, "first")
    with Context().open(str(path)) as image:
        assert isinstance(image, Qcow2Image)
        entry = image.bitmaps[0]
    corrupted(path, entry.table_offset, 2, 8)
    with pytest.raises(InvalidImage, match="Could not read bitmap_table table from image for bitmap 'first': Invalid"):
        Context().open(str(path))
    Context().open(str(path), check=True).close()
    corrupted(path, entry.offset + 12, 3, 4)  # in use: nobody relies on it
    Context().open(str(path)).close()


def test_bitmaps_that_nobody_vouches_for_are_told_of(tmp_path: Path, qemu_img: Callable[..., str]) -> None:
    path = tmp_path / "x.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", path, "64M")
    qemu_img("bitmap", "--add", path, "first")
    context, told = Context(), []
    context.warn = told.append
    context.open(str(path)).close()
    assert told == []
    corrupted(path, 88, 0, 8)
    context.open(str(path)).close()
    assert told == [
        "a program lacking bitmap support modified this file, so all bitmaps are now considered inconsistent"
    ]
    corrupted(path, 88, 1, 8)
    qemu_img("amend", "-f", "qcow2", "-o", "compat=v2", path)
    del told[:]
    context.open(str(path)).close()
    assert [line.partition(",")[0] for line in told] == ["This qcow2 v2 image contains bitmaps"]


@pytest.mark.parametrize(
    ("offset", "value", "width", "message"),
    [
        (36, 1025, 4, "Too much extra metadata in snapshot table entry 0"),
        (14, 65535, 2, "outside the file"),
    ],
)
def test_broken_snapshot_table(
    offset: int, value: int, width: int, message: str, tmp_path: Path, qemu_img: Callable[..., str]
) -> None:
    path = tmp_path / "x.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", path, "64M")
    qemu_img("snapshot", "-c", "one", path)
    with Context().open(str(path)) as image:
        assert isinstance(image, Qcow2Image)
        table = image.header.snapshots_offset
    corrupted(path, table + offset, value, width)
    with Context().open(str(path)) as image:
        assert image.read_at(0, 512) == bytes(512)  # the disk can be rescued: nothing of it depends on the table
        assert isinstance(image, Qcow2Image)
        with pytest.raises(InvalidImage, match=message):
            image.snapshot_list()
    with Context().open(str(path), writable=True) as image:
        assert isinstance(image, Qcow2Image)
        with pytest.raises(InvalidImage, match=message):
            image.write_at(0, b"x")
