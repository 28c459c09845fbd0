"""How far a long operation has come: ``-p`` in qemu-img's own form, or one line whenever SIGUSR1 asks for it."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

from .printer import Printer


class Progress:
    """Shows progress in percent while in a ``with`` block.

    :param shown: whether to show it on ``out`` all the time (``-p`` without ``-q``); otherwise SIGUSR1 makes the next
        update show it once, on ``err``.
    :param step: percent by which it must have moved to be shown again.
    """

    def __init__(self, out: Printer, err: Printer, *, shown: bool, step: float = 1.0) -> None:
        self._out = out
        self._err = err
        self._shown = shown
        self._step = step
        self._last = 0.0
        self._asked = False
        self._previous: Any = None

    def __enter__(self) -> Progress:
        if not self._shown and threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGUSR1, self._ask)
        self.update(0, 1)
        return self

    def __exit__(self, *exc: object) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGUSR1, self._previous)
        if self._shown:
            self._out.write("\n")

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self._asked = True

    def update(self, done: int, total: int) -> None:
        """So much has been done of so much; shown if it moved by more than the step, or is nothing or all."""
        percent = min(100.0, 100.0 * done / total) if total > 0 else 100.0
        if abs(percent - self._last) <= self._step and percent not in (0.0, 100.0):
            return
        self._last = percent
        if self._shown:
            self._out.write(f"    ({percent:3.2f}/100%)\r")
            self._out.flush()
        elif self._asked:
            self._asked = False
            self._err.write(f"    ({percent:3.2f}/100%)\n")
            self._err.flush()
