"""Objects of every type that scripts may define: accepted and refused as the real qemu-img does."""

import ctypes
import json
import os
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from diskwright.errors import ImageError
from diskwright.objects import ObjectStore
from diskwright.objects.keyring import read_key
from diskwright.objects.kinds import KINDS
from diskwright.objects.store import object_help
from diskwright.objects.tls import Certificates, Credentials, SharedKey
from diskwright.testing import qemu_img

DEFINITIONS = [
    "tls-creds-anon,id=a",
    "tls-creds-anon,id=a,dir=nodir,endpoint=server",
    "tls-creds-anon,id=a,endpoint=foo",
    "tls-creds-anon,id=a,verify-peer=maybe",
    "tls-creds-anon,id=a,sanity-check=on",
    "tls-creds-psk,id=a",
    "tls-creds-psk,id=a,dir=nodir",
    "tls-creds-psk,id=a,dir=keys",
    "tls-creds-psk,id=a,dir=keys,endpoint=server",
    "tls-creds-psk,id=a,dir=keys,username=bob",
    "tls-creds-psk,id=a,dir=keys,username=broken",
    "tls-creds-psk,id=a,dir=keys,username=",
    "tls-creds-x509,id=a",
    "tls-creds-x509,id=a,dir=nodir",
    "tls-creds-x509,id=a,dir=keys/keys.psk",
    "tls-creds-x509,id=a,dir=junk",
    "tls-creds-x509,id=a,dir=junk,sanity-check=no",
    "tls-creds-x509,id=a,dir=certificates",
    "tls-creds-x509,id=a,dir=certificates,endpoint=server",
    "secret_keyring,id=a",
    "secret_keyring,id=a,serial=x",
    "secret_keyring,id=a,serial=99999999999",
    "secret_keyring,id=a,serial=0",
    "secret_keyring,id=a,serial=5,data=x",
    "authz-list,id=a",
    "authz-list,id=a,policy=foo",
    "authz-list,id=a,rules.0.match=fred,rules.0.policy=allow,rules.0.format=glob",
    "authz-list,id=a,rules.0.match=fred",
    "authz-list,id=a,rules.0.match=fred,rules.0.policy=allow,rules.0.format=x",
    "authz-list,id=a,rules.0.match=fred,rules.0.policy=allow,rules.0.foo=1",
    "authz-list,id=a,rules=5",
    "authz-list,id=a,rules.0=5",
    "authz-list,id=a,rules.1.match=5",
    "authz-list,id=a,rules.x.match=5",
    "authz-simple,id=a",
    "authz-simple,id=a,identity=x",
    "authz-list-file,id=a,filename=x",
    "authz-listfile,id=a,filename=x",
    "authz-pam,id=a,service=x",
    "iothread,id=a,poll-max-ns=5",
    "memory-backend-ram,id=a,size=1M",
    "rng-random,id=a",
    "main-loop,id=a,aio-max-batch=5",
    "main-loop,id=a,aio-max-batch=-5",
    "main-loop,id=a,aio-max-batch=x",
    "main-loop,id=a,thread-pool-min=5,thread-pool-max=3",
    "main-loop,id=a,thread-pool-max=0",
    "main-loop,id=a,poll-max-ns=4",
    "pr-manager-helper,id=a",
    "pr-manager-helper,id=a,path=nosuch",
    "thread-context,id=a",
    "thread-context,id=a,cpu-affinity=0",
    "thread-context,id=a,cpu-affinity.0=0",
    "thread-context,id=a,cpu-affinity.0=x",
    "thread-context,id=a,cpu-affinity.1=0",
    "thread-context,id=a,cpu-affinity.0=0,node-affinity.0=0",
    "secret,id=a,data=x,format=hex",
    '{"qom-type":"authz-list","id":"x","rules":[{"match":"a","policy":"allow"}]}',
    '{"qom-type":"tls-creds-anon","id":"x","verify-peer":true}',
    '{"qom-type":"tls-creds-anon","id":"x","verify-peer":"on"}',
    '{"qom-type":"secret_keyring","id":"x","serial":"5"}',
    '{"qom-type":"thread-context","id":"x","cpu-affinity":[0]}',
    '{"qom-type":"throttle-group","id":"x","limits":{"iops-total":5}}',
    '{"qom-type":5,"id":"x"}',
    '{"id":"x"}',
]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with an image and with what credentials may be in."""
    place = tmp_path_factory.mktemp("objects")
    (place / "disk").write_bytes(bytes(512))
    for name in ("keys", "junk", "certificates"):
        (place / name).mkdir()
    (place / "keys/keys.psk").write_text("bob:0123456789abcdef\nqemu:00112233\nbroken:zz\n")
    (place / "junk/ca-cert.pem").write_text("junk\n")
    openssl = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "10", "-subj", "/CN=authority"]
    try:
        subprocess.run(
            [*openssl, "-keyout", place / "certificates/ca-key.pem", "-out", place / "certificates/ca-cert.pem"],
            check=True,
            capture_output=True,
        )
    except FileNotFoundError:
        pytest.skip("openssl is not installed")
    return place


@pytest.mark.parametrize("text", DEFINITIONS)
def test_as_qemu_img_has_it(text: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same definitions are refused, in the same words."""
    monkeypatch.chdir(place)
    try:
        ObjectStore().add(text)
        ours = ""
    except ImageError as error:
        ours = f"qemu-img: {error}\n"
    assert ours == qemu_img("info", "--object", text, "disk", check=False).stderr


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_help_of_a_type(kind: str, place: Path) -> None:
    assert f"{object_help(f'{kind},help')}\n" == qemu_img("info", "--object", f"{kind},help", check=False).stdout


