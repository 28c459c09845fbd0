"""From a file name to opened nodes: the file, its format, and the chain of backing layers below it."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from .errors import ImageError, InvalidImage, InvalidOption, NodeIOError
from .filenames import FileName, backing_filename, local_filename, parse_filename
from .hookspecs import PROBE_LENGTH, OpenOptions
from .node import Image, Lockable, Node, Permission
from .options import Option, runtime_values
from .passing import naming_file
from .record import Record
from .tracing import GRAPH_BACKING, PROBE, number_of, watch
from .trees import JSON_PREFIX, OptionString, tree_from_json, tree_from_options

if TYPE_CHECKING:
    from .context import Context

MAX_CHAIN = 1000
"""Most layers that a chain may have; each takes a file descriptor."""


class OpenRequest(Record):
    """How to open an image; see :meth:`diskwright.context.Context.open` for the meaning of each.

    :ivar writable_depths: layers below the top one that are opened for writing too, by their depth.
    :ivar check: whether the image is opened to be checked or repaired.
    :ivar discard: whether the space of what is discarded is to be given back.
    """

    writable: bool = False
    backing: bool = True
    describe_only: bool = False
    force_share: bool = False
    exclusive: bool = False
    cache: str = "writeback"
    options: Mapping[str, str] | None = None
    writable_depths: frozenset[int] = frozenset()
    check: bool = False
    discard: bool = False


def open_image(context: Context, filename: str, format: str | None, request: OpenRequest) -> Image:
    """Open an image and, if asked to, all layers below it, one after the other and not by recursion.

    :raises ImageError: with ``Could not open 'FILENAME'`` in front.
    """
    try:
        if request.force_share and request.writable:
            raise InvalidOption("force-share=on can only be used with read-only images")
        top = _open_layer(context, filename, format, request, role=None)
        if request.backing:
            try:
                attach_backing(context, top, request)
            except BaseException:
                top.close()
                raise
    except OSError as error:
        if not isinstance(error, ImageError):
            raise NodeIOError(f"Could not open '{filename}'", error) from error
        raise error.in_context(f"Could not open '{filename}'") from error
    except ImageError as error:
        raise error.in_context(f"Could not open '{filename}'") from error
    return top


def attach_backing(context: Context, top: Image, request: OpenRequest) -> None:
    """Open the backing chain of an opened image, each layer for reading unless the request names it for writing.

    :raises InvalidImage: the chain comes back to a file that is already in it, by whatever name, or is too long.
    """
    seen: set[Hashable] = {top.identity()}

    layer = top
    for depth in range(1, MAX_CHAIN):
        if isinstance(layer.backing, Image):  # the caller has named it
            layer = layer.backing
            seen.add(layer.identity())
            continue
        if layer.backing_file is None:
            return
        name = backing_filename(naming_file(layer), layer.backing_file)
        # An overlay cannot bear that anyone changes what is below it, whatever its format.
        below = request.replace(writable=depth in request.writable_depths, exclusive=True, options=None)
        try:
            backing = _open_layer(context, name, layer.backing_format, below, role="backing")
        except ImageError as error:
            raise error.in_context("Could not open backing file") from error
        layer.backing = backing
        GRAPH_BACKING(number_of(layer), number_of(backing), depth)
        identity = backing.identity()
        if identity is not None and identity in seen:
            raise InvalidImage(f"Backing file '{name}' creates an infinite loop.", filename=layer.filename)
        seen.add(identity)
        layer = backing
    raise InvalidImage(f"The backing chain has more than {MAX_CHAIN} layers", filename=top.filename)


def each_layer(
    context: Context, filename: str, format: str | None = None, *, force_share: bool = False, cache: str = "writeback"
) -> Iterator[Image]:
    """Open an image and all layers below it for their descriptions, top first; only one of them is open at a time.

    :raises InvalidImage: the chain comes back to a file that is already in it, by whatever name, or is too long.
    :raises RefusedByPolicy: there is a backing file and the policy forbids to open what an image names.
    """
    seen: set[Hashable] = set()
    name = filename
    for depth in range(MAX_CHAIN):
        if depth:
            context.gate.policy.require_role("backing", name)
        with context.open(
            name, format, backing=False, describe_only=True, force_share=force_share, cache=cache
        ) as image:
            identity = image.identity()
            if identity is not None and identity in seen:
                raise InvalidImage(f"Backing file '{name}' creates an infinite loop.", filename=name)
            seen.add(identity)
            yield image
            stated, format = image.backing_file, image.backing_format
            if stated is None:
                return
            try:
                name = backing_filename(naming_file(image), stated)
            except InvalidOption:
                message = f"Could not determine absolute backing filename, but backing filename '{stated}' present"
                raise InvalidOption(message) from None
    raise InvalidImage(f"The backing chain has more than {MAX_CHAIN} layers", filename=filename)


def _open_layer(context: Context, filename: str, format: str | None, request: OpenRequest, role: str | None) -> Image:
    from .wiring import open_children, open_named, open_tree

    if isinstance(filename, OptionString):
        return open_tree(context, tree_from_options(filename), format, request, role)
    if filename.startswith(JSON_PREFIX):
        return open_tree(context, tree_from_json(filename), format, request, role)
    if format is not None and not context.formats.knows(format) and context.protocols.knows(format):
        # A protocol as the format: the image is the bytes of the file.
        return open_tree(context, {"filename": filename}, format, request, role)
    if format is not None:
        context.formats.load(format)
    with ExitStack() as undo:
        node = open_named(context, parse_filename(filename), request, role)
        undo.callback(node.close)
        children, request = open_children(context, node, format, request, undo)
        image = open_format(context, node, filename, format, request, children=children)
        undo.pop_all()
    return image


def open_format(
    context: Context,
    node: Node,
    filename: str,
    format: str | None,
    request: OpenRequest,
    created: Mapping[str, Node] | None = None,
    children: Mapping[str, Node] | None = None,
) -> Image:
    """Open the image that stands in an opened node; the node stays open if that fails.

    :param created: files by path that the same operation has created and that are not under their names yet.
    :param children: further nodes by role, that the user has named; they stay open too.
    """
    if format is not None:
        format = context.formats.proper_name(format)
    else:
        format = probe(context, node)
        if request.writable and _is_guessed(context, node, format):
            node = _guarded(context, node, format)
    context.gate.policy.require_format(format, writable=request.writable)
    node.metadata_budget = context.gate.policy.metadata
    if isinstance(node, Lockable):
        node.set_permissions(*format_permissions(context, format, request))
    opened: list[Node] = []

    def open_child(name: str, role: str) -> Node:
        if created and name in created:
            return created[name]
        local: FileName = local_filename(name)
        child = context.gate.open(local, writable=request.writable, role=role, cache=request.cache)
        opened.append(child)
        if isinstance(child, Lockable):
            child.set_permissions(*permissions(request, shares_writers=False))
        return child

    options = OpenOptions(
        filename=filename,
        writable=request.writable,
        describe_only=request.describe_only,
        values=_runtime_values(context, format, request),
        open_child=open_child,
        secret=context.objects.secret,
        check=request.check,
        children=children or {},
        discard=request.discard,
        warn=context.warn,
    )
    try:
        image: Image = context.formats.call("open", format, source=node, options=options)
    except BaseException:
        for child in opened:
            child.close()
        raise
    image.filename = filename
    image.read_only = not request.writable
    image.bind(format, context.formats.block_status(format))
    watch(image, writable=request.writable)
    return image


def runtime_options(context: Context, format: str) -> Sequence[Option]:
    """The options that images of a format are opened with."""
    if not context.formats.has("runtime_options", format):
        return ()
    declared: Sequence[Option] = context.formats.call("runtime_options", format)
    return declared


def _runtime_values(context: Context, format: str, request: OpenRequest) -> dict[str, Any]:
    """The typed runtime options of the format.

    :raises InvalidOption: the format does not know one of them.
    """
    given = request.options or {}
    if not given:
        return {}
    return runtime_values(
        runtime_options(context, format), given, f"Block format '{format}' does not support the option '{{}}'"
    )


def probe(context: Context, node: Node) -> str:
    """The format of what stands in a node, by its first bytes; the name of the driver."""
    format = context.formats.probe(_head(node), node.filename)
    PROBE(node.filename, format)
    return format


def _head(node: Node) -> bytes:
    node.note_event("none")
    return node.read_at(0, min(PROBE_LENGTH, node.size))


def _is_guessed(context: Context, node: Node, format: str) -> bool:
    """Whether nothing but the absence of other signatures speaks for a format."""
    hits = context.formats.call("probe", format, head=_head(node), filename=node.filename)
    best: int = max(hit.score for hit in hits)
    return best <= 1


def _guarded(context: Context, node: Node, format: str) -> Node:
    """The node for writing to an image of a guessed format, with a warning."""
    from .guard import ProbeGuard

    context.warn(
        f"WARNING: Image format was not specified for '{node.filename}' and probing guessed {format}.\n"
        "         Automatically detecting the format is dangerous for raw images, write operations on block 0 will be "
        "restricted.\n"
        f"         Specify the '{format}' format explicitly to remove the restrictions."
    )
    filename = node.filename
    return ProbeGuard(node, lambda head: context.formats.probe(head, filename), format)


def format_permissions(context: Context, format: str, request: OpenRequest) -> tuple[Permission, Permission]:
    """What an image of a format does to its file, and what it lets others do."""
    shares_writers = bool(getattr(context.formats.load(format), "shares_writers", False)) and not request.exclusive
    return permissions(request, shares_writers=shares_writers)


def permissions(request: OpenRequest, *, shares_writers: bool) -> tuple[Permission, Permission]:
    """What an opener does to the file of an image, and what it lets others do.

    Formats with metadata cannot share write access even while they only read; that is QEMU's rule too.
    """
    used = Permission(0) if request.describe_only else Permission.CONSISTENT_READ
    if request.writable:
        used |= Permission.WRITE if shares_writers else Permission.WRITE | Permission.RESIZE
    if request.force_share or shares_writers:
        return used, Permission.ALL
    return used, Permission.ALL & ~(Permission.WRITE | Permission.RESIZE)
