"""Image locks: the bytes of QEMU, against ourselves and against the real QEMU."""

import itertools
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from diskwright.errors import LockConflict
from diskwright.hookspecs import ProtocolOptions
from diskwright.node import Permission
from diskwright.testing import qemu_img
from diskwright_file.node import FileNode
from diskwright_file.plugin import FileDriver

READ, WRITE, RESIZE, ALL = Permission.CONSISTENT_READ, Permission.WRITE, Permission.RESIZE, Permission.ALL
UNSHARED = ALL & ~(WRITE | RESIZE)
READER, WRITER = (READ, UNSHARED), (READ | WRITE | RESIZE, UNSHARED)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "image"
    path.write_bytes(bytes(4096))
    return path


def opened(path: Path, **values: str) -> FileNode:
    node = FileDriver().open(str(path), ProtocolOptions(writable=True, values=values))
    assert isinstance(node, FileNode)
    return node


def held_bytes(path: Path) -> set[int]:
    """The lock bytes on a file, as the kernel lists them."""
    inode = path.stat().st_ino
    found: set[int] = set()
    for line in Path("/proc/locks").read_text().splitlines():
        fields = line.split()
        if fields[1] == "OFDLCK" and fields[5].endswith(f":{inode}"):
            found |= set(range(int(fields[6]), int(fields[7]) + 1))
    return found


def test_bytes_are_those_of_qemu(path: Path) -> None:
    with opened(path) as node:
        for permissions, expected in (
            (READER, {100, 201, 203}),
            (WRITER, {100, 101, 103, 201, 203}),
            ((READ | WRITE, ALL), {100, 101}),
            ((Permission(0), UNSHARED), {201, 203}),
            ((Permission(0), ALL), set()),
        ):
            node.set_permissions(*permissions)
            assert held_bytes(path) == expected
        node.set_permissions(*WRITER)
    assert held_bytes(path) == set()


def test_each_pair_of_uses(path: Path) -> None:
    """Two openers get along exactly if each shares what the other uses."""
    uses = [(used, shared) for used in (READ, READ | WRITE, WRITE | RESIZE) for shared in (ALL, UNSHARED)]
    with opened(path) as a, opened(path) as b:
        for (first, first_shares), (second, second_shares) in itertools.product(uses, uses):
            a.set_permissions(first, first_shares)
            if not first & ~second_shares and not second & ~first_shares:
                b.set_permissions(second, second_shares)
            else:
                before = held_bytes(path)
                with pytest.raises(LockConflict):
                    b.set_permissions(second, second_shares)
                assert held_bytes(path) == before
            for node in (b, a):
                node.set_permissions(Permission(0), ALL)


def test_a_refused_change_keeps_the_former_locks(path: Path) -> None:
    with opened(path) as a, opened(path) as b:
        a.set_permissions(*READER)
        b.set_permissions(*READER)
        with pytest.raises(LockConflict, match='^Failed to get "write" lock$'):
            b.set_permissions(*WRITER)
        a.set_permissions(Permission(0), ALL)
        assert held_bytes(path) == {100, 201, 203}


def test_messages(path: Path) -> None:
    with opened(path) as a, opened(path) as b:
        a.set_permissions(READ | WRITE, ALL)
        with pytest.raises(LockConflict, match='^Failed to get shared "write" lock$') as caught:
            b.set_permissions(*READER)
        assert caught.value.hint == f"Is another process using the image [{path}]?"


def test_locking_can_be_turned_off(path: Path) -> None:
    with opened(path) as a, opened(path, locking="off") as b:
        a.set_permissions(*WRITER)
        b.set_permissions(*WRITER)


@pytest.fixture
def running_qemu(path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """QEMU's own code with the image open for writing, as a running machine has it."""
    program = shutil.which("qemu-io")
    if program is None:
        pytest.skip("qemu-io is not installed")
    qemu_img("create", "-q", "-f", "qcow2", path, "1M")
    process = subprocess.Popen([program, "-f", "qcow2", path], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 20
    while held_bytes(path) != {100, 101, 103, 201, 203} and time.monotonic() < deadline:
        time.sleep(0.02)
    yield process
    assert process.stdin is not None
    process.stdin.close()
    process.wait(20)


@pytest.mark.usefixtures("running_qemu")
def test_a_running_qemu_keeps_us_out(path: Path) -> None:
    assert held_bytes(path) == {100, 101, 103, 201, 203}
    with opened(path) as node:
        for permissions in (READER, WRITER):
            with pytest.raises(LockConflict):
                node.set_permissions(*permissions)
        node.set_permissions(READ, ALL)


def test_we_keep_qemu_out(path: Path) -> None:
    qemu_img("create", "-q", "-f", "qcow2", path, "1M")
    with opened(path) as node:
        node.set_permissions(*WRITER)
        refused = qemu_img("info", path, check=False)
        assert refused.returncode == 1
        assert 'Failed to get shared "write" lock' in refused.stderr
        assert qemu_img("info", "-U", path).returncode == 0
        before = path.read_bytes()
        assert qemu_img("create", "-f", "raw", path, "2M", check=False).returncode == 1
        assert path.read_bytes() == before


def test_locks_end_with_the_file(path: Path) -> None:
    node = opened(path)
    node.set_permissions(*WRITER)
    duplicate = os.dup(node.fileno())
    node.close()
    assert held_bytes(path) != set()
    os.close(duplicate)
    assert held_bytes(path) == set()
