"""The size syntax of command lines and option strings: ``512``, ``0x200``, ``64k``, ``1.5G``."""

from __future__ import annotations

import re

from .errors import InvalidOption

_UNITS = {"b": 0, "k": 10, "m": 20, "g": 30, "t": 40, "p": 50, "e": 60}
# Compiled when they are needed, which for many commands is never.
_HEX = r"\s*0[xX]([0-9a-fA-F]+)"
_DECIMAL = r"(?a)\s*(?:(\d+)(\.\d*)?|(\.\d+))([bBkKmMgGtTpPeE])?"

_INTEGER = r"(?a)\s*([-+]?)(0[xX][0-9a-fA-F]+|\d+)"
_NEGATIVE = r"(?a)\s*-(?:0[xX][0-9a-fA-F]+|\d+)"

_LONGEST = 1000
"""Characters; Python refuses to read numbers of several thousand."""

MAX_INT64 = 2**63 - 1
MAX_UINT64 = 2**64 - 1


class OutOfRange(InvalidOption):
    """A number, but one that is too small or too large for its purpose."""


def parse_size(text: str) -> int:
    """Bytes for a size as users write it: decimal with at most one binary suffix letter, or hexadecimal.

    :returns: 0 .. 2**64 - 1.
    :raises InvalidOption: with only the offending text as message; callers say what it was meant for.
    :raises OutOfRange: it is a size, but a negative one or one that large.
    Source: qemu ``qemu_strtosz``; fractions other than zero need a suffix other than ``b`` and are rounded half up.
    """
    size = _parse(text)
    if size is None and re.fullmatch(_NEGATIVE, text):
        raise OutOfRange(text)
    if size is None:
        raise InvalidOption(text)
    if size > MAX_UINT64:
        raise OutOfRange(text)
    return size


def _parse(text: str) -> int | None:
    """A size of any magnitude, ``None`` if the text is none."""
    if len(text) > _LONGEST:
        return None
    if match := re.fullmatch(_HEX, text):
        return int(match[1], 16)
    match = re.fullmatch(_DECIMAL, text)
    if match is None:
        return None
    fraction = match[2] or match[3] or ""
    shift = _UNITS[(match[4] or "b").lower()]
    decimals = fraction.removeprefix(".")
    if decimals.strip("0") and not shift:
        return None
    scaled = int((match[1] or "") + decimals) << shift
    divisor: int = 10 ** len(decimals)
    return (2 * scaled + divisor) // (2 * divisor)


def parse_cli_size(text: str, noun: str, least: int = 0, most: int = MAX_INT64) -> int:
    """A size given on the command line.

    :param noun: what the size is of, for messages: ``image size``, ``buffer size``.
    :param least: the smallest size that makes sense, bytes; ``most`` the largest.
    """
    size = _parse(text)
    if size is None and not re.fullmatch(_NEGATIVE, text):
        raise InvalidOption(f"Invalid {noun} specified: '{text}'.")
    return _bounded(-1 if size is None else size, noun, least, most)


def parse_cli_number(text: str, noun: str, least: int, most: int) -> int:
    """A count given on the command line: decimal, ``0x`` hexadecimal or ``0`` octal, without a suffix.

    :param noun: what is counted, for messages.
    :param least: the smallest number that makes sense; ``most`` the largest.
    """
    try:
        number = parse_integer(text)
    except ValueError:
        raise InvalidOption(f"Invalid {noun} specified: '{text}'.") from None
    return _bounded(number, noun, least, most)


def parse_integer(text: str) -> int:
    """A whole number as C programs read it: decimal, ``0x`` hexadecimal or ``0`` octal.

    :raises ValueError: it is none.
    """
    if not (match := re.fullmatch(_INTEGER, text)):
        raise ValueError(text)
    digits = match[2]
    octal = len(digits) > 1 and digits[0] == "0" and digits.isdecimal()
    return int(match[1] + digits, 8 if octal else 0)


def _bounded(number: int, noun: str, least: int, most: int) -> int:
    if not least <= number <= most:
        raise OutOfRange(f"Invalid {noun} specified. Must be between {least} and {most}.")
    return number


def human_size(size: int) -> str:
    """A size to be read by people: three significant digits and a binary unit, as ``196 KiB`` or ``1.99 TiB``."""
    units = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")
    index = 0
    # The unit steps up where three digits would no longer hold the number: at 1000, not at 1024.
    while index < len(units) - 1 and size >= 1000 << (10 * index):
        index += 1
    return f"{size / (1 << (10 * index)):0.3g} {units[index]}"
