"""LUKS1 on-disk structures, big-endian. Source: LUKS1 On-Disk Format Specification, version 1.2.3.

A volume is the header, the key material of eight keyslots, and the payload, all aligned to sectors of 512 bytes.
"""

from __future__ import annotations

from construct import Array, Bytes, Const, Default, Int16ub, Int32ub, Struct

MAGIC = b"LUKS\xba\xbe"
VERSION = 1
SLOTS = 8
STRIPES = 4000
SLOT_ENABLED = 0x00AC71F3
SLOT_DISABLED = 0x0000DEAD
SALT_SIZE = 32
DIGEST_SIZE = 20
KEY_MATERIAL_SECTOR = 8
"""Where the key material of the first keyslot may begin."""

KEY_SLOT = Struct(
    "active" / Int32ub * "SLOT_ENABLED or SLOT_DISABLED",
    "iterations" / Int32ub,
    "salt" / Bytes(SALT_SIZE),
    "key_material_offset" / Int32ub * "sectors",
    "stripes" / Default(Int32ub, STRIPES),
)

HEADER = Struct(
    "magic" / Const(MAGIC),
    "version" / Const(VERSION, Int16ub),
    "cipher_name" / Bytes(32),
    "cipher_mode" / Bytes(32),
    "hash_spec" / Bytes(32),
    "payload_offset" / Int32ub * "sectors",
    "key_bytes" / Int32ub,
    "mk_digest" / Bytes(DIGEST_SIZE),
    "mk_digest_salt" / Bytes(SALT_SIZE),
    "mk_digest_iterations" / Int32ub,
    "uuid" / Bytes(40),
    "slots" / Array(SLOTS, KEY_SLOT),
)
SLOT_TABLE = HEADER.sizeof() - SLOTS * KEY_SLOT.sizeof()
"""Offset of the first keyslot in the header, bytes."""
