"""Giving out and taking back passphrases of a volume, by QEMU's rules.

Before anything is destroyed, what replaces it is safe: a crash never loses the last key that works.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from diskwright.errors import InvalidOption
from diskwright.options import Option, OptionType

from .layout import SLOTS
from .volume import DEFAULT_ITER_TIME, Volume, passphrase_of


def amend_options() -> Sequence[Option]:
    """What can be changed of a volume."""
    return [
        Option("state", OptionType.STRING, "Select new state of affected keyslots (active/inactive)"),
        Option("new-secret", OptionType.STRING, "New secret to set in the matching keyslots. Empty string to erase"),
        Option("old-secret", OptionType.STRING, "Select all keyslots that match this password"),
        Option("keyslot", OptionType.NUMBER, "Select a single keyslot to modify explicitly"),
        Option("iter-time", OptionType.NUMBER, "Time to spend in PBKDF in milliseconds"),
    ]


def amend(volume: Volume, values: Mapping[str, Any], secret: Callable[[str], bytes], *, force: bool) -> None:
    """Make a keyslot active with a new passphrase, or inactive.

    :param values: the options of :func:`amend_options`.
    :param secret: gives the content of a secret object.
    :param force: overwrite a passphrase in use, erase the last one.
    :raises InvalidOption: the options contradict each other or the state of the keyslots.
    """
    if "state" not in values:
        raise InvalidOption("Parameter 'state' is missing")
    actions = {"active": _activate, "inactive": _erase}
    if values["state"] not in actions:
        raise InvalidOption(f"Parameter 'state' does not accept value '{values['state']}'")
    actions[values["state"]](volume, values, secret, force)


def _activate(volume: Volume, values: Mapping[str, Any], secret: Callable[[str], bytes], force: bool) -> None:
    if "new-secret" not in values:
        raise InvalidOption("'new-secret' is required to activate a keyslot")
    if "old-secret" in values:
        raise InvalidOption("'old-secret' must not be given when activating keyslots")
    free = [index for index, slot in enumerate(volume.header.slots) if not slot.active]
    if "keyslot" in values:
        index = _slot_number(values)
        if index not in free and not force:
            raise InvalidOption(f"Refusing to overwrite active keyslot {index} - please erase it first")
    elif free:
        index = free[0]
    else:
        raise InvalidOption("Can't add a keyslot - all keyslots are in use")
    passphrase = passphrase_of(secret, values["new-secret"])
    milliseconds = int(values.get("iter-time", DEFAULT_ITER_TIME))
    if index not in free and len(free) == SLOTS - 1:
        # The only key is to be overwritten: the new one stands in another slot until it is done.
        volume.store_key(free[0], passphrase, milliseconds)
        volume.store_key(index, passphrase, milliseconds)
        volume.erase(free[0])
    else:
        volume.store_key(index, passphrase, milliseconds)


def _erase(volume: Volume, values: Mapping[str, Any], secret: Callable[[str], bytes], force: bool) -> None:
    for name in ("new-secret", "iter-time"):
        if name in values:
            raise InvalidOption(f"'{name}' must not be given when erasing keyslots")
    old = passphrase_of(secret, values["old-secret"]) if "old-secret" in values else None
    active = [index for index, slot in enumerate(volume.header.slots) if slot.active]
    if "keyslot" in values:
        doomed = [_slot_to_erase(volume, active, values, old, force)]
    elif old is not None:
        doomed = list(volume.slots_of(old))
        if not doomed:
            raise InvalidOption("No keyslots match given (old) password for erase operation")
        if doomed == active and not force:
            raise InvalidOption(
                "All the active keyslots match the (old) password that was given and erasing them will erase all the "
                "data in the image irreversibly - refusing operation"
            )
    else:
        raise InvalidOption(
            "To erase keyslot(s), either explicit keyslot index or the password currently contained in them must be "
            "given"
        )
    for index in doomed:
        volume.erase(index)


def _slot_to_erase(volume: Volume, active: list[int], values: Mapping[str, Any], old: bytes | None, force: bool) -> int:
    index = _slot_number(values)
    if old is not None and index not in volume.slots_of(old):
        raise InvalidOption(f"Given keyslot {index} doesn't contain the given old password for erase operation")
    if index not in active and not force:
        raise InvalidOption(f"Given keyslot {index} is already erased (inactive) ")
    if active == [index] and not force:
        raise InvalidOption(
            f"Attempt to erase the only active keyslot {index} which will erase all the data in the image "
            "irreversibly - refusing operation"
        )
    return index


def _slot_number(values: Mapping[str, Any]) -> int:
    index = int(values["keyslot"])
    if not 0 <= index < SLOTS:
        raise InvalidOption(f"Invalid keyslot {index} specified, must be between 0 and {SLOTS - 1}")
    return index
