"""JSON as qemu-img writes it: four spaces of indentation, pure ASCII, keys in the order of QEMU's hash table.

Scripts that parse JSON do not care for the order, those that compare text do.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

BUCKETS = 512
"""Size of QEMU's hash table."""

_SHORT = {'"': '\\"', "\\": "\\\\", "\b": "\\b", "\f": "\\f", "\n": "\\n", "\r": "\\r", "\t": "\\t"}


def ordered_items(mapping: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """The items of a mapping as QEMU orders them: by bucket; in one bucket, what was added last comes first."""
    numbered = [(_bucket(key), -index, key) for index, key in enumerate(mapping)]
    return [(key, mapping[key]) for _, _, key in sorted(numbered)]


def _bucket(key: str) -> int:
    data = key.encode("utf-8", "surrogatepass")
    value = 0x238F13AF * len(data)
    for index, byte in enumerate(data):
        value += byte << (index * 5 % 24)
    return (1103515243 * value + 12345 & 0xFFFFFFFF) % BUCKETS


def quote(text: str) -> str:
    """A JSON string. What is no valid Unicode (a byte of a file name that is no UTF-8) becomes U+FFFD."""
    if text.isascii() and text.isprintable() and '"' not in text and "\\" not in text:
        return f'"{text}"'
    return f'"{"".join(map(_quote_char, _decoded(text)))}"'


def _decoded(text: str) -> str:
    """The text with the bytes that Python could not decode replaced: one sign for a whole truncated sequence."""
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    except UnicodeEncodeError:  # surrogates that are no bytes of a file name
        return text


def _quote_char(char: str) -> str:
    if char in _SHORT:
        return _SHORT[char]
    code = ord(char)
    if 0x20 <= code < 0x7F:
        return char
    if code < 0x10000:
        return f"\\u{0xFFFD if 0xD800 <= code < 0xE000 else code:04X}"
    code -= 0x10000
    return f"\\u{0xD800 | code >> 10:04X}\\u{0xDC00 | code & 0x3FF:04X}"


def json_text(value: Any) -> str:
    """A value (mappings, sequences, text, integers, booleans, ``None``) as JSON, without a newline at the end."""
    return "".join(_pieces(value, 0))


def _pieces(value: Any, depth: int) -> Iterator[str]:
    if isinstance(value, str):
        yield quote(value)
    elif isinstance(value, Mapping):
        items = [(f"{quote(key)}: ", item) for key, item in ordered_items(value)]
        yield from _composite("{", "}", items, depth)
    elif isinstance(value, Sequence):
        yield from _composite("[", "]", [("", item) for item in value], depth)
    elif value is None or isinstance(value, bool):
        yield {None: "null", True: "true", False: "false"}[value]
    else:
        yield str(int(value))


def _composite(opening: str, closing: str, items: list[tuple[str, Any]], depth: int) -> Iterator[str]:
    indent = "    " * (depth + 1)
    yield f"{opening}\n"
    for index, (label, item) in enumerate(items):
        yield f"{indent}{label}"
        yield from _pieces(item, depth + 1)
        yield "\n" if index == len(items) - 1 else ",\n"
    yield f"{indent[4:]}{closing}"
