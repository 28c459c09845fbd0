"""LUKS images in memory, with passphrases to open them."""

from collections.abc import Callable, Mapping
from typing import Any

import pytest

from diskwright.context import Context
from diskwright.graph import OpenRequest, open_format
from diskwright.hookspecs import CreateOptions
from diskwright.node import Node
from diskwright.testing import MemoryNode
from diskwright_luks.image import LuksImage

SECRETS = {"s0": "abc", "s1": "def", "s2": "ghi"}


@pytest.fixture
def context() -> Context:
    """A context with three secrets."""
    context = Context()
    for id, passphrase in SECRETS.items():
        context.objects.add(f"secret,id={id},data={passphrase}")
    return context


@pytest.fixture
def created(context: Context) -> Callable[..., MemoryNode]:
    """Makes a new image in memory: size in bytes, options by name with underscores."""

    def no_child(name: str, size: int, preallocation: str) -> Node:
        raise AssertionError(name)

    def make(size: int = 1 << 20, values: Mapping[str, Any] | None = None) -> MemoryNode:
        node = MemoryNode(writable=True, filename="x.luks")
        options = {"key-secret": "s0", "iter-time": 0} | dict(values or {})
        told = CreateOptions("x.luks", size, options, no_child, context.objects.secret)
        context.formats.call("create", "luks", target=node, options=told)
        return node

    return make


@pytest.fixture
def opened(context: Context) -> Callable[..., LuksImage]:
    """Opens an image in a node: the secret's id, whether to write, and further runtime options."""

    def open(node: Node, secret: str | None = "s0", *, writable: bool = False, **values: str) -> LuksImage:
        options = values if secret is None else {"key-secret": secret} | values
        options = {name.replace("_", "-"): value for name, value in options.items()}
        image = open_format(context, node, "x.luks", "luks", OpenRequest(writable=writable, options=options))
        assert isinstance(image, LuksImage)
        return image

    return open
