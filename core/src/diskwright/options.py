"""Options that describe themselves, and the ``key=value,key=value`` syntax they are given in.

A driver declares each option once; parsing, validation, ``-o help``, the ``Formatting`` line and the documentation read
the declaration.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from enum import Enum
from typing import Any

from .errors import InvalidOption
from .known import did_you_mean
from .record import Record
from .sizes import MAX_INT64, MAX_UINT64, OutOfRange, parse_integer, parse_size

PREALLOCATION_MODES = ("off", "metadata", "falloc", "full")
"""How space can be reserved for what has no content yet."""


class OptionType(Enum):
    """Type of an option's value; the enum value is how help shows it."""

    STRING = "str"
    BOOL = "bool (on/off)"
    NUMBER = "num"
    SIZE = "size"


class InvalidChoice(InvalidOption):
    """A value is none of those that an option has; QEMU finds that out later than what is not even of its type."""


class Option(Record):
    """One option of a driver.

    :ivar default: the value shown and used when the option is not given; ``None`` if it is then left out.
    :ivar choices: all values a string option takes; empty if it takes any.
    :ivar strong: of a runtime option, whether an image opened without it would be another disk, or none: it then
        belongs to the image's name.
    """

    name: str
    type: OptionType
    help: str
    default: Any = None
    choices: tuple[str, ...] = ()
    strong: bool = False

    def parse(self, text: str) -> Any:
        """The typed value of what a user wrote.

        :raises InvalidOption: it is not of the option's type.
        """
        if self.type is OptionType.BOOL:
            return parse_bool(self.name, text)
        if self.type is OptionType.SIZE:
            return self._parse_size(text)
        if self.type is OptionType.NUMBER:
            return parse_number(self.name, text)
        if self.choices and text not in self.choices:
            raise InvalidChoice(f"Parameter '{self.name}' does not accept value '{text}'")
        return text

    def _parse_size(self, text: str) -> int:
        try:
            return parse_size(text)
        except OutOfRange:
            raise InvalidOption(f"Value '{text}' is out of range for parameter '{self.name}'") from None
        except InvalidOption:
            raise InvalidOption(
                f"Parameter '{self.name}' expects a non-negative number below 2^64",
                hint="Optional suffix k, M, G, T, P or E means kilo-, mega-, giga-, tera-, peta-\n"
                "and exabytes, respectively.",
            ) from None

    def show(self, value: Any) -> str:
        """A value as the ``Formatting`` line shows it."""
        if self.type is OptionType.BOOL:
            return "on" if value else "off"
        if self.type is OptionType.NUMBER and value > MAX_INT64:
            value -= MAX_UINT64 + 1
        return str(value).replace(",", ",,")


def parse_bool(name: str, text: str) -> bool:
    """``on`` and its synonyms, or ``off`` and its.

    :param name: the option's name, for the message.
    """
    if text in ("on", "yes", "true", "y"):
        return True
    if text in ("off", "no", "false", "n"):
        return False
    raise InvalidOption(f"Parameter '{name}' expects 'on' or 'off'")


def parse_number(name: str, text: str) -> int:
    """A count without suffix: decimal, ``0x`` hexadecimal or ``0`` octal; 0 .. 2**64 - 1.

    A negative one counts back from 2**64, as in QEMU: what it is too large for says so.
    """
    try:
        number = parse_integer(text)
    except ValueError:
        raise InvalidOption(f"Parameter '{name}' expects a number") from None
    if abs(number) > MAX_UINT64:
        raise InvalidOption(f"Value '{text}' is too large for parameter '{name}'")
    return number & MAX_UINT64


def split_option_string(text: str) -> list[tuple[str, str | None]]:
    """Cut ``a=1,b,c=x,,y`` into its parts; a doubled comma stands for one comma in a value.

    :returns: (name, value) pairs in order; the value is ``None`` where no ``=`` was given.
    :raises InvalidOption: the list is empty, or starts or ends with a separating comma.
    """
    parts = text.replace(",,", "\0").split(",")
    if text.startswith(",") or not all(parts):
        raise InvalidOption(f"Invalid option list: {text}")
    pairs: list[tuple[str, str | None]] = []
    for part in parts:
        name, equals, value = part.replace("\0", ",").partition("=")
        pairs.append((name, value if equals else None))
    return pairs


def option_values(text: str) -> dict[str, str]:
    """An option string as a mapping of text: later values win, ``key`` alone means ``on``."""
    return {name: "on" if value is None else value for name, value in split_option_string(text)}


def asks_for_help(text: str) -> bool:
    """Whether an option string has ``help`` or ``?`` in the place of an option."""
    return any(name in ("help", "?") and value is None for name, value in split_option_string(text))


def ask_for_help(texts: Iterable[str]) -> bool:
    """As :func:`asks_for_help` for several option strings, all of which are looked at.

    :raises InvalidOption: one of them is malformed, wherever help was asked for.
    """
    asked = [asks_for_help(text) for text in texts]
    return any(asked)


def parse_options(declared: Iterable[Option], texts: Sequence[str]) -> dict[str, Any]:
    """Typed values for what the user wrote, which may be given in several strings.

    :param declared: the options there are.
    :raises InvalidOption: an unknown name or an unfit value.
    """
    by_name = {option.name: option for option in declared}
    values: dict[str, Any] = {}
    for text in texts:
        for name, value in split_option_string(text):
            if name == "id":
                continue
            option = by_name.get(name)
            if option is not None:
                values[name] = option.parse("on" if value is None else value)
            elif value is None and name.startswith("no") and name[2:] in by_name:
                values[name[2:]] = by_name[name[2:]].parse("off")
            else:
                raise InvalidOption(f"Invalid parameter '{name}'", hint=did_you_mean(name, by_name))
    return values


def declaration_name(name: str) -> str:
    """The name under which an option is declared: indexes of lists stand there as ``*``."""
    return ".".join("*" if part.isdecimal() else part for part in name.split("."))


def runtime_values(declared: Sequence[Option], given: Mapping[str, str], unknown: str) -> dict[str, Any]:
    """Typed values of the runtime options that were given.

    :param declared: the options there are.
    :param unknown: message for an option that is not there; ``{}`` stands for its name.
    :raises InvalidOption: an unknown name or an unfit value.
    """
    by_name = {option.name: option for option in declared}
    values: dict[str, Any] = {}
    for name, text in given.items():
        option = by_name.get(declaration_name(name))
        if option is None:
            raise InvalidOption(unknown.format(name), hint=did_you_mean(name, by_name))
        values[name] = option.parse(text)
    return values


def merge_declared(*groups: Sequence[Option]) -> list[Option]:
    """The options of a format and of its protocol in one list; the first declaration of a name counts."""
    merged: dict[str, Option] = {}
    for group in groups:
        for option in group:
            merged.setdefault(option.name, option)
    return list(merged.values())


def help_table(title: str, declared: Iterable[Option]) -> str:
    """The table that ``-o help`` prints."""
    rows = [f"  {f'{o.name}=<{o.type.value}>':<22} - {o.help}" for o in sorted(declared, key=lambda o: o.name)]
    return "\n".join([title, *rows])


def formatting_line(filename: str, format_name: str, declared: Sequence[Option], values: Mapping[str, Any]) -> str:
    """What ``create`` announces: all options that have a value, in the order of their declaration."""
    shown = []
    for option in declared:
        value = values.get(option.name, option.default)
        if value is not None:
            shown.append(f"{option.name}={option.show(value)}")
    return " ".join([f"Formatting '{filename}', fmt={format_name}", *shown])
