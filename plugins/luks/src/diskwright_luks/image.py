"""An open LUKS image: the payload, decrypted."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from diskwright.bounded import BoundedReader
from diskwright.errors import InvalidImage, InvalidOption, UnsupportedOperation, io_error
from diskwright.extent import Extent, Flag, Kind
from diskwright.facts import Description, Finding, Limits, Severity
from diskwright.hookspecs import OpenOptions
from diskwright.node import (
    SECTOR,
    Buffer,
    Bytes,
    Image,
    Lockable,
    Node,
    Permission,
    Placement,
    Truncatable,
    Writable,
    WritableImage,
)
from diskwright.scrutiny import name_findings

from .header import Header, read_header
from .keys import MAX_ITERATIONS

if TYPE_CHECKING:
    from .ciphers import SectorCipher
    from .volume import Volume

CHUNK = 1 << 20
"""Bytes encrypted and written at once."""


class _Buffer(threading.local):
    """A buffer of each thread, kept for the next write: new memory would cost as much as the cipher."""

    def __init__(self) -> None:
        self._room = bytearray()

    def room(self, size: int) -> bytearray:
        """At least so many bytes, with anything in them."""
        if len(self._room) < size:
            self._room = bytearray(size)
        return self._room


class EncryptedNode(Node):
    """What the payload is seen through: sectors of a file, decrypted and encrypted on the way.

    :param start: offset of the payload in the file, bytes.
    """

    def __init__(self, file: Node, start: int, cipher: SectorCipher) -> None:
        self.file = file
        self.filename = file.filename
        self.read_only = file.read_only
        self._start = start
        self._cipher = cipher
        self._partial = threading.Lock()
        self._buffers = _Buffer()

    @property
    def size(self) -> int:
        """Bytes, whole sectors."""
        return max(0, _whole_sectors(self.file.size - self._start))

    def read_into(self, offset: int, buffer: Buffer) -> None:
        """Read and decrypt."""
        view = memoryview(buffer).cast("B")
        head, tail = offset % SECTOR, -(offset + len(view)) % SECTOR
        if head or tail:
            whole = bytearray(head + len(view) + tail)
            self._read_sectors(offset - head, memoryview(whole))
            view[:] = memoryview(whole)[head : head + len(view)]
        else:
            self._read_sectors(offset, view)

    def _read_sectors(self, offset: int, view: memoryview) -> None:
        self.file.read_into(self._start + offset, view)
        self._cipher.decrypt(offset // SECTOR, view, view)

    def write_at(self, offset: int, data: Bytes) -> None:
        """Encrypt and write; sectors that are written in part are read first."""
        view = memoryview(data).cast("B")
        end = offset + len(view)
        first = min(end, _whole_sectors(offset))
        last = max(first, end // SECTOR * SECTOR)
        self._write_partial(offset, view[: first - offset])
        self._write_sectors(first, view[first - offset : last - offset])
        self._write_partial(last, view[last - offset :])

    def _write_partial(self, offset: int, data: memoryview) -> None:
        """Write some bytes of one sector. Neighbours may do the same at the same time."""
        if not len(data):
            return
        with self._partial:
            head = offset % SECTOR
            sector = bytearray(SECTOR)
            self._read_sectors(offset - head, memoryview(sector))
            sector[head : head + len(data)] = data
            self._write_sectors(offset - head, memoryview(sector))

    def _write_sectors(self, offset: int, data: memoryview) -> None:
        if not isinstance(self.file, Writable):
            raise io_error(f"Could not write '{self.filename}'", errno.EROFS)
        buffer = memoryview(self._buffers.room(min(CHUNK, len(data))))
        for done in range(0, len(data), CHUNK):
            part = data[done : done + CHUNK]
            encrypted = buffer[: len(part)]
            self._cipher.encrypt((offset + done) // SECTOR, part, encrypted)
            self.file.write_at(self._start + offset + done, encrypted)

    def flush(self) -> None:
        """Flush the file."""
        self.file.flush()


class LuksImage(WritableImage):
    """The payload of a LUKS volume as a disk. It has no metadata that would change with the data.

    :raises InvalidOption: the secret is missing.
    :raises ImageError: it does not unlock the volume.
    """

    encrypted = True

    def __init__(self, source: Node, options: OpenOptions) -> None:
        super().__init__()
        self.file = source
        self.filename = options.filename
        self.read_only = not options.writable
        self._secret: Callable[[str], bytes] = options.secret
        self._volume: Volume | None = None
        self._payload: EncryptedNode | None = None
        self._header_file = options.children.get("header")
        self._reader = BoundedReader(self._header_file or source, "LUKS")
        self._header = read_header(self._reader, detached=self.detached)
        self._require_payload()
        if not options.describe_only:
            self._unlock(options.values)

    def _require_payload(self) -> None:
        start, size = self.header.payload_offset, self.file.size
        if start > _whole_sectors(size):
            raise InvalidImage(
                f"LUKS payload at offset {start} is behind the end of the file of {size} bytes",
                filename=self.file.filename,
            )

    def _unlock(self, values: Mapping[str, Any]) -> None:
        from .volume import passphrase_of, unlock

        if "key-secret" not in values:
            raise InvalidOption("Parameter 'key-secret' is required for cipher")
        passphrase = passphrase_of(self._secret, values["key-secret"])
        limit = int(values.get("max-iterations", MAX_ITERATIONS))
        self._volume = unlock(self._reader, 0, self._header, passphrase, limit)
        self._payload = EncryptedNode(self.file, self._header.payload_offset, self._volume.cipher)

    @property
    def header(self) -> Header:
        """The volume's header as it is now."""
        return self._header if self._volume is None else self._volume.header

    @property
    def detached(self) -> bool:
        """Whether header and keys are in a file of their own."""
        return self._header_file is not None

    @property
    def size(self) -> int:
        """Bytes, whole sectors."""
        return _whole_sectors(self.file.size - self.header.payload_offset)

    def children(self) -> dict[str, Node]:
        """The file, and that of the header if it is another one."""
        return ({"header": self._header_file} if self._header_file is not None else {}) | super().children()

    def map(self, offset: int, length: int) -> Iterator[Extent]:
        """One extent; see ``block_status``."""
        yield Extent(offset, length, Kind.ENCODED, flags=Flag.ENCRYPTED)

    def read_encoded(self, offset: int, buffer: memoryview) -> None:
        """Read and decrypt."""
        self._opened_payload().read_into(offset, buffer)

    def allocate(self, offset: int, length: int) -> Sequence[Placement]:
        """Every guest byte has its place already, behind the cipher."""
        if offset + length > self.size:
            raise io_error(f"Could not write '{self.filename}'", errno.ENOSPC)
        return [Placement(offset, length, self._opened_payload(), offset)] if length else []

    def link(self, placements: Sequence[Placement]) -> None:
        """Nothing to do: there is no metadata."""

    def truncate(self, size: int, preallocation: str = "off") -> None:
        """Give the disk, and with it the file, another size. What is new reads as anything: zeros are not encrypted.

        :raises InvalidOption: the file has a fixed size.
        """
        if not isinstance(self.file, Truncatable):
            raise InvalidOption("The size of the file cannot be changed")
        self.file.truncate(self.header.payload_offset + size, preallocation)

    def resize(self, size: int, preallocation: str) -> None:
        """Give the disk another size; what is new is filled with encrypted zeros. If that fails it is as before."""
        before = self.size
        self.truncate(size, preallocation)
        zeros = memoryview(bytes(max(0, min(CHUNK, size - before))))
        try:
            for start in range(before, size, CHUNK):
                self.write_at(start, zeros[: size - start])
        except BaseException:
            self.truncate(before)
            raise

    def amend(self, values: Mapping[str, Any], *, force: bool) -> None:
        """Change keyslots; see the hook."""
        from .amend import amend

        if self._volume is None:
            raise self._locked()
        with self._alone():
            amend(self._volume, values, self._secret, force=force)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep others from having the image open meanwhile: what they know of its keyslots would be out of date.

        :raises LockConflict: another process has it open.
        """
        used = Permission.CONSISTENT_READ | Permission.WRITE
        nodes = [node for node in self.children().values() if isinstance(node, Lockable)]
        try:
            for node in nodes:
                node.set_permissions(used, Permission.ALL & ~used)
            yield
        finally:
            for node in nodes:
                node.set_permissions(used, Permission.ALL)

    def describe(self) -> Description:
        """The facts of the header."""
        unit = self.file.cluster_size if isinstance(self.file, Image) else None
        return Description(specific=self.header.facts(detached=self.detached), cluster_size=unit)

    def own_limits(self) -> Limits:
        """Whole sectors."""
        return Limits(SECTOR)

    def findings(self) -> Iterator[Finding]:
        """What is odd about a volume from a stranger."""
        yield from name_findings("the volume, its UUID,", self.header.uuid)
        active = [slot for slot in self.header.slots if slot.active]
        if not active:
            yield Finding(Severity.WARNING, "no-keyslot", "no keyslot is in use: nobody can read the volume")
        most = max((slot.iterations for slot in active), default=0)
        if max(most, self.header.digest_iterations) > MAX_ITERATIONS:
            message = f"to try a passphrase takes {max(most, self.header.digest_iterations)} iterations"
            yield Finding(Severity.WARNING, "costly-keyslot", message)

    def flush(self) -> None:
        """Flush all files."""
        for child in self.children().values():
            child.flush()

    def release(self) -> None:
        """Close all files."""
        try:
            super().release()
        finally:
            if self._header_file is not None:
                self._header_file.close()

    def _opened_payload(self) -> EncryptedNode:
        if self._payload is None:
            raise self._locked()
        return self._payload

    def _locked(self) -> UnsupportedOperation:
        return UnsupportedOperation(f"'{self.filename}' was opened without its key, to be described only")


def _whole_sectors(size: int) -> int:
    return -(-size // SECTOR) * SECTOR
