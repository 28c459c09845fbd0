"""Sector ciphers over whole chunks: many sectors of 512 bytes with a handful of calls, never one call per sector.

All modes are built on AES-ECB over long buffers, which the library does at the speed of the processor, and on numpy for
what a mode adds to it. Objects may be used by several threads at once.
Sources: IEEE 1619 (XTS), NIST SP 800-38A (CBC, CTR), cryptsetup's description of dm-crypt (IV generators).
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

import numpy as np

from diskwright.errors import InvalidImage, UnsupportedFeature
from diskwright.node import SECTOR, Buffer, Bytes

from .algorithms import hash_function

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers import CipherContext

    Words = np.ndarray[Any, np.dtype[np.uint64]]

BLOCK = 16
"""Bytes of an AES block."""
PER_SECTOR = SECTOR // BLOCK
CHUNK_SECTORS = 2048
"""Sectors worked on at once: what the steps hand to each other stays in the processor's cache."""

_WORD = np.dtype("<u8")
_AES_KEYS = (16, 24, 32)


class IvGenerator:
    """Initialization vectors from sector numbers.

    :param name: ``plain64``: the number; ``plain``: its lower 32 bits; ``essiv``: the number, encrypted.
    :param key: key of the whole volume, of whose hash the key for ``essiv`` is made.
    :param hash_name: that hash.
    """

    def __init__(self, name: str, key: bytes, hash_name: str | None) -> None:
        self._mask = np.uint64(0xFFFFFFFF if name == "plain" else 0xFFFFFFFFFFFFFFFF)
        self._key: bytes | None = None
        if name == "essiv":
            if hash_name is None:
                raise InvalidImage("Missing IV generator hash specification")
            self._key = hash_function(hash_name)(key).digest()
            if len(self._key) not in _AES_KEYS:
                raise UnsupportedFeature(f"No AES cipher with key size {len(self._key)} available")
        elif name not in ("plain", "plain64"):
            raise UnsupportedFeature(f"IV generator '{name}' not supported")

    def __call__(self, sector: int, count: int) -> Words:
        """The vectors of consecutive sectors, each a row of two words as they stand in memory."""
        raw = bytearray(count * BLOCK + BLOCK)
        vectors = np.frombuffer(raw, _WORD, 2 * count).reshape(count, 2)
        vectors[:, 0] = np.arange(sector, sector + count, dtype=np.uint64) & self._mask
        if self._key is not None:
            _ecb_encryptor(self._key).update_into(memoryview(raw)[: count * BLOCK], raw)
        return vectors


