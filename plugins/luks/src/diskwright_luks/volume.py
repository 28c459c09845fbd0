"""A LUKS volume at an offset of any node: unlocking it, making a new one, changing its keyslots.

What the volume encrypts is none of its business: its cipher serves whoever has the data.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from typing import Any

from diskwright.bounded import BoundedReader
from diskwright.errors import ImageError, InvalidImage, InvalidOption, UnsupportedOperation
from diskwright.node import SECTOR, Writable
from diskwright.record import Record

from .algorithms import CIPHERS, HASHES, IV_GENERATORS, MODES, require_cipher, require_hash
from .ciphers import SectorCipher, sector_cipher
from .header import Header, Slot
from .keys import MAX_ITERATIONS, Budget, TooManyIterations, derive, iterations_for, merge, split
from .layout import DIGEST_SIZE, KEY_MATERIAL_SECTOR, KEY_SLOT, SALT_SIZE, SLOT_TABLE, SLOTS, STRIPES

DEFAULT_ITER_TIME = 2000
"""Milliseconds that unlocking is to take."""

_DIGEST_SHARE = 8
"""The digest of the volume's key gets this part of the time; that key is random and needs no protection of its own."""
_ALIGNMENT = 8
"""Sectors; key material and payload begin at multiples of them."""


def passphrase_of(lookup: Callable[[str], bytes], id: str) -> bytes:
    """The content of a secret, for use as a passphrase.

    :raises ImageError: there is no such secret, or it is no text.
    """
    value = lookup(id)
    try:
        value.decode("utf-8")
    except UnicodeDecodeError:
        raise ImageError(f"Data from secret {id} is not valid UTF-8") from None
    if b"\0" in value:
        raise ImageError(f"Data from secret {id} is not valid UTF-8")
    return value


class Volume:
    """A volume whose key is known.

    :ivar header: as it stands in the file.
    """

    def __init__(self, reader: BoundedReader, offset: int, header: Header, key: bytes, budget: Budget) -> None:
        self.header = header
        self._budget = budget
        self._reader = reader
        self._offset = offset
        self._key = key

    @cached_property
    def cipher(self) -> SectorCipher:
        """Encrypts and decrypts the payload."""
        return _cipher(self.header, self._key)

    def slots_of(self, passphrase: bytes) -> Iterator[int]:
        """The numbers of the active keyslots that a passphrase unlocks.

        :raises UnsupportedFeature: that takes too many iterations of PBKDF2.
        """
        import hmac

        for index, slot in enumerate(self.header.slots):
            if slot.active:
                key = _slot_key(self._reader, self._offset, self.header, index, passphrase, self._budget)
                if hmac.compare_digest(key, self._key):
                    yield index

    def store_key(self, index: int, passphrase: bytes, milliseconds: int) -> None:
        """Let a passphrase unlock the volume by a keyslot; what the slot held before is lost.

        The slot becomes active once its key material is safe.

        :param milliseconds: that unlocking is to take.
        """
        old = self.header.slots[index]
        slot, material = _new_slot(self.header, old.sector, self._key, passphrase, milliseconds)
        if old.active:
            self._put(index, old.erased())
        self._write(slot.sector * SECTOR, material)
        self._reader.node.flush()
        self._put(index, slot)

    def erase(self, index: int) -> None:
        """Make a keyslot unlock nothing any more, and overwrite its key material."""
        slot = self.header.slots[index].erased()
        self._put(index, slot)
        self._write(slot.sector * SECTOR, os.urandom(_padded(self.header.material_size)))
        self._reader.node.flush()

    def _put(self, index: int, slot: Slot) -> None:
        slots = list(self.header.slots)
        slots[index] = slot
        self._write(SLOT_TABLE + index * KEY_SLOT.sizeof(), slot.build())
        self._reader.node.flush()
        self.header = self.header.replace(slots=tuple(slots))

    def _write(self, offset: int, data: bytes) -> None:
        node = self._reader.node
        if not isinstance(node, Writable):
            raise UnsupportedOperation(f"'{node.filename}' cannot be written")
        node.write_at(self._offset + offset, data)


