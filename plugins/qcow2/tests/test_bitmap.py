"""Persistent dirty bitmaps: kept current while an image is written, changed as asked, and understood by QEMU."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import diskwright
from diskwright.context import default_context
from diskwright.errors import ImageError, InvalidImage, InvalidOption
from diskwright.facts import Bitmap
from diskwright.hookspecs import OpenOptions
from diskwright.node import Node
from diskwright.testing import RecordingNode
from diskwright_qcow2.check import check
from diskwright_qcow2.image import Qcow2Image

SIZE = (8 << 20) + 1536
QemuImg = Callable[..., str]
Ranges = list[tuple[int, int]]


def call(hook: str, image: object, **arguments: Any) -> Any:
    return default_context().formats.call(hook, "qcow2", image=image, **arguments)


def opened(path: Path, *, writable: bool = True) -> Qcow2Image:
    image = diskwright.open(path, "qcow2", writable=writable)
    assert isinstance(image, Qcow2Image)
    return image


def ranges(path: Path, name: str) -> Ranges:
    with opened(path, writable=False) as image:
        return list(call("bitmap_ranges", image, name=name))


class Model:
    """The bits of a bitmap, one by one."""

    def __init__(self, granularity: int, size: int = SIZE) -> None:
        self.granularity, self.size = granularity, size
        self.bits: set[int] = set()

    def mark(self, offset: int, length: int) -> None:
        self.bits.update(range(offset // self.granularity, (offset + length - 1) // self.granularity + 1))

    def ranges(self) -> Ranges:
        found: Ranges = []
        for bit in sorted(self.bits):
            start = bit * self.granularity
            length = min(self.granularity, self.size - start)
            if found and sum(found[-1]) == start:
                found[-1] = (found[-1][0], found[-1][1] + length)
            else:
                found.append((start, length))
        return found


def flags(path: Path, qemu_img: QemuImg) -> dict[str, list[str]]:
    """The bitmaps as qemu-img shows them."""
    data = json.loads(qemu_img("info", "--output=json", path))["format-specific"]["data"]
    return {bitmap["name"]: bitmap["flags"] for bitmap in data.get("bitmaps", ())}


def copied_by_qemu(path: Path, name: str, qemu_img: QemuImg) -> Ranges:
    """What QEMU reads in a bitmap: it copies it to another, which it writes in its own way."""
    other = path.with_name("copy.qcow2")
    size = json.loads(qemu_img("info", "--output=json", path))["virtual-size"]
    qemu_img("create", "-q", "-f", "qcow2", other, str(size))
    granularity = next(b.granularity for b in bitmaps(path) if b.name == name)
    qemu_img("bitmap", "--add", "-g", str(granularity), "--merge", name, "-b", path, "-F", "qcow2", other, "copy")
    return ranges(other, "copy")


def bitmaps(path: Path) -> list[Bitmap]:
    with opened(path, writable=False) as image:
        return list(call("bitmap_list", image))


KINDS = [("64k", 65536), ("512", 512), ("4k", 4096), ("2M", 512), ("512", 1 << 20)]


@pytest.mark.parametrize(("cluster", "granularity"), KINDS)
def test_writes_are_recorded(
    tmp_path: Path, qemu_img: QemuImg, qemu_io: Callable[..., str], cluster: str, granularity: int
) -> None:
    """All ways of changing the disk set bits in enabled bitmaps, whoever writes; disabled ones stay as they are."""
    path, rng, model = tmp_path / "disk.qcow2", random.Random(1), Model(granularity)
    qemu_img("create", "-q", "-f", "qcow2", "-o", f"cluster_size={cluster}", path, str(SIZE))
    with opened(path) as image:
        call("bitmap_add", image, bitmap=Bitmap("on", granularity, enabled=True))
        call("bitmap_add", image, bitmap=Bitmap("off", granularity, enabled=False))
    qemu_img("check", path)
    for turn in range(3):
        with opened(path) as image:
            for _ in range(5):
                start, length = rng.randrange(SIZE - 70_000), rng.choice((1, 512, 60_000))
                change = rng.choice((write, zero, discard))
                change(image, start, length)
                model.mark(start, length)
            size = image.header.cluster_size
            image.write_compressed([(size, image.compress(memoryview(b"text" * (size // 4))) or b"")])
            model.mark(size, size)
            if turn == 1:
                assert list(call("bitmap_ranges", image, name="on")) == model.ranges()
                call("snapshot_create", image, name="in between")
                write(image, SIZE - 10, 10)
                model.mark(SIZE - 10, 10)
        qemu_img("check", path)
        assert ranges(path, "on") == model.ranges()
        assert ranges(path, "off") == []
        qemu_io(path, f"write -P 7 {turn}M 70000")
        model.mark(turn << 20, 70_000)
        assert ranges(path, "on") == model.ranges()
    assert copied_by_qemu(path, "on", qemu_img) == model.ranges()
    assert flags(path, qemu_img) == {"on": ["auto"], "off": []}


def write(image: Qcow2Image, start: int, length: int) -> None:
    image.write_at(start, b"w" * length)


def zero(image: Qcow2Image, start: int, length: int) -> None:
    image.write_zeroes(start, length, unmap=True)


def discard(image: Qcow2Image, start: int, length: int) -> None:
    image.discard(start, length)


def test_bitmaps_are_in_use_only_while_something_is_recorded(tmp_path: Path, qemu_img: QemuImg) -> None:
    """Opening marks nothing; from the first write until closing, enabled bitmaps are marked, disabled ones are not."""
    path = tmp_path / "disk.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", path, "1M")
    qemu_img("bitmap", "--add", path, "on")
    qemu_img("bitmap", "--add", "--disable", path, "off")
    with opened(path) as image:
        image.read_at(0, 512)
        assert flags(path, lambda *_: qemu_img("info", "-U", "--output=json", path))["on"] == ["auto"]
        write(image, 0, 1)
        image.flush()
        left = path.read_bytes()
        assert [bitmap.inconsistent for bitmap in call("bitmap_list", image)] == [False, False]
    assert flags(path, qemu_img) == {"on": ["auto"], "off": []}
    path.write_bytes(left)  # as if it had never been closed
    assert [(b.name, b.inconsistent) for b in bitmaps(path)] == [("on", True), ("off", False)]
    with opened(path) as image:
        with pytest.raises(ImageError, match="^Bitmap 'on' is inconsistent and cannot be used$"):
            call("bitmap_enable", image, name="on", enabled=False)
        with pytest.raises(ImageError, match="^Bitmap 'on' is inconsistent and cannot be used$"):
            call("bitmap_fill", image, name="on", ranges=[], clear=True)
        with pytest.raises(ImageError, match="^Bitmap 'on' is inconsistent and cannot be used$"):
            list(call("bitmap_ranges", image, name="on"))
        write(image, 0, 1)
    assert bitmaps(path)[0].inconsistent
    with opened(path) as image:
        call("bitmap_remove", image, name="on")
    qemu_img("check", path)
    assert flags(path, qemu_img) == {"off": []}


@pytest.mark.parametrize(("cluster", "granularity"), KINDS)
def test_filling_and_clearing(tmp_path: Path, qemu_img: QemuImg, cluster: str, granularity: int) -> None:
    """Ranges are added to a bitmap or replace it; a full one takes no data clusters; QEMU reads and merges them."""
    path, model = tmp_path / "disk.qcow2", Model(granularity)
    qemu_img("create", "-q", "-f", "qcow2", "-o", f"cluster_size={cluster}", path, str(SIZE))
    with opened(path) as image:
        call("bitmap_add", image, bitmap=Bitmap("b", granularity, enabled=False))
        for start, length in ((1 << 20, 5), (5 << 20, 100_000), (0, 1)):
            call("bitmap_fill", image, name="b", ranges=[(start, length)], clear=False)
            model.mark(start, length)
        assert list(call("bitmap_ranges", image, name="b")) == model.ranges()
    qemu_img("check", path)
    assert copied_by_qemu(path, "b", qemu_img) == model.ranges()
    with opened(path) as image:
        call("bitmap_fill", image, name="b", ranges=[(0, SIZE)], clear=False)
        call("bitmap_enable", image, name="b", enabled=True)
    qemu_img("check", path)
    assert ranges(path, "b") == [(0, SIZE)] == copied_by_qemu(path, "b", qemu_img)
    assert flags(path, qemu_img) == {"b": ["auto"]}
    with opened(path) as image:
        call("bitmap_fill", image, name="b", ranges=iter([(SIZE - 1, 1)]), clear=True)
    model.bits.clear()
    model.mark(SIZE - 1, 1)
    assert ranges(path, "b") == model.ranges() == copied_by_qemu(path, "b", qemu_img)
    with opened(path) as image:
        call("bitmap_fill", image, name="b", ranges=[], clear=True)
        call("bitmap_remove", image, name="b")
        assert call("bitmap_list", image) == []
        assert image.header.bitmaps is None
    qemu_img("check", path)
    assert flags(path, qemu_img) == {}


def test_what_cannot_be_added(tmp_path: Path, qemu_img: QemuImg) -> None:
    """Each refusal says why, in QEMU's words where scripts may look, and changes nothing."""
    path = tmp_path / "disk.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", path, "1T")
    with opened(path) as image:
        call("bitmap_add", image, bitmap=Bitmap("b", 65536, enabled=True))
    before = path.read_bytes()
    for bitmap, reason in (
        (Bitmap("b", 65536, True), "^Bitmap already exists: b$"),
        (Bitmap("c", 3000, True), "^Granularity must be power of 2 and at least 512$"),
        (Bitmap("c", 256, True), "^Granularity must be power of 2 and at least 512$"),
        (Bitmap("c", 1 << 32, True), "^Granularity exceeds maximum"),
        (Bitmap("é" * 512, 65536, True), "^Bitmap name is too long"),
        (Bitmap("", 65536, True), "cannot be empty"),
    ):
        with opened(path) as image, pytest.raises(InvalidOption, match=reason):
            call("bitmap_add", image, bitmap=bitmap)
    with opened(path) as image, pytest.raises(ImageError, match="^Dirty bitmap 'x' not found$"):
        call("bitmap_remove", image, name="x")
    assert path.read_bytes() == before
    with opened(path) as image:
        call("bitmap_add", image, bitmap=Bitmap("n" * 1023, 512, enabled=True))
    qemu_img("check", path)
    qemu_img("create", "-q", "-f", "qcow2", path, "10T")
    with opened(path) as image, pytest.raises(InvalidOption, match="^Too much space will be occupied by the bitmap"):
        call("bitmap_add", image, bitmap=Bitmap("b", 512, enabled=True))
    qemu_img("create", "-q", "-f", "qcow2", "-o", "compat=0.10", path, "1M")
    with opened(path) as image, pytest.raises(InvalidOption, match="^Cannot store dirty bitmaps in qcow2 v2 files$"):
        call("bitmap_add", image, bitmap=Bitmap("b", 65536, enabled=True))
    qemu_img("create", "-q", "-f", "qcow2", path, "0")
    with opened(path) as image, pytest.raises(InvalidOption, match="^A disk without content has no bitmaps$"):
        call("bitmap_add", image, bitmap=Bitmap("b", 65536, enabled=True))


