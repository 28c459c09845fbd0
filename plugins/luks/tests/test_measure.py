"""How large LUKS images will be: the same as qemu-img says, and as they are then."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from diskwright.cli import main
from diskwright.context import Context
from diskwright.engine.creation import CreateRequest, create
from diskwright.testing import qemu_img

SECRET = "secret,id=s0,data=abc"

Measure = Callable[..., tuple[int, Any]]


@pytest.fixture
def measured(capsys: pytest.CaptureFixture[str]) -> Measure:
    """Exit code of ``measure`` with these arguments, and the figures or the message."""

    def call(*arguments: str) -> tuple[int, Any]:
        code = main(["measure", "--output=json", "--object", SECRET, *arguments], program="qemu-img")
        out, err = capsys.readouterr()
        return code, json.loads(out) if code == 0 else err

    return call


CIPHERS = [
    f"cipher-alg={cipher},cipher-mode={mode}"
    for cipher in ("aes-128", "aes-192", "aes-256")
    for mode in ("xts", "cbc", "ecb", "ctr")
    if (cipher, mode == "xts") != ("aes-192", False)  # qemu-img fails an assertion
]
HASHES = ["hash-alg=sha512", "hash-alg=md5,ivgen-alg=essiv", "cipher-mode=cbc,ivgen-alg=essiv,ivgen-hash-alg=md5"]


@pytest.mark.parametrize(
    ("format", "options"),
    [("luks", text) for text in ("", *CIPHERS, *HASHES)] + [("qcow2", text) for text in CIPHERS[::4]],
)
def test_as_qemu_img_says(measured: Measure, format: str, options: str) -> None:
    prefix = "" if format == "luks" else "encrypt."
    given = [f"key-secret=s0,iter-time=10{',' * bool(options)}{options}"]
    text = ",".join(prefix + option for option in given[0].split(","))
    if format == "qcow2":
        text = "encrypt.format=luks," + text
    size = "1234567"
    expected = json.loads(
        qemu_img("measure", "--output=json", "--object", SECRET, "-O", format, "-o", text, "--size", size).stdout
    )
    assert measured("-O", format, "-o", text, "--size", size) == (0, expected)


def test_of_a_source(measured: Measure, tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(bytes(3_000_001))
    given = ["-O", "luks", "-o", "key-secret=s0,iter-time=10,preallocation=full", "-f", "raw", str(path)]
    expected = json.loads(qemu_img("measure", "--output=json", "--object", SECRET, *given).stdout)
    assert measured(*given) == (0, expected)


@pytest.mark.parametrize("cipher", ["aes-128", "aes-192", "aes-256"])
@pytest.mark.parametrize("mode", ["xts", "cbc"])
@pytest.mark.parametrize("detached", [False, True])
def test_as_large_as_the_file_is_then(
    context: Context, measured: Measure, tmp_path: Path, cipher: str, mode: str, detached: bool
) -> None:
    values = {"key-secret": "s0", "cipher-alg": cipher, "cipher-mode": mode, "detached-header": detached}
    create(context, CreateRequest(str(tmp_path / "x"), "luks", 1 << 20, values | {"iter-time": 0}))
    text = ",".join(f"{name}={'on' if value is True else value or 'off'}" for name, value in values.items())
    size = (tmp_path / "x").stat().st_size
    assert measured("-O", "luks", "-o", text, "--size", "1M") == (0, {"required": size, "fully-allocated": size})


@pytest.mark.parametrize(
    ("format", "options", "message"),
    [
        ("luks", "", "Parameter 'key-secret' is required for cipher"),
        ("luks", "key-secret=nope", "No secret with id 'nope'"),
        ("luks", "key-secret=s0,cipher-alg=3des", "Algorithm '3des' not supported"),
        ("luks", "key-secret=s0,cipher-alg=foo", "Parameter 'cipher-alg' does not accept value 'foo'"),
        (
            "luks",
            "key-secret=s0,ivgen-alg=essiv,ivgen-hash-alg=sha512",
            "No AES cipher with key size 64 available",
        ),
        ("qcow2", "encrypt.format=luks", "Parameter 'encrypt.key-secret' is required for cipher"),
        (
            "qcow2",
            "encrypt.format=luks,encrypt.key-secret=s0,encrypt.cipher-alg=3des",
            "Algorithm '3des' not supported",
        ),
    ],
)
def test_what_cannot_be_created_is_not_measured(measured: Measure, format: str, options: str, message: str) -> None:
    given = ["-o", options] if options else []
    assert measured("-O", format, *given, "--size", "1M") == (1, f"qemu-img: {message}\n")


def test_too_large(measured: Measure) -> None:
    code, message = measured("-O", "luks", "-o", "key-secret=s0", "--size", str(2**63 - 512))
    assert (code, message) == (1, "qemu-img: The requested file size is too large\n")
