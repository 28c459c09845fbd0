"""Options, refusals and damage of encrypted images, and what must never be shown."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from diskwright.context import Context
from diskwright.engine.convert import ConvertRequest, convert
from diskwright.engine.copy import no_progress
from diskwright.errors import ImageError, InvalidImage, InvalidOption, UnsupportedFeature, UnsupportedOperation
from diskwright.graph import OpenRequest, open_format
from diskwright.hookspecs import CreateOptions
from diskwright.node import Image, Node
from diskwright.testing import MemoryNode
from diskwright_qcow2.image import Qcow2Image

pytest.importorskip("diskwright_luks", reason="the package diskwright-luks is not installed")

SECRETS = {"s0": "open-sesame-0", "s1": "open-sesame-1", "s2": "open-sesame-2"}
LUKS = {"encrypt.format": "luks", "encrypt.key-secret": "s0", "encrypt.iter-time": 0}
AES = {"encrypt.format": "aes", "encrypt.key-secret": "s0"}
SIZE = 1 << 20


@pytest.fixture
def context() -> Context:
    """A context with secrets."""
    context = Context()
    for id, passphrase in SECRETS.items():
        context.objects.add(f"secret,id={id},data={passphrase}")
    return context


@pytest.fixture
def make(context: Context) -> Callable[..., MemoryNode]:
    """Create an image in memory."""

    def no_child(name: str, size: int, preallocation: str) -> Node:
        raise AssertionError(name)

    def create(values: dict[str, Any]) -> MemoryNode:
        node = MemoryNode(writable=True, filename="x.qcow2")
        options = CreateOptions("x.qcow2", SIZE, values, no_child, context.objects.secret)
        context.formats.call("create", "qcow2", target=node, options=options)
        return node

    return create


@pytest.fixture
def opened(context: Context) -> Callable[..., Qcow2Image]:
    """Open an image in memory: with the secret's id, and further runtime options."""

    def open(node: Node, secret: str | None = "s0", *, writable: bool = False, **values: str) -> Qcow2Image:
        options = {f"encrypt.{name.replace('_', '-')}": value for name, value in values.items()}
        if secret is not None:
            options["encrypt.key-secret"] = secret
        request = OpenRequest(writable=writable, options=options, describe_only=False)
        image = open_format(context, node, "x.qcow2", "qcow2", request)
        assert isinstance(image, Qcow2Image)
        return image

    return open


def describe(context: Context, node: Node) -> Any:
    """What ``info`` shows; opened without a secret."""
    with open_format(context, node, "x.qcow2", "qcow2", OpenRequest(describe_only=True)) as image:
        assert image.encrypted
        return context.formats.call("describe", "qcow2", image=image).specific["encrypt"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"encryption": True, **AES}, "'encrypt.format' and its alias 'encryption' can't be used at the same time"),
        ({"encrypt.key-secret": "s0"}, "Parameter 'encrypt.format' is missing"),
        ({"encrypt.iter-time": 1}, "Parameter 'encrypt.format' is missing"),
        ({"encryption": False, "encrypt.key-secret": "s0"}, "Parameter 'encrypt.format' is missing"),
        ({"encrypt.format": "xyz"}, "Parameter 'format' does not accept value 'xyz'"),
        ({"encrypt.format": "luks"}, "Parameter 'encrypt.key-secret' is required for cipher"),
        ({"encrypt.format": "aes"}, "Parameter 'encrypt.key-secret' is required for cipher"),
        ({"encryption": True}, "Parameter 'encrypt.key-secret' is required for cipher"),
        ({**AES, "encrypt.cipher-alg": "aes-128"}, "Parameter 'encrypt.cipher-alg' is unexpected"),
        ({**AES, "encrypt.iter-time": 1}, "Parameter 'encrypt.iter-time' is unexpected"),
        ({**LUKS, "encrypt.hash-alg": "xyz"}, "Parameter 'hash-alg' does not accept value 'xyz'"),
        ({**LUKS, "encrypt.key-secret": "s9"}, "No secret with id 's9'"),
    ],
)
def test_create_refuses(make: Callable[..., MemoryNode], values: dict[str, Any], message: str) -> None:
    with pytest.raises(ImageError) as caught:
        make(values)
    assert str(caught.value) == message


def test_refusals_write_nothing(context: Context) -> None:
    node = MemoryNode(writable=True, filename="x.qcow2")
    options = CreateOptions("x.qcow2", SIZE, {**LUKS, "encrypt.key-secret": "s9"}, lambda *_: node)
    with pytest.raises(ImageError):
        context.formats.call("create", "qcow2", target=node, options=options)
    assert node.size == 0


