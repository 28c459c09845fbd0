"""Finding zeros in data, at memory speed."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

_WORD = 8


def nonzero_blocks(data: memoryview, block: int) -> npt.NDArray[np.bool_]:
    """Which blocks of a buffer have a byte that is not zero.

    :param block: bytes, a multiple of 512; the last block may be shorter.
    :returns: one boolean a block.
    """
    import numpy as np

    whole = len(data) // block
    found = np.ones(-(-len(data) // block), dtype=bool)
    if whole:
        words = np.frombuffer(data[: whole * block], np.uint64).reshape(whole, block // _WORD)
        # Most blocks of real data give themselves away by their first or last word; only the others are read whole.
        suspects = np.flatnonzero((words[:, 0] | words[:, -1] | words[:, block // _WORD // 2]) == 0)
        if len(suspects) == whole:
            found[:whole] = words.max(axis=1) != 0
        elif len(suspects):
            found[suspects] = words[suspects].max(axis=1) != 0
    if whole < len(found):
        found[whole] = np.frombuffer(data[whole * block :], np.uint8).any()
    return found


def nonzero_runs(data: memoryview, block: int) -> list[tuple[int, int]]:
    """The parts of a buffer that are not zero: (start, end) pairs in bytes, in whole blocks but for the last."""
    import numpy as np

    found = nonzero_blocks(data, block)
    edges = np.flatnonzero(np.diff(found, prepend=False, append=False)).tolist()
    return [(first * block, min(last * block, len(data))) for first, last in zip(edges[::2], edges[1::2], strict=True)]
