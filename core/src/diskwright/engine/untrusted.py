"""An image from a stranger: described, checked and searched for oddities, with nothing opened but its one file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..errors import ImageError, RefusedByPolicy, UnsupportedFeature
from ..facts import CheckResult, Finding, Severity
from ..filenames import parse_filename, protocol_prefix
from ..hookspecs import PROBE_LENGTH
from ..limits import TimeIsOver
from ..node import Image, Node
from ..policy import UNTRUSTED
from ..scrutiny import name_findings, reference_findings, shown
from ..sizes import human_size
from ..trees import OptionString
from .checking import ChecksUnsupported, check
from .info import NodeInfo, describe_node

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..context import Context

MAX_RATIO = 1000
"""Virtual size by size of the file: from there on a small file can fill a large disk."""
LARGE = 64 << 30
"""Bytes: smaller disks fill nothing, whatever the ratio."""
MAX_CHECK_LINES = 5
"""Lines of the check that are repeated."""

_TRAILERS = {"vpc": (512, b"conectix"), "dmg": (512, b"koly")}
"""Formats that are recognised by their last bytes: how many bytes before the end, and the signature."""
_CONTENTS = (
    ("a partition table", 510, b"\x55\xaa"),
    ("a GUID partition table", 512, b"EFI PART"),
    ("an ISO 9660 file system", 0x8001, b"CD001"),
    ("an ext file system", 0x438, b"\x53\xef"),
)


@dataclass
class Examined:
    """What was found out.

    :ivar filename: the name of the file.
    :ivar info: the facts, ``None`` if the file is no sound image.
    """

    filename: str
    info: NodeInfo | None = None
    findings: list[Finding] = field(default_factory=list)

    @property
    def is_safe(self) -> bool:
        """Whether there is nothing worse than notes."""
        return all(finding.severity is Severity.NOTE for finding in self.findings)


def examine(context: Context, filename: str, format: str | None = None, *, force_share: bool = False) -> Examined:
    """Look at an image from a stranger. Limits on memory and time are the caller's business, see :mod:`..limits`.

    :param filename: a path, whatever it looks like, apart from ``file:`` in front of it; or an option string.
    :param format: its format, found by probing if None.
    :raises ImageError: the file cannot be opened or read at all.
    """
    if not isinstance(filename, OptionString) and protocol_prefix(filename) not in (None, "file"):
        filename = f"file:{filename}"
    return _Examination(context.narrowed(UNTRUSTED), filename, format, force_share).run()


class _Examination:
    def __init__(self, context: Context, filename: str, format: str | None, force_share: bool) -> None:
        self.context = context
        self.filename = filename
        self.format = format
        self.force_share = force_share
        self.result = Examined(filename)
        self.warnings: list[str] = []
        context.warn = self.warnings.append

    def run(self) -> Examined:
        self._require_readable()
        try:
            for step in (self._describe, self._check, self._look_inside):
                if self._try(step):
                    break
        except TimeIsOver as failure:
            self._add(Severity.DANGER, "limit-exceeded", str(failure))
        except MemoryError:
            self._add(Severity.DANGER, "limit-exceeded", "looking at the image takes more memory than is allowed")
        for text in self.warnings:
            self._add(Severity.WARNING, "driver-warning", " ".join(shown(text).strip("'").split()))
        return self.result

    def _require_readable(self) -> None:
        """Fail if there is no file to look at: that says nothing about an image."""
        if isinstance(self.filename, OptionString):
            return
        name = parse_filename(self.filename)
        with self.context.gate.open(name, writable=False, role=None, cache="writeback") as node:
            self.result.filename = node.filename
            node.read_at(0, min(1, node.size))

    def _try(self, step: Callable[[], None]) -> bool:
        """Take a step; whether it is the last, as the image is none that can be looked at."""
        try:
            step()
        except RefusedByPolicy as error:
            self._add(Severity.DANGER, "limit-exceeded", shown(str(error))[1:-1])
        except (ImageError, OSError) as error:
            kind = "unsupported-feature" if isinstance(error, UnsupportedFeature) else "invalid-image"
            self._add(Severity.DANGER, kind, shown(str(error))[1:-1])
        else:
            return False
        return True

    def _add(self, severity: Severity, id: str, message: str) -> None:
        self.result.findings.append(Finding(severity, id, message))

    def _open(self, *, describe_only: bool = False, check: bool = False) -> Image:
        return self.context.open(
            self.filename,
            self.format,
            backing=False,
            describe_only=describe_only,
            force_share=self.force_share,
            check=check,
        )

    def _describe(self) -> None:
        """What stands in the metadata."""
        with self._open(describe_only=True) as image:
            self.result.filename = image.file.filename
            self.format = None if isinstance(self.filename, OptionString) else image.driver
            findings = self.result.findings
            findings += _signatures(self.context, image)
            info = self.result.info = describe_node(self.context, image)
            findings += _facts(info)
            formats = self.context.formats
            if formats.has("bitmap_list", image.driver):
                bitmaps = formats.call("bitmap_list", image.driver, image=image)
                if bitmaps:
                    self._add(Severity.NOTE, "bitmaps", f"the image has {len(bitmaps)} persistent dirty bitmaps")
                for bitmap in bitmaps:
                    findings += name_findings("a bitmap", bitmap.name)
            if formats.has("findings", image.driver):
                findings += formats.call("findings", image.driver, image=image)

    def _check(self) -> None:
        """What the format's own check has to say."""
        if not self._is_complete():
            return
        with self._open(check=True) as image:
            try:
                result = check(self.context, image)
            except ChecksUnsupported:
                return
            self.result.findings += _check_findings(result, image.file.size)

    def _look_inside(self) -> None:
        """What the guest finds at the start of the disk."""
        if not self._is_complete():
            return
        with self._open() as image:
            head = image.read_at(0, min(PROBE_LENGTH, image.size))
            if head != image.file.read_at(0, len(head)):
                for name in _recognised(self.context, head, ""):
                    message = f"the disk begins as an image of the format {name}: it must not be probed"
                    self._add(Severity.WARNING, "nested-image", message)

    def _is_complete(self) -> bool:
        """Whether the file alone, without a key, is enough to go on; what else there is has been reported."""
        ids = {finding.id for finding in self.result.findings}
        return self.result.info is not None and not self.result.info.encrypted and "data-file-reference" not in ids


