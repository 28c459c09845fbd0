"""Looking at bytes."""

from __future__ import annotations


def is_zero(view: memoryview) -> bool:
    """Whether all bytes are zero; the first that is not ends the search.

    :param view: of bytes (format ``B``).
    """
    return not len(view) or (view[0] == 0 and view[1:] == view[:-1])
