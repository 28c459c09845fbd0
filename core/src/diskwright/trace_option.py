"""The option ``-T``: ``[[enable=]PATTERN][,events=FILE][,file=FILE]``, or ``help`` for a list of the events."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, TextIO

from . import tracing
from .arguments import UsageError
from .errors import ImageError, InvalidOption, reason_of
from .options import split_option_string

if TYPE_CHECKING:
    from .cli import App

PARAMETERS = ("enable", "events", "file")
MAX_EVENTS_FILE = 1 << 20
"""Characters of a file with names of events."""


def start_tracing(app: App, texts: Sequence[str], operands: Sequence[str]) -> bool:
    """Do what the option asks for, once for each time that it was given.

    :param operands: the command and what follows it.
    :returns: whether a list was asked for, which has been printed; then nothing else is to be done.
    :raises InvalidOption: it is malformed, or a file cannot be opened.
    """
    log: str | None = None
    for text in texts:
        values = _values(text)
        if values.get("enable") in ("help", "?"):
            _print_events(app)
            return True
        if "help" in values or "?" in values:
            app.out.lines("trace options:\n  enable=<str>\n  events=<str>\n  file=<str>")
            return True
        if "enable" in values:
            _enable(app, values["enable"], app.program)
        for number, line in _lines(app, values.get("events")):
            _enable(app, line, f"{app.program}:{values['events']}:{number}")
        log = values.get("file", log)
    tracing.start([], _log_to(log) if log is not None else _tell(app))
    if operands:
        tracing.COMMAND_RUN(operands[0])
    return False


def _values(text: str) -> dict[str, str]:
    """The option's parameters by name.

    :raises InvalidOption: there is no such parameter.
    """
    values: dict[str, str] = {}
    for number, (name, value) in enumerate(split_option_string(text) if text else ()):
        if number == 0 and value is None:
            values["enable"] = name
        elif name in PARAMETERS or (value is None and name in ("help", "?")):
            values[name] = "on" if value is None else value
        else:
            raise InvalidOption(f"Invalid parameter '{name}'")
    return values


def _enable(app: App, pattern: str, teller: str) -> None:
    """Turn events on or off; a name that no event has is no reason to stop."""
    name = pattern.removeprefix("-")
    if not tracing.is_known(name):
        load_plugin_events()
    if not tracing.is_known(name):
        app.err.line(f"{teller}: warning: trace event '{name}' does not exist")
    tracing.start([pattern])


def _lines(app: App, path: str | None) -> Iterator[tuple[int, str]]:
    """The patterns in a file, one a line, with their line numbers."""
    if path is None:
        return
    try:
        # Not through the gate: only the user can name it.
        with open(path, errors="surrogateescape") as file:
            text = file.read(MAX_EVENTS_FILE)
    except OSError as error:
        raise UsageError(reason_of(error), teller=f"{app.program}:{path}") from None
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip() and not line.startswith("#"):
            yield number, line.strip()


def _tell(app: App) -> tracing.Sink:
    """Write to standard error, each line at once."""

    def write(line: str) -> None:
        app.err.line(line)
        app.err.flush()

    return write


def _log_to(path: str) -> tracing.Sink:
    """Write to a file, each line at once; a single ``%d`` in its name stands for the process.

    :raises InvalidOption: it cannot be written.
    """
    if "%" in path:
        if not re.fullmatch(r"[^%]*%d[^%]*", path):
            raise InvalidOption(f"Bad logfile template: {path}")
        path = path.replace("%d", str(os.getpid()))
    try:
        # Closed by the end of the process, up to which there may be something to tell.
        file: TextIO = open(path, "w", buffering=1, errors="surrogateescape")  # noqa: SIM115
    except OSError as error:
        raise InvalidOption(f"Error opening logfile {path}: {reason_of(error)}") from None

    def write(line: str) -> None:
        file.write(line + "\n")

    return write


def load_plugin_events() -> None:
    """Let all installed drivers declare their events."""
    from .discovery import DRIVER_GROUPS
    from .registry import Registry

    for group in DRIVER_GROUPS:
        registry = Registry(group)
        for name in registry.names():
            if registry.has("trace_events", name):
                with suppress(ImageError):
                    registry.call("trace_events", name)


def _print_events(app: App) -> None:
    load_plugin_events()
    for name, event in sorted(tracing.events.items()):
        app.out.line(f"{name:<24} {event.help} ({', '.join(event.fields)})")
