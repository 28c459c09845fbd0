"""blkdebug: requests to a node fail as rules say."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from typing import Any

from diskwright.errors import InvalidOption, NodeIOError, io_error
from diskwright.extent import Extent, ExtentTable
from diskwright.hookspecs import FilterOptions
from diskwright.node import Buffer, Bytes, Node, Permission
from diskwright.passing import Passing

from .rules import NO_REQUEST, Rule, Rules, read_config, read_options

PERMISSIONS = {
    "consistent-read": Permission.CONSISTENT_READ,
    "write": Permission.WRITE,
    "write-unchanged": Permission.WRITE_UNCHANGED,
    "resize": Permission.RESIZE,
}
MAX_LIMIT = (1 << 31) - 1
"""Limits are below this many bytes."""


class Blkdebug(Passing):
    """The node below, but requests may fail.

    Events come from the driver above (:meth:`note_event`). A request that the driver has announced like this is about
    its metadata; all others are guest data and are events themselves: ``read_aio``, ``write_aio``.

    :raises InvalidOption: a rule or limit is malformed.
    :raises NodeIOError: the configuration file cannot be read.
    """

    watches_reads = True

    def __init__(self, below: Node, options: FilterOptions) -> None:
        super().__init__(below, role="image", writable=options.writable)
        values = options.values
        self._limits = {name: value for name, value in values.items() if isinstance(value, int)}
        self._rules_lock = threading.Lock()
        self._announced = threading.local()
        self._rules = Rules([*_configured(options), *read_options(values)])
        self._require_limits()
        self._taken = _permissions("take-child-perms", values)
        self._unshared = _permissions("unshare-child-perms", values)
        if self._taken & Permission.WRITE and not options.writable:
            raise InvalidOption("Block node is read-only")
        if not below.filename.startswith("json:"):
            self.plain_name = f"blkdebug:{values.get('config', '')}:{below.filename}"
            self.said_by_name = frozenset({"config"})

    def _require_limits(self) -> None:
        align = self._limits.get("align", 0)
        if align and (align >= MAX_LIMIT or align & (align - 1)):
            raise InvalidOption(f"Cannot meet constraints with align {align}")
        align = align or 1
        self._require_multiple("max-transfer", align)
        for what in ("write-zero", "discard"):
            self._require_multiple(f"opt-{what}", align)
            self._require_multiple(f"max-{what}", max(align, self._limits.get(f"opt-{what}", 0)))

    def _require_multiple(self, name: str, unit: int) -> None:
        value = self._limits.get(name, 0)
        if value >= MAX_LIMIT or value % unit:
            raise InvalidOption(f"Cannot meet constraints with {name} {value}")

    def allocated_size(self) -> int | None:
        """Not told, as by QEMU."""
        return None

    def set_permissions(self, used: Permission, shared: Permission) -> None:
        """What the options say comes on top of what the driver above does."""
        super().set_permissions(used | self._taken, shared & ~self._unshared)

    def note_event(self, name: str) -> None:
        """What the driver above is about to do."""
        if name not in NO_REQUEST:
            self._announced.now = True
        self._happened(name)

    def _happened(self, event: str) -> None:
        if event != "none":
            with self._rules_lock:
                self._rules.happened(event)

    def _begins(self, event: str) -> None:
        """A request begins; it is an event itself unless the driver has announced it."""
        if getattr(self._announced, "now", False):
            self._announced.now = False
        else:
            self._happened(event)

    def _may_fail(self, kind: str, offset: int = 0, length: int = 0) -> None:
        with self._rules_lock:
            number = self._rules.error(kind, offset, length)
        if number:
            raise io_error("", number)

    def _pieces(self, limit: str, offset: int, length: int) -> Iterator[tuple[int, int]]:
        """A request as requests within a limit: (offset, length)."""
        most = self._limits.get(limit) or length
        for done in range(0, length, most or 1):
            yield offset + done, min(most, length - done)

    def extents(self, offset: int = 0, length: int | None = None) -> Iterator[Extent | ExtentTable]:
        """The map of the node below, up to where asking for it fails."""
        length = max(0, self.size - offset) if length is None else length
        with self._rules_lock:
            failing = self._rules.first("block-status", offset, length)
        if failing is None:
            yield from super().extents(offset, length)
            return
        yield from super().extents(offset, failing - offset)
        self._may_fail("block-status", failing, 1)
        yield from super().extents(failing, offset + length - failing)

    def read_into(self, offset: int, buffer: Buffer) -> None:
        """From the node below, if no rule is against it."""
        view = memoryview(buffer).cast("B")
        self._begins("read_aio")
        for start, length in self._pieces("max-transfer", offset, len(view)):
            self._may_fail("read", start, length)
            super().read_into(start, view[start - offset : start - offset + length])

    def write_at(self, offset: int, data: Bytes) -> None:
        """To the node below, if no rule is against it."""
        view = memoryview(data).cast("B")
        self._begins("write_aio")
        for start, length in self._pieces("max-transfer", offset, len(view)):
            self._happened("pwritev")
            self._may_fail("write", start, length)
            super().write_at(start, view[start - offset : start - offset + length])
            self._happened("pwritev_done")

    def write_zeroes(self, offset: int, length: int, *, unmap: bool) -> None:
        """By the node below, if no rule is against it."""
        self._begins("none")
        for start, part in self._pieces("max-write-zero", offset, length):
            self._happened("pwritev_zero")
            self._may_fail("write-zeroes", start, part)
            super().write_zeroes(start, part, unmap=unmap)

    def discard(self, offset: int, length: int) -> None:
        """By the node below, if no rule is against it."""
        self._begins("none")
        for start, part in self._pieces("max-discard", offset, length):
            self._may_fail("discard", start, part)
            super().discard(start, part)

    def flush(self) -> None:
        """Of the node below, if no rule is against it."""
        if self.read_only:
            return
        self._happened("flush_to_os")
        self._happened("flush_to_disk")
        self._may_fail("flush")
        super().flush()


def _permissions(name: str, values: Mapping[str, Any]) -> Permission:
    """The permissions that a list among the options names.

    :raises InvalidOption: an element is missing, or no permission.
    """
    elements = {key.removeprefix(f"{name}."): text for key, text in values.items() if key.startswith(f"{name}.")}
    found = Permission(0)
    for index in range(len(elements)):
        if str(index) not in elements:
            largest = max(map(int, elements))
            raise InvalidOption(
                f"List indices are not contiguous, saw {len(elements)} elements but {largest} largest index"
            )
        text = elements[str(index)]
        if text not in PERMISSIONS:
            raise InvalidOption(f"Parameter '{name}.{index}' does not accept value '{text}'")
        found |= PERMISSIONS[text]
    return found


def _configured(options: FilterOptions) -> Iterator[Rule]:
    if "config" in options.values:
        try:
            text = options.read_file(options.values["config"]).decode("utf-8", "replace")
        except OSError as error:
            raise NodeIOError("Could not read blkdebug config file", error) from error
        yield from read_config(text)
