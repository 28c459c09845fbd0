"""Entry point ``luks``: what the core may ask of the format. Everything that takes time to load hides in functions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from diskwright.extent import Extent, ExtentTable
from diskwright.facts import Description, Finding, Measurement
from diskwright.hookspecs import CreateOptions, OpenOptions, ProbeHit, hookimpl
from diskwright.node import Image, Node
from diskwright.options import Option, OptionType

from .algorithms import CIPHERS, HASHES, IV_GENERATORS, MODES

if TYPE_CHECKING:
    from .image import LuksImage

SIGNATURE = b"LUKS\xba\xbe\x00\x01"


class LuksDriver:
    """LUKS version 1, as cryptsetup and QEMU write it: the whole disk encrypted, up to eight passphrases.

    :cvar shares_writers: others may write to the payload meanwhile; who changes keyslots asks to be alone.
    """

    shares_writers = True

    @hookimpl
    def probe(self, head: bytes, filename: str) -> ProbeHit | None:
        """Magic and version; version 2 is another format."""
        return ProbeHit("luks", score=100) if head.startswith(SIGNATURE) else None

    @hookimpl
    def runtime_options(self) -> Sequence[Option]:
        """The secret, and how long it may take to try it."""
        return [
            Option("key-secret", OptionType.STRING, "ID of the secret that provides the passphrase", strong=True),
            Option("max-iterations", OptionType.NUMBER, "Most PBKDF iterations, of SHA-256, to unlock with"),
        ]

    @hookimpl
    def child_roles(self) -> Sequence[str]:
        """Header and key material may be in a file of their own."""
        return ("header",)

    @hookimpl
    def open(self, source: Node, options: OpenOptions) -> Image:
        """Open and unlock; only the header and key material are read."""
        from .image import LuksImage

        return LuksImage(source, options)

    @hookimpl
    def block_status(self, image: Image, offset: int, length: int) -> Iterable[Extent | ExtentTable]:
        """All of it is encrypted."""
        return _own(image).map(offset, length)

    @hookimpl
    def describe(self, image: Image) -> Description:
        """Cipher and keyslots."""
        return _own(image).describe()

    @hookimpl
    def findings(self, image: Image) -> Iterable[Finding]:
        """Keyslots that nobody can open, or only with much patience, and names that are none."""
        return _own(image).findings()

    @hookimpl
    def creation_options(self) -> Sequence[Option]:
        """Size, secret, and the algorithms."""
        ciphers = tuple(CIPHERS)
        return [
            Option("size", OptionType.SIZE, "Virtual disk size"),
            Option(
                "key-secret", OptionType.STRING, "ID of the secret that provides the keyslot passphrase", strong=True
            ),
            Option("cipher-alg", OptionType.STRING, "Name of encryption cipher algorithm", choices=ciphers),
            Option("cipher-mode", OptionType.STRING, "Name of encryption cipher mode", choices=MODES),
            Option("ivgen-alg", OptionType.STRING, "Name of IV generator algorithm", choices=IV_GENERATORS),
            Option("ivgen-hash-alg", OptionType.STRING, "Name of IV generator hash algorithm", choices=HASHES),
            Option("hash-alg", OptionType.STRING, "Name of encryption hash algorithm", choices=HASHES),
            Option("iter-time", OptionType.NUMBER, "Time to spend in PBKDF in milliseconds"),
            Option("detached-header", OptionType.BOOL, "Create a detached LUKS header"),
        ]

    @hookimpl
    def needs_size(self, values: Mapping[str, Any]) -> bool:
        """Not a header without payload."""
        return not values.get("detached-header")

    @hookimpl
    def measure(self, size: int, values: Mapping[str, Any], secret: Callable[[str], bytes]) -> Measurement:
        """Header, key material and payload, whatever is in it."""
        from .create import measure

        return measure(size, values, secret)

    @hookimpl
    def create(self, target: Node, options: CreateOptions) -> bool:
        """Write header and key material."""
        from .create import create

        return create(target, options)

    @hookimpl
    def resize(self, image: Image, size: int, preallocation: str) -> bool:
        """Change the length of the file."""
        _own(image).resize(size, preallocation)
        return True

    @hookimpl
    def amend_options(self) -> Sequence[Option]:
        """What of the keyslots can be changed."""
        from .amend import amend_options

        return amend_options()

    @hookimpl
    def amend(self, image: Image, values: Mapping[str, Any], force: bool) -> bool:
        """Give out or take back a passphrase."""
        _own(image).amend(values, force=force)
        return True


def _own(image: Image) -> LuksImage:
    from .image import LuksImage

    if not isinstance(image, LuksImage):
        raise TypeError(f"{type(image).__name__} is not a LUKS image")
    return image