@pytest.mark.parametrize("sizes", [(3 << 20, 1 << 20), (12 << 20,), (1 << 20, 20 << 20), (5 << 20, 5 << 20)])
@pytest.mark.parametrize(("cluster", "granularity"), [("512", 512), ("512", 4096), ("64k", 65536)])
def test_resizing(tmp_path: Path, qemu_img: QemuImg, cluster: str, granularity: int, sizes: tuple[int, ...]) -> None:
    """After the disk has another size, the bitmaps fit it: what was cut is forgotten, what is new is clean."""
    path, start = tmp_path / "disk.qcow2", 6 << 20
    qemu_img("create", "-q", "-f", "qcow2", "-o", f"cluster_size={cluster}", path, str(start))
    with opened(path) as image:
        for name, enabled in (("on", True), ("off", False)):
            call("bitmap_add", image, bitmap=Bitmap(name, granularity, enabled))
            call("bitmap_fill", image, name=name, ranges=[(0, start)], clear=False)
        for size in sizes:
            call("resize", image, size=size, preallocation="off")
    smallest = min(start, *sizes)
    qemu_img("check", path)
    for name in ("on", "off"):
        assert ranges(path, name) == [(0, smallest)] == copied_by_qemu(path, name, qemu_img)
    assert flags(path, qemu_img) == {"on": ["auto"], "off": []}


