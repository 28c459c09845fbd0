"""Keeping a rate: how long to wait before so many more bytes may be written."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable


class RateLimit:
    """Bytes per second for several threads together.

    :param rate: bytes per second, > 0.
    :param clock: seconds since whenever, as :func:`time.monotonic`.
    """

    def __init__(self, rate: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate = rate
        self._clock = clock
        self._lock = threading.Lock()
        self._next = clock()

    def delay(self, count: int) -> float:
        """Take up room for ``count`` bytes; the seconds after which they may be written."""
        with self._lock:
            now = self._clock()
            start = max(now, self._next)
            self._next = start + count / self._rate
            return start - now