def test_options_are_shown_in_the_order_of_qemu(context: Context) -> None:
    names = [option.name for option in context.formats.call("creation_options", "qcow2")]
    own = "format key-secret cipher-alg cipher-mode ivgen-alg ivgen-hash-alg hash-alg iter-time"
    assert names[:9] == ["encryption", *(f"encrypt.{name}" for name in own.split())]
    assert len([n for n in context.formats.call("amend_options", "qcow2") if n.name.startswith("encrypt.")]) == 5


@pytest.mark.parametrize(("values", "name"), [(LUKS, "luks"), (AES, "aes"), ({"encryption": True}, "aes")])
def test_open_refuses(
    make: Callable[..., MemoryNode], opened: Callable[..., Qcow2Image], values: dict[str, Any], name: str
) -> None:
    node = make({"encrypt.key-secret": "s0", **values})
    other = "luks" if name == "aes" else "aes"
    for secret, more, message in (
        (None, {}, "Parameter 'encrypt.key-secret' is required for cipher"),
        ("s9", {}, "No secret with id 's9'"),
        ("s0", {"format": other}, f"Header reported '{name}' encryption format but options specify '{other}'"),
    ):
        with pytest.raises(ImageError) as caught:
            opened(node, secret, **more)
        assert str(caught.value) == message
    opened(node, format=name).close()


def test_open_refuses_options_without_encryption(
    make: Callable[..., MemoryNode], opened: Callable[..., Qcow2Image]
) -> None:
    with pytest.raises(InvalidOption, match=r"^No encryption in image header, but options specified format 'luks'$"):
        opened(make({}), None, format="luks")
    opened(make({})).close()


def test_wrong_passphrase(make: Callable[..., MemoryNode], opened: Callable[..., Qcow2Image]) -> None:
    with pytest.raises(ImageError) as caught:
        opened(make(LUKS), "s1")
    assert str(caught.value) == "Invalid password, cannot unlock any keyslot"
    node = make(AES)
    with opened(node, writable=True) as image:
        image.write_at(0, b"x" * 512)
    with opened(node, "s1") as image:  # AES cannot tell
        assert image.read_at(0, 512) != b"x" * 512


def test_too_many_iterations(make: Callable[..., MemoryNode], opened: Callable[..., Qcow2Image]) -> None:
    with pytest.raises(UnsupportedFeature, match="iterations of PBKDF2, more than the limit of 1$"):
        opened(make(LUKS), max_iterations="1")


def test_describe_needs_no_secret(context: Context, make: Callable[..., MemoryNode]) -> None:
    assert describe(context, make(AES)) == {"format": "aes"}
    facts = describe(context, make({**LUKS, "encrypt.cipher-alg": "aes-128", "encrypt.hash-alg": "sha512"}))
    assert (facts["format"], facts["cipher-alg"], facts["hash-alg"]) == ("luks", "aes-128", "sha512")
    assert [slot["active"] for slot in facts["slots"]] == [True] + [False] * 7


def test_locked_images_are_described_only(context: Context, make: Callable[..., MemoryNode]) -> None:
    request = OpenRequest(describe_only=True, writable=True)
    with open_format(context, make(LUKS), "x.qcow2", "qcow2", request) as image:
        assert isinstance(image, Qcow2Image)
        for work in (
            lambda: image.read_encoded(0, memoryview(bytearray(512))),
            lambda: image.write_at(0, b"plain text"),
        ):
            with pytest.raises(UnsupportedOperation, match="was opened without its key"):
                work()


def test_missing_package(
    make: Callable[..., MemoryNode],
    opened: Callable[..., Qcow2Image],
    context: Context,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    node = make(LUKS)
    monkeypatch.setitem(sys.modules, "diskwright_luks", None)
    for work in (lambda: opened(node), lambda: make(LUKS), lambda: make(AES)):
        with pytest.raises(UnsupportedFeature) as caught:
            work()
        assert str(caught.value) == "qcow2: encryption needs the package diskwright-luks"
        assert "diskwright-qcow2[encryption]" in caught.value.hint
    assert describe(context, node) == {"format": "luks"}
    opened(make({}), None).close()


def crypto_header(node: MemoryNode) -> tuple[int, int]:
    """Where the LUKS header of an image stands, and where the header says so."""
    place = bytes(node.data).index(bytes.fromhex("0537be77"))
    return int.from_bytes(node.data[place + 8 : place + 16], "big"), place + 8


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data, luks, place: data.__setitem__(slice(luks, luks + 6), b"nothin"), "not in LUKS format"),
        (lambda data, luks, place: data.__setitem__(slice(luks + 104, luks + 108), bytes(4)), "overlapping"),
        (
            lambda data, luks, place: data.__setitem__(slice(place + 8, place + 16), (1 << 62).to_bytes(8, "big")),
            "outside the file",
        ),
        (
            lambda data, luks, place: data.__setitem__(slice(place + 8, place + 16), (300_000).to_bytes(8, "big")),
            "Keyslot 1 is outside the encryption header of 300000 bytes",
        ),
        (lambda data, luks, place: data.__setitem__(slice(luks + 248, luks + 252), b"\0\xff\xff\xff"), "Keyslot 0"),
        (lambda data, luks, place: data.__setitem__(luks + 5000, data[luks + 5000] ^ 1), "Invalid password"),
        (lambda data, luks, place: data.__setitem__(slice(luks + 4096, None), b""), "outside the file"),
    ],
)
def test_damaged_header(
    make: Callable[..., MemoryNode],
    opened: Callable[..., Qcow2Image],
    damage: Callable[[bytearray, int, int], None],
    message: str,
) -> None:
    node = make(LUKS)
    damage(node.data, *crypto_header(node))
    with pytest.raises(ImageError, match=message) as caught:
        opened(node)
    assert "\n" not in str(caught.value)
    assert not any(passphrase in str(caught.value) for passphrase in SECRETS.values())


