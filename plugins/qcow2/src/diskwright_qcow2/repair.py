"""Repairing an image: no guest data, snapshot or bitmap is lost by it.

While a repair is under way, images of version 3 carry the dirty bit. Table entries that cannot be are replaced first;
then leaked clusters are given back where they are counted, or, if there is more wrong with the refcounts, all of them
are built anew behind the end of the file and the header is switched to them; last, the COPIED flags.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from . import layout
from .check import Examination, examine
from .layout import Autoclear, Incompatible
from .order import Disk
from .rebuild import RefcountBuilder, content_references, used_windows
from .refcount import RefcountBlocks
from .repair_tables import flag_copied, repair_entries

if TYPE_CHECKING:
    from diskwright.hookspecs import CheckResult

    from .image import Qcow2Image

_REFCOUNT_TABLE_FIELD = 48
_FEATURES_FIELD = 72


def repair(image: Qcow2Image, mode: str) -> CheckResult:
    """Check and repair an image, see the ``check`` hook.

    :param mode: ``leaks`` or ``all``.
    """
    with image.lock:
        before = examine(image)
        result = before.result
        faults = result.corruptions + result.leaks + result.check_errors
        if not before.complete:
            return result  # what refers to what is not known: nothing can be said to be free
        features = image.header.incompatible_features
        if faults:
            _note_features(image, features | Incompatible.DIRTY)
            if _repair(image, before, mode):
                _repair_flags(image, before)
            _conclude(result, examine(image).result)
        sound = result.corruptions == result.corruptions_fixed and not result.check_errors
        if sound:
            features &= ~(Incompatible.DIRTY | Incompatible.CORRUPT)
        _note_features(image, features)
        return result


def _note_features(image: Qcow2Image, features: Incompatible) -> None:
    """Write the incompatible features, unless they are what they were; no version before 3 has any."""
    header = image.header
    if header.version < 3 or features == header.incompatible_features:
        return
    disk = Disk(image.file)
    known = Autoclear(int(header.autoclear_features) & int(Autoclear.SUPPORTED))
    fields = (features, header.compatible_features, known)
    disk.barrier()
    disk.write(_FEATURES_FIELD, b"".join(int(field).to_bytes(8, "big") for field in fields))
    disk.barrier()
    image.header = replace(header, incompatible_features=features, autoclear_features=known)


def _conclude(result: CheckResult, after: CheckResult) -> None:
    """Note how much of what was found has been repaired."""
    result.corruptions_fixed = max(0, result.corruptions - after.corruptions)
    result.leaks_fixed = max(0, result.leaks - after.leaks)
    result.check_errors = after.check_errors
    left = set(after.findings)
    for place, line in enumerate(result.findings):
        word, space, rest = line.partition(" ")
        if line not in left and word in ("ERROR", "Leaked"):
            result.findings[place] = f"Repairing{space}{rest}"


def _repair(image: Qcow2Image, found: Examination, mode: str) -> bool:
    """Repair everything but COPIED flags; whether the refcounts tell what those have to be."""
    if mode == "all":
        if repair_entries(image):
            image.restart()
            found = examine(image)
        if found.structures_broken or found.counts_low:
            _rebuild(image)
        else:
            _free_leaks(image, found)
        return True
    if found.structures_broken:
        return False
    _free_leaks(image, found)
    return not found.counts_low


def _repair_flags(image: Qcow2Image, before: Examination) -> None:
    """Repair the COPIED flags; what counts as found are those that are wrong now, with the refcounts repaired."""
    found = examine(image)
    if found.wrong_flags:
        flag_copied(image)
        image.restart()
    before.result.corruptions += found.wrong_flags - before.wrong_flags
    stale = set(before.flag_lines)
    before.result.findings[:] = [line for line in before.result.findings if line not in stale]
    for line in found.flag_lines:
        before.result.note(line)


def _rebuild(image: Qcow2Image) -> None:
    """Replace all refcount structures by new ones."""
    header = image.header
    counts = content_references(image, image.l1, sound=False)
    l1_end = header.l1_table_offset + header.l1_size * layout.L1_ENTRY_SIZE
    counts[header.l1_table_offset >> header.cluster_bits : -(-l1_end >> header.cluster_bits)] += np.uint32(1)
    if header.refcount_bits < 32:
        for _, part in used_windows(counts):
            np.minimum(part, np.uint32((1 << header.refcount_bits) - 1), out=part)
    builder = RefcountBuilder(image, counts, header.refcount_order)
    # The last count is for a cluster behind the end of the file.
    plan = builder.plan(len(counts) - (not counts[-1]))
    fields = builder.write(plan)
    builder.disk.barrier()
    pointer = fields["refcount_table_offset"].to_bytes(8, "big") + fields["refcount_table_clusters"].to_bytes(4, "big")
    builder.disk.write(_REFCOUNT_TABLE_FIELD, pointer)
    builder.disk.barrier()
    image.restart(**fields)


def _free_leaks(image: Qcow2Image, found: Examination) -> None:
    """Lower the refcounts that are higher than the references."""
    if not found.result.leaks:
        return
    disk = Disk(image.file)
    blocks = RefcountBlocks(image.header, image.reader, disk.write)
    stored, references = found.stored.counts, found.references.counts
    size = blocks.block_entries
    for index in np.flatnonzero(blocks.table[: -(-len(stored) // size)]).tolist():
        here = slice(index * size, (index + 1) * size)
        if (stored[here] > references[here]).any():
            blocks.lower(index, references[here])
    blocks.write_blocks()
    disk.barrier()
    image.restart()
