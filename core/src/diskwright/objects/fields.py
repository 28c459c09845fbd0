"""What definitions of objects may hold: declared once, read by parsing, checking and help."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..errors import InvalidOption
from ..options import parse_bool
from ..record import Record
from ..sizes import MAX_INT64, parse_integer

JSON_TYPES: Mapping[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "boolean": (bool,),
    "array": (list,),
}
"""What a value is in JSON, by the name of the type in messages."""
MAX_INT32 = 2**31 - 1


class Field(Record):
    """One value of a definition.

    :ivar shown: its type as help shows it.
    :ivar json: its type in JSON: a key of :data:`JSON_TYPES`.
    :ivar choices: all that a string may be; empty for any.
    :ivar items: of an array, the fields of its elements, which are objects; a single one without a name if they are
        plain values.
    :ivar hidden: not shown by help: another field stands for it.
    """

    name: str
    shown: str = "string"
    json: str = "string"
    choices: tuple[str, ...] = ()
    required: bool = False
    items: tuple[Field, ...] = ()
    hidden: bool = False

    def require(self, name: str, text: str) -> None:
        """See that a value, given as text, is one that there is.

        :param name: of the value, for messages.
        :raises InvalidOption: it is not.
        """
        if self.json == "boolean":
            parse_bool(name, text)
        elif self.json == "integer":
            self._require_integer(name, text)
        elif self.choices and text not in self.choices:
            raise InvalidOption(f"Parameter '{self.name}' does not accept value '{text}'")
        elif self.json == "array":
            raise InvalidOption(f"Invalid parameter type for '{name}', expected: array")

    def _require_integer(self, name: str, text: str) -> None:
        try:
            number = parse_integer(text)
        except ValueError:
            number = MAX_INT64 + 1
        if not -MAX_INT64 - 1 <= number <= MAX_INT64:
            raise InvalidOption(f"Parameter '{name}' expects integer")
        if self.shown == "int32_t" and not -MAX_INT32 - 1 <= number <= MAX_INT32:
            raise InvalidOption(f"Parameter '{name}' expects int32_t")


def integers(*names: str) -> tuple[Field, ...]:
    """Fields for numbers of 64 bits."""
    return tuple(Field(name, "int", "integer") for name in names)


def field_of(fields: Sequence[Field], name: str) -> Field | None:
    """The field that a name with dots belongs to: its own, or the array that it is an element of."""
    for field in fields:
        if field.name == name or (field.items and name.startswith(f"{field.name}.")):
            return field
    return None


def require_values(fields: Sequence[Field], values: Mapping[str, str]) -> None:
    """See that a definition has what it needs and that its values are of their types.

    :param values: by name; elements of arrays by dotted names, ``rules.0.match``.
    :raises InvalidOption: something is missing, or not what it should be.
    """
    for field in fields:
        if field.required and field.name not in values:
            raise InvalidOption(f"Parameter '{field.name}' is missing")
        if field.name in values:
            field.require(field.name, values[field.name])
        if field.items:
            _require_elements(field, values)


def _require_elements(field: Field, values: Mapping[str, str]) -> None:
    prefix = f"{field.name}."
    elements: dict[str, dict[str, str]] = {}
    for name, text in values.items():
        if name.startswith(prefix):
            index, _, inner = name.removeprefix(prefix).partition(".")
            elements.setdefault(index, {})[inner] = text
    if not all(re.fullmatch("[0-9]+", index) for index in elements):
        raise InvalidOption(f"Invalid parameter type for '{field.name}', expected: array")
    for number in range(len(elements)):
        name = f"{prefix}{number}"
        if str(number) not in elements:
            raise InvalidOption(f"Parameter '{name}' missing")
        _require_element(field.items, name, elements[str(number)])


def _require_element(fields: Sequence[Field], name: str, values: Mapping[str, str]) -> None:
    plain = not fields[0].name
    if plain is not ("" in values):
        raise InvalidOption(f"Invalid parameter type for '{name}', expected: {fields[0].json if plain else 'object'}")
    known = {field.name: field for field in fields}
    for field in fields:
        if field.required and field.name not in values:
            raise InvalidOption(f"Parameter '{name}.{field.name}' is missing")
    for inner, text in values.items():
        if inner not in known:
            raise InvalidOption(f"Parameter '{name}.{inner}' is unexpected")
        known[inner].require(name if plain else f"{name}.{inner}", text)


def require_json_types(fields: Sequence[Field], values: Mapping[str, Any]) -> None:
    """See that values are of the types that they should be in JSON, where a number is no text.

    :raises InvalidOption: one is not.
    """
    for name, value in values.items():
        field = field_of(fields, name)
        # What is inside of an array is looked at as text. No bool, which is an int of a kind.
        if field is not None and field.name == name and type(value) not in JSON_TYPES[field.json]:
            raise InvalidOption(f"Invalid parameter type for '{name}', expected: {field.json}")


def help_lines(fields: Sequence[Field]) -> Iterator[str]:
    """A line for each field, as ``--object TYPE,help`` shows them."""
    for text in sorted(f"{field.name}=<{field.shown}>" for field in fields if not field.hidden):
        yield f"  {text}"