def in_memory(node: Node, *, writable: bool) -> Qcow2Image:
    def no_child(name: str, role: str) -> Node:
        raise AssertionError(name)

    image = Qcow2Image(node, OpenOptions("disk", writable, False, {}, no_child))
    image.bind("qcow2", lambda layer, offset, length: layer.map_range(offset, length))  # type: ignore[attr-defined]
    return image


def told(node: Node) -> dict[str, Ranges | None]:
    """What each bitmap says, ``None`` where nobody may rely on it."""
    image = in_memory(node, writable=False)
    return {
        bitmap.name: None if bitmap.inconsistent else list(call("bitmap_ranges", image, name=bitmap.name))
        for bitmap in call("bitmap_list", image)
    }


def test_every_crash_leaves_true_bitmaps(tmp_path: Path, qemu_img: QemuImg) -> None:
    """At each instant a bitmap says what it said, says all that was written, or says that it is not complete."""
    path = tmp_path / "disk.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", "-o", "cluster_size=512", path, "1M")
    node = RecordingNode(path.read_bytes())
    states = [told(node)]
    with_content: list[int] = []

    def step(action: Callable[[Qcow2Image], object]) -> None:
        image = in_memory(node, writable=True)
        action(image)
        image.save()
        states.append(told(node))
        with_content.append(len(node.steps))

    step(lambda image: call("bitmap_add", image, bitmap=Bitmap("a", 512, enabled=True)))
    step(lambda image: call("bitmap_add", image, bitmap=Bitmap("b", 4096, enabled=False)))
    step(lambda image: image.write_at(5000, b"x" * 100_000))
    step(lambda image: call("bitmap_fill", image, name="b", ranges=[(0, 1 << 20)], clear=True))
    step(lambda image: call("bitmap_enable", image, name="a", enabled=False))
    step(lambda image: call("bitmap_remove", image, name="a"))
    chance = random.Random(1)
    turn = 0
    for count in range(len(node.steps) + 1):
        while turn < len(with_content) and count > with_content[turn]:
            turn += 1
        for crashed in (node.after(count), node.after_power_cut(count, chance)):
            result = check(in_memory(crashed, writable=False))
            assert (result.corruptions, result.check_errors) == (0, 0), (count, result.findings)
            allowed = states[turn : turn + 2]
            found = told(crashed)
            marked = {name: None if name == "a" else said for name, said in states[turn].items()}
            assert found in allowed or (turn == 2 and found == marked), count
    assert states[-1] == {"b": [(0, 1 << 20)]}


