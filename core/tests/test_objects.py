"""Secrets: how they are defined, what is refused, and that they show up nowhere."""

import base64
import json
import os
import pickle
import threading
from pathlib import Path

import pytest

from diskwright.context import Context
from diskwright.errors import ImageError
from diskwright.hookspecs import no_secrets
from diskwright.objects import ObjectStore, Secret

KEY = bytes(range(32))
IV = bytes(range(16))


def store(*definitions: str) -> ObjectStore:
    objects = ObjectStore()
    for text in definitions:
        objects.add(text)
    return objects


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("secret,id=s0,data=abc", b"abc"),
        ("qom-type=secret,id=s0,data=abc", b"abc"),
        ("id=s0,qom-type=secret,data=abc", b"abc"),
        ("secret,id=s0,data=a,,b=c", b"a,b=c"),
        ("secret,id=s0,data=", b""),
        ("secret,id=s0,data=\u00fc", "\u00fc".encode()),
        ("secret,id=s0,data=aGVsbG8=,format=base64", b"hello"),
        ("secret,id=s0,data=aGVs\nbG8=,format=base64", b"hello"),
        ("secret,id=s0,data=x,iv=unused", b"x"),
        ('{"qom-type": "secret", "id": "s0", "data": "a,b"}', b"a,b"),
    ],
)
def test_forms(text: str, value: bytes) -> None:
    assert store(text).secret("s0") == value


def test_file_is_taken_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "key,file"
    path.write_bytes(b"pass\xff\n")
    assert store(f"secret,id=s0,file={str(path).replace(',', ',,')}").secret("s0") == b"pass\xff\n"


def test_file_may_be_a_pipe() -> None:
    reading, writing = os.pipe()
    threading.Thread(target=lambda: (os.write(writing, b"piped"), os.close(writing))).start()
    try:
        assert store(f"secret,id=s0,file=/dev/fd/{reading}").secret("s0") == b"piped"
    finally:
        os.close(reading)


def test_endless_file_is_refused() -> None:
    with pytest.raises(ImageError, match="^Unable to read /dev/zero: a secret has at most 1048576 bytes$"):
        store("secret,id=s0,file=/dev/zero")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("secret,data=a", "Parameter 'id' is missing"),
        ("id=s0,data=a", "Parameter 'qom-type' is missing"),
        ("foo,id=s0,bar=x", "Parameter 'qom-type' does not accept value 'foo'"),
        ("secret,id=1a,data=a", "Parameter 'id' expects an identifier"),
        ("secret,id=s0", "Either 'file' or 'data' must be provided"),
        ("secret,id=s0,data=a,file=b", "'file' and 'data' are mutually exclusive"),
        ("secret,id=s0,file=/nonexistent", "Unable to read /nonexistent: No such file or directory"),
        ('{"qom-type": "secret", "id": "s0", "file": "a\\u0000b"}', "A file name cannot contain a null character"),
        ("secret,id=s0,data=a,format=foo", "Parameter 'format' does not accept value 'foo'"),
        ("secret,id=s0,data=@@,format=base64", "Base64 data contains invalid characters"),
        ("secret,id=s0,data=YWE,format=base64", "Base64 data is incomplete"),
        ("secret,id=s0,bar=x,data=a", "Parameter 'bar' is unexpected"),
        ("secret,id=s0,data=YWE=,keyid=s1,iv=x", "No secret with id 's1'"),
        ('{"qom-type": "secret", "id": "s0", "data": 5}', "Invalid parameter type for 'data', expected: string"),
        ('{"qom-type": "secret", "id": "s0", "bar": "x"}', "Parameter 'bar' is unexpected"),
        ('{"qom-type": "secret"', "JSON parse error in the definition of an object"),
        ('{"a":' * 100_000, "JSON parse error in the definition of an object"),
    ],
)
def test_refused(text: str, message: str) -> None:
    with pytest.raises(ImageError) as caught:
        store(text)
    assert str(caught.value) == message


def test_each_id_once() -> None:
    with pytest.raises(ImageError, match=r"^attempt to add duplicate property 's0' to object \(type 'container'\)$"):
        store("secret,id=s0,data=a", "secret,id=s0,data=b")


