"""The LUKS driver against the conformance kit. Passphrases have to be told, and new images do not read as zeros."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from diskwright.graph import OpenRequest, open_format
from diskwright.hookspecs import CreateOptions
from diskwright.node import Image, Node
from diskwright.testing import DriverConformance, MemoryNode, qemu_img
from diskwright.testing.base import MIB, patchwork

SECRET = "secret,id=s0,data=abc"
CREATION = {"key-secret": "s0", "iter-time": 0}
CBC = {"cipher-alg": "aes-128", "cipher-mode": "cbc", "ivgen-alg": "essiv"}


class TestLuks(DriverConformance):
    name, entry_module = "luks", "diskwright_luks.plugin"
    variants = (CREATION, CREATION | CBC)

    @pytest.fixture(autouse=True)
    def _with_secret(self, _with_context: None) -> None:
        self.context.objects.add(SECRET)

    def sample(self) -> bytes:
        """Made by qemu-img, with a short key: the tests open it thousands of times."""
        if self.name not in self._samples:
            node = MemoryNode(writable=True)
            self._qemu_convert_sample(node)
            self._samples[self.name] = bytes(node.data)
        return self._samples[self.name]

    def _qemu_convert_sample(self, node: MemoryNode) -> None:
        import tempfile

        with tempfile.TemporaryDirectory() as directory:
            raw, made = Path(directory, "sample.raw"), Path(directory, "sample")
            raw.write_bytes(patchwork(MIB + 512))
            options = "key-secret=s0,iter-time=1,cipher-alg=aes-128,cipher-mode=cbc"
            qemu_img("convert", "--object", SECRET, "-f", "raw", "-O", "luks", "-o", options, raw, made)
            node.data[:] = made.read_bytes()

    def open_node(self, node: Node, *, writable: bool = False) -> Image:
        request = OpenRequest(writable=writable, backing=False, options={"key-secret": "s0"})
        return open_format(self.context, node, node.filename, self.name, request)

    def create_in(self, node: Node, size: int, values: Mapping[str, Any]) -> None:
        """An image whose payload has been filled with encrypted zeros."""

        def no_child(name: str, size: int, preallocation: str) -> Node:
            raise AssertionError(name)

        secret = self.context.objects.secret
        options = CreateOptions(node.filename, size, values, no_child, secret)
        self.context.formats.call("create", "luks", target=node, options=options)
        image: Any = self.open_node(node, writable=True)
        assert image.size == size
        image.write_at(0, bytes(size))
        image.close()

    def test_probe_picks_this_driver(self, tmp_path: Path) -> None:
        path = tmp_path / "image"
        path.write_bytes(self.sample())
        with self.context.open(str(path), options={"key-secret": "s0"}) as image:
            assert image.driver == "luks"

    def test_reading_agrees_with_qemu_img(self, tmp_path: Path) -> None:
        image = self.open_node(self.sample_node())
        self._compare_with_qemu_img(self.sample_node(), image.read_at(0, image.size), tmp_path / "i", tmp_path / "r")

    def _compare_with_qemu_img(self, node: MemoryNode, content: bytes, path: Path, raw: Path) -> None:
        path.write_bytes(node.data)
        raw.unlink(missing_ok=True)
        tree = f"driver=luks,key-secret=s0,file.filename={path}"
        qemu_img("convert", "--object", SECRET, "--image-opts", "-O", "raw", tree, raw)
        assert raw.read_bytes() == content