def test_a_table_from_strangers(tmp_path: Path, qemu_img: QemuImg) -> None:
    """A bitmap with an impossible table is refused, and can be removed only if it is marked as incomplete."""
    path = tmp_path / "disk.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", path, "1M")
    with opened(path) as image:
        call("bitmap_add", image, bitmap=Bitmap("b", 65536, enabled=True))
        table, entry = image.bitmaps[0].table_offset, image.bitmaps[0].offset
    good = path.read_bytes()
    for value in (1 << 60, 0x10001, 512, 1 << 40, 2):
        data = bytearray(good)
        data[table : table + 8] = value.to_bytes(8, "big")
        path.write_bytes(data)
        if value != 1 << 40:
            with pytest.raises(InvalidImage, match="Could not read bitmap_table table"):
                opened(path)
        with default_context().open(str(path), "qcow2", writable=True, check=True) as image:
            with pytest.raises(InvalidImage):
                list(call("bitmap_ranges", image, name="b"))
            with pytest.raises(InvalidImage):
                call("bitmap_fill", image, name="b", ranges=[(0, 1)], clear=False)
        data[entry + 12 : entry + 16] = (3).to_bytes(4, "big")
        path.write_bytes(data)
        if value != 1 << 40:
            with opened(path) as image:
                call("bitmap_remove", image, name="b")
            assert bitmaps(path) == []