def unlock(
    reader: BoundedReader, offset: int, header: Header, passphrase: bytes, limit: int = MAX_ITERATIONS
) -> Volume:
    """Find the keyslot that a passphrase opens.

    :param offset: of the header, bytes.
    :param limit: most iterations of PBKDF2, see :class:`diskwright_luks.keys.Budget`.
    :raises UnsupportedFeature: the keyslots ask for more iterations, or the cipher is not known here.
    :raises ImageError: the passphrase opens none.
    """
    budget = Budget(limit)
    failure: ImageError | None = None
    for index, slot in enumerate(header.slots):
        if not slot.active:
            continue
        try:
            key = _open_slot(reader, offset, header, index, passphrase, budget)
        except (InvalidImage, TooManyIterations) as error:
            failure = failure or error
            continue
        if key is not None:
            return Volume(reader, offset, header, key, budget)
    raise failure or ImageError("Invalid password, cannot unlock any keyslot")


def _open_slot(
    reader: BoundedReader, offset: int, header: Header, index: int, passphrase: bytes, budget: Budget
) -> bytes | None:
    """The volume's key from a keyslot, or ``None`` if the passphrase does not fit."""
    import hmac

    budget.spend("The key digest", header.hash, header.digest_iterations, DIGEST_SIZE)
    found = _slot_key(reader, offset, header, index, passphrase, budget)
    return found if hmac.compare_digest(_digest(header, found), header.digest) else None


def _slot_key(
    reader: BoundedReader, offset: int, header: Header, index: int, passphrase: bytes, budget: Budget
) -> bytes:
    """What a passphrase makes of a keyslot: the volume's key if it fits, anything if not."""
    slot = header.slots[index]
    budget.spend(f"Keyslot {index}", header.hash, slot.iterations, header.key_bytes)
    key = derive(header.hash, passphrase, slot.salt, slot.iterations, header.key_bytes)
    place = offset + slot.sector * SECTOR
    material = bytearray(reader.bytes(place, _padded(header.material_size), f"key material of keyslot {index}"))
    _cipher(header, key).decrypt(0, material, material)
    return merge(bytes(material[: header.material_size]), header.key_bytes, header.hash)


def _digest(header: Header, key: bytes) -> bytes:
    return derive(header.hash, key, header.digest_salt, header.digest_iterations, DIGEST_SIZE)


def _cipher(header: Header, key: bytes) -> SectorCipher:
    require_cipher(header.cipher_option)
    return sector_cipher(header.cipher, header.mode, header.ivgen, header.ivgen_hash, key)


