"""The objects of one context, by id, and the syntax they are defined in."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

from ..errors import ImageError, InvalidOption
from ..options import split_option_string
from ..trees import flat, scalar_text
from .secret import OPTIONS, make_secret
from .throttle import OPTIONS as THROTTLE_OPTIONS
from .throttle import make_throttle_group

_IDENTIFIER = re.compile(r"[A-Za-z][A-Za-z0-9._-]*", re.ASCII)


class Kind(NamedTuple):
    """A type of objects.

    :ivar options: what a definition may hold besides type and id.
    :ivar type: of all values, as messages about JSON call it: ``string`` or ``integer``.
    :ivar make: makes an object of these options, given as text; it may ask for the content of a secret.
    """

    options: Collection[str]
    type: str
    make: Callable[[Mapping[str, str], Callable[[str], bytes]], Any]


def _make_nothing(values: Mapping[str, str], lookup: Callable[[str], bytes]) -> None:
    """What QEMU has event loops for, our threads do by themselves."""


KINDS: Mapping[str, Kind] = {
    "main-loop": Kind(("aio-max-batch", "thread-pool-min", "thread-pool-max"), "integer", _make_nothing),
    "secret": Kind(OPTIONS, "string", make_secret),
    "throttle-group": Kind(THROTTLE_OPTIONS, "integer", make_throttle_group),
}
"""The types of objects by name."""


class ObjectStore:
    """Objects by id. Messages name objects and options, never what a secret is."""

    def __init__(self) -> None:
        self._objects: dict[str, tuple[str, Any]] = {}

    def add(self, text: str) -> None:
        """Define an object: ``secret,id=s0,file=key.txt`` or ``{"qom-type": "secret", "id": "s0", ...}``.

        :raises InvalidOption: it is malformed, of an unknown type, or has the id of an object that is there already.
        """
        values = _from_json(text) if text.startswith("{") else _from_options(text)
        kind = _taken(values, "qom-type")
        if kind not in KINDS:
            raise InvalidOption(f"Parameter 'qom-type' does not accept value '{kind}'")
        id = _taken(values, "id")
        if not _IDENTIFIER.fullmatch(id):
            raise InvalidOption(
                "Parameter 'id' expects an identifier",
                hint="Identifiers consist of letters, digits, '-', '.', '_', starting with a letter.",
            )
        if id in self._objects:
            raise InvalidOption(f"attempt to add duplicate property '{id}' to object (type 'container')")
        self._objects[id] = kind, KINDS[kind].make(values, self.secret)

    def get(self, kind: str, id: str) -> Any:
        """An object.

        :raises LookupError: there is none of that type with that id.
        """
        found, value = self._objects.get(id, ("", None))
        if found != kind:
            raise LookupError(id)
        return value

    def secret(self, id: str) -> bytes:
        """What a secret holds, decoded and decrypted.

        :raises ImageError: there is no secret with that id.
        """
        try:
            content: bytes = self.get("secret", id).reveal()
        except LookupError:
            raise ImageError(f"No secret with id '{id}'") from None
        return content


def _taken(values: dict[str, str], name: str) -> str:
    if name not in values:
        raise InvalidOption(f"Parameter '{name}' is missing")
    return values.pop(name)


def _from_options(text: str) -> dict[str, str]:
    try:
        first, *rest = split_option_string(text)
    except InvalidOption:
        # Its message quotes all of the text, which may hold a password.
        raise InvalidOption("Invalid option list of an object") from None
    if first[1] is None:
        first = ("qom-type", first[0])
    values: dict[str, str] = {}
    for name, value in (first, *rest):
        if name in _known(values.get("qom-type", "secret")):
            if value is None:
                raise InvalidOption(f"Expected '=' after parameter '{name}'")
            values[name] = value
        elif "data" in values:
            # Perhaps the rest of a password with a comma in it: not to be shown.
            raise InvalidOption(
                "An object has a parameter that is unexpected", hint="A comma inside a value has to be doubled."
            )
        elif values.get("qom-type", "secret") in KINDS:
            raise InvalidOption(f"Parameter '{name}' is unexpected")
    return values


def _known(kind: str) -> Collection[str]:
    """The parameters of objects of a type; of an unknown one, none."""
    return ("qom-type", "id", *(KINDS[kind].options if kind in KINDS else ()))


def _from_json(text: str) -> dict[str, str]:
    import json

    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        raise InvalidOption("JSON parse error in the definition of an object") from None
    kind = values.get("qom-type")
    found = flat(values)
    if kind in KINDS:
        expected = KINDS[kind].type
        for name, value in found.items():
            # No bool, which is an int of a kind.
            if name in KINDS[kind].options and type(value) is not (str if expected == "string" else int):
                raise InvalidOption(f"Invalid parameter type for '{name}', expected: {expected}")
    texts = {name: scalar_text(value) for name, value in found.items()}
    if kind in KINDS:
        for name in texts:
            if name not in _known(kind):
                raise InvalidOption(f"Parameter '{name}' is unexpected")
    return texts
