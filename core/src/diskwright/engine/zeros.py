"""Finding zeros in data, at memory speed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..extent import runs_of

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
    if _all_begin_nonzero(data, block):
        return found
    if whole:
        words = np.frombuffer(data[: whole * block], np.uint64).reshape(whole, block // _WORD)
        suspects = _suspects(words)
        if len(suspects) == whole:
            found[:whole] = words.max(axis=1) != 0
        elif len(suspects):
            found[suspects] = words[suspects].max(axis=1) != 0
    if whole < len(found):
        found[whole] = np.frombuffer(data[whole * block :], np.uint8).any()
    return found


def _suspects(words: npt.NDArray[np.uint64]) -> npt.NDArray[np.intp]:
    """Index of each row that could be all zeros: most rows of real data give themselves away by one of three words."""
    import numpy as np

    return np.flatnonzero((words[:, 0] | words[:, -1] | words[:, words.shape[1] // 2]) == 0)


def _all_begin_nonzero(data: memoryview, block: int) -> bool:
    """Whether no block can be all zeros, as the first word of each tells: so it is in most of real data."""
    return len(data) % block == 0 and 0 not in data.cast("Q")[:: block // _WORD].tolist()


def nonzero_runs(data: memoryview, block: int) -> list[tuple[int, int]]:
    """The parts of a buffer that are not zero: (start, end) pairs in bytes, in whole blocks but for the last."""
    found = nonzero_blocks(data, block)
    if found.all():
        return [(0, len(data))] if len(data) else []
    return block_runs(found, block, len(data))


def block_runs(found: npt.NDArray[np.bool_], block: int, length: int) -> list[tuple[int, int]]:
    """The ranges of blocks that are set, of ``length`` bytes in all: (start, end) pairs in bytes."""
    return [(first * block, min(last * block, length)) for first, last in runs_of(found)]
