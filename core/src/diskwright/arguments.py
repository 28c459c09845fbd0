"""Parsing command lines the way C's ``getopt_long`` does, with argparse for declarations and help.

Scripts rely on its rules: what follows an option that takes a value is the value, whatever it looks like; options stand
anywhere among the operands; long names can be cut short while they are unique.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from typing import Any

from .errors import InvalidOption
from .known import did_you_mean


class UsageError(InvalidOption):
    """The command line makes no sense; whoever typed it is told where to find help.

    :param teller: who says so, if it is not the program as such.
    """

    def __init__(self, message: str, *, hint: str = "", teller: str = "") -> None:
        super().__init__(message, hint=hint)
        self.teller = teller


def help_hint(program: str) -> str:
    """Where to find help.

    :param program: name of the program, with the subcommand if it is about one.
    """
    return f"Try '{program} --help' for more info"


def terminal_width() -> int:
    """Columns to print help in: those that argparse would find out by loading a good deal more."""
    columns = os.environ.get("COLUMNS", "")
    if columns.isdecimal() and int(columns):
        return int(columns) - 2
    try:
        return os.get_terminal_size(sys.__stdout__.fileno()).columns - 2 or 78  # type: ignore[union-attr]
    except (AttributeError, OSError, ValueError):
        return 78


class Parser(argparse.ArgumentParser):
    """Declares options as argparse does and parses them as ``getopt_long`` does. ``nargs="?"`` stands for an option
    whose value, if any, follows an equals sign; operands are declared for help only and are what is left.

    ``choices`` and the metavar tell help and completion what a value is; the commands check it themselves, with the
    messages that scripts know. By convention FMT is a format, FILE a file, OPTS a list of a format's options.
    """

    def __init__(self, **settings: Any) -> None:
        self._by_name: dict[str, argparse.Action] = {}
        super().__init__(**settings)

    def add_argument(self, *names: Any, **settings: Any) -> argparse.Action:
        """As argparse's."""
        action = super().add_argument(*names, **settings)
        self._by_name.update(dict.fromkeys(action.option_strings, action))
        return action

    def _get_formatter(self) -> argparse.HelpFormatter:
        """One is made for each option that is declared, as argparse checks them by it: so it must not take long."""
        return self.formatter_class(self.prog, width=terminal_width())  # type: ignore[call-arg]

    def declared(self) -> list[argparse.Action]:
        """All options and operands, in the order of their declaration."""
        return list(self._actions)

    def parse(self, arguments: list[str], *, first_only: bool = False) -> argparse.Namespace:
        """The values of all options, and what is left as ``operands``.

        :param first_only: whether options end where the first operand is; all that follows is left.
        :raises UsageError: an option does not exist, or lacks its value.
        :raises SystemExit: help was asked for and has been printed.
        """
        values = argparse.Namespace()
        for action in self._actions:
            if action.default is not argparse.SUPPRESS and not hasattr(values, action.dest):
                setattr(values, action.dest, action.default)
        operands: list[str] = []
        pending = arguments[::-1]
        while pending:
            word = pending.pop()
            if word == "--" or (first_only and not word.startswith("-")):
                operands += ([] if word == "--" else [word]) + pending[::-1]
                break
            if word.startswith("--"):
                self._take_long(word, pending, values)
            elif word.startswith("-") and word != "-":
                self._take_short(word, pending, values)
            else:
                operands.append(word)
        values.operands = operands
        return values

    def _take_long(self, word: str, pending: list[str], values: argparse.Namespace) -> None:
        given, equals, value = word.partition("=")
        name = self._full_name(given, word)
        action = self._by_name[name]
        if equals and action.nargs == 0:
            raise self._mistake(f"option '{name}' doesn't allow an argument")
        if not equals and action.nargs is None and not pending:
            raise self._mistake(f"option '{name}' requires an argument")
        if not equals and action.nargs is None:
            value = pending.pop()
        self._apply(action, name, value if equals or action.nargs is None else None, values)

    def _full_name(self, given: str, word: str) -> str:
        if given in self._by_name:
            return given
        candidates = [name for name in self._by_name if name.startswith(given) and name.startswith("--")]
        actions = {id(self._by_name[name]) for name in candidates}
        if len(actions) == 1:
            return candidates[0]
        if not candidates:
            names = [name[2:] for name in self._by_name if name.startswith("--")]
            raise self._mistake(f"unrecognized option '{word}'", did_you_mean(given[2:], names, "--"))
        possible = " ".join(f"'{name}'" for name in candidates)
        raise self._mistake(f"option '{given}' is ambiguous; possibilities: {possible}")

    def _take_short(self, word: str, pending: list[str], values: argparse.Namespace) -> None:
        """A word of one-letter options; what follows one that takes a value, in the word or behind it, is its value."""
        for index, letter in enumerate(word[1:], 2):
            action = self._by_name.get(f"-{letter}")
            if action is None:
                raise self._mistake(f"invalid option -- '{letter}'")
            if action.nargs is not None:
                self._apply(action, f"-{letter}", None, values)
                continue
            if index == len(word) and not pending:
                raise self._mistake(f"option requires an argument -- '{letter}'")
            self._apply(action, f"-{letter}", word[index:] or pending.pop(), values)
            return

    def _apply(self, action: argparse.Action, name: str, text: str | None, values: argparse.Namespace) -> None:
        convert: Callable[[str], Any] | None = action.type if callable(action.type) else None
        value: Any = text if text is None or convert is None else convert(text)
        if action.nargs == "?" and text is None:
            value = action.const
        action(self, values, value, name)

    def _mistake(self, message: str, hint: str = "") -> UsageError:
        advice = help_hint(self.prog)
        return UsageError(message, hint=f"{hint}\n{advice}" if hint else advice, teller=self.prog)
