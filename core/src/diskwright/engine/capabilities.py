"""What is installed, as drivers and parsers declare it: for programs that adapt to it."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from .. import COMPATIBLE_VERSION, __version__
from ..discovery import entry_points
from ..errors import ImageError
from ..objects.kinds import KINDS
from ..options import Option
from ..parsers import COMMANDS, CommandParser, command_parser
from .checking import repairs
from .hashtree import ALGORITHMS

if TYPE_CHECKING:
    from ..context import Context
    from ..registry import Registry

ABILITIES = {
    "create": "create",
    "amend": "amend",
    "check": "check",
    "resize": "resize",
    "measure": "measure",
    "rebase": "set_backing",
    "snapshots": "snapshot_create",
    "bitmaps": "bitmap_add",
}
"""What can be done with images of a format, by the hook that does it."""

_CHANGING = frozenset(ABILITIES) - {"check", "measure"}


def capabilities(context: Context, program: str = "diskwright") -> dict[str, Any]:
    """All that is installed, and that the policy of the context allows, as JSON has it; the user guide lists the keys.

    :param program: the name that the command line is called by; its examples start with it.
    """
    return {
        "version": __version__,
        "qemu-version": COMPATIBLE_VERSION,
        "formats": [
            _format(context, name, aliases) for name, aliases in _names(context.formats) if _allowed(context, name)
        ],
        "protocols": [_protocol(context, name, aliases) for name, aliases in _names(context.protocols)],
        "filters": [_filter(context, name, aliases) for name, aliases in _names(context.filters)],
        "objects": [
            {"name": name, "options": sorted(field.name for field in kind.fields)} for name, kind in KINDS.items()
        ],
        "checksums": list(ALGORITHMS),
        "commands": [_command(name, command_parser(name, program)) for name in COMMANDS],
    }


def _names(registry: Registry) -> list[tuple[str, list[str]]]:
    """The usable drivers by name, each with its other names: those under which the same class is registered too."""
    usable = registry.names()
    places = {point.name: point.value for point in entry_points(registry.group)}
    found: dict[str, list[str]] = {}
    for name in usable:
        found.setdefault(places.get(name, f"\0{name}"), []).append(name)
    return sorted((names[0], names[1:]) for names in found.values())


def _allowed(context: Context, format: str, *, writable: bool = False) -> bool:
    try:
        context.gate.policy.require_format(format, writable=writable)
    except ImageError:
        return False
    return True


def _format(context: Context, name: str, aliases: list[str]) -> dict[str, Any]:
    formats = context.formats
    abilities = {ability: formats.has(hook, name) for ability, hook in ABILITIES.items()}
    writable = _allowed(context, name, writable=True)
    abilities = {ability: found and (writable or ability not in _CHANGING) for ability, found in abilities.items()}
    return {
        "name": name,
        "aliases": aliases,
        "read": True,
        "write": any(abilities[ability] for ability in _CHANGING),
        **abilities,
        "repair": abilities["check"] and writable and repairs(context, name),
        "create-options": _options(formats, "creation_options", name),
        "amend-options": _options(formats, "amend_options", name),
        "runtime-options": _options(formats, "runtime_options", name),
    }


def _protocol(context: Context, name: str, aliases: list[str]) -> dict[str, Any]:
    protocols = context.protocols
    return {
        "name": name,
        "aliases": aliases,
        "create": protocols.has("create", name),
        "create-options": _options(protocols, "creation_options", name),
        "runtime-options": _options(protocols, "runtime_options", name),
    }


def _filter(context: Context, name: str, aliases: list[str]) -> dict[str, Any]:
    filters = context.filters
    return {
        "name": name,
        "aliases": aliases,
        "children": list(filters.call("child_roles", name)) if filters.has("child_roles", name) else [],
        "runtime-options": _options(filters, "runtime_options", name),
    }


def _options(registry: Registry, hook: str, name: str) -> list[dict[str, Any]]:
    return [_option(option) for option in registry.call(hook, name)] if registry.has(hook, name) else []


def _option(option: Option) -> dict[str, Any]:
    facts: dict[str, Any] = {"name": option.name, "type": option.type.name.lower(), "help": option.help}
    if option.default is not None:
        facts["default"] = option.default
    if option.choices:
        facts["values"] = list(option.choices)
    return facts


def _command(name: str, parser: CommandParser) -> dict[str, Any]:
    declared = parser.declared()
    return {
        "name": name,
        "help": COMMANDS[name],
        "options": [_argument(action) for action in declared if action.option_strings],
        "operands": [_argument(action) for action in declared if not action.option_strings],
        "exit-codes": {str(code): text for code, text in parser.exit_codes.items()},
        "examples": parser.examples,
    }


def _argument(action: argparse.Action) -> dict[str, Any]:
    """An option of a command, or its operands."""
    facts: dict[str, Any] = {"names": list(action.option_strings)} if action.option_strings else {}
    facts["help"] = action.help
    if action.nargs != 0:
        facts["value"] = action.metavar
    if action.choices is not None:
        facts["values"] = list(action.choices)
    if isinstance(action.default, str) and action.nargs != 0 and action.default != argparse.SUPPRESS:
        facts["default"] = action.default
    return facts
