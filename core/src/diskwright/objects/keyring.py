"""Secrets that the kernel keeps: keys of type ``user`` and the like, by their serial number. Source: keyctl(2)."""

from __future__ import annotations

import errno
import os
import platform
from collections.abc import Callable, Mapping

from ..errors import ImageError, InvalidOption
from .secret import MAX_SECRET, Secret, decoded_secret

_SYSCALL_NUMBERS = {
    "aarch64": 219,
    "armv7l": 311,
    "i686": 288,
    "ppc64le": 271,
    "riscv64": 219,
    "s390x": 280,
    "x86_64": 250,
}
"""The number of ``keyctl`` by machine: neither the C library nor a maintained Python package has a function for it."""
_KEYCTL_READ = 11


def make_keyring_secret(values: Mapping[str, str], lookup: Callable[[str], bytes]) -> Secret:
    """A secret from its definition.

    :param values: ``serial``, and how the content is encoded, as for ``secret``.
    :raises InvalidOption: the serial number is none, or the content does not fit what is said of it.
    :raises ImageError: the kernel has no such key, or does not let us read it.
    """
    serial = int(values["serial"], 0)
    if not serial:
        raise InvalidOption("'serial' should not be equal to 0")
    try:
        content = read_key(serial)
    except OSError as error:
        shown = serial & 0xFFFFFFFF
        raise ImageError(f"Unable to read serial key {shown:08x}: {os.strerror(error.errno or 0)}") from None
    return decoded_secret(content, values, lookup)


def read_key(serial: int) -> bytes:
    """The content of a key.

    :param serial: its number, 32 bits.
    :raises OSError: the kernel has no such key or no keys at all, or does not let us read it.
    """
    import ctypes

    number = _SYSCALL_NUMBERS.get(platform.machine())
    if number is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    buffer = ctypes.create_string_buffer(MAX_SECRET)
    system_call = ctypes.CDLL(None, use_errno=True).syscall
    system_call.restype = ctypes.c_long
    length: int = system_call(
        ctypes.c_long(number),
        ctypes.c_int(_KEYCTL_READ),
        ctypes.c_int(serial),
        buffer,
        ctypes.c_size_t(MAX_SECRET),
        ctypes.c_long(0),
    )
    if length < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return buffer.raw[: min(length, MAX_SECRET)]
