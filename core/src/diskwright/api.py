"""The library's functions; import them from :mod:`diskwright`."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from .context import Context, default_context
from .errors import InvalidOption
from .extent import Extent, ExtentTable
from .node import Image
from .options import parse_options
from .sizes import parse_size

if TYPE_CHECKING:
    from .engine.compare import Comparison
    from .engine.overview import Overview
    from .engine.untrusted import Examined
    from .facts import Bitmap, CheckResult, Description, Measurement, Snapshot

Name: TypeAlias = str | os.PathLike[str]


def open(
    filename: Name,
    format: str | None = None,
    *,
    writable: bool = False,
    backing: bool = True,
    force_share: bool = False,
    options: Mapping[str, str] | None = None,
    context: Context | None = None,
) -> Image:
    """Open an image with its backing chain.

    The result reads as one disk: ``size``, ``read_at(offset, length)``, ``read_into(offset, buffer)``; opened for
    writing also ``write_at(offset, data)`` and ``flush()``. Close it, or use it with ``with``. Several threads may read
    at once.

    :param filename: a path, or a name with a protocol prefix.
    :param format: name of the format; probed if None. Do not probe images from strangers that may be raw.
    :param writable: whether to allow writing; only the top layer is ever written.
    :param backing: False opens the top layer only; what it lacks reads as zeros.
    :param force_share: open for reading even while another process writes.
    :param options: runtime options of the format driver.
    :raises ImageError: it cannot be opened.
    """
    return (context or default_context()).open(
        os.fspath(filename), format, writable=writable, backing=backing, force_share=force_share, options=options
    )


def create(
    filename: Name,
    format: str,
    size: int | str | None = None,
    *,
    backing_file: Name | None = None,
    backing_format: str | None = None,
    context: Context | None = None,
    **options: Any,
) -> None:
    """Create an empty image.

    :param size: virtual size in bytes, or text as ``"20G"``; ``None``: that of the backing file.
    :param backing_file: the image below; a relative name is relative to the new image.
    :param options: creation options of the format, as ``cluster_size="2M"``, ``lazy_refcounts=True``.
    :raises ImageError: it cannot be created; nothing has been changed.
    """
    from .engine.creation import CreateRequest, declared_options
    from .engine.creation import create as run

    context = context or default_context()
    declared = declared_options(context, format, os.fspath(filename))
    request = CreateRequest(
        filename=os.fspath(filename),
        format=format,
        size=parse_size(size) if isinstance(size, str) else size,
        values=parse_options(declared, option_strings(options)),
        backing_file=None if backing_file is None else os.fspath(backing_file),
        backing_format=backing_format,
    )
    run(context, request)


def convert(
    source: Name | Sequence[Name],
    target: Name,
    *,
    format: str = "raw",
    source_format: str | None = None,
    compress: bool = False,
    create: bool = True,
    options: Mapping[str, Any] | None = None,
    backing_file: Name | None = None,
    backing_format: str | None = None,
    cache: str = "writeback",
    parallel: int = 8,
    progress: Callable[[int, int], None] | None = None,
    context: Context | None = None,
) -> None:
    """Copy the disk of an image, or of several one behind the other, into another image.

    :param format: format of the target.
    :param compress: compress the data in the target.
    :param create: False to write into an existing target.
    :param options: creation options of the target.
    :param cache: cache mode of the target; the default returns when the data is on stable storage, ``unsafe`` before.
    :param parallel: most threads to work with.
    :param progress: called now and then with the bytes of data done and those there are: zeros take no time.
    :raises ImageError: it failed; a target that did not exist is not there, one that was to be replaced is as before.
    """
    from .engine.convert import ConvertRequest
    from .engine.convert import convert as run
    from .engine.copy import no_progress

    sources = [source] if isinstance(source, str | os.PathLike) else source
    request = ConvertRequest(
        sources=[os.fspath(name) for name in sources],
        target=os.fspath(target),
        source_format=source_format,
        format=format,
        options=option_strings(options or {}),
        create=create,
        backing_file=None if backing_file is None else os.fspath(backing_file),
        backing_format=backing_format,
        cache=cache,
        compress=compress,
        parallel=parallel,
    )
    run(context or default_context(), request, progress or no_progress)


def compare(
    first: Name,
    second: Name,
    *,
    first_format: str | None = None,
    second_format: str | None = None,
    strict: bool = False,
    context: Context | None = None,
) -> Comparison:
    """Compare the content of two images, through their backing chains.

    :param strict: also take different sizes and different allocation as a difference.
    :returns: what was found; true if they are the same.
    """
    from .engine.compare import compare as run

    context = context or default_context()
    with (
        context.open(os.fspath(first), first_format) as left,
        context.open(os.fspath(second), second_format) as right,
    ):
        return run(left, right, strict=strict)


def checksum(
    source: Name | Image,
    format: str | None = None,
    *,
    algorithm: str = "sha256",
    progress: Callable[[int, int], None] | None = None,
    context: Context | None = None,
) -> str:
    """The checksum of what the guest sees: the same for the same disk in any format. ``docs/checksum.md`` defines it.

    :param source: a file name, or an open image such as :func:`snapshot_view` returns.
    :param algorithm: ``sha256``, ``sha512``, ``sha3_256``, ``blake2b`` or ``blake2s``.
    :param progress: called now and then with the bytes done and the bytes there are.
    :returns: hexadecimal digits.
    """
    from .engine.checksum import checksum as run
    from .engine.copy import no_progress

    if isinstance(source, Image):
        return run(source, algorithm, progress or no_progress)
    with (context or default_context()).open(os.fspath(source), format) as image:
        return run(image, algorithm, progress or no_progress)


def check(
    filename: Name, format: str | None = None, *, repair: str | None = None, context: Context | None = None
) -> CheckResult:
    """Look for inconsistencies in an image's metadata.

    :param repair: ``leaks`` or ``all`` to repair that; nothing is changed if None. The result then tells what is still
        wrong, and how much was repaired.
    :raises UnsupportedOperation: the format has no check, or no repair.
    """
    from .engine.checking import CheckRequest, check_file

    if repair not in (None, "leaks", "all"):
        raise InvalidOption(f"An image is repaired of 'leaks' or 'all', not of '{repair}'")
    request = CheckRequest(os.fspath(filename), format, repair)
    return check_file(context or default_context(), request, lambda _: None).result


def resize(
    filename: Name,
    size: int | str,
    format: str | None = None,
    *,
    preallocation: str = "off",
    shrink: bool = False,
    context: Context | None = None,
) -> None:
    """Change the virtual size of an image.

    :param size: the new size in bytes, or text as ``"20G"``.
    :param preallocation: how space for the new part is reserved: ``off``, ``metadata``, ``falloc`` or ``full``.
    :param shrink: allow to cut off what is behind a new end.
    :raises ImageError: it failed; the size is as before.
    """
    from .engine.resize import ResizeRequest
    from .engine.resize import resize as run

    length = parse_size(size) if isinstance(size, str) else size
    request = ResizeRequest(os.fspath(filename), length, format=format, preallocation=preallocation, shrink=shrink)
    run(context or default_context(), request)


def measure(
    source: Name | int | str,
    format: str = "raw",
    *,
    source_format: str | None = None,
    context: Context | None = None,
    **options: Any,
) -> Measurement:
    """How large the file of an image would be; nothing is created.

    :param source: the image that would be converted, or the virtual size of a new one in bytes.
    :param format: the format of the image that would be created.
    :param options: its creation options.
    :raises UnsupportedOperation: the format cannot tell.
    """
    from .engine.measure import MeasureRequest
    from .engine.measure import measure as run

    size, name = (source, None) if isinstance(source, int) else (None, os.fspath(source))
    request = MeasureRequest(format, option_strings(options), size, name, source_format)
    return run(context or default_context(), request)


def commit(
    filename: Name,
    format: str | None = None,
    *,
    base: Name | None = None,
    drop: bool = False,
    context: Context | None = None,
) -> None:
    """Write what an overlay holds into its backing file, and empty the overlay.

    :param base: the layer to write into, by its name in the chain; then, as with ``drop``, nothing is emptied.
    """
    from .engine.commit import CommitRequest
    from .engine.commit import commit as run

    name = None if base is None else os.fspath(base)
    run(context or default_context(), CommitRequest(os.fspath(filename), format, name, drop or base is not None))


def rebase(
    filename: Name,
    backing_file: Name | None,
    backing_format: str | None = None,
    *,
    format: str | None = None,
    unsafe: bool = False,
    context: Context | None = None,
) -> None:
    """Give an overlay another backing file, or none; the content of the disk stays the same.

    :param backing_file: a relative name is relative to the overlay.
    :param unsafe: change the name only: the caller knows that the content is the same.
    """
    from .engine.rebase import RebaseRequest
    from .engine.rebase import rebase as run

    name = "" if backing_file is None else os.fspath(backing_file)
    request = RebaseRequest(os.fspath(filename), name, format, backing_format, unsafe)
    run(context or default_context(), request)


def amend(filename: Name, format: str | None = None, *, context: Context | None = None, **options: Any) -> None:
    """Change options of an existing image.

    :param options: as ``compat="1.1"``, ``lazy_refcounts=True``.
    :raises ImageError: it cannot be done; the image is as before.
    """
    from .engine.amend import AmendRequest
    from .engine.amend import amend as run

    run(context or default_context(), AmendRequest(os.fspath(filename), option_strings(options), format))


def create_snapshot(image: Image, name: str, *, context: Context | None = None) -> None:
    """Keep the present content of an image, opened for writing, as an internal snapshot."""
    from .engine.snapshots import create as run

    run(context or default_context(), image, name)


def apply_snapshot(image: Image, snapshot: str, *, context: Context | None = None) -> None:
    """Give an image, opened for writing, the content of a snapshot, which is named by its id or its name."""
    from .engine.snapshots import apply as run

    run(context or default_context(), image, snapshot)


def delete_snapshot(image: Image, name: str, *, context: Context | None = None) -> None:
    """Delete a snapshot, named by its name, from an image opened for writing."""
    from .engine.snapshots import delete as run

    run(context or default_context(), image, name)


def snapshot_view(image: Image, snapshot: str, *, context: Context | None = None) -> Image:
    """What the disk was when a snapshot was made, for reading; close ``image``, not the result."""
    from .engine.snapshots import view

    return view(context or default_context(), image, snapshot)


def bitmaps(image: Image, *, context: Context | None = None) -> Sequence[Bitmap]:
    """The persistent dirty bitmaps of an opened image."""
    from .engine.bitmaps import listed

    return listed(context or default_context(), image)


def describe(image: Image, *, context: Context | None = None) -> Description:
    """The facts that a format has of an opened image.

    :raises UnsupportedOperation: the format has none.
    """
    result: Description = (context or default_context()).formats.call("describe", image.driver, image=image)
    return result


def snapshots(image: Image, *, context: Context | None = None) -> Sequence[Snapshot]:
    """The internal snapshots of an opened image.

    :raises UnsupportedOperation: the format has no snapshots.
    """
    result: Sequence[Snapshot] = (context or default_context()).formats.call("snapshot_list", image.driver, image=image)
    return result


def examine(filename: Name, format: str | None = None, *, context: Context | None = None) -> Examined:
    """Look at an image from a stranger: describe and check it, and list what is odd about it.

    Nothing but its one file is opened. Limits on memory and time are for the command only: they are of the process.

    :returns: ``info``, ``findings`` and ``is_safe``; also for files that are no sound image.
    :raises ImageError: the file cannot be opened or read.
    """
    from .engine.untrusted import examine as run

    return run(context or default_context(), os.fspath(filename), format)


def overview(image: Image, cells: int = 2048, offset: int = 0, length: int | None = None) -> Overview:
    """How much of each part of a disk is data, compressed, zeros or not there, and in which layer.

    :param cells: most parts to cut the disk, or the range, into.
    :param length: bytes; up to the end of the disk if None.
    """
    from .engine.overview import overview as run

    return run(image, cells, offset, length)


def map_svg(image: Image, offset: int = 0, length: int | None = None) -> str:
    """A picture of where the data of a disk, or of a range of it, is: SVG that needs nothing else."""
    from .render.map_svg import CELLS, svg_lines

    return "\n".join(svg_lines(overview(image, CELLS, offset, length), image.filename)) + "\n"


def extents(image: Image, offset: int = 0, length: int | None = None) -> Iterator[Extent]:
    """Where the bytes of a disk are, through all its layers, in order and without gaps.

    :param length: bytes; up to the end of the disk if None.
    """
    for table in extent_tables(image, offset, length):
        yield from table


def extent_tables(image: Image, offset: int = 0, length: int | None = None) -> Iterator[ExtentTable]:
    """As :func:`extents`, in bulk: numpy tables of many extents each."""
    from .engine.chain import resolve

    if offset < 0 or (length is not None and length < 0) or offset + (length or 0) > image.size:
        raise InvalidOption("The range is not inside the image")
    return resolve(image, offset, length)


def option_strings(options: Mapping[str, Any]) -> list[str]:
    """Keyword options in the syntax of the command line, so that both are checked alike."""
    strings = []
    for name, value in options.items():
        text = ("on" if value else "off") if isinstance(value, bool) else str(value)
        strings.append(f"{name}={text.replace(',', ',,')}")
    return strings