def _facts(info: NodeInfo) -> Iterator[Finding]:
    """What the description shows."""
    if info.backing_file is not None:
        yield from reference_findings("backing", info.backing_file)
        if info.backing_format is None:
            message = "the image does not say which format its backing file has: it would be guessed"
            yield Finding(Severity.WARNING, "backing-format-missing", message)
        else:
            yield from name_findings("the backing format", info.backing_format)
    if info.encrypted:
        yield Finding(Severity.NOTE, "encrypted", "guest data is encrypted, and was not looked at")
    if info.dirty:
        yield Finding(Severity.WARNING, "dirty", "the image was not closed cleanly: opening it for writing repairs it")
    if info.snapshots:
        yield Finding(Severity.NOTE, "snapshots", f"the image has {len(info.snapshots)} internal snapshots")
    for snapshot in info.snapshots:
        yield from name_findings("a snapshot", snapshot.name)
        yield from name_findings("a snapshot's id", snapshot.id)
    length = max((child.size for child in info.children.values()), default=0)
    if info.size > max(LARGE, MAX_RATIO * length):
        message = f"a disk of {human_size(info.size)} in a file of {human_size(length)}: copies of it may be huge"
        yield Finding(Severity.WARNING, "size-ratio", message)


def _signatures(context: Context, image: Image) -> Iterator[Finding]:
    """What other formats the file could be taken for, and what a disk without format begins with."""
    file = image.file
    names = _recognised(context, file.read_at(0, min(PROBE_LENGTH, file.size)), file.filename)
    for name in [*names, *_trailers(file)]:
        if name != image.driver:
            message = f"the file could be taken for an image of the format {name} as well: its format must be given"
            yield Finding(Severity.WARNING, "ambiguous-format", message)
    if not names:
        for name, offset, signature in _CONTENTS:
            if file.size > offset and file.read_at(offset, len(signature)) == signature:
                yield Finding(Severity.NOTE, "content", f"the file has the signature of {name}")


def _trailers(file: Node) -> list[str]:
    return [
        name
        for name, (distance, signature) in _TRAILERS.items()
        if file.size >= distance and file.read_at(file.size - distance, len(signature)) == signature
    ]


def _recognised(context: Context, head: bytes, filename: str) -> Sequence[str]:
    """The formats whose signature some first bytes have, whether their driver is installed or not."""
    formats = context.formats
    hits = formats.hits(head, filename)
    return sorted({*(hit.format for hit in hits if hit.score > 1), *formats.missing_drivers(head)})


def _check_findings(result: CheckResult, length: int) -> Iterator[Finding]:
    if result.failure:
        yield Finding(Severity.DANGER, "check-failed", f"the check came to no end: {shown(result.failure)}")
    if result.corruptions:
        yield Finding(Severity.DANGER, "corruption", f"the check finds {result.corruptions} errors")
    if result.leaks:
        yield Finding(Severity.NOTE, "leaks", f"the check finds {result.leaks} leaked clusters")
    if result.corruptions or result.failure:
        for line in result.findings[:MAX_CHECK_LINES]:
            yield Finding(Severity.NOTE, "check-line", shown(line)[1:-1])
    if result.image_end and length > result.image_end:
        message = f"{length - result.image_end} bytes stand behind the end of the image, at {result.image_end}"
        yield Finding(Severity.WARNING, "trailing-data", message)
