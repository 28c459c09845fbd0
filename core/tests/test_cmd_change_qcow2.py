"""Commands that change chains of real images: the content is as it should be, and the real qemu-img finds no fault."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

pytest.importorskip("diskwright_qcow2")
pytest.importorskip("diskwright_raw")

import diskwright
from diskwright.cli import main
from diskwright.testing import qemu_img

KIB = 1024


def make(path: Path, size: int, cluster: int, backing: Path | None, chance: random.Random) -> None:
    """An image with some data and some zeros in it, at offsets that fit no cluster."""
    names = {} if backing is None else {"backing_file": backing, "backing_format": "qcow2"}
    diskwright.create(path, "qcow2", size, cluster_size=cluster, **names)
    with diskwright.open(path, "qcow2", writable=True) as image:
        for _ in range(chance.randint(2, 8)):
            offset = chance.randrange(size // 512) * 512
            length = min(size - offset, chance.randrange(1, 200) * 512)
            image.write_at(offset, bytes([chance.randrange(0, 6)]) * length)
        image.flush()


def content(path: Path) -> bytes:
    with diskwright.open(path, "qcow2") as image:
        return image.read_at(0, image.size)


@pytest.fixture(params=range(4))
def chain(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Path, Path]:
    """Base, overlay, overlay; of any sizes, each with a cluster size of its own."""
    chance = random.Random(request.param)
    names = [tmp_path / name for name in ("base", "mid", "top")]
    below = None
    for name in names:
        make(name, chance.randrange(200, 2000) * 512, 512 << chance.randrange(8), below, chance)
        below = name
    return names[0], names[1], names[2]


@pytest.mark.parametrize("new", ["base", "mid", "other", "none"])
def test_rebase(chain: tuple[Path, Path, Path], tmp_path: Path, new: str) -> None:
    top = chain[2]
    before = content(top)
    make(tmp_path / "other", 1 << 20, 4 * KIB, None, random.Random(99))
    target = "" if new == "none" else str(tmp_path / new)
    assert main(["rebase", "-f", "qcow2", "-b", target, *(["-F", "qcow2"] if target else []), str(top)]) == 0
    assert content(top) == before
    qemu_img("check", "-f", "qcow2", top)


@pytest.mark.parametrize("depth", [1, 2])
def test_commit(chain: tuple[Path, Path, Path], depth: int) -> None:
    base, mid, top = chain
    before = content(top)
    target = mid if depth == 1 else base
    assert main(["commit", "-q", "-f", "qcow2", *(["-b", str(base)] if depth == 2 else []), str(top)]) == 0
    assert content(target)[: len(before)] == before
    assert content(top) == before
    for path in chain:
        qemu_img("check", "-f", "qcow2", path)


@pytest.mark.parametrize("options", [[], ["-c"], ["-S", "0"], ["-W"]])
@pytest.mark.parametrize("cluster", ["512", "64k"])
def test_convert_into_an_overlay(chain: tuple[Path, Path, Path], options: list[str], cluster: str) -> None:
    """Data in pieces of other clusters than the target's: what is between them still comes from the backing file."""
    _, mid, top = chain
    new = top.with_name("new")
    arguments = ["-O", "qcow2", "-o", f"cluster_size={cluster}", "-B", str(mid), "-F", "qcow2", *options]
    assert main(["convert", "-f", "qcow2", *arguments, str(top), str(new)]) == 0
    assert content(new) == content(top)
    qemu_img("check", "-f", "qcow2", new)
    qemu_img("compare", top, new)


def test_convert_a_snapshot_with_bitmaps(tmp_path: Path) -> None:
    image, new = tmp_path / "image", tmp_path / "new"
    make(image, 1 << 20, 64 * KIB, None, random.Random(5))
    before = content(image)
    assert main(["snapshot", "-f", "qcow2", "-c", "s", str(image)]) == 0
    assert main(["bitmap", "-f", "qcow2", "--add", str(image), "b"]) == 0
    with diskwright.open(image, "qcow2", writable=True) as opened:
        opened.write_at(0, b"\x77" * 70000)
        opened.flush()
    assert main(["convert", "-f", "qcow2", "-O", "qcow2", "-l", "s", "--bitmaps", str(image), str(new)]) == 0
    assert content(new) == before
    with diskwright.open(new, "qcow2") as opened:
        assert [(bitmap.name, bitmap.enabled) for bitmap in diskwright.bitmaps(opened)] == [("b", True)]
    qemu_img("check", "-f", "qcow2", image)
    qemu_img("check", "-f", "qcow2", new)


def test_the_library_changes_images_too(tmp_path: Path) -> None:
    base, top = tmp_path / "base", tmp_path / "top"
    make(base, 1 << 20, 64 * KIB, None, random.Random(6))
    make(top, 1 << 20, 64 * KIB, base, random.Random(7))
    before = content(top)
    diskwright.resize(top, "2M")
    diskwright.amend(top, lazy_refcounts=True)
    with diskwright.open(top, "qcow2", writable=True) as image:
        diskwright.create_snapshot(image, "s")
        image.write_at(0, b"\x99" * 4096)
        with_change = image.read_at(0, 1 << 20)
        diskwright.apply_snapshot(image, "1")
        assert image.read_at(0, 1 << 20) == before != with_change
        diskwright.delete_snapshot(image, "s")
    diskwright.commit(top)
    assert content(base) == before + bytes(1 << 20)
    diskwright.rebase(top, None)
    assert content(top) == before + bytes(1 << 20)
    assert diskwright.check(top, repair="all").corruptions == 0
    assert diskwright.measure(top, "raw").required == 2 << 20
