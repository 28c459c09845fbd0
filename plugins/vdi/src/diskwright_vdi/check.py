"""Consistency of the block map. Wording as qemu ``block/vdi.c``, ``vdi_co_check``, and so what counts as corrupt."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from diskwright.hookspecs import CheckResult

from .image import VdiImage
from .layout import BLOCK_SIZE, FIRST_SPECIAL

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


def check(image: VdiImage) -> CheckResult:
    """Find blocks in use twice, outside of the disk or of the file, and a wrong number of blocks in the header."""
    import numpy as np

    header, result = image.header, CheckResult()
    in_file = max(0, -(-(image.file.size - header.offset_data) // BLOCK_SIZE))
    seen = np.zeros(min(header.blocks, in_file), bool)
    allocated = 0
    for first, entries in image.block_map.runs(0, header.blocks):
        placed = entries < FIRST_SPECIAL
        large = placed & (entries >= header.blocks)
        missing = placed & ~large & (entries >= len(seen))
        _report(result, first, entries, large, "ERROR: block index {0} too large, is {1}")
        _report(result, first, entries, missing, "ERROR: block index {0} is behind the end of the file, is {1}")
        _report(result, first, entries, _repeated(entries, placed & ~large & ~missing, seen), _REPEATED)
        allocated += int(np.count_nonzero(placed & ~large))
    if allocated != header.blocks_allocated:
        result.error(f"ERROR: allocated blocks mismatch, is {allocated}, should be {header.blocks_allocated}")
    return result


_REPEATED = "ERROR: block index {1} also used by {1}"


def _repeated(entries: npt.NDArray[np.uint32], valid: Any, seen: npt.NDArray[np.bool_]) -> Any:
    """Which of the valid entries have been met before, here or in ``seen``, where they are then noted."""
    import numpy as np

    where = np.flatnonzero(valid)
    values = entries[where]
    first = np.zeros(len(where), bool)
    first[np.unique(values, return_index=True)[1]] = True
    repeated = np.zeros(len(entries), bool)
    repeated[where[~first | seen[values]]] = True
    seen[values] = True
    return repeated


def _report(result: CheckResult, first: int, entries: Any, which: Any, line: str) -> None:
    numbers = which.nonzero()[0]
    kept = max(0, result.MAX_FINDINGS - len(result.findings))
    for number in numbers[:kept].tolist():
        result.note(line.format(first + number, int(entries[number])))
    result.corruptions += len(numbers)
