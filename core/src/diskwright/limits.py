"""Limits on what a command may take of the machine, as a policy sets them."""

from __future__ import annotations

import resource
import signal
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import FrameType

    from .policy import Policy


class TimeIsOver(BaseException):
    """A command has taken the time that it may take."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"The time limit of {seconds:g} s is over")


def apply(policy: Policy) -> None:
    """From now on, hold this process to a policy's limits on memory and time.

    Too much memory is a :class:`MemoryError`, too much time raises :class:`TimeIsOver` in the main thread.
    """
    if policy.memory is not None:
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        most = policy.memory if hard == resource.RLIM_INFINITY else min(policy.memory, hard)
        resource.setrlimit(resource.RLIMIT_AS, (most, hard))
    if policy.time is not None:
        seconds = policy.time

        def stop(number: int, frame: FrameType | None) -> None:
            raise TimeIsOver(seconds)

        signal.signal(signal.SIGALRM, stop)
        signal.setitimer(signal.ITIMER_REAL, seconds)
