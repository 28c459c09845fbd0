"""What a user of diskwright allows: which files, formats and protocols, and how much of the machine.

A policy is the meeting of several: that of the installation, of the environment, of the command line, of a program that
uses the library. Each can only narrow what the others allow.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping
from functools import reduce, wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

from .errors import InvalidOption, RefusedByPolicy
from .options import option_values, parse_bool
from .record import Record
from .sizes import parse_size
from .tracing import POLICY_ALLOW, POLICY_REFUSE

VARIABLE = "DISKWRIGHT_POLICY"
"""Environment variable with a policy, in the syntax of :func:`parse_policy`."""
CONFIG_VARIABLE = "DISKWRIGHT_CONFIG"
"""Environment variable with the path of a configuration file that is read instead of the usual ones."""
CONFIG_FILES = ("/etc/diskwright/config.toml", "~/.config/diskwright/config.toml")
LOCAL_PROTOCOLS = frozenset({"file", "host_device"})
"""Protocols whose names are paths, to which a list of directories applies."""

Names = frozenset[str]
_Number = TypeVar("_Number", int, float)
_Arguments = ParamSpec("_Arguments")


def _told(
    check: Callable[Concatenate[Policy, str, _Arguments], None],
) -> Callable[Concatenate[Policy, str, _Arguments], None]:
    """Let who traces the program know what a check has decided."""

    @wraps(check)
    def told(policy: Policy, what: str, /, *arguments: _Arguments.args, **named: _Arguments.kwargs) -> None:
        name = str(arguments[0]) if arguments else None
        try:
            check(policy, what, *arguments, **named)
        except RefusedByPolicy as refusal:
            POLICY_REFUSE(what, name, str(refusal))
            raise
        POLICY_ALLOW(what, name)

    return told


class Policy(Record):
    """What is allowed. ``None`` means that there is no limit.

    :ivar implicit: whether files may be opened that an image names rather than the user, whatever they are to it.
    :ivar roles: what those files may be to the image that names them: ``backing``, ``data-file``, ``extent``.
    :ivar protocols: protocols by which anything may be opened.
    :ivar directories: directories that local files must be in, links resolved.
    :ivar formats: formats that may be opened.
    :ivar writable_formats: formats that may be opened for writing.
    :ivar memory: bytes of address space that a command may take.
    :ivar metadata: bytes of metadata that may be read of one image.
    :ivar time: seconds that a command may take.
    """

    implicit: bool = True
    roles: Names | None = None
    protocols: Names | None = None
    directories: Names | None = None
    formats: Names | None = None
    writable_formats: Names | None = None
    memory: int | None = None
    metadata: int | None = None
    time: float | None = None

    def narrowed(self, other: Policy) -> Policy:
        """What both policies allow."""
        return Policy(
            implicit=self.implicit and other.implicit,
            roles=_both(self.roles, other.roles),
            protocols=_both(self.protocols, other.protocols),
            directories=_both_directories(self.directories, other.directories),
            formats=_both(self.formats, other.formats),
            writable_formats=_both(self.writable_formats, other.writable_formats),
            memory=_least(self.memory, other.memory),
            metadata=_least(self.metadata, other.metadata),
            time=_least(self.time, other.time),
        )

    @_told
    def require_role(self, role: str, name: str) -> None:
        """Refuse a file that an image names.

        :param role: what it is to the image.
        :raises RefusedByPolicy: it is not allowed.
        """
        if not self.implicit or not _allows(self.roles, role):
            raise RefusedByPolicy(f"The policy forbids to open the {role} file '{name}' that the image names")

    @_told
    def require_name(self, protocol: str, path: str) -> None:
        """Refuse a file, device or export by its protocol and place.

        :raises RefusedByPolicy: it is not allowed.
        """
        if not _allows(self.protocols, protocol):
            raise RefusedByPolicy(f"The policy forbids the protocol '{protocol}'")
        if self.directories is None or protocol not in LOCAL_PROTOCOLS:
            return
        real = os.path.realpath(path)
        if not any(_is_inside(real, directory) for directory in self.directories):
            raise RefusedByPolicy(f"The policy forbids to open '{path}': it is in none of the allowed directories")

    @_told
    def require_format(self, format: str, *, writable: bool) -> None:
        """Refuse a format.

        :raises RefusedByPolicy: it may not be opened, or not for writing.
        """
        if not _allows(self.formats, format):
            raise RefusedByPolicy(f"The policy forbids the format '{format}'")
        if writable and not _allows(self.writable_formats, format):
            raise RefusedByPolicy(f"The policy forbids to write to images of the format '{format}'")


UNTRUSTED = Policy(implicit=False, protocols=LOCAL_PROTOCOLS, memory=768 << 20, metadata=256 << 20, time=10.0)
"""For images of strangers: nothing but the one file is opened, and the machine stays usable."""


def parse_policy(text: str) -> Policy:
    """A policy as a user writes it: ``backing=off,protocols=file:nbd,directories=/srv/images,memory=512M,time=10``.

    Lists are separated by colons. ``untrusted`` is short for :data:`UNTRUSTED`.

    :raises InvalidOption: an option is unknown or has a value that it cannot have.
    """
    return policy_of(option_values(text)) if text else Policy()


def policy_of(values: Mapping[str, Any]) -> Policy:
    """A policy of named values: text as on the command line, or what a configuration file holds.

    :raises InvalidOption: as :func:`parse_policy`.
    """
    settings: dict[str, Any] = {}
    base = Policy()
    forbidden = set()
    for name, value in values.items():
        if name == "untrusted":
            base = UNTRUSTED if _bool(name, value) else base
        elif name in ("backing", "data-file", "extent"):
            if not _bool(name, value):
                forbidden.add(name)
        elif name in _PARSERS:
            settings[name.replace("-", "_")] = _PARSERS[name](name, value)
        else:
            raise InvalidOption(f"Invalid policy: there is no '{name}'")
    if forbidden:
        settings["roles"] = frozenset({"backing", "data-file", "extent"} - forbidden)
    return base.narrowed(Policy(**settings))


def ambient_policy() -> Policy:
    """What the installation, the user's configuration and the environment allow.

    :raises InvalidOption: one of them is malformed.
    """
    found = [parse_policy(os.environ.get(VARIABLE, ""))]
    own = os.environ.get(CONFIG_VARIABLE)
    paths = [own] if own else [os.path.expanduser(path) for path in CONFIG_FILES]
    found += [_configured(path) for path in paths if own or os.path.exists(path)]
    return reduce(Policy.narrowed, found)


def _configured(path: str) -> Policy:
    import tomllib

    try:
        # Not through the gate: it says what the gate lets through.
        with open(path, "rb") as file:
            table = tomllib.load(file).get("policy", {})
        if not isinstance(table, dict):
            raise InvalidOption("'policy' is no table")
        return policy_of(table)
    except (OSError, ValueError) as error:
        # A policy that cannot be read might have forbidden what is about to be done.
        raise InvalidOption(f"Could not read the configuration '{path}': {error}") from None


def _bool(name: str, value: Any) -> bool:
    return value if isinstance(value, bool) else parse_bool(name, str(value))


def _names(name: str, value: Any) -> Names:
    if isinstance(value, str):
        return frozenset(filter(None, value.split(":")))
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return frozenset(value)
    raise InvalidOption(f"Invalid policy: '{name}' is a list of names")


def _directories(name: str, value: Any) -> Names:
    return frozenset(os.path.realpath(os.path.expanduser(path)) for path in _names(name, value))


def _size(name: str, value: Any) -> int:
    try:
        return parse_size(str(value))
    except InvalidOption:
        raise InvalidOption(f"Invalid policy: '{name}' is a size, not '{value}'") from None


def _seconds(name: str, value: Any) -> float:
    try:
        seconds = float(value)
    except (TypeError, ValueError):
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise InvalidOption(f"Invalid policy: '{name}' is a number of seconds, not '{value}'")
    return seconds


_PARSERS: Mapping[str, Callable[[str, Any], Any]] = {
    "implicit": _bool,
    "protocols": _names,
    "directories": _directories,
    "formats": _names,
    "writable-formats": _names,
    "memory": _size,
    "metadata": _size,
    "time": _seconds,
}


def _allows(names: Collection[str] | None, name: str) -> bool:
    return names is None or name in names


def _both(one: Names | None, other: Names | None) -> Names | None:
    if one is None or other is None:
        return other if one is None else one
    return one & other


def _both_directories(one: Names | None, other: Names | None) -> Names | None:
    if one is None or other is None:
        return other if one is None else one
    return frozenset(
        path
        for these, those in ((one, other), (other, one))
        for path in these
        if any(_is_inside(path, directory) for directory in those)
    )


def _is_inside(path: str, directory: str) -> bool:
    return path == directory or path.startswith(directory.rstrip("/") + "/")


def _least(one: _Number | None, other: _Number | None) -> _Number | None:
    if one is None or other is None:
        return other if one is None else one
    return min(one, other)
