"""Option trees: images named by the options of their nodes, ``driver=qcow2,file.filename=x`` or ``json:{...}``.

Both forms become one tree: a mapping whose values are scalars (text, but for what JSON calls a number or a boolean),
``None`` (for ``null``) or trees again. A list is a tree whose keys are ``0``, ``1``, ...
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeAlias

from .errors import InvalidOption
from .options import parse_bool, split_option_string
from .record import Record

Scalar: TypeAlias = str | int | float | bool | None
Tree: TypeAlias = dict[str, "Scalar | Tree"]

MAX_DEPTH = 64
"""Most levels of a tree."""

MAX_NAME = 4095
"""Characters of a ``json:`` name that is shown."""

JSON_PREFIX = "json:"

_QUOTED = r'(?s)"(?:[^"\\]|\\.)*"|\'(?:[^\'\\]|\\.)*\''
"""A string of the JSON dialect, in either kind of quotes."""


class OptionString(str):
    """An image named by an option string, as ``--image-opts`` takes it; it may stand wherever a file name may."""

    __slots__ = ()


class NodeOptions(Record):
    """What may be said of any node, whatever its driver.

    :ivar name: by which other nodes of the same tree may refer to it.
    :ivar read_only: ``None`` if nothing is said; as is ``force_share``.
    :ivar cache: cache mode, ``None`` if nothing is said.
    :ivar discard: whether the space of what is discarded is to be given back; ``None`` if nothing is said.
    :ivar detect_zeroes: ``off``; ``on``: zeros that are written become zero clusters or holes; ``unmap``: and space is
        given back for them.
    """

    name: str | None = None
    read_only: bool | None = None
    force_share: bool | None = None
    cache: str | None = None
    discard: bool | None = None
    detect_zeroes: str = "off"


def tree_from_options(text: str) -> Tree:
    """The tree of an option string with dotted keys, as ``--image-opts`` takes it.

    :raises InvalidOption: it is malformed.
    """
    pairs = split_option_string(text)
    first, value = pairs[0]
    if value is None:
        pairs[0] = ("file", first)  # a lone word names a node
    return crumple((name, "on" if value is None else value) for name, value in pairs)


def tree_from_json(name: str) -> Tree:
    """The tree of a ``json:`` file name, with nested objects, dotted keys, or both.

    :raises InvalidOption: it is no JSON object, or too deep.
    """
    import json

    try:
        value = json.loads(re.sub(_QUOTED, _double_quoted, name.removeprefix(JSON_PREFIX)))
    except ValueError as error:
        raise InvalidOption(f"Could not parse the JSON options: JSON parse error, {error}") from None
    except RecursionError:
        raise InvalidOption("Could not parse the JSON options: too deeply nested") from None
    if not isinstance(value, dict):
        raise InvalidOption("Invalid JSON object given")
    return crumple(_flatten(value))


def _double_quoted(match: re.Match[str]) -> str:
    """A string as JSON proper has it; QEMU's dialect allows single quotes too."""
    text = match[0]
    if text[0] == '"':
        return text
    inner = re.sub(r"\\'|\"", lambda quote: "'" if quote[0] == "\\'" else '\\"', text[1:-1])
    return f'"{inner}"'


def json_name(tree: Tree) -> str:
    """The ``json:`` file name of a tree, its keys in the order in which QEMU shows them.

    :returns: at most :data:`MAX_NAME` characters; a longer one ends in dots.
    """
    import json

    from .render.json_text import ordered_items

    def shown(item: Scalar | Tree) -> Any:
        if not isinstance(item, dict):
            return item
        if item and list(item) == [str(index) for index in range(len(item))]:
            return [shown(inner) for inner in item.values()]
        return {key: shown(inner) for key, inner in ordered_items(item)}

    name = JSON_PREFIX + json.dumps(shown(tree))
    return name if len(name) <= MAX_NAME else f"{name[: MAX_NAME - 3]}..."


