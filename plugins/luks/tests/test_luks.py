"""LUKS images: in agreement with qemu-img and cryptsetup, and clear about what is wrong with damaged ones."""

import itertools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from diskwright.cli import main
from diskwright.context import Context
from diskwright.engine.convert import ConvertRequest, convert
from diskwright.errors import ImageError, InvalidOption, NodeIOError, UnsupportedFeature, UnsupportedOperation
from diskwright.extent import Flag, Kind
from diskwright.hookspecs import CreateOptions
from diskwright.testing import MemoryNode, qemu_img
from diskwright.testing.base import patchwork
from diskwright_luks import algorithms, keys
from diskwright_luks.image import LuksImage

SECRET = "secret,id=s0,data=abc"
PAYLOAD = 2068480

ALGORITHMS = [
    {},
    {"cipher-alg": "aes-128", "hash-alg": "sha1", "ivgen-alg": "plain"},
    {"cipher-alg": "aes-192", "hash-alg": "sha512"},
    {"ivgen-alg": "essiv"},
    {"cipher-mode": "cbc", "ivgen-alg": "essiv", "hash-alg": "sha384"},
    {"cipher-alg": "aes-128", "cipher-mode": "cbc", "ivgen-alg": "plain", "hash-alg": "ripemd160"},
    {"cipher-mode": "ctr", "ivgen-alg": "essiv", "hash-alg": "sha224"},
    {"cipher-alg": "aes-128", "cipher-mode": "ecb", "hash-alg": "md5"},
]


def option_text(values: Mapping[str, str]) -> str:
    return ",".join(f"{name}={value}" for name, value in {"key-secret": "s0", "iter-time": "1", **values}.items())


@pytest.mark.parametrize("values", ALGORITHMS, ids=lambda values: option_text(values)[26:] or "default")
def test_both_ways_with_qemu_img(context: Context, tmp_path: Path, values: dict[str, str]) -> None:
    raw, ours, theirs, back = (tmp_path / name for name in ("raw", "ours", "theirs", "back"))
    content = patchwork((1 << 20) + 512)
    raw.write_bytes(content)
    convert(context, ConvertRequest([str(raw)], str(ours), "raw", "luks", [option_text(values)]))
    tree = f"driver=luks,key-secret=s0,file.filename={ours}"
    qemu_img("convert", "--object", SECRET, "--image-opts", "-O", "raw", tree, back)
    assert back.read_bytes() == content
    qemu_img("convert", "--object", SECRET, "-f", "raw", "-O", "luks", "-o", option_text(values), raw, theirs)
    with context.open(str(theirs), options={"key-secret": "s0"}) as image:
        assert image.read_at(0, image.size) == content
    assert ours.stat().st_size == theirs.stat().st_size


@pytest.mark.parametrize("mode", ["xts", "cbc", "ecb", "ctr"])
@pytest.mark.parametrize("cipher", ["aes-128", "aes-192", "aes-256"])
def test_qemu_img_reads_all_that_we_write(context: Context, tmp_path: Path, cipher: str, mode: str) -> None:
    """Every mode with every IV generator, and all hashes in turn. Of AES with 192 bits it knows XTS only: it fails an
    assertion where key material does not end with a sector."""
    raw, ours, back = (tmp_path / name for name in ("raw", "ours", "back"))
    content = patchwork(65536 + 512)
    raw.write_bytes(content)
    hashes = itertools.cycle(algorithms.HASHES)
    generators = ["plain", "plain64", *(f"essiv,ivgen-hash-alg={hash}" for hash in ("md5", "sha256", "sm3"))]
    for generator in generators:
        values = {"cipher-alg": cipher, "cipher-mode": mode, "ivgen-alg": generator, "hash-alg": next(hashes)}
        convert(context, ConvertRequest([str(raw)], str(ours), "raw", "luks", [option_text(values)]))
        with context.open(str(ours), options={"key-secret": "s0"}) as image:
            assert image.read_at(0, image.size) == content
        if (cipher, mode == "xts") != ("aes-192", False):
            tree = f"driver=luks,key-secret=s0,file.filename={ours}"
            done = qemu_img("convert", "--object", SECRET, "--image-opts", "-O", "raw", tree, back, check=False)
            if "Hash algorithm 'sm3' not supported" not in done.stderr:  # new in QEMU 9
                assert done.returncode == 0, done.stderr
                assert back.read_bytes() == content


