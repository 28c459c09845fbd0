"""Secrets: passwords and keys, given in plain text or in a file, perhaps in base64, perhaps encrypted with another one.

Source: qemu ``crypto/secret_common.c`` and the description of ``-object secret`` in qemu(1).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from ..errors import ImageError, InvalidOption, reason_of

MAX_SECRET = 1 << 20
"""Bytes; what is longer is no password and no key."""

_BLOCK = 16
_KEY = 32
_BASE64 = rb"[A-Za-z0-9+/=\n]*"


class Secret:
    """Bytes that do not show up in messages: neither ``repr`` nor ``str`` tell them."""

    __slots__ = ("_value",)

    def __init__(self, value: bytes) -> None:
        self._value = value

    def reveal(self) -> bytes:
        """The bytes."""
        return self._value

    def __repr__(self) -> str:
        return "Secret(...)"

    def __reduce__(self) -> str:
        raise TypeError("a secret is not to be stored")


def make_secret(values: Mapping[str, str], lookup: Callable[[str], bytes]) -> Secret:
    """A secret from its definition.

    :param values: ``data`` or ``file``, and how that is encoded: ``format``, ``keyid`` and ``iv``.
    :param lookup: gives the content of another secret, with which this one may be encrypted.
    :raises InvalidOption: the definition contradicts itself, or does not fit what is given.
    :raises ImageError: a file cannot be read, the other secret does not exist.
    """
    return decoded_secret(_content(values), values, lookup)


def decoded_secret(content: bytes, values: Mapping[str, str], lookup: Callable[[str], bytes]) -> Secret:
    """A secret from what was found, as the definition says that it is encoded."""
    encoding = values.get("format", "raw")
    # An empty value counts as not given, as QEMU has it.
    if key_id := values.get("keyid"):
        key = lookup(key_id)
        content = _decrypted(_decoded(content) if encoding == "base64" else content, key, values.get("iv"))
    elif encoding == "base64":
        content = _decoded(content)
    return Secret(content)


def _content(values: Mapping[str, str]) -> bytes:
    if "file" in values and "data" in values:
        raise InvalidOption("'file' and 'data' are mutually exclusive")
    if "data" in values:
        return values["data"].encode("utf-8", "surrogateescape")
    if "file" not in values:
        raise InvalidOption("Either 'file' or 'data' must be provided")
    filename = values["file"]
    try:
        # Not through the gate: this may well be a pipe (``file=/dev/fd/3``), and only the user can name it.
        with open(filename, "rb") as file:
            content = file.read(MAX_SECRET + 1)
    except ValueError:
        raise ImageError("A file name cannot contain a null character") from None
    except OSError as error:
        raise ImageError(f"Unable to read {filename}: {reason_of(error)}") from None
    if len(content) > MAX_SECRET:
        raise ImageError(f"Unable to read {filename}: a secret has at most {MAX_SECRET} bytes")
    return content


def _decoded(content: bytes) -> bytes:
    from binascii import Error, a2b_base64

    if not re.fullmatch(_BASE64, content):
        raise InvalidOption("Base64 data contains invalid characters")
    try:
        return a2b_base64(content)
    except Error:
        raise InvalidOption("Base64 data is incomplete") from None


def _decrypted(content: bytes, key: bytes, iv_text: str | None) -> bytes:
    """Undo AES-256-CBC with padding as of PKCS#7."""
    if len(key) != _KEY:
        raise InvalidOption(f"Key should be {_KEY} bytes in length")
    if not iv_text:
        raise InvalidOption("IV is required to decrypt secret")
    iv = _decoded(iv_text.encode("utf-8", "surrogateescape"))
    if len(iv) != _BLOCK:
        raise InvalidOption(f"IV should be {_BLOCK} bytes in length not {len(iv)}")
    if len(content) % _BLOCK:
        raise InvalidOption(f"Length {len(content)} must be a multiple of block size {_BLOCK}")
    if not content:
        return b""
    padded = _aes_cbc_decrypt(content, key, iv)
    padding = padded[-1]
    if not 1 <= padding <= _BLOCK:
        raise InvalidOption(f"Incorrect number of padding bytes ({padding}) found on decrypted data")
    return padded[:-padding]


def _aes_cbc_decrypt(content: bytes, key: bytes, iv: bytes) -> bytes:
    try:
        from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
    except ImportError:
        raise ImageError(
            "Encrypted secrets need the package 'cryptography'", hint="pip install 'diskwright-core[secrets]'"
        ) from None
    decryptor = Cipher(algorithms.AES(key), modes.CBC(iv)).decryptor()
    return decryptor.update(content) + decryptor.finalize()
