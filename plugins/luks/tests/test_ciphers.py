"""Sector ciphers over chunks, against the same modes of the library sector by sector."""

import random
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from diskwright.errors import InvalidImage, UnsupportedFeature
from diskwright_luks.ciphers import CHUNK_SECTORS, CtrCipher, IvGenerator, SectorCipher, sector_cipher

MODES: list[tuple[str, int, Callable[[bytes], Any]]] = [
    ("xts", 32, modes.XTS),
    ("xts", 64, modes.XTS),
    ("cbc", 16, modes.CBC),
    ("cbc", 24, modes.CBC),
    ("cbc", 32, modes.CBC),
    ("ctr", 32, modes.CTR),
    ("ecb", 32, lambda iv: modes.ECB()),
]


def reference(key: bytes, mode: Any, data: bytes) -> bytes:
    encryptor = Cipher(algorithms.AES(key), mode).encryptor()
    return encryptor.update(data) + encryptor.finalize()


def encrypted(cipher: SectorCipher, sector: int, data: bytes) -> bytes:
    out = bytearray(len(data))
    cipher.encrypt(sector, data, out)
    return bytes(out)


@pytest.mark.parametrize(("mode", "size", "library"), MODES)
@pytest.mark.parametrize("first", [0, 1, 2**32 - 3, 2**55 - 1])
def test_each_sector_is_as_the_library_has_it(
    mode: str, size: int, library: Callable[[bytes], Any], first: int
) -> None:
    chance = random.Random(size)
    key, data = chance.randbytes(size), chance.randbytes(7 * 512)
    cipher = sector_cipher("aes", mode, "plain64", None, key)
    found = encrypted(cipher, first, data)
    for index in range(7):
        here = slice(512 * index, 512 * index + 512)
        assert found[here] == reference(key, library((first + index).to_bytes(16, "little")), data[here])
    again = bytearray(found)
    cipher.decrypt(first, again, again)
    assert again == data


@pytest.mark.parametrize(("mode", "size", "library"), MODES)
def test_chunks_join(mode: str, size: int, library: Callable[[bytes], Any]) -> None:
    chance = random.Random(1)
    cipher = sector_cipher("aes", mode, "plain64", None, chance.randbytes(size))
    data = chance.randbytes((CHUNK_SECTORS + 3) * 512)
    found = encrypted(cipher, 5, data)
    for index in (0, CHUNK_SECTORS - 1, CHUNK_SECTORS, CHUNK_SECTORS + 2):
        here = slice(512 * index, 512 * index + 512)
        assert found[here] == encrypted(cipher, 5 + index, data[here])


def test_xts_with_192_bits() -> None:
    """The library refuses XTS with keys of this size: masks by hand."""
    key, data = random.Random(2).randbytes(48), bytes(512)
    found = encrypted(sector_cipher("aes", "xts", "plain64", None, key), 9, data)
    tweak = int.from_bytes(reference(key[24:], modes.ECB(), (9).to_bytes(16, "little")), "little")
    for block in range(32):
        mask = tweak.to_bytes(16, "little")
        inner = reference(key[:24], modes.ECB(), mask)
        assert found[16 * block : 16 * block + 16] == bytes(a ^ b for a, b in zip(inner, mask, strict=True))
        tweak = tweak << 1 & (1 << 128) - 1 ^ (0x87 if tweak >> 127 else 0)


def test_plain_wraps_where_plain64_does_not() -> None:
    key, data = bytes(range(32)), bytes(512)
    plain, plain64 = (sector_cipher("aes", "cbc", name, None, key) for name in ("plain", "plain64"))
    assert encrypted(plain, 2**32 + 5, data) == encrypted(plain64, 5, data)
    assert encrypted(plain64, 2**32 + 5, data) != encrypted(plain64, 5, data)


def test_essiv_encrypts_the_number_with_the_hashed_key() -> None:
    key, data = bytes(range(32)), bytes(512)
    digest = hashes.Hash(hashes.SHA256())
    digest.update(key)
    vector = reference(digest.finalize(), modes.ECB(), (77).to_bytes(16, "little"))
    cipher = sector_cipher("aes", "cbc", "essiv", "sha256", key)
    assert encrypted(cipher, 77, data) == reference(key, modes.CBC(vector), data)


@pytest.mark.parametrize("upper", [b"\0" * 8, b"\1" * 8, b"\xff" * 8])
def test_ctr_carries_into_the_upper_word(upper: bytes) -> None:
    """With essiv the counter may start just before it overflows."""
    vector = upper + b"\xff" * 7 + b"\xf0"

    class Fixed(IvGenerator):
        def __call__(self, sector: int, count: int) -> Any:
            return np.frombuffer(vector * count, "<u8").reshape(count, 2)

    key, data = bytes(range(32)), random.Random(3).randbytes(512)
    cipher = CtrCipher(key, Fixed("plain64", key, None))
    assert encrypted(cipher, 1, data) == reference(key, modes.CTR(vector), data)


def test_threads_do_not_disturb_each_other() -> None:
    cipher = sector_cipher("aes", "xts", "plain64", None, bytes(range(64)))
    data = random.Random(4).randbytes(512 * 300)
    expected = [encrypted(cipher, 1000 * number, data) for number in range(4)]
    wrong: list[int] = []

    def work(number: int) -> None:
        wrong.extend(number for _ in range(30) if encrypted(cipher, 1000 * number, data) != expected[number])

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("serpent", "xts", "plain64", None, bytes(64)), "Algorithm 'serpent' not supported"),
        (("aes", "lrw", "plain64", None, bytes(32)), "Cipher mode 'lrw' not supported"),
        (("aes", "xts", "plain64", None, bytes(63)), "Algorithm 'aes' with key size 31 bytes not supported"),
        (("aes", "cbc", "benbi", None, bytes(32)), "IV generator 'benbi' not supported"),
        (("aes", "cbc", "essiv", "sha512", bytes(32)), "No AES cipher with key size 64 available"),
        (("aes", "cbc", "essiv", "foo", bytes(32)), "Hash algorithm 'foo' not supported"),
    ],
)
def test_what_is_not_known_is_named(arguments: Any, message: str) -> None:
    with pytest.raises(UnsupportedFeature, match=f"^{message}$"):
        sector_cipher(*arguments)


def test_essiv_needs_a_hash() -> None:
    with pytest.raises(InvalidImage, match="Missing IV generator hash"):
        sector_cipher("aes", "cbc", "essiv", None, bytes(32))
