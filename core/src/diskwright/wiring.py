"""From option trees to opened nodes: each node of a tree is opened by its driver, after the nodes it stands on.

A tree names a driver and has its runtime options; the values that are trees themselves are its children. What has no
driver is a file where a protocol's node is wanted, and an image whose format is probed elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING

from .errors import ImageError, InvalidOption, UnknownFormat
from .filenames import FileName, backing_filename, local_filename, parse_filename
from .graph import OpenRequest, attach_backing, format_permissions, open_format, permissions, probe, runtime_options
from .hookspecs import FilterOptions
from .known import did_you_mean
from .node import Image, Lockable, Node
from .options import Option, declaration_name, runtime_values
from .passing import Passing, naming_file
from .registry import install_hint
from .tracing import watch
from .trees import JSON_PREFIX, MAX_DEPTH, Scalar, Tree, flat, json_name, nested, scalar_text, take_node_options
from .zeroing import detect_zeros

if TYPE_CHECKING:
    from .context import Context

FILE_ROLES = frozenset({"file", "image", "raw", "log"})
"""Roles of what filters stand on or write besides."""
MAX_OPTION_FILE = 1 << 20
"""Most bytes of a file that an option names, such as blkdebug's rules."""


class _Name(str):
    """What stands in a name that is more than a path, and so may have the prefix of a protocol itself.

    As QEMU has it, no prefix is looked for where the options of a node are given one by one.
    """

    __slots__ = ()


def open_tree(context: Context, tree: Tree, format: str | None, request: OpenRequest, role: str | None) -> Image:
    """Open an image that is named by the options of its nodes; the tree is consumed.

    :param format: its format, whatever driver the tree names; ``None`` for that one.
    :raises ImageError: it cannot be opened; nothing stays open.
    """
    if format is not None:
        tree = {**tree, "driver": format}
    return _Wiring(context, role).image(tree, request)


def open_named(context: Context, name: FileName, request: OpenRequest, role: str | None) -> Node:
    """Open the node that a name stands for: of a protocol, or of a filter with a prefix of its own."""
    return _Wiring(context, role).named_file(name, request)


def open_children(
    context: Context, node: Node, format: str | None, request: OpenRequest, undo: ExitStack
) -> tuple[Mapping[str, Node], OpenRequest]:
    """Open the nodes that runtime options name for roles of the format of what stands in a node.

    :param undo: closes them when the image cannot be opened.
    :returns: the nodes by role, and the request without these options.
    """
    if not request.options:
        return {}, request
    tree = nested(request.options)
    children = dict(_Wiring(context, None).children(format or probe(context, node), tree, request, undo))
    return children, request.replace(options={key: scalar_text(value) for key, value in flat(tree).items()})


