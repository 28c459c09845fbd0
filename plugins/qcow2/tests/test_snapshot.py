"""Internal snapshots: taken, applied and deleted here and by the real qemu-img in turn, against a model."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import diskwright
from diskwright.context import default_context
from diskwright.errors import ImageError, InvalidImage
from diskwright.facts import Snapshot
from diskwright.node import WritableImage
from diskwright_qcow2.image import Qcow2Image
from diskwright_qcow2.layout import SNAPSHOT_EXTRA_FIELDS, SNAPSHOT_FIELDS
from diskwright_qcow2.structures import SNAPSHOT_EXTRA, SNAPSHOT_HEADER

SIZE = 2 << 20
QemuImg = Callable[..., str]
KINDS = {
    "default": "cluster_size=64k",
    "version 2": "compat=0.10",
    "small clusters": "cluster_size=512",
    "large clusters": "cluster_size=2M",
    "extended": "extended_l2=on,cluster_size=16k",
    "8 bits": "refcount_bits=8,cluster_size=4k",
    "64 bits": "refcount_bits=64,cluster_size=512",
    "preallocated": "preallocation=metadata,cluster_size=4k",
}


def call(hook: str, image: object, **arguments: Any) -> Any:
    return default_context().formats.call(hook, "qcow2", image=image, **arguments)


def opened(path: Path, *, writable: bool = True) -> Qcow2Image:
    image = diskwright.open(path, "qcow2", writable=writable)
    assert isinstance(image, Qcow2Image)
    return image


def named(image: object, name: str) -> Snapshot:
    found: Snapshot = next(s for s in call("snapshot_list", image) if s.name == name)
    return found


def content(path: Path, name: str) -> bytes:
    with opened(path, writable=False) as image, call("snapshot_view", image, snapshot=named(image, name)) as view:
        data: bytes = view.read_at(0, view.size)
        return data


def scribble(image: WritableImage, model: bytearray, rng: random.Random) -> None:
    """A few writes of all sorts, to the image and to the model."""
    size = image.cluster_size or 0
    for _ in range(rng.randrange(1, 5)):
        start = rng.randrange(SIZE - 100_000)
        length = rng.choice((1, 512, 4096, 80_000))
        kind = rng.random()
        if kind < 0.2:
            image.write_zeroes(start, length, unmap=True)  # type: ignore[attr-defined]
            model[start : start + length] = bytes(length)
        elif kind < 0.5:
            start = start // size * size
            data = (b"compressed %d " % rng.randrange(100) * size)[:size]
            blob = image.compress(memoryview(data))  # type: ignore[attr-defined]
            image.write_compressed([(start, blob)])  # type: ignore[attr-defined]
            model[start : start + size] = data
        else:
            data = rng.randbytes(length)
            image.write_at(start, data)
            model[start : start + length] = data


@pytest.mark.parametrize("options", KINDS.values(), ids=KINDS.keys())
def test_both_ways(tmp_path: Path, qemu_img: QemuImg, options: str) -> None:
    """Whoever takes, applies or deletes a snapshot: disk and snapshots are right, and the check finds nothing."""
    path, raw = tmp_path / "disk.qcow2", tmp_path / "disk.raw"
    qemu_img("create", "-q", "-f", "qcow2", "-o", options, path, str(SIZE))
    rng, model, kept = random.Random(7), bytearray(SIZE), {}
    for step in range(10):
        with opened(path) as image:
            scribble(image, model, rng)
        name = f"number {step}"
        ours, action = step % 2 == 0, "cacdacddac"[step]
        chosen = name if action == "c" or not kept else rng.choice(sorted(kept))
        if action == "c" or not kept:
            hook, action = "snapshot_create", "c"
            kept[name] = bytes(model)
        elif action == "a":
            hook, model[:] = "snapshot_apply", kept[chosen]
        else:
            hook = "snapshot_delete"
            del kept[chosen]
        if ours:
            with opened(path) as image:
                target = {"name": name} if action == "c" else {"snapshot": named(image, chosen)}
                assert call(hook, image, **target) is True
                assert image.read_at(0, SIZE) == model
                image.write_at(77, b"after")  # the same image goes on
            model[77:82] = b"after"
        else:
            qemu_img("snapshot", f"-{action}", chosen, path)
        qemu_img("check", path)
        with opened(path, writable=False) as image:
            assert image.read_at(0, SIZE) == model
            assert {s.name for s in image.snapshot_list()} == set(kept)
        for other, expected in kept.items():
            assert content(path, other) == expected, other
    for other, expected in kept.items():
        qemu_img("convert", "-l", other, "-O", "raw", path, raw)
        assert raw.read_bytes() == expected
    assert len(qemu_img("snapshot", "-l", path).splitlines()) == (len(kept) + 2 if kept else 0)


def test_what_a_new_snapshot_says(tmp_path: Path, qemu_img: QemuImg) -> None:
    """Numbers go on behind the highest, names are cut to 255 bytes, time and counters are as QEMU's."""
    path = tmp_path / "disk.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", path, "1M")
    qemu_img("snapshot", "-c", "first", path)
    with opened(path) as image:
        for name in ("second", "ü" * 200, "first"):
            call("snapshot_create", image, name=name)
        call("snapshot_delete", image, snapshot=named(image, "second"))
        call("snapshot_create", image, name="last")
        listed = call("snapshot_list", image)
        call("snapshot_delete", image, snapshot=listed[1])  # cut within a letter, its name is not UTF-8
    assert [s.id for s in listed] == ["1", "3", "4", "5"]
    assert len(listed[1].name.encode("utf-8", "surrogateescape")) == 255
    theirs, ours = listed[0], listed[-1]
    assert (ours.vm_state_size, ours.vm_clock_nsec, ours.icount) == (0, 0, theirs.icount) == (0, 0, 0)
    assert 0 <= ours.date_sec - theirs.date_sec < 60
    assert re.search(r"^5 +last +0 B ", qemu_img("snapshot", "-l", path), re.MULTILINE)


