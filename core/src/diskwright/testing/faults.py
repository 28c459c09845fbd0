"""System calls that change files, seen one by one: to let one of them fail, and to cut the power after any of them.

:class:`SystemCalls` watches the files of one folder while an operation runs in this process. What it has noted can be
replayed by :func:`after_crash` up to any instant, with any part of what was not made durable lost.
"""

from __future__ import annotations

import ctypes
import os
import random
import threading
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any
from unittest import mock

SECTOR = 512
"""Bytes that a disk writes whole or not at all."""
_KEEP_SIZE = 0x01


class Kind(Enum):
    """What a call does."""

    CREATE = "create"
    WRITE = "write"
    ZERO = "zero"
    TRUNCATE = "truncate"
    FLUSH = "flush"
    RENAME = "rename"
    UNLINK = "unlink"


NAMING = frozenset({Kind.CREATE, Kind.RENAME, Kind.UNLINK})
"""Calls that change the folder rather than a file."""


@dataclass(frozen=True)
class Call:
    """One call.

    :ivar inode: of the file.
    :ivar name: of the file in the folder, for :data:`NAMING`.
    :ivar target: the new name, of a renamed file.
    :ivar offset: bytes; of a truncation the new size.
    :ivar length: bytes to be made zeros; nothing behind the end of the file.
    """

    kind: Kind
    inode: int
    name: str = ""
    target: str = ""
    offset: int = 0
    length: int = 0
    data: bytes = b""


Fault = Callable[[Call], int | None]
"""Called before each call. It may raise an :class:`OSError`, or return how many bytes of a write get through."""


