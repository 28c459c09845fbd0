"""Encrypted qcow2 images in tests: how they are named, and what opens them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..context import Context

SECRET = "secret,id=s0,data=hush"
"""The object that opens them."""


def address(path: Path) -> str:
    """How to name an image: by its file or, if it is an encrypted qcow2 image, together with :data:`SECRET`."""
    with path.open("rb") as file:
        head = file.read(36)
    if head[:4] != b"QFI\xfb" or not any(head[32:]):
        return str(path)
    return "json:" + json.dumps({"encrypt.key-secret": "s0", "file.driver": "file", "file.filename": str(path)})


def knowing_context() -> Context:
    """A context that knows :data:`SECRET`."""
    context = Context()
    context.objects.add(SECRET)
    return context


def real_check(qemu_img: Callable[..., Any], path: Path, *options: str) -> Any:
    """The real tool's check of a qcow2 image, whatever it finds.

    :param qemu_img: runs that tool.
    """
    return qemu_img("check", "--object", SECRET, *options, "-f", "qcow2", address(path), code=None)
