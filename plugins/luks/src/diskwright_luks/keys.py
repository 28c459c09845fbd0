"""From passphrases to keys: PBKDF2 and the anti-forensic splitter of the LUKS specification."""

from __future__ import annotations

import os
from collections.abc import Callable

from diskwright.errors import InvalidOption, UnsupportedFeature

from .algorithms import hash_function, require_hash

MIN_ITERATIONS = 1000
MAX_ITERATIONS = 70_000_000
"""Most iterations of PBKDF2, in those of SHA-256, to unlock a volume with: seven seconds of work for all of its
keyslots together. Unlocking is commonly made to take two seconds a keyslot; a header could ask for hours."""

_WEIGHTS = {"md5": 2, "sha384": 3, "sha512": 3, "sm3": 4, "ripemd160": 5}
"""What one iteration costs, in those of SHA-256, where it is more than one."""
_LARGEST_SHARE = 0.8
"""Of :data:`MAX_ITERATIONS` that the first keyslot of a new volume may take, so that the digest has its share too."""

_CALIBRATION_NS = 20_000_000


class Budget:
    """The iterations of PBKDF2 that may still be spent on one volume.

    :param limit: all of them, in iterations of SHA-256.
    """

    def __init__(self, limit: int = MAX_ITERATIONS) -> None:
        self._limit = limit
        self._spent = 0

    def spend(self, name: str, hash: str, iterations: int, length: int) -> None:
        """Take what deriving a key costs.

        :param name: what wants to derive it, for the message.
        :param length: of the key, bytes.
        :raises TooManyIterations: there is not so much left; nothing has been taken.
        """
        cost = iterations * _unit_cost(hash, length)
        if self._spent + cost > self._limit:
            others = " with those before it" if cost <= self._limit else ""
            raise TooManyIterations(
                f"{name} asks for {iterations} iterations of PBKDF2,{others} more than the limit of {self._limit}",
                hint="The option max-iterations sets another limit.",
            )
        self._spent += cost


class TooManyIterations(UnsupportedFeature):
    """Refused, but another keyslot may do."""


def _unit_cost(hash: str, length: int) -> int:
    """What one iteration for a key of so many bytes costs, in iterations of SHA-256 for a key as long as its digest."""
    width = int(hash_function(hash)(b"").digest_size)
    return -(-length // width) * _WEIGHTS.get(hash, 1)


def derive(hash: str, passphrase: bytes, salt: bytes, iterations: int, length: int) -> bytes:
    """PBKDF2 with HMAC (RFC 8018).

    :param iterations: for the caller to check, see :class:`Budget`.
    :param length: bytes of the result.
    :raises UnsupportedFeature: the hash is not available.
    """
    import hashlib

    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.kdf.pbkdf2 import PBKDF2HMAC

    require_hash(hash)
    algorithm = getattr(hashes, hash.upper(), None)
    if algorithm is None:
        return hashlib.pbkdf2_hmac(hash, passphrase, salt, iterations, length)
    # Twice as fast as with the OpenSSL that Python is usually built with.
    return PBKDF2HMAC(algorithm(), length, salt, iterations).derive(passphrase)


def iterations_for(hash: str, length: int, milliseconds: int, *, share: int = 1) -> int:
    """How many iterations take a time on this machine, at least :data:`MIN_ITERATIONS`.

    :param length: bytes to derive.
    :param share: use the ``share``-th part of the time only.
    :raises InvalidOption: they are more than any reader should accept.
    """
    if not milliseconds:
        return MIN_ITERATIONS
    import time

    derive(hash, b"calibration", bytes(32), 1, length)  # not to measure how long the library takes to load
    rounds, elapsed = MIN_ITERATIONS, 0
    while True:
        start = time.thread_time_ns()
        derive(hash, b"calibration", bytes(32), rounds, length)
        elapsed = time.thread_time_ns() - start
        if elapsed >= _CALIBRATION_NS:
            break
        rounds *= 2
    iterations = rounds * milliseconds * 1_000_000 // elapsed // share
    limit = int(MAX_ITERATIONS * _LARGEST_SHARE) // _unit_cost(hash, length)
    if iterations > limit:
        raise InvalidOption(f"PBKDF iterations {iterations} larger than {limit}")
    return max(iterations, MIN_ITERATIONS)


def split(key: bytes, stripes: int, hash: str) -> bytes:
    """Spread a key over so many stripes that losing any bit of them loses the key (LUKS1, section 2.4).

    :returns: ``stripes`` times the length of the key.
    """
    size = len(key)
    material = os.urandom(size * (stripes - 1))
    last = int.from_bytes(_gathered(material, size, hash), "little") ^ int.from_bytes(key, "little")
    return material + last.to_bytes(size, "little")


def merge(material: bytes, size: int, hash: str) -> bytes:
    """Get a key back from its stripes.

    :param size: bytes of the key.
    """
    gathered = _gathered(material[:-size], size, hash)
    last = int.from_bytes(gathered, "little") ^ int.from_bytes(material[-size:], "little")
    return last.to_bytes(size, "little")


def _gathered(material: bytes, size: int, hash: str) -> bytes:
    """All stripes but the last, each one added to the diffused sum of those before it: a chain, one after the other."""
    diffuse = _diffusion(size, hash)
    state = bytes(size)
    for start in range(0, len(material), size):
        mixed = int.from_bytes(state, "little") ^ int.from_bytes(material[start : start + size], "little")
        state = diffuse(mixed.to_bytes(size, "little"))
    return state


def _diffusion(size: int, hash: str) -> Callable[[bytes], bytes]:
    """Hash a stripe in pieces as long as the digest, each with its number in front; the last one may be shorter."""
    make = hash_function(hash)
    width = int(make(b"").digest_size)
    pieces = [(number.to_bytes(4, "big"), start) for number, start in enumerate(range(0, size, width))]

    def diffuse_short(stripe: bytes) -> bytes:
        digest: bytes = make(first + stripe).digest()
        return digest[:size]

    def diffuse(stripe: bytes) -> bytes:
        digests = [make(number + stripe[start : start + width]).digest() for number, start in pieces]
        return b"".join(digests)[:size]

    first = pieces[0][0]
    return diffuse_short if len(pieces) == 1 else diffuse