class SystemCalls(AbstractContextManager["SystemCalls"]):
    """Watches the calls of this process, all its threads, that change files of a folder.

    :param folder: files outside of it, or in folders below, are left alone.
    :param fault: see :data:`Fault`; the calls that it lets fail are not noted.
    :ivar log: the calls that succeeded, in order.
    """

    def __init__(self, folder: Path, fault: Fault | None = None) -> None:
        self.folder = os.path.realpath(folder)
        self.log: list[Call] = []
        self._fault = fault
        self._lock = threading.Lock()
        self._patches: list[Any] = []
        self._real: dict[str, Callable[..., Any]] = {}

    def __enter__(self) -> SystemCalls:
        for name, replacement in self._replacements().items():
            self._real[name] = getattr(os, name)
            self._patches.append(mock.patch.object(os, name, replacement))
        try:
            from diskwright_file import sparse  # it calls libc itself
        except ImportError:
            pass
        else:
            self._real["fallocate"] = sparse._fallocate() or _nothing_to_call
            self._patches.append(mock.patch.object(sparse, "_fallocate", return_value=self._fallocate))
        for patch in self._patches:
            patch.start()
        return self

    def __exit__(self, *exc: object) -> None:
        for patch in self._patches:
            patch.stop()
        self._patches.clear()

    def _replacements(self) -> dict[str, Callable[..., Any]]:
        return {
            "open": self._open,
            "pwrite": self._pwrite,
            "ftruncate": self._ftruncate,
            "posix_fallocate": self._posix_fallocate,
            "copy_file_range": self._copy_file_range,
            "fsync": lambda fd: self._flush("fsync", fd),
            "fdatasync": lambda fd: self._flush("fdatasync", fd),
            "replace": self._replace,
            "rename": self._replace,
            "unlink": self._unlink,
        }

    def _inode(self, fd: int) -> int:
        """The inode of a watched file, 0 for others."""
        path = os.readlink(f"/proc/self/fd/{fd}")
        return os.fstat(fd).st_ino if os.path.dirname(path.removesuffix(" (deleted)")) == self.folder else 0

    def _watched(self, path: Any) -> bool:
        return os.path.dirname(os.path.realpath(os.fsdecode(path))) == self.folder

    def _do(self, call: Call, really: Callable[[Call], Any]) -> Any:
        """Let the call fail or succeed, and note it if it did."""
        with self._lock:
            accepted = self._fault(call) if self._fault is not None else None
            if accepted is not None and call.kind is Kind.WRITE:
                call = Call(call.kind, call.inode, offset=call.offset, data=call.data[:accepted])
            result = really(call)
            self.log.append(call)
            return result

    def _open(self, path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        real = self._real["open"]
        if not flags & os.O_CREAT or dir_fd is not None or not self._watched(path) or os.path.lexists(path):
            return int(real(path, flags, mode, dir_fd=dir_fd))
        fds: list[int] = []
        call = Call(Kind.CREATE, 0, name=os.path.basename(os.fsdecode(path)))
        self._do(call, lambda _: fds.append(real(path, flags, mode)))
        self.log[-1] = Call(Kind.CREATE, os.fstat(fds[0]).st_ino, name=call.name)
        return fds[0]

    def _pwrite(self, fd: int, data: Any, offset: int) -> int:
        real = self._real["pwrite"]
        inode = self._inode(fd)
        if not inode:
            return int(real(fd, data, offset))
        call = Call(Kind.WRITE, inode, offset=offset, data=bytes(memoryview(data).cast("B")))
        return int(self._do(call, lambda call: real(fd, call.data, offset)))

    def _ftruncate(self, fd: int, size: int) -> None:
        inode = self._inode(fd)
        if inode:
            self._do(Call(Kind.TRUNCATE, inode, offset=size), lambda _: self._real["ftruncate"](fd, size))
        else:
            self._real["ftruncate"](fd, size)

    def _posix_fallocate(self, fd: int, offset: int, length: int) -> None:
        inode = self._inode(fd)
        size = max(os.fstat(fd).st_size, offset + length)
        if inode:
            call = Call(Kind.TRUNCATE, inode, offset=size)
            self._do(call, lambda _: self._real["posix_fallocate"](fd, offset, length))
        else:
            self._real["posix_fallocate"](fd, offset, length)

    def _copy_file_range(
        self, source: int, target: int, count: int, source_offset: int | None = None, target_offset: int | None = None
    ) -> int:
        inode = self._inode(target)
        real = self._real["copy_file_range"]
        if not inode or source_offset is None or target_offset is None:
            return int(real(source, target, count, source_offset, target_offset))
        call = Call(Kind.WRITE, inode, offset=target_offset, data=os.pread(source, count, source_offset))
        return int(self._do(call, lambda call: real(source, target, len(call.data), source_offset, target_offset)))

    def _fallocate(self, fd: int, mode: int, offset: int, length: int) -> int:
        """As the C function: 0, or -1 and an error number."""
        real = self._real["fallocate"]
        inode = self._inode(fd)
        if not inode:
            return int(real(fd, mode, offset, length))

        def run(_: Call) -> None:
            if real(fd, mode, offset, length):
                code = ctypes.get_errno()
                raise OSError(code, os.strerror(code))

        try:
            if not mode & _KEEP_SIZE and os.fstat(fd).st_size < offset + length:
                self._ftruncate(fd, offset + length)
            self._do(Call(Kind.ZERO, inode, offset=offset, length=length), run)
        except OSError as error:
            ctypes.set_errno(error.errno or 0)
            return -1
        return 0

    def _flush(self, name: str, fd: int) -> None:
        inode = self._inode(fd)
        if inode:
            self._do(Call(Kind.FLUSH, inode), lambda _: self._real[name](fd))
        else:
            self._real[name](fd)

    def _replace(self, source: Any, target: Any, **folders: Any) -> None:
        if folders or not self._watched(target):
            self._real["replace"](source, target, **folders)
            return
        inode = os.stat(source).st_ino
        names = os.path.basename(os.fsdecode(source)), os.path.basename(os.fsdecode(target))
        call = Call(Kind.RENAME, inode, name=names[0], target=names[1])
        self._do(call, lambda _: self._real["replace"](source, target))

    def _unlink(self, path: Any, **folders: Any) -> None:
        if folders or not self._watched(path):
            self._real["unlink"](path, **folders)
            return
        call = Call(Kind.UNLINK, os.lstat(path).st_ino, name=os.path.basename(os.fsdecode(path)))
        self._do(call, lambda _: self._real["unlink"](path))


def _nothing_to_call(*_: object) -> int:
    ctypes.set_errno(38)
    return -1


def fail_nth(
    number: int, code: int, kinds: Iterable[Kind] = tuple(Kind), *, lasting: bool = False
) -> tuple[Fault, Callable[[], bool]]:
    """A fault: the n-th call of these kinds, counted from 1, fails; and a function that tells whether it has come.

    :param code: of the error, e.g. ``errno.ENOSPC``.
    :param lasting: whether all later calls of these kinds fail too, as on a disk that is full.
    """
    wanted, seen = frozenset(kinds), 0

    def fault(call: Call) -> None:
        nonlocal seen
        if call.kind in wanted:
            seen += 1
            if seen == number or (lasting and seen > number):
                raise OSError(code, os.strerror(code))

    return fault, lambda: seen >= number


@dataclass
class Folder:
    """The files of a folder.

    :ivar names: inode of each name.
    :ivar files: content of each inode.
    """

    names: dict[str, int] = field(default_factory=dict)
    files: dict[int, bytes] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> Folder:
        """What stands in a folder."""
        found = cls()
        for file in path.iterdir():
            if file.is_file():
                found.names[file.name] = file.stat().st_ino
                found.files[file.stat().st_ino] = file.read_bytes()
        return found

    def write(self, path: Path) -> None:
        """Let a folder have these files and no others; those that are there already are written in place."""
        path.mkdir(exist_ok=True)
        for old in path.iterdir():
            if old.name not in self.names:
                old.unlink()
        for name, inode in self.names.items():
            (path / name).write_bytes(self.files[inode])


class Loss(Enum):
    """What is lost in a crash of what was not made durable."""

    NOTHING = "nothing"
    """the process is killed, the system lives on"""
    ALL = "all"
    CALLS = "calls"
    """any of the calls, all the later ones perhaps not"""
    SECTORS = "sectors"
    """any sectors of any writes"""


def after_crash(start: Folder, log: list[Call], count: int, loss: Loss, chance: random.Random) -> Folder:
    """The folder after a crash behind the first ``count`` calls.

    A flush makes the earlier calls on its file durable. Names change in order, and are never ahead of a flush.
    """
    durable = {call.inode: index for index, call in enumerate(log[:count]) if call.kind is Kind.FLUSH}
    naming = [index for index, call in enumerate(log[:count]) if call.kind in NAMING]
    named_until = count
    if naming and loss is not Loss.NOTHING and naming[-1] >= max(durable.values(), default=-1):
        named_until = chance.choice((naming[-1], count))
    names, files = dict(start.names), {inode: bytearray(data) for inode, data in start.files.items()}
    for index, call in enumerate(log[:count]):
        if call.kind in NAMING:
            if index < named_until:
                _apply_name(names, call)
            files.setdefault(call.inode, bytearray())
        elif loss is Loss.NOTHING or index <= durable.get(call.inode, -1):
            _apply(files.setdefault(call.inode, bytearray()), call)
        elif loss is Loss.SECTORS and call.kind is Kind.WRITE:
            _tear(files.setdefault(call.inode, bytearray()), call, chance)
        elif loss is not Loss.ALL and chance.random() < 0.5:
            _apply(files.setdefault(call.inode, bytearray()), call)
    return Folder(names, {inode: bytes(files.get(inode, b"")) for inode in names.values()})


def _apply_name(names: dict[str, int], call: Call) -> None:
    if call.kind is Kind.CREATE:
        names[call.name] = call.inode
    else:
        inode = names.pop(call.name, call.inode)
        if call.kind is Kind.RENAME:
            names[call.target] = inode


def _apply(data: bytearray, call: Call) -> None:
    if call.kind is Kind.WRITE:
        _write(data, call.offset, call.data)
    elif call.kind is Kind.TRUNCATE:
        del data[call.offset :]
        data.extend(bytes(call.offset - len(data)))
    elif call.kind is Kind.ZERO:
        end = min(call.offset + call.length, len(data))
        if call.offset < end:
            data[call.offset : end] = bytes(end - call.offset)


def _write(data: bytearray, offset: int, part: bytes) -> None:
    if len(data) < offset:
        data.extend(bytes(offset - len(data)))
    data[offset : offset + len(part)] = part


def _tear(data: bytearray, call: Call, chance: random.Random) -> None:
    """Apply any of the sectors of a write."""
    position, end = 0, len(call.data)
    while position < end:
        stop = min(end, position + SECTOR - (call.offset + position) % SECTOR)
        if chance.random() < 0.5:
            _write(data, call.offset + position, call.data[position:stop])
        position = stop
