"""What ``info --untrusted`` prints."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..engine.untrusted import Examined
from .info_text import info_lines, info_object
from .printer import escape_text


def findings_object(found: Examined) -> dict[str, Any]:
    """The facts as for ``info``, and the findings as a list of ``severity``, ``id`` and ``message``."""
    facts = {"filename": found.filename} if found.info is None else info_object(found.info)
    findings = [{"severity": str(item.severity), "id": item.id, "message": item.message} for item in found.findings]
    return {**facts, "safe": found.is_safe, "findings": findings}


def finding_lines(found: Examined) -> Iterator[str]:
    """The facts for people, then the findings, the worst first. No name can pass for a line of its own."""
    facts = [f"image: {found.filename}"] if found.info is None else info_lines(found.info)
    yield from map(escape_text, facts)
    yield "Findings:" if found.findings else "Findings: none"
    order = ["danger", "warning", "note"]
    for item in sorted(found.findings, key=lambda item: order.index(item.severity)):
        yield f"    {item.severity}: {item.message} [{item.id}]"
