"""Rules of blkdebug: which requests fail, and what makes them do so.

An event that a rule waits for makes it active; the requests that follow fail as far as they match. Rules may ask for a
state, a number that other rules set.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from diskwright.errors import InvalidOption
from diskwright.node import SECTOR
from diskwright.options import parse_bool, parse_number
from diskwright.record import Record

from .plugin import INJECT_KEYS, STATE_KEYS

_EVENT_NAMES = """
    none l1_update l1_grow_alloc_table l1_grow_write_table l1_grow_activate_table l1_shrink_write_table
    l1_shrink_free_l2_clusters l2_load l2_update l2_update_compressed l2_alloc_cow_read l2_alloc_write
    read_aio read_backing_aio read_compressed write_aio write_compressed vmstate_load vmstate_save cow_read cow_write
    reftable_load reftable_grow reftable_update refblock_load refblock_update refblock_update_part refblock_alloc
    refblock_alloc_hookup refblock_alloc_write refblock_alloc_write_blocks refblock_alloc_write_table
    refblock_alloc_switch_table cluster_alloc cluster_alloc_bytes cluster_alloc_space cluster_free
    flush_to_os flush_to_disk pwritev pwritev_zero pwritev_done pwritev_rmw_head pwritev_rmw_after_head
    pwritev_rmw_tail pwritev_rmw_after_tail empty_image_prepare cor_write
"""
EVENTS = frozenset(_EVENT_NAMES.split())
_NO_REQUEST_NAMES = """
    cluster_alloc cluster_alloc_bytes cluster_alloc_space cluster_free cow_read cow_write empty_image_prepare
    l1_grow_alloc_table l1_grow_activate_table l2_alloc_cow_read l2_alloc_write l2_update_compressed reftable_grow
    refblock_alloc refblock_alloc_hookup refblock_alloc_switch_table refblock_alloc_write refblock_alloc_write_blocks
    refblock_alloc_write_table
"""
NO_REQUEST = frozenset(_NO_REQUEST_NAMES.split())
"""Steps that are no request by themselves: what follows them is announced separately, or is guest data."""
DEFAULT_TYPES = frozenset({"read", "write", "write-zeroes", "discard", "flush"})
TYPES = DEFAULT_TYPES | {"block-status"}
SECTIONS = {"inject-error": INJECT_KEYS, "set-state": STATE_KEYS}
ANYWHERE = -1
"""As an offset: wherever the request is."""

_GROUP = re.compile(r'\s*\[([^\s"\]]+)(?:\s+"[^"]*")?\]')
_SETTING = re.compile(r'\s*(\S+)(?:\s*=\s*"([^"]*)")?')


class Injection(Record):
    """Requests fail after an event.

    :ivar state: in which state only, 0 for any.
    :ivar types: of what requests.
    :ivar number: the system's error number; 0: they do not fail.
    :ivar offset: bytes; only requests over this place fail; :data:`ANYWHERE`.
    :ivar once: only the first of them.
    """

    event: str
    state: int
    types: frozenset[str]
    number: int
    offset: int
    once: bool

    def matches(self, kind: str, offset: int, length: int) -> bool:
        """Whether a request fails."""
        return kind in self.types and (self.offset == ANYWHERE or offset <= self.offset < offset + length)


class Transition(Record):
    """An event sets the state."""

    event: str
    state: int
    new_state: int


Rule = Injection | Transition


class Rules:
    """The rules of one node, and where it is in them. Callers see to it that one thread at a time is in here."""

    def __init__(self, rules: Iterable[Rule]) -> None:
        self._rules = list(rules)
        self._state = 1
        self._active: list[Injection] = []
        self.happened("none")

    def happened(self, event: str) -> None:
        """Note an event: injections that wait for it replace those that are active, transitions set the state."""
        state = self._state
        found = [rule for rule in self._rules if rule.event == event and rule.state in (0, state)]
        injections = [rule for rule in found if isinstance(rule, Injection)]
        if injections:
            self._active = injections
        for rule in found:
            if isinstance(rule, Transition):
                self._state = rule.new_state

    def error(self, kind: str, offset: int, length: int) -> int:
        """The error number with which a request fails, 0 if it does not."""
        for rule in self._active:
            if rule.matches(kind, offset, length):
                if rule.once:
                    self._active.remove(rule)
                return rule.number
        return 0

    def first(self, kind: str, offset: int, length: int) -> int | None:
        """Where in a range requests of a kind begin to fail, bytes; ``None`` if they do not."""
        places = [max(rule.offset, offset) for rule in self._active if rule.matches(kind, offset, length)]
        return min(places, default=None)


def read_config(text: str) -> Iterator[Rule]:
    """The rules of a configuration file.

    :raises InvalidOption: it is malformed.
    """
    section: str | None = None
    values: dict[str, str] = {}
    for line in text.splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        if group := _GROUP.match(line):
            if section is not None:
                yield _rule(section, values)
            section, values = group[1], {}
            if section not in SECTIONS:
                raise InvalidOption(f"There is no option group '{section}'")
            continue
        setting = _SETTING.match(line)
        if section is None or setting is None:
            raise InvalidOption("no group defined")
        if setting[1] not in SECTIONS[section]:
            raise InvalidOption(f"Invalid parameter '{setting[1]}'")
        values[setting[1]] = setting[2] or ""
    if section is not None:
        yield _rule(section, values)


def read_options(given: Mapping[str, Any]) -> Iterator[Rule]:
    """The rules among runtime options, ``inject-error.0.event`` and so on; a single rule needs no index.

    :raises InvalidOption: an index is left out, or a value does not fit.
    """
    for section in SECTIONS:
        by_index: dict[str, dict[str, str]] = {}
        for name, value in given.items():
            if name.startswith(f"{section}."):
                *index, key = name.removeprefix(f"{section}.").split(".")
                by_index.setdefault(".".join(index), {})[key] = value
        if "" in by_index:
            yield _rule(section, by_index.pop(""))
        for expected in range(len(by_index)):
            if str(expected) not in by_index:
                unused = min(by_index, key=int)
                raise InvalidOption(f"Unused option '{unused}.{next(iter(by_index[unused]))}' for [{section}]")
            yield _rule(section, by_index[str(expected)])


def _rule(section: str, values: Mapping[str, str]) -> Rule:
    if "event" not in values:
        raise InvalidOption("Missing event name for rule")
    event = _one_of(values["event"], EVENTS)
    state = _number("state", values, 0)
    if section == "set-state":
        return Transition(event, state, _number("new_state", values, 0))
    types = frozenset({_one_of(values["iotype"], TYPES)}) if "iotype" in values else DEFAULT_TYPES
    sector = values.get("sector", "-1").strip()
    offset = ANYWHERE if sector == "-1" else _number("sector", {"sector": sector.removeprefix("-")}, 0) * SECTOR
    if sector.startswith("-") and offset != ANYWHERE:
        offset = 1 << 63  # behind the end of everything
    parse_bool("immediately", values.get("immediately", "off"))  # there is no other way of failing here
    number = _number("errno", values, errno.EIO)
    return Injection(event, state, types, number, offset, parse_bool("once", values.get("once", "off")))


def _one_of(text: str, choices: frozenset[str]) -> str:
    if text not in choices:
        raise InvalidOption(f"invalid parameter value: {text}")
    return text


def _number(name: str, values: Mapping[str, str], default: int) -> int:
    return parse_number(name, values[name]) if name in values else default