def test_any_damage_of_the_header_is_one_line(
    make: Callable[..., MemoryNode], opened: Callable[..., Qcow2Image]
) -> None:
    node = make({**LUKS, "cluster_size": 512})
    whole = bytes(node.data)
    luks, _ = crypto_header(node)
    rng = random.Random(8)
    for _ in range(150):
        node.data[:] = whole
        for _ in range(rng.randrange(1, 4)):
            place = rng.choice((rng.randrange(112, 150), luks + rng.randrange(592)))
            node.data[place] = rng.randrange(256)
        message = ""
        try:
            opened(node, max_iterations="100000").close()
        except ImageError as error:
            message = str(error)
        assert "\n" not in message
        assert not any(passphrase in message for passphrase in SECRETS.values())


def test_metadata_in_the_way_of_the_header(make: Callable[..., MemoryNode], opened: Callable[..., Qcow2Image]) -> None:
    node = make(LUKS)
    luks, _ = crypto_header(node)
    with opened(node, writable=True) as image:
        image.write_at(0, b"x")
        l1 = image.header.l1_table_offset
    # The first L2 table is said to stand in the LUKS header.
    node.data[l1 : l1 + 8] = (luks | 1 << 63).to_bytes(8, "big")
    before = bytes(node.data[luks:])
    image = opened(node, writable=True)
    with pytest.raises(InvalidImage, match="Preventing invalid write on metadata"):
        image.write_at(0, b"y")
    image.close()
    assert bytes(node.data[luks:]) == before


def test_check_counts_the_header(
    make: Callable[..., MemoryNode], opened: Callable[..., Qcow2Image], context: Context
) -> None:
    node = make(LUKS)
    with opened(node) as image:
        result = context.formats.call("check", "qcow2", image=image, repair=None)
    assert (result.corruptions, result.leaks, result.check_errors, result.findings) == (0, 0, 0, [])


def test_no_compression(
    make: Callable[..., MemoryNode], opened: Callable[..., Qcow2Image], context: Context, tmp_path: Path
) -> None:
    with opened(make(LUKS), writable=True) as image:
        for work in (lambda: image.compress(memoryview(bytes(65536))), lambda: image.write_compressed([(0, b"xyz")])):
            with pytest.raises(UnsupportedOperation) as caught:
                work()
            assert str(caught.value) == "Compression and encryption not supported at the same time"
    source = tmp_path / "source"
    source.write_bytes(bytes(SIZE))
    for options in ("encrypt.format=luks,encrypt.key-secret=s0", "encryption=on,encrypt.key-secret=s0"):
        target = tmp_path / "target"
        request = ConvertRequest(
            [str(source)], str(target), source_format="raw", format="qcow2", options=[options], compress=True
        )
        with pytest.raises(InvalidOption, match="^Compression and encryption not supported at the same time$"):
            convert(context, request)
        assert not target.exists()


def amend(context: Context, image: Image, force: bool = False, **values: Any) -> None:
    """Amend with options of encryption."""
    named = {f"encrypt.{name.replace('_', '-')}": value for name, value in values.items()}
    context.formats.call("amend", "qcow2", image=image, values=named, force=force, progress=no_progress)