class TestEncrypted:
    """Secrets that are encrypted with another one."""

    def padded(self, value: bytes) -> bytes:
        count = 16 - len(value) % 16
        return self.cbc(value + bytes([count]) * count)

    def cbc(self, blocks: bytes) -> bytes:
        algorithms = pytest.importorskip("cryptography.hazmat.primitives.ciphers.algorithms")
        from cryptography.hazmat.primitives.ciphers import Cipher, modes

        encryptor = Cipher(algorithms.AES(KEY), modes.CBC(IV)).encryptor()
        return encryptor.update(blocks) + encryptor.finalize()

    def encrypted(self, value: bytes, **changed: str) -> str:
        return self.definition(self.padded(value), **changed)

    def definition(self, content: bytes, **changed: str) -> str:
        text = {
            "qom-type": "secret",
            "id": "s0",
            "data": base64.b64encode(content).decode(),
            "format": "base64",
            "keyid": "k",
            "iv": base64.b64encode(IV).decode(),
        }
        return json.dumps({name: value for name, value in (text | changed).items() if value != "-"})

    def key(self, value: bytes = KEY) -> str:
        return f"secret,id=k,format=base64,data={base64.b64encode(value).decode()}"

    @pytest.mark.parametrize("value", [b"", b"abc", bytes(16), b"x" * 100])
    def test_decrypted(self, value: bytes) -> None:
        assert store(self.key(), self.encrypted(value)).secret("s0") == value

    def test_raw_file(self, tmp_path: Path) -> None:
        path = tmp_path / "encrypted"
        path.write_bytes(self.padded(b"abc"))
        text = f"secret,id=s0,file={path},keyid=k,iv={base64.b64encode(IV).decode()}"
        assert store(self.key(), text).secret("s0") == b"abc"

    @pytest.mark.parametrize(
        ("changed", "message"),
        [
            ({"iv": "-"}, "IV is required to decrypt secret"),
            ({"iv": "YWE="}, "IV should be 16 bytes in length not 2"),
            ({"iv": "@@"}, "Base64 data contains invalid characters"),
            ({"data": "YWE="}, "Length 2 must be a multiple of block size 16"),
            ({"keyid": "short"}, "Key should be 32 bytes in length"),
        ],
    )
    def test_refused(self, changed: dict[str, str], message: str) -> None:
        with pytest.raises(ImageError) as caught:
            store(self.key(), "secret,id=short,data=abc", self.encrypted(b"abc", **changed))
        assert str(caught.value) == message

    @pytest.mark.parametrize("last", [0, 17, 255])
    def test_wrong_padding(self, last: int) -> None:
        with pytest.raises(
            ImageError, match=rf"^Incorrect number of padding bytes \({last}\) found on decrypted data$"
        ):
            store(self.key(), self.definition(self.cbc(bytes(15) + bytes([last]))))


class TestDiscretion:
    """What a secret is appears in no message."""

    @pytest.mark.parametrize(
        "text",
        [
            "secret,id=s0,data=hunter2,",
            "secret,id=s0,data=part,hunter2",
            "secret,id=s0,data=part,hunter2=x",
            "secret,id=s0,data=hunter2,file=x",
            "secret,id=s0,data=hunter2@,format=base64",
            '{"qom-type":"secret","id":"s0","data":"hunter2"',
            "secret,id=1,data=hunter2",
            "foo,id=s0,data=hunter2",
        ],
    )
    def test_messages(self, text: str) -> None:
        with pytest.raises(ImageError) as caught:
            store(text)
        assert "hunter2" not in f"{caught.value} {caught.value.hint}"

    def test_representations(self) -> None:
        secret = Secret(b"hunter2")
        assert "hunter2" not in f"{secret} {secret!r} {store('secret,id=s0,data=hunter2').__dict__}"
        with pytest.raises(TypeError):
            pickle.dumps(secret)


def test_a_context_has_its_own_objects() -> None:
    context = Context()
    context.objects.add("secret,id=s0,data=abc")
    assert context.objects.secret("s0") == b"abc"
    with pytest.raises(ImageError, match="^No secret with id 's0'$"):
        Context().objects.secret("s0")
    with pytest.raises(ImageError, match="^No secret with id 's0'$"):
        no_secrets("s0")
