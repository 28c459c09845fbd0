"""Waiting on purpose, in steps short enough that a signal, or the failure of another thread, ends it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

STEP = 0.2
"""Seconds."""

_local = threading.local()


@contextmanager
def interrupted_by(check: Callable[[], None]) -> Iterator[None]:
    """Within, :func:`pause` in this thread calls ``check`` now and then, which ends the waiting by raising."""
    former = getattr(_local, "check", None)
    _local.check = check
    try:
        yield
    finally:
        _local.check = former


def pause(seconds: float) -> None:
    """Wait; nothing is waited for if the time is not positive.

    :raises BaseException: whatever ends the waiting early.
    """
    check: Callable[[], None] | None = getattr(_local, "check", None)
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        if check is not None:
            check()
        time.sleep(min(left, STEP))