def test_amend(context: Context, make: Callable[..., MemoryNode], opened: Callable[..., Qcow2Image]) -> None:
    node = make(LUKS)
    with opened(node, writable=True) as image:
        image.write_at(1000, b"content")
        amend(context, image, state="active", new_secret="s1", iter_time=1)
        shown = context.formats.call("describe", "qcow2", image=image).specific["encrypt"]["slots"]
        assert [slot["active"] for slot in shown] == [True, True] + [False] * 6
        for values, message in (
            ({"new_secret": "s2"}, "Parameter 'state' is missing"),
            ({"state": "xyz"}, "Parameter 'state' does not accept value 'xyz'"),
            ({"state": "active"}, "'new-secret' is required to activate a keyslot"),
            ({"state": "active", "new_secret": "s9"}, "No secret with id 's9'"),
            ({"state": "active", "new_secret": "s2", "keyslot": 0}, "Refusing to overwrite active keyslot 0"),
        ):
            with pytest.raises(ImageError, match=message):
                amend(context, image, **values)
    with opened(node, "s1", writable=True) as image:
        assert image.read_at(1000, 7) == b"content"
        amend(context, image, state="inactive", old_secret="s0")
        with pytest.raises(InvalidOption, match="refusing operation"):
            amend(context, image, state="inactive", old_secret="s1")
    with pytest.raises(ImageError, match="^Invalid password"):
        opened(node, "s0")
    with opened(node, "s1") as image:
        assert image.read_at(1000, 7) == b"content"
        assert context.formats.call("check", "qcow2", image=image, repair=None).findings == []


def test_amend_needs_keyslots(
    context: Context, make: Callable[..., MemoryNode], opened: Callable[..., Qcow2Image]
) -> None:
    for node, secret, message in (
        (make({}), None, "Can't amend encryption options - encryption not present"),
        (make(AES), "s0", "Only LUKS encryption options can be amended"),
    ):
        with opened(node, secret, writable=True) as image, pytest.raises(InvalidOption, match=f"^{message}$"):
            amend(context, image, state="active", new_secret="s1")


@pytest.mark.parametrize("values", [LUKS, AES])
def test_downgrade(
    values: dict[str, Any], context: Context, make: Callable[..., MemoryNode], opened: Callable[..., Qcow2Image]
) -> None:
    below = MemoryNode(b"b" * SIZE, filename="below")
    node = make({**values, "backing_file": "below", "backing_fmt": "raw"})
    image = opened(node, writable=True)
    image.backing = below
    image.write_at(0, b"x" * SIZE)
    image.write_zeroes(1 << 17, 1 << 18, unmap=True)
    expected = b"x" * (1 << 17) + bytes(1 << 18) + b"x" * (SIZE - (3 << 17))
    change = {"compat": "v2"}
    if values is AES:
        with pytest.raises(InvalidOption, match="Cannot downgrade an image with encryption format 'aes'"):
            context.formats.call("amend", "qcow2", image=image, values=change, force=False, progress=no_progress)
        assert image.header.version == 3
    else:
        context.formats.call("amend", "qcow2", image=image, values=change, force=False, progress=no_progress)
        assert image.header.version == 2
    assert image.read_at(0, SIZE) == expected
    image.close()


@pytest.mark.parametrize(("cipher", "size"), [("aes-256", 2068480), ("aes-128", 1052672)])
def test_measure(context: Context, cipher: str, size: int) -> None:
    def measured(values: dict[str, Any]) -> Any:
        arguments = {"size": 10 << 20, "values": values, "ranges": iter(()), "source": None}
        return context.formats.call("measure", "qcow2", **arguments, secret=context.objects.secret)

    plain, luks = measured({}), measured({**LUKS, "encrypt.cipher-alg": cipher})
    more = -(-size // 65536) * 65536
    assert (luks.required - plain.required, luks.fully_allocated - plain.fully_allocated) == (more, more)
    assert measured({"encrypt.format": "aes"}) == plain
    with pytest.raises(InvalidOption, match="^Parameter 'encrypt.key-secret' is required for cipher$"):
        measured({"encrypt.format": "luks"})
    with pytest.raises(ImageError, match="^No secret with id 'nope'$"):
        measured({"encrypt.format": "luks", "encrypt.key-secret": "nope"})


def test_compressed_clusters_are_read_as_they_are(
    context: Context, make: Callable[..., MemoryNode], opened: Callable[..., Qcow2Image]
) -> None:
    """QEMU can be led to store them in an encrypted image, in the clear."""
    node = make(LUKS)
    with opened(node, writable=True) as image:
        image.write_at(65536, b"x" * 65536)
        image.encrypted = False
        blob = image.compress(memoryview(b"y" * 65536))
        assert blob is not None
        image.write_compressed([(0, blob)])
        image.encrypted = True
        image.flush()
        assert image.read_at(0, 2 << 16) == b"y" * 65536 + b"x" * 65536
        assert image.read_at(65530, 12) == b"y" * 6 + b"x" * 6