@pytest.mark.parametrize(
    ("cipher", "mode"),
    [
        ("serpent-256", "xts"),
        ("serpent-128", "cbc"),
        ("twofish-256", "xts"),
        ("twofish-128", "ctr"),
        ("cast5-128", "cbc"),
    ],
)
def test_ciphers_of_qemu_img_that_we_lack_are_named(context: Context, tmp_path: Path, cipher: str, mode: str) -> None:
    path = tmp_path / "x.luks"
    options = f"key-secret=s0,iter-time=1,cipher-alg={cipher},cipher-mode={mode}"
    done = qemu_img("create", "--object", SECRET, "-f", "luks", "-o", options, path, "1M", check=False)
    if done.returncode:
        pytest.skip(f"this qemu-img has no {cipher}: {done.stderr.strip()}")
    with pytest.raises(UnsupportedFeature, match=f"^Could not open '{path}': Algorithm '{cipher}' not supported$"):
        context.open(str(path), options={"key-secret": "s0"})
    expected = json.loads(qemu_img("info", "--output=json", path).stdout)["format-specific"]["data"]
    with context.open(str(path), describe_only=True) as image:
        found = context.formats.call("describe", "luks", image=image).specific
        assert found | {"detached-header": None} == expected | {"detached-header": None}


def test_description_is_that_of_qemu_img(context: Context, tmp_path: Path) -> None:
    path = tmp_path / "x.luks"
    options = "key-secret=s0,iter-time=1,cipher-mode=cbc,ivgen-alg=essiv"
    qemu_img("create", "--object", SECRET, "-f", "luks", "-o", options, path, "1M")
    expected = json.loads(qemu_img("info", "--output=json", path).stdout)["format-specific"]["data"]
    with context.open(str(path), describe_only=True) as image:
        assert image.encrypted
        found = context.formats.call("describe", "luks", image=image).specific
        assert found | {"detached-header": None} == expected | {"detached-header": None}
        with pytest.raises(UnsupportedOperation):
            image.read_at(0, 512)


def test_layout(created: Callable[..., MemoryNode], opened: Callable[..., LuksImage]) -> None:
    node = created(3 << 20)
    assert node.size == PAYLOAD + (3 << 20)
    image = opened(node)
    assert (image.size, image.header.payload_offset) == (3 << 20, PAYLOAD)
    assert [slot.sector for slot in image.header.slots] == [8 + 504 * index for index in range(8)]
    assert [slot.active for slot in image.header.slots] == [True] + [False] * 7
    assert image.header.slots[0].iterations == image.header.digest_iterations == 1000
    (extent,) = image.extents(512, 70_000)
    assert (extent.offset, extent.length, extent.kind, extent.flags) == (512, 70_000, Kind.ENCODED, Flag.ENCRYPTED)
    assert not image.new_reads_zero()


def test_zeros_are_encrypted_too(created: Callable[..., MemoryNode], opened: Callable[..., LuksImage]) -> None:
    node = created()
    opened(node, writable=True).write_at(0, bytes(1 << 20))
    assert not opened(node).read_at(0, 1 << 20).strip(b"\0")
    sectors = {bytes(node.data[start : start + 512]) for start in range(PAYLOAD, PAYLOAD + (1 << 20), 512)}
    assert len(sectors) == 2048


