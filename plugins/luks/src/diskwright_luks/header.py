"""The header of a LUKS volume: read and judged, or made for a new one."""

from __future__ import annotations

from typing import Any

from diskwright.bounded import BoundedReader
from diskwright.errors import InvalidImage, UnsupportedFeature
from diskwright.node import SECTOR
from diskwright.record import Record

from .algorithms import HASHES, IV_GENERATORS, MODES, cipher_option
from .layout import (
    HEADER,
    KEY_MATERIAL_SECTOR,
    KEY_SLOT,
    MAGIC,
    SALT_SIZE,
    SLOT_DISABLED,
    SLOT_ENABLED,
    SLOTS,
    STRIPES,
    VERSION,
)


class Slot(Record):
    """A keyslot: a copy of the volume's key, split and encrypted with a passphrase.

    :ivar iterations: of PBKDF2; 0 if not active.
    :ivar sector: where its key material begins, sectors from the start of the header.
    """

    active: bool
    iterations: int
    salt: bytes
    sector: int

    def build(self) -> bytes:
        """The slot as it stands in the header."""
        built: bytes = KEY_SLOT.build(
            {
                "active": SLOT_ENABLED if self.active else SLOT_DISABLED,
                "iterations": self.iterations,
                "salt": self.salt,
                "key_material_offset": self.sector,
            }
        )
        return built

    def erased(self) -> Slot:
        """The same slot without a key."""
        return Slot(active=False, iterations=0, salt=bytes(SALT_SIZE), sector=self.sector)


