"""A context holds what one user of the library works with: the drivers and the policy under which files are opened."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from functools import cache
from typing import TYPE_CHECKING

from .gate import Gate
from .objects import ObjectStore
from .policy import Policy, ambient_policy
from .registry import Registry

if TYPE_CHECKING:
    from .node import Image


def ignore(text: str) -> None:
    """For callers that do not want to be told."""


class Context:
    """Drivers and policy; images are opened through it.

    :param policy: what the user of the context allows; what installation and environment forbid stays forbidden.
    :ivar formats: the format drivers.
    :ivar protocols: the protocol drivers.
    :ivar filters: the filter drivers.
    :ivar gate: through which every file is opened.
    :ivar objects: what images may refer to by an id, such as secrets.
    :ivar warn: called with what a user should know and what does not stop anything; set it to be told. A text of one
        line is a message to be introduced as a warning, one of several lines is to be shown as it is.
    """

    def __init__(self, policy: Policy | None = None) -> None:
        self.warn: Callable[[str], None] = ignore
        self.formats = Registry("diskwright.formats")
        self.protocols = Registry("diskwright.protocols", unknown="Unknown protocol '{}'")
        self.filters = Registry("diskwright.filters")
        self.gate = Gate(self.protocols, ambient_policy().narrowed(policy or Policy()))
        self.objects = ObjectStore()

    def narrowed(self, policy: Policy) -> Context:
        """The same drivers and objects, under what this context and another policy allow."""
        from copy import copy

        other = copy(self)
        other.gate = Gate(self.protocols, self.gate.policy.narrowed(policy))
        return other

    def open(
        self,
        filename: str,
        format: str | None = None,
        *,
        writable: bool = False,
        backing: bool = True,
        describe_only: bool = False,
        force_share: bool = False,
        exclusive: bool = False,
        cache: str = "writeback",
        options: Mapping[str, str] | None = None,
        writable_depths: Collection[int] = (),
        check: bool = False,
        discard: bool = False,
    ) -> Image:
        """Open an image with the layers below it.

        :param filename: a file name, or an :class:`diskwright.trees.OptionString`.
        :param format: name of its format; found by probing if None.
        :param writable: whether the top layer will be written; the layers below never are.
        :param backing: whether to open the backing chain.
        :param describe_only: for its description only: no data is read and nothing but the file itself is opened.
        :param force_share: open even while another process writes to the image.
        :param exclusive: refuse while another process writes, also for formats that would share.
        :param cache: cache mode, one of ``writeback``, ``writethrough``, ``none``, ``directsync``, ``unsafe``.
        :param options: runtime options of the format driver.
        :param writable_depths: layers of the chain to open for writing besides the top one: 1 is its backing file.
        :param check: to be checked or repaired: the driver opens it in spite of what a check will report.
        :param discard: whether the space of what is discarded is to be given back, unless options say otherwise.
        :raises ImageError: it cannot be opened; the message starts with ``Could not open 'FILENAME'``.
        """
        from .graph import OpenRequest, open_image

        request = OpenRequest(
            writable=writable,
            backing=backing,
            describe_only=describe_only,
            force_share=force_share,
            exclusive=exclusive,
            cache=cache,
            options=options or {},
            writable_depths=frozenset(writable_depths),
            check=check,
            discard=discard,
        )
        return open_image(self, filename, format, request)


@cache
def default_context() -> Context:
    """The context of callers that do not bring their own: all installed drivers, and images may name files."""
    return Context()
