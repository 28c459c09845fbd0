"""Tracing: what the program does, told event by event to whoever asked for it with ``-T`` or :func:`start`.

Nothing is told by default, and then nothing is paid for: calls of a node are watched only if the node was opened while
somebody asked for them, everything else is behind one look at :attr:`Event.enabled`.
Core events are declared here; a plugin declares its own by making an :class:`Event` of it, and lists them in the hook
``trace_events``.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterable
from functools import wraps
from itertools import count
from typing import TYPE_CHECKING, Any, TypeAlias

from .render.printer import escape_text

if TYPE_CHECKING:
    from .node import Node

Sink: TypeAlias = Callable[[str], None]
"""Called with one line for each event, without a newline; by any thread, one at a time."""

events: dict[str, Event] = {}
"""All events that are declared so far, by name."""

_rules: list[tuple[re.Pattern[str], bool]] = []
"""Patterns in the order in which they were given, and whether they turn events on."""
_sinks: list[Sink] = []
"""Who is told: one, or none."""
_lock = threading.Lock()
_numbers = count(1)


class Event:
    """Something that can be told of. Declaring the same name again gives another way to the same event.

    :param name: starts with the name of the driver that tells, or with that of a part of the core.
    :param fields: the names of its values, in order.
    :param help: when it happens.
    :ivar enabled: whether somebody wants to know.
    """

    __slots__ = ("enabled", "fields", "help", "name")

    def __init__(self, name: str, *fields: str, help: str) -> None:
        self.name = name
        self.fields = fields
        self.help = help
        self.enabled = False
        for pattern, wanted in _rules:
            if pattern.fullmatch(name):
                self.enabled = wanted
        events[name] = self

    def __call__(self, *values: object) -> None:
        """Tell of it, if somebody wants to know.

        :param values: one for each field.
        """
        if not self.enabled or not _sinks:
            return
        pairs = (f"{field}={_shown(value)}" for field, value in zip(self.fields, values, strict=True))
        line = " ".join([self.name, *pairs])
        with _lock:
            _sinks[0](line)


def _shown(value: object) -> str:
    """Text in quotes and without control characters, so that a line is a line and its parts can be told apart."""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, str):
        return '"' + escape_text(value.replace("\\", "\\\\").replace('"', '\\"')) + '"'
    return "-" if value is None else str(value)


def start(patterns: Iterable[str], sink: Sink | None = None) -> None:
    """Turn events on; those that are declared later are meant too. The patterns add to those given before.

    :param patterns: names of events with ``*`` for any characters and ``?`` for any one; a minus sign in front turns
        events off.
    :param sink: who is told from now on, for instance ``logging.getLogger("diskwright").debug``; ``None``: who was.
    """
    if sink is not None:
        _sinks[:] = [sink]
    for text in patterns:
        wanted = not text.startswith("-")
        pattern = re.compile(_expression(text.removeprefix("-")), re.DOTALL)
        _rules.append((pattern, wanted))
        for event in events.values():
            if pattern.fullmatch(event.name):
                event.enabled = wanted


def stop() -> None:
    """Turn all events off and forget who was told of them."""
    _rules.clear()
    _sinks.clear()
    for event in events.values():
        event.enabled = False


def _expression(pattern: str) -> str:
    return "".join({"*": ".*", "?": "."}.get(char, re.escape(char)) for char in pattern)


def is_known(pattern: str) -> bool:
    """Whether an event has that name; what has a ``*`` in it need not match any, as with QEMU."""
    return "*" in pattern or any(re.fullmatch(_expression(pattern), name) for name in events)


NODE_OPEN = Event("node_open", "node", "driver", "filename", "writable", help="a file, device or image has been opened")
GRAPH_CHILD = Event("graph_child", "node", "role", "child", help="a node stands on another one")
GRAPH_BACKING = Event("graph_backing", "node", "backing", "depth", help="a backing layer is below another layer")
PROBE = Event("probe_format", "filename", "format", help="the format of a file has been found out")
POLICY_ALLOW = Event("policy_allow", "what", "name", help="the policy lets something be opened")
POLICY_REFUSE = Event("policy_refuse", "what", "name", "reason", help="the policy forbids to open something")
DRIVER_LOAD = Event("driver_load", "group", "name", help="a driver has been loaded")
OBJECT_ADD = Event("object_add", "type", "id", help="an object has been defined")
COMMAND_RUN = Event("command_run", "name", help="a subcommand begins")
COPY_BEGIN = Event("copy_begin", "target", "cell", "workers", help="a copy begins; cells have so many bytes")
COPY_CELL = Event("copy_cell", "offset", "length", "data", "zeros", help="a cell has been read, and is to be written")
COPY_ZEROS = Event("copy_zeros", "offset", "length", help="a range is to be written as zeros, without reading")
COPY_OFFLOAD = Event("copy_offload", "offset", "length", help="the system has copied a range from file to file")

_CALLS: dict[str, tuple[Event, Callable[..., tuple[object, ...]]]] = {
    "read_into": (
        Event("node_read", "node", "offset", "length", help="bytes are read from a node"),
        lambda offset, buffer: (offset, memoryview(buffer).nbytes),
    ),
    "read_encoded": (
        Event("node_read_encoded", "node", "offset", "length", help="compressed or encrypted bytes are read"),
        lambda offset, buffer: (offset, buffer.nbytes),
    ),
    "write_at": (
        Event("node_write", "node", "offset", "length", help="bytes are written to a node"),
        lambda offset, data: (offset, memoryview(data).nbytes),
    ),
    "write_zeroes": (
        Event("node_write_zeroes", "node", "offset", "length", "unmap", help="a range is made to read as zeros"),
        lambda offset, length, *, unmap: (offset, length, unmap),
    ),
    "discard": (
        Event("node_discard", "node", "offset", "length", help="the space of a range is given back"),
        lambda offset, length: (offset, length),
    ),
    "truncate": (
        Event("node_truncate", "node", "size", "preallocation", help="the size of a node is set"),
        lambda size, preallocation="off": (size, preallocation),
    ),
    "flush": (Event("node_flush", "node", help="what was written is made durable"), lambda: ()),
    "set_permissions": (
        Event("node_lock", "node", "used", "shared", help="a file is locked: what is done to it, what others may do"),
        lambda used, shared: (int(used), int(shared)),
    ),
    "note_event": (
        Event("node_step", "node", "step", help="the driver above a node is at a step that blkdebug's rules know"),
        lambda name: (name,),
    ),
    "allocate": (
        Event("image_allocate", "node", "offset", "length", help="an image is asked for places of guest bytes"),
        lambda offset, length: (offset, length),
    ),
    "link": (
        Event("image_link", "node", "places", help="data has been written, its places become part of the image"),
        lambda placements: (len(placements),),
    ),
    "compress": (
        Event("image_compress", "node", "length", help="a cluster is compressed"),
        lambda data: (data.nbytes,),
    ),
    "release": (Event("node_close", "node", help="a node is closed"), lambda: ()),
}
"""The methods of nodes that are watched: what is told of a call, and how its values come from the arguments."""


def number_of(node: object) -> int | None:
    """The number by which events name a node; ``None`` for one that is not watched."""
    number: int | None = getattr(node, "_trace_number", None)
    return number


def watch(node: Node, *, writable: bool) -> None:
    """A node has been opened: tell of that and, from now on, of the calls of its methods; off, this costs nothing."""
    if not _sinks or number_of(node) is not None:
        return
    number = next(_numbers)
    node._trace_number = number  # type: ignore[attr-defined]
    NODE_OPEN(number, node.driver, node.filename, writable)
    for role, child in node.children().items():
        GRAPH_CHILD(number, role, number_of(child))
    for name, (event, values) in _CALLS.items():
        method = getattr(node, name, None)
        if event.enabled and method is not None:
            setattr(node, name, _watched(method, event, number, values))


def _watched(
    method: Callable[..., Any], event: Event, number: int, values: Callable[..., tuple[object, ...]]
) -> Callable[..., Any]:
    @wraps(method)
    def told(*arguments: Any, **named: Any) -> Any:
        event(number, *values(*arguments, **named))
        return method(*arguments, **named)

    return told