@pytest.mark.parametrize(("offset", "length"), [(1, 2), (510, 4), (512, 511), (5, 507), (100, 5000), (0, 512), (7, 0)])
def test_partial_sectors(
    created: Callable[..., MemoryNode], opened: Callable[..., LuksImage], offset: int, length: int
) -> None:
    node = created()
    model = bytearray(patchwork(1 << 20))
    image = opened(node, writable=True)
    image.write_at(0, model)
    before = bytes(node.data)
    model[offset : offset + length] = b"\x55" * length
    image.write_at(offset, b"\x55" * length)
    assert opened(node).read_at(0, 1 << 20) == model
    touched = range(offset // 512 * 512, -(-(offset + length) // 512) * 512) if length else range(0)
    changed = [i for i in range(len(before)) if before[i] != node.data[i]]
    assert all(i - PAYLOAD in touched for i in changed)


def test_writing_behind_the_end_is_refused(
    created: Callable[..., MemoryNode], opened: Callable[..., LuksImage]
) -> None:
    image = opened(created(), writable=True)
    with pytest.raises(NodeIOError, match="No space left on device"):
        image.write_at((1 << 20) - 10, bytes(11))


def test_resize(context: Context, created: Callable[..., MemoryNode], opened: Callable[..., LuksImage]) -> None:
    node = created()
    image = opened(node, writable=True)
    content = patchwork(1 << 20)
    image.write_at(0, content)
    context.formats.call("resize", "luks", image=image, size=3 << 20, preallocation="off")
    assert image.size == 3 << 20
    assert node.size == PAYLOAD + (3 << 20)
    assert opened(node).read_at(0, 3 << 20) == content + bytes(2 << 20)
    context.formats.call("resize", "luks", image=image, size=512, preallocation="off")
    assert opened(node).read_at(0, 1024) == content[:512] + bytes(512)


class FullNode(MemoryNode):
    """A file on a file system that is almost full."""

    def write_at(self, offset: int, data: Any) -> None:
        if offset + len(data) > PAYLOAD + (2 << 20):
            raise OSError(28, "No space left on device")
        super().write_at(offset, data)


def test_failed_resize_leaves_the_size(
    created: Callable[..., MemoryNode], opened: Callable[..., LuksImage], context: Context
) -> None:
    image = opened(FullNode(created().data, writable=True), writable=True)
    with pytest.raises(OSError, match="No space"):
        context.formats.call("resize", "luks", image=image, size=9 << 20, preallocation="off")
    assert image.size == 1 << 20


class TestSecrets:
    """Passphrases that are missing, wrong, or none."""

    @pytest.mark.parametrize(
        ("secret", "message"),
        [
            (None, "Parameter 'key-secret' is required for cipher"),
            ("s1", "Invalid password, cannot unlock any keyslot"),
            ("nope", "No secret with id 'nope'"),
            ("binary", "Data from secret binary is not valid UTF-8"),
            ("null", "Data from secret null is not valid UTF-8"),
            ("empty", "Invalid password, cannot unlock any keyslot"),
        ],
    )
    def test_open(
        self,
        context: Context,
        created: Callable[..., MemoryNode],
        opened: Callable[..., LuksImage],
        secret: str | None,
        message: str,
    ) -> None:
        context.objects.add("secret,id=binary,data=//8=,format=base64")
        context.objects.add("secret,id=null,data=AGE=,format=base64")
        context.objects.add("secret,id=empty,data=")
        node = created()
        with pytest.raises(ImageError, match=f"^{message}$"):
            opened(node, secret)

    def test_create(self, context: Context, tmp_path: Path) -> None:
        for values, message in (
            ({}, "Parameter 'key-secret' is required for cipher"),
            ({"key-secret": "nope"}, "No secret with id 'nope'"),
        ):
            options = CreateOptions("x", 512, values, lambda *_: MemoryNode(), context.objects.secret)
            node = MemoryNode(writable=True)
            with pytest.raises(ImageError, match=f"^{message}$"):
                context.formats.call("create", "luks", target=node, options=options)
            assert node.size == 0

    def test_convert_opens_what_it_created_with_the_same_secret(self, context: Context, tmp_path: Path) -> None:
        raw, target = tmp_path / "raw", tmp_path / "x.luks"
        raw.write_bytes(patchwork(65536))
        convert(context, ConvertRequest([str(raw)], str(target), "raw", "luks", ["key-secret=s1,iter-time=1"]))
        with context.open(str(target), options={"key-secret": "s1"}) as image:
            assert image.read_at(0, 65536) == raw.read_bytes()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"cipher-alg": "foo"}, "Parameter 'cipher-alg' does not accept value 'foo'"),
        ({"cipher-mode": "foo"}, "Parameter 'cipher-mode' does not accept value 'foo'"),
        ({"ivgen-alg": "foo"}, "Parameter 'ivgen-alg' does not accept value 'foo'"),
        ({"hash-alg": "foo"}, "Parameter 'hash-alg' does not accept value 'foo'"),
        ({"cipher-alg": "3des"}, "Algorithm '3des' not supported"),
        ({"cipher-alg": "serpent-256"}, "Algorithm 'serpent-256' not supported"),
        ({"ivgen-alg": "essiv", "ivgen-hash-alg": "sha512"}, "No AES cipher with key size 64 available"),
    ],
)
def test_creation_options_that_there_are_not(
    created: Callable[..., MemoryNode], values: dict[str, str], message: str
) -> None:
    with pytest.raises(ImageError, match=f"^{message}$"):
        created(values=values)


