"""Throttle groups: limits on bytes and requests per second that all disks of a group share.

Each limit is a leaky bucket: requests fill it, it empties at the permitted rate, and while it is too full new requests
wait. A burst has a second bucket, which keeps to the higher rate of the burst.
Source: the description of throttling in qemu ``docs/throttle.txt``, and ``qapi/qom.json`` for the names.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from ..errors import InvalidOption
from ..sizes import MAX_INT64
from ..waiting import pause
from .throttle_options import SCOPES, UNITS

MAX_RATE = 10**15
"""Bytes or requests per second."""
MAX_LENGTH = 2**32 - 1
"""Seconds of a burst."""
SLACK = 0.1
"""Seconds: how much more than the rate permits may be taken at once."""

_INTEGER = re.compile(r"\s*([+-]?)(?:0[xX]([0-9a-fA-F]+)|(0[0-7]*)|([1-9][0-9]*))", re.ASCII)


@dataclass
class Bucket:
    """One limit.

    :ivar rate: units per second, 0 for no limit.
    :ivar burst: units per second during a burst, 0 for none.
    :ivar length: seconds that a burst may last.
    :ivar level: units above what the rate has let through so far.
    :ivar burst_level: the same for the burst's rate.
    """

    rate: int = 0
    burst: int = 0
    length: int = 1
    level: float = field(default=0.0, init=False)
    burst_level: float = field(default=0.0, init=False)

    def leak(self, seconds: float) -> None:
        """Let the time pass."""
        self.level = max(0.0, self.level - self.rate * seconds)
        self.burst_level = max(0.0, self.burst_level - self.burst * seconds)

    def delay(self) -> float:
        """Seconds until the next request may pass."""
        if not self.rate:
            return 0.0
        capacity = self.burst * self.length if self.burst else self.rate * SLACK
        delay = (self.level - capacity) / self.rate
        if self.burst and self.length > 1:
            delay = max(delay, (self.burst_level - self.burst * SLACK) / self.burst)
        return max(0.0, delay)

    def add(self, units: float) -> None:
        """A request has passed, or will once it has waited."""
        self.level += units
        self.burst_level += units


class ThrottleGroup:
    """Limits for several disks, and threads, together.

    :param buckets: by unit and scope: ``bps-total``, ``iops-read``, ...
    :param request_size: bytes; a larger request counts as that many; 0: each request is one.
    :param clock: seconds since whenever, as :func:`time.monotonic`.
    """

    def __init__(
        self,
        buckets: Mapping[str, Bucket],
        request_size: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._buckets = {name: bucket for name, bucket in buckets.items() if bucket.rate}
        self._request_size = request_size
        self._clock = clock
        self._lock = threading.Lock()
        self._time = clock()

    def pass_through(self, length: int, *, writing: bool) -> None:
        """Wait until a request of so many bytes may pass."""
        pause(self.reserve(length, writing=writing))

    def reserve(self, length: int, *, writing: bool) -> float:
        """Queue a request of so many bytes behind those before it; the seconds after which it may pass."""
        scopes = ("total", "write" if writing else "read")
        with self._lock:
            now = self._clock()
            for bucket in self._buckets.values():
                bucket.leak(now - self._time)
            self._time = now
            concerned = [(unit, self._buckets.get(f"{unit}-{scope}")) for unit in UNITS for scope in scopes]
            # What waits already fills the buckets, so whoever comes later waits for it too.
            delay = max(found.delay() if found else 0.0 for _, found in concerned)
            for unit, found in concerned:
                if found:
                    found.add(length if unit == "bps" else self._requests(length))
        return delay

    def _requests(self, length: int) -> float:
        return max(1.0, length / self._request_size) if self._request_size else 1.0


def make_throttle_group(values: Mapping[str, str], lookup: object = None) -> ThrottleGroup:
    """A group from its definition.

    :param values: of :data:`throttle_options.FIELDS`.
    :raises InvalidOption: a value is no number, out of range, or contradicts another.
    """
    limits: dict[str, int] = {}
    for option, text in values.items():
        if option == "limits":
            raise InvalidOption("Invalid parameter type for 'limits', expected: object")
        prefix, name = ("x-", option[2:]) if option.startswith("x-") else ("limits.", option.removeprefix("limits."))
        number = _integer(option, text)
        if prefix == "x-" and number < 0:
            raise InvalidOption("Property values cannot be negative")
        if name.endswith("-max-length") and number > MAX_LENGTH:
            space = " " if prefix == "limits." else ""  # QEMU's older message lacks it
            shown = name if prefix == "limits." else option
            raise InvalidOption(f"{shown} value must be in the{space}range [0, {MAX_LENGTH}]")
        limits[name] = number
    buckets = {
        name: Bucket(limits.get(name, 0), limits.get(f"{name}-max", 0), limits.get(f"{name}-max-length", 1))
        for name in (f"{unit}-{scope}" for unit in UNITS for scope in SCOPES)
    }
    request_size = limits.get("iops-size", 0)
    for message in _objections(buckets, request_size):
        raise InvalidOption(message)
    return ThrottleGroup(buckets, max(0, request_size))


def _integer(option: str, text: str) -> int:
    match = _INTEGER.fullmatch(text)
    number = 0
    if match is not None:
        sign, hexadecimal, octal, decimal = match.groups()
        base = 16 if hexadecimal else 8 if octal else 10
        number = int(f"{sign}{hexadecimal or octal or decimal}", base)
    if match is None or not -MAX_INT64 - 1 <= number <= MAX_INT64:
        raise InvalidOption(f"Parameter '{option}' expects integer")
    return number


def _objections(buckets: Mapping[str, Bucket], request_size: int) -> Iterator[str]:
    """What speaks against these limits."""
    for unit in UNITS:
        total, *others = (buckets[f"{unit}-{scope}"] for scope in SCOPES)
        if (total.rate and any(b.rate for b in others)) or (total.burst and any(b.burst for b in others)):
            yield "bps/iops/max total values and read/write values cannot be used at the same time"
    if request_size and not any(buckets[f"iops-{scope}"].rate for scope in SCOPES):
        yield "iops size requires an iops value to be set"
    for bucket in buckets.values():
        if not 0 <= bucket.rate <= MAX_RATE or not 0 <= bucket.burst <= MAX_RATE:
            yield f"bps/iops/max values must be within [0, {MAX_RATE}]"
        if not bucket.length:
            yield "the burst length cannot be 0"
        if bucket.length != 1 and not bucket.burst:
            yield "burst length set without burst rate"
        if bucket.burst and not 0 <= bucket.length <= MAX_RATE // bucket.burst:
            yield "burst length too high for this burst rate"
        if bucket.burst and not bucket.rate:
            yield "bps_max/iops_max require corresponding bps/iops values"
        if bucket.burst and bucket.burst < bucket.rate:
            yield "bps_max/iops_max cannot be lower than bps/iops"
