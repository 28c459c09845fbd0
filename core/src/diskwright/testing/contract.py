"""Conformance to the contract: what a driver is made of."""

from __future__ import annotations

import inspect
import subprocess
import sys

from ..hookspecs import PROJECT, FormatSpecs
from .base import DriverTests

HEAVY_MODULES = ("numpy", "construct", "cryptography", "zstandard", "backports.zstd", "zlib_ng", "isal")
"""What an entry module may not load: probing loads all entry modules for every file."""


class ContractTests(DriverTests):
    """The entry module and the hooks."""

    def test_entry_module_is_cheap(self) -> None:
        """Importing the entry module loads no large library."""
        program = f"import sys, {self.entry_module}; print(*({set(HEAVY_MODULES)!r} & set(sys.modules)))"
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stdout.split() == [], f"{self.entry_module} loads what should wait until it is needed"

    def test_entry_point_names_the_entry_module(self) -> None:
        """The installed driver of this name is the one under test."""
        assert type(self.context.formats.load(self.name)).__module__ == self.entry_module

    def test_required_hooks(self) -> None:
        """``probe`` and ``open`` are there."""
        assert self.has("probe")
        assert self.has("open")

    def test_hook_signatures(self) -> None:
        """Hooks exist in the contract, and take arguments of the contract, plainly."""
        driver = self.context.formats.load(self.name)
        for name, method in inspect.getmembers(type(driver), inspect.isfunction):
            if not hasattr(method, f"{PROJECT}_impl"):
                continue
            specified = getattr(FormatSpecs, name, None)
            assert specified is not None, f"{name} is no hook of a format driver"
            arguments = inspect.signature(method).parameters
            unknown = set(arguments) - set(inspect.signature(specified).parameters)
            assert not unknown, f"{name} takes {unknown}, which the hook does not have"
            for argument in arguments.values():
                assert argument.kind is argument.POSITIONAL_OR_KEYWORD, f"{name}({argument}): must be a plain argument"
                assert argument.default is argument.empty, f"{name}({argument}): pluggy does not fill in defaults"

    def test_trace_events_are_named_after_the_driver(self) -> None:
        """Events that a driver declares can be told from those of others, and each says when it happens."""
        self.need("trace_events")
        events = self.context.formats.call("trace_events", self.name)
        assert events
        for event in events:
            assert event.name.startswith(f"{self.name}_"), event.name
            assert event.help, event.name
        assert len({event.name for event in events}) == len(events)

    def test_creation_options_are_declared(self) -> None:
        """A driver that creates says with which options, the size among them."""
        self.need("create")
        declared = [option.name for option in self.context.formats.call("creation_options", self.name)]
        assert "size" in declared
        assert len(declared) == len(set(declared))
