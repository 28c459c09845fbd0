"""Throttle groups: how long requests wait, by a clock of our own."""

import time

import pytest

from diskwright.engine.pool import Stopped
from diskwright.objects.throttle import Bucket, ThrottleGroup
from diskwright.waiting import interrupted_by, pause


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def waits(group: ThrottleGroup, clock: Clock, requests: int, length: int = 1, *, writing: bool = False) -> list[float]:
    """When each of several requests, one right after the other, may pass: seconds."""
    found = []
    for _ in range(requests):
        clock.now += group.reserve(length, writing=writing)
        found.append(round(clock.now, 6))
    return found


def test_the_rate_is_kept_after_a_little_slack() -> None:
    clock = Clock()
    group = ThrottleGroup({"iops-total": Bucket(10)}, clock=clock)
    assert waits(group, clock, 5) == [0, 0, 0.1, 0.2, 0.3]
    clock.now = 100
    assert waits(group, clock, 3) == [100, 100, 100.1]


def test_bytes_count_by_their_number() -> None:
    clock = Clock()
    group = ThrottleGroup({"bps-total": Bucket(1000)}, clock=clock)
    assert waits(group, clock, 3, 600) == [0, 0.5, 1.1]


def test_requests_that_come_together_wait_one_after_the_other() -> None:
    clock = Clock()
    group = ThrottleGroup({"bps-total": Bucket(1000)}, clock=clock)
    assert [round(group.reserve(600, writing=False), 6) for _ in range(3)] == [0, 0.5, 1.1]


def test_reading_and_writing_have_limits_of_their_own() -> None:
    clock = Clock()
    group = ThrottleGroup({"iops-read": Bucket(10), "iops-write": Bucket(5)}, clock=clock)
    assert waits(group, clock, 3) == [0, 0, 0.1]
    clock.now = 0.1
    assert waits(group, clock, 3, writing=True) == [0.1, 0.2, 0.4]


def test_a_burst_uses_up_what_was_saved() -> None:
    clock = Clock()
    group = ThrottleGroup({"iops-total": Bucket(10, burst=20)}, clock=clock)
    assert waits(group, clock, 23)[-3:] == [0, 0.1, 0.2]


def test_a_longer_burst_keeps_to_its_own_rate() -> None:
    clock = Clock()
    group = ThrottleGroup({"iops-total": Bucket(10, burst=20, length=2)}, clock=clock)
    times = waits(group, clock, 100)
    assert times[:5] == [0, 0, 0, 0.05, 0.1]
    # Twice the rate as long as the burst lasts (it saves 40 requests), then the rate.
    assert (times[80] - times[79], times[99] - times[98]) == pytest.approx((0.05, 0.1), abs=0.051)
    assert times[99] == pytest.approx((99 - 40) / 10, abs=0.2)


def test_large_requests_count_more_than_once() -> None:
    clock = Clock()
    group = ThrottleGroup({"iops-total": Bucket(10)}, request_size=100, clock=clock)
    assert waits(group, clock, 3, 300) == [0, 0.2, 0.5]
    assert ThrottleGroup({}).reserve(1 << 40, writing=True) == 0


def test_waiting_ends_when_another_thread_has_failed() -> None:
    def failed() -> None:
        raise Stopped

    start = time.monotonic()
    with interrupted_by(failed), pytest.raises(Stopped):
        pause(60)
    assert time.monotonic() - start < 10