class _Scratch(threading.local):
    """Work space of one thread; its blocks are followed by the spare room that ``update_into`` asks for."""

    def __init__(self) -> None:
        self._sectors = 0

    def reserve(self, count: int) -> None:
        """Have room for so many sectors; it is not made larger than was ever needed."""
        if count > self._sectors:
            self._sectors = count
            self._make(count)

    def _make(self, count: int) -> None:
        self.raw = bytearray(count * SECTOR + BLOCK)

    def blocks(self, count: int) -> Words:
        """The first sectors of the work space: sector, block, word."""
        return np.frombuffer(self.raw, _WORD, count * SECTOR // 8).reshape(count, PER_SECTOR, 2)

    def apply(self, context: CipherContext, count: int) -> None:
        """Encrypt or decrypt the first sectors of the work space in place."""
        context.update_into(memoryview(self.raw)[: count * SECTOR], self.raw)


class _XtsScratch(_Scratch):
    """The same with room for the masks of XTS, and for making them."""

    def _make(self, count: int) -> None:
        super()._make(count)
        self.tweaks = np.empty((count, PER_SECTOR, 2), _WORD)
        self.words = np.empty((4, count, PER_SECTOR), _WORD)
        # In full length: numpy takes twice as long where it has to repeat short rows, or single numbers, itself.
        self.shifts = np.empty((2, count, PER_SECTOR), _WORD)
        self.shifts[0] = np.arange(PER_SECTOR)
        self.shifts[1] = 64 - self.shifts[0]


class SectorCipher(ABC):
    """Encrypts and decrypts whole sectors.

    :param key: of the mode, e.g. two AES keys for XTS.
    :param vectors: gives the initialization vector of each sector.
    """

    def __init__(self, key: bytes, vectors: IvGenerator) -> None:
        self._key = key
        self._vectors = vectors
        self._scratch = _Scratch()

    def encrypt(self, sector: int, data: Bytes, out: Buffer) -> None:
        """Encrypt consecutive sectors.

        :param sector: number of the first one.
        :param data: whole sectors.
        :param out: of the same length; may be ``data`` itself.
        """
        self._crypt(sector, data, out, encrypt=True)

    def decrypt(self, sector: int, data: Bytes, out: Buffer) -> None:
        """Decrypt consecutive sectors; parameters as of :meth:`encrypt`."""
        self._crypt(sector, data, out, encrypt=False)

    def _crypt(self, sector: int, data: Bytes, out: Buffer, *, encrypt: bool) -> None:
        source = np.frombuffer(data, _WORD).reshape(-1, PER_SECTOR, 2)
        target = np.frombuffer(out, _WORD).reshape(-1, PER_SECTOR, 2)
        work = self._encrypt if encrypt else self._decrypt
        for first in range(0, len(source), CHUNK_SECTORS):
            part = source[first : first + CHUNK_SECTORS]
            vectors = self._vectors(sector + first, len(part))
            self._scratch.reserve(len(part))
            work(vectors, part, target[first : first + CHUNK_SECTORS])

    @abstractmethod
    def _encrypt(self, vectors: Words, source: Words, target: Words) -> None:
        """Encrypt at most :data:`CHUNK_SECTORS` sectors, given as arrays of sector, block, word."""

    @abstractmethod
    def _decrypt(self, vectors: Words, source: Words, target: Words) -> None: ...


class XtsCipher(SectorCipher):
    """XTS: each block is masked, before and after, by the sector's tweak times a power of alpha."""

    def __init__(self, key: bytes, vectors: IvGenerator) -> None:
        super().__init__(key, vectors)
        self._scratch: _XtsScratch = _XtsScratch()

    def _encrypt(self, vectors: Words, source: Words, target: Words) -> None:
        self._masked(_ecb_encryptor(self._key[: len(self._key) // 2]), vectors, source, target)

    def _decrypt(self, vectors: Words, source: Words, target: Words) -> None:
        self._masked(_ecb_decryptor(self._key[: len(self._key) // 2]), vectors, source, target)

    def _masked(self, context: CipherContext, vectors: Words, source: Words, target: Words) -> None:
        count = len(source)
        tweaks = self._tweaks(vectors)
        blocks = self._scratch.blocks(count)
        np.bitwise_xor(source, tweaks, out=blocks)
        self._scratch.apply(context, count)
        np.bitwise_xor(blocks, tweaks, out=target)

    def _tweaks(self, vectors: Words) -> Words:
        """The masks of all blocks: for block j the sector's encrypted vector times alpha to the j.

        Multiplying by alpha is a shift of 128 bits to the left; each bit that falls out comes back as 0x87, that is as
        itself shifted by 0, 1, 2 and 7. No bit of the 31 that may fall out does so twice: all 32 powers are independent
        shifts of the same number. numpy shifts by 64 to zero.
        """
        count = len(vectors)
        raw = bytearray(count * BLOCK + BLOCK)
        _ecb_encryptor(self._key[len(self._key) // 2 :]).update_into(vectors.tobytes(), raw)
        first = np.frombuffer(raw, _WORD, 2 * count).reshape(count, 2)
        tweaks = self._scratch.tweaks[:count]
        powers, rest = self._scratch.shifts[:, :count]
        low, high, out, back = self._scratch.words[:, :count]
        low[:], high[:] = first[:, :1], first[:, 1:]
        np.right_shift(high, rest, out=out)
        np.left_shift(out, 7, out=back)
        back ^= out
        for _ in range(2):
            np.left_shift(out, 1, out=out)
            back ^= out
        np.left_shift(low, powers, out=out)
        np.bitwise_xor(out, back, out=tweaks[:, :, 0])
        np.right_shift(low, rest, out=out)
        np.left_shift(high, powers, out=back)
        np.bitwise_or(out, back, out=tweaks[:, :, 1])
        return tweaks


class CbcCipher(SectorCipher):
    """CBC: each block is masked by the encrypted block before it, so encryption goes block by block, for all sectors
    of a chunk at once."""

    def _encrypt(self, vectors: Words, source: Words, target: Words) -> None:
        context = _ecb_encryptor(self._key)
        count = len(source)
        raw = bytearray(count * BLOCK + BLOCK)
        column = np.frombuffer(raw, _WORD, 2 * count).reshape(count, 2)
        view = memoryview(raw)[: count * BLOCK]
        column[:] = vectors
        for block in range(PER_SECTOR):
            np.bitwise_xor(column, source[:, block], out=column)
            context.update_into(view, raw)
            target[:, block] = column

    def _decrypt(self, vectors: Words, source: Words, target: Words) -> None:
        blocks = self._scratch.blocks(len(source))
        blocks[:] = source
        self._scratch.apply(_ecb_decryptor(self._key), len(source))
        blocks[:, 0] ^= vectors
        blocks[:, 1:] ^= source[:, :-1]
        target[:] = blocks


class CtrCipher(SectorCipher):
    """CTR: the data is masked by the encrypted numbers that count on, big-endian, from the initialization vector."""

    def _encrypt(self, vectors: Words, source: Words, target: Words) -> None:
        count = len(source)
        start = vectors.view(">u8").astype(np.uint64)
        low = start[:, 1:] + np.arange(PER_SECTOR, dtype=np.uint64)
        blocks = self._scratch.blocks(count)
        counters = blocks.view(">u8")
        counters[:, :, 1] = low
        counters[:, :, 0] = start[:, :1] + (low < start[:, 1:])
        self._scratch.apply(_ecb_encryptor(self._key), count)
        np.bitwise_xor(blocks, source, out=target)

    _decrypt = _encrypt


class EcbCipher(SectorCipher):
    """ECB: each block by itself."""

    def _encrypt(self, vectors: Words, source: Words, target: Words) -> None:
        self._apply(_ecb_encryptor(self._key), source, target)

    def _decrypt(self, vectors: Words, source: Words, target: Words) -> None:
        self._apply(_ecb_decryptor(self._key), source, target)

    def _apply(self, context: CipherContext, source: Words, target: Words) -> None:
        blocks = self._scratch.blocks(len(source))
        blocks[:] = source
        self._scratch.apply(context, len(source))
        target[:] = blocks


_MODES: dict[str, type[SectorCipher]] = {"xts": XtsCipher, "cbc": CbcCipher, "ctr": CtrCipher, "ecb": EcbCipher}


def sector_cipher(family: str, mode: str, ivgen: str, ivgen_hash: str | None, key: bytes) -> SectorCipher:
    """The cipher of a volume.

    :param family: e.g. ``aes``, as in a LUKS header.
    :param mode: ``xts``, ``cbc``, ``ctr`` or ``ecb``.
    :param ivgen: see :class:`IvGenerator`.
    :param ivgen_hash: hash for ``essiv``.
    :param key: of the whole volume.
    :raises UnsupportedFeature: a cipher, mode or generator that is not known here.
    """
    if family != "aes":
        raise UnsupportedFeature(f"Algorithm '{family}' not supported")
    if mode not in _MODES:
        raise UnsupportedFeature(f"Cipher mode '{mode}' not supported")
    size = len(key) // 2 if mode == "xts" else len(key)
    if size not in _AES_KEYS or (mode == "xts" and len(key) % 2):
        raise UnsupportedFeature(f"Algorithm 'aes' with key size {size} bytes not supported")
    return _MODES[mode](key, IvGenerator(ivgen, key, ivgen_hash))


def _ecb_encryptor(key: bytes) -> CipherContext:
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

    return Cipher(algorithms.AES(key), modes.ECB()).encryptor()  # noqa: S305 - real modes are built on it


def _ecb_decryptor(key: bytes) -> CipherContext:
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

    return Cipher(algorithms.AES(key), modes.ECB()).decryptor()  # noqa: S305 - real modes are built on it
