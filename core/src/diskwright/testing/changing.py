"""Conformance of what changes an image as a whole: its size, its snapshots."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..facts import Snapshot
from ..node import Image, Writable
from .base import MIB, DriverTests, patchwork
from .nodes import MemoryNode


class ChangingTests(DriverTests):
    """Resizing and internal snapshots."""

    def test_resize_keeps_what_is_left(self) -> None:
        """A larger disk ends in zeros, a smaller one is cut, and what was cut off does not come back."""
        self.need("create")
        self.need("resize")
        content = patchwork(MIB)
        for values in self.variants:
            node = self._written(content, values)
            for size in (3 * MIB + 512, MIB // 2 + 512, 2 * MIB):
                with self.open_node(node, writable=True) as image:
                    self.context.formats.call("resize", self.name, image=image, size=size, preallocation="off")
                content = content[:size].ljust(size, b"\0")
                image = self.open_node(MemoryNode(node.data))
                assert image.size == size
                assert image.read_at(0, size) == content, f"{values}: at {size} bytes"
                self._require_no_finding(image)
            content = patchwork(MIB)

    def test_snapshots_keep_what_was(self) -> None:
        """Applying a snapshot brings the content back that the disk had; deleting the last leaves nothing behind."""
        for hook in ("create", "snapshot_create", "snapshot_apply", "snapshot_delete"):
            self.need(hook)
        for values in self.variants if self.snapshot_variants is None else self.snapshot_variants:
            contents = [patchwork(2 * MIB, seed) for seed in range(3)]
            node = self._written(contents[0], values)
            for number, content in enumerate(contents):
                with self.open_node(node, writable=True) as image:
                    assert isinstance(image, Writable)
                    image.write_at(0, content)
                    self.context.formats.call("snapshot_create", self.name, image=image, name=f"number {number}")
            for number in (1, 0, 2):
                with self.open_node(node, writable=True) as image:
                    self.context.formats.call(
                        "snapshot_apply", self.name, image=image, snapshot=self._snapshot(image, number)
                    )
                image = self.open_node(MemoryNode(node.data))
                assert image.read_at(0, 2 * MIB) == contents[number], f"{values}: number {number}"
                self._require_no_finding(image)
            for number in (1, 0, 2):
                with self.open_node(node, writable=True) as image:
                    self.context.formats.call(
                        "snapshot_delete", self.name, image=image, snapshot=self._snapshot(image, number)
                    )
            image = self.open_node(MemoryNode(node.data))
            assert image.read_at(0, 2 * MIB) == contents[2]
            assert list(self.context.formats.call("snapshot_list", self.name, image=image)) == []
            self._require_no_finding(image)

    def _written(self, content: bytes, values: Mapping[str, Any]) -> MemoryNode:
        node = MemoryNode(writable=True)
        self.create_in(node, len(content), values)
        with self.open_node(node, writable=True) as image:
            assert isinstance(image, Writable)
            image.write_at(0, content)
        return node

    def _snapshot(self, image: Image, number: int) -> Snapshot:
        listed = self.context.formats.call("snapshot_list", self.name, image=image)
        found: Snapshot = next(snapshot for snapshot in listed if snapshot.name == f"number {number}")
        return found

    def _require_no_finding(self, image: Image) -> None:
        if self.has("check"):
            result = self.context.formats.call("check", self.name, image=image, repair=None)
            assert result.findings == []
