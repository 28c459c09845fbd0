"""Entry points ``blkdebug``, ``blkverify``, ``blklogwrites`` and ``quorum``.

Source: QEMU's manual and the behaviour of qemu-img for names, defaults and messages.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from diskwright.errors import InvalidOption
from diskwright.hookspecs import FilterOptions, hookimpl
from diskwright.node import Image, Node
from diskwright.options import Option, OptionType

LIMITS = ("align", "max-transfer", "opt-write-zero", "max-write-zero", "opt-discard", "max-discard")
INJECT_KEYS = ("event", "state", "iotype", "errno", "sector", "once", "immediately")
STATE_KEYS = ("event", "state", "new_state")


def _rule(section: str, keys: Sequence[str]) -> list[Option]:
    """The options of rules; their values are read by the rules' own parser, as those of a configuration file are."""
    names = [f"{section}{index}.{key}" for index in ("", ".*") for key in keys]
    return [Option(name, OptionType.STRING, "Part of a rule", strong=True) for name in names]


class BlkdebugDriver:
    """Lets requests fail by rules."""

    @hookimpl
    def child_roles(self) -> Sequence[str]:
        """The node that is read and written."""
        return ["image"]

    @hookimpl
    def runtime_options(self) -> Sequence[Option]:
        """Rules and limits."""
        return [
            Option("config", OptionType.STRING, "File with rules", strong=True),
            *(Option(name, OptionType.SIZE, "Limit of requests", strong=True) for name in LIMITS),
            *_rule("inject-error", INJECT_KEYS),
            *_rule("set-state", STATE_KEYS),
            Option("take-child-perms.*", OptionType.STRING, "Something more that is said to be done to the image"),
            Option("unshare-child-perms.*", OptionType.STRING, "Something that others may not do to the image"),
        ]

    @hookimpl
    def tree_of_name(self, filename: str) -> Mapping[str, Any]:
        """``blkdebug:CONFIG:IMAGE``; the configuration may be empty."""
        config, colon, image = filename.removeprefix("blkdebug:").partition(":")
        if not colon:
            raise InvalidOption("blkdebug requires both config file and image path")
        named = {"config": config} if config else {}
        return {**named, "image.filename": image}

    @hookimpl
    def open(self, children: Mapping[str, Node], options: FilterOptions) -> Image:
        """See :class:`.blkdebug.Blkdebug`."""
        from .blkdebug import Blkdebug

        return Blkdebug(children["image"], options)


class BlkverifyDriver:
    """Compares what two nodes read as, and writes to both."""

    @hookimpl
    def child_roles(self) -> Sequence[str]:
        """What is trusted, and what is tested."""
        return ["raw", "test"]

    @hookimpl
    def tree_of_name(self, filename: str) -> Mapping[str, Any]:
        """``blkverify:RAW:TEST``."""
        raw, colon, test = filename.removeprefix("blkverify:").partition(":")
        if not colon:
            raise InvalidOption("blkverify requires raw copy and original image path")
        return {"raw.filename": raw, "test.filename": test}

    @hookimpl
    def open(self, children: Mapping[str, Node], options: FilterOptions) -> Image:
        """See :class:`.blkverify.Blkverify`."""
        from .blkverify import Blkverify

        return Blkverify(children["raw"], children["test"], writable=options.writable)


class BlklogwritesDriver:
    """Logs all writes in a second node."""

    @hookimpl
    def child_roles(self) -> Sequence[str]:
        """The disk, and its log."""
        return ["file", "log"]

    @hookimpl
    def runtime_options(self) -> Sequence[Option]:
        """How to log."""
        return [
            Option("log-append", OptionType.BOOL, "Append to an existing log"),
            Option("log-sector-size", OptionType.SIZE, "Unit of the log, bytes"),
            Option("log-super-update-interval", OptionType.NUMBER, "Entries after which the superblock is written"),
        ]

    @hookimpl
    def open(self, children: Mapping[str, Node], options: FilterOptions) -> Image:
        """See :class:`.blklogwrites.Blklogwrites`."""
        from .blklogwrites import Blklogwrites

        return Blklogwrites(children["file"], children["log"], options)


class QuorumDriver:
    """Lets several nodes vote on what is read, and writes to all."""

    @hookimpl
    def child_roles(self) -> Sequence[str]:
        """Those who vote."""
        return ["children.*"]

    @hookimpl
    def runtime_options(self) -> Sequence[Option]:
        """How to vote."""
        return [
            Option("vote-threshold", OptionType.STRING, "Children that must agree", strong=True),
            Option("blkverify", OptionType.BOOL, "End with an error at the first difference", strong=True),
            Option("rewrite-corrupted", OptionType.BOOL, "Correct the children that were outvoted", strong=True),
            Option("read-pattern", OptionType.STRING, "Ask all, or one after the other", strong=True),
        ]

    @hookimpl
    def open(self, children: Mapping[str, Node], options: FilterOptions) -> Image:
        """See :class:`.quorum.Quorum`."""
        from .quorum import Quorum

        return Quorum(list(children.values()), options)