def test_absurd_iteration_time_is_refused(created: Callable[..., MemoryNode]) -> None:
    with pytest.raises(InvalidOption, match=r"^PBKDF iterations \d+ larger than 56000000$"):
        created(values={"iter-time": 99999999999})


def test_iteration_time_sets_the_iterations(
    created: Callable[..., MemoryNode], opened: Callable[..., LuksImage], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, int]] = []

    def fake(hash: str, length: int, milliseconds: int, *, share: int = 1) -> int:
        asked.append((milliseconds, share))
        return 2000 // share + length

    monkeypatch.setattr("diskwright_luks.volume.iterations_for", fake)
    header = opened(created(values={"iter-time": 77})).header
    assert asked == [(77, 8), (77, 1)]
    assert (header.digest_iterations, header.slots[0].iterations) == (270, 2064)


def test_calibration_grows_with_time() -> None:
    assert keys.iterations_for("sha256", 32, 0) == keys.MIN_ITERATIONS
    assert keys.iterations_for("sha256", 32, 1, share=1_000_000) == keys.MIN_ITERATIONS
    assert keys.iterations_for("sha256", 32, 50) > keys.MIN_ITERATIONS


def test_loading_the_library_does_not_count_as_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """It took as long as measuring, and a volume got ten thousand iterations where two million were due."""
    now = 0
    loaded = False

    def derive(hash: str, passphrase: bytes, salt: bytes, iterations: int, length: int) -> bytes:
        nonlocal now, loaded
        now += iterations * 250 + (0 if loaded else 30_000_000)
        loaded = True
        return bytes(length)

    monkeypatch.setattr(keys, "derive", derive)
    monkeypatch.setattr("time.thread_time_ns", lambda: now)
    assert keys.iterations_for("sha256", 32, 1000) == 4_000_000


def be32(value: int) -> bytes:
    return value.to_bytes(4, "big")


