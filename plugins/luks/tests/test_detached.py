"""Header and key material in one file, the payload in another."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from diskwright.cli import main
from diskwright.context import Context
from diskwright.engine.creation import CreateRequest, create
from diskwright.errors import ImageError, InvalidOption
from diskwright.hookspecs import OpenOptions
from diskwright.node import Node
from diskwright.testing import MemoryNode, qemu_img
from diskwright.testing.base import patchwork
from diskwright.trees import OptionString
from diskwright_luks.image import LuksImage
from diskwright_luks.volume import Parameters

SECRET = "secret,id=s0,data=abc"
PAYLOAD = 2068480


class TestDetachedHeader:
    """Header and key material in one file, the payload in another."""

    def header(self, created: Callable[..., MemoryNode]) -> MemoryNode:
        return created(0, {"detached-header": True})

    def open(self, context: Context, data: Node, header: Node, **values: str) -> LuksImage:
        def no_child(name: str, role: str) -> Node:
            raise AssertionError(name)

        options = OpenOptions(
            filename="data",
            writable=True,
            describe_only=False,
            values={"key-secret": "s0"} | values,
            open_child=no_child,
            secret=context.objects.secret,
            children={"header": header},
        )
        return LuksImage(data, options)

    def test_payload_is_the_whole_file(self, context: Context, created: Callable[..., MemoryNode]) -> None:
        header, data = self.header(created), MemoryNode(bytes(1 << 20), writable=True)
        assert header.size == Parameters().header_size
        content = patchwork(1 << 20)
        with self.open(context, data, header) as image:
            assert image.size == 1 << 20
            image.write_at(0, content)
            assert image.describe().specific is not None
            assert (image.describe().specific or {})["detached-header"] is True
            assert set(image.children()) == {"file", "header"}
        assert data.size == 1 << 20
        assert self.open(context, data, header).read_at(0, 1 << 20) == content

    def test_what_may_hold_the_payload(
        self, context: Context, created: Callable[..., MemoryNode], tmp_path: Path
    ) -> None:
        """A raw file, or another image; closing the image closes all of them."""
        (tmp_path / "h.luks").write_bytes(self.header(created).data)
        create(context, CreateRequest(str(tmp_path / "data"), "qcow2", 1 << 20))
        content = patchwork(1 << 20)
        tree = (
            "driver=luks,key-secret=s0,file.driver=qcow2,"
            f"file.file.filename={tmp_path / 'data'},header.filename={tmp_path / 'h.luks'}"
        )
        with context.open(OptionString(tree), writable=True) as image:
            assert isinstance(image, LuksImage)
            children = image.children()
            assert [child.driver for child in children.values()] == ["file", "qcow2"]
            assert image.describe().cluster_size == 65536
            image.write_at(0, content)
            image.flush()
            image.amend({"state": "active", "new-secret": "s1", "iter-time": 0}, force=False)
        assert all(child._closed for child in children.values())
        with context.open(OptionString(tree.replace("s0", "s1"))) as image:
            assert image.read_at(0, 1 << 20) == content

    def test_with_qemu_img(self, context: Context, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        header, data, back = tmp_path / "h.luks", tmp_path / "data", tmp_path / "back"
        create(context, CreateRequest(str(header), "luks", values={"key-secret": "s0", "detached-header": True}))
        assert header.stat().st_size == PAYLOAD
        content = patchwork(1 << 20)
        data.write_bytes(content)
        tree = f"driver=luks,key-secret=s0,file.filename={data},header.filename={header}"
        with context.open(OptionString(tree), writable=True) as image:
            assert isinstance(image, LuksImage)
            image.write_at(0, content)
        found = qemu_img("info", "--output=json", "--image-opts", tree, check=False)
        if "Volume is not in LUKS format" in found.stderr:  # it takes the data for the header
            pytest.skip("this qemu-img knows no detached headers")
        assert main(["info", "--output=json", "--image-opts", tree]) == 0
        assert json.loads(capsys.readouterr().out) == json.loads(found.stdout)
        qemu_img("convert", "--object", SECRET, "--image-opts", tree, "-O", "raw", back)
        assert back.read_bytes() == content

    def test_needs_no_size(self, context: Context, tmp_path: Path) -> None:
        lines: list[str] = []
        path = tmp_path / "h.luks"
        values = {"key-secret": "s0", "detached-header": True, "iter-time": 0}
        for size in (None, 1 << 30):
            create(context, CreateRequest(str(path), "luks", size, values), lines.append)
            assert path.stat().st_size == PAYLOAD
        assert lines[0] == f"Formatting '{path}', fmt=luks key-secret=s0 iter-time=0 detached-header=on"
        with pytest.raises(InvalidOption, match="^Image creation needs a size parameter$"):
            create(context, CreateRequest(str(path), "luks", values=values | {"detached-header": False}))

    def test_nothing_can_be_converted_into_it(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Refused, as by the real program, and nothing is left."""
        monkeypatch.chdir(tmp_path)
        Path("disk").write_bytes(bytes(512))
        options = ("-O", "luks", "--object", SECRET, "-o", "key-secret=s0,iter-time=10,detached-header=on")
        assert main(["convert", "-f", "raw", *options, "disk", "h.luks"]) == 1
        assert "h.luks: error while converting luks: " in capsys.readouterr().err
        assert qemu_img("convert", "-f", "raw", *options, "disk", "h.luks", check=False).returncode == 1
        assert not Path("h.luks").exists()

    def test_is_no_image_by_itself(self, created: Callable[..., MemoryNode], opened: Callable[..., LuksImage]) -> None:
        with pytest.raises(ImageError, match="^LUKS payload is overlapping with the header$"):
            opened(self.header(created))
