"""What is installed, for people."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


def capability_lines(facts: Mapping[str, Any]) -> Iterator[str]:
    """What ``capabilities`` prints.

    :param facts: see :func:`diskwright.engine.capabilities.capabilities`.
    """
    yield f"diskwright {facts['version']}, with the options and messages of QEMU {facts['qemu-version']}"
    yield ""
    yield "Formats:"
    width = max((len(_name(format)) for format in facts["formats"]), default=0)
    for format in facts["formats"]:
        abilities = [ability for ability, value in format.items() if value is True]
        yield f"  {_name(format):<{width}}  {' '.join(abilities)}"
    for title in ("protocols", "filters", "objects"):
        yield f"{title.capitalize()}:"
        for item in facts[title]:
            yield f"  {_name(item)}"
    yield "Checksums:"
    yield f"  {' '.join(facts['checksums'])}"
    yield "Commands:"
    width = max(len(command["name"]) for command in facts["commands"])
    for command in facts["commands"]:
        yield f"  {command['name']:<{width}}  {command['help']}"


def _name(item: Mapping[str, Any]) -> str:
    aliases = item.get("aliases")
    return f"{item['name']} ({', '.join(aliases)})" if aliases else str(item["name"])