DAMAGES = [
    (0, b"XUKS", "Volume is not in LUKS format"),
    (6, b"\0\2", "LUKS version 2 is not supported"),
    (8, b"foo\0", "Algorithm 'foo' with key size 32 bytes not supported"),
    (8, b"serpent\0", "Algorithm 'serpent-256' not supported"),
    (8, b"a" * 32, "LUKS header cipher name is not NUL terminated"),
    (40, b"a" * 32, "LUKS header cipher mode is not NUL terminated"),
    (72, b"a" * 32, "LUKS header hash spec is not NUL terminated"),
    (40, b"xts" + bytes(10), "Unexpected cipher mode string format 'xts'"),
    (40, b"foo-plain64\0", "Cipher mode 'foo' not supported"),
    (40, b"xts-foo" + bytes(5), "IV generator 'foo' not supported"),
    (40, b"xts-essiv" + bytes(5), "Missing IV generator hash specification"),
    (40, b"xts-essiv:foo\0", "Hash algorithm 'foo' not supported"),
    (72, b"foo\0", "Hash algorithm 'foo' not supported"),
    (104, be32(7), "LUKS payload is overlapping with the header"),
    (104, be32(0xFFFFFFFF), "LUKS payload at offset 2199023255040 is behind the end of the file of 3117056 bytes"),
    (108, be32(63), "Algorithm 'aes' with key size 63 bytes not supported"),
    (108, be32(16), "Algorithm 'aes' with key size 8 bytes not supported"),
    (108, be32(0xFFFFFFFF), "Keyslot 0 is overlapping with the encrypted payload"),
    (112, bytes(20), "Invalid password, cannot unlock any keyslot"),
    (164, be32(0), "LUKS key iteration count is zero"),
    (164, be32(0xFFFFFFFF), "The key digest asks for 4294967295 iterations of PBKDF2, more than the limit of 70000000"),
    (208, be32(5), r"Keyslot 0 state \(active/disable\) is corrupted"),
    (208, be32(0xDEAD), "Invalid password, cannot unlock any keyslot"),
    (212, be32(0), "Keyslot 0 iteration count is zero"),
    (212, be32(0xFFFFFFFF), "Keyslot 0 asks for 4294967295 iterations of PBKDF2, more than the limit of 70000000"),
    (216, bytes(32), "Invalid password, cannot unlock any keyslot"),
    (248, be32(0), "Keyslot 0 is overlapping with the LUKS header"),
    (248, be32(504), "Keyslots 0 and 1 are overlapping in the header"),
    (252, be32(4001), r"Keyslot 0 is corrupted \(stripes 4001 != 4000\)"),
    (4096, bytes(512), "Invalid password, cannot unlock any keyslot"),
    *((256 + 48 * i, be32(1), rf"Keyslot {i + 1} state \(active/disable\) is corrupted") for i in range(7)),
    *((300 + 48 * i, be32(1), rf"Keyslot {i + 1} is corrupted \(stripes 1 != 4000\)") for i in range(7)),
]


@pytest.mark.parametrize(("offset", "data", "message"), DAMAGES)
def test_damaged_header(
    created: Callable[..., MemoryNode], opened: Callable[..., LuksImage], offset: int, data: bytes, message: str
) -> None:
    node = created()
    node.data[offset : offset + len(data)] = data
    with pytest.raises(ImageError, match=f"^{message}$"):
        opened(node)


@pytest.mark.parametrize(
    ("length", "message"),
    [
        (4, "Volume is not in LUKS format"),
        (8, "LUKS: header at offset 0, 592 bytes, is outside the file of 8 bytes"),
        (4096, "LUKS payload at offset 2068480 is behind the end of the file of 4096 bytes"),
        (PAYLOAD - 512, "LUKS payload at offset 2068480 is behind the end of the file of 2067968 bytes"),
    ],
)
def test_cut_off(
    created: Callable[..., MemoryNode], opened: Callable[..., LuksImage], length: int, message: str
) -> None:
    with pytest.raises(ImageError, match=f"^{message}$"):
        opened(MemoryNode(created().data[:length]))


def test_iteration_limit_can_be_set(created: Callable[..., MemoryNode], opened: Callable[..., LuksImage]) -> None:
    """A key of 64 bytes takes SHA-256 two hashes an iteration; the digest has the same 1000 iterations of one."""
    node = created()
    with pytest.raises(UnsupportedFeature, match="^The key digest asks for 1000 iterations of PBKDF2, more than the"):
        opened(node, max_iterations="999")
    with pytest.raises(UnsupportedFeature, match="^Keyslot 0 asks for 1000 .* with those before it more than the"):
        opened(node, max_iterations="2999")
    assert opened(node, max_iterations="3000").size == 1 << 20


