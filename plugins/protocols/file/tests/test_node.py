"""Files as nodes: reading, writing, sizes, holes, and what is refused."""

import os
import random
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from diskwright.errors import InvalidOption, NodeIOError
from diskwright.extent import Extent, Kind
from diskwright.hookspecs import ProtocolOptions
from diskwright_file import direct
from diskwright_file import node as node_module
from diskwright_file.direct import DirectIO
from diskwright_file.node import FileNode
from diskwright_file.plugin import FileDriver, HostDeviceDriver
from diskwright_file.sparse import file_system


def opened(path: Path | str, driver: FileDriver | None = None, **options: object) -> FileNode:
    driver = driver or FileDriver()
    node = driver.open(str(path), ProtocolOptions(**options))  # type: ignore[arg-type]
    assert isinstance(node, FileNode)
    node.bind("file", driver.block_status)
    return node


def kinds(node: FileNode, offset: int = 0, length: int | None = None) -> list[tuple[int, int, Kind]]:
    extents = [item for item in node.extents(offset, length) if isinstance(item, Extent)]
    assert all(extent.node is node and extent.node_offset == extent.offset for extent in extents)
    return [(extent.offset, extent.length, extent.kind) for extent in extents]


@pytest.fixture
def sparse_file(tmp_path: Path) -> Path:
    """1 MiB: data in the second and the last 64 KiB; skips where the file system has no holes."""
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        for offset in (65536, 15 * 65536):
            file.seek(offset)
            file.write(b"d" * 65536)
    with path.open("rb") as file:
        if os.lseek(file.fileno(), 0, os.SEEK_DATA) == 0:
            pytest.skip("the file system has no holes")
    return path


def test_reads_behind_the_end_are_zeros(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"0123456789")
    with opened(path) as node:
        assert node.size == 10
        assert node.read_at(8, 6) == b"89\0\0\0\0"
        assert node.read_at(100, 3) == b"\0\0\0"
        assert node.read_at(3, 0) == b""


def test_partial_transfers_are_invisible(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    preadv, pwrite = os.preadv, os.pwrite
    monkeypatch.setattr(node_module.os, "preadv", lambda fd, views, offset: preadv(fd, [views[0][:7]], offset))
    monkeypatch.setattr(node_module.os, "pwrite", lambda fd, data, offset: pwrite(fd, data[:5], offset))
    path = tmp_path / "f"
    path.touch()
    content = bytes(range(100))
    with opened(path, writable=True) as node:
        node.write_at(3, content)  # type: ignore[attr-defined]
        assert node.read_at(0, 103) == b"\0\0\0" + content


def test_missing_file_and_missing_permission(tmp_path: Path) -> None:
    with pytest.raises(NodeIOError, match="^Could not open '.*missing': No such file or directory$"):
        opened(tmp_path / "missing")
    with pytest.raises(NodeIOError, match="Invalid argument"):
        opened("a\0b")


def test_only_files_are_files(tmp_path: Path) -> None:
    fifo, sock = tmp_path / "fifo", tmp_path / "sock"
    os.mkfifo(fifo)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(sock))
        for path in (tmp_path, fifo, sock, Path("/dev/null")):
            with pytest.raises(InvalidOption, match=f"^'file' driver requires '{path}' to be a regular file$"):
                opened(path)


