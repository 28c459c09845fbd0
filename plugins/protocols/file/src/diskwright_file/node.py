"""A file or device as a node."""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections.abc import Hashable
from typing import TYPE_CHECKING

from diskwright.errors import InvalidOption, NodeIOError, io_error
from diskwright.facts import Limits
from diskwright.hookspecs import ProtocolOptions
from diskwright.node import Buffer, Bytes, Node, Permission
from diskwright.zeroing import write_zero_bytes

from .locks import ImageLocks
from .sparse import EXT4, KEEP_SIZE, PUNCH_HOLE, UNSUPPORTED, ZERO_RANGE, fallocate, file_system

if TYPE_CHECKING:
    from .direct import DirectIO

FIRST_BLOCK = 4096
RESERVED_FROM = 256 << 10
"""Bytes from which on space for a write is asked for at once, where that pays."""
WRITE_THROUGH = ("writethrough", "directsync")
"""Cache modes in which a write is on disk when it returns."""
DIRECT = ("none", "directsync", "direct-unsafe")
"""Cache modes past the page cache."""
NEVER_FLUSHED = ("unsafe", "direct-unsafe")
"""Cache modes in which nothing is forced to disk."""


def open_flags(options: ProtocolOptions) -> int:
    """Flags of open(2) for an access and cache mode; opening never waits, whatever the name turns out to be.

    :raises InvalidOption: a cache mode that is not known here.
    """
    flags = os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY | (os.O_RDWR if options.writable else os.O_RDONLY)
    if options.cache not in ("writeback", *WRITE_THROUGH, *DIRECT, *NEVER_FLUSHED):
        raise InvalidOption(f"Invalid cache option: {options.cache}")
    return flags | (os.O_DSYNC if options.cache in WRITE_THROUGH else 0)


def open_existing(
    filename: str, options: ProtocolOptions, *, regular_files: bool = True, character_devices: bool = False
) -> int:
    """Open what exists under a name, if it is of a kind that holds an image.

    :raises NodeIOError: the system refuses.
    :raises InvalidOption: it is a directory, FIFO, socket or another thing that is not asked for.
    """
    if not filename:
        raise InvalidOption("The 'file' block driver requires a file name")
    flags = open_flags(options)
    # Opening alone has effects on some devices and on FIFOs, so the kind is looked at before, and for sure after.
    status = status_of(filename)
    if options.writable and stat.S_ISDIR(status.st_mode):
        raise io_error(f"Could not open '{filename}'", errno.EISDIR)
    _require_kind(filename, status, regular_files, character_devices)
    try:
        fd = os.open(filename, flags)
    except OSError as error:
        raise NodeIOError(f"Could not open '{filename}'", error) from None
    try:
        _require_kind(filename, os.fstat(fd), regular_files, character_devices)
    except BaseException:
        os.close(fd)
        raise
    return fd


def status_of(filename: str, verb: str = "open") -> os.stat_result:
    """What stands under a name.

    :raises NodeIOError: nothing, or the name is no name.
    """
    try:
        return os.stat(filename)
    except OSError as error:
        raise NodeIOError(f"Could not {verb} '{filename}'", error) from None
    except ValueError:  # a NUL byte
        cause = OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        raise NodeIOError(f"Could not {verb} '{filename}'", cause) from None


def _require_kind(filename: str, status: os.stat_result, regular_files: bool, character_devices: bool) -> None:
    mode = status.st_mode
    if stat.S_ISBLK(mode) or (regular_files and stat.S_ISREG(mode)) or (character_devices and stat.S_ISCHR(mode)):
        return
    if regular_files:
        raise InvalidOption(f"'file' driver requires '{filename}' to be a regular file")
    raise InvalidOption(f"'host_device' driver requires '{filename}' to be either a character or block device")