def test_help_is_printed_and_nothing_done(capsys: pytest.CaptureFixture[str]) -> None:
    from diskwright.cli import main

    assert main(["info", "--object", "help"]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert listed[0] == "List of user creatable objects:"
    assert [line.strip() for line in listed[1:]] == sorted(KINDS)
    assert object_help("nosuch,help") == "\n".join(listed)
    assert object_help("secret,id=s0,data=help") is None
    assert object_help('{"qom-type": "help"}') is None


def test_credentials_are_kept(place: Path) -> None:
    objects = ObjectStore()
    objects.add("tls-creds-anon,id=a,endpoint=server,priority=NORMAL")
    objects.add(f"tls-creds-psk,id=p,dir={place}/keys,username=bob")
    objects.add(f"tls-creds-x509,id=x,dir={place}/certificates,verify-peer=off")
    assert objects.get("tls-creds-anon", "a") == Credentials(server=True, verify_peer=True, priority="NORMAL")
    shared: SharedKey = objects.get("tls-creds-psk", "p")
    assert shared.key == bytes.fromhex("0123456789abcdef")
    assert "0123" not in repr(shared)
    certificates: Certificates = objects.get("tls-creds-x509", "x")
    assert certificates.context().check_hostname is False
    assert len(certificates.context().get_ca_certs()) == 1


def test_certificate_has_to_fit_its_key(place: Path, tmp_path: Path) -> None:
    for name, text in (("ca-cert", "ca-cert"), ("client-cert", "ca-cert"), ("client-key", "ca-cert")):
        (tmp_path / f"{name}.pem").write_bytes((place / f"certificates/{text}.pem").read_bytes())
    with pytest.raises(ImageError, match="Cannot load certificate '.*client-cert.pem' & key"):
        ObjectStore().add(f"tls-creds-x509,id=x,dir={tmp_path}")
    (tmp_path / "client-key.pem").write_bytes((place / "certificates/ca-key.pem").read_bytes())
    ObjectStore().add(f"tls-creds-x509,id=x,dir={tmp_path}")


def test_reservation_helper_is_connected_to(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listening:
        listening.bind(str(tmp_path / "helper"))
        listening.listen()
        ObjectStore().add(f"pr-manager-helper,id=a,path={tmp_path}/helper")


ADD_KEY, KEYCTL = 248, 250
USER_KEYRING, INVALIDATE = -4, 21


@pytest.fixture
def key() -> Iterator[Callable[[bytes], int]]:
    """Puts something into the kernel's keyring of this user; the number of the key."""
    libc: Any = ctypes.CDLL(None, use_errno=True)
    serials: list[int] = []

    def add(content: bytes) -> int:
        if os.uname().machine != "x86_64":
            pytest.skip("the number of the system call is that of another machine")
        name = f"diskwright-test-{os.getpid()}-{len(serials)}".encode()
        serial: int = libc.syscall(ADD_KEY, b"user", name, content, len(content), ctypes.c_int(USER_KEYRING))
        if serial < 0:
            pytest.skip(f"no key can be added: {os.strerror(ctypes.get_errno())}")
        serials.append(serial)
        return serial

    yield add
    for serial in serials:
        libc.syscall(KEYCTL, INVALIDATE, ctypes.c_int(serial))


class TestKeyring:
    """Secrets that the kernel keeps."""

    def test_content(self, key: Callable[[bytes], int]) -> None:
        serial = key(b"kept\0by the kernel")
        assert read_key(serial) == b"kept\0by the kernel"
        objects = ObjectStore()
        objects.add(f"secret_keyring,id=s0,serial={serial}")
        objects.add(json.dumps({"qom-type": "secret_keyring", "id": "s1", "serial": key(b"aGk="), "format": "base64"}))
        assert objects.secret("s0") == b"kept\0by the kernel"
        assert objects.secret("s1") == b"hi"

    def test_no_such_key(self) -> None:
        with pytest.raises(ImageError, match=r"^Unable to read serial key 7ffffff0: \w"):
            ObjectStore().add("secret_keyring,id=s0,serial=0x7ffffff0")

    def test_opens_an_image_of_the_real_one(self, key: Callable[[bytes], int], tmp_path: Path) -> None:
        from diskwright.cli import main

        image, copy = tmp_path / "image.luks", tmp_path / "copy"
        serial = key(b"secret of the kernel")
        secret = ("--object", f"secret_keyring,id=s0,serial={serial}")
        qemu_img("create", "-q", "-f", "luks", *secret, "-o", "key-secret=s0,iter-time=10", image, "1M")
        options = f"driver=luks,key-secret=s0,file.filename={image}"
        assert main(["convert", *secret, "--image-opts", options, "-O", "raw", str(copy)]) == 0
        assert copy.stat().st_size == 1 << 20
