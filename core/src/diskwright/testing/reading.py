"""Conformance of reading: probing, the map, and the bytes."""

from __future__ import annotations

import hashlib
from pathlib import Path

from ..extent import Kind
from .base import DriverTests, singly
from .oracle import qemu_img


class ReadingTests(DriverTests):
    """A sound image."""

    def test_probe_picks_this_driver(self, tmp_path: Path) -> None:
        """With every installed driver asked, this one is the surest of its own image."""
        path = tmp_path / "image"
        path.write_bytes(self.sample())
        with self.context.open(str(path)) as image:
            assert image.driver == self.name

    def test_probe_of_other_files(self) -> None:
        """Short, empty and foreign files are no reason to fail."""
        for head in (b"", b"\0", bytes(512), b"\xff" * 2048):
            hit = self.context.formats.call("probe", self.name, head=head, filename="x")
            assert all(1 <= found.score <= 100 and found.format == self.name for found in hit)

    def test_size_is_whole_sectors(self) -> None:
        """Virtual sizes are multiples of 512."""
        assert self.open_node(self.sample_node()).size % 512 == 0

    def test_map_covers_each_range(self) -> None:
        """Extents come in order, without gaps, and cover exactly what was asked for."""
        image = self.open_node(self.sample_node())
        size = image.size
        ranges = [(0, size), (0, 1), (size - 1, 1), (size // 3, size // 3), (511, min(70_001, size - 511))]
        for offset, length in ranges:
            position = offset
            for extent in singly(image.extents(offset, length)):
                assert extent.offset == position
                assert extent.length > 0
                position = extent.end
                if extent.kind is Kind.DATA:
                    assert extent.node is not None
                    assert extent.node_offset is not None
            assert position == offset + length, f"asked for {offset}+{length}"

    def test_map_leads_to_the_bytes(self) -> None:
        """What the map says of data and zeros is what reading gives."""
        image = self.open_node(self.sample_node())
        for extent in singly(image.extents()):
            length = min(extent.length, 1 << 20)
            if extent.kind is Kind.DATA and extent.node is not None and extent.node_offset is not None:
                assert image.read_at(extent.offset, length) == extent.node.read_at(extent.node_offset, length)
            elif extent.kind is Kind.ZERO:
                assert not any(image.read_at(extent.offset, length))

    def test_pieces_agree_with_the_whole(self) -> None:
        """Reads of any alignment give the same bytes; behind the end there are zeros."""
        image = self.open_node(self.sample_node())
        whole = image.read_at(0, image.size)
        for offset in range(0, image.size, max(1, image.size // 37)):
            assert image.read_at(offset, 4099) == whole[offset : offset + 4099].ljust(4099, b"\0")

    def test_reading_does_not_write(self) -> None:
        """An image that is only read stays as it is; a node for reading fails the test when it is written."""
        node = self.sample_node()
        before = hashlib.sha256(node.data).digest()
        image = self.open_node(node)
        image.read_at(0, image.size)
        for hook in ("describe", "snapshot_list"):
            if self.has(hook):
                self.context.formats.call(hook, self.name, image=image)
        if self.has("check"):
            self.context.formats.call("check", self.name, image=image, repair=None)
        image.close()
        assert hashlib.sha256(node.data).digest() == before

    def test_reading_agrees_with_qemu_img(self, tmp_path: Path) -> None:
        """The real qemu-img reads the same bytes."""
        path, raw = tmp_path / "image", tmp_path / "raw"
        path.write_bytes(self.sample())
        qemu_img("convert", "-f", self.oracle_name(), "-O", "raw", path, raw)
        image = self.open_node(self.sample_node())
        expected = raw.read_bytes()
        assert image.size == len(expected)
        assert image.read_at(0, image.size) == expected