def test_a_resize_that_fails_forgets_nothing(
    tmp_path: Path, qemu_img: QemuImg, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bitmaps still say all that they said if the disk keeps its size in the end."""
    path = tmp_path / "disk.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", path, "4M")
    with opened(path) as image:
        call("bitmap_add", image, bitmap=Bitmap("b", 65536, enabled=True))
        call("bitmap_fill", image, name="b", ranges=[(0, 4 << 20)], clear=False)

        def broken(*_: object) -> None:
            raise ImageError("no")

        monkeypatch.setattr("diskwright_qcow2.resize._shrink", broken)
        with pytest.raises(ImageError, match="^no$"):
            call("resize", image, size=1 << 20, preallocation="off")
    qemu_img("check", path)
    assert ranges(path, "b") == [(0, 4 << 20)]


def test_adding_a_bitmap_leaves_the_layout_that_qemu_leaves(tmp_path: Path, qemu_img: QemuImg, qemu_io: Any) -> None:
    """Bitmaps and their tables stand at the same places afterwards, once QEMU has written to the image again."""
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    for path in (ours, theirs):
        qemu_img("create", "-q", "-f", "qcow2", path, "10M")
    for number, enabled in ((1, True), (2, False)):
        with opened(ours) as image:
            call("bitmap_add", image, bitmap=Bitmap(f"b{number}", 16384 << number, enabled=enabled))
        qemu_img(
            "bitmap", "--add", "-g", str(16384 << number), "--enable" if enabled else "--disable", theirs, f"b{number}"
        )
        for path in (ours, theirs):
            qemu_io(path, f"write {3 * number}M 1M")
            qemu_io(path, f"write {3 * number + 1}M 1M")
        with opened(ours, writable=False) as left, opened(theirs, writable=False) as right:
            assert left.bitmaps == right.bitmaps
            assert left.header.bitmaps == right.header.bitmaps
    qemu_img("check", "-q", ours)


def test_other_bitmaps_are_stored_once_while_an_image_is_open(tmp_path: Path, qemu_img: QemuImg) -> None:
    path = tmp_path / "disk.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", path, "10M")
    with opened(path) as image:
        call("bitmap_add", image, bitmap=Bitmap("a", 65536, enabled=False))
        call("bitmap_fill", image, name="a", ranges=[(0, 1 << 20)], clear=False)
    with opened(path) as image:
        before = image.bitmaps[0].table_offset
        call("bitmap_add", image, bitmap=Bitmap("b", 65536, enabled=False))
        moved = image.bitmaps[0].table_offset
        call("bitmap_add", image, bitmap=Bitmap("c", 65536, enabled=False))
        assert image.bitmaps[0].table_offset == moved != before
        assert list(call("bitmap_ranges", image, name="a")) == [(0, 1 << 20)]
    qemu_img("check", "-q", path)
