"""Writing: random changes to images of all kinds against a model in memory, checked with the real tools."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

import diskwright
from diskwright.node import Image, WritableImage

SIZE = 3 * 1024 * 1024 + 1536
KINDS = {
    "default": "",
    "small clusters": "cluster_size=512",
    "4k": "cluster_size=4k",
    "large clusters": "cluster_size=2M",
    "version 2": "compat=0.10",
    "extended": "extended_l2=on",
    "extended 16k": "extended_l2=on,cluster_size=16k",
    "1 bit": "refcount_bits=1,cluster_size=4k",
    "2 bits": "refcount_bits=2,cluster_size=512",
    "32 bits": "refcount_bits=32,cluster_size=4k",
    "64 bits": "refcount_bits=64,cluster_size=512",
    "zstd": "compression_type=zstd,cluster_size=4k",
    "lazy": "lazy_refcounts=on,cluster_size=4k",
    "preallocated": "preallocation=metadata,cluster_size=4k",
    "preallocated extended": "preallocation=metadata,extended_l2=on,cluster_size=16k",
}


def writable(path: Path) -> WritableImage:
    image = diskwright.open(path, "qcow2", writable=True)
    assert isinstance(image, WritableImage)
    return image


class Changes:
    """Random changes made to an image and to a model of it alike."""

    def __init__(self, seed: int, model: bytearray, compress: bool = True) -> None:
        self.rng = random.Random(seed)
        self.model = model
        self.actions: list[Callable[[WritableImage, int, int], None]] = [self.write, self.write, self.zero, self.drop]
        if compress:
            self.actions.append(self.compress)

    def make(self, image: WritableImage, number: int) -> None:
        for _ in range(number):
            start = self.rng.randrange(len(self.model))
            if self.rng.random() < 0.5:
                start = start // 65536 * 65536
            length = min(self.rng.choice((1, 511, 4096, 30_000, 65_536, 400_000)), len(self.model) - start)
            self.rng.choice(self.actions)(image, start, length)
            if self.rng.random() < 0.1:
                image.flush()

    def write(self, image: WritableImage, start: int, length: int) -> None:
        data = self.rng.randbytes(length)
        image.write_at(start, data)
        self.model[start : start + length] = data

    def zero(self, image: WritableImage, start: int, length: int) -> None:
        image.write_zeroes(start, length, unmap=self.rng.random() < 0.5)
        self.model[start : start + length] = bytes(length)

    def drop(self, image: WritableImage, start: int, length: int) -> None:
        """What is discarded may read as zeros or as before: ask."""
        image.discard(start, length)
        after = image.read_at(start, length)
        before = self.model[start : start + length]
        assert all(new in (0, old) for new, old in zip(after, before, strict=True))
        self.model[start : start + length] = after

    def compress(self, image: WritableImage, start: int, length: int) -> None:
        size = image.cluster_size
        start = start // size * size
        for offset in range(start, min(start + length, len(self.model)), size):
            text = self.rng.randbytes(64) * (size // 64)
            blob = image.compress(memoryview(text))
            assert blob is not None
            image.write_compressed([(offset, blob)])
            end = min(offset + size, len(self.model))
            self.model[offset:end] = text[: end - offset]


def verify(image: Image, model: bytearray) -> None:
    assert image.read_at(0, len(model)) == model


@pytest.mark.parametrize("options", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("seed", [1, 2])
def test_random_changes(tmp_path: Path, qemu_img: Callable[..., str], options: str, seed: int) -> None:
    path, expected = tmp_path / "disk.qcow2", tmp_path / "disk.raw"
    qemu_img("create", "-q", "-f", "qcow2", *(["-o", options] if options else []), path, str(SIZE))
    changes = Changes(seed, bytearray(SIZE))
    for _ in range(3):
        with writable(path) as image:
            changes.make(image, 25)
            verify(image, changes.model)
        expected.write_bytes(changes.model)
        qemu_img("check", "-q", path)
        qemu_img("compare", "-q", "-f", "raw", "-F", "qcow2", expected, path)


@pytest.mark.parametrize("options", ["", "extended_l2=on", "compat=0.10", "cluster_size=512"])
def test_changes_over_backing_file(tmp_path: Path, qemu_img: Callable[..., str], options: str) -> None:
    base = random.Random(5).randbytes(SIZE - 100_352)
    (tmp_path / "base.raw").write_bytes(base)
    path = tmp_path / "top.qcow2"
    extra = ["-o", options] if options else []
    qemu_img("create", "-q", "-f", "qcow2", *extra, "-b", "base.raw", "-F", "raw", path, str(SIZE))
    changes = Changes(3, bytearray(base.ljust(SIZE, b"\0")))
    for _ in range(2):
        with writable(path) as image:
            changes.make(image, 25)
            verify(image, changes.model)
        (tmp_path / "expected.raw").write_bytes(changes.model)
        qemu_img("check", "-q", path)
        qemu_img("compare", "-q", "-f", "raw", "-F", "qcow2", tmp_path / "expected.raw", path)
    assert (tmp_path / "base.raw").read_bytes() == base


@pytest.mark.parametrize("options", ["", "extended_l2=on", "compat=0.10", "refcount_bits=4,cluster_size=4k"])
def test_snapshots_keep_their_content(tmp_path: Path, qemu_img: Callable[..., str], options: str) -> None:
    path = tmp_path / "disk.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", *(["-o", options] if options else []), path, str(SIZE))
    # Many compressed clusters in one host cluster leave no room in narrow refcounts for a snapshot.
    changes = Changes(4, bytearray(SIZE), compress="refcount_bits" not in options)
    kept = []
    for number in range(2):
        with writable(path) as image:
            changes.make(image, 20)
        qemu_img("snapshot", "-c", f"s{number}", path)
        kept.append(bytes(changes.model))
    with writable(path) as image:
        changes.make(image, 20)
        verify(image, changes.model)
    qemu_img("check", "-q", path)
    for number, content in enumerate(kept):
        qemu_img("snapshot", "-a", f"s{number}", path)
        with diskwright.open(path) as image:
            assert image.read_at(0, SIZE) == content
    qemu_img("check", "-q", path)


@pytest.mark.parametrize("raw", ["off", "on"])
@pytest.mark.parametrize("extended", ["off", "on"])
def test_external_data_file(
    tmp_path: Path, qemu_img: Callable[..., str], monkeypatch: pytest.MonkeyPatch, raw: str, extended: str
) -> None:
    monkeypatch.chdir(tmp_path)
    options = f"data_file=data.raw,data_file_raw={raw},extended_l2={extended}"
    qemu_img("create", "-q", "-f", "qcow2", "-o", options, "disk.qcow2", str(SIZE))
    changes = Changes(6, bytearray(SIZE), compress=False)
    with writable(Path("disk.qcow2")) as image:
        changes.make(image, 40)
        verify(image, changes.model)
        with pytest.raises(diskwright.UnsupportedOperation):
            image.write_compressed([(0, b"x")])
    Path("expected.raw").write_bytes(changes.model)
    qemu_img("check", "-q", "disk.qcow2")
    qemu_img("compare", "-q", "-f", "raw", "-F", "qcow2", "expected.raw", "disk.qcow2")
    if raw == "on":
        assert Path("data.raw").read_bytes()[:SIZE] == changes.model


def test_refcount_table_grows(tmp_path: Path, qemu_img: Callable[..., str]) -> None:
    """With 512-byte clusters and 64-bit refcounts a table cluster covers 2 MiB of the file."""
    path = tmp_path / "disk.qcow2"
    size = 24 << 20
    qemu_img("create", "-q", "-f", "qcow2", "-o", "cluster_size=512,refcount_bits=64", path, str(size))
    data = random.Random(7).randbytes(size)
    with writable(path) as image:
        for start in range(0, size, 1 << 20):
            image.write_at(start, data[start : start + (1 << 20)])
            if start == 9 << 20:
                image.flush()
    qemu_img("check", "-q", path)
    with diskwright.open(path) as image:
        assert image.read_at(0, size) == data


def test_nothing_is_written_by_opening(tmp_path: Path, qemu_img: Callable[..., str]) -> None:
    path = tmp_path / "disk.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", path, "1M")
    before = path.read_bytes()
    with writable(path) as image:
        image.read_at(0, 65536)
    assert path.read_bytes() == before


def test_unknown_autoclear_bits_are_cleared(tmp_path: Path, qemu_img: Callable[..., str]) -> None:
    path = tmp_path / "disk.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", path, "1M")
    with path.open("r+b") as file:
        file.seek(88)
        file.write((1 << 40).to_bytes(8, "big"))
    with writable(path) as image:
        image.write_at(0, b"x")
    assert path.read_bytes()[88:96] == bytes(8)


@pytest.mark.parametrize(("entry", "name"), [(65536, "refcount table"), (131072, "refcount block")])
def test_write_over_metadata_is_refused(tmp_path: Path, qemu_img: Callable[..., str], entry: int, name: str) -> None:
    """An L2 entry that leads to metadata: nothing is written there, and the image is marked as corrupt."""
    path = tmp_path / "disk.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", path, "1M")
    with writable(path) as image:
        image.write_at(65536, b"x" * 65536)
    data = bytearray(path.read_bytes())
    l1 = int.from_bytes(data[40:48], "big")
    l2 = int.from_bytes(data[l1 : l1 + 8], "big") & ((1 << 56) - 1)
    data[l2 + 8 : l2 + 16] = (1 << 63 | entry).to_bytes(8, "big")
    path.write_bytes(data)
    message = f"Preventing invalid write on metadata .*{name}"
    with writable(path) as image, pytest.raises(diskwright.InvalidImage, match=message):
        image.write_at(65536, b"y")
    after = path.read_bytes()
    assert after[entry : entry + 65536] == data[entry : entry + 65536]
    assert after[79] & 2


def test_an_entry_that_leads_to_nowhere_is_not_followed(tmp_path: Path, qemu_img: Callable[..., str]) -> None:
    """A host offset that nothing has allocated is not written to, however far away it is."""
    path = tmp_path / "disk.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", path, "1M")
    with writable(path) as image:
        image.write_at(0, b"x" * 65536)
    data = bytearray(path.read_bytes())
    l1 = int.from_bytes(data[40:48], "big")
    l2 = int.from_bytes(data[l1 : l1 + 8], "big") & ((1 << 56) - 1)
    data[l2 : l2 + 8] = (1 << 63 | 1 << 50).to_bytes(8, "big")
    path.write_bytes(data)
    with writable(path) as image, pytest.raises(diskwright.InvalidImage, match="in use but not counted"):
        image.write_at(0, b"y")
    assert path.stat().st_size == len(data)


def test_corrupt_images_are_not_written(tmp_path: Path, qemu_img: Callable[..., str]) -> None:
    path = tmp_path / "disk.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", path, "1M")
    with path.open("r+b") as file:
        file.seek(79)
        file.write(bytes([2]))
    with pytest.raises(diskwright.ImageError, match="Image is corrupt; cannot be opened read/write"):
        writable(path)