@pytest.mark.parametrize(("hash", "weight"), [("md5", 8), ("sha1", 4), ("sha512", 3), ("ripemd160", 20)])
def test_iterations_count_for_the_time_they_take(
    created: Callable[..., MemoryNode], opened: Callable[..., LuksImage], hash: str, weight: int
) -> None:
    digest = {"md5": 4, "sha1": 1, "sha512": 3, "ripemd160": 5}[hash]
    node = created(values={"hash-alg": hash})
    with pytest.raises(UnsupportedFeature, match="Keyslot 0"):
        opened(node, max_iterations=str(1000 * (weight + digest) - 1))
    assert opened(node, max_iterations=str(1000 * (weight + digest))).size == 1 << 20


def test_all_keyslots_together_are_limited(
    created: Callable[..., MemoryNode], opened: Callable[..., LuksImage], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of eight keyslots asks for what one may ask for."""
    node = created(values={"cipher-alg": "aes-128"})
    for index in range(8):
        node.data[208 + 48 * index : 216 + 48 * index] = be32(0x00AC71F3) + be32(30_000_000)
    derived: list[int] = []

    def fake(hash: str, passphrase: bytes, salt: bytes, iterations: int, length: int) -> bytes:
        derived.append(iterations)
        return bytes(length)

    monkeypatch.setattr("diskwright_luks.volume.derive", fake)
    message = "^Keyslot 2 asks for 30000000 iterations of PBKDF2, with those before it more than the limit of 70000000$"
    with pytest.raises(UnsupportedFeature, match=message):
        opened(node)
    assert derived == [30_000_000, 1000, 30_000_000, 1000]


def test_changing_keyslots_is_limited_too(created: Callable[..., MemoryNode], opened: Callable[..., LuksImage]) -> None:
    image = opened(created(), writable=True, max_iterations="4000")
    with pytest.raises(UnsupportedFeature, match="^Keyslot 0 asks for 1000 .* with those before it"):
        image.amend({"state": "inactive", "old-secret": "s1"}, force=False)


def test_a_slot_that_asks_too_much_does_not_hide_others(
    context: Context, created: Callable[..., MemoryNode], opened: Callable[..., LuksImage]
) -> None:
    node = created()
    opened(node, writable=True).amend({"state": "active", "new-secret": "s1", "iter-time": 0}, force=False)
    node.data[212:216] = be32(0xFFFFFFFF)
    assert opened(node, "s1").size == 1 << 20


def test_probe_leaves_version_2_alone(context: Context) -> None:
    assert context.formats.probe(b"LUKS\xba\xbe\0\1" + bytes(600), "x") == "luks"
    assert context.formats.probe(b"LUKS\xba\xbe\0\2" + bytes(600), "x") == "raw"


def ours(*words: object) -> None:
    """Run our command line."""
    assert main([str(word) for word in words]) == 0


@pytest.mark.parametrize("size", [1, 1000, 1025])
def test_size_that_is_no_whole_sector(size: int, tmp_path: Path) -> None:
    """The file is as long as that of the real program, and both see the same disk."""
    created = ("create", "-q", "-f", "luks", "--object", SECRET, "-o", "key-secret=s0,iter-time=10")
    ours(*created, tmp_path / "ours", size)
    qemu_img(*created, tmp_path / "real", size)
    assert (tmp_path / "ours").stat().st_size == (tmp_path / "real").stat().st_size
    options = f"driver=luks,key-secret=s0,file.filename={tmp_path}/ours"
    reading = ("convert", "--object", SECRET, "--image-opts", options, "-O", "raw")
    ours(*reading, tmp_path / "a")
    qemu_img(*reading, tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert (tmp_path / "a").stat().st_size == -(-size // 512) * 512
