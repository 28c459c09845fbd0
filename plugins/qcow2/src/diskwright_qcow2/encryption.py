"""What the options say about encryption, and the package that does it, which need not be installed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from diskwright.errors import InvalidImage, InvalidOption, UnsupportedFeature, UnsupportedOperation
from diskwright.node import SECTOR

from .layout import CryptMethod

if TYPE_CHECKING:
    from collections.abc import Callable

    from diskwright.bounded import BoundedReader
    from diskwright_luks.header import Header as LuksHeader
    from diskwright_luks.volume import Parameters

    from .header import Header
    from .image import Qcow2Image

PREFIX = "encrypt."
"""What the names of all options about encryption begin with."""
SECRET_NEEDED = "Parameter 'encrypt.key-secret' is required for cipher"  # noqa: S105 - a message

FORMATS = {"aes": CryptMethod.AES, "luks": CryptMethod.LUKS}
_NAMES = {method: name for name, method in FORMATS.items()}
_FORMAT, _SECRET = PREFIX + "format", PREFIX + "key-secret"


def require_package() -> None:
    """Make sure that the ciphers are there.

    :raises UnsupportedFeature: they are not; the message names the package that has them.
    """
    try:
        import diskwright_luks  # noqa: F401 - found or not, that is the question
    except ImportError:
        raise UnsupportedFeature(
            "qcow2: encryption needs the package diskwright-luks", hint="pip install 'diskwright-qcow2[encryption]'"
        ) from None


def format_name(header: Header) -> str | None:
    """``aes``, ``luks``, or ``None`` for an image that is not encrypted."""
    return _NAMES.get(header.crypt_method)


def describe(image: Qcow2Image) -> dict[str, Any]:
    """What ``info`` shows of the encryption; only the format's name without the package that knows LUKS."""
    volume = image.crypt.volume if image.crypt is not None else None
    luks = volume.header if volume is not None else image.luks
    return {"format": format_name(image.header)} | (luks.facts() if luks is not None else {})


def require_format(header: Header, values: Mapping[str, Any]) -> None:
    """Compare what the caller says of the image with its header.

    :param values: runtime options.
    :raises InvalidOption: they contradict each other.
    """
    told, found = values.get(_FORMAT), format_name(header)
    if told is None or told == found:
        return
    if found is None:
        raise InvalidOption(f"No encryption in image header, but options specified format '{told}'")
    raise InvalidOption(f"Header reported '{found}' encryption format but options specify '{told}'")


def refuse_compression(image: Qcow2Image) -> None:
    """Nothing may be stored compressed in an encrypted image: it would stand there in the clear.

    :raises UnsupportedOperation: the image is encrypted.
    """
    if image.encrypted:
        raise UnsupportedOperation("Compression and encryption not supported at the same time")


def secret_id(values: Mapping[str, Any]) -> str:
    """The id of the secret that the options name.

    :raises InvalidOption: they do not.
    """
    if _SECRET not in values:
        raise InvalidOption(SECRET_NEEDED)
    return str(values[_SECRET])


def read_luks_header(reader: BoundedReader, header: Header) -> LuksHeader | None:
    """The LUKS header inside an image; ``None`` if there is none, or without the package that knows LUKS.

    :raises InvalidImage: it breaks the specification, or its key material is not in the clusters reserved for it.
    """
    if header.crypto is None:
        return None
    try:
        require_package()
    except UnsupportedFeature:
        return None
    from diskwright_luks.header import read_header

    reader.require(header.crypto.offset, header.crypto.length, "encryption header")
    luks = read_header(reader, header.crypto.offset)
    for index, slot in enumerate(luks.slots):
        end = slot.sector * SECTOR + -(-luks.material_size // SECTOR) * SECTOR
        if end > header.crypto.length:
            raise InvalidImage(
                f"Keyslot {index} is outside the encryption header of {header.crypto.length} bytes",
                filename=reader.node.filename,
                offset=header.crypto.offset,
            )
    return luks


class NewEncryption(NamedTuple):
    """How a new image is to be encrypted.

    :ivar luks: the parameters of its LUKS volume, ``None`` for AES.
    """

    values: Mapping[str, Any]
    method: CryptMethod
    luks: Parameters | None

    @classmethod
    def from_options(cls, values: Mapping[str, Any]) -> NewEncryption | None:
        """Check creation options; ``None`` if they do not ask for encryption.

        :raises InvalidOption: they contradict each other, or one has a value that there is not.
        """
        given = [name for name in values if name.startswith(PREFIX)]
        name = values.get(_FORMAT)
        if values.get("encryption"):
            if name is not None:
                raise InvalidOption("'encrypt.format' and its alias 'encryption' can't be used at the same time")
            name = "aes"
        if name is None:
            if given:
                raise InvalidOption(f"Parameter '{_FORMAT}' is missing")
            return None
        if name not in FORMATS:
            raise InvalidOption(f"Parameter 'format' does not accept value '{name}'")
        require_package()
        if name == "luks":
            from diskwright_luks.volume import Parameters

            secret_id(values)
            parameters = Parameters.from_options(values, prefix=PREFIX)
            parameters.require()
            return cls(values, CryptMethod.LUKS, parameters)
        for option in given:
            if option not in (_FORMAT, _SECRET):
                raise InvalidOption(f"Parameter '{option}' is unexpected")
        return cls(values, CryptMethod.AES, None)

    @property
    def header_size(self) -> int:
        """Bytes that the encryption keeps in the image besides the guest's clusters."""
        return self.luks.header_size if self.luks else 0

    def build(self, secret: Callable[[str], bytes]) -> bytes:
        """What stands at the start of these bytes; the rest may hold anything.

        :param secret: gives the content of a secret object.
        :raises ImageError: there is no such secret, or it is no text.
        """
        from diskwright_luks.volume import format_volume, passphrase_of

        passphrase = passphrase_of(secret, secret_id(self.values))
        return format_volume(self.luks, passphrase) if self.luks else b""


def amend_encryption(image: Qcow2Image, values: Mapping[str, Any], force: bool) -> None:
    """Change keyslots as options for amending say; other options, and none, are no reason to do anything.

    :param values: all options by their full names, e.g. ``encrypt.state``.
    :param force: overwrite a passphrase in use, erase the last one.
    :raises InvalidOption: they contradict each other, or the image has no keyslots.
    """
    own = {name.removeprefix(PREFIX): value for name, value in values.items() if name.startswith(PREFIX)}
    if not own:
        return
    if not image.encrypted:
        raise InvalidOption("Can't amend encryption options - encryption not present")
    if image.crypt is None or image.crypt.volume is None:
        raise InvalidOption("Only LUKS encryption options can be amended")
    from diskwright_luks.amend import amend

    with image.lock:
        image.flush()
        amend(image.crypt.volume, own, image.crypt.secret, force=force)
