"""From a file name to opened nodes: the file, its format, and the chain of backing layers below it."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from .errors import ImageError, InvalidImage, InvalidOption, NodeIOError, UnknownFormat
from .filenames import FileName, backing_filename, local_filename, parse_filename
from .hookspecs import PROBE_LENGTH, OpenOptions
from .node import Image, Lockable, Node, Permission
from .options import Option
from .trees import (
    JSON_PREFIX,
    OptionString,
    Tree,
    crumple,
    flat,
    json_name,
    take_node_options,
    tree_from_json,
    tree_from_options,
)

if TYPE_CHECKING:
    from .context import Context

MAX_CHAIN = 1000
"""Most layers that a chain may have; each takes a file descriptor."""


@dataclass(frozen=True)
class OpenRequest:
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
        name = backing_filename(layer.filename, layer.backing_file)
        # An overlay cannot bear that anyone changes what is below it, whatever its format.
        below = replace(request, writable=depth in request.writable_depths, exclusive=True, options=None)
        try:
            backing = _open_layer(context, name, layer.backing_format, below, role="backing")
        except ImageError as error:
            raise error.in_context("Could not open backing file") from error
        layer.backing = backing
        identity = backing.identity()
        if identity is not None and identity in seen:
            raise InvalidImage(f"Backing file '{name}' creates an infinite loop.", filename=layer.filename)
        seen.add(identity)
        layer = backing
    raise InvalidImage(f"The backing chain has more than {MAX_CHAIN} layers", filename=top.filename)


def _open_layer(context: Context, filename: str, format: str | None, request: OpenRequest, role: str | None) -> Image:
    if isinstance(filename, OptionString):
        return _open_tree(context, tree_from_options(filename), format, request, role)
    if filename.startswith(JSON_PREFIX):
        return _open_tree(context, tree_from_json(filename), format, request, role)
    if format is not None:
        context.formats.load(format)
    node = context.gate.open(parse_filename(filename), writable=request.writable, role=role, cache=request.cache)
    try:
        return open_format(context, node, filename, format, request)
    except BaseException:
        node.close()
        raise


def _open_tree(context: Context, tree: Tree, format: str | None, request: OpenRequest, role: str | None) -> Image:
    """Open an image that is named by the options of its nodes; the tree is consumed."""
    name = json_name(tree)  # for messages, until it is known what all of it is
    driver = tree.pop("driver", None) or format
    if isinstance(driver, dict):
        raise InvalidOption("Parameter 'driver' expects a string")
    if driver is None and "file" not in tree:
        raise InvalidOption("Must specify either driver or file")
    if "file" not in tree and driver is not None and _is_protocol(context, driver):
        # A file as such is a disk too: the one that its bytes are.
        tree, driver = {"file": {"driver": driver, **tree}}, "raw"
    own_backing = {"backing": tree.pop("backing")} if "backing" in tree else {}
    below = tree.pop("file", None)
    if isinstance(below, str):
        if any(key.startswith("file.") for key in tree):
            raise InvalidOption("Cannot reference an existing block device with additional options or a new filename")
        raise InvalidOption(f"Cannot find device='{below}' nor node-name='{below}'")
    if below is None:
        raise InvalidOption('A block device must be specified for "file"')
    common = take_node_options(tree)
    if common.read_only and request.writable:
        raise InvalidOption("Block node is read-only")
    request = replace(
        request,
        force_share=request.force_share or common.force_share,
        cache=common.cache or request.cache,
        discard=common.discard,
    )
    file_values = dict(below)
    node = _open_file_tree(context, below, request, role)
    request = replace(request, options={key: value or "" for key, value in flat(tree).items()})
    try:
        image = open_format(context, node, name, driver, request)
    except BaseException:
        node.close()
        raise
    image.filename = _tree_name(image, _strong_values(context, driver or image.driver, request), file_values)
    if own_backing and request.backing:
        _set_backing(context, image, own_backing["backing"], request)
    return image


def _tree_name(image: Image, values: Tree, file_values: Tree) -> str:
    """The name by which an image named by a tree can be opened again: the file's alone where that says it all.

    :param values: runtime options of the format without which the image would not be the same disk.
    :param file_values: the tree of what the image stands in.
    """
    node = image.file
    if not isinstance(node, Image):
        if not values:
            return node.filename
        return json_name({**values, "driver": image.driver, "file": {**file_values, "driver": node.driver}})
    below: Tree = {"driver": node.driver, "file": {"driver": node.file.driver, "filename": node.file.filename}}
    if node.filename.startswith(JSON_PREFIX):
        below = tree_from_json(node.filename)
    return json_name({**values, "driver": image.driver, "file": below})


def _open_file_tree(context: Context, tree: Tree, request: OpenRequest, role: str | None) -> Node:
    """Open what an image stands in: a protocol's node, or another image."""
    driver = tree.get("driver")
    if "file" in tree or (isinstance(driver, str) and not _is_protocol(context, driver)):
        image = _open_tree(context, tree, None, replace(request, options=None), role)
        attach_backing(context, image, request)
        return image
    values = flat(tree)
    values.pop("driver", None)
    filename = values.pop("filename", None)
    if filename is None:
        raise InvalidOption("The 'file' block driver requires a file name")
    if isinstance(driver, str):
        name = local_filename(filename) if driver == "file" else FileName(driver, filename)
    else:
        name = parse_filename(filename)
    return context.gate.open(name, writable=request.writable, role=role, cache=request.cache, values=values)


