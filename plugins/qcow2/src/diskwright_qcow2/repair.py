"""Repairing an image: no guest data, snapshot or bitmap is lost by it.

While a repair is under way, images of version 3 carry the dirty bit. Table entries that cannot be are replaced first.
Refcounts are corrected where they stand if all clusters in use have one; otherwise new refcount structures are written
to free clusters, the header is switched to them, and the old ones are given back. Then come the COPIED flags and, with
all of that in order, the snapshot table.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import numpy as np

from diskwright.errors import InvalidImage
from diskwright.facts import CheckResult
from diskwright.node import Truncatable

from . import layout
from .check import Examination, examine, readable_snapshots
from .layout import Autoclear, Incompatible
from .order import Disk
from .rebuild import RefcountBuilder
from .refcount import RefcountBlocks
from .repair_tables import flag_copied, repair_entries
from .snapshots import incomplete, mend_snapshots

if TYPE_CHECKING:
    from .image import Qcow2Image

_NB_SNAPSHOTS_FIELD = 60


def repair(image: Qcow2Image, mode: str) -> CheckResult:
    """Check and repair an image, see the ``check`` hook.

    :param mode: ``leaks`` or ``all``.
    """
    with image.lock:
        try:
            return _Repair(image, everything=mode == "all").run()
        finally:
            image.mended = None
            image.restart()


class _Repair:
    """One repair.

    :ivar result: until the end it counts as found what is left; what a new snapshot table will fix counts as fixed.
    """

    def __init__(self, image: Qcow2Image, *, everything: bool) -> None:
        self.image = image
        self.everything = everything
        self.result = CheckResult()
        self.features = image.header.incompatible_features
        self.new_snapshot_table = False

    def run(self) -> CheckResult:
        """Do it."""
        image, result = self.image, self.result
        if self.everything:
            self._mend_snapshots()
        snapshots = readable_snapshots(image, result, repairing=self.everything)
        if snapshots is None:
            return result  # what refers to what is not known: nothing can be said to be free
        if self.everything:
            self.new_snapshot_table |= bool(incomplete(image.header, snapshots))
            result.corruptions_fixed += result.corruptions
            result.corruptions = 0
        found = examine(image, snapshots, result, repairing=self.everything)
        if found.lost and not self.everything:
            found.comparison.report(result)
            result.note("ERROR need to rebuild refcount structures")
            result.fail(os.strerror(errno.EIO))
            return result
        if result.findings or found.differs:
            self._repair(found)
        sound = not (result.corruptions or result.check_errors)
        if sound:
            self.features &= ~(Incompatible.DIRTY | Incompatible.CORRUPT)
        _note_features(image, self.features)
        if sound and not result.leaks and self.new_snapshot_table:
            self._rewrite_snapshots()
        result.corruptions += result.corruptions_fixed
        result.leaks += result.leaks_fixed
        return result

    def _mend_snapshots(self) -> None:
        """Leave out what there is too much of in the snapshot table."""
        image, result = self.image, self.result
        try:
            mended = mend_snapshots(image.reader, image.header)
        except InvalidImage:
            return  # reported when the table is read
        if mended.faults:
            image.mended = mended
            image.restart()
            result.corruptions += mended.faults
            for line in mended.lines:
                result.note(line)
            self.new_snapshot_table = mended.shortened

    def _count_snapshots(self) -> None:
        """Let the header count the snapshots that are kept, before anything of the others may be given up."""
        image = self.image
        kept = len(image.snapshots)
        if kept != image.header.nb_snapshots:
            disk = Disk(image.file)
            disk.barrier()
            disk.write(_NB_SNAPSHOTS_FIELD, kept.to_bytes(4, "big"))
            disk.barrier()
            image.restart(nb_snapshots=kept)

    def _rewrite_snapshots(self) -> None:
        from .snapshot_ops import rewrite_table

        rewrite_table(self.image)

    def _repair(self, found: Examination) -> None:
        """Repair what has been found."""
        image, result = self.image, self.result
        _note_features(image, self.features | Incompatible.DIRTY)
        if self.everything:
            self._count_snapshots()
            self._repair_structures(found)
        if found.lost:
            found = self._rebuild(found)
        elif found.comparison.leaks or found.comparison.low or result.corruptions:
            found = self._correct(found)
        else:
            found.comparison.report(result)
        self._repair_flags(found)

    def _repair_structures(self, found: Examination) -> None:
        """Make the file as long as its refcount blocks need it, and replace L2 entries."""
        image = self.image
        if found.grown and isinstance(image.file, Truncatable):
            image.file.truncate(found.grown)
            image.file.flush()
        if repair_entries(image) or found.grown:
            image.restart()

    def _again(self, result: CheckResult) -> Examination:
        """Examine what the image is now."""
        return examine(self.image, self.image.snapshots, result)

    def _rebuild(self, found: Examination) -> Examination:
        """Replace all refcount structures by new ones, and give the clusters of the old ones back."""
        result = self.result
        found.comparison.report(result)
        result.note("Rebuilding refcount structure")
        _write_structures(self.image, found)
        before = result.corruptions
        now = CheckResult()
        again = self._again(now)
        again.comparison.report(now, leaks_fixed=True)
        for line in now.findings:
            result.note(line)
        result.corruptions_fixed += max(0, before - now.corruptions)
        result.corruptions, result.check_errors = now.corruptions, now.check_errors
        result.leaks_fixed, result.leaks = result.leaks, 0
        return self._corrected(again)

    def _correct(self, found: Examination) -> Examination:
        """Correct the refcounts where they stand."""
        result, comparison = self.result, found.comparison
        plain = CheckResult()
        comparison.report(plain)
        for line in plain.findings:
            result.note(line)
        comparison.report(result, leaks_fixed=True, low_fixed=self.everything)
        result.leaks_fixed += comparison.leaks
        if self.everything:
            result.corruptions_fixed += comparison.low
        return self._corrected(found)

    def _corrected(self, found: Examination) -> Examination:
        """What the image is when the refcounts are those that were computed."""
        comparison = found.comparison
        if not comparison.leaks and not (self.everything and comparison.low):
            return found
        _correct_refcounts(self.image, found, lower_only=not self.everything)
        return self._again(CheckResult())

    def _repair_flags(self, found: Examination) -> None:
        """Repair the COPIED flags; if only leaks are wanted, only where nothing else is wrong."""
        image, result = self.image, self.result
        wrong = found.tables.wrong_flags
        fixes = self.everything or not (result.corruptions or result.leaks or result.check_errors)
        for line in found.tables.flag_lines(image.l1, "Repairing" if fixes else "ERROR"):
            result.note(line)
        if not fixes:
            result.corruptions += wrong
        elif wrong:
            flag_copied(image)
            image.restart()
            result.corruptions_fixed += wrong


def _note_features(image: Qcow2Image, features: Incompatible) -> None:
    """Write the incompatible features, unless they are what they were; no version before 3 has any."""
    header = image.header
    if header.version < 3 or features == header.incompatible_features:
        return
    disk = Disk(image.file)
    known = Autoclear(int(header.autoclear_features) & int(Autoclear.SUPPORTED))
    fields = (features, header.compatible_features, known)
    disk.barrier()
    disk.write(layout.INCOMPATIBLE_FIELD, b"".join(int(field).to_bytes(8, "big") for field in fields))
    disk.barrier()
    image.header = header.replace(incompatible_features=features, autoclear_features=known)


def _write_structures(image: Qcow2Image, found: Examination) -> None:
    """Write new refcount structures to clusters that nothing uses, the old structures included, and switch to them."""
    counts = found.references.counts
    builder = RefcountBuilder(image, counts, image.header.refcount_order)
    fields = builder.write(builder.spread())
    builder.disk.barrier()
    pointer = fields["refcount_table_offset"].to_bytes(8, "big") + fields["refcount_table_clusters"].to_bytes(4, "big")
    builder.disk.write(layout.REFCOUNT_TABLE_FIELD, pointer)
    builder.disk.barrier()
    image.restart(**fields)


def _correct_refcounts(image: Qcow2Image, found: Examination, *, lower_only: bool) -> None:
    """Set the refcounts to the references, where they differ.

    Any part of that may be on disk or not: each count by itself becomes right, and nothing is written that is counted.
    """
    disk = Disk(image.file)
    blocks = RefcountBlocks(image.header, image.reader, disk.write)
    stored, references = found.stored.counts, found.references.counts
    size = blocks.block_entries
    for index in np.flatnonzero(blocks.table[: -(-len(stored) // size)]).tolist():
        here = slice(index * size, (index + 1) * size)
        if (stored[here] != references[here]).any():
            blocks.correct(index, references[here], lower_only=lower_only)
    blocks.write_blocks()
    disk.barrier()
    image.restart()