def _padded(size: int) -> int:
    """Whole sectors: the key material of 192 bit keys ends in the middle of one."""
    return -(-size // SECTOR) * SECTOR


def _new_slot(header: Header, sector: int, key: bytes, passphrase: bytes, milliseconds: int) -> tuple[Slot, bytes]:
    """An active keyslot with its key material."""
    salt = os.urandom(SALT_SIZE)
    iterations = iterations_for(header.hash, header.key_bytes, milliseconds)
    slot = Slot(active=True, iterations=iterations, salt=salt, sector=sector)
    material = bytearray(split(key, STRIPES, header.hash).ljust(_padded(header.material_size), b"\0"))
    slot_key = derive(header.hash, passphrase, salt, iterations, header.key_bytes)
    _cipher(header, slot_key).encrypt(0, material, material)
    return slot, bytes(material)


class Parameters(Record):
    """What a new volume is to be like.

    :ivar cipher: e.g. ``aes-256``.
    :ivar ivgen_hash: ``None``: sha256 where the IV generator needs one.
    :ivar milliseconds: that unlocking is to take.
    :ivar detached: the payload is in another file.
    """

    cipher: str = "aes-256"
    mode: str = "xts"
    ivgen: str = "plain64"
    ivgen_hash: str | None = None
    hash: str = "sha256"
    milliseconds: int = DEFAULT_ITER_TIME
    detached: bool = False

    @classmethod
    def from_options(cls, values: Mapping[str, Any], prefix: str = "") -> Parameters:
        """From creation options.

        :param prefix: what the names of the options begin with, e.g. ``encrypt.``.
        :raises InvalidOption: a value that does not exist.
        """

        def choice(name: str, default: str, choices: Mapping[str, Any] | tuple[str, ...]) -> str:
            value = values.get(prefix + name, default)
            if value not in choices:
                raise InvalidOption(f"Parameter '{name}' does not accept value '{value}'")
            return str(value)

        ivgen = choice("ivgen-alg", cls.ivgen, IV_GENERATORS)
        return cls(
            cipher=choice("cipher-alg", cls.cipher, CIPHERS),
            mode=choice("cipher-mode", cls.mode, MODES),
            ivgen=ivgen,
            ivgen_hash=choice("ivgen-hash-alg", "sha256", HASHES) if ivgen == "essiv" else None,
            hash=choice("hash-alg", cls.hash, HASHES),
            milliseconds=int(values.get(prefix + "iter-time", DEFAULT_ITER_TIME)),
            detached=bool(values.get(prefix + "detached-header", False)),
        )

    def require(self) -> None:
        """Make sure that such a volume can be created.

        :raises UnsupportedFeature: the cipher or hash is not known here.
        """
        require_hash(self.hash)
        require_cipher(self.cipher)
        family = CIPHERS[self.cipher].family
        sector_cipher(family, self.mode, self.ivgen, self.ivgen_hash, bytes(self.key_bytes))

    @property
    def key_bytes(self) -> int:
        """Length of the volume's key; XTS takes two keys."""
        return CIPHERS[self.cipher].key_bytes * (2 if self.mode == "xts" else 1)

    @property
    def header_size(self) -> int:
        """Bytes that header and key material take, up to where a payload may begin."""
        return (KEY_MATERIAL_SECTOR + SLOTS * self.slot_sectors) * SECTOR

    @property
    def slot_sectors(self) -> int:
        """Sectors from one key material to the next."""
        return -(-self.key_bytes * STRIPES // (SECTOR * _ALIGNMENT)) * _ALIGNMENT


def format_volume(parameters: Parameters, passphrase: bytes) -> bytes:
    """Header and key material of a new volume with a new key, which the first keyslot unlocks.

    :returns: what stands at the start; what follows up to :attr:`Parameters.header_size` is room for the other keyslots
        and may hold anything.
    :raises UnsupportedFeature: the cipher or hash is not known here.
    """
    import uuid

    parameters.require()  # before time is spent on the key
    key = os.urandom(parameters.key_bytes)
    empty = Slot(active=False, iterations=0, salt=bytes(SALT_SIZE), sector=0)
    sectors = [KEY_MATERIAL_SECTOR + index * parameters.slot_sectors for index in range(SLOTS)]
    header = Header(
        cipher=CIPHERS[parameters.cipher].family,
        mode=parameters.mode,
        ivgen=parameters.ivgen,
        ivgen_hash=parameters.ivgen_hash,
        hash=parameters.hash,
        payload_sector=0 if parameters.detached else parameters.header_size // SECTOR,
        key_bytes=parameters.key_bytes,
        digest=bytes(DIGEST_SIZE),
        digest_salt=os.urandom(SALT_SIZE),
        digest_iterations=1,
        uuid=str(uuid.uuid4()),
        slots=tuple(empty.replace(sector=sector) for sector in sectors),
    )
    iterations = iterations_for(header.hash, DIGEST_SIZE, parameters.milliseconds, share=_DIGEST_SHARE)
    header = header.replace(digest_iterations=iterations)
    slot, material = _new_slot(header, sectors[0], key, passphrase, parameters.milliseconds)
    header = header.replace(digest=_digest(header, key), slots=(slot, *header.slots[1:]))
    start = header.build().ljust(KEY_MATERIAL_SECTOR * SECTOR, b"\0")
    return start + material
