"""What drivers are told when they are asked to open or create something, and what some of them answer with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from .errors import ImageError
from .node import Node
from .record import Record

PROBE_LENGTH = 2048
"""Bytes from the start of a file that ``probe`` is shown."""


class ProbeHit(Record):
    """An answer to ``probe``.

    :ivar format: the driver's registered name.
    :ivar score: 1 for "any bytes are possible" (raw) up to 100 for "the signature is there".
    """

    format: str
    score: int


def no_secrets(id: str) -> bytes:
    """Where no objects are defined, no secret exists.

    :raises ImageError: always.
    """
    raise ImageError(f"No secret with id '{id}'")


def say_nothing(text: str) -> None:
    """Nobody wants to know."""


class OpenOptions(Record):
    """What ``open`` of a format is told besides the node.

    :ivar filename: the name the user gave, for messages.
    :ivar writable: whether the image will be written.
    :ivar describe_only: only ``describe`` and ``snapshot_list`` will be asked: open no child, need no secret.
    :ivar values: the runtime options that were given, by name, each of the type that ``runtime_options`` declares.
    :ivar open_child: ``open_child(name, role)`` opens another file that the image refers to (role e.g. ``data-file``),
        through the caller's policy, with the image's own access mode. The name is a plain file name, never a URL.
    :ivar secret: ``secret(id)`` is the content of a secret object, decoded and decrypted.
    :ivar check: only ``check`` will be called: put up with whatever that will report, so that it can be repaired. An
        image opened like this and for writing is changed by nothing but the repair.
    :ivar children: the nodes that the user named for roles of ``child_roles``, opened, by role. An image closes them,
        as it closes the node that it stands in; if ``open`` fails, the core does.
    :ivar discard: whether the space of what is discarded is to be given back, where the format decides that.
    :ivar warn: tells the user something that does not stop anything; a text with a newline is shown as it is.
    """

    filename: str
    writable: bool
    describe_only: bool
    values: Mapping[str, Any]
    open_child: Callable[[str, str], Node]
    secret: Callable[[str], bytes] = no_secrets
    check: bool = False
    children: Mapping[str, Node] = MappingProxyType({})
    discard: bool = False
    warn: Callable[[str], None] = say_nothing


class GuestRange(Record):
    """Guest bytes that stand verbatim in the file of an image: offset on the disk and length, bytes."""

    offset: int
    length: int


class CreateOptions(Record):
    """What ``create`` of a format is told.

    :ivar filename: the name of the image, for messages.
    :ivar size: virtual size, bytes, a multiple of 512.
    :ivar values: the creation options by name, each of its declared type; options not given are absent.
    :ivar create_child: ``create_child(name, size, preallocation)`` creates or overwrites another file that belongs to
        the image (a data file, an extent) and opens it for writing.
    :ivar secret: ``secret(id)`` is the content of a secret object, decoded and decrypted.
    """

    filename: str
    size: int
    values: Mapping[str, Any]
    create_child: Callable[[str, int, str], Node]
    secret: Callable[[str], bytes] = no_secrets

    def get(self, name: str, default: Any = None) -> Any:
        """The value of an option, or the default."""
        return self.values.get(name, default)


class ProtocolOptions(Record):
    """What ``open`` and ``create`` of a protocol are told besides the name.

    :ivar writable: whether the node will be written.
    :ivar values: runtime or creation options by name.
    :ivar explicit: whether the user named this node, rather than an image.
    :ivar cache: cache mode: ``writeback``, ``writethrough``, ``none``, ``directsync``, ``unsafe`` or ``direct-unsafe``,
        which is ``none`` without ever flushing.
    """

    writable: bool = False
    values: Mapping[str, Any] = MappingProxyType({})
    explicit: bool = True
    cache: str = "writeback"


class FilterOptions(Record):
    """What ``open`` of a filter is told besides its children.

    :ivar writable: whether the disk will be written.
    :ivar values: the runtime options that were given, by name, each of its declared type.
    :ivar find_object: ``find_object(type, id)`` is an object that the user defined; raises :class:`LookupError` without
        one of that type with that id.
    :ivar read_file: ``read_file(path)`` is the content of a small file that an option names.
    :ivar find_node: ``find_node(name)`` is a node below that the user has named so; raises :class:`LookupError`.
    """

    writable: bool
    values: Mapping[str, Any]
    find_object: Callable[[str, str], Any]
    read_file: Callable[[str], bytes]
    find_node: Callable[[str], Node]


class CreatedNode(Node):
    """A node that is being created: it comes to be, or becomes what it is to replace, on ``commit`` only."""

    def commit(self) -> None:
        """The image in the node is complete: give it its name. The node stays open."""
        raise NotImplementedError

    def abandon(self) -> None:
        """Creation failed: close the node and leave everything as it was before."""
        raise NotImplementedError
