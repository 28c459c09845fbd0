"""What drivers tell of an image: its snapshots and bitmaps, how large it would be, what is wrong with it."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any

from .errors import ImageError
from .record import Record


class Snapshot(Record):
    """One internal snapshot.

    :ivar date_sec: seconds since 1970, UTC; ``date_nsec`` the nanoseconds after it.
    :ivar vm_clock_nsec: nanoseconds that the guest had run.
    :ivar icount: instructions executed, ``None`` if not recorded.
    :ivar vm_state_size: bytes.
    """

    id: str
    name: str
    date_sec: int
    date_nsec: int
    vm_clock_nsec: int
    vm_state_size: int
    icount: int | None = None


class Limits(Record):
    """What requests to a node should look like; sizes in bytes, ``None`` where there is no limit worth telling.

    :ivar request_alignment: offset and length of each request are multiples of it.
    :ivar max_iov: most parts of memory in one request.
    :ivar min_mem_alignment: that memory has to have; ``opt_mem_alignment`` is the one that it should have.
    :ivar discard_alignment: what is discarded should be multiples of it; ``write_zeroes_alignment`` for zeros.
    """

    request_alignment: int = 1
    max_iov: int = 1024
    min_mem_alignment: int = 1
    opt_mem_alignment: int = 4096
    max_discard: int | None = None
    discard_alignment: int | None = None
    max_write_zeroes: int | None = None
    write_zeroes_alignment: int | None = None
    opt_transfer: int | None = None
    max_transfer: int | None = None

    def over(self, below: Limits) -> Limits:
        """Those of a node that stands on another one with limits of its own.

        How its requests are aligned is each node's own business: it makes fitting ones of them.
        """
        return self.replace(
            max_iov=min(self.max_iov, below.max_iov),
            min_mem_alignment=max(self.min_mem_alignment, below.min_mem_alignment),
            opt_mem_alignment=max(self.opt_mem_alignment, below.opt_mem_alignment),
            opt_transfer=max(self.opt_transfer or 0, below.opt_transfer or 0) or None,
            max_transfer=min((size for size in (self.max_transfer, below.max_transfer) if size), default=None),
        )


class Description(Record):
    """What ``info`` shows of a format.

    :ivar specific: the format's own facts, named as QEMU names them; values are str, int, bool, lists or mappings.
    :ivar dirty: whether the image was not closed cleanly; ``None`` if the format does not know.
    :ivar compressed: whether the image as a whole counts as compressed.
    :ivar type: the name that ``specific`` goes by, ``None`` if it is the driver's.
    """

    specific: Mapping[str, Any] | None = None
    dirty: bool | None = False
    compressed: bool = False
    cluster_size: int | None = None
    type: str | None = None


class Bitmap(Record):
    """One persistent dirty bitmap.

    :ivar granularity: bytes of guest data for each bit, a power of two.
    :ivar enabled: whether writes are recorded in it.
    :ivar inconsistent: whether it was in use when the image was not closed cleanly, so that nobody knows what it says.
    """

    name: str
    granularity: int
    enabled: bool
    inconsistent: bool = False


class Measurement(Record):
    """How much space an image takes.

    :ivar required: bytes of the file with the data that there is.
    :ivar fully_allocated: bytes of the file once the whole disk has been written.
    :ivar bitmaps: bytes that persistent bitmaps take, ``None`` if they cannot be copied.
    """

    required: int
    fully_allocated: int
    bitmaps: int | None = None


class Severity(StrEnum):
    """How much a finding matters to somebody who has an image from a stranger."""

    NOTE = "note"
    """good to know; nothing bad by itself"""
    WARNING = "warning"
    """may harm whoever uses the image without care"""
    DANGER = "danger"
    """reaches for something outside of the image, or is broken"""


class Finding(Record):
    """Something that is odd about an image.

    :ivar id: what kind of finding it is, for programs: words with hyphens between them.
    :ivar message: a line for people; what comes from the image is printable in it (:func:`.scrutiny.shown`).
    """

    severity: Severity
    id: str
    message: str


class CheckResult:
    """What ``check`` found.

    :ivar findings: a line for each problem, in the order found.
    :ivar corruptions: number of inconsistencies that endanger data.
    :ivar leaks: number of clusters allocated but not used.
    :ivar check_errors: number of times the check itself failed.
    :ivar failure: the system's word for why the check could not be finished; empty if it was.
    :ivar cause: the reason for that, if it is none of the findings.
    :ivar image_end: offset behind the last cluster in use, bytes, 0 if unknown.
    :ivar total_clusters: clusters of the virtual disk; with ``allocated``, ``compressed`` and ``fragmented`` of them.
    """

    MAX_FINDINGS = 10_000
    """Findings kept; the counts go on."""

    # Not a dataclass: all commands load this module, and to make one takes longer than describing an image.
    def __init__(
        self,
        findings: list[str] | None = None,
        corruptions: int = 0,
        leaks: int = 0,
        *,
        check_errors: int = 0,
        corruptions_fixed: int = 0,
        leaks_fixed: int = 0,
        image_end: int = 0,
        total_clusters: int = 0,
        allocated_clusters: int = 0,
        compressed_clusters: int = 0,
        fragmented_clusters: int = 0,
    ) -> None:
        self.findings = [] if findings is None else findings
        self.corruptions = corruptions
        self.leaks = leaks
        self.check_errors = check_errors
        self.corruptions_fixed = corruptions_fixed
        self.leaks_fixed = leaks_fixed
        self.image_end = image_end
        self.total_clusters = total_clusters
        self.allocated_clusters = allocated_clusters
        self.compressed_clusters = compressed_clusters
        self.fragmented_clusters = fragmented_clusters
        self.failure = ""
        self.cause: ImageError | None = None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, CheckResult) and vars(self) == vars(other)

    __hash__ = None  # type: ignore[assignment]  # it changes

    def error(self, line: str) -> None:
        """Count a corruption and note what it is."""
        self.corruptions += 1
        self.note(line)

    def leak(self, line: str) -> None:
        """Count a leaked cluster and note which."""
        self.leaks += 1
        self.note(line)

    def fail(self, failure: str, cause: ImageError | None = None) -> None:
        """End the check: nothing that it counts is complete."""
        self.check_errors += 1
        self.failure, self.cause = failure, cause

    def note(self, line: str) -> None:
        """Keep a finding, as long as there are not absurdly many (an image is not to fill the memory with them)."""
        if len(self.findings) < self.MAX_FINDINGS:
            self.findings.append(line)
