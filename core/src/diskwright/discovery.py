"""Which drivers are installed: stevedore looks through the metadata of all distributions, once for each state of them.

What it finds is kept in the user's cache directory. Looking for plugins takes longer than describing an image, and so
does importing what is needed to look.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from typing import Any, NamedTuple

FORMAT_GROUP = "diskwright.formats"
PROTOCOL_GROUP = "diskwright.protocols"
FILTER_GROUP = "diskwright.filters"
DRIVER_GROUPS = (FORMAT_GROUP, PROTOCOL_GROUP, FILTER_GROUP)
"""The entry point groups that drivers are found in."""
ALIASES = ".aliases"
"""What the group of further names ends in: there, an entry point's value is the name of the driver that is meant."""
GROUPS = (*DRIVER_GROUPS, *(group + ALIASES for group in DRIVER_GROUPS))
CACHE_VERSION = "3"
CACHE_PREFIX = "plugins-"
CACHED_STATES = 50
"""Environments, each at one moment, whose drivers are remembered."""


class EntryPoint(NamedTuple):
    """An entry point of a distribution.

    :ivar name: name of the driver.
    :ivar value: where its class is, ``module:attribute``.
    """

    name: str
    value: str

    def load(self) -> Any:
        """The object that the entry point names; importing it may raise anything."""
        from importlib import import_module

        module, _, attribute = self.value.partition(":")
        found: Any = import_module(module)
        for part in attribute.split("."):
            found = getattr(found, part)
        return found


def entry_points(group: str) -> list[EntryPoint]:
    """All entry points of a group, as distributions on ``sys.path`` declare them; a name may be there several times."""
    state = _state()
    path = _cache_path(state)
    found = _read(path, state)
    if found is None:
        found = {name: _scan(name) for name in GROUPS}
        _write(path, state, found)
    return found[group] if group in found else _scan(group)


def _scan(group: str) -> list[EntryPoint]:
    from stevedore import ExtensionManager

    # A test instance is one that loads nothing: listing is all that is wanted here.
    manager: Any = ExtensionManager.make_test_instance([], namespace=group)
    return sorted({EntryPoint(point.name, point.value) for point in manager.list_entry_points()})


def _state() -> str:
    """What the set of installed distributions depends on: installing one changes the time of a directory."""
    parts = [CACHE_VERSION, sys.version]
    for path in sys.path:
        try:
            parts.append(f"{path}={os.stat(path or '.').st_mtime_ns}")
        except OSError:
            parts.append(path)
    return "\t".join(parts).replace("\n", " ")


def _cache_path(state: str) -> str | None:
    from zlib import crc32

    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    if not os.path.isabs(base):
        return None
    return os.path.join(base, "diskwright", f"{CACHE_PREFIX}{crc32(os.fsencode(state)):08x}")


def _read(path: str | None, state: str) -> dict[str, list[EntryPoint]] | None:
    if path is None:
        return None
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            head, *lines = file.read().split("\n")
    except (OSError, ValueError):
        return None
    if head != state:
        return None
    found: dict[str, list[EntryPoint]] = {name: [] for name in GROUPS}
    for line in filter(None, lines):
        group, _, rest = line.partition("\t")
        name, _, value = rest.partition("\t")
        found.setdefault(group, []).append(EntryPoint(name, value))
    return found


def _write(path: str | None, state: str, found: dict[str, list[EntryPoint]]) -> None:
    """Keep what was found; a cache that cannot be written is no error."""
    if path is None:
        return
    lines = [state, *(f"{group}\t{name}\t{value}" for group, points in found.items() for name, value in points)]
    temporary = f"{path}.{os.getpid()}"
    with suppress(OSError):
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(temporary, "w", encoding="utf-8", errors="surrogateescape") as file:
            file.write("\n".join(lines) + "\n")
        os.replace(temporary, path)
        _tidy(os.path.dirname(path))


def _tidy(folder: str) -> None:
    """Remove what was kept of environments that have changed or gone since."""
    kept = [entry for entry in os.scandir(folder) if entry.name.startswith(CACHE_PREFIX)]
    for entry in sorted(kept, key=lambda entry: entry.stat().st_mtime, reverse=True)[CACHED_STATES:]:
        os.unlink(entry.path)