class FileNode(Node):
    """An open regular file, block or character device.

    :param fd: open file descriptor; the node owns it from now on.
    :param filename: the name the user gave.
    :param options: what it was opened with.
    """

    def __init__(self, fd: int, filename: str, options: ProtocolOptions) -> None:
        self._fd = fd
        self.filename = filename
        self.read_only = not options.writable
        self._regular = stat.S_ISREG(os.fstat(fd).st_mode)
        self._write_through = options.cache in WRITE_THROUGH
        self._ignore_flush = options.cache in NEVER_FLUSHED
        self._flush_error: OSError | None = None
        # Set after each change and taken back before each flush: what a flush may have missed is not forgotten.
        self._unflushed = True
        self._lent = False
        self._locks = None if options.values.get("locking") == "off" else ImageLocks(fd, filename)
        self._direct: DirectIO | None = None
        self.one_at_a_time = self._regular
        self._writing = threading.Lock()
        self._reserves: bool | None = None

    def go_direct(self) -> None:
        """From now on, move data past the page cache.

        :raises InvalidOption: the file system cannot.
        """
        from .direct import DirectIO

        self.one_at_a_time = False
        access = os.O_RDONLY if self.read_only else os.O_RDWR
        try:
            self._direct = DirectIO(self._fd, access | (os.O_DSYNC if self._write_through else 0))
        except OSError as error:
            raise NodeIOError(f"Could not open '{self.filename}'", error) from None

    def fileno(self, *, writing: bool = True) -> int:
        """The file descriptor, for system calls that move data between descriptors; the node keeps owning it.

        :param writing: whether the file may be changed through it.
        """
        self._lent |= writing
        return self._fd

    @property
    def size(self) -> int:
        """Bytes, as the system says at this moment."""
        if self._regular:
            return os.fstat(self._fd).st_size
        try:
            return os.lseek(self._fd, 0, os.SEEK_END)
        except OSError as error:
            if error.errno == errno.ESPIPE:
                return 0
            raise NodeIOError(f"Could not get size of '{self.filename}'", error) from None

    def allocated_size(self) -> int | None:
        """Bytes that the file takes on its file system."""
        return os.fstat(self._fd).st_blocks * 512

    def own_limits(self) -> Limits:
        """Past the page cache, whole blocks from aligned memory."""
        block = 1 if self._direct is None else self._direct.find_alignment()
        return Limits(request_alignment=block, min_mem_alignment=block)

    def identity(self) -> Hashable:
        """Device and inode, or the device number of a device node."""
        status = os.fstat(self._fd)
        return (status.st_dev, status.st_ino) if self._regular else ("device", status.st_rdev)

    def new_reads_zero(self) -> bool:
        """Files grow by zeros; a device has what was there before."""
        return self._regular

    def read_into(self, offset: int, buffer: Buffer) -> None:
        """Fill the buffer; zeros behind the end of the file."""
        view = memoryview(buffer).cast("B")
        try:
            if self._direct is not None:
                self._direct.read(offset, view)
                return
            while len(view):
                count = os.preadv(self._fd, [view], offset)
                if not count:
                    view[:] = bytes(len(view))
                    return
                view = view[count:]
                offset += count
        except OSError as error:
            raise NodeIOError(f"Could not read '{self.filename}'", error) from None

    def write_at(self, offset: int, data: Bytes) -> None:
        """Write all of the data, however many calls the system takes for it."""
        view = memoryview(data).cast("B")
        try:
            if self._direct is not None:
                self._direct.write(offset, view)
                return
            # The system lets one thread at a time write to a file; the others would spin meanwhile instead of sleeping.
            with self._writing:
                if len(view) >= RESERVED_FROM:
                    self._reserve(offset, len(view))
                while len(view):
                    count = os.pwrite(self._fd, view, offset)
                    view = view[count:]
                    offset += count
        except OSError as error:
            raise NodeIOError(f"Could not write '{self.filename}'", error) from None
        finally:
            self._unflushed = True

    def _reserve(self, offset: int, length: int) -> None:
        """Let ext4 find space for a large write in one step: page by page takes a quarter of the time of the write.

        Whether there is any is for the write to say.
        """
        if self._reserves is None:
            self._reserves = self._regular and file_system(self._fd) == EXT4
        if self._reserves:
            try:
                self._reserves = fallocate(self._fd, KEEP_SIZE, offset, length)
            except OSError:
                self._reserves = False

    def flush(self) -> None:
        """Bring data and size to stable storage.

        :raises NodeIOError: it failed, now or before: the system reports a loss once, and then forgets it.
        """
        if self.read_only or self._ignore_flush:
            return
        if self._flush_error is None and (self._unflushed or self._lent):
            self._unflushed = False
            try:
                os.fdatasync(self._fd)
            except OSError as error:
                if self._regular or error.errno not in UNSUPPORTED:
                    self._flush_error = error
        if self._flush_error is not None:
            raise NodeIOError(f"Could not flush '{self.filename}'", self._flush_error)

    def write_zeroes(self, offset: int, length: int, *, unmap: bool) -> None:
        """Make a range read as zeros, by the cheapest way that the file system knows."""
        if length <= 0:
            return
        try:
            if not (unmap and self._punch(offset, length)) and not fallocate(self._fd, ZERO_RANGE, offset, length):
                self._write_zero_bytes(offset, length)
            self._settle()
        except OSError as error:
            raise NodeIOError(f"Could not write zeroes to '{self.filename}'", error) from None
        finally:
            self._unflushed = True

    def discard(self, offset: int, length: int) -> None:
        """Give the space behind a range back, if the file system can; it reads as zeros then."""
        if length <= 0:
            return
        try:
            fallocate(self._fd, PUNCH_HOLE | KEEP_SIZE, offset, length)
        except OSError as error:
            raise NodeIOError(f"Could not discard in '{self.filename}'", error) from None
        finally:
            self._unflushed = True

    def _punch(self, offset: int, length: int) -> bool:
        end = offset + length
        if self._regular and end > self.size:
            # Not ftruncate: another thread may write behind this range at the same time.
            os.pwrite(self._fd, b"\0", end - 1)
        return fallocate(self._fd, PUNCH_HOLE | KEEP_SIZE, offset, length)

    def _write_zero_bytes(self, offset: int, length: int) -> None:
        write_zero_bytes(self.write_at, offset, length)

    def _settle(self) -> None:
        """O_DSYNC covers plain writes only."""
        self._unflushed = True
        if self._write_through:
            self.flush()

    def truncate(self, size: int, preallocation: str = "off") -> None:
        """Set the length in bytes; devices have theirs.

        :param preallocation: ``off``; ``falloc`` reserves space for what is new, ``full`` writes zeros to it.
        :raises InvalidOption: another mode, or one for a file that does not grow.
        :raises NodeIOError: the system refuses; the length is what it was.
        """
        former = self.size
        if preallocation not in ("off", "falloc", "full"):
            raise InvalidOption(f"Unsupported preallocation mode: {preallocation}")
        if not self._regular:
            self._fit_on_device(size, former, preallocation)
            return
        if preallocation != "off" and size < former:
            raise InvalidOption("Preallocation can't be used for shrinking files")
        try:
            self._set_length(former, size, preallocation)
        except BaseException:
            os.ftruncate(self._fd, former)
            self._unflushed = True
            raise
        self._settle()

    def _set_length(self, former: int, size: int, preallocation: str) -> None:
        doing = "Failed to resize file"
        try:
            if preallocation == "falloc":
                doing = "Could not preallocate data for the new file"
                if size > former:
                    os.posix_fallocate(self._fd, former, size - former)
                return
            os.ftruncate(self._fd, size)
            if preallocation == "full":
                doing = "Could not write zeros for preallocation"
                self._write_zero_bytes(former, size - former)
                os.fsync(self._fd)
            elif former == 0 and size:
                # Programs that read past the page cache find out the alignment at the start: not on a hole.
                os.pwrite(self._fd, bytes(min(size, FIRST_BLOCK)), 0)
        except OSError as error:
            raise NodeIOError(doing, error) from None

    def _fit_on_device(self, size: int, available: int, preallocation: str) -> None:
        if preallocation != "off":
            raise InvalidOption(f"Preallocation mode '{preallocation}' unsupported for this non-regular file")
        if size > available:
            raise InvalidOption("Cannot grow device files")

    def set_permissions(self, used: Permission, shared: Permission) -> None:
        """Hold QEMU's lock bytes for these permissions; no-op where the user turned locking off."""
        if self._locks is not None:
            self._locks.apply(used, shared)

    def release(self) -> None:
        """Close the file; its locks end with it."""
        if self._direct is not None:
            self._direct.close()
        os.close(self._fd)
