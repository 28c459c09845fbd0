"""Changing keyslots: QEMU's rules, and no crash that loses the last key."""

import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from diskwright.context import Context
from diskwright.errors import ImageError, InvalidOption
from diskwright.testing import MemoryNode, RecordingNode, qemu_img
from diskwright_luks.image import LuksImage

ACTIVE_S1 = {"state": "active", "new-secret": "s1", "iter-time": 0}


def active(image: LuksImage) -> list[int]:
    return [index for index, slot in enumerate(image.header.slots) if slot.active]


@pytest.fixture
def image(created: Callable[..., MemoryNode], opened: Callable[..., LuksImage]) -> LuksImage:
    """Keyslot 0 holds s0, 1 holds s1."""
    image = opened(created(), writable=True)
    image.amend(ACTIVE_S1, force=False)
    assert active(image) == [0, 1]
    return image


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"iter-time": 1}, "Parameter 'state' is missing"),
        ({"state": "foo"}, "Parameter 'state' does not accept value 'foo'"),
        ({"state": "active"}, "'new-secret' is required to activate a keyslot"),
        (ACTIVE_S1 | {"old-secret": "s0"}, "'old-secret' must not be given when activating keyslots"),
        (ACTIVE_S1 | {"keyslot": 1}, "Refusing to overwrite active keyslot 1 - please erase it first"),
        (ACTIVE_S1 | {"keyslot": 8}, "Invalid keyslot 8 specified, must be between 0 and 7"),
        (ACTIVE_S1 | {"new-secret": "s9"}, "No secret with id 's9'"),
        (
            {"state": "inactive"},
            "To erase keyslot(s), either explicit keyslot index or the password currently contained in them must be "
            "given",
        ),
        ({"state": "inactive", "new-secret": "s1"}, "'new-secret' must not be given when erasing keyslots"),
        ({"state": "inactive", "iter-time": 1}, "'iter-time' must not be given when erasing keyslots"),
        ({"state": "inactive", "keyslot": 8}, "Invalid keyslot 8 specified, must be between 0 and 7"),
        ({"state": "inactive", "keyslot": 5}, "Given keyslot 5 is already erased (inactive) "),
        ({"state": "inactive", "old-secret": "s2"}, "No keyslots match given (old) password for erase operation"),
        (
            {"state": "inactive", "keyslot": 0, "old-secret": "s1"},
            "Given keyslot 0 doesn't contain the given old password for erase operation",
        ),
    ],
)
def test_refused(image: LuksImage, values: Mapping[str, Any], message: str) -> None:
    node = image.file
    assert isinstance(node, MemoryNode)
    before = bytes(node.data)
    with pytest.raises(ImageError) as caught:
        image.amend(values, force=False)
    assert str(caught.value) == message
    assert node.data == before


def test_last_key_is_erased_by_force_only(image: LuksImage, opened: Callable[..., LuksImage]) -> None:
    image.amend({"state": "inactive", "old-secret": "s1"}, force=False)
    assert active(image) == [0]
    with pytest.raises(InvalidOption, match="^Attempt to erase the only active keyslot 0 which will erase all"):
        image.amend({"state": "inactive", "keyslot": 0}, force=False)
    with pytest.raises(InvalidOption, match="^All the active keyslots match the"):
        image.amend({"state": "inactive", "old-secret": "s0"}, force=False)
    image.amend({"state": "inactive", "keyslot": 0}, force=True)
    assert active(image) == []
    with pytest.raises(ImageError, match="Invalid password"):
        opened(image.file)


def test_all_slots_taken(image: LuksImage, opened: Callable[..., LuksImage]) -> None:
    for _ in range(6):
        image.amend(ACTIVE_S1, force=False)
    with pytest.raises(InvalidOption, match="^Can't add a keyslot - all keyslots are in use$"):
        image.amend(ACTIVE_S1, force=False)
    image.amend({"state": "inactive", "old-secret": "s1"}, force=False)
    assert active(image) == [0]
    assert opened(image.file).size == 1 << 20