class _Wiring:
    """The nodes of one tree.

    :ivar role: what the top node is to the image that names it, ``None`` if the user does.
    :ivar named: the nodes that others may refer to, by node name.
    :ivar trees: what each node can be opened with again, by its ``id``.
    """

    def __init__(self, context: Context, role: str | None) -> None:
        self.context = context
        self.role = role
        self.named: dict[str, Node] = {}
        self.trees: dict[int, Tree] = {}
        self.depth = 0

    def image(self, tree: Tree, request: OpenRequest) -> Image:
        """Open the disk that a tree describes."""
        node = self._node(tree, request, protocol=False)
        if isinstance(node, Image):
            return node
        # A protocol's node as such is a disk too: the one that its bytes are.
        disk = Passing(node, writable=request.writable)
        disk.bind(node.driver, None)
        watch(disk, writable=request.writable)
        disk.set_permissions(*permissions(request, shares_writers=True))
        return disk

    def _node(self, value: Scalar | Tree, request: OpenRequest, *, protocol: bool) -> Node:
        """Open a node and what it stands on.

        :param value: a tree, or the name of a node that is open already.
        :param protocol: whether what has no driver is a file, rather than an image.
        """
        if not isinstance(value, dict):
            return self._referred(scalar_text(value))
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise InvalidOption(f"Options are nested more than {MAX_DEPTH} levels deep")
        driver = _driver(value)
        common = take_node_options(value)
        if common.read_only and request.writable:
            raise InvalidOption("Block node is read-only")
        if request.force_share and common.force_share is False:
            raise InvalidOption("--force-share/-U conflicts with image options")
        request = request.replace(
            force_share=request.force_share or bool(common.force_share),
            cache=common.cache or request.cache,
            discard=request.discard if common.discard is None else common.discard,
        )
        node = self._open(driver, value, request, protocol=protocol)
        node.may_unmap = common.discard is not False
        if isinstance(node, Image):
            node.detect_zeroes = common.detect_zeroes
        elif common.detect_zeroes != "off":
            detect_zeros(node, unmap=common.detect_zeroes == "unmap")
        if common.name is not None:
            if common.name in self.named:
                node.close()
                raise InvalidOption(f"Duplicate nodes with node-name='{common.name}'")
            self.named[common.name] = node
        self.depth -= 1
        return node

    def _child(self, value: Scalar | Tree, request: OpenRequest, undo: ExitStack, *, protocol: bool) -> Node:
        """Open what another node stands on: if it is an image, that is the whole disk, with all layers below.

        :param undo: closes it when the other node cannot be opened.
        """
        # As QEMU has it, what stands below gives space back unless its own options are against it.
        below = request.replace(options=None, discard=True)
        node = self._node(value, below, protocol=protocol)
        undo.callback(node.close)
        if isinstance(node, Image):
            attach_backing(self.context, node, below)
        return node

    def _referred(self, name: str) -> Node:
        if name not in self.named:
            raise InvalidOption(f"Cannot find device='{name}' nor node-name='{name}'")
        return self.named[name]

    def _open(self, driver: str | None, tree: Tree, request: OpenRequest, *, protocol: bool) -> Node:
        context = self.context
        if driver is None and protocol and "file" not in tree:
            return self._file(tree, request)
        if driver is None or context.formats.knows(driver):
            return self._format(driver, tree, request)
        if context.filters.knows(driver):
            return self._filter(driver, tree, request, protocol=protocol)
        if context.protocols.knows(driver):
            return self._protocol(driver, tree, request)
        kinds = (context.formats, context.filters, context.protocols)
        known = {name for kind in kinds for name in kind.installed()}
        raise UnknownFormat(f"Unknown driver '{driver}'", hint=install_hint(driver) or did_you_mean(driver, known))

    # Formats

    def _format(self, driver: str | None, tree: Tree, request: OpenRequest) -> Image:
        own_backing = {"backing": tree.pop("backing")} if "backing" in tree else {}
        if "file" not in tree:
            if driver is None:
                raise InvalidOption("Must specify either driver or file")
            raise InvalidOption('A block device must be specified for "file"')
        if not isinstance(tree["file"], dict) and any(key.startswith("file.") for key in tree):
            raise InvalidOption("Cannot reference an existing block device with additional options or a new filename")
        with ExitStack() as undo:
            below = self._child(tree.pop("file"), request, undo, protocol=True)
            children = dict(self.children(driver or probe(self.context, below), tree, request, undo))
            values = flat(tree)
            options = {key: scalar_text(value) for key, value in values.items()}
            below_request = request.replace(options=options)
            image = open_format(self.context, below, below.filename, driver, below_request, children=children)
            undo.pop_all()
        self._name_format(image, values, {"file": below, **children})
        if own_backing:
            self._set_backing(image, own_backing["backing"], request)
        return image

    def children(self, format: str, tree: Tree, request: OpenRequest, undo: ExitStack) -> Iterator[tuple[str, Node]]:
        """Open the nodes that a tree names for roles of the format, ``file`` and ``backing`` apart."""
        if not self.context.formats.has("child_roles", format):
            return
        for role in self.context.formats.call("child_roles", format):
            if role not in tree:
                continue
            if request.describe_only and role in getattr(self.context.formats.load(format), "data_roles", ()):
                tree.pop(role)  # nothing of what it holds is asked for
                continue
            node = self._child(tree.pop(role), request, undo, protocol=True)
            if isinstance(node, Lockable):
                node.set_permissions(*format_permissions(self.context, format, request))
            yield role, node

    def _name_format(self, image: Image, values: Mapping[str, Scalar], children: Mapping[str, Node]) -> None:
        below = children["file"]
        plain = None
        if len(children) == 1 and not below.filename.startswith(JSON_PREFIX) and not _is_format(self.context, below):
            plain = below.filename
        self._name(image, image.driver, runtime_options(self.context, image.driver), values, children, plain)

    def _set_backing(self, image: Image, backing: Scalar | Tree, request: OpenRequest) -> None:
        """Let a tree's own word on the backing layer stand for the image's: null means none. A failure closes it."""
        try:
            self._put_backing(image, backing, request)
        except BaseException:
            image.close()
            raise

    def _put_backing(self, image: Image, backing: Scalar | Tree, request: OpenRequest) -> None:
        if backing is None or backing == "":
            if backing == "":
                self.context.warn('Use of "backing": "" is deprecated; use "backing": null instead')
            image.backing_file = None
            return
        if not request.backing:
            return
        deeper = frozenset(depth - 1 for depth in request.writable_depths if depth > 1)
        below = request.replace(
            writable=1 in request.writable_depths, writable_depths=deeper, exclusive=True, options=None
        )
        if isinstance(backing, dict):
            self._complete_backing(image, backing)
        try:
            node = self._node(backing, below, protocol=False)
        except ImageError as error:
            raise error.in_context("Could not open backing file") from error
        image.backing = node
        self.trees[id(image)]["backing"] = self.trees.get(id(node), {})
        image.filename = json_name(self.trees[id(image)])

    def _complete_backing(self, image: Image, tree: Tree) -> None:
        """What a tree does not say of the backing layer, the image does: its format, and the file.

        A format is not to be guessed where the image names it: the bytes of a raw layer may say anything.
        """
        format = image.backing_format
        if "driver" not in tree and format is not None and not self.context.protocols.knows(format):
            tree["driver"] = format
        driver = tree.get("driver")
        if image.backing_file is None or (isinstance(driver, str) and not self.context.formats.knows(driver)):
            return
        file = tree.setdefault("file", {})
        if isinstance(file, dict) and not {"driver", "filename", "file"} & file.keys():
            name = backing_filename(naming_file(image), image.backing_file)
            if not name.startswith(JSON_PREFIX):
                file["filename"] = _Name(name)

    # Filters

    def _filter(self, driver: str, tree: Tree, request: OpenRequest, *, protocol: bool) -> Image:
        filters = self.context.filters
        children: dict[str, Node] = {}
        with ExitStack() as undo:
            for role, value in list(_taken(tree, filters.call("child_roles", driver))):
                # As QEMU has it: what these name by nothing but a file name is that file, not an image.
                named_only = role in FILE_ROLES and isinstance(value, dict) and "driver" not in value
                is_file = protocol or role == "file" or named_only
                children[role] = self._child(value, request, undo, protocol=is_file)
            declared = filters.call("runtime_options", driver) if filters.has("runtime_options", driver) else ()
            values = flat(tree)
            unknown = f"Block format '{driver}' does not support the option '{{}}'"
            if filters.has("tree_of_name", driver):
                unknown = f"Block protocol '{driver}' doesn't support the option '{{}}'"
            options = FilterOptions(
                writable=request.writable,
                values=runtime_values(declared, {key: scalar_text(value) for key, value in values.items()}, unknown),
                find_object=self.context.objects.get,
                read_file=self._read_file,
                find_node=self.named.__getitem__,
            )
            image: Image = filters.call("open", driver, children=children, options=options)
            undo.pop_all()
        image.bind(driver, None)
        watch(image, writable=request.writable)
        image.read_only = not request.writable
        if isinstance(image, Lockable) and not protocol:
            image.set_permissions(*permissions(request, shares_writers=True))
        plain, said = (image.plain_name, image.said_by_name) if isinstance(image, Passing) else (None, frozenset[str]())
        self._name(image, driver, declared, values, children, plain, said)
        return image

    def _read_file(self, path: str) -> bytes:
        with self.context.gate.open(local_filename(path), writable=False, role=None, cache="writeback") as node:
            if node.size > MAX_OPTION_FILE:
                raise InvalidOption(f"'{path}' has more than {MAX_OPTION_FILE} bytes")
            return node.read_at(0, node.size)

    # Protocols

    def named_file(self, name: FileName, request: OpenRequest) -> Node:
        """Open the node that a name stands for."""
        filters = self.context.filters
        if not self.context.protocols.knows(name.protocol) and filters.knows(name.protocol):
            values = filters.call("tree_of_name", name.protocol, filename=name.path)
            tree = nested({key: _Name(value) if isinstance(value, str) else value for key, value in values.items()})
            return self._filter(name.protocol, tree, request, protocol=True)
        return self.context.gate.open(name, writable=request.writable, role=self.role, cache=request.cache)

    def _file(self, tree: Tree, request: OpenRequest) -> Node:
        """Open a file that a tree names without saying by which protocol."""
        filename = tree.get("filename")
        if filename is None or isinstance(filename, dict):
            raise InvalidOption('A block device must be specified for "file"' if tree else "No file name is given")
        if not isinstance(filename, _Name):
            return self._protocol_node(local_filename(scalar_text(filename)), tree, request)
        name = parse_filename(filename)
        if not self.context.protocols.knows(name.protocol) and self.context.filters.knows(name.protocol):
            return self.named_file(name, request)
        return self._protocol_node(name, tree, request)

    def _protocol(self, driver: str, tree: Tree, request: OpenRequest) -> Node:
        filename = tree.get("filename")
        if isinstance(filename, dict):
            raise InvalidOption("Parameter 'filename' expects a string")
        path = scalar_text(filename)
        if not path and getattr(self.context.protocols.load(driver), "needs_filename", True):
            raise InvalidOption(f"The '{driver}' block driver requires a file name")
        return self._protocol_node(local_filename(path) if driver == "file" else FileName(driver, path), tree, request)

    def _protocol_node(self, name: FileName, tree: Tree, request: OpenRequest) -> Node:
        given = flat(tree)
        given.pop("filename", None)
        gate = self.context.gate
        texts = {key: scalar_text(value) for key, value in given.items()}
        node = gate.open(name, writable=request.writable, role=self.role, cache=request.cache, values=texts)
        if name.path:
            given["filename"] = node.filename
        self._name(node, node.driver, gate.runtime_options(name.protocol), given, {}, node.filename)
        return node

    # Names

    def _name(
        self,
        node: Node,
        driver: str,
        declared: Sequence[Option],
        values: Mapping[str, Scalar],
        children: Mapping[str, Node],
        plain: str | None,
        said: frozenset[str] = frozenset(),
    ) -> None:
        """Give a node the name by which it can be opened again: the file's alone where that says it all.

        :param values: the runtime options that were given; those that do not change what is read are left out.
        :param plain: its name if there are no such options, apart from those in ``said``.
        """
        strong = {option.name for option in declared if option.strong}
        kept = {key: value for key, value in values.items() if declaration_name(key) in strong}
        tree: Tree = {"driver": driver, **kept}
        if "filename" in values:
            tree["filename"] = values["filename"]
        for role, child in children.items():
            _put(tree, role, self.trees.get(id(child)) or _tree_of_file(child))
        self.trees[id(node)] = tree
        node.filename = plain if plain is not None and kept.keys() <= said else json_name(tree)


