"""Buffers that go round, and the thread that writes."""

from __future__ import annotations

import threading

import pytest

from diskwright.engine.pool import Stopped, Workers
from diskwright.engine.writing import Buffers, Writer


def test_buffers_are_made_until_there_are_enough() -> None:
    buffers = Buffers(Workers(1), 4096, 2)
    first, second = buffers.take(), buffers.take()
    assert len(first) == len(second) == 4096
    threading.Timer(0.05, buffers.give, [first]).start()
    assert buffers.take() is first
    buffers.allow(3)
    third = buffers.take()
    assert third is not first
    assert third is not second


def test_the_writer_ends_when_another_worker_has_failed() -> None:
    workers = Workers(2)
    writer = Writer(None, workers, Buffers(workers, 4096, 3))  # type: ignore[arg-type]
    ended = threading.Event()

    def loop() -> None:
        try:
            writer.loop()
        except Stopped:
            ended.set()
            raise

    def fail() -> None:
        workers.add(loop)
        while not writer.active:
            pass
        raise LookupError

    with pytest.raises(LookupError):
        workers.run(fail, helpers=0)
    assert ended.wait(10)
