"""Conformance of creating and writing."""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ..node import Image, Writable, WritableImage, Zeroing
from .base import MIB, DriverTests, patchwork
from .nodes import MemoryNode, RecordingNode
from .oracle import qemu_img

SIZE = 3 * MIB + 512
MAX_CRASHES = 60

Step = tuple[str, int, int]
"""What to do, the offset and the length, bytes."""
STEPS = st.lists(
    st.tuples(
        st.sampled_from(("write", "write", "zero", "unmap", "flush", "reopen")),
        st.one_of(st.integers(0, SIZE - 1), st.integers(0, SIZE // 65536).map(lambda n: min(n * 65536, SIZE - 1))),
        st.one_of(st.integers(1, 4096), st.integers(1, SIZE), st.just(65536)),
    ),
    max_size=12,
)


class WritingTests(DriverTests):
    """Images made and changed by the driver itself."""

    def test_new_image_is_sound_and_zero(self) -> None:
        """What ``create`` makes opens with the right size, checks clean and reads as zeros."""
        self.need("create")
        for values in self.variants:
            for size in (0, 512, MIB, SIZE):
                node = MemoryNode(writable=True)
                self.create_in(node, size, values)
                image = self.open_node(MemoryNode(node.data))
                assert image.size == size, values
                assert image.read_at(0, size) == bytes(size), values
                self._require_clean(image)

    def test_writes_are_read_back(self) -> None:
        """Any sequence of writes leaves what a plain array of bytes would hold, also after opening again."""
        self._need_writing()

        @settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
        @given(steps=STEPS, variant=st.sampled_from(range(len(self.variants))))
        def run(steps: list[Step], variant: int) -> None:
            self._run_model(steps, self.variants[variant])

        run()

    def test_every_crash_leaves_old_or_new_bytes(self) -> None:
        """If writing stops at any point, each byte of the disk reads as before or as after, and nothing is corrupt.

        Both when the program stops, and when the power does and takes any part of what was not flushed with it.
        """
        self._need_writing()
        old, new = patchwork(SIZE, seed=3), patchwork(SIZE, seed=4)
        before = old[: 2 * MIB] + bytes(SIZE - 2 * MIB)
        chance = random.Random(5)
        for values in self.variants:
            base = MemoryNode(writable=True)
            self.create_in(base, SIZE, values)
            self._write_in_pieces(base, old, 2 * MIB)
            node = RecordingNode(base.data)
            self._write_in_pieces(node, new, SIZE)
            points = range(len(node.steps) + 1)
            for count in points[:: max(1, len(points) // MAX_CRASHES)]:
                for left in (node.after(count), node.after_power_cut(count, chance)):
                    self._require_old_or_new(left, before, new, f"{values}: after {count} of {len(node.steps)} steps")

    def _require_old_or_new(self, node: MemoryNode, before: bytes, after: bytes, when: str) -> None:
        image = self.open_node(node)
        found = image.read_at(0, SIZE)
        wrong = [offset for offset in range(0, SIZE, 512) if not _either(offset, found, before, after)]
        assert not wrong, f"{when}: wrong sectors, the first at {wrong[0]}"
        self.require_crash_consistent(image)

    def require_crash_consistent(self, image: Image) -> None:
        """What has to hold after a crash; override it for a format that cannot change its metadata in one step."""
        self._require_clean(image)

    def test_places_that_were_never_linked_are_given_back(self) -> None:
        """A copy that fails has asked for places and written to none of them: the disk is as it was, and sound."""
        self._need_writing()
        for values in self.variants:
            node = MemoryNode(writable=True)
            self.create_in(node, SIZE, values)
            model = bytearray(SIZE)
            model[: MIB + 700] = patchwork(MIB + 700, seed=8)
            self._write_in_pieces(node, bytes(model), MIB + 700)
            image = self.open_node(node, writable=True)
            if not isinstance(image, WritableImage):
                pytest.skip("the driver lets nobody else write its data")
            with image.lock:
                image.allocate(MIB // 2, 2 * MIB)
            for offset, length in ((SIZE - 3000, 2000), (2 * MIB, 100)):  # behind the places, and on one of them
                model[offset : offset + length] = random.Random(offset).randbytes(length)
                image.write_at(offset, model[offset : offset + length])
            image.close()
            with self.open_node(MemoryNode(node.data)) as image:
                assert image.read_at(0, SIZE) == model, values
                self._require_clean(image, leaks=0)

    def test_qemu_img_reads_what_was_written(self, tmp_path: Path) -> None:
        """The real qemu-img finds our images sound and reads the same bytes from them."""
        self._need_writing()
        path, raw = tmp_path / "image", tmp_path / "raw"
        for number, values in enumerate(self.variants):
            node = MemoryNode(writable=True)
            self.create_in(node, SIZE, values)
            content = patchwork(SIZE, seed=number)
            self._write_in_pieces(node, content, SIZE)
            self._compare_with_qemu_img(node, content, path, raw)

    def test_qemu_img_reads_its_own_image_that_was_written(self, tmp_path: Path) -> None:
        """An image made by the real qemu-img stays sound when it is written."""
        self._need_writing()
        node = MemoryNode(self.sample(), writable=True)
        image = self.open_node(node, writable=True)
        content = patchwork(image.size, seed=7)
        image.close()
        self._write_in_pieces(node, content, len(content))
        self._compare_with_qemu_img(node, content, tmp_path / "image", tmp_path / "raw")

    def _compare_with_qemu_img(self, node: MemoryNode, content: bytes, path: Path, raw: Path) -> None:
        path.write_bytes(node.data)
        raw.write_bytes(content)
        qemu_img("compare", "-f", "raw", "-F", self.oracle_name(), raw, path)
        checked = qemu_img("check", "-f", self.oracle_name(), path, check=False)
        assert checked.returncode in (0, 63), checked.stdout + checked.stderr

    def _need_writing(self) -> None:
        self.need("create")
        node = MemoryNode(writable=True)
        self.create_in(node, MIB, self.variants[0])
        if not isinstance(self.open_node(node, writable=True), Writable):
            pytest.skip("the driver does not write")

    def _require_clean(self, image: Image, *, leaks: int | None = None) -> None:
        """:param leaks: how many there may be, any number if not told."""
        if self.has("check"):
            result = self.context.formats.call("check", self.name, image=image, repair=None)
            assert (result.corruptions, result.check_errors) == (0, 0), result.findings[:5]
            assert leaks is None or result.leaks <= leaks, result.findings[:5]

    def _write_in_pieces(self, node: MemoryNode, content: bytes, length: int) -> None:
        """Write the first bytes of some content from front to back, in pieces of odd lengths, with some flushes."""
        image = self.open_node(node, writable=True)
        assert isinstance(image, Writable)
        chance = random.Random(length)
        offset = 0
        while offset < length:
            if chance.random() < 0.2:
                image.flush()
            piece = content[offset : min(length, offset + chance.randrange(1, 300_000))]
            image.write_at(offset, piece)
            offset += len(piece)
        image.close()

    def _run_model(self, steps: list[Step], values: Mapping[str, Any]) -> None:
        node = MemoryNode(writable=True)
        self.create_in(node, SIZE, values)
        model = bytearray(SIZE)
        image = self.open_node(node, writable=True)
        for number, (action, offset, length) in enumerate(steps):
            end = min(SIZE, offset + length)
            if action == "flush":
                image.flush()
            elif action == "reopen":
                image.close()
                image = self.open_node(node, writable=True)
            elif action == "write" and isinstance(image, Writable):
                model[offset:end] = random.Random(number).randbytes(end - offset)
                image.write_at(offset, model[offset:end])
            elif isinstance(image, Zeroing):
                model[offset:end] = bytes(end - offset)
                image.write_zeroes(offset, end - offset, unmap=action == "unmap")
            assert image.read_at(0, SIZE) == model
        image.close()
        with self.open_node(MemoryNode(node.data)) as image:
            assert image.read_at(0, SIZE) == model
            assert isinstance(image, Image)
            self._require_clean(image)


def _either(offset: int, found: bytes, before: bytes, after: bytes) -> bool:
    """Whether each byte of a sector is the old or the new one."""
    here = slice(offset, offset + 512)
    if found[here] == before[here] or found[here] == after[here]:
        return True
    return all(byte in pair for byte, *pair in zip(found[here], before[here], after[here], strict=True))
