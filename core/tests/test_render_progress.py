"""Progress in qemu-img's form."""

from __future__ import annotations

import io
import json
import os
import signal
import threading

from diskwright.render.printer import Printer
from diskwright.render.progress import Progress


def streams() -> tuple[io.StringIO, io.StringIO, Printer, Printer]:
    out, err = io.StringIO(), io.StringIO()
    return out, err, Printer(out), Printer(err)


def test_shown_when_it_moved_by_more_than_the_step() -> None:
    out, err, *printers = streams()
    with Progress(*printers, shown=True, step=2.0) as progress:
        for done in (1, 2, 3, 4, 50, 51, 100, 100):
            progress(done, 100)
    shown = [0, 3, 50, 100, 100]
    assert out.getvalue() == "".join(f"    ({percent:.2f}/100%)\r" for percent in shown) + "\n"
    assert err.getvalue() == ""


def test_an_empty_task_is_done() -> None:
    out, _, *printers = streams()
    with Progress(*printers, shown=True) as progress:
        progress(0, 0)
    assert out.getvalue() == "    (0.00/100%)\r    (100.00/100%)\r\n"


def test_a_signal_asks_for_one_line() -> None:
    out, err, *printers = streams()
    before = signal.getsignal(signal.SIGUSR1)
    with Progress(*printers, shown=False) as progress:
        progress(1, 3)
        os.kill(os.getpid(), signal.SIGUSR1)
        progress(2, 3)
        progress(3, 3)
    assert signal.getsignal(signal.SIGUSR1) == before
    assert out.getvalue() == ""
    assert err.getvalue() == "    (66.67/100%)\n"


def test_works_outside_of_the_main_thread() -> None:
    out, _, *printers = streams()

    def work() -> None:
        with Progress(*printers, shown=False) as progress:
            progress(1, 2)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert out.getvalue() == ""


class Clock:
    """Seconds, as told."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_person_sees_a_bar_with_rate_and_time() -> None:
    out, clock = Terminal(), Clock()
    with Progress(Printer(out), Printer(io.StringIO()), shown="text", clock=clock) as progress:
        for done in (10 << 20, 20 << 20, 40 << 20):
            clock.now += 1
            progress(done, 40 << 20)
    first, *shown = out.getvalue().split("\r")[1:]
    assert first == f"[{'.' * 30}]   0.0%"
    assert shown[0].rstrip() == f"[{'#' * 7}{'.' * 23}]  25.0%  10 MiB/s  0:03 left"
    assert shown[1].rstrip() == f"[{'#' * 15}{'.' * 15}]  50.0%  10 MiB/s  0:02 left"
    assert shown[2].rstrip() == f"[{'#' * 30}] 100.0%  13.3 MiB/s"
    assert out.getvalue().endswith("\n")
    assert len(shown[2].rstrip("\n")) == len(shown[1].rstrip("\n"))


def test_a_bar_is_not_drawn_too_often() -> None:
    out, clock = Terminal(), Clock()
    with Progress(Printer(out), Printer(io.StringIO()), shown="text", clock=clock) as progress:
        for done in range(1, 1000):
            clock.now += 0.001
            progress(done, 1000)
        progress(1000, 1000)
    assert 10 <= out.getvalue().count("\r") <= 12
    assert "100.0%" in out.getvalue()


def test_programs_read_json() -> None:
    out, err, *printers = streams()
    clock = Clock()
    with Progress(*printers, shown="json", clock=clock) as progress:
        progress(0, 4000)
        clock.now += 2
        progress(1000, 4000)
        progress(1001, 4000)
        progress(4000, 4000)
    assert out.getvalue() == ""
    assert [json.loads(line) for line in err.getvalue().splitlines()] == [
        {"done": 0, "total": 4000, "rate": 0, "eta": None},
        {"done": 1000, "total": 4000, "rate": 500, "eta": 6.0},
        {"done": 4000, "total": 4000, "rate": 2000, "eta": 0},
    ]