def test_the_size_comes_back(tmp_path: Path, qemu_img: QemuImg) -> None:
    """A snapshot keeps the size of the disk, and its view has it too."""
    path = tmp_path / "disk.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", "-o", "cluster_size=512", path, "1M")
    with opened(path) as image:
        image.write_at(0, b"x" * (1 << 20))
        call("snapshot_create", image, name="small")
    qemu_img("resize", path, "3M")
    with opened(path) as image:
        image.write_at(2 << 20, b"y" * 4096)
        call("snapshot_create", image, name="large")
    assert content(path, "small") == b"x" * (1 << 20)
    for name, size in (("small", 1 << 20), ("large", 3 << 20)):
        with opened(path) as image:
            call("snapshot_apply", image, snapshot=named(image, name))
            assert image.size == size
        qemu_img("check", path)
        assert f'"virtual-size": {size},' in qemu_img("info", "--output=json", path)
    with opened(path, writable=False) as image:
        assert image.read_at(2 << 20, 4096) == b"y" * 4096


def test_a_backing_layer_shows_through_a_snapshot(tmp_path: Path, qemu_img: QemuImg) -> None:
    """What the layer did not have when the snapshot was taken comes from below; closing the view keeps that open."""
    base, path = tmp_path / "base.raw", tmp_path / "disk.qcow2"
    base.write_bytes(b"base" * (SIZE // 4))
    qemu_img("create", "-q", "-f", "qcow2", "-b", base, "-F", "raw", path)
    with opened(path) as image:
        image.write_at(0, b"mine")
        call("snapshot_create", image, name="s")
        image.write_at(0, b"others" * 100_000)
        with call("snapshot_view", image, snapshot=named(image, "s")) as view:
            assert view.read_at(0, SIZE) == b"mine" + b"base" * (SIZE // 4 - 1)
            assert view.read_only
        assert image.read_at(SIZE - 4, 4) == b"base"
        call("snapshot_apply", image, snapshot=named(image, "s"))
        assert image.read_at(0, 8) == b"minebase"
    qemu_img("check", path)


def test_vm_state_is_kept(tmp_path: Path, qemu_img: QemuImg, qemu_io: Callable[..., str]) -> None:
    """Clusters behind the end of the disk belong to the snapshot like all others."""
    path = tmp_path / "disk.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", "-o", "cluster_size=512", path, "32k")
    qemu_io(path, "write -b -P 3 64k 4k", "write -P 1 0 32k")
    with opened(path) as image:
        entries = image.header.l1_size
        call("snapshot_create", image, name="s")
        image.write_at(0, bytes(4096))
        call("snapshot_apply", image, snapshot=named(image, "s"))
        assert image.header.l1_size == entries > image.header.l1_entries_needed
    assert content(path, "s") == b"\1" * (32 << 10)
    qemu_img("check", path)
    qemu_io(path, "read -b -P 3 64k 4k")


@pytest.mark.parametrize(("bits", "fit"), [(1, 0), (2, 2), (4, 14)])
def test_narrow_refcounts_overflow_without_harm(tmp_path: Path, qemu_img: QemuImg, bits: int, fit: int) -> None:
    """As many snapshots as the refcounts can count; one more is refused and changes nothing."""
    path = tmp_path / "disk.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", "-o", f"refcount_bits={bits}", path, "1M")
    with opened(path) as image:
        image.write_at(0, b"x" * 100_000)
        for number in range(fit):
            call("snapshot_create", image, name=str(number))
        image.flush()
        before = path.read_bytes()
        with pytest.raises(ImageError, match="^Invalid argument$") as caught:
            call("snapshot_create", image, name="too many")
        assert f"more than {2**bits - 1} references" in caught.value.hint
        assert call("snapshot_list", image) == image.snapshot_list()
    after = path.read_bytes()
    assert after[:512] == before[:512]
    qemu_img("check", path)
    with opened(path, writable=False) as image:
        assert len(image.snapshot_list()) == fit
        assert image.read_at(0, 100_000) == b"x" * 100_000


def test_refusals(tmp_path: Path, qemu_img: QemuImg) -> None:
    """Data files cannot have snapshots, bitmaps forbid to apply one, and what is gone is not found."""
    path = tmp_path / "disk.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", "-o", f"data_file={tmp_path / 'data'}", path, "1M")
    with opened(path) as image, pytest.raises(ImageError, match="^Operation not supported$"):
        call("snapshot_create", image, name="s")
    qemu_img("create", "-q", "-f", "qcow2", path, "1M")
    qemu_img("snapshot", "-c", "s", path)
    with opened(path, writable=False) as image:
        snapshot = named(image, "s")
        with pytest.raises(ImageError, match="^Image is read-only$"):
            call("snapshot_delete", image, snapshot=snapshot)
    qemu_img("bitmap", "--add", path, "b")
    with opened(path) as image:
        with pytest.raises(ImageError, match="^Device has active dirty bitmaps$"):
            call("snapshot_apply", image, snapshot=snapshot)
        call("snapshot_delete", image, snapshot=snapshot)
        with pytest.raises(ImageError, match="^snapshot not found$"):
            call("snapshot_delete", image, snapshot=snapshot)
    qemu_img("check", path)
    assert '"name": "b"' in qemu_img("info", "--output=json", path)


