"""The types of objects there are, and what their definitions may hold.

Source: qemu ``qapi/qom.json``, ``qapi/crypto.json``, ``qapi/authz.json``; which types qemu-img can make, and what it
says of the others, was seen with version 10.0.2.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any, TypeAlias

from ..errors import InvalidOption
from ..record import Record
from . import throttle_options
from .fields import Field, integers

Lookup: TypeAlias = Callable[[str], bytes]
"""Gives the content of a secret."""


class Kind(Record):
    """A type of objects.

    :ivar fields: what a definition may hold besides type and id.
    :ivar maker: ``module:function`` in this package: makes an object of a definition, given as text by name, and of a
        :data:`Lookup`.
    """

    fields: Sequence[Field]
    maker: str = "kinds:make_nothing"

    def make(self, values: Mapping[str, str], lookup: Lookup) -> Any:
        """Make an object of a definition that has been checked.

        :raises ImageError: the values contradict each other, or what they name is not there or not fit.
        """
        module, _, function = self.maker.partition(":")
        return getattr(import_module(f".{module}", __package__), function)(values, lookup)


def make_nothing(values: Mapping[str, str], lookup: Lookup) -> None:
    """For what is to be accepted and has no effect here."""


def make_main_loop(values: Mapping[str, str], lookup: Lookup) -> None:
    """What QEMU has event loops for, our threads do by themselves; but the values have to make sense.

    :raises InvalidOption: they do not.
    """
    numbers = {name: int(text, 0) for name, text in values.items()}
    for name, number in numbers.items():
        if number < 0:
            raise InvalidOption(f"{name} value must be in range [0, {2**63 - 1}]")
    most = numbers.get("thread-pool-max", 64)
    if not most or numbers.get("thread-pool-min", 0) > most:
        raise InvalidOption("bad thread-pool-min/thread-pool-max values")


def make_thread_context(values: Mapping[str, str], lookup: Lookup) -> None:
    """Where QEMU's helper threads run, of which there are none here.

    :raises InvalidOption: processors and memory nodes are both given.
    """
    if len({name.partition(".")[0] for name in values}) > 1:
        raise InvalidOption("Mixing CPU and node affinity not supported")


def make_persistent_reservations(values: Mapping[str, str], lookup: Lookup) -> None:
    """A helper that reserves disks for running machines: nothing here needs it, but it has to be there.

    :raises InvalidOption: nobody listens.
    """
    import socket

    from ..errors import reason_of

    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        try:
            connection.connect(values["path"])
        except OSError as error:
            raise InvalidOption(f"Failed to connect to '{values['path']}': {reason_of(error)}") from None


_ENCODING = (
    Field("format", "QCryptoSecretFormat", choices=("raw", "base64")),
    Field("iv"),
    Field("keyid"),
)
_TLS = (
    Field("dir"),
    Field("endpoint", "QCryptoTLSCredsEndpoint", choices=("client", "server")),
    Field("priority"),
    Field("verify-peer", "bool", "boolean"),
)
_RULE = (
    Field("match", required=True),
    Field("policy", choices=("deny", "allow"), required=True),
    Field("format", choices=("exact", "glob")),
)
_NUMBERS = integers("")

KINDS: Mapping[str, Kind] = {
    "authz-list": Kind(
        (
            Field("policy", "QAuthZListPolicy", choices=("deny", "allow")),
            Field("rules", "QAuthZListRule", "array", items=_RULE),
        )
    ),
    "authz-simple": Kind((Field("identity", required=True),)),
    "main-loop": Kind(integers("aio-max-batch", "thread-pool-min", "thread-pool-max"), "kinds:make_main_loop"),
    "pr-manager-helper": Kind((Field("path", required=True),), "kinds:make_persistent_reservations"),
    "secret": Kind((Field("data"), Field("file"), *_ENCODING), "secret:make_secret"),
    "secret_keyring": Kind(
        (Field("serial", "int32_t", "integer", required=True), *_ENCODING), "keyring:make_keyring_secret"
    ),
    "thread-context": Kind(
        (
            Field("cpu-affinity", "int", "array", items=_NUMBERS),
            Field("node-affinity", "int", "array", items=_NUMBERS),
        ),
        "kinds:make_thread_context",
    ),
    "throttle-group": Kind(throttle_options.FIELDS, "throttle:make_throttle_group"),
    "tls-creds-anon": Kind(_TLS, "tls:make_anonymous"),
    "tls-creds-psk": Kind((*_TLS, Field("username")), "tls:make_shared_key"),
    "tls-creds-x509": Kind(
        (*_TLS, Field("passwordid"), Field("sanity-check", "bool", "boolean")), "tls:make_certificates"
    ),
}
"""The types of objects by name."""

_FOR_MACHINES = """
    authz-listfile authz-pam can-bus can-host-socketcan colo-compare cryptodev-backend cryptodev-backend-builtin
    cryptodev-backend-lkcf cryptodev-vhost-user dbus-vmstate filter-buffer filter-dump filter-mirror filter-redirector
    filter-replay filter-rewriter input-barrier input-linux iommufd iothread memory-backend-epc memory-backend-file
    memory-backend-memfd memory-backend-ram memory-backend-shm pef-guest qtest rng-builtin rng-egd rng-random
    s390-pv-guest sev-guest sev-snp-guest tls-cipher-suites x-remote-object x-vfio-user-server
"""
FOR_MACHINES = frozenset(_FOR_MACHINES.split())
"""Types that QEMU knows for running machines and that image tools refuse with words of their own."""