def test_only_devices_are_host_devices(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.touch()
    with pytest.raises(InvalidOption, match="^'host_device' driver requires '.*' to be either a character or block"):
        opened(path, HostDeviceDriver())
    with opened("/dev/null", HostDeviceDriver()) as node:
        assert node.size == 0
        assert not node.new_reads_zero()


def test_identity_goes_through_links(tmp_path: Path) -> None:
    path, link, other = tmp_path / "f", tmp_path / "l", tmp_path / "o"
    path.touch()
    other.touch()
    link.symlink_to(path)
    with opened(path) as a, opened(link) as b, opened(other) as c:
        assert a.identity() == b.identity()
        assert a.identity() != c.identity()


def test_holes_are_mapped(sparse_file: Path) -> None:
    with opened(sparse_file) as node:
        assert kinds(node) == [
            (0, 65536, Kind.ZERO),
            (65536, 65536, Kind.DATA),
            (131072, 13 * 65536, Kind.ZERO),
            (15 * 65536, 65536, Kind.DATA),
        ]
        assert kinds(node, 70000, 100) == [(70000, 100, Kind.DATA)]
        assert kinds(node, 131000, 1000) == [(131000, 72, Kind.DATA), (131072, 928, Kind.ZERO)]
        assert node.allocated_size() == 2 * 65536


def test_trailing_hole(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"x" * 65536)
    os.truncate(path, 1 << 40)
    with opened(path) as node:
        assert kinds(node)[-1] == (65536, (1 << 40) - 65536, Kind.ZERO)


def test_everything_is_data_where_the_system_cannot_tell(sparse_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise OSError(22, "Invalid argument")

    with opened(sparse_file) as node:
        monkeypatch.setattr(os, "lseek", refuse)
        assert kinds(node) == [(0, 1 << 20, Kind.DATA)]


@pytest.mark.parametrize("unmap", [True, False])
@pytest.mark.parametrize("supported", [True, False])
def test_write_zeroes(sparse_file: Path, monkeypatch: pytest.MonkeyPatch, unmap: bool, supported: bool) -> None:
    if not supported:
        monkeypatch.setattr(node_module, "fallocate", lambda *_: False)
    with opened(sparse_file, writable=True) as node:
        expected = bytearray(node.read_at(0, node.size))
        for offset, length in ((70000, 10), (65536, 4096), (15 * 65536 + 1, 2_000_000)):
            expected[offset : offset + length] = bytes(length)
            node.write_zeroes(offset, length, unmap=unmap)
        assert node.size == 15 * 65536 + 1 + 2_000_000
        assert node.read_at(0, node.size) == expected


@pytest.mark.parametrize("answer", [True, False, OSError(28, "No space left on device")])
def test_ext4_is_asked_for_the_space_of_large_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: bool | OSError
) -> None:
    """Whatever it answers, the write goes on, and the file ends where that ends."""
    asked: list[tuple[int, ...]] = []

    def fallocate(fd: int, *arguments: int) -> bool:
        asked.append(arguments)
        if isinstance(answer, OSError):
            raise answer
        return answer

    monkeypatch.setattr(node_module, "fallocate", fallocate)
    monkeypatch.setattr(node_module, "file_system", lambda fd: node_module.EXT4)
    (tmp_path / "file").write_bytes(b"")
    data = random.Random(1).randbytes(node_module.RESERVED_FROM)
    with opened(tmp_path / "file", writable=True) as node:
        node.write_at(0, data[1:])
        assert not asked
        node.write_at(4096, data)
        node.write_at(0, data)
    assert asked == [(node_module.KEEP_SIZE, at, len(data)) for at in (4096, 0)[: 2 if answer is True else 1]]
    assert (tmp_path / "file").read_bytes() == data + data[-4096:]


def test_other_file_systems_are_not_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_module, "fallocate", None)
    monkeypatch.setattr(node_module, "file_system", lambda fd: 0x01021994)
    (tmp_path / "file").write_bytes(b"")
    with opened(tmp_path / "file", writable=True) as node:
        node.write_at(0, bytes(node_module.RESERVED_FROM))
    assert (tmp_path / "file").stat().st_size == node_module.RESERVED_FROM


def test_the_file_system_is_known_by_its_number(tmp_path: Path) -> None:
    """As stat(1) tells it."""
    (tmp_path / "file").touch()
    told = subprocess.run(["stat", "-f", "-c", "%t", tmp_path], capture_output=True, text=True, check=True)
    with opened(tmp_path / "file") as node:
        assert file_system(node.fileno()) == int(told.stdout, 16)


def test_discard_frees_space(sparse_file: Path) -> None:
    with opened(sparse_file, writable=True) as node:
        before = node.allocated_size()
        node.discard(65536, 65536)
        assert node.size == 1 << 20
        assert node.read_at(65536, 65536) == bytes(65536)
        assert (node.allocated_size() or 0) < (before or 0)


def test_truncate_with_each_preallocation(tmp_path: Path) -> None:
    for mode in ("off", "falloc", "full"):
        path = tmp_path / mode
        path.touch()
        with opened(path, writable=True) as node:
            node.truncate(1 << 20, mode)
            assert node.size == 1 << 20
            assert node.read_at(0, 1 << 20) == bytes(1 << 20)
            # The first block is there in any case: QEMU finds out the alignment on it.
            assert node.allocated_size() == (4096 if mode == "off" else 1 << 20)
            node.truncate(1000)
            assert node.size == 1000


def test_truncate_refuses(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"x" * 1000)
    with opened(path, writable=True) as node:
        with pytest.raises(InvalidOption, match="^Unsupported preallocation mode: metadata$"):
            node.truncate(2000, "metadata")
        with pytest.raises(InvalidOption, match="shrinking"):
            node.truncate(500, "falloc")
    assert path.stat().st_size == 1000


