"""What a file name means: a path, or a protocol and what it is to open; and what a name inside an image refers to."""

from __future__ import annotations

import os
import stat

from .errors import InvalidOption
from .record import Record


class FileName(Record):
    """A name taken apart.

    :ivar protocol: name of the protocol driver.
    :ivar path: what that driver is to open: a path, or the whole URL.
    """

    protocol: str
    path: str


def protocol_prefix(name: str) -> str | None:
    """The protocol that a name starts with, ``None`` for a plain path.

    A colon counts only if no slash comes before it, so ``./a:b`` is a path.
    """
    prefix, colon, _ = name.partition(":")
    return prefix if colon and "/" not in prefix else None


def parse_filename(name: str) -> FileName:
    """Take apart a name that a user gave, or a backing name (those may have a protocol)."""
    prefix = protocol_prefix(name)
    if prefix == "file":
        path = name.removeprefix("file:")
        # Shown to users, who may use it again: a path that looks like one with a protocol needs something in front.
        return local_filename(path if protocol_prefix(path) is None else f"./{path}")
    if prefix is not None:
        return FileName(prefix, name)
    return local_filename(name)


def local_filename(path: str) -> FileName:
    """A name that is a path whatever it looks like: names of data files and extents inside images are."""
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):
        return FileName("file", path)
    return FileName("host_device" if stat.S_ISBLK(mode) or stat.S_ISCHR(mode) else "file", path)


def backing_filename(overlay: str, backing: str) -> str:
    """The name under which to open a backing file that an overlay names: relative names are relative to the overlay.

    :param overlay: the name that the overlay was opened by.
    :param backing: the name that stands in the overlay.
    :raises InvalidOption: the overlay has no name that something could be relative to.
    """
    if os.path.isabs(backing) or protocol_prefix(backing) is not None:
        return backing
    if protocol_prefix(overlay) == "json":
        raise InvalidOption(f"Cannot use relative backing file names for '{overlay}'")
    # A protocol prefix of the overlay stays in front: everything up to the last slash is kept.
    directory, slash, _ = overlay.rpartition("/")
    if slash:
        return f"{directory}/{backing}"
    prefix = protocol_prefix(overlay)
    return f"{prefix}:{backing}" if prefix else backing
