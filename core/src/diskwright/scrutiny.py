"""What is to be said of names and numbers in an image from a stranger, for the core and for drivers alike."""

from __future__ import annotations

import os
from collections.abc import Iterator

from .facts import Finding, Severity
from .filenames import protocol_prefix
from .render.printer import escape_text

MAX_SHOWN = 200
"""Characters of a name that are shown."""


def shown(text: str) -> str:
    """Text from an image as it may stand in a message: printable, in quotes, not endless."""
    escaped = escape_text(text)
    return f"'{escaped}'" if len(escaped) <= MAX_SHOWN else f"'{escaped[:MAX_SHOWN]}...'"


def name_findings(what: str, text: str) -> Iterator[Finding]:
    """What is odd about a name as such.

    :param what: whose name it is, for the message.
    """
    if not text.isprintable():
        message = f"the name of {what} has characters that cannot be printed: {shown(text)}"
        yield Finding(Severity.WARNING, "unprintable-name", message)


def reference_findings(role: str, name: str, *, plain: bool = False) -> Iterator[Finding]:
    """That an image names a file, and where that would lead whoever opens it.

    :param role: what the file is to the image: ``backing``, ``data-file`` ...
    :param plain: whether the name is a path whatever it looks like.
    """
    what = f"the {role.removesuffix('-file')} file"
    yield Finding(Severity.DANGER, f"{role}-reference", f"the image names {what} {shown(name)}")
    prefix = None if plain else protocol_prefix(name)
    if prefix == "json":
        yield Finding(Severity.DANGER, "json-reference", f"{what} is given by options, which can open anything")
    elif prefix is not None:
        yield Finding(Severity.DANGER, "protocol-reference", f"{what} is to be opened by the protocol {shown(prefix)}")
    elif os.path.isabs(name):
        yield Finding(Severity.DANGER, "absolute-reference", f"{what} has an absolute path")
    if ".." in name.split("/"):
        yield Finding(Severity.DANGER, "traversal-reference", f"{what} is outside the folder of the image")
    yield from name_findings(what, name)
