"""Progress in qemu-img's form."""

from __future__ import annotations

import io
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
            progress.update(done, 100)
    shown = [0, 3, 50, 100, 100]
    assert out.getvalue() == "".join(f"    ({percent:.2f}/100%)\r" for percent in shown) + "\n"
    assert err.getvalue() == ""


def test_an_empty_task_is_done() -> None:
    out, _, *printers = streams()
    with Progress(*printers, shown=True) as progress:
        progress.update(0, 0)
    assert out.getvalue() == "    (0.00/100%)\r    (100.00/100%)\r\n"


def test_a_signal_asks_for_one_line() -> None:
    out, err, *printers = streams()
    before = signal.getsignal(signal.SIGUSR1)
    with Progress(*printers, shown=False) as progress:
        progress.update(1, 3)
        os.kill(os.getpid(), signal.SIGUSR1)
        progress.update(2, 3)
        progress.update(3, 3)
    assert signal.getsignal(signal.SIGUSR1) == before
    assert out.getvalue() == ""
    assert err.getvalue() == "    (66.67/100%)\n"


def test_works_outside_of_the_main_thread() -> None:
    out, _, *printers = streams()

    def work() -> None:
        with Progress(*printers, shown=False) as progress:
            progress.update(1, 2)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert out.getvalue() == ""
