"""Reading guest bytes without a map: small reads, and compressed clusters."""

from __future__ import annotations

from typing import TYPE_CHECKING

from diskwright.errors import InvalidImage

from . import codec, layout

if TYPE_CHECKING:
    from .image import Qcow2Image

MAX_SIMPLE_STEPS = 32
"""Reads of more clusters (subclusters with extended L2 entries) are better mapped in bulk."""


def read_simply(image: Qcow2Image, offset: int, view: memoryview) -> bool:
    """Fill ``view`` step by step, if the range is short and has nothing out of the ordinary in it.

    :returns: whether it was; if not, nothing has been read.
    """
    header = image.header
    end = offset + len(view)
    step = header.subcluster_size
    if header.has_data_file or len(view) > MAX_SIMPLE_STEPS * step or end > header.disk_size:
        return False
    pieces: list[tuple[int, int, int]] = []
    position = offset
    while position < end:
        host = _host_offset(image, position)
        if host is None:
            return False
        stop = min(end, (position | (step - 1)) + 1)
        if pieces and host and pieces[-1][2] and pieces[-1][2] + position - pieces[-1][0] == host:
            pieces[-1] = (pieces[-1][0], stop, pieces[-1][2])
        else:
            pieces.append((position, stop, host))
        position = stop
    cipher = image.cipher
    for start, stop, host in pieces:
        part = view[start - offset : stop - offset]
        if host and cipher is not None:
            cipher.read(start, host, part)
        elif host:
            image.data_node.read_into(host, part)
        else:
            part[:] = bytes(len(part))
    return True


def _host_offset(image: Qcow2Image, position: int) -> int | None:
    """Host offset of a guest byte, 0 if it reads as zero, ``None`` if it takes more to find out."""
    header = image.header
    cluster = position >> header.cluster_bits
    table = image.l2.get(cluster // header.l2_entries)
    if table is None:
        return 0 if image.backing is None else None
    if header.extended_l2:
        entry, bitmap = table[cluster % header.l2_entries].tolist()
        subcluster = position // header.subcluster_size % layout.SUBCLUSTERS
        allocated = bitmap >> subcluster & 1
        zero = bitmap >> layout.SUBCLUSTERS_ZERO_SHIFT + subcluster & 1
    else:
        entry = int(table[cluster % header.l2_entries])
        allocated, zero = int(entry != 0), 0
    host = entry & layout.OFFSET_MASK
    inside = position & (header.cluster_size - 1)
    if entry & ~(layout.OFFSET_MASK | layout.OFLAG_COPIED) or host & (header.cluster_size - 1) or zero:
        return None
    if not allocated:
        return 0 if image.backing is None else None
    return host + inside if 0 < host < image.data_node.size - inside else None


def entry_of(image: Qcow2Image, cluster: int) -> int:
    """The L2 entry of a guest cluster, without subcluster bitmap; 0 if it has none."""
    header = image.header
    l1_index, l2_index = divmod(cluster, header.l2_entries)
    table = image.l2.get(l1_index)
    if table is None:
        return 0
    return int(table[l2_index, 0] if header.extended_l2 else table[l2_index])


def read_compressed(image: Qcow2Image, offset: int, view: memoryview) -> None:
    """Fill ``view`` from compressed clusters.

    :raises InvalidImage: the compressed data is damaged or not in the file.
    """
    header = image.header
    position, end = offset, offset + len(view)
    while position < end:
        stop = min(end, (position | (header.cluster_size - 1)) + 1)
        part = view[position - offset : stop - offset]
        entry = entry_of(image, position >> header.cluster_bits)
        if entry & layout.OFLAG_COMPRESSED:
            start = position & (header.cluster_size - 1)
            part[:] = memoryview(read_compressed_cluster(image, entry))[start : start + len(part)]
        else:  # rewritten since the map was made
            image.read_into(position, part)
        position = stop


def read_compressed_cluster(image: Qcow2Image, entry: int) -> bytes | bytearray:
    """The guest bytes of one compressed cluster.

    :param entry: its L2 entry.
    :raises InvalidImage: the compressed data is damaged or not in the file.
    """
    header = image.header
    offset, length = layout.compressed_location(entry, header.cluster_bits)
    # The length is counted in sectors: of the last one, only the beginning need be there.
    missing = max(0, offset + length - image.file.size)
    if missing >= min(length, layout.COMPRESSED_SECTOR):
        raise image.reader.error(f"Compressed cluster at offset {offset:#x} is behind the end of the file", offset)
    data = bytearray(length - missing)
    image.file.note_event("read_compressed")
    image.file.read_into(offset, data)
    try:
        return codec.decompress(header.compression_type, data, header.cluster_size)
    except InvalidImage as error:
        raise image.reader.error(f"Compressed cluster at offset {offset:#x} is damaged: {error}", offset) from None
