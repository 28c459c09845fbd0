"""What there is to say of an image without reading its data: sizes, backing file, snapshots, the format's own facts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from ..errors import ImageError, InvalidImage, InvalidOption
from ..facts import Description, Limits, Snapshot
from ..filenames import backing_filename
from ..graph import each_layer
from ..node import SECTOR, Image, Node
from ..passing import Passing, naming_file
from ..record import Record
from ..trees import JSON_PREFIX

if TYPE_CHECKING:
    from ..context import Context

MAX_NESTED = 100
"""Most layers of a chain that are described one inside the other."""


class NodeInfo(Record):
    """The facts of an image, or of a node that an image stands on.

    :ivar driver: name of the format or protocol.
    :ivar size: virtual size of an image, length of a file, bytes, rounded up to whole sectors as QEMU does.
    :ivar allocated_size: bytes of storage in use, ``None`` if that cannot be known.
    :ivar cluster_size: bytes, ``None`` if the format has no clusters.
    :ivar dirty: whether the image was not closed cleanly, ``None`` if the driver does not know.
    :ivar backing_file: name of the backing file as the image states it.
    :ivar backing_path: the name by which that file is opened, ``None`` if that cannot be known.
    :ivar specific: the format's own facts by QEMU's names, ``None`` if it has none.
    :ivar specific_type: the name that they go by, ``None`` if it is the driver's.
    :ivar limits: what requests to it should look like, ``None`` if that was not asked for.
    :ivar children: the nodes it stands on, by role.
    """

    filename: str
    driver: str
    size: int
    allocated_size: int | None
    cluster_size: int | None = None
    encrypted: bool = False
    dirty: bool | None = None
    backing_file: str | None = None
    backing_path: str | None = None
    backing_format: str | None = None
    snapshots: Sequence[Snapshot] = ()
    specific: Mapping[str, Any] | None = None
    specific_type: str | None = None
    limits: Limits | None = None
    children: Mapping[str, NodeInfo] = MappingProxyType({})


def inspect(
    context: Context,
    filename: str,
    format: str | None = None,
    *,
    force_share: bool = False,
    limits: bool = False,
    cache: str = "writeback",
) -> NodeInfo:
    """Describe one image; neither its backing file nor its data file is opened.

    :param format: its format, found by probing if None.
    :param force_share: whether to look even while another process writes.
    :param limits: whether to tell what requests should look like, which depends on the cache mode.
    :raises ImageError: it cannot be opened.
    """
    with context.open(
        filename, format, backing=False, describe_only=True, force_share=force_share, cache=cache
    ) as image:
        return _described(context, image, limits)


def _described(context: Context, image: Image, limits: bool) -> NodeInfo:
    described = describe_node(context, image)
    return _with_limits(described, image) if limits else described


def _with_limits(info: NodeInfo, node: Node) -> NodeInfo:
    """The facts with the limits of the node and of those below it."""
    nodes = node.children()
    below = {
        role: _with_limits(child, nodes[role]) if role in nodes else child for role, child in info.children.items()
    }
    return info.replace(limits=node.limits(), children=below)


def inspect_chain(
    context: Context,
    filename: str,
    format: str | None = None,
    *,
    force_share: bool = False,
    limits: bool = False,
    cache: str = "writeback",
) -> list[NodeInfo]:
    """Describe an image and all layers below it, top first; see :func:`diskwright.graph.each_layer`."""
    layers = each_layer(context, filename, format, force_share=force_share, cache=cache)
    return [_described(context, image, limits) for image in layers]


def describe_node(context: Context, node: Node) -> NodeInfo:
    """Describe a node that is open, and those it stands on."""
    children = {role: _describe_child(context, child) for role, child in node.children().items()}
    if isinstance(node, Passing) and not context.formats.knows(node.driver):
        if not context.filters.knows(node.driver):  # a protocol's node as a disk
            return children[node.role]
        return _describe_passing(node, children)
    if isinstance(node, Image):
        return _describe_image(context, node, children)
    facts = Description(dirty=None)
    if context.protocols.has("describe", node.driver):
        facts = context.protocols.call("describe", node.driver, image=node)
    return NodeInfo(
        node.filename,
        node.driver,
        node.size + -node.size % SECTOR,
        _allocated_size(node),
        dirty=facts.dirty,
        specific=facts.specific,
        specific_type=facts.type,
        children=children,
    )


def _describe_passing(node: Passing, children: Mapping[str, NodeInfo]) -> NodeInfo:
    """A filter says of the disk what the one below says of it."""
    below = children[node.role]
    return below.replace(
        filename=node.filename,
        driver=node.driver,
        size=node.size + -node.size % SECTOR,
        cluster_size=node.cluster_size,
        allocated_size=_allocated_size(node),
        backing_file=None,
        backing_path=None,
        backing_format=None,
        specific=None,
        children=children,
    )


def _describe_child(context: Context, node: Node) -> NodeInfo:
    """Describe a node and its backing layers, each as a child of the one above: what stands on it opens all of them."""
    layers = [node]
    while isinstance(layers[-1], Image) and not isinstance(layers[-1], Passing) and layers[-1].backing is not None:
        layers.append(layers[-1].backing)
    if len(layers) > MAX_NESTED:
        raise InvalidImage(f"The backing chain below another node has more than {MAX_NESTED} layers")
    described = describe_node(context, layers.pop())
    while layers:
        upper = describe_node(context, layers.pop())
        described = upper.replace(children={"backing": described, **upper.children})
    return described


def _describe_image(context: Context, image: Image, children: Mapping[str, NodeInfo]) -> NodeInfo:
    formats = context.formats
    # A format that says nothing adds nothing to what its file says.
    below = children.get("file")
    description = Description(dirty=None)
    if below is not None:
        description = Description(dirty=below.dirty, cluster_size=below.cluster_size)
    if formats.has("describe", image.driver):
        description = formats.call("describe", image.driver, image=image)
    snapshots: Sequence[Snapshot] = ()
    if formats.has("snapshot_list", image.driver):
        snapshots = formats.call("snapshot_list", image.driver, image=image)
    # A file may have been named with a protocol prefix; people and relative backing names want the path.
    filtered = isinstance(image.file, Passing)
    named_by_tree = (isinstance(image.file, Image) and not filtered) or image.filename.startswith(JSON_PREFIX)
    filename = image.filename if named_by_tree else image.file.filename
    return NodeInfo(
        filename=filename,
        driver=image.driver,
        size=image.size,
        allocated_size=_allocated_size(image),
        cluster_size=description.cluster_size or image.cluster_size,
        encrypted=image.encrypted,
        dirty=description.dirty,
        backing_file=image.backing_file,
        backing_path=_backing_path(naming_file(image) if named_by_tree or filtered else filename, image.backing_file),
        backing_format=image.backing_format,
        snapshots=snapshots,
        specific=description.specific,
        specific_type=description.type,
        children=children,
    )


def _backing_path(filename: str, backing: str | None) -> str | None:
    """The name to open it by; where there is none, the rest of the image is described all the same."""
    try:
        return None if backing is None else backing_filename(filename, backing)
    except InvalidOption:
        return None


def _allocated_size(node: Node) -> int | None:
    """What the node says; a system that cannot tell is no reason not to describe the rest."""
    try:
        return node.allocated_size()
    except (OSError, ImageError):
        return None
