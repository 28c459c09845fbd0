"""Internal snapshots: finding the one that is meant, looking into it, and making, applying and deleting them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ..errors import ImageError, InvalidOption, UnsupportedOperation
from ..facts import Snapshot
from ..node import Image
from ..options import option_values
from ..passing import unfiltered

if TYPE_CHECKING:
    from ..context import Context

_ID, _NAME = "snapshot.id", "snapshot.name"


def listed(context: Context, image: Image) -> Sequence[Snapshot]:
    """The internal snapshots of an image; none if its format has no snapshots."""
    image = unfiltered(image)
    if not context.formats.has("snapshot_list", image.driver):
        return ()
    found: Sequence[Snapshot] = context.formats.call("snapshot_list", image.driver, image=image)
    return found


def find(snapshots: Sequence[Snapshot], *, id: str | None = None, name: str | None = None) -> Snapshot | None:
    """The first snapshot that has the id and the name, whichever of the two are given."""
    for snapshot in snapshots:
        if id in (None, snapshot.id) and name in (None, snapshot.name):
            return snapshot
    return None


def find_either(snapshots: Sequence[Snapshot], text: str) -> Snapshot | None:
    """The snapshot of that id or, if there is none, the first one of that name."""
    return find(snapshots, id=text) or find(snapshots, name=text)


def view(context: Context, image: Image, wanted: str) -> Image:
    """What the disk was when a snapshot was made, as an image for reading, above the same backing layer.

    :param image: stays open as long as the result is used; closing it closes all that the result stands on.
    :param wanted: id or name, or ``snapshot.id=ID,snapshot.name=NAME`` with one or both of them.
    :raises ImageError: there is no such snapshot.
    """
    with _failing("Failed to load snapshot"):
        if not context.formats.has("snapshot_view", image.driver):
            raise UnsupportedOperation(
                f"Block format '{image.driver}' used by device '' does not support temporarily loading internal "
                "snapshots"
            )
        snapshot = _wanted(listed(context, image), wanted)
        if snapshot is None:
            raise ImageError("Can't find snapshot")
        shown: Image = context.formats.call("snapshot_view", image.driver, image=image, snapshot=snapshot)
    shown.filename = image.filename
    shown.bind(image.driver, context.formats.block_status(image.driver))
    shown.backing = image.backing
    return shown


def require_well_formed(text: str) -> None:
    """Refuse what cannot name a snapshot.

    :raises InvalidOption: it is an option string with an unknown option.
    """
    if text.startswith("snapshot."):
        for name in option_values(text):
            if name not in (_ID, _NAME):
                raise InvalidOption(f"Invalid parameter '{name}'")


def _wanted(snapshots: Sequence[Snapshot], text: str) -> Snapshot | None:
    if not text.startswith("snapshot."):
        return find_either(snapshots, text)
    require_well_formed(text)
    values = option_values(text)
    return find(snapshots, id=values.get(_ID), name=values.get(_NAME))


def create(context: Context, image: Image, name: str) -> None:
    """Keep the present content of an image, opened for writing, as an internal snapshot.

    :raises ImageError: it cannot be done; nothing has changed.
    """
    with _failing(f"Could not create snapshot '{name}'"):
        image = unfiltered(image)
        if not context.formats.has("snapshot_create", image.driver):
            raise UnsupportedOperation("Operation not supported")
        context.formats.call("snapshot_create", image.driver, image=image, name=name)
        image.flush()


def apply(context: Context, image: Image, text: str) -> None:
    """Give an image, opened for writing, the content that it had when a snapshot was made.

    :param text: id of the snapshot, or name if no snapshot has that id.
    :raises ImageError: it cannot be done; nothing has changed.
    """
    with _failing(f"Could not apply snapshot '{text}'"):
        image = unfiltered(image)
        if not context.formats.has("snapshot_apply", image.driver):
            raise UnsupportedOperation("Block driver does not support snapshots")
        snapshot = find_either(listed(context, image), text)
        if snapshot is None:
            raise ImageError("Failed to load snapshot: No such file or directory")
        context.formats.call("snapshot_apply", image.driver, image=image, snapshot=snapshot)
        image.flush()


def delete(context: Context, image: Image, name: str) -> None:
    """Delete the first snapshot of that name from an image opened for writing.

    :raises ImageError: it cannot be done; nothing has changed.
    """
    with _failing(f"Could not delete snapshot '{name}'"):
        image = unfiltered(image)
        snapshot = find(listed(context, image), name=name)
        if snapshot is None:
            raise ImageError("snapshot not found")
        if not context.formats.has("snapshot_delete", image.driver):
            raise UnsupportedOperation("Operation not supported")
        context.formats.call("snapshot_delete", image.driver, image=image, snapshot=snapshot)
        image.flush()


@contextmanager
def _failing(what: str) -> Iterator[None]:
    """Say what has failed."""
    try:
        yield
    except ImageError as error:
        raise error.in_context(what) from error
