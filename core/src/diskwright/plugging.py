"""pluggy, with a short way to the hooks of a driver."""

from __future__ import annotations

from typing import Any

from . import hookspecs
from .light_pluggy import pluggy


class DriverManager(pluggy.PluginManager):
    """Holds the drivers of one kind.

    :param group: the entry point group that drivers of this kind are in.
    """

    def __init__(self, group: str) -> None:
        super().__init__(hookspecs.PROJECT)
        self.add_hookspecs(hookspecs.SPECS.get(group, hookspecs.FormatSpecs))

    def parse_hookimpl_opts(self, plugin: Any, name: str) -> Any:
        """Pass over what is not marked as a hook.

        To look at every attribute of a driver without running descriptors, as pluggy does, would take longer than all
        else that is done to load it.
        """
        if name.startswith("__"):
            return None
        for owner in type(plugin).__mro__:
            if name in vars(owner):
                marked = getattr(vars(owner)[name], f"{self.project_name}_impl", None) is not None
                return super().parse_hookimpl_opts(plugin, name) if marked else None
        return super().parse_hookimpl_opts(plugin, name)
