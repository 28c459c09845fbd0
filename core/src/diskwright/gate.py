"""The one gate: every file, device and connection that diskwright uses is opened or created here, and nowhere else.

The gate knows whether the user named what is opened or an image did, and applies the policy to either.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .errors import ImageError, UnsupportedOperation
from .filenames import FileName
from .hookspecs import CreatedNode, ProtocolOptions
from .node import Node
from .options import Option, runtime_values
from .policy import Policy
from .registry import Registry
from .tracing import watch


class Gate:
    """Opens and creates protocol nodes under a policy.

    :ivar opened: how many nodes were opened so far, for tests that count.
    """

    def __init__(self, protocols: Registry, policy: Policy | None = None) -> None:
        self.protocols = protocols
        self.policy = policy or Policy()
        self.opened = 0

    def open(
        self, name: FileName, *, writable: bool, role: str | None, cache: str, values: Mapping[str, str] | None = None
    ) -> Node:
        """Open an existing file, device or export.

        :param role: what the node is to the image that names it (``backing``, ``data-file``); ``None`` if the user did.
        :param cache: cache mode, see :class:`ProtocolOptions`.
        :param values: the protocol's runtime options, as the user gave them.
        :raises RefusedByPolicy: the policy forbids it.
        :raises InvalidOption: the protocol does not know an option.
        """
        if role is not None:
            self.policy.require_role(role, name.path)
        self.policy.require_name(name.protocol, name.path)
        typed: Mapping[str, Any] = {}
        if values:
            unknown = f"Block protocol '{name.protocol}' doesn't support the option '{{}}'"
            typed = runtime_values(self.runtime_options(name.protocol), values, unknown)
        options = ProtocolOptions(writable=writable, values=typed, explicit=role is None, cache=cache)
        node: Node = self._call("open", name, options)
        self.opened += 1
        node.filename = node.filename or name.path
        node.bind(name.protocol, self.protocols.block_status(name.protocol))
        watch(node, writable=writable)
        return node

    def runtime_options(self, protocol: str) -> Sequence[Option]:
        """The options that nodes of a protocol are opened with, besides their name."""
        if not self.protocols.has("runtime_options", protocol):
            return ()
        declared: Sequence[Option] = self.protocols.call("runtime_options", protocol)
        return declared

    def create(self, name: FileName, *, values: Mapping[str, Any], cache: str) -> CreatedNode:
        """Create a file, or prepare to replace one; it appears under its name on ``commit`` only."""
        self.policy.require_name(name.protocol, name.path)
        options = ProtocolOptions(writable=True, values=values, cache=cache)
        if not self.protocols.has("create", name.protocol):
            raise UnsupportedOperation(f"Protocol driver '{name.protocol}' does not support image creation")
        node: CreatedNode = self._call("create", name, options)
        self.opened += 1
        node.filename = name.path
        node.bind(name.protocol, self.protocols.block_status(name.protocol))
        watch(node, writable=True)
        return node

    def _call(self, hook: str, name: FileName, options: ProtocolOptions) -> Any:
        if "\0" in name.path:
            raise ImageError("A file name cannot contain a null character")
        return self.protocols.call(hook, name.protocol, filename=name.path, options=options)