def _driver(tree: Tree) -> str | None:
    driver = tree.pop("driver", None)
    if isinstance(driver, dict):
        raise InvalidOption("Parameter 'driver' expects a string")
    return None if driver is None else scalar_text(driver)


def _taken(tree: Tree, roles: Sequence[str]) -> Iterator[tuple[str, Scalar | Tree]]:
    """Remove the children from a filter's tree: (role, value)."""
    for role in roles:
        name, _, star = role.partition(".")
        if name not in tree:
            raise InvalidOption(f'A block device must be specified for "{name}"')
        value = tree.pop(name)
        if not star:
            yield name, value
            continue
        items = value if isinstance(value, dict) else {}
        for index in range(len(items)):
            if str(index) not in items:
                raise InvalidOption(f"Parameter '{name}' has no element {index}")
            yield f"{name}.{index}", items[str(index)]


def _put(tree: Tree, role: str, child: Tree) -> None:
    name, _, index = role.partition(".")
    if not index:
        tree[name] = child
        return
    items = tree.setdefault(name, {})
    if isinstance(items, dict):
        items[index] = child


def _is_format(context: Context, node: Node) -> bool:
    return isinstance(node, Image) and context.formats.knows(node.driver)


def _tree_of_file(node: Node) -> Tree:
    return {"driver": node.driver, "filename": node.filename}
