"""Credentials for encrypted connections: certificates, a shared key, or none. They are looked at when they are defined,
and kept for the protocols that connect.

Source: qemu's documentation of TLS setup for the names of the files; the messages are those of qemu-img 10.0.2.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from ..errors import ImageError, InvalidOption, reason_of
from ..options import parse_bool
from ..record import Record

if TYPE_CHECKING:
    import ssl

MAX_KEY_FILE = 1 << 20
"""Bytes of a file with shared keys."""
DEFAULT_USER = "qemu"

Lookup = Callable[[str], bytes]


class Credentials(Record):
    """What all kinds have in common.

    :ivar server: whether they are for whoever is connected to.
    :ivar verify_peer: whether the other side has to prove who it is.
    :ivar priority: which ciphers are wanted, in the syntax of GnuTLS; ``None`` for the usual ones.
    """

    server: bool
    verify_peer: bool
    priority: str | None


class SharedKey(Credentials):
    """A key that both sides have.

    :ivar username: who the client says it is.
    :ivar key: the client's key; ``None`` on the side of the server, which has those of all users in :attr:`path`.
    """

    path: str
    username: str
    key: bytes | None

    def __repr__(self) -> str:
        return f"SharedKey({self.username!r}, ...)"


class Certificates(Credentials):
    """Certificates in files.

    :ivar authority: path of the certificates of those whose signature is trusted.
    :ivar certificate: path of the own certificate, ``None`` without one.
    :ivar key: path of its key.
    :ivar password: gives the password of the key, ``None`` if it has none.
    """

    authority: str
    certificate: str | None
    key: str | None
    password: Callable[[], bytes] | None

    def context(self) -> ssl.SSLContext:
        """Settings for a connection, from the files as they are now.

        :raises ImageError: a file cannot be used.
        """
        import ssl

        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if self.server else ssl.PROTOCOL_TLS_CLIENT)
        if self.server and self.verify_peer:
            context.verify_mode = ssl.CERT_REQUIRED
        elif not self.server and not self.verify_peer:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        try:
            context.load_verify_locations(self.authority)
        except (OSError, ValueError):
            raise ImageError(f"Unable to import CA certificate list {self.authority}") from None
        if self.certificate is not None and self.key is not None:
            try:
                # Without a password an encrypted key must not ask for one at the terminal.
                context.load_cert_chain(self.certificate, self.key, self.password or (lambda: b""))
            except (OSError, ValueError) as error:
                reason = getattr(error, "reason", None) or error
                raise ImageError(f"Cannot load certificate '{self.certificate}' & key '{self.key}': {reason}") from None
        return context


def make_anonymous(values: Mapping[str, str], lookup: Lookup) -> Credentials:
    """Encryption without proof of who is there."""
    return Credentials(*_common(values))


def make_shared_key(values: Mapping[str, str], lookup: Lookup) -> SharedKey:
    """The key of a user, or on the side of the server the file with those of all users.

    :raises ImageError: the file cannot be read, or has no key of that user.
    """
    server, verify_peer, priority = _common(values)
    path = _required(_directory(values), "keys.psk")
    username = values.get("username", DEFAULT_USER)
    key = None if server else _key_of(path, username)
    return SharedKey(server, verify_peer, priority, path, username, key)


def _key_of(path: str, username: str) -> bytes:
    try:
        with open(path, "rb") as file:
            lines = file.read(MAX_KEY_FILE).splitlines()
    except OSError as error:
        raise ImageError(f"Unable to read {path}: {reason_of(error)}") from None
    for line in lines:
        user, colon, key = line.partition(b":")
        if colon and user == os.fsencode(username):
            try:
                return bytes.fromhex(key.decode("ascii"))
            except ValueError:
                raise ImageError("Cannot set PSK client credentials: Error in parsing.") from None
    raise ImageError(f"Username {username} not found in PSK file {path}")


def make_certificates(values: Mapping[str, str], lookup: Lookup) -> Certificates:
    """Certificates from the files of a directory; unless ``sanity-check`` is off, they have to be usable.

    Whether they are still valid, and for this purpose, is seen when a connection is made.

    :raises ImageError: a file is missing or cannot be used.
    """
    server, verify_peer, priority = _common(values)
    directory = _directory(values)
    side = "server" if server else "client"
    authority = _required(directory, "ca-cert.pem")
    names = f"{side}-cert.pem", f"{side}-key.pem"
    # A client need not say who it is.
    certificate, key = (_required(directory, name) if server else _present(directory, name) for name in names)
    secret = values.get("passwordid")
    password = None if secret is None else (lambda: lookup(secret))
    made = Certificates(server, verify_peer, priority, authority, certificate, key, password)
    if parse_bool("sanity-check", values.get("sanity-check", "on")):
        made.context()
    return made


def _common(values: Mapping[str, str]) -> tuple[bool, bool, str | None]:
    server = values.get("endpoint", "client") == "server"
    return server, parse_bool("verify-peer", values.get("verify-peer", "on")), values.get("priority")


def _directory(values: Mapping[str, str]) -> str:
    if "dir" not in values:
        raise InvalidOption("Missing 'dir' property value")
    return values["dir"]


def _required(directory: str, name: str) -> str:
    """The path of a file that has to be there and readable."""
    path = os.path.join(directory, name)
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK))
    except OSError as error:
        raise ImageError(f"Unable to access credentials {path}: {reason_of(error)}") from None
    return path


def _present(directory: str, name: str) -> str | None:
    """The path of a file, ``None`` if there is none."""
    return _required(directory, name) if os.path.lexists(os.path.join(directory, name)) else None