def test_erased_key_material_is_gone(image: LuksImage) -> None:
    node, slot = image.file, image.header.slots[1]
    before = node.read_at(slot.sector * 512, image.header.material_size)
    image.amend({"state": "inactive", "keyslot": 1}, force=False)
    after = node.read_at(slot.sector * 512, image.header.material_size)
    assert all(before[start : start + 512] != after[start : start + 512] for start in range(0, len(before), 512))
    assert node.read_at(256, 40) == (0xDEAD).to_bytes(4, "big") + bytes(36)


def test_amended_as_qemu_img_expects(image: LuksImage, tmp_path: Path) -> None:
    """The real qemu-img opens with the new passphrase, and changes keyslots after us."""
    node = image.file
    assert isinstance(node, MemoryNode)
    image.amend({"state": "inactive", "keyslot": 0}, force=False)
    path = tmp_path / "x.luks"
    path.write_bytes(node.data)
    objects = [
        part for id, text in (("s1", "def"), ("s2", "ghi")) for part in ("--object", f"secret,id={id},data={text}")
    ]
    tree = f"driver=luks,key-secret=s1,file.filename={path}"
    qemu_img("amend", *objects, "-o", "state=active,new-secret=s2,iter-time=1", "--image-opts", tree)
    qemu_img("amend", *objects, "-o", "state=inactive,old-secret=s1", "--image-opts", tree.replace("s1", "s2"))


def test_qemu_imgs_keyslots_open(context: Context, tmp_path: Path) -> None:
    path = tmp_path / "x.luks"
    objects = [
        part for id, text in (("s0", "abc"), ("s1", "def")) for part in ("--object", f"secret,id={id},data={text}")
    ]
    qemu_img("create", *objects, "-f", "luks", "-o", "key-secret=s0,iter-time=1", path, "1M")
    tree = f"driver=luks,key-secret=s0,file.filename={path}"
    qemu_img("amend", *objects, "-o", "state=active,new-secret=s1,keyslot=6,iter-time=1", "--image-opts", tree)
    for secret in ("s0", "s1"):
        with context.open(str(path), options={"key-secret": secret}) as image:
            assert image.size == 1 << 20


@pytest.mark.parametrize(
    ("values", "force"),
    [
        (ACTIVE_S1, False),
        (ACTIVE_S1 | {"keyslot": 6}, False),
        (ACTIVE_S1 | {"keyslot": 0}, True),
    ],
)
def test_no_crash_loses_the_key(
    created: Callable[..., MemoryNode], opened: Callable[..., LuksImage], values: Mapping[str, Any], force: bool
) -> None:
    """Whatever has been written, whole or the first half of a write, the old passphrase opens the image or the new."""
    content = random.Random(5).randbytes(4096)
    start = created(4096)
    opened(start, writable=True).write_at(0, content)
    node = RecordingNode(start.data)
    opened(node, writable=True).amend(values, force=force)
    assert node.steps
    for count in range(len(node.steps) + 1):
        states = [node.after(count)]
        if count < len(node.steps):
            offset, data = node.steps[count]
            assert data is not None
            torn = node.after(count)
            torn.write_at(offset, data[: len(data) // 2])
            states.append(torn)
        for state in states:
            assert any(_opens(opened, state, secret, content) for secret in ("s0", "s1")), f"after {count} writes"
    assert _opens(opened, node, "s1", content)


def _opens(opened: Callable[..., LuksImage], node: MemoryNode, secret: str, content: bytes) -> bool:
    try:
        return opened(node, secret).read_at(0, len(content)) == content
    except ImageError:
        return False


def test_key_material_is_safe_before_its_slot_is_active(
    created: Callable[..., MemoryNode], opened: Callable[..., LuksImage]
) -> None:
    class Ordered(RecordingNode):
        def flush(self) -> None:
            self.steps.append((-1, b""))

    node = Ordered(created().data)
    opened(node, writable=True).amend(ACTIVE_S1, force=False)
    # key material, flush, slot, flush
    assert [offset for offset, _ in node.steps] == [262144, -1, 256, -1]


def test_options_are_declared(context: Context) -> None:
    names = [option.name for option in context.formats.call("amend_options", "luks")]
    assert names == ["state", "new-secret", "old-secret", "keyslot", "iter-time"]
