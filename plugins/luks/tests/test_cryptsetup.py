"""cryptsetup, the other program that writes LUKS: it accepts our images, and we read its."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from diskwright.context import Context
from diskwright.errors import ImageError
from diskwright.testing import MemoryNode
from diskwright_luks.ciphers import sector_cipher
from diskwright_luks.image import LuksImage
from diskwright_luks.keys import MIN_ITERATIONS

TIMEOUT = 60
"""Seconds."""


def cryptsetup(
    *arguments: object, passphrase: bytes = b"", code: int = 0, files: Mapping[Path, bytes] | None = None
) -> str:
    """Run it and return what it prints; the test is skipped where it is not installed, or needs the kernel's help.

    :param passphrase: on standard input.
    :param files: key files to write before.
    """
    program = shutil.which("cryptsetup", path="/usr/sbin:/sbin:/usr/bin:/bin")
    if program is None:
        pytest.skip("cryptsetup is not installed (Debian: cryptsetup-bin)")
    for path, content in (files or {}).items():
        path.write_bytes(content)
    command = [program, "--batch-mode", *map(str, arguments)]
    done = subprocess.run(command, input=passphrase, capture_output=True, check=False, timeout=TIMEOUT)
    errors = done.stderr.decode()
    if "device-mapper" in errors or "kernel" in errors:
        pytest.skip(f"cryptsetup cannot do this here: {errors.splitlines()[0]}")
    assert done.returncode == code, (command, errors)
    return done.stdout.decode()


OURS = [
    {},
    {"cipher-alg": "aes-128", "hash-alg": "sha1", "ivgen-alg": "plain"},
    {"cipher-alg": "aes-128", "cipher-mode": "cbc", "ivgen-alg": "essiv", "hash-alg": "sha512"},
    {"cipher-mode": "cbc", "ivgen-alg": "essiv", "hash-alg": "ripemd160"},
    {"cipher-mode": "cbc", "ivgen-alg": "plain64", "hash-alg": "sha384"},
    {"cipher-alg": "aes-192", "cipher-mode": "cbc", "ivgen-alg": "plain"},
    {"cipher-alg": "aes-192", "hash-alg": "sha224"},
]


def named(values: Mapping[str, str]) -> str:
    return ",".join(f"{name}={value}" for name, value in values.items()) or "default"


@pytest.mark.parametrize("values", OURS, ids=named)
def test_our_headers_are_understood(created: Callable[..., MemoryNode], tmp_path: Path, values: dict[str, str]) -> None:
    path = tmp_path / "ours"
    node = created(values=values)
    path.write_bytes(node.data)
    dump = {
        name.strip(): value.strip()
        for name, _, value in (line.partition(":") for line in cryptsetup("luksDump", path).splitlines())
    }
    mode = f"{values.get('cipher-mode', 'xts')}-{values.get('ivgen-alg', 'plain64')}"
    bits = int(values.get("cipher-alg", "aes-256").removeprefix("aes-")) * (2 if mode.startswith("xts") else 1)
    assert (dump["Version"], dump["Cipher name"], dump["MK bits"]) == ("1", "aes", str(bits))
    assert dump["Cipher mode"] == mode + (":sha256" if "essiv" in mode else "")
    assert dump["Hash spec"] == values.get("hash-alg", "sha256")
    assert (dump["MK iterations"], dump["Key Slot 0"]) == (str(MIN_ITERATIONS), "ENABLED")


@pytest.mark.parametrize("values", OURS, ids=named)
def test_our_passphrases_are_accepted(
    created: Callable[..., MemoryNode], opened: Callable[..., LuksImage], tmp_path: Path, values: dict[str, str]
) -> None:
    """Also with keys of 192 bits in CBC, whose material does not end with a sector (qemu-img fails an assertion)."""
    path = tmp_path / "ours"
    node = created(values=values)
    opened(node, writable=True).amend({"state": "active", "new-secret": "s1", "iter-time": 0}, force=False)
    path.write_bytes(node.data)
    for passphrase, code in ((b"abc", 0), (b"def", 0), (b"ghi", 2)):
        cryptsetup("open", "--test-passphrase", "--key-file", "-", path, passphrase=passphrase, code=code)


THEIRS = [
    ("aes-xts-plain64", 512, "sha256"),
    ("aes-xts-plain64", 256, "sha1"),
    ("aes-xts-plain64", 384, "sha512"),
    ("aes-xts-plain", 512, "sha384"),
    ("aes-cbc-essiv:sha256", 256, "ripemd160"),
    ("aes-cbc-essiv:sha256", 128, "sha224"),
    ("aes-cbc-plain64", 192, "sha256"),
]


@pytest.fixture
def theirs(tmp_path: Path) -> Callable[..., Path]:
    """Makes a volume with cryptsetup: cipher, bits of the key, hash. Its passphrase is ``abc``."""

    def make(cipher: str, bits: int, hash: str, *options: object) -> Path:
        path = tmp_path / "theirs"
        path.write_bytes(bytes(4 << 20))
        algorithms = ["--cipher", cipher, "--key-size", bits, "--hash", hash, "--pbkdf-force-iterations", 1000]
        command = ["luksFormat", "--type", "luks1", *algorithms, *options, path, "--key-file", "-"]
        cryptsetup(*command, passphrase=b"abc")
        return path

    return make


@pytest.mark.parametrize(("cipher", "bits", "hash"), THEIRS)
def test_we_open_their_volumes(
    context: Context, theirs: Callable[..., Path], tmp_path: Path, cipher: str, bits: int, hash: str
) -> None:
    """With a key of our choice the payload is known too: it reads as that key decrypts zeros."""
    key = bytes(range(bits // 8))
    key_file = tmp_path / "volume.key"
    key_file.write_bytes(key)
    path = theirs(cipher, bits, hash, "--volume-key-file", key_file)
    with context.open(str(path), options={"key-secret": "s0"}) as image:
        assert isinstance(image, LuksImage)
        assert image.size == (4 << 20) - image.header.payload_offset
        family, mode, generator = cipher.split("-")
        ivgen, _, ivgen_hash = generator.partition(":")
        expected = bytearray(4096)
        sector_cipher(family, mode, ivgen, ivgen_hash or None, key).decrypt(3, expected, expected)
        assert image.read_at(3 * 512, 4096) == expected
    with pytest.raises(ImageError, match="Invalid password, cannot unlock any keyslot"):
        context.open(str(path), options={"key-secret": "s1"})


def test_all_of_their_keyslots(context: Context, theirs: Callable[..., Path], tmp_path: Path) -> None:
    """Eight passphrases, of which each opens; and none that has been taken back."""
    path = theirs("aes-xts-plain64", 256, "sha256")
    current, new = tmp_path / "current", tmp_path / "new"
    for index in range(1, 8):
        files = {current: b"abc", new: f"passphrase {index}".encode()}
        cryptsetup("luksAddKey", "--pbkdf-force-iterations", 1000, "--key-file", current, path, new, files=files)
        context.objects.add(f"secret,id=key{index},data=passphrase {index}")
    cryptsetup("luksKillSlot", "--key-file", current, path, 3)
    for index in range(1, 8):
        if index == 3:
            with pytest.raises(ImageError, match="Invalid password"):
                context.open(str(path), options={"key-secret": f"key{index}"})
        else:
            with context.open(str(path), options={"key-secret": f"key{index}"}) as image:
                assert image.size > 0


def test_they_open_what_we_added(context: Context, theirs: Callable[..., Path]) -> None:
    path = theirs("aes-cbc-essiv:sha256", 256, "sha1")
    with context.open(str(path), writable=True, options={"key-secret": "s0"}) as image:
        assert isinstance(image, LuksImage)
        image.amend({"state": "active", "new-secret": "s1", "iter-time": 0}, force=False)
        image.amend({"state": "inactive", "old-secret": "s0"}, force=False)
    for passphrase, code in ((b"abc", 2), (b"def", 0)):
        cryptsetup("open", "--test-passphrase", "--key-file", "-", path, passphrase=passphrase, code=code)
    assert "Key Slot 1: ENABLED" in cryptsetup("luksDump", path)


def test_a_header_of_theirs_without_payload(context: Context, theirs: Callable[..., Path], tmp_path: Path) -> None:
    """``--header`` of cryptsetup is a detached header too."""
    header, payload = tmp_path / "header", tmp_path / "payload"
    payload.write_bytes(bytes(1 << 20))
    header.write_bytes(bytes(4 << 20))
    command = ["luksFormat", "--type", "luks1", "--pbkdf-force-iterations", 1000, "--header", header, payload]
    cryptsetup(*command, "--key-file", "-", passphrase=b"abc")
    options = {"key-secret": "s0", "header.filename": str(header)}
    with context.open(str(payload), "luks", options=options) as image:
        assert isinstance(image, LuksImage)
        assert (image.size, image.header.payload_offset, image.detached) == (1 << 20, 0, True)
