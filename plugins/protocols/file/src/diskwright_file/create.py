"""New files, and files that replace others once they are complete."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
import sys
from contextlib import suppress

from diskwright.errors import InvalidOption, NodeIOError, io_error
from diskwright.hookspecs import CreatedNode, ProtocolOptions
from diskwright.node import SECTOR, Permission

from .node import FileNode, open_existing, open_flags, status_of

NEW_FILE_MODE = 0o644

CREATING = (Permission.WRITE | Permission.RESIZE, Permission.ALL & ~Permission.RESIZE)
"""What creation does to a file and what it shares, as QEMU has it."""

# linux/fs.h; the structure is struct fsxattr.
_FS_IOC_GETFLAGS, _FS_IOC_SETFLAGS, _FS_NOCOW_FL = 0x80086601, 0x40086602, 0x00800000
_FS_IOC_FSGETXATTR, _FS_IOC_FSSETXATTR, _FS_XFLAG_EXTSIZE = 0x801C581F, 0x401C5820, 0x00000800
MAX_EXTENT_SIZE_HINT = 2**32 - 1
_FSXATTR = struct.Struct("=5I8s")


def create(filename: str, options: ProtocolOptions) -> OverwrittenFile:
    """Create a file, or prepare to replace an existing one; a block device is used in place.

    :raises NodeIOError: the system refuses.
    :raises InvalidOption: the name is that of a directory or the like.
    :raises LockConflict: another process uses the existing file.
    """
    _require_known_preallocation(options)
    if options.values.get("extent_size_hint", 0) > MAX_EXTENT_SIZE_HINT:
        raise InvalidOption("Extent size hint is too large")
    path = _resolve(filename)
    try:
        fd = os.open(path, open_flags(options) | os.O_RDWR | os.O_CREAT | os.O_EXCL, NEW_FILE_MODE)
    except FileExistsError:
        return _create_over(path, filename, options)
    except OSError as error:
        raise NodeIOError(f"Could not create '{filename}'", error) from None
    _apply_hints(fd, options)
    return NewFile(fd, filename, path, options)


def _require_known_preallocation(options: ProtocolOptions) -> None:
    mode = options.values.get("preallocation", "off")
    if mode == "metadata":
        raise InvalidOption(f"Unsupported preallocation mode: {mode}")
    if mode not in ("off", "falloc", "full"):
        raise InvalidOption(f"invalid parameter value: {mode}")


def create_on_device(filename: str, options: ProtocolOptions) -> OverwrittenFile:
    """Prepare an existing device to be overwritten in place: what it held is no longer found on it."""
    node = OverwrittenFile(_open_for_creation(filename, options, devices=True), filename, options)
    try:
        node.set_permissions(*CREATING)
        node.make_empty()
    except BaseException:
        node.close()
        raise
    return node


def _resolve(filename: str) -> str:
    """The path without links: what is replaced is the file itself, never a link to it."""
    if not filename:
        raise io_error("Could not create ''", errno.ENOENT)
    try:
        return os.path.realpath(filename)
    except (OSError, ValueError):
        status_of(filename, "create")
        raise


def _open_for_creation(filename: str, options: ProtocolOptions, *, devices: bool = False) -> int:
    status = status_of(filename, "create")
    if stat.S_ISDIR(status.st_mode):
        raise io_error(f"Could not create '{filename}'", errno.EISDIR)
    if stat.S_ISREG(status.st_mode) and devices:
        raise InvalidOption(f"'host_device' driver requires '{filename}' to be either a character or block device")
    writable = ProtocolOptions(True, options.values, options.explicit, options.cache)
    try:
        return open_existing(filename, writable, regular_files=not devices, character_devices=devices)
    except NodeIOError as error:
        raise NodeIOError(f"Could not create '{filename}'", error) from None


def _create_over(path: str, filename: str, options: ProtocolOptions) -> OverwrittenFile:
    fd = _open_for_creation(filename, options)
    former = FileNode(fd, filename, options)
    try:
        # Whoever uses the file in a way that forbids to change it is noticed before anything changes.
        former.set_permissions(*CREATING)
        status = os.fstat(fd)
        if stat.S_ISREG(status.st_mode) and status.st_size and _is_replaceable(path, status):
            temporary, name = _open_temporary(path, options)
            _apply_hints(temporary, options)
            return ReplacementFile(temporary, filename, name, path, former, options)
        node = OverwrittenFile(fd, filename, options)
        node.set_permissions(*CREATING)
        node.make_empty()
    except OSError as error:
        former.close()
        raise NodeIOError(f"Could not create '{filename}'", error) from None
    except BaseException:
        former.close()
        raise
    return node


def _is_replaceable(path: str, status: os.stat_result) -> bool:
    """Whether another file can take the place of this one without anybody noticing a difference."""
    directory = os.path.dirname(path)
    return (
        status.st_nlink == 1
        and (status.st_uid == os.geteuid() or os.geteuid() == 0)
        and os.access(directory, os.W_OK | os.X_OK)
        and not _is_mount_point(path)
    )


def _is_mount_point(path: str) -> bool:
    """Whether something is mounted on a file, as containers do; such a name cannot be given to another file."""
    wanted = os.fsencode(path)
    for plain, escaped in ((b"\\", b"\\134"), (b" ", b"\\040"), (b"\t", b"\\011"), (b"\n", b"\\012")):
        wanted = wanted.replace(plain, escaped)
    try:
        with open("/proc/self/mountinfo", "rb") as mounts:
            return any(line.split(b" ", 5)[4] == wanted for line in mounts)
    except OSError:
        return False


def _open_temporary(path: str, options: ProtocolOptions) -> tuple[int, str]:
    flags = open_flags(options) | os.O_RDWR | os.O_CREAT | os.O_EXCL
    while True:
        name = os.path.join(os.path.dirname(path), f".diskwright-{os.urandom(8).hex()}")
        try:
            return os.open(name, flags, 0o600), name
        except FileExistsError:
            continue


def _apply_hints(fd: int, options: ProtocolOptions) -> None:
    """Tell the file system what the user wants of a new file; one that does not know of such things is no error."""
    if options.values.get("nocow"):
        with suppress(OSError):
            flags = int.from_bytes(fcntl.ioctl(fd, _FS_IOC_GETFLAGS, bytes(8)), sys.byteorder)
            fcntl.ioctl(fd, _FS_IOC_SETFLAGS, (flags | _FS_NOCOW_FL).to_bytes(8, sys.byteorder))
    if extent_size := options.values.get("extent_size_hint"):
        with suppress(OSError, struct.error):
            xflags, _, *rest = _FSXATTR.unpack(fcntl.ioctl(fd, _FS_IOC_FSGETXATTR, bytes(_FSXATTR.size)))
            wanted = _FSXATTR.pack(xflags | _FS_XFLAG_EXTSIZE, extent_size, *rest)
            fcntl.ioctl(fd, _FS_IOC_FSSETXATTR, wanted)


class OverwrittenFile(FileNode, CreatedNode):
    """An existing file or device that becomes an image where it stands."""

    def __init__(self, fd: int, filename: str, options: ProtocolOptions) -> None:
        super().__init__(fd, filename, ProtocolOptions(True, options.values, options.explicit, options.cache))
        self._committed = False

    def commit(self) -> None:
        """Keep what was written."""
        self._committed = True

    def abandon(self) -> None:
        """Close the file, empty again: half an image is not to be taken for a whole one."""
        self.close()

    def release(self) -> None:
        """Close the file; without a commit it is abandoned."""
        if not self._committed:
            with suppress(OSError):
                self._undo()
        super().release()

    def make_empty(self) -> None:
        """Forget what stands in a regular file, or that a device began with an image."""
        if self._regular:
            os.ftruncate(self._fd, 0)
        else:
            self.write_at(0, bytes(min(SECTOR, self.size)))

    def _undo(self) -> None:
        self.make_empty()


class NewFile(OverwrittenFile):
    """A file that did not exist before.

    :param path: its name without links.
    """

    def __init__(self, fd: int, filename: str, path: str, options: ProtocolOptions) -> None:
        super().__init__(fd, filename, options)
        self._path = path

    def _undo(self) -> None:
        """Remove the file, unless its name is no longer its own."""
        ours, found = os.fstat(self._fd), os.lstat(self._path)
        if (ours.st_dev, ours.st_ino) == (found.st_dev, found.st_ino):
            os.unlink(self._path)

    def commit(self) -> None:
        """Let the name survive a power cut too, unless the caller does not care about those."""
        if not self._ignore_flush:
            self._flush_directory()
        super().commit()

    def _flush_directory(self) -> None:
        try:
            directory = os.open(os.path.dirname(self._path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            return  # it may be written, but not read
        try:
            os.fsync(directory)
        except OSError as error:
            if error.errno != errno.EINVAL:  # the file system has no such thing
                raise NodeIOError(f"Could not create '{self.filename}'", error) from None
        finally:
            os.close(directory)


class ReplacementFile(NewFile):
    """A file that takes the place of another one when it is complete.

    :param path: its own, temporary name.
    :param target: the name it will have, without links.
    :param former: the file that stands there; it stays open and locked until then.
    """

    def __init__(
        self, fd: int, filename: str, path: str, target: str, former: FileNode, options: ProtocolOptions
    ) -> None:
        super().__init__(fd, filename, path, options)
        self._target = target
        self._former = former

    def commit(self) -> None:
        """Take the place, mode, owner and extended attributes of the former file.

        :raises NodeIOError: the system refuses; nothing has changed then.
        """
        try:
            _copy_attributes(self._former.fileno(writing=False), self._fd)
            os.replace(self._path, self._target)
        except OSError as error:
            raise NodeIOError(f"Could not replace '{self.filename}'", error) from None
        self._former.close()
        super().commit()

    def release(self) -> None:
        """Close both files; without a commit the former one is as it was."""
        self._former.close()
        super().release()


def _copy_attributes(source: int, target: int) -> None:
    """Mode, and as far as the system allows, owner and extended attributes."""
    status = os.fstat(source)
    with suppress(OSError):
        os.fchown(target, status.st_uid, status.st_gid)
    os.fchmod(target, stat.S_IMODE(status.st_mode))
    with suppress(OSError):
        for name in os.listxattr(source):
            with suppress(OSError):
                os.setxattr(target, name, os.getxattr(source, name))
