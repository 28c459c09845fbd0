"""New LUKS images."""

from __future__ import annotations

from diskwright.errors import InvalidOption, UnsupportedOperation
from diskwright.hookspecs import CreateOptions
from diskwright.node import Node, Truncatable, Writable
from diskwright.sizes import MAX_INT64

from .volume import Parameters, format_volume, passphrase_of


def create(target: Node, options: CreateOptions) -> bool:
    """Write header and key material, and give the file its length.

    The payload is not written: what a new image reads as is the decryption of the zeros that are there.

    :raises InvalidOption: the secret is missing, or an option has a value that there is not.
    """
    parameters = Parameters.from_options(options.values)
    if "key-secret" not in options.values:
        raise InvalidOption("Parameter 'key-secret' is required for cipher")
    passphrase = passphrase_of(options.secret, options.values["key-secret"])
    if not isinstance(target, Writable):
        raise UnsupportedOperation(f"'{options.filename}' cannot be written")
    start = format_volume(parameters, passphrase)
    size = parameters.header_size + (0 if parameters.detached else options.size)
    if size > MAX_INT64:
        raise InvalidOption("The requested file size is too large")
    if isinstance(target, Truncatable):
        preallocation = options.get("preallocation", "off")
        # There is no metadata to preallocate but the header, which is always there.
        target.truncate(size, "off" if preallocation == "metadata" else preallocation)
    elif target.size < size:
        raise InvalidOption(f"'{options.filename}' has {target.size} bytes and cannot be made larger")
    target.write_at(0, start)
    return True
