"""The objects of one context, by id, and the syntax they are defined in."""

from __future__ import annotations

import re
from collections.abc import Mapping

from ..errors import ImageError, InvalidOption
from ..options import split_option_string
from .secret import OPTIONS, Secret, make_secret

_IDENTIFIER = re.compile(r"[A-Za-z][A-Za-z0-9._-]*", re.ASCII)


class ObjectStore:
    """Objects by id. Messages name objects and options, never what a secret is."""

    def __init__(self) -> None:
        self._secrets: dict[str, Secret] = {}

    def add(self, text: str) -> None:
        """Define an object: ``secret,id=s0,file=key.txt`` or ``{"qom-type": "secret", "id": "s0", ...}``.

        :raises InvalidOption: it is malformed, of an unknown type, or has the id of an object that is there already.
        """
        values = _from_json(text) if text.startswith("{") else _from_options(text)
        for name in ("qom-type", "id"):
            if name not in values:
                raise InvalidOption(f"Parameter '{name}' is missing")
        kind, id = values.pop("qom-type"), values.pop("id")
        if kind != "secret":
            raise InvalidOption(f"Parameter 'qom-type' does not accept value '{kind}'")
        if not _IDENTIFIER.fullmatch(id):
            raise InvalidOption(
                "Parameter 'id' expects an identifier",
                hint="Identifiers consist of letters, digits, '-', '.', '_', starting with a letter.",
            )
        if id in self._secrets:
            raise InvalidOption(f"attempt to add duplicate property '{id}' to object (type 'container')")
        self._secrets[id] = make_secret(values, self.secret)

    def secret(self, id: str) -> bytes:
        """What a secret holds, decoded and decrypted.

        :raises ImageError: there is no secret with that id.
        """
        if id not in self._secrets:
            raise ImageError(f"No secret with id '{id}'")
        return self._secrets[id].reveal()


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
        if name in (*OPTIONS, "qom-type", "id"):
            values[name] = "on" if value is None else value
        elif "data" in values:
            # Perhaps the rest of a password with a comma in it: not to be shown.
            raise InvalidOption(
                "An object has a parameter that is unexpected", hint="A comma inside a value has to be doubled."
            )
        elif values.get("qom-type", "secret") == "secret":
            raise InvalidOption(f"Parameter '{name}' is unexpected")
    return values


def _from_json(text: str) -> dict[str, str]:
    import json

    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        raise InvalidOption("JSON parse error in the definition of an object") from None
    _require_known(values)
    for name, value in values.items():
        if not isinstance(value, str):
            raise InvalidOption(f"Invalid parameter type for '{name}', expected: string")
    return dict(values)


def _require_known(values: Mapping[str, object]) -> None:
    """Refuse parameters that a secret does not have; of other types only the name of the type will be of interest."""
    if values.get("qom-type") == "secret":
        for name in values:
            if name not in (*OPTIONS, "qom-type", "id"):
                raise InvalidOption(f"Parameter '{name}' is unexpected")
