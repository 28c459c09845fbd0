"""Names of ciphers, modes, IV generators and hashes: as options call them and as they stand in a LUKS header."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from diskwright.errors import UnsupportedFeature


class CipherName(NamedTuple):
    """A cipher with its key size.

    :ivar family: the name in a LUKS header.
    :ivar key_bytes: of one key; XTS takes two of them.
    """

    family: str
    key_bytes: int


CIPHERS = {
    "aes-128": CipherName("aes", 16),
    "aes-192": CipherName("aes", 24),
    "aes-256": CipherName("aes", 32),
    "des": CipherName("des", 8),
    "3des": CipherName("3des", 24),
    "cast5-128": CipherName("cast5", 16),
    "serpent-128": CipherName("serpent", 16),
    "serpent-192": CipherName("serpent", 24),
    "serpent-256": CipherName("serpent", 32),
    "twofish-128": CipherName("twofish", 16),
    "twofish-192": CipherName("twofish", 24),
    "twofish-256": CipherName("twofish", 32),
    "sm4": CipherName("sm4", 16),
}
"""Ciphers that QEMU has a name for. Images with any of them are described, those with AES are read and written."""

MODES = ("ecb", "cbc", "xts", "ctr")
IV_GENERATORS = ("plain", "plain64", "essiv")
HASHES = ("md5", "sha1", "sha224", "sha256", "sha384", "sha512", "ripemd160", "sm3")


def cipher_option(family: str, mode: str, key_bytes: int) -> str:
    """What options call a cipher of a header.

    :param key_bytes: length of the whole key.
    :raises UnsupportedFeature: there is no such cipher, or none with a key of that length.
    """
    if mode == "xts" and key_bytes % 2 == 0:
        key_bytes //= 2
    for name, cipher in CIPHERS.items():
        if cipher == (family, key_bytes):
            return name
    raise UnsupportedFeature(f"Algorithm '{family}' with key size {key_bytes} bytes not supported")


def require_cipher(option: str) -> None:
    """Refuse a cipher that can be described only.

    :param option: what options call it.
    :raises UnsupportedFeature: it is not AES.
    """
    if CIPHERS[option].family != "aes":
        raise UnsupportedFeature(f"Algorithm '{option}' not supported")


def hash_function(name: str) -> Callable[[bytes], Any]:
    """The constructor of a hash: called with bytes, it gives an object with ``digest()`` and ``digest_size``.

    :raises UnsupportedFeature: this Python has no such hash (some builds of OpenSSL lack the rarer ones).
    """
    import hashlib

    def make(data: bytes) -> Any:
        return hashlib.new(name, data, usedforsecurity=True)

    require_hash(name)
    constructor: Callable[[bytes], Any] = getattr(hashlib, name, make)
    return constructor


def require_hash(name: str) -> None:
    """Refuse a hash that is not known here.

    :raises UnsupportedFeature: this Python has no such hash.
    """
    import hashlib

    if name in HASHES:
        try:
            hashlib.new(name, b"")
        except ValueError:
            pass
        else:
            return
    raise UnsupportedFeature(f"Hash algorithm '{name}' not supported")