def take_node_options(tree: Tree) -> NodeOptions:
    """Remove from a tree the options that all drivers have in common.

    ``auto-read-only`` and ``active`` are accepted and change nothing: what is not to be written is opened for reading
    anyway.

    :raises InvalidOption: one has a value that it cannot have.
    """
    name = _take_text(tree, "node-name")
    if name is not None and not re.fullmatch(r"[A-Za-z][A-Za-z0-9._-]{0,30}", name, re.ASCII):
        raise InvalidOption(f"Invalid node-name: '{name}'")
    _take_bool(tree, "auto-read-only")
    _take_bool(tree, "active")
    discard = _take_choice(tree, "discard", ("ignore", "off", "unmap", "on"), "Invalid discard option")
    zeroes = _take_choice(tree, "detect-zeroes", ("off", "on", "unmap"), "invalid parameter value: {}")
    if zeroes == "unmap" and discard not in ("unmap", "on"):
        raise InvalidOption("setting detect-zeroes to unmap is not allowed without setting discard operation to unmap")
    read_only, force_share = _take_bool(tree, "read-only"), _take_bool(tree, "force-share")
    if force_share and read_only is False:
        raise InvalidOption("force-share=on can only be used with read-only images")
    discards = None if discard is None else discard in ("unmap", "on")
    return NodeOptions(name, read_only, force_share, _take_cache(tree), discards, zeroes or "off")


def _take_text(tree: Tree, name: str) -> str | None:
    value = tree.pop(name, None)
    if isinstance(value, dict):
        raise InvalidOption(f"Parameter '{name}' expects a string")
    return None if value is None else scalar_text(value)


def _take_bool(tree: Tree, name: str, prefix: str = "") -> bool | None:
    """:param prefix: what stands before the name in messages."""
    value = _take_text(tree, name)
    return None if value is None else parse_bool(prefix + name, value)


def _take_choice(tree: Tree, name: str, choices: tuple[str, ...], message: str) -> str | None:
    """:param message: ``{}`` stands for the value."""
    value = _take_text(tree, name)
    if value is not None and value not in choices:
        raise InvalidOption(message.format(value))
    return value


def _take_cache(tree: Tree) -> str | None:
    cache = tree.get("cache")
    if not isinstance(cache, dict):
        return None
    del tree["cache"]
    direct, no_flush, writeback = (_take_bool(cache, name, "cache.") for name in ("direct", "no-flush", "writeback"))
    if cache:
        tree["cache"] = cache  # the driver may know the rest
    if no_flush:
        return "direct-unsafe" if direct else "unsafe"
    if direct:
        return "directsync" if writeback is False else "none"
    if direct is None and writeback is None:
        return None
    return "writethrough" if writeback is False else "writeback"


def scalar_text(value: Scalar) -> str:
    """A scalar as an option string has it."""
    if isinstance(value, bool):
        return "on" if value else "off"
    return "" if value is None else str(value)


def flat(tree: Tree) -> dict[str, Scalar]:
    """The tree's values by dotted keys."""
    return dict(_flatten(tree))


def nested(values: Mapping[str, Scalar]) -> Tree:
    """The tree of values by dotted keys: the reverse of :func:`flat`.

    :raises InvalidOption: a key stands both for a value and for a tree.
    """
    return crumple(values.items())


def _flatten(value: Mapping[str, Any]) -> Iterator[tuple[str, Scalar]]:
    """All values that are no objects or lists, by dotted keys; not recursive, since depth is in strangers' hands."""
    pending: list[tuple[str, Any]] = list(value.items())[::-1]
    while pending:
        key, item = pending.pop()
        if isinstance(item, Mapping):
            pending.extend((f"{key}.{name}", inner) for name, inner in list(item.items())[::-1])
        elif isinstance(item, list):
            pending.extend((f"{key}.{index}", inner) for index, inner in list(enumerate(item))[::-1])
        else:
            yield key, item


def crumple(pairs: Iterable[tuple[str, Scalar]]) -> Tree:
    """The tree of values by dotted keys; below a key that has a value itself, keys keep their dots."""
    values = dict(pairs)
    root: Tree = {}
    for key, value in values.items():
        parts = key.split(".")
        if len(parts) > MAX_DEPTH:
            raise InvalidOption(f"Options are nested more than {MAX_DEPTH} levels deep")
        node = root
        for level in range(len(parts) - 1):
            if ".".join(parts[: level + 1]) in values:
                node[".".join(parts[level:])] = value
                break
            inner = node.setdefault(parts[level], {})
            if isinstance(inner, dict):  # it is: a value there would have been met above
                node = inner
        else:
            node[parts[-1]] = value
    return root