def test_a_snapshot_table_from_strangers(tmp_path: Path, qemu_img: QemuImg) -> None:
    """An L1 table of a snapshot that cannot be is one line, whatever is asked for."""
    path = tmp_path / "disk.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", path, "1M")
    with opened(path) as image:
        image.write_at(0, b"x" * 4096)
        call("snapshot_create", image, name="s")
        table, l1 = image.header.snapshots_offset, image.snapshots[0].l1_table_offset
    good = path.read_bytes()
    damages = [
        (table, (l1 + 512).to_bytes(8, "big")),
        (table, (1 << 60).to_bytes(8, "big")),
        (table + 8, (0xFFFFFFFF).to_bytes(4, "big")),
        (table + 8, (1 << 22).to_bytes(4, "big")),
        (l1, (0x7FFFFFFFFFFFFE00).to_bytes(8, "big")),
        (l1, (512).to_bytes(8, "big")),
    ]
    for offset, damage in damages:
        path.write_bytes(good[:offset] + damage + good[offset + len(damage) :])
        for hook in ("snapshot_apply", "snapshot_delete"):
            with opened(path) as image, pytest.raises(InvalidImage):
                call(hook, image, snapshot=named(image, "s"))
        with opened(path, writable=False) as image, pytest.raises(InvalidImage):
            call("snapshot_view", image, snapshot=named(image, "s")).read_at(0, 4096)
        assert path.read_bytes()[:512] == good[:512]


def test_a_long_table_is_read_on_demand(tmp_path: Path, qemu_img: QemuImg) -> None:
    """Thousands of snapshots cost nothing until someone asks for them; then they are all there."""
    path = tmp_path / "disk.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", path, "0")
    number = 5000
    with opened(path) as image:
        offset = image.file.size + -image.file.size % 65536
        entry = SNAPSHOT_FIELDS.pack(0, 0, 4, 5, 1, 2, 3, 4, 24) + SNAPSHOT_EXTRA_FIELDS.pack(4, 0, 5)
        table = b"".join((entry + b"%04d" % n + b"snap ").ljust(80, b"\0") for n in range(number))
    data = bytearray(path.read_bytes().ljust(offset, b"\0") + table)
    data[60:72] = number.to_bytes(4, "big") + offset.to_bytes(8, "big")
    path.write_bytes(data)
    with opened(path, writable=False) as image:
        assert "snapshots" not in image.__dict__
        listed = image.snapshot_list()
    assert [s.id for s in listed] == [f"{n:04d}" for n in range(number)]
    assert listed[9] == Snapshot("0009", "snap ", 1, 2, 3, 4, 5)
    path.write_bytes(data[: offset + 40 * number - 1])
    with pytest.raises(InvalidImage, match="snapshot table"):
        opened(path, writable=False)


def test_the_fast_declarations_are_the_same() -> None:
    """What reads long tables agrees with the construct declarations."""
    assert SNAPSHOT_FIELDS.size == SNAPSHOT_HEADER.sizeof()
    assert SNAPSHOT_EXTRA_FIELDS.size == SNAPSHOT_EXTRA.sizeof()
    raw = bytes(range(SNAPSHOT_FIELDS.size))
    parsed = SNAPSHOT_HEADER.parse(raw)
    assert SNAPSHOT_FIELDS.unpack(raw) == tuple(parsed[field.name] for field in SNAPSHOT_HEADER.subcons)
