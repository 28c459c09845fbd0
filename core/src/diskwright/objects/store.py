"""The objects of one context, by id, and the syntax they are defined in."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..errors import ImageError, InvalidOption
from ..known import did_you_mean
from ..options import split_option_string
from ..tracing import OBJECT_ADD
from ..trees import flat, scalar_text

if TYPE_CHECKING:
    from .fields import Field

_IDENTIFIER = r"[A-Za-z][A-Za-z0-9._-]*"
_HELP = ("help", "?")


class ObjectStore:
    """Objects by id. Messages name objects and options, never what a secret is."""

    def __init__(self) -> None:
        self._objects: dict[str, tuple[str, Any]] = {}

    def add(self, text: str) -> None:
        """Define an object: ``secret,id=s0,file=key.txt`` or ``{"qom-type": "secret", "id": "s0", ...}``.

        :raises InvalidOption: it is malformed, of an unknown type, or has the id of an object that is there already.
        """
        from .fields import require_values
        from .kinds import FOR_MACHINES, KINDS

        values = _from_json(text) if text.startswith("{") else _from_options(text)
        kind = _taken(values, "qom-type")
        if kind in FOR_MACHINES:
            raise InvalidOption(f"invalid object type: {kind}")
        if kind not in KINDS:
            hint = did_you_mean(kind, KINDS)
            raise InvalidOption(f"Parameter 'qom-type' does not accept value '{kind}'", hint=hint)
        id = _taken(values, "id")
        require_values(KINDS[kind].fields, values)
        if not re.fullmatch(_IDENTIFIER, id):
            raise InvalidOption(
                "Parameter 'id' expects an identifier",
                hint="Identifiers consist of letters, digits, '-', '.', '_', starting with a letter.",
            )
        if id in self._objects:
            raise InvalidOption(f"attempt to add duplicate property '{id}' to object (type 'container')")
        self._objects[id] = kind, KINDS[kind].make(values, self.secret)
        OBJECT_ADD(kind, id)

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
        kind, value = self._objects.get(id, ("", None))
        if kind not in ("secret", "secret_keyring"):
            raise ImageError(f"No secret with id '{id}'")
        content: bytes = value.reveal()
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
        if _is_known(values.get("qom-type", "secret"), name):
            if value is None:
                raise InvalidOption(f"Expected '=' after parameter '{name}'")
            values[name] = value
        elif "data" in values:
            # Perhaps the rest of a password with a comma in it: not to be shown.
            raise InvalidOption(
                "An object has a parameter that is unexpected", hint="A comma inside a value has to be doubled."
            )
        elif _fields(values.get("qom-type", "secret")) is not None:
            raise InvalidOption(f"Parameter '{name}' is unexpected")
    return values


def _fields(kind: str) -> Sequence[Field] | None:
    """What a definition of a type may hold; ``None`` if there is no such type."""
    from .kinds import KINDS

    return KINDS[kind].fields if kind in KINDS else None


def _is_known(kind: str, name: str) -> bool:
    """Whether a definition of a type may have a parameter."""
    from .fields import field_of

    return name in ("qom-type", "id") or field_of(_fields(kind) or (), name) is not None


def _from_json(text: str) -> dict[str, str]:
    import json

    from .fields import require_json_types

    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        raise InvalidOption("JSON parse error in the definition of an object") from None
    kind = values.get("qom-type")
    if kind is not None and not isinstance(kind, str):
        raise InvalidOption("Invalid parameter type for 'qom-type', expected: string")
    found = flat(values)
    fields = _fields(kind or "")
    if fields is not None:
        require_json_types(fields, found)
        for name in found:
            if not _is_known(kind or "", name):
                raise InvalidOption(f"Parameter '{name}' is unexpected")
    return {name: scalar_text(value) for name, value in found.items()}


def object_help(text: str) -> str | None:
    """What ``--object help`` and ``--object TYPE,help`` print; ``None`` if a definition does not ask for help."""
    if text.startswith("{"):
        return None
    try:
        pairs = split_option_string(text)
    except InvalidOption:
        return None
    if not any(name in _HELP and value is None for name, value in pairs):
        return None
    from .fields import help_lines
    from .kinds import KINDS

    kind = dict(pairs).get("qom-type") or (pairs[0][0] if pairs[0][1] is None else "")
    if kind in KINDS:
        return "\n".join([f"{kind} options:", *help_lines(KINDS[kind].fields)])
    return "\n".join(["List of user creatable objects:", *(f"  {name}" for name in sorted(KINDS))])
