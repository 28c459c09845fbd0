"""New LUKS images."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from diskwright.errors import InvalidOption, UnsupportedOperation
from diskwright.facts import Measurement
from diskwright.hookspecs import CreateOptions
from diskwright.node import Node, Truncatable, Writable
from diskwright.sizes import MAX_INT64

from .volume import Parameters, format_volume, passphrase_of


def create(target: Node, options: CreateOptions) -> bool:
    """Write header and key material, and give the file its length.

    The payload is not written: what a new image reads as is the decryption of the zeros that are there.

    :raises InvalidOption: the secret is missing, or an option has a value that there is not.
    """
    parameters, passphrase = _told(options.values, options.secret)
    if not isinstance(target, Writable):
        raise UnsupportedOperation(f"'{options.filename}' cannot be written")
    start = format_volume(parameters, passphrase)
    # Not rounded to sectors, as QEMU has it: the file may end within the last one.
    size = _file_size(parameters, options.get("size", options.size))
    if isinstance(target, Truncatable):
        preallocation = options.get("preallocation", "off")
        # There is no metadata to preallocate but the header, which is always there.
        target.truncate(size, "off" if preallocation == "metadata" else preallocation)
    elif target.size < size:
        raise InvalidOption(f"'{options.filename}' has {target.size} bytes and cannot be made larger")
    target.write_at(0, start)
    return True


def measure(size: int, values: Mapping[str, Any], secret: Callable[[str], bytes]) -> Measurement:
    """How large the file of an image would be: the payload has its full length from the start.

    :param size: of the payload, bytes; it is not rounded.
    :raises InvalidOption: the secret is missing, or an option has a value that there is not.
    """
    parameters, _ = _told(values, secret)
    parameters.require()
    whole = _file_size(parameters, size)
    return Measurement(required=whole, fully_allocated=whole)


def _told(values: Mapping[str, Any], secret: Callable[[str], bytes]) -> tuple[Parameters, bytes]:
    """Parameters and passphrase from creation options."""
    parameters = Parameters.from_options(values)
    if "key-secret" not in values:
        raise InvalidOption("Parameter 'key-secret' is required for cipher")
    return parameters, passphrase_of(secret, values["key-secret"])


def _file_size(parameters: Parameters, size: int) -> int:
    """Bytes of a file with a payload of that size; of the header alone if that is to be detached."""
    whole = parameters.header_size + (0 if parameters.detached else size)
    if whole > MAX_INT64:
        raise InvalidOption("The requested file size is too large")
    return whole
