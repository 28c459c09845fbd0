"""What the filters do to reads and writes."""

import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

import diskwright
from diskwright.context import Context
from diskwright.errors import InvalidOption
from diskwright.extent import Flag, Kind
from diskwright.trees import OptionString

CLUSTER = 1 << 16
SIZE = 8 * CLUSTER + 512


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A backing file of ones up to its middle, and an overlay with nothing."""
    monkeypatch.chdir(tmp_path)
    Path("base.raw").write_bytes(b"\1" * (SIZE // 2) + bytes(SIZE - SIZE // 2))
    diskwright.create("top.qcow2", "qcow2", backing_file="base.raw", backing_format="raw")
    return tmp_path


def open_tree(tree: str, *, objects: tuple[str, ...] = (), writable: bool = True) -> Any:
    context = Context()
    for text in objects:
        context.objects.add(text)
    return context.open(OptionString(tree), writable=writable)


def kinds(name: str) -> list[tuple[Kind, int, bool]]:
    """What the top layer of an image has: kind, bytes, whether compressed."""
    with Context().open(name) as image:
        found = [(e.kind, e.length, bool(e.flags & Flag.COMPRESSED)) for table in image.extents() for e in _each(table)]
    merged: list[tuple[Kind, int, bool]] = []
    for kind, length, compressed in found:
        if merged and merged[-1][::2] == (kind, compressed):
            merged[-1] = (kind, merged[-1][1] + length, compressed)
        else:
            merged.append((kind, length, compressed))
    return merged


def _each(item: Any) -> Any:
    return item if hasattr(item, "rows") else [item]


class TestCompress:
    TREE = "driver=compress,file.driver=qcow2,file.file.filename=top.qcow2"

    def test_small_writes_fill_up_clusters(self, folder: Path) -> None:
        with open_tree(self.TREE) as disk:
            disk.write_at(CLUSTER - 5, b"x" * 10)
            disk.write_at(7, b"y")
            disk.write_at(SIZE - 3, b"z" * 3)
        content = Context().open("top.qcow2").read_at(0, SIZE)
        expected = bytearray(Path("base.raw").read_bytes())
        expected[CLUSTER - 5 : CLUSTER + 5], expected[7], expected[-3:] = b"x" * 10, ord("y"), b"z" * 3
        assert content == expected
        compressed, absent = (Kind.ENCODED, 2 * CLUSTER, True), (Kind.ABSENT, 6 * CLUSTER, False)
        assert kinds("top.qcow2") == [compressed, absent, (Kind.ENCODED, 512, True)]

    def test_writing_again(self, folder: Path) -> None:
        for byte in (b"a", b"b"):
            with open_tree(self.TREE) as disk:
                disk.write_at(0, byte * CLUSTER)
        assert Context().open("top.qcow2").read_at(0, CLUSTER) == b"b" * CLUSTER
        assert kinds("top.qcow2")[0] == (Kind.ENCODED, CLUSTER, True)
        assert not diskwright.check("top.qcow2").corruptions

    def test_what_does_not_shrink_is_stored_as_it_is(self, folder: Path) -> None:
        noise = random.Random(1).randbytes(CLUSTER)
        with open_tree(self.TREE) as disk:
            disk.write_at(0, noise)
            assert disk.read_at(0, CLUSTER) == noise
        assert kinds("top.qcow2")[0] == (Kind.DATA, CLUSTER, False)

    def test_zeros_in_whole_clusters_take_no_space(self, folder: Path) -> None:
        with open_tree(self.TREE) as disk:
            disk.write_zeroes(CLUSTER // 2, 2 * CLUSTER, unmap=True)
            disk.write_zeroes(5 * CLUSTER, SIZE - 5 * CLUSTER, unmap=True)
            assert disk.read_at(0, 3 * CLUSTER) == b"\1" * (CLUSTER // 2) + bytes(2 * CLUSTER) + b"\1" * (CLUSTER // 2)
        found = kinds("top.qcow2")
        assert found[:3] == [(Kind.ENCODED, CLUSTER, True), (Kind.ZERO, CLUSTER, False), (Kind.ENCODED, CLUSTER, True)]

    def test_threads_share_a_cluster(self, folder: Path) -> None:
        with open_tree(self.TREE) as disk:

            def write(index: int) -> None:
                for start in range(index * 512, 2 * CLUSTER, 8 * 512):
                    disk.write_at(start, bytes([index + 1]) * 512)

            threads = [threading.Thread(target=write, args=(index,)) for index in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            expected = b"".join(bytes([index + 1]) * 512 for index in range(8)) * (2 * CLUSTER // 4096)
            assert disk.read_at(0, 2 * CLUSTER) == expected

    def test_detecting_zeros(self, folder: Path) -> None:
        with open_tree(f"{self.TREE},detect-zeroes=on") as disk:
            disk.write_at(0, bytes(CLUSTER))
        assert kinds("top.qcow2")[0] == (Kind.ZERO, CLUSTER, False)


class TestCopyOnRead:
    TREE = "driver=copy-on-read,file.driver=qcow2,file.file.filename=top.qcow2"
    BACKING = "file.backing.driver=raw,file.backing.file.filename=base.raw,file.backing.node-name=base"

    def test_what_is_read_is_kept_in_whole_clusters(self, folder: Path) -> None:
        with open_tree(self.TREE) as disk:
            assert disk.read_at(CLUSTER + 5, 1) == b"\1"
            assert disk.read_at(6 * CLUSTER, 10) == bytes(10)
        data, zero = (Kind.DATA, CLUSTER, False), (Kind.ZERO, CLUSTER, False)
        gap = (Kind.ABSENT, 4 * CLUSTER, False)
        assert kinds("top.qcow2") == [
            (Kind.ABSENT, CLUSTER, False),
            data,
            gap,
            zero,
            (Kind.ABSENT, CLUSTER + 512, False),
        ]

    def test_all_of_it_makes_the_image_independent(self, folder: Path) -> None:
        content = Path("base.raw").read_bytes()
        with open_tree(self.TREE) as disk:
            assert disk.read_at(0, SIZE) == content
        Path("base.raw").write_bytes(b"\xee" * SIZE)
        assert Context().open("top.qcow2").read_at(0, SIZE) == content

    def test_what_is_written_is_not_undone(self, folder: Path) -> None:
        with open_tree(self.TREE) as disk:
            disk.write_at(10, b"new")
            assert disk.read_at(8, 7) == b"\1\1new\1\1"

    def test_only_down_to_the_bottom(self, folder: Path) -> None:
        diskwright.create("upper.qcow2", "qcow2", backing_file="top.qcow2", backing_format="qcow2")
        with Context().open("top.qcow2", writable=True) as image:
            image.write_at(0, b"t" * CLUSTER)  # type: ignore[attr-defined]
        tree = (
            "driver=copy-on-read,bottom=t,file.driver=qcow2,file.file.filename=upper.qcow2,file.backing.driver=qcow2,"
            "file.backing.file.filename=top.qcow2,file.backing.node-name=t"
        )
        with open_tree(tree) as disk:
            assert disk.read_at(0, SIZE)[CLUSTER - 1 : CLUSTER + 1] == b"t\1"
        assert kinds("upper.qcow2") == [(Kind.DATA, CLUSTER, False), (Kind.ABSENT, SIZE - CLUSTER, False)]

    def test_the_bottom_is_a_layer(self, folder: Path) -> None:
        with pytest.raises(InvalidOption, match="Bottom node 'f' is not in the backing chain"):
            open_tree(f"{self.TREE},bottom=f,file.file.node-name=f")

    def test_compressed_copies(self, folder: Path) -> None:
        tree = "driver=copy-on-read,file.driver=compress,file.file.driver=qcow2,file.file.file.filename=top.qcow2"
        with open_tree(tree) as disk:
            disk.read_at(0, 2)
        assert kinds("top.qcow2")[0] == (Kind.ENCODED, CLUSTER, True)


class TestPreallocate:
    TREE = (
        "driver=qcow2,file.driver=preallocate,file.prealloc-size=1M,file.prealloc-align=256k,"
        "file.file.filename=new.qcow2"
    )

    def test_the_file_grows_in_steps_and_is_cut_in_the_end(self, folder: Path) -> None:
        diskwright.create("new.qcow2", "qcow2", 16 << 20)
        path = folder / "new.qcow2"
        before = path.stat().st_size
        with open_tree(self.TREE) as disk:
            assert path.stat().st_size == before
            disk.write_at(0, b"x" * CLUSTER)
            grown = path.stat().st_size
            assert (grown % (256 << 10), grown >= before + CLUSTER + (1 << 20)) == (0, True)
            disk.write_at(CLUSTER, b"y" * CLUSTER)
            disk.flush()
            assert path.stat().st_size == grown
            used = disk.file.size
            assert before < used < before + 5 * CLUSTER
        assert path.stat().st_size == used
        assert not diskwright.check("new.qcow2").corruptions
        assert Context().open("new.qcow2").read_at(CLUSTER - 1, 2) == b"xy"

    def test_zeros_behind_the_end_and_sizes(self, folder: Path) -> None:
        Path("f").write_bytes(b"1" * 10)
        with open_tree(
            "driver=preallocate,prealloc-size=4k,prealloc-align=4k,file.driver=file,file.filename=f"
        ) as disk:
            disk.write_at(10, b"2" * 10)
            disk.write_zeroes(20, 10, unmap=False)
            disk.write_at(25, b"3")
            disk.write_zeroes(24, 3, unmap=False)
            assert (disk.size, Path("f").stat().st_size) == (512, 8192)
            disk.truncate(25)
            assert (disk.size, Path("f").stat().st_size) == (512, 25)  # a disk has whole sectors
            disk.write_at(26, b"4")
        assert Path("f").read_bytes() == b"1" * 10 + b"2" * 10 + bytes(6) + b"4"

    def test_reading_changes_nothing(self, folder: Path) -> None:
        Path("f").write_bytes(b"1" * 10)
        with open_tree("driver=preallocate,file.driver=file,file.filename=f", writable=False) as disk:
            assert disk.read_at(0, 12) == b"1" * 10 + bytes(2)
        assert Path("f").read_bytes() == b"1" * 10


class TestThrottle:
    TREE = "driver=throttle,throttle-group=tg,file.driver=raw,file.file.filename=base.raw"

    def test_requests_wait(self, folder: Path) -> None:
        with open_tree(self.TREE, objects=("throttle-group,id=tg,x-iops-total=20",)) as disk:
            start = time.monotonic()
            for _ in range(5):
                disk.read_at(0, 1)
            disk.write_at(0, b"x")
            disk.write_zeroes(0, 512, unmap=False)
            disk.discard(0, 512)
            disk.flush()
            # Two of them at once, and one more as soon as these are exceeded; the other five 50 ms apart.
            assert time.monotonic() - start >= 0.2

    def test_a_group_is_shared(self, folder: Path) -> None:
        context = Context()
        context.objects.add("throttle-group,id=tg,limits.bps-total=10000")
        with context.open(OptionString(self.TREE)) as one, context.open(OptionString(self.TREE)) as other:
            start = time.monotonic()
            one.read_at(0, 3000)
            other.read_at(0, 1)
            assert time.monotonic() - start >= 0.15

    def test_lower_layers_are_read_through_it(self, folder: Path) -> None:
        tree = "driver=throttle,throttle-group=tg,file.driver=qcow2,file.file.filename=top.qcow2"
        done = _convert(tree, f"x-bps-total={SIZE // 2}")
        assert done >= 0.2
        assert Path("out.raw").read_bytes() == Path("base.raw").read_bytes()

    def test_a_signal_ends_the_waiting(self, folder: Path) -> None:
        command = [sys.executable, "-m", "diskwright", "convert", "--object", "throttle-group,id=tg,x-bps-total=1"]
        command += [
            "--image-opts",
            "-O",
            "raw",
            "driver=throttle,throttle-group=tg,file.driver=file,file.filename=big.raw",
        ]
        Path("big.raw").write_bytes(b"x" * (6 << 20))
        with subprocess.Popen([*command, "out.raw"], stderr=subprocess.PIPE) as process:
            time.sleep(2)
            assert process.poll() is None
            process.send_signal(signal.SIGINT)
            start = time.monotonic()
            process.communicate(timeout=30)
            assert time.monotonic() - start < 5
        assert process.returncode
        assert not os.path.exists("out.raw")


def _convert(tree: str, limit: str) -> float:
    """Convert a tree in two parts of a cell each; the seconds that it took inside the library."""
    from diskwright.engine.convert import ConvertRequest, convert

    context = Context()
    context.objects.add(f"throttle-group,id=tg,{limit}")
    with context.open(OptionString(tree)) as image:
        image.read_at(0, SIZE // 3)
    start = time.monotonic()
    convert(context, ConvertRequest([OptionString(tree)], "out.raw"))
    return time.monotonic() - start
