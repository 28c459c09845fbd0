"""How far a long operation has come: for people, for programs, and in qemu-img's own form for scripts."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any, Protocol

from ..sizes import human_size
from .printer import Printer

SIGNALS = tuple(getattr(signal, name) for name in ("SIGUSR1", "SIGINFO") if hasattr(signal, name))
"""Signals that ask how far an operation has come."""

INTERVAL = 0.1
"""Seconds between two updates of a bar or for a program."""
WINDOW = 5.0
"""Seconds over which the rate is taken."""
BAR_WIDTH = 30

Clock = Callable[[], float]


class Display(Protocol):
    """A form in which progress is shown."""

    def begin(self) -> None:
        """Nothing has been done yet."""

    def show(self, done: int, total: int) -> None:
        """So much has been done of so much, in bytes."""

    def end(self) -> None:
        """Nothing follows."""


class Pace:
    """The rate of the last seconds, and when everything will be done.

    :param clock: seconds since whenever.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._seen = [(clock(), 0)]

    def at(self, done: int) -> float:
        """Bytes per second, now that so many bytes have been done."""
        now = self._clock()
        self._seen.append((now, done))
        while len(self._seen) > 2 and self._seen[1][0] <= now - WINDOW:
            del self._seen[0]
        start, before = self._seen[0]
        return max(0.0, (done - before) / (now - start)) if now > start else 0.0


class _Now:
    """Tells when it is time again to show something: now and then, and always at the beginning and the end."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._last: float | None = None

    def due(self, done: int, total: int) -> bool:
        now = self._clock()
        if self._last is not None and now - self._last < INTERVAL and done < total:
            return False
        self._last = now
        return True


class Steps:
    """qemu-img's form: a line that is written over, each time the percentage has moved by more than a step."""

    def __init__(self, out: Printer, step: float) -> None:
        self._out = out
        self._filter = StepFilter(step)

    def begin(self) -> None:
        """See :class:`Display`."""
        self.show(0, 1)

    def show(self, done: int, total: int) -> None:
        """See :class:`Display`."""
        percent = self._filter.passed(done, total)
        if percent is not None:
            self._out.write(f"    ({percent:3.2f}/100%)\r")
            self._out.flush()

    def end(self) -> None:
        """See :class:`Display`."""
        self._out.write("\n")


class StepFilter:
    """Lets a percentage pass if it moved by more than a step since the last one that passed, or is nothing or all."""

    def __init__(self, step: float) -> None:
        self._step = step
        self._last = 0.0

    def passed(self, done: int, total: int) -> float | None:
        """The percentage, ``None`` if it does not pass."""
        percent = percentage(done, total)
        if abs(percent - self._last) <= self._step and percent not in (0.0, 100.0):
            return None
        self._last = percent
        return percent


def percentage(done: int, total: int) -> float:
    """0 .. 100; nothing to do is done."""
    return min(100.0, 100.0 * done / total) if total > 0 else 100.0


class Bar:
    """For a person at a terminal: a bar with the rate and the time left."""

    def __init__(self, out: Printer, clock: Clock) -> None:
        self._out = out
        self._now = _Now(clock)
        self._pace = Pace(clock)
        self._width = 0

    def begin(self) -> None:
        """See :class:`Display`."""
        self.show(0, 1)

    def show(self, done: int, total: int) -> None:
        """See :class:`Display`."""
        if not self._now.due(done, total):
            return
        percent = percentage(done, total)
        rate = self._pace.at(done)
        filled = int(percent * BAR_WIDTH / 100)
        text = f"[{'#' * filled}{'.' * (BAR_WIDTH - filled)}] {percent:5.1f}%"
        if rate:
            text += f"  {human_size(int(rate))}/s"
            if done < total:
                text += f"  {_duration((total - done) / rate)} left"
        self._out.write("\r" + text.ljust(self._width))
        self._out.flush()
        self._width = len(text)

    def end(self) -> None:
        """See :class:`Display`."""
        self._out.write("\n")


def _duration(seconds: float) -> str:
    """As ``0:07`` or ``1:02:03``; ``-`` if nobody will wait for it."""
    if seconds >= 360_000:
        return "-"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class Lines:
    """For programs: JSON objects, one a line."""

    def __init__(self, err: Printer, clock: Clock) -> None:
        self._err = err
        self._now = _Now(clock)
        self._pace = Pace(clock)

    def begin(self) -> None:
        """See :class:`Display`: how much there is to do is not known yet."""

    def show(self, done: int, total: int) -> None:
        """See :class:`Display`."""
        if not self._now.due(done, total):
            return
        import json

        rate = self._pace.at(done)
        eta = round(max(0, total - done) / rate, 3) if rate else None
        facts = {"done": done, "total": total, "rate": round(rate), "eta": 0 if done >= total else eta}
        self._err.write(json.dumps(facts) + "\n")
        self._err.flush()

    def end(self) -> None:
        """See :class:`Display`."""


class Progress:
    """Shows progress while in a ``with`` block, if it is to be shown; if not, a signal makes the next step show it
    once, on standard error.

    :param shown: ``text`` for a bar where a person is looking and otherwise qemu-img's form, ``json`` for programs; as
        a boolean, whether to show ``text``.
    :param step: percent by which qemu-img's form must have moved to be shown again.
    """

    def __init__(
        self,
        out: Printer,
        err: Printer,
        *,
        shown: bool | str | None,
        step: float = 1.0,
        clock: Clock = time.monotonic,
    ) -> None:
        self._err = err
        self._display = _display(out, err, shown, step, clock)
        self._filter = StepFilter(step)
        self._asked = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Progress:
        if self._display is not None:
            self._display.begin()
        elif threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._ask) for number in SIGNALS}
        return self

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        if self._display is not None:
            self._display.end()

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self._asked = True

    @property
    def due(self) -> bool:
        """Whether anybody would see the next step: until then, nobody need find out how much there is to do."""
        return self._display is not None or self._asked

    def __call__(self, done: int, total: int) -> None:
        """So much has been done of so much, in bytes."""
        if self._display is not None:
            self._display.show(done, total)
            return
        percent = self._filter.passed(done, total)
        if percent is not None and self._asked:
            self._asked = False
            self._err.write(f"    ({percent:3.2f}/100%)\n")
            self._err.flush()


def _display(out: Printer, err: Printer, shown: bool | str | None, step: float, clock: Clock) -> Display | None:
    if not shown:
        return None
    if shown == "json":
        return Lines(err, clock)
    return Bar(out, clock) if out.terminal else Steps(out, step)
