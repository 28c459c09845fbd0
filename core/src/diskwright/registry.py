"""Loading drivers and calling them: stevedore finds (see :mod:`.discovery`), pluggy calls.

A driver is loaded when it is first named; only probing, and listing what there is, load them all. Each loaded driver is
a pluggy plugin under its own name, so that other plugins can wrap its hooks.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from .discovery import ALIASES, entry_points
from .errors import ImageError, UnknownFormat, UnsupportedOperation
from .known import ALIASES as KNOWN_ALIASES
from .known import did_you_mean
from .tracing import DRIVER_LOAD

if TYPE_CHECKING:
    import pluggy

    from .discovery import EntryPoint
    from .extent import Extent, ExtentTable
    from .hookspecs import ProbeHit
    from .node import BlockStatus, Node

PACKAGES = {
    "blkdebug": "diskwright-debug",
    "blklogwrites": "diskwright-debug",
    "blkverify": "diskwright-debug",
    "bochs": "diskwright-bochs",
    "cloop": "diskwright-cloop",
    "compress": "diskwright-filters",
    "copy-on-read": "diskwright-filters",
    "dmg": "diskwright-dmg",
    "file": "diskwright-file",
    "host_device": "diskwright-file",
    "luks": "diskwright-luks",
    "nbd": "diskwright-nbd",
    "null-aio": "diskwright-null",
    "null-co": "diskwright-null",
    "parallels": "diskwright-parallels",
    "preallocate": "diskwright-filters",
    "qcow": "diskwright-qcow",
    "qcow2": "diskwright-qcow2",
    "qed": "diskwright-qed",
    "quorum": "diskwright-debug",
    "raw": "diskwright-raw",
    "throttle": "diskwright-filters",
    "vdi": "diskwright-vdi",
    "vhdx": "diskwright-vhdx",
    "vmdk": "diskwright-vmdk",
    "vpc": "diskwright-vpc",
    "vvfat": "diskwright-vvfat",
}
"""Which package has a driver that is not installed; used for advice only."""


SIGNATURES: dict[str, tuple[int, bytes]] = {
    "bochs": (0, b"Bochs Virtual HD Image"),
    "cloop": (0, b"#!/bin/sh\n#V2.0 Format\nmodprobe cloop"),
    "luks": (0, b"LUKS\xba\xbe\0\1"),
    "parallels": (0, b"WithouFreSpacExt"),
    "qcow": (0, b"QFI\xfb\0\0\0\1"),
    "qcow2": (0, b"QFI\xfb"),
    "qed": (0, b"QED\0"),
    "vdi": (0x40, b"\x7f\x10\xda\xbe"),
    "vhdx": (0, b"vhdxfile"),
    "vmdk": (0, b"KDMV"),
    "vpc": (0, b"conectix"),
}
"""Offset and bytes by which a format is recognised whose driver is not installed: it must not pass as raw."""


class Registry:
    """The drivers of one kind.

    :param group: the entry point group that drivers of this kind are in.
    :param unknown: message for a name that no driver has; ``{}`` stands for the name.
    """

    def __init__(self, group: str, unknown: str = "Unknown driver '{}'") -> None:
        self.group = group
        self._unknown = unknown
        self._lock = threading.RLock()
        self._manager: pluggy.PluginManager | None = None
        self._drivers: dict[str, object] = {}
        self._found: dict[str, list[EntryPoint]] = {}
        self._abilities: dict[str, set[str]] = {}
        self._all_loaded = False

    @property
    def manager(self) -> pluggy.PluginManager:
        """The plugin manager; register a plugin of hook wrappers here to watch or veto what drivers do."""
        if self._manager is None:
            from .plugging import DriverManager

            self._manager = DriverManager(self.group)
        return self._manager

    def _points(self, suffix: str = "") -> list[EntryPoint]:
        """The entry points of the group, or of one that goes with it; looked up once, as they are asked for often."""
        group = self.group + suffix
        if group not in self._found:
            self._found[group] = entry_points(group)
        return self._found[group]

    def register(self, name: str, driver: object) -> None:
        """Add a driver object; entry points need not know it.

        :raises ImageError: it implements a hook that does not exist, or in the wrong way.
        """
        import pluggy

        with self._lock:
            try:
                self.manager.register(driver, name=name)
                self.manager.check_pending()
            except (pluggy.PluginValidationError, ValueError) as error:
                if self.manager.get_plugin(name) is driver:
                    self.manager.unregister(driver)
                raise ImageError(f"Driver '{name}' does not fit this version of diskwright: {error}") from error
            self._drivers[name] = driver
            self._abilities[name] = {caller.name for caller in self.manager.get_hookcallers(driver) or ()}

    def load(self, name: str) -> object:
        """The driver of that name.

        :raises UnknownFormat: there is none; the hint names a package that has it.
        :raises ImageError: there are several, or it is broken.
        """
        with self._lock:
            proper = self.proper_name(name)
            driver = self._drivers.get(proper)
            if driver is None:
                driver = self._find(proper, name)
                self.register(proper, driver)
                DRIVER_LOAD(self.group, proper)
            return driver

    def proper_name(self, name: str) -> str:
        """The name of the driver that a name stands for, which may be one of its other names.

        Images and messages say this one. A driver that has a name itself comes before another one's further name.
        """
        if name in self._drivers or any(point.name == name for point in self._points()):
            return name
        declared = {point.name: point.value for point in self._points(ALIASES)}
        return declared.get(name) or KNOWN_ALIASES.get(name, name)

    def _find(self, name: str, given: str) -> object:
        """:param given: what the user calls it."""
        found = [point for point in self._points() if point.name == name]
        if not found:
            raise UnknownFormat(self._unknown.format(given), hint=install_hint(name) or self._similar(given))
        if len(found) > 1:
            places = " and ".join(point.value for point in found)
            raise ImageError(f"Several installed packages provide the driver '{name}': {places}")
        try:
            driver: object = found[0].load()()
        except Exception as error:
            raise ImageError(f"Driver '{name}' cannot be loaded: {error}") from error
        return driver

    def _similar(self, name: str) -> str:
        """Advice for a name that no driver has: the one that was probably meant."""
        return did_you_mean(name, self.installed())

    def installed(self) -> set[str]:
        """The names of all drivers that are installed; they are not loaded."""
        return {*self._drivers, *(point.name for point in self._points())}

    def knows(self, name: str) -> bool:
        """Whether a driver of that name is installed; it is not loaded."""
        return self.proper_name(name) in self.installed()

    def load_all(self) -> dict[str, object]:
        """All drivers by name. One that is broken is left out, and who names it is told why: it must not take the
        others with it.
        """
        with self._lock:
            if not self._all_loaded:
                for name in sorted({point.name for point in self._points()}):
                    with suppress(ImageError):
                        self.load(name)
                self._all_loaded = True
            return dict(self._drivers)

    def names(self) -> list[str]:
        """The names of all usable drivers, sorted."""
        return sorted(self.load_all())

    def has(self, hook: str, name: str) -> bool:
        """Whether the driver implements a hook: that is what a capability is. One that is not here has none."""
        try:
            return hook in self._abilities_of(name)
        except UnknownFormat:
            return False

    def _abilities_of(self, name: str) -> set[str]:
        """The hooks that a driver implements; raises what :meth:`load` does."""
        self.load(name)
        return self._abilities[self.proper_name(name)]

    def call(self, hook: str, name: str, /, **arguments: Any) -> Any:
        """Call a hook of one driver.

        :raises UnknownFormat: there is no such driver.
        :raises UnsupportedOperation: it does not implement the hook.
        """
        if hook not in self._abilities_of(name):
            raise UnsupportedOperation(f"Driver '{name}' does not support {hook.replace('_', ' ')}")
        return self._caller(hook, name)(**arguments)

    def _caller(self, hook: str, name: str) -> Callable[..., Any]:
        # Made anew for each call: a cached one would let drivers answer that were loaded after it was made.
        proper = self.proper_name(name)
        others = [driver for other, driver in self._drivers.items() if other != proper]
        return self.manager.subset_hook_caller(hook, others)

    def block_status(self, name: str) -> BlockStatus | None:
        """The driver's ``block_status`` hook for :meth:`Node.bind`, ``None`` if it has none."""
        if not self.has("block_status", name):
            return None

        def ask(node: Node, offset: int, length: int) -> Iterable[Extent | ExtentTable]:
            found: Iterable[Extent | ExtentTable] = self._caller("block_status", name)(
                image=node, offset=offset, length=length
            )
            return found

        return ask

    def hits(self, head: bytes, filename: str) -> list[ProbeHit]:
        """What the drivers say of the first bytes of a file."""
        self.load_all()
        found: list[ProbeHit] = self.manager.hook.probe(head=head, filename=filename)
        return found

    def missing_drivers(self, head: bytes) -> list[str]:
        """The formats that some first bytes are a signature of and whose drivers cannot be asked: they are not here."""
        self.load_all()
        return [
            name
            for name, (offset, signature) in SIGNATURES.items()
            if name not in self._drivers and head[offset : offset + len(signature)] == signature
        ]

    def probe(self, head: bytes, filename: str) -> str:
        """The name of the driver that is surest of a file.

        :raises UnknownFormat: none knows it, or it is in a format whose driver is not installed.
        :raises ImageError: several are equally sure.
        """
        hits = self.hits(head, filename)
        best = max((hit.score for hit in hits), default=0)
        names = sorted({hit.format for hit in hits if hit.score == best})
        if best <= 1 and (missing := self.missing_drivers(head)):
            raise UnknownFormat(f"'{filename}' is in {missing[0]} format", hint=install_hint(missing[0]))
        if not names:
            raise UnknownFormat(f"'{filename}' is in no format that an installed driver knows")
        if len(names) > 1:
            raise ImageError(f"'{filename}' could be {' or '.join(names)}: name its format")
        return names[0]


def install_hint(name: str) -> str:
    """Which package has a driver, if that is known."""
    package = PACKAGES.get(name)
    return f"The package {package} provides it: pip install {package}" if package else ""
