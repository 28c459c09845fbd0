"""What is known of formats without their drivers; it decides nothing but which message tells the reason best."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

READ_ONLY_FORMATS = frozenset({"bochs", "cloop", "dmg", "vvfat"})
"""Formats that images are neither created in nor changed in: to install their drivers would not help."""

ALIASES = {"ploop": "parallels", "vhd": "vpc"}
"""Further names that formats go by; a package with a driver can declare others."""


_ADVICE = ("Did you mean ", "The package ")


def without_advice(hint: str) -> str:
    """What QEMU would say of a hint: it knows of no other names and of no packages."""
    return "\n".join(line for line in hint.split("\n") if not line.startswith(_ADVICE))


def did_you_mean(name: str, known: Iterable[str], prefix: str = "") -> str:
    """Advice for a name that does not exist: the one that looks most like it, empty if none does.

    :param prefix: what stands before names where they are used: ``--`` for options.
    """
    from difflib import get_close_matches

    close = get_close_matches(name, list(known), n=1)
    return f"Did you mean '{prefix}{close[0]}'?" if close else ""
