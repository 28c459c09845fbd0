"""The size syntax of command lines and option strings: ``512``, ``0x200``, ``64k``, ``1.5G``."""

from __future__ import annotations

import re

from .errors import InvalidOption

_UNITS = {"b": 0, "k": 10, "m": 20, "g": 30, "t": 40, "p": 50, "e": 60}
_HEX = re.compile(r"\s*0[xX]([0-9a-fA-F]+)")
_DECIMAL = re.compile(r"\s*(?:(\d+)(\.\d*)?|(\.\d+))([bBkKmMgGtTpPeE])?", re.ASCII)

MAX_INT64 = 2**63 - 1
MAX_UINT64 = 2**64 - 1


class SizeOutOfRange(InvalidOption):
    """A size, but one that is negative or does not fit into 64 bits."""


def parse_size(text: str) -> int:
    """Bytes for a size as users write it: decimal with at most one binary suffix letter, or hexadecimal.

    :returns: 0 .. 2**64 - 1.
    :raises InvalidOption: with only the offending text as message; callers say what it was meant for.
    :raises SizeOutOfRange: likewise.
    Source: qemu ``qemu_strtosz``; fractions need a suffix other than ``b`` and are rounded half up.
    """
    unsigned = text.lstrip().removeprefix("-")
    size = _parse(unsigned)
    if size is None:
        raise InvalidOption(text)
    if size > MAX_UINT64 or (size and unsigned != text.lstrip()):
        raise SizeOutOfRange(text)
    return size


def _parse(text: str) -> int | None:
    """A size of any magnitude, ``None`` if the text is none."""
    if match := _HEX.fullmatch(text):
        return int(match[1], 16)
    match = _DECIMAL.fullmatch(text)
    if match is None:
        return None
    fraction = match[2] or match[3] or ""
    shift = _UNITS[(match[4] or "b").lower()]
    if fraction and not shift:
        return None
    decimals = fraction.removeprefix(".")
    scaled = int((match[1] or "") + decimals) << shift
    divisor: int = 10 ** len(decimals)
    return (2 * scaled + divisor) // (2 * divisor)


def parse_cli_size(text: str, noun: str) -> int:
    """A size given on the command line, 0 .. 2**63 - 1.

    :param noun: what the size is of, for messages: ``image size``, ``buffer size``.
    """
    size = _parse(text.lstrip().removeprefix("-"))
    if size is None:
        raise InvalidOption(f"Invalid {noun} specified: '{text}'")
    if size > MAX_INT64 or text.lstrip().startswith("-"):
        raise InvalidOption(f"Invalid {noun} specified. Must be between 0 and {MAX_INT64}.")
    return size


def human_size(size: int) -> str:
    """A size to be read by people: three significant digits and a binary unit, as ``196 KiB`` or ``1.99 TiB``."""
    units = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")
    index = 0
    # The unit steps up where three digits would no longer hold the number: at 1000, not at 1024.
    while index < len(units) - 1 and size >= 1000 << (10 * index):
        index += 1
    return f"{size / (1 << (10 * index)):0.3g} {units[index]}"