class Header(Record):
    """A header that follows the specification.

    :ivar cipher: family name, e.g. ``aes``.
    :ivar ivgen_hash: given behind the IV generator's name; ``None`` if not.
    :ivar payload_sector: where the payload begins, sectors.
    :ivar key_bytes: length of the volume's key.
    :ivar digest: of that key, to recognize it by; with its ``digest_salt`` and ``digest_iterations``.
    """

    cipher: str
    mode: str
    ivgen: str
    ivgen_hash: str | None
    hash: str
    payload_sector: int
    key_bytes: int
    digest: bytes
    digest_salt: bytes
    digest_iterations: int
    uuid: str
    slots: tuple[Slot, ...]

    @property
    def payload_offset(self) -> int:
        """Bytes from the start of the header to the payload; 0 if the payload is in another file."""
        return self.payload_sector * SECTOR

    @property
    def material_size(self) -> int:
        """Bytes of key material of each slot."""
        return self.key_bytes * STRIPES

    @property
    def cipher_option(self) -> str:
        """Cipher and key size as options call it, e.g. ``aes-256``."""
        return cipher_option(self.cipher, self.mode, self.key_bytes)

    def facts(self, *, detached: bool = False) -> dict[str, Any]:
        """What ``info`` shows, by QEMU's names.

        :param detached: whether the payload is in another file.
        """
        facts: dict[str, Any] = {
            "cipher-alg": self.cipher_option,
            "cipher-mode": self.mode,
            "ivgen-alg": self.ivgen,
            "hash-alg": self.hash,
            "detached-header": detached,
            "payload-offset": self.payload_offset,
            "master-key-iters": self.digest_iterations,
            "uuid": self.uuid,
        }
        if self.ivgen == "essiv":
            facts["ivgen-hash-alg"] = self.ivgen_hash
        slots = []
        for slot in self.slots:
            state: dict[str, Any] = {"active": slot.active, "key-offset": slot.sector * SECTOR}
            if slot.active:
                state |= {"iters": slot.iterations, "stripes": self.material_size // self.key_bytes}
            slots.append(state)
        return facts | {"slots": slots}

    def build(self) -> bytes:
        """The header as it stands in the file."""
        generator = self.ivgen if self.ivgen_hash is None else f"{self.ivgen}:{self.ivgen_hash}"
        built: bytes = HEADER.build(
            {
                "cipher_name": self.cipher.encode().ljust(32, b"\0"),
                "cipher_mode": f"{self.mode}-{generator}".encode().ljust(32, b"\0"),
                "hash_spec": self.hash.encode().ljust(32, b"\0"),
                "payload_offset": self.payload_sector,
                "key_bytes": self.key_bytes,
                "mk_digest": self.digest,
                "mk_digest_salt": self.digest_salt,
                "mk_digest_iterations": self.digest_iterations,
                "uuid": self.uuid.encode().ljust(40, b"\0"),
                "slots": [KEY_SLOT.parse(slot.build()) for slot in self.slots],
            }
        )
        return built


def read_header(reader: BoundedReader, offset: int = 0, *, detached: bool = False) -> Header:
    """Read and judge the header that stands at an offset of a file.

    :param offset: bytes.
    :param detached: the payload is in another file.
    :raises InvalidImage: it breaks the specification.
    :raises UnsupportedFeature: a cipher, mode or hash that is not known here.
    """
    start = reader.bytes(offset, min(8, max(0, reader.node.size - offset)), "header")
    if start[:6] != MAGIC:
        raise InvalidImage("Volume is not in LUKS format", filename=reader.node.filename, offset=offset)
    version = int.from_bytes(start[6:8], "big")
    if version != VERSION:
        raise UnsupportedFeature(f"LUKS version {version} is not supported")
    raw = reader.structure(HEADER, offset, "header")
    mode, ivgen, ivgen_hash = _modes(_text(raw.cipher_mode, "cipher mode"))
    header = Header(
        cipher=_text(raw.cipher_name, "cipher name"),
        mode=mode,
        ivgen=ivgen,
        ivgen_hash=ivgen_hash,
        hash=_text(raw.hash_spec, "hash spec"),
        payload_sector=raw.payload_offset,
        key_bytes=raw.key_bytes,
        digest=raw.mk_digest,
        digest_salt=raw.mk_digest_salt,
        digest_iterations=raw.mk_digest_iterations,
        uuid=raw.uuid.split(b"\0")[0].decode("ascii", "replace"),
        slots=tuple(
            Slot(slot.active == SLOT_ENABLED, slot.iterations, slot.salt, slot.key_material_offset)
            for slot in raw.slots
        ),
    )
    _check_names(header)
    _check_slots(header, raw.slots, detached=detached)
    return header


def _text(field: bytes, name: str) -> str:
    text, end, _ = field.partition(b"\0")
    if not end:
        raise InvalidImage(f"LUKS header {name} is not NUL terminated")
    return text.decode("ascii", "replace")


def _modes(text: str) -> tuple[str, str, str | None]:
    """Mode, IV generator and its hash from e.g. ``cbc-essiv:sha256``."""
    mode, dash, rest = text.partition("-")
    if not dash:
        raise InvalidImage(f"Unexpected cipher mode string format '{text}'")
    ivgen, colon, ivgen_hash = rest.partition(":")
    return mode, ivgen, ivgen_hash if colon else None


def _check_names(header: Header) -> None:
    for hash in (header.ivgen_hash, header.hash):
        if hash is not None and hash not in HASHES:
            raise UnsupportedFeature(f"Hash algorithm '{hash}' not supported")
    if header.mode not in MODES:
        raise UnsupportedFeature(f"Cipher mode '{header.mode}' not supported")
    if header.ivgen not in IV_GENERATORS:
        raise UnsupportedFeature(f"IV generator '{header.ivgen}' not supported")


def _check_slots(header: Header, raw: list[Any], *, detached: bool) -> None:
    """Whether header, key material and payload stay clear of each other."""
    if not detached and header.payload_sector < KEY_MATERIAL_SECTOR:
        raise InvalidImage("LUKS payload is overlapping with the header")
    if header.digest_iterations == 0:
        raise InvalidImage("LUKS key iteration count is zero")
    sectors = -(-header.material_size // SECTOR)
    for index, slot in enumerate(header.slots):
        if raw[index].stripes != STRIPES:
            raise InvalidImage(f"Keyslot {index} is corrupted (stripes {raw[index].stripes} != {STRIPES})")
        if raw[index].active not in (SLOT_ENABLED, SLOT_DISABLED):
            raise InvalidImage(f"Keyslot {index} state (active/disable) is corrupted")
        if slot.active and slot.iterations == 0:
            raise InvalidImage(f"Keyslot {index} iteration count is zero")
        if slot.sector < KEY_MATERIAL_SECTOR:
            raise InvalidImage(f"Keyslot {index} is overlapping with the LUKS header")
        if not detached and slot.sector + sectors > header.payload_sector:
            raise InvalidImage(f"Keyslot {index} is overlapping with the encrypted payload")
    for index, slot in enumerate(header.slots):
        for other in range(index + 1, SLOTS):
            if abs(slot.sector - header.slots[other].sector) < sectors:
                raise InvalidImage(f"Keyslots {index} and {other} are overlapping in the header")
    _ = header.cipher_option  # refuses ciphers and key sizes that there are not
