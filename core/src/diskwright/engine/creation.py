"""Making images: the files of one operation appear together when it is complete, or not at all."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from ..errors import ImageError, InvalidOption, LockConflict, UnknownFormat, UnsupportedOperation
from ..filenames import FileName, backing_filename, parse_filename
from ..graph import OpenRequest, attach_backing, each_layer, open_format
from ..hookspecs import CreatedNode, CreateOptions
from ..known import READ_ONLY_FORMATS
from ..node import SECTOR, Image, Node, Truncatable, all_nodes
from ..options import Option, formatting_line, merge_declared
from ..record import Record
from ..registry import PACKAGES

if TYPE_CHECKING:
    from ..context import Context


class Creation:
    """The files that one operation creates. Use it with ``with``: leaving by an exception undoes everything.

    :param cache: cache mode of all files, see :class:`ProtocolOptions`.
    :param sources: images that are being read and that no new file may take the place of.
    """

    def __init__(self, context: Context, cache: str = "writeback", sources: Iterable[Image] = ()) -> None:
        self.context = context
        self.cache = cache
        self._sources = list(sources)
        self._nodes: dict[str, CreatedNode] = {}
        self._images: list[Image] = []
        self._key_ids: dict[CreatedNode, dict[str, str]] = {}

    def file(self, name: FileName, values: Mapping[str, Any]) -> CreatedNode:
        """A new, empty file that will replace what has that name now.

        :raises LockConflict: that is one of the sources, or a file that they stand on.
        """
        self._require_unused(name)
        node = self.context.gate.create(name, values=values, cache=self.cache)
        self._nodes[name.path] = node
        return node

    def _require_unused(self, name: FileName) -> None:
        if self._sources and (present := self._present(name)) is not None:
            with present:
                require_unused(present, self._sources)

    def _present(self, name: FileName) -> Node | None:
        """What has the name of a new file; ``None`` if nothing has, or if creating will say what is wrong with it."""
        try:
            return self.context.gate.open(name, writable=False, role=None, cache=self.cache)
        except ImageError:
            return None

    def _require_not_below(self, filename: str, values: Mapping[str, Any]) -> None:
        """Refuse to put an image in the place of a layer that it is to stand on; those that are missing do not matter.

        :raises LockConflict: it would be its own backing file, or that of one of them.
        """
        backing: str | None = values.get("backing_file")
        present = self._present(parse_filename(filename)) if backing else None
        if backing is None or present is None:
            return
        name = backing_filename(filename, backing)
        with present:
            try:
                for layer in each_layer(self.context, name, values.get("backing_fmt"), force_share=True):
                    require_unused(present, [layer])
            except LockConflict:
                raise
            except ImageError:
                return  # whoever opens the image is told

    def child(self, path: str, size: int, preallocation: str) -> Node:
        """A further file of the image, named by the user."""
        node = self.file(parse_filename(path), {})
        if isinstance(node, Truncatable):
            node.truncate(size, preallocation)
        return node

    def image(self, filename: str, format: str, size: int, values: Mapping[str, Any]) -> CreatedNode:
        """Create an image; it is not opened.

        :param size: virtual size, bytes; rounded up to whole sectors.
        :param values: creation options, typed.
        """
        format = self.context.formats.proper_name(format)
        values = _with_proper_backing(self.context, values)
        self._require_not_below(filename, values)
        # What a format declares itself is its own business, what it does not is the protocol's.
        own = {option.name for option in self.context.formats.call("creation_options", format)}
        others = {name: value for name, value in values.items() if name not in own}
        node = self.file(parse_filename(filename), others)
        self._key_ids[node] = {name: str(id) for name, id in values.items() if name.endswith("key-secret")}
        size = -(-size // SECTOR) * SECTOR
        options = CreateOptions(
            filename=filename, size=size, values=values, create_child=self.child, secret=self.context.objects.secret
        )
        self.context.gate.policy.require_format(format, writable=True)
        self.context.formats.call("create", format, target=node, options=options)
        return node

    def opened(self, node: CreatedNode, filename: str, format: str) -> Image:
        """The image created in a node, opened for writing with the secrets that it was created with."""
        request = OpenRequest(writable=True, cache=self.cache, options=self._key_ids.get(node))
        image = open_format(self.context, node, filename, format, request, created=self._nodes)
        self._images.append(image)
        try:
            attach_backing(self.context, image, request)
        except ImageError as error:
            raise error.in_context(f"Could not open '{filename}'") from error
        return image

    def __enter__(self) -> Creation:
        return self

    def __exit__(self, kind: object, failure: BaseException | None, trace: object) -> None:
        try:
            if failure is None:
                self._finish()
                return
        except BaseException:
            self._undo()
            raise
        self._undo()

    def _finish(self) -> None:
        for image in self._images:
            image.flush()
        for node in self._nodes.values():
            node.flush()
        for node in self._nodes.values():
            node.commit()
        for image in self._images:
            image.close()
        for node in self._nodes.values():
            node.close()

    def _undo(self) -> None:
        # What is undone may fail to be written back: the failure that led here is the one to report.
        for image in self._images:
            with suppress(ImageError, OSError):
                image.close()
        for node in self._nodes.values():
            with suppress(ImageError, OSError):
                node.abandon()


def require_unused(target: Node, sources: Iterable[Image]) -> None:
    """Refuse to write to a file that is being read. Locks would find that too, but not if they are shared or missing.

    :raises LockConflict: the target is one of the nodes that the sources stand on.
    """
    identity = target.identity()
    if identity is not None and any(node.identity() == identity for source in sources for node in all_nodes(source)):
        raise LockConflict(
            'Failed to get "write" lock', hint=f"Is another process using the image [{target.filename}]?"
        )


def require_format(context: Context, format: str, what: str = "image creation") -> None:
    """Load the driver of a format that something is to be done with.

    :param what: that, for the message.
    :raises UnknownFormat: it is not installed.
    :raises UnsupportedOperation: nor would it help if it were.
    """
    try:
        context.formats.load(format)
    except UnknownFormat as error:
        if format in READ_ONLY_FORMATS or context.protocols.knows(format) or context.filters.knows(format):
            raise UnsupportedOperation(f"Format driver '{format}' does not support {what}") from None
        raise UnknownFormat(f"Unknown file format '{format}'", hint=error.hint) from None


def declared_options(context: Context, format: str, filename: str) -> list[Option]:
    """The creation options of a format for a file: the format's own and those of the file's protocol.

    :raises UnknownFormat: no such format.
    :raises UnsupportedOperation: the format or the protocol cannot create.
    """
    require_format(context, format)
    if not context.formats.has("create", format):
        raise UnsupportedOperation(f"Format driver '{format}' does not support image creation")
    protocol = parse_filename(filename).protocol
    if not context.protocols.has("create", protocol):
        if not context.filters.knows(protocol):
            context.protocols.load(protocol)  # says that there is none
        raise UnsupportedOperation(f"Protocol driver '{protocol}' does not support image creation")
    groups = [context.formats.call("creation_options", format)]
    if context.protocols.has("creation_options", protocol):
        groups.append(context.protocols.call("creation_options", protocol))
    return merge_declared(*groups)


class CreateRequest(Record):
    """What to create.

    :ivar size: virtual size, bytes; ``None``: that of the backing file.
    :ivar values: creation options, typed, without size and backing file.
    :ivar backing_unsafe: do not open the backing file: it need not exist.
    """

    filename: str
    format: str = "raw"
    size: int | None = None
    values: Mapping[str, Any] | None = None
    backing_file: str | None = None
    backing_format: str | None = None
    backing_unsafe: bool = False


def create(context: Context, request: CreateRequest, announce: Callable[[str], None] = lambda _: None) -> None:
    """Create an image, with all that it needs.

    :param announce: called with the ``Formatting`` line right before anything is created.
    :raises ImageError: it cannot be done; nothing has been changed.
    """
    request = request.replace(format=context.formats.proper_name(request.format))
    declared = declared_options(context, request.format, request.filename)
    values = backing_values(request, declared)
    size = request.size
    if request.backing_file is not None and not request.backing_unsafe:
        backing_size = _check_backing(context, request)
        size = backing_size if size is None else size
    elif request.backing_file is not None and request.backing_format is None:
        raise InvalidOption("Backing file specified without backing format")
    values = _with_proper_backing(context, values)
    if size is not None:
        values["size"] = size
    elif needs_size(context, request.format, values):
        raise InvalidOption("Image creation needs a size parameter")
    announce(formatting_line(request.filename, request.format, declared, values))
    with Creation(context) as creation:
        creation.image(request.filename, request.format, size or 0, values)


def needs_size(context: Context, format: str, values: Mapping[str, Any]) -> bool:
    """Whether what a format creates with these options has a size of its own, and so room for data."""
    if not context.formats.has("needs_size", format):
        return True
    return bool(context.formats.call("needs_size", format, values=values))


def backing_values(request: CreateRequest, declared: Sequence[Option]) -> dict[str, Any]:
    """The request's options with its backing file among them.

    :raises InvalidOption: the format has no backing files, or this one makes no sense.
    """
    values = dict(request.values or {})
    names = {option.name for option in declared}
    for name, value, what in (
        ("backing_file", request.backing_file, "Backing file"),
        ("backing_fmt", request.backing_format, "Backing file format"),
    ):
        if value is not None and name not in names:
            raise InvalidOption(f"{what} not supported for file format '{request.format}'")
    if request.backing_format is not None:
        values["backing_fmt"] = request.backing_format
    if request.backing_file is None:
        return values
    if not request.backing_file:
        raise InvalidOption("Expected backing file name, got empty string")
    if request.backing_file == request.filename:
        raise InvalidOption("Error: Trying to create an image with the same filename as the backing file")
    values["backing_file"] = request.backing_file
    return values


def _with_proper_backing(context: Context, values: Mapping[str, Any]) -> dict[str, Any]:
    """The options with the proper name of the backing format, which is what images hold.

    :raises InvalidOption: there is a format but no file, or no such format, installed or not.
    """
    format = values.get("backing_fmt")
    if format is None:
        return dict(values)
    if "backing_file" not in values:
        raise InvalidOption("Backing format cannot be used without backing file")
    proper = context.formats.proper_name(format)
    if not context.formats.knows(proper) and not context.protocols.knows(proper) and proper not in PACKAGES:
        raise InvalidOption(f"Parameter 'backing-fmt' does not accept value '{format}'")
    return {**values, "backing_fmt": proper}


def _check_backing(context: Context, request: CreateRequest) -> int:
    """Open the backing file to see that it is there, without the key to its data; its size in bytes."""
    name = backing_filename(request.filename, request.backing_file or "")
    try:
        # Its size is all that is wanted: an encrypted one needs no secret for that.
        with context.open(name, request.backing_format, force_share=True, describe_only=True) as backing:
            size, detected = backing.size, backing.driver
    except ImageError as error:
        # The plain reason, once: opening has already said which file it is about.
        cause = error.__cause__
        text = str(cause) if isinstance(cause, ImageError) else str(error)
        raise ImageError(text, hint="Could not open backing image.") from error
    if request.backing_format is None:
        raise InvalidOption("Backing file specified without backing format", hint=f"Detected format of {detected}.")
    return size
