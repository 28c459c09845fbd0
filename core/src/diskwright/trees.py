"""Option trees: images named by the options of their nodes, ``driver=qcow2,file.filename=x`` or ``json:{...}``.

Both forms become one tree: a mapping whose values are text, ``None`` (for ``null``) or trees again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from .errors import InvalidOption
from .options import parse_bool, split_option_string

Tree: TypeAlias = dict[str, "str | Tree | None"]

MAX_DEPTH = 64
"""Most levels of a tree."""

JSON_PREFIX = "json:"


class OptionString(str):
    """An image named by an option string, as ``--image-opts`` takes it; it may stand wherever a file name may."""

    __slots__ = ()


@dataclass(frozen=True)
class NodeOptions:
    """What may be said of any node, whatever its driver.

    :ivar cache: cache mode, ``None`` if nothing is said.
    :ivar discard: whether the space of what is discarded is to be given back.
    """

    read_only: bool = False
    force_share: bool = False
    cache: str | None = None
    discard: bool = False


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
        value = json.loads(name.removeprefix(JSON_PREFIX))
    except ValueError as error:
        raise InvalidOption(f"Could not parse the JSON options: JSON parse error, {error}") from None
    except RecursionError:
        raise InvalidOption("Could not parse the JSON options: too deeply nested") from None
    if not isinstance(value, dict):
        raise InvalidOption("Invalid JSON object given")
    return crumple(_flatten(value))


def json_name(tree: Tree) -> str:
    """The ``json:`` file name of a tree, its keys in the order in which QEMU shows them."""
    import json

    from .render.json_text import ordered_items

    def ordered(node: Tree) -> Tree:
        return {key: ordered(item) if isinstance(item, dict) else item for key, item in ordered_items(node)}

    return JSON_PREFIX + json.dumps(ordered(tree))


def take_node_options(tree: Tree) -> NodeOptions:
    """Remove from a tree the options that all drivers have in common.

    ``node-name``, ``auto-read-only`` and ``detect-zeroes`` are accepted and change nothing: zeros are looked for where
    a command does that by itself.

    :raises InvalidOption: one has a value that it cannot have.
    """
    tree.pop("node-name", None)
    _take_bool(tree, "auto-read-only")
    discard = _take_choice(tree, "discard", ("ignore", "off", "unmap", "on"), "Invalid discard option")
    _take_choice(tree, "detect-zeroes", ("off", "on", "unmap"), "Parameter 'detect-zeroes' does not accept that value")
    read_only, force_share = _take_bool(tree, "read-only"), _take_bool(tree, "force-share")
    return NodeOptions(bool(read_only), bool(force_share), _take_cache(tree), discard in ("unmap", "on"))


def _take_bool(tree: Tree, name: str) -> bool | None:
    value = tree.pop(name, None)
    return None if value is None else parse_bool(name, value if isinstance(value, str) else "")


def _take_choice(tree: Tree, name: str, choices: tuple[str, ...], message: str) -> str | None:
    value = tree.pop(name, None)
    if value is None:
        return None
    if not isinstance(value, str) or value not in choices:
        raise InvalidOption(message)
    return value


def _take_cache(tree: Tree) -> str | None:
    cache = tree.get("cache")
    if not isinstance(cache, dict):
        return None
    del tree["cache"]
    direct, no_flush = _take_bool(cache, "direct"), _take_bool(cache, "no-flush")
    writeback = _take_bool(cache, "writeback")
    if cache:
        tree["cache"] = cache  # the driver may know the rest
    if no_flush:
        return "unsafe"
    if direct:
        return "directsync" if writeback is False else "none"
    if direct is None and writeback is None:
        return None
    return "writethrough" if writeback is False else "writeback"


def flat(tree: Tree) -> dict[str, str | None]:
    """The tree's values by dotted keys."""
    return dict(_flatten(tree))


def _flatten(value: Mapping[str, Any]) -> Iterator[tuple[str, str | None]]:
    """All values that are no objects or lists, by dotted keys; not recursive, since depth is in strangers' hands."""
    pending: list[tuple[str, Any]] = list(value.items())[::-1]
    while pending:
        key, item = pending.pop()
        if isinstance(item, Mapping):
            pending.extend((f"{key}.{name}", inner) for name, inner in list(item.items())[::-1])
        elif isinstance(item, list):
            pending.extend((f"{key}.{index}", inner) for index, inner in list(enumerate(item))[::-1])
        elif isinstance(item, bool):
            yield key, "on" if item else "off"
        else:
            yield key, None if item is None else str(item)


def crumple(pairs: Iterable[tuple[str, str | None]]) -> Tree:
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
