"""Encrypted guest clusters: reading them, and places that encrypt what is written to them.

The sector number that the initialization vector is made of counts from the start of the file that the clusters stand in
(LUKS), or from the start of the disk (AES). This module needs the package diskwright-luks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from diskwright.extent import NO_OFFSET, Extent, ExtentTable, Flag, Kind
from diskwright.node import SECTOR, Node, Placement
from diskwright_luks.ciphers import SectorCipher, sector_cipher
from diskwright_luks.image import EncryptedNode
from diskwright_luks.keys import MAX_ITERATIONS
from diskwright_luks.volume import Volume, passphrase_of, unlock

from .encryption import PREFIX, secret_id
from .mapping import map_range
from .reading import read_compressed

if TYPE_CHECKING:
    from diskwright_luks.header import Header as LuksHeader

    from .image import Qcow2Image

_AES_KEY = 16
"""Bytes of the passphrase that are the key of the AES format; a shorter one is filled up with zeros."""


class _Clusters(EncryptedNode):
    """A file seen through a cipher, moved so that offsets say which sector the cipher takes each for.

    :param shift: offset in the file less the offset here, bytes, a multiple of the sector; may be negative.
    """

    def __init__(self, file: Node, shift: int, cipher: SectorCipher) -> None:
        super().__init__(file, shift, cipher)
        self.shift = shift


class Encryption:
    """The cipher of an opened image.

    :param by_guest_offset: whether sectors are numbered as on the disk, rather than as in the file.
    :ivar volume: the LUKS volume that the key is from; ``None`` for AES.
    :ivar secret: gives the content of a secret object.
    """

    def __init__(
        self,
        data_node: Node,
        cipher: SectorCipher,
        secret: Callable[[str], bytes],
        *,
        by_guest_offset: bool,
        volume: Volume | None = None,
    ) -> None:
        self.volume = volume
        self.secret = secret
        self._data_node = data_node
        self._cipher = cipher
        self._by_guest_offset = by_guest_offset
        self._unmoved = _Clusters(data_node, 0, cipher)

    def _place(self, guest: int, host: int) -> _Clusters:
        """The node through which the sector at a host offset is seen."""
        return _Clusters(self._data_node, host - guest, self._cipher) if self._by_guest_offset else self._unmoved

    def read(self, guest: int, host: int, view: memoryview) -> None:
        """Read and decrypt a range that stands at a stretch.

        :param guest: guest offset, bytes.
        :param host: where it stands, bytes.
        """
        place = self._place(guest, host)
        place.read_into(host - place.shift, view)

    def sealed(self, host: int, data: bytes) -> bytes:
        """Guest bytes as they are to stand at a host offset, for images whose sectors are numbered as in the file.

        :param host: bytes, a multiple of the sector.
        :param data: whole sectors.
        """
        out = bytearray(len(data))
        self._cipher.encrypt(host // SECTOR, data, out)
        return bytes(out)

    def cover(self, placements: Iterable[Placement]) -> list[Placement]:
        """The same placements, in nodes that encrypt."""
        covered = []
        for placement in placements:
            place = self._place(placement.offset, placement.node_offset)
            covered.append(placement._replace(node=place, node_offset=placement.node_offset - place.shift))
        return covered

    def uncover(self, placements: Iterable[Placement]) -> list[Placement]:
        """Where the placements that :meth:`cover` gave are in the file."""
        plain = []
        for placement in placements:
            shift = placement.node.shift if isinstance(placement.node, _Clusters) else 0
            plain.append(placement._replace(node=self._data_node, node_offset=placement.node_offset + shift))
        return plain


def open_encryption(
    image: Qcow2Image, luks: LuksHeader | None, values: Mapping[str, Any], secret: Callable[[str], bytes]
) -> Encryption:
    """Unlock an image.

    :param luks: its LUKS header, ``None`` for AES. Nothing tells whether the passphrase of AES is the right one.
    :param values: runtime options.
    :raises ImageError: the secret is missing or unlocks nothing.
    """
    passphrase = passphrase_of(secret, secret_id(values))
    pointer = image.header.crypto
    if luks is None or pointer is None:
        key = passphrase[:_AES_KEY].ljust(_AES_KEY, b"\0")
        cipher = sector_cipher("aes", "cbc", "plain64", None, key)
        return Encryption(image.data_node, cipher, secret, by_guest_offset=True)
    limit = int(values.get(PREFIX + "max-iterations", MAX_ITERATIONS))
    volume = unlock(image.reader, pointer.offset, luks, passphrase, limit)
    return Encryption(image.data_node, volume.cipher, secret, by_guest_offset=False, volume=volume)


def hide_places(items: Iterable[Extent | ExtentTable]) -> Iterator[Extent | ExtentTable]:
    """The map of an encrypted image: what stands in the file is of no use to others."""
    for item in items:
        if not isinstance(item, ExtentTable):
            yield item
            continue
        rows = item.rows.copy()
        data = rows["kind"] == Kind.DATA
        rows["kind"][data] = Kind.ENCODED
        rows["flags"][data] = Flag.ENCRYPTED
        rows["node_offset"] = NO_OFFSET
        yield ExtentTable(rows, item.nodes).coalesced()


def read_encoded(image: Qcow2Image, crypt: Encryption, offset: int, view: memoryview) -> None:
    """Fill ``view`` with guest bytes, decrypting at once what stands at a stretch."""
    for item in map_range(image, offset, len(view)):
        extents: Sequence[Extent] = list(item) if isinstance(item, ExtentTable) else [item]
        for extent in extents:
            part = view[extent.offset - offset : extent.end - offset]
            if extent.kind is Kind.DATA and extent.node_offset is not None:
                crypt.read(extent.offset, extent.node_offset, part)
            elif extent.kind is Kind.ENCODED:  # compressed clusters, which QEMU can be led to store, are not encrypted
                read_compressed(image, extent.offset, part)
            else:  # rewritten since the map was made
                image.read_into(extent.offset, part)