def _set_backing(context: Context, image: Image, backing: str | Tree | None, request: OpenRequest) -> None:
    """Let a tree's own word on the backing layer stand for the image's: null means none. A failure closes the image."""
    if isinstance(backing, dict):
        below = replace(request, writable=1 in request.writable_depths, exclusive=True, options=None)
        try:
            image.backing = _open_tree(context, backing, None, below, role=None)
        except ImageError as error:
            image.close()
            raise error.in_context("Could not open backing file") from error
        except BaseException:
            image.close()
            raise
    elif backing:
        image.close()
        raise InvalidOption(f"Cannot find device='{backing}' nor node-name='{backing}'")
    else:
        if backing == "":
            context.warn('Use of "backing": "" is deprecated; use "backing": null instead')
        image.backing_file = None


def _is_protocol(context: Context, name: str) -> bool:
    try:
        context.formats.load(name)
    except UnknownFormat as unknown:
        try:
            context.protocols.load(name)
        except UnknownFormat:
            raise unknown from None
        return True
    return False


def open_format(
    context: Context,
    node: Node,
    filename: str,
    format: str | None,
    request: OpenRequest,
    created: Mapping[str, Node] | None = None,
) -> Image:
    """Open the image that stands in an opened node; the node stays open if that fails.

    :param created: files by path that the same operation has created and that are not under their names yet.
    """
    if format is None:
        format = probe(context, node)
        if request.writable:
            _warn_of_guess(context, node, format)
    driver = context.formats.load(format)
    if isinstance(node, Lockable):
        shares_writers = bool(getattr(driver, "shares_writers", False)) and not request.exclusive
        node.set_permissions(*_permissions(request, shares_writers=shares_writers))
    children: list[Node] = []

    def open_child(name: str, role: str) -> Node:
        if created and name in created:
            return created[name]
        local: FileName = local_filename(name)
        child = context.gate.open(local, writable=request.writable, role=role, cache=request.cache)
        children.append(child)
        if isinstance(child, Lockable):
            child.set_permissions(*_permissions(request, shares_writers=False))
        return child

    options = OpenOptions(
        filename=filename,
        writable=request.writable,
        describe_only=request.describe_only,
        values=_runtime_values(context, format, request),
        open_child=open_child,
        secret=context.objects.secret,
        check=request.check,
        discard=request.discard,
        warn=context.warn,
    )
    try:
        image: Image = context.formats.call("open", format, source=node, options=options)
    except BaseException:
        for child in children:
            child.close()
        raise
    image.filename = filename
    image.read_only = not request.writable
    image.bind(format, context.formats.block_status(format))
    return image


def _strong_values(context: Context, format: str, request: OpenRequest) -> Tree:
    """Those of the runtime options that were given without which the image would not be the same disk."""
    strong = {option.name for option in _runtime_options(context, format) if option.strong}
    return crumple((name, text) for name, text in (request.options or {}).items() if name in strong)


def _runtime_options(context: Context, format: str) -> Sequence[Option]:
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
    by_name = {option.name: option for option in _runtime_options(context, format)}
    for name in given:
        if name not in by_name:
            raise InvalidOption(f"Block format '{format}' does not support the option '{name}'")
    return {name: by_name[name].parse(text) for name, text in given.items()}


def probe(context: Context, node: Node) -> str:
    """The format of what stands in a node, by its first bytes; the name of the driver."""
    return context.formats.probe(_head(node), node.filename)


def _head(node: Node) -> bytes:
    return node.read_at(0, min(PROBE_LENGTH, node.size))


def _warn_of_guess(context: Context, node: Node, format: str) -> None:
    """Warn of writing to an image whose format was not told by a signature: what a guest writes may look like one."""
    hits = context.formats.call("probe", format, head=_head(node), filename=node.filename)
    if max(hit.score for hit in hits) > 1:
        return
    context.warn(
        f"WARNING: Image format was not specified for '{node.filename}' and probing guessed {format}.\n"
        "         Automatically detecting the format is dangerous for raw images, write operations on block 0 will be "
        "restricted.\n"
        f"         Specify the '{format}' format explicitly to remove the restrictions."
    )


def _permissions(request: OpenRequest, *, shares_writers: bool) -> tuple[Permission, Permission]:
    """What an opener does to the file of an image, and what it lets others do.

    Formats with metadata cannot share write access even while they only read; that is QEMU's rule too.
    """
    used = Permission(0) if request.describe_only else Permission.CONSISTENT_READ
    if request.writable:
        used |= Permission.WRITE if shares_writers else Permission.WRITE | Permission.RESIZE
    if request.force_share or shares_writers:
        return used, Permission.ALL
    return used, Permission.ALL & ~(Permission.WRITE | Permission.RESIZE)
