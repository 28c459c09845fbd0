"""Options for the time that an image is open: what they allow, refuse and do."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import diskwright
from diskwright.cli import main
from diskwright.context import Context, default_context
from diskwright.errors import ImageError, InvalidImage
from diskwright.testing import find_qemu_img
from diskwright.trees import OptionString
from diskwright_qcow2.image import Qcow2Image
from diskwright_qcow2.runtime import Overlap, Runtime

MIB = 1 << 20
QemuImg = Callable[..., str]


def opened(path: Path, **options: str) -> Qcow2Image:
    """Open for writing; underscores in the names of options stand for minus signs and doubled ones for dots."""
    given = {name.replace("__", ".").replace("_", "-"): text for name, text in options.items()}
    image = default_context().open(str(path), "qcow2", writable=True, options=given)
    assert isinstance(image, Qcow2Image)
    return image


def used(path: Path) -> int:
    return path.stat().st_blocks * 512


@pytest.mark.parametrize("version", ["v2", "v3"])
@pytest.mark.parametrize(
    "options",
    [
        "lazy-refcounts=on",
        "lazy-refcounts=off",
        "lazy-refcounts=maybe",
        "discard-no-unref=on",
        "discard-no-unref=off",
        "pass-discard-request=x",
        "pass-discard-snapshot=off,pass-discard-other=on,pass-discard-request=on",
        "overlap-check=bogus",
        "overlap-check.template=bogus",
        "overlap-check=all,overlap-check.template=none",
        "overlap-check=all,overlap-check.template=all",
        "overlap-check=none,overlap-check.inactive-l2=on",
        "overlap-check.main-header=bogus",
        "overlap-check.bogus=on",
        "cache-size=8E",
        "cache-size=0",
        "cache-size=1M,l2-cache-size=2M",
        "cache-size=1M,refcount-cache-size=2M",
        "cache-size=1M,refcount-cache-size=512k,l2-cache-size=512k",
        "cache-size=10M,refcount-cache-size=512k",
        "l2-cache-size=8E",
        "l2-cache-size=0",
        "refcount-cache-size=8E",
        "refcount-cache-size=0",
        "l2-cache-entry-size=256",
        "l2-cache-entry-size=512",
        "l2-cache-entry-size=3000",
        "l2-cache-entry-size=128k",
        "cache-clean-interval=-1",
        "cache-clean-interval=4294967295",
        "cache-clean-interval=x",
    ],
)
def test_refused_and_allowed_like_the_real_one(
    tmp_path: Path, qemu_img: QemuImg, capfd: Any, version: str, options: str
) -> None:
    path = tmp_path / "x.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", "-o", f"compat={version}", path, "64M")
    name = f"driver=qcow2,file.driver=file,file.filename={path},{options}"
    command = ["info", "--image-opts", name]
    program = find_qemu_img()
    assert program is not None
    real = subprocess.run([program, *command], capture_output=True, text=True, check=False)
    if "discard-no-unref" in options and "does not support the option" in real.stderr:
        pytest.skip("the real one is too old to know the option")
    capfd.readouterr()
    code = main(command, program="qemu-img")
    ours = capfd.readouterr()
    assert (code, ours.err) == (real.returncode, real.stderr)
    assert ours.out.partition("\n")[0] == real.stdout.partition("\n")[0]


def test_what_is_looked_out_for() -> None:
    header: Any = type("V3", (), {"version": 3, "cluster_size": 65536, "disk_size": MIB, "l1_coverage": 512 * MIB})
    assert Runtime.from_values(header, {}).overlap is Overlap.CACHED
    values = {"overlap-check.template": "none", "overlap-check.active-l1": True, "overlap-check.main-header": False}
    assert Runtime.from_values(header, values).overlap == Overlap.ACTIVE_L1
    values = {"overlap-check": "all", "overlap-check.inactive-l2": False}
    assert Runtime.from_values(header, values).overlap == Overlap.CACHED


@pytest.fixture
def overlapping(tmp_path: Path, qemu_img: QemuImg, qemu_io: Callable[..., str]) -> Path:
    """An image with a snapshot and two entries that lead astray: at 0 to the refcount table, at 64k to an L2 table
    of the snapshot."""
    path = tmp_path / "x.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", path, "1M")
    qemu_io(path, "write -P 1 0 256k")
    qemu_img("snapshot", "-c", "s", path)
    qemu_io(path, "write -P 2 0 256k")
    with opened(path) as image:
        table = image.l2.offset_of(0)
        from diskwright_qcow2.snapshot_ops import snapshot_tables

        inactive = snapshot_tables(image, image.snapshots[0]).offset_of(0)
        refcounts = image.header.refcount_table_offset
    with path.open("r+b") as file:
        file.seek(table)
        for offset in (refcounts, inactive):
            file.write((offset | 1 << 63).to_bytes(8, "big"))
    return path


def test_overlap_check_names_what_it_saves(overlapping: Path) -> None:
    before = overlapping.read_bytes()
    with opened(overlapping) as image, pytest.raises(InvalidImage, match="overlaps with refcount table"):
        image.write_at(0, b"x")
    overlapping.write_bytes(before)
    with opened(overlapping, overlap_check="all") as image, pytest.raises(InvalidImage, match="inactive L2 table"):
        image.write_at(65536, b"x")


def test_overlap_check_can_be_turned_off(overlapping: Path) -> None:
    with opened(overlapping) as image:
        image.write_at(65536, b"x")  # the tables of snapshots are not looked out for
    with opened(overlapping, overlap_check__refcount_table="off") as image:
        image.write_at(4096, b"x")
        place = image.header.refcount_table_offset + 4096
    assert overlapping.read_bytes()[place : place + 1] == b"x"


@pytest.mark.parametrize("passed", [True, False])
def test_space_of_deleted_snapshots(
    tmp_path: Path, qemu_img: QemuImg, qemu_io: Callable[..., str], passed: bool
) -> None:
    path = tmp_path / "x.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", path, "16M")
    qemu_io(path, "write -P 1 0 8M")
    qemu_img("snapshot", "-c", "s", path)
    qemu_io(path, "write -P 2 0 8M")
    before = used(path)
    with opened(path, pass_discard_snapshot="on" if passed else "off") as image:
        (snapshot,) = image.snapshot_list()
        default_context().formats.call("snapshot_delete", "qcow2", image=image, snapshot=snapshot)
    assert (used(path) < before - 7 * MIB) is passed
    qemu_img("check", "-q", path)
    qemu_io(path, "read -P 2 0 8M")


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("passed", [True, False])
def test_space_of_discarded_clusters(
    tmp_path: Path, qemu_img: QemuImg, qemu_io: Callable[..., str], keep: bool, passed: bool
) -> None:
    path = tmp_path / "x.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", path, "16M")
    qemu_io(path, "write -P 1 0 8M")
    before = used(path)
    options = {"pass_discard_request": "on" if passed else "off", "discard_no_unref": "on" if keep else "off"}
    with opened(path, **options) as image:
        image.discard(65536, 6 * MIB)
        image.flush()
        kept = int(image.l2.get(0)[1])  # type: ignore[index]
        image.write_at(MIB, b"\3" * 65536)
    assert bool(kept & ((1 << 56) - 512)) is keep
    assert (used(path) < before - 5 * MIB) is passed
    qemu_img("check", "-q", path)
    qemu_io(path, "read -P 1 0 64k", "read -P 0 64k 960k", "read -P 3 1M 64k", "read -P 0 2M 4M", "read -P 1 7M 1M")


def test_the_discard_option_of_the_node_stands_for_requests(tmp_path: Path, qemu_img: QemuImg) -> None:
    path = tmp_path / "x.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", path, "16M")
    from diskwright.trees import OptionString

    for text, passed in (("", False), (",discard=unmap", True), (",discard=unmap,pass-discard-request=off", False)):
        name = OptionString(f"driver=qcow2,file.driver=file,file.filename={path}{text}")
        with default_context().open(name) as image:
            assert isinstance(image, Qcow2Image)
            assert image.runtime.pass_request is passed


def test_small_caches_do_their_work(tmp_path: Path, qemu_img: QemuImg, qemu_io: Callable[..., str]) -> None:
    path = tmp_path / "x.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", "-o", "cluster_size=512", path, "16M")
    with opened(path, cache_size="4k") as image:
        assert (image.runtime.l2_cache, image.runtime.refcount_cache) == (2048, 2048)
        for offset in range(0, 16 * MIB, MIB):
            image.write_at(offset, bytes([offset >> 20]) * 70_000)
        image.flush()
        for offset in range(0, 16 * MIB, MIB):
            assert image.read_at(offset, 70_000) == bytes([offset >> 20]) * 70_000
        assert len(image.l2._clean) == 4
    qemu_img("check", "-q", path)


def test_repairing_takes_back_unknown_autoclear_bits(tmp_path: Path, qemu_img: QemuImg) -> None:
    path = tmp_path / "x.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", path, "1M")
    with path.open("r+b") as file:
        file.seek(88)
        file.write((1 << 63).to_bytes(8, "big"))
    assert main(["check", "-q", str(path)]) == 0
    assert path.read_bytes()[88:96] == (1 << 63).to_bytes(8, "big")
    assert main(["check", "-q", "-r", "leaks", str(path)]) == 0
    assert path.read_bytes()[88:96] == bytes(8)


def test_an_option_that_there_is_not(tmp_path: Path, qemu_img: QemuImg) -> None:
    path = tmp_path / "x.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", path, "1M")
    with pytest.raises(ImageError, match="Block format 'qcow2' does not support the option 'l3-cache-size'"):
        opened(path, l3_cache_size="1M")


class TestDataFile:
    """Where the data file is now, the user says as ``data-file.filename``."""

    def test_it_may_be_elsewhere(self, tmp_path: Path) -> None:
        path, data, moved = tmp_path / "disk", tmp_path / "data", tmp_path / "moved"
        diskwright.create(path, "qcow2", MIB, data_file=str(data))
        with diskwright.open(path, writable=True) as image:
            image.write_at(4096, b"x" * 4096)  # type: ignore[attr-defined]
        data.rename(moved)
        name = OptionString(f"driver=qcow2,file.filename={path},data-file.filename={moved}")
        with Context().open(name) as image:
            assert image.read_at(4096, 4096) == b"x" * 4096
            assert image.children()["data-file"].filename == str(moved)

    def test_without_need_of_one(self, tmp_path: Path) -> None:
        path = tmp_path / "disk"
        diskwright.create(path, "qcow2", MIB)
        name = OptionString(f"driver=qcow2,file.filename={path},data-file.filename={path}")
        with pytest.raises(ImageError, match="'data-file' can only be set for images with an external data file"):
            Context().open(name)