@pytest.mark.parametrize(("mode", "call"), [("falloc", "posix_fallocate"), ("full", "pwrite"), ("full", "fsync")])
def test_failed_truncate_restores_the_length(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str, call: str
) -> None:
    def fail(*_: object) -> int:
        raise OSError(28, "No space left on device")

    path = tmp_path / "f"
    path.write_bytes(b"x" * 1000)
    with opened(path, writable=True) as node:
        monkeypatch.setattr(node_module.os, call, fail)
        with pytest.raises(NodeIOError, match="^Could not .*: No space left on device$"):
            node.truncate(1 << 20, mode)
        assert path.read_bytes() == b"x" * 1000


def test_a_failed_flush_fails_for_good(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "f"
    path.touch()
    answers: list[Callable[[], None]] = [lambda: None]

    def fail_once(_: int) -> None:
        if answers:
            answers.pop()
            raise OSError(5, "Input/output error")

    monkeypatch.setattr(node_module.os, "fdatasync", fail_once)
    with opened(path, writable=True) as node:
        for _ in range(2):
            with pytest.raises(NodeIOError, match="Input/output error$"):
                node.flush()
    with opened(path, writable=True, cache="unsafe") as node:
        node.flush()


def test_cache_modes(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.touch()
    with opened(path, writable=True, cache="writethrough") as node:
        node.write_at(0, b"abc")
        node.write_zeroes(1, 1, unmap=True)
    assert path.read_bytes() == b"a\0c"
    with pytest.raises(InvalidOption, match="^Invalid cache option: fast$"):
        opened(path, cache="fast")


def test_closing_twice_is_harmless(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.touch()
    node = opened(path)
    node.close()
    node.close()


def test_direct_io(tmp_path: Path) -> None:
    """Any alignment of offset and length, against a plain array of bytes; the file gets no longer than it should."""
    path = tmp_path / "f"
    path.write_bytes(b"x" * 5000)
    model = bytearray(b"x" * 5000)
    try:
        node = opened(path, writable=True, cache="directsync")
    except InvalidOption as error:
        assert str(error) == "filesystem does not support O_DIRECT"  # noqa: PT017
        pytest.skip("the file system has no direct I/O")
    chance = random.Random(0)
    for _ in range(60):
        offset, length = chance.randrange(3_000_000), chance.choice((1, 512, 4096, 5000, 2_500_000))
        data = chance.randbytes(length)
        model.extend(bytes(max(0, offset + length - len(model))))
        model[offset : offset + length] = data
        node.write_at(offset, data)
        start = chance.randrange(len(model))
        assert node.read_at(start, 70_000) == model[start : start + 70_000].ljust(70_000, b"\0")
    assert node.size == len(model)
    assert path.read_bytes() == model
    node.close()


@pytest.mark.parametrize("alignment", direct.ALIGNMENTS)
def test_direct_io_finds_the_block_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, alignment: int) -> None:
    """Where the system does not take small blocks, large ones are used."""
    preadv, pwrite = os.preadv, os.pwrite
    path = tmp_path / "f"
    path.write_bytes(b"x" * 10_000)
    with path.open("r+b", buffering=0) as file, monkeypatch.context() as patch:
        second = os.dup(file.fileno())
        patch.setattr(direct.os, "open", lambda *_: second)

        def require(fd: int, offset: int, length: int) -> None:
            if fd == second and (offset % alignment or length % alignment):
                raise OSError(22, "Invalid argument")

        def strict_preadv(fd: int, views: list[memoryview], offset: int) -> int:
            require(fd, offset, len(views[0]))
            return preadv(fd, views, offset)

        def strict_pwrite(fd: int, data: memoryview, offset: int) -> int:
            require(fd, offset, len(data))
            return pwrite(fd, data, offset)

        patch.setattr(direct.os, "preadv", strict_preadv)
        patch.setattr(direct.os, "pwrite", strict_pwrite)
        io = direct.DirectIO(file.fileno(), os.O_RDWR)
        io.write(700, memoryview(b"y" * 5000))
        found = bytearray(9000)
        io.read(300, memoryview(found))
        assert found == b"x" * 400 + b"y" * 5000 + b"x" * 3600
        io.close()


def test_file_system_without_direct_io(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "f"
    path.touch()

    def refuse(*_: object) -> int:
        raise OSError(22, "Invalid argument")

    descriptors = len(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(DirectIO, "__init__", refuse)
    with pytest.raises(NodeIOError):
        opened(path, cache="none")
    with pytest.raises(NodeIOError):
        FileDriver().create(str(tmp_path / "new"), ProtocolOptions(writable=True, cache="none"))
    assert os.listdir(tmp_path) == ["f"]
    assert len(os.listdir("/proc/self/fd")) == descriptors
